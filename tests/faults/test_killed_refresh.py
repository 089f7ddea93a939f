"""A refresh that is killed before it moves what it made leaves no trace in git; the harness kills it everywhere."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.faults.harness import work

ROOT = Path(__file__).parents[2]
DIES_BEFORE_IT_MOVES = """
import os, signal, sys
def hook(event, given):
    if event == "os.rename" and ".refresh" in str(given[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from mgenb.cli import main
main.main()
"""


def git(root, *arguments):
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def mgenb(root, *words):
    return subprocess.run([sys.executable, *words], cwd=root, capture_output=True).returncode


def test_killed_before_its_move_a_refresh_leaves_no_trace_in_git(tmp_path):
    work.project(tmp_path, work.REFRESHED)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "old")
    assert mgenb(tmp_path, "-c", DIES_BEFORE_IT_MOVES, "refresh", "03") == -signal.SIGKILL
    assert list((tmp_path / ".refresh").rglob(f"{work.STEM}.json"))
    assert git(tmp_path, "status", "--porcelain") == ""
    assert mgenb(tmp_path, "-m", "mgenb.cli", "list") == 0
    assert not list((tmp_path / ".refresh").rglob(f"{work.STEM}.json"))
    assert git(tmp_path, "status", "--porcelain") == ""
