"""MeGA's generations against the pure evaluation of their individuals; recomputing BatchNorm is told apart."""

from functools import partial

import pytest

from mgenb import mega, training
from mgenb.measure import population
from mgenb.mega import align

SETTINGS = mega.Settings(size=20, generations=1)


@pytest.fixture(scope="module")
def parents(digits):
    """Two small residual networks as they are drawn: how long they take does not depend on what they know."""
    return [training.fresh("resnet8", digits, seed) for seed in (0, 1)]


@pytest.mark.parametrize("fresh", [False, True])
def test_two_generations_of_20_against_evaluating_them(against, parents, digits, fresh):
    net, (first, second) = parents[0], (population.state_of(parent) for parent in parents)
    score = population.accuracy_on(net, digits.val.take(250, 0))
    judged = partial(align.recalibrate, net, split=digits.train.take(64, 0)) if fresh else dict
    seen = []

    def kept(state):
        seen.append({name: tensor.clone() for name, tensor in state.items()})
        return judged(state)

    def merged():
        found = mega.merge(first, second, SETTINGS, 0, lambda individuals: score(map(judged, individuals)))
        return found.individuals["fitness"].tolist()

    def pure():
        return score(map(judged, seen))

    mega.merge(first, second, SETTINGS, 0, lambda individuals: score(map(kept, individuals)))
    for ours, theirs in against(merged, pure, note=f"; fresh statistics: {fresh}; bar: at least 0.95"):
        assert ours == theirs
        assert len(ours) == 20 + 19
