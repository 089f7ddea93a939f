"""The executor: the same rows, networks, pools and merges in this process, in one or two others, and on a cluster."""

import json
import sys
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import torch

from mgenb import executor, mge
from mgenb.errors import MgenbError
from mgenb.lab import rows
from mgenb.measure import population
from mgenb.mega import methods
from mgenb.mge import pool

EXPERIMENT = rows.Experiment("02_zero_filling", 1, 0)
PARTS = [{"arch": "lenet", "base": base} for base in range(5)]
CELL = """
import torch
SIZE = 1_000_003

def facts(part):
    return {"data": "d", "weights": f"w{part['base']}"}

def experiment(part):
    numbers = torch.randn(SIZE, generator=torch.Generator().manual_seed(part["base"]))
    return [{"threads": torch.get_num_threads(), "value": numbers.sum().item()}], {"first": numbers[:3]}
"""
ASKED = {"one": ("1", None), "two": ("2", None)}


@pytest.fixture(scope="module")
def open_executor(request):
    """Open an executor by name: one, two or cluster; it stays for the tests that follow, as starting it is slow."""
    with ExitStack() as stack:

        def opened(name):
            asked = ASKED[name] if name in ASKED else (None, request.getfixturevalue("cluster"))
            return stack.enter_context(executor.workers(*asked))

        yield cache(opened)


@pytest.fixture
def cell():
    """What the cells of a notebook define: nothing that another process could import."""
    namespace = {"__name__": "__main__"}
    exec(CELL, namespace)
    return namespace


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".npz")}


def about(folder):
    """What stands with the parts, but for the seconds that they took."""
    head = json.loads((folder / f"{EXPERIMENT.stem}.parts.json").read_text())
    for part in head["parts"]:
        assert part["about"].pop("seconds") >= 0
    del head["sha256"]  # of the seconds, too
    return head


@pytest.mark.parametrize("way", ["one", "two", "cluster"])
def test_rows_are_the_same_wherever_they_are_measured(way, open_executor, cell, tmp_path):
    torch.set_num_threads(2)
    given = {"experiment": EXPERIMENT, "facts": cell["facts"]}
    here = rows.measure(PARTS, cell["experiment"], folder=tmp_path / "here", **given)
    given["executor"] = open_executor(way)
    there = rows.measure(PARTS, cell["experiment"], folder=tmp_path / "there", **given)
    assert torch.get_num_threads() == 2
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert about(tmp_path / "here") == about(tmp_path / "there")
    assert there.frame.equals(here.frame)
    assert set(there.frame["threads"]) == {1}
    assert len(there.arrays) == len(PARTS)


def test_parts_that_are_there_are_not_measured_again(cell, tmp_path, open_executor):
    given = {"experiment": EXPERIMENT, "facts": cell["facts"], "folder": tmp_path}
    rows.measure(PARTS[:3], cell["experiment"], **given)
    exec("def experiment(part): assert part['base'] > 2; return [{'threads': 1, 'value': 0.5}]", cell)
    made = rows.measure(PARTS, cell["experiment"], executor=open_executor("two"), **given)
    assert made.frame["value"].eq(0.5).tolist() == [False] * 3 + [True] * 2


def test_what_goes_wrong_in_a_part_is_told_and_finished_parts_stay(cell, tmp_path, open_executor):
    exec("def experiment(part): return [{'a': 1}] if part['base'] < 3 else []", cell)
    given = {"experiment": EXPERIMENT, "facts": cell["facts"], "folder": tmp_path, "executor": open_executor("two")}
    with pytest.raises(MgenbError, match=r"'base': [34]} gave no rows"):
        rows.measure(PARTS, cell["experiment"], **given)
    assert len(list((tmp_path / f"{EXPERIMENT.stem}.parts").glob("*.json"))) >= 2


@pytest.mark.parametrize("way", ["two", "cluster"])
def test_pools_are_the_same_wherever_candidates_are_tried(way, open_executor, tmp_path):
    given: dict[str, Any] = {"epochs": 8, "train_limit": 1000, "val_limit": 400, "samples": True}
    plan = pool.Plan("mnist", "lenet", 6, mge.Settings(t=0.99), eps=0.005, **given)
    here = pool.create(plan, tmp_path / "here")
    there = pool.create(plan, tmp_path / "there", executor=open_executor(way))
    assert len(here.rows) > len(here) == 6
    for name in (pool.HEADER, pool.MANIFEST, pool.BASE):
        assert (here.path / name).read_bytes() == (there.path / name).read_bytes()


def test_merges_are_the_same_wherever_methods_run(open_executor, small, lenet, tmp_path):
    first = population.state_of(lenet)
    second = {name: tensor.flip(0) if name.startswith("net.") else tensor for name, tensor in first.items()}
    task = methods.Task(lenet, first, second, small.train, small.val, budget=10, seed=0, size=5)
    names, made = ["average", "mega", "rebasin"], []
    for runs in (None, open_executor("two")):
        kept = {name: tmp_path / f"{name}-{runs is None}" for name in names}
        made.append(list(methods.found(task, kept, runs).values()))
    for here, there in zip(*made, strict=True):
        assert (here.fitness, here.evaluations) == (there.fitness, there.evaluations)
        assert all(tensor.equal(there.states[0][name]) for name, tensor in here.states[0].items())


@pytest.mark.parametrize(
    ("jobs", "scheduler", "told"),
    [
        ("0", None, "jobs is '0'; right is a whole number of at least 1"),
        ("two", None, "jobs is 'two'; right is"),
        ("-1", None, "jobs is '-1'; right is"),
        ("1.5", None, "jobs is '1.5'; right is"),
        (None, "localhost", "the scheduler is 'localhost'; right is an address like tcp://"),
        ("2", "tcp://127.0.0.1:8786", "right is one of the two"),
        (None, "tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1"),
        (None, "tcp://127.0.0.1", "no Dask scheduler answers at tcp://127.0.0.1"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(jobs, scheduler, told, monkeypatch):
    monkeypatch.setattr(executor, "SECONDS_TO_CONNECT", 0.5)
    for way in ("given", "in the environment"):
        if way == "in the environment":
            monkeypatch.setenv(executor.JOBS, jobs or "")
            monkeypatch.setenv(executor.SCHEDULER, scheduler or "")
            jobs = scheduler = None
        with pytest.raises(MgenbError, match=told) as refused, executor.workers(jobs, scheduler):
            pass
        assert "\n" not in str(refused.value)


def test_what_is_given_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv(executor.JOBS, "3")
    assert executor.asked() == (3, "")
    assert executor.asked("2") == (2, "")
    assert executor.asked(None, "tcp://127.0.0.1:1") == (0, "tcp://127.0.0.1:1")
    assert executor.asked("", "") == (0, "")


def test_without_distributed_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MgenbError, match=r"pip install 'mgenb\[cluster\]'"), executor.workers(None, "tcp://here:1"):
        pass


def test_a_cluster_of_several_threads_is_refused(monkeypatch, cluster):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(distributed.Client, "nthreads", lambda self: {"tcp://worker": 4})
    with pytest.raises(MgenbError, match="several threads; right is one"), executor.workers(None, cluster):
        pass
