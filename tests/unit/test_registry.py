"""The registry is complete and honest: see also test_papers_numbers.py."""

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import resources
from itertools import product

import pytest

from mgenb import claims
from mgenb.claims import printed
from mgenb.claims.registry import MOST_CORE, PAPERS, ROLES, parse
from mgenb.errors import MgenbError
from mgenb.lab import catalog

HIGH_LOW = "mge.fig6.high_worse_than_low"
ENTRY = 'id = "mge.a"\nwhere = "x"\nstatement = "y."\nnotebook = "01_x"\nrole = "detail"\n'
POINT = '[points.band]\nwhat = "w"\nlevels.index = { stands = "text" }\nlevels.size = { stands = "open" }\n'


def test_ids_are_unique_and_named_after_their_paper():
    ids = [claim.id for claim in claims.load()]
    assert len(ids) == len(set(ids))
    stems = {notebook.stem for notebook in catalog.notebooks()}
    for claim in claims.load():
        assert claim.paper in PAPERS
        assert re.fullmatch(rf"{claim.paper}\.[a-z0-9_.]+", claim.id), claim.id
        assert claim.notebook in stems, claim.id
        assert re.fullmatch(r"[^{}]+\.", claim.statement), claim.id


@pytest.mark.parametrize("paper", PAPERS)
def test_every_cell_of_every_grid_has_a_claim(paper):
    data = tomllib.loads((resources.files("mgenb.claims") / f"{paper}.toml").read_text(encoding="utf-8"))
    for table in data["table"]:
        for values in product(*table["axes"].values()):
            assert claims.get(".".join([table["id"], *map(str, values)]))


@pytest.mark.parametrize("paper", PAPERS)
def test_about_a_dozen_claims_are_what_a_paper_is_about(paper):
    by_role = {role: [claim for claim in claims.load(paper) if claim.role == role] for role in ROLES}
    assert 8 <= len(by_role["central"]) <= 18
    assert all("(control)" in claim.where for claim in by_role["control"])
    assert not any("(control)" in claim.where for role in ROLES[:3] for claim in by_role[role])
    assert not any(claim.kind in ("value", "ratio", "setting") for claim in by_role["central"])


def test_readings_are_few_and_core_ones_are_what_the_paper_says():
    for claim in claims.load():
        core = [reading for reading in claim.readings if reading.core]
        assert 1 <= len(core) <= MOST_CORE
        names = [reading.name for reading in claim.readings]
        assert len(names) == len(set(names)), claim.id
        levels = {name: point.levels for name, point in claims.points(claim.paper).items()}
        for reading in core:
            assert all(levels[point][level]["stands"] != "open" for point, level in reading.choices.items())
        for reading in claim.readings[len(core) :]:
            differences = [
                {p for p in {**reading.choices, **other.choices} if reading.choices.get(p) != other.choices.get(p)}
                for other in core
            ]
            assert min(map(len, differences)) == 1, (claim.id, reading.name)


def test_every_sentence_that_is_not_judged_says_why():
    for paper in PAPERS:
        assert all(sentence.where and sentence.says and sentence.why for sentence in claims.unjudged(paper))


def test_unknown_names_give_the_nearest():
    with pytest.raises(MgenbError, match=re.escape(HIGH_LOW)):
        claims.get(HIGH_LOW[:-1])
    with pytest.raises(MgenbError, match="unknown paper"):
        claims.load("mgee")
    with pytest.raises(MgenbError, match="did you mean 'index'"):
        claims.get(HIGH_LOW).reading("indx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'[[claim]]\n{ENTRY}kind = "bound"\n', "direction"),
        (f'[[claim]]\n{ENTRY}kind = "guess"\n', "kind"),
        (f'[[claim]]\n{ENTRY}kind = "comparison"\nmargn = 1\n', "margn"),
        (f'[[claim]]\n{ENTRY}kind = "comparison"\nmargin = nan\n', "margin is nan"),
        (f'[[claim]]\n{ENTRY}kind = "comparison"\nmargin = -5\n', "margin is -5"),
        (f'[[claim]]\n{ENTRY}kind = "value"\n', "needs a paper_value"),
        (f'[[claim]]\n{ENTRY.replace("detail", "minor")}kind = "comparison"\n', "unknown role"),
        (f'[[claim]]\n{ENTRY}kind = "setting"\n[[claim]]\n{ENTRY}kind = "setting"\n', "twice"),
        (f'[[table]]\n{ENTRY}kind = "setting"\naxes.q = ["a"]\n[table.cells]\nb = 1\n', "no place"),
        (f'[[claim]]\n{ENTRY}kind = "setting"\nscale = {{ data = "mnist" }}\n', "scale"),
        (f'[[claim]]\n{ENTRY}kind = "comparison"\nreadings = "bands"\n', "unknown readings"),
        (f'{POINT}[readings.a]\ncore = [{{ band = "size" }}]\n', "has the open level 'size'"),
        (f'{POINT}[readings.a]\ncore = [{{ band = "sise" }}]\n', "did you mean 'size'"),
        (f'{POINT}[readings.a]\ncore = [{{ bend = "size" }}]\n', "did you mean 'band'"),
        (f'{POINT}[readings.a]\ncore = [{{ band = "index" }}]\nopen = [{{ from = 0 }}]\n', "changes 0 points"),
    ],
)
def test_wrong_entries_are_named(text, message):
    with pytest.raises(MgenbError, match=message):
        parse("mge", text)


@pytest.mark.parametrize("changed", [{"margin": 2.0}, {"role": "detail"}, {"readings": (claims.AS_STATED,)}])
def test_the_hash_depends_on_what_decides(monkeypatch, changed):
    before, other = (claims.registry_hash(stem) for stem in ("01_frequency_sensitivity", "02_zero_filling"))
    registry = (replace(claims.get(HIGH_LOW), **changed), *(claim for claim in claims.load() if claim.id != HIGH_LOW))
    monkeypatch.setattr("mgenb.claims.registry.load", lambda: registry)
    assert claims.registry_hash("01_frequency_sensitivity") != before
    assert claims.registry_hash("02_zero_filling") == other


def test_claims_import_neither_torch_nor_scipy_stats():
    code = "import sys, mgenb.claims; print([m for m in ('torch', 'scipy.stats') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_grids_have_the_papers_layout():
    table = printed.grid("mge.table2", "arch")
    assert table.shape == (8, 4)
    assert list(table) == ["lenet", "alexnet", "vgg11", "resnet18"]
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["mnist", "fashion_mnist", "cifar10", "gtsrb"]
    assert table.loc[("gtsrb", "trained"), "vgg11"] == 97.64
    times = printed.grid("mge.table3", "models", "action")
    assert times.shape == (4, 6)
    assert times.isna().sum().sum() == 6
    assert printed.grid("mega.table2", "model").shape == (3, 10)
    with pytest.raises(MgenbError, match=r"no table 'mge\.table9'; did you mean"):
        printed.grid("mge.table9", "arch")
