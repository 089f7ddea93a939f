"""Checkpoints of the user's own: read as weights alone, whatever their form, and written back in the same form.

A file is searched for the dict of tensors, and the prefix of its keys, under which most of the network's names stand:
wrappers ("state_dict", "model", ...) and prefixes ("module.", "_orig_mod.", "model.", ...) need no list of names.
"""

import argparse
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from mgenb import store
from mgenb.digest import CHECKSUM, file_hash
from mgenb.errors import MgenbError
from mgenb.store import State

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")  # of what is written; a .json stands beside it
NORMALISE, NET = "normalise.", "net."  # how nets.build names the layer that scales images, and what follows
COUNTER = "num_batches_tracked"  # of BatchNorm, absent before PyTorch 0.4.1; nothing is computed with it
INSERTED = ("module", "_orig_mod")  # what DataParallel and torch.compile put before names, also of an inner layer
AROUND = ("arch", "hyper_parameters", "pytorch-lightning_version")  # what stays true of a merged network
AVERAGE = "ema"  # in the name of an average of the weights, which stands beside them
DEPTH, SHOWN = 4, 3  # dicts in dicts that are searched; names in a message
_scalar = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [  # what training loops save beside the weights; loading it runs no code
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
RIGHT = "right is safetensors, an index of its shards, or what torch.save wrote of a state_dict"


@dataclass(frozen=True)
class Place:
    """Where a network stands in a file.

    wrappers: keys that lead to a dict of tensors. prefix: of its keys, as far as it is common. tensors: all of the
    dict. names: the network's name for each key there that is one of its own.
    """

    wrappers: tuple[str, ...]
    prefix: str
    tensors: State
    names: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A network read from a file.

    state: tensors by the network's names, of its types, on its device; without how images are scaled, if the file does
    not say. said: what was taken, stripped, left or converted, a sentence each. place: where it stood. around: plain
    entries of the file that are kept. suffix: of its format. metadata: of safetensors.
    """

    state: State
    said: tuple[str, ...]
    place: Place
    around: Mapping[str, Any]
    suffix: str
    metadata: dict[str, str] | None

    @property
    def scales(self) -> bool:
        """Whether the file says how images are scaled."""
        return any(name.startswith(NORMALISE) for name in self.place.names.values())


def read(file: Path, net: nn.Module) -> Checkpoint:
    """Return the network in a checkpoint, for `net` from `factory.build` or `nets.build`, or any other network.

    Read are safetensors, an index of shards, and torch files; weights alone, so no code in a file is run. Raises
    MgenbError for what is none of these (for TorchScript and pickled objects with the lines that save a state_dict),
    and names the keys that do not fit, or the shape.
    """
    _refuse_changed(file)
    content, metadata = _content(file)
    own = net.state_dict()
    place = _found(file, content, own)
    _check(file, place, own)
    # of the network's type and on its device, each with memory of its own
    taken = {name: place.tensors[key].to(own[name]) for key, name in place.names.items()}
    taken = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in taken.items()}
    fresh = {name: own[name].clone() for name in own if name not in taken and name.endswith(COUNTER)}
    whole = taken | fresh
    return Checkpoint(
        state={name: whole[name] for name in own if name in whole},
        said=tuple(f"{file}: {sentence}" for sentence in _said(place, own, bool(fresh))),
        place=place,
        around={key: content[key] for key in AROUND if key in content},
        suffix=".safetensors" if metadata is not None else file.suffix if file.suffix in SUFFIXES else ".pt",
        metadata=metadata,
    )


def read_all(files: Sequence[Path], net: nn.Module) -> tuple[Checkpoint, ...]:
    """Return the checkpoints, each with how its images are scaled: where it does not say, as the first does that says.

    Where none says, as `net` scales them.
    """
    found = [read(file, net) for file in files]
    known = next((checkpoint.state for checkpoint in found if checkpoint.scales), net.state_dict())
    scaling = {name: tensor.clone() for name, tensor in known.items() if name.startswith(NORMALISE)}
    return tuple(replace(checkpoint, state={**scaling, **checkpoint.state}) for checkpoint in found)


def write_back(state: State, like: Checkpoint, path: Path, settings: Mapping[str, Any]) -> None:
    """Save a state_dict with keys, types and wrappers of a checkpoint, and `settings` as JSON beside it.

    It loads where that checkpoint did. The format is that of the suffix. Raises MgenbError for a name that is taken.
    """
    place = like.place
    own = {key: state[name].to(place.tensors[key].dtype) for key, name in place.names.items()}
    whole = {key: own.get(key, tensor).clone() for key, tensor in place.tensors.items()}  # parts of one buffer part

    def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
        if path.suffix == ".safetensors":
            save_file(tensors, file, like.metadata or {"format": "pt"})
            return
        nested: dict[str, Any] = tensors
        for wrapper in reversed(place.wrappers):
            nested = {wrapper: nested}
        torch.save({**like.around, **nested}, file)

    store.save_new(path, whole, settings, save, SUFFIXES)


def _refuse_changed(file: Path) -> None:
    """Raise MgenbError where the JSON beside a file is one that mgenb wrote of another file."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # it need not be one that mgenb wrote
        beside = file.with_suffix(".json")
        if json.loads(beside.read_text(encoding="utf-8"))[CHECKSUM] != file_hash(file):
            raise MgenbError(f"{file} is damaged or not the file of {beside}: replace it, or delete {beside}")


def _content(file: Path) -> tuple[Mapping[str, Any], dict[str, str] | None]:
    """Return what is in a file, and the metadata of safetensors, None for another format."""
    try:
        if not file.is_file():
            raise ValueError("only regular files are read")
        if file.suffix == ".json":
            return _sharded(file)
        with file.open("rb") as opened:
            head = opened.read(9)
        if head[8:] == b"{":  # behind the length of its header
            with safe_open(file, "pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys()}, tensors.metadata() or {}  # noqa: SIM118
        if zipfile.is_zipfile(file) and any("/constants.pkl" in name for name in zipfile.ZipFile(file).namelist()):
            raise MgenbError(_holds_code(file, ""))
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(file, "cpu", weights_only=True)
    except MgenbError:
        raise
    except Exception as error:  # whatever no file, a damaged zip, pickle or header raises
        named = re.search(r"GLOBAL (\S+)", str(error))
        why = _holds_code(file, named[1]) if named else f"{file} is no file that holds a state_dict; {RIGHT}"
        raise MgenbError(why) from error
    if not isinstance(content, Mapping):
        raise MgenbError(f"{file} holds {type(content).__name__}, no state_dict; {RIGHT}")
    return content, None


def _holds_code(file: Path, named: str) -> str:
    """Return why a file is not loaded, and the lines that save its weights alone."""
    holds, load = "a TorchScript program", f"torch.jit.load({str(file)!r}, map_location='cpu')"
    save = "torch.save(net.state_dict(), 'weights.pt')"
    if named:
        holds, load = f"Python objects ({named})", f"torch.load({str(file)!r}, 'cpu', weights_only=False)"
        save += '  # a dict of several things: net["model"] in place of net.state_dict()'
    lines = f"    import torch\n    net = {load}\n    {save}"
    return f"{file} holds {holds}, which could run code here; where you trust it, save its weights alone:\n{lines}"


def _sharded(index: Path) -> tuple[Mapping[str, Any], dict[str, str] | None]:
    """Return the tensors of all shards that an index names, which lie beside it."""
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if any(Path(shard).name != shard or shard.endswith(".json") for shard in shards):
        raise MgenbError(f"{index} names shards elsewhere; right are files in its own folder")
    contents = [_content(index.with_name(shard)) for shard in shards]
    return {key: tensor for content, _ in contents for key, tensor in content.items()}, contents[0][1]


def _found(file: Path, content: Mapping[str, Any], own: State) -> Place:
    """Return where most of the network's names stand in a file."""
    namings = [{_plain(name): name for name in own}]
    if any(name.startswith(NORMALISE) for name in own):  # what is read may be the architecture alone
        namings += [{_plain(name.removeprefix(NET)): name for name in own if name.startswith(NET)}]
    places = [_place(path, table, naming) for path, table in _tables(content) for naming in namings]
    if not places:
        keys = f"; it has {_some([str(key) for key in content])}" if content else ""
        raise MgenbError(f"{file} holds no tensors by name{keys}: {RIGHT}")
    return max(places, key=lambda place: (len(place.names), AVERAGE not in str(place.wrappers), len(place.tensors)))


def _tables(content: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield each dict in a checkpoint that holds tensors, with the keys that lead to it."""
    tensors = {str(key): value.detach() for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and len(path) < DEPTH:
            yield from _tables(value, (*path, str(key)))


def _plain(name: str) -> str:
    """Return a key without what DataParallel and torch.compile insert."""
    return ".".join(part for part in name.split(".") if part not in INSERTED)


def _place(path: tuple[str, ...], tensors: State, naming: Mapping[str, str]) -> Place:
    """Return the place in one dict, by the prefix under which most names stand."""
    ends = {key: dict(_ends(key)) for key in tensors}
    votes = Counter(prefix for cuts in ends.values() for prefix, end in cuts.items() if end in naming)
    prefix = max(votes, key=lambda prefix: (votes[prefix], AVERAGE not in prefix), default="")
    names: dict[str, str] = {}
    for key, cuts in ends.items():
        name = naming.get(cuts.get(prefix, ""))
        if name and name not in names.values():
            names[key] = name
    return Place(path, prefix, tensors, names)


def _ends(key: str) -> Iterator[tuple[str, str]]:
    """Yield each way to cut a key into a prefix and a name."""
    parts = key.split(".")
    for cut, part in enumerate(parts):
        if part not in INSERTED:
            yield "".join(f"{before}." for before in parts[:cut]), _plain(".".join(parts[cut:]))


def _check(file: Path, place: Place, own: State) -> None:
    """Raise MgenbError that names what does not fit."""
    taken = set(place.names.values())
    scaled = any(name.startswith(NORMALISE) for name in taken)
    lacking = [n for n in own if n not in taken and not n.endswith(COUNTER) and (scaled or not n.startswith(NORMALISE))]
    outside = [key for key in place.tensors if key not in place.names and (lacking or key.startswith(place.prefix))]
    wrong = [f"of its keys {_some(outside)} fit nothing"] if outside else []
    wrong += [f"it lacks {_some(lacking)} of the network"] if lacking else []
    if wrong:
        raise MgenbError(f"{file} does not fit the network: {' and '.join(wrong)}")
    for key, name in place.names.items():
        tensor = place.tensors[key]
        if bad := store.wrong_with(name, tensor):
            raise MgenbError(f"{key!r} of {file} {bad}; right are dense tensors of finite floats")
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}; right is {tuple(own[name].shape)}"
            raise MgenbError(f"{key!r} of {file} has shape {shapes} with these images and classes")


def _said(place: Place, own: State, fresh: bool) -> Iterator[str]:
    """Yield what a user should know about how a file was read."""
    if place.wrappers:
        yield f"taken from {'.'.join(place.wrappers)!r}"
    ends = [key.removeprefix(place.prefix) for key in place.names]
    if place.prefix:
        yield f"{place.prefix!r} was taken off its keys"
    if any(end != _plain(end) for end in ends):
        yield f"{' and '.join(INSERTED)} were taken out of its keys"
    if rest := [key for key in place.tensors if key not in place.names]:
        yield f"{_some(rest)} left out, no part of the network"
    types = {tensor.dtype for key, tensor in place.tensors.items() if tensor.is_floating_point() and key in place.names}
    computed = {tensor.dtype for tensor in own.values() if tensor.is_floating_point()}
    if types - computed:
        yield f"{_some([str(kind) for kind in types])} became {_some([str(kind) for kind in computed])} to compute with"
    if fresh:
        yield f"it has no {COUNTER}, which nothing is computed with"


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
