"""MeGA's generations against the pure evaluation of their individuals, and merging against the plain way.

Recomputing BatchNorm is told apart.
"""

import copy
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mgenb import executor, mega, training
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


def merged_fast(net, first, second, val, settings, seed):
    """The fitness of all individuals of a merge."""
    found = mega.merge(first, second, settings, seed, population.accuracy_on(net, val))
    return found.individuals["fitness"].tolist()


def plainly(net, val):
    """Accuracy the plain way: a copy of the network for each individual, load_state_dict, a DataLoader."""

    def accuracy(state):
        twin = copy.deepcopy(net).eval()
        twin.load_state_dict(state)
        right = 0
        with torch.no_grad():
            for images, labels in DataLoader(TensorDataset(val.images, val.labels), batch_size=64):
                right += (twin(images).argmax(1) == labels).sum().item()
        return right / len(val)

    return lambda states: list(map(accuracy, states))


def test_merging_two_pairs_of_resnet8_against_the_plain_way(against, digits):
    """Twenty individuals, twenty generations, 500 validation images, of two pairs, with two workers."""
    # trained: where logits are close, as those of networks as drawn, a batch is computed twice
    nets = [training.trained("resnet8", digits, recipe="mge-adam", epochs=1, seed=seed) for seed in range(4)]
    settings = mega.Settings()
    states, val = [population.state_of(net) for net in nets], digits.val.take(500, 0)
    pairs = [(nets[0], states[0], states[1], val), (nets[0], states[2], states[3], val)]
    few = mega.Settings(size=4, generations=1)
    with executor.workers("2") as pool:
        for started in [pool.submit(merged_fast, *pair, few, 0) for pair in pairs]:
            started.result()  # both workers are there, and know the fastest way

        def ours():
            return [found.result() for found in [pool.submit(merged_fast, *pair, settings, 0) for pair in pairs]]

        def plain():
            merged = [mega.merge(a, b, settings, 0, plainly(net, images)) for net, a, b, images in pairs]
            return [found.individuals["fitness"].tolist() for found in merged]

        for fast, slow in against(ours, plain, rounds=1, note="; bar: at least 2 with two workers"):
            assert fast == slow
            assert [len(one) for one in fast] == [400, 400]
