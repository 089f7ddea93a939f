"""The context of one notebook run: settings, data, base networks, evidence, verdicts, and the record."""

import json
import math
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.figure import Figure
from torch import nn

import mgenb
from mgenb import claims, data, population, stats, store, training
from mgenb.errors import MgenbError, nearest
from mgenb.lab import catalog, experiment, figures, record, rows, telling
from mgenb.lab.pairs import Pair, parse

Place = tuple[str, str]  # dataset and architecture of base networks

PROFILES_VALUE: dict[type, object] = {int: 0, float: -1.0, str: ""}  # "take the profile's"
SHARES = ("t", "share")
NOT_TOLD = ("bases", "candidates", "models", "repeats", "floor")  # how much is averaged, and when to stop
VARIANTS = ("official", "jpeg", "subset", "user", "sample")  # furthest from what the paper used last
AT_CHANCE = 5.0  # percent points above chance within which an accuracy is chance


def start(stem: str, *, profile: str, seed: int, device: str, **own: Any) -> "Run":
    """Resolve profile, device and parameters of the notebook `stem`, print them, and return the run.

    A parameter given as 0 (int), -1.0 (float) or "" takes the profile's value. Raises MgenbError for an unknown
    profile, parameter or device, a negative seed, or a value of the wrong type.
    """
    notebook = catalog.find(stem)
    defaults = notebook.defaults(profile)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise MgenbError(f"seed is {seed!r}; right is a whole number of at least 0")
    settings = dict(defaults)
    for name, value in own.items():
        if name not in defaults:
            raise MgenbError(f"{stem} has no parameter {name!r}{nearest(name, defaults)}")
        if value != PROFILES_VALUE[type(defaults[name])]:
            settings[name] = _as_type(name, value, type(defaults[name]))
    figures.use_style()
    run = Run(notebook, profile, seed, population.device(device), settings)
    print(f"{stem}: profile {profile}, seed {seed}")
    for name, value in settings.items():
        print(f"  {name} = {value}")
    print(f"device {run.device}, torch {torch.__version__}, {torch.get_num_threads()} threads", file=sys.stderr)
    return run


def _as_type(name: str, value: Any, wanted: type) -> Any:
    if isinstance(value, str) and wanted in (int, float):
        try:
            value = float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            raise MgenbError(f"{name} is {value!r}; right is a number ({wanted.__name__})") from None
    if wanted is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if wanted is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, wanted) or isinstance(value, bool) is not (wanted is bool):
        raise MgenbError(f"{name} is {value!r}; right is a value of type {wanted.__name__}")
    if isinstance(value, int | float) and not 0 <= value < math.inf:
        raise MgenbError(f"{name} is {value!r}; right is a number of at least 0")
    if name in SHARES and isinstance(value, int | float) and value > 1:
        raise MgenbError(f"{name} is {value!r}; right is a number from 0 to 1")
    return value


@dataclass(frozen=True)
class _Bases:
    """Base networks as claims see them: their scale, accuracy by chance (%), and why they prove nothing or ""."""

    scale: claims.Scale
    chance: float
    unfit: str


class Run:
    """One run of a notebook; made by `start`. `s` holds the resolved settings."""

    def __init__(
        self,
        notebook: catalog.Notebook,
        profile: str,
        seed: int,
        device: torch.device,
        settings: dict[str, Any],
    ) -> None:
        self.notebook, self.profile, self.seed, self.device = notebook, profile, seed, device
        self.s = SimpleNamespace(**settings)
        self.settings = settings
        self.version = 1  # of the experiment; `measure` says another
        self._began = time.monotonic()
        self._estimates: dict[str, stats.Estimate] = {}
        self._differ: dict[str, bool] = {}
        self._blocked: dict[str, str] = {}
        self._made: dict[Place, _Bases] = {}  # first ones first
        self._machine: dict[str, Any] = {}  # where rows were measured, which may not be here
        self._described: dict[str, dict[str, Any]] = {}  # dataset of the settings -> what rows say of it
        self._places_of: dict[str, list[Place]] = {}  # claim -> where its evidence comes from
        self._verdicts: list[claims.Verdict] = []
        self._figures: list[str] = []
        self._timed: dict[str, Any] = {}
        self._unfinished: list[Path] = []
        self._result: dict[str, Any] = {
            "data": [],
            "mechanism": {},
            "tables": {},
            "test_uses": [],
            "leaks": [],
            "bases": [],
            "readings": [],
        }

    def pairs(self) -> list[Pair]:
        """Return the networks and datasets that the setting `pairs` names."""
        return parse(self.s.pairs)

    def load(self, pair: Pair | None = None, *, whole: bool = False) -> data.Dataset:
        """Return the dataset of `pair`, or of the settings, on the device; `whole`: without the settings' limits."""
        s = self.s
        name = pair.dataset if pair else s.dataset
        limits = (s.train if not pair else 0, s.val, s.test)
        if whole:
            limits = (0, 0, 0)
        elif pair and pair.images:
            limits = (pair.images, pair.images // 5, pair.images // 5)
        dataset = experiment.dataset(name, limits, seed=self.seed, profile=self.profile, device=self.device)
        self._show_data(dataset.describe())
        return dataset

    def _show_data(self, about: dict[str, Any]) -> None:
        train, val, test = (about["counts"][split] for split in ("train", "val", "test"))
        counts = f"{train} train, {val} validation, {test} test (sealed)"
        print(f"{about['name']} [{about['variant']}], {about['source']}: {counts}")
        self._result["data"].append(about)

    def part(self, pair: Pair | None = None, /, **own: Any) -> dict[str, Any]:
        """Return a part of an experiment on the networks and data of `pair`, or of the settings; see `experiment`."""
        s = self.s
        if pair is None:
            limits, of = (s.train, s.val, s.test), (s.dataset, s.arch, s.recipe, s.epochs)
        else:
            images = pair.images
            limits = (images, images // 5, images // 5) if images else (0, s.val, s.test)
            of = pair.dataset, pair.arch, pair.recipe, pair.epochs
        names = "dataset", "arch", "recipe", "epochs", "train", "val", "test"
        return {**dict(zip(names, (*of, *limits), strict=True)), **own}

    def measure(
        self, parts: Sequence[rows.Part], function: rows.Function, *, version: int, executor: Executor | None = None
    ) -> rows.Rows:
        """Return the rows of `function` on these parts, which the notebook's VERSION names: measured, or read.

        Where planned parts are missing from rows that are read, no claim is tested.
        """
        self.version = version
        name = rows.Experiment(self.notebook.stem, version, self.seed)
        of_run = {"seed": self.seed, "profile": self.profile, "device": str(self.device)}
        found = experiment.measure(parts, function, name, of_run, catalog.output_dir(self.profile), executor)
        self._machine = found.parts[["device", "cores"]].iloc[0].to_dict()
        self._described = dict(zip(found.parts["dataset"], found.parts["described"], strict=True))
        for dataset, about in self._described.items():
            self._show_data(about)
            if looks := int(found.parts.loc[found.parts["dataset"] == dataset, "test_looks"].sum()):
                self._result["test_uses"].append({"dataset": about["name"], "looks": looks})
        if found.unfinished:
            print(found.unfinished)
            self._blocked |= {claim.id: found.unfinished for claim in self._claims() if claim.kind != "setting"}
        return found

    def best_rows(self, own: rows.Rows) -> rows.Rows:
        """Return the committed rows of the highest profile above this run's; `own` where there are none."""
        for profile in reversed(catalog.PROFILES[catalog.PROFILES.index(self.profile) + 1 :]):
            path = catalog.project_root() / "figures" / profile / f"{self.notebook.stem}.csv"
            if path.exists() and (found := rows.read(path)).experiment.version == self.version:
                return found
        return own

    def tell(self, text: str, **values: Any) -> Markdown:
        """Return Markdown in which `{name:.1f}` stands for a value: so that no number of the prose is typed."""
        return Markdown(text.format(**values))

    def bases(
        self,
        dataset: data.Dataset,
        pair: Pair | None = None,
        *,
        arch: str = "",
        epochs: int = 0,
        count: int = 0,
        finish: Callable[[nn.Module], None] | None = None,
    ) -> list[nn.Module]:
        """Return trained base networks, each from a seed of its own; what is left out comes from pair or settings.

        `finish` changes each of them in place, after the cache and before its accuracy is taken.
        Where one of them is below the floor (validation accuracy in percent) what rests on them is *not tested*,
        since a broken base proves nothing. The first call says at which scale claims are judged by default.
        """
        s = self.s
        arch, epochs = (pair.arch, pair.epochs) if pair else (arch or s.arch, epochs or s.epochs)
        recipe, floor = (pair.recipe, pair.floor) if pair else (s.recipe, s.floor)
        count = count or s.bases
        first = 1000 * self.seed
        nets = [
            training.trained(arch, dataset, recipe=recipe, epochs=epochs, seed=one)
            for one in range(first, first + count)
        ]
        if finish:
            for net in nets:
                finish(net)
        accuracies = [population.accuracy(net, dataset.val) for net in nets]
        self._stand_on(dataset.describe(), pair.dataset if pair else dataset.name, arch, accuracies, floor)
        return nets

    def rest_on(self, accuracies: Iterable[float], pair: Pair | None = None) -> None:
        """Say, from rows, how accurate (%) the base networks of `pair`, or of the settings, are on validation images.

        What rests on them is *not tested* where one is below the floor; see `bases`.
        """
        of, floor = (pair, pair.floor) if pair else (self.s, self.s.floor)
        self._stand_on(self._described[of.dataset], of.dataset, of.arch, list(accuracies), floor)

    def _stand_on(self, about: Mapping[str, Any], place: str, arch: str, accuracies: list[float], floor: float) -> None:
        self._result["bases"].append({"dataset": about["name"], "arch": arch, "val_accuracy": accuracies})
        fine = min(accuracies) >= floor
        print(f"{len(accuracies)} x {arch}, every one at least {floor:g} % on validation: {fine}")
        scale = claims.Scale(self.profile, about["variant"], about["name"], arch, self._by_hand())
        unfit = f"a base network has {min(accuracies):.1f} % on validation, below the floor of {floor:g} %"
        self._made[place, arch] = _Bases(scale, 100 / about["classes"], "" if fine else unfit)

    def _by_hand(self) -> str:
        """Name the settings that are not the profile's, as "t=0.99", but for how much is averaged over."""
        usual = self.notebook.defaults(self.profile)
        told = {name: v for name, v in self.settings.items() if v != usual[name] and name not in NOT_TOLD}
        return ", ".join(f"{name}={value}" for name, value in told.items())

    def final_test(
        self,
        dataset: data.Dataset,
        models: Mapping[Any, experiment.Candidate],
        measure: experiment.Measure = population.correct,
    ) -> dict[Any, Any]:
        """Return what `experiment.final_test` does; the look is counted and stands in the record."""
        found = experiment.final_test(dataset, models, measure, self.notebook.stem)
        self._result["test_uses"].append({"dataset": dataset.name, "models": len(models)})
        return found

    def leak(self, dataset: data.Dataset, reason: str) -> data.Split:
        """Return the test images for selection, as a paper's code did: it is told, and marks the record."""
        self._result["leaks"].append({"dataset": dataset.name, "reason": reason})
        print(f"LEAK: test images of {dataset.name} are used for selection: {reason}")
        return replace(dataset.test.unseal(f"LEAK: {reason}"), role="leaked test")

    def mechanism(self, name: str, value: object) -> None:
        """Print and record a fact of the method that holds at any scale; nbval compares it."""
        self._result["mechanism"][name] = value
        print(f"mechanism {name}: {value}")

    def knows(self, claim_id: str) -> bool:
        """Return whether the registry has this claim of the notebook; of pairs that no paper tried it has none."""
        return any(claim.id == claim_id for claim in self._claims())

    def fit(self, pair: Pair) -> bool:
        """Return whether the base networks of `pair` are above its floor."""
        return not self._made[pair.dataset, pair.arch].unfit

    def evidence(
        self,
        claim_id: str,
        estimate: stats.Estimate,
        *,
        differ: bool | None = None,
        pairs: Iterable[Pair] = (),
        left: float | None = None,
    ) -> None:
        """Record what was measured for a claim, on the networks of `pairs` or else the first ones.

        `differ`: whether the generated models differ from their base. `left`: the highest accuracy (%) of what is
        compared; at chance the claim is *not tested*, for nothing is left to compare.
        """
        claims.get(claim_id)
        self._estimates[claim_id] = estimate
        self._places_of[claim_id] = [(pair.dataset, pair.arch) for pair in pairs]
        if differ is not None:
            self._differ[claim_id] = differ
        if left is not None and left < self._made[self._places(claim_id)[0]].chance + AT_CHANCE:
            self._blocked.setdefault(claim_id, f"both at chance: at most {left:.1f} % are right")

    def not_tested(self, claim_id: str, reason: str) -> None:
        """Say why this notebook does not test a claim."""
        self._blocked[claims.get(claim_id).id] = reason

    def compare(
        self, claim_id: str, look: Mapping[Any, torch.Tensor], better: str, worse: str, pair: Pair | None = None
    ) -> None:
        """Record as evidence how many points more `worse` loses than `better` (see `points_lost`)."""
        lost = stats.paired(points_lost(look, worse), points_lost(look, better))
        left = max(_accuracy(look, method) for method in (better, worse))
        self.evidence(claim_id, lost, pairs=[pair] if pair else (), left=left)

    def _places(self, claim_id: str) -> list[Place]:
        return self._places_of.get(claim_id) or list(self._made)[:1]

    def _scale_of(self, claim_id: str) -> claims.Scale:
        """Return the scale of a claim's evidence: of several pairs all names, and the data furthest from official."""
        if (claim := claims.get(claim_id)).counted:
            return claims.Scale(self.profile, "no data", "none", str(claim.scale.get("arch", "any")))
        scales = [self._made[place].scale for place in self._places(claim_id)]
        names = {key: ", ".join(dict.fromkeys(getattr(one, key) for one in scales)) for key in ("dataset", "arch")}
        return replace(max(scales, key=lambda one: VARIANTS.index(one.variant)), **names)

    def _unfit_for(self, claim_id: str) -> str:
        """Return why no network behind a claim's evidence is sound; "" where one is, or none is needed."""
        if claims.get(claim_id).counted:
            return ""
        reasons = [self._made[place].unfit for place in self._places(claim_id)]
        return reasons[0] if all(reasons) and reasons else ""

    def reading(self, claim_id: str, reading: str, estimate: stats.Estimate) -> None:
        """Record what another reading of the ambiguous method measured for a claim."""
        low, high = estimate.interval()
        blocked = claim_id in self._blocked or bool(self._unfit_for(claim_id)) or not self._differ.get(claim_id, True)
        verdict = claims.NOT_TESTED if blocked else claims.decide(claims.get(claim_id), (low, high))
        ends = {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}
        entry = {"claim": claim_id, "reading": reading, "estimate": estimate.estimate, **ends}
        self._result["readings"].append({**entry, "verdict": verdict})

    def readings_table(self) -> pd.DataFrame:
        """Return each reading's estimate, 95 % interval and what it alone would say (without Holm)."""
        return pd.DataFrame(self._result["readings"]).set_index(["claim", "reading"]).round(2)

    def paper_says(self) -> None:
        """Print the claims of this notebook, from the registry; the cells of a table in one line."""
        print("\n".join(telling.sentences(self._claims())))

    def _claims(self) -> list[claims.Claim]:
        return [claim for claim in claims.load() if claim.notebook == self.notebook.stem]

    def verdicts(self) -> None:
        """Judge the evidence as one family (Holm) and print one token a claim; settings are not judged."""
        if not self._made:
            raise MgenbError("no base networks were made: call run.bases before run.verdicts")
        judged = [claim.id for claim in self._claims() if claim.kind != "setting"]
        unfit = {name: reason for name in judged if (reason := self._unfit_for(name))}
        missing = {name: telling.UNTRIED for name in judged if name not in self._estimates}
        scales = {name: self._scale_of(name) for name in judged}
        self._verdicts = claims.judge(
            self._estimates, scales, blocked={**unfit, **missing, **self._blocked}, differ=self._differ
        )
        print("\n".join(telling.tokens(self._verdicts)))

    def claims_table(self) -> pd.DataFrame:
        """Return paper against measured, a row a claim of this notebook; a table's untested cells share one row."""
        return telling.table(self._claims(), self._verdicts)

    def table(self, name: str, frame: pd.DataFrame, *, timed: bool = False) -> pd.DataFrame:
        """Record a table under `name` and return it for display; `timed`: apart from what two runs have in common."""
        tables = self._timed if timed else self._result["tables"]
        tables[name] = json.loads(frame.reset_index().to_json(orient="records", double_precision=6))
        return frame

    def figure(self, name: str, figure: Figure, pairs: Iterable[Pair] = (), of: rows.Rows | None = None) -> None:
        """Caption (with `pairs`, or the rows it is `of`, else all), save and record a figure; the cell shows it."""
        places = [(pair.dataset, pair.arch) for pair in pairs] or list(self._made)
        shown = [self._made[place].scale for place in places]
        text = ", ".join([f"profile {self.profile}", *(f"{s.arch} on {s.dataset} [{s.variant}]" for s in shown)])
        figures.caption(figure, experiment.caption(of) if of else text)
        file = f"{self.notebook.stem}-{name}.png"
        figures.save(figure, catalog.output_dir(self.profile) / file)
        self._figures.append(file)

    def checkpoint(self, name: str) -> Path | None:
        """Return the file from which a long computation goes on when the same run is started again, until `finish`.

        None in the quick profile, whose runs are short. Other settings, another seed or other code is another file.
        """
        if self.profile == "quick":
            return None
        told = {"profile": self.profile, "seed": self.seed, "settings": self.settings}
        file = store.unfinished(f"{self.notebook.stem}-{name}", told)
        self._unfinished.append(file)
        return file

    def finish(self) -> None:
        """Write the record `<stem>.json` beside the figures; where that is goes to stderr."""
        path = catalog.output_dir(self.profile) / f"{self.notebook.stem}.json"
        made = record.Record(
            schema=record.SCHEMA,
            stem=self.notebook.stem,
            profile=self.profile,
            figures=self._figures,
            context={**self._context(), **self._machine, "timed": self._timed},
            seed=self.seed,
            version=self.version,
            registry=claims.registry_hash(self.notebook.stem),
            settings=self.settings,
            margins={claim.id: claim.margin for claim in self._claims()},
            claims=[verdict.to_json() for verdict in self._verdicts],
            **self._result,
        )
        store.write_json(path, made.to_json())
        for file in self._unfinished:
            file.unlink(missing_ok=True)
        if self.profile == "quick":  # which always computes; what a killed run left was for this one
            shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
        print(f"record {path.name}: {len(self._verdicts)} verdicts, {len(self._figures)} figures")
        print(f"written to {path.parent}", file=sys.stderr)

    def _context(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "mgenb": mgenb.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._began, 1),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


def points_lost(look: Mapping[Any, torch.Tensor], method: str) -> np.ndarray:
    """Return the points of accuracy that `method` lost against the base, float64, one number a base network.

    `look` maps (label, base index, draw) to which images are right, and holds ("base", index, 0) for every
    base; the draws of one base are averaged, since they are not independent.
    """
    hits = {key: 100 * right.double().mean().item() for key, right in look.items()}
    lost = []
    for index in sorted({base for _, base, _ in look}):
        draws = [hit for (label, base, _), hit in hits.items() if (label, base) == (method, index)]
        lost.append(hits["base", index, 0] - np.mean(draws))
    return np.array(lost)


def _accuracy(look: Mapping[Any, torch.Tensor], method: str) -> float:
    return 100 * float(np.mean([right.double().mean() for (label, _, _), right in look.items() if label == method]))
