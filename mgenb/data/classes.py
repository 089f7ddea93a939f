"""A dataset dealt by class, for few-shot learning: classes to train on, to select on, and novel ones, sealed."""

import hashlib
from dataclasses import dataclass, replace

import torch

from mgenb.data.splits import Dataset, SealedSplit, Split, split_indices
from mgenb.errors import MgenbError
from mgenb.seeds import numpy_generator

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
        images = f"{len(self.val)} val classes" if self.val else "validation images of base classes (seen in training)"
        return f"{self.data.name}: {len(self.base)} base and {len(self.novel)} novel classes; selection on {images}"


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
