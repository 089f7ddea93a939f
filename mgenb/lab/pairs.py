"""Which networks on which data a notebook runs, as one parameter: "mnist:lenet:mge-adam:6:0:80, ..."."""

from dataclasses import dataclass
from pathlib import Path

from mgenb import data, nets, training
from mgenb.errors import MgenbError, choose

FORM = "dataset:architecture:recipe:epochs:images:floor in %"


@dataclass(frozen=True)
class Pair:
    """One network on one dataset: how it is trained, and the validation accuracy (%) below which it proves nothing.

    images: 0, as many as the notebook's limits allow; else so many for training, a fifth for validation, a fifth
    for test.
    """

    dataset: str
    arch: str
    recipe: str
    epochs: int
    images: int
    floor: float

    def __str__(self) -> str:
        """Return "lenet on mnist"."""
        return f"{self.arch} on {self.dataset}"


def parse(text: str) -> list[Pair]:
    """Return the pairs of a comma-separated list in the form `FORM`; MgenbError says which entry is wrong and how."""
    pairs = [_pair(entry.strip()) for entry in text.split(",")]
    names = [str(pair) for pair in pairs]
    for name in names:
        if names.count(name) > 1:
            raise MgenbError(f"pairs has {name} twice; right is one entry for each network on each dataset")
    return pairs


def _pair(entry: str) -> Pair:
    fields = entry.split(":")
    if len(fields) != 6:
        raise MgenbError(f"pairs has the entry {entry!r}; right is {FORM}")
    dataset, arch, recipe, *numbers = fields
    if not Path(dataset).exists():  # the user's own images
        choose("dataset", dataset, data.NAMES)
    choose("architecture", arch, nets.ARCHITECTURES)
    choose("recipe", recipe, training.RECIPES)
    try:
        epochs, images, floor = int(numbers[0]), int(numbers[1]), float(numbers[2])
    except ValueError:
        raise MgenbError(f"pairs has the entry {entry!r}, whose last three are not numbers; right is {FORM}") from None
    if epochs < 1 or images < 0 or not 0 <= floor <= 100:
        raise MgenbError(f"pairs has the entry {entry!r}; right is epochs >= 1, images >= 0 and a floor of 0 to 100 %")
    return Pair(dataset, arch, recipe, epochs, images, floor)
