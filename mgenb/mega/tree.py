"""Merge any number of networks in a tree of pairs (MeGA, arXiv 2406.04607, Fig. 3: eight models in three levels)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mgenb.errors import MgenbError
from mgenb.mega.methods import Found
from mgenb.store import State

Tree: TypeAlias = "int | tuple[Tree, Tree]"  # a model's number, or two trees whose results are merged
Merge = Callable[[State, State, str], Found]


@dataclass(frozen=True)
class Node:
    """A model of the tree: a leaf (one of the models given) or what two others were merged into.

    name: the numbers of the models below it, as "0-1-2". level: 0 for leaves, else one above the higher child.
    children: names of the two that were merged. found: None for a leaf.
    """

    name: str
    level: int
    children: tuple[str, ...]
    state: State
    found: Found | None = None


def balanced(count: int) -> Tree:
    """Return the tree that merges neighbours level by level; an odd one out waits for the next level.

    Raises MgenbError for fewer than two models.
    """
    if count < 2:
        raise MgenbError(f"a tree of {count} models has nothing to merge; right is at least 2")
    level: list[Tree] = list(range(count))
    while len(level) > 1:
        pairs: list[Tree] = [(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def leaves(tree: Tree) -> list[int]:
    """Return the numbers of the models in a tree, from left to right."""
    return [tree] if isinstance(tree, int) else [leaf for part in tree for leaf in leaves(part)]


def merge_tree(tree: Tree, states: Sequence[State], merge: Merge) -> list[Node]:
    """Merge `states` as `tree` says; return all nodes, each after its children, the result last.

    `merge` takes two state_dicts and the name of the node. Raises MgenbError unless the tree has two leaves at least
    and each is the number of a state, none of them twice.
    """
    found = leaves(tree)
    if len(found) < 2 or len(set(found)) < len(found) or not set(found) <= set(range(len(states))):
        raise MgenbError(f"the tree merges models {found}; right are two or more of 0 to {len(states) - 1}, each once")
    nodes: list[Node] = []

    def grown(part: Tree) -> Node:
        if isinstance(part, int):
            node = Node(str(part), 0, (), states[part])
        else:
            left, right = (grown(one) for one in part)
            name = "-".join(map(str, leaves(part)))
            merged = merge(left.state, right.state, name)
            if len(merged.states) != 1:
                raise MgenbError(f"node {name} became an ensemble of {len(merged.states)}; a tree needs one network")
            node = Node(name, 1 + max(left.level, right.level), (left.name, right.name), merged.states[0], merged)
        nodes.append(node)
        return node

    grown(tree)
    return nodes
