"""The trained networks that are shipped with the package: which ones (`nets/shipped/bases.toml`), and made anew."""

import tomllib
from pathlib import Path
from typing import Any

from mgenb import data, training


def listed() -> dict[str, Any]:
    """Return bases.toml: `bases`, an entry for each kind of network, and `licences` of the images by dataset."""
    return tomllib.loads((training.SHIPPED / "bases.toml").read_text(encoding="utf-8"))


def images_of(entry: dict[str, Any]) -> data.Dataset:
    """Return the images of an entry of `bases`, from the shipped samples."""
    return data.load(entry["dataset"], source="samples", train_limit=entry.get("images"))


def refresh() -> list[Path]:
    """Train all networks that are listed anew, put them in place of those that are shipped, and return the files."""
    table, files = listed(), []
    for entry in table["bases"]:
        how = {name: entry[name] for name in ("recipe", "epochs", "count")}
        licence = table["licences"][entry["dataset"]]
        files.append(training.ship(entry["arch"], images_of(entry), **how, licence=licence))
    for old in {*training.SHIPPED.glob("*.safetensors")} - {*files}:
        old.unlink()
        old.with_suffix(".json").unlink(missing_ok=True)
    return files
