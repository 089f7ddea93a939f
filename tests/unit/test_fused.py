"""Folding BatchNorm and fusing ReLU changes nothing but the last bits, for every architecture."""

import pytest
import torch
from torch import nn

from mgenb import nets
from mgenb.measure import fused
from mgenb.nets.mega import WIDER


def lived_in(arch):
    """A network whose BatchNorm statistics and scales are not those of a fresh one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nets.build(arch, 3, 32, 10).eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_()
        return net, torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


def norms(net):
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@torch.inference_mode()
@pytest.mark.parametrize("arch", [arch for arch in nets.ARCHITECTURES if arch not in WIDER])
def test_logits_are_those_of_the_network(arch):
    net, images = lived_in(arch)
    slim, folded = fused.fuse(net)
    wanted, found = net(images), torch.func.functional_call(slim, folded(net.state_dict()), (images,))
    assert (found - wanted).norm() / wanted.norm() < 1e-5
    assert slim is not net
    assert norms(slim) == 0 or arch.startswith("densenet")  # there a BatchNorm comes before its convolution


@torch.inference_mode()
def test_another_state_is_folded_anew_and_the_network_stays():
    net, images = lived_in("resnet8")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    slim, folded = fused.fuse(net)
    other = {name: tensor * 1.5 if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    found = torch.func.functional_call(slim, folded(other), (images,))
    wanted = torch.func.functional_call(net, other, (images,))
    assert (found - wanted).norm() / wanted.norm() < 1e-5
    assert not torch.allclose(found, net(images), rtol=1e-2)
    assert all(before[name].equal(tensor) for name, tensor in net.state_dict().items())


@torch.inference_mode()
def test_a_convolution_that_two_read_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x):
            seen = self.conv(x)
            return self.relu(self.norm(seen)) + seen + self.relu(x)

    net, x = Twice().eval(), torch.randn(2, 3, 8, 8)
    net.norm.running_var.fill_(4.0)
    slim, folded = fused.fuse(net)
    found = torch.func.functional_call(slim, folded(net.state_dict()), (x,))
    assert torch.allclose(found, net(x), atol=1e-6)
    assert norms(slim) == 1
