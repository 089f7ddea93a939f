"""VGG for 32 x 32 images: torchvision's layers with a head of 512 to classes in place of the 4096-wide one."""

from collections import OrderedDict

from torch import nn


def _vgg(config: str, batch_norm: bool, channels: int, classes: int) -> nn.Module:
    from torchvision.models.vgg import cfgs, make_layers  # loads slowly

    features = make_layers(cfgs[config], batch_norm=batch_norm)
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=nn.Linear(512, classes)))


def vgg11(channels: int, classes: int) -> nn.Module:
    """Return VGG11 (Simonyan and Zisserman 2015, configuration A)."""
    return _vgg("A", False, channels, classes)


def vgg11_bn(channels: int, classes: int) -> nn.Module:
    """Return VGG11 with BatchNorm."""
    return _vgg("A", True, channels, classes)


def vgg16(channels: int, classes: int) -> nn.Module:
    """Return VGG16 (configuration D)."""
    return _vgg("D", False, channels, classes)


def vgg16_bn(channels: int, classes: int) -> nn.Module:
    """Return VGG16 with BatchNorm."""
    return _vgg("D", True, channels, classes)
