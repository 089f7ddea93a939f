"""Pools: many accepted models of one base, kept as recipes (a seed each) instead of as weights.

A pool is a folder: `base.safetensors` with `base.json`; `pool.json`, the header, all that makes the pool and no
times; and `manifest.jsonl`, one row a candidate, accepted or not, in order. Candidates are generated on the CPU
wherever they are evaluated, so that the manifest does not depend on the accelerator.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache, partial
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from mgenb import data, devices, mge, nets, stats, store, training
from mgenb.errors import MgenbError, choose, demand
from mgenb.executor import each
from mgenb.measure import population
from mgenb.mge import frequency
from mgenb.seeds import torch_generator
from mgenb.store import State

HEADER, MANIFEST, BASE = "pool.json", "manifest.jsonl", "base.safetensors"
FORMAT = 2
OWN = (".", "base.", MANIFEST)  # how names in a folder begin whose pool was killed before its header
NOISE = 1e-4  # float noise, as a share of the distance to the base
KNOWN = {  # what the header holds beside the plan
    "data": {"name": str, "variant": str, "digest": str, "channels": int, "size": int, "classes": int},
    "base": {"sha256": str, "right": int, "total": int},
}
MARKS = {"distance": float, "projection": float, "hash": str}  # of a row, by which its model is known
COLUMNS = ["index", "seed", "right", "seen", "total", "accuracy", "low", "high", "accepted", "why", *MARKS, "settings"]
TOGETHER = 32  # candidates that an executor has in one go
Header = dict[str, Any]
Tried = tuple[population.Count, dict[str, Any]]  # what was counted of a candidate, and its marks
proportion = lru_cache(maxsize=4096)(stats.proportion)  # many rows have the same counts, and each costs a test


class NoSuchModel(MgenbError, KeyError):
    """A pool was asked for a model that it does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the quoted sentence


@dataclass(frozen=True)
class Plan:
    """What makes a pool; raises MgenbError at once for what cannot work.

    count: how many accepted models; eps: the discriminator's tolerance in (0, 1]; a limit of 0 means all images;
    samples: take the shipped images; early_stop: end a candidate's pass over the validation images once its
    acceptance is certain, which leaves bounds in place of its accuracy.
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
    early_stop: bool = False

    def __post_init__(self) -> None:
        choose("architecture", self.arch, nets.ARCHITECTURES)
        choose("recipe", self.recipe, training.RECIPES)
        demand(self, count=1, epochs=1, seed=0, train_limit=0, val_limit=0)
        if not 0 < self.eps <= 1:
            raise MgenbError(f"eps is {self.eps!r}; right is a number above 0 and at most 1 (the paper: 0.05)")
        mge.unimportant(torch.eye(2), self.settings, 0)  # a wrong transform or domain is told before training


def create(
    plan: Plan,
    out: Path,
    *,
    max_candidates: int | None = None,
    device: str | torch.device = "cpu",
    executor: Executor | None = None,
) -> "Pool":
    """Make the pool `out`, or go on with it: what was interrupted ends with the same bytes as what was not.

    With an executor candidates are tried side by side: the same ones, and the same bytes.

    A `count` above the pool's own extends it. At most `max_candidates` rows are written (20 x count otherwise,
    and at least 100). Raises MgenbError when `out` holds another pool, when too few candidates are accepted, or
    when it cannot be written; the rows stay.
    """
    place = devices.device(device)
    limit = max(100, 20 * plan.count) if max_candidates is None else max_candidates
    if limit < plan.count:
        raise MgenbError(f"max_candidates is {limit}; right is at least the count, {plan.count}")
    strange = out.exists() and not (out / HEADER).exists()
    if strange and not (out.is_dir() and all(path.name.startswith(OWN) for path in out.iterdir())):
        raise MgenbError(f"{out} is there and is no pool; choose another --out")
    if out.exists() and not os.access(out, os.W_OK):
        raise MgenbError(f"{out} cannot be written to; choose another --out")
    limits = {"train_limit": plan.train_limit or None, "val_limit": plan.val_limit or None}
    source = "samples" if plan.samples else "auto"
    dataset = data.load(plan.dataset, source=source, seed=plan.seed, **limits).to(place)  # type: ignore[arg-type]
    with store.lock(out / MANIFEST):
        _prepare(plan, out, dataset)
        _cut_partial_line(out / MANIFEST)
        _grow(Pool(out, partial=True), dataset.val, limit, executor)
        return Pool(out)


def _prepare(plan: Plan, out: Path, dataset: data.Dataset) -> None:
    """Write base and header, or check that those of `out` are the plan's; the header says that both are there."""
    device = dataset.val.images.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts = {name: getattr(dataset, name) for name in ("name", "variant", "digest", "channels", "size")}
    header: Header = {
        "format": FORMAT,
        "plan": asdict(plan),
        "data": {**facts, "classes": dataset.num_classes},
        "made_with": {"torch": torch.__version__, "device": machine, "machine": platform.machine()},
    }
    if (out / HEADER).exists():
        old, _ = read_header(out)
        _refuse_other(old, header, out)
        if plan.count > old["plan"]["count"]:
            store.write_json(out / HEADER, {**old, "plan": header["plan"]})
        return
    net = training.trained(plan.arch, dataset, recipe=plan.recipe, epochs=plan.epochs, seed=plan.seed)
    state = net.state_dict()
    counted = population.count(net, dataset.val, [state])[0]
    base = {"sha256": store.tensor_hash(state, state), "right": counted.right, "total": counted.total}
    store.save_weights(out / BASE, state, {**header["data"], "arch": plan.arch, "recipe": plan.recipe})
    store.write_json(out / HEADER, {**header, "base": base})


def _refuse_other(old: Header, wanted: Header, out: Path) -> None:
    """Raise MgenbError unless the header `old` of `out` has all that is `wanted`, but for a larger count."""
    was, now = (pd.json_normalize(header).to_dict("records")[0] for header in (old, wanted))
    differ = [name for name in now if was.get(name) != now[name] and name != "plan.count"]
    if differ:
        told = "; ".join(f"{name} is {was.get(name)!r} there and {now[name]!r} here" for name in differ[:3])
        raise MgenbError(f"{out} holds another pool: {told}; choose another --out or delete it")
    if (count := now["plan.count"]) < was["plan.count"]:
        raise MgenbError(f"count is {count}; {out} is a pool of {was['plan.count']}: right is at least that")


def _cut_partial_line(file: Path) -> None:
    content = file.read_bytes() if file.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        print(f"{file}: the last line was cut off in the middle and is made again", file=sys.stderr)
        os.truncate(file, whole)


def _grow(pool: "Pool", val: data.Split, limit: int, executor: Executor | None) -> None:
    """Try candidates, and write a row for each, until the pool is complete or has `limit` rows (MgenbError)."""
    plan, done, accepted = pool.plan, len(pool.rows), len(pool)
    judge = _judge(pool, val)
    with tqdm(total=plan.count, initial=accepted, desc=f"pool {pool.path.name}", unit="model", miniters=0) as bar:
        while accepted < plan.count and done < limit:
            # as many as are needed whatever becomes of them: all that is tried has a row
            for count, marks in _tried(judge, range(done, min(done + plan.count - accepted, limit)), executor):
                row = make_row(pool.header, done, count, marks)
                _append(pool.path / MANIFEST, row)
                done += 1
                accepted += row["accepted"]
                bar.set_postfix_str(f"{100 * accepted / done:.0f} % of {done} accepted", refresh=False)
                bar.update(row["accepted"])
    if accepted < plan.count:
        raise _too_few(Pool(pool.path, partial=True))


def _judge(pool: "Pool", val: data.Split) -> Callable[[int], Tried]:
    """Return what makes and judges a candidate by its index; it needs no file, and can be sent elsewhere."""
    plan, base, generated, marks = pool.plan, pool.header["base"], pool.generated, pool.marks
    counted = population.counter(pool.network(pool.base).to(val.images.device), val)
    fewest = mge.fewest_right(base["right"], base["total"], plan.eps) if plan.early_stop else None

    def judge(index: int) -> Tried:
        with devices.one_thread():  # with more of them sums have another order
            state = generated(mge.candidate_seed(plan.seed, index))
            marked = marks(state)
            if not math.isfinite(marked["distance"]):
                raise MgenbError(f"z = {plan.settings.z} makes weights that are not finite; try 0.2")
            return counted([state], fewest)[0], marked

    return judge


def _tried(judge: Callable[[int], Tried], indices: range, executor: Executor | None) -> Iterator[Tried]:
    """Yield what became of each candidate, in order; an executor has several at a time."""
    if executor is None:
        yield from map(judge, indices)
        return
    size = min(TOGETHER, math.ceil(len(indices) / 4))
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    ready: dict[int, list[Tried]] = {}
    following = 0
    for number, tried in each(partial(_several, judge), batches, executor, "candidates"):
        ready[number] = tried
        while following in ready:
            yield from ready.pop(following)
            following += 1


def _several(judge: Callable[[int], Tried], indices: range) -> list[Tried]:
    return [judge(index) for index in indices]


def _too_few(pool: "Pool") -> MgenbError:
    plan, base, rejected = pool.plan, pool.header["base"], pool.rows[~pool.rows["accepted"]]
    lost = base["right"] / base["total"] - rejected["accuracy"].fillna(rejected["high"]).median()
    return MgenbError(
        f"{len(pool)} of {plan.count} models were accepted among {len(pool.rows)} candidates; the others lose"
        f" {'at least ' if plan.early_stop else ''}{lost:.3f} of the accuracy (median), and eps is {plan.eps:g};"
        " the rows are kept: go on with a larger --max-candidates, or in another --out try a smaller --z, a larger"
        " --t or a larger --eps"
    )


def _append(file: Path, row: Mapping[str, Any]) -> None:
    text = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
    try:
        with file.open("ab") as handle:
            handle.write(text.encode())
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        kept = "all models made so far are kept, and the same command goes on once there is room"
        raise MgenbError(f"could not write {file}: {error.strerror or error}; {kept}") from error


def make_row(header: Header, index: int, count: population.Count, marks: Mapping[str, Any]) -> dict[str, Any]:
    """Return a candidate's row: what was counted and marked, and all that follows from it and from the header."""
    plan, base = header["plan"], header["base"]
    right, total, eps = count.right, base["total"], plan["eps"]
    accepted = count.passes(mge.fewest_right(base["right"], total, eps))
    if count.seen < total:
        accuracy, low, high = None, right / total, count.most / total
        why = "accepted before the pass ended" if accepted else f"at least {eps:g} below the base"
    else:
        accuracy, lost = round(right / total, 6), (base["right"] - right) / total
        low, high = proportion(right, total).interval()
        why = "better than the base" if lost < 0 else "within eps of the base"
        why = why if accepted else f"{lost:.4f} below the base"
    judged = {"accuracy": accuracy, "low": round(low, 6), "high": round(high, 6), "accepted": accepted, "why": why}
    recipe = {"index": index, "seed": mge.candidate_seed(plan["seed"], index)}
    return {**recipe, **asdict(count), **judged, **marks, "settings": store.key_of(plan["settings"])[:8]}


def read_header(path: Path) -> tuple[Header, Plan]:
    """Return the header of the pool at `path` and its plan; MgenbError where there is none, or a damaged one."""
    file, fault = path / HEADER, "is damaged: make the pool again, in another folder"
    if not file.exists():
        raise MgenbError(f"no pool at {path}: make one with mgenb pool create")
    with suppress(ValueError, KeyError, TypeError, MgenbError):
        header: Header = json.loads(file.read_bytes())
        if header["format"] != FORMAT:
            fault = f"has format {header['format']!r}; this version of mgenb reads {FORMAT}"
        elif all(isinstance(header[part][name], kinds[name]) for part, kinds in KNOWN.items() for name in kinds):
            return header, Plan(**{**header["plan"], "settings": mge.Settings(**header["plan"]["settings"])})
    raise MgenbError(f"{file} {fault}")


def _read_base(path: Path, header: Header) -> State:
    if not (path / BASE).exists() or not (path / BASE).with_suffix(".json").exists():
        raise MgenbError(f"{path} lacks {BASE} or the .json beside it: make the pool again, in another folder")
    state, _ = store.load_weights(path / BASE)
    if store.tensor_hash(state, state) != header["base"]["sha256"]:
        raise MgenbError(f"{path / BASE} is not the base of this pool: its hash is not the one in {HEADER}")
    return state


def _read_rows(file: Path, header: Header) -> list[dict[str, Any]]:
    """Return the whole rows of a manifest; MgenbError names the first that does not follow from place and counts."""
    rows: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n")[:-1] if file.exists() else []:
        fine = False
        with suppress(ValueError, KeyError, TypeError, MgenbError):
            row = json.loads(line)
            count = population.Count(row["right"], row["seen"], header["base"]["total"])
            marks = {name: kind(row[name]) for name, kind in MARKS.items()}
            fine = count.seen <= count.total and row == make_row(header, len(rows), count, marks)
        if not fine:
            advice = "delete it and all after it, and the command that made the pool goes on"
            raise MgenbError(f"{file}, line {len(rows) + 1} is damaged or out of order: {advice}")
        rows.append(row)
    return rows


def marker(base: State) -> Callable[[State], dict[str, Any]]:
    """Return what gives a model's marks: distance to `base`, projection of the change on a fixed direction, hash."""
    names = frequency.weight_names(base)
    directions = {n: torch.randn(base[n].shape, generator=torch_generator(0, "projection", n)) for n in names}

    def marks(state: State) -> dict[str, Any]:
        along = (((state[n] - base[n]).double() * direction).sum().item() for n, direction in directions.items())
        projection = float(f"{math.fsum(along) / _norm(base):.8g}")
        return {"distance": relative_distance(base, state), "projection": projection, "hash": weights_hash(state)}

    return marks


def weights_hash(state: State) -> str:
    """Return the hash of a row: 16 hex digits for the weight layers, which are all that differs in a pool."""
    return store.tensor_hash(state, frequency.weight_names(state))[:16]


def relative_distance(base: State, state: State) -> float:
    """Return the Euclidean distance to `base` over all weight layers, as a share of the base's norm."""
    change = {name: state[name] - base[name] for name in frequency.weight_names(base)}
    return float(f"{_norm(change) / _norm(base):.8g}")


def _norm(state: State) -> float:
    names = frequency.weight_names(state)
    return math.hypot(*(torch.linalg.vector_norm(state[name], dtype=torch.float64).item() for name in names))


@dataclass(frozen=True)
class Report:
    """What `Pool.verify` found: `same` models equal bit for bit, numbers of `close` ones, sentences on others."""

    same: int
    close: tuple[int, ...]
    different: tuple[str, ...]

    def __str__(self) -> str:
        numbers = f" (models {', '.join(map(str, self.close))})" if self.close else ""
        close = f"{len(self.close)} within float noise{numbers}"
        return "\n".join([f"{self.same} models bit for bit, {close}, {len(self.different)} different", *self.different])


class Pool(Mapping[int, nn.Module]):
    """The accepted models of a pool by number, 0 to len - 1: `pool[17]` is a network in eval mode, generated again.

    rows: all candidates, one a row, with `model`, the number of an accepted one; accepted: those alone, by number.
    Raises MgenbError for what is damaged, and for a pool that is not complete unless `partial`.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        self.header, self.plan = read_header(self.path)
        self.base = _read_base(self.path, self.header)
        self.rows = pd.DataFrame(_read_rows(self.path / MANIFEST, self.header), columns=COLUMNS)
        chosen = self.rows["accepted"] = self.rows["accepted"].astype(bool)
        self.rows = self.rows.astype({"accuracy": float}).assign(bounds=self.rows["seen"] < self.rows["total"])
        self.rows["model"] = (chosen.cumsum() - 1).where(chosen).astype("Int64")
        self.accepted = self.rows[chosen].set_index("model")
        held = f"has {len(self)} of {self.plan.count} models: it was interrupted, cut or out of candidates"
        self.unfinished = f"{held}; the same create command goes on" if len(self) < self.plan.count else ""
        if self.unfinished and not partial:
            raise MgenbError(f"{self.path} {self.unfinished}")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Pool, partial=True), (self.path,)  # a DataLoader's workers open the pool themselves

    def __len__(self) -> int:
        return len(self.accepted)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, key: int) -> nn.Module:
        return self.network(self.state(key))

    def state(self, key: int) -> State:
        """Return the state_dict of one model, on the CPU, made from its seed; NoSuchModel for another key."""
        return self.generated(int(self.row(key)["seed"]))

    def row(self, key: int) -> dict[str, Any]:
        """Return the row of one model; NoSuchModel for anything but a whole number from 0 to len - 1."""
        if not isinstance(key, Integral) or isinstance(key, bool) or not 0 <= key < len(self):
            raise NoSuchModel(f"no model {key!r} in {self.path}: it holds {len(self)}, numbered from 0")
        row: dict[str, Any] = self.accepted.iloc[key].to_dict()
        return row

    @cached_property
    def generated(self) -> Callable[[int], State]:
        """Seed -> state_dict; coefficients and masks of the base are computed once."""
        return mge.model_generator(self.base, self.plan.settings)

    @cached_property
    def marks(self) -> Callable[[State], dict[str, Any]]:
        """State_dict -> its `distance`, the projection of its change on a fixed random direction, and its hash."""
        return marker(self.base)

    def network(self, state: State) -> nn.Module:
        """Return a new network of the pool's architecture with a copy of these weights, in eval mode."""
        about = self.header["data"]
        with torch.random.fork_rng(devices=[]):
            net = nets.build(self.plan.arch, about["channels"], about["size"], about["classes"])
        net.load_state_dict(state)
        return net.eval()

    def export(self, key: int, file: Path) -> None:
        """Write one model as safetensors, with where it comes from as JSON beside it; MgenbError to overwrite."""
        store.refuse_taken(file)
        row = self.row(key)
        candidate = {name: row[name] for name in ("index", "seed", "right", "seen", "total", "hash")}
        origin = {"plan": self.header["plan"], "base": self.header["base"]["sha256"], "candidate": candidate}
        store.save_weights(file, self.state(key), {"arch": self.plan.arch, **self.header["data"], **origin})

    def verify(self, rows: int | None = None) -> Report:
        """Generate all models again, or the first `rows`, and compare with the manifest.

        Where the hash differs, distance and projection tell the recorded model up to float noise from another one.
        """
        same, close, different = 0, [], []
        for key in tqdm(range(len(self) if rows is None else min(rows, len(self))), desc="verifying"):
            row, found = self.row(key), self.marks(self.state(key))
            noise = NOISE * row["distance"]
            off = [name for name in ("distance", "projection") if not abs(found[name] - row[name]) <= noise]
            if off:
                different.append(f"model {key}: its {off[0]} is {found[off[0]]}; recorded is {row[off[0]]}")
            elif found["hash"] == row["hash"]:
                same += 1
            else:
                close.append(key)
        return Report(same, tuple(close), tuple(different))

    def describe(self) -> str:
        """Return a summary for people, a few lines."""
        plan, about, base, tried = self.plan, self.header["data"], self.header["base"], len(self.rows)
        rate = f"{proportion(len(self), tried, 'candidates').times(100)} %" if tried else "none tried yet"
        low, high = (100 * self.accepted["accuracy"].fillna(self.accepted[name]) for name in ("low", "high"))
        ended = ", bounds only where passes ended early" if self.accepted["bounds"].any() else ""
        lines = [
            f"{plan.arch} on {about['name']} [{about['variant']}], {plan.epochs} epochs of {plan.recipe}",
            f"base      {100 * base['right'] / base['total']:.2f} % of {base['total']} validation images",
            f"models    {f'{low.min():.2f} to {high.max():.2f} %{ended}' if len(self) else 'none'}",
            f"accepted  {len(self)} models of {tried} candidates: {rate}",
        ]
        return "\n".join([*lines, f"The pool {self.unfinished}."] if self.unfinished else lines)
