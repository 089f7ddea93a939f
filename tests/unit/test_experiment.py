"""What experiments stand on: data and networks by name, one look at the test images, and analysis without either."""

import json
import os
from pathlib import Path

import pytest

from mgenb import data, digest, lab, stats, training
from mgenb.errors import MgenbError
from mgenb.lab import catalog, experiment, record
from mgenb.measure import population

STEM, CONTROL = "03_importance_mask", "mge.fig7.mask_beats_magnitude"
TINY = """[networks]
tiny = {{ dataset = "mnist", arch = "lenet", recipe = "mge-adam", epochs = {epochs}, images = 200, floor = 0.05 }}
"""


@pytest.fixture(autouse=True)
def out(monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_OUT", str(tmp_path / "out"))
    monkeypatch.delenv(catalog.ANALYSE, raising=False)
    return tmp_path / "out"


def start(epochs=1, **own):
    file = Path(os.environ["MGENB_OUT"]).with_name(f"networks-{epochs}.toml")
    file.write_text(TINY.format(epochs=epochs))
    tiny = {"bases": 2, "networks": ["tiny"], "networks_file": str(file)}
    return lab.start(STEM, profile="quick", seed=0, device="cpu", **{**tiny, **own})


def plan(run):
    return [run.part(base=base) for base in range(run.settings.bases)]


def accuracies(part):
    dataset, (net,) = lab.load(part), lab.trained(part)
    yield {"split": "val", "accuracy": population.accuracy(net, dataset.val)}
    look = lab.final_test(dataset, {"base": (net, None)})
    yield {"split": "test", "accuracy": look["base"].double().mean().item()}


def peeking(part):
    for _ in range(2):
        lab.final_test(lab.load(part), {"base": (lab.trained(part)[0], None)})
    return [{"a": 1}]


def whole(run, function=accuracies):
    """Run to the record; return the rows."""
    found = run.measure(plan(run), function, version=1)
    run.rest_on(*(found.frame.query(f"split == '{split}'")["accuracy"] for split in ("val", "test")))
    run.evidence(CONTROL, stats.mean([2.0, 2.1, 2.2]))
    run.verdicts()
    run.finish()
    return found


def test_a_part_names_the_data_and_the_networks_of_the_run():
    run = start()
    part = {**plan(run)[1], "seed": 0, "profile": "quick", "device": "cpu"}
    dataset = data.load("mnist", source="samples", train_limit=200, val_limit=40, test_limit=40)
    net = training.trained("lenet", dataset, epochs=1, seed=1)
    assert lab.load(part).digest == dataset.digest
    assert [one.sum().item() for one in lab.trained(part)[0].parameters()] == [
        one.sum().item() for one in net.parameters()
    ]
    del part["base"]
    assert len(lab.trained({**part, "pair": 1})) == 2


def test_a_part_may_keep_classes_from_training():
    part = {**plan(start())[1], "seed": 0, "profile": "quick", "device": "cpu", "val_classes": 2, "novel_classes": 3}
    dealt = lab.dealt(part)
    assert lab.load(part) is dealt.data
    assert [len(classes) for classes in (dealt.base, dealt.val, dealt.novel)] == [5, 2, 3]
    assert len(dealt.data.test.counts()) == 3
    (net,) = lab.trained(part)
    assert list(net.parameters())[-1].shape == (5,)


def test_a_part_may_name_where_seeds_begin_and_how_many_images_are_for_validation(monkeypatch):
    part = {**plan(start())[1], "seed": 2, "profile": "quick", "device": "cpu", "val": "all", "train": "all"}
    usual, tenth = lab.load(part), lab.load({**part, "folds": 10})
    assert [len(split) for split in (usual.train, usual.val, tenth.train, tenth.val)] == [2500, 500, 2700, 300]
    monkeypatch.setattr(experiment, "_trained", lambda arch, dataset, seed, *how: seed)
    del part["base"]
    assert lab.trained({**part, "base": 3}) == [2003]
    assert lab.trained({**part, "pair": 1, "first_seed": 56}) == [2058, 2059]
    assert lab.trained({**part, "tree": 1, "models": 3, "first_seed": 44}) == [2047, 2048, 2049]


def test_rows_say_what_they_rest_on_and_the_record_has_it(out, capsys):
    found = whole(start())
    about = found.parts.iloc[0]
    assert (about["profile"], about["device"], about["test_looks"]) == ("quick", "cpu", 1)
    assert about["weights"] != found.parts.iloc[1]["weights"]
    assert about["data"] == about["described"]["digest"]
    assert lab.caption(found) == "profile quick, lenet on mnist [sample]"
    made = record.read(out / f"{STEM}.json")
    assert (made.version, made.test_uses) == (1, [{"dataset": "mnist", "looks": 2}])
    assert made.data == [about["described"]]
    assert made.bases[0]["val_accuracy"] == found.frame.query("split == 'val'")["accuracy"].tolist()
    assert (
        "mnist [sample], samples shipped with mgenb: 200 train, 40 validation, 40 test (sealed)"
        in capsys.readouterr().out
    )


def trains_itself(part):
    return [{"trained_by": "itself"}], {}, {"weights": f"w{part['fresh']}"}


def test_a_part_may_train_its_network_itself_and_says_which_weights_it_got(monkeypatch):
    run = start()
    monkeypatch.setattr(training, "trained", None)
    found = run.measure([run.part(fresh=number) for number in range(2)], trains_itself, version=1)
    assert found.parts["weights"].tolist() == ["w0", "w1"]
    assert found.parts["nets"].str.endswith(("fresh network 0", "fresh network 1")).all()
    assert found.parts["test_looks"].tolist() == [0, 0]


def test_a_second_look_at_the_test_images_is_refused():
    run = start()
    with pytest.raises(MgenbError, match="looked at the test images 2 times; right is one look"):
        run.measure(plan(run), peeking, version=1)


def test_a_finished_quick_run_leaves_no_parts(out):
    run = start()
    run.measure(plan(run), accuracies, version=1)
    assert len(list((out / f"{STEM}.parts").iterdir())) == 2
    whole(start())
    assert not (out / f"{STEM}.parts").exists()
    assert (out / f"{STEM}.csv").exists()


def test_analysis_gives_the_same_record_and_loads_nothing(out, monkeypatch, tmp_path):
    whole(start())
    measured = record.read(out / f"{STEM}.json")
    monkeypatch.setenv(catalog.ANALYSE, str(out))
    monkeypatch.setenv("MGENB_OUT", str(tmp_path / "again"))
    monkeypatch.setattr(experiment, "_load", None)
    monkeypatch.setattr(training, "trained", None)
    whole(start(), function=None)
    again = record.read(tmp_path / "again" / f"{STEM}.json")
    assert again.to_json()["result"] == measured.to_json()["result"]
    assert not (tmp_path / "again" / f"{STEM}.csv").exists()


def test_until_all_planned_parts_are_in_nothing_is_judged(out, monkeypatch, capsys):
    whole(start(epochs=15))
    monkeypatch.setenv(catalog.ANALYSE, str(out))
    whole(start(epochs=15, bases=5))
    assert "unfinished, 2 of 5 parts" in capsys.readouterr().out
    made = record.read(out / f"{STEM}.json")
    row = next(row for row in made.claims if row["id"] == CONTROL)
    assert (row["verdict"], row["reason"], row["estimate"]) == ("unfinished", "2 of 5 parts", None)
    assert row["token"].startswith(f"{CONTROL}: unfinished, 2 of 5 parts [quick, sample, ")
    assert row["readings"] == []


@pytest.mark.parametrize(
    ("version", "own", "told"), [(2, {}, "version=1"), (1, {"epochs": 2}, "none of the 2 planned")]
)
def test_rows_of_another_experiment_are_not_analysed(out, monkeypatch, version, own, told):
    whole(start())
    monkeypatch.setenv(catalog.ANALYSE, str(out))
    run = start(**own)
    with pytest.raises(MgenbError, match=told):
        run.measure(plan(run), accuracies, version=version)


def test_the_best_rows_are_the_committed_ones_of_a_larger_profile_of_the_same_version(out, monkeypatch, tmp_path):
    own = whole(start())
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text('name = "mgenb"')
    monkeypatch.chdir(tmp_path)
    run = start()
    run.version = 1
    assert run.best_rows(own) is own
    for profile in ("quick", "cpu"):
        folder = tmp_path / "figures" / profile
        folder.mkdir(parents=True)
        for name in (f"{STEM}.csv", f"{STEM}.parts.json"):
            (folder / name).write_bytes((out / name).read_bytes())
    cpu = run.best_rows(own)
    assert cpu is not own
    assert cpu.frame.equals(own.frame)
    run.version = 2
    assert run.best_rows(own) is own
    run.version, beside = 1, tmp_path / "figures" / "cpu" / f"{STEM}.parts.json"
    head = digest.unsealed(json.loads(beside.read_text()), "")
    beside.write_text(json.dumps(digest.sealed({**head, "planned": head["planned"] + 1})))
    assert run.best_rows(own) is own  # it is not finished


def test_what_is_told_comes_from_values():
    cost = stats.mean([1.0, 2.0, 3.0])
    told = start().tell("It costs {cost} points, {most:.1f} at most, of {n}.", cost=cost, most=3.14, n=3)
    assert told.data == "It costs 2.0 [-0.5, 4.5] points, 3.1 at most, of 3."
