"""How a CPU evaluates networks fastest: its pooling, its memory order, its batch. What is predicted stays the same.

One core of a Xeon with AVX-512 and torch 2.14, microseconds an image, channels-last and contiguous. With torch's own
pooling: LeNet 61 and 77, Conv-4 496 and 1,330, VGG11 4,130 and 2,780. With the pooling below: 49 and 42, 508 and 681,
3,950 and 2,230. Residual networks hardly differ; GoogLeNet is twice as fast channels-last.
"""

import copy
import json
from contextlib import suppress
from time import process_time

import torch
from torch import nn

from mgenb import devices, store
from mgenb.errors import MgenbError
from mgenb.store import State

Way = tuple[bool, int]  # whether convolutions are channels-last, and how many images are computed at once
CPU_BATCH = 128  # batches that stay in a CPU's cache are up to seven times faster than one large batch
USUAL: Way = (True, CPU_BATCH)
WAYS = [USUAL, (True, 64), (False, CPU_BATCH), (False, 64)]
BUDGET = 0.15  # CPU seconds in which two ways are compared
WORTH = 0.9  # of the usual way's time: another one must take less


class HalvingPool(nn.MaxPool2d):
    """Max pooling of 2 x 2 pixels: torch's values, whose kernel for a CPU is up to ten times as slow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, channels, h, w] to [n, channels, h // 2, w // 2]."""
        if x.is_cuda or not torch.is_inference_mode_enabled():  # where inputs are equal, gradients would differ
            return super().forward(x)
        h, w = (size // 2 * 2 for size in x.shape[-2:])
        rows = torch.maximum(x[..., 0:h:2, :], x[..., 1:h:2, :])
        return torch.maximum(rows[..., 0:w:2], rows[..., 1:w:2])


def evaluated(net: nn.Module) -> nn.Module:
    """Return a copy of `net` in eval mode that shares its tensors, with quicker pooling in inference mode."""
    shared = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    twin = copy.deepcopy(net, shared)
    for name, module in list(twin.named_modules()):
        if type(module) is nn.MaxPool2d and repr(module) == repr(nn.MaxPool2d(2)) and not module.return_indices:
            twin.set_submodule(name, HalvingPool(2))
    return twin.eval()


def ordered(tensors: State, last: bool = True) -> dict[str, torch.Tensor]:
    """Return the same values, convolutions channels-last or contiguous."""
    form = torch.channels_last if last else torch.contiguous_format
    return {name: t.contiguous(memory_format=form) if t.ndim == 4 else t for name, t in tensors.items()}


def fastest(net: nn.Module, images: torch.Tensor) -> Way:
    """Return the way that takes this CPU the least time for networks of these shapes on images like these.

    Measured once for a version of torch and a number of threads, and kept in the cache with what was measured.
    """
    about = {
        "shapes": {name: list(tensor.shape) for name, tensor in net.state_dict().items()},
        "image": list(images.shape[1:]),
        "cpu": devices.processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    file = store.cache_dir() / "speed" / f"{store.key_of(about)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # not there, or damaged
        if (known := tuple(json.loads(file.read_text(encoding="utf-8"))["fastest"])) in WAYS:
            return known
    took = _measured(net, images)
    best = min(took, key=lambda way: took[way] * (WORTH if way == USUAL else 1))
    with suppress(MgenbError):  # a cache that cannot be written costs time alone
        store.write_json(file, {**about, "measured": list(took.items()), "fastest": best})
    return best


@torch.inference_mode()
def _measured(net: nn.Module, images: torch.Tensor) -> dict[Way, float]:
    """Return the CPU seconds that an image takes each way, the least of two rounds; other batches where time allows."""
    twin, state = evaluated(net), net.state_dict()
    states = {last: ordered(state, last) for last in (True, False)}

    def seconds(way: Way, some: torch.Tensor) -> float:
        last, batch = way
        began = process_time()  # not the clock's: other processes may have the core in between
        for part in some.split(batch):
            torch.func.functional_call(twin, states[last], (part,))
        return (process_time() - began) / len(some)

    about = min(seconds(USUAL, images[:8]) for _ in range(2))
    some = images[: max(8, min(CPU_BATCH, int(BUDGET / 4 / about)))]
    ways = [way for way in WAYS if way[1] == CPU_BATCH or way[1] < len(some)]
    return {way: min(seconds(way, some) for _ in range(2)) for way in ways}
