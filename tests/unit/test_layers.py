"""Imports point one way, and what has to be quick does not load torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = ("torch", "pandas", "matplotlib", "papermill", "scipy")


def test_import_contracts_hold():
    command: list[str | Path] = [Path(sys.executable).parent / "lint-imports", "--config", ROOT / "pyproject.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["mgenb", "mgenb.cli", "mgenb.lab.catalog", "mgenb.lab.execute"])
def test_importing_loads_nothing_slow(module):
    code = f"import sys, {module}; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
