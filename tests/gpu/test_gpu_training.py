"""Training on the GPU: captured steps are the plain ones, whatever was captured before, resumed or beside them."""

import copy

import pytest
import torch

from mgenb import store, training
from mgenb.steps import Step

ARCHITECTURES = ("lenet", "resnet8")


@pytest.fixture(scope="module")
def images(digits):
    return digits.to("cuda").train


def drawn(arch, digits, seed=0):
    """A fresh network in double precision: in single, a last bit grows to percents of the loss in a few steps."""
    return training.fresh(arch, digits.to("cuda"), seed).double()


def both_ways(net, images, recipe):
    """A captured step of `net`, and of a copy of it one whose kernels are launched by themselves."""
    step, other = training._step(net, images, recipe), copy.deepcopy(net)
    assert step.graph is not None
    optimiser = training._optimiser(other, recipe, images.images.device)
    return step, Step(other, images, optimiser, recipe.batch, recipe.precision)


def apart(first, second):
    """The largest relative distance of two networks' tensors."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(((a.double() - b.double()).norm() / (b.double().norm() + 1e-3)).item() for a, b in pairs)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_captured_step_is_the_plain_one_step_by_step(arch, digits, images):
    step, plain = both_ways(drawn(arch, digits), images, training.Recipe("sgd", 0.01, 0.9))
    for first in range(0, 64 * 6, 64):
        index = torch.arange(first, first + (64 if first else 40), device="cuda")  # the first batch is a smaller one
        step(index, 0.01)
        plain(index, 0.01)
        assert apart(step.net, plain.net) < 1e-7
    assert step.take_loss() == pytest.approx(plain.take_loss(), rel=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", ["mge-adam", "mge-sgd-momentum", "one-cycle", "mega-adam"])
def test_captured_training_ends_with_the_plain_losses(arch, name, digits, images):
    # not the weights: of biases before a BatchNorm, Adam makes noise as large as its rate
    recipe, few = training.RECIPES[name], images.at(torch.arange(400))
    steps = both_ways(drawn(arch, digits), few, recipe)
    losses = [
        [training.fit_epoch(step, recipe, epoch, (epoch / 2, epoch / 2 + 0.5)) for epoch in (0, 1)] for step in steps
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][1] < losses[0][0]


def test_a_capture_changes_nothing_that_is_trained(digits, images):
    net = training.fresh("resnet8", digits.to("cuda"), 0)
    before = copy.deepcopy(net.state_dict())
    step = training._step(net, images, training.RECIPES["mega-adam"])
    assert step.graph is not None
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())
    assert all(not tensor.any() for state in step.optimiser.state.values() for tensor in state.values())


def test_a_resumed_training_ends_as_an_undisturbed_one(digits, images, tmp_path, monkeypatch):
    recipe = training.RECIPES["one-cycle"]
    whole, cut = drawn("lenet", digits), drawn("lenet", digits)
    losses = training.fit(whole, images, recipe, epochs=4, seed=0)

    keep, kept = store.save_progress, []

    def stop(*what):
        keep(*what)
        kept.append(what)
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "save_progress", stop)
    with pytest.raises(KeyboardInterrupt):
        training.fit(cut, images, recipe, epochs=4, seed=0, checkpoint=tmp_path / "c")
    monkeypatch.setattr(store, "save_progress", keep)
    resumed = training.fit(drawn("lenet", digits, 9), images, recipe, epochs=4, seed=0, checkpoint=tmp_path / "c")
    assert resumed == pytest.approx(losses, rel=1e-3)


def test_bfloat16_trains_as_well_and_leaves_float32(digits):
    there = digits.to("cuda")
    ends = []
    for name in ("mega-adam", "mega-adam-bf16"):
        net = training.fresh("resnet8", there, 0)
        ends.append(training.fit(net, there.train, training.RECIPES[name], epochs=6, seed=0)[-1])
        assert {tensor.dtype for tensor in net.state_dict().values()} <= {torch.float32, torch.int64}
        assert all(tensor.is_contiguous() for tensor in net.state_dict().values())
    assert ends[1] == pytest.approx(ends[0], abs=0.15)
