"""MeGA's generations against the pure evaluation of their individuals; recomputing BatchNorm is told apart."""

from dataclasses import replace
from functools import partial

import pytest

from mgenb import mega, training
from mgenb.measure import population
from mgenb.mega import align

SETTINGS = mega.Settings(size=20, generations=1)
STATISTICS = {"mixed": "", "recomputed": " with fresh statistics"}


@pytest.fixture(scope="module")
def parents(digits):
    """Two small residual networks as they are drawn: how long they take does not depend on what they know."""
    return [training.fresh("resnet8", digits, seed) for seed in (0, 1)]


@pytest.mark.parametrize("statistics", STATISTICS)
def test_two_generations_of_20_against_evaluating_them(against, parents, digits, statistics):
    net, states = parents[0], [population.state_of(one) for one in parents]
    score = population.accuracy_on(net, digits.val.take(250, 0))
    recompute = partial(align.recalibrate, net, split=digits.train.take(64, 0)) if statistics == "recomputed" else None
    settings, seen = replace(SETTINGS, statistics=statistics), []

    def kept(state):
        seen.append({name: tensor.clone() for name, tensor in state.items()})
        return recompute(state) if recompute else state

    def merged():
        return mega.merge(*states, settings, 0, score, recompute=recompute).individuals["fitness"].tolist()

    def pure():
        return score(recompute(state) if recompute else state for state in seen)

    if recompute:
        mega.merge(*states, settings, 0, score, recompute=kept)
        del seen[-1]  # the winner's statistics are computed once more, for what is returned
    else:
        mega.merge(*states, settings, 0, lambda some: score(map(kept, some)))
    for ours, theirs in against(merged, pure, note=f"{STATISTICS[statistics]}; bar: at least 0.87"):
        assert ours == theirs
        assert len(ours) == 20 + 19
