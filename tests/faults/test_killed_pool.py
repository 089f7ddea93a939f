"""A pool whose making is killed, twice, goes on to the bytes of one that nobody interrupted."""

import signal
import subprocess
import sys
import time

from mgenb import mge
from mgenb.mge import pool

COUNT = 100
COMMAND = ["--dataset", "mnist", "--arch", "lenet", "--samples", "--train-limit", "1000", "--val-limit", "400"]
COMMAND += ["--epochs", "8", "--t", "0.99", "--count", str(COUNT), "--device", "cpu"]


def rows_of(path):
    return (path / pool.MANIFEST).read_bytes().count(b"\n") if (path / pool.MANIFEST).exists() else 0


def kill_at(path, rows):
    """Start the command and kill it once the manifest has that many rows."""
    process = subprocess.Popen([sys.executable, "-m", "mgenb.cli", "pool", "create", *COMMAND, "--out", str(path)])
    try:
        deadline = time.monotonic() + 120
        while rows_of(path) < rows:
            assert process.poll() is None, "ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_killed_pool_goes_on_to_the_same_bytes(tmp_path):
    path = tmp_path / "killed"
    for rows in (3, 40):
        kill_at(path, rows)
        assert rows <= rows_of(path) < COUNT
    plan = pool.Plan(
        dataset="mnist",
        arch="lenet",
        count=COUNT,
        settings=mge.Settings(t=0.99),
        epochs=8,
        train_limit=1000,
        val_limit=400,
        samples=True,
    )
    resumed, whole = pool.create(plan, path), pool.create(plan, tmp_path / "whole")
    for name in (pool.HEADER, pool.MANIFEST, pool.BASE):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert resumed.verify(20) == ["same"] * 20
