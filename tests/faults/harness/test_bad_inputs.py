"""Whatever a user can type or own: it works, or it is an MgenbError of one sentence; never a traceback."""

import contextlib
import dataclasses
import io
import math
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgenb import data, devices, mega, mge, nets, seeds, stats, store, training
from mgenb.cli import main as cli
from mgenb.errors import MgenbError
from mgenb.lab import catalog, doctor, execute, parameters, scoreboard
from mgenb.measure import attacks, fewshot
from mgenb.mge import evolve, pool
from tests.faults.harness import work
from tests.faults.harness.trials import WHOLE

TIMES = 25 if WHOLE else 8  # examples of each class, function and command
SETTINGS: dict[type, dict[str, Any]] = {
    mge.Settings: {},
    mega.Settings: {},
    evolve.Settings: {},
    training.Recipe: {"optimiser": "adam", "rate": 0.1},
    pool.Plan: {"dataset": "mnist", "arch": "lenet", "count": 1},
    attacks.FGSM: {"eps": 0.1},
    attacks.PGD: {"eps": 0.1},
    attacks.CW: {},
    fewshot.Episodes: {},
}
NUMBERS = [math.nan, math.inf, -math.inf, -1, 0, 1, 2, 10**400, -(10**30), 0.5, 1.5, 1e300, 5e-324, True, False, 3j]
TEXTS = ["", " ", "nan", "1", "mnist", "None", "é\n", "\udcff", "x" * 300, "~nosuchuser/x", "/dev/null", "../.."]
ODD = st.sampled_from([*NUMBERS, *TEXTS, None, b"1", (), [], [1], {}, {"a": 1}, object(), int, Ellipsis])


def exactly(times=TIMES):
    """The same examples each time, so many."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=times, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)


def clear(error):
    assert "\n" not in str(error), str(error)
    assert len(str(error)) < 1500


def fits(value, kind):
    """Return whether a value is of the type that a field has; numbers are finite, and no truth values."""
    if isinstance(kind, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(kind))
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and (kind is int or abs(value) < sys.float_info.max)
    return isinstance(value, kind)


@pytest.mark.parametrize("cls", SETTINGS)
def test_settings_are_of_their_types_or_refused(cls, record_property):
    hints, tried = typing.get_type_hints(cls), []

    @exactly()
    @given(st.sampled_from([field.name for field in dataclasses.fields(cls)]), ODD)
    def one(name, value):
        tried.append(name)
        try:
            made = cls(**{**SETTINGS[cls], name: value})
        except MgenbError as error:
            clear(error)
        else:
            assert fits(getattr(made, name), hints[name]), f"{name}={value!r} is taken"

    one()
    record_property("bad inputs", len(tried))


def digits(**limits):
    return data.load(**{"name": "mnist", "source": "samples", **limits})


FUNCTIONS: dict[str, tuple[Callable[..., Any], Iterable[str], dict[str, Any]]] = {
    "load": (digits, {"name", "source", "seed", "val_fraction", "train_limit", "val_limit", "test_limit"}, {}),
    "build": (nets.build, (), {"arch": "lenet", "channels": 1, "size": 28, "classes": 10}),
    "derive": (seeds.derive, (), {"seed": 0}),
    "device": (devices.device, (), {"name": "cpu"}),
    "find": (catalog.find, (), {"wanted": "03"}),
    "proportion": (stats.proportion, (), {"k": 1, "n": 3}),
    "holm": (lambda p: stats.holm([0.1, p]), (), {"p": 0.2}),
    "named": (lambda name: data.named(name, Path.cwd()), (), {"name": "mnist"}),
    "usable": (lambda weight: store.usable({"a.weight": weight}), (), {"weight": torch.ones(2)}),
    "generate": (lambda **own: mge.generate(work.made_up(0), mge.Settings(**own), 0), ("t", "z", "share", "part"), {}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_work_or_name_the_value(name, record_property, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    function, more, right = FUNCTIONS[name]
    tried = []

    @exactly()
    @given(st.sampled_from(sorted({*more, *right})), ODD)
    def one(argument, value):
        tried.append(argument)
        try:
            function(**{**right, argument: value})
        except MgenbError as error:
            clear(error)

    one()
    record_property("bad inputs", len(tried))


@pytest.mark.parametrize("notebook", catalog.notebooks() if WHOLE else catalog.notebooks()[2:4], ids=str)
def test_parameters_of_notebooks_work_or_are_named(notebook, record_property):
    known, tried = [*parameters.COMMON, "networks_file", *notebook.defaults("quick"), "no_such"], []

    @exactly(TIMES * 2)
    @given(st.sampled_from(known), ODD)
    def one(name, value):
        tried.append(name)
        try:
            parameters.check(notebook, "quick", {name: value})
        except MgenbError as error:
            clear(error)

    one()
    record_property("bad inputs", len(tried))


WORDS = [*TEXTS, "-1", "0", "1.5", "1e999", "9" * 30, "true", "[", "[[[[1", "{}", "=", "seed=", "=1", "a=b=c", "seed=x"]
WORDS += ["seed=1", "profile=cpu", "networks=[", "networks=mnist", "t=nan", "networks_file=/dev/null", "--", "-", "all"]
WORDS += ["gone.safetensors", "folder", "dangling", "loop", "deep.json", "folder/x.safetensors", "deep.safetensors"]
POOL = ["--dataset", "mnist", "--arch", "lenet", "--count", "1", "--samples", "--out", "made", "--epochs", "1"]
MERGE = ["--arch", "lenet", "--dataset", "mnist", "--samples", "--method", "average", "--val-limit", "60"]
COMMANDS = {
    "run": ["03", "--profile", "quick", "-p", "seed=1", "--out", "made", "--jobs", "1"],
    "check": ["03", "--out", "made"],
    "refresh": ["03", "--profile", "quick"],
    "analyse": ["03", "--profile", "quick"],
    "list": ["x"],
    "claims": ["--paper", "mge"],
    "pool create": [*POOL, "--t", "0.9", "--seed", "0", "--eps", "0.1", "--device", "cpu", "--train-limit", "60"],
    "pool verify": ["pool", "--rows", "1"],
    "pool export": ["pool", "0", "made.safetensors"],
    "merge": ["0.safetensors", "1.safetensors", *MERGE, "--budget", "40", "--size", "4", "--out", "made.safetensors"],
    "doctor": ["x"],
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with odd things in it; what would compute for long ends at once."""
    work.project(tmp_path, work.REFRESHED)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("deep.json", "deep.safetensors"):
        (tmp_path / name).write_text("[" * 100_000)
    monkeypatch.chdir(tmp_path)
    for where, name, value in (
        (execute, "execute_all", lambda *_: iter(())),
        (execute, "refresh", lambda *_, **__: []),
        (execute, "nbval", lambda *_: ["true"]),
        (scoreboard, "publish", lambda *_: []),
        (pool, "create", lambda *_, **__: types.SimpleNamespace(describe=lambda: "")),
        (doctor, "findings", lambda: iter(())),
    ):
        monkeypatch.setattr(where, name, value)
    return tmp_path


def called(words, monkeypatch):
    """Run the command line in this process; return its exit code, and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["mgenb", *words])
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            err.seek(0)
            return ended.code or 0, err.read()
    raise AssertionError("it came back")


def plain(code, err):
    """Assert that a command ended well, or in the one sentence that mgenb or the parser of its options has."""
    assert code in (0, 1, 2), err
    assert "Traceback" not in err
    if code == 2:
        assert err.startswith("Usage: ") or (err.startswith("mgenb: ") and err.count("\n") == 1), err


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_work_or_end_in_one_sentence(command, checkout, monkeypatch, record_property):
    usual, tried = COMMANDS[command], []

    @exactly(2 * TIMES)
    @given(st.integers(0, len(usual)), st.sampled_from(WORDS), st.booleans())
    def one(place, word, instead):
        tried.append(word)
        words = [*usual[:place], word, *usual[place + instead :]]
        plain(*called([*command.split(), *words], monkeypatch))

    one()
    record_property("bad inputs", len(tried))


def spoiled(change):
    """What makes a state_dict of which one tensor is changed."""
    return lambda state: {**state, "net.conv1.weight": change(state["net.conv1.weight"])}


CHECKPOINTS = {
    "meta": spoiled(lambda weight: weight.to("meta")),
    "sparse": spoiled(lambda weight: weight.to_sparse()),
    "quantized": spoiled(lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)),
    "complex": spoiled(lambda weight: weight.to(torch.complex64)),
    "integer": spoiled(lambda weight: weight.int()),
    "NaN": spoiled(lambda weight: weight * math.nan),
    "double": spoiled(lambda weight: weight.double()),
    "empty": spoiled(lambda weight: weight[:0]),
    "a list": spoiled(lambda weight: weight.tolist()),
    "half": lambda state: {name: tensor.half() for name, tensor in state.items()},
    "nested": lambda state: {"state_dict": state},
    "a tensor": lambda state: torch.ones(3),
    "numbered": lambda state: dict(enumerate(state.values())),
    "none": lambda state: None,
    "nothing": lambda state: {},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_any_kind_are_merged_or_refused(kind, checkout, monkeypatch, record_property):
    state = nets.build("lenet", 1, 28, 10).state_dict()
    torch.save(state, checkout / "good.pt")
    torch.save(CHECKPOINTS[kind](state), checkout / "odd.pt")
    code, err = called(["merge", "good.pt", "odd.pt", *MERGE, "--out", "made.safetensors"], monkeypatch)
    record_property("bad inputs", 1)
    plain(code, err)
    assert (code == 0) == (kind == "half"), err


LINES: list[list[Any]] = [
    ["run", ""],
    ["run", b"\xff\xfe"],
    ["merge", "folder", "loop", *MERGE],
    ["pool", "verify", "deep.json"],
]


@pytest.mark.parametrize("words", LINES if WHOLE else LINES[1:2], ids=str)
def test_real_processes_end_in_one_sentence(words, checkout, record_property):
    ended = subprocess.run([sys.executable, "-m", "mgenb.cli", *words], capture_output=True)
    record_property("bad inputs", 1)
    assert ended.returncode == 2
    plain(2, ended.stderr.decode())
