"""`mgenb run` killed at random times, and started again, ends with the rows of a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mgenb.lab import rows

KILLS = int(os.environ.get("MGENB_TEST_KILLS", "4"))
GIVEN = {"03": ["bases=4", "epochs=1", "floor=0"], "12": []}


def command(number, out):
    given = [word for one in GIVEN[number] for word in ("-p", one)]
    return [sys.executable, "-m", "mgenb.cli", "run", number, "--out", str(out), *given]


def parts(out):
    return len(list(out.rglob("*.parts/*.json")))


def run(number, out, kill_after=None):
    """Run to the end; or kill kernel and all once `kill_after()` is true, and tell how many parts are there."""
    with (out.parent / "log").open("a") as log:
        process = subprocess.Popen(command(number, out), stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None:
            if kill_after and kill_after():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return parts(out)
            time.sleep(0.01)
    assert process.returncode == 0, (out.parent / "log").read_text()
    return parts(out)


@pytest.mark.slow
@pytest.mark.parametrize("number", GIVEN)
def test_a_run_killed_at_random_times_ends_with_the_same_rows(number, tmp_path):
    whole, cut, chance = tmp_path / "whole", tmp_path / "cut", random.Random(0)
    assert run(number, whole) == 0  # a finished quick run leaves no parts
    (csv,) = whole.glob("*.csv")
    planned = len(rows.read(csv).parts)
    for least in sorted(chance.sample(range(planned), min(KILLS, planned))):
        moment = chance.uniform(0, 1)  # seconds from the first time that so many parts are there
        seen = []

        def late(least=least, moment=moment, seen=seen):
            if parts(cut) >= least:
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] > moment

        assert run(number, cut, late) >= least
        assert not (cut / csv.name).exists()
    run(number, cut)
    for made in (*whole.glob("*.csv"), *whole.glob("*.npz")):
        assert (cut / made.name).read_bytes() == made.read_bytes()
    assert rows.read(cut / csv.name).unfinished == ""
