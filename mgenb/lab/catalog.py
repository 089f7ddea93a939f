"""The notebooks: what each reproduces, what it costs, and each profile's defaults (`notebooks.toml`)."""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from mgenb.errors import MgenbError, choose, nearest

PROFILES = ("quick", "cpu", "paper")
ANALYSE = "MGENB_ANALYSE"  # names a folder with rows, which notebooks then read, and measure nothing
READ_RECORDS = ("00_start_here", "14_scoreboard")  # show what other notebooks' records say: refreshed after them
OURS = 'name = "mgenb"'  # in the pyproject.toml of a checkout
LONGEST_NAME = 60  # of a set of parameters, in the name of a folder


@dataclass(frozen=True)
class Notebook:
    """One notebook: file stem, title, what it reproduces, a cost per profile, and defaults per profile.

    rows_of: the stem of the notebook whose rows it draws where it measures nothing itself; their settings are the same.
    """

    stem: str
    title: str
    reproduces: str
    cost: dict[str, str]
    profiles: dict[str, dict[str, Any]]
    rows_of: str = ""

    @property
    def measured_in(self) -> str:
        """The stem of the notebook that measures its rows."""
        return self.rows_of or self.stem

    def defaults(self, profile: str) -> dict[str, Any]:
        """Return the defaults of a profile; MgenbError names the known profiles."""
        return self.profiles[choose("profile", profile, PROFILES)]


@cache
def notebooks() -> tuple[Notebook, ...]:
    """Return every notebook of the catalogue in order."""
    table = tomllib.loads(files("mgenb.lab").joinpath("notebooks.toml").read_text(encoding="utf-8"))
    listed = []
    for stem, entry in table.items():
        source = entry.get("rows_of", "")
        profiles = {name: table[source or stem][name] for name in PROFILES}
        listed.append(Notebook(stem, entry["title"], entry["reproduces"], entry["cost"], profiles, source))
    return tuple(listed)


def in_turn(chosen: Iterable[Notebook]) -> list[Notebook]:
    """Return the notebooks in turn: after the others those that draw rows of one, and last those that show records."""
    return sorted(chosen, key=lambda notebook: (notebook.stem in READ_RECORDS, bool(notebook.rows_of)))


def find(wanted: str) -> Notebook:
    """Return the notebook with this stem or number ('1', '01', '01_frequency_sensitivity')."""
    wanted, known = str(wanted), {notebook.stem: notebook for notebook in notebooks()}
    for stem, notebook in known.items():
        if wanted.removesuffix(".ipynb") == stem or (wanted and wanted.zfill(2) == stem.split("_")[0]):
            return notebook
    raise MgenbError(f"no notebook {wanted!r}{nearest(wanted, known)}; known: {', '.join(known)}")


def project_root() -> Path:
    """Return the folder that holds `notebooks/`: the nearest above the working directory, or beside the package."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        about = folder / "pyproject.toml"
        if (folder / "notebooks").is_dir() and about.is_file() and OURS in about.read_text(encoding="utf-8"):
            return folder
    raise MgenbError(f"no notebooks of mgenb in {here} or above: run this inside a checkout of the repository")


def refreshing() -> Path:
    """Return the folder in which `mgenb refresh` works; git ignores it."""
    return project_root() / ".refresh"


def output_dir(profile: str, given: Mapping[str, object] | None = None) -> Path:
    """Return where records and figures go: `MGENB_OUT`, else in `runs/` a folder for the profile and what is given.

    `given` holds the parameters that are not the profile's, so that no two sets of them share a folder.
    """
    if chosen := os.environ.get("MGENB_OUT"):
        return Path(chosen)
    texts = {name: "+".join(map(str, v)) if isinstance(v, list) else v for name, v in sorted((given or {}).items())}
    whole = ",".join(f"{name}={text}" for name, text in texts.items())
    name = re.sub(r"[^\w.,=+-]", "_", whole)[:LONGEST_NAME]
    if name != whole:
        name += "-" + hashlib.sha256(whole.encode()).hexdigest()[:8]
    return project_root() / "runs" / (f"{profile}-{name}" if name else profile)


def version(stem: str) -> int:
    """Return the VERSION of the experiment on whose rows a notebook stands: of the cell tagged so; 1 where none is."""
    stem = next((notebook.measured_in for notebook in notebooks() if notebook.stem == stem), stem)
    path = project_root() / "notebooks" / f"{stem}.ipynb"
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
        tagged = ("".join(cell["source"]) for cell in cells if "experiment" in cell["metadata"].get("tags", []))
        found = next(filter(None, (re.search(r"^VERSION = (\d+)", text, re.MULTILINE) for text in tagged)), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MgenbError(f"{path} is no notebook ({error}): restore it with git") from error
    return int(found[1]) if found else 1
