"""What several families share: layers with names, one after the other, and He's initialisation."""

from collections import OrderedDict
from typing import Literal

from torch import nn


def chain(**layers: nn.Module) -> nn.Sequential:
    """Return the layers one after the other; their names are those of the state_dict."""
    return nn.Sequential(OrderedDict(layers))


def draw_he(layers: nn.Sequential, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of the convolutions for ReLU (He et al. 2015); biases become zero."""
    for module in layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
