"""Trials in children of one warmed-up process: killed at a write, a byte or a moment; with limits; without rights.

A child is forked from the process that runs the tests, which has imported all that is slow to load, and begins with
an environment, a cache and a working directory of its own. It is a real process, and what kills it is real.
"""

import contextlib
import ctypes
import io
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

WHOLE = os.environ.get("MGENB_FAULTS") == "whole"  # `make faults`; else the fixed part that `make test` runs
REMEDIES = (
    r"delete|again|anew|replace|restore|another|choose|correct it|give|right (is|are)|expected|goes on|wait|update"
)
SENTENCE = re.compile(REMEDIES)
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "socket.connect")
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


@dataclass(frozen=True)
class How:
    """What happens to a child, all of it optional.

    event: it is killed just before its so many-th write; byte: in the midst of the first write beyond so many bytes of
    a file; moment: so many seconds after it has begun. late: seconds after which it hangs. cpu: CPU seconds that it may
    take. room: GiB of address space on top of what it has. full: it cannot write files of more bytes. powerless: the
    modes of files hold for it, even if it is root's. environment: on top of the usual one; None takes a name away.
    """

    event: int = 0
    byte: int = 0
    moment: float = 0.0
    late: float = 600.0
    cpu: int = 0
    room: float = 0.0
    full: int = -1
    powerless: bool = False
    environment: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a child ended: 'done', 'refused' (by an MgenbError), 'broken' (by another one), 'killed' or 'late'.

    value: what it returned or said. events: how many writes it made. grown: GiB of memory on top of what it began
    with. started: what it executed. seconds: on the clock; cpu: of a processor.
    """

    how: str
    value: Any = None
    events: int = 0
    grown: float = 0.0
    started: tuple[str, ...] = ()
    cpu: float = 0.0
    seconds: float = 0.0

    @property
    def unclear(self) -> str:
        """What is wrong with how it was refused, or broke; "" for one clear sentence, or where it is done."""
        if self.how == "done":
            return ""
        if self.how != "refused":
            return f"{self.how}: {str(self.value)[-600:]}"
        one = "\n" not in self.value and len(self.value) < 600 and SENTENCE.search(self.value)
        return "" if one else f"no sentence that says what to do: {self.value}"


def begin(function: Callable[..., Any], *given: Any, folder: Path, how: How = How()) -> Outcome:
    """Call `function(*given)` in a child whose cache is `folder/cache`; return how it ended."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, function, given, str(folder), how))
    began = time.monotonic()
    child.start()
    theirs.close()
    try:
        return _ended(child, ours, how, began)
    finally:
        child.kill()
        child.join()
        ours.close()


def _ended(child: Any, pipe: Any, how: How, began: float) -> Outcome:
    said = None
    with contextlib.suppress(EOFError):
        if pipe.poll(how.late) and pipe.recv() == "ready":  # moments count from here
            began = time.monotonic()
            if pipe.poll(how.moment or how.late):
                said = pipe.recv()
            else:
                return Outcome("killed" if how.moment else "late", seconds=time.monotonic() - began)
    seconds = time.monotonic() - began
    if said is None:
        child.join(5)
        ended = {-signal.SIGKILL: "killed", -signal.SIGXFSZ: "killed", -signal.SIGXCPU: "late"}
        return Outcome(ended.get(child.exitcode, "broken"), f"exit code {child.exitcode}", seconds=seconds)
    return replace(Outcome(*said), seconds=seconds)


def _child(pipe: Any, function: Callable[..., Any], given: tuple[Any, ...], folder: str, how: How) -> None:
    from mgenb.errors import MgenbError

    _settle(folder, how)
    seen, started, held = [0], list[str](), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send("ready")
    _watch(how, seen, started)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            said: tuple[str, Any] = "done", function(*given)
    except MgenbError as error:
        said = "refused", str(error)
    except BaseException:  # also SystemExit, and what a limit raises
        said = "broken", traceback.format_exc()
    used = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((*said, seen[0], (used.ru_maxrss - held) / 2**20, tuple(started), used.ru_utime + used.ru_stime))
    os._exit(0)


def _settle(folder: str, how: How) -> None:
    """Give the child its environment, folder, limits and rights."""
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True  # its first writes would be counted, and later children have none of them
    os.umask(0o022)
    usual = {"MGENB_CACHE": f"{folder}/cache", "MGENB_DATA": None, "MGENB_OUT": None, "MGENB_JOBS": None}
    for name, value in {**usual, "MGENB_ANALYSE": None, "TQDM_DISABLE": "1", **how.environment}.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.chdir(folder)
    if how.room:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + int(how.room * 2**30),) * 2)
    if how.byte:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (how.byte, how.byte))
    if how.cpu:
        resource.setrlimit(resource.RLIMIT_CPU, (how.cpu, how.cpu))
    if how.full >= 0:  # Python ignores the signal: the write fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (how.full, how.full))
    if how.powerless:  # root without its capabilities minds the modes of files, as others do
        version, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(version, none)


def _watch(how: How, seen: list[int], started: list[str]) -> None:
    """Count what the child writes, kill it where it is to be, and note which programs it starts."""

    def write() -> None:
        seen[0] += 1
        if seen[0] == how.event:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in WRITES or (event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)):
            write()
        elif event.startswith(STARTS):
            started.append(f"{event} {given}"[:200])

    fsync = os.fsync

    def synced(descriptor: int) -> None:
        write()
        fsync(descriptor)

    pytest.MonkeyPatch().setattr(os, "fsync", synced)
    sys.addaudithook(hook)
