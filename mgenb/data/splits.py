"""What a dataset is made of: open splits, the sealed test split, and stratified draws that respect groups.

For few-shot learning it is dealt by class: classes to train on, to select on, and novel ones, sealed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import torch

from mgenb.errors import MgenbError, SealedSplitError
from mgenb.seeds import numpy_generator

BASE_VAL = 1 / 6  # of the base classes' images, where the source gives its val part to other classes
SELECTING = ("train", "val")  # roles of what may train or select
LOOKS: list[str] = []  # the reason of each look at test images in this process, whatever copy of a split it was at
IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one role ("train", "val"; "test" only from `SealedSplit.unseal`), in the order of the source.

    images: uint8 [n, channels, h, w]; labels: int64 [n]; groups: int64 [n]. Images of one group (a GTSRB
    track) always stand on one side of a split; elsewhere each image is its own group.
    """

    images: torch.Tensor
    labels: torch.Tensor
    groups: torch.Tensor
    role: str

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> "Split":
        """Return the split with its three tensors on `device`."""
        return Split(self.images.to(device), self.labels.to(device), self.groups.to(device), self.role)

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return torch.bincount(self.labels).tolist()

    def take(self, n: int, seed: int) -> "Split":
        """Return a stratified random subset of `n` images; MgenbError when n < 1 or n > len(self)."""
        rng = numpy_generator(seed, "take", self.role)
        index = torch.from_numpy(subset(self.labels.cpu().numpy(), n, rng, f"take({n}) of {self.role}"))
        return self.at(index)

    def at_most(self, limit: int | str, seed: int) -> "Split":
        """Return a stratified subset of `limit` images, or the whole split: where it has no more, and for "all"."""
        return self if isinstance(limit, str) or limit >= len(self) else self.take(limit, seed)

    def only(self, labels: Sequence[int]) -> "Split":
        """Return the images of some classes, whose labels become 0, 1, ... in the order of `labels`."""
        new = torch.full((max(int(self.labels.max()), *labels) + 1,), -1)
        new[list(labels)] = torch.arange(len(labels))
        labelled = new.to(self.labels.device)[self.labels]
        return replace(self, labels=labelled).at((labelled >= 0).nonzero().squeeze(1))

    def at(self, index: torch.Tensor) -> "Split":
        """Return the images at `index` (int64), in that order."""
        index = index.to(self.images.device)
        return Split(self.images[index], self.labels[index], self.groups[index], self.role)


def refuse_test(split: Split) -> None:
    """Raise SealedSplitError unless the split may train or select."""
    if split.role not in SELECTING:
        raise SealedSplitError(
            f"a split of role {split.role!r} neither trains nor selects, which is for {' and '.join(SELECTING)}: "
            "test images are for run.final_test alone"
        )


@dataclass(frozen=True, eq=False)
class SealedSplit:
    """The test images. They can be counted and moved, and seen only through `unseal`, which keeps count in `LOOKS`."""

    _split: Split = field(repr=False)

    def __len__(self) -> int:
        return len(self._split)

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("images", "labels", "groups", "take"):
            raise SealedSplitError(f"the test split is sealed: use run.final_test(models) instead of .{name}")
        raise AttributeError(f"SealedSplit has no attribute {name!r}")

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return self._split.counts()

    def only(self, labels: Sequence[int]) -> "SealedSplit":
        """Return the images of some classes as `Split.only` does, sealed."""
        return SealedSplit(self._split.only(labels))

    def unseal(self, reason: str) -> Split:
        """Return the test images as a Split of role "test" and note `reason` in `LOOKS`."""
        if not reason.strip():
            raise SealedSplitError("unsealing the test split needs a reason, or use run.final_test(models)")
        LOOKS.append(reason)
        return self._split

    def to(self, device: torch.device | str) -> "SealedSplit":
        """Return the sealed split on `device`."""
        return SealedSplit(self._split.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset in memory. `variant` is official, jpeg, subset, sample or user.

    In the few-shot sets (omniglot, cifar_fs, mini_imagenet) the splits have different classes: `classes`
    are those of train, and the labels of test (and of a given val) count the classes of their own split:
    `apart` names these splits. `digest` names pixels, labels and the choice of images in all three splits.
    """

    name: str
    variant: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: SealedSplit
    source: str
    digest: str
    seed: int
    apart: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        return self.train.images.shape[2]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the dataset with all splits on `device`."""
        train, val, test = self.train.to(device), self.val.to(device), self.test.to(device)
        return replace(self, train=train, val=val, test=test)

    def describe(self) -> dict[str, Any]:
        """Return what a record keeps of the dataset, as JSON values."""
        about = {name: getattr(self, name) for name in ("name", "variant", "source", "digest")}
        counts = {role: len(getattr(self, role)) for role in ("train", "val", "test")}
        return about | {"counts": counts, "classes": self.num_classes, "seed": self.seed}


def allocate(counts: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """Return int64 shares of `n` in proportion to `counts` (largest remainder, ties at random).

    They add up to n and no share is above its count (n must not be above the sum of counts).
    """
    shares, remainders = np.divmod(counts * n, counts.sum())
    shuffled = rng.permutation(len(counts))
    order = shuffled[np.argsort(-remainders[shuffled], kind="stable")]
    shares[order[: n - shares.sum()]] += 1
    return shares


def subset(labels: IntArray, n: int, rng: np.random.Generator, what: str) -> IntArray:
    """Return sorted indices (int64 [n]) of a stratified random subset; errors name the request `what`."""
    if not isinstance(n, Integral) or isinstance(n, bool) or not 1 <= n <= len(labels):
        raise MgenbError(f"{what}: right is a whole number from 1 to {len(labels)}, the images there are")
    classes, counts = np.unique(labels, return_counts=True)
    shares = allocate(counts, n, rng)
    pairs = zip(classes, shares, strict=True)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:share] for label, share in pairs]
    return np.sort(np.concatenate(chosen))


def split_indices(
    labels: IntArray, groups: IntArray, fraction: float, rng: np.random.Generator, names: Sequence[str]
) -> tuple[IntArray, IntArray]:
    """Return (train, val) indices, sorted int64: about `fraction` of each class in val, whole groups only.

    Raises MgenbError when `fraction` is not between 0 and 1 or a class (called `names[label]`) has one group.
    """
    if not (isinstance(fraction, Real) and 0 < fraction < 1):
        raise MgenbError(f"val_fraction is {fraction}: it must lie between 0 and 1, both excluded")
    classes, counts = np.unique(labels, return_counts=True)
    targets = allocate(counts, round(fraction * len(labels)), rng)
    in_val = np.zeros(len(labels), dtype=bool)
    for label, target in zip(classes, targets, strict=True):
        members = np.flatnonzero(labels == label)
        tracks, sizes = np.unique(groups[members], return_counts=True)
        if len(tracks) < 2:
            raise MgenbError(f"class {names[label]} of train has one image or track; train and val need one each")
        order = rng.permutation(len(tracks))
        taken = 1 + int(np.argmin(np.abs(np.cumsum(sizes[order]) - target)))
        in_val[members] = np.isin(groups[members], tracks[order[: min(taken, len(tracks) - 1)]])
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


@dataclass(frozen=True, eq=False)
class ClassSplit:
    """Classes of a dataset in three parts that share none; `base`, `val` and `novel` name them.

    data: train and val hold the base classes, relabelled 0, 1, ...; test, sealed, holds the novel ones.
    selection: images of role "val" on which models are selected: of the val classes, or, where there are none, the
        base classes' validation images.
    """

    data: Dataset
    selection: Split
    base: tuple[str, ...]
    val: tuple[str, ...]
    novel: tuple[str, ...]


def split_classes(dataset: Dataset, *, val: int = 0, novel: int = 0, seed: int = 0) -> ClassSplit:
    """Deal the classes of `dataset` by `seed`: so many novel and val ones, and the others as base.

    Where the source keeps classes apart (omniglot, cifar_fs, mini_imagenet) novel classes are those of its test part
    and val classes those of its val part, with 0 for all of them. Else they are dealt from train's classes: images of
    all classes come from train and val together, whose groups are known, and those of the novel ones are sealed.
    Raises MgenbError when more classes are asked for than there are, or fewer than two are left as base.
    """
    decks = {role: _deck(dataset, role, seed) for role in ("train", *dataset.apart)}
    labels, names = {}, {}
    # novel ones first: how many others there are does not change which are novel
    for part, role, wanted in (("novel", "test", novel), ("val", "val", val)):
        deck = decks.get(role, decks["train"])
        count = wanted or (len(deck) if role in decks else 0)
        if not 0 <= count <= len(deck):
            asked = f"{count} {part} classes of {dataset.name} were asked for"
            raise MgenbError(f"{asked}; right is at most {len(deck)}, which are left")
        labels[part], deck[:] = sorted(deck[:count]), deck[count:]
        # the names of classes that are not in train are not kept
        names[part] = tuple(f"{part} {label}" if role in decks else dataset.classes[label] for label in labels[part])
    base = sorted(decks["train"])
    if len(base) < 2:
        raise MgenbError(f"{dataset.name} has {len(base)} classes left as base; right is at least 2")
    data = _of_base(dataset, base, labels["novel"], seed)
    selection = _all_of(dataset, labels["val"], "val") if labels["val"] else data.val
    return ClassSplit(data, selection, data.classes, names["val"], names["novel"])


def _deck(dataset: Dataset, role: str, seed: int) -> list[int]:
    classes = dataset.num_classes if role == "train" else len(getattr(dataset, role).counts())
    return numpy_generator(seed, "deal classes", dataset.name, role).permutation(classes).tolist()


def _of_base(dataset: Dataset, base: list[int], novel: list[int], seed: int) -> Dataset:
    """Return what a network is trained on, and the novel classes, sealed, as its test part."""
    names, train = tuple(dataset.classes[label] for label in base), dataset.train.only(base)
    if "val" in dataset.apart:
        rng = numpy_generator(seed, "val of base", dataset.name)
        kept, held = split_indices(train.labels.cpu().numpy(), train.groups.cpu().numpy(), BASE_VAL, rng, names)
        train, val = train.at(torch.from_numpy(kept)), replace(train.at(torch.from_numpy(held)), role="val")
    else:
        val = dataset.val.only(base)
    digest = hashlib.sha256(f"{dataset.digest} {base} {novel} {seed}".encode()).hexdigest()[:20]
    test, apart = dataset.test, "test" in dataset.apart
    test = test.only(novel) if apart else SealedSplit(_all_of(dataset, novel, "test"))
    return replace(dataset, classes=names, train=train, val=val, test=test, digest=digest, apart=("test",))


def _all_of(dataset: Dataset, chosen: list[int], role: str) -> Split:
    """Return all images of val or novel classes: of the val part where it is apart, or of train and val together."""
    splits = (dataset.val,) if "val" in dataset.apart else (dataset.train, dataset.val)
    parts = [split.only(chosen) for split in splits]
    images, labels, groups = (torch.cat([getattr(p, name) for p in parts]) for name in ("images", "labels", "groups"))
    return Split(images, labels, groups, role)
