"""Populations on the GPU against the CPU: fused layers give the predictions of the network, but for float noise."""

import math

import pytest
import torch

from mgenb import mge, nets
from mgenb.data import Split
from mgenb.measure import population
from mgenb.mge import frequency
from mgenb.nets.mega import WIDER

IMAGES, MODELS = 1000, 2
SHARE = 2 / 10_000  # of images that float noise may move to another class


def lived_in(arch):
    """A network whose BatchNorm statistics are not those of a fresh one, and two models around it, on the CPU."""
    torch.manual_seed(0)
    net = nets.build(arch, 3, 32, 10).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    base = population.state_of(net)
    return net, [base, mge.generate(base, mge.Settings(z=0.05), 1)]


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.randint(0, 10, (IMAGES,), generator=generator), torch.arange(IMAGES), "val")


@pytest.mark.parametrize("arch", [arch for arch in nets.ARCHITECTURES if arch not in WIDER])
def test_network_fused_layers_and_cpu_agree(arch, images):
    net, states = lived_in(arch)
    there, on_cpu = images.to("cuda"), population.predictions(net, images, states)
    net.cuda()
    most = math.ceil(SHARE * IMAGES * MODELS)
    assert (population.predictions(net, there, states) != on_cpu).sum() <= most
    labels = on_cpu[0].to("cuda")  # so that a count says how many predictions are the CPU's
    asked = Split(there.images, labels, there.groups, "val")
    right = [one.right for one in population.count(net, asked, states, precision="float32")]
    wanted = [IMAGES, int((on_cpu[1] == on_cpu[0]).sum())]
    assert all(abs(found - expected) <= most for found, expected in zip(right, wanted, strict=True))


def test_an_early_stop_decides_as_the_full_pass(lenet, digits):
    net, val = lenet.cuda(), digits.val.to("cuda")
    base = population.state_of(net)
    states = [base, *(state for _, state in mge.candidates(base, mge.Settings(z=0.6), 0, 20))]
    full = [one.right for one in population.count(net, val, states)]
    fewest = mge.fewest_right(full[0], len(val))
    early = population.count(net, val, states, fewest=fewest)
    assert [one.passes(fewest) for one in early] == [right >= fewest for right in full]
    assert len({right >= fewest for right in full}) == 2  # else nothing was decided
    assert min(one.seen for one in early) < len(val)


def test_tf32_is_only_used_when_asked_for_and_put_back(lenet, digits):
    net, val = lenet.cuda(), digits.val.to("cuda")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    states = [population.state_of(net)]
    strict, loose = (population.count(net, val, states, precision=p)[0].right for p in ("float32", "tf32"))
    assert abs(strict - loose) <= 5
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize("transform", ["flat", "kernel", "shuffled:0"])
@pytest.mark.parametrize("noise", mge.NOISES)
def test_stacks_are_what_the_cpu_generates(transform, noise, lenet):
    settings = mge.Settings(transform=transform, noise=noise)
    base, count = population.state_of(lenet.cpu()), 5
    there = {name: tensor.cuda() for name, tensor in base.items()}
    apart = dict(mge.candidates(base, settings, 0, count))
    stacked = dict(mge.candidates(there, settings, 0, count))
    assert list(apart) == list(stacked)
    for seed, state in apart.items():
        for name in base:
            assert (stacked[seed][name].cpu() - state[name]).norm() <= 1e-6 * state[name].norm(), name


@pytest.mark.parametrize("n", [150, 48_000, 2_359_296])
def test_the_dct_is_that_of_the_cpu_in_double_precision(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    exact, found = frequency.dct(x.double()), frequency.dct(x.cuda()).cpu().double()
    assert (found - exact).norm() / exact.norm() < 1e-6
    assert (frequency.idct(found.float().cuda()).cpu() - x).norm() / x.norm() < 1e-6
