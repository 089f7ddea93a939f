"""Every random stream is derived by name from one seed, so that adding a step shifts no other."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) for the stream called `names` under the root `seed`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for that stream: CPU draws are the same whatever the device."""
    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator for that stream."""
    return np.random.default_rng(derive(seed, *names))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the CPU with one thread: for work too small to share, or whose bits must not depend on the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
