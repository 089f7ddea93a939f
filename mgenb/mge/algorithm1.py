"""Algorithm 1 of MGE (arXiv 2402.17486): redraw, layer by layer or all at once, until the discriminator accepts.

A try exchanges one layer, or all. What the network computes before that layer is the same for all tries of it, so
`cached` computes it once for each layer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from mgenb.data import Split, refuse_test
from mgenb.devices import COUNTING, precise
from mgenb.errors import MgenbError, check, choose
from mgenb.measure import population
from mgenb.mge import Settings, accepts, fewest_right, frequency, generate, layer_generator, unimportant
from mgenb.mge.generator import Layers
from mgenb.nets import Tracer
from mgenb.seeds import derive, torch_generator
from mgenb.store import State

ACCEPTED = ("layer", "whole", "closest")
CRITERIA = ("accuracy", "loss")

# (logits, labels, how many images) -> their fitness, from batches that are computed when they are asked for
Measure = Callable[[Iterable[torch.Tensor], Iterable[torch.Tensor], int], Any]
Judge = Callable[[torch.Tensor, Measure], Any]  # (weight in a layer, measure) -> what it measures with that weight
Fitness = Callable[[State, str], Judge]  # (state_dict, name of a layer) -> what judges tries of that layer
# (judge, weight) -> whether that try passes, and how far its fitness is from the base's
Discriminator = Callable[[Judge, torch.Tensor], tuple[bool, float]]


@dataclass(frozen=True)
class LayerwiseResult:
    """What Algorithm 1 ended with.

    state: the state_dict. tries: how many were made of each layer, or of all at once. recipe: the seed of the draw that
    was taken for each layer; a layer that was left as it was is missing. See `replay`.
    """

    state: State
    tries: dict[str, int]
    recipe: dict[str, int]


def search(
    base: State,
    settings: Settings,
    seed: int,
    fitness: Fitness,
    *,
    layers: Layers = layer_generator,
    accepted: str = "layer",
    criterion: str = "accuracy",
    eps: float = 0.05,
    tries: int = 100,
) -> LayerwiseResult:
    """Run Algorithm 1: layers in the network's order, `tries` (n_D) times each at most.

    accepted: where the discriminator's test stands. 'layer': after each layer, the first try that passes is taken;
        'closest': after each layer, of all tries the one whose fitness is closest to the base's, if it passes (Eq. 5);
        'whole': once, after all layers (lines 9 to 12); when refused, all are drawn anew.
    criterion: what passes (Eq. 6 and 7): an 'accuracy' above the base's, or less than `eps` (a share) below it; or a
        'loss', the mean cross-entropy, below the base's, or less than `eps` above it.

    `fitness` is `cached(net, split)`; `layers` makes the tries, with `mge.layer_noise`
    the same search is done with plain noise. A layer for which no try is accepted keeps its
    weights. Raises MgenbError for an unknown name and when tries < 1.
    """
    check("tries", tries, 1)
    closest = choose("accepted", accepted, ACCEPTED) == "closest"
    names = frequency.weight_names(base)
    discriminator = _discriminator(fitness(base, names[0]), base[names[0]], criterion, eps, exact=closest)
    state, made, recipe = dict(base), dict[str, int](), dict[str, int]()
    for group in [names] if accepted == "whole" else [[name] for name in names]:
        generated = {name: layers(base[name], settings) for name in group}
        nearest, taken, seeds = math.inf, dict[str, torch.Tensor](), dict[str, int]()
        for attempt in range(1, tries + 1):
            draws = {name: derive(seed, name, attempt) for name in group}
            redrawn = {name: generated[name](draw) for name, draw in draws.items()}
            if attempt == 1 or len(group) > 1:  # tries of one layer share what lies before it
                judge = fitness({**state, **redrawn}, group[0])
            passes, distance = discriminator(judge, redrawn[group[0]])
            if distance < nearest if closest else passes:
                nearest = distance
                taken, seeds = (redrawn, draws) if passes else ({}, {})
            if passes and not closest:
                break
        state, recipe = {**state, **taken}, {**recipe, **seeds}
        made.update(dict.fromkeys(group, attempt))
    return LayerwiseResult(state, made, recipe)


def _discriminator(judge: Judge, weight: torch.Tensor, criterion: str, eps: float, exact: bool) -> Discriminator:
    """Return the discriminator beside the base, whose weight this is; unless `exact`, passes may end early."""
    if choose("criterion", criterion, CRITERIA) == "loss":
        base_loss = judge(weight, mean_loss)

        def by_loss(judge: Judge, weight: torch.Tensor) -> tuple[bool, float]:
            loss = judge(weight, mean_loss)
            return accepts(-loss, -base_loss, eps), abs(loss - base_loss)

        return by_loss
    base = judge(weight, population.tally)
    fewest = fewest_right(base.right, base.total, eps)
    measure = population.tally if exact else partial(population.tally, fewest=fewest)

    def by_accuracy(judge: Judge, weight: torch.Tensor) -> tuple[bool, float]:
        count = judge(weight, measure)
        return count.passes(fewest), abs(count.right - base.right)

    return by_accuracy


def mean_loss(logits: Iterable[torch.Tensor], labels: Iterable[torch.Tensor], total: int) -> float:
    """Return the mean cross-entropy of batches of `total` images in all, in float64, whatever the batches are."""
    batches = zip(logits, labels, strict=True)
    losses = (functional.cross_entropy(z.double(), truth, reduction="none").tolist() for z, truth in batches)
    return math.fsum(chain.from_iterable(losses)) / total


def of_reading(options: Mapping[str, Any], *, t: float, z: float) -> tuple[Settings, dict[str, Any]]:
    """Return the generator's settings that the `options` of a registered reading say, and what is left: the search's.

    `t` stands where the reading has an energy share, `z` where it says no other.
    """
    said = {"z": z, **options} | ({"t": t} if "t" in options else {})
    generator = {field.name: said.pop(field.name) for field in fields(Settings) if field.name in said}
    return Settings(**generator), said


def gradient_steps(
    net: nn.Module, base: State, settings: Settings, seed: int, train: Split, *, steps: int, start: State | None = None
) -> State:
    """Return the candidate `generate(base, settings, seed)` after `steps` (n_D) steps of SGD on what was redrawn of it.

    Line 6 applied: its gradient of D is read as that of the cross-entropy, on batches of 64 training images, at a
    rate of 0.01 with momentum 0.9. What was kept stays, and so do biases and BatchNorm. It takes gradients and labels:
    **not training-free**. `start` stands in for the candidate: the base itself, or one with noise, is what to compare
    with. One mask for all seeds is asked for: MgenbError for a mask or a z that is drawn.
    """
    if not settings.fixed:
        raise MgenbError(f"gradient steps need one mask: selection {settings.selection!r} or z_drawn is not for them")
    trained = deepcopy(net).eval()
    trained.load_state_dict(generate(base, settings, seed) if start is None else start)
    trained.requires_grad_(False)
    weights = {name: trained.get_parameter(name).requires_grad_() for name in frequency.weight_names(base)}
    for name, weight in weights.items():
        weight.register_hook(partial(_on_the_redrawn, unimportant(base[name], settings, seed), settings))
    optimiser = torch.optim.SGD(weights.values(), 0.01, momentum=0.9)
    generator = torch_generator(seed, "gradient steps")
    for _ in range(steps):
        index = torch.randint(len(train), (64,), generator=generator).to(train.images.device)
        optimiser.zero_grad()
        functional.cross_entropy(trained(train.images[index]), train.labels[index]).backward()
        optimiser.step()
    return {name: value.detach() for name, value in trained.state_dict().items()}


def _on_the_redrawn(mask: torch.Tensor, settings: Settings, gradient: torch.Tensor) -> torch.Tensor:
    """Return the part of a layer's gradient that changes only what lies under `mask`."""
    if settings.domain == "weights":
        return gradient * mask
    return frequency.to_weights(frequency.to_coefficients(gradient, settings.transform) * mask, settings.transform)


def replay(base: State, settings: Settings, recipe: Mapping[str, int], layers: Layers = layer_generator) -> State:
    """Return the state_dict that `search` ended with, from its recipe, without evaluating anything."""
    return {**base, **{name: layers(base[name], settings)(draw) for name, draw in recipe.items()}}


def cached(net: nn.Module, split: Split) -> Fitness:
    """Return the fitness that computes what lies before the layer once, and each try from there on until decided.

    Holds those activations for the whole split: for LeNet at most 19 kB an image, for VGG16 256 kB.
    Any network that torch.fx can trace; `net` stays as it is. SealedSplitError for the test split.
    """
    refuse_test(split)
    graph = Tracer().trace(population.quick_copy(net))
    first, *nodes, last = graph.nodes
    batches = list(population.batches(split))

    @torch.inference_mode()
    def at(state: State, name: str) -> Judge:
        scratch = population.quick_copy(net)  # one for each layer: several may be tried in turn
        scratch.load_state_dict(state)
        part = _Part(scratch, graph=graph)
        # the node is the layer, the parameter itself, or (attention) a module that the graph does not look into
        layer = next(i for i, node in enumerate(nodes) if f"{name}.".startswith(f"{node.target}."))
        before, after = nodes[:layer], [*nodes[layer:], last]
        used = {node for node in (first, *before) if set(node.users) & set(after)}
        starts = [{n: v for n, v in part.run_nodes(before, {first: x}).items() if n in used} for x, _ in batches]

        @torch.inference_mode()
        def judge(weight: torch.Tensor, measure: Measure) -> Any:
            scratch.get_parameter(name).copy_(weight)
            logits = (part.run_nodes(after, start)[last] for start in starts)
            with precise(COUNTING):
                return measure(logits, (labels for _, labels in batches), len(split))

        return judge

    return at


class _Part(fx.Interpreter):
    """Runs some of a graph's nodes."""

    def run_nodes(self, nodes: Sequence[fx.Node], values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Return `values` and those of `nodes`, which follow from them; a copy, for some nodes work in place."""
        self.env = {node: value.clone() if torch.is_tensor(value) else value for node, value in values.items()}
        for node in nodes:
            self.env[node] = self.run_node(node)
        return self.env
