"""Networks: parameter counts of the literature, inputs they take and refuse, and what is done with them later."""

from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from torch.nn import functional
from torchvision import models

from mgenb import nets, training
from mgenb.errors import MgenbError
from mgenb.measure import population
from mgenb.nets.mega import WIDER

# the same blocks more often, or many parameters: one image has to do
DEEPER = ["resnet14", "resnet20", "resnet56", "resnet110", "resnet152", "resnet152_author", "densenet169", "xception"]
SHALLOW = sorted({*nets.ARCHITECTURES} - {*DEEPER, *WIDER} | {"resnet8x2"})  # which stands for all that are wider


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module", params=[(1, 28), (3, 32)], ids=["1x28", "3x32"])
def inputs(request):
    return request.param


@pytest.fixture(scope="module", params=SHALLOW)
def settled(request, inputs):
    """A network in eval mode with the batch statistics of four images, and these images."""
    channels, size = inputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(channels)
        images = torch.rand(4, channels, size, size)
        net = nets.build(request.param, channels, size, 7)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            net(images)
    return net.eval(), images


def test_lenet_has_the_parameters_of_lecun_1998_with_full_connections():
    convolutions = (25 + 1) * 6 + (6 * 25 + 1) * 16 + (16 * 25 + 1) * 120
    matrices = (120 + 1) * 84 + (84 + 1) * 10
    net = nets.build("lenet", 1, 28, 10)
    assert parameters(net) == convolutions + matrices == 61_706


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vgg16", "vgg16_bn"])
def test_vgg_is_torchvisions_convolutions_and_a_head_of_512(name):
    head = 512 * 10 + 10
    first = 64 * 9 * 2
    with torch.device("meta"):
        expected = parameters(getattr(models, name)(num_classes=2).features) + head
        assert parameters(nets.build(name, 3, 32, 10)) == expected
        assert parameters(nets.build(name, 1, 28, 10)) == expected - first


def test_vgg11_and_vgg16_counts_of_the_literature():
    with torch.device("meta"):
        assert parameters(nets.build("vgg11", 3, 32, 10)) == 9_225_610
        assert parameters(nets.build("vgg16", 3, 32, 10)) == 14_719_818


@pytest.mark.parametrize("channels", [1, 3])
def test_alexnet_is_torchvisions_convolutions_and_a_head_of_256(channels):
    first = 64 * 11 * 11 * channels + 64
    others = (64 * 25 + 1) * 192 + (192 * 9 + 1) * 384 + (384 * 9 + 1) * 256 + (256 * 9 + 1) * 256
    head = 256 * 10 + 10
    with torch.device("meta"):
        net = nets.build("alexnet", channels, 32, 10)
        assert parameters(net) == first + others + head == {1: 2_456_778, 3: 2_472_266}[channels]
        assert parameters(models.AlexNet(num_classes=2).features) == 64 * 11 * 11 * 3 + 64 + others


@pytest.mark.parametrize("channels", [1, 3])
def test_only_stem_and_head_change_the_published_count_of_resnet18(channels):
    published, stem, new_stem, count = 11_689_512, 64 * 7 * 7, 64 * 3 * 3, 11_173_962
    assert models.ResNet18_Weights.IMAGENET1K_V1.meta["num_params"] == published
    assert published - 3 * stem + 3 * new_stem - (1000 - 10) * (512 + 1) == count
    with torch.device("meta"):
        assert parameters(nets.build("resnet18", channels, 32, 10)) == count - (3 - channels) * new_stem


@pytest.mark.parametrize("channels", [1, 3])
def test_conv4_is_four_blocks_of_64_maps_and_a_head_of_256(channels):
    first, block, norm = (9 * channels + 1) * 64, (9 * 64 + 1) * 64, 2 * 64
    net = nets.build("conv4", channels, 32, 10)
    assert parameters(net) == first + 3 * block + 4 * norm + 256 * 10 + 10
    maps = torch.rand(1, channels, 32, 32)
    for name, side in (("block1", 16), ("block2", 8), ("block3", 4), ("block4", 2)):
        maps = net.net.get_submodule(name)(maps)
        assert maps.shape == (1, 64, side, side)


@pytest.mark.parametrize("channels", [1, 3])
def test_vit_has_the_parameters_of_four_encoder_layers_of_96(channels):
    d, mlp, tokens = 96, 192, (32 // 8) ** 2 + 1
    attention = 4 * (d + 1) * d
    layer = attention + (d + 1) * mlp + (mlp + 1) * d + 2 * 2 * d
    patches = (8 * 8 * channels + 1) * d
    head = 2 * d + (d + 1) * 10  # LayerNorm and linear layer
    net = nets.build("vit", channels, 32, 10)
    assert parameters(net) == patches + d + tokens * d + 4 * layer + head


@pytest.mark.parametrize(
    ("arch", "blocks", "depth", "count", "printed"),
    [
        ("resnet8", (1, 1, 1), 8, 79_050, None),
        ("resnet14", (2, 2, 2), 14, 176_938, None),
        ("resnet20", (3, 3, 3), 20, 274_826, None),
        ("resnet8x2", (1, 1, 1), 8, 310_666, None),
        ("resnet20x4", (3, 3, 3), 20, 4_337_162, None),
        ("resnet56", (9, 9, 9), 56, 862_154, 0.86),
        ("resnet110", (18, 18, 18), 110, 1_743_146, None),  # the paper prints 1.78
        ("resnet152", (25, 25, 25), 152, 2_428_362, None),
        ("resnet152_author", (18, 37, 37), 186, 3_512_426, 3.51),
    ],
)
def test_megas_resnets_have_the_paper_s_counts(arch, blocks, depth, count, printed):
    def block(before, width):  # convolutions with biases, two numbers of BatchNorm and two of its statistics each
        projection = 0 if before == width else (before + 1) * width + 4 * width
        return (9 * before + 1) * width + (9 * width + 1) * width + 8 * width + projection

    wide = int(arch.partition("x")[2] or 1)
    stages = zip(blocks, (16 * wide, 16 * wide, 32 * wide), (16 * wide, 32 * wide, 64 * wide), strict=True)
    rest = sum(block(before, width) + (n - 1) * block(width, width) for n, before, width in stages)
    with torch.device("meta"):
        net = nets.build(arch, 3, 32, 10)
    assert nets.count_with_statistics(net) == (9 * 3 + 1 + 4) * 16 * wide + rest + 64 * wide * 10 + 10 == count
    assert printed is None or int(count / 1e4) / 100 == printed
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth


@pytest.mark.parametrize(
    ("arch", "count", "printed"),
    [("xception", 22_969_906, 22.96), ("densenet121", 7_047_754, 7.04), ("densenet169", 12_659_530, 12.65)],
)
def test_megas_other_networks_have_the_paper_s_counts(arch, count, printed):
    with torch.device("meta"):
        net = nets.build(arch, 3, 32, 10)
        assert nets.count_with_statistics(nets.build(arch, 1, 28, 10)) < count
    assert nets.count_with_statistics(net) == count
    assert int(count / 1e4) / 100 == printed  # the paper truncates
    assert nets.count_with_statistics(net) > parameters(net)


@pytest.mark.parametrize(("arch", "eps"), [("resnet8", 1e-3), ("xception", 1e-3), ("densenet121", 1.001e-5)])
def test_megas_networks_start_as_keras_starts_them(arch, eps):
    for module in nets.build(arch, 3, 32, 10).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.momentum, module.eps) == (0.01, eps)
        if isinstance(module, nn.Conv2d | nn.Linear):
            area = module.weight[0, 0].numel()
            limit = (6 / (area * (module.weight.shape[0] + module.weight.shape[1]))) ** 0.5
            assert 0.8 * limit < module.weight.abs().max() <= limit
            assert module.bias is None or not module.bias.any()


def test_megas_maps_shrink_as_the_author_s_do():
    sides = {}

    def note(name):
        return lambda module, inputs, output: sides.update({name: output.shape[-1]})  # None: output stays

    expected = {"stem.1": 15, "stem": 13, "entry.0": 7, "entry.1": 4, "entry": 2, "middle": 2, "exit": 1}
    expected |= {"features.norm0": 16, "features.denseblock1": 8, "features.denseblock2": 4, "features.denseblock3": 2}
    expected |= {"features": 1, "stage1": 32, "stage2": 16, "stage3": 8}
    for arch in ("xception", "densenet121", "resnet8"):
        net = nets.build(arch, 3, 32, 10).eval()
        for name, module in net.net.named_modules():
            if name in expected:
                module.register_forward_hook(note(name))
        with torch.no_grad():
            net(torch.rand(1, 3, 32, 32))
    assert sides == expected


def test_the_smallest_of_megas_networks_learns_by_its_recipe(small):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nets.build("resnet8", small.channels, small.size, small.num_classes)
    recipe = training.RECIPES["mega-adam"]
    assert (recipe.optimiser, recipe.rate, recipe.batch, recipe.schedule) == ("adam", 0.01, 256, "constant")
    losses = training.fit(net, small.train, replace(recipe, batch=32), epochs=3, seed=0)
    assert losses[-1] < 0.65 * losses[0]


@pytest.mark.parametrize("arch", DEEPER)
def test_the_deeper_networks_give_finite_logits_and_can_be_traced(arch):
    net, image = nets.build(arch, 1, 28, 7).eval(), torch.rand(1, 1, 28, 28)
    with torch.no_grad():
        logits = net(image)
        assert torch.equal(fx.GraphModule(net, nets.Tracer().trace(net))(image), logits)
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("arch", ["conv4", "vit"])
def test_the_few_shot_backbones_learn_digits(arch, small):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nets.build(arch, small.channels, small.size, small.num_classes)
    recipe = training.Recipe("adam", 0.002, batch=32)
    before = population.accuracy(net, small.val)
    training.fit(net, small.train, recipe, epochs=5, seed=0)
    assert before < 30
    assert population.accuracy(net, small.val) > {"conv4": 0.85, "vit": 0.5}[arch]


@pytest.mark.parametrize("arch", SHALLOW)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_bytes_and_floats_give_the_same_logits(arch, channels, size):
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    net = nets.build(arch, channels, size, 7, torch.rand(channels), torch.rand(channels) + 0.1).eval()
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        assert torch.equal(net(images.float() / 255), logits)


def test_gradients_reach_every_parameter(settled):
    net, images = settled
    names, weights = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(functional.cross_entropy(net(images), torch.arange(4)), weights)
    assert [name for name, gradient in zip(names, gradients, strict=True) if not gradient.any()] == []


def test_evaluation_is_image_by_image(settled):
    net, images = settled
    with torch.no_grad():
        together = net(images)
        alone = torch.cat([net(image[None]) for image in images[:2]])
        turned = net(images.flip(0)).flip(0)
    assert together.std(0).max() > 1e-3  # the images differ by far more than the tolerance
    tolerance = 1e-4 * together.abs().max()  # variances of four pixels in DenseNet's last block magnify rounding
    assert (alone - together[:2]).abs().max() < tolerance
    assert (turned - together).abs().max() < tolerance


def test_a_traced_network_gives_the_same_logits(settled):
    net, images = settled
    traced = fx.GraphModule(net, nets.Tracer().trace(net))
    assert "normalise" in {node.target for node in traced.graph.nodes if node.op == "call_module"}
    with torch.no_grad():
        assert torch.equal(traced(images), net(images))


def test_pixels_are_normalised_by_channel_after_the_padding_with_black():
    mean, std = torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.5, 0.25, 0.125])
    out = nets.Normalise(mean, std)(torch.ones(1, 3, 28, 28))
    assert out.shape == (1, 3, 32, 32)
    assert out[0, :, 16, 16].tolist() == [1.5, 2.0, 2.0]
    assert out[0, :, 0, 0].tolist() == [-0.5, -2.0, -6.0]


def test_the_normalisation_travels_in_the_state_dict_and_is_not_trained():
    net = nets.build("lenet", 1, 28, 10, torch.tensor([0.1]), torch.tensor([0.3]))
    assert net.state_dict()["normalise.mean"].item() == pytest.approx(0.1)
    assert not any(name.startswith("normalise") for name, _ in net.named_parameters())


@pytest.mark.parametrize(("channels", "size", "classes"), [(2, 28, 10), (3, 224, 10), (1, 28, 1)])
def test_what_no_network_here_takes_is_refused(channels, size, classes):
    with pytest.raises(MgenbError, match="1 or 3 channels, 28 or 32 pixels"):
        nets.build("lenet", channels, size, classes)


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(MgenbError, match="did you mean 'vgg11'"):
        nets.build("vgg-11", 3, 32, 10)
