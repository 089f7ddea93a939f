"""Content-addressed files in the cache: written to a temporary file, flushed, renamed; hashes checked on reading."""

import errno
import hashlib
import io
import json
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mgenb.digest import CHECKSUM, file_hash, key_of
from mgenb.errors import MgenbError, at_home

State = Mapping[str, torch.Tensor]  # a state_dict


HALF = torch.float16, torch.bfloat16
FORGOTTEN = 24 * 3600  # seconds after which a temporary file is what a killed process left
SOON = 1.0  # seconds of waiting for a lock of which nothing is said
CLOSED = errno.EROFS, errno.EACCES, errno.EPERM  # nobody writes there


def usable(state: State, what: str = "the state_dict") -> dict[str, torch.Tensor]:
    """Return a state_dict as it can be computed with: half precision becomes float32, which is warned of.

    Raises MgenbError, naming the tensor, for what is no dense tensor of finite floats, all of one precision; whole
    numbers pass as counters and places, but not as weights and biases.
    """
    if not isinstance(state, Mapping) or not state:
        raise MgenbError(f"{what} is {type(state).__name__} without tensors; right is a dict of tensors by name")
    for name, tensor in state.items():
        if wrong := _wrong_with(name, tensor):
            raise MgenbError(f"{name!r} of {what} {wrong}; right are dense tensors of finite floats")
    if any(tensor.dtype in HALF for tensor in state.values()):
        warnings.warn(f"{what} has half precision: float32 is computed with", stacklevel=3)
    ready = {name: tensor.float() if tensor.dtype in HALF else tensor for name, tensor in state.items()}
    if len(kinds := {str(tensor.dtype) for tensor in ready.values() if tensor.is_floating_point()}) > 1:
        raise MgenbError(f"{what} mixes {' and '.join(sorted(kinds))}; right is one of them")
    return ready


def _wrong_with(name: str, tensor: object) -> str:
    """Return what is wrong with a tensor of a state_dict, "" for nothing."""
    if not isinstance(tensor, torch.Tensor):
        return f"is {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or not tensor.numel():
        return "is sparse, quantized, empty or without data"
    if tensor.is_floating_point():
        return "" if tensor.isfinite().all() else "holds NaN or infinite numbers"
    return f"has {tensor.dtype}" if tensor.is_complex() or name.endswith(("weight", "bias")) else ""


def cache_dir() -> Path:
    """Return the cache folder: `MGENB_CACHE`, else `$XDG_CACHE_HOME/mgenb`, else `~/.cache/mgenb`."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mgenb")
    return at_home(os.environ.get("MGENB_CACHE") or usual, " in MGENB_CACHE")


def tensor_hash(state: State, names: Iterable[str]) -> str:
    """Return the sha256 (hex) of the bytes of these tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` beside `path`, flush it to disk and rename it: readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _forget(path)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two: a full disk under torch, safetensors
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _forget(path: Path) -> None:
    """Delete what killed processes left when they wrote `path`, once it is old."""
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        with suppress(OSError):  # another process was first
            if time.time() - left.stat().st_mtime > FORGOTTEN:
                left.unlink()


def _cannot_write(path: Path, error: Exception) -> MgenbError:
    reason = getattr(error, "strerror", None) or error
    inside = path.is_relative_to(cache_dir())
    elsewhere = "set MGENB_CACHE to another folder" if inside else "choose another place"
    return MgenbError(f"could not write {path}: {reason}; make room there, or {elsewhere}")


def write_text(path: Path, text: str) -> None:
    """Write `text`, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n")


def unfinished(name: str, settings: Mapping[str, Any]) -> Path:
    """Return the file from which the computation `name` goes on; another one for other `settings`."""
    return cache_dir() / "unfinished" / f"{name}-{key_of(settings)}"


def save_progress(path: Path | None, key: str, fields: Mapping[str, Any]) -> None:
    """Write how far a computation has come (tensors and plain values) for `load_progress`; `key` says which it is.

    Without a path nothing is written. The file begins with a sha256 of the rest.
    """
    if path is not None:
        torch.save({"key": key, "fields": dict(fields)}, buffer := io.BytesIO())
        blob = buffer.getvalue()
        write_atomic(path, lambda temporary: temporary.write_bytes(hashlib.sha256(blob).digest() + blob))


def load_progress(path: Path | None, key: str, device: torch.device) -> dict[str, Any] | None:
    """Return the fields that `save_progress` wrote, tensors on `device`; None without a file.

    Raises MgenbError for a damaged file, and for one that was written under another key.
    """
    if path is None or not os.path.exists(path):  # False for a name that is too long, where Path's own fails
        return None
    try:
        content = path.read_bytes()
        digest, blob = content[:32], content[32:]
        if hashlib.sha256(blob).digest() != digest:
            raise ValueError("its checksum is another one")
        saved = torch.load(io.BytesIO(blob), map_location=device, weights_only=True)
        key_there, fields = saved["key"], dict(saved["fields"])
    except Exception as error:  # whatever a damaged zip or pickle raises
        raise MgenbError(f"{path} is damaged: delete it, and the computation begins anew") from error
    if key_there != key:
        why = "weights, settings, seed or version differ"
        raise MgenbError(f"{path} belongs to another computation ({why}): delete it, or take another file")
    return fields


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` against other processes while one of them makes the file; that it waits is said on stderr.

    Where nothing can be written nothing is locked either: what is there can be read. Raises MgenbError for a lock that
    cannot be had for another reason.
    """
    held = FileLock(path.with_name(path.name + ".lock"), fallback_to_soft=False)  # a soft one may be held for ever
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=SOON)
        except Timeout:
            print(f"waiting for another process that makes {path}", file=sys.stderr)
            held.acquire()
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) not in CLOSED or not path.exists():
            raise _cannot_write(path, error) from error
    try:
        yield
    finally:
        held.release()


def save_weights(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Save a state_dict as safetensors at `path`, and `settings` with its sha256 as JSON beside it.

    The weights come last: with them both are there.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary)
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner alone
        path.unlink(missing_ok=True)
        write_json(path.with_suffix(".json"), {**settings, CHECKSUM: file_hash(temporary)})

    write_atomic(path, write)


def save_new(path: Path, state: State, settings: Mapping[str, Any]) -> None:
    """Save as `save_weights` does; MgenbError where another process has taken the name meanwhile."""
    with lock(path):
        refuse_taken(path)
        save_weights(path, state, settings)


def refuse_taken(path: Path) -> None:
    """Raise MgenbError unless `path` is a new name for what `save_weights` writes, or was left by a killed one."""
    try:
        taken = path.exists() or (path.with_suffix(".json").exists() and not _left(path))
    except OSError as error:  # a name that is too long
        raise _cannot_write(path, error) from error
    if path.suffix != ".safetensors" or taken:
        raise MgenbError(f"{path} exists or does not end in .safetensors; right is a new name like model.safetensors")


def _left(path: Path) -> bool:
    """Return whether the JSON beside `path` is one of `save_weights`, which was killed before the weights came."""
    with suppress(OSError, ValueError):
        return CHECKSUM in json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return False


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load what `save_weights` wrote: the state_dict (on the CPU) and the settings.

    Raises MgenbError when the file's hash is not the one in the JSON beside it.
    """
    beside = path.with_suffix(".json")
    if odd := next((file for file in (path, beside) if not file.is_file()), None):  # pipes and devices never end
        raise MgenbError(f"{odd} is not there, or no file: delete it and run again")
    try:
        settings = json.loads(beside.read_text(encoding="utf-8"))
        recorded = settings[CHECKSUM]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MgenbError(f"{beside} is damaged; delete it and run again") from error
    if file_hash(path) != recorded:
        raise MgenbError(f"{path} does not match its recorded hash: it is damaged; delete it and run again")
    return load_file(path), settings
