"""MobileNetV2 for 32 x 32 images: torchvision's, with stride 1 in the stem and in the stage of 24 channels."""

from torch import nn

# expansion, channels, blocks and the first block's stride, for each stage; torchvision's 24 channels have stride 2
STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def mobilenet_v2(channels: int, classes: int) -> nn.Module:
    """Return MobileNetV2 (Sandler et al. 2018) with the strides that are usual for 32 x 32 images."""
    from torchvision.models import MobileNetV2  # loads slowly

    net = MobileNetV2(num_classes=classes, inverted_residual_setting=STAGES)
    stem = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    net.set_submodule("features.0.0", stem)
    return net
