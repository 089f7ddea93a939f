"""One generator for many seeds against a fresh one for each."""

import pytest

from mgenb import mge
from mgenb.measure import population


@pytest.mark.parametrize(("arch", "models"), [("lenet", 40), ("vgg11", 5)])
@pytest.mark.parametrize("selection", ["energy", "random"])
def test_one_generator_against_a_fresh_one_for_each_seed(against, arch, models, selection, request):
    base, settings = population.state_of(request.getfixturevalue(arch)), mge.Settings(selection=selection)

    def ours():
        generated = mge.model_generator(base, settings)
        return [generated(seed) for seed in range(models)]

    def fresh():
        return [mge.generate(base, settings, seed) for seed in range(models)]

    for mine, theirs in against(ours, fresh):
        assert all(one[name].equal(other[name]) for one, other in zip(mine, theirs, strict=True) for name in base)
