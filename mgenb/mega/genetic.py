"""MeGA (arXiv 2406.04607): a genetic algorithm over convex combinations of two trained networks' weights.

The population is one stacked state_dict on the parents' device. What the paper leaves open, and what the author's
published code does otherwise, is an option of `Settings`; `VARIANTS` names the sets of them.
"""

import itertools
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
from mgenb.mega.segment import STATISTICS, check_match, layer_of, learned, mixed, provenances
from mgenb.seeds import derive, numpy_generator
from mgenb.store import State

Stacked = dict[str, torch.Tensor]  # name -> [individuals, *shape]: tensors of floats alone
Row = dict[str, Any]  # what is noted of an individual or a generation

VERSION = 1  # raise it when the same merge goes another way: a checkpoint goes on under its own version alone


@dataclass(frozen=True)
class Settings:
    """How to merge. The defaults are the variant 'paper'.

    size, generations: N and the number of generations.
    grain: what one alpha (initial population) or beta (crossover) covers: the whole 'network', a 'layer' or a 'weight'.
    with_parents: the initial population holds both parents; else it is all alpha ~ U(0, 1), which never reaches them.
    winners, entrants: K tournaments of t individuals (or all, where there are fewer) choose who may be a parent; t is
        not stated in the paper.
    redone: each child has K tournaments of its own, of which the first two winners are used (the author's code);
        else they are held once a generation and each child draws its two parents from the K winners.
    distinct: a child's two parents are never one and the same individual.
    pairs: each pair of the K winners has one child, so that a generation has K (K - 1) / 2 (line 22 of Algorithm 1 read
        literally); else it has N - 1.
    rate, sigma: probability and standard deviation of a mutation; sigma is not stated in the paper.
    mutate: each of the 'weights' with that probability, or whole 'tensors' at once (the author's code).
    relative: sigma is in units of the tensor's own standard deviation in the first parent.
    statistics: BatchNorm's running statistics are 'mixed', or 'mutated' too, so that variances may turn negative (the
        author's code). To compute them anew before each evaluation is the matter of `merge`'s fitness.
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
    pairs: bool = False
    rate: float = 0.02
    sigma: float = 0.1
    mutate: str = "weights"
    relative: bool = False
    statistics: str = "mixed"
    evaluate_last: bool = True

    def __post_init__(self) -> None:
        demand(self, grain=("network", "layer", "weight"), mutate=("weights", "tensors"))
        demand(self, statistics=("mixed", "mutated"), size=2, generations=1, winners=2, entrants=1)
        demand(self, rate=(0.0, 1.0), sigma=0.0)

    @property
    def evaluated(self) -> int:
        """How many generations are evaluated, the first population among them."""
        return self.generations + self.evaluate_last

    @property
    def children(self) -> int:
        """How many children a generation has."""
        return math.comb(self.winners, 2) if self.pairs else self.size - 1


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
    """What a checkpoint holds: rows of what was evaluated, as in `Merged`, and the population that comes next.

    weights, rows: of its individuals. After the first generation the best so far is their first and not evaluated
    again; after the last it is alone.
    """

    history: list[Row]
    individuals: list[Row]
    weights: Stacked
    rows: list[Row]


def merge(
    first: State, second: State, settings: Settings, seed: int, fitness: Criterion, *, checkpoint: Path | None = None
) -> Merged:
    """Merge two networks by the genetic algorithm of MeGA.

    `fitness` gives each state_dict of a generation a number, more is better; with `population.accuracy_on` it is
    accuracy on validation images. An individual whose fitness is not finite is counted and never chosen before one
    whose is. The best individual goes into the next generation as it is. With `first` twice, it is a search around
    one parent.

    With `checkpoint` the state is written there after each generation, and the same call goes on from it, to the
    identical result. Raises MgenbError for networks that do not match (the key is named), when no individual of the
    first generation has a finite fitness, or when the checkpoint is damaged or another merge's.
    """
    first, second = store.usable(first, "the first network"), store.usable(second, "the second network")
    check_match(first, second)
    parents = [store.tensor_hash(parent, parent) for parent in (first, second)]
    same = {"version": VERSION, "settings": asdict(settings), "seed": seed, "parents": parents}
    key = store.key_of(same | {"fields": list(_Progress.__annotations__)})
    breeding = _Breeding(first, second, settings, seed)
    saved = store.load_progress(checkpoint, key, breeding.device)
    progress = _Progress(**saved) if saved else _Progress([], [], *breeding.initial())
    while len(progress.history) < settings.evaluated:
        progress = breeding.generation(progress, fitness)
        store.save_progress(checkpoint, key, vars(progress))
    frames = pd.DataFrame(progress.history), pd.DataFrame(progress.individuals)
    return Merged(breeding.whole(progress.weights, 0), *frames)


class _Breeding:
    """Makes and evaluates generations; what does not change from one to the next is held here."""

    def __init__(self, first: State, second: State, settings: Settings, seed: int) -> None:
        self.first, self.second, self.settings, self.seed = first, second, settings, seed
        self.device = first[learned(first)[0]].device

    def whole(self, weights: Stacked, place: int) -> State:
        """Return an individual's state_dict; counters and other whole numbers are the first parent's."""
        return {**self.first, **{name: tensor[place] for name, tensor in weights.items()}}

    def random(self, *stream: str | int) -> torch.Generator:
        """Return a generator on the device: what is drawn for every weight never passes through the host."""
        return torch.Generator(self.device).manual_seed(derive(self.seed, *stream))

    def shares(self, count: int, *stream: str | int) -> Callable[[str], torch.Tensor]:
        """Return tensor's name -> shares in [0, 1] of `count` individuals, as fine as the grain, to broadcast."""
        grain, source = self.settings.grain, self.random(*stream)

        def share(name: str) -> torch.Tensor:
            shape = self.first[name].shape
            if grain == "weight":
                return torch.rand((count, *shape), generator=source, device=self.device)
            again = self.random(*stream, *([layer_of(name)] if grain == "layer" else []))
            return torch.rand((count, *[1] * len(shape)), generator=again, device=self.device)

        return share

    def initial(self) -> tuple[Stacked, list[Row]]:
        """Return the first population, which is still to be evaluated."""
        size, with_parents = self.settings.size, self.settings.with_parents
        weights = mixed(self.first, self.second, self.shares(size, "initial"))
        for name, tensor in weights.items() if with_parents else ():
            tensor[0], tensor[1] = self.first[name], self.second[name]
        origins = ["parent" if with_parents and number < 2 else "initial" for number in range(size)]
        return weights, [_newborn(number, 0, origin, -1, -1) for number, origin in enumerate(origins)]

    def generation(self, progress: _Progress, fitness: Criterion) -> _Progress:
        """Evaluate the population that waits, and make the next one, if there is to be one."""
        new = [row for row in progress.rows if "fitness" not in row]
        waiting = {name: tensor[-len(new) :] for name, tensor in progress.weights.items()}
        states = (self.whole(waiting, place) for place in range(len(new)))
        values = population.scores("fitness", fitness, states, len(new))
        for row, value, place in zip(new, values, provenances(waiting, self.first, self.second), strict=True):
            row.update(fitness=value, **asdict(place))
        ranks = [row["fitness"] if math.isfinite(row["fitness"]) else -math.inf for row in progress.rows]
        best = ranks.index(max(ranks))  # the first of equals
        if ranks[best] == -math.inf:
            raise MgenbError(f"none of the {len(new)} individuals of the first generation has a finite fitness")
        history = [*progress.history, _summary(new, progress.rows[best], waiting)]
        weights, rows = {name: tensor[[best]] for name, tensor in progress.weights.items()}, [progress.rows[best]]
        if len(history) < self.settings.evaluated:
            made, children = self.children(progress, ranks)
            weights = {name: torch.cat([weights[name], made[name]]) for name in made}
            rows += children
        return _Progress(history, [*progress.individuals, *new], weights, rows)

    def children(self, progress: _Progress, ranks: list[float]) -> tuple[Stacked, list[Row]]:
        """Return the children of a population that is evaluated."""
        rows, newest = progress.rows, progress.rows[-1]
        couples = self.couples(newest["generation"], ranks)
        mothers, fathers = (torch.tensor(places, device=self.device) for places in zip(*couples, strict=True))
        share = self.shares(len(couples), "beta", newest["generation"])
        made = {n: torch.lerp(w[fathers], w[mothers], share(n)) for n, w in progress.weights.items()}
        self.mutate(newest["generation"], made)
        first, generation = newest["id"] + 1, newest["generation"] + 1
        return made, [
            _newborn(number, generation, "child", rows[mother]["id"], rows[father]["id"])
            for number, (mother, father) in enumerate(couples, first)
        ]

    def couples(self, generation: int, ranks: list[float]) -> list[tuple[int, int]]:
        """Return the places of each child's two parents, by tournaments."""
        settings, rng = self.settings, numpy_generator(self.seed, "selection", generation)

        def winner(without: int = -1) -> int:
            entrants = [place for place in rng.permutation(len(ranks)) if place != without][: settings.entrants]
            return int(max(entrants, key=ranks.__getitem__))

        winners, couples = [winner() for _ in range(settings.winners)], []
        if settings.pairs:
            return list(itertools.combinations(winners, 2))
        for _ in range(settings.children):
            if settings.redone:
                winners = [winner() for _ in range(settings.winners)]
            mother, father = winners[:2] if settings.redone else rng.choice(winners, 2, replace=False).tolist()
            couples.append((mother, winner(without=mother) if settings.distinct and mother == father else father))
        return couples

    def mutate(self, generation: int, made: Stacked) -> None:
        """Add the mutations to a population, in place."""
        settings, generator = self.settings, self.random("mutation", generation)
        for name, tensor in made.items():
            if name.endswith(STATISTICS) and settings.statistics != "mutated":
                continue
            scale = self.first[name].std(correction=0) if settings.relative else 1.0
            chances = tensor.shape if settings.mutate == "weights" else (len(tensor), *[1] * (tensor.ndim - 1))
            hit = torch.rand(chances, generator=generator, device=self.device) < settings.rate
            noise = torch.randn(tensor.shape, generator=generator, device=self.device)
            tensor += hit * noise * (settings.sigma * scale)


def _newborn(number: int, generation: int, origin: str, mother: int, father: int) -> Row:
    return {"id": number, "generation": generation, "origin": origin, "mother": mother, "father": father}


def _summary(new: Sequence[Row], best: Row, weights: Stacked) -> Row:
    """Return the row of history of an evaluated generation: its individuals, the best so far, its weights."""
    finite = [row["fitness"] for row in new if math.isfinite(row["fitness"])]
    variances = (tensor for name, tensor in weights.items() if name.endswith("running_var"))
    negative = sum(((variance < 0).flatten(1).any(1) for variance in variances), torch.tensor(False))
    return {
        "generation": new[-1]["generation"],
        "evaluations": new[-1]["id"] + 1,
        "best": best["fitness"],
        "mean": float(np.mean(finite)) if finite else math.nan,
        "worst": min(finite, default=math.nan),
        "failed": len(new) - len(finite),
        "negative_variance": int(negative.sum()),
        **{name: best[name] for name in ("alpha", "off_segment", "to_first", "to_second")},
    }
