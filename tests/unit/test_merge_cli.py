"""`mgenb merge`: two checkpoints of the user's own, a table, a merged file, and errors that name the key."""

import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgenb import store, training
from mgenb.cli import main as cli
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.mega import align, methods

BASICS = ["--arch", "lenet", "--dataset", "mnist", "--samples", "--val-limit", "100", "--budget", "20", "--size", "5"]


@pytest.fixture(scope="module")
def files(lenet, small, tmp_path_factory):
    """The same kind of network twice: ours as safetensors, and the bare architecture as a torch file."""
    folder = tmp_path_factory.mktemp("checkpoints")
    other = training.trained("lenet", small, epochs=12, seed=1)
    save_file(population.state_of(lenet), folder / "a.safetensors")
    torch.save(other.net.state_dict(), folder / "b.pt")
    return folder / "a.safetensors", folder / "b.pt"


def mgenb(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mgenb", "merge", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return stopped.value.code or 0, printed.out, printed.err


def test_a_merged_model_is_saved_and_told(files, tmp_path, capsys, monkeypatch, small):
    out = tmp_path / "merged.safetensors"
    code, printed, error = mgenb(capsys, monkeypatch, *files, *BASICS, "--method", "rebasin", "--out", out)
    assert code == 0, error
    assert all(text in printed for text in ("rebasin", "a.safetensors", *methods.COLUMNS))
    assert printed.splitlines()[-1] == f"rebasin is in {out}"
    told = json.loads(out.with_suffix(".json").read_text())
    assert (told["method"], told["arch"], len(told["parents"])) == ("rebasin", "lenet", 2)
    merged, first = load_file(out), load_file(files[0])
    assert not merged["net.fc1.weight"].equal(first["net.fc1.weight"])
    assert set(merged) == set(first)


def test_all_methods_are_compared_and_the_best_is_saved(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "merged.safetensors"
    code, printed, error = mgenb(capsys, monkeypatch, *files, *BASICS, "--method", "all", "--out", out)
    assert code == 0, error
    assert all(f"\n{name} " in printed for name in methods.METHODS)
    assert "left out" not in printed
    saved = json.loads(out.with_suffix(".json").read_text())["method"]
    assert saved in methods.METHODS
    assert f"{saved} is in {out}" in printed.splitlines()[-1]
    assert not [*store.cache_dir().glob("unfinished/merge-*")]


def test_methods_that_cannot_take_a_network_are_left_out_with_the_reason(tmp_path, capsys, monkeypatch, small):
    files, out = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "merged.safetensors"
    for seed, file in enumerate(files):
        save_file(population.state_of(training.fresh("vit", small, seed)), file)
    few = ["--arch", "vit", "--dataset", "mnist", "--samples", "--val-limit", "10", "--train-limit", "10"]
    arguments = [*files, *few, "--budget", "8", "--size", "4", "--out", out]
    code, printed, error = mgenb(capsys, monkeypatch, *arguments, "--method", "all")
    assert code == 0, error
    refused = {name for name in methods.METHODS if "rebasin" in name}
    for name in methods.METHODS:
        assert (f"{name} is left out: units cannot be followed through node" in printed) == (name in refused)
        assert (f"\n{name} " in printed.partition("model")[2]) == (name not in refused)
    out.unlink(missing_ok=True)
    code, _, error = mgenb(capsys, monkeypatch, *arguments[:-1], tmp_path / "other.safetensors", "--method", "rebasin")
    assert (code, "units cannot be followed" in error) == (2, True)


@pytest.mark.parametrize("winner", ["parent", "ensemble", "line", "mega"])
def test_the_last_line_says_whether_the_winner_is_a_merge(winner, files, tmp_path, capsys, monkeypatch):
    """Each method is given a fitness by hand; `line` is made to end with a copy of the first parent."""
    names, out = ("parent", "ensemble", "line", "mega", "average"), tmp_path / "merged.safetensors"

    def given(name, method, task):
        result = methods.Result((task.first,), 0, 1) if name == "line" else method(task)
        return replace(result, fitness=1.0 if name == winner else {"mega": 0.9}.get(name, 0.5))

    monkeypatch.setattr(methods, "METHODS", {name: partial(given, name, methods.METHODS[name]) for name in names})
    code, printed, error = mgenb(capsys, monkeypatch, *files, *BASICS, "--method", "all", "--out", out)
    assert code == 0, error
    last = printed.splitlines()[-1]
    no_merge = "" if winner == "mega" else f"; best on validation is {winner}, which is no merge"
    assert last == f"mega is in {out}{no_merge}"
    assert json.loads(out.with_suffix(".json").read_text())["method"] == "mega"


def test_a_parent_alone_is_saved_and_called_no_merge(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "merged.safetensors"
    code, printed, error = mgenb(capsys, monkeypatch, *files, *BASICS, "--method", "parent-bn", "--out", out)
    assert code == 0, error
    assert printed.splitlines()[-1] == f"parent-bn is in {out}; best on validation is parent-bn, which is no merge"


def test_residual_networks_are_aligned_before_they_are_merged(tmp_path, capsys, monkeypatch, small):
    net, out = training.fresh("resnet8", small, 0), tmp_path / "merged.safetensors"
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first = population.state_of(net)
    spec = align.specification(net)
    orders = {group: torch.randperm(size, generator=torch.manual_seed(1)) for group, size in spec.sizes.items()}
    save_file(first, a)
    save_file(align.permuted(first, orders, spec), b)
    arguments = [a, b, "--arch", "resnet8", *BASICS[2:], "--train-limit", "64", "--method", "rebasin", "--out", out]
    code, _, error = mgenb(capsys, monkeypatch, *arguments)
    assert code == 0, error
    merged, second = load_file(out), load_file(b)
    for name, tensor in first.items():
        assert torch.allclose(merged[name], tensor, atol=1e-6), name
    assert not all(torch.allclose(second[name], tensor, atol=1e-2) for name, tensor in first.items())


def test_an_ensemble_is_not_saved(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "merged.safetensors"
    code, printed, error = mgenb(capsys, monkeypatch, *files, *BASICS, "--method", "ensemble", "--out", out)
    assert code == 0, error
    assert "no merged model to save" in printed
    assert not out.exists()


def test_what_is_refused(files, tmp_path, capsys, monkeypatch):
    a, b = files
    taken, absent = tmp_path / "taken.safetensors", tmp_path / "absent.safetensors"
    taken.write_text("mine")
    for arguments, message in [
        ([a, b, *BASICS, "--out", taken], "exists or does not end"),
        ([a, absent, *BASICS], "absent.safetensors is no file that holds a state_dict"),
        ([a, b, *BASICS, "--method", "megga"], "unknown method 'megga'; did you mean 'mega'?"),
        ([a, b, *BASICS[2:], "--arch", "lenett"], "unknown architecture 'lenett'"),
        ([a, taken, *BASICS], "taken.safetensors is no file that holds a state_dict"),
    ]:
        code, _, error = mgenb(capsys, monkeypatch, *arguments)
        assert (code, message in error) == (2, True), error
        assert error.count("\n") == 1
    assert taken.read_text() == "mine"


def test_a_checkpoint_that_does_not_fit_is_named_by_its_key(files, lenet, small, tmp_path):
    state = population.state_of(lenet)
    broken = tmp_path / "broken.safetensors"
    save_file({n: t for n, t in state.items() if n != "net.fc2.bias"}, broken)
    with pytest.raises(MgenbError, match=r"lacks 'net.fc2.bias'"):
        methods.read_pair((files[0], broken), lenet)
    save_file({**state, "net.extra": torch.zeros(1)}, broken)
    with pytest.raises(MgenbError, match=r"has 'net.extra', which the architecture with these classes lacks"):
        methods.read_pair((files[0], broken), lenet)
    save_file({**state, "net.fc2.weight": torch.zeros(7, 84)}, broken)
    with pytest.raises(MgenbError, match=r"'net.fc2.weight' has shape \(7, 84\); right is \(10, 84\): .*broken\.saf"):
        methods.read_pair((files[0], broken), lenet)
    whole = files[0].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MgenbError, match="is no file that holds a state_dict"):
        methods.read_pair((files[0], broken), lenet)


def test_the_bare_architecture_takes_the_scaling_of_the_other_file(files, lenet, small):
    own, other = lenet.state_dict(), training.fresh("lenet", small, 0)
    mean = other.get_buffer("normalise.mean")
    mean += 1
    for pair in (files, files[::-1]):
        for state in methods.read_pair(pair, other):
            assert set(state) == set(own)
            assert state["normalise.mean"].equal(own["normalise.mean"])
    for state in methods.read_pair((files[1],) * 2, other):
        assert state["normalise.mean"].equal(mean)
