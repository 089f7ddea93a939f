"""Algorithm 1 from what lies before the layer, against the whole network for each try."""

import pytest

from mgenb import mge
from mgenb.measure import population
from mgenb.mge import algorithm1


def whole(net, split):
    """The fitness that runs the whole network for each try."""

    def at(state, name):
        def judge(weight, measure):
            return measure([population.logits(net, split, {**state, name: weight})], [split.labels.cpu()], len(split))

        return judge

    return at


@pytest.mark.parametrize(
    ("arch", "n", "tries", "z"), [("lenet", 2000, 5, 2.0), ("lenet", 500, 20, 2.0), ("vgg11", 60, 5, 2.0)]
)
def test_the_cached_search_against_the_plain_one(against, arch, n, tries, z, request, digits, relabelled):
    net = request.getfixturevalue(arch)
    images, base = relabelled(net, min(n, len(digits.val))), population.state_of(net)

    def search(fitness):
        return algorithm1.search(base, mge.Settings(z=z), 0, fitness(net, images), tries=tries)

    for cached, plain in against(lambda: search(algorithm1.cached), lambda: search(whole)):
        assert (cached.tries, cached.recipe) == (plain.tries, plain.recipe)
        assert all(cached.state[name].equal(tensor) for name, tensor in plain.state.items())
