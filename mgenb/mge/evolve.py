"""E-MGE (arXiv 2402.17486): a population of generated models under mutation, fusion and selection.

Every individual keeps the base's important coefficients, so a mutation of one layer is a fresh draw of that layer,
and a fusion is a weighted average of draws. A recipe says it all: for each layer, draws by seed and their shares;
what they lack of 1 is the base's. Weights are held for the survivors alone.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mgenb import mge, store
from mgenb.data import Split
from mgenb.errors import MgenbError, demand
from mgenb.measure import population
from mgenb.measure.population import Criterion
from mgenb.mge import algorithm1, frequency
from mgenb.mge.generator import Layers
from mgenb.seeds import derive, numpy_generator
from mgenb.store import State

Recipe = dict[str, dict[int, float]]  # layer -> draw's seed -> share, one entry for every weight layer
First = Callable[[int], Mapping[str, int]]  # seed -> layer -> seed of its draw; other layers stay the base's

VERSION = 1  # raise it when the same evolution goes another way: a checkpoint goes on under its own version alone
SHARES = ("uniform", "fitness")
MEMBERS = ("best", "survivors")  # fields of a checkpoint that hold individuals
ORIGINS = ("fresh", "mutation", "fusion")


@dataclass(frozen=True)
class Settings:
    """How to evolve; the defaults are the paper's.

    parents, mutations, fusions: n, j and m, individuals that survive and that each generation adds.
    fresh: individuals that are drawn anew in each generation. With mutations = fusions = 0 this is random search.
    gamma: fitness is quality + gamma * additional.
    share: what a fusion of two takes of the second: 'uniform', drawn from [0, 1]; 'fitness', in proportion to fitness.
        The paper says weighted average, not which weights.
    """

    parents: int = 10
    mutations: int = 10
    fusions: int = 20
    generations: int = 100
    gamma: float = 1.0
    fresh: int = 0
    share: str = "uniform"

    def __post_init__(self) -> None:
        demand(self, share=SHARES, parents=1, mutations=0, fusions=0, fresh=0, generations=0)
        if self.fusions and self.parents < 2:
            raise MgenbError(f"parents is {self.parents} with {self.fusions} fusions; right is at least 2")
        if not math.isfinite(self.gamma):
            raise MgenbError(f"gamma is {self.gamma}; right is a number")

    @property
    def children(self) -> int:
        """How many individuals each generation evaluates."""
        return self.mutations + self.fusions + self.fresh


@dataclass(frozen=True)
class Individual:
    """One member of a population, evaluated: what makes it, how it came about, and the two parts of its fitness."""

    recipe: Recipe
    origin: str
    quality: float
    additional: float
    fitness: float

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


@dataclass(frozen=True)
class _Child:
    recipe: Recipe
    origin: str
    make: Callable[[], State]  # its weight layers, all in which individuals differ


@dataclass
class _Progress:
    """What a checkpoint holds; `states` are the survivors' weight layers, in their order."""

    rows: list[dict[str, Any]]
    best: list[Individual]
    survivors: list[Individual]
    states: list[State]


def algorithm_1(
    net: nn.Module, split: Split, generate: mge.Settings, *, layers: Layers = mge.layer_generator, tries: int = 100
) -> First:
    """Return the `first` whose individuals the discriminator accepts on `split`: layer by layer, see `layerwise`."""
    base, fitness = population.state_of(net), algorithm1.cached(net, split)

    def first(seed: int) -> dict[str, int]:
        found = algorithm1.search(base, generate, seed, fitness, layers=layers, tries=tries)
        return {name: derive(seed, name, attempt) for name, attempt in found.recipe.items()}

    return first


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

    The first population is drawn by `first`, with all layers at once or by `algorithm_1`. Each generation then adds
    mutants (parents in turn, one layer drawn anew), fusions (two parents at random, averaged) and fresh individuals,
    made like the first ones; the fittest survive, older ones first among equals. An individual whose fitness is not
    finite is counted as failed and never survives. With `layers=mge.layer_noise` the same is done with plain noise.

    With `checkpoint` the state is written there after each generation, and the same call goes on from it, to the
    identical result; more generations than before extend it. Functions cannot be compared: a file for each choice.
    Raises MgenbError when nothing has a finite fitness, a criterion returns another number of values than it was
    given individuals, or the checkpoint is damaged or belongs to another evolution.
    """
    if not frequency.weight_names(base):
        raise MgenbError("the base has no weight layer: there is nothing to evolve")
    breed = _Breeding(base, generate, settings, seed, first, layers)
    key = _key(base, generate, settings, seed, layers)
    progress = _Progress([], [], [], [])
    if saved := store.load_progress(checkpoint, key, next(iter(base.values())).device):
        members = {name: [Individual(**one) for one in saved[name]] for name in MEMBERS}
        progress = _Progress(**{**saved, **members})
    for generation in range(len(progress.rows), settings.generations + 1):
        children = breed.children(generation, progress)
        found = breed.evaluated(children, quality, additional)
        progress = _select(progress, children, found, settings)
        if checkpoint is not None:
            plain = {name: [asdict(one) for one in getattr(progress, name)] for name in MEMBERS}
            store.save_progress(checkpoint, key, {**vars(progress), **plain})
    return Evolution(pd.DataFrame(progress.rows), progress.best, progress.survivors)


def replay(base: State, generate: mge.Settings, recipe: Recipe, layers: Layers = mge.layer_generator) -> State:
    """Return the state_dict that `recipe` describes; as evolved, but for the order of float32 sums."""
    made = {}
    for name, shares in recipe.items():
        draw = layers(base[name], generate)
        made[name] = sum((share * (draw(one) - base[name]) for one, share in shares.items()), base[name])
    return {**base, **made}


class _Breeding:
    """Makes children; what does not change from one to the next is computed once."""

    def __init__(
        self, base: State, generate: mge.Settings, settings: Settings, seed: int, first: First | None, layers: Layers
    ) -> None:
        self.base, self.settings, self.seed = base, settings, seed
        self.draw = {name: layers(base[name], generate) for name in frequency.weight_names(base)}
        self.first = first or (lambda one: {name: derive(one, name) for name in self.draw})

    def children(self, generation: int, progress: _Progress) -> list[_Child]:
        """Return the children of a generation; they depend on seed, generation and parents alone."""
        s, seed = self.settings, derive(self.seed, "generation", generation)
        if generation == 0:
            return [self.fresh(derive(seed, "fresh", i)) for i in range(s.parents)]
        rng = numpy_generator(seed, "choices")
        made = []
        for i in range(s.mutations):
            name = str(rng.choice(list(self.draw)))
            made.append(self.mutant(progress, i % len(progress.survivors), name, derive(seed, "mutation", i)))
        for _ in range(s.fusions):
            alive = len(progress.survivors)
            first, second = (int(one) for one in rng.choice(alive, 2, replace=alive < 2))
            made.append(self.fusion(progress, first, second, float(rng.random())))
        return [*made, *(self.fresh(derive(seed, "fresh", i)) for i in range(s.fresh))]

    def fresh(self, seed: int) -> _Child:
        """An individual drawn from the base."""
        drawn = self.first(seed)
        recipe: Recipe = {name: {drawn[name]: 1.0} if name in drawn else {} for name in self.draw}

        def make() -> State:
            return {n: draw(drawn[n]) if n in drawn else self.base[n] for n, draw in self.draw.items()}

        return _Child(recipe, "fresh", make)

    def mutant(self, progress: _Progress, parent: int, name: str, seed: int) -> _Child:
        """A parent with the unimportant part of one layer drawn anew."""
        recipe = {**progress.survivors[parent].recipe, name: {seed: 1.0}}
        state = progress.states[parent]
        return _Child(recipe, "mutation", lambda: {**state, name: self.draw[name](seed)})

    def fusion(self, progress: _Progress, first: int, second: int, share: float) -> _Child:
        """The weighted average of two parents; `share` is that of the second."""
        a, b = progress.survivors[first], progress.survivors[second]
        if self.settings.share == "fitness":
            share = _in_proportion(a.fitness, b.fitness)
        recipe = {name: _mixed(a.recipe[name], b.recipe[name], share) for name in self.draw}
        one, other = progress.states[first], progress.states[second]
        # lerp leaves a weight on which both agree as it is, bit for bit
        return _Child(recipe, "fusion", lambda: {n: torch.lerp(one[n], other[n], share) for n in self.draw})

    def evaluated(self, children: Sequence[_Child], quality: Criterion, additional: Criterion) -> list[Individual]:
        """Return the children with their fitness; criteria make each state when they come to it, one at a time."""
        gamma, values = self.settings.gamma, []
        for name, criterion, weight in (("quality", quality, 1.0), ("additional", additional, gamma)):
            if weight == 0 or not children:
                values.append([0.0] * len(children))
                continue
            states = ({**self.base, **child.make()} for child in children)
            values.append(population.scores(name, criterion, states, len(children)))
        parts = zip(children, *values, strict=True)
        return [Individual(child.recipe, child.origin, q, a, q + gamma * a) for child, q, a in parts]


def _in_proportion(first: float, second: float) -> float:
    """Return the second's share in proportion to fitness; half where that is no share (negative fitness, 0 + 0)."""
    total = first + second
    return second / total if min(first, second) >= 0 and total > 0 else 0.5


def _mixed(a: Mapping[int, float], b: Mapping[int, float], share: float) -> dict[int, float]:
    return {seed: (1 - share) * a.get(seed, 0) + share * b.get(seed, 0) for seed in {**a, **b}}


def _select(
    progress: _Progress, children: Sequence[_Child], found: Sequence[Individual], settings: Settings
) -> _Progress:
    """Return the next generation: the fittest of parents and children, with a row of history."""
    everyone = [*progress.survivors, *found]
    fit = [i for i, one in enumerate(everyone) if math.isfinite(one.fitness)]
    chosen = sorted(fit, key=lambda i: -everyone[i].fitness)[: settings.parents]
    if not chosen:
        raise MgenbError(f"generation {len(progress.rows)} is empty: none of {len(everyone)} has a finite fitness")
    old = len(progress.survivors)
    states = [progress.states[i] if i < old else children[i - old].make() for i in chosen]
    survivors = [everyone[i] for i in chosen]
    row = _row(progress, found, survivors, newborn=sum(i >= old for i in chosen))
    return _Progress([*progress.rows, row], [*progress.best, survivors[0]], survivors, states)


def _row(
    progress: _Progress, found: Sequence[Individual], survivors: Sequence[Individual], newborn: int
) -> dict[str, Any]:
    fitness = [one.fitness for one in survivors]
    origins = Counter(one.origin for one in survivors)
    before = progress.rows[-1]["evaluations"] if progress.rows else 0
    return {
        "generation": len(progress.rows),
        "evaluations": before + len(found),
        "best": fitness[0],
        "mean": float(np.mean(fitness)),
        "worst": fitness[-1],
        "quality": survivors[0].quality,
        "additional": survivors[0].additional,
        "draws": survivors[0].draws,
        "newborn": newborn,
        **{origin: origins[origin] for origin in ORIGINS},
        "failed": sum(not math.isfinite(one.fitness) for one in found),
    }


def _key(base: State, generate: mge.Settings, settings: Settings, seed: int, layers: Layers) -> str:
    """Return what a checkpoint must agree on; how many generations may differ."""
    return store.key_of(
        {
            "version": VERSION,
            "base": store.tensor_hash(base, base),
            "generate": asdict(generate),
            "evolve": {**asdict(settings), "generations": None},
            "seed": seed,
            "layers": getattr(layers, "__qualname__", repr(layers)),
        }
    )
