"""GoogLeNet for 32 x 32 images: torchvision's, with a 3 x 3 stem of stride 1 and no max pooling after it."""

from torch import nn


def googlenet(channels: int, classes: int) -> nn.Module:
    """Return GoogLeNet (Szegedy et al. 2015) without the auxiliary classifiers, with a stem for 32 x 32 images.

    It differs from the paper's as torchvision's does: BatchNorm follows every convolution, the 5 x 5
    convolutions are 3 x 3, there is no local response normalisation, the fourth pooling is 2 x 2 in place of
    3 x 3, and dropout is 20 % in place of 40 %. The weights are drawn as PyTorch draws them by default.
    """
    from torchvision.models import GoogLeNet  # loads slowly

    net = GoogLeNet(num_classes=classes, aux_logits=False, transform_input=False, init_weights=False)
    net.conv1.conv = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    net.maxpool1 = nn.Identity()
    return net
