"""Unit and fault tests share one cache of their own; the notebooks' tests use the reader's."""

import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from mgenb.executor import WORKER

APART = ("unit", "faults", "harness")
FAULTS = ("kills", "corruptions", "bad inputs", "places", "crafted files")  # as the harness counts its trials


def pytest_terminal_summary(terminalreporter):
    """Print how many trials of each kind of fault were made."""
    counts: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", "") == "call":
            counts.update({name: count for name, count in report.user_properties if name in FAULTS})
    if counts:
        terminalreporter.write_line("faults: " + ", ".join(f"{counts[kind]} {kind}" for kind in FAULTS))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    chosen = os.environ.get("MGENB_TEST_CACHE")
    return Path(chosen) if chosen else tmp_path_factory.mktemp("cache")


@contextmanager
def one_thread():
    """Two processes with as many threads as cores each stand in each other's way for seconds."""
    if "torch" not in sys.modules:  # tests that do not need it do not wait for it
        yield
        return
    from mgenb import devices

    with devices.one_thread():
        yield


@pytest.fixture(scope="session")
def alone():
    """`one_thread`, for fixtures whose bits are compared with those that a test makes."""
    return one_thread


@pytest.fixture(autouse=True)
def _apart(request, monkeypatch, session_cache):
    if request.path.parent.name not in APART:
        if "PYTEST_XDIST_WORKER" in os.environ:  # kernels side by side
            for name, value in WORKER.items():
                monkeypatch.setenv(name, value)
        yield
        return
    monkeypatch.setenv("MGENB_CACHE", str(session_cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # bits must agree between this process and those it starts
    with one_thread():
        yield


@pytest.fixture
def looks():
    """What gives the reasons of all looks at test images since the test began."""
    from mgenb.data.splits import LOOKS

    before = len(LOOKS)
    return lambda: LOOKS[before:]


@pytest.fixture(scope="session")
def printed():
    """What gives the lines that the cells of a notebook printed."""

    def lines(nb):
        outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
        texts = [output.text for output in outputs if output.get("name") == "stdout"]
        return [line for text in texts for line in text.splitlines()]

    return lines


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The address of a Dask cluster: two worker processes with one thread, on another machine as far as files go."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with pytest.MonkeyPatch.context() as patch, dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        patch.setenv("MGENB_CACHE", str(tmp_path_factory.mktemp("elsewhere")))
        given = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
        with distributed.LocalCluster(**given) as found:
            yield found.scheduler_address


@pytest.fixture(scope="session")
def recorded():
    """What makes a record of notebook 03 with one claim, made by today's registry and experiment."""
    from mgenb import claims
    from mgenb.lab import catalog, record

    def make(verdict="reproduced", profile="cpu", claim="mge.fig7.mask_unimportant", **changed):
        scale = {"profile": profile, "variant": "official", "dataset": "mnist", "arch": "lenet", "changed": ""}
        numbers = {"estimate": 1.0, "low": 0.5, "high": 1.5, "p": 0.01, "n": 5, "unit": "seeds", "reason": "why not"}
        row = {"id": claim, "verdict": verdict, "token": f"{claim}: {verdict} [{profile}]", "scale": scale, **numbers}
        stem = changed.pop("stem", "03_importance_mask")
        context = {"finished": "2026-01-02T03:04:05+00:00", "device": "cpu", "cores": 2}
        found = {"registry": claims.registry_hash(stem), "margins": {}, "claims": [row], "context": context}
        empty = {name: kind() for name, kind in record._kinds().items()}
        known = {"schema": record.SCHEMA, "stem": stem, "profile": profile, "version": catalog.version(stem)}
        return record.Record(**{**empty, **known, **found, **changed})

    return make


@pytest.fixture(scope="session")
def small(session_cache):
    """300 training and 100 validation digits, 100 test digits."""
    from mgenb import data

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGENB_CACHE", str(session_cache))
        return data.load("mnist", source="samples", train_limit=300, val_limit=100, test_limit=100)


@pytest.fixture(scope="session")
def lenet(session_cache, small):
    """A LeNet that knows something of the digits."""
    from mgenb import training

    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("MGENB_CACHE", str(session_cache))
        return training.trained("lenet", small, epochs=12, seed=0)
