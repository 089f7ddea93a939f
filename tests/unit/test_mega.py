"""MeGA: what each variant's genome, crossover, mutation and selection do, and that an interruption changes nothing."""

import itertools
import math

import numpy as np
import pytest
import torch

from mgenb import mega, training
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.mega import VARIANTS, Settings, genetic

TINY = {"size": 6, "generations": 3}
Pair = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def made(seed, shift=0.0):
    """A state_dict with a convolution, BatchNorm and a matrix."""
    g = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 2, 3, 3, generator=g) + shift,
        "conv.bias": torch.randn(4, generator=g),
        "bn.weight": torch.rand(4, generator=g) + 0.5,
        "bn.running_mean": torch.randn(4, generator=g),
        "bn.running_var": torch.rand(4, generator=g) + 0.01,
        "bn.num_batches_tracked": torch.tensor(7),
        "head.weight": torch.randn(3, 4, generator=g),
    }


@pytest.fixture(scope="module")
def parents():
    return made(1), made(2)


def tuned(name, **changes):
    return Settings(**{**VARIANTS[name].__dict__, **TINY, **changes})


def near(goal):
    """Criterion: how near a state is to a goal."""

    def fitness(states):
        return [
            -sum((s[n] - goal[n]).square().sum().item() for n in goal if goal[n].is_floating_point()) for s in states
        ]

    return fitness


def seen_by(parents: Pair, settings, seed=0):
    """The populations of state_dicts that fitness is asked about."""
    seen = []

    def spy(states):
        seen.append([{name: t.clone() for name, t in s.items()} for s in states])
        return near(parents[0])(seen[-1])

    return seen, mega.merge(*parents, settings, seed, spy)


def alphas(state, parents):
    """Each float tensor's place between the parents, one value an element."""
    first, second = parents
    return {n: (state[n] - second[n]) / (first[n] - second[n]) for n in state if state[n].is_floating_point()}


def test_without_mutation_scalars_keep_everyone_on_the_segment(parents):
    _, found = seen_by(parents, tuned("paper", rate=0.0))
    rows = found.individuals
    assert rows["off_segment"].max() < 1e-5
    assert rows["alpha"].between(0, 1).all()
    first = rows[rows["generation"] == 0]["alpha"]
    later = rows[rows["generation"] > 0]["alpha"]
    assert later.between(first.min() - 1e-6, first.max() + 1e-6).all()  # crossover never leaves the initial hull


@pytest.mark.parametrize(("variant", "grain"), [("paper", "network"), ("fixed", "layer"), ("elementwise", "weight")])
def test_the_grain_of_alpha_and_beta(parents, variant, grain):
    seen, _ = seen_by(parents, tuned(variant, rate=0.0, with_parents=False))
    within, beside, across = [], [], []
    for state in (one for generation in seen for one in generation):
        found = alphas(state, parents)
        middle = {name: alpha.median().item() for name, alpha in found.items()}
        within.append(found["head.weight"].std().item())
        beside.append(abs(middle["conv.weight"] - middle["conv.bias"]))
        across.append(abs(middle["conv.weight"] - middle["head.weight"]))
    assert (max(within) > 0.1) == (grain == "weight")
    assert (max(beside) > 0.1) == (grain == "weight")
    assert (max(across) > 0.1) == (grain != "network")


def test_parents_are_in_the_first_population_only_where_the_variant_says_so(parents):
    for name, settings in VARIANTS.items():
        seen, found = seen_by(parents, tuned(name))
        copies = [all(s[n].equal(p[n]) for n in s) for s in seen[0] for p in parents]
        assert sum(copies) == (2 if settings.with_parents else 0)
        assert (found.individuals["origin"] == "parent").sum() == sum(copies)


def test_how_many_are_evaluated(parents):
    _, paper = seen_by(parents, tuned("paper"))
    assert paper.evaluations == 6 + 3 * 5  # the best goes on as it is
    assert list(paper.history["evaluations"]) == [6, 11, 16, 21]
    _, code = seen_by(parents, tuned("code"))
    assert code.evaluations == 6 + 2 * 5  # the last offspring are never evaluated


def test_each_pair_of_the_winners_has_one_child_where_it_is_so_set(parents):
    _, found = seen_by(parents, tuned("paper", size=8, generations=3, pairs=True))
    rows = found.individuals
    assert rows["generation"].value_counts(sort=False).tolist() == [8, 6, 6, 6]  # 4 winners make 6 pairs
    for _, group in rows[rows["origin"] == "child"].groupby("generation"):
        (a, b, c, d), mothers, fathers = winners_of(group), list(group["mother"]), list(group["father"])
        assert list(zip(mothers, fathers, strict=True)) == [(a, b), (a, c), (a, d), (b, c), (b, d), (c, d)]


def winners_of(children):
    """The first three children are the first winner's with the others."""
    return [children["mother"].iloc[0], *children["father"].iloc[:3]]


def test_the_best_is_kept_and_is_the_one_that_is_returned(parents):
    _, found = seen_by(parents, tuned("paper", generations=6))
    history = found.history
    assert (history["best"].diff().dropna() >= 0).all()
    assert found.fitness == found.individuals["fitness"].max()
    assert near(parents[0])([found.state])[0] == pytest.approx(found.fitness)
    assert found.state["bn.num_batches_tracked"] == 7
    top = found.individuals.loc[found.individuals["fitness"].idxmax()]
    assert history["alpha"].iloc[-1] == top["alpha"]


def test_the_winner_does_not_hold_the_whole_population_in_memory(parents: Pair):
    state = mega.merge(*parents, tuned("paper"), 3, near(parents[1])).state
    for tensor in state.values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_mutations_of_weights_and_of_tensors(parents):
    still = {"with_parents": True, "grain": "network"}
    big = {**parents[0], "conv.weight": torch.randn(100, 50)}
    twins = big, {n: t.clone() for n, t in big.items()}  # crossover changes nothing: what moves is mutation
    for mutate in ("weights", "tensors"):
        seen, _ = seen_by(twins, tuned("paper", mutate=mutate, rate=0.3, sigma=0.1, generations=1, size=40, **still))
        share = [(s["conv.weight"] != big["conv.weight"]).double().mean().item() for s in seen[1]]
        if mutate == "weights":
            assert share == pytest.approx([0.3] * 39, abs=0.05)
        else:
            assert set(np.round(share)) == {0.0, 1.0}
            assert 4 <= sum(round(one) for one in share) <= 20
        moved = torch.cat([(s["conv.weight"] - big["conv.weight"]).flatten() for s in seen[1]])
        assert moved[moved != 0].std().item() == pytest.approx(0.1, rel=0.05)


def test_sigma_relative_to_the_tensor(parents):
    twins = ({"a.weight": 10 * torch.randn(80, 80), "b.weight": torch.randn(80, 80)},) * 2
    seen, _ = seen_by(twins, tuned("fixed", rate=1.0, sigma=0.1, generations=1))
    for name, wanted in (("a.weight", 1.0), ("b.weight", 0.1)):
        moved = torch.stack([s[name] - twins[0][name] for s in seen[1]])
        assert moved.std().item() == pytest.approx(wanted, rel=0.1)


def test_statistics_are_mutated_in_the_authors_code_alone(parents):
    twins = parents[0], {n: t.clone() for n, t in parents[0].items()}
    for name in VARIANTS:
        seen, found = seen_by(twins, tuned(name, rate=1.0, sigma=3.0, mutate="tensors"))
        moved = any(not s["bn.running_var"].equal(twins[0]["bn.running_var"]) for s in seen[-1])
        assert moved == (name == "code")
        assert (found.history["negative_variance"].iloc[1:] > 0).all() == (name == "code")


def test_where_there_are_fewer_individuals_than_entrants_all_of_them_enter(parents):
    _, found = seen_by(parents, tuned("paper", size=6, generations=4, entrants=30))
    rows = found.individuals.set_index("id")
    for generation, group in rows[rows["origin"] == "child"].groupby("generation"):
        fittest = rows[rows["generation"] < generation]["fitness"].idxmax()
        assert set(group["mother"]) == set(group["father"]) == {fittest}


def test_selection_prefers_the_fitter_and_distinct_parents_are_distinct(parents):
    _, found = seen_by(parents, tuned("fixed", size=20, generations=6))
    rows = found.individuals.set_index("id")
    children = rows[rows["origin"] == "child"]
    assert (children["mother"] != children["father"]).all()
    for generation, group in children.groupby("generation"):
        could = rows[rows["generation"] == generation - 1]["fitness"].mean()
        assert rows.loc[group["mother"], "fitness"].mean() > could
    _, loose = seen_by(parents, tuned("paper", size=20, generations=6))
    same = loose.individuals[loose.individuals["origin"] == "child"]
    assert (same["mother"] == same["father"]).any()


def test_a_child_lies_between_its_parents(parents):
    seen, found = seen_by(parents, tuned("elementwise", rate=0.0))
    states = [s for generation in seen for s in generation]
    for row in found.individuals.itertuples():
        if row.origin != "child":
            continue
        a, b, child = states[row.mother], states[row.father], states[row.id]
        for name in child:
            if child[name].is_floating_point():
                low, high = torch.minimum(a[name], b[name]), torch.maximum(a[name], b[name])
                assert ((child[name] >= low - 1e-5) & (child[name] <= high + 1e-5)).all()


def test_provenance(parents):
    first, second = parents
    middle = {n: torch.lerp(second[n], first[n], 0.25) if t.is_floating_point() else t for n, t in first.items()}
    found = mega.provenance(middle, first, second)
    assert (found.alpha, found.off_segment) == pytest.approx((0.25, 0.0), abs=1e-6)
    assert (found.to_first, found.to_second) == pytest.approx((0.75, 0.25), abs=1e-6)
    assert found.label() == "on the segment"
    for parent in parents:
        assert mega.provenance(parent, first, second).label() == "parent copy"
    beyond = {n: torch.lerp(second[n], first[n], 1.5) if t.is_floating_point() else t for n, t in first.items()}
    assert mega.provenance(beyond, first, second).off_segment == pytest.approx(0.5, abs=1e-5)
    away = {**middle, "head.weight": middle["head.weight"] + 3}
    assert mega.provenance(away, first, second).label() == "off the segment"
    assert mega.provenance(first, first, first).label() == "parent copy"
    spoiled = {**first, "bn.running_var": -first["bn.running_var"]}
    assert mega.provenance(spoiled, first, second).label() == "parent copy"


def test_merging_a_network_with_itself_without_mutation_returns_it(parents):
    found = mega.merge(parents[0], parents[0], tuned("paper", rate=0.0), 0, near(parents[1]))
    assert all(found.state[name].equal(tensor) for name, tensor in parents[0].items())


def test_what_is_not_finite_is_counted_and_never_wins(parents: Pair):
    def broken(states):
        return [math.nan if i % 2 else math.inf if i % 4 == 0 else float(i) for i, _ in enumerate(states)]

    found = mega.merge(*parents, tuned("paper"), 0, broken)
    assert list(found.history["failed"]) == [5, 4, 4, 4]
    assert found.fitness == 2.0
    with pytest.raises(MgenbError, match="none of the 6 individuals"):
        mega.merge(*parents, tuned("paper"), 0, lambda states: [math.nan for _ in states])
    with pytest.raises(MgenbError, match="fitness gave 1 values for 6"):
        mega.merge(*parents, tuned("paper"), 0, lambda states: [1.0])


def test_negative_variances_of_a_real_network_are_survived(small):
    nets = [training.fresh("resnet8", small, seed) for seed in (0, 1)]
    first, second = (population.state_of(net) for net in nets)
    settings = tuned("code", rate=0.5, sigma=2.0)
    found = mega.merge(first, second, settings, 0, population.accuracy_on(nets[0], small.val.take(20, 0)))
    assert found.history["negative_variance"].max() > 0
    assert found.individuals["fitness"].between(0, 1).all()


def test_how_images_are_scaled_is_left_alone(small, lenet):
    state = population.state_of(lenet)
    later = itertools.count()  # the youngest wins
    found = mega.merge(state, state, tuned("code", rate=1.0), 0, lambda states: [next(later) for _ in states])
    for name, tensor in state.items():
        assert found.state[name].equal(tensor) == name.startswith("normalise")
    other = {**state, "normalise.mean": state["normalise.mean"] + 0.1}
    with pytest.raises(MgenbError, match=r"'normalise.mean' differs"):
        mega.merge(state, other, tuned("code"), 0, near(state))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_goes_on_to_the_identical_result(parents: Pair, variant, tmp_path, monkeypatch):
    whole = mega.merge(*parents, tuned(variant), 3, near(parents[1]))
    calls = []

    def dies(states):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return near(parents[1])(states)

    file = tmp_path / "merge"
    with pytest.raises(KeyboardInterrupt):
        mega.merge(*parents, tuned(variant), 3, dies, checkpoint=file)
    resumed = mega.merge(*parents, tuned(variant), 3, near(parents[1]), checkpoint=file)
    assert resumed.history.equals(whole.history)
    assert resumed.individuals.equals(whole.individuals)
    assert all(resumed.state[name].equal(tensor) for name, tensor in whole.state.items())
    other = mega.merge(*parents, tuned(variant), 4, near(parents[1]))
    assert not other.individuals.equals(whole.individuals)
    with pytest.raises(MgenbError, match="another computation"):
        mega.merge(*parents, tuned(variant), 4, near(parents[1]), checkpoint=file)
    monkeypatch.setattr(genetic, "VERSION", genetic.VERSION + 1)
    with pytest.raises(MgenbError, match="another computation"):
        mega.merge(*parents, tuned(variant), 3, near(parents[1]), checkpoint=file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 1}, "size is 1"),
        ({"rate": 1.5}, "rate is 1.5"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"grain": "tensor"}, "unknown grain 'tensor'"),
        ({"statistics": "kept"}, "unknown statistics"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(MgenbError, match=message):
        Settings(**settings)


def test_networks_that_do_not_match_are_named(parents):
    first, second = parents
    fewer = {n: t for n, t in second.items() if n != "bn.weight"}
    with pytest.raises(MgenbError, match=r"second network lacks 'bn.weight', which the first network has"):
        mega.merge(first, fewer, tuned("paper"), 0, near(first))
    with pytest.raises(MgenbError, match=r"second network has 'bn.weight', which the first network lacks"):
        mega.merge(fewer, first, tuned("paper"), 0, near(first))
    other = {**second, "head.weight": torch.zeros(5, 4)}
    with pytest.raises(MgenbError, match=r"'head.weight' has shape \(5, 4\); right is \(3, 4\): the second"):
        mega.merge(first, other, tuned("paper"), 0, near(first))
