"""Values that cannot be right: one sentence that names the value, at every public door, and nothing computed."""

import math

import pytest
import torch

from mgenb import data, mega, mge, nets, stats, store, training
from mgenb.errors import MgenbError
from mgenb.lab import catalog
from mgenb.measure import attacks, population
from mgenb.mge import evolve
from mgenb.seeds import derive

NAN, QUICK = math.nan, mega.Settings(size=3, generations=1, winners=2)
LAYER = "net.conv1.weight"


def load(**limits):
    return data.load("mnist", source="samples", **limits)


VALUES = {
    "unknown optimiser 'adamw'": lambda: training.Recipe("adamw", 0.1),
    "unknown schedule 'cosine'": lambda: training.Recipe("adam", 0.1, schedule="cosine"),
    "rate of the recipe is nan": lambda: training.Recipe("adam", NAN),
    "batch of the recipe is 1.5": lambda: training.Recipe("adam", 0.1, batch=1.5),  # type: ignore[arg-type]
    "momentum of the recipe is 2": lambda: training.Recipe("sgd", 0.1, momentum=2),
    "1.5 of 3 is not a proportion": lambda: stats.proportion(1.5, 3),  # type: ignore[arg-type]
    "p-values are [nan]": lambda: stats.holm([NAN]),
    "p-values are [0.1, 2.0]": lambda: stats.holm([0.1, 2.0]),
    "no notebook ''": lambda: catalog.find(""),
    "train_limit=-1": lambda: load(train_limit=-1),
    "val_limit=1.5": lambda: load(val_limit=1.5),
    "test_limit=x": lambda: load(test_limit="x"),
    "seed is nan": lambda: load(seed=NAN),
    "unknown dataset 'None'": lambda: data.load(None),  # type: ignore[arg-type]
    "seed is -1": lambda: derive(-1, "merge"),
    "seed is True": lambda: derive(True),
    "t is True": lambda: mge.Settings(t=True),
    "size is -3": lambda: mega.Settings(size=-3),
    "rate is nan": lambda: mega.Settings(rate=NAN),
    "eps of FGSM is nan": lambda: attacks.FGSM(NAN),
    "lenet takes 1 or 3 channels": lambda: nets.build("lenet", 1, 28, 0),
}


@pytest.mark.parametrize("says", VALUES)
def test_a_value_that_cannot_be_right_is_named(says):
    with pytest.raises(MgenbError) as raised:
        VALUES[says]()
    assert says in str(raised.value)


@pytest.mark.parametrize("epochs", [0, 1.5, True, NAN])
def test_epochs_are_a_whole_number(small, epochs):
    for train in (
        lambda: training.trained("lenet", small, epochs=epochs, seed=0),
        lambda: training.fit(
            nets.build("lenet", 1, 28, 10), small.train, training.RECIPES["mge-sgd"], epochs=epochs, seed=0
        ),
    ):
        with pytest.raises(MgenbError, match=r"epochs is .*right is a whole number of at least 1"):
            train()


def changed(how):
    return lambda state: {**state, LAYER: how(state[LAYER])}


STATES = {
    "holds NaN or infinite numbers": changed(lambda weight: weight * NAN),
    "'net.conv1.weight' of the": changed(lambda weight: weight.masked_fill(weight == weight.max(), torch.inf)),
    "has torch.int32": changed(lambda weight: weight.int()),
    "has torch.complex64": changed(lambda weight: weight.to(torch.complex64)),
    "sparse, quantized, empty or without data": changed(lambda weight: weight[:0]),
    "or without data": changed(lambda weight: weight.to("meta")),
    "is sparse": changed(lambda weight: weight.to_sparse()),
    "is list": changed(lambda weight: weight.tolist()),
    "mixes torch.float32 and torch.float64": changed(lambda weight: weight.double()),
    "without tensors": lambda state: {},
}


def doors(net, split, good, bad):
    """What every public door does with it, by name."""
    even = [0.5] * 3
    yield "generate", lambda: mge.generate(bad, mge.Settings(), 0)
    yield "merge first", lambda: mega.merge(bad, good, QUICK, 0, lambda states: even)
    yield "merge second", lambda: mega.merge(good, bad, QUICK, 0, lambda states: even)
    yield "evolve", lambda: evolve.evolve(bad, mge.Settings(), evolve.Settings(), 0, lambda s: even, lambda s: even)
    yield "attack", lambda: attacks.craft(net, split.images[:2], split.labels[:2], attacks.FGSM(0.1), state=bad)


@pytest.mark.parametrize("says", STATES)
def test_weights_that_cannot_be_computed_with_are_refused_at_every_door(lenet, small, says):
    good = population.state_of(lenet)
    for door, enter in doors(lenet, small.val, good, STATES[says](good)):
        with pytest.raises(MgenbError) as raised:
            enter()
        assert says in str(raised.value), door


def test_half_precision_is_computed_in_float32_and_said(lenet):
    good = population.state_of(lenet)
    half = {name: tensor.half() for name, tensor in good.items()}
    with pytest.warns(UserWarning, match="half precision: float32 is computed with"):
        made = mge.generate(half, mge.Settings(), 0)
    assert {tensor.dtype for tensor in made.values()} == {torch.float32}
    assert store.usable(good) == good
