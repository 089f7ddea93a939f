"""Where a dataset lies, and how each layout is read."""

import csv
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mgenb import store
from mgenb.data.decode import (
    LAYOUT,
    SPLITS,
    Arrays,
    Entry,
    Part,
    decode,
    part_of,
    read_batch,
    read_idx,
    reading,
)
from mgenb.errors import MgenbError, choose

NAMES = ("mnist", "fashion_mnist", "cifar10", "gtsrb", "omniglot", "cifar_fs", "mini_imagenet")
FEW_SHOT = ("omniglot", "cifar_fs", "mini_imagenet")  # their splits have different classes
SAMPLES = Path(__file__).parent / "samples"
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
OFFICIAL_COUNTS = {  # train with val, test
    "mnist": (60000, 10000),
    "fashion_mnist": (60000, 10000),
    "cifar10": (50000, 10000),
    "gtsrb": (39209, 12630),
    "omniglot": (19280, 13180),
    "cifar_fs": (48000, 12000),
    "mini_imagenet": (48000, 12000),
}


@dataclass(frozen=True)
class Found:
    """A dataset that lies at `path`; `kind` is official, sample or user, `read` decodes all of it."""

    name: str
    source: str
    path: Path
    read: Callable[[], Arrays]
    kind: str = "official"

    def variant(self, arrays: Arrays) -> str:
        """Return official, jpeg, subset, sample or user: what a measurement on these arrays may be called."""
        if self.kind != "official":
            return self.kind
        counts = {split: len(part.labels) for split, part in arrays.parts.items()}
        if (counts["train"] + counts.get("val", 0), counts["test"]) != OFFICIAL_COUNTS[self.name]:
            return "subset"
        # mini-ImageNet is made of JPEG files; CIFAR-10's own pixels never were.
        return "jpeg" if self.name == "cifar10" and arrays.jpeg else "official"


def find(name: str, source: str, data_dir: str | None, download: bool) -> Found:
    """Return the first place that has `name` (or the user's own images): folder, cache, download, samples.

    Raises MgenbError for an unknown name, a folder that does not exist, or when no place has it.
    """
    choose("source", source, ("auto", "samples"))
    if (place := named(name, Path.cwd())) not in NAMES:
        return _own_images(Path(place), source)
    found = None
    if source == "auto":
        folder = _data_folder(data_dir)
        found = folder and in_folder(folder, name, "the data folder")
        found = found or in_folder(store.cache_dir() / "datasets", name, "the download cache")
        if not found and download:
            found = _download(name)
    found = found or _sample(name)
    if not found:
        raise MgenbError(
            f"no images of {name} (source {source!r}); put {_wanted(name)}"
            " into the folder that data_dir or MGENB_DATA names, and use source 'auto'"
        )
    return found


def named(name: str, folder: Path) -> str:
    """Return a known name as it is, and the user's own images as an absolute path; a relative one is in `folder`.

    Raises MgenbError for what is neither.
    """
    own = folder / Path(name).expanduser()
    if name not in NAMES and (own.exists() or own.suffix == ".zip" or os.sep in name):
        return str(_own_images(own, "auto").path.resolve())
    return choose("dataset", name, NAMES)


def _own_images(path: Path, source: str) -> Found:
    if source == "samples":
        raise MgenbError(f"source='samples' reads only what is shipped, not {path}: use source='auto'")
    if not path.exists():
        raise MgenbError(f"{path} does not exist: give a folder or .zip with {LAYOUT}, or one of {', '.join(NAMES)}")
    if path.is_file() and path.suffix != ".zip":
        raise MgenbError(f"{path} is neither a folder nor a .zip: expected one with {LAYOUT}")
    name = path.resolve().stem if path.is_file() else path.resolve().name
    return Found(name, f"{path.resolve().name}, your own images", path, partial(read_tree, path, ""), "user")


def _data_folder(data_dir: str | None) -> Path | None:
    chosen, told_by = (data_dir, "data_dir") if data_dir else (os.environ.get("MGENB_DATA"), "MGENB_DATA")
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise MgenbError(f"{told_by} names {folder}, which is not a folder: correct it or leave it out")
    return folder


def in_folder(root: Path, name: str, where: str) -> Found | None:
    """Return `name` as `root` has it: torchvision's layout, `<name>.zip` or `<name>/`; None when absent."""
    readers: dict[str, tuple[str, Callable[[Path], Arrays]]] = {
        "mnist": ("MNIST/raw", partial(read_idx_folder, classes=CLASSES["mnist"])),
        "fashion_mnist": ("FashionMNIST/raw", partial(read_idx_folder, classes=CLASSES["fashion_mnist"])),
        "cifar10": ("cifar-10-batches-py", read_batches),
        "gtsrb": ("gtsrb/GTSRB", read_gtsrb),
        "omniglot": ("omniglot-py", read_omniglot),
    }
    layout, reader = readers.get(name, ("", read_idx_folder))
    if layout and (root / layout).is_dir():
        return Found(name, f"{layout} in {where}", root / layout, partial(reader, root / layout))
    for path in (root / f"{name}.zip", root / name):
        if path.exists():
            return Found(name, f"{path.name} in {where}", path, partial(read_tree, path, name))
    return None


def _sample(name: str) -> Found | None:
    shipped = "samples shipped with mgenb"
    archive, arrays = SAMPLES / f"{name}.zip", SAMPLES / f"{name}.npz"
    if archive.exists():
        return Found(name, shipped, archive, partial(read_tree, archive, name), "sample")
    if arrays.exists():
        return Found(name, shipped, arrays, partial(_read_npz, arrays, CLASSES[name]), "sample")
    return None


def _wanted(name: str) -> str:
    zips = "omniglot-py/images_background_small1.zip and omniglot-py/images_background_small2.zip"
    return zips if name == "omniglot" else f"{name}.zip or a folder {name}/ with {LAYOUT}"


def _download(name: str) -> Found | None:
    """Fetch `name` with torchvision into the cache; None when torchvision does not have it."""
    from torchvision import datasets  # loads slowly, and only this function needs it

    fetchers: dict[str, list[Callable[[str], object]]] = {
        "mnist": [partial(datasets.MNIST, download=True)],
        "fashion_mnist": [partial(datasets.FashionMNIST, download=True)],
        "cifar10": [partial(datasets.CIFAR10, download=True)],
        "gtsrb": [partial(datasets.GTSRB, split=split, download=True) for split in ("train", "test")],
        "omniglot": [partial(datasets.Omniglot, background=b, download=True) for b in (True, False)],
    }
    root, where = store.cache_dir() / "datasets", "the download cache"
    # Fetched beside and then moved: half a download is never taken for the dataset.
    with store.lock(root / name), tempfile.TemporaryDirectory(dir=root) as temporary:
        if found := in_folder(root, name, where):  # another process was first
            return found
        try:
            for fetch in fetchers.get(name, []):
                fetch(temporary)
        except (OSError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise MgenbError(
                f"{name} could not be downloaded ({why}): put {_wanted(name)} into the folder MGENB_DATA,"
                " or load without download=True"
            ) from error
        for item in Path(temporary).iterdir():
            item.replace(root / item.name)
    return in_folder(root, name, where)


def _need(*paths: Path) -> Path:
    """Return the first of `paths` that exists."""
    for path in paths:
        if path.exists():
            return path
    raise MgenbError(f"{paths[0]} is missing: put it back or take the folder {paths[0].parent} away")


def read_idx_folder(folder: Path, classes: tuple[str, ...]) -> Arrays:
    """Read the four idx files of MNIST or Fashion-MNIST, as .gz or unpacked."""
    parts = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        files = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        images, labels = (_need(folder / f"{file}.gz", folder / file) for file in files)
        parts[split] = part_of(read_idx(images, 3)[:, None], read_idx(labels, 1), classes, folder)
    return Arrays(parts, classes)


def read_batches(folder: Path) -> Arrays:
    """Read the python batches of CIFAR-10."""
    parts = {}
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        images, labels = zip(*(read_batch(_need(folder / name)) for name in names), strict=True)
        parts[split] = part_of(np.concatenate(images), np.concatenate(labels), CLASSES["cifar10"], folder)
    return Arrays(parts, CLASSES["cifar10"])


def _read_npz(path: Path, classes: tuple[str, ...]) -> Arrays:
    with reading(path), np.load(path) as file:
        parts: dict[str, Part] = {}
        for split in ("train", "test"):
            parts[split] = part_of(file[f"x_{split}"][:, None], file[f"y_{split}"], classes, path)
        return Arrays(parts, classes)


def read_gtsrb(folder: Path) -> Arrays:
    """Read torchvision's layout of GTSRB, each image scaled to 32x32."""
    entries = []
    for file in (folder / "Training").glob("*/*.ppm"):
        group = _track(file.parent.name, file.name, str(file))
        entries.append(Entry("train", file.parent.name, group, str(file), file.read_bytes))
    table = _need(folder.parent / "GT-final_test.csv")
    with reading(table), table.open(newline="") as lines:
        rows = [(row["Filename"], f"{int(row['ClassId']):05d}") for row in csv.DictReader(lines, delimiter=";")]
    for name, label in rows:
        file = _need(folder / "Final_Test" / "Images" / name)
        entries.append(Entry("test", label, name, str(file), file.read_bytes))
    return decode(folder, entries, few_shot=False, resize=32)


def _track(label: str, file: str, shown: str) -> str:
    """Return the group of a GTSRB training image: the frames of one track show one physical sign."""
    match = re.fullmatch(r"(\d+)_\d+", Path(file).stem)
    if not match:
        raise MgenbError(f"{shown} is not called <track>_<frame>, which the split of gtsrb by track needs")
    return f"{label}/{match[1]}"


def read_omniglot(folder: Path) -> Arrays:
    """Read Omniglot's zips at 28x28: the full pair, or else the small one. Characters are classes.

    Alphabets that stand in both zips are left out of test, whose classes have to be new.
    """
    pairs = (
        ("images_background", "images_evaluation"),
        ("images_background_small1", "images_background_small2"),
    )
    whole = all((folder / f"{name}.zip").exists() for name in pairs[0])
    entries, alphabets = [], set()
    with ExitStack() as stack:
        for split, name in zip(("train", "test"), pairs[0] if whole else pairs[1], strict=True):
            path = _need(folder / f"{name}.zip")
            names, read = stack.enter_context(_open_tree(path))
            files = [member.split("/") for member in sorted(names) if member.endswith(".png")]
            if not files or any(len(parts) != 4 for parts in files):
                raise MgenbError(f"{path} has the wrong layout: expected {name}/<alphabet>/<character>/<drawing>.png")
            for parts in files:
                if split == "train" or parts[1] not in alphabets:
                    member, label = "/".join(parts), "/".join(parts[1:3])
                    entries.append(Entry(split, label, member, f"{path.name}/{member}", partial(read, member)))
            alphabets |= {parts[1] for parts in files}
        return decode(folder, entries, few_shot=True, resize=28)


def read_tree(path: Path, name: str) -> Arrays:
    """Read a zip or folder of `<split>/<class>/<image>`; `name` is "" for the user's own images.

    Files beside the split folders, and hidden ones, are passed over. Raises MgenbError for another layout
    and for an empty class, and as `decode` does.
    """
    entries, folders = [], set()
    with _open_tree(path) as (names, read):
        for member in sorted(names):
            parts, folder = member.rstrip("/").split("/"), member.endswith("/")
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
            if hidden or (len(parts) == 1 and not folder):
                continue
            if parts[0] not in SPLITS or len(parts) > 3 or folder == (len(parts) == 3):
                raise MgenbError(f"{path} has the wrong layout: found {member}, expected {LAYOUT}")
            if folder:
                folders.add(tuple(parts))
                continue
            shown, tracks = f"{path.name}/{member}", name == "gtsrb" and parts[0] != "test"
            group = _track(parts[1], parts[2], shown) if tracks else member
            entries.append(Entry(parts[0], parts[1], group, shown, partial(read, member)))
        filled = {(entry.split, entry.label) for entry in entries}
        for empty in sorted(parts for parts in folders if len(parts) == 2 and parts not in filled):
            raise MgenbError(f"{path}: class folder {'/'.join(empty)} is empty: fill it or take it away")
        return decode(path, entries, few_shot=name in FEW_SHOT)


@contextmanager
def _open_tree(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Give the names in a zip or folder (folders end in "/") and a function that reads one of them."""
    if path.is_dir():
        found = {one.relative_to(path).as_posix(): one.is_dir() for one in path.rglob("*")}
        names = [f"{name}/" if folder else name for name, folder in found.items()]
        yield names, lambda name: (path / name).read_bytes()
    else:
        with reading(path):
            archive = zipfile.ZipFile(path)
        with archive:
            yield archive.namelist(), archive.read
