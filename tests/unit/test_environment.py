"""environment.yml and pyproject.toml ask for the same things."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_both_ask_for_the_same_packages():
    pip = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert len(pip) == len(set(pip))
    assert set(pip) == {*asked, "-e ."}


def test_both_ask_for_the_same_python():
    assert CONDA["name"] == PROJECT["name"]
    assert f"python{PROJECT['requires-python']}" in CONDA["dependencies"]
    assert "pip" in CONDA["dependencies"]
