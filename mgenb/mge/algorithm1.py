"""Algorithm 1 of MGE (arXiv 2402.17486): layer by layer, redraw until the discriminator accepts.

A try exchanges one layer. What the network computes before that layer is the same for all tries of it, so
`cached` computes it once for each layer; `plain` runs the whole network for each try, and is what to check against.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mgenb.data import Split
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.mge import frequency
from mgenb.mge.generator import Layers, Settings, fewest_right, layer_generator
from mgenb.nets import Tracer
from mgenb.seeds import derive
from mgenb.store import State

# (weight in a layer, fewest right to be accepted) -> images that are right, with that weight; the whole pass for None
RightWith = Callable[[torch.Tensor, int | None], population.Count]
Fitness = Callable[[State, str], RightWith]  # (state_dict, name of a layer) -> what judges tries of that layer


@dataclass(frozen=True)
class LayerwiseResult:
    """What Algorithm 1 ended with.

    state: the state_dict. tries: how many were made of each layer. recipe: the seed of the draw that was taken for
    each layer; a layer that was left as it was is missing. See `replay`.
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
    eps: float = 0.05,
    tries: int = 100,
) -> LayerwiseResult:
    """Run Algorithm 1: layers in the network's order, `tries` (n_D) times each at most.

    `fitness` is `plain(net, split)` or `cached(net, split)`; `layers` makes the tries, with `mge.layer_noise`
    the same search is done with plain noise. A layer for which no try is accepted keeps its
    weights. Raises MgenbError when tries < 1.
    """
    if tries < 1:
        raise MgenbError(f"tries is {tries}; right is at least 1 (the paper: 100)")
    names = frequency.weight_names(base)
    state, made, recipe = dict(base), {}, {}
    whole = fitness(state, names[0])(base[names[0]], None)
    fewest = fewest_right(whole.right, whole.total, eps)
    for name in names:
        generated, right_with = layers(base[name], settings), fitness(state, name)
        for attempt in range(1, tries + 1):
            draw = derive(seed, name, attempt)
            layer, made[name] = generated(draw), attempt
            if right_with(layer, fewest).passes(fewest):
                state[name], recipe[name] = layer, draw
                break
    return LayerwiseResult(state, made, recipe)


def replay(base: State, settings: Settings, recipe: Mapping[str, int], layers: Layers = layer_generator) -> State:
    """Return the state_dict that `search` ended with, from its recipe, without evaluating anything."""
    return {**base, **{name: layers(base[name], settings)(draw) for name, draw in recipe.items()}}


def plain(net: nn.Module, split: Split) -> Fitness:
    """Return the fitness that runs the whole network for each try; SealedSplitError for the test split."""
    population.refuse_test(split)
    return lambda state, name: lambda weight, _: population.count(net, split, [{**state, name: weight}])[0]


def cached(net: nn.Module, split: Split) -> Fitness:
    """Return the fitness that computes what lies before the layer once, and each try from there on until decided.

    Holds those activations for the whole split: for LeNet at most 19 kB an image, for VGG16 256 kB.
    Any network that torch.fx can trace; `net` stays as it is. SealedSplitError for the test split.
    """
    population.refuse_test(split)
    graph = Tracer().trace(population.quick_copy(net))
    first, *nodes, last = graph.nodes
    batches, total = list(population.batches(split)), len(split)

    @torch.inference_mode()
    def at(state: State, name: str) -> RightWith:
        scratch = population.quick_copy(net)  # one for each layer: several may be tried in turn
        scratch.load_state_dict(state)
        part = _Part(scratch, graph=graph)
        # the node is the layer, the parameter itself, or (attention) a module that the graph does not look into
        layer = next(i for i, node in enumerate(nodes) if f"{name}.".startswith(f"{node.target}."))
        before, after = nodes[:layer], [*nodes[layer:], last]
        used = {node for node in (first, *before) if set(node.users) & set(after)}
        starts = [{n: v for n, v in part.run_nodes(before, {first: x}).items() if n in used} for x, _ in batches]

        @torch.inference_mode()
        def count(weight: torch.Tensor, fewest: int | None) -> population.Count:
            scratch.get_parameter(name).copy_(weight)
            logits = (part.run_nodes(after, start)[last] for start in starts)
            return population.tally(logits, (labels for _, labels in batches), total, fewest)

        return count

    return at


class _Part(fx.Interpreter):
    """Runs some of a graph's nodes."""

    def run_nodes(self, nodes: Sequence[fx.Node], values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Return `values` and those of `nodes`, which follow from them; a copy, for some nodes work in place."""
        self.env = {node: value.clone() if torch.is_tensor(value) else value for node, value in values.items()}
        for node in nodes:
            self.env[node] = self.run_node(node)
        return self.env
