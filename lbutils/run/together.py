"""Several notebooks at a time: how far they are, what they take, which are done.

The figures of the full run are committed in ``data/results``: ``claims.csv`` has what was found,
``times.csv`` what it took.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from tqdm import tqdm

from lbutils._util import write_text
from lbutils.data.folder import data_dir
from lbutils.run import parameters, pools

_PAUSE = 0.5  # seconds between two looks at how far notebooks are
_LOOK = 2.0  # and at what processes hold, which takes the system longer the more they hold
_UNKNOWN = 60.0  # seconds that a notebook is expected to take if nobody has measured it
FULL = "full"  # the profile that is none, in ``times.csv``
_ROOM = 2e9  # bytes for a notebook and what runs it; `times.csv` has up to 1.6 GB for one


def full_figures() -> pd.DataFrame:
    """What the full run found: ``notebook``, ``ours``, ``low``, ``high``, ``verdict`` by claim."""
    return pd.read_csv(data_dir() / "results" / "claims.csv", index_col="id")


def full_times() -> pd.DataFrame:
    """What notebooks took, a row for each and each profile that was measured.

    Columns ``notebook``, ``profile``, ``seconds``, ``cpu`` (processor seconds), ``memory`` (MB,
    the most that its processes held, as `measured` has it), ``cores`` of the machine and ``date``.
    """
    return pd.read_csv(data_dir() / "results" / "times.csv")


def expected(profile: str | None) -> dict[str, float]:
    """Processor seconds of notebooks under a profile (None: the defaults), by their stems."""
    table = full_times()
    table = table[table["profile"] == (profile or FULL)]
    return dict(zip(table["notebook"], table["cpu"].astype(float), strict=True))


def at_a_time() -> int:
    """Notebooks that run at a time: two, where cores and free memory are enough for them."""
    room = int(psutil.virtual_memory().available / _ROOM)
    return max(1, min(2, os.cpu_count() or 1, room))


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Processor seconds (``cpu``) and the most memory (``memory``, MB) of processes started within.

    Filled in at the end. Memory is the sum over all descendants of this process that were not there
    before. On Linux a page that several processes hold, as those of torch's libraries, counts once
    for all of them, each process having its part (PSS); on other systems it counts in full for each
    (RSS).
    """
    found, ended = {"cpu": 0.0, "memory": 0.0}, threading.Event()
    others = set(psutil.Process().children(recursive=True))

    def look() -> None:
        pause = _PAUSE  # soon at first, as some end soon
        while not ended.wait(pause):
            found["memory"], pause = max(found["memory"], _held(others)), _LOOK

    before = os.times()
    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield found
    finally:
        ended.set()
        watch.join()
        after = os.times()
        own = (after.children_user, after.children_system)
        found["cpu"] = sum(own) - before.children_user - before.children_system


def _held(others: set[psutil.Process]) -> float:
    total = 0
    for process in set(psutil.Process().children(recursive=True)) - others:
        with suppress(psutil.Error):  # it has ended
            whole = process.memory_full_info() if psutil.LINUX else process.memory_info()
            total += getattr(whole, "pss", whole.rss)
    return total / 1e6


def spread(
    work: Callable[..., Any],
    jobs: Mapping[Path, tuple[Any, ...]],
    out: Path,
    *,
    workers: int,
    seconds: Mapping[str, float],
    progress: bool = True,
) -> Iterator[tuple[Path, Any]]:
    """Notebook and result of each job as it is done, the longest first.

    Parameters
    ----------
    work : callable
        As `pools.spread` takes it.
    jobs : mapping of path to tuple
        Its arguments, by notebook.
    out : path
        Executed notebooks lie in ``notebooks`` below it, where it shows how far they are.
    workers : int
        Notebooks at a time.
    seconds : mapping of str to float
        What notebooks are expected to take, by their stems. A bar counts that, and says how many
        are left.
    progress : bool
        Whether to show it.
    """
    lasts = {path: seconds.get(path.stem, _UNKNOWN) for path in jobs}
    order = sorted(jobs, key=lambda path: -lasts[path])
    waiting, ended = set(order), threading.Event()
    part = dict.fromkeys(order, 0.0)
    # Where no terminal redraws the bar, it speaks every ten seconds.
    pace = _PAUSE if sys.stderr.isatty() else 10.0
    shape = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=sum(lasts.values()), desc="notebooks", bar_format=shape, smoothing=0,
              disable=not (progress and order)) as bar:  # fmt: skip

        def look() -> None:
            while not ended.wait(pace):
                left = 0.0
                for path in sorted(waiting):
                    part[path] = _share(out / "notebooks" / path.name, part[path])
                    left += lasts[path] * (1 - part[path])
                bar.n = sum(lasts.values()) - left
                bar.refresh()

        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        try:
            for index, result in pools.spread(work, [jobs[p] for p in order], workers=workers):
                waiting.discard(order[index])
                yield order[index], result
        finally:
            ended.set()
            watch.join()


def _share(executed: Path, before: float) -> float:
    """The share of a notebook's code cells that have run, as papermill notes it in the file.

    What it was `before` where the file is not there yet, or in the middle of being written.
    """
    try:
        cells = parameters.read_notebook(executed)["cells"]
        code = [cell["metadata"]["papermill"] for cell in cells if cell["cell_type"] == "code"]
        return sum(cell["status"] == "completed" for cell in code) / len(code)
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return before


def note(out: Path, notebook: Path, key: str, told: Mapping[str, Any]) -> None:
    """Leave word that a notebook ran to its end, with the `key` of what it ran."""
    write_text(_note(out, notebook), json.dumps({"key": key, **told}, indent=1) + "\n")


def noted(out: Path, notebook: Path, key: str) -> dict[str, Any] | None:
    """What `note` was told of a notebook under this key; None if it did not run to its end."""
    try:
        told: dict[str, Any] = json.loads(_note(out, notebook).read_text(encoding="utf-8"))
        executed = out / "notebooks" / notebook.name
        return told if told.pop("key") == key and executed.is_file() else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def forget(out: Path, notebook: Path) -> None:
    """Take away what an earlier run left: it must not pass for the result of the next one."""
    for stale in (_note(out, notebook), *(out / "records").glob(f"{notebook.stem}-*.json")):
        stale.unlink(missing_ok=True)


def _note(out: Path, notebook: Path) -> Path:
    return out / "done" / f"{notebook.stem}.json"


def times_table(took: Sequence[Mapping[str, Any]], profile: str | None) -> pd.DataFrame:
    """What notebooks took here, as `full_times` has it."""
    date = pd.Timestamp.now(tz="UTC").date().isoformat()
    about = {"profile": profile or FULL, "cores": os.cpu_count(), "date": date}
    columns = ["notebook", "profile", "seconds", "cpu", "memory", "cores", "date"]
    return pd.DataFrame([{**about, **own} for own in took], columns=columns).round(0)
