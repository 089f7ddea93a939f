"""A transfer matrix against the forward passes that it contains."""

import torch

from mgenb import mge
from mgenb.data import Split
from mgenb.measure import attacks, population


def test_100_examples_on_52_lenets_against_their_forward_passes(against, lenet, digits):
    chosen = digits.val.take(100, 0)
    examples = attacks.craft(lenet, chosen.images, chosen.labels, attacks.FGSM(0.2))
    split = Split(examples, chosen.labels, chosen.groups, "val")
    states = [state for _, state in mge.candidates(population.state_of(lenet), mge.Settings(), 0, 52)]
    ready = [population.quick_copy(lenet, state) for state in states]

    def matrix():
        return population.predictions(lenet, split, states)

    @torch.inference_mode()
    def passes():
        return torch.stack([torch.cat([net(x).argmax(1) for x, _ in population.batches(split)]) for net in ready])

    matrix()  # the first run of each pays for the library's setting up
    passes()
    for found, expected in against(matrix, passes, rounds=9, note="; bar: at least 0.67"):
        assert found.equal(expected.cpu())
        assert found.unique(dim=0).shape[0] > 1
