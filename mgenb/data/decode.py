"""Files to arrays: idx, CIFAR batches and images, each decoded once and then memory-mapped from the cache."""

import gzip
import hashlib
import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mgenb import store
from mgenb.errors import MgenbError

VERSION = 2  # raise it when decoding changes: it is part of the cache's keys
LAYOUT = "train/<class>/<image>, test/<class>/<image> and, if you have one, val/<class>/<image>"
SPLITS = ("train", "val", "test")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that starts another program, as EPS does
LARGEST_FILE, LONGEST_SIDE = 2**28, 2**13  # bytes of an image file, unpacked; pixels
PASSED_OVER = re.compile(r"(^|/)(\.|__MACOSX)|^[^/]+$")  # hidden files, and those beside the folders of the splits
File = Path | zipfile.Path


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
    """One image file; `group` is shared by images that no split may separate."""

    split: str
    label: str
    group: str
    file: File


@contextmanager
def reading(path: File) -> Iterator[None]:
    """Turn whatever a missing or damaged file, a pipe or a device raises into one MgenbError that names it."""
    try:
        if isinstance(path, Path) and path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("only regular files are read")
        yield
    except Exception as error:  # gzip, zipfile, PIL, numpy and torchvision have a dozen kinds between them
        why = " ".join(str(error).split())
        raise MgenbError(f"{path} cannot be read ({why}): replace it with a whole copy or take it away") from error


def read_idx(classes: Sequence[str], folder: Path) -> Arrays:
    """Read the four idx files of MNIST or Fashion-MNIST, as .gz or unpacked."""
    parts = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _idx(folder / f"{prefix}-images-idx3-ubyte", 3)[:, None]
        parts[split] = _part(images, _idx(folder / f"{prefix}-labels-idx1-ubyte", 1), classes, folder)
    return Arrays(parts, tuple(classes))


def _idx(path: Path, dims: int) -> np.ndarray:
    """Return a uint8 array with `dims` axes. torchvision's reader takes no .gz, and checks by `assert` alone."""
    path = path if path.exists() else path.with_suffix(".gz")
    with reading(path):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            blob = file.read(LARGEST_FILE + 1)
        if len(blob) > LARGEST_FILE:
            raise ValueError(f"above {LARGEST_FILE} bytes unpacked")
        magic, *shape = struct.unpack_from(f">{1 + dims}I", blob)
        if magic != 0x0800 + dims:
            raise ValueError(f"magic number {magic:#x} where idx has {0x0800 + dims:#x}")
        return np.frombuffer(blob, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_batches(folder: Path) -> Arrays:
    """Read the python batches of CIFAR-10.

    A pickle can run any code; torchvision opens only those that are the official ones by their md5.
    """
    from torchvision.datasets import CIFAR10  # loads slowly

    with reading(folder):
        splits = {"train": CIFAR10(folder.parent, train=True), "test": CIFAR10(folder.parent, train=False)}
    classes = tuple(splits["train"].classes)
    parts = {}
    for split, batches in splits.items():
        parts[split] = _part(batches.data.transpose(0, 3, 1, 2), np.array(batches.targets), classes, folder)
    return Arrays(parts, classes)


def read_npz(classes: Sequence[str], path: Path) -> Arrays:
    """Read a shipped sample of MNIST or Fashion-MNIST."""
    with reading(path), np.load(path) as file:
        if max(member.file_size for member in file.zip.infolist()) > LARGEST_FILE:
            raise ValueError(f"an array of it is above {LARGEST_FILE} bytes")
        arrays = {split: (file[f"x_{split}"][:, None], file[f"y_{split}"]) for split in ("train", "test")}
    return Arrays({split: _part(*pair, classes, path) for split, pair in arrays.items()}, tuple(classes))


def _part(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: Path) -> Part:
    """Return a Part in which each image is its own group."""
    if len(images) != len(labels) or len(labels) == 0 or labels.max() >= len(classes):
        raise MgenbError(f"{path}: {len(images)} images do not fit {len(labels)} labels of {len(classes)} classes")
    return Part(images, labels.astype(np.int64), np.arange(len(labels)))


def read_gtsrb(folder: Path) -> Arrays:
    """Read torchvision's layout of GTSRB, each image scaled to 32x32."""
    entries = []
    for file in (folder / "Training").glob("*/*.ppm"):
        entries.append(Entry("train", file.parent.name, _track(file.parent.name, file), file))
    table = folder.parent / "GT-final_test.csv"
    with reading(table):
        tests = pd.read_csv(table, sep=";")[["Filename", "ClassId"]]
    for name, label in tests.itertuples(index=False):
        entries.append(Entry("test", f"{label:05d}", name, folder / "Final_Test" / "Images" / name))
    return decode(folder, entries, resize=32)


def _track(label: str, file: File) -> str:
    """Return the group of a GTSRB training image: the frames of one track show one physical sign."""
    track, _, frame = file.stem.partition("_")
    if not frame:
        raise MgenbError(f"{file} is not called <track>_<frame>, which the split of gtsrb by track needs")
    return f"{label}/{track}"


def read_omniglot(folder: Path) -> Arrays:
    """Read Omniglot's zips at 28x28: the full pair, or else the small one. Characters are classes.

    Alphabets that stand in both zips are left out of test, whose classes have to be new.
    """
    names = ["images_background", "images_evaluation"]
    if not all((folder / f"{name}.zip").exists() for name in names):
        names = ["images_background_small1", "images_background_small2"]
    entries: list[Entry] = []
    for split, name in zip(("train", "test"), names, strict=True):
        path, known = folder / f"{name}.zip", {entry.label.partition("/")[0] for entry in entries}
        for parts, file in _files(path).items():
            if len(parts) != 4:
                raise MgenbError(f"{path} has the wrong layout: expected {name}/<alphabet>/<character>/<drawing>")
            if parts[1] not in known:
                entries.append(Entry(split, "/".join(parts[1:3]), "/".join(parts), file))
    return decode(folder, entries, few_shot=True, resize=28)


def read_tree(path: Path, few_shot: bool = False, tracks: bool = False) -> Arrays:
    """Read a zip or folder of `<split>/<class>/<image>`; `tracks`: files of train and val are GTSRB's.

    Files beside the split folders, and hidden ones, are passed over. Raises MgenbError for another layout, and as
    `decode` does.
    """
    entries = []
    for parts, file in _files(path).items():
        if parts[0] not in SPLITS or len(parts) != 3:
            raise MgenbError(f"{path} has the wrong layout: found {'/'.join(parts)}, expected {LAYOUT}")
        group = _track(parts[1], file) if tracks and parts[0] != "test" else "/".join(parts)
        entries.append(Entry(parts[0], parts[1], group, file))
    return decode(path, entries, few_shot)


def _files(path: Path) -> dict[tuple[str, ...], File]:
    """Return the files of a zip or folder by the parts of their names, but for hidden ones and those in no folder."""
    files: dict[str, File]
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    else:
        with reading(path):
            archive = zipfile.ZipFile(path)
        files = {name: zipfile.Path(archive, name) for name in archive.namelist() if not name.endswith("/")}
    return {tuple(name.split("/")): file for name, file in files.items() if not PASSED_OVER.search(name)}


def decode(path: Path, entries: Sequence[Entry], few_shot: bool = False, resize: int | None = None) -> Arrays:
    """Decode image files; one channel when all pixels are grey, else RGB; `resize` scales each to that square.

    Raises MgenbError for a file that is not an image, or not a square of the first one's size, for a missing split,
    and for classes that differ between splits (in a few-shot set: that do not).
    """
    _check_classes(path, entries, few_shot)
    entries = sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.label, str(entry.file)))
    side, formats = _open(entries[0].file, resize)[0].width, set()
    pixels = np.empty((len(entries), 3, side, side), dtype=np.uint8)
    for place, entry in zip(pixels, entries, strict=True):
        image, kind = _open(entry.file, resize)
        if image.size != (side, side):
            right = f"images must be squares of one size, here {side}x{side}"
            raise MgenbError(f"{entry.file} is {image.width}x{image.height}: {right}")
        place[:] = np.asarray(image).transpose(2, 0, 1)
        formats.add(kind)
    if (pixels == pixels[:, :1]).all():
        pixels = pixels[:, :1]
    splits, labels, groups = (np.array(column) for column in list(zip(*entries, strict=True))[:3])
    parts = {}
    for split in [split for split in SPLITS if split in splits]:
        chosen = splits == split
        parts[split] = Part(
            pixels[chosen], *(np.unique(names[chosen], return_inverse=True)[1] for names in (labels, groups))
        )
    return Arrays(parts, tuple(np.unique(labels[splits == "train"]).tolist()), jpeg="JPEG" in formats)


def _check_classes(path: Path, entries: Sequence[Entry], few_shot: bool) -> None:
    classes = {split: {entry.label for entry in entries if entry.split == split} for split in SPLITS}
    if not (classes["train"] and classes["test"]):
        present = " and ".join(split for split in SPLITS if classes[split]) or "nothing"
        raise MgenbError(f"{path} has images for {present}, but train and test are needed: expected {LAYOUT}")
    for split in [split for split in ("val", "test") if classes[split]]:
        wrong = classes["train"] & classes[split] if few_shot else classes["train"] ^ classes[split]
        if wrong:
            rule = "both of" if few_shot else "only one of"
            raise MgenbError(f"{path}: class {min(wrong)} is in {rule} train and {split}")


def _open(path: File, resize: int | None) -> tuple[Image.Image, str | None]:
    """Return an image in RGB, and the format of its file."""
    with reading(path):
        size = path.stat().st_size if isinstance(path, Path) else path.root.getinfo(path.at).file_size
        if size > LARGEST_FILE:
            raise ValueError(f"{size} bytes; right is at most {LARGEST_FILE}")
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as file:
            if max(file.size) > LONGEST_SIDE:
                raise ValueError(f"{file.width}x{file.height} pixels; right is at most {LONGEST_SIDE} a side")
            image, mode, kind = file.convert("RGB"), file.mode, file.format
    if mode.startswith(("I", "F")):
        raise MgenbError(f"{path} has pixels of more than 8 bits (mode {mode}): save it with 8 bits")
    return image.resize((resize, resize), Image.Resampling.LANCZOS) if resize else image, kind


def cached(path: Path, name: str, read: Callable[[], Arrays]) -> tuple[Arrays, str]:
    """Return the arrays that `read` makes of `path`, memory-mapped from the cache, and a hash of all of them.

    `read` runs only when the cache has nothing for these files (path, size, times), or something damaged;
    the latter gives a warning.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = {str(file.resolve()): file.stat() for file in files}
    identity = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats.items()]
    key = store.key_of({"files": identity, "name": name, "version": VERSION, "pillow": PIL.__version__})
    file = store.cache_dir() / "arrays" / f"{key}.safetensors"
    with store.lock(file):
        if file.exists():
            try:
                return _read_cache(file)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                warnings.warn(f"cached arrays in {file} are damaged ({error}): made again", stacklevel=3)
        _write_cache(file, read())
        return _read_cache(file)


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256(json.dumps(arrays.classes).encode())
    for split, part in arrays.parts.items():
        for field, values in part._asdict().items():
            digest.update(f"{split} {field} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _write_cache(file: Path, arrays: Arrays) -> None:
    parts = arrays.parts.items()
    stored = {f"{s} {field}": np.ascontiguousarray(v) for s, part in parts for field, v in part._asdict().items()}
    about = {"classes": arrays.classes, "jpeg": arrays.jpeg, "digest": _digest(arrays), "splits": [*arrays.parts]}
    store.write_atomic(file, partial(save_file, stored, metadata={"about": json.dumps(about), "key": file.stem}))


def _read_cache(file: Path) -> tuple[Arrays, str]:
    with safe_open(file, "pt") as cache:  # maps the file, where "numpy" would read all of it
        about, key, parts = json.loads(cache.metadata()["about"]), cache.metadata()["key"], {}
        for split in about["splits"]:
            parts[split] = Part(*(cache.get_tensor(f"{split} {field}").numpy() for field in Part._fields))
    arrays = Arrays(parts, tuple(about["classes"]), about["jpeg"])
    if (_digest(arrays), file.stem) != (about["digest"], key):
        raise ValueError("their checksum or key is another one")
    return arrays, about["digest"]
