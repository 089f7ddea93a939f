"""Training steps, one at a time on a CPU; on a GPU each is one CUDA graph."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mgenb.data import Split

WARM_UP = 3  # steps before a capture, in which libraries allocate and choose kernels
PRECISIONS = ("float32", "bfloat16")


class Step:
    """One training step of `net` on images of `train`: forward, backward, optimiser, and the loss is added up.

    precision: 'float32'; or 'bfloat16', the forward pass under autocast with weights in float32.
    """

    def __init__(
        self, net: nn.Module, train: Split, optimiser: torch.optim.Optimizer, batch: int, precision: str = "float32"
    ) -> None:
        self.net, self.train, self.optimiser, self.precision = net, train, optimiser, precision
        self.device = train.images.device
        self._index = torch.zeros(min(batch, len(train)), dtype=torch.int64, device=self.device)
        self._total = torch.zeros((), device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None  # a step on a whole batch, where it is captured

    def __call__(self, index: torch.Tensor, rate: float) -> None:
        """Take a step on the images at `index` (int64, on the images' device) with this learning rate."""
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)  # the graph reads it where it lies
            else:
                group["lr"] = rate
        if self.graph is None or len(index) != len(self._index):
            self._take(index)
        else:
            self._index.copy_(index)
            self.graph.replay()

    def take_loss(self) -> float:
        """Return the loss added up since the last call, each image counted once; waits for the device."""
        total = self._total.item()
        self._total.zero_()
        return total

    def _take(self, index: torch.Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bfloat16", cache_enabled=False):
            loss = functional.cross_entropy(self.net(self.train.images[index]), self.train.labels[index])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self._total += loss.detach() * len(index)

    def capture(self) -> None:
        """Hold the step on a whole batch in a CUDA graph; nothing that is trained has changed afterwards.

        Raises RuntimeError where something in it cannot be captured; the step then works as before.
        """
        self.net.train()
        main, stream = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        with _kept(self.net, self.optimiser):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):  # a capture needs another one than the default
                for _ in range(WARM_UP):
                    self._take(self._index)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    self._take(self._index)
            main.wait_stream(stream)
        self._total.zero_()
        self.graph = graph


@contextmanager
def _kept(net: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """Put weights, statistics and the optimiser's state back afterwards, in the same memory; new state becomes zero."""
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    before: dict[Any, dict[str, Any]] = {p: copy.deepcopy(state) for p, state in optimiser.state.items()}
    try:
        yield
    finally:
        net.load_state_dict(tensors)
        for parameter, state in optimiser.state.items():
            for name, tensor in state.items():
                if torch.is_tensor(tensor) and parameter in before:
                    tensor.copy_(before[parameter][name])
                elif torch.is_tensor(tensor):
                    tensor.zero_()
