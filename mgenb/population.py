"""Evaluate networks: predictions per image, so that any two methods can be compared on the same images."""

from collections.abc import Mapping

import torch
from torch import nn

from mgenb.data import Split
from mgenb.errors import MgenbError

State = Mapping[str, torch.Tensor]

# batches that stay in a CPU's cache are up to seven times faster than one large batch
CPU_BATCH, GPU_BATCH = 128, 2048


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return a detached copy of the network's state_dict."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@torch.inference_mode()
def predict(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return the predicted class of each image, int64 [n], on the CPU.

    With `state` the network computes as if it held those tensors; its own stay as they are.
    The network runs in eval mode and leaves in the mode in which it came. Raises MgenbError when `state`
    lacks a tensor of the network, or has another shape. A network whose logits are NaN predicts class -1.
    """
    tensors = dict(net.state_dict()) if state is None else _matching(net, state)
    batch = CPU_BATCH if split.images.device.type == "cpu" else GPU_BATCH
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        parts = [torch.func.functional_call(net, tensors, (x,)) for x in split.images.split(batch)]
    finally:
        for module, training in modes:
            module.training = training
    logits = torch.cat(parts)
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1).cpu()


def correct(net: nn.Module, split: Split, state: State | None = None) -> torch.Tensor:
    """Return whether each image is classified rightly, bool [n], on the CPU."""
    return predict(net, split, state) == split.labels.cpu()


def accuracy(net: nn.Module, split: Split, state: State | None = None) -> float:
    """Return the accuracy on `split` in percent."""
    return 100 * correct(net, split, state).double().mean().item()


def _matching(net: nn.Module, state: State) -> dict[str, torch.Tensor]:
    own = net.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise MgenbError(f"the state_dict lacks {name!r}, which the network has")
        if state[name].shape != tensor.shape:
            raise MgenbError(f"{name!r} has shape {tuple(state[name].shape)}; right is {tuple(tensor.shape)}")
    return {name: state[name].to(tensor.device) for name, tensor in own.items()}
