"""Conv-4: the four convolutional blocks of Matching Networks and Prototypical Networks, with a linear head."""

from torch import nn

from mgenb.nets.layers import chain

MAPS = 64


def _block(channels: int) -> nn.Sequential:
    return chain(
        conv=nn.Conv2d(channels, MAPS, 3, padding=1), norm=nn.BatchNorm2d(MAPS), relu=nn.ReLU(), pool=nn.MaxPool2d(2)
    )


def conv4(channels: int, classes: int) -> nn.Module:
    """Return the backbone of Vinyals et al. (2016) and Snell et al. (2017) for 32 x 32 images, and one linear layer.

    Its 64 maps end at 2 x 2: what the head reads has 256 numbers. The weights are drawn as PyTorch draws them.
    """
    return chain(
        block1=_block(channels),
        block2=_block(MAPS),
        block3=_block(MAPS),
        block4=_block(MAPS),
        flatten=nn.Flatten(),
        fc=nn.Linear(4 * MAPS, classes),
    )
