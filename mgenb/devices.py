"""What computes, and how exactly: the device, threads, and the bits that a GPU's matrix products may drop."""

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from mgenb.errors import MgenbError, choose

PRECISIONS = ("float32", "tf32")
COUNTING = "tf32"  # in which a GPU counts right images, unless it is told otherwise


def device(name: str | torch.device) -> torch.device:
    """Return the device; 'auto' is cuda where there is one. Raises MgenbError where it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen).item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise MgenbError(f"device {str(name)!r} cannot be used here; try 'auto' or 'cpu'") from error
    return chosen


@cache
def processor() -> str:
    """Return by what libraries choose a CPU's kernels, and so its bits: instruction set, vendor, family and model."""
    about = Path("/proc/cpuinfo")
    text = about.read_text() if about.exists() else ""
    model = re.findall(r"^(?:vendor_id|cpu family|model)\s*: (.+)$", text, re.MULTILINE)[:3] or [platform.processor()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *model])


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the CPU with one thread: for work too small to share, or whose bits must not depend on the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def precise(precision: str = "float32", *, fastest: bool = False) -> Iterator[None]:
    """Compute on a GPU in whole float32, or in 'tf32'; torch's switches are put back afterwards.

    `fastest`: cuDNN measures which of its kernels is fastest for each shape.
    """
    choose("precision", precision, PRECISIONS)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = fastest, precision == "tf32", precision == "tf32"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
