"""Where nothing can be written: who writes there, and what makes a place such a one."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgenb import data, mge, store, training
from mgenb.lab import execute
from mgenb.measure import speed
from mgenb.mge import evolve, pool
from tests.faults.harness import work


def no_sync(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def full(place: Path) -> None:
    """A disk is full once something is flushed to it."""
    pytest.MonkeyPatch().setattr(os, "fsync", no_sync)


def without_locks(place: Path) -> None:
    """A file system without locks, as some networks have it."""
    pytest.MonkeyPatch().setattr(fcntl, "flock", no_locks)


def a_file(place: Path) -> None:
    place.write_text("a file")


def below_a_file(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("a file")


def dangling(place: Path) -> None:
    place.symlink_to(place.parent / "gone" / "further")


def loop(place: Path) -> None:
    place.symlink_to(place)


def read_only(place: Path) -> None:
    place.mkdir()
    place.chmod(0o555)


def untouched(place: Path) -> None:
    """Nothing is wrong with it but its name, or what the child is not allowed."""


PLACES: dict[str, Callable[[Path], None]] = {
    "a file": a_file,
    "below a file": below_a_file,
    "a dangling link": dangling,
    "a link to itself": loop,
    "read-only": read_only,
    "a long name": untouched,
    "nobody's home": untouched,
    "full": full,
    "small": untouched,
    "without locks": without_locks,
}
LONG = "x" * 300


def named(place: str, folder: Path) -> str:
    """Return what is given as the name of a place."""
    return {"a long name": str(folder / "in" / LONG), "nobody's home": "~nosuchuser/mgenb"}.get(
        place, str(folder / "in" / "place")
    )


def spoil(place: str, folder: Path) -> None:
    (folder / "in").mkdir()
    PLACES[place](folder / "in" / "place")
    for path in (folder, folder / "in"):
        path.chmod(0o777)


def cache_train(place: str, folder: Path) -> None:
    os.environ["MGENB_CACHE"] = place
    training.trained("lenet", work.digits(), epochs=1, seed=0)


def cache_load(place: str, folder: Path) -> None:
    os.environ["MGENB_CACHE"] = place
    work.digits()


def cache_speed(place: str, folder: Path) -> None:
    digits = work.digits()
    net = training.fresh("lenet", digits, 0)
    os.environ["MGENB_CACHE"] = place
    speed.fastest(net, digits.val.images)


def cache_progress(place: str, folder: Path) -> None:
    os.environ["MGENB_CACHE"] = place
    file, settings = (
        store.unfinished("merge-mega", {}),
        evolve.Settings(parents=2, mutations=1, fusions=1, generations=1),
    )
    evolve.evolve(work.made_up(0), mge.Settings(), settings, 0, work.small_weights, work.small_weights, checkpoint=file)


def out_pool(place: str, folder: Path) -> None:
    plan = {"dataset": "mnist", "arch": "lenet", "count": "2", "epochs": "1", "t": "0.99", "train-limit": "100"}
    work.command("pool", "create", "--samples", *(w for k, v in plan.items() for w in (f"--{k}", v)), "--out", place)


def out_merge(place: str, folder: Path) -> None:
    how = ["--arch", "lenet", "--dataset", "mnist", "--samples", "--method", "average", "--val-limit", "60"]
    work.command("merge", "0.safetensors", "1.safetensors", *how, "--out", f"{place}/merged.safetensors")


def out_export(place: str, folder: Path) -> None:
    work.command("pool", "export", str(folder / "pool"), "0", f"{place}/model.safetensors")


def out_run(place: str, folder: Path) -> None:
    execute._execute_in = work.inside
    work.command("run", "03", "--out", place)


DOORS: dict[str, Callable[[str, Path], None]] = {
    "cache: trained": cache_train,
    "cache: loaded": cache_load,
    "cache: speed": cache_speed,
    "cache: progress": cache_progress,
    "--out of pool": out_pool,
    "--out of merge": out_merge,
    "--out of export": out_export,
    "--out of run": out_run,
}


def prepare(folder: Path) -> None:
    """What the doors find: a cache with data, two networks, a pool, a notebook."""
    work.parents(folder)
    pool.create(work.PLAN, folder / "pool")
    work.project(folder, work.REFRESHED)


def enter(door: str, place: str, folder: Path) -> str:
    """Make a place an odd one and write there by a door; return that it went well."""
    spoil(place, folder)
    DOORS[door](named(place, folder), folder)
    return "written"


def lock_is_a_folder(folder: Path) -> None:
    work.digits()
    for file in (folder / "cache" / "arrays").glob("*.lock"):
        file.unlink()
        file.mkdir()
    work.digits()


def stage_lock_is_a_folder(folder: Path) -> None:
    (folder / "out" / f".unfinished-{work.STEM}.lock").mkdir(parents=True)
    out_run(str(folder / "out"), folder)


def no_home(folder: Path) -> None:
    for name in ("MGENB_CACHE", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ["HOME"] = "/dev/null"
    work.digits()


def in_a_read_only_checkout(folder: Path) -> None:
    for path in (folder / "figures" / "quick", folder / "notebooks", folder):
        path.chmod(0o555)
    work.command("list")  # which writes nothing
    work.refresh(folder)


def no_data_folder(folder: Path) -> None:
    os.environ["MGENB_DATA"] = "~nosuchuser/data"
    data.load("mnist")


def complete_cache(folder: Path) -> None:
    """A complete cache that is read-only serves data, networks and ways."""
    digits = work.digits()
    net = training.trained("lenet", digits, epochs=2, seed=0)
    speed.fastest(net, digits.val.images)


def make_complete(folder: Path) -> None:
    complete_cache(folder)
    for path in sorted((folder / "cache").rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (folder / "cache").chmod(0o555)


def freed(folder: Path) -> None:
    """Delete a folder with what was made read-only in it."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


OTHERS: dict[str, Callable[[Path], None]] = {
    "a lock that is a folder": lock_is_a_folder,
    "a stage's lock that is a folder": stage_lock_is_a_folder,
    "a read-only checkout": in_a_read_only_checkout,
    "nobody's data": no_data_folder,
    "no home": no_home,
}
