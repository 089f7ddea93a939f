"""Trees of merges: any number of models, any shape, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgenb import mega
from mgenb.errors import MgenbError
from mgenb.mega import tree
from mgenb.mega.methods import Result

trees = st.recursive(st.just(0), lambda below: st.tuples(below, below), max_leaves=9)


def numbered(shape, start=0):
    """The same shape with leaves 0, 1, 2, ... from left to right."""
    if isinstance(shape, int):
        return start, start + 1
    left, after = numbered(shape[0], start)
    right, end = numbered(shape[1], after)
    return (left, right), end


def states(count):
    return [{"a.weight": torch.full((1,), float(2**i))} for i in range(count)]


def mean(first, second, name):
    return Result((mega.between(first, second, 0.5),), 0.5, 3)


def test_eight_models_make_three_levels_as_in_fig_3():
    nodes = tree.merge_tree(tree.balanced(8), states(8), mean)
    assert [sum(node.level == level for node in nodes) for level in range(4)] == [8, 4, 2, 1]
    assert nodes[-1].name == "0-1-2-3-4-5-6-7"
    assert nodes[-1].children == ("0-1-2-3", "4-5-6-7")
    assert nodes[-1].state["a.weight"].item() == pytest.approx(sum(2**i for i in range(8)) / 8)


@pytest.mark.parametrize(("count", "name"), [(2, "0-1"), (3, "0-1-2"), (5, "0-1-2-3-4"), (7, "0-1-2-3-4-5-6")])
def test_odd_numbers_wait_for_the_next_level(count, name):
    nodes = tree.merge_tree(tree.balanced(count), states(count), mean)
    assert nodes[-1].name == name
    assert len(nodes) == 2 * count - 1


@given(trees)
def test_any_tree_merges_each_model_once_and_children_first(shape):
    pairs, count = numbered(shape)
    if count < 2:
        return
    nodes = tree.merge_tree(pairs, states(count), mean)
    places = {node.name: place for place, node in enumerate(nodes)}
    assert len(places) == 2 * count - 1
    for node in nodes:
        assert all(places[child] < places[node.name] for child in node.children)
        assert node.level == (1 + max(nodes[places[c]].level for c in node.children) if node.children else 0)
    assert tree.leaves(pairs) == list(range(count))


@pytest.mark.parametrize("pairs", [0, (0, 0), (0, 3), ((0, 1), 1), (-1, 0)])
def test_a_tree_that_does_not_fit_is_refused(pairs):
    with pytest.raises(MgenbError, match="right are two or more of 0 to 2, each once"):
        tree.merge_tree(pairs, states(3), mean)


def test_one_model_and_an_ensemble_are_refused():
    with pytest.raises(MgenbError, match="the number of models in a tree is 1; right is a whole number of at least 2"):
        tree.balanced(1)
    with pytest.raises(MgenbError, match="node 0-1 became an ensemble of 2"):
        tree.merge_tree((0, 1), states(2), lambda a, b, name: Result((a, b), 0.5, 1))
