"""Pools: the same bytes every time, whatever interrupts; models that are the recorded ones; damage that is found."""

import dataclasses
import inspect
import json
import pickle
import resource
import shutil
import sys
from typing import Any

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

FILES = (pool.HEADER, pool.MANIFEST, pool.BASE)
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
        made = pool.create(PLAN, tmp_path_factory.mktemp("pools") / "made")
    torch.set_num_threads(threads)
    return made


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
    assert other.header["sha256"] != made.header["sha256"]


def test_a_row_is_small_and_says_what_was_measured(made):
    lines = (made.path / pool.MANIFEST).read_bytes().splitlines()
    assert max(map(len, lines)) < 150
    assert len(lines) == len(made.rows)
    assert made.rows["index"].tolist() == list(range(len(lines)))
    assert made.rows["seed"].tolist() == [mge.candidate_seed(0, index) for index in range(len(lines))]
    assert (made.rows["accuracy"] == made.rows["right"] / 400).all()
    assert list(json.loads(lines[0])) == [*pool.COLUMNS, "check"]


def test_acceptance_follows_the_discriminator(made):
    base = made.header["right"] / 400
    assert made.rows["accepted"].tolist() == [mge.accepts(right / 400, base, 0.005) for right in made.rows["right"]]
    assert made.rows["accepted"].sum() == len(made) == 8
    assert made.rows["accepted"].iloc[-1]
    assert not made.rows["accepted"].all()
    assert made.accepted["index"].tolist() == made.rows.loc[made.rows["accepted"], "index"].tolist()


def weights_hash(state):
    return store.tensor_hash(state, frequency.weight_names(state))[:16]


def test_a_model_is_the_recorded_one(made, val):
    assert len(list(made)) == 8
    for key, net in enumerate(made):
        row, state = made.row(key), made.state(key)
        assert all(tensor.equal(state[name]) for name, tensor in net.state_dict().items())
        assert weights_hash(state) == row["hash"]
        assert not any(module.training for module in net.modules())
        assert (population.predict(net, val) == val.labels).sum() == row["right"]
        again = mge.generate(made.base, PLAN.settings, row["seed"])
        assert all(again[name].equal(state[name]) for name in state)


def test_distance_and_projection_are_those_of_all_weights(made):
    names = frequency.weight_names(made.base)
    base, model = (torch.cat([s[name].double().flatten() for name in names]) for s in (made.base, made.state(0)))
    distances = np.array([pool.relative_distance(made.base, made.state(key)) for key in range(8)])
    assert distances[0] == pytest.approx(((model - base).norm() / base.norm()).item(), rel=1e-6)
    spread = made.accepted["projection"] / distances  # of a random direction: about N(0, 1), other each time
    assert spread.abs().max() < 4
    assert spread.diff().abs().min() > 10 * pool.NOISE


@pytest.mark.parametrize("kept", [0.0, 0.07, 0.5, 0.83, 0.999])
def test_a_pool_cut_anywhere_ends_with_the_same_bytes(made, own, kept):
    whole = (own / pool.MANIFEST).read_bytes()
    (own / pool.MANIFEST).write_bytes(whole[: int(kept * len(whole))])
    pool.create(PLAN, own)
    assert content(own) == content(made.path)


def test_a_pool_cut_between_rows_or_before_its_base_ends_with_the_same_bytes(made, own):
    lines = (own / pool.MANIFEST).read_bytes().splitlines(keepends=True)
    (own / pool.MANIFEST).write_bytes(b"".join(lines[:5]))
    pool.create(PLAN, own)
    assert content(own) == content(made.path)
    (own / pool.MANIFEST).unlink()
    (own / pool.BASE).unlink()
    pool.create(PLAN, own)
    assert content(own) == content(made.path)


def test_a_pool_with_other_files_in_its_folder_is_still_one(own):
    Pool(own).export(3, own / "mine.safetensors")
    assert len(pool.create(PLAN, own)) == 8


def test_a_larger_count_extends_a_pool_to_the_bytes_of_one_made_so(made, tmp_path):
    pool.create(plan(count=3), tmp_path / "grown")
    assert len(pool.create(PLAN, tmp_path / "grown")) == 8
    assert content(tmp_path / "grown") == content(made.path)
    with pytest.raises(MgenbError, match=r"plan\.count is 8 there and 5 here"):
        pool.create(plan(count=5), tmp_path / "grown")
    assert content(tmp_path / "grown") == content(made.path)


def test_too_few_candidates_say_what_to_try_and_keep_the_rows(tmp_path):
    bad = plan(count=3, settings=mge.Settings(t=0.5))
    for _ in range(2):
        with pytest.raises(MgenbError, match=r"0 of 3 models were accepted among 100 candidates; .*smaller --z"):
            pool.create(bad, tmp_path / "bad")
        assert len(Pool(tmp_path / "bad", partial=True).rows) == 100


def test_a_full_disk_keeps_what_was_written(made, own):
    whole = (own / pool.MANIFEST).read_bytes()
    (own / pool.MANIFEST).write_bytes(b"")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    base = (own / "base.json").stat().st_size  # which is written anew, and must fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(len(whole) // 2, base) + 20, hard))
    try:
        with pytest.raises(MgenbError, match=r"could not write .* are kept, and the same command goes on"):
            pool.create(PLAN, own)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert whole.startswith((own / pool.MANIFEST).read_bytes())
    assert 0 < len(Pool(own, partial=True).rows) < len(made.rows)
    pool.create(PLAN, own)
    assert content(own) == content(made.path)


def test_a_generator_that_does_nothing_makes_the_base(tmp_path):
    same = pool.create(plan(settings=mge.Settings(t=1.0, z=0.0), count=3), tmp_path / "same")
    assert same.rows["projection"].tolist() == [0.0] * 3
    assert same.rows["accepted"].all()
    assert set(same.rows["hash"]) == {weights_hash(same.base)}
    assert same.verify() == ["same"] * 3


def test_a_pool_is_a_dataset_that_a_data_loader_reads(made):
    assert made.row(np.int64(7)) == made.row(7)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = made[0]
    assert torch.get_rng_state().equal(before)
    batches = list(DataLoader(made, batch_size=3, collate_fn=list))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    for loaded, net in zip([net for batch in batches for net in batch], made, strict=True):
        assert all(loaded.state_dict()[name].equal(tensor) for name, tensor in net.state_dict().items())
    assert pickle.loads(pickle.dumps(made)).state(2)["net.fc1.weight"].equal(made.state(2)["net.fc1.weight"])
    assert first is not made[0]


@pytest.mark.parametrize("key", [8, -1, 1.5, "1", None])
def test_a_model_that_is_not_there_is_told(made, key):
    with pytest.raises(pool.NoSuchModel) as error:
        made[key]
    assert isinstance(error.value, MgenbError)
    assert isinstance(error.value, IndexError)
    assert str(error.value) == f"no model {key!r} in {made.path}: it holds 8, numbered from 0"


def test_an_exported_model_predicts_the_same(made, val, tmp_path):
    file = tmp_path / "model.safetensors"
    made.export(5, file)
    state, facts = store.load_weights(file)
    images = facts["data"]
    net = nets.build(facts["plan"]["arch"], images["channels"], images["size"], images["classes"])
    net.load_state_dict(state)
    assert population.predict(net, val).equal(population.predict(made[5], val))
    assert facts["candidate"]["hash"] == made.row(5)["hash"] == weights_hash(state)
    whole = file.read_bytes()
    (tmp_path / "mine.json").write_text("mine")
    for taken in ("model.safetensors", "model.json", "mine.safetensors"):
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
        ({"eps": -0.1}, "eps is -0.1; right is a number from 0 to 1"),
        ({"eps": 5}, "eps is 5"),
        ({"eps": float("nan")}, "eps is nan"),
    ],
)
def test_a_wrong_plan_is_refused_at_once(wrong, words):
    with pytest.raises(MgenbError, match=words):
        plan(**wrong)


def test_what_cannot_be_made_is_told_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    cases: tuple[tuple[pool.Plan, dict[str, Any], str], ...] = (
        (plan(dataset="mnst"), {}, "did you mean 'mnist'"),
        (plan(val_limit=9999), {}, "val_limit=9999 for mnist: right is a whole number from 1 to 500"),
        (PLAN, {"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        (PLAN, {"device": "gpu"}, "device 'gpu' cannot be used here"),
    )
    for refused, options, words in cases:
        with pytest.raises(MgenbError, match=words):
            pool.create(refused, out, **options)
    assert not out.exists()
    (tmp_path / "thesis.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(MgenbError, match="is there and is no pool; choose another --out"):
            pool.create(PLAN, taken)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"settings": mge.Settings(t=0.8)},
            r"settings\.t is 0\.99 there and 0\.8 here; choose another --out",
        ),
        ({"arch": "vgg11"}, "arch is 'lenet' there and 'vgg11' here"),
        ({"eps": 0.1, "seed": 3}, r"plan\.seed is 0 there and 3 here.*data\.digest is"),
        ({"epochs": 9}, "epochs is 8 there and 9 here"),
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


def test_a_pool_made_elsewhere_or_of_other_images_is_not_gone_on_with(made, own, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pool.platform, "machine", lambda: "an abacus")
        with pytest.raises(MgenbError, match=r"made_with\.machine is '.*' there and 'an abacus' here"):
            pool.create(PLAN, own)
    load = data.load
    monkeypatch.setattr(data, "load", lambda *names, **how: dataclasses.replace(load(*names, **how), variant="other"))
    with pytest.raises(MgenbError, match=r"data\.variant is 'sample' there and 'other' here"):
        pool.create(PLAN, own)
    assert content(own) == content(made.path)


def test_a_pool_that_is_not_there_or_not_complete_is_told(own, tmp_path):
    with pytest.raises(MgenbError, match=r"no pool at .*nothing, with base.* make one with mgenb pool create"):
        Pool(tmp_path / "nothing")
    lines = (own / pool.MANIFEST).read_bytes().splitlines(keepends=True)
    (own / pool.MANIFEST).write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:40])
    with pytest.raises(MgenbError, match=r"has \d of 8 models: it was interrupted, .*same create command goes on"):
        Pool(own)
    half = Pool(own, partial=True)
    assert len(half.rows) == len(lines) // 2
    assert f"of 8 models, among {len(lines) // 2} candidates: " in half.describe()
    (own / pool.MANIFEST).unlink()
    assert Pool(own, partial=True).describe().endswith("accepted  0 of 8 models, among 0 candidates")


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


def other_check(lines):
    lines[1] = lines[1].replace(b'"check":"', b'"check":"0')


@pytest.mark.parametrize("damage", [swap_rows, cut_row, lose_key, no_object, no_text, other_check])
def test_a_damaged_row_is_named(own, damage):
    lines = (own / pool.MANIFEST).read_bytes().splitlines(keepends=True)
    damage(lines)
    (own / pool.MANIFEST).write_bytes(b"".join(lines))
    for act in (lambda: Pool(own), lambda: pool.create(PLAN, own)):
        with pytest.raises(MgenbError, match=r"manifest\.jsonl, line 2 is damaged, .*: delete it and all after"):
            act()


def test_a_damaged_header_is_named(own):
    change_header(own, format=7)
    with pytest.raises(MgenbError, match=r"base\.json is damaged, or not of format 3"):
        Pool(own)
    for text in ("{", "[]", '{"format": 3}', "null"):
        (own / pool.HEADER).write_text(text)
        with pytest.raises(MgenbError, match=r"base\.json is damaged"):
            Pool(own)


def test_a_base_that_is_damaged_swapped_or_gone_is_named(made, own):
    header = json.loads((own / pool.HEADER).read_text())
    store.save_weights(own / pool.BASE, made.state(0), header)
    with pytest.raises(MgenbError, match=r"line 1 is damaged, out of order or of another base\.json"):
        Pool(own)
    state = load_file(own / pool.BASE)
    save_file({**state, "net.fc2.bias": state["net.fc2.bias"] + 1}, own / pool.BASE)
    with pytest.raises(MgenbError, match="does not match its recorded hash"):
        Pool(own)
    (own / pool.BASE).unlink()
    with pytest.raises(MgenbError, match=r"no pool at .*, with base\.safetensors and base\.json"):
        Pool(own)


def change_row(path, number, /, **changed):
    """Change a row; where its check is not given, it is made anew."""
    rows = [json.loads(line) for line in (path / pool.MANIFEST).read_text().splitlines()]
    row = {**rows[number], **changed}
    check = Pool(path, partial=True).check({name: row[name] for name in pool.COLUMNS})
    rows[number] = {**row, "check": changed.get("check", check)}
    (path / pool.MANIFEST).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_untouched_pool_verifies(made):
    assert made.verify() == ["same"] * 8
    assert made.verify(3) == ["same"] * 3


@pytest.mark.parametrize(
    "changed",
    [{"right": 399}, {"right": "x"}, {"seed": 12}, {"projection": 0.5}, {"hash": 7}, {"index": 0}, {"more": 1}],
)
def test_a_tampered_row_is_found(made, own, changed):
    index = int(made.accepted["index"].iloc[2])
    check = json.loads((own / pool.MANIFEST).read_text().splitlines()[index])["check"]
    change_row(own, index, **changed, check=check)
    with pytest.raises(MgenbError, match=rf"manifest\.jsonl, line {index + 1} is damaged, out of order"):
        Pool(own, partial=True)


def test_models_that_are_not_the_recorded_ones_are_named(made, own):
    index = made.accepted["index"].astype(int).tolist()
    distance = pool.relative_distance(made.base, made.state(4))
    change_row(own, index[1], hash="0" * 16)
    change_row(own, index[4], hash="0" * 16, projection=made.row(4)["projection"] + 0.001 * distance)
    change_row(own, index[5], hash=made.row(6)["hash"], projection=made.row(6)["projection"])
    wanted = ["same", "close", "same", "same", "different", "different", "same", "same"]
    assert Pool(own).verify() == wanted


@pytest.mark.parametrize(("size", "verdict"), [(1e-7, "close"), (1e-2, "different")])
def test_float_noise_is_told_from_another_model(made, size, verdict, monkeypatch, tmp_path):
    generator = torch.Generator().manual_seed(0)

    def elsewhere(seed):
        state = mge.generate(made.base, PLAN.settings, seed)
        return {n: t * (1 + size * torch.randn(t.shape, generator=generator)) for n, t in state.items()}

    monkeypatch.setattr(made, "generated", elsewhere)
    assert made.verify() == [verdict] * 8
    if verdict == "close":
        assert made[3]
        return
    for ask in (made.__getitem__, lambda key: made.export(key, tmp_path / "model.safetensors")):
        with pytest.raises(MgenbError, match=r"model 3 of .* is not the recorded one"):
            ask(3)


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
    code, out, err = call("create", *ARGUMENTS, "--count", 8, "--out", path)
    assert code == 0
    assert content(path) == content(made.path)
    assert f"accepted  8 of 8 models, among {len(made.rows)} candidates: " in out
    code, out, err = call("verify", path, "--rows", 2)
    assert (code, out) == (0, "2 models bit for bit, 0 within float noise, 0 different\n")
    file = tmp_path / "model.safetensors"
    assert call("export", path, 5, file)[0] == 0
    assert weights_hash(store.load_weights(file)[0]) == made.row(5)["hash"]
    change_row(path, int(made.accepted["index"].iloc[1]), projection=0.5)
    code, out, _ = call("verify", path)
    assert (code, out.splitlines()[-1]) == (1, "not the recorded ones: models 1")
    change_row(path, 0, right=399, check="0")
    code, _, err = call("verify", path)
    assert (code, "line 1 is damaged" in err) == (2, True)


def test_an_impossible_plan_is_told_in_a_sentence(call, tmp_path):
    code, _, err = call("create", *ARGUMENTS, "--count", 2, "--out", tmp_path / "p", "--z", 9)
    assert code == 2
    assert err.splitlines()[-1].startswith("mgenb: 0 of 2 models were accepted among 100 candidates")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "nowhere"], "no pool at nowhere, with base.safetensors and base.json: make one"),
        (["create", *ARGUMENTS, "--count", 0, "--out", "nowhere"], "count is 0"),
        (["create", *ARGUMENTS, "--count", 1, "--out", "nowhere", "--noise", "none"], "unknown noise 'none'"),
    ],
)
def test_wrong_requests_are_one_sentence(call, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert err.startswith(f"mgenb: {words}")
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
    assert len(shared) == 17
    wanted = {name: value for name, value in shared.items() if value is not dataclasses.MISSING}
    assert {name: options[name].default for name in wanted} == wanted


@pytest.mark.parametrize(
    "damage",
    [
        *({"plan": {**dataclasses.asdict(PLAN), **wrong}} for wrong in ({"count": "x"}, {"eps": "a"}, {"more": 1})),
        *({"plan": {**dataclasses.asdict(PLAN), "settings": wrong}} for wrong in (None, {"z": "a"}, {"t": 2})),
        {"plan": None},
    ],
)
def test_a_header_with_wrong_values_is_damaged(own, damage):
    change_header(own, **damage)
    with pytest.raises(MgenbError, match=r"base\.json is damaged"):
        Pool(own)


def test_a_base_of_another_architecture_is_named(own):
    header = json.loads((own / pool.HEADER).read_text())
    (own / pool.MANIFEST).write_text("")
    store.save_weights(
        own / pool.BASE, load_file(own / pool.BASE), {**header, "plan": {**header["plan"], "arch": "vgg11"}}
    )
    with pytest.raises(MgenbError, match=r"base\.safetensors (lacks|has) .*network of base\.json"):
        Pool(own, partial=True)
    store.save_weights(own / pool.BASE, load_file(own / pool.BASE), {**header, "right": header["total"] + 1})
    with pytest.raises(MgenbError, match=r"right is \d+; right is a whole number from 0 to"):
        Pool(own, partial=True)


@pytest.mark.parametrize("tampered", [{"right": 300}, {"right": "x"}, {"total": 500}, {"data": []}, {"made_with": 1}])
def test_rows_are_of_one_header_alone(own, tampered):
    change_header(own, **tampered)
    with pytest.raises(MgenbError, match=r"line 1 is damaged, out of order or of another base\.json"):
        Pool(own)
