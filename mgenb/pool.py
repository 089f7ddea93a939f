"""Pools: many accepted models of one base, kept as recipes (a seed each) instead of as weights.

A pool is a folder: `base.safetensors` with `base.json`; `pool.json`, the header, all that makes the pool and no
times; and `manifest.jsonl`, one row a candidate, accepted or not, in order. `mgenb.pooling` makes one.
"""

import copy
import json
import math
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import zip_longest
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from mgenb import data, frequency, mge, nets, population, stats, store
from mgenb.errors import MgenbError

HEADER, MANIFEST, BASE, MODELS = "pool.json", "manifest.jsonl", "base.safetensors", "models"
FORMAT = 1
CLASSES = string.digits + string.ascii_lowercase + string.ascii_uppercase + "-_"
NOT_A_NUMBER = "?"  # in place of a class where the logits are NaN
DISTANCE_NOISE, PROBE_NOISE = 1e-4, 1  # float noise: relative change of the distance, predictions that change
COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("index", "seed", "right", "seen", "total"), int),
    **{"accuracy": (float, NoneType), "low": float, "high": float, "accepted": bool, "why": str},
    **{"distance": float, "hash": str, "settings": str, "probe": str},
}
FIELDS: dict[str, Any] = {  # of the header, with the types of their values
    **dict.fromkeys(("channels", "size", "classes", "seed", "count", "probe"), int),
    **{"arch": str, "eps": float, "early_stop": bool, "settings": dict, "made_with": dict},
    "dataset": {"given": str, "source": str, "name": str, "variant": str, "digest": str, "seed": int},
    "base": {"recipe": str, "epochs": int, "seed": int, "sha256": str, "right": int, "total": int},
}
Header = dict[str, Any]


class NoSuchModel(MgenbError, KeyError):
    """A pool was asked for a model that it does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the quoted sentence


def load_data(where: Header) -> data.Dataset:
    """Return the dataset that the header's part `where` names."""
    train, val = (where[name] or None for name in ("train_limit", "val_limit"))
    return data.load(where["given"], source=where["source"], seed=where["seed"], train_limit=train, val_limit=val)


def _holds(value: Any, fields: Mapping[str, Any]) -> bool:
    """Return whether `value` is an object that holds all `fields` with values of their types."""
    if not isinstance(value, dict):
        return False
    return all(
        _holds(value.get(name), kind) if isinstance(kind, dict) else isinstance(value.get(name), kind)
        for name, kind in fields.items()
    )


def read_header(path: Path) -> Header:
    """Return the header of the pool at `path`; MgenbError where there is none, or a damaged one."""
    file = path / HEADER
    if not file.exists():
        raise MgenbError(f"no pool at {path}: make one with mgenb pool create")
    try:
        header: Header = json.loads(file.read_bytes())
        version, complete = header["format"], _holds(header, FIELDS)
    except (ValueError, KeyError, TypeError, AttributeError):
        version, complete = FORMAT, False
    if version != FORMAT:
        raise MgenbError(f"{file} has format {version!r}; this version of mgenb reads {FORMAT}")
    if not complete:
        raise MgenbError(f"{file} is damaged: make the pool again, in another folder")
    return header


def _read_base(path: Path, header: Header) -> mge.State:
    if not (path / BASE).exists() or not (path / BASE).with_suffix(".json").exists():
        raise MgenbError(f"{path} lacks {BASE} or the .json beside it: make the pool again, in another folder")
    state, _ = store.load_weights(path / BASE)
    if store.tensor_hash(state, state) != header["base"]["sha256"]:
        raise MgenbError(f"{path / BASE} is not the base of this pool: its hash is not the one in {HEADER}")
    return state


def _read_rows(file: Path, settings: str) -> list[dict[str, Any]]:
    """Return the whole rows of a manifest; MgenbError names the first line that is damaged."""
    rows: list[dict[str, Any]] = []
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            fine = _holds(row, COLUMNS) and (row["index"], row["settings"]) == (number, settings)
        except ValueError:
            fine = False
        if not fine:
            advice = "delete it and all after it, and the command that made the pool goes on"
            raise MgenbError(f"{file}, line {number + 1} is damaged or out of order: {advice}")
        rows.append(row)
    return rows


def judged(count: population.Count, header: Header) -> dict[str, Any]:
    """Return what a row says of a count: accuracy with its 95 % interval, or bounds; accepted or not, and why."""
    base, eps = header["base"], header["eps"]
    accepted = count.passes(mge.fewest_right(base["right"], base["total"], eps))
    if count.seen < count.total:
        low, high = (round(right / count.total, 6) for right in (count.right, count.most))
        why = "accepted before the pass ended" if accepted else f"at least {eps:g} below the base"
        return {"accuracy": None, "low": low, "high": high, "bounds": True, "accepted": accepted, "why": why}
    low, high = _wilson(count.right, count.total)
    lost = (base["right"] - count.right) / count.total
    why = "better than the base" if lost < 0 else "within eps of the base"
    why = why if accepted else f"{lost:.4f} below the base"
    return {"accuracy": round(count.right / count.total, 6), "low": low, "high": high, "accepted": accepted, "why": why}


@lru_cache(maxsize=4096)
def _wilson(right: int, total: int) -> stats.Interval:
    low, high = stats.proportion(right, total).interval()
    return round(low, 6), round(high, 6)


def weights_hash(state: mge.State) -> str:
    """Return the hash of a row: 16 hex digits for the weight layers, which are all that differs in a pool."""
    return store.tensor_hash(state, frequency.weight_names(state))[:16]


def distance(base: mge.State, state: mge.State) -> float:
    """Return the Euclidean distance to `base` over all weight layers, as a share of the base's norm."""

    def norm(layer: Callable[[str], torch.Tensor]) -> float:
        names = frequency.weight_names(base)
        return math.hypot(*(torch.linalg.vector_norm(layer(name), dtype=torch.float64).item() for name in names))

    return float(f"{norm(lambda name: state[name] - base[name]) / norm(lambda name: base[name]):.8g}")


def predictions(net: nn.Module, images: data.Split, state: mge.State) -> str:
    """Return the predicted classes, a character an image."""
    found = population.predict(net, images, state).tolist()
    return "".join(CLASSES[label] if label >= 0 else NOT_A_NUMBER for label in found)


def first_images(split: data.Split, n: int) -> data.Split:
    """Return the first `n` images of a split."""
    return data.Split(split.images[:n], split.labels[:n], split.groups[:n], split.role)


@dataclass(frozen=True)
class Report:
    """What `Pool.verify` found.

    same: models equal bit for bit; close: numbers of models within float noise; different: a sentence for each
    model that is another one; rows: a sentence for each row that contradicts itself; note: what could not be checked.
    """

    same: int
    close: tuple[int, ...]
    different: tuple[str, ...]
    rows: tuple[str, ...]
    note: str

    @property
    def fine(self) -> bool:
        """Whether every model is the recorded one and every row follows from its counts."""
        return not self.different and not self.rows

    def __str__(self) -> str:
        numbers = f" (models {', '.join(map(str, self.close[:10]))}{', ...' if len(self.close) > 10 else ''})"
        counts = f"{self.same} models bit for bit, {len(self.close)} within float noise{numbers if self.close else ''}"
        counts += f", {len(self.different)} different; {len(self.rows) or 'no'} rows contradict themselves"
        return "\n".join([counts, *([self.note] if self.note else []), *self.different, *self.rows])


class Pool(Mapping[int, nn.Module]):
    """The accepted models of a pool by number, 0 to len - 1: `pool[17]` is a network in eval mode, generated again.

    rows: all candidates, one a row, with `model`, the number of an accepted one; accepted: those alone, by number.
    Raises MgenbError for what is damaged, and for a pool that is not complete unless `partial`.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        self.base = _read_base(self.path, self.header)
        self.settings_key = store.key_of(self.header["settings"])[:8]
        rows = _read_rows(self.path / MANIFEST, self.settings_key)
        self.rows = pd.DataFrame(rows, columns=[*COLUMNS, "bounds"])
        self.rows["bounds"] = self.rows["bounds"].eq(True)
        self.rows["accuracy"] = self.rows["accuracy"].astype(float)
        chosen = self.rows["accepted"] = self.rows["accepted"].astype(bool)
        self.rows["model"] = (chosen.cumsum() - 1).where(chosen).astype("Int64")
        self.accepted = self.rows[chosen].set_index("model")
        if not partial and not self.complete:
            raise MgenbError(f"{self.path} {self.unfinished}")

    @property
    def complete(self) -> bool:
        return len(self) >= self.header["count"]

    @property
    def unfinished(self) -> str:
        """What to say of a pool that is not complete."""
        held = f"has {len(self)} of {self.header['count']} models"
        return f"{held}: it was interrupted, cut or out of candidates; the same create command goes on"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Pool, partial=True), (self.path,)  # a DataLoader's workers open the pool themselves

    def __len__(self) -> int:
        return len(self.accepted)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, key: int) -> nn.Module:
        return self.network(self.state(key))

    def state(self, key: int) -> mge.State:
        """Return the state_dict of one model, on the CPU, made from its seed; NoSuchModel for another key."""
        return self.generated(int(self.row(key)["seed"]))

    def row(self, key: int) -> dict[str, Any]:
        """Return the row of one model; NoSuchModel for anything but a whole number from 0 to len - 1."""
        if not isinstance(key, Integral) or isinstance(key, bool) or not 0 <= key < len(self):
            raise NoSuchModel(f"no model {key!r} in {self.path}: it holds {len(self)}, numbered from 0")
        row: dict[str, Any] = self.accepted.iloc[key].to_dict()
        return row

    @cached_property
    def generated(self) -> Callable[[int], mge.State]:
        """Seed -> state_dict; coefficients and masks of the base are computed once."""
        return mge.generator(self.base, mge.Settings(**self.header["settings"]))

    @cached_property
    def _blank(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return nets.build(*(self.header[name] for name in ("arch", "channels", "size", "classes"))).eval()

    def network(self, state: mge.State) -> nn.Module:
        """Return a new network of the pool's architecture with a copy of these weights, in eval mode."""
        net = copy.deepcopy(self._blank)
        net.load_state_dict(state)
        return net

    def export(self, key: int, file: Path) -> None:
        """Write one model as safetensors, with where it comes from as JSON beside it; MgenbError to overwrite."""
        if file.suffix != ".safetensors":
            raise MgenbError(f"{file} does not end in .safetensors; right is a name like model.safetensors")
        for taken in (file, file.with_suffix(".json")):
            if taken.exists():
                raise MgenbError(f"{taken} exists and is left as it is; choose another name")
        self._save(key, file)

    def _save(self, key: int, file: Path) -> None:
        row, header = self.row(key), self.header
        told = {name: header[name] for name in ("arch", "channels", "size", "classes", "settings")}
        made = {name: row[name] for name in ("seed", "right", "seen", "total", "hash")}
        facts = {"dataset": header["dataset"]["name"], "base": header["base"]["sha256"], "candidate": made}
        store.save_weights(file, self.state(key), {**told, **facts})

    def materialise(self) -> None:
        """Write all models as models/00000.safetensors and so on; those that are there are left."""
        for key in tqdm(self, desc="writing models"):
            file = self.path / MODELS / f"{key:05d}.safetensors"
            if not (file.exists() and file.with_suffix(".json").exists()):
                self._save(key, file)

    def mean_accuracy(self) -> float:
        """Return the mean accuracy of the models, in [0, 1]; MgenbError where passes ended early, or none is there."""
        if self.accepted["bounds"].any() or self.accepted.empty:
            known = "only bounds of its accuracies are known, since passes ended early"
            raise MgenbError(f"{self.path} has no mean accuracy: {known if len(self) else 'it holds no models'}")
        return float(self.accepted["accuracy"].mean())

    def describe(self) -> str:
        """Return a summary for people, a few lines."""
        header, base, where = self.header, self.header["base"], self.header["dataset"]
        trained = f"{base['recipe']}, {base['epochs']} epochs, seed {base['seed']}"
        rate = "none tried yet"
        if len(self.rows):
            rate = f"{stats.proportion(len(self), len(self.rows), 'candidates').times(100)} %"
        size = (self.path / MANIFEST).stat().st_size if len(self.rows) else 0
        lines = [
            f"{header['arch']} on {where['name']} [{where['variant']}], {trained}",
            f"accepted  {len(self)} models of {len(self.rows)} candidates: {rate}",
            f"base      {100 * base['right'] / base['total']:.2f} % of {base['total']} validation images",
            f"models    {self._accuracies()}",
            f"distance  {_spread(self.rows['distance'], '.4f')} of the base's norm, all candidates",
            f"manifest  {size / 1000:.1f} kB, in {self.path}",
        ]
        return "\n".join(lines if self.complete else [*lines, f"The pool {self.unfinished}."])

    def _accuracies(self) -> str:
        if self.accepted.empty:
            return "none"
        if self.accepted["bounds"].any():
            return f"bounds only: from {100 * self.accepted['low'].min():.2f} %, the passes ended early"
        return f"{_spread(100 * self.accepted['accuracy'], '.2f')} %"

    def verify(self, rows: int | None = None) -> Report:
        """Generate all models again, or the first `rows`, and compare with the manifest; check all of its rows.

        Where a hash differs, a model may still be the recorded one up to float noise: its distance to the base,
        and all of its predictions on the probe images but one, have to agree.
        """
        same, close, different = 0, [], []
        for key in tqdm(range(len(self) if rows is None else min(rows, len(self))), desc="verifying"):
            row, state = self.row(key), self.state(key)
            away = distance(self.base, state)
            if not abs(away - row["distance"]) <= DISTANCE_NOISE * row["distance"]:
                different.append(f"model {key}: its distance to the base is {away:g}; recorded is {row['distance']:g}")
            elif weights_hash(state) == row["hash"]:
                same += 1
            elif (others := self._other_predictions(state, row["probe"])) > PROBE_NOISE:
                different.append(f"model {key}: {others} of its {len(row['probe'])} predictions are others")
            else:
                close.append(key)
        note = self._probe[1] if close else ""
        return Report(same, tuple(close), tuple(different), tuple(self._contradictions()), note)

    @cached_property
    def _probe(self) -> tuple[data.Split | None, str]:
        """The probe images, or None and why they are not to be had."""
        where = self.header["dataset"]
        try:
            dataset = load_data(where)
            fault = "" if dataset.digest == where["digest"] else f"{where['name']} holds other images here"
        except MgenbError as error:
            fault = str(error)
        if fault:
            return None, f"only distances could be checked where hashes differ: {fault}"
        return first_images(dataset.val, self.header["probe"]), ""

    def _other_predictions(self, state: mge.State, recorded: str) -> int:
        images, _ = self._probe
        found = recorded if images is None else predictions(self._blank, images, state)
        return sum(a != b for a, b in zip_longest(found, recorded))

    def _contradictions(self) -> Iterator[str]:
        """Yield a sentence for each row that does not follow from its index and counts."""
        total, seed = self.header["base"]["total"], self.header["seed"]
        for row in self.rows.astype(object).where(self.rows.notna(), None).to_dict("records"):
            line = f"line {row['index'] + 1}"
            if row["total"] != total:
                yield f"{line}: total is {row['total']}; right is {total}"
                continue
            try:
                wanted = judged(population.Count(row["right"], row["seen"], total), self.header)
            except MgenbError as error:
                yield f"{line}: {error}"
                continue
            wanted["seed"] = mge.candidate_seed(seed, row["index"])
            wrong = [name for name, value in wanted.items() if row[name] != value]
            yield from (f"{line}: {name} is {row[name]!r}; right is {wanted[name]!r}" for name in wrong)


def _spread(values: pd.Series, style: str) -> str:
    if values.empty:
        return "none"
    return f"mean {values.mean():{style}}, from {values.min():{style}} to {values.max():{style}}"
