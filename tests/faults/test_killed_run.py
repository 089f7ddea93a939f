"""`mgenb run` killed at random times, and started again, ends with the rows of a run that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys

import pytest

from mgenb.lab import rows

KILLS = int(os.environ.get("MGENB_TEST_KILLS", "4"))
GIVEN = {"02": ["bases=4", "epochs=1", "floor=0"], "12": []}


def command(number, out):
    given = [word for one in GIVEN[number] for word in ("-p", one)]
    return [sys.executable, "-m", "mgenb.cli", "run", number, "--out", str(out), *given]


def run(number, out, seconds=None):
    """Run to the end, or kill kernel and all after so many seconds; return whether it came to an end."""
    with (out.parent / "log").open("a") as log:
        process = subprocess.Popen(command(number, out), stdout=log, stderr=log, start_new_session=True)
        try:
            assert process.wait(seconds) == 0, (out.parent / "log").read_text()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", GIVEN)
def test_a_run_killed_at_random_times_ends_with_the_same_rows(number, tmp_path):
    began = os.times().elapsed
    assert run(number, tmp_path / "whole")
    whole, cut = os.times().elapsed - began, tmp_path / "cut"
    moments = random.Random(0)
    kept = []
    for _ in range(KILLS):
        run(number, cut, moments.uniform(0.1, 1) * whole)
        kept.append(len(list(cut.glob("*.parts/*.json"))))
    assert run(number, cut)
    assert any(kept), "no kill fell between two parts"
    for name in (file.name for file in (tmp_path / "whole").glob("*.csv")):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert rows.read(cut / name).unfinished == ""
    for name in (file.name for file in (tmp_path / "whole").glob("*.npz")):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
