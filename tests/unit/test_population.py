"""Evaluation: predictions and counts of a plain forward pass, an early stop that decides the same, nothing changed."""

import copy
import json
import weakref

import pytest
import torch
from torch import nn

from mgenb import devices, nets
from mgenb.data import Split
from mgenb.errors import MgenbError, SealedSplitError
from mgenb.measure import population, speed
from mgenb.measure.population import Count
from mgenb.mge import algorithm1


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
    inner = nn.Sequential(nn.BatchNorm1d(784), nn.Dropout())
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), inner, last).train()
    inner[0].eval()
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


def test_accuracy_is_the_share_of_right_images():
    net = nets.build("lenet", 1, 28, 10)
    always_seven = {name: torch.zeros_like(tensor) for name, tensor in population.state_of(net).items()}
    always_seven["normalise.std"] = torch.ones(1)
    always_seven["net.fc2.bias"][7] = 1
    images = split(40)
    assert population.correct(net, images, always_seven).equal(images.labels == 7)
    assert population.accuracy(net, images, always_seven) == 0.1


def settled(arch, n):
    """Return a network whose BatchNorm has the statistics of `n` images, and these with its own predictions as labels.

    So its classes differ from image to image, and it has all of them right.
    """
    torch.manual_seed(0)
    net, images = nets.build(arch, 1, 28, 10), split(n)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(images.images)
        labels = net.eval()(images.images).argmax(1)
    return net, Split(images.images, labels, images.groups, "val")


def population_of(net, scales):
    """Return one state for each scale: noise of that share of each tensor's deviation, in the statistics too."""
    base, states = population.state_of(net), []
    for seed, scale in enumerate(scales):
        generator = torch.Generator().manual_seed(seed)
        state = dict(base)
        for name, t in base.items():
            if t.ndim and not name.startswith("normalise"):
                noise = torch.randn(t.shape, generator=generator) * t.std()
                state[name] = (t + scale * noise).clamp(min=0.01) if name.endswith("running_var") else t + scale * noise
        states.append(state)
    return states


@pytest.fixture(scope="module")
def noisy():
    """A LeNet, 60 images all of which it has right, a population of 12, and what a plain forward pass gives."""
    net, images = settled("lenet", 60)
    states = population_of(net, [0.1 * i for i in range(12)])
    return net, images, states, [plainly(net, images, state) for state in states]


def plainly(net, images, state):
    twin = copy.deepcopy(net).eval()
    twin.load_state_dict(state)
    with torch.no_grad():
        return int((twin(images.images).argmax(1) == images.labels).sum())


def counted(way, net, images, states, fewest=None):
    """Counts as on a CPU, or by the fused layers of a GPU, which a CPU can imitate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(population, "_plain", {"plain": population._plain, "fused": population._fused}[way])
        return population.counter(net, images)(states, fewest)


WAYS = ("plain", "fused")


@pytest.mark.parametrize(
    ("arch", "n", "scales"),
    [("lenet", 60, (0, 0.8, 1.6)), ("vgg11_bn", 12, (0, 0.03, 0.1)), ("resnet18", 8, (0, 0.05, 0.1))],
)
def test_both_ways_count_what_a_plain_forward_pass_has_right(arch, n, scales, monkeypatch):
    monkeypatch.setattr(population, "CPU_BATCH", n // 2 - 1)  # three batches, the last one short
    net, images = settled(arch, n)
    states = [*population_of(net, scales), jittered(net, 1)]
    expected = [plainly(net, images, state) for state in states]
    assert expected[0] == n
    assert len(set(expected)) > 2
    for way in WAYS:
        assert counted(way, net, images, states) == [Count(right, n, n) for right in expected]
    assert [int(population.correct(net, images, state).sum()) for state in states] == expected


@pytest.mark.parametrize("way", WAYS)
def test_a_population_of_none_and_of_one(noisy, way):
    net, images, states, expected = noisy
    assert counted(way, net, images, iter(())) == []
    assert counted(way, net, images, [states[4]]) == [Count(expected[4], 60, 60)]


@pytest.mark.parametrize("way", WAYS)
def test_a_generators_states_are_let_go_as_they_are_counted(noisy, way):
    net, images, states, expected = noisy
    made, alive = [], []

    def fresh():
        for state in states:
            own = {name: tensor.clone() for name, tensor in state.items()}
            made.append(weakref.ref(own["net.fc1.weight"]))
            yield own
            del own
            alive.append(sum(one() is not None for one in made))

    assert [one.right for one in counted(way, net, images, fresh())] == expected
    assert len(alive) == 12
    assert max(alive) <= 2  # the one that is counted, and where it is folded the one before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fewest", [None, 0, 1, 60, 61])
def test_a_model_of_nans_has_none_right_and_does_no_harm_to_its_neighbours(noisy, monkeypatch, way, fewest):
    net, images, states, expected = noisy
    monkeypatch.setattr(population, "CPU_BATCH", 16)
    broken = {**states[0], "net.fc2.bias": torch.full((10,), float("nan"))}
    found = counted(way, net, images, [states[0], broken, states[6]], fewest)
    rights = [60, 0, expected[6]]
    if fewest is None:
        assert found == [Count(right, 60, 60) for right in rights]
    else:
        assert [one.passes(fewest) for one in found] == [right >= fewest for right in rights]
    assert found[1].right == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_network_in_training_counts_as_in_evaluation_and_leaves_as_it_came(way):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(784, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 10))
    net, images = nn.Sequential(nn.Flatten(), body), split(40)
    images = Split(images.images / 255, images.labels, images.groups, "val")
    states = population_of(net, [0.0, 0.5])
    expected = [plainly(net, images, state) for state in states]
    before = population.state_of(net.train())
    body[1].eval()
    modes = [module.training for module in net.modules()]
    assert [one.right for one in counted(way, net, images, states)] == expected
    assert [module.training for module in net.modules()] == modes
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(MgenbError, match="lacks"):
        counted(way, net, images, [{}])
    assert [module.training for module in net.modules()] == modes


def test_predictions_are_one_row_a_model(noisy, monkeypatch):
    net, images, states, expected = noisy
    monkeypatch.setattr(population, "CPU_BATCH", 25)
    broken = {**states[0], "net.fc2.bias": torch.full((10,), float("nan"))}
    found = population.predictions(net, images, iter([*states, broken]))
    assert found.dtype == torch.int64
    assert found.equal(torch.stack([population.predict(net, images, state) for state in [*states, broken]]))
    assert (found == images.labels).sum(1).tolist() == [*expected, 0]
    assert found[-1].eq(-1).all()
    floats = Split(images.images / 255, images.labels, images.groups, "val")
    assert population.predictions(net, floats, states[:2]).equal(found[:2])
    with pytest.raises(MgenbError, match="the population is empty"):
        population.predictions(net, images, iter(()))


def test_an_unknown_precision_is_refused_before_a_state_is_made():
    def states():
        raise AssertionError("a state was asked for")
        yield

    with pytest.raises(MgenbError, match="unknown precision 'tf23'; did you mean 'tf32'"):
        population.count(nets.build("lenet", 1, 28, 10), split(2), states(), precision="tf23")


@pytest.mark.parametrize("way", WAYS)
def test_an_early_stop_decides_as_the_full_pass_does_and_as_soon_as_it_can(way, monkeypatch, lenet, small):
    images, size = small.train.take(80, 0), 150
    ends = torch.tensor([17, 34, 51, 68, 80])  # of the batches
    monkeypatch.setattr(population, "CPU_BATCH", 17)
    monkeypatch.setattr(population, "STOPS", 5)
    if way == "fused":
        ends = torch.tensor([16, 32, 48, 64, 80])
    states = population_of(lenet, [1.2 * i / size for i in range(size)])
    hits = torch.stack([population.correct(lenet, images, state) for state in states])
    full, so_far = hits.sum(1).tolist(), hits.cumsum(1)[:, ends - 1]
    middle, top = sorted(full)[size // 2], max(full)
    assert min(full) < middle - 10
    assert middle + 10 < top
    for fewest in (0, 1, middle, top - 3, top, 80, 81):
        found = counted(way, lenet, images, states, fewest)
        assert [one.passes(fewest) for one in found] == [right >= fewest for right in full]
        assert all(one.right <= right <= one.most for one, right in zip(found, full, strict=True))
        open_after = (so_far < fewest) & (fewest <= so_far + 80 - ends)
        assert [one.seen for one in found] == ends[open_after.sum(1)].tolist()
        assert sum(one.seen for one in found) < 80 * size


@pytest.mark.parametrize(
    ("fewest", "passes"),
    [(0, True), (5, True), (6, None), (15, None), (16, False), (21, False)],
)
def test_bounds_that_do_not_tell_are_not_taken_for_a_decision(fewest, passes):
    some = Count(right=5, seen=10, total=20)
    assert some.most == 15
    if passes is None:
        with pytest.raises(MgenbError, match=f"10 of 20 images do not tell whether {fewest} are right"):
            some.passes(fewest)
    else:
        assert some.passes(fewest) is passes


def test_a_whole_pass_decides_everything():
    whole = Count(right=5, seen=20, total=20)
    assert whole.most == 5
    assert [fewest for fewest in range(22) if whole.passes(fewest)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("arch", "n"), [("lenet", 40), ("resnet18", 6)])
def test_a_quick_copy_predicts_the_same_and_shares_nothing(arch, n):
    net, images = settled(arch, n)
    before, strides = population.state_of(net.train()), [t.stride() for t in net.state_dict().values()]
    quick = population.quick_copy(net)
    with_state = population.quick_copy(net, jittered(net, 3))
    assert with_state(images.images).argmax(1).equal(population.predict(net, images, jittered(net, 3)))
    with pytest.raises(MgenbError, match="lacks"):
        population.quick_copy(net, {})
    assert not any(module.training for module in quick.modules())
    with torch.no_grad():
        assert quick(images.images).argmax(1).equal(images.labels)
        for parameter in quick.parameters():
            parameter.zero_()
    assert all(module.training for module in net.modules())
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())
    assert [t.stride() for t in net.state_dict().values()] == strides


def test_what_selects_may_not_see_the_test_split():
    net = nets.build("lenet", 1, 28, 10)
    images = split(4)
    sealed = Split(images.images, images.labels, images.groups, "test")
    assert len(population.count(net, sealed, [net.state_dict()])) == 1
    with pytest.raises(SealedSplitError, match="neither trains nor selects"):
        population.count(net, sealed, [net.state_dict()], fewest=1)
    with pytest.raises(SealedSplitError, match="neither trains nor selects"):
        algorithm1.cached(net, sealed)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_the_quicker_pooling_gives_torchs_values_and_gradients(size, order):
    x = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(0)).round()  # many are equal
    x[0, 0, 0, 1], x[1, 1, 1, 1] = float("nan"), float("-inf")
    x = x.contiguous(memory_format=order)
    pool, plain = speed.HalvingPool(2), nn.MaxPool2d(2)
    with torch.inference_mode():
        found = pool(x)
    assert torch.equal(found.nan_to_num(99), plain(x).nan_to_num(99))
    gradients = []
    for layer in (pool, plain):
        leaf = x.clone().requires_grad_()
        layer(leaf).nansum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*map(torch.as_tensor, gradients))


def test_other_pooling_is_left_to_torch():
    layers = [nn.MaxPool2d(3, 2), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, 2)]
    twin = speed.evaluated(nn.Sequential(*layers))
    assert [type(layer) for layer in twin.children()] == [nn.MaxPool2d] * 3 + [speed.HalvingPool]
    assert {type(layer) for layer in layers} == {nn.MaxPool2d}


@pytest.fixture(scope="module")
def near_ties():
    """A Conv-4, 260 images, and two states in which only noise tells some images' two largest logits apart."""
    net, images = settled("conv4", 260)
    fc = net.get_submodule("net.fc")
    with torch.no_grad():
        fc.weight[5:] = fc.weight[:5] * (1 + 1e-7 * torch.randn(5, 1))
        fc.bias[5:] = fc.bias[:5]
    states = [net.state_dict(), *population_of(net, [0.0])]
    states[1]["net.fc.bias"] = torch.full((10,), float("nan"))
    return net, images, states


def test_every_way_of_computing_predicts_the_same(near_ties, monkeypatch):
    net, images, states = near_ties
    usual = torch.stack([population.classes_of(population.logits(net, images, state)) for state in states])
    counts = []
    for way in speed.WAYS:
        monkeypatch.setattr(population, "fastest", lambda *_, way=way: way)
        assert population.predictions(net, images, states).equal(usual)
        counts.append([population.count(net, images, states, fewest=fewest) for fewest in (None, 100)])
    assert counts == counts[:1] * len(speed.WAYS)
    assert (usual[1] == -1).all()


def test_without_looking_twice_noise_would_tell(near_ties, monkeypatch):
    net, images, states = near_ties
    usual = population.classes_of(population.logits(net, images, states[0]))
    monkeypatch.setattr(population, "fastest", lambda *_: (False, 128))
    monkeypatch.setattr(population, "CLOSE", -1.0)
    apart = int((population.predict(net, images, states[0]) != usual).sum())
    computed = torch.func.functional_call(net.eval(), speed.ordered(states[0], last=False), (images.images,))
    assert (apart > 0) == (not computed.argmax(1).equal(usual))  # some processors may compute both orders alike


def test_the_fastest_way_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path))
    net, images, asked = nets.build("lenet", 1, 28, 10), split(300), []
    took = dict(zip(speed.WAYS, [1.0, 0.95, 0.5, 0.6], strict=True))
    monkeypatch.setattr(speed, "_measured", lambda *_: asked.append(1) or took)
    assert [speed.fastest(net, images.images) for _ in range(2)] == [(False, 128)] * 2
    assert asked == [1]
    (file,) = (tmp_path / "speed").iterdir()
    kept = json.loads(file.read_text())
    assert (kept["cpu"], kept["torch"], kept["image"]) == (devices.processor(), torch.__version__, [1, 28, 28])
    assert kept["measured"] == [[list(way), seconds] for way, seconds in took.items()]
    # another network, other images, another number of threads
    speed.fastest(nets.build("lenet", 1, 28, 11), images.images)
    speed.fastest(net, images.images[:, :, 2:-2, 2:-2])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    speed.fastest(net, images.images)
    assert len(asked) == len(list((tmp_path / "speed").iterdir())) == 4


@pytest.mark.parametrize("text", ["{", "[]", '{"fastest": 3}', '{"fastest": [true, 7]}', '{"fastest": ["x", 64]}'])
def test_a_damaged_speed_is_measured_anew_and_a_closed_cache_costs_time_alone(text, monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path))
    net, images = nets.build("lenet", 1, 28, 10), split(300)
    monkeypatch.setattr(speed, "_measured", lambda *_: dict.fromkeys(speed.WAYS, 1.0))
    assert speed.fastest(net, images.images) == speed.USUAL
    (file,) = (tmp_path / "speed").iterdir()
    file.write_text(text)
    assert speed.fastest(net, images.images) == speed.USUAL
    assert json.loads(file.read_text())["fastest"] == list(speed.USUAL)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "file"))
    assert speed.fastest(net, images.images) == speed.USUAL


def test_a_gain_of_a_twentieth_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path))
    took = dict(zip(speed.WAYS, [1.0, 0.97, 0.95, 0.96], strict=True))
    monkeypatch.setattr(speed, "_measured", lambda *_: took)
    assert speed.fastest(nets.build("lenet", 1, 28, 10), split(300).images) == speed.USUAL


def test_measuring_is_short_and_changes_nothing():
    net = nets.build("lenet", 1, 28, 10).train()
    before, seconds = population.state_of(net), speed._measured(net, split(300).images)
    assert list(seconds) == speed.WAYS
    assert 0 < min(seconds.values()) <= max(seconds.values()) < 0.01
    assert all(module.training for module in net.modules())
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())


def test_few_images_and_networks_without_convolutions_are_not_worth_measuring(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(population, "fastest", refuse)
    population.predict(nets.build("lenet", 1, 28, 10), split(100))
    images = split(300)
    floats = Split(images.images / 255, images.labels, images.groups, "val")
    population.predict(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), floats)
