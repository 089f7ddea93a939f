"""A folder beside the results in which a notebook runs; what it made leaves it whole, or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mgenb import digest
from mgenb.errors import MgenbError

MOVES = "moves.json"  # written once everything is there: from then on the move is finished, if need be by others
OWNER = "process"


@contextmanager
def held(stage: Path) -> Iterator[None]:
    """Make the folder `stage` and hold it against other processes; a move that was cut short there is finished first.

    Raises MgenbError when another process holds it, and when it cannot be made.
    """
    try:
        stage.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_of(stage), fallback_to_soft=False).acquire(timeout=0)
    except Timeout:
        raise MgenbError(f"process {_owner(stage)} is at work in {stage}: wait until it has ended") from None
    except (OSError, NotImplementedError) as error:
        raise _cannot_write(stage, error) from error
    with lock:
        finish(stage)
        try:
            stage.mkdir(exist_ok=True)
            (stage / OWNER).write_text(str(os.getpid()), encoding="utf-8")
        except OSError as error:
            raise _cannot_write(stage, error) from error
        yield


def _cannot_write(stage: Path, error: Exception) -> MgenbError:
    return MgenbError(f"cannot write in {stage.parent}: {getattr(error, 'strerror', error)}; choose another folder")


def _lock_of(stage: Path) -> Path:
    return stage.with_name(f".{stage.name}.lock")


def _owner(stage: Path) -> str:
    with suppress(OSError):  # it has just begun, or is just ending
        return (stage / OWNER).read_text(encoding="utf-8")
    return "of another run"


def move_out(stage: Path, moves: Mapping[str, Path], gone: Iterable[Path] = ()) -> None:
    """Put the files of `stage` named in `moves` at their places, in this order, delete `gone`, and the stage.

    Killed before the journal is written this has touched nothing; killed later, `finish` does what is left.
    """
    # relative, so that it holds where the whole folder was moved
    places = {name: os.path.relpath(place, stage) for name, place in moves.items()}
    obsolete = [os.path.relpath(path, stage) for path in gone]
    draft = stage / f"{MOVES}.draft"
    try:
        draft.write_text(json.dumps(digest.sealed({"moves": places, "gone": obsolete})), encoding="utf-8")
        for path in (*(stage / name for name in moves), draft):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(draft, stage / MOVES)
    except OSError as error:
        raise _cannot_write(stage, error) from error
    finish(stage)


def finish(stage: Path) -> None:
    """Do what is left of a move that was begun; nothing where none was. Raises MgenbError when it cannot."""
    if not (stage / MOVES).exists():
        return
    try:
        journal = digest.unsealed(json.loads((stage / MOVES).read_text(encoding="utf-8")), str(stage / MOVES))
        for path in journal["gone"]:
            (stage / path).unlink(missing_ok=True)
        for name, place in journal["moves"].items():
            if (stage / name).exists():  # else it was moved before
                (stage / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(stage / name, stage / place)
    except OSError as error:
        raise MgenbError(f"could not move what is in {stage}: {error}; the same command goes on with it") from error
    except (ValueError, RecursionError) as error:
        raise MgenbError(f"{stage / MOVES} is damaged: delete {stage}, and run again") from error
    shutil.rmtree(stage)


def tidy(folder: Path) -> None:
    """Finish each move that was cut short in a stage of `folder`, and delete what never came to a move.

    What another process holds is left alone.
    """
    for stage in folder.glob("[!.]*"):
        try:
            with FileLock(_lock_of(stage), timeout=0, fallback_to_soft=False):
                finish(stage)
                shutil.rmtree(stage, ignore_errors=True)
        except Timeout:
            continue
