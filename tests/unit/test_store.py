"""The store: all of a file or nothing, damage found, names that depend on what matters only."""

import errno
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgenb import store
from mgenb.errors import MgenbError

VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=3)


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "weights.bin"
    store.write_atomic(path, lambda temporary: temporary.write_bytes(b"old"))

    def half(temporary):
        temporary.write_bytes(b"ne")
        raise error

    with pytest.raises(MgenbError if isinstance(error, OSError) else type(error)):
        store.write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "models" / "a.safetensors"
    for act in (
        lambda: store.write_json(path, {}),
        lambda: store.lock(path).__enter__(),
        lambda: store.save_weights(path, {"w": torch.ones(2)}, {}),
    ):
        monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "elsewhere"))
        with pytest.raises(MgenbError, match=r"could not write .*choose another place"):
            act()
        monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "file"))
        with pytest.raises(MgenbError, match=r"could not write .*set MGENB_CACHE"):
            act()


def test_a_lock_that_is_a_folder_or_cannot_be_had_is_one_clear_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors.lock").mkdir()
    with pytest.raises(MgenbError, match=r"could not write .*a\.safetensors"), store.lock(tmp_path / "a.safetensors"):
        pass


def closed(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def test_what_is_whole_in_a_cache_that_nobody_can_write_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    store.save_weights(path, {"w": torch.ones(2)}, {})
    monkeypatch.setattr("filelock.FileLock.acquire", closed)
    with store.lock(path):
        assert store.load_weights(path)[0]["w"].tolist() == [1, 1]
    with pytest.raises(MgenbError, match="Read-only file system"), store.lock(tmp_path / "b.safetensors"):
        pass


def test_who_waits_for_a_lock_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store, "SOON", 0.05)
    script = "import sys, time; from pathlib import Path; from mgenb import store\n"
    script += "with store.lock(Path(sys.argv[1])): print(flush=True); time.sleep(1)"
    holder = subprocess.Popen([sys.executable, "-c", script, tmp_path / "x"], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with store.lock(tmp_path / "x"):
        assert "waiting for another process that makes" in capsys.readouterr().err
    assert holder.wait() == 0


def test_old_temporary_files_of_killed_processes_go_and_others_stay(tmp_path):
    old, young, other = (tmp_path / f".{name}.tmp" for name in ("a.json.0123", "a.json.4567", "b.json.0123"))
    for file in (old, young, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    store.write_json(tmp_path / "a.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", young, other])


def test_weights_come_after_their_json_and_a_json_alone_is_gone_on_from(tmp_path, monkeypatch):
    path, state = tmp_path / "a.safetensors", {"w": torch.ones(2)}
    with monkeypatch.context() as patch:
        whole = Path.replace

        def killed(source, target):
            if str(target).endswith(".safetensors"):
                raise KeyboardInterrupt
            return whole(source, target)

        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save_weights(path, state, {"seed": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    store.save_new(path, state, {"seed": 1})
    assert store.load_weights(path)[1]["seed"] == 1
    with pytest.raises(MgenbError, match="exists or does not end"):
        store.save_new(path, state, {"seed": 1})
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(MgenbError, match="exists or does not end"):
        store.save_new(tmp_path / "b.safetensors", state, {})


@pytest.mark.parametrize("write", [store.save_weights, lambda path, state, _: save_checkpoint(path, state)])
def test_a_full_disk_is_one_clear_sentence_whoever_writes(tmp_path, write):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(MgenbError, match=r"could not write .*make room"):
            write(tmp_path / "a.safetensors", {"w": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def save_checkpoint(path, state):
    store.write_atomic(path, partial(torch.save, state))


@given(st.dictionaries(st.text(), VALUES, max_size=6), st.randoms())
def test_a_key_does_not_depend_on_the_order_of_settings(settings, random):
    items = list(settings.items())
    random.shuffle(items)
    assert store.key_of(dict(items)) == store.key_of(settings)
    assert store.key_of({**settings, "one more": 0}) != store.key_of(settings)


def test_weights_come_back_bit_for_bit_with_their_settings(tmp_path):
    state = {"w": torch.randn(3, 4).T, "steps": torch.tensor(7)}
    store.save_weights(tmp_path / "a.safetensors", state, {"seed": 3})
    loaded, settings = store.load_weights(tmp_path / "a.safetensors")
    assert all(loaded[name].equal(tensor) for name, tensor in state.items())
    assert settings["seed"] == 3


def damage_weights(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_weights(path):
    path.write_bytes(path.read_bytes()[:-4])


def cut_settings(path):
    path.with_suffix(".json").write_text('{"seed": ')


def lose_hash(path):
    path.with_suffix(".json").write_text("{}")


@pytest.mark.parametrize("damage", [damage_weights, cut_weights, cut_settings, lose_hash])
def test_damage_is_named_and_the_files_are_left_for_a_look(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    store.save_weights(path, {"w": torch.randn(100)}, {})
    damage(path)
    before = path.read_bytes()
    with pytest.raises(MgenbError, match=r"a\.(safetensors|json).* damaged; delete it and run again"):
        store.load_weights(path)
    assert path.read_bytes() == before


def test_no_flipped_bit_of_progress_is_read(tmp_path):
    path, rng = tmp_path / "fit", np.random.default_rng(0)
    store.save_progress(path, "fit of seed 1", {"weights": torch.randn(50), "epoch": 3})
    whole = path.read_bytes()
    for place in rng.choice(8 * len(whole), 200, replace=False):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(MgenbError, match="fit is damaged: delete it, and the computation begins anew"):
            store.load_progress(path, "fit of seed 1", torch.device("cpu"))
    path.write_bytes(whole)
    fields = store.load_progress(path, "fit of seed 1", torch.device("cpu"))
    assert fields is not None
    assert fields["epoch"] == 3
    with pytest.raises(MgenbError, match="belongs to another computation"):
        store.load_progress(path, "fit of seed 2", torch.device("cpu"))


def test_json_refuses_numbers_that_are_not_json(tmp_path):
    with pytest.raises(ValueError):
        store.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
    store.write_json(tmp_path / "a.json", {"x": 0.1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1}


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MGENB_CACHE", str(tmp_path / "own"))
    assert store.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MGENB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_dir() == tmp_path / "mgenb"
    monkeypatch.setenv("MGENB_CACHE", "~nosuchuser/cache")
    with pytest.raises(MgenbError, match=r"~nosuchuser/cache lies in a home folder that cannot be found"):
        store.cache_dir()
