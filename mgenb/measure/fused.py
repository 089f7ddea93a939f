"""Networks in eval mode with fewer passes over memory: BatchNorm folded into the convolution before it, ReLU fused.

For populations: the graph is rewritten once, and each state_dict is folded into the tensors that it takes.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from mgenb.nets import Tracer
from mgenb.store import State

Modules = Mapping[str, nn.Module]


def fuse(net: nn.Module) -> tuple[nn.Module, Callable[[State], dict[str, torch.Tensor]]]:
    """Return an equal network for eval mode, and state_dict of `net` -> the tensors that it computes with.

    Predictions agree up to float noise. Raises what torch.fx raises for a network that it cannot trace.
    """
    net = copy.deepcopy(net).eval()
    graph = Tracer().trace(net)
    modules = dict(net.named_modules())
    folds = _fold_norms(graph, modules)
    _fuse_relus(graph, modules)
    slim = fx.GraphModule(net, graph)
    slim.graph.eliminate_dead_code()
    slim.recompile()
    slim.delete_all_unused_submodules()
    wanted = list(slim.state_dict())

    def folded(state: State) -> dict[str, torch.Tensor]:
        tensors = dict(state)
        for conv, norm, eps in folds:
            scale = state[f"{norm}.weight"] * torch.rsqrt(state[f"{norm}.running_var"] + eps)
            shift = state.get(f"{conv}.bias", 0) - state[f"{norm}.running_mean"]
            tensors[f"{conv}.weight"] = state[f"{conv}.weight"] * scale[:, None, None, None]
            tensors[f"{conv}.bias"] = state[f"{norm}.bias"] + shift * scale
        return {name: tensors[name] for name in wanted}

    return slim, folded


def _fold_norms(graph: fx.Graph, modules: Modules) -> list[tuple[str, str, float]]:
    """Take each BatchNorm that follows a convolution out of the graph; return (convolution, BatchNorm, eps) of each."""
    folds = []
    for node in list(graph.nodes):
        norm = _called(node, modules)
        if not isinstance(norm, nn.BatchNorm2d) or (convolution := _convolution(node.args[0], modules)) is None:
            continue
        if convolution.bias is None:
            convolution.bias = nn.Parameter(torch.zeros_like(norm.weight))
        before = node.args[0]
        folds.append((str(before.target), str(node.target), norm.eps))
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    return folds


def _fuse_relus(graph: fx.Graph, modules: Modules) -> None:
    """Put one call in place of a convolution with ReLU, or of a convolution, a sum and ReLU."""
    for node in list(graph.nodes):
        if not isinstance(_called(node, modules), nn.ReLU) and node.target not in (functional.relu, torch.relu):
            continue
        before, other = node.args[0], None
        if before.target in (operator.add, torch.add) and len(before.users) == 1:
            before, other = sorted(before.args[:2], key=lambda operand: _convolution(operand, modules) is None)
        convolution = _convolution(before, modules)
        if convolution is None or convolution.bias is None:
            continue
        with graph.inserting_before(node):
            tensors = tuple(graph.get_attr(f"{before.target}.{name}") for name in ("weight", "bias"))
            how: tuple[Any, ...] = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
            fused = graph.call_function(conv_relu, (before.args[0], *tensors, other, *how))
        node.replace_all_uses_with(fused)
        graph.erase_node(node)


def _called(node: fx.node.Argument, modules: Modules) -> nn.Module | None:
    """Return the module that a node calls, if it is one that does."""
    return modules.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def _convolution(node: fx.node.Argument, modules: Modules) -> nn.Conv2d | None:
    """Return the convolution that a node calls, if only one other node reads it and its padding is in numbers."""
    module = _called(node, modules)
    if not isinstance(node, fx.Node) or len(node.users) != 1 or not isinstance(module, nn.Conv2d):
        return None
    return None if isinstance(module.padding, str) else module


def conv_relu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, other: torch.Tensor | None, *how: Any
) -> torch.Tensor:
    """Return relu(convolution of `x` + bias + other), by one cuDNN kernel on a GPU.

    how: the convolution's stride, padding, dilation and groups.
    """
    if not x.is_cuda:
        summed = functional.conv2d(x, weight, bias, *how)
        return functional.relu(summed if other is None else summed + other)
    if other is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *how)
    return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, bias, *how)
