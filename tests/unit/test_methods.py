"""Rivals of MeGA: what each returns, that it keeps to its budget, and that no test image is seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mgenb import mega, training
from mgenb.errors import MgenbError, SealedSplitError
from mgenb.measure import population
from mgenb.mega import align, methods
from mgenb.mega.methods import METHODS, Task

BUDGET, SIZE = 24, 6


@pytest.fixture(scope="module")
def task(lenet, small, alone):
    with alone():
        other = training.trained("lenet", small, epochs=12, seed=1)
    states = population.state_of(lenet), population.state_of(other)
    return Task(lenet, *states, small.train, small.val, BUDGET, 0, SIZE)


@pytest.fixture(scope="module")
def results(task, alone):
    with alone():
        return {name: method(task) for name, method in METHODS.items()}


def same(a, b):
    return all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_tells_its_fitness_and_keeps_to_the_budget(name, results, task):
    found = results[name]
    assert 1 <= found.evaluations <= BUDGET + 2 * ("alone" in name)  # which parent is better comes on top
    right = methods.correct(task.net, task.val, found.states)
    assert right.double().mean().item() == pytest.approx(found.fitness)
    again = METHODS[name](task)
    assert all(same(a, b) for a, b in zip(again.states, found.states, strict=True))


def test_searches_spend_what_they_are_given(results):
    assert results["line"].evaluations == results["random"].evaluations == BUDGET
    for name in (*(one for one in METHODS if one.startswith("mega")), "cma"):
        assert results[name].evaluations > BUDGET - 2 * SIZE


def test_nothing_that_holds_both_ends_is_worse_than_the_better_parent(results):
    for name in ("line", "soup", "mega-fixed"):
        assert results[name].fitness >= results["parent"].fitness


def test_parent_average_and_soup(results, task):
    accuracies = [population.accuracy(task.net, task.val, one) for one in (task.first, task.second)]
    better = (task.first, task.second)[int(np.argmax(accuracies))]
    assert same(results["parent"].states[0], better)
    middle = results["average"].states[0]["net.fc1.weight"]
    assert torch.allclose(middle, (task.first["net.fc1.weight"] + task.second["net.fc1.weight"]) / 2, atol=1e-7)
    best = max(results["parent"].fitness, results["average"].fitness)
    assert results["soup"].fitness == best


def test_the_ensemble_votes_by_mean_logits(results, task):
    logits = [population.logits(task.net, task.val, one) for one in (task.first, task.second)]
    right = (logits[0] + logits[1]).argmax(1) == task.val.labels
    assert results["ensemble"].fitness == pytest.approx(right.double().mean().item())
    assert len(results["ensemble"].states) == 2


def test_the_table_of_one_pair_has_both_parents_and_what_is_above_the_better(results, task, small):
    found = {name: results[name] for name in ("average", "ensemble", "parent")}
    table = methods.compare(task, ("a", "b"), found, small.test.unseal("test"))
    assert list(table.index) == ["average", "ensemble", "parent", "a", "b"]
    assert tuple(table.columns) == methods.COLUMNS
    better = "ab"[int(np.argmax([population.accuracy(task.net, task.val, one) for one in (task.first, task.second)]))]
    assert {table.at[name, "above the better parent"] for name in ("parent", better)} == {"0.0 [0.0, 0.0]"}
    assert float(table.at["average", "above the better parent"].split()[0]) < -5
    assert table.at["average", "alpha"] == "0.50"
    assert float(table.at["average", "nearest"]) == pytest.approx(0.5, abs=1e-3)
    assert table.at["ensemble", "alpha"] == ""


def test_what_is_a_merge(results, task):
    merges = {name for name, result in results.items() if methods.merges(name, result, task)}
    assert not merges & {"parent", "parent-bn", "mega-alone", "ensemble"}
    assert merges >= {"average", "mega", "rebasin"}
    copy = replace(results["mega"], states=(task.second,))
    assert not methods.merges("mega", copy, task)


def test_rebasin_is_the_average_with_the_aligned_second(results, task):
    other = align.aligned(task.net, task.first, task.second, 0)
    assert same(results["rebasin"].states[0], mega.between(task.first, other, 0.5))
    assert results["rebasin"].fitness > results["average"].fitness


def test_alone_has_as_many_generations_as_mega(results):
    assert results["mega-alone"].evaluations == results["mega"].evaluations + 2


def test_a_line_search_after_alignment_stays_on_the_aligned_segment(results, task):
    found = results["line-rebasin"]
    assert found.provenance(task).off_segment < 1e-3
    assert found.aligned is not None
    assert not same(found.aligned, task.second)


def test_alone_never_leaves_its_parent_but_by_mutation(results, task):
    better = results["parent"].states[0]
    changed = [(results["mega-alone"].states[0][n] != better[n]).double().mean().item() for n in better if "net" in n]
    assert max(changed) < 0.5  # 2 % of the weights a generation, and a few generations


def test_a_genetic_algorithm_goes_on_from_what_it_kept(task, results, tmp_path, monkeypatch):
    kept = replace(task, keep=tmp_path / "kept")
    assert same(METHODS["mega"](kept).states[0], results["mega"].states[0])

    def judged_again(*_):
        raise AssertionError("evaluated again, though nothing was left to do")

    monkeypatch.setattr(population, "accuracy_on", lambda *_: judged_again)
    assert METHODS["mega"](kept).fitness == results["mega"].fitness
    with pytest.raises(MgenbError, match="another computation"):
        METHODS["mega-fixed"](kept)


def test_merging_a_network_with_itself_returns_it(task):
    twins = Task(task.net, task.first, task.first, task.train, task.val, BUDGET, 0, SIZE)
    for name in ("parent", "average", "line", "random", "soup", "cma", "rebasin"):
        assert all(tensor.allclose(task.first[n]) for n, tensor in METHODS[name](twins).states[0].items())


def test_cma_leaves_the_global_random_state_alone(task):
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    methods.cma_es(task)
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()  # noqa: NPY002


def test_fresh_statistics_are_those_of_the_training_images(small):
    nets = [training.fresh("resnet8", small, seed) for seed in (0, 1)]
    first, second = (population.state_of(net) for net in nets)
    with_norms = Task(nets[0], first, second, small.train.take(64, 0), small.val.take(20, 0), 8, 0, 4)
    found = METHODS["average-bn"](with_norms).states[0]
    wanted = align.recalibrate(nets[0], mega.between(first, second, 0.5), with_norms.train)
    assert same(found, wanted)
    assert METHODS["line-bn"](with_norms).evaluations == 8
    for name in ("parent-bn", "line-bn", "mega-rebasin"):
        result = METHODS[name](with_norms)
        assert same(result.states[0], align.recalibrate(nets[0], result.states[0], with_norms.train)), name
        right = methods.correct(nets[0], with_norms.val, result.states)  # it was judged as it is returned
        assert right.double().mean().item() == pytest.approx(result.fitness)


def test_a_budget_below_cma_s_own_population_is_spent(task):
    result = METHODS["cma"](replace(task, budget=6, size=3))
    assert result.evaluations == 6
    assert result.fitness >= 0


def test_the_test_split_and_what_does_not_match_are_refused(task, small):
    test = small.test.unseal("test")
    with pytest.raises(SealedSplitError):
        Task(task.net, task.first, task.second, task.train, test, BUDGET, 0, SIZE)
    with pytest.raises(SealedSplitError):
        Task(task.net, task.first, task.second, test, task.val, BUDGET, 0, SIZE)
    fewer = {name: tensor for name, tensor in task.second.items() if name != "net.fc2.bias"}
    with pytest.raises(MgenbError, match=r"lacks 'net.fc2.bias'"):
        Task(task.net, task.first, fewer, task.train, task.val, BUDGET, 0, SIZE)
    with pytest.raises(MgenbError, match="budget is 7; right is at least two generations of 4"):
        Task(task.net, task.first, task.second, task.train, task.val, 7, 0, 4)
