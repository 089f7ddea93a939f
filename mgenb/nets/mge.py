"""The networks of MGE's tables and of few-shot learning, all for 32 x 32 images.

Where torchvision has them its layers are taken, with smaller stems and heads; it is imported late: it loads slowly.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

MAPS = 64  # of Conv-4
# the Vision Transformer's. 16 patches: a quarter of the time of 64 patches of 4 x 4, and better on a thousand images.
# An odd number of heads keeps torch from its fast path for attention, for which vmap has no rule.
PATCH, LAYERS, HEADS, HIDDEN, MLP = 8, 4, 3, 96, 192


def chain(**layers: nn.Module) -> nn.Sequential:
    """Return the layers one after the other; their names are those of the state_dict."""
    return nn.Sequential(OrderedDict(layers))


def _stage(number: int, convolution: nn.Conv2d, pool: bool = False) -> dict[str, nn.Module]:
    """Return a convolution, ReLU and perhaps max pooling by halves, named by their number."""
    layers = {f"conv{number}": convolution, f"relu{number}": nn.ReLU()}
    return layers | {f"pool{number}": nn.MaxPool2d(2)} if pool else layers


def _draw_he(layers: nn.Sequential, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of the convolutions for ReLU (He et al. 2015); biases become zero."""
    for module in layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _lenet(channels: int, classes: int) -> nn.Module:
    """Return LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, and three convolutions of 6, 16 and 120 maps.

    MGE's Fig. 7 shows its third convolutional layer.
    """
    return chain(
        **_stage(1, nn.Conv2d(channels, 6, 5), pool=True),
        **_stage(2, nn.Conv2d(6, 16, 5), pool=True),
        **_stage(3, nn.Conv2d(16, 120, 5)),
        flatten=nn.Flatten(),
        fc1=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc2=nn.Linear(84, classes),
    )


def _alexnet(channels: int, classes: int) -> nn.Module:
    """Return AlexNet (Krizhevsky et al. 2012) with the widths of its 2014 one-tower version and one linear layer.

    There is no dropout.
    """
    net = chain(
        **_stage(1, nn.Conv2d(channels, 64, 11, stride=4, padding=5), pool=True),
        **_stage(2, nn.Conv2d(64, 192, 5, padding=2), pool=True),
        **_stage(3, nn.Conv2d(192, 384, 3, padding=1)),
        **_stage(4, nn.Conv2d(384, 256, 3, padding=1)),
        **_stage(5, nn.Conv2d(256, 256, 3, padding=1), pool=True),
        flatten=nn.Flatten(),
        fc=nn.Linear(256, classes),
    )
    # fan_out, as in VGG, leaves little of the signal after a stem of stride 4: SGD then hardly starts
    _draw_he(net, "fan_in")
    return net


def _vgg(config: str, batch_norm: bool, channels: int, classes: int) -> nn.Module:
    """Return VGG (Simonyan and Zisserman 2015) with a head of 512 to classes in place of the 4096-wide one."""
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs[config], batch_norm=batch_norm)
    features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    _draw_he(features, "fan_out")
    return chain(features=features, flatten=nn.Flatten(), classifier=nn.Linear(512, classes))


def _resnet18(channels: int, classes: int) -> nn.Module:
    """Return ResNet-18 (He et al. 2016) with a 3 x 3 stem of stride 1 and no max pooling."""
    from torchvision.models import resnet18

    net = resnet18(weights=None, num_classes=classes)
    net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return net


def _conv4(channels: int, classes: int) -> nn.Module:
    """Return the backbone of Matching Networks (Vinyals et al. 2016) and Prototypical Networks (Snell et al. 2017).

    One linear layer follows. The 64 maps end at 2 x 2: what it reads has 256 numbers. The weights are drawn as PyTorch
    draws them.
    """
    blocks = {}
    for number, before in enumerate((channels, MAPS, MAPS, MAPS), 1):
        layers = {"conv": nn.Conv2d(before, MAPS, 3, padding=1), "norm": nn.BatchNorm2d(MAPS)}
        blocks[f"block{number}"] = chain(**layers, relu=nn.ReLU(), pool=nn.MaxPool2d(2))
    return chain(**blocks, flatten=nn.Flatten(), fc=nn.Linear(4 * MAPS, classes))


def _vit(channels: int, classes: int) -> nn.Module:
    """Return a Vision Transformer (Dosovitskiy et al. 2021) of 4 layers, 3 heads and 96 numbers a token, no dropout."""
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, PATCH, LAYERS, HEADS, HIDDEN, MLP, num_classes=classes)
    net.conv_proj = nn.Conv2d(channels, HIDDEN, PATCH, PATCH)
    # torchvision's head starts at zero: an untrained network would give every image the same logits
    nn.init.trunc_normal_(net.heads.head.weight, std=0.02)
    return net


MGE: dict[str, Callable[[int, int], nn.Module]] = {  # (channels, classes) -> network
    "lenet": _lenet,
    "alexnet": _alexnet,
    "vgg11": partial(_vgg, "A", False),
    "vgg11_bn": partial(_vgg, "A", True),
    "vgg16": partial(_vgg, "D", False),
    "vgg16_bn": partial(_vgg, "D", True),
    "resnet18": _resnet18,
    "conv4": _conv4,
    "vit": _vit,
}
