"""All ways to merge two trained networks, beside MeGA and in its units: evaluations on validation images.

`METHODS` names them. A method takes a `Task` and returns a `Result`; it sees validation images, training images where
BatchNorm statistics are computed anew, and no others.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn

from mgenb import mega, stats, store
from mgenb.data import Split, refuse_test
from mgenb.devices import one_thread
from mgenb.errors import MgenbError
from mgenb.executor import each
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
    fresh: each network is judged, and returned, with BatchNorm statistics computed anew.
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
    fresh: bool = False

    def __post_init__(self) -> None:
        mega.check_match(self.first, self.second)
        refuse_test(self.val)
        refuse_test(self.train)
        if self.budget < 2 * self.size:
            raise MgenbError(f"budget is {self.budget}; right is at least two generations of {self.size}")

    def fresh_statistics(self, state: State) -> State:
        """Return the state with its BatchNorm statistics computed anew on the training images."""
        return align.recalibrate(self.net, state, self.train)

    def judged(self, state: State) -> State:
        """Return the state as it is judged."""
        return self.fresh_statistics(state) if self.fresh else state


@dataclass(frozen=True)
class Result:
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


Method = Callable[[Task], Result]


def correct(net: nn.Module, split: Split, states: tuple[State, ...]) -> torch.Tensor:
    """Return which images a merged network, or ensemble, has right, bool [n]; a measure for `run.final_test`."""
    votes = torch.stack([population.logits(net, split, state) for state in states]).mean(0)
    return population.classes_of(votes) == split.labels.cpu()


PLACE = ("alpha", "off the segment", "nearest")
COLUMNS = ("validation (%)", "test (%)", "above the better parent", "evaluations", *PLACE)


def compare(task: Task, names: tuple[str, str], results: Mapping[str, Result], test: Split) -> pd.DataFrame:
    """Return `COLUMNS` for each result, and for both parents by their names.

    Accuracy on test images, and points above the parent that is better on validation images, have 95 % intervals over
    images; then what it cost, and where it lies, in units of the distance between the parents.
    """
    parents = {name: _best(task, [state]) for name, state in zip(names, (task.first, task.second), strict=True)}
    better = correct(task.net, test, max(parents.values(), key=lambda result: result.fitness).states)
    rows = {}
    for name, result in {**results, **parents}.items():
        right, place = correct(task.net, test, result.states), result.provenance(task)
        above = stats.paired(100.0 * right, 100.0 * better, "images")
        accuracy = stats.proportion(int(right.sum()), len(right)).times(100)
        cells = [f"{100 * result.fitness:.1f}", str(accuracy), str(above), str(result.evaluations)]
        if len(result.states) == 1:
            cells += [f"{place.alpha:.2f}", f"{place.off_segment:.3f}", f"{min(place.to_first, place.to_second):.3f}"]
        rows[name] = dict(zip(COLUMNS, cells, strict=False))
    return pd.DataFrame(rows).T.fillna("").rename_axis("model")


def merges(name: str, result: Result, task: Task) -> bool:
    """Return whether what a method of this name ended with is a merged network: one, and neither parent's alone."""
    single = len(result.states) == 1 and name not in ("parent-bn", "mega-alone")
    return single and result.provenance(task).label() != "parent copy"


def read_pair(files: tuple[Path, Path], net: nn.Module) -> tuple[State, State]:
    """Return the state_dicts in two safetensors or torch files, checked against `net` from `nets.build`, on its device.

    Keys may also be those of the bare architecture, without `net.` and how images are scaled: then scaling is that of
    the other file, or `net`'s own. Raises MgenbError for a file that cannot be read, and names the key or shape that
    does not fit.
    """
    own, read = net.state_dict(), [_read(file) for file in files]
    known = {**own, **read[0], **read[1]}
    scaling = {name: known[name] for name in own if name.startswith(mega.NORMALISE)}
    fitted = []
    for file, state in zip(files, read, strict=True):
        if not any(name.startswith(("net.", mega.NORMALISE)) for name in state):
            state = {**scaling, **{f"net.{name}": tensor for name, tensor in state.items()}}
        population.check_fits(state, own, str(file), "the architecture with these classes")
        fitted.append({name: state[name].to(tensor) for name, tensor in own.items()})
    return fitted[0], fitted[1]


def _read(file: Path) -> State:
    beside = file.with_suffix(".json")
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # it need not be one that mgenb wrote
        if json.loads(beside.read_text(encoding="utf-8"))["sha256"] != store.file_hash(file):
            raise MgenbError(f"{file} is damaged or not the file of {beside}: replace it, or delete {beside}")
    try:
        if not file.is_file():
            raise ValueError("only regular files are read")
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        state = {str(name): tensor.detach() for name, tensor in state.items()}
    except Exception as error:  # whatever no file, a damaged zip, pickle or header raises
        right = "right is safetensors, or what torch.save wrote of one"
        raise MgenbError(f"{file} is no file that holds a state_dict; {right}") from error
    return store.usable(state, str(file))


def _best(task: Task, states: Iterable[State]) -> Result:
    """Evaluate states one after the other; the first of equals."""
    score, best, evaluations = population.accuracy_on(task.net, task.val), Result((), -1.0, 0), 0
    for evaluations, state in enumerate(map(task.judged, states), 1):
        fitness = score([state])[0]
        if fitness > best.fitness:
            best = Result((state,), fitness, evaluations)
    return replace(best, evaluations=evaluations)


def parent(task: Task) -> Result:
    """The better of the two networks."""
    return _best(task, [task.first, task.second])


def average(task: Task) -> Result:
    """The mean of the weights."""
    return _best(task, [mega.between(task.first, task.second, 0.5)])


def line_search(task: Task) -> Result:
    """The best point of the segment between the two; as many points, both ends among them, as the budget allows."""
    alphas = np.linspace(1, 0, task.budget).tolist()
    return _best(task, (mega.between(task.first, task.second, alpha) for alpha in alphas))


def random_search(task: Task) -> Result:
    """The best of random combinations, one alpha ~ U(0, 1) for each layer."""
    rng, count = numpy_generator(task.seed, "random search"), len(mega.layers(task.first))
    return _best(task, (_by_layer(task, rng.random(count)) for _ in range(task.budget)))


def _by_layer(task: Task, alphas: np.ndarray) -> State:
    """Return the combination with one alpha for each layer."""
    return mega.between(task.first, task.second, dict(zip(mega.layers(task.first), alphas.tolist(), strict=True)))


def soup(task: Task) -> Result:
    """A greedy soup (Wortsman et al. 2022): the better network, averaged with the other if that is no worse."""
    both, better = average(task), parent(task)
    kept = max(both, better, key=lambda result: result.fitness)  # the first of equals
    return replace(kept, evaluations=both.evaluations + better.evaluations)


def ensemble(task: Task) -> Result:
    """Both networks, by their mean logits: each prediction costs twice as much."""
    states = task.first, task.second
    return Result(states, correct(task.net, task.val, states).double().mean().item(), 1)


def cma_es(task: Task) -> Result:
    """CMA-ES (Hansen and Ostermeier 2001) over one alpha in [0, 1] for each layer, by the library `cma`."""
    import cma  # slow to load

    score, layers = population.accuracy_on(task.net, task.val), len(mega.layers(task.first))
    drawn = np.random.RandomState(derive(task.seed, "cma") % 2**31 + 1).randn
    size = min(task.budget, int(4 + 3 * np.log(layers)))  # cma's own, but for a small budget
    options = {"bounds": [0, 1], "randn": drawn, "seed": np.nan, "popsize": size, "verbose": -9}
    evolution = cma.CMAEvolutionStrategy(layers * [0.5], 0.25, options)
    while evolution.countevals + evolution.popsize <= task.budget:
        points = evolution.ask()
        evolution.tell(points, [-accuracy for accuracy in score(_by_layer(task, point) for point in points)])
    best = evolution.result
    return Result((_by_layer(task, best.xbest),), -best.fbest, best.evaluations)


def genetic(task: Task, settings: mega.Settings = mega.VARIANTS["paper"]) -> Result:
    """MeGA by some settings, with the task's size and as many generations as the budget allows."""
    settings = replace(settings, size=task.size)
    generations = (task.budget - task.size) // settings.children + (not settings.evaluate_last)
    settings = replace(settings, generations=generations)
    score = population.accuracy_on(task.net, task.val)

    def fitness(states: Iterable[State]) -> Sequence[float]:
        return score(map(task.judged, states))

    merged = mega.merge(task.first, task.second, settings, task.seed, fitness, checkpoint=task.keep)
    return Result((task.judged(merged.state),), merged.fitness, merged.evaluations)


def alone(task: Task, settings: mega.Settings = mega.VARIANTS["paper"]) -> Result:
    """MeGA's mutations and selection on the better parent alone: local search, nothing is merged.

    As many generations as MeGA; the two evaluations that tell which parent is better come on top of the budget.
    """
    better = parent(task)
    result = genetic(replace(task, first=better.states[0], second=better.states[0]), settings)
    return replace(result, evaluations=result.evaluations + better.evaluations)


def fresh(method: Method, task: Task) -> Result:
    """The method where each network is judged with fresh BatchNorm statistics: the noise of the last steps is gone."""
    return method(replace(task, fresh=True))


def recalibrated(method: Method, task: Task) -> Result:
    """What the method ends with, and then fresh BatchNorm statistics for it: one more evaluation."""
    result = method(task)
    renewed = _best(replace(task, fresh=True), result.states)
    return replace(renewed, evaluations=result.evaluations + 1)


def rebasin(method: Method, task: Task) -> Result:
    """The method on aligned networks: the units of the second in the order that fits the first (Git Re-Basin)."""
    second = align.aligned(task.net, task.first, task.second, task.seed)
    return replace(method(replace(task, second=second)), aligned=second)


RIVALS: dict[str, Method] = {  # those of the table of notebook 12, and MeGA; the others stand in its appendix
    "parent": parent,
    "parent-bn": partial(fresh, parent),
    "average": average,
    "line": line_search,
    "ensemble": ensemble,
    "rebasin": partial(rebasin, average),
    "rebasin-bn": partial(rebasin, partial(recalibrated, average)),
    "mega-alone": alone,
    "mega": genetic,
}
METHODS = RIVALS | {
    "average-bn": partial(recalibrated, average),
    "line-bn": partial(fresh, line_search),
    "line-rebasin": partial(rebasin, partial(fresh, line_search)),
    "random": random_search,
    "soup": soup,
    "cma": cma_es,
    **{f"mega-{name}": partial(genetic, settings=mega.VARIANTS[name]) for name in ("code", "elementwise", "fixed")},
    "mega-rebasin": partial(rebasin, partial(fresh, partial(genetic, settings=mega.VARIANTS["fixed"]))),
}


def found(task: Task, kept: Mapping[str, Path], executor: Executor | None) -> dict[str, Result | str]:
    """Return what each method named in `kept` finds, or why it cannot take the networks; `kept` says where to go on.

    They are run side by side where there is an executor.
    """
    done = dict(each(partial(_found, task, kept), kept, executor, "method"))
    return {name: done[number] for number, name in enumerate(kept)}


def _found(task: Task, kept: Mapping[str, Path], name: str) -> Result | str:
    with one_thread():  # with more of them sums have another order
        try:
            return METHODS[name](replace(task, keep=kept[name]))
        except MgenbError as error:
            return str(error)
