"""Rows: measured part by part, resumed to the byte, tidy or refused, and read back as what was written."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from mgenb.errors import MgenbError
from mgenb.lab import rows

STEM = "02_zero_filling"
EXPERIMENT = rows.Experiment(STEM, 1, 0)
PARTS = [{"network": "lenet", "base": i, "share": 0.5} for i in range(4)]
NAMES = [f"{STEM}.csv", f"{STEM}.npz"]  # what two runs have in common


def facts(part):
    return {"data": "d", "weights": f"w{part['base']}"}


def experiment(part):
    """Three rows with a column of each type, and an array."""
    values = np.random.default_rng(part["base"]).random(3)
    made = [
        {
            "method": f"m{i}",
            "text": "NA",
            "fine": bool(i),
            "count": i,
            "value": values[i],
            "other": values[i] if i else None,
        }
        for i in range(3)
    ]
    return made, {"values": values}


def killed(part, at):
    if part["base"] == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return experiment(part)


def measure(folder, parts=PARTS, function=experiment, **changed):
    given = {"experiment": EXPERIMENT, "folder": folder, "facts": facts, **changed}
    return rows.measure(parts, function, **given)


def files(folder):
    return {name: (folder / name).read_bytes() for name in NAMES}


def test_rows_come_back_with_their_types_in_the_order_of_the_plan(tmp_path):
    found = measure(tmp_path)
    assert list(found.frame["base"]) == [i for i in range(4) for _ in range(3)]
    kinds = {name: found.frame[name].dtype.kind for name in ("base", "share", "fine", "count", "value", "other")}
    assert kinds == {"base": "i", "share": "f", "fine": "b", "count": "i", "value": "f", "other": "f"}
    assert set(found.frame["text"]) == {"NA"}
    assert found.frame["value"].tolist() == [v for i in range(4) for v in np.random.default_rng(i).random(3)]
    assert found.frame["other"].isna().tolist() == [True, False, False] * 4
    assert found.parts["weights"].tolist() == ["w0", "w1", "w2", "w3"]
    for i, key in enumerate(found.parts["key"]):
        assert np.array_equal(found.arrays[f"{key}.values"], np.random.default_rng(i).random(3))
    assert found.unfinished == ""


@pytest.mark.parametrize("at", range(4))
def test_a_killed_run_goes_on_where_it_stopped(tmp_path, at):
    measure(tmp_path / "whole")
    cut = tmp_path / "cut"
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_rows as t, pathlib, functools;"
    code += f"t.measure(pathlib.Path({str(cut)!r}), function=functools.partial(t.killed, at={at}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not (cut / f"{STEM}.csv").exists()
    assert len(list((cut / f"{STEM}.parts").glob("*.json"))) == at
    seen = []

    def counting(part):
        seen.append(part["base"])
        return experiment(part)

    measure(cut, function=counting)
    assert seen == list(range(at, 4))
    assert files(cut) == files(tmp_path / "whole")


def test_processes_write_the_same_rows(tmp_path):
    measure(tmp_path / "here")
    with ProcessPoolExecutor(2) as executor:
        measure(tmp_path / "there", executor=executor)
    assert files(tmp_path / "here") == files(tmp_path / "there")


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": replace(EXPERIMENT, version=2)},
        {"experiment": replace(EXPERIMENT, seed=1)},
        {"facts": lambda part: {"data": "other", "weights": "w"}},
        {"facts": lambda part: {"data": "d", "weights": "other"}},
        {"parts": [{**part, "share": 0.25} for part in PARTS]},
    ],
)
def test_what_a_part_rests_on_makes_it_another(tmp_path, change):
    measure(tmp_path)
    measure(tmp_path, **change)
    assert len(list((tmp_path / f"{STEM}.parts").glob("*.json"))) == 8


def test_facts_beside_the_hashes_do_not(tmp_path):
    measure(tmp_path)
    measure(tmp_path, facts=lambda part: {**facts(part), "source": "elsewhere", "device": "cuda"})
    assert len(list((tmp_path / f"{STEM}.parts").glob("*.json"))) == 4


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ([], "gave no rows"),
        ([{"base": 1}], "the column 'base', which the part has as well"),
        ([{"a": 1}, {"b": 1}], "differ in the columns a, b"),
        ([{"a": [1, 2]}], r"'a' holds \[1, 2\]"),
        ([{"a": np.zeros(2)}], "'a' holds array"),
        ([{"a": float("nan")}], "'a' holds nan; right is a finite number"),
        ([{"a": 1}, {"a": "x"}], "'a' is mixed; right is texts"),
        ([{"a": None}, {"a": "x"}], "'a' is "),
        ([{"a": True}, {"a": 0.5}], "'a' is mixed"),
        (([{"a": 1}], {"b": np.array([{}])}), "b' holds objects"),
        ([{"a": "x" * 1_000_001}], "above 1,000,000 bytes; what is large belongs"),
    ],
)
def test_what_is_not_tidy_is_refused(tmp_path, made, told):
    with pytest.raises(MgenbError, match=told):
        measure(tmp_path, PARTS[:1], lambda part: made)


def test_parts_must_agree_in_their_columns_and_stand_once(tmp_path):
    with pytest.raises(MgenbError, match="differ in the columns a, b"):
        measure(tmp_path, function=lambda part: [{"a" if part["base"] else "b": 1}])
    with pytest.raises(MgenbError, match=r"has the part .* twice"):
        measure(tmp_path, [PARTS[0], dict(PARTS[0])])
    with pytest.raises(MgenbError, match="'base' holds"):
        measure(tmp_path, [{"base": [0]}])


def test_a_frame_and_numpy_numbers_will_do(tmp_path):
    frame = pd.DataFrame({"a": np.arange(2), "b": np.array([0.5, 0.25], dtype=np.float32), "c": ["x", ""]})
    found = measure(tmp_path, PARTS[:1], lambda part: frame).frame
    assert found[["a", "b", "c"]].to_dict("list") == {"a": [0, 1], "b": [0.5, 0.25], "c": ["x", ""]}


def test_a_column_may_lack_all_its_numbers(tmp_path):
    found = measure(tmp_path, PARTS[:1], lambda part: [{"a": None, "b": 1}, {"a": None, "b": 2}]).frame
    assert found["a"].isna().all()
    assert found["b"].tolist() == [1, 2]


def edited(folder, old, new, name=f"{STEM}.csv"):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    return folder / f"{STEM}.csv"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (f"{STEM}.csv", "lenet,0,0.5,m0", "lenet,0,0.6,m0"),
        (f"{STEM}.csv", ",count,", ",counted,"),
        (f"{STEM}.parts.json", '"count": "int"', '"count": "float"'),
        (f"{STEM}.parts.json", '"planned": 4', '"planned": 3'),
        (f"{STEM}.parts.json", '"w1"', '"w2"'),
    ],
)
def test_what_was_changed_after_it_was_written_is_refused(tmp_path, name, old, new):
    measure(tmp_path)
    with pytest.raises(MgenbError, match=f"{name} (was changed|is not what was written).*delete "):
        rows.read(edited(tmp_path, old, new, name))


def test_arrays_that_were_changed_are_refused_and_left_over_ones_ignored(tmp_path):
    measure(tmp_path, function=lambda part: ([{"a": 1}], {"b": np.ones(3)}))
    csv = tmp_path / f"{STEM}.csv"
    npz = csv.with_suffix(".npz")
    whole = npz.read_bytes()
    npz.write_bytes(whole[:-1])
    with pytest.raises(MgenbError, match=r"npz is not what was written there"):
        rows.read(csv)
    measure(tmp_path / "other", function=lambda part: [{"a": 1}])
    (tmp_path / "other" / npz.name).write_bytes(whole)
    assert not rows.read(tmp_path / "other" / csv.name).arrays


def stopped(*_, **__):
    raise KeyboardInterrupt


def test_a_kill_while_parts_are_deleted_leaves_none_without_its_arrays(tmp_path, monkeypatch):
    def both(part):
        return [{"a": part["base"]}], {"b": np.ones(3)}

    measure(tmp_path, function=both)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            rows.forget(tmp_path / f"{STEM}.parts")
    assert len(list((tmp_path / f"{STEM}.parts").glob("*.npz"))) == 4
    assert len(measure(tmp_path, function=both).parts) == 4


def test_kept_parts_that_were_changed_or_swapped_are_refused(tmp_path):
    measure(tmp_path)
    first, second, *_ = sorted((tmp_path / f"{STEM}.parts").glob("*.json"))
    whole = first.read_text(), second.read_text()
    first.write_text(whole[0].replace('"rows"', '"sorw"'))
    with pytest.raises(MgenbError, match=f"{first.name} was changed"):
        measure(tmp_path)
    first.write_text(whole[1])
    with pytest.raises(MgenbError, match=f"{first.name} is the part {second.stem}"):
        measure(tmp_path)


def test_reading_names_the_wrong_schema_and_a_missing_file(tmp_path):
    measure(tmp_path)
    csv = tmp_path / f"{STEM}.csv"
    with pytest.raises(MgenbError, match="has schema 2; right is 1"):
        rows.read(edited(tmp_path, '"schema": 1', '"schema": 2', f"{STEM}.parts.json"))
    edited(tmp_path, '"schema": 2', '"schema": 1', f"{STEM}.parts.json")
    csv.unlink()
    with pytest.raises(MgenbError, match="csv is not what was written there"):
        rows.read(csv)
    csv.with_suffix(".parts.json").unlink()
    with pytest.raises(MgenbError, match="cannot be read"):
        rows.read(csv)


def test_rows_of_one_network_with_other_weights_are_not_paired(tmp_path):
    same = partial(dict, nets="lenet, seed 0", data="d")
    with pytest.raises(MgenbError, match="lenet, seed 0 with other weights"):
        measure(tmp_path, facts=lambda part: same(weights=str(part["base"])))


def test_planned_parts_are_chosen_and_missing_ones_counted(tmp_path):
    found = measure(tmp_path)
    plan = [*reversed(PARTS[1:3]), {**PARTS[0], "base": 7}]
    chosen = rows.select(found, plan)
    assert chosen.unfinished == "2 of 3 parts"
    assert chosen.frame["base"].tolist() == [2, 2, 2, 1, 1, 1]
    assert chosen.frame["value"].tolist() == [v for i in (2, 1) for v in np.random.default_rng(i).random(3)]
    assert list(chosen.parts["weights"]) == ["w2", "w1"]
    for part in ({**PARTS[0], "share": 0.1}, {"reading": 1}):
        with pytest.raises(MgenbError, match="none of the 1 planned parts"):
            rows.select(found, [part])


def test_rows_are_read_without_torch(tmp_path):
    measure(tmp_path)
    code = "import sys, pathlib; from mgenb.lab import rows; rows.read(pathlib.Path(sys.argv[1])); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / f"{STEM}.csv"], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_rows_of_one_measurement_of_some_methods():
    frame = pd.DataFrame({"what": ["a", "a", "b"], "method": ["x", "y", "x"], "value": [1, 2, 3]})
    measured = rows.Rows(EXPERIMENT, frame, pd.DataFrame(), {}, 0)
    assert list(measured.of("a")["value"]) == [1, 2]
    assert list(measured.of("a", "y")["value"]) == [2]
    assert measured.of("c").empty
