"""A dataset dealt by class, for few-shot learning: classes to train on, to select on, and novel ones, sealed."""

import hashlib
from dataclasses import dataclass, replace

import torch

from mgenb.data.splits import Dataset, Split, split_indices
from mgenb.errors import MgenbError
from mgenb.seeds import numpy_generator

PARTS = ("novel", "val", "base")  # novel first: how many classes the others get does not change which are novel
BASE_VAL = 1 / 6  # of the base classes' images, where the source gives its val part to other classes


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

    def __str__(self) -> str:
        """Return what is for what, in a sentence for the record."""
        told = f"{len(self.val)} val classes" if self.val else "validation images of base classes (seen in training)"
        return f"{self.data.name}: {len(self.base)} base and {len(self.novel)} novel classes; selection on {told}"


def split_classes(dataset: Dataset, *, base: int = 0, val: int = 0, novel: int = 0, seed: int = 0) -> ClassSplit:
    """Deal the classes of `dataset` by `seed`: so many novel, val and base ones.

    Where the source keeps classes apart (omniglot, cifar_fs, mini_imagenet) novel classes are those of its test part
    and val classes those of its val part, with 0 for all of them. Else they are dealt from train's classes: images of
    base and val classes come from the train part, of novel ones from the test part. base=0: all classes left.
    Raises MgenbError when more classes are asked for than there are, or fewer than two are left as base.
    """
    shared = _deck(dataset.num_classes, seed, dataset.name, "train")
    decks = {"base": shared, "val": shared, "novel": shared}
    if "test" in dataset.apart:
        decks["novel"] = _deck(len(dataset.test.counts()), seed, dataset.name, "test")
    if "val" in dataset.apart:
        decks["val"] = _deck(int(dataset.val.labels.max()) + 1, seed, dataset.name, "val")
    wanted, labels, names = {"base": base, "val": val, "novel": novel}, {}, {}
    for part in PARTS:
        deck = decks[part]
        everything = len(deck) if part == "base" or deck is not shared else 0
        labels[part] = _deal(deck, wanted[part] or everything, f"{part} classes of {dataset.name}")
        # the names of classes that are not in train are not kept
        names[part] = tuple(dataset.classes[one] if deck is shared else f"{part} {one}" for one in labels[part])
    if len(labels["base"]) < 2:
        raise MgenbError(f"{dataset.name} has {len(labels['base'])} classes left as base; right is at least 2")
    data = _of_base(dataset, labels["base"], labels["novel"], names["base"], seed)
    selection = _of_val(dataset, labels["val"]) if labels["val"] else data.val
    return ClassSplit(data, selection, **names)


def _deck(classes: int, seed: int, *names: str) -> list[int]:
    return [int(one) for one in numpy_generator(seed, "deal classes", *names).permutation(classes)]


def _deal(deck: list[int], count: int, what: str) -> list[int]:
    """Take `count` labels from the deck."""
    if not 0 <= count <= len(deck):
        raise MgenbError(f"{count} {what} were asked for; right is at most {len(deck)}, which are left")
    dealt, deck[:] = sorted(deck[:count]), deck[count:]
    return dealt


def _of_base(dataset: Dataset, base: list[int], novel: list[int], names: tuple[str, ...], seed: int) -> Dataset:
    """Return what a network is trained on, and the novel classes, sealed, as its test part."""
    train = dataset.train.only(base)
    if "val" in dataset.apart:
        rng = numpy_generator(seed, "val of base", dataset.name)
        labels, groups = train.labels.cpu().numpy(), train.groups.cpu().numpy()
        kept, held = split_indices(labels, groups, BASE_VAL, rng, names)
        train, val = train.at(torch.from_numpy(kept)), replace(train.at(torch.from_numpy(held)), role="val")
    else:
        val = dataset.val.only(base)
    digest = hashlib.sha256(f"{dataset.digest} {base} {novel} {seed}".encode()).hexdigest()[:20]
    return replace(
        dataset, classes=names, train=train, val=val, test=dataset.test.only(novel), digest=digest, apart=("test",)
    )


def _of_val(dataset: Dataset, labels: list[int]) -> Split:
    """Return all images of the val classes: of the source's val part, or of train and val together."""
    if "val" in dataset.apart:
        return dataset.val.only(labels)
    parts = [split.only(labels) for split in (dataset.train, dataset.val)]
    images, truth, groups = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "groups")
    )
    return Split(images, truth, groups, "val")
