"""The context of a notebook: parameters, the sealed test split, verdicts and the record."""

import itertools
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import mgenb
from mgenb import claims, lab, mge, stats
from mgenb.data import Split
from mgenb.errors import MgenbError
from mgenb.lab import catalog, evidence, experiment
from mgenb.lab import record as recording
from mgenb.lab.run import record_of
from mgenb.measure import population
from mgenb.mge import frequency

STEM = "01_frequency_sensitivity"
LOW, MID = "mge.fig6.high_worse_than_low", "mge.fig6.high_worse_than_mid"
CORE = ("index", "size")  # their core readings
CELL = "mge.table2.as_good.mnist.lenet"
TINY = {"bases": 3, "networks": ["tiny"]}
FINE = {"dataset": "mnist", "arch": "lenet", "recipe": "mge-adam", "epochs": 12, "images": 500, "floor": 0.05}


@pytest.fixture(autouse=True)
def out(monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("TINY", str(tmp_path / "tiny.toml"))
    return tmp_path / "out"


def named(**networks):
    """Return the text of a file of networks."""
    lines = [
        f"[networks.{json.dumps(name)}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in network.items())
        for name, network in networks.items()
    ]
    return "\n".join(lines)


def start(profile="quick", seed=0, device="cpu", floor=0.05, **own):
    """Start a run; `networks=["tiny"]` is a LeNet of few images with that floor."""
    if own.get("networks") == ["tiny"]:
        own["networks_file"] = os.environ["TINY"]
        Path(own["networks_file"]).write_text(named(tiny={**FINE, "floor": floor}))
    return lab.start(STEM, profile=profile, seed=seed, device=device, **own)


def load(run, network=None):
    """Return the images of a network of the run, else of its first one, with looks of their own."""
    return experiment.dataset({**run.part(network), **run._of_run})


def rest(run, network=None):
    """Train base networks, let the run rest on them as it does on a notebook's, and return them."""

    def validated(part):
        (net,) = lab.trained(part)
        return [{"what": "validation", "method": "base", "value": population.accuracy(net, lab.load(part).val)}]

    parts = [run.part(network, base=base) for base in range(run.settings.bases)]
    run.rest_on(run.measure(parts, validated, version=1).frame["value"], (), network)
    return [net for part in parts for net in lab.trained({**part, **run._of_run})]


def both(run, claim, estimate):
    """Store an estimate under both core readings of a claim about bands."""
    for reading in CORE:
        run.evidence(claim, estimate, reading)


def toy(**own):
    """Run a small experiment to its verdicts and its record."""
    run = start(**{**TINY, **own})
    dataset, nets = load(run), rest(run)
    models: dict[Any, Any] = {}
    for index, net in enumerate(nets):
        models["base", index, 0] = net, None
        for band in ("low", "high"):
            change = {
                "net.fc1.weight": frequency.change_band(
                    net.state_dict()["net.fc1.weight"], band, 3000, transform="flat", seed=index
                )
            }
            models[band, index, 0] = net, {**net.state_dict(), **change}
    look = lab.final_test(dataset, models)
    right = {key: 100 * hits.double().mean().item() for key, hits in look.items()}
    lost = {band: [right["base", i, 0] - right[band, i, 0] for i in range(len(nets))] for band in ("low", "high")}
    run.table("lost", pd.DataFrame(lost))
    run.mechanism("layers", len(frequency.weight_names(nets[0].state_dict())))
    both(run, LOW, stats.paired(lost["high"], lost["low"]))
    run.verdicts()
    figure = Figure()
    figure.subplots().plot([0, 1])
    run.figure("toy", figure)
    run.finish()
    return run, dataset, look


@pytest.fixture
def record(out, capsys):
    toy()
    return json.loads((out / f"{STEM}.json").read_text())


def test_what_is_not_given_comes_from_the_profile(capsys):
    defaults = catalog.find(STEM).defaults("cpu")
    run = start("cpu", seed=3, bases=None, share=None, networks=None, repeats=2)
    assert vars(run.settings) == {**defaults, "repeats": 2}
    assert (run.settings.bases, run.settings.networks) == (defaults["bases"], defaults["networks"])
    out = capsys.readouterr()
    assert f"{STEM}: profile cpu, seed 3" in out.out
    assert "repeats = 2" in out.out
    assert "device cpu" in out.err  # nbval compares stdout, and machines differ


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"share": "1e-3"}, 1e-3),
        ({"share": 0}, 0.0),
        ({"val": "all"}, "all"),
        ({"val": "50"}, 50),
        ({"share": 1}, 1.0),
        ({"bases": "4"}, 4),
        ({"bases": 4.0}, 4),
        ({"networks": "lenet/mnist"}, ["lenet/mnist"]),
    ],
)
def test_values_take_the_type_that_is_due(given, taken):
    (name,) = given
    value = getattr(start(**given).settings, name)
    assert value == taken
    assert type(value) is type(taken)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shares": 0.5}, "unknown parameter of 01_frequency_sensitivity: 'shares'; did you mean 'share'"),
        ({"arch": "vgg11"}, "unknown parameter of 01_frequency_sensitivity: 'arch'"),
        ({"share": "much"}, "share is 'much'; right is a number from 0 to 1"),
        ({"share": 1.5}, "share is 1.5; right is a number from 0 to 1"),
        ({"share": "nan"}, "share is 'nan'"),
        ({"bases": 2.5}, "bases is 2.5; right is a whole number of at least 1"),
        ({"bases": True}, "bases is True"),
        ({"repeats": 0}, "repeats is 0; right is a whole number of at least 1"),
        ({"bases": 0}, "bases is 0; right is a whole number of at least 1"),
        ({"val": 0}, 'val is 0; right is a whole number of at least 1, or "all"'),
        ({"val": "some"}, "val is 'some'"),
        ({"networks": ["lenet/mnst"]}, "unknown network 'lenet/mnst'; did you mean 'lenet/mnist'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "zero"}, "seed is 'zero'; right is a whole number of at least 0"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"profile": "quik"}, "unknown profile 'quik'; did you mean 'quick'"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_starts(wrong, words):
    with pytest.raises(MgenbError, match=words):
        start(**wrong)


def test_an_unknown_notebook_names_the_nearest():
    with pytest.raises(MgenbError, match=f"did you mean '{STEM}'"):
        lab.start("01_frequency_sensitivty", profile="quick", seed=0, device="cpu")
    for name in ("1", "01", STEM, f"{STEM}.ipynb"):
        assert catalog.find(name).stem == STEM


def holds_images(value):
    if isinstance(value, dict):
        return any(map(holds_images, value.values()))
    return isinstance(value, Split) or (isinstance(value, torch.Tensor) and value.ndim != 1)


def test_the_one_look_at_the_test_split_is_counted_and_shows_no_image(capsys, looks):
    *_, look = toy()
    assert not holds_images(look)
    assert {(right.dtype, tuple(right.shape)) for right in look.values()} == {(torch.bool, (100,))}
    assert looks() == ["experiment: 9 models"]


def test_every_look_counts(capsys, looks):
    run = start(**TINY)
    dataset, net = load(run), rest(run)[0]
    for _ in range(2):
        lab.final_test(dataset, {"base": (net, None)})
    assert len(looks()) == 2
    with pytest.raises(MgenbError, match="no models"):
        lab.final_test(dataset, {})
    assert len(looks()) == 2


# a token says which parameters were set by hand: this is not what the profile measures
BY_HAND = "[quick, sample, networks=tiny, bases=3]"


def test_verdicts_are_printed_as_one_token_a_line(capsys):
    run = start(**TINY)
    rest(run)
    both(run, LOW, stats.mean([20.0, 21.0, 22.0, 20.5]))
    both(run, MID, stats.mean([-20.0, -21.0, -22.0, -20.5]))
    capsys.readouterr()
    run.verdicts()
    lines = capsys.readouterr().out.splitlines()
    assert f"mge.fig6.high_worse_than_low: reproduced {BY_HAND}" in lines
    assert f"mge.fig6.high_worse_than_mid: contradicted {BY_HAND}" in lines
    assert all(re.fullmatch(r"mge\.\S+: [a-z ]+ \[[^]]+\]", line) for line in lines)
    assert f"mge.fig6.survives_shuffling: not tested {BY_HAND}" in lines
    measured = run.claims_table().loc["mge.fig6.high_worse_than_low"]
    assert measured["measured"].startswith("20.88 [")
    assert measured["n"] == "4 seeds"


def test_below_the_floor_no_claim_is_tested(capsys):
    run = start(**TINY, floor=0.999)
    rest(run)
    assert "every one at least 99.9 % on validation: False" in capsys.readouterr().out
    for claim in run.family:
        for reading in claim.readings:
            run.evidence(claim.id, stats.mean([20.0, 21.0, 22.0]), reading.name)
    capsys.readouterr()
    run.verdicts()
    assert set(capsys.readouterr().out.splitlines()) == {f"{claim.id}: not tested {BY_HAND}" for claim in run.family}


TOO_HIGH = {**FINE, "dataset": "fashion_mnist", "epochs": 1, "images": 200, "floor": 0.99}


@pytest.fixture
def several(tmp_path):
    """A run on tiny networks of the user's own."""

    def of(networks, stem="06_accuracy_table", **own):
        (tmp_path / "mine.toml").write_text(named(**networks))
        given = {"networks": list(networks), "networks_file": str(tmp_path / "mine.toml"), "val": 100, "test": 100}
        return lab.start(stem, profile="quick", seed=0, device="cpu", **{"bases": 3, **given, **own})

    return of


def test_what_is_counted_of_an_architecture_needs_no_sound_network(several, capsys):
    run = several({"too high": TOO_HIGH}, stem="12_mega_pairs", bases=1)
    (network,) = run.networks
    rest(run, network)
    run.evidence("mega.table1.params.resnet56", stats.exact(0.862))
    run.evidence("mega.text.better_than_parents", stats.mean([3.0, 3.1, 3.2]), "network")
    run.verdicts()
    tokens = capsys.readouterr().out
    assert "mega.table1.params.resnet56: reproduced [quick, no data]" in tokens
    assert "mega.text.better_than_parents: not tested [quick, sample" in tokens


def test_verdicts_need_base_networks_and_evidence_a_known_claim():
    run = start()
    with pytest.raises(MgenbError, match=r"call run\.rest_on before"):
        run.verdicts()
    with pytest.raises(MgenbError, match=r"did you mean 'mge.fig6.high_worse_than_low'"):
        run.evidence("mge.fig6.high_worse_than_lo", stats.mean([1.0, 2.0, 3.0]))


def test_the_record_is_json_with_all_that_a_reader_needs(record, out):
    result = record["result"]
    assert (record["stem"], record["profile"], result["seed"]) == (STEM, "quick", 0)
    assert result["settings"]["bases"] == 3
    assert result["data"][0]["counts"] == {"train": 500, "val": 100, "test": 100}
    assert len(result["bases"][0]["val_accuracy"]) == 3
    assert result["mechanism"] == {"layers": 5}
    assert len(result["tables"]["lost"]) == 3
    assert [claim["id"] for claim in result["claims"] if claim["n"]] == ["mge.fig6.high_worse_than_low"]
    assert result["margins"].keys() == {claim.id for claim in claims.load() if claim.notebook == STEM}
    assert record["context"]["torch"] == torch.__version__
    assert (out / record["figures"][0]).stat().st_size > 1000
    assert recording.read(out / f"{STEM}.json").to_json() == record


def test_the_result_holds_no_time_path_or_version(record, out):
    text = json.dumps(record["result"])
    for foreign in (
        str(out),
        "/",
        torch.__version__,
        platform.python_version(),
        f'"{mgenb.__version__}"',
        'second"',
    ):
        assert foreign not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)


def test_two_runs_have_equal_results_and_another_seed_another(record, out):
    toy()
    assert json.loads((out / f"{STEM}.json").read_text())["result"] == record["result"]
    toy(seed=1)
    other = json.loads((out / f"{STEM}.json").read_text())["result"]
    assert other["tables"] != record["result"]["tables"]
    assert other["bases"] != record["result"]["bases"]


def test_a_record_can_be_written_with_too_few_networks_for_an_interval(out, capsys):
    run, _, _ = toy(bases=2)
    assert run.verdict(LOW).verdict == "inconclusive"
    (row,) = [row for row in recording.read(out / f"{STEM}.json").claims if row["id"] == LOW]
    assert [reading["low"] for reading in row["readings"]] == [None, None]


def test_another_measure_sees_the_test_images(capsys):
    run = start(**TINY)
    dataset, net = load(run), rest(run)[0]

    def confident(net, test, state):
        return test.role, len(test), state["net.fc2.bias"].sum().item()

    state = {**net.state_dict(), "net.fc2.bias": torch.ones(10)}
    assert lab.final_test(dataset, {"ones": (net, lambda: state)}, confident) == {"ones": ("test", 100, 10.0)}


def test_generating_candidates_needs_no_look_at_the_test_split(capsys, looks):
    run = start(**TINY)
    list(mge.candidates(rest(run)[0].state_dict(), mge.Settings(), 0, 2))
    assert looks() == []


@pytest.mark.parametrize(("left", "verdict"), [(0.11, "not tested"), (0.6, "contradicted")])
def test_two_methods_at_chance_are_not_compared(capsys, left, verdict):
    run = start(**TINY)
    rest(run)
    for reading in CORE:
        run.evidence(LOW, stats.mean([0.1, 0.2, 0.3]), reading, left=left)
    run.verdicts()
    assert f"{LOW}: {verdict} {BY_HAND}" in capsys.readouterr().out.splitlines()


@pytest.fixture
def judging():
    """What starts a run of a notebook on LeNets that nobody trained."""

    def make(stem=STEM):
        run = lab.start(stem, profile="quick", seed=0, device="cpu")
        scale = claims.Scale("quick", "sample", "mnist", "lenet")
        run.made["mnist", "lenet"] = evidence.Bases(scale, 0.1, 0.05, (0.9,))
        return run

    return make


def test_a_reading_at_chance_is_left_out(judging):
    run = judging()
    run.evidence(LOW, stats.mean([0.1, 0.2, 0.3]), "index", left=0.11)
    assert run.verdict(LOW).reason == "both at chance: at most 11.0 % are right"
    run.evidence(LOW, stats.mean([20.0, 21.0, 22.0]), "size")
    verdict = run.verdict(LOW)
    assert [(reading.name, reading.verdict) for reading in verdict.readings] == [("size", "reproduced")]
    assert (verdict.verdict, verdict.reason.partition(";")[0]) == (
        "inconclusive",
        "1 of 2 core readings reproduced, 0 contradicted, 1 without evidence",
    )


def test_evidence_names_a_registered_reading(judging):
    run = judging()
    with pytest.raises(MgenbError, match="has no reading 'indx'; did you mean 'index'"):
        run.evidence(LOW, stats.mean([1.0, 2.0, 3.0]), "indx")
    with pytest.raises(MgenbError, match="has no reading ''; registered: index, size, radius"):
        run.evidence(LOW, stats.mean([1.0, 2.0, 3.0]))
    run.evidence("mge.fig6.survives_shuffling", stats.mean([0.1, 0.2, 0.3]))  # which has but one
    assert run.verdict("mge.fig6.survives_shuffling").verdict == "passes"


def test_what_is_said_again_replaces_what_was_said(judging):
    run = judging()
    both(run, LOW, stats.mean([20.0, 21.0, 22.0]))
    both(run, LOW, stats.mean([-20.0, -21.0, -22.0]))
    assert run.verdict(LOW).verdict == "contradicted"


@pytest.mark.parametrize(("points", "word"), [(0.1, "reproduced"), (-9.0, "contradicted")])
def test_near_copies_of_the_base_prove_nothing_either_way(judging, points, word):
    run = judging("06_accuracy_table")
    with pytest.raises(MgenbError, match="say how much they differ from their base: novelty="):
        run.evidence(CELL, stats.mean([points, points + 0.1, points + 0.2]), "tenth, truncated, whole")
    for copies in (0, 1, 3, 4, 6):
        for place, reading in enumerate(claims.get(CELL).readings[:6]):
            novelty = 0.09 if place < copies else 0.11
            run.evidence(CELL, stats.mean([points, points + 0.1, points + 0.2]), reading.name, novelty=novelty)
        verdict = run.verdict(CELL)
        assert verdict.verdict == (word if copies < 4 else "inconclusive")  # at least half of six must speak
        assert [reading.verdict for reading in verdict.readings] == ["vacuous"] * copies + [word] * (6 - copies)
        assert ("copies of their base under" in verdict.reason) == bool(copies)


@pytest.mark.parametrize(
    ("given", "named"), [({"share": 0.2}, "share=0.2]"), ({"repeats": 3}, "repeats=3]"), ({"seed": 1}, "seed=1]")]
)
def test_whatever_moves_a_verdict_is_named_in_its_token(capsys, given, named):
    run = start(**{**TINY, **given})
    rest(run)
    both(run, LOW, stats.mean([20.0, 21.0, 22.0]))
    run.verdicts()
    assert all(line.endswith("]") and named.strip("]") in line for line in capsys.readouterr().out.splitlines()[-3:])


@pytest.mark.parametrize(
    ("floor", "why"), [(0.0, "% on test, which is chance"), (0.05, "% on test, below the floor of")]
)
def test_base_networks_that_fail_on_test_images_prove_nothing(capsys, floor, why):
    run = start(**TINY, floor=floor)
    rest(run)
    both(run, LOW, stats.mean([20.0, 21.0, 22.0]))
    assert run.verdict(LOW).verdict == "reproduced"
    run.rest_on([0.9, 0.9, 0.9], [0.9, 0.02, 0.9])
    both(run, LOW, stats.mean([20.0, 21.0, 22.0]))
    after = run.verdict(LOW)
    assert (after.verdict, after.readings) == ("not tested", ())
    assert why in after.reason


STORED = {  # what a notebook may say about two claims, in any order
    "one reading": lambda run: run.evidence(LOW, stats.mean([20.0, 21.0, 22.0]), "size"),
    "another": lambda run: run.evidence(LOW, stats.mean([0.1, 0.2, 0.3]), "index", left=0.11),
    "evidence": lambda run: both(run, MID, stats.mean([20.0, 21.0, 22.0])),
    "not tested": lambda run: run.not_tested(MID, "for a reason"),
}


def test_the_order_in_which_evidence_is_stored_does_not_matter(judging):
    verdicts = set()
    for order in itertools.permutations(STORED):
        run = judging()
        for name in order:
            STORED[name](run)
        verdicts.add(json.dumps([verdict.to_json() for verdict in run.judged()]))
    assert len(verdicts) == 1
    assert (run.verdict(LOW).verdict, run.verdict(MID).reason) == ("inconclusive", "for a reason")


def test_evidence_for_a_claim_of_another_notebook_is_refused():
    with pytest.raises(MgenbError, match="is judged in 02_zero_filling, not in this notebook"):
        start().evidence("mge.fig5.decays", stats.mean([1.0, 2.0, 3.0]))


def test_claims_are_judged_at_the_scale_and_floor_of_their_network(several, capsys):
    run = several({"fine": FINE, "too high": TOO_HIGH})
    for network in run.networks:
        dataset, fifth = load(run, network), network.images // 5
        assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (network.images, fifth, fifth)
        rest(run, network)
        for reading in claims.get(CELL).readings[:6]:
            about = {"reading": reading.name, "novelty": 1.0, "networks": [network]}
            run.evidence(f"mge.table2.as_good.{network.dataset}.lenet", stats.mean([-9.0, -9.1, -9.2]), **about)
    assert [run.fit(network) for network in run.networks] == [True, False]
    capsys.readouterr()
    run.verdicts()
    tokens = capsys.readouterr().out
    assert "mge.table2.as_good.mnist.lenet: contradicted [quick, sample, networks=fine + too high, val=100" in tokens
    assert "mge.table2.* (32 value claims): not tested [quick, sample" in tokens
    below = run.verdict("mge.table2.as_good.fashion_mnist.lenet")
    assert below.verdict == claims.NOT_TESTED
    assert below.scale.dataset == "fashion_mnist"
    assert "below the floor of 99 %" in below.reason
    assert len(run.judged()) == sum(claim.kind != "setting" for claim in run.family)
    assert [network["floor"] for network in record_of(run).networks] == [0.05, 0.99]


def test_a_table_of_untested_cells_shares_one_line_and_one_row(several, capsys):
    run = several({"fine": FINE})
    capsys.readouterr()
    run.paper_says()
    lines = capsys.readouterr().out.splitlines()
    assert sum("mge.table2." in line for line in lines) == 2 + 5  # two grids, five controls
    rest(run, run.networks[0])
    run.verdicts()
    assert "mge.table2.* (32 claims)" in run.claims_table().index


# ---------------------------------------------------------------- the papers' tables


def test_a_papers_table_has_ours_in_the_right_cell(judging):
    run = judging("06_accuracy_table")
    run.evidence("mge.table2.mnist.alexnet.trained", stats.exact(96.789))
    table = run.paper("mge.table2", "arch")
    assert table.shape == (8, 8)
    assert list(table.columns)[:4] == [("LeNet", "paper"), ("LeNet", "ours"), ("AlexNet", "paper"), ("AlexNet", "ours")]
    cell = table.loc[("MNIST", "trained"), "AlexNet"]
    assert (cell["paper"], cell["ours"]) == ("97.50", "96.79")  # as many digits as the paper prints
    ours = table.xs("ours", axis=1, level="of").to_numpy().ravel()
    assert sorted(ours) == ["-"] * 31 + ["96.79"]
    assert "not tested" in run.verdict("mge.table2.mnist.alexnet.trained").token  # at reduced scale


def test_a_papers_dashes_are_dashes(judging):
    table = judging("07_time_ratio").paper("mge.table3", "models", "action").xs("paper", axis=1, level="of")
    dashes = {claim.id for claim in claims.cells("mge.table3") if claim.dash}
    assert len(dashes) == 6 == (table == "-").to_numpy().sum()
    assert table.loc["VGG11", ("1000", "train")] == "-"
    assert table.loc["VGG11", ("100", "train")] == "213824.79"  # all of its digits
    with pytest.raises(MgenbError, match=r"no table 'mge\.table9'"):
        judging().paper("mge.table9")


def test_the_readings_of_a_claim_are_shown_with_how_they_stand(judging):
    table = judging().readings_of(LOW)
    kinds = dict(zip(*(table.index.get_level_values(level) for level in (0, 1)), strict=True))
    assert kinds == {reading.name: "core" if reading.core else "open" for reading in claims.get(LOW).readings}
    assert table.loc[("size", "core", "what low, mid and high frequency are"), "stands as"] == "text"
    assert len(table) == sum(len(reading.choices) for reading in claims.get(LOW).readings)
