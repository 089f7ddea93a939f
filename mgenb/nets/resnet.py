"""ResNet-18 for 32 x 32 images: torchvision's, with a 3 x 3 stem of stride 1 and no max pooling."""

from torch import nn


def resnet18(channels: int, classes: int) -> nn.Module:
    """Return ResNet-18 (He et al. 2016) with the stem that is usual for 32 x 32 images."""
    from torchvision.models import resnet18 as imagenet_resnet18  # loads slowly

    net = imagenet_resnet18(weights=None, num_classes=classes)
    net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net
