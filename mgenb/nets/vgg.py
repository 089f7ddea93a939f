"""VGG for 32 x 32 images: torchvision's layers with a head of 512 to classes in place of the 4096-wide one."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn


def draw_he(layers: nn.Sequential, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of the convolutions for ReLU (He et al. 2015); biases become zero."""
    for module in layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _vgg(config: str, batch_norm: bool, channels: int, classes: int) -> nn.Module:
    from torchvision.models.vgg import cfgs, make_layers  # loads slowly

    features = make_layers(cfgs[config], batch_norm=batch_norm)
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    draw_he(features, "fan_out")
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=nn.Linear(512, classes)))


# Simonyan and Zisserman 2015, configurations A and D, without and with BatchNorm
VGG: dict[str, Callable[[int, int], nn.Module]] = {
    "vgg11": partial(_vgg, "A", False),
    "vgg11_bn": partial(_vgg, "A", True),
    "vgg16": partial(_vgg, "D", False),
    "vgg16_bn": partial(_vgg, "D", True),
}
