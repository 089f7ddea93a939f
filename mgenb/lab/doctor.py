"""What `mgenb doctor` looks at: versions, device, data, cache. Nothing in here raises."""

import os
import platform
import re
from collections.abc import Iterator
from importlib import import_module, metadata

from mgenb.errors import MgenbError, at_home
from mgenb.lab import catalog

Finding = tuple[bool, str]  # fine or broken, what to print


def findings() -> Iterator[Finding]:
    """Yield (fine, line) for everything that is looked at; what is missing but not needed is fine."""
    yield True, f"python {platform.python_version()}"
    yield checkout()
    yield from libraries()
    yield (pair := torch_pair())
    if pair[0]:  # without it nothing else can be looked at
        from mgenb import devices
        from mgenb.lab.experiment import machine

        yield True, "device {device}, {cores} cores".format(**machine(devices.device("auto")))
        yield from datasets()
        yield cache()


def checkout() -> Finding:
    """Return where the notebooks are; the package alone cannot run them."""
    try:
        return True, f"notebooks in {catalog.project_root()}"
    except MgenbError as error:
        return False, str(error)


def libraries() -> Iterator[Finding]:
    """Yield the version of every library that the package declares; where one version is right, whether it is that."""
    for requirement in (text for text in metadata.requires("mgenb") or [] if "extra ==" not in text):
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
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return False, (
            f"torch and torchvision do not load ({why}); where an operator does not exist, torchvision was built for "
            "another torch. Install both from one index: pip install --force-reinstall torch torchvision"
        )
    return True, "torch and torchvision load together"


def datasets() -> Iterator[Finding]:
    """Yield where each named dataset would be read from by the cpu and paper profiles."""
    from mgenb import data
    from mgenb.data import sources

    folder = os.environ.get("MGENB_DATA")
    if folder and not at_home(folder).is_dir():
        yield False, f"MGENB_DATA names {folder}, which is not a folder: correct it or unset it"
        return
    yield True, f"MGENB_DATA {folder or 'is not set'} (of samples, the cpu and paper profiles download the rest)"
    for name in data.NAMES:
        try:
            yield True, f"data {name}: {sources.find(name).source}"
        except MgenbError as error:
            yield True, f"data {name}: missing; {error}"


def cache() -> Finding:
    """Return the cache folder with its size, and whether it can be written."""
    from mgenb import store

    folder = store.cache_dir()
    try:
        store.write_text(folder / "doctor", "can be written")
        (folder / "doctor").unlink()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except (MgenbError, OSError) as error:
        return False, f"cache {folder}: {error}; set MGENB_CACHE to another folder"
    return True, f"cache {folder}: {size / 2**20:.0f} MiB"
