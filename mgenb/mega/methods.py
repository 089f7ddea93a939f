"""All ways to merge two trained networks, beside MeGA and in its units: evaluations on validation images.

`METHODS` names them. A method takes a `Task` and returns a `Found`; it sees validation images, training images where
BatchNorm statistics are computed anew, and no others.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from mgenb import mega
from mgenb.data import Split
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.mega import align
from mgenb.seeds import derive, numpy_generator
from mgenb.store import State


@dataclass(frozen=True)
class Task:
    """Two trained networks to merge, and what may be seen for it.

    net: a network of their architecture. train: images on which BatchNorm statistics are computed anew. val: those
    by which is chosen. budget: how many networks may be evaluated on them. size: individuals of MeGA's population.
    keep: the file that a genetic algorithm writes after each generation, and from which the same one goes on.
    """

    net: nn.Module
    first: State
    second: State
    train: Split
    val: Split
    budget: int
    seed: int
    size: int = 20
    keep: Path | None = None

    def __post_init__(self) -> None:
        mega.check_match(self.first, self.second)
        population.refuse_test(self.val)
        population.refuse_test(self.train)
        if self.budget < 2 * self.size:
            raise MgenbError(f"budget is {self.budget}; right is at least two generations of {self.size}")

    def fresh_statistics(self, state: State) -> State:
        """Return the state with its BatchNorm statistics computed anew on the training images."""
        return align.recalibrate(self.net, state, self.train)


@dataclass(frozen=True)
class Found:
    """What a method ended with: one state_dict, or several that vote by their mean logits (an ensemble).

    fitness: accuracy on validation images, in [0, 1]. evaluations: how many networks were evaluated there.
    aligned: the second network as it was aligned to the first, where it was.
    """

    states: tuple[State, ...]
    fitness: float
    evaluations: int
    aligned: State | None = None

    def provenance(self, task: Task) -> mega.Provenance:
        """Return where the merged network lies between the two; the second as it was merged, aligned or not."""
        return mega.provenance(self.states[0], task.first, self.aligned or task.second)


Method = Callable[[Task], Found]


def correct(net: nn.Module, split: Split, states: tuple[State, ...]) -> torch.Tensor:
    """Return which images a found network, or ensemble, has right, bool [n]; a measure for `run.final_test`."""
    votes = torch.stack([population.logits(net, split, state) for state in states]).mean(0)
    return population.classes_of(votes) == split.labels.cpu()


def read_pair(files: tuple[Path, Path], net: nn.Module) -> tuple[State, State]:
    """Return the state_dicts in two safetensors or torch files, checked against `net` from `nets.build`, on its device.

    Keys may also be those of the bare architecture, without `net.` and how images are scaled: then scaling is that of
    the other file, or `net`'s own. Raises MgenbError for a file that cannot be read, and names the key or shape that
    does not fit.
    """
    found, own = [_read(file) for file in files], net.state_dict()
    scaling = {name: tensor for name, tensor in own.items() if name.startswith(mega.NORMALISE)}
    for state in found:
        scaling |= {name: state[name] for name in scaling if name in state}
    first, second = (_fitted(file, state, own, scaling) for file, state in zip(files, found, strict=True))
    return first, second


def _read(file: Path) -> State:
    try:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        return {str(name): tensor.detach() for name, tensor in found.items()}
    except Exception as error:  # whatever a damaged zip, pickle or header raises
        what = "right is safetensors, or what torch.save wrote of a state_dict"
        raise MgenbError(f"{file} holds no state_dict that can be read; {what}") from error


def _fitted(file: Path, found: State, own: State, scaling: State) -> State:
    if not any(name.startswith(("net.", mega.NORMALISE)) for name in found):
        found = {**scaling, **{f"net.{name}": tensor for name, tensor in found.items()}}
    for name in [*own, *found]:
        if name not in found:
            raise MgenbError(f"{file} lacks {name!r}, which the architecture has")
        if name not in own:
            raise MgenbError(f"{file} has {name!r}, which the architecture lacks")
        if found[name].shape != own[name].shape:
            shapes = f"{tuple(found[name].shape)}; right is {tuple(own[name].shape)}"
            raise MgenbError(f"{name!r} of {file} has shape {shapes} for this architecture and these classes")
    return {name: found[name].to(tensor) for name, tensor in own.items()}


class _Judge:
    """Evaluates states on validation images, counts, and keeps the best: the first of equals."""

    def __init__(self, task: Task) -> None:
        self.score = population.accuracy_on(task.net, task.val)
        self.best, self.fitness, self.evaluations = task.first, -1.0, 0

    def __call__(self, state: State) -> float:
        value = self.score([state])[0]
        self.evaluations += 1
        if value > self.fitness:
            self.fitness, self.best = value, state
        return value

    @property
    def found(self) -> Found:
        return Found((self.best,), self.fitness, self.evaluations)


def _best(task: Task, states: Iterable[State]) -> Found:
    judge = _Judge(task)
    for state in states:
        judge(state)
    return judge.found


def parent(task: Task) -> Found:
    """The better of the two networks."""
    return _best(task, [task.first, task.second])


def fresh_parent(task: Task) -> Found:
    """The better of the two networks, each with fresh BatchNorm statistics: the noise of the last steps is gone."""
    return _best(task, map(task.fresh_statistics, (task.first, task.second)))


def average(task: Task) -> Found:
    """The mean of the weights."""
    return _best(task, [mega.between(task.first, task.second, 0.5)])


def line_search(task: Task, fresh: bool = False) -> Found:
    """The best point of the segment between the two; as many points, both ends among them, as the budget allows.

    fresh: each point is judged with fresh BatchNorm statistics.
    """
    points = (mega.between(task.first, task.second, float(a)) for a in np.linspace(1, 0, task.budget))
    return _best(task, map(task.fresh_statistics, points) if fresh else points)


def random_search(task: Task) -> Found:
    """The best of random combinations, one alpha ~ U(0, 1) for each layer."""
    rng, names = numpy_generator(task.seed, "random search"), mega.layers(task.first)
    draws = (rng.random(len(names)).tolist() for _ in range(task.budget))
    return _best(task, (mega.between(task.first, task.second, dict(zip(names, one, strict=True))) for one in draws))


def soup(task: Task) -> Found:
    """A greedy soup (Wortsman et al. 2022): the better network, averaged with the other if that is no worse."""
    better, both = parent(task), average(task)
    kept = both if both.fitness >= better.fitness else better
    return replace(kept, evaluations=better.evaluations + both.evaluations)


def ensemble(task: Task) -> Found:
    """Both networks, by their mean logits: each prediction costs twice as much."""
    states = task.first, task.second
    return Found(states, correct(task.net, task.val, states).double().mean().item(), 1)


def cma_es(task: Task) -> Found:
    """CMA-ES (Hansen and Ostermeier 2001) over one alpha in [0, 1] for each layer, by the library `cma`."""
    import cma  # slow to load

    names, judge = mega.layers(task.first), _Judge(task)
    options = {"bounds": [0, 1], "seed": derive(task.seed, "cma") % 2**31 + 1, "verbose": -9}
    with _numpy_random_kept():
        evolution = cma.CMAEvolutionStrategy(len(names) * [0.5], 0.25, options)
        while judge.evaluations + evolution.popsize <= task.budget:
            points = evolution.ask()
            alphas = [dict(zip(names, map(float, point), strict=True)) for point in points]
            evolution.tell(points, [-judge(mega.between(task.first, task.second, one)) for one in alphas])
    return judge.found


@contextmanager
def _numpy_random_kept() -> Iterator[None]:
    """Put numpy's global random state back: `cma` seeds and uses it."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def genetic(task: Task, settings: mega.Settings = mega.VARIANTS["paper"]) -> Found:
    """MeGA by some settings, with the task's size and as many generations as the budget allows."""
    generations = (task.budget - task.size) // (task.size - 1)
    settings = replace(settings, size=task.size, generations=generations + (not settings.evaluate_last))
    recompute = task.fresh_statistics if settings.statistics == "recomputed" else None
    score = population.accuracy_on(task.net, task.val)
    merged = mega.merge(task.first, task.second, settings, task.seed, score, recompute=recompute, checkpoint=task.keep)
    return Found((merged.state,), merged.fitness, merged.evaluations)


def alone(task: Task, settings: mega.Settings = mega.VARIANTS["paper"]) -> Found:
    """MeGA's mutations and selection on the better parent alone: local search, nothing is merged.

    As many generations as MeGA; the two evaluations that tell which parent is better come on top of the budget.
    """
    chosen = parent(task)
    found = genetic(replace(task, first=chosen.states[0], second=chosen.states[0]), settings)
    return replace(found, evaluations=found.evaluations + chosen.evaluations)


def recalibrated(method: Method, task: Task) -> Found:
    """What the method finds, and then fresh BatchNorm statistics for it."""
    found = method(task)
    renewed = _best(task, [task.fresh_statistics(found.states[0])])
    return replace(renewed, evaluations=found.evaluations + renewed.evaluations)


def rebasin(method: Method, task: Task) -> Found:
    """The method on aligned networks: the units of the second in the order that fits the first (Git Re-Basin)."""
    second = align.aligned(task.net, task.first, task.second, task.seed)
    return replace(method(replace(task, second=second)), aligned=second)


_PAPER, _FIXED = mega.VARIANTS["paper"], mega.VARIANTS["fixed"]
_SMALL_SIGMA = replace(_PAPER, sigma=_PAPER.sigma / 10)  # the paper states none; 0.1 is the author's code's
METHODS: dict[str, Method] = {
    "parent": parent,
    "parent-bn": fresh_parent,
    "average": average,
    "average-bn": partial(recalibrated, average),
    "line": line_search,
    "line-bn": partial(line_search, fresh=True),
    "random": random_search,
    "soup": soup,
    "ensemble": ensemble,
    "cma": cma_es,
    "rebasin": partial(rebasin, average),
    "rebasin-bn": partial(rebasin, partial(recalibrated, average)),
    "line-rebasin": partial(rebasin, partial(line_search, fresh=True)),
    "mega-alone": alone,
    "mega-alone-fixed": partial(alone, settings=_FIXED),
    "mega-alone-small-sigma": partial(alone, settings=_SMALL_SIGMA),
    "mega": genetic,
    **{f"mega-{name}": partial(genetic, settings=one) for name, one in mega.VARIANTS.items() if one != _PAPER},
    "mega-small-sigma": partial(genetic, settings=_SMALL_SIGMA),
    "mega-rebasin": partial(rebasin, partial(genetic, settings=replace(_FIXED, statistics="recomputed"))),
}
