"""Datasets by name: found, decoded once, split by seed, with the test images sealed."""

import hashlib

import numpy as np
import torch

from mgenb.data import sources
from mgenb.data.decode import Arrays, Part, cached
from mgenb.data.splits import Dataset, IntArray, SealedSplit, Split, split_indices, subset
from mgenb.seeds import numpy_generator

__all__ = ["NAMES", "Dataset", "SealedSplit", "Split", "load", "named"]

NAMES = sources.NAMES
named = sources.named


def load(
    name: str,
    *,
    source: str = "auto",
    data_dir: str | None = None,
    seed: int = 0,
    val_fraction: float = 1 / 6,
    train_limit: int | None = None,
    val_limit: int | None = None,
    test_limit: int | None = None,
    download: bool = False,
) -> Dataset:
    """Load a dataset by name (`NAMES`), or the user's own images from a folder or .zip.

    With source="auto" the first of these that has it is taken: `data_dir` or else the folder `MGENB_DATA`,
    the cache, torchvision's download (only with download=True), the shipped samples. source="samples"
    reads the shipped samples and nothing else. Where the source has its own val images they are used as
    they are; else `val_fraction` of train becomes val, stratified by class, drawn by `seed`, whole groups
    only. The limits then draw stratified subsets.

    Raises MgenbError (one sentence) for an unknown name, a missing or damaged file, a wrong layout, a
    failed download, or a limit that cannot be met.
    """
    found = sources.find(name, source, data_dir, download)
    arrays, digest = cached(found.path, found.name, found.read)
    chosen = _choose(arrays, found.name, seed, val_fraction)
    limits = {"train": train_limit, "val": val_limit, "test": test_limit}
    for role, (part, index) in chosen.items():
        limit = limits[role]
        if limit is not None:
            rng = numpy_generator(seed, "limit", found.name, role)
            kept = subset(part.labels[index], limit, rng, f"{role}_limit={limit} for {found.name}")
            chosen[role] = part, index[kept]
    splits = {role: _split(part, index, role) for role, (part, index) in chosen.items()}
    return Dataset(
        name=found.name,
        variant=found.variant(arrays),
        classes=arrays.classes,
        train=splits["train"],
        val=splits["val"],
        test=SealedSplit(splits["test"]),
        source=found.source,
        digest=_digest(digest, [index for _, index in chosen.values()]),
        seed=seed,
        apart=tuple(role for role in ("val", "test") if role in arrays.parts and found.name in sources.FEW_SHOT),
    )


def _choose(arrays: Arrays, name: str, seed: int, val_fraction: float) -> dict[str, tuple[Part, IntArray]]:
    """Return the part and the indices of it that make train, val and test."""
    given = [(role, arrays.parts[role]) for role in ("test", "train", "val") if role in arrays.parts]
    chosen = {role: (part, np.arange(len(part.labels))) for role, part in given}
    if "val" not in chosen:
        train, rng = arrays.parts["train"], numpy_generator(seed, "split", name)
        train_index, val_index = split_indices(train.labels, train.groups, val_fraction, rng, arrays.classes)
        chosen |= {"train": (train, train_index), "val": (train, val_index)}
    return chosen


def _split(part: Part, index: IntArray, role: str) -> Split:
    images, labels, groups = (torch.from_numpy(array[index]) for array in part)
    return Split(images, labels, groups, role)


def _digest(arrays: str, indices: list[IntArray]) -> str:
    """Hash what was chosen from arrays of a known hash: no need to read 180 MB of pixels on every load."""
    digest = hashlib.sha256(arrays.encode())
    for index in indices:
        digest.update(len(index).to_bytes(8, "big") + index.astype("<i8").tobytes())
    return digest.hexdigest()[:20]
