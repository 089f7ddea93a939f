"""What `mgenb doctor` looks at: versions, device, data, cache. Nothing in here raises."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from mgenb.errors import MgenbError

PAIR = "pip install --force-reinstall torch torchvision"
Finding = tuple[bool, str]  # fine or broken, what to print


def findings() -> Iterator[Finding]:
    """Yield (fine, line) for everything that is looked at; what is missing but not needed is fine."""
    yield sys.version_info >= (3, 11), f"python {platform.python_version()} (3.11 or later is needed)"
    yield from libraries()
    torch_works, line = torch_pair()
    yield torch_works, line
    if not torch_works:
        yield True, "device, data and cache are looked at once torch works"
        return
    yield True, device()
    yield from data_found()
    yield from cache()


def libraries() -> Iterator[Finding]:
    """Yield the version of every library that the package declares."""
    for requirement in metadata.requires("mgenb") or []:
        if "extra ==" in requirement:
            continue
        name, pinned = re.split(r"[<>=!~; \[]", requirement)[0], requirement.partition("==")[2]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield False, f"{name} is missing: pip install '{requirement}'"
            continue
        right = pinned in ("", version)
        yield right, f"{name} {version}" + ("" if right else f", but only {pinned} is right: pip install {requirement}")


def torch_pair() -> Finding:
    """Import torch and torchvision, which only work as a matched pair."""
    try:
        import_module("torch")
        import_module("torchvision")
    except Exception as error:  # a broken binary raises anything
        why = " ".join(str(error).split())
        if "torchvision::nms does not exist" in why:
            return False, (
                "torchvision was built for another torch (most often a CPU-only torch beside PyPI's torchvision:"
                f" 'operator torchvision::nms does not exist'); install both from one index: {PAIR}"
            )
        return False, f"torch or torchvision does not load ({type(error).__name__}: {why}): {PAIR}"
    return True, "torch and torchvision load together"


def device() -> str:
    """Say what notebooks compute on with device='auto'."""
    import torch

    if torch.cuda.is_available():
        return f"device cuda: {torch.cuda.get_device_name()}"
    return f"device cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads (no CUDA device)"


def data_found() -> Iterator[Finding]:
    """Yield where each named dataset would be read from by the cpu and paper profiles."""
    from mgenb import data
    from mgenb.data import sources

    folder = os.environ.get("MGENB_DATA")
    if folder and not Path(folder).expanduser().is_dir():
        yield False, f"MGENB_DATA names {folder}, which is not a folder: correct it or unset it"
        return
    yield True, f"MGENB_DATA {folder or 'is not set'}"
    for name in data.NAMES:
        try:
            where = sources.find(name).source
        except MgenbError as error:
            yield True, f"data {name}: missing; {error}"
            continue
        more = " (the cpu and paper profiles download the rest, or put it into MGENB_DATA)"
        yield True, f"data {name}: {where}{more if where.startswith('samples') else ''}"


def cache() -> Iterator[Finding]:
    """Yield the cache folder with its size, and whether it can be written."""
    from mgenb import store

    folder = store.cache_dir()
    try:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        above = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:  # not readable, or emptied meanwhile
        yield False, f"cache {folder}: {error.strerror}"
        return
    if above.is_dir() and os.access(above, os.W_OK):
        yield True, f"cache {folder}: {size / 2**20:.0f} MiB"
    else:
        yield False, f"cache {folder} cannot be written: set MGENB_CACHE to another folder"
