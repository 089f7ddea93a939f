"""Networks by name: `build(arch, channels, size, classes)` returns a classifier for uint8 or [0, 1] images."""

import torch
from torch import fx, nn
from torch.nn import functional

from mgenb.errors import MgenbError, choose
from mgenb.nets.mega import MEGA
from mgenb.nets.mge import MGE, chain

MOST = 100_000  # classes: the last layer is held in memory
SIZE = 32  # every network sees 32 x 32; 28 x 28 images are padded with zeros, as LeNet-5 does

ARCHITECTURES = MGE | MEGA  # name -> (channels, classes) -> network
# part of the key of each trained network: raise one, as in `| {"lenet": 2}`, when `build` gives other weights or logits
VERSIONS = dict.fromkeys(ARCHITECTURES, 1)


class Normalise(nn.Module):
    """Scale uint8 images to [0, 1], pad to 32 x 32 and normalise each channel; a layer, so attacks see [0, 1]."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [n, channels, h, w] (uint8, or float in [0, 1]) to normalised float32 [n, channels, 32, 32]."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        margin = (SIZE - x.shape[-1]) // 2
        if margin:
            x = functional.pad(x, (margin,) * 4)
        return (x - mean[:, None, None]) / std[:, None, None]


class Tracer(fx.Tracer):
    """A tracer that keeps `Normalise` and pooling whole: what they do depends on the images, or on the mode."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the module becomes one node of the graph."""
        return isinstance(m, Normalise | nn.MaxPool2d) or super().is_leaf_module(m, module_qualified_name)


def build(
    arch: str, channels: int, size: int, classes: int, mean: torch.Tensor | None = None, std: torch.Tensor | None = None
) -> nn.Sequential:
    """Return `Sequential(normalise, net)`: images [n, channels, size, size] to logits [n, classes].

    `mean` and `std` (float [channels], of pixels in [0, 1]) default to 0.5 and 0.25.
    The weights are drawn from torch's global generator. Raises MgenbError for an unknown architecture,
    channels other than 1 or 3, a size other than 28 or 32, or a number of classes that is not from 2 to `MOST`.
    """
    choose("architecture", arch, ARCHITECTURES)
    if channels not in (1, 3) or size not in (28, 32) or not (isinstance(classes, int) and 2 <= classes <= MOST):
        right = f"1 or 3 channels, 28 or 32 pixels and 2 to {MOST} classes"
        raise MgenbError(f"{arch} takes {right}; got {channels} channels, {size} pixels, {classes} classes")
    mean = torch.full((channels,), 0.5) if mean is None else mean
    std = torch.full((channels,), 0.25) if std is None else std
    return chain(normalise=Normalise(mean, std), net=ARCHITECTURES[arch](channels, classes))


def count_with_statistics(net: nn.Module) -> int:
    """Return the number of parameters and of BatchNorm's running means and variances: Keras's "total parameters"."""
    statistics = (t for name, t in net.named_buffers() if name.endswith(("running_mean", "running_var")))
    return sum(t.numel() for t in (*net.parameters(), *statistics))
