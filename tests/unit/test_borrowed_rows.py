"""A notebook that draws the rows of another: the same settings, after it, and never the rows of another run."""

import json

import pytest

from mgenb import lab
from mgenb.errors import MgenbError
from mgenb.lab import catalog, execute

OWNER, READER = "06_accuracy_table", "05_generated_vs_trained"
TINY = {"fine": {"dataset": "mnist", "arch": "lenet", "recipe": "mge-adam", "epochs": 1, "images": 200, "floor": 0.05}}


@pytest.fixture
def start(monkeypatch, tmp_path):
    """What starts a run into the test's folder on a tiny network of the user's own."""
    entry = ", ".join(f"{name} = {json.dumps(value)}" for name, value in TINY["fine"].items())
    (tmp_path / "mine.toml").write_text(f'[networks]\n"fine" = {{ {entry} }}\n')
    monkeypatch.delenv(catalog.ANALYSE, raising=False)

    def make(stem, folder=tmp_path / "out", **own):
        monkeypatch.setenv("MGENB_OUT", str(folder))
        given = {"networks": ["fine"], "networks_file": str(tmp_path / "mine.toml"), "bases": 2}
        return lab.start(stem, profile="quick", seed=0, device="cpu", **{**given, **own})

    return make


@pytest.fixture
def owned(start):
    """The rows of the owner's run, whose record stands beside them."""
    run = start(OWNER)
    plan = [run.part(run.networks[0], base=base) for base in range(2)]
    rows = run.measure(plan, lambda part: [{"what": "base", "method": "base", "value": 1.5}], version=run.version + 1)
    run.rest_on([0.9, 0.9], [0.9, 0.9])
    run.finish()
    return rows


def test_a_reader_has_the_parameters_of_the_owner():
    reader, owner = catalog.find(READER), catalog.find(OWNER)
    assert (reader.measured_in, owner.measured_in) == (OWNER, OWNER)
    assert reader.profiles == owner.profiles
    assert catalog.version(READER) == catalog.version(OWNER) > 1


def test_a_reader_draws_the_rows_of_the_same_folder(start, owned, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "version", lambda stem: owned.experiment.version)
    for folder in (tmp_path / "out", tmp_path / "out" / "unfinished"):  # its stage is a folder in it
        run = start(READER, folder)
        assert run.borrow().frame.equals(owned.frame)
        assert run.version == owned.experiment.version
    run.rest_on([0.9, 0.9], [0.9, 0.9])
    assert run.fit(run.networks[0])


def test_rows_of_another_run_are_refused_in_one_sentence(start, owned, monkeypatch):
    monkeypatch.setattr(catalog, "version", lambda stem: owned.experiment.version)
    with pytest.raises(MgenbError, match=r"measured with other z: measure with `mgenb run 06`"):
        start(READER, z=0.1).borrow()
    monkeypatch.setattr(catalog, "version", lambda stem: owned.experiment.version + 1)
    with pytest.raises(MgenbError, match="measured with other VERSION"):
        start(READER).borrow()


def test_without_rows_the_owner_is_named(start, monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "project_root", lambda: tmp_path)
    with pytest.raises(MgenbError, match=r"the rows of 06_accuracy_table, and there are none in .*`mgenb run 06`"):
        start(READER).borrow()


def test_a_reader_comes_after_its_owner():
    stems = [notebook.stem for notebook in catalog.in_turn(catalog.notebooks())]
    assert stems.index(OWNER) < stems.index(READER)
    assert sorted(stems) == [notebook.stem for notebook in catalog.notebooks()]


@pytest.mark.parametrize("processes", [None, "2"])
def test_side_by_side_a_reader_waits_for_its_owner(monkeypatch, tmp_path, processes):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('name = "mgenb"')
    monkeypatch.chdir(tmp_path)
    cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    sources = {OWNER: "import time; time.sleep(3); open('done', 'w').close()", READER: "open('done').close()"}
    for stem, source in sources.items():
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nb = {"cells": [{**cell, "id": "a", "source": source}], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        (tmp_path / "notebooks" / f"{stem}.ipynb").write_text(json.dumps(nb))
    jobs = [job for stem in (READER, OWNER) for job in execute.plan(stem, "quick", [], tmp_path / "out")]
    outcomes = list(execute.execute_all(jobs, processes, None))
    assert [(str(outcome.job), outcome.error) for outcome in outcomes] == [(OWNER, ""), (READER, "")]
