"""E-MGE: what individuals are made of, what selection keeps, and that an interruption changes nothing."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from mgenb import mge
from mgenb.errors import MgenbError, SealedSplitError
from mgenb.measure import population
from mgenb.mge import algorithm1, evolve, frequency
from mgenb.mge.evolve import Settings

GENERATE = mge.Settings(z=0.2)
TINY = Settings(parents=4, mutations=4, fusions=6, generations=3, gamma=0.5)


@pytest.fixture(scope="module")
def base(lenet):
    return population.state_of(lenet)


def near(base, name="net.fc1.weight"):
    """Criterion: how near a layer is to the base's."""
    return lambda states: [1 - (state[name] - base[name]).norm().item() / base[name].norm().item() for state in states]


def distances(base):
    return near(base), near(base, "net.conv2.weight")


def run(base, settings=TINY, seed=0, **options):
    return evolve.evolve(base, GENERATE, settings, seed, *distances(base), **options)


@pytest.fixture(scope="module")
def evolved(base, alone):
    with alone():
        return run(base)


def states(base, evolution):
    return [evolve.replay(base, GENERATE, individual.recipe) for individual in evolution.survivors]


def test_the_history_counts_every_evaluation(evolved):
    assert list(evolved.history["generation"]) == [0, 1, 2, 3]
    assert list(evolved.history["evaluations"]) == [4, 14, 24, 34]
    assert (evolved.history[list(evolve.ORIGINS)].sum(axis=1) == 4).all()
    assert len(evolved.best) == 4
    assert len(evolved.survivors) == 4


def test_fitness_never_falls_and_rises_at_last(evolved):
    history = evolved.history
    assert (history[["best", "mean"]].diff().dropna() >= 0).all().all()
    assert history["best"].iloc[-1] > history["best"].iloc[0]
    assert (history["best"] >= history["mean"]).all()
    fitness = [individual.fitness for individual in evolved.survivors]
    assert fitness == sorted(fitness, reverse=True)
    assert history["best"].iloc[-1] == fitness[0]


def test_fitness_is_quality_and_gamma_times_additional_of_the_replayed_weights(base, evolved):
    quality, additional = distances(base)
    for individual, state in zip(evolved.survivors, states(base, evolved), strict=True):
        assert individual.quality == pytest.approx(quality([state])[0], abs=1e-5)
        assert individual.additional == pytest.approx(additional([state])[0], abs=1e-5)
        assert individual.fitness == individual.quality + 0.5 * individual.additional


def test_only_the_unimportant_part_of_the_base_ever_changes(base, evolved):
    for state in states(base, evolved):
        for name, tensor in base.items():
            if name not in frequency.weight_names(base):
                assert state[name].equal(tensor)
                continue
            moved = (frequency.to_coefficients(state[name] - tensor, "flat").abs() > 1e-5).view(tensor.shape)
            mask = mge.unimportant(tensor, GENERATE, 0)
            assert moved.any()
            assert not (moved & ~mask).any()


def test_shares_of_every_layer_add_up_to_one(evolved):
    for individual in (*evolved.survivors, *evolved.best):
        for shares in individual.recipe.values():
            assert sum(shares.values()) == pytest.approx(1)
            assert min(shares.values()) >= 0


def between(x, a, b):
    return bool(((x >= torch.minimum(a, b) - 1e-6) & (x <= torch.maximum(a, b) + 1e-6)).all())


def first_generation(base, settings):
    """The weight layers of all that a generation is made of, and of what it adds."""
    seen, names = [], frequency.weight_names(base)

    def spy(given):
        seen.append([{name: state[name].clone() for name in names} for state in given])
        return [float(-i) for i in range(len(seen[-1]))]

    evolve.evolve(base, GENERATE, settings, 0, spy, spy)
    return seen


def averaged(fusion, available):
    """Which pairs (by index) a fusion is a weighted average of, with one share for all layers."""
    pairs = []
    flat = [torch.cat([tensor.reshape(-1).double() for tensor in state.values()]) for state in (fusion, *available)]
    fused, *others = flat
    for i, k in combinations(range(len(others)), 2):
        way, gone = others[k] - others[i], fused - others[i]
        share = (gone @ way / (way @ way)).item()
        if 0 < share < 1 and (gone - share * way).norm() < 1e-5 * way.norm():
            pairs.append((i, k))
    return pairs


def test_a_mutation_changes_one_layer_and_a_fusion_averages_any_two_of_parents_and_mutants(base):
    settings = Settings(parents=3, mutations=3, fusions=12, generations=1, gamma=0)
    parents, children = first_generation(base, settings)
    for i, mutant in enumerate(children[:3]):
        assert sum(not mutant[name].equal(parents[i][name]) for name in mutant) == 1
    available, fused = [*parents, *children[:3]], []
    for fusion in children[3:]:
        (pair,) = averaged(fusion, available)
        fused.append(pair)
        assert all(between(fusion[name], *(available[i][name] for i in pair)) for name in fusion)
    assert len(fused) == 12
    assert {i for pair in fused for i in pair} == set(range(6))
    assert len(set(fused)) > 5


@pytest.mark.parametrize(("fusions", "children"), [(6, 3), (20, 3), (5, 2), (4, 2), (2, 1), (1, 0), (0, 0)])
def test_models_that_are_taken_into_fusion_are_paired_once_each(base, fusions, children):
    settings = Settings(parents=3, mutations=3, fusions=fusions, fused="taken", generations=1, gamma=0)
    parents, added = first_generation(base, settings)
    available = [*parents, *added[:3]]
    pairs = [averaged(fusion, available) for fusion in added[3:]]
    taken = [i for (pair,) in pairs for i in pair]
    assert len(pairs) == children
    assert len(set(taken)) == len(taken) == 2 * children


def test_all_20_that_the_paper_has_are_taken_in(base):
    settings = Settings(parents=10, mutations=10, fusions=20, fused="taken", generations=2, gamma=0)
    assert list(run(base, settings).history["evaluations"]) == [10, 30, 50]


def test_a_fusion_of_two_draws_averages_them_by_shares(base):
    survivors = run(base, Settings(parents=2, mutations=0, fusions=3, generations=1)).survivors
    fused = [individual for individual in survivors if individual.origin == "fusion"]
    assert fused
    for individual in fused:
        low, high = sorted(individual.recipe["net.fc1.weight"].values())
        assert 0 < low < 0.5 < high < 1
        assert 1 < individual.draws <= 2


def test_without_mutation_and_fusion_it_is_random_search(base):
    evolution = run(base, Settings(parents=4, mutations=0, fusions=0, fresh=10, generations=3))
    assert {individual.origin for individual in evolution.survivors} == {"fresh"}
    assert all(individual.draws == 1 for individual in evolution.best)
    assert evolution.history["evaluations"].iloc[-1] == 34


def test_gamma_zero_leaves_the_additional_criterion_alone(base):
    def never(states):
        raise AssertionError("the additional criterion was asked")

    evolution = evolve.evolve(base, GENERATE, Settings(generations=1, gamma=0), 0, near(base), never)
    assert (evolution.history["additional"] == 0).all()


def test_the_first_population_by_algorithm_1(base, lenet, small):
    fitness = algorithm1.cached(lenet, small.val)
    first = lambda seed: algorithm1.search(base, GENERATE, seed, fitness, tries=3).recipe  # noqa: E731
    settings = Settings(parents=3, mutations=2, fusions=2, generations=0)
    evolution = run(base, settings, first=first)
    again = evolve.evolve(base, GENERATE, settings, 0, *distances(base), first=first)
    assert evolution.survivors == again.survivors
    right = int(population.correct(lenet, small.val).sum())
    for individual in evolution.survivors:
        state = evolve.replay(base, GENERATE, individual.recipe)
        assert set(individual.recipe) == set(frequency.weight_names(base))
        assert all(state[name].equal(base[name]) for name, shares in individual.recipe.items() if not shares)
        assert any(individual.recipe.values())
        assert population.count(lenet, small.val, [state])[0].right >= mge.fewest_right(right, len(small.val))


def test_a_fusion_with_a_layer_of_the_base(base):
    first = lambda seed: {"net.fc1.weight": seed} if seed % 2 else {"net.fc2.weight": seed}  # noqa: E731
    evolution = run(base, Settings(parents=8, mutations=0, fusions=40, generations=1), first=first)
    fused = [individual for individual in evolution.survivors if individual.origin == "fusion"]
    assert fused
    for individual in fused:
        state = evolve.replay(base, GENERATE, individual.recipe)
        assert sum(individual.recipe["net.conv1.weight"].values()) == 0
        assert state["net.conv1.weight"].equal(base["net.conv1.weight"])
        assert individual.quality == pytest.approx(near(base)([state])[0], abs=1e-5)


def test_noise_in_place_of_the_generator(base):
    evolution = run(base, layers=mge.layer_noise)
    state = evolve.replay(base, GENERATE, evolution.survivors[0].recipe, mge.layer_noise)
    mask = mge.unimportant(base["net.fc1.weight"], GENERATE, 0)
    moved = frequency.to_coefficients(state["net.fc1.weight"] - base["net.fc1.weight"], "flat").view(mask.shape)
    assert moved[~mask].abs().max() > 1e-3
    assert evolution.survivors[0].quality == pytest.approx(near(base)([state])[0], abs=1e-5)


def test_the_seed_decides(base, evolved):
    assert run(base).history.equals(evolved.history)
    assert not run(base, seed=1).history.equals(evolved.history)


def test_what_is_not_finite_is_counted_and_never_survives(base):
    def broken(states):
        return [math.nan if i % 3 == 0 else math.inf if i % 3 == 1 else float(i) for i, _ in enumerate(states)]

    evolution = evolve.evolve(base, GENERATE, Settings(parents=4, generations=2, gamma=0), 0, broken, broken)
    assert list(evolution.history["failed"]) == [3, 20, 20]
    assert all(math.isfinite(individual.fitness) for individual in evolution.survivors)
    assert len(evolution.survivors) == 4


def test_one_survivor_can_still_be_fused(base):
    values = iter([[1.0, math.nan], [math.nan] * 3, [2.0] * 3])
    settings = Settings(parents=2, mutations=0, fusions=3, generations=2, gamma=0)

    def few(states):
        return [value for value, _ in zip(next(values), states, strict=True)]

    evolution = evolve.evolve(base, GENERATE, settings, 0, few, few)
    assert list(evolution.history["failed"]) == [1, 3, 0]


def test_an_empty_population_is_an_error(base):
    with pytest.raises(MgenbError, match="generation 0 is empty: none of 4 has a finite fitness"):
        evolve.evolve(base, GENERATE, TINY, 0, lambda states: [math.nan for _ in states], near(base))
    with pytest.raises(MgenbError, match="no weight layer"):
        evolve.evolve({"bias": torch.zeros(3)}, GENERATE, TINY, 0, near(base), near(base))


def test_a_criterion_of_the_wrong_length_is_an_error(base):
    with pytest.raises(MgenbError, match="quality gave 1 values for 4 individuals"):
        evolve.evolve(base, GENERATE, TINY, 0, lambda states: [1.0], near(base))


def test_accuracy_is_counted_on_anything_but_the_test_split(base, lenet, small):
    criterion = population.accuracy_on(lenet, small.val)
    assert criterion([base]) == [pytest.approx(population.accuracy(lenet, small.val))]
    with pytest.raises(SealedSplitError):
        population.accuracy_on(lenet, small.test.unseal("test"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parents": 0}, "parents is 0"),
        ({"mutations": -1}, "mutations is -1"),
        ({"parents": 1}, "parents is 1; right is a whole number of at least 2"),
        ({"gamma": math.nan}, "gamma is nan; right is a number of at least 0"),
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"fused": "child"}, "did you mean 'children'"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(MgenbError, match=message):
        Settings(**settings)


def same(a, b):
    return a.history.equals(b.history) and a.best == b.best and a.survivors == b.survivors


def test_a_checkpoint_goes_on_to_the_identical_result(base, evolved, tmp_path):
    file = tmp_path / "evolution"
    calls = 0

    def dies(states):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return near(base)(states)

    with pytest.raises(KeyboardInterrupt):
        evolve.evolve(base, GENERATE, TINY, 0, dies, distances(base)[1], checkpoint=file)
    asked = []

    def counts(states):
        values = near(base)(states)
        asked.append(len(values))
        return values

    resumed = evolve.evolve(base, GENERATE, TINY, 0, counts, distances(base)[1], checkpoint=file)
    assert asked == [10, 10]  # generations 0 and 1 are not evaluated again
    assert same(resumed, evolved)
    longer = Settings(**{**TINY.__dict__, "generations": 5})
    assert same(run(base, longer, checkpoint=file), run(base, longer))


def test_a_checkpoint_of_something_else_is_refused_and_kept(base, tmp_path, monkeypatch):
    file = tmp_path / "evolution"
    run(base, checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(MgenbError, match="belongs to another computation"):
        run(base, seed=1, checkpoint=file)
    with pytest.raises(MgenbError, match="belongs to another computation"):
        run(base, layers=mge.layer_noise, checkpoint=file)
    with monkeypatch.context() as patch:
        patch.setattr(evolve, "VERSION", evolve.VERSION + 1)
        with pytest.raises(MgenbError, match="belongs to another computation"):
            run(base, checkpoint=file)
    assert file.read_bytes() == before
    file.write_bytes(before[: len(before) // 2])
    with pytest.raises(MgenbError, match="is damaged: delete it"):
        run(base, checkpoint=file)


def test_the_effective_number_of_draws():
    individual = evolve.Individual({"a": {1: 0.5, 2: 0.5}, "b": {3: 1.0}, "c": {4: 0.5}, "d": {}}, "fusion")
    assert individual.draws == pytest.approx(np.mean([2, 1, 2, 1]))  # "c" is half the base's, "d" wholly
