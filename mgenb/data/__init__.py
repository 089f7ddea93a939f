"""Datasets by name: found, decoded once, split by seed, with the test images sealed."""

import hashlib

import numpy as np
import torch

from mgenb.data import sources
from mgenb.data.decode import Arrays, Part, cached
from mgenb.data.sources import NAMES, named
from mgenb.data.splits import Dataset, IntArray, SealedSplit, Split, refuse_test, split_indices, subset
from mgenb.seeds import numpy_generator


def load(
    name: str,
    *,
    source: str = "auto",
    seed: int = 0,
    val_fraction: float = 1 / 6,
    train_limit: int | None = None,
    val_limit: int | None = None,
    test_limit: int | None = None,
    download: bool = False,
) -> Dataset:
    """Load a dataset by name (`NAMES`), or the user's own images from a folder or .zip.

    With source="auto" the first of these that has it is taken: the folder `MGENB_DATA`, the cache, torchvision's
    download (only with download=True), the shipped samples. source="samples" reads the shipped samples and nothing
    else, but for the user's own images. Where the source has its own val images they are used as they are; else
    `val_fraction` of train becomes val, stratified by class, drawn by `seed`, whole groups only. The limits then draw
    stratified subsets.

    Raises MgenbError (one sentence) for an unknown name, a missing or damaged file, a wrong layout, a
    failed download, or a limit that cannot be met.
    """
    place = sources.find(name, source, download)
    arrays, digest = cached(place.path, place.name, place.read)
    chosen = _choose(arrays, place.name, seed, val_fraction)
    for role, limit in {"train": train_limit, "val": val_limit, "test": test_limit}.items():
        if limit is not None:
            part, index = chosen[role]
            rng = numpy_generator(seed, "limit", place.name, role)
            kept = subset(part.labels[index], limit, rng, f"{role}_limit={limit} for {place.name}")
            chosen[role] = part, index[kept]
    splits = {role: _split(part, index, role) for role, (part, index) in chosen.items()}
    return Dataset(
        name=place.name,
        variant=place.variant(arrays),
        classes=arrays.classes,
        train=splits["train"],
        val=splits["val"],
        test=SealedSplit(splits["test"]),
        source=place.source,
        digest=_digest(digest, [index for _, index in chosen.values()]),
        seed=seed,
        apart=tuple(role for role in ("val", "test") if role in arrays.parts and place.name in sources.FEW_SHOT),
    )


def _choose(arrays: Arrays, name: str, seed: int, val_fraction: float) -> dict[str, tuple[Part, IntArray]]:
    """Return the part and the indices of it that make train, val and test."""
    roles = [role for role in ("test", "train", "val") if role in arrays.parts]
    chosen = {role: (arrays.parts[role], np.arange(len(arrays.parts[role].labels))) for role in roles}
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
