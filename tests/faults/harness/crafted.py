"""Files that were made to do harm: what writes them in a folder, and by which door they are read."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mgenb import data, nets, store
from mgenb.lab import parameters, record, rows
from mgenb.mega import methods
from mgenb.mge import pool
from tests.faults.harness import work

Make = Callable[[Path], None]


class Runs:
    """Pickled, it is a call."""

    def __init__(self, call: Callable[..., Any], *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> Any:
        return self.call, self.given


def runs(module: str, name: str, *given: str) -> bytes:
    """Return a pickle that calls a function by its name, as it stands in old pickles."""
    words = "".join(f"V{word}\n" for word in given)
    return f"c{module}\n{name}\n({words}tR.".encode()


PICKLES = {
    "system": pickle.dumps(Runs(os.system, "touch ran")),
    "eval": pickle.dumps(Runs(eval, "open('ran', 'w')")),
    "exec": pickle.dumps(Runs(exec, "open('ran', 'w')")),
    "popen": runs("subprocess", "Popen", "touch ran"),
    "f2py": runs("numpy.f2py.__main__", "main"),
    "import": runs("builtins", "__import__", "antigravity"),
    "numpy": runs("numpy.testing._private.utils", "runstring", "open('ran', 'w')", "{}"),
    "torch": runs("torch.hub", "load", "nobody/nothing", "x"),
    "deep": b"(" * 100_000 + b"l" * 100_000 + b".",
    "huge": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
}
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]


def batches(content: bytes, folder: Path) -> None:
    (folder / "data" / "cifar-10-batches-py").mkdir(parents=True)
    for name in BATCHES:
        (folder / "data" / "cifar-10-batches-py" / name).write_bytes(content)


def checkpoint(content: bytes, folder: Path) -> None:
    (folder / "a.pt").write_bytes(content)


def zipped_checkpoint(content: bytes, folder: Path) -> None:
    """As torch.save writes one: a zip that holds a pickle."""
    with zipfile.ZipFile(folder / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def progress(content: bytes, folder: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    blob = inner.getvalue()
    (folder / "evolution").write_bytes(hashlib.sha256(blob).digest() + blob)


def arrays(content: bytes, folder: Path) -> None:
    """A .npz with an array of objects, which is a pickle."""
    (folder / "data").mkdir()
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with zipfile.ZipFile(folder / "data" / "mnist.npz", "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", out.getvalue() + content)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, packed: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, kind)
    return out.getvalue()


IMAGES = {
    "an EPS": saved("EPS"),
    "a PDF": saved("PDF"),
    "a PNG of 100,000 x 100,000": png(100_000, 100_000, zlib.compress(b"\0" * 1000)),
    "a PNG of 2^31 - 1": png(2**31 - 1, 2**31 - 1),
    "a PNG of 8192 x 8192 that holds nothing": png(8192, 8192, zlib.compress(b"")),
    "a PNG whose text unpacks to a gigabyte": png(8, 8, zlib.compress(b"\0" * 200))[:33]
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 2**26)),
    "a TIFF of many": saved("TIFF")[:-4] + b"\x08\0\0\0",
    "a WMF": b"\xd7\xcd\xc6\x9a" + bytes(100),
    "an XPM": b'/* XPM */ static char * x[] = {"99999 99999 1 1", "a c #000000"};',
    "a script": b"#!/bin/sh\ntouch ran\n",
}


def images(content: bytes, folder: Path) -> None:
    """A folder of the user's own images, one of which is crafted."""
    for number, name in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (folder / "own" / name).mkdir(parents=True)
        for place in range(3):
            (folder / "own" / name / f"{place}.png").write_bytes(content if number == place == 0 else saved("PNG"))


def special(kind: str, folder: Path) -> None:
    """A folder of images, one of which is no regular file."""
    images(saved("PNG"), folder)
    odd = folder / "own" / "train" / "a" / "9.png"
    {"fifo": lambda: os.mkfifo(odd), "zero": lambda: odd.symlink_to("/dev/zero"), "loop": lambda: odd.symlink_to(odd)}[
        kind
    ]()


def bomb(members: dict[str, int], folder: Path) -> None:
    """A zip whose members unpack to so many zeros."""
    with zipfile.ZipFile(folder / "own.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, size in members.items():
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(0, size, 2**24):
                    file.write(bytes(min(size, 2**24)))


def lying(folder: Path) -> None:
    """A zip whose directory says that a member is small, and it is not."""
    bomb({"train/a/0.png": 2**29, "train/a/1.png": 8, "test/a/0.png": 8}, folder)
    content = (folder / "own.zip").read_bytes()
    (folder / "own.zip").write_bytes(content.replace(struct.pack("<I", 2**29), struct.pack("<I", 100)))


def crowd(folder: Path) -> None:
    """A zip of very many members."""
    with zipfile.ZipFile(folder / "own.zip", "w") as archive:
        for number in range(100_000):
            archive.writestr(f"train/{number}/0.png", b"")


def outside(folder: Path) -> None:
    """A zip whose members have names outside it."""
    with zipfile.ZipFile(folder / "own.zip", "w") as archive:
        for name in ("../../train/a/0.png", "/train/a/1.png", "train/../../ran", "test/a/0.png"):
            archive.writestr(name, saved("PNG"))


def idx(content: bytes, folder: Path) -> None:
    (folder / "data" / "MNIST" / "raw").mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (folder / "data" / "MNIST" / "raw" / f"{prefix}-{kind}-ubyte.gz").write_bytes(content)


def gzipped(size: int) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as file:
        for _ in range(0, size, 2**24):
            file.write(bytes(2**24))
    return out.getvalue()


def odd_idx(kind: str, folder: Path) -> None:
    """An idx file that is no regular file."""
    idx(b"", folder)
    file = folder / "data" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")


def odd_npz(kind: str, folder: Path) -> None:
    (folder / "data").mkdir()
    file = folder / "data" / "mnist.npz"
    os.mkfifo(file) if kind == "fifo" else file.symlink_to("/dev/zero")


def shaped(shape: str, folder: Path) -> None:
    """A .npz whose array says that it is huge."""
    (folder / "data").mkdir()
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
    with zipfile.ZipFile(folder / "data" / "mnist.npz", "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", content + bytes(100))


def tensors(head: Any, length: int | None, folder: Path) -> None:
    """A safetensors file with such a header, which says that it is so long."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    (folder / "a.safetensors").write_bytes(size + text + bytes(64))


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"net.conv1.weight": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def odd_checkpoint(kind: str, suffix: str, folder: Path) -> None:
    file = folder / f"a{suffix}"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to({"zero": "/dev/zero", "dangling": "gone"}[kind])


def deep(name: str, folder: Path) -> None:
    """JSON or TOML that is nested 100,000 times."""
    project = folder / "figures" / "quick"
    project.mkdir(parents=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(("x = " if name.endswith("toml") else "") + "[" * 100_000 + "]" * 100_000)


def read_data(name: str, folder: Path) -> None:
    os.environ["MGENB_DATA"] = str(folder / "data") if (folder / "data").exists() else ""
    data.load(str(folder / name) if name.startswith("own") else name, val_fraction=0.5)


def read_checkpoint(suffix: str, folder: Path) -> None:
    file = folder / f"a{suffix}"
    methods.read_pair((file, file), nets.build("lenet", 1, 28, 10))


def read_progress(folder: Path) -> None:
    work.evolve_models(folder)


def read_record(folder: Path) -> None:
    record.read(folder / "record.json")


def read_rows(folder: Path) -> None:
    (folder / "rows.csv").write_text("a\n1\n")
    rows.read(folder / "rows.csv")


def read_networks(folder: Path) -> None:
    parameters.chosen(["a"], "quick", str(folder / "networks.toml"))


def read_pool(folder: Path) -> None:
    pool.Pool(folder / "pool")


def pool_with(name: str, make: Make, folder: Path) -> None:
    """A pool of which one file is crafted."""
    (folder / "pool").mkdir()
    for file in ("base.safetensors", "base.json", "manifest.jsonl"):
        (folder / "pool" / file).write_bytes(b"{}")
    (folder / "pool" / name).unlink()
    make(folder / "pool" / name)


def model_with(name: str, make: Make, folder: Path) -> None:
    """A cached network of which one file is crafted."""
    state = nets.build("lenet", 1, 28, 10).state_dict()
    store.save_weights(folder / "model.safetensors", state, {})
    (folder / name).unlink()
    make(folder / name)


def read_model(folder: Path) -> None:
    store.load_weights(folder / "model.safetensors")


def nested(file: Path) -> None:
    file.write_text("[" * 100_000 + "]" * 100_000)


def zeros(file: Path) -> None:
    file.symlink_to("/dev/zero")


HUGE = 2**40
CASES: dict[str, tuple[Make, Make]] = {
    **{
        f"CIFAR batch, {name}": (partial(batches, code), partial(read_data, "cifar10"))
        for name, code in PICKLES.items()
    },
    **{
        f"torch file, {name}": (partial(checkpoint, code), partial(read_checkpoint, ".pt"))
        for name, code in PICKLES.items()
    },
    **{
        f"torch zip, {name}": (partial(zipped_checkpoint, PICKLES[name]), partial(read_checkpoint, ".pt"))
        for name in ("system", "exec", "f2py", "torch", "deep")
    },
    **{f"progress, {name}": (partial(progress, PICKLES[name]), read_progress) for name in ("system", "eval", "numpy")},
    **{f"npz, {name}": (partial(arrays, PICKLES[name]), partial(read_data, "mnist")) for name in ("system", "exec")},
    **{f"image, {name}": (partial(images, content), partial(read_data, "own")) for name, content in IMAGES.items()},
    **{f"image, {kind}": (partial(special, kind), partial(read_data, "own")) for kind in ("fifo", "zero", "loop")},
    "zip, one huge": (
        partial(bomb, {"train/a/0.png": 2**28 + 1, "train/a/1.png": 8, "test/a/0.png": 8}),
        partial(read_data, "own.zip"),
    ),
    "zip, lying": (lying, partial(read_data, "own.zip")),
    "zip, crowd": (crowd, partial(read_data, "own.zip")),
    "zip, outside": (outside, partial(read_data, "own.zip")),
    "gzip of a gigabyte": (partial(idx, gzipped(2**30)), partial(read_data, "mnist")),
    **{f"idx, {kind}": (partial(odd_idx, kind), partial(read_data, "mnist")) for kind in ("fifo", "zero")},
    **{f"npz, {kind}": (partial(odd_npz, kind), partial(read_data, "mnist")) for kind in ("fifo", "zero")},
    **{
        f"npz of shape {s}": (partial(shaped, s), partial(read_data, "mnist"))
        for s in (f"({HUGE},)", "(-1,)", "(9,) * 9")
    },
    "safetensors, header of 2^62": (partial(tensors, {}, 2**62), partial(read_checkpoint, ".safetensors")),
    "safetensors, header of 99 MB": (partial(tensors, {}, 99_000_000), partial(read_checkpoint, ".safetensors")),
    "safetensors, deep": (partial(tensors, b"[" * 100_000, None), partial(read_checkpoint, ".safetensors")),
    "safetensors, huge": (
        partial(tensors, tensor("F32", [HUGE], 0, 4 * HUGE), None),
        partial(read_checkpoint, ".safetensors"),
    ),
    "safetensors, overflowing": (
        partial(tensors, tensor("F32", [2**33, 2**33], 0, 64), None),
        partial(read_checkpoint, ".safetensors"),
    ),
    "safetensors, backwards": (
        partial(tensors, tensor("F32", [1], 4, 0), None),
        partial(read_checkpoint, ".safetensors"),
    ),
    "safetensors, empty": (partial(tensors, tensor("F32", [0], 0, 0), None), partial(read_checkpoint, ".safetensors")),
    **{
        f"checkpoint {suffix}, {kind}": (partial(odd_checkpoint, kind, suffix), partial(read_checkpoint, suffix))
        for suffix in (".safetensors", ".pt")
        for kind in ("fifo", "zero", "folder", "dangling")
    },
    "record, deep": (partial(deep, "record.json"), read_record),
    "parts, deep": (partial(deep, "rows.parts.json"), read_rows),
    "networks_file, deep": (partial(deep, "networks.toml"), read_networks),
    "pool's header, deep": (partial(pool_with, "base.json", nested), read_pool),
    "pool's header, zero": (partial(pool_with, "base.json", zeros), read_pool),
    "pool's base, zero": (partial(pool_with, "base.safetensors", zeros), read_pool),
    "model's settings, deep": (partial(model_with, "model.json", nested), read_model),
    "model's settings, fifo": (partial(model_with, "model.json", os.mkfifo), read_model),
    "model, zero": (partial(model_with, "model.safetensors", zeros), read_model),
}


def make(case: str, folder: Path) -> None:
    """Make a crafted file."""
    CASES[case][0](folder)


def read(case: str, folder: Path) -> None:
    """Read a crafted file by its door."""
    CASES[case][1](folder)
