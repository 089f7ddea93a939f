"""`make lab` opens JupyterLab such that reading a notebook leaves it as it is in git."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEM = "03_importance_mask"


def ask(url: str, body: bytes | None = None) -> dict:
    """GET, or PUT `body`; return what the server answers."""
    headers = {"Authorization": f"token {STEM}"}
    request = urllib.request.Request(url, body, headers, method="PUT" if body else "GET")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def answers(address: str) -> bool:
    try:
        return bool(ask(f"{address}/api"))
    except OSError:
        return False


@pytest.fixture
def lab(tmp_path):
    """A small checkout on which the command of `make lab` is running; yields its folder and the server's address."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / f"{STEM}.ipynb", tmp_path / "notebooks")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / ".jupyterlab", tmp_path / ".jupyterlab")
    make = [
        "make",
        "--silent",
        "--dry-run",
        "lab",
        f"BIN={Path(sys.executable).parent}",
        "--assume-old=.venv/.installed",
    ]
    line = subprocess.run(make, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    options = ["--no-browser", "--allow-root", f"--IdentityProvider.token={STEM}"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*shlex.split(line), *options], cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while not (found := re.search(r"(http://localhost:\d+)/lab", (tmp_path / "log").read_text())):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while not answers(found[1]):  # it tells its address before it listens there
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield tmp_path, found[1]
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_nothing_is_saved_unasked_and_saving_what_was_not_changed_changes_nothing(lab):
    root, address = lab
    settings = ask(f"{address}/lab/api/settings/@jupyterlab/docmanager-extension:plugin")
    assert settings["schema"]["properties"]["autosave"]["default"] is False
    path = root / "notebooks" / f"{STEM}.ipynb"
    before = path.read_bytes()
    opened = ask(f"{address}/api/contents/{STEM}.ipynb")
    path.unlink()
    ask(f"{address}/api/contents/{STEM}.ipynb", json.dumps(opened).encode())
    assert path.read_bytes() == before
