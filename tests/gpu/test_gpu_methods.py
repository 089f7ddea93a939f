"""The papers' methods on the GPU against the CPU: merging, evolving, Algorithm 1, attacks."""

import pytest
import torch

from mgenb import mega, mge
from mgenb.measure import attacks, population
from mgenb.mge import algorithm1, evolve


@pytest.fixture(scope="module")
def pair(lenet, digits):
    """Two states of one LeNet, on the CPU, and few images."""
    base = population.state_of(lenet.cpu())
    return base, mge.generate(base, mge.Settings(), 3), digits.val.take(200, 0)


def test_a_merge_repeats_and_its_winner_is_as_fit_as_it_says(pair, lenet):
    first, second, images = pair
    net, there = lenet.cuda(), images.to("cuda")
    first, second = ({name: tensor.cuda() for name, tensor in state.items()} for state in (first, second))
    settings = mega.Settings(size=6, generations=4)
    once, again = (mega.merge(first, second, settings, 0, population.accuracy_on(net, there)) for _ in range(2))
    assert once.individuals.equals(again.individuals)
    found = population.count(net, there, [once.state])[0]
    assert once.fitness == pytest.approx(found.right / found.total, abs=0.01)


def test_algorithm_1_accepts_what_it_accepts_on_the_cpu(pair, lenet):
    base, _, images = pair
    found = []
    for device in ("cpu", "cuda"):
        net = lenet.to(device)
        there = {name: tensor.to(device) for name, tensor in base.items()}
        fitness = algorithm1.cached(net, images.to(device))
        found.append(algorithm1.search(there, mge.Settings(), 0, fitness, tries=5))
    assert found[0].tries == found[1].tries
    for name, tensor in found[0].state.items():
        assert torch.allclose(tensor, found[1].state[name].cpu(), rtol=0, atol=1e-6)


def test_an_evolution_on_the_gpu_gets_as_far(pair, lenet):
    base, _, images = pair
    settings = evolve.Settings(parents=3, mutations=2, fusions=3, generations=3, gamma=0.0)
    ends = []
    for device in ("cpu", "cuda"):
        net, there = lenet.to(device), {name: tensor.to(device) for name, tensor in base.items()}
        score = population.accuracy_on(net, images.to(device))
        ends.append(evolve.evolve(there, mge.Settings(), settings, 0, score, score).history["best"].tolist())
    assert ends[0] == pytest.approx(ends[1], abs=0.02)


@pytest.mark.parametrize("attack", [attacks.FGSM(0.1), attacks.PGD(0.1, steps=5)])
def test_attacks_succeed_as_often(attack, pair, lenet):
    base, _, images = pair
    right = []
    for device in ("cpu", "cuda"):
        net, there = lenet.to(device), {name: tensor.to(device) for name, tensor in base.items()}
        right.append(int(attacks.right_under(net, images.to(device), there, attack).sum()))
    assert abs(right[0] - right[1]) <= 4
    assert right[0] < int(population.correct(lenet.cpu(), images, base).sum()) - 10
