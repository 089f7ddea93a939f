"""Networks by any name: ours, torchvision's, timm's, or what a function of the user's own returns."""

import importlib
import inspect
import os
import sys
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from mgenb import nets
from mgenb.errors import MgenbError, choose, nearest
from mgenb.nets.mge import chain

SCALES = {"0-1": (0.0, 1.0), "0-255": (0.0, 1 / 255)}  # mean and std of pixels in [0, 1]; 'normalised' is measured


def scaling(images: torch.Tensor, scale: str, mean: str, std: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return mean and std, float [channels], by which pixels in [0, 1] are normalised; None where nothing is given.

    scale: '0-1', '0-255', or 'normalised', which takes mean and std of `images` (uint8 [n, channels, h, w]). mean,
    std: in its place one number, or one for each channel, as 'a,b,c'. Raises MgenbError for anything else.
    """
    if not (scale or mean or std):
        return None
    channels = images.shape[1]
    if scale and not (mean or std):
        if choose("scale", scale, [*SCALES, "normalised"]) == "normalised":
            return normalised(images)
        shift, factor = SCALES[scale]
        return torch.full((channels,), shift), torch.full((channels,), factor)
    with suppress(ValueError, RuntimeError):  # no numbers; as many as there are no channels
        means, stds = (torch.tensor([float(n) for n in text.split(",")]).expand(channels) for text in (mean, std))
        if not scale and means.min() >= 0 and means.max() <= 1 and stds.min() > 0 and stds.max() <= 1:
            return means, stds
    right = f"--scale alone, or --mean and --std of pixels in [0, 1], one number each or {channels}: 0.49,0.48,0.45"
    raise MgenbError(f"--scale is {scale!r}, --mean {mean!r}, --std {std!r}; right is {right}")


def normalised(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std of the pixels in [0, 1] of uint8 images [n, channels, h, w], float [channels]."""
    std, mean = torch.std_mean(images.float() / 255, (0, 2, 3))
    return mean.cpu(), std.clamp(min=1e-3).cpu()


def build(arch: str, channels: int, size: int, classes: int, mean: torch.Tensor, std: torch.Tensor) -> nn.Sequential:
    """Return `Sequential(normalise, net)` as `nets.build` does, for any network.

    arch: one of ours, a name of torchvision's or timm's (in this order), or 'package.module:function'. Only the last
    imports code of the user's, from the current folder too; the function is given `num_classes` if it has such a
    parameter. Ours see 32 x 32 pixels, others the images as they are. Raises MgenbError for a network that cannot be
    made, or does not map two such images to logits [2, classes].
    """
    with torch.random.fork_rng(devices=[]):
        if arch in nets.ARCHITECTURES:
            return nets.build(arch, channels, size, classes, mean, std)
        try:
            net = (_imported if ":" in arch else _named)(arch, channels, size, classes)
            whole = chain(normalise=nets.Normalise(mean, std, size), net=net)
            with torch.inference_mode():
                shape = list(whole.eval()(torch.zeros(2, channels, size, size)).shape)
        except MgenbError:
            raise
        except Exception as error:  # whatever the code of others raises
            what = f"{arch} makes no network for {channels} x {size} x {size} images and {classes} classes"
            raise MgenbError(f"{what}: {str(error).partition(chr(10))[0] or type(error).__name__}") from error
    if shape != [2, classes]:
        raise MgenbError(f"{arch} maps two images to {shape}; right are logits [2, {classes}]")
    return whole


def _imported(arch: str, channels: int, size: int, classes: int) -> nn.Module:
    """Return what the function gives that `arch` names."""
    module, _, name = arch.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # stays: workers and what the module imports later need it; last, to hide nothing
    make: Any = getattr(importlib.import_module(module), name)
    known = inspect.signature(make).parameters.values()
    takes = any(one.name == "num_classes" or one.kind is one.VAR_KEYWORD for one in known)
    net = make(num_classes=classes) if takes else make()
    if not isinstance(net, nn.Module):
        raise MgenbError(f"{arch} returns {type(net).__name__}; right is a torch.nn.Module")
    return net


def _named(arch: str, channels: int, size: int, classes: int) -> nn.Module:
    """Return a network of torchvision's or timm's."""
    from torchvision import models  # slow to load, as timm is

    known = models.list_models(module=models)
    if arch in known:
        return models.get_model(arch, num_classes=classes)
    try:
        import timm
    except ImportError:
        missing = "; timm's are known with: pip install 'mgenb[timm]'"
    else:
        missing, known = "", [*known, *timm.list_models()]
        if timm.is_model(arch):
            return _of_timm(arch, size, num_classes=classes, in_chans=channels)
    hint = nearest(arch, [*nets.ARCHITECTURES, *known])
    right = f"right is {', '.join(nets.ARCHITECTURES)}, a name of torchvision's, or package.module:function"
    raise MgenbError(f"unknown architecture {arch!r}{hint}; {right}{missing}")


def _of_timm(arch: str, size: int, **given: Any) -> nn.Module:
    import timm

    try:
        return timm.create_model(arch, img_size=size, **given)  # what has patches must know
    except TypeError:
        return timm.create_model(arch, **given)
