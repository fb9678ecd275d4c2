"""Jobs over processes of this machine, a GPU each, or over the workers of a Dask cluster."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

BUSY = "busy"  # what a job returns if another process is at it
_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU, on Linux
_PAUSE = 0.5  # seconds until a job that was busy is tried again


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process, and no other on any machine that sees `folder`, may work in it.

    The lock is the operating system's, so that it ends with the process however that ends.
    Raises ValueError if the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        raise ValueError(
            f"{folder} cannot be locked ({error}), so that two workers could take the same run: "
            "choose a folder on another disk (Lustre: mounted with -o flock)"
        ) from error
    try:
        yield True
    finally:
        lock.release()


def gpus() -> list[str]:
    """GPUs that workers may be given: those of CUDA_VISIBLE_DEVICES if set, else all.

    Asked of nvidia-smi, or of the driver where a slim container has none, so that no worker's
    parent has to hold a GPU; empty where there is none.
    """
    preset = os.environ.get("CUDA_VISIBLE_DEVICES")
    if preset is not None:
        named = [name.strip() for name in preset.split(",")]
        # CUDA itself stops at the first name that is no device.
        return named[: next((i for i, name in enumerate(named) if name in ("", "-1")), len(named))]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [str(i) for i, _ in enumerate(_DRIVER.glob("*"))]
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()


def environments(workers: int) -> list[dict[str, str]]:
    """Variables of each worker: its share of the cores, and one GPU if there are any.

    With more workers than GPUs, several share one.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    shares = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")
    common = {name: os.environ.get(name, threads) for name in shares}
    found = gpus()
    cards = [
        {"CUDA_VISIBLE_DEVICES": found[i % len(found)]} if found else {} for i in range(workers)
    ]
    return [common | card for card in cards]


def spread(
    work: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int = 1,
    dask: str | None = None,
) -> Iterator[tuple[int, Any]]:
    """Index and result of each job as it is done; an exception stands as its result.

    `work` (callable): called with a job's arguments; if it returns `BUSY` it is tried again later.
    `workers` (int): processes on this machine; with one, jobs run in this process. `dask` (str,
    optional): address of a Dask scheduler, whose workers are used instead.

    Raises ValueError if `workers` is not positive, or no scheduler answers at the address. Raises
    ModuleNotFoundError if Dask is not installed.
    """
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")
    if dask is not None:
        yield from _on_dask(work, jobs, dask)
    elif workers == 1 or len(jobs) < 2:
        yield from _dispatch(work, jobs, [_Here])
    else:
        slots = [_starter(variables) for variables in environments(min(workers, len(jobs)))]
        yield from _dispatch(work, jobs, slots)


class _Here(Executor):
    """Runs a job in this process, at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Worker(ProcessPoolExecutor):
    """One process, which ends with the one that started it, or when that gives up."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        # Spawned, because a fork of a process that has run torch may hang.
        context = multiprocessing.get_context("spawn")
        reader, self._writer = context.Pipe(duplex=False)
        super().__init__(1, context, _begin, (dict(variables), reader))

    def give_up(self) -> None:
        """End the process, in the middle of its job."""
        self._writer.close()


def _starter(variables: Mapping[str, str]) -> Callable[[], Executor]:
    return lambda: _Worker(variables)


def _begin(variables: Mapping[str, str], reader: Any) -> None:
    os.environ.update(variables)
    # Ctrl-C reaches every process of a terminal; the parent answers it for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(reader,), daemon=True).start()


def _leave_with_parent(reader: Any) -> None:
    """End this worker when its parent is gone, killed without a word, or gave up."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel, reader])
        os._exit(1)


def _dispatch(
    work: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    slots: Sequence[Callable[[], Executor]],
) -> Iterator[tuple[int, Any]]:
    """One job at a time to each slot. A slot whose process dies costs its job and is renewed."""
    queue, busy, free = deque(range(len(jobs))), list[int](), deque(range(len(slots)))
    executors: dict[int, Executor] = {}
    running: dict[Future[Any], tuple[int, int]] = {}
    try:
        while queue or busy or running:
            if busy and not queue:
                time.sleep(_PAUSE)
                queue.extend(busy)
                busy.clear()
            while queue and free:
                index, slot = queue.popleft(), free.popleft()
                if slot not in executors:
                    executors[slot] = slots[slot]()
                try:
                    future = executors[slot].submit(work, *jobs[index])
                except BrokenExecutor:  # its process died between two jobs
                    executors.pop(slot).shutdown(wait=False)
                    queue.appendleft(index)
                    free.appendleft(slot)
                    continue
                running[future] = index, slot
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, slot = running.pop(future)
                result = future.exception() or future.result()
                if isinstance(result, BrokenExecutor):
                    executors.pop(slot).shutdown(wait=False)
                free.append(slot)
                if isinstance(result, str) and result == BUSY:
                    busy.append(index)
                else:
                    yield index, result
    finally:
        # Some are left only if the caller gave up, as at Ctrl-C.
        for future in running:
            future.cancel()
        for executor in set(executors.values()) if running else ():
            if isinstance(executor, _Worker):
                executor.give_up()
        for executor in set(executors.values()):
            executor.shutdown(wait=not running)


def _on_dask(
    work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], address: str
) -> Iterator[tuple[int, Any]]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a Dask cluster needs dask and distributed: pip install 'lbutils[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        # All at once, so that a cluster that grows with its work sees how much there is.
        executor = client.get_executor(pure=False)
        yield from _dispatch(work, jobs, [lambda: executor] * max(1, len(jobs)))
