"""One notebook executed by papermill: how that went, what it took, whether it is done."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lbutils._util import PACKAGE, write_text
from lbutils.captions.text import redacted
from lbutils.run import parameters

_SOON = 0.5  # seconds until the first look at what processes hold, as some end soon
_LOOK = 2.0  # and between others, as a look takes the system longer the more they hold


@dataclass(frozen=True)
class Outcome:
    """How one notebook went, and where that shows.

    Attributes
    ----------
    notebook, out : path
        What was run, and the folder for what that left.
    seconds, cpu, memory : float
        What it took: seconds that passed, and what `measured` has.
    error, traceback : str or None
        Why it failed: in a line, and at length.
    """

    notebook: Path
    out: Path
    seconds: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    error: str | None = None
    traceback: str | None = None

    @property
    def executed(self) -> Path:
        """The executed copy."""
        return executed_copy(self.out, self.notebook)

    @property
    def page(self) -> Path | None:
        """The executed copy as one HTML file, if there is one."""
        place = _page(self.out, self.notebook)
        return place if place.is_file() else None

    @property
    def title(self) -> str:
        """The notebook's first heading; without one, its stem."""
        for cell in parameters.read_notebook(self.notebook)["cells"]:
            for line in "".join(cell["source"]).splitlines():
                if cell["cell_type"] == "markdown" and line.startswith("# "):
                    return line[2:].strip()
        return self.notebook.stem


def executed_copy(out: Path, notebook: Path) -> Path:
    """Where the executed copy of a notebook lies, from its start on."""
    return out / "notebooks" / notebook.name


def _page(out: Path, notebook: Path) -> Path:
    return out / f"{notebook.stem}.html"


def execute(
    notebook: Path, given: Mapping[str, Any], out: Path, timeout: float | None = None
) -> Outcome:
    """How a notebook went with these parameters, in `out`.

    `timeout` (float, optional): seconds after which it has failed.

    Raises OSError and others if it cannot be started, or its copy not be written.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbconvert.filters import strip_ansi

    from lbutils.run.kernels import fork_kernels

    fork_kernels()
    executed = executed_copy(out, notebook)
    # In its own folder, or if that is part of the installed package where it can write.
    home = notebook.resolve().parent
    home = out if home.is_relative_to(PACKAGE) else home
    for folder in (executed.parent, out / "figures", out / "records"):
        folder.mkdir(parents=True, exist_ok=True)
    chosen = dict(given)
    if "out" in parameters.of_notebook(notebook):
        chosen["out"] = str(out)
    # Set aside first, so that a notebook that cannot start leaves no older copy to be read.
    executed.unlink(missing_ok=True)
    start, error, trace, limit = time.perf_counter(), None, None, timeout
    try:
        with measured() as took:
            papermill.execute_notebook(
                str(notebook),
                str(executed),
                chosen,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(home),
                # The kernel warns at every start that its loopback port is not encrypted, and
                # calls its own end an error.
                extra_arguments=["--IPKernelApp.log_level=50"],
                # Of what is left for the whole notebook; nbclient takes 0 for no limit.
                timeout_func=lambda _: limit and max(1, round(start + limit - time.perf_counter())),
            )
    except papermill.exceptions.PapermillExecutionError as failure:
        error = f"{failure.ename}: {_first_line(failure.evalue)}"
        trace = strip_ansi("\n".join(failure.traceback))
    except CellTimeoutError as failure:
        error, trace = f"TimeoutError: not done after {timeout:g} s", str(failure)
    except DeadKernelError as failure:
        error = _first_line(str(failure)) or type(failure).__name__
        trace = str(failure)
    finally:
        # Also of one that could not be started: papermill notes parameters before.
        _forget(executed, given)
    seconds = time.perf_counter() - start
    error, trace = (redacted(told) if told else told for told in (error, trace))
    return Outcome(notebook, out, seconds, **took, error=error, traceback=trace)


def _forget(executed: Path, given: Mapping[str, Any]) -> None:
    """Take passwords and signatures, which papermill notes, out of an executed notebook."""
    if not executed.exists() or parameters.discreet(given) == {**given}:
        return
    text = executed.read_text(encoding="utf-8")
    for secret in _texts(list(given.values())):
        text = text.replace(json.dumps(secret)[1:-1], json.dumps(redacted(secret))[1:-1])
    write_text(executed, text)


def _texts(value: Any) -> Iterator[str]:
    """Texts in lists, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def write_page(outcome: Outcome) -> None:
    """Write the executed notebook as one HTML file that stands alone."""
    from nbconvert import HTMLExporter

    if outcome.executed.exists():
        body, _ = HTMLExporter(embed_images=True).from_filename(str(outcome.executed))
        write_text(_page(outcome.out, outcome.notebook), body)


def reason(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {_first_line(str(error))}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Processor seconds (``cpu``) and the most memory (``memory``, MB) of processes started within.

    Filled in at the end. Memory is the sum over all descendants of this process that were not there
    before, and over those that started them. On Linux a page that several processes hold, as those
    of torch's libraries, counts once for all of them, each process having its part (PSS); on other
    systems it counts in full for each (RSS).
    """
    found, ended = {"cpu": 0.0, "memory": 0.0}, threading.Event()
    others = set(psutil.Process().children(recursive=True))

    def look() -> None:
        pause = _SOON
        while not ended.wait(pause):
            found["memory"], pause = max(found["memory"], _held(others)), _LOOK

    before = _spent(others)
    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield found
    finally:
        ended.set()
        watch.join()
        found["cpu"] = _spent(others) - before


def _spent(others: set[psutil.Process]) -> float:
    """Processor seconds of descendants, without those that `others` use themselves."""
    times = os.times()
    total = times.children_user + times.children_system
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            # user, system, and the same of its children that have ended
            total += sum(process.cpu_times()[2 if process in others else 0 : 4])
    return total


def _held(others: set[psutil.Process]) -> float:
    """Megabytes of descendants, of `others` those alone that have new children.

    A fork has most of its memory from, and in common with, the process that it came from.
    """
    total, found = 0, psutil.Process().children(recursive=True)
    sources = {process.ppid() for process in set(found) - others}
    for process in found:
        if process in others and process.pid not in sources:
            continue
        with suppress(psutil.Error):  # it has ended
            whole = process.memory_full_info() if psutil.LINUX else process.memory_info()
            total += getattr(whole, "pss", whole.rss)
    return total / 1e6


def statuses(executed: Path) -> list[str | None]:
    """How each code cell stands, as papermill notes it in the file: "completed", "pending", ...

    Raises OSError if the file is not there yet, ValueError if it is in the middle of being written.
    """
    cells = parameters.read_notebook(executed)["cells"]
    code = [cell["metadata"] for cell in cells if cell["cell_type"] == "code"]
    return [metadata.get("papermill", {}).get("status") for metadata in code]


def note(out: Path, notebook: Path, key: str, told: Mapping[str, Any]) -> None:
    """Leave word that a notebook ran to its end, with the `key` of what it ran."""
    write_text(_note(out, notebook), json.dumps({"key": key, **told}, indent=1) + "\n")


def noted(out: Path, notebook: Path, key: str) -> dict[str, Any] | None:
    """What `note` was told of a notebook under this key; None if it did not run to its end."""
    try:
        told: dict[str, Any] = json.loads(_note(out, notebook).read_text(encoding="utf-8"))
        there = executed_copy(out, notebook).is_file()
        return told if told.pop("key") == key and there else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def forget(out: Path, notebook: Path) -> None:
    """Take away what an earlier run left: it must not pass for the result of the next one."""
    left = [_note(out, notebook), _page(out, notebook)]
    for stale in (*left, *(out / "records").glob(f"{notebook.stem}-*.json")):
        stale.unlink(missing_ok=True)


def _note(out: Path, notebook: Path) -> Path:
    return out / "done" / f"{notebook.stem}.json"
