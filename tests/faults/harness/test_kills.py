"""What is killed, at any write, in the midst of one, or at any moment, ends as if nobody had, once it goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import trials, work
from tests.faults.harness.trials import WHOLE, How

EVENTS, MOMENTS, BYTES = (99, 6, 4) if WHOLE else (5, 1, 1)  # a work's kills of each kind; 99: at every write


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """What gives the folder in which a work begins, what it ends with undisturbed, its writes and its seconds."""
    known: dict[str, tuple[Path, work.Results, int, float]] = {}

    def prepared(name):
        if name not in known:
            before, whole = (tmp_path_factory.mktemp(name) for _ in range(2))
            prepare, does = work.WORKS[name]
            made = trials.begin(prepare, before, folder=before)
            assert made.how == "done", made
            shutil.copytree(before, whole, dirs_exist_ok=True)
            undisturbed = trials.begin(does, whole, folder=whole)
            assert undisturbed.how == "done", undisturbed
            known[name] = before, undisturbed.value, undisturbed.events, undisturbed.seconds
        return known[name]

    return prepared


def ways(name, events, seconds):
    """Yield the kills of a work: at writes that are spread evenly over all, at random moments, at random bytes."""
    chance = random.Random(name)
    for number in range(min(EVENTS, events)):
        yield How(event=1 + round(number * (events - 1) / max(1, min(EVENTS, events) - 1)))
    for _ in range(MOMENTS):
        yield How(moment=chance.uniform(0, seconds))
    for _ in range(BYTES):
        yield How(byte=int(10 ** chance.uniform(0.5, 5.2)))


@pytest.mark.parametrize("name", work.WORKS)
def test_a_kill_changes_no_result(name, ready, tmp_path, record_property):
    before, whole, events, seconds = ready(name)
    does, kills, wrong = work.WORKS[name][1], 0, []
    for number, how in enumerate(ways(name, events, seconds)):
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        first = trials.begin(does, folder, folder=folder, how=how)
        kills += first.how == "killed"
        again = trials.begin(does, folder, folder=folder)
        if first.how not in ("killed", "done") or again.how != "done" or again.value != whole:
            differ = again.value if again.how != "done" else sorted(dict(again.value.items() ^ whole.items()))
            wrong.append(f"{how}: {first.how}, {first.value}; then {again.how}, {differ}")
        shutil.rmtree(folder)
    record_property("kills", kills)
    assert not wrong, "\n".join(wrong)
    assert kills >= min(EVENTS, events)


def test_a_refresh_that_was_killed_is_old_or_new_for_the_next_command(ready, tmp_path, record_property):
    before, new, events, _ = ready("refresh")
    old, kills, seen = work.committed(before), 0, []
    for event in range(1, events + 1, 1 if WHOLE else 5):
        folder = tmp_path / str(event)
        shutil.copytree(before, folder)
        killed = trials.begin(work.refresh, folder, folder=folder, how=How(event=event))
        kills += killed.how == "killed"
        seen.append(trials.begin(work.tidied, folder, folder=folder).value)
        assert seen[-1] in (old, new), event
        shutil.rmtree(folder)
    record_property("kills", kills)
    assert seen == sorted(seen, key=lambda tree: tree == new)  # once new, always new
    assert old in seen


GIVEN = {"03": ("bases=4",), "12": ()}


def run(number, folder, moment=0.0):
    """Run a notebook by the real command; kill it and its kernel after a moment."""
    given = [word for pair in GIVEN[number] for word in ("-p", pair)]
    words = [sys.executable, "-m", "mgenb.cli", "run", number, "--out", str(folder / "out"), *given]
    environment = {**os.environ, "MGENB_CACHE": str(folder / "cache")}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    process = subprocess.Popen(words, **quiet, start_new_session=True)
    if moment:
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


@pytest.mark.skipif(not WHOLE, reason="whole notebooks, in kernels of their own")
@pytest.mark.parametrize("number", GIVEN)
def test_a_real_run_killed_with_its_kernel_ends_with_the_same_rows(number, tmp_path, record_property):
    whole, cut, chance = tmp_path / "whole", tmp_path / "cut", random.Random(0)
    began = time.monotonic()
    assert run(number, whole) == 0
    seconds = time.monotonic() - began
    moments = [chance.uniform(0.2, 0.9) * seconds for _ in range(3)]
    ended = [run(number, cut, moment) for moment in moments]  # what is done is not done again: one may end in time
    assert ended[0] == -signal.SIGKILL
    assert run(number, cut) == 0
    record_property("kills", ended.count(-signal.SIGKILL))
    made = [file for kind in ("*.csv", "*.npz") for file in (whole / "out").glob(kind)]
    assert made
    for file in made:
        assert (cut / "out" / file.name).read_bytes() == file.read_bytes()
