"""Records: what is wrong with a file is named, what is stale counts for nothing, and a sceptic's questions."""

import json
from dataclasses import replace

import pytest

from mgenb import claims, digest
from mgenb.errors import MgenbError
from mgenb.lab import record

ID = "mge.fig7.mask_unimportant"


def test_a_record_comes_back(recorded):
    made = recorded()
    assert record.Record.from_json(json.loads(json.dumps(made.to_json())), "x.json") == made
    assert (made.stale, made.counted, made.label) == ("", "1 reproduced", "03_importance_mask (cpu)")


def test_the_result_is_apart_from_machine_and_form(recorded):
    one, two = recorded(), recorded(context={"device": "cuda"}, figures=["a.png"])
    assert one.to_json()["result"] == two.to_json()["result"]
    assert set(one.to_json()) == {"schema", "stem", "profile", "figures", "context", "result", "sha256"}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("stem", None, "stem is None; right is a str"),
        ("figures", "a.png", "figures is 'a.png'; right is a list"),
        ("version", "1", "version is '1'; right is a int"),
        ("claims", {}, "claims is {}; right is a list"),
        ("settings", 3, "settings is 3; right is a dict"),
        ("schema", record.SCHEMA + 1, f"has schema {record.SCHEMA + 1}; right is at most {record.SCHEMA}"),
        ("schema", "1", "has schema '1'"),
    ],
)
def test_a_wrong_value_is_named(recorded, name, value, told):
    data = digest.unsealed(recorded().to_json(), "x")
    data.update({name: value}) if name in data else data["result"].update({name: value})
    with pytest.raises(MgenbError, match=f"x.json.*{told}"):
        record.Record.from_json(digest.sealed(data), "x.json")


@pytest.mark.parametrize("name", ["registry", "seed", "claims", "test_uses"])
def test_a_missing_key_is_named(recorded, name):
    data = digest.unsealed(recorded().to_json(), "x")
    del data["result"][name]
    with pytest.raises(MgenbError, match=f"{name} is missing"):
        record.Record.from_json(digest.sealed(data), "x.json")


def change_verdict(row):
    row["verdict"] = "contradicted"


def change_interval(row):
    row["low"], row["high"] = 99.0, float("nan")


@pytest.mark.parametrize("change", [change_verdict, change_interval])
def test_a_record_that_was_changed_is_no_record(recorded, tmp_path, change):
    data = recorded().to_json()
    change(data["result"]["claims"][0])
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(MgenbError, match=r"x\.json was changed after it was written"):
        record.read(tmp_path / "x.json")


def test_a_record_in_anothers_place_is_named(recorded, tmp_path, monkeypatch):
    (folder := tmp_path / "figures" / "cpu").mkdir(parents=True)
    monkeypatch.setattr("mgenb.lab.catalog.project_root", lambda: tmp_path)
    (folder / "03_importance_mask.json").write_text(json.dumps(recorded().to_json()))
    assert [made.label for made in record.committed()] == ["03_importance_mask (cpu)"]
    for name, profile in (("02_zero_filling", "cpu"), ("03_importance_mask", "paper")):
        (elsewhere := tmp_path / "figures" / profile / f"{name}.json").parent.mkdir(exist_ok=True)
        elsewhere.write_text(json.dumps(recorded().to_json()))
        with pytest.raises(MgenbError, match=rf"{name}.json is the record of 03_importance_mask \(cpu\): delete it"):
            record.committed()
        elsewhere.unlink()


@pytest.mark.parametrize("text", ['{"stem": ', "[1]", "{}", '{"result": []}', '{"result": {"claims": []}}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(MgenbError, match="is not a record"):
        record.read(tmp_path / "x.json")


def test_a_record_of_the_form_before_is_read_and_stale():
    row = {"id": ID, "verdict": "reproduced"}
    old = record.Record.from_json({"stem": "03_importance_mask", "profile": "cpu", "result": {"claims": [row]}}, "x")
    assert "older form (schema 0, today 3)" in old.stale


@pytest.mark.parametrize("changed", [{"margin": 2.0}, {"role": "central"}, {"scale": {"arch": "vgg11"}}])
def test_an_edited_entry_makes_its_notebooks_records_stale_and_no_others(recorded, monkeypatch, changed):
    made, other = recorded(), recorded(stem="02_zero_filling", claim="mge.fig5.decays")
    entries = tuple(replace(one, **changed) if one.id == ID else one for one in claims.load())
    monkeypatch.setattr("mgenb.claims.registry.load", lambda: entries)
    assert made.stale == "judged by other registry entries than today's"
    assert other.stale == ""


def test_a_new_statement_makes_nothing_stale(recorded, monkeypatch):
    made = recorded()
    entries = tuple(replace(one, statement="in other words") for one in claims.load())
    monkeypatch.setattr("mgenb.claims.registry.load", lambda: entries)
    assert made.stale == ""


def test_every_committed_record_is_of_todays_form():
    assert [one.label for one in record.committed() if one.schema != record.SCHEMA] == []


def test_audit_is_quiet_when_nothing_is_wrong(recorded):
    assert record.audit([recorded(), recorded(stem="02_zero_filling")]) == []


def test_audit_finds_margins_test_uses_and_readings_that_differ(recorded):
    disagreeing = recorded(margins={ID: 3.0, "mge.gone": 1.0})
    disagreeing.claims[0]["readings"] = [
        {"name": "both, most", "verdict": "reproduced"},
        {"name": "low, most", "verdict": "inconclusive"},
    ]
    lines = record.audit(
        [
            disagreeing,
            recorded(stem="02_zero_filling", test_uses=[{}, {}]),
            recorded("inconclusive", stem="01_frequency_sensitivity", registry="0" * 16),
        ]
    )
    assert lines == [
        f"03_importance_mask (cpu): margin of {ID} was 3, the registry says {claims.get(ID).margin:g}",
        "03_importance_mask (cpu): claim mge.gone is no longer in the registry",
        f"03_importance_mask (cpu): {ID} differs between readings: 1 inconclusive, 1 reproduced",
        "02_zero_filling (cpu): the test split was used 2 times",
        "01_frequency_sensitivity (cpu): stale: judged by other registry entries than today's",
    ]
