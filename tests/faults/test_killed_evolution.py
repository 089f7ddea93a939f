"""An evolution killed at several points loses at most one generation each time, and ends with the same history."""

import signal
import subprocess
import sys
import time

import torch

from mgenb import evolve, mge

GENERATIONS = 30
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_killed_evolution import evolved
evolved(Path(sys.argv[2]))
"""


def evolved(folder):
    """Evolve a small made-up network; each evaluated generation adds a line to a log."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layer{i}.weight": torch.randn(64, 64, generator=generator) for i in range(3)}

    def quality(states):
        values = [-sum(state[name].abs().mean().item() for name in base) for state in states]
        with (folder / "log").open("a") as log:
            log.write("evaluated\n")
        return values

    settings = evolve.Settings(generations=GENERATIONS, gamma=0)
    return evolve.evolve(base, mge.Settings(), settings, 0, quality, quality, checkpoint=folder / "checkpoint")


def lines(folder):
    return (folder / "log").read_text().count("\n") if (folder / "log").exists() else 0


def kill_after(folder, more, wait):
    """Start the evolution and kill it `wait` seconds after `more` generations were evaluated."""
    wanted = lines(folder) + more
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, __file__.rpartition("/")[0], str(folder)])
    try:
        deadline = time.monotonic() + 120
        while lines(folder) < wanted:
            assert process.poll() is None, "ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(wait)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_killed_evolution_ends_with_the_same_history(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
    points = [(1, 0.0), (2, 0.002), (3, 0.005), (4, 0.01)]
    for more, wait in points:
        kill_after(killed, more, wait)
    resumed, undisturbed = evolved(killed), evolved(whole)
    assert lines(whole) == GENERATIONS + 1
    assert lines(killed) <= GENERATIONS + 1 + len(points)
    assert resumed.history.equals(undisturbed.history)
    assert resumed.best == undisturbed.best
    assert resumed.survivors == undisturbed.survivors
