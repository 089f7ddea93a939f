"""MeGA's six architectures (arXiv 2406.04607, Table 1), built and initialised as its author's Keras builds them.

The paper's parameter counts hold BatchNorm's running means and variances (`nets.count_with_statistics`). With three
channels and ten classes these networks have the paper's numbers exactly, save one: for ResNet-110 the paper prints
1.78M, and 18 + 18 + 18 blocks have 1,743,146, which looks like a misprint of 1.74M.

Weights are Glorot uniform, biases zero; BatchNorm has Keras's momentum 0.99 (0.01 in PyTorch's terms) and eps 1e-3
(1.001e-5 in DenseNet, as `keras.applications` has it). Deviations from the author: `training.fresh` normalises
the images where he only divides by 255; where a layer of stride 2 pads an even number of pixels, PyTorch pads before
the first one and Keras after the last one; PyTorch's Adam has eps 1e-8, Keras's 1e-7.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from mgenb.nets.mge import chain

MOMENTUM, EPS, DENSENET_EPS = 0.01, 1e-3, 1.001e-5


class Residual(nn.Module):
    """`body(x) + shortcut(x)`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, channels, h, w] to the sum of what both give."""
        return self.body(x) + self.shortcut(x)


def _as_keras(net: nn.Module, eps: float = EPS) -> nn.Module:
    """Draw the weights and set BatchNorm as Keras does by default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = MOMENTUM, eps
    return net


def _basic(before: int, width: int, stride: int) -> nn.Sequential:
    body = chain(
        conv1=nn.Conv2d(before, width, 3, stride, padding=1),
        norm1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(width, width, 3, padding=1),
        norm2=nn.BatchNorm2d(width),
    )
    # built where it is not used too: the random numbers of later weights depend on it
    projection = chain(conv=nn.Conv2d(before, width, 1, stride), norm=nn.BatchNorm2d(width))
    return chain(sum=Residual(body, nn.Identity() if before == width else projection), relu=nn.ReLU())


def _resnet(blocks: tuple[int, int, int], channels: int, classes: int, width: int = 1) -> nn.Module:
    """Return the ResNet for CIFAR (He et al. 2016, section 4.2) of 16, 32 and 64 maps with these blocks a stage.

    `width` times as many maps (Zagoruyko and Komodakis 2016).

    Unlike theirs the convolutions have biases, and where the width changes the shortcut is a 1 x 1 convolution
    of stride 2 with BatchNorm. Depth, counted in 3 x 3 convolutions and the linear layer, is 2 * sum(blocks) + 2.
    """
    before = 16 * width
    stem = {"conv": nn.Conv2d(channels, before, 3, padding=1), "norm": nn.BatchNorm2d(before), "relu": nn.ReLU()}
    stages = {}
    for stage, count in enumerate(blocks):
        maps = [before] + [2**stage * 16 * width] * count
        basics = [_basic(old, new, 1 if old == new else 2) for old, new in pairwise(maps)]
        stages[f"stage{stage + 1}"] = nn.Sequential(*basics)
        before = maps[-1]
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(before, classes)}
    return _as_keras(chain(**stem, **stages, **head))


def _separable(before: int, width: int) -> list[nn.Module]:
    """Return a depthwise and a pointwise convolution, with BatchNorm after both alone."""
    depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
    return [depthwise, nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)]


def _xception_block(widths: tuple[int, ...], relu_first: bool = True, shrink: bool = True) -> Residual:
    """Return separable convolutions from each width to the next; `shrink` halves the map and projects the shortcut."""
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [nn.ReLU()] if relu_first or layers else []
        layers += _separable(before, width)
    if not shrink:
        return Residual(nn.Sequential(*layers), nn.Identity())
    layers.append(nn.MaxPool2d(3, 2, padding=1))
    projection = nn.Conv2d(widths[0], widths[-1], 1, 2, bias=False)
    return Residual(nn.Sequential(*layers), nn.Sequential(projection, nn.BatchNorm2d(widths[-1])))


def _xception(channels: int, classes: int) -> nn.Module:
    """Return Xception (Chollet 2017, Fig. 5) and a hidden layer of 1024.

    The author leaves ImageNet's strides for 32 x 32 images, so the maps are 15, 13, 7, 4, 2 and 1 pixels wide.
    """
    stem = [nn.Conv2d(channels, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    stem += [nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    entry = [_xception_block((64, 128, 128), relu_first=False)]
    entry += [_xception_block((128, 256, 256)), _xception_block((256, 728, 728))]
    middle = [_xception_block((728,) * 4, shrink=False) for _ in range(8)]
    leave = [_xception_block((728, 728, 1024)), *_separable(1024, 1536), nn.ReLU(), *_separable(1536, 2048), nn.ReLU()]
    net = chain(
        stem=nn.Sequential(*stem),
        entry=nn.Sequential(*entry),
        middle=nn.Sequential(*middle),
        exit=nn.Sequential(*leave),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        hidden=nn.Linear(2048, 1024),
        relu=nn.ReLU(),
        fc=nn.Linear(1024, classes),
    )
    return _as_keras(net)


def _densenet(blocks: tuple[int, int, int, int], channels: int, classes: int) -> nn.Module:
    """Return torchvision's DenseNet (Huang et al. 2017): its layers are those of `keras.applications`.

    The author leaves ImageNet's stem (7 x 7, stride 2, then pooling), so the dense blocks see 8, 4, 2 and 1 pixels.
    """
    from torchvision.models import DenseNet  # loads slowly

    net = DenseNet(block_config=blocks, num_classes=classes)
    net.features.conv0 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    return _as_keras(net, DENSENET_EPS)


# with parameters and statistics, counted for three channels and ten classes, and the paper's numbers
BLOCKS = {  # a stage
    "resnet8": (1, 1, 1),  # 79,050; the smallest of the family, for tests and quick profiles
    "resnet14": (2, 2, 2),  # 176,938
    "resnet20": (3, 3, 3),  # 274,826
    "resnet56": (9, 9, 9),  # 862,154 (0.86M)
    "resnet110": (18, 18, 18),  # 1,743,146 (1.78M)
    "resnet152": (25, 25, 25),  # 2,428,362; the true depth 152, not ImageNet's ResNet-152
    "resnet152_author": (18, 37, 37),  # 3,512,426 (3.51M); what his code calls so, of depth 186
}
WIDER: dict[str, Callable[[int, int], nn.Module]] = {  # each ResNet twice and four times as wide, as resnet20x4
    f"{arch}x{width}": partial(_resnet, blocks, width=width) for arch, blocks in BLOCKS.items() for width in (2, 4)
}
MEGA: dict[str, Callable[[int, int], nn.Module]] = {
    **{arch: partial(_resnet, blocks) for arch, blocks in BLOCKS.items()},
    "xception": _xception,  # 22,969,906 (22.96M)
    "densenet121": partial(_densenet, (6, 12, 24, 16)),  # 7,047,754 (7.04M)
    "densenet169": partial(_densenet, (6, 12, 32, 32)),  # 12,659,530 (12.65M)
    **WIDER,
}
