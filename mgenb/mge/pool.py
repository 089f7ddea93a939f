"""Pools: many accepted models of one base, kept as recipes (a seed each) instead of as weights.

A pool is a folder: `base.safetensors`, the base; `base.json`, all that makes the pool and no times; and
`manifest.jsonl`, one row a candidate, accepted or not, in order. Candidates are generated on the CPU wherever they
are evaluated, so that the manifest does not depend on the accelerator.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from mgenb import data, devices, mge, nets, stats, store, training
from mgenb.errors import MgenbError, check, choose, demand
from mgenb.executor import each
from mgenb.measure import population
from mgenb.mge import frequency
from mgenb.seeds import torch_generator
from mgenb.store import State

BASE, HEADER, MANIFEST = "base.safetensors", "base.json", "manifest.jsonl"
FORMAT = 3
NOISE = 1e-4  # float noise, as a share of the distance to the base
COLUMNS = ["index", "seed", "right", "projection", "hash"]  # of a row; its "check" comes last
TOGETHER = 32  # candidates that an executor has in one go
Row = dict[str, Any]


class NoSuchModel(MgenbError, IndexError):
    """A pool was asked for a model that it does not hold."""


@dataclass(frozen=True)
class Plan:
    """What makes a pool; raises MgenbError at once for what cannot work.

    count: how many accepted models; eps: the discriminator's tolerance in [0, 1]; a limit of 0 means all images;
    samples: take the shipped images.
    """

    dataset: str
    arch: str
    count: int
    settings: mge.Settings = field(default_factory=mge.Settings)
    seed: int = 0
    eps: float = 0.05
    recipe: str = "mge-adam"
    epochs: int = 3
    train_limit: int = 0
    val_limit: int = 0
    samples: bool = False

    def __post_init__(self) -> None:
        choose("architecture", self.arch, nets.ARCHITECTURES)
        choose("recipe", self.recipe, training.RECIPES)
        demand(self, count=1, epochs=1, seed=0, train_limit=0, val_limit=0, eps=(0.0, 1.0))


def create(plan: Plan, out: Path, *, device: str | torch.device = "cpu", executor: Executor | None = None) -> "Pool":
    """Make the pool `out`, or go on with it: what was interrupted ends with the same bytes as what was not.

    With an executor candidates are tried side by side: the same ones, and the same bytes. A `count` above the pool's
    own extends it. At most 20 x count candidates are tried, and at least 100. Raises
    MgenbError when `out` holds another pool, when too few are accepted, or when it cannot be written; the rows stay.
    """
    place = devices.device(device)
    limits: dict[str, Any] = {"train_limit": plan.train_limit or None, "val_limit": plan.val_limit or None}
    limits |= {"source": "samples" if plan.samples else "auto", "seed": plan.seed}
    try:
        _refuse_foreign(out)
        dataset = data.load(plan.dataset, **limits).to(place)
        with store.lock(out / MANIFEST):
            _prepare(plan, out, dataset)
            _grow(Pool(out, partial=True), dataset.val, executor)
    except OSError as error:
        kept = "all models made so far are kept, and the same command goes on once that is mended"
        raise MgenbError(f"could not write {out}: {error.strerror or error}; {kept}") from error
    return Pool(out)


def _refuse_foreign(out: Path) -> None:
    """Raise MgenbError unless `out` is a pool, one that was killed before its base, or not there."""
    own = (".", HEADER, MANIFEST)  # how names begin in it
    known = (out / BASE).exists() or not out.exists()
    if not known and not (out.is_dir() and all(path.name.startswith(own) for path in out.iterdir())):
        raise MgenbError(f"{out} is there and is no pool; choose another --out")


def _prepare(plan: Plan, out: Path, dataset: data.Dataset) -> None:
    """Write header and base, or check that the header of `out` is the plan's; the base says that both are there."""
    device = dataset.val.images.device
    images = {name: getattr(dataset, name) for name in ("name", "variant", "digest", "channels", "size")}
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    header = {"format": FORMAT, "plan": asdict(plan), "data": {**images, "classes": dataset.num_classes}}
    header["made_with"] = {"torch": torch.__version__, "device": place, "machine": platform.machine()}
    if (out / BASE).exists():
        old = Pool(out, partial=True).header
        _refuse_other(old, header, out)
        store.write_json(out / HEADER, {**old, **header})
        return
    net = training.trained(plan.arch, dataset, recipe=plan.recipe, epochs=plan.epochs, seed=plan.seed)
    counted = population.count(net, dataset.val, [net.state_dict()])[0]
    store.save_weights(out / BASE, net.state_dict(), {**header, "right": counted.right, "total": counted.total})


def _refuse_other(old: Mapping[str, Any], wanted: Mapping[str, Any], out: Path) -> None:
    """Raise MgenbError unless the header `old` of `out` has all that is `wanted`, but for a larger count."""
    was, now = (pd.json_normalize(dict(header)).to_dict("records")[0] for header in (old, wanted))
    was["plan.count"] = max(was["plan.count"], now["plan.count"])
    differ = [f"{name} is {was.get(name)!r} there and {now[name]!r} here" for name in now if was.get(name) != now[name]]
    if differ:
        raise MgenbError(f"{out} holds another pool: {'; '.join(differ[:3])}; choose another --out or delete it")


def _grow(pool: "Pool", val: data.Split, executor: Executor | None) -> None:
    """Try candidates, and write a row for each, until the pool is complete; MgenbError when too few are accepted."""
    plan, done, accepted = pool.plan, len(pool.rows), len(pool)
    judge, most = _judge(pool, val), max(100, 20 * plan.count)
    bar = tqdm(total=plan.count, initial=accepted, desc=f"pool {pool.path.name}", unit="model", miniters=0)
    with bar, (pool.path / MANIFEST).open("ab") as manifest:
        manifest.truncate(pool.size)  # a killed process may have left half a row
        while accepted < plan.count and done < most:
            # as many as are needed whatever becomes of them: all that is tried has a row
            for row in _tried(judge, range(done, min(done + plan.count - accepted, most)), executor):
                line = {**row, "check": pool.check(row)}
                manifest.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
                manifest.flush()
                os.fsync(manifest.fileno())
                done, accepted = done + 1, accepted + (row["right"] >= pool.fewest)
                bar.update(accepted - bar.n)
    if accepted < plan.count:
        advice = "in another --out try a smaller --z, a larger --t or a larger --eps"
        raise MgenbError(f"{accepted} of {plan.count} models were accepted among {done} candidates; {advice}")


def _judge(pool: "Pool", val: data.Split) -> Callable[[int], Row]:
    """Return what makes and judges a candidate by its index; it needs no file, and can be sent elsewhere."""
    seed, generated, marks = pool.plan.seed, pool.generated, pool.marks
    counted = population.counter(pool.network(pool.base).to(val.images.device), val)

    def judge(index: int) -> Row:
        with devices.one_thread():  # with more of them sums have another order
            candidate = mge.candidate_seed(seed, index)
            state = generated(candidate)
            return {"index": index, "seed": candidate, "right": counted([state], None)[0].right, **marks(state)}

    return judge


def _tried(judge: Callable[[int], Row], indices: range, executor: Executor | None) -> Iterator[Row]:
    """Yield the row of each candidate, in order; an executor has several at a time."""
    if executor is None:
        yield from map(judge, indices)
        return
    size = min(TOGETHER, math.ceil(len(indices) / 4))
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    ready: dict[int, list[Row]] = {}
    following = 0
    for number, rows in each(partial(_several, judge), batches, executor, "candidates"):
        ready[number] = rows
        while following in ready:
            yield from ready.pop(following)
            following += 1


def _several(judge: Callable[[int], Row], indices: range) -> list[Row]:
    return [judge(index) for index in indices]


def _marker(base: State) -> Callable[[State], Row]:
    """Return what gives what a model is known by: its change projected on a fixed random direction, and its hash."""
    names = frequency.weight_names(base)
    directions = {n: torch.randn(base[n].shape, generator=torch_generator(0, "projection", n)) for n in names}

    def marks(state: State) -> Row:
        along = (((state[n] - base[n]).double() * way).sum().item() for n, way in directions.items())
        projection = float(f"{math.fsum(along) / _norm(base):.8g}")
        return {"projection": projection, "hash": store.tensor_hash(state, names)[:16]}

    return marks


def relative_distance(base: State, state: State) -> float:
    """Return the Euclidean distance to `base` over all weight layers, as a share of the base's norm."""
    change = {name: state[name] - base[name] for name in frequency.weight_names(base)}
    return float(f"{_norm(change) / _norm(base):.8g}")


def _norm(state: State) -> float:
    names = frequency.weight_names(state)
    return math.hypot(*(torch.linalg.vector_norm(state[name], dtype=torch.float64).item() for name in names))


class Pool(Dataset[nn.Module]):
    """The accepted models of a pool: `pool[17]` is a network in eval mode, generated again; the first is `pool[0]`.

    rows: all candidates, one a row; accepted: those alone, by number; base: its state_dict; fewest: images of the
    validation split that an accepted model has right, at least. Raises MgenbError for what is damaged, and for a pool
    that is not complete unless `partial`.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        self.base, self.header, self.plan = self._read_base()
        lines, self.size = self._read_rows()
        rows = pd.DataFrame(lines, columns=COLUMNS).astype({"right": int})
        self.fewest = mge.fewest_right(self.header["right"], self.header["total"], self.plan.eps)
        accuracy, accepted = rows["right"] / self.header["total"], rows["right"] >= self.fewest
        self.rows = rows.assign(accuracy=accuracy, accepted=accepted)
        self.accepted = self.rows[accepted].reset_index(drop=True)
        self._check_base()
        if len(self) < self.plan.count and not partial:
            held = f"has {len(self)} of {self.plan.count} models: it was interrupted, cut or out of candidates"
            raise MgenbError(f"{self.path} {held}; the same create command goes on")

    def _read_base(self) -> tuple[State, dict[str, Any], Plan]:
        if not (self.path / HEADER).exists() or not (self.path / BASE).exists():
            raise MgenbError(f"no pool at {self.path}, with {BASE} and {HEADER}: make one with mgenb pool create")
        state, header = store.load_weights(self.path / BASE)
        with suppress(KeyError, TypeError, MgenbError):
            if header["format"] == FORMAT:
                settings = mge.Settings(**header["plan"]["settings"])
                return state, header, Plan(**{**header["plan"], "settings": settings})
        fault = f"is damaged, or not of format {FORMAT}, which this version reads"
        raise MgenbError(f"{self.path / HEADER} {fault}: make the pool again, in another folder")

    def _check_base(self) -> None:
        """Raise MgenbError unless the base is a network as the header says, and its counts can be."""
        images, right, total = self.header["data"], self.header["right"], self.header["total"]
        with torch.device("meta"):  # built without numbers
            net = nets.build(self.plan.arch, images["channels"], images["size"], images["classes"])
        population.check_fits(store.usable(self.base, BASE), net.state_dict(), BASE, f"the network of {HEADER}")
        check("right", right, 0, total)
        check("total", total, 1)
        if len(self.rows) and self.rows["right"].max() > total:
            raise MgenbError(f"{self.path / MANIFEST} has more right than {total} images: make the pool again")

    def _read_rows(self) -> tuple[list[Row], int]:
        """Return the whole rows of the manifest and their bytes; MgenbError for one that is not as it was written."""
        file, rows = self.path / MANIFEST, list[Row]()
        *lines, _ = file.read_bytes().split(b"\n") if file.exists() else [b""]
        for line in lines:
            intact = False
            with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                row = json.loads(line)
                intact = row.pop("check") == self.check(row) and row["index"] == len(rows)
            if not intact:
                advice = "delete it and all after it, and the command that made the pool goes on"
                where = f"{file}, line {len(rows) + 1} is damaged, out of order or of another {HEADER}"
                raise MgenbError(f"{where}: {advice}")
            rows.append(row)
        return rows, sum(len(line) + 1 for line in lines)

    def check(self, row: Row) -> str:
        """Return what a row of this pool ends with: 8 hex digits that change with all in it and in the header."""
        return store.key_of({**row, "pool": {**self.header, "plan": {**self.header["plan"], "count": 0}}})[:8]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Pool, partial=True), (self.path,)  # a DataLoader's workers open the pool themselves

    def __len__(self) -> int:
        return len(self.accepted)

    def __getitem__(self, key: int) -> nn.Module:
        return self.network(self.state(key))

    def state(self, key: int) -> State:
        """Return the state_dict of one model, on the CPU, made from its seed.

        Raises NoSuchModel for another key, and MgenbError where it is not the model that the manifest has.
        """
        row = self.row(key)
        state = self.generated(row["seed"])
        if self._compared(row, state) == "different":
            raise MgenbError(f"model {key} of {self.path} is not the recorded one: look with mgenb pool verify")
        return state

    def _compared(self, row: Row, state: State) -> str:
        """Return whether a model is the recorded one: "same" bit for bit, "close" up to float noise, or "different"."""
        marks, noise = self.marks(state), NOISE * relative_distance(self.base, state)
        close = abs(marks["projection"] - row["projection"]) <= noise
        return "different" if not close else "same" if marks["hash"] == row["hash"] else "close"

    def row(self, key: int) -> Row:
        """Return the row of one model; NoSuchModel for anything but a number from 0 to len - 1."""
        if key not in range(len(self)):
            raise NoSuchModel(f"no model {key!r} in {self.path}: it holds {len(self)}, numbered from 0")
        return dict(self.accepted.iloc[int(key)].to_dict())

    @cached_property
    def generated(self) -> Callable[[int], State]:
        """Seed -> state_dict; coefficients and masks of the base are computed once."""
        return mge.model_generator(self.base, self.plan.settings)

    @cached_property
    def marks(self) -> Callable[[State], Row]:
        """State_dict -> what a model is known by; see `_marker`."""
        return _marker(self.base)

    def network(self, state: State) -> nn.Module:
        """Return a new network of the pool's architecture with a copy of these weights, in eval mode."""
        images = self.header["data"]
        with torch.random.fork_rng(devices=[]):
            net = nets.build(self.plan.arch, images["channels"], images["size"], images["classes"])
        net.load_state_dict(state)
        return net.eval()

    def export(self, key: int, file: Path) -> None:
        """Write one model as safetensors, with where it comes from as JSON beside it; MgenbError to overwrite."""
        store.refuse_taken(file)
        row, state = self.row(key), self.state(key)
        store.save_new(file, state, {**self.header, "candidate": {name: row[name] for name in COLUMNS}})

    def verify(self, rows: int | None = None) -> list[str]:
        """Generate all models again, or the first `rows`; return 'same', 'close' or 'different' for each.

        Same: bit for bit. Where the hash is another one, the projection tells float noise (close) from another model.
        """
        chosen = map(self.row, tqdm(range(len(self))[:rows], desc="verifying"))
        return [self._compared(row, self.generated(row["seed"])) for row in chosen]

    def describe(self) -> str:
        """Return a summary for people, a few lines."""
        plan, images, total, tried = self.plan, self.header["data"], self.header["total"], len(self.rows)
        rate = f": {stats.proportion(len(self), tried, 'candidates').times(100)} %" if tried else ""
        return (
            f"{plan.arch} on {images['name']} [{images['variant']}], {plan.epochs} epochs of {plan.recipe}\n"
            f"base      {self.header['right'] / total:.2%} of {total} validation images\n"
            f"accepted  {len(self)} of {plan.count} models, among {tried} candidates{rate}"
        )
