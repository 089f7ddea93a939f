"""Where independent work is computed: in this process, in processes of this machine, or on a cluster.

`workers` says which: nothing asked for is this process; a number of jobs is as many processes with one thread each
(loky); the address of a scheduler is a Dask cluster. `each` computes by whatever it gives. With jobs and scheduler
nothing changes but the time: what is computed must fix its own seed and threads, and returns instead of writing.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any

from loky import get_reusable_executor
from loky.process_executor import TerminatedWorkerError

from mgenb.errors import MgenbError

JOBS, SCHEDULER = "MGENB_JOBS", "MGENB_SCHEDULER"  # what to use where nothing is given, as in JupyterLab
# glibc gives freed memory back at once and takes it anew: a sixth of what training small networks cost
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
WORKER = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
WORKER |= MEMORY | {"LOKY_MAX_MEMORY_LEAK_SIZE": str(2**32)}  # what is kept looks like a leak to loky
WORKER |= {"OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}  # bars of several would overwrite each other
SECONDS_TO_CONNECT = 5


def asked(jobs: str | None = None, scheduler: str | None = None) -> tuple[int, str]:
    """Return the number of processes (0: none) and the scheduler's address ("": none), as given, else as `JOBS` and
    `SCHEDULER` say. MgenbError for what cannot be, and for both."""
    if jobs is None and scheduler is None:
        jobs, scheduler = os.environ.get(JOBS), os.environ.get(SCHEDULER)
    if jobs and scheduler:
        raise MgenbError(f"jobs is {jobs} and the scheduler is {scheduler}; right is one of the two")
    if jobs and not (jobs.isdecimal() and int(jobs) >= 1):
        raise MgenbError(f"jobs is {jobs!r}; right is a whole number of at least 1")
    if scheduler and "://" not in scheduler:
        raise MgenbError(f"the scheduler is {scheduler!r}; right is an address like tcp://host:8786")
    return int(jobs or 0), scheduler or ""


@contextmanager
def workers(jobs: str | None = None, scheduler: str | None = None) -> Iterator[Executor | None]:
    """Yield what computes tasks side by side, None where nothing is asked for (see `asked`); it ends with the block.

    What is still computed then is given up. Raises MgenbError for a scheduler that cannot be reached, or is lost.
    """
    count, address = asked(jobs, scheduler)
    if address:
        with _cluster(address) as executor:
            yield executor
    elif count:
        with Processes(count) as processes:
            yield processes
    else:
        yield None


class Processes(Executor):
    """`jobs` processes of this machine, by loky; after one of them was killed, what comes next gets new ones."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._latest: Any = None

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # Ctrl-C goes to all processes of a terminal, and is left to the one that started them
        alone = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
        self._latest = get_reusable_executor(self.jobs, env=WORKER, **alone)
        return self._latest.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Kill the processes, and those that they have started."""
        if self._latest:
            self._latest.shutdown(kill_workers=True)


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise MgenbError("a scheduler needs Dask distributed: pip install 'mgenb[cluster]'") from error
    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise MgenbError(f"no Dask scheduler answers at {address} ({error})") from error
    with client:
        if any(threads > 1 for threads in client.nthreads().values()):
            raise MgenbError(f"workers of {address} have several threads; right is one: dask worker --nthreads 1")
        try:
            yield client.get_executor(pure=False)
        except CancelledError as error:
            kept = "what is finished is kept, and the same command goes on from it"
            raise MgenbError(f"the scheduler {address} was lost; {kept}") from error


def each(
    function: Callable[[Any], Any], tasks: Iterable[Any], executor: Executor | None, what: str = "part"
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the task, `function(task)`) as they are done; without an executor one by one, here.

    Where a process was killed, the tasks that were at work are computed once more, each alone, which tells whose it
    was: MgenbError names the task (`what` it is) that kills again.
    """
    if executor is None:
        yield from ((number, function(task)) for number, task in enumerate(tasks))
        return
    waiting, most = enumerate(tasks), executor.jobs if isinstance(executor, Processes) else sys.maxsize
    running: dict[Future[Any], tuple[int, Any]] = {}
    killed: list[tuple[int, Any]] = []
    while True:
        for number, task in islice(waiting, most - len(running)):
            running[executor.submit(function, task)] = number, task
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            number, task = running.pop(future)
            if _killed(future.exception()):
                killed.append((number, task))
            else:
                yield number, _result(future, what, task)
    for number, task in killed:
        yield number, _result(executor.submit(function, task), what, task)


def _killed(error: BaseException | None) -> bool:
    # Dask's KilledWorker is given to every task of the worker that died, whosever fault it was, as loky's is
    return isinstance(error, TerminatedWorkerError) or type(error).__name__ == "KilledWorker"


def _result(future: Future[Any], what: str, task: Any) -> Any:
    try:
        return future.result()
    except Exception as error:
        if not _killed(error):
            raise
        why = "most often for want of memory; what is finished is kept"
        raise MgenbError(
            f"the process that computed {what} {task} was killed, and again when it was alone, {why}"
        ) from error
