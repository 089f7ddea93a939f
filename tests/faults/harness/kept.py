"""Every kind of file that is read back: what writes it, what reads it, and in which ways it may be edited.

`make` writes the file in a folder for a seed; `read` returns what would be used of it: equal to that of the whole file,
or it is refused. An edit changes the JSON values of a file in place.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.random import default_rng
from safetensors.torch import save_file

from mgenb import data, nets, store, training
from mgenb.errors import MgenbError
from mgenb.lab import catalog, record, rows, stage
from mgenb.measure import speed
from mgenb.mega import methods
from mgenb.mge import pool
from tests.faults.harness import work

ROOT = Path(__file__).parents[3]
Edit = Callable[[Any], None]


@dataclass(frozen=True)
class Kept:
    """One kind of file: `pattern` finds it below the folder in which `make(folder, seed)` works."""

    make: Callable[[Path, int], object]
    pattern: str
    read: Callable[[Path], Any]
    edits: Mapping[str, Edit] = field(default_factory=dict)
    owned: bool = False  # it is text that its owner may edit: what can be read is right


def put(value: Any, *keys: Any) -> Edit:
    """Return the edit that sets what stands at these keys."""

    def edit(read: Any) -> None:
        for key in keys[:-1]:
            read = read[key]
        read[keys[-1]] = value

    return edit


def make_arrays(folder: Path, seed: int) -> None:
    data.load(("mnist", "fashion_mnist")[seed], source="samples")


def read_arrays(folder: Path) -> Any:
    with warnings.catch_warnings():  # damaged arrays are made again, and that is said
        warnings.simplefilter("ignore")
        found = data.load("mnist", source="samples")
    splits = found.train, found.val, found.test.unseal("trial")
    return [found.digest, found.classes, *(store.tensor_hash(vars(s), ("images", "labels", "groups")) for s in splits)]


def make_model(folder: Path, seed: int) -> None:
    training.trained("lenet", work.digits(), epochs=1, seed=seed)


def read_model(folder: Path) -> Any:
    state = training.trained("lenet", work.digits(), epochs=1, seed=0).state_dict()
    return store.tensor_hash(state, state)


def fitted(folder: Path, seed: int, epochs: int) -> Any:
    digits = work.digits()
    net, recipe = training.fresh("lenet", digits, 0), training.RECIPES["mge-adam"]
    training.fit(net, digits.train, recipe, epochs=epochs, seed=seed, checkpoint=folder / "checkpoint")
    return store.tensor_hash(net.state_dict(), net.state_dict())


def make_pool(folder: Path, seed: int) -> None:
    pool.create(replace(work.PLAN, seed=seed), folder / "pool")


def read_pool(folder: Path) -> Any:
    found = pool.Pool(folder / "pool")
    states = [found.state(key) for key in (0, len(found) - 1)]
    return found.rows.to_csv(), len(found), [store.tensor_hash(state, state) for state in states], found.header["right"]


def make_export(folder: Path, seed: int) -> None:
    net = training.fresh("lenet", work.digits(), seed)
    store.save_weights(folder / "a.safetensors", net.state_dict(), {"seed": seed})
    save_file(net.state_dict(), folder / "b.safetensors")


def read_export(folder: Path) -> Any:
    pair = methods.read_pair((folder / "a.safetensors", folder / "b.safetensors"), nets.build("lenet", 1, 28, 10))
    return [store.tensor_hash(state, state) for state in pair]


def measured(folder: Path, seed: int) -> rows.Rows:
    """Rows of three parts, with numbers, texts and arrays."""
    rng = default_rng(seed)

    def experiment(part: dict[str, Any]) -> Any:
        values = [{"value": rng.normal(), "right": int(rng.integers(99)), "method": f"m{i}"} for i in range(5)]
        return values, {"curve": rng.normal(size=20)}

    facts = {"data": "d", "weights": "w", "device": "cpu", "cores": 2}
    return rows.measure(
        [{"base": base, "what": "test"} for base in range(3)],
        experiment,
        experiment=rows.Experiment(work.STEM, 1, seed),
        folder=folder,
        facts=lambda part: {**facts, "weights": f"w{part['base']}"},
    )


def make_rows(folder: Path, seed: int) -> None:
    measured(folder, seed)
    shutil.rmtree(folder / f"{work.STEM}.parts")


def make_parts(folder: Path, seed: int) -> None:
    measured(folder, seed)
    for file in folder.glob("*.*"):
        if file.is_file():
            file.unlink()


def read_rows(folder: Path) -> Any:
    return told(rows.read(folder / f"{work.STEM}.csv"))


def read_parts(folder: Path) -> Any:
    return told(measured(folder, 0))


def told(found: rows.Rows) -> Any:
    arrays = {name: array.tolist() for name, array in found.arrays.items()}
    parts = found.parts.drop(columns="seconds")
    return found.frame.to_csv(), parts.to_csv(), arrays, found.planned, vars(found.experiment)


def make_record(folder: Path, seed: int) -> None:
    profile = ("quick", "cpu")[seed]
    source = ROOT / "figures" / profile / f"{work.STEM}.json"
    text = source.read_text() if source.exists() else (ROOT / "figures" / "quick" / f"{work.STEM}.json").read_text()
    (folder / "figures" / "quick").mkdir(parents=True)
    (folder / "figures" / "quick" / f"{work.STEM}.json").write_text(text)
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)


def read_record(folder: Path) -> Any:
    (found,) = record.committed()
    return found.to_json()["result"], found.stem, found.profile


def digits_and_net() -> tuple[torch.nn.Module, torch.Tensor]:
    digits = work.digits()
    return training.fresh("lenet", digits, 0), digits.val.images


def make_speed(folder: Path, seed: int) -> None:
    speed.fastest(*digits_and_net())


def read_speed(folder: Path) -> Any:
    return speed.fastest(*digits_and_net()) in speed.WAYS  # whichever: it costs time alone


def make_journal(folder: Path, seed: int) -> None:
    """Leave a refresh that was killed just after it had written what it is to move."""
    work.project(folder, work.REFRESHED)
    held = folder / ".refresh" / f"quick-{work.STEM}"
    held.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (held / f"{work.STEM}-{name}").write_text(f"new {seed}")
    figures, names = folder / "figures" / "quick", [f"{work.STEM}-{name}" for name in ("a.png", "b.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "finish", lambda _: None)
        stage.move_out(held, {name: figures / name for name in names}, [figures / f"{work.STEM}-gone.png"])


def read_journal(folder: Path) -> Any:
    stage.tidy(catalog.refreshing())
    strange = [file.name for file in folder.parent.rglob("*") if file.is_file() and folder not in file.parents]
    return work.committed(folder), strange


def make_notebook(folder: Path, seed: int) -> None:
    work.project(folder, work.RUN, work.EXPERIMENT)


def read_notebook(folder: Path) -> Any:
    return catalog.version(work.STEM)


def nan_of(*keys: Any) -> Edit:
    return put(float("nan"), *keys)


MODEL_EDITS = {
    "recipe": put(0.5, "recipe", "rate"),
    "seed": put(1, "seed"),
    "hash": put("0" * 64, "sha256"),
    "architecture": put("resnet20", "arch"),
    "data": put("elsewhere", "data", "name"),
    "list": lambda read: read.clear(),
}
POOL_EDITS = {
    "right": put(1, "right"),
    "eps": put(0.9, "plan", "eps"),
    "seed": put(7, "plan", "seed"),
    "nan": nan_of("plan", "settings", "t"),
    "count": put(2, "plan", "count"),
    "classes": put(3, "data", "classes"),
    "architecture": put("resnet20", "plan", "arch"),
}
FIRST = ("result", "claims", 0)
RECORD_EDITS = {
    "verdict": put("contradicted", *FIRST, "verdict"),
    "estimate": put(99.0, *FIRST, "estimate"),
    "nan": nan_of(*FIRST, "estimate"),
    "low above high": lambda read: read["result"]["claims"][0].update(low=2.0, high=1.0),
    "profile": put("paper", "profile"),
    "seed": put(3, "result", "seed"),
    "no looks at test images": put([], "result", "test_uses"),
    "token": put("all is well", *FIRST, "token"),
    "mechanism": put({"all": "well"}, "result", "mechanism"),
}
ROWS_EDITS = {
    "seed": put(1, "seed"),
    "version": put(2, "version"),
    "planned": put(30, "planned"),
    "stem": put("02_zero_filling", "stem"),
    "weights": put("others", "parts", 0, "about", "weights"),
    "nan": nan_of("parts", 0, "about", "cores"),
    "part": put(7, "parts", 0, "part", "base"),
}
PART_EDITS = {
    "value": put(99.0, "rows", 0, "value"),
    "nan": nan_of("rows", 0, "value"),
    "base": put(2, "part", "base"),
    "weights": put("others", "about", "weights"),
    "fewer": lambda read: read["rows"].pop(),
}
SPEED_EDITS = {
    "batch of 0": put([True, 0], "fastest"),
    "three": put([1, 2, 3], "fastest"),
    "text": put("quick", "fastest"),
    "none": lambda read: read.clear(),
    "nan": nan_of("fastest", 1),
}
JOURNAL_EDITS = {
    "elsewhere": put("../../../lost.png", "moves", f"{work.STEM}-a.png"),
    "more": put(["../../notebooks/03_importance_mask.ipynb"], "gone"),
    "list": lambda read: read.clear(),
}
STEM_PARTS = f"{work.STEM}.parts"
FILES = {
    "decoded arrays": Kept(make_arrays, "cache/arrays/*.safetensors", read_arrays),
    "model": Kept(make_model, "cache/models/*.safetensors", read_model),
    "model's settings": Kept(make_model, "cache/models/*.json", read_model, MODEL_EDITS),
    "training": Kept(partial(fitted, epochs=1), "checkpoint", partial(fitted, seed=0, epochs=2)),
    "evolution": Kept(
        partial(work.evolve_models, generations=2), "evolution", partial(work.evolve_models, generations=3)
    ),
    "merging": Kept(work.merge_models, "merging", work.merge_models),
    "pool's base": Kept(make_pool, "pool/base.safetensors", read_pool),
    "pool's header": Kept(make_pool, "pool/base.json", read_pool, POOL_EDITS),
    "pool's manifest": Kept(make_pool, "pool/manifest.jsonl", read_pool),
    "exported model": Kept(make_export, "a.safetensors", read_export),
    "exported model's settings": Kept(make_export, "a.json", read_export, {"hash": put("0" * 64, "sha256")}),
    "rows": Kept(make_rows, f"{work.STEM}.csv", read_rows),
    "rows' parts": Kept(make_rows, f"{work.STEM}.parts.json", read_rows, ROWS_EDITS),
    "rows' arrays": Kept(make_rows, f"{work.STEM}.npz", read_rows),
    "part": Kept(make_parts, f"{STEM_PARTS}/*.json", read_parts, PART_EDITS),
    "part's arrays": Kept(make_parts, f"{STEM_PARTS}/*.npz", read_parts),
    "record": Kept(make_record, f"figures/quick/{work.STEM}.json", read_record, RECORD_EDITS),
    "speed": Kept(make_speed, "cache/speed/*.json", read_speed, SPEED_EDITS),
    "journal": Kept(make_journal, ".refresh/*/moves.json", read_journal, JOURNAL_EDITS),
    "notebook": Kept(make_notebook, "notebooks/*.ipynb", read_notebook, owned=True),
}


def make(kind: str, folder: Path, seed: int) -> str:
    """Write a kind of file in `folder`; return its place there."""
    FILES[kind].make(folder, seed)
    return str(sorted(folder.glob(FILES[kind].pattern))[0].relative_to(folder))


def readings(kind: str, before: Path, place: str, contents: Sequence[bytes], folder: Path) -> list[tuple[str, Any]]:
    """Read a kind of file with each of these contents in its place, in a copy of the folder `before`.

    Return for each 'done' and what is read, 'refused' and the sentence, or 'broken' and what went wrong.
    """
    told = []
    for number, content in enumerate(contents):
        copy = folder / str(number)
        shutil.copytree(before, copy)
        (copy / place).write_bytes(content)
        os.environ["MGENB_CACHE"] = str(copy / "cache")
        os.chdir(copy)
        try:
            told.append(("done", FILES[kind].read(copy)))
        except MgenbError as error:
            told.append(("refused", str(error)))
        except Exception as error:
            told.append(("broken", f"{type(error).__name__}: {error}"))
        shutil.rmtree(copy)
    return told


def edited(content: bytes, edit: Edit) -> bytes:
    """Return JSON with an edit."""
    read = json.loads(content)
    edit(read)
    return json.dumps(read, indent=1).encode()
