"""Trees of merges: any number of models, and what is refused."""

import pytest
import torch

from mgenb import mega
from mgenb.errors import MgenbError
from mgenb.mega import tree
from mgenb.mega.methods import Result


def states(count):
    return [{"a.weight": torch.full((1,), float(2**i))} for i in range(count)]


def mean(first, second, name):
    return Result((mega.between(first, second, 0.5),), 0.5, 3)


def test_eight_models_make_three_levels_as_in_fig_3():
    nodes = tree.merge_tree(states(8), mean)
    assert [sum(node.level == level for node in nodes) for level in range(4)] == [8, 4, 2, 1]
    assert nodes[-1].name == "0-1-2-3-4-5-6-7"
    assert nodes[-1].children == ("0-1-2-3", "4-5-6-7")
    assert nodes[-1].state["a.weight"].item() == pytest.approx(sum(2**i for i in range(8)) / 8)


@pytest.mark.parametrize(("count", "name"), [(2, "0-1"), (3, "0-1-2"), (5, "0-1-2-3-4"), (7, "0-1-2-3-4-5-6")])
def test_odd_numbers_wait_for_the_next_level(count, name):
    nodes = tree.merge_tree(states(count), mean)
    assert nodes[-1].name == name
    assert len(nodes) == 2 * count - 1


@pytest.mark.parametrize("count", range(2, 17))
def test_a_tree_merges_each_model_once_and_children_first(count):
    nodes = tree.merge_tree(states(count), mean)
    places = {node.name: place for place, node in enumerate(nodes)}
    assert len(places) == 2 * count - 1
    for node in nodes:
        assert all(places[child] < places[node.name] for child in node.children)
        assert node.level == (1 + max(nodes[places[c]].level for c in node.children) if node.children else 0)
    assert nodes[-1].level == (count - 1).bit_length()
    assert [node.name for node in nodes if not node.children] == [str(number) for number in range(count)]


def test_one_model_and_an_ensemble_are_refused():
    with pytest.raises(MgenbError, match="the number of models in a tree is 1; right is a whole number of at least 2"):
        tree.merge_tree(states(1), mean)
    with pytest.raises(MgenbError, match="node 0-1 became an ensemble of 2"):
        tree.merge_tree(states(2), lambda a, b, name: Result((a, b), 0.5, 1))
