"""MeGA (arXiv 2406.04607): a genetic algorithm over convex combinations of two trained networks' weights.

The population is one stacked state_dict on the parents' device. What the paper leaves open, and what the author's
published code does otherwise, is an option of `Settings`; `VARIANTS` names the sets of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mgenb import store
from mgenb.errors import MgenbError, demand
from mgenb.measure import population
from mgenb.measure.population import Criterion
from mgenb.mega.segment import NORMALISE, is_statistic, learned, provenances
from mgenb.seeds import derive, numpy_generator
from mgenb.store import State

Stacked = dict[str, torch.Tensor]  # name -> [individuals, *shape]: tensors of floats alone

VERSION = 1  # raise it when the same merge goes another way: a checkpoint goes on under its own version alone
GRAINS = ("network", "layer", "weight")
MUTATIONS = ("weights", "tensors")
STATISTICS = ("mixed", "mutated", "recomputed")


@dataclass(frozen=True)
class Settings:
    """How to merge. The defaults are the variant 'paper'.

    size, generations: N and the number of generations.
    grain: what one alpha (initial population) or beta (crossover) covers: the whole 'network', a 'layer' or a 'weight'.
    with_parents: the initial population holds both parents; else it is all alpha ~ U(0, 1), which never reaches them.
    winners, entrants: K tournaments of t individuals choose who may be a parent; t is not stated in the paper.
    redone: each child has K tournaments of its own, of which the first two winners are used (the author's code);
        else they are held once a generation and each child draws its two parents from the K winners.
    distinct: a child's two parents are never one and the same individual.
    rate, sigma: probability and standard deviation of a mutation; sigma is not stated in the paper.
    mutate: each of the 'weights' with that probability, or whole 'tensors' at once (the author's code).
    relative: sigma is in units of the tensor's own standard deviation in the first parent.
    statistics: BatchNorm's running statistics are 'mixed'; 'mutated' too, so that variances may turn negative (the
        author's code); or mixed and then 'recomputed' on training images before each evaluation.
    evaluate_last: the last offspring are evaluated; in the author's code they are not.
    """

    size: int = 20
    generations: int = 20
    grain: str = "network"
    with_parents: bool = False
    winners: int = 4
    entrants: int = 3
    redone: bool = False
    distinct: bool = False
    rate: float = 0.02
    sigma: float = 0.1
    mutate: str = "weights"
    relative: bool = False
    statistics: str = "mixed"
    evaluate_last: bool = True

    def __post_init__(self) -> None:
        demand(self, grain=GRAINS, mutate=MUTATIONS, statistics=STATISTICS, sigma=0.0)
        demand(self, size=2, generations=1, winners=2, entrants=1)
        if self.entrants > self.size:
            raise MgenbError(f"entrants is {self.entrants}; right is at most the size of the population, {self.size}")
        if not 0 <= self.rate <= 1:
            raise MgenbError(f"rate is {self.rate}; right is a probability, 0 to 1")

    @property
    def evaluated(self) -> int:
        """How many generations are evaluated, the first population among them."""
        return self.generations + self.evaluate_last


VARIANTS = {
    "paper": Settings(),
    "code": Settings(redone=True, mutate="tensors", statistics="mutated", evaluate_last=False),
    "elementwise": Settings(grain="weight"),
    "fixed": Settings(grain="layer", with_parents=True, redone=True, distinct=True, relative=True),
}


@dataclass(frozen=True)
class Merged:
    """What `merge` ended with.

    state: the best individual ever evaluated. history: one row a generation. individuals: one row for each
    evaluation, with ancestry (rows of the generation before) and provenance (see `provenance`).
    """

    state: State
    history: pd.DataFrame
    individuals: pd.DataFrame

    @property
    def fitness(self) -> float:
        """The best fitness."""
        return float(self.history["best"].iloc[-1])

    @property
    def evaluations(self) -> int:
        """How many individuals were evaluated."""
        return len(self.individuals)


@dataclass
class _Progress:
    """What a checkpoint holds: evaluated generations, the population that comes next, and the best so far."""

    rows: list[dict[str, Any]]
    individuals: list[dict[str, Any]]
    waiting: Stacked
    ancestry: list[dict[str, Any]]
    best: Stacked
    best_row: dict[str, Any]


def merge(
    first: State,
    second: State,
    settings: Settings,
    seed: int,
    fitness: Criterion,
    *,
    recompute: Callable[[State], State] | None = None,
    checkpoint: Path | None = None,
) -> Merged:
    """Merge two networks by the genetic algorithm of MeGA.

    `fitness` gives each state_dict of a generation a number, more is better; with `population.accuracy_on` it is
    accuracy on validation images. An individual whose fitness is not finite is counted and never chosen before one
    whose is. The best individual goes into the next generation as it is. `recompute` renews a state's BatchNorm
    statistics and is needed for statistics='recomputed'. With `first` twice, it is a search around one parent.

    With `checkpoint` the state is written there after each generation, and the same call goes on from it, to the
    identical result. Raises MgenbError for networks that do not match (the key is named), when no individual of the
    first generation has a finite fitness, or when the checkpoint is damaged or another merge's.
    """
    check_match(first, second)
    if (settings.statistics == "recomputed") != (recompute is not None):
        raise MgenbError("statistics='recomputed' and the function `recompute` come together: give both or neither")
    parents = [store.tensor_hash(one, one) for one in (first, second)]
    key = store.key_of({"version": VERSION, "settings": asdict(settings), "seed": seed, "parents": parents})
    breed = _Breeding(first, second, settings, seed)
    saved = store.load_progress(checkpoint, key, breed.device)
    progress = _Progress(**saved) if saved else breed.start()
    for generation in range(len(progress.rows), settings.evaluated):
        progress = breed.generation(generation, progress, fitness, recompute)
        store.save_progress(checkpoint, key, vars(progress))
    state = breed.whole({name: tensor[0] for name, tensor in progress.best.items()})
    return Merged(
        recompute(state) if recompute else state, pd.DataFrame(progress.rows), pd.DataFrame(progress.individuals)
    )


def check_match(first: State, second: State) -> None:
    """Raise MgenbError, naming the key, unless both state_dicts have the same tensors in the same shapes.

    Networks that normalise their images differently do not match either.
    """
    for name in [*first, *second]:
        if name not in second or name not in first:
            lacks, has = ("second", "first") if name not in second else ("first", "second")
            raise MgenbError(f"the {lacks} network lacks {name!r}, which the {has} has: merge networks of one kind")
        if first[name].shape != second[name].shape:
            shapes = f"{tuple(first[name].shape)} and {tuple(second[name].shape)}"
            raise MgenbError(f"{name!r} has shapes {shapes}: merge networks of one kind")
        if name.startswith(NORMALISE) and not first[name].equal(second[name]):
            raise MgenbError(f"{name!r} differs: the networks scale their images differently, and cannot be mixed")


class _Breeding:
    """Makes and evaluates generations; what does not change from one to the next is held here."""

    def __init__(self, first: State, second: State, settings: Settings, seed: int) -> None:
        self.first, self.second, self.settings, self.seed = first, second, settings, seed
        self.names = learned(first)
        self.device = first[self.names[0]].device

    def whole(self, tensors: State) -> State:
        """Return a state_dict; counters and other whole numbers are the first parent's."""
        return {**self.first, **tensors}

    def random(self, *names: str | int) -> torch.Generator:
        """Return a generator on the device: what is drawn for every weight never passes through the host."""
        return torch.Generator(self.device).manual_seed(derive(self.seed, *names))

    def shares(self, count: int, *names: str | int) -> Callable[[str], torch.Tensor]:
        """Return tensor's name -> shares in [0, 1] of `count` individuals, as fine as the grain, to broadcast."""
        grain = self.settings.grain
        source = self.random(*names)

        def drawn(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
            return torch.rand((count, *shape), generator=generator, device=self.device)

        if grain == "weight":
            return lambda name: drawn(self.first[name].shape, source)
        one = drawn((), source)

        def share(name: str) -> torch.Tensor:
            layer = name.rpartition(".")[0]
            values = one if grain == "network" else drawn((), self.random(*names, layer))
            return values.view(-1, *[1] * self.first[name].ndim)

        return share

    def start(self) -> _Progress:
        """Return the first population, which is still to be evaluated."""
        s = self.settings
        share = self.shares(s.size, "initial")
        waiting = {}
        for name in self.names:
            waiting[name] = torch.lerp(self.second[name][None], self.first[name][None], share(name))
            if s.with_parents:
                waiting[name][0], waiting[name][1] = self.first[name], self.second[name]
        origins = ["parent" if s.with_parents and i < 2 else "initial" for i in range(s.size)]
        return _Progress([], [], waiting, [{"origin": one, "mother": -1, "father": -1} for one in origins], {}, {})

    def generation(
        self, generation: int, progress: _Progress, fitness: Criterion, recompute: Callable[[State], State] | None
    ) -> _Progress:
        """Evaluate the population that waits, and make the next one, if there is to be one."""
        count = len(progress.ancestry)
        states = (self.whole({name: progress.waiting[name][i] for name in self.names}) for i in range(count))
        found = population.scores("fitness", fitness, map(recompute, states) if recompute else states, count)
        places = provenances(progress.waiting, self.first, self.second)
        told = enumerate(zip(progress.ancestry, found, places, strict=True), start=len(progress.individuals))
        new = [{"id": k, "generation": generation, **a, "fitness": f, **asdict(p)} for k, (a, f, p) in told]
        everyone = [progress.best_row, *new] if progress.best_row else new
        fittest = max(range(len(everyone)), key=lambda i: _finite(everyone[i]["fitness"]))  # the first of equals
        best = everyone[fittest]
        if not math.isfinite(best["fitness"]):
            raise MgenbError(f"none of the {count} individuals of the first generation has a finite fitness")
        pool = progress.waiting
        if progress.best:
            pool = {name: torch.cat([progress.best[name], pool[name]]) for name in self.names}
        elite = {name: pool[name][fittest, None].clone() for name in self.names}  # a view would hold everyone
        row = self.row(generation, progress, new, best)
        last = generation == self.settings.evaluated - 1
        waiting, ancestry = ({}, []) if last else self.children(generation, pool, everyone)
        return _Progress([*progress.rows, row], [*progress.individuals, *new], waiting, ancestry, elite, best)

    def row(
        self, generation: int, progress: _Progress, new: list[dict[str, Any]], best: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the row of history of an evaluated generation."""
        finite = [one["fitness"] for one in new if math.isfinite(one["fitness"])]
        variances = [progress.waiting[name] for name in self.names if name.endswith("running_var")]
        negative = sum((variance < 0).flatten(1).any(1).int() for variance in variances)
        return {
            "generation": generation,
            "evaluations": len(progress.individuals) + len(new),
            "best": best["fitness"],
            "mean": float(np.mean(finite)) if finite else math.nan,
            "worst": min(finite, default=math.nan),
            "failed": len(new) - len(finite),
            "negative_variance": int(torch.as_tensor(negative).bool().sum()),
            **{name: best[name] for name in ("alpha", "off_segment", "to_first", "to_second")},
        }

    def children(
        self, generation: int, pool: Stacked, everyone: list[dict[str, Any]]
    ) -> tuple[Stacked, list[dict[str, Any]]]:
        """Return the next population but for the best so far, which need not be evaluated again, and its ancestry."""
        couples = self.couples(generation, [_finite(one["fitness"]) for one in everyone])
        mothers, fathers = (torch.tensor(one, device=self.device) for one in zip(*couples, strict=True))
        share = self.shares(len(couples), "beta", generation)
        made = {name: torch.lerp(pool[name][fathers], pool[name][mothers], share(name)) for name in self.names}
        self.mutate(generation, made)
        ids = [one["id"] for one in everyone]
        return made, [{"origin": "child", "mother": ids[a], "father": ids[b]} for a, b in couples]

    def couples(self, generation: int, fitness: list[float]) -> list[tuple[int, int]]:
        """Return the two parents of each child, by tournaments."""
        s, rng = self.settings, numpy_generator(self.seed, "selection", generation)

        def winner(without: int = -1) -> int:
            entrants = [i for i in rng.permutation(len(fitness)) if i != without][: s.entrants]
            return int(max(entrants, key=lambda i: fitness[i]))

        winners, couples = [winner() for _ in range(s.winners)], []
        for _ in range(s.size - 1):
            if s.redone:
                mother, father = [winner() for _ in range(s.winners)][:2]
            else:
                mother, father = (int(one) for one in rng.choice(winners, 2, replace=False))
            couples.append((mother, winner(without=mother) if s.distinct and mother == father else father))
        return couples

    def mutate(self, generation: int, made: Stacked) -> None:
        """Add the mutations to a population, in place."""
        s, generator = self.settings, self.random("mutation", generation)
        for name, tensor in made.items():
            if is_statistic(name) and s.statistics != "mutated":
                continue
            scale = self.first[name].std(correction=0) if s.relative else 1.0
            chances = tensor.shape if s.mutate == "weights" else (len(tensor), *[1] * (tensor.ndim - 1))
            hit = torch.rand(chances, generator=generator, device=self.device) < s.rate
            tensor += hit * torch.randn(tensor.shape, generator=generator, device=self.device) * (s.sigma * scale)


def _finite(fitness: float) -> float:
    return fitness if math.isfinite(fitness) else -math.inf
