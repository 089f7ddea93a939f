"""E-MGE and MeGA killed at several points lose at most one generation each time, and end with the same history."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from mgenb import mega, mge
from mgenb.mge import evolve

GENERATIONS = 30
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_killed_evolution
getattr(test_killed_evolution, sys.argv[3])(Path(sys.argv[2]))
"""


def made_up(seed):
    """Return the weights of a small made-up network."""
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{i}.weight": torch.randn(64, 64, generator=generator) for i in range(3)}


def logged(folder):
    """Return a fitness; each evaluated generation adds a line to a log."""

    def quality(states):
        values = [-sum(tensor.abs().mean().item() for tensor in state.values()) for state in states]
        with (folder / "log").open("a") as log:
            log.write("evaluated\n")
        return values

    return quality


def evolved(folder):
    """Evolve by E-MGE; return all that must come out the same."""
    settings, quality = evolve.Settings(generations=GENERATIONS, gamma=0), logged(folder)
    file = folder / "checkpoint"
    evolution = evolve.evolve(made_up(0), mge.Settings(), settings, 0, quality, quality, checkpoint=file)
    return evolution.history, evolution.best, evolution.survivors


def merged(folder):
    """Merge by MeGA; return all that must come out the same."""
    settings = mega.Settings(generations=GENERATIONS)
    result = mega.merge(made_up(0), made_up(1), settings, 0, logged(folder), checkpoint=folder / "checkpoint")
    return result.history, result.individuals, {name: tensor.tolist() for name, tensor in result.state.items()}


def lines(folder):
    return (folder / "log").read_text().count("\n") if (folder / "log").exists() else 0


def kill_after(how, folder, more, wait):
    """Start the evolution `how` and kill it `wait` seconds after `more` generations were evaluated."""
    wanted = lines(folder) + more
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, __file__.rpartition("/")[0], str(folder), how])
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


@pytest.mark.parametrize("how", [evolved, merged])
def test_a_killed_evolution_ends_with_the_same_history(how, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
    points = [(1, 0.0), (2, 0.002), (3, 0.005), (4, 0.01)]
    for more, wait in points:
        kill_after(how.__name__, killed, more, wait)
    resumed, undisturbed = how(killed), how(whole)
    assert lines(whole) == GENERATIONS + 1
    assert lines(killed) <= GENERATIONS + 1 + len(points)
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        assert ours.equals(theirs) if hasattr(ours, "equals") else ours == theirs
