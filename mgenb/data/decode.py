"""Files to arrays: idx, CIFAR batches and images, each decoded once and then memory-mapped from the cache."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mgenb import store
from mgenb.errors import MgenbError

VERSION = 1  # raise it when decoding changes: it is part of the cache's keys
LAYOUT = "train/<class>/<image>, test/<class>/<image> and, if you have one, val/<class>/<image>"
SPLITS = ("train", "val", "test")
GREY = ("1", "L", "LA")
# What gzip, zipfile, pickle, PIL (SyntaxError: a broken PNG) and numpy raise for damaged files.
_BUILTIN = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, RuntimeError)
_LIBRARY = (
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    Image.DecompressionBombError,
)
DAMAGE = (*_BUILTIN, *_LIBRARY)


class Part(NamedTuple):
    """One split: images uint8 [n, channels, h, w], labels int64 [n], groups int64 [n]."""

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True, eq=False)
class Arrays:
    """The splits that a source has (train, test, perhaps val); `jpeg`: some of its files were JPEG."""

    parts: Mapping[str, Part]
    classes: tuple[str, ...]
    jpeg: bool = False


class Entry(NamedTuple):
    """One image file; `name` is for messages, `group` is shared by images that no split may separate."""

    split: str
    label: str
    group: str
    name: str
    read: Callable[[], bytes]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into one MgenbError that names it."""
    try:
        yield
    except DAMAGE as error:
        raise MgenbError(f"{path} is damaged ({error}): replace it with a whole copy") from error


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Return the uint8 array of an idx file with `dims` axes, gzip-compressed or not."""
    with reading(path):
        blob = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = struct.unpack_from(f">{1 + dims}I", blob)
        if magic != 0x0800 + dims:
            raise ValueError(f"magic number {magic:#x} where idx has {0x0800 + dims:#x}")
        return np.frombuffer(blob, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape)


class _NumpyOnly(pickle.Unpickler):
    """A pickle can run any code; those of CIFAR need no more than numpy's array constructors."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"a batch of CIFAR-10 does not hold {module}.{name}")
        return super().find_class(module, name)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [n, 3, 32, 32] and labels int64 [n] of a CIFAR-10 batch."""
    with reading(path), path.open("rb") as file:
        batch = _NumpyOnly(file).load()
        images, labels = np.asarray(batch["data"], np.uint8), np.asarray(batch["labels"], np.int64)
        return images.reshape(-1, 3, 32, 32), labels


def part_of(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: Path) -> Part:
    """Return a Part in which each image is its own group; MgenbError when images and labels do not match."""
    if len(images) != len(labels) or len(labels) == 0 or labels.max() >= len(classes):
        raise MgenbError(f"{path}: {len(images)} images do not fit {len(labels)} labels of {len(classes)} classes")
    return Part(images, labels.astype(np.int64), np.arange(len(labels)))


def decode(path: Path, entries: Sequence[Entry], few_shot: bool, resize: int | None = None) -> Arrays:
    """Decode image files; one channel when all are grey, else RGB; `resize` scales each to that square.

    Raises MgenbError for a file that is not an image or whose size differs from the first one's, for a
    missing split, and for classes that differ between splits (in a few-shot set: that do not).
    """
    _check_classes(path, entries, few_shot)
    entries = sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.label, entry.name))
    width, height = _open(entries[0], resize)[0].size
    if width != height:
        raise MgenbError(f"{entries[0].name} is {width}x{height}: images must be square")
    pixels = np.empty((len(entries), 3, height, width), dtype=np.uint8)
    formats, modes = set(), set()
    for number, entry in enumerate(entries):
        image, mode, kind = _open(entry, resize)
        if image.size != (width, height):
            sizes = f"{image.width}x{image.height} but {entries[0].name} is {width}x{height}"
            raise MgenbError(f"{entry.name} is {sizes}: make all images of one size")
        pixels[number] = np.asarray(image).transpose(2, 0, 1)
        modes.add(mode)
        formats.add(kind)
    if modes <= set(GREY):
        pixels = pixels[:, :1]
    splits = np.array([entry.split for entry in entries])
    parts = {s: _part(entries, pixels, np.flatnonzero(splits == s)) for s in SPLITS if s in splits}
    classes = sorted({entry.label for entry in entries if entry.split == "train"})
    return Arrays(parts, tuple(classes), jpeg="JPEG" in formats)


def _check_classes(path: Path, entries: Sequence[Entry], few_shot: bool) -> None:
    classes = {split: {entry.label for entry in entries if entry.split == split} for split in SPLITS}
    for split in ("train", "test"):
        if not classes[split]:
            found = " and ".join(name for name in SPLITS if classes[name]) or "nothing"
            raise MgenbError(f"{path} has no images for {split}, only for {found}: expected {LAYOUT}")
    for split in ("val", "test"):
        shared, differing = classes["train"] & classes[split], classes["train"] ^ classes[split]
        if few_shot and shared:
            raise MgenbError(f"{path}: class {min(shared)} is in train and in {split}, which must not share any")
        if not few_shot and classes[split] and differing:
            raise MgenbError(f"{path}: class {min(differing)} is in only one of train and {split}")


def _open(entry: Entry, resize: int | None) -> tuple[Image.Image, str, str | None]:
    try:
        with Image.open(io.BytesIO(entry.read())) as file:
            image, mode, kind = file.convert("RGB"), file.mode, file.format
    except DAMAGE as error:
        raise MgenbError(f"{entry.name} is damaged or not an image ({error}): replace it or take it out") from error
    if mode.startswith(("I", "F")):
        raise MgenbError(f"{entry.name} has pixels of more than 8 bits (mode {mode}): save it with 8 bits")
    if resize:
        image = image.resize((resize, resize), Image.Resampling.LANCZOS)
    return image, mode, kind


def _part(entries: Sequence[Entry], pixels: np.ndarray, index: np.ndarray) -> Part:
    labels = np.unique([entries[i].label for i in index], return_inverse=True)[1]
    groups = np.unique([entries[i].group for i in index], return_inverse=True)[1]
    # The entries are sorted by split: a slice is a view, where an index would copy every pixel.
    return Part(pixels[index[0] : index[-1] + 1], labels.astype(np.int64), groups.astype(np.int64))


def cached(path: Path, name: str, read: Callable[[], Arrays]) -> tuple[Arrays, str]:
    """Return the arrays that `read` makes of `path`, memory-mapped from the cache, and a hash of all of them.

    `read` runs only when the cache has nothing for these files (path, size, time), or something damaged;
    the latter gives a warning.
    """
    key = store.key_of({"files": _identity(path), "name": name, "version": VERSION, "pillow": PIL.__version__})
    file = store.cache_dir() / "arrays" / f"{key}.safetensors"
    with store.lock(file):
        if file.exists():
            try:
                return _read_cache(file)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                warnings.warn(f"cached arrays in {file} are damaged ({error}): made again", stacklevel=3)
        _write_cache(file, read())
        return _read_cache(file)


def _identity(path: Path) -> list[tuple[str, int, int]]:
    files = [path] if path.is_file() else [Path(top, name) for top, _, names in os.walk(path) for name in names]
    stats = ((str(file.resolve()), file.stat()) for file in sorted(files))
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _write_cache(file: Path, arrays: Arrays) -> None:
    digest, stored = hashlib.sha256(json.dumps(arrays.classes).encode()), {}
    for split, part in arrays.parts.items():
        for field, values in part._asdict().items():
            array = stored[f"{split} {field}"] = np.ascontiguousarray(values)
            digest.update(f"{split} {field} {array.shape}".encode())
            digest.update(array.data)
    about = {"classes": arrays.classes, "jpeg": arrays.jpeg, "digest": digest.hexdigest(), "splits": [*arrays.parts]}
    store.write_atomic(file, partial(save_file, stored, metadata={"about": json.dumps(about)}))


def _read_cache(file: Path) -> tuple[Arrays, str]:
    with safe_open(file, "pt") as cache:  # maps the file, where "numpy" would read all of it
        about, parts = json.loads(cache.metadata()["about"]), {}
        for split in about["splits"]:
            parts[split] = Part(*(cache.get_tensor(f"{split} {field}").numpy() for field in Part._fields))
    return Arrays(parts, tuple(about["classes"]), about["jpeg"]), about["digest"]
