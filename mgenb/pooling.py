"""Make pools: try candidates until enough are accepted, write a row for each, and go on after an interruption.

Candidates are generated on the CPU wherever they are evaluated, so that the hashes in the manifest do not depend on
the accelerator.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from mgenb import data, mge, nets, population, store, training
from mgenb.errors import MgenbError, choose
from mgenb.pool import (
    BASE,
    CLASSES,
    FORMAT,
    HEADER,
    MANIFEST,
    Header,
    Pool,
    distance,
    first_images,
    judged,
    load_data,
    predictions,
    read_header,
    weights_hash,
)

OWN = (".", "base.", MANIFEST)  # how names in a folder begin whose pool was killed before its header
PROBE = 64  # validation images whose predictions stand in each row
GPU_CHUNK = 16  # candidates evaluated, and rows written, at once; one on a CPU
SETTINGS = mge.Settings()


@dataclass(frozen=True)
class Plan:
    """What makes a pool; raises MgenbError at once for what cannot work.

    count: how many accepted models; eps: the discriminator's tolerance in (0, 1]; a limit of 0 means all images;
    source: 'auto' or 'samples', as `data.load` takes it; early_stop: end a candidate's pass over the validation
    images once its acceptance is certain, which leaves bounds in place of its accuracy.
    """

    dataset: str
    arch: str
    count: int
    settings: mge.Settings = SETTINGS
    seed: int = 0
    eps: float = 0.05
    recipe: str = "mge-adam"
    epochs: int = 3
    train_limit: int = 0
    val_limit: int = 0
    source: str = "auto"
    early_stop: bool = False

    def __post_init__(self) -> None:
        choose("architecture", self.arch, nets.ARCHITECTURES)
        choose("recipe", self.recipe, training.RECIPES)
        choose("source", self.source, ("auto", "samples"))
        for name, least in (("count", 1), ("epochs", 1), ("seed", 0), ("train_limit", 0), ("val_limit", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise MgenbError(f"{name} is {value!r}; right is a whole number of at least {least}")
        if not 0 < self.eps <= 1:
            raise MgenbError(f"eps is {self.eps!r}; right is a number above 0 and at most 1 (the paper: 0.05)")
        mge.unimportant(torch.eye(2), self.settings, 0)  # a wrong transform or domain is told before training

    def header(self) -> Header:
        """Return the part of the header that is known before anything is loaded."""
        limits = {"train_limit": self.train_limit, "val_limit": self.val_limit}
        return {
            "format": FORMAT,
            "arch": self.arch,
            "count": self.count,
            "dataset": {"given": self.dataset, "source": self.source, "seed": self.seed, **limits},
            "base": {"recipe": self.recipe, "epochs": self.epochs, "seed": self.seed},
            "settings": asdict(self.settings),
            "seed": self.seed,
            "eps": self.eps,
            "early_stop": self.early_stop,
        }


def create(
    plan: Plan,
    out: Path,
    *,
    max_candidates: int | None = None,
    device: str | torch.device = "cpu",
    materialise: bool = False,
) -> Pool:
    """Make the pool `out`, or go on with it: what was interrupted ends with the same bytes as what was not.

    A `count` above the pool's own extends it. At most `max_candidates` rows are written (20 x count otherwise,
    and at least 100). `materialise` writes the accepted models' weights too. Raises MgenbError when `out` holds
    another pool, when too few candidates are accepted, or when it cannot be written; the rows stay.
    """
    place = population.device(device)
    limit = max(100, 20 * plan.count) if max_candidates is None else max_candidates
    if limit < plan.count:
        raise MgenbError(f"max_candidates is {limit}; right is at least the count, {plan.count}")
    if (out / HEADER).exists():
        _refuse_other(read_header(out), plan.header(), out)
    elif out.exists() and not (out.is_dir() and all(path.name.startswith(OWN) for path in out.iterdir())):
        raise MgenbError(f"{out} is there and is no pool; choose another --out")
    if out.exists() and not os.access(out, os.W_OK):
        raise MgenbError(f"{out} cannot be written to; choose another --out")
    dataset = load_data(plan.header()["dataset"]).to(place)
    if dataset.num_classes > len(CLASSES):
        raise MgenbError(f"{dataset.name} has {dataset.num_classes} classes; a pool holds {len(CLASSES)} at most")
    with store.lock(out / MANIFEST):
        _prepare(plan, out, dataset)
        _cut_partial_line(out / MANIFEST)
        _grow(Pool(out, partial=True), dataset.val, limit)
        pool = Pool(out)
        if materialise:
            pool.materialise()
    return pool


def _prepare(plan: Plan, out: Path, dataset: data.Dataset) -> None:
    """Write base and header, or check that those of `out` are the plan's; the header says that both are there."""
    header = _known(plan, dataset)
    if (out / HEADER).exists():
        old = read_header(out)
        _refuse_other(old, header, out)
        if plan.count > old["count"]:
            store.write_json(out / HEADER, {**old, "count": plan.count})
        return
    net = training.trained(plan.arch, dataset, recipe=plan.recipe, epochs=plan.epochs, seed=plan.seed)
    state = net.state_dict()
    counted = population.count(net, dataset.val, [state])[0]
    header["base"] |= {"sha256": store.tensor_hash(state, state), "right": counted.right, "total": counted.total}
    told = {name: header[name] for name in ("arch", "channels", "size", "classes")}
    store.save_weights(out / BASE, state, {**told, "dataset": dataset.name, **plan.header()["base"]})
    store.write_json(out / HEADER, header)


def _known(plan: Plan, dataset: data.Dataset) -> Header:
    """Return the header but for what the trained base adds."""
    header, device = plan.header(), dataset.val.images.device
    facts = {"name": dataset.name, "variant": dataset.variant, "digest": dataset.digest, "val": len(dataset.val)}
    header["dataset"] |= facts
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return header | {
        "channels": dataset.channels,
        "size": dataset.size,
        "classes": dataset.num_classes,
        "probe": min(PROBE, len(dataset.val)),
        "made_with": {"torch": torch.__version__, "device": name, "machine": platform.machine()},
    }


def _refuse_other(old: Header, wanted: Header, out: Path) -> None:
    """Raise MgenbError unless the header `old` of `out` has all that is `wanted`, but for a larger count."""
    was, now = _flat(old), _flat({**wanted, "count": old["count"]})
    differ = [name for name in now if was.get(name) != now[name]]
    if differ:
        told = "; ".join(f"{name} is {was.get(name)!r} there and {now[name]!r} here" for name in differ[:3])
        raise MgenbError(f"{out} holds another pool: {told}; choose another --out or delete it")
    if wanted["count"] < old["count"]:
        raise MgenbError(f"count is {wanted['count']}; {out} is a pool of {old['count']}: right is at least that")


def _flat(header: Header) -> Header:
    """Return a header with names like 'dataset.digest' in place of objects inside it."""
    flat: Header = {}
    for name, value in header.items():
        flat |= {f"{name}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _grow(pool: Pool, val: data.Split, limit: int) -> None:
    """Try candidates, and write a row for each, until the pool is complete or has `limit` rows (MgenbError)."""
    wanted, done, accepted = pool.header["count"], len(pool.rows), len(pool)
    net = pool.network(pool.base).to(val.images.device)
    size = 1 if val.images.device.type == "cpu" else GPU_CHUNK
    with tqdm(total=wanted, initial=accepted, desc=f"pool {pool.path.name}", unit="model", miniters=0) as bar:
        while accepted < wanted and done < limit:
            first = done - done % size  # whole chunks: what is computed at once does not depend on interruptions
            rows = []
            for row in _examine(pool, net, val, range(first, first + size))[done - first : limit - first]:
                rows.append(row)
                accepted += row["accepted"]
                if accepted == wanted:
                    break
            _append(pool.path / MANIFEST, rows)
            done += len(rows)
            bar.set_postfix_str(f"{100 * accepted / done:.0f} % of {done} accepted", refresh=False)
            bar.update(accepted - bar.n)
    if accepted < wanted:
        raise _too_few(Pool(pool.path, partial=True))


def _too_few(pool: Pool) -> MgenbError:
    header, base = pool.header, pool.header["base"]
    rejected = pool.rows[~pool.rows["accepted"]]
    most = rejected["right"] + rejected["total"] - rejected["seen"]
    lost = base["right"] / base["total"] - (most / rejected["total"]).median()
    return MgenbError(
        f"{len(pool)} of {header['count']} models were accepted among {len(pool.rows)} candidates; the others lose"
        f" {'at least ' if header['early_stop'] else ''}{lost:.3f} of the accuracy (median), and eps is"
        f" {header['eps']:g}; the rows are kept: go on with a larger --max-candidates, or in another --out try a"
        " smaller --z, a larger --t or a larger --eps"
    )


def _examine(pool: Pool, net: nn.Module, val: data.Split, indices: range) -> list[dict[str, Any]]:
    """Return the rows of some candidates; on a CPU one of them is in memory at a time."""
    header, probe, known = pool.header, first_images(val, pool.header["probe"]), []

    def states() -> Iterator[mge.State]:
        for index in indices:
            seed = mge.candidate_seed(header["seed"], index)
            state = pool.generated(seed)
            marks = (distance(pool.base, state), weights_hash(state), predictions(net, probe, state))
            if not math.isfinite(marks[0]):
                raise MgenbError(f"z = {header['settings']['z']} makes weights that are not finite; try 0.2")
            known.append((index, seed, *marks))
            yield state

    fewest = mge.fewest_right(header["base"]["right"], header["base"]["total"], header["eps"])
    counts = population.count(net, val, states(), fewest=fewest if header["early_stop"] else None)
    return [
        {"index": index, "seed": seed, **asdict(count), **judged(count, header)}
        | {"distance": away, "hash": hashed, "settings": pool.settings_key, "probe": probed}
        for (index, seed, away, hashed, probed), count in zip(known, counts, strict=True)
    ]


def _cut_partial_line(file: Path) -> None:
    content = file.read_bytes() if file.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        print(f"{file}: the last line was cut off in the middle and is made again", file=sys.stderr)
        os.truncate(file, whole)


def _append(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows)
    try:
        with file.open("ab") as handle:
            handle.write(text.encode())
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        reason = error.strerror or error
        raise MgenbError(
            f"could not write {file}: {reason}; all models made so far are kept, and the same command goes on"
            " once there is room"
        ) from error
