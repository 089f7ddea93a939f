"""Every random stream is derived by name from one seed, so that adding a step shifts no other."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from mgenb.errors import check

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) for the stream `names` under the root `seed`; MgenbError for a root below 0."""
    check("seed", seed, 0)
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int) -> "torch.Generator":
    """Return a CPU generator for that stream: CPU draws are the same whatever the device."""
    import torch  # slow to load, and the command line derives seeds without it

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator for that stream."""
    return np.random.default_rng(derive(seed, *names))
