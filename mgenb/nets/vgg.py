"""VGG for 32 x 32 images: torchvision's layers with a head of 512 to classes in place of the 4096-wide one."""

from collections.abc import Callable
from functools import partial

from torch import nn

from mgenb.nets.layers import chain, draw_he


def _vgg(config: str, batch_norm: bool, channels: int, classes: int) -> nn.Module:
    from torchvision.models.vgg import cfgs, make_layers  # loads slowly

    features = make_layers(cfgs[config], batch_norm=batch_norm)
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    draw_he(features, "fan_out")
    return chain(features=features, flatten=nn.Flatten(), classifier=nn.Linear(512, classes))


# Simonyan and Zisserman 2015, configurations A and D, without and with BatchNorm
VGG: dict[str, Callable[[int, int], nn.Module]] = {
    "vgg11": partial(_vgg, "A", False),
    "vgg11_bn": partial(_vgg, "A", True),
    "vgg16": partial(_vgg, "D", False),
    "vgg16_bn": partial(_vgg, "D", True),
}
