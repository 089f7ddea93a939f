"""Where a dataset lies, and what reads it there."""

import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mgenb import store
from mgenb.data import decode
from mgenb.data.decode import LAYOUT, Arrays
from mgenb.errors import MgenbError, at_home, choose

SAMPLES = Path(__file__).parent / "samples"
# what decodes torchvision's layout, where it is not that of MNIST
READERS = {"cifar10": decode.read_batches, "gtsrb": decode.read_gtsrb, "omniglot": decode.read_omniglot}


@dataclass(frozen=True)
class Known:
    """A dataset that has a name here, as `datasets.toml` explains."""

    official: list[int]
    layout: str = ""
    torchvision: str = ""
    options: Sequence[Mapping[str, Any]] = ({},)
    classes: Sequence[str] = ()
    few_shot: bool = False
    imagenet: str = ""


_ENTRIES = tomllib.loads(Path(__file__).with_name("datasets.toml").read_text(encoding="utf-8"))
KNOWN = {name: Known(**entry) for name, entry in _ENTRIES.items()}
NAMES = tuple(KNOWN)
FEW_SHOT = tuple(name for name, known in KNOWN.items() if known.few_shot)


@dataclass(frozen=True)
class Location:
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
        if [counts["train"] + counts.get("val", 0), counts["test"]] != KNOWN[self.name].official:
            return "subset"
        # mini-ImageNet is made of JPEG files; CIFAR-10's own pixels never were.
        return "jpeg" if self.name == "cifar10" and arrays.jpeg else "official"


def find(name: str, source: str = "auto", download: bool = False) -> Location:
    """Return the first place that has `name` (or the user's own images): folder, cache, download, samples.

    Raises MgenbError for an unknown name, a folder that does not exist, or when no place has it.
    """
    choose("source", source, ("auto", "samples"))
    if (place := named(name, Path.cwd())) not in NAMES:
        path = Path(place)
        title = path.stem if path.is_file() else path.name
        return Location(title, f"{path.name}, your own images", path, partial(decode.read_tree, path), "user")
    if source == "auto":
        places = (_data_folder(), "the data folder"), (store.cache_dir() / "datasets", "the download cache")
        for root, where in places:
            if root and (location := in_folder(root, name, where)):
                return location
        if download and KNOWN[name].torchvision:
            return _download(name)
    if shipped := in_folder(SAMPLES, name, "mgenb"):
        return replace(shipped, source="samples shipped with mgenb", kind="sample")
    raise MgenbError(f"no images of {name} (source {source!r}); {_advice(name)}, and use source 'auto'")


def named(name: str, folder: Path) -> str:
    """Return a known name as it is, and the user's own images as an absolute path; a relative one is in `folder`.

    Raises MgenbError for what is neither.
    """
    name = str(name)
    if name in NAMES:
        return name
    try:
        own = folder / at_home(name)
        there = own.exists()
    except (OSError, ValueError) as error:  # a name that is too long
        raise MgenbError(f"dataset {name!r} cannot be looked for ({error}): give a name or an existing path") from error
    if not (there or own.suffix == ".zip" or os.sep in name):
        return choose("dataset", name, NAMES)
    if not (own.is_dir() or (own.is_file() and own.suffix == ".zip")):
        wanted = f"a folder or .zip with {LAYOUT}, or one of {', '.join(NAMES)}"
        raise MgenbError(f"{own} does not exist or is neither a folder nor a .zip: give {wanted}")
    return str(own.resolve())


def _data_folder() -> Path | None:
    chosen = os.environ.get("MGENB_DATA")
    folder = at_home(chosen) if chosen else None
    if folder and not folder.is_dir():
        raise MgenbError(f"MGENB_DATA names {folder}, which is not a folder: correct it or leave it out")
    return folder


def in_folder(root: Path, name: str, where: str) -> Location | None:
    """Return `name` as `root` has it: torchvision's layout, `<name>.zip`, `<name>/`, `<name>.npz`; None when absent."""
    tree = partial(decode.read_tree, few_shot=name in FEW_SHOT, tracks=name == "gtsrb")
    idx, pixels = (partial(read, KNOWN[name].classes) for read in (decode.read_idx, decode.read_npz))
    readers: dict[str, Callable[[Path], Arrays]] = {KNOWN[name].layout: READERS.get(name, idx)}
    readers |= {f"{name}.zip": tree, name: tree, f"{name}.npz": pixels}
    for place, read in readers.items():
        if place and (root / place).exists():
            return Location(name, f"{place} in {where}", root / place, partial(read, root / place))
    return None


def _advice(name: str) -> str:
    layout = f"{KNOWN[name].layout}, as torchvision lays it out, or " if KNOWN[name].layout else ""
    return f"put {layout}{name}.zip or a folder {name}/ with {LAYOUT} into the folder that MGENB_DATA names"


def _download(name: str) -> Location:
    """Fetch `name` with torchvision into the cache."""
    from torchvision import datasets  # loads slowly, and only this function needs it

    root, fetch = store.cache_dir() / "datasets", getattr(datasets, KNOWN[name].torchvision)
    # Fetched beside and then moved: half a download is never taken for the dataset.
    with store.lock(root / name), tempfile.TemporaryDirectory(dir=root) as temporary:
        if not in_folder(root, name, ""):  # else another process was first
            try:
                for options in KNOWN[name].options:
                    fetch(temporary, download=True, **options)
            except (OSError, RuntimeError) as error:
                why = " ".join(str(error).split())
                raise MgenbError(f"{name} could not be downloaded ({why}); {_advice(name)}") from error
            for item in Path(temporary).iterdir():
                item.replace(root / item.name)
    return find(name)
