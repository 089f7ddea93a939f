"""Merge any number of networks in a tree of pairs (MeGA, arXiv 2406.04607, Fig. 3: eight models in three levels)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mgenb.errors import MgenbError, check
from mgenb.mega.methods import Result
from mgenb.store import State

Merge = Callable[[State, State, str], Result]  # two models and the name of the node that they become


@dataclass(frozen=True)
class Node:
    """A model of the tree: a leaf (one of the models given) or what two others were merged into.

    name: the numbers of the models below it, as "0-1-2". level: 0 for leaves, else one above the higher child.
    children: names of the two that were merged. result: how they were; None for a leaf.
    """

    name: str
    level: int
    children: tuple[str, ...]
    state: State
    result: Result | None = None


def merge_tree(states: Sequence[State], merge: Merge) -> list[Node]:
    """Merge neighbours level by level, an odd one out waits for the next; return all nodes, children first, root last.

    `merge` takes two state_dicts and the name of the node. Raises MgenbError for fewer than two states.
    """
    check("the number of models in a tree", len(states), 2)
    return _merged(states, 0, merge)


def _merged(states: Sequence[State], first: int, merge: Merge) -> list[Node]:
    """Return the nodes above some of the models, which are numbered from `first`."""
    if len(states) == 1:
        return [Node(str(first), 0, (), states[0])]
    half = 2 ** ((len(states) - 1).bit_length() - 1)  # the largest power of two that leaves some for the right
    nodes, others = _merged(states[:half], first, merge), _merged(states[half:], first + half, merge)
    left, right = nodes[-1], others[-1]
    name = f"{left.name}-{right.name}"
    result = merge(left.state, right.state, name)
    if len(result.states) != 1:
        raise MgenbError(f"node {name} became an ensemble of {len(result.states)}; a tree needs one network")
    level = 1 + max(left.level, right.level)
    return [*nodes, *others, Node(name, level, (left.name, right.name), result.states[0], result)]
