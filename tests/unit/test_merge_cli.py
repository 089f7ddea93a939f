"""`mgenb merge`: two checkpoints of the user's own, a table, a merged file, and errors that name the key."""

import json
import sys

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
    assert all(text in printed for text in ("rebasin", "a.safetensors", "test (%)", "on the segment", "parent copy"))
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
    assert json.loads(out.with_suffix(".json").read_text())["method"] in methods.METHODS
    assert not [*store.cache_dir().glob("unfinished/merge-*")]


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


def test_a_pickle_with_code_is_not_run(tmp_path, lenet):
    class Evil:
        def __reduce__(self):
            return (print, ("run!",))

    torch.save({"net.fc1.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(MgenbError, match="is no file that holds a state_dict"):
        methods.read_pair((tmp_path / "evil.pt",) * 2, lenet)


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
