"""One generator for many seeds against a fresh one for each; a large model against what it cannot do without."""

from time import process_time

import pytest
import torch

from mgenb import mge
from mgenb.measure import population
from mgenb.mge import frequency, generator


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


def test_a_vgg11_generated_and_counted_against_its_floor(against, vgg11, digits, capsys):
    base, settings = population.state_of(vgg11), mge.Settings()
    images = digits.val.take(min(1000, len(digits.val)), 0)
    generated, names, ready = (
        mge.model_generator(base, settings),
        frequency.weight_names(base),
        mge.generate(base, settings, 1),
    )
    parts = {}

    def timed(name, work):
        began = process_time()
        found = work()
        parts[name] = process_time() - began
        return found

    def whole():
        return timed("generated and counted", lambda: population.count(vgg11, images, [generated(1)]))

    def floor():
        empty = [torch.empty(base[name].shape) for name in names]
        timed("draw", lambda: [generator._shaped(generator._fill(e, settings, 1), "truncated", 0.2) for e in empty])
        timed("inverse DCT", lambda: [frequency.to_weights(base[name], settings.transform) for name in names])
        return timed("one pass", lambda: population.count(vgg11, images, [ready]))

    whole()  # measures the fastest way
    for mine, theirs in against(whole, floor, note="; bar: at least 0.5"):
        assert mine == theirs
    with capsys.disabled():
        print(f"{len(images)} images, CPU seconds: " + ", ".join(f"{name} {took:.2f}" for name, took in parts.items()))
