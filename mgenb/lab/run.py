"""The context of one notebook run: settings, data, base networks, evidence, verdicts, and the record."""

import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

import mgenb
from mgenb import claims, stats, store
from mgenb.data.splits import LOOKS
from mgenb.errors import MgenbError
from mgenb.lab import catalog, experiment, figures, parameters, rows, specification, tables, telling
from mgenb.lab.evidence import Bases, Evidence, Place, judge, measured_on
from mgenb.lab.parameters import Network
from mgenb.lab.record import SCHEMA, Record, read


def start(stem: str, *, profile: str, seed: int, device: str, **own: Any) -> "Run":
    """Check profile, device and parameters of the notebook `stem`, print them, and return the run.

    A parameter that is None takes the profile's value. Raises MgenbError for what is not right (`parameters.check`).
    """
    notebook = catalog.find(stem)
    chosen = parameters.check(notebook, profile, {"seed": seed, "device": device, **own})
    figures.use_style()
    tables.use_tables()
    print(f"{stem}: profile {profile}, seed {chosen.seed}")
    for name, value in chosen.settings.items():
        print(f"  {name} = {parameters.as_text(value)}")
    for network in chosen.networks:
        images = f", {network.images} images" if network.images else ""
        how = f"{network.recipe}, {network.epochs} epochs{images}, floor {100 * network.floor:g} %"
        print(f"  {network.name}: {network}, {how}")
    print(f"device {chosen.device}, torch {torch.__version__}, {torch.get_num_threads()} threads", file=sys.stderr)
    return Run(notebook, chosen)


class Run:
    """One run of a notebook; made by `start`.

    What is run: settings, data, base networks, the final test. What is found: `findings`, judged at the end.
    What is written: `notes`; see `record_of`.
    """

    def __init__(self, notebook: catalog.Notebook, chosen: parameters.Parameters) -> None:
        self.notebook, self.chosen = notebook, chosen
        self.profile, self.seed, self.device = chosen.profile, chosen.seed, chosen.device
        self.settings, self.networks = SimpleNamespace(**chosen.settings), chosen.networks
        self._of_run = {"seed": self.seed, "profile": self.profile, "device": str(self.device)}
        self._of_run["retrain"] = chosen.retrain
        self.family = [claim for claim in claims.load() if claim.notebook == notebook.stem]
        self.findings = Evidence()
        self.notes: dict[str, Any] = {"data": [], "mechanism": {}, "tables": {}}  # as the record names them
        self.notes |= {"test_uses": [], "figures": []}
        self.timed: dict[str, Any] = {}  # tables that two equal runs do not have in common
        self.made: dict[Place, Bases] = {}  # the first ones first
        self.version = 1  # of the experiment; `measure` says another
        self.machine: dict[str, Any] = {}  # where rows were measured, which may not be here
        self._described: dict[str, dict[str, Any]] = {}  # dataset -> what rows say of it
        self.out = catalog.output_dir(self.profile, chosen.changed)
        self._looked = len(LOOKS)  # at test images, here, when the run began, and by its parts
        self._parts = self.out / f"{notebook.stem}.parts"  # what is kept of a run that is stopped
        self.began = time.monotonic()

    def _show_data(self, about: dict[str, Any]) -> None:
        counts = "{train} train, {val} validation, {test} test (sealed)".format(**about["counts"])
        print(f"{about['name']} [{about['variant']}], {about['source']}: {counts}")
        self.notes["data"].append(about)

    def part(self, network: Network | None = None, /, **own: Any) -> dict[str, Any]:
        """Return a part of an experiment on copies of `network`, else of the first one, with limits of data as text."""
        network = network or self.networks[0]
        trained = {name: getattr(network, name) for name in ("dataset", "arch", "recipe", "epochs")}
        limits = {name: self.chosen.settings.get(name, "all") for name in experiment.SPLITS}
        if network.images:
            limits = {"train": network.images, "val": network.images // 5, "test": network.images // 5}
        named = {name: self.chosen.settings[name] for name in experiment.WHERE_NAMED if name in self.chosen.settings}
        return {**trained, **{name: str(limit) for name, limit in limits.items()}, **named, **own}

    def measure(self, parts: Sequence[rows.Part], function: rows.Function, *, version: int) -> rows.Rows:
        """Return the rows of `function` on these parts, which the notebook's VERSION names: measured, or read.

        Where planned parts are missing from rows that are read, verdicts are *unfinished*.
        """
        self.version = version
        name = rows.Experiment(self.notebook.stem, version, self.seed)
        before = len(LOOKS)
        measured = self._taken(experiment.measure(parts, function, name, self._of_run, self.out))
        self._looked += len(LOOKS) - before
        for dataset, looks in measured.parts.groupby("dataset", sort=False)["test_looks"].sum().items():
            if looks:
                self.notes["test_uses"].append({"dataset": self._described[dataset]["name"], "looks": int(looks)})
        return measured

    def borrow(self) -> rows.Rows:
        """Return the rows of the notebook whose rows this one draws: of a run into its folder, else the committed ones.

        Raises MgenbError where there are none, or they were measured with other settings than this run's.
        """
        stem, committed = self.notebook.rows_of, catalog.project_root() / "figures" / self.profile
        analysed = os.environ.get(catalog.ANALYSE)
        places = [Path(analysed)] if analysed else [self.out, self.out.parent, committed]  # it may run in a stage
        folder = next((place for place in places if (place / f"{stem}.json").exists()), places[-1])
        how, where = f"measure with `mgenb run {stem[:2]}` and the same parameters first", f"in {folder}"
        if not (folder / f"{stem}.csv").exists():
            raise MgenbError(f"{self.notebook.stem} draws the rows of {stem}, and there are none {where}: {how}")
        made, self.version = read(folder / f"{stem}.json"), catalog.version(stem)
        ours = {**self.chosen.settings, "seed": self.seed, "VERSION": self.version}
        ours["networks"] = [asdict(network) for network in self.networks]
        theirs = {**made.settings, "seed": made.seed, "VERSION": made.version, "networks": made.networks}
        if odd := [name for name in ours if ours[name] != theirs.get(name)]:
            raise MgenbError(f"the rows of {stem} {where} were measured with other {', '.join(odd)}: {how}")
        return self._taken(rows.read(folder / f"{stem}.csv"))

    def _taken(self, measured: rows.Rows) -> rows.Rows:
        self.machine = measured.parts[["device", "cores"]].iloc[0].to_dict()
        for dataset, of_dataset in measured.parts.groupby("dataset", sort=False):
            self._described[dataset] = about = of_dataset["described"].iloc[0]
            self._show_data(about)
        if measured.unfinished:
            print(f"unfinished, {measured.unfinished}")
        self.findings.unfinished = measured.unfinished
        return measured

    def best_rows(self, own: rows.Rows) -> rows.Rows:
        """Return the committed rows of the highest profile above this run's that is finished; `own` where none is."""
        for profile in reversed(catalog.PROFILES[catalog.PROFILES.index(self.profile) + 1 :]):
            path = catalog.project_root() / "figures" / profile / f"{self.notebook.measured_in}.csv"
            if path.exists() and (best := rows.read(path)).experiment.version == self.version and not best.unfinished:
                return best
        return own

    def best_figures(self, best: rows.Rows, *names: str) -> None:
        """Show the committed figures of the best rows, as they were drawn then; none where they are the run's own."""
        profile = best.parts["profile"].iloc[0]
        for name in names if profile != self.profile else ():
            display(Image(catalog.project_root() / f"figures/{profile}/{self.notebook.stem}-{name}.png"))

    def tell(self, text: str, **values: Any) -> Markdown:
        """Return Markdown in which `{name:.1f}` stands for a value: so that no number of the prose is typed."""
        return Markdown(text.format(**values))

    def rest_on(self, val: Iterable[float], test: Iterable[float], network: Network | None = None) -> None:
        """Say, from rows, how accurate, in [0, 1], the copies of `network`, else of the first one, are on both splits.

        Where one of them is below the floor what rests on them is *not tested*, since a broken base proves nothing.
        The first call says at which scale claims are judged by default.
        """
        how, val = network or self.networks[0], tuple(val)
        about = self._described[how.dataset]
        sound = f"every one at least {100 * how.floor:g} % on validation: {min(val) >= how.floor}"
        print(f"{len(val)} x {how.arch}, {sound}")
        scale = claims.Scale(self.profile, about["variant"], about["name"], how.arch, self.chosen.by_hand)
        self.made[how.place] = Bases(scale, 1 / about["classes"], how.floor, val, tuple(test))

    def knows(self, claim_id: str) -> bool:
        """Return whether the registry has this claim of the notebook; of networks that no paper tried it has none."""
        return any(claim.id == claim_id for claim in self.family)

    def fit(self, network: Network) -> bool:
        """Return whether the base networks of `network` are sound, so that something can rest on them."""
        return not self.made[network.place].unfit

    def evidence(
        self,
        claim_id: str,
        estimate: stats.Estimate | None,
        reading: str | None = None,
        *,
        networks: Iterable[Network] = (),
        left: float = 1.0,
        novelty: float | None = None,
    ) -> None:
        """Store what was measured for a claim under one of its readings, on `networks` or else the first ones.

        None: the reading is infeasible there, since it gave no models; the others then decide.

        `left`: the highest accuracy of what is compared; at chance nothing is left to compare. `novelty`: how much the
        models differ from their base, in units of how much two trained networks differ; claims that near-copies would
        fulfil need it. Raises MgenbError for a reading that is not registered, or none where there are several.
        """
        claim = self._own(claim_id)
        name = claim.reading(reading or (claim.readings[0].name if len(claim.readings) == 1 else "")).name
        if claim.novelty and novelty is None and estimate:
            raise MgenbError(
                f"{claim_id} is about generated models; say how much they differ from their base: novelty="
            )
        places = tuple(network.place for network in networks) or tuple(self.made)[:1]
        floor = {"left": left, "novelty": 1.0 if novelty is None else novelty}
        self.findings.measured[claim_id, name] = measured_on(self.made, places, estimate, **floor)

    def not_tested(self, claim_id: str, reason: str) -> None:
        """Store why this notebook does not test a claim."""
        self.findings.untested[self._own(claim_id).id] = reason

    def _own(self, claim_id: str) -> claims.Claim:
        claim = claims.get(claim_id)
        if claim not in self.family:
            raise MgenbError(f"claim {claim_id!r} is judged in {claim.notebook}, not in this notebook")
        return claim

    def judged(self) -> tuple[claims.Verdict, ...]:
        """Judge all that was found until now."""
        return judge(self.family, self.findings, self.made)

    def paper_says(self) -> None:
        """Print the claims of this notebook, from the registry; the cells of a table in one line."""
        print("\n".join(telling.sentences(self.family)))

    def paper(self, table: str, *across: str) -> pd.DataFrame:
        """Return a paper's table, as "mge.table2", in its own layout, with ours beside; the axes `across` are columns.

        Ours is what was stored as evidence for a cell; a dash where nothing was run.
        """
        ours = {name: of.estimate.estimate for (name, _), of in self.findings.measured.items() if of.estimate}
        return telling.grid(table, ours, *across)

    def readings_of(self, claim_id: str) -> pd.DataFrame:
        """Return the readings of a claim, as the registry fixed them before anything was measured."""
        return telling.readings(self._own(claim_id))

    def verdicts(self) -> None:
        """Judge what was found (Holm over the notebook's claims) and print one token a claim."""
        print("\n".join(telling.tokens(self.judged())))

    def claims_table(self) -> pd.DataFrame:
        """Return paper against measured, a row a claim of this notebook; a table's untested cells share one row."""
        return telling.table(self.family, self.judged())

    def verdict(self, claim_id: str) -> claims.Verdict:
        """Return the verdict on one claim, of all that was found until now."""
        return next(verdict for verdict in self.judged() if verdict.claim == self._own(claim_id))

    def specification(self, claim_id: str) -> Figure:
        """Return the specification curve of a claim: what each reading measured, and which choices it is made of."""
        return specification.curve(self.verdict(claim_id))

    def mechanism(self, name: str, value: object) -> None:
        """Print and record a fact of the method that holds at any scale; nbval compares it."""
        self.notes["mechanism"][name] = value
        print(f"mechanism {name}: {value}")

    def table(self, name: str, frame: pd.DataFrame, *, timed: bool = False) -> pd.DataFrame:
        """Record a table under `name` and return it for display; `timed`: apart from what two runs have in common."""
        recorded = json.loads(frame.reset_index().to_json(orient="records", double_precision=6))
        (self.timed if timed else self.notes["tables"])[name] = recorded
        return frame

    def test_uses(self) -> list[dict[str, Any]]:
        """Return how often test images were looked at: by dataset, and by a notebook's own cells, outside of parts."""
        outside = len(LOOKS) - self._looked
        return self.notes["test_uses"] + ([{"dataset": "outside of parts", "looks": outside}] if outside else [])

    def figure(self, name: str, figure: Figure, of: rows.Rows | None = None) -> None:
        """Caption (with the rows it is `of`, else all networks), save, record and show a figure, drawn once."""
        own = ((made.scale.arch, made.scale.dataset, made.scale.variant) for made in self.made.values())
        figures.caption(figure, experiment.caption(of) if of else experiment.made_by(self.profile, own))
        path = self.out / f"{self.notebook.stem}-{name}.png"
        figures.save(figure, path)
        plt.close(figure)  # else it is drawn thrice more when the cell ends
        display({"image/png": path.read_bytes(), "text/plain": repr(figure)}, raw=True)
        self.notes["figures"].append(path.name)

    def finish(self) -> None:
        """Write the record `<stem>.json` beside the figures; where that is goes to stderr."""
        path = self.out / f"{self.notebook.stem}.json"
        record = record_of(self)
        store.write_json(path, record.to_json())
        if self.profile == "quick":  # which always computes; what a killed run left was for this one
            shutil.rmtree(self._parts, ignore_errors=True)
        print(f"record {path.name}: {len(record.claims)} verdicts, {len(record.figures)} figures")
        if "MGENB_OUT" not in os.environ:  # else who set it says where results are in the end
            print(f"written to {path.parent}", file=sys.stderr)


def record_of(run: Run) -> Record:
    """Return the record of a run: what was run, what was found and judged, and where."""
    judged = run.judged() if run.made else ()
    bases = [
        {"dataset": made.scale.dataset, "arch": made.scale.arch}
        | {"val_accuracy": list(made.val_accuracy), "test_accuracy": list(made.test_accuracy)}
        for made in run.made.values()
    ]
    context = {
        **experiment.machine(run.device),
        "mgenb": mgenb.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - run.began, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "timed": run.timed,
    }
    return Record(
        schema=SCHEMA,
        stem=run.notebook.stem,
        profile=run.profile,
        context=context | run.machine,
        seed=run.seed,
        version=run.version,
        registry=claims.registry_hash(run.notebook.stem),
        settings=run.chosen.settings,
        networks=[asdict(network) for network in run.networks],
        margins={claim.id: claim.margin for claim in run.family},
        claims=[verdict.to_json() for verdict in judged],
        bases=bases,
        **{**run.notes, "test_uses": run.test_uses()},
    )
