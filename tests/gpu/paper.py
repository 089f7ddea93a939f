"""Measure parts of the `paper` profile, several at once, in order of worth, until the time ends; or join them here.

`paper.zip` in the output folder holds all parts that are done, and is written anew after each.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import plans  # type: ignore[import-not-found]

from mgenb import data
from mgenb.executor import each, workers
from mgenb.lab import catalog


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for paper.zip")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", default="3", help="parts measured at once")
    parser.add_argument("--only", default=",".join(plans.WORTH), help="notebooks, in order of worth")
    parser.add_argument("--datasets", help="only parts of these, separated by commas; all otherwise")
    parser.add_argument("--most", type=int, default=1000, help="parts at most")
    parser.add_argument("--profile", default="paper")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--join", type=Path, help="paper.zip that was brought back: into figures/<profile>")
    given = parser.parse_args()
    committed = catalog.project_root() / "figures" / given.profile
    if given.join:
        with tempfile.TemporaryDirectory() as folder:
            shutil.unpack_archive(given.join, Path(folder, "brought"))
            print(*plans.join(Path(folder, "brought"), committed, given.profile, Path(folder, "work")), sep="\n")
        return
    measure(given, time.monotonic() + given.seconds, plans.there(given.profile, committed))


def measure(given: argparse.Namespace, ends: float, done: set[tuple[str, int]]) -> None:
    """Measure what fits; what went wrong is printed, and the others go on."""
    began = time.monotonic()
    datasets = given.datasets.split(",") if given.datasets else None
    order = [
        task
        for task in plans.in_order(given.profile, given.device, given.only.split(","), datasets)
        if task not in done
    ]
    for name in {plans.plan(number, given.profile, given.device).parts[i]["dataset"] for number, i in order}:
        data.load(name)  # decoded once, for all
    print(f"{time.monotonic() - began:.0f} s: {len(order)} parts to do", flush=True)

    def fitting() -> Iterator[tuple[str, int]]:
        for task in order[: given.most]:
            if ends - time.monotonic() > plans.WORTH[task[0]]:
                yield task

    with tempfile.TemporaryDirectory() as folder, workers(given.jobs) as executor:
        work = Path(folder, "parts")
        work.mkdir()
        for _, ((number, index), took, wrong) in each(
            partial(plans.measured, work, given.profile, given.device), fitting(), executor
        ):
            print(f"{time.monotonic() - began:.0f} s: {number}, part {index}: {wrong or f'{took:.0f} s'}", flush=True)
            if not wrong:
                shutil.make_archive(str(given.out / "paper-new"), "zip", work)
                (given.out / "paper-new.zip").replace(given.out / "paper.zip")


if __name__ == "__main__":
    sys.exit(main())
