"""Alignment: a permuted copy is found exactly, for every architecture whose graph can be followed; recalibration."""

from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from torch import nn
from torch.nn import functional

from mgenb import nets, training
from mgenb.errors import MgenbError, SealedSplitError
from mgenb.measure import population
from mgenb.mega import align
from mgenb.nets.mega import WIDER

# seconds each, and built as one of the others
LARGE = {"vgg11", "vgg16", "vgg16_bn", "xception", "densenet169", "resnet110", "resnet152", "resnet152_author"}
ALIGNABLE = [
    pytest.param(arch, marks=pytest.mark.slow) if arch in LARGE else arch
    for arch in sorted(nets.ARCHITECTURES)
    if arch != "vit" and arch not in {*WIDER} - {"resnet8x2"}  # which are built alike
]


def settled(arch):
    """Return a network at its random start in eval mode, with the batch statistics of these four images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net, images = nets.build(arch, 3, 32, 10), torch.rand(4, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(images)
    return net.eval(), images


@pytest.fixture(scope="module")
def residual(small):
    """A ResNet-8 after three passes over 300 digits, with statistics of BatchNorm that keep up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nets.build("resnet8", small.channels, small.size, small.num_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    training.fit(net, small.train, training.Recipe("adam", 0.02, batch=32, schedule="triangle"), epochs=3, seed=0)
    return net.eval()


def shuffled(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {group: torch.randperm(n, generator=generator) for group, n in spec.sizes.items()}


def logits(net, state, images):
    with torch.no_grad():
        return torch.func.functional_call(net, dict(state), (images,))


def midpoint(a, b):
    return {name: torch.lerp(a[name], b[name], 0.5) if a[name].is_floating_point() else a[name] for name in a}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def far(a, b):
    """How far logits are apart, as a share of their range."""
    return ((a - b).abs().max() / a.abs().max()).item()


def assert_found_again(net, images):
    spec, own = align.specification(net), population.state_of(net)
    copy = align.permuted(own, shuffled(spec), spec)
    before = logits(net, own, images)
    assert far(before, logits(net, copy, images)) < 1e-4
    assert far(before, logits(net, midpoint(own, copy), images)) > 0.1  # to do nothing is not enough
    found = align.aligned(net, own, copy, seed=0)
    assert same(found, own)
    assert same(midpoint(own, found), own)
    return copy


@pytest.mark.parametrize("arch", ALIGNABLE)
def test_a_shuffled_copy_computes_the_same_and_is_aligned_bit_for_bit(arch):
    assert_found_again(*settled(arch))


@pytest.mark.parametrize("name", ["lenet", "residual"])
def test_so_is_that_of_a_trained_network(name, request, small):
    net = request.getfixturevalue(name)
    copy = assert_found_again(net, small.val.images)
    assert population.count(net, small.val, [copy]) == population.count(net, small.val, [population.state_of(net)])


def test_two_trained_networks_are_nearer_to_each_other_when_aligned(small):
    parents = [training.trained("lenet", small, epochs=12, seed=seed) for seed in (0, 1, 2)]
    net, states = parents[0], [population.state_of(parent) for parent in parents]
    spec = align.specification(net)

    def loss(state):
        return functional.cross_entropy(logits(net, state, small.val.images), small.val.labels).item()

    def product_with(a, b):
        return sum((a[name] * b[name]).sum().item() for name in spec.weights)

    barriers = []
    for i, j in ((0, 1), (1, 2), (2, 0)):
        a, b = states[i], states[j]
        other = align.aligned(net, a, b, seed=0)
        assert product_with(a, other) > product_with(a, b)
        assert far(logits(net, b, small.val.images), logits(net, other, small.val.images)) < 1e-4
        parental = (loss(a) + loss(b)) / 2
        barriers.append([loss(midpoint(a, way)) - parental for way in (b, other)])
    plain, aligned = torch.tensor(barriers).mean(0)
    assert aligned < 0.6 * plain


def test_a_network_aligned_with_itself_stays_and_the_seed_decides(lenet, small):
    own = population.state_of(lenet)
    for seed in (0, 1):
        assert same(align.aligned(lenet, own, own, seed), own)
    other = population.state_of(training.fresh("lenet", small, seed=5))
    spec, copy = align.specification(lenet), {name: tensor.clone() for name, tensor in other.items()}
    first, again = (align.match(own, other, spec, 3) for _ in range(2))
    assert same(first, again)
    assert same(other, copy)


def tiny(seed=0):
    """Return a network of three hidden layers of four units, and two state_dicts of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)]
        net = nn.Sequential(nn.Flatten(), *layers)
        a, b = ({name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()} for _ in range(2))
    return net, a, b


def test_no_other_order_of_one_layer_fits_better():
    orders = [torch.tensor(order) for order in permutations(range(4))]
    for seed in range(10):
        net, a, b = tiny(seed)
        spec = align.specification(net)
        assert spec.sizes == {"1": 4, "3": 4, "5": 4}

        def fit(permuting, a=a, b=b, spec=spec):
            moved = align.permuted(b, permuting, spec)
            return sum((a[name].double() * moved[name].double()).sum().item() for name in a)

        found = align.match(a, b, spec, seed)
        best = fit(found)
        assert best > fit({})
        assert all(fit({**found, group: order}) < best + 1e-9 for group, order in product(spec.sizes, orders))


def test_the_specification_of_lenet_is_the_one_that_a_hand_would_write():
    spec = align.specification(nets.build("lenet", 1, 28, 10))
    assert spec.sizes == {"net.conv1": 6, "net.conv2": 16, "net.conv3": 120, "net.fc1": 84}
    assert spec.axes["net.conv1.weight"] == ((("net.conv1", 6),), ((align.FIXED, 1),), (), ())
    assert spec.axes["net.conv3.bias"] == ((("net.conv3", 120),),)
    assert spec.axes["net.fc1.weight"] == ((("net.fc1", 84),), (("net.conv3", 120),))
    assert spec.axes["net.fc2.bias"] == (((align.FIXED, 10),),)
    assert spec.axes["normalise.mean"] == ((),)


def test_sums_share_an_order_and_concatenations_put_them_one_after_the_other():
    axes = align.specification(nets.build("resnet8", 3, 32, 10)).axes
    assert axes["net.stage1.0.sum.body.conv2.weight"][0] == axes["net.conv.weight"][0] == (("net.conv", 16),)
    assert axes["net.stage2.0.sum.shortcut.norm.running_var"] == axes["net.stage2.0.sum.body.norm2.bias"]
    assert axes["net.stage2.0.sum.shortcut.norm.running_var"] == ((("net.stage2.0.sum.body.conv2", 32),),)
    axes = align.specification(nets.build("densenet121", 3, 32, 10)).axes
    stem, first = ("net.features.conv0", 64), ("net.features.denseblock1.denselayer1.conv2", 32)
    assert axes["net.features.denseblock1.denselayer2.norm1.running_mean"] == ((stem, first),)
    axes = align.specification(nets.build("xception", 3, 32, 10)).axes
    assert axes["net.entry.0.body.4.weight"][0] == axes["net.entry.0.body.1.weight"][0]  # depthwise


class Broken(nn.Module):
    """A convolution and something with its output."""

    def __init__(self, then, groups=1):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=groups), nn.GroupNorm(2, 4)
        self.last = nn.Conv2d(4, 4, 1)
        self.free = nn.Parameter(torch.ones(4, 1, 1))
        self.then = then

    def forward(self, x):
        return self.then(self, self.one(x))


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda net, x: net.norm(x), r"'norm' \(GroupNorm\)"),
        (lambda net, x: x.transpose(1, 2), r"'transpose' \(transpose\)"),
        (lambda net, x: x.flatten(2), r"'flatten' \(flatten\).*each image whole"),
        (lambda net, x: x.mean(1), r"'mean' \(mean\).*not supported"),
        (lambda net, x: torch.cat([x, x], 2), r"'cat' \(cat\).*channels"),
        (lambda net, x: x * net.free, r"'free'.*outside a layer"),
        (lambda net, x: net.two(x.flatten(1)), r"'two' \(Conv2d\).*axis of channels"),
        (lambda net, x: net.one(x) + torch.cat([x, x], 1), r"'add' \(add\).*different numbers"),
        (lambda net, x: (x, x), r"'output'.*one tensor"),
        (lambda net, x: net.last(x + net.two(x)), "'two.weight' has the same units along two axes"),
    ],
)
def test_what_cannot_be_followed_is_named(then, message):
    with pytest.raises(MgenbError, match=message):
        align.specification(Broken(then))


def test_convolutions_in_groups_of_several_channels_and_transformers_are_refused():
    with pytest.raises(MgenbError, match=r"'two' \(Conv2d\): groups of several"):
        align.specification(Broken(lambda net, x: net.two(x), groups=2))
    with pytest.raises(MgenbError, match="units cannot be followed through node 'getattr_1'"):
        align.specification(nets.build("vit", 3, 32, 10))


def test_state_dicts_that_do_not_fit_are_named():
    net, a, b = tiny()
    spec = align.specification(net)
    lacking = {name: tensor for name, tensor in b.items() if name != "3.bias"}
    wide = {**b, "3.weight": torch.zeros(4, 6)}
    for wrong, message in (
        (lacking, "lacks '3.bias'"),
        ({**b, "9.bias": torch.zeros(1)}, "has '9.bias', which the network lacks"),
        (wide, r"'3.weight' has shape \(4, 6\); right is \(4, 4\)"),
        ({**b, "1.bias": torch.full((4,), torch.nan)}, "'1.bias' has values that are not finite"),
    ):
        with pytest.raises(MgenbError, match=message):
            align.match(a, wrong, spec, 0)
        with pytest.raises(MgenbError, match=message):
            align.aligned(net, wrong, a, 0)


def spoiled(state):
    changed = dict(state)
    for name in state:
        if name.endswith("running_mean"):
            changed[name] = state[name] + 3
        if name.endswith("running_var"):
            changed[name] = torch.full_like(state[name], torch.nan)
    return changed


def test_spoiled_statistics_are_brought_back_and_nothing_else_changes(residual, small):
    own = population.state_of(residual)
    kept, random = population.state_of(residual), torch.random.get_rng_state()
    accuracy = population.accuracy(residual, small.val)
    assert accuracy > 0.6
    assert population.accuracy(residual, small.val, spoiled(own)) < 0.2
    mended = align.recalibrate(residual, spoiled(own), small.train)
    assert population.accuracy(residual, small.val, mended) > accuracy - 0.05
    assert same(mended, align.recalibrate(residual, own, small.train))  # nothing of the old statistics is left
    assert {name for name in own if not torch.equal(own[name], mended[name])} == {
        name for name in own if name.endswith(("running_mean", "running_var"))
    }
    assert same(population.state_of(residual), kept)
    assert not residual.training
    assert torch.equal(torch.random.get_rng_state(), random)


def test_recalibrated_statistics_are_those_of_the_whole_split(residual, small):
    mended = align.recalibrate(residual, population.state_of(residual), small.train)  # 300 images: two batches
    with torch.no_grad():
        maps = residual.net.conv(residual.normalise(small.train.images))
    assert torch.allclose(mended["net.norm.running_mean"], maps.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(mended["net.norm.running_var"], maps.var((0, 2, 3)), rtol=1e-2)


def test_without_batchnorm_recalibration_returns_a_copy(lenet, small):
    own = population.state_of(lenet)
    copy = align.recalibrate(lenet, own, small.train)
    assert same(copy, own)
    assert copy["net.fc2.bias"].data_ptr() != own["net.fc2.bias"].data_ptr()


def test_recalibration_refuses_the_test_split_and_single_images(residual, small):
    own = population.state_of(residual)
    with pytest.raises(SealedSplitError):
        align.recalibrate(residual, own, replace(small.val, role="test"))
    with pytest.raises(MgenbError, match="images for BatchNorm is 1; right is a whole number of at least 2"):
        align.recalibrate(residual, own, small.train.at(torch.tensor([0])))
    with pytest.raises(MgenbError, match=r"lacks 'net\.fc\.bias'"):
        align.recalibrate(residual, {name: own[name] for name in own if name != "net.fc.bias"}, small.train)
