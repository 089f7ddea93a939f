"""Evaluation: the same predictions as a plain forward pass, and a network that leaves as it came."""

import pytest
import torch
from torch import nn

from mgenb import nets, population
from mgenb.data import Split
from mgenb.errors import MgenbError


def split(n, channels=1, size=28):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(n) % 10, torch.arange(n), "val")


def jittered(net, seed):
    """Return another state in which BatchNorm's statistics differ too."""
    generator = torch.Generator().manual_seed(seed)
    state = population.state_of(net)
    floats = {name: t for name, t in state.items() if t.is_floating_point() and not name.startswith("normalise")}
    return {
        **state,
        **{n: t * (1 + 0.3 * torch.rand(t.shape, generator=generator)) for n, t in floats.items()},
    }


@pytest.mark.parametrize(("arch", "n"), [("lenet", 300), ("vgg11_bn", 6), ("resnet18", 4)])
def test_predictions_are_those_of_a_plain_forward_pass(arch, n):
    torch.manual_seed(0)
    net = nets.build(arch, 1, 28, 10)
    other = jittered(net, 1)
    twin = nets.build(arch, 1, 28, 10).eval()
    images = split(n)
    for state in (net.state_dict(), other):
        twin.load_state_dict(state)
        with torch.no_grad():
            expected = twin(images.images).argmax(1)
        assert population.predict(net, images, state).equal(expected)
    assert population.predict(net, images).equal(population.predict(net, images, net.state_dict()))


def test_the_networks_own_tensors_stay_as_they_are():
    net = nets.build("resnet18", 3, 32, 10).train()
    before = population.state_of(net)
    population.predict(net, split(3, 3, 32), jittered(net, 2))
    population.predict(net, split(3, 3, 32))
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())


def test_state_of_is_a_copy():
    net = nets.build("lenet", 1, 28, 10)
    state = population.state_of(net)
    with torch.no_grad():
        net.get_parameter("net.fc2.bias").fill_(9)
    assert state["net.fc2.bias"].abs().max() < 1


class Failing(nn.Module):
    def forward(self, images):
        raise RuntimeError("no memory")


@pytest.mark.parametrize("last", [nn.Linear(784, 10), Failing()])
def test_a_network_of_mixed_modes_leaves_in_them_also_after_a_failure(last):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(784), nn.Dropout()), last).train()
    net[2][0].eval()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    data = Split(torch.rand(5, 1, 28, 28), torch.zeros(5, dtype=torch.int64), torch.arange(5), "val")
    if isinstance(last, Failing):
        with pytest.raises(RuntimeError, match="no memory"):
            population.predict(net, data)
    else:
        assert population.predict(net, data).equal(population.predict(net, data))
    assert [module.training for module in net.modules()] == modes


def test_a_state_that_does_not_fit_names_the_tensor():
    net = nets.build("lenet", 1, 28, 10)
    state = population.state_of(net)
    lacking = {name: tensor for name, tensor in state.items() if name != "net.conv2.bias"}
    with pytest.raises(MgenbError, match=r"lacks 'net\.conv2\.bias'"):
        population.predict(net, split(2), lacking)
    with pytest.raises(MgenbError, match=r"'net\.fc2\.weight' has shape \(2, 84\); right is \(10, 84\)"):
        population.predict(net, split(2), {**state, "net.fc2.weight": torch.zeros(2, 84)})


def test_a_network_of_nans_is_right_about_nothing():
    net = nets.build("lenet", 1, 28, 10)
    broken = {**population.state_of(net), "net.fc2.bias": torch.full((10,), float("nan"))}
    assert population.predict(net, split(20), broken).eq(-1).all()
    assert population.accuracy(net, split(20), broken) == 0


def test_accuracy_is_the_percentage_of_right_images():
    net = nets.build("lenet", 1, 28, 10)
    always_seven = {name: torch.zeros_like(tensor) for name, tensor in population.state_of(net).items()}
    always_seven["normalise.std"] = torch.ones(1)
    always_seven["net.fc2.bias"][7] = 1
    images = split(40)
    assert population.correct(net, images, always_seven).equal(images.labels == 7)
    assert population.accuracy(net, images, always_seven) == 10
