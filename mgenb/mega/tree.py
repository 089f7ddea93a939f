"""Merge any number of networks in a tree of pairs (MeGA, arXiv 2406.04607, Fig. 3: eight models in three levels)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mgenb.errors import MgenbError, check
from mgenb.mega.methods import Result
from mgenb.store import State

Tree: TypeAlias = "int | tuple[Tree, Tree]"  # a model's number, or two trees whose results are merged
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


def balanced(count: int) -> Tree:
    """Return the tree that merges neighbours level by level; an odd one out waits for the next level.

    Raises MgenbError for fewer than two models.
    """
    check("the number of models in a tree", count, 2)
    level: list[Tree] = list(range(count))
    while len(level) > 1:
        level = [*zip(level[::2], level[1::2], strict=False), *level[len(level) // 2 * 2 :]]
    return level[0]


def leaves(tree: Tree) -> list[int]:
    """Return the numbers of the models in a tree, from left to right."""
    return [tree] if isinstance(tree, int) else leaves(tree[0]) + leaves(tree[1])


def merge_tree(tree: Tree, states: Sequence[State], merge: Merge) -> list[Node]:
    """Merge `states` as `tree` says; return all nodes, each after its children, the result last.

    `merge` takes two state_dicts and the name of the node. Raises MgenbError unless the tree has two leaves at least
    and each is the number of a state, none of them twice.
    """
    numbers = leaves(tree)
    if len(numbers) < 2 or len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(len(states))):
        raise MgenbError(
            f"the tree merges models {numbers}; right are two or more of 0 to {len(states) - 1}, each once"
        )
    return _merged(tree, states, merge)


def _merged(tree: Tree, states: Sequence[State], merge: Merge) -> list[Node]:
    if isinstance(tree, int):
        return [Node(str(tree), 0, (), states[tree])]
    nodes, others = (_merged(part, states, merge) for part in tree)
    left, right = nodes[-1], others[-1]
    name = f"{left.name}-{right.name}"
    result = merge(left.state, right.state, name)
    if len(result.states) != 1:
        raise MgenbError(f"node {name} became an ensemble of {len(result.states)}; a tree needs one network")
    level = 1 + max(left.level, right.level)
    return [*nodes, *others, Node(name, level, (left.name, right.name), result.states[0], result)]
