"""Pools: the same bytes every time, whatever interrupts; models that are the recorded ones; damage that is found."""

import dataclasses
import inspect
import json
import pickle
import resource
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from mgenb import data, mge, nets, store
from mgenb.cli import main as cli
from mgenb.cli import pool as command
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.mge import frequency, pool
from mgenb.mge.pool import Plan, Pool

FILES = (pool.HEADER, pool.MANIFEST, pool.BASE, "base.json")
PLAN = Plan(
    dataset="mnist",
    arch="lenet",
    count=8,
    settings=mge.Settings(t=0.99),
    eps=0.005,
    epochs=8,
    train_limit=1000,
    val_limit=400,
    samples=True,
)


def plan(**other):
    return dataclasses.replace(PLAN, **other)


def content(path):
    return {name: (path / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def made(session_cache, tmp_path_factory):
    """PLAN's pool, made once: to be read only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGENB_CACHE", str(session_cache))
        found = pool.create(PLAN, tmp_path_factory.mktemp("pools") / "made")
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def own(made, tmp_path):
    """A copy of PLAN's pool, to be damaged."""
    return shutil.copytree(made.path, tmp_path / "own")


@pytest.fixture(scope="module")
def val(made):
    return data.load("mnist", source="samples", train_limit=1000, val_limit=400).val


def test_one_plan_gives_the_same_bytes_every_time(made, tmp_path):
    pool.create(PLAN, tmp_path / "again")
    assert content(tmp_path / "again") == content(made.path)
    pool.create(PLAN, tmp_path / "again")
    assert content(tmp_path / "again") == content(made.path)
    other = pool.create(plan(seed=1, count=2), tmp_path / "other")
    assert set(other.rows["hash"]).isdisjoint(made.rows["hash"])
    assert other.header["base"]["sha256"] != made.header["base"]["sha256"]


def test_a_row_is_small_and_says_what_was_measured(made):
    lines = (made.path / pool.MANIFEST).read_bytes().splitlines()
    assert max(map(len, lines)) < 350
    assert len(lines) == len(made.rows)
    assert made.rows["index"].tolist() == list(range(len(lines)))
    assert made.rows["seed"].tolist() == [mge.candidate_seed(0, index) for index in range(len(lines))]
    assert (made.rows["accuracy"] == made.rows["right"] / 400).all()
    assert (made.rows["low"] < made.rows["accuracy"]).all()
    assert (made.rows["accuracy"] < made.rows["high"]).all()
    assert set(json.loads(lines[0])) == set(pool.COLUMNS)


def test_acceptance_follows_the_discriminator(made):
    base = made.header["base"]["right"] / 400
    assert made.rows["accepted"].tolist() == [mge.accepts(right / 400, base, 0.005) for right in made.rows["right"]]
    assert made.rows["accepted"].sum() == len(made) == 8
    assert made.rows["accepted"].iloc[-1]
    assert not made.rows["accepted"].all()
    for row in made.rows.itertuples():
        lost = base - row.right / 400
        why = "better than the base" if lost < 0 else "within eps of the base"
        assert row.why == (why if row.accepted else f"{lost:.4f} below the base")


def test_a_model_is_the_recorded_one(made, val):
    for key, net in made.items():
        row, state = made.row(key), made.state(key)
        assert all(tensor.equal(state[name]) for name, tensor in net.state_dict().items())
        assert pool.weights_hash(state) == row["hash"]
        assert not any(module.training for module in net.modules())
        found = population.predict(net, val)
        assert (found == val.labels).sum() == row["right"]
        again = mge.generate(made.base, PLAN.settings, row["seed"])
        assert all(again[name].equal(state[name]) for name in state)
    names = frequency.weight_names(made.base)
    flat = [torch.cat([s[name].double().flatten() for name in names]) for s in (made.base, made.state(0))]
    assert made.row(0)["distance"] == pytest.approx(((flat[1] - flat[0]).norm() / flat[0].norm()).item(), rel=1e-6)
    spread = made.rows["projection"] / made.rows["distance"]  # of a random direction: about N(0, 1), other each time
    assert spread.abs().max() < 4
    assert spread.diff().abs().min() > 10 * pool.NOISE


def test_an_early_stop_accepts_the_same_models_and_gives_bounds_only(tmp_path):
    full = pool.create(plan(count=5, eps=0.05), tmp_path / "full")
    early = pool.create(plan(count=5, eps=0.05, early_stop=True), tmp_path / "early")
    assert early.rows["accepted"].tolist() == full.rows["accepted"].tolist()
    assert early.rows["hash"].tolist() == full.rows["hash"].tolist()
    bounds = early.accepted[early.accepted["bounds"]]
    assert len(bounds) > 0
    assert set(bounds["why"]) == {"accepted before the pass ended"}
    assert bounds["accuracy"].isna().all()
    whole = full.accepted.loc[bounds.index, "accuracy"]
    assert ((bounds["low"] <= whole) & (whole <= bounds["high"])).all()
    assert "bounds only" in early.describe()
    assert early.verify().same == 5


def test_an_early_stop_refuses_what_the_whole_pass_would(tmp_path):
    bad = plan(count=2, eps=0.05, settings=mge.Settings(t=0.5), early_stop=True)
    with pytest.raises(MgenbError, match=r"0 of 2 models .* lose at least 0\.\d+ of the accuracy"):
        pool.create(bad, tmp_path / "bad", max_candidates=4)
    rows = Pool(tmp_path / "bad", partial=True).rows
    assert set(rows["why"]) == {"at least 0.05 below the base"}
    assert (rows["seen"] < 400).all()


@pytest.mark.parametrize("kept", [0.0, 0.07, 0.5, 0.83, 0.999])
def test_a_pool_cut_anywhere_ends_with_the_same_bytes(made, own, kept, capsys):
    whole = (own / pool.MANIFEST).read_bytes()
    cut = whole[: int(kept * len(whole))]
    (own / pool.MANIFEST).write_bytes(cut)
    pool.create(PLAN, own)
    assert content(own) == content(made.path)
    assert ("cut off in the middle" in capsys.readouterr().err) == bool(cut)


def test_a_pool_cut_between_rows_or_before_its_header_ends_with_the_same_bytes(made, own, capsys):
    lines = (own / pool.MANIFEST).read_bytes().splitlines(keepends=True)
    (own / pool.MANIFEST).write_bytes(b"".join(lines[:5]))
    pool.create(PLAN, own)
    assert "cut off" not in capsys.readouterr().err
    assert content(own) == content(made.path)
    (own / pool.MANIFEST).unlink()
    (own / pool.HEADER).unlink()
    pool.create(PLAN, own)
    assert content(own) == content(made.path)


def test_a_larger_count_extends_a_pool_to_the_bytes_of_one_made_so(made, tmp_path):
    pool.create(plan(count=3), tmp_path / "grown")
    assert len(pool.create(PLAN, tmp_path / "grown")) == 8
    assert content(tmp_path / "grown") == content(made.path)
    with pytest.raises(MgenbError, match=r"count is 5; .* is a pool of 8: right is at least that"):
        pool.create(plan(count=5), tmp_path / "grown")


def test_too_few_candidates_say_what_to_try_and_keep_the_rows(made, tmp_path):
    with pytest.raises(MgenbError, match=r"of 8 models were accepted among 8 candidates; the others lose 0\.\d+ .*--z"):
        pool.create(PLAN, tmp_path / "few", max_candidates=8)
    with pytest.raises(MgenbError, match="among 9 candidates"):
        pool.create(PLAN, tmp_path / "few", max_candidates=9)
    pool.create(PLAN, tmp_path / "few", max_candidates=100)
    assert content(tmp_path / "few") == content(made.path)


def test_a_full_disk_keeps_what_was_written(made, own):
    whole = (own / pool.MANIFEST).read_bytes()
    (own / pool.MANIFEST).write_bytes(b"")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MgenbError, match=r"could not write .*manifest.* are kept, and the same command goes on"):
            pool.create(PLAN, own)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert whole.startswith((own / pool.MANIFEST).read_bytes())
    assert len(Pool(own, partial=True).rows) == 3
    pool.create(PLAN, own)
    assert content(own) == content(made.path)


def test_a_generator_that_does_nothing_makes_models_at_distance_0(tmp_path):
    same = pool.create(plan(settings=mge.Settings(t=1.0, z=0.0), count=3), tmp_path / "same")
    assert same.rows["distance"].tolist() == [0.0] * 3
    assert same.rows["why"].tolist() == ["within eps of the base"] * 3
    assert set(same.rows["hash"]) == {pool.weights_hash(same.base)}
    assert same.verify().same == 3


def test_a_pool_is_a_mapping_that_a_data_loader_reads(made):
    assert list(made) == list(made.keys()) == list(range(8))
    assert made.row(np.int64(7)) == made.row(7)
    assert 7 in made
    assert 8 not in made
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = made[0]
    assert torch.get_rng_state().equal(before)
    batches = list(DataLoader(made, batch_size=3, collate_fn=list))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    for one, other in zip([net for batch in batches for net in batch], made.values(), strict=True):
        assert all(one.state_dict()[name].equal(tensor) for name, tensor in other.state_dict().items())
    assert pickle.loads(pickle.dumps(made)).state(2)["net.fc1.weight"].equal(made.state(2)["net.fc1.weight"])
    assert first is not made[0]


@pytest.mark.parametrize("key", [8, -1, 1.0, "1", True, None])
def test_a_model_that_is_not_there_is_told(made, key):
    with pytest.raises(pool.NoSuchModel) as error:
        made[key]
    assert isinstance(error.value, MgenbError)
    assert isinstance(error.value, KeyError)
    assert str(error.value) == f"no model {key!r} in {made.path}: it holds 8, numbered from 0"


def test_an_exported_model_predicts_the_same(made, val, tmp_path):
    file = tmp_path / "model.safetensors"
    made.export(5, file)
    state, facts = store.load_weights(file)
    net = nets.build(facts["arch"], facts["channels"], facts["size"], facts["classes"])
    net.load_state_dict(state)
    assert population.predict(net, val).equal(population.predict(made[5], val))
    assert facts["candidate"]["hash"] == made.row(5)["hash"] == pool.weights_hash(state)
    whole = file.read_bytes()
    (tmp_path / "told.json").write_text("mine")
    for taken in ("model.safetensors", "model.json", "told.safetensors"):
        with pytest.raises(MgenbError, match=rf"{taken} exists or does not end in \.safetensors"):
            made.export(6, tmp_path / taken)
    assert file.read_bytes() == whole
    with pytest.raises(pool.NoSuchModel, match="no model 99"):
        made.export(99, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"arch": "lennet"}, "unknown architecture 'lennet'; did you mean 'lenet'"),
        ({"recipe": "adam"}, "unknown recipe 'adam'"),
        ({"count": 0}, "count is 0; right is a whole number of at least 1"),
        ({"count": 2.5}, "count is 2.5"),
        ({"count": True}, "count is True"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1; right is a whole number of at least 0"),
        ({"val_limit": -5}, "val_limit is -5"),
        ({"eps": 0}, "eps is 0; right is a number above 0 and at most 1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"settings": mge.Settings(transform="flatt")}, "did you mean 'flat'"),
        ({"settings": mge.Settings(domain="weights")}, "set domain='coefficients'"),
    ],
)
def test_a_wrong_plan_is_refused_at_once(wrong, words):
    with pytest.raises(MgenbError, match=words):
        plan(**wrong)


def test_what_cannot_be_made_is_told_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    for refused, options, words in (
        (plan(dataset="mnst"), {}, "did you mean 'mnist'"),
        (plan(val_limit=9999), {}, "only 500 images are available"),
        (PLAN, {"max_candidates": 7}, "max_candidates is 7; right is at least the count, 8"),
        (PLAN, {"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        (PLAN, {"device": "gpu"}, "device 'gpu' cannot be used here"),
    ):
        with pytest.raises(MgenbError, match=words):
            pool.create(refused, out, **options)
    assert not out.exists()
    (tmp_path / "thesis.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(MgenbError, match="is there and is no pool; choose another --out"):
            pool.create(PLAN, taken)
    with pytest.raises(MgenbError, match=r"z = 1e\+60 makes weights that are not finite"):
        pool.create(plan(settings=mge.Settings(z=1e60)), out)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"settings": mge.Settings(t=0.8)},
            r"settings\.t is 0\.99 there and 0\.8 here; choose another --out",
        ),
        ({"arch": "vgg11"}, "arch is 'lenet' there and 'vgg11' here"),
        ({"eps": 0.1, "seed": 3}, r"plan\.seed is 0 there and 3 here.*data\.digest is"),
        ({"early_stop": True}, "early_stop is False there and True here"),
        ({"samples": False}, "samples is True there and False here"),
    ],
)
def test_another_plan_for_the_same_folder_names_what_differs(made, other, words):
    before = content(made.path)
    with pytest.raises(MgenbError, match=words):
        pool.create(plan(**other), made.path)
    assert content(made.path) == before


def change_header(path, **changed):
    header = json.loads((path / pool.HEADER).read_text())
    header.update(changed)
    store.write_json(path / pool.HEADER, header)


def test_a_pool_made_elsewhere_or_of_other_images_is_not_gone_on_with(made, own):
    change_header(own, made_with={**made.header["made_with"], "torch": "1.0"})
    with pytest.raises(MgenbError, match=r"made_with\.torch is '1\.0' there"):
        pool.create(PLAN, own)
    change_header(own, made_with=made.header["made_with"], data={**made.header["data"], "digest": "other"})
    with pytest.raises(MgenbError, match=r"data\.digest is 'other' there"):
        pool.create(PLAN, own)


def test_a_pool_that_is_not_there_or_not_complete_is_told(own, tmp_path):
    with pytest.raises(MgenbError, match=r"no pool at .*nothing: make one with mgenb pool create"):
        Pool(tmp_path / "nothing")
    lines = (own / pool.MANIFEST).read_bytes().splitlines(keepends=True)
    (own / pool.MANIFEST).write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:40])
    with pytest.raises(MgenbError, match=r"has \d of 8 models: it was interrupted, .*same create command goes on"):
        Pool(own)
    half = Pool(own, partial=True)
    assert len(half.rows) == len(lines) // 2
    assert "of 8 models: it was interrupted" in half.describe()
    (own / pool.MANIFEST).unlink()
    told = Pool(own, partial=True).describe()
    assert "none tried yet" in told
    assert "models    none\n" in told


def swap_rows(lines):
    lines[1], lines[2] = lines[2], lines[1]


def cut_row(lines):
    lines[1] = lines[1][:50] + b"\n"


def lose_key(lines):
    row = json.loads(lines[1])
    del row["hash"]
    lines[1] = json.dumps(row).encode() + b"\n"


def no_object(lines):
    lines[1] = b"[1]\n"


def no_text(lines):
    lines[1] = b"\x00\xff\x00\n"


def other_settings(lines):
    lines[1] = lines[1].replace(b'"settings":"', b'"settings":"0')


@pytest.mark.parametrize("damage", [swap_rows, cut_row, lose_key, no_object, no_text, other_settings])
def test_a_damaged_row_is_named(own, damage):
    lines = (own / pool.MANIFEST).read_bytes().splitlines(keepends=True)
    damage(lines)
    (own / pool.MANIFEST).write_bytes(b"".join(lines))
    for act in (lambda: Pool(own), lambda: pool.create(PLAN, own)):
        with pytest.raises(MgenbError, match=r"manifest\.jsonl, line 2 is damaged or out of order: delete it and all"):
            act()


def test_a_damaged_header_is_named(own):
    change_header(own, format=7)
    with pytest.raises(MgenbError, match="has format 7; this version of mgenb reads 2"):
        Pool(own)
    for text in ("{", "[]", '{"format": 2}', "null"):
        (own / pool.HEADER).write_text(text)
        with pytest.raises(MgenbError, match=r"pool\.json is damaged"):
            Pool(own)


def replace_base(path, state, *, rewrite_header=False):
    facts = json.loads((path / "base.json").read_text())
    store.save_weights(path / pool.BASE, state, facts)
    if rewrite_header:
        base = json.loads((path / pool.HEADER).read_text())["base"]
        change_header(path, base={**base, "sha256": store.tensor_hash(state, state)})


def test_a_base_that_is_damaged_swapped_or_gone_is_named(made, own):
    replace_base(own, made.state(0))
    with pytest.raises(MgenbError, match="is not the base of this pool"):
        Pool(own)
    state = load_file(own / pool.BASE)
    save_file({**state, "net.fc2.bias": state["net.fc2.bias"] + 1}, own / pool.BASE)
    with pytest.raises(MgenbError, match="does not match its recorded hash"):
        Pool(own)
    (own / "base.json").unlink()
    with pytest.raises(MgenbError, match=r"lacks base\.safetensors or the \.json beside it"):
        Pool(own)


def change_row(path, number, /, **changed):
    rows = [json.loads(line) for line in (path / pool.MANIFEST).read_text().splitlines()]
    rows[number].update(changed)
    (path / pool.MANIFEST).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_untouched_pool_verifies(made):
    report = made.verify()
    assert report == pool.Report(8, (), ())
    assert str(report) == "8 models bit for bit, 0 within float noise, 0 different"
    assert made.verify(3).same == 3


@pytest.mark.parametrize(
    "changed",
    [
        *({"accepted": False}, {"right": 400}, {"right": 500}, {"accuracy": 0.99}, {"low": 0.1}, {"why": "so"}),
        *({"seed": 12}, {"total": 500}, {"seen": 300}, {"seen": 500}, {"settings": "0"}, {"index": 0}),
        *({"right": "x"}, {"seen": None}, {"distance": "x"}, {"projection": "0.5"}, {"hash": 7}, {"more": 1}),
    ],
)
def test_a_tampered_row_is_found(made, own, changed):
    index = int(made.accepted["index"].iloc[2])
    change_row(own, index, **changed)
    with pytest.raises(MgenbError, match=rf"manifest\.jsonl, line {index + 1} is damaged or out of order"):
        Pool(own, partial=True)


def test_models_that_are_not_the_recorded_ones_are_named(made, own):
    index = made.accepted["index"].astype(int).tolist()
    change_row(own, index[1], hash="0" * 16)
    change_row(own, index[2], distance=made.row(2)["distance"] * 1.001)
    change_row(own, index[4], hash="0" * 16, projection=made.row(4)["projection"] + 0.001 * made.row(4)["distance"])
    change_row(own, index[5], hash=made.row(6)["hash"], projection=made.row(6)["projection"])
    report = Pool(own).verify()
    assert (report.same, report.close) == (4, (1,))
    assert [sentence.split(" is ")[0] for sentence in report.different] == [
        *("model 2: its distance", "model 4: its projection", "model 5: its projection")
    ]
    assert "1 within float noise (models 1), 3 different" in str(report)


@pytest.mark.parametrize(("size", "same"), [(1e-7, True), (1e-2, False)])
def test_float_noise_is_told_from_another_base(made, own, size, same):
    generator = torch.Generator().manual_seed(0)
    floats = {name: t for name, t in made.base.items() if t.is_floating_point()}
    noise = {name: t * (1 + size * torch.randn(t.shape, generator=generator)) for name, t in floats.items()}
    replace_base(own, {**made.base, **noise}, rewrite_header=True)
    report = Pool(own).verify()
    assert report.same == 0
    assert len(report.close if same else report.different) == 8
    assert bool(report.different) is not same


@pytest.fixture
def call(capsys, monkeypatch):
    """The command line in this process: arguments to exit code, stdout and stderr."""

    def mgenb(*arguments):
        monkeypatch.setattr(sys, "argv", ["mgenb", "pool", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return mgenb


ARGUMENTS = ["--dataset", "mnist", "--arch", "lenet", "--samples", "--train-limit", 1000, "--val-limit", 400]
ARGUMENTS += ["--epochs", 8, "--t", 0.99, "--eps", 0.005, "--device", "cpu"]


def test_the_commands(call, made, tmp_path):
    path = tmp_path / "p"
    code, out, err = call("create", *ARGUMENTS, "--count", 8, "--out", path, "--max-candidates", 8)
    assert code == 2
    assert err.splitlines()[-1].startswith("mgenb: ")
    assert "of 8 models were accepted among 8 candidates" in err
    code, out, err = call("create", *ARGUMENTS, "--count", 8, "--out", path)
    assert code == 0
    assert content(path) == content(made.path)
    assert f"accepted  8 models of {len(made.rows)} candidates: " in out
    code, out, err = call("verify", path, "--rows", 2)
    assert (code, out.split(",")[0]) == (0, "2 models bit for bit")
    file = tmp_path / "model.safetensors"
    assert call("export", path, 5, file)[0] == 0
    assert pool.weights_hash(store.load_weights(file)[0]) == made.row(5)["hash"]
    change_row(path, int(made.accepted["index"].iloc[1]), projection=0.5)
    code, out, _ = call("verify", path)
    assert (code, "1 different" in out) == (1, True)
    change_row(path, 0, low=0.0)
    code, _, err = call("verify", path)
    assert (code, "line 1 is damaged" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verify", "nowhere"], "no pool at nowhere: make one with mgenb pool create"),
        (["create", *ARGUMENTS, "--count", 0, "--out", "nowhere"], "count is 0"),
        (["create", *ARGUMENTS, "--count", 1, "--out", "nowhere", "--noise", "none"], "unknown noise 'none'"),
    ],
)
def test_wrong_requests_are_one_sentence(call, arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert err.startswith(f"mgenb: {told}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["create", "verify", "export"])
def test_every_command_shows_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: mgenb pool {command}" in " ".join(out.split())


def test_the_options_start_from_the_plans_own_values():
    options = inspect.signature(command.create).parameters
    fields = [*dataclasses.fields(Plan), *dataclasses.fields(mge.Settings)]
    shared = {field.name: field.default for field in fields if field.name in options}
    assert len(shared) == 18
    wanted = {name: value for name, value in shared.items() if value is not dataclasses.MISSING}
    assert {name: options[name].default for name in wanted} == wanted


@pytest.mark.parametrize(
    "damage",
    [
        *({"plan": {**dataclasses.asdict(PLAN), **wrong}} for wrong in ({"count": "x"}, {"eps": "a"}, {"more": 1})),
        *({"plan": {**dataclasses.asdict(PLAN), "settings": wrong}} for wrong in (None, {"z": "a"}, {"t": 2})),
        *({"plan": None}, {"data": []}, {"base": {}}, {"base": {"sha256": "", "right": "x", "total": 400}}),
    ],
)
def test_a_header_with_wrong_values_is_damaged(own, damage):
    change_header(own, **damage)
    with pytest.raises(MgenbError, match=r"pool\.json is damaged"):
        Pool(own)
