"""Networks: parameter counts of the literature, inputs they take and refuse."""

import pytest
import torch
from torchvision import models

from mgenb import nets
from mgenb.errors import MgenbError


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_lenet_has_the_parameters_of_lecun_1998_with_full_connections():
    convolutions = (25 + 1) * 6 + (6 * 25 + 1) * 16 + (16 * 25 + 1) * 120
    matrices = (120 + 1) * 84 + (84 + 1) * 10
    net = nets.build("lenet", 1, 28, 10)
    assert nets.count_parameters(net) == convolutions + matrices == 61_706


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vgg16", "vgg16_bn"])
def test_vgg_is_torchvisions_convolutions_and_a_head_of_512(name):
    head = 512 * 10 + 10
    first = 64 * 9 * 2
    with torch.device("meta"):
        expected = parameters(getattr(models, name)(num_classes=2).features) + head
        assert nets.count_parameters(nets.build(name, 3, 32, 10)) == expected
        assert nets.count_parameters(nets.build(name, 1, 28, 10)) == expected - first


def test_vgg11_and_vgg16_counts_of_the_literature():
    with torch.device("meta"):
        assert nets.count_parameters(nets.build("vgg11", 3, 32, 10)) == 9_225_610
        assert nets.count_parameters(nets.build("vgg16", 3, 32, 10)) == 14_719_818


def test_resnet18_for_cifar_has_11_173_962_parameters():
    assert nets.count_parameters(nets.build("resnet18", 3, 32, 10)) == 11_173_962


@pytest.mark.parametrize("arch", sorted(nets.ARCHITECTURES))
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_bytes_and_floats_give_the_same_logits(arch, channels, size):
    images = torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8)
    net = nets.build(arch, channels, size, 7, torch.rand(channels), torch.rand(channels) + 0.1).eval()
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        assert torch.equal(net(images.float() / 255), logits)


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
