"""E-MGE (arXiv 2402.17486): a population of generated models under mutation, fusion and selection.

Every individual keeps the base's important coefficients, so a mutation of one layer is a fresh draw of that layer,
and a fusion is a weighted average of draws. A recipe says it all: for each layer, draws by seed and their shares;
what they lack of 1 is the base's. Weights are held for the survivors alone.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mgenb import mge, store
from mgenb.errors import MgenbError, choose, demand
from mgenb.measure import population
from mgenb.measure.population import Criterion
from mgenb.mge import frequency
from mgenb.mge.generator import Layers
from mgenb.seeds import derive, numpy_generator
from mgenb.store import State

Recipe = dict[str, dict[int, float]]  # layer -> draw's seed -> share, one entry for every weight layer
Row = dict[str, Any]  # of the history
First = Callable[[int], Mapping[str, int]]  # seed -> layer -> seed of its draw; other layers stay the base's

VERSION = 2  # raise it when the same evolution goes another way: a checkpoint goes on under its own version alone
ORIGINS = ("fresh", "mutation", "fusion")
FUSED = ("children", "taken")


@dataclass(frozen=True)
class Settings:
    """How to evolve; the defaults are the paper's.

    parents, mutations, fusions: n, j and m. n survive; each generation adds j mutants, and fusions of these n + j.
    fused: what m counts: 'children' that fusion adds, each of two at random; or models 'taken' into fusion at most, in
        random disjoint pairs, of which each gives a child.
    fresh: individuals that are drawn anew in each generation. With mutations = fusions = 0 this is random search.
    gamma: fitness is quality + gamma * additional.
    """

    parents: int = 10
    mutations: int = 10
    fusions: int = 20
    generations: int = 100
    gamma: float = 1.0
    fresh: int = 0
    fused: str = "children"

    def __post_init__(self) -> None:
        demand(self, parents=2 if self.fusions else 1, mutations=0, fusions=0, fresh=0, generations=0, gamma=0.0)
        choose("fused", self.fused, FUSED)


@dataclass(frozen=True)
class Individual:
    """One member of a population: what makes it, how it came about, and the two parts of its fitness, once evaluated.

    make: its weight layers, all in which individuals differ, while it can be a parent; afterwards see `replay`.
    """

    recipe: Recipe
    origin: str
    quality: float = math.nan
    additional: float = math.nan
    fitness: float = math.nan
    make: Callable[[], State] = field(default=dict, compare=False, repr=False)

    @property
    def draws(self) -> float:
        """The effective number of tensors that a layer averages, 1 / sum of squared shares, mean over layers."""
        parts = [[*shares.values(), 1 - sum(shares.values())] for shares in self.recipe.values()]
        return float(np.mean([1 / np.square(part).sum() for part in parts]))


@dataclass(frozen=True)
class Evolution:
    """What `evolve` ended with.

    history: one row a generation (0: the first population); best: the fittest individual of each generation;
    survivors: the last population, fittest first. `replay` makes the weights of any of them.
    """

    history: pd.DataFrame
    best: list[Individual]
    survivors: list[Individual]


def evolve(
    base: State,
    generate: mge.Settings,
    settings: Settings,
    seed: int,
    quality: Criterion,
    additional: Criterion,
    *,
    first: First | None = None,
    layers: Layers = mge.layer_generator,
    checkpoint: Path | None = None,
) -> Evolution:
    """Evolve a population of models that are generated from `base`: E-MGE.

    The first population is drawn by `first`, with all layers at once or, say, by Algorithm 1. Each generation then adds
    mutants (parents in turn, one layer drawn anew), fusions (two of parents and mutants, averaged) and fresh
    individuals, made like the first ones; the fittest survive, older ones first among equals. An individual whose
    fitness is not finite is counted as failed and never survives. With `layers=mge.layer_noise` the same is done with
    plain noise.

    With `checkpoint` the state is written there after each generation, and the same call goes on from it, to the
    identical result; more generations than before extend it. Functions cannot be compared: a file for each choice.
    Raises MgenbError when nothing has a finite fitness, a criterion returns another number of values than it was
    given individuals, or the checkpoint is damaged or belongs to another evolution.
    """
    base = store.usable(base, "the base")
    if not frequency.weight_names(base):
        raise MgenbError("the base has no weight layer: there is nothing to evolve")
    breed = _Breeding(base, generate, settings, seed, first, layers)
    key = _key(base, generate, settings, seed, layers)
    rows, best, parents = _restored(store.load_progress(checkpoint, key, next(iter(base.values())).device))
    for generation in range(len(rows), settings.generations + 1):
        children = breed.evaluated(breed.children(generation, parents), quality, additional)
        parents = _fittest([*parents, *children], settings.parents)
        if not parents:
            raise MgenbError(f"generation {generation} is empty: none of {len(children)} has a finite fitness")
        rows.append(_row(rows, children, parents))
        best.append(replace(parents[0], make=dict))
        progress = {"best": _plain(best), "survivors": _plain(parents), "states": [parent.make() for parent in parents]}
        store.save_progress(checkpoint, key, {"rows": rows, **progress})
    return Evolution(pd.DataFrame(rows), best, [replace(parent, make=dict) for parent in parents])


def replay(base: State, generate: mge.Settings, recipe: Recipe, layers: Layers = mge.layer_generator) -> State:
    """Return the state_dict that `recipe` describes; as evolved, but for the order of float32 sums."""
    made = {}
    for name, shares in recipe.items():
        draw = layers(base[name], generate)
        made[name] = sum((share * (draw(seed) - base[name]) for seed, share in shares.items()), base[name])
    return {**base, **made}


class _Breeding:
    """Makes children; what does not change from one to the next is computed once."""

    def __init__(
        self, base: State, generate: mge.Settings, settings: Settings, seed: int, first: First | None, layers: Layers
    ) -> None:
        self.base, self.settings, self.seed = base, settings, seed
        self.draw = {name: layers(base[name], generate) for name in frequency.weight_names(base)}
        self.first = first or (lambda seed: {name: derive(seed, name) for name in self.draw})

    def children(self, generation: int, parents: Sequence[Individual]) -> list[Individual]:
        """Return the children of a generation; they depend on seed, generation and parents alone."""
        settings, seed = self.settings, derive(self.seed, "generation", generation)
        count = settings.fresh if parents else settings.parents
        fresh = [self.fresh(derive(seed, "fresh", i)) for i in range(count)]
        if not parents:
            return fresh
        rng, mutants = numpy_generator(seed, "choices"), []
        for i in range(settings.mutations):
            name = str(rng.choice(list(self.draw)))
            mutants.append(self.mutant(parents[i % len(parents)], name, derive(seed, "mutation", i)))
        available = [*parents, *mutants]
        fusions = [self.fusion(available[i], available[k], rng) for i, k in self.pairs(len(available), rng)]
        return [*mutants, *fusions, *fresh]

    def pairs(self, available: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return which two of the `available` individuals are averaged, for each fusion."""
        if self.settings.fused == "taken":
            taken = rng.permutation(available)[: self.settings.fusions]
            return list(taken[: len(taken) // 2 * 2].reshape(-1, 2))
        return [rng.choice(available, 2, replace=available < 2) for _ in range(self.settings.fusions)]

    def fresh(self, seed: int) -> Individual:
        """Return an individual drawn from the base; layers that `first` leaves out stay the base's."""
        first = self.first(seed)
        recipe = {name: {first[name]: 1.0} if name in first else {} for name in self.draw}

        def make() -> State:
            return {name: draw(first[name]) if name in first else self.base[name] for name, draw in self.draw.items()}

        return Individual(recipe, "fresh", make=make)

    def mutant(self, parent: Individual, name: str, seed: int) -> Individual:
        """Return a parent with the unimportant part of one layer drawn anew."""
        recipe = {**parent.recipe, name: {seed: 1.0}}
        return Individual(recipe, "mutation", make=lambda: {**parent.make(), name: self.draw[name](seed)})

    def fusion(self, first: Individual, second: Individual, rng: np.random.Generator) -> Individual:
        """Return an average of the two, weighted at random."""
        share, (a, b) = float(rng.random()), (first.recipe, second.recipe)
        recipe = {name: _mixed(a[name], b[name], share) for name in self.draw}

        def make() -> State:
            a, b = first.make(), second.make()
            # lerp leaves a weight on which both agree as it is, bit for bit
            return {name: torch.lerp(a[name], b[name], share) for name in self.draw}

        return Individual(recipe, "fusion", make=make)

    def evaluated(self, children: Sequence[Individual], quality: Criterion, additional: Criterion) -> list[Individual]:
        """Return the children with their fitness; criteria make each state when they come to it, one at a time."""
        gamma, nothing = self.settings.gamma, [0.0] * len(children)

        def scores(name: str, criterion: Criterion) -> list[float]:
            states = ({**self.base, **child.make()} for child in children)
            return population.scores(name, criterion, states, len(children))

        parts = scores("quality", quality), scores("additional", additional) if gamma else nothing
        evaluated = zip(children, *parts, strict=True)
        return [replace(child, quality=q, additional=a, fitness=q + gamma * a) for child, q, a in evaluated]


def _mixed(a: Mapping[int, float], b: Mapping[int, float], share: float) -> dict[int, float]:
    """Return a layer's draws and shares in a fusion; `share` is that of the second."""
    return {seed: (1 - share) * a.get(seed, 0) + share * b.get(seed, 0) for seed in {**a, **b}}


def _held(individual: Individual, state: State) -> Individual:
    return replace(individual, make=lambda: state)


def _fittest(everyone: Sequence[Individual], count: int) -> list[Individual]:
    """Return those of the highest finite fitness, fittest first, the first of equals; their weights are held."""
    finite = [individual for individual in everyone if math.isfinite(individual.fitness)]
    chosen = sorted(finite, key=lambda individual: -individual.fitness)[:count]
    return [_held(individual, individual.make()) for individual in chosen]


def _row(before: Sequence[Mapping[str, Any]], children: Sequence[Individual], survivors: Sequence[Individual]) -> Row:
    """Return the row of history of a generation, from the rows `before` it."""
    fitness, origins = [survivor.fitness for survivor in survivors], Counter(survivor.origin for survivor in survivors)
    return {
        "generation": len(before),
        "evaluations": (before[-1]["evaluations"] if before else 0) + len(children),
        "best": fitness[0],
        "mean": float(np.mean(fitness)),
        **{name: getattr(survivors[0], name) for name in ("quality", "additional", "draws")},
        **{origin: origins[origin] for origin in ORIGINS},
        "failed": sum(not math.isfinite(child.fitness) for child in children),
    }


def _key(base: State, generate: mge.Settings, settings: Settings, seed: int, layers: Layers) -> str:
    """Return what a checkpoint must agree on; how many generations may differ."""
    about = {"version": VERSION, "base": store.tensor_hash(base, base), "generate": asdict(generate), "seed": seed}
    about["evolve"] = {**asdict(settings), "generations": None}
    about["layers"] = getattr(layers, "__qualname__", repr(layers))
    return store.key_of(about)


def _plain(individuals: Sequence[Individual]) -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(individual).items() if name != "make"} for individual in individuals]


def _restored(saved: Mapping[str, Any] | None) -> tuple[list[Row], list[Individual], list[Individual]]:
    """Return rows of history, the best of each, and the parents of the next generation; nothing before the first."""
    saved = saved or {"rows": [], "best": [], "survivors": [], "states": []}
    best, survivors = ([Individual(**fields) for fields in saved[name]] for name in ("best", "survivors"))
    return saved["rows"], best, list(map(_held, survivors, saved["states"]))
