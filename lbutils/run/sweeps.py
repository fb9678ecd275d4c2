"""A notebook over a grid of parameters: a run each, made once, in a folder of its own."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lbutils._util import file_name, results_dir, suggest, write_text
from lbutils.measure import records
from lbutils.run import execution, parameters, pools
from lbutils.run import grid as grids
from lbutils.run.keys import code_of, run_names
from lbutils.run.notebooks import check_parameters, find_notebooks
from lbutils.run.page import grid_page

# Papermill changes the working folder of the process, so threads of a Dask worker take turns.
_TURN = threading.Lock()
STATES = ("finished", "skipped", "failed")  # how a sweep says that a run ended


def grid_file(
    path: str | os.PathLike[str],
    given: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run the grid that a YAML file describes (`lbutils.run.grid`); one row per run comes back.

    `given` (mapping, optional): parameters that go before those that the file has in ``set``. `out`
    (path, optional): default: `sweep_dir`. ``**options``: as `grid` takes them.

    Raises ValueError, FileNotFoundError as `lbutils.run.grid.read_grid` and `grid`, before anything
    runs.
    """
    found = grids.read_grid(path)
    place = sweep_dir(path) if out is None else Path(out)
    fixed = {**found.fixed, **(given or {})}
    options = {"figure": found.figure, **options}
    return grid(found.notebook, found.axes, place, fixed=fixed, **options)


def sweep_dir(path: str | os.PathLike[str]) -> Path:
    """``runs/sweeps`` and the name of a grid's file: never the folder of a run of notebooks."""
    return results_dir() / "sweeps" / Path(path).stem


def grid(
    notebook: str | os.PathLike[str],
    axes: Mapping[str, Sequence[Any]],
    out: str | os.PathLike[str],
    *,
    fixed: Mapping[str, Any] | None = None,
    workers: int = 1,
    dask: str | None = None,
    retry: bool = False,
    timeout: float | None = None,
    dry_run: bool = False,
    limit: int = grids.LIMIT,
    figure: Mapping[str, str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run one notebook over the product of parameter values; one row per run comes back.

    Every run is a process of its own, with a folder of its own under `out`, named by the
    notebook and a hash of its code, its parameters and this package's code. A run that has
    finished is not made again, so a sweep that was interrupted goes on where it stopped. One
    that failed keeps its traceback (``traceback.txt``) and the notebook as far as it came, and
    is made again with `retry` only. Several sweeps may work in one folder: each run is made by
    one of them.

    Under `out` lie afterwards ``runs.csv`` (as returned), ``results.csv`` and ``.parquet``
    (`results`), ``summary.csv`` (`summary`), ``summary.png`` and
    ``index.html``.

    Returns a DataFrame: one column per parameter, then ``status`` ("finished", "skipped" or
    "failed"), ``seconds``, ``error`` and ``folder``. Raises ValueError if a parameter is unknown,
    of the wrong kind, or has no values, or two runs are the same; before anything runs.

    Parameters
    ----------
    notebook : str or path
        As `find_notebooks` takes it. It must have a parameter ``out``.
    axes : mapping of str to sequence
        Values per parameter; a key ``"a, b"`` moves two together. What is not named keeps the
        notebook's default.
    fixed : mapping, optional
        Parameters that are the same in every run.
    workers : int
        Processes at a time. With more than one, each gets its share of the cores, and one GPU
        of those that there are or that CUDA_VISIBLE_DEVICES names.
    dask : str, optional
        Address of a Dask scheduler, whose workers are used instead; they must see `out`.
    timeout : float, optional
        Seconds that a run may take; one that takes longer has failed.
    dry_run : bool
        Run and write nothing; those that would run have the status "to run".
    figure : mapping, optional
        ``metric``, ``x`` and ``by``, as `summary` takes them.
    """
    (path,) = find_notebooks([os.fspath(notebook)])
    place, fixed, moved = Path(out).resolve(), dict(fixed or {}), grids.swept(axes)
    points = _checked_points(path, axes, fixed, limit)
    code = code_of(path)
    folders = [place / name for name in run_names(path, points, code)]
    columns = [*fixed, *moved, *grids.TOLD]
    told = [parameters.discreet(point) for point in points]
    if (place / "claims.csv").exists():
        raise ValueError(f"{place} is the folder of a run of notebooks: give --out another")
    if dry_run:
        new = {"status": "to run", "seconds": None, "error": None}
        found = [_kept(folder, retry) or {**new, "folder": str(folder)} for folder in folders]
        return _table(told, dict(enumerate(found)), columns)
    _check_writable(place)
    jobs = [(path, point, folder, retry, code, timeout)
            for point, folder in zip(points, folders, strict=True)]  # fmt: skip
    rows: dict[int, dict[str, Any]] = {}
    failed = 0
    with tqdm(total=len(jobs), unit="run", desc=path.stem, disable=not progress) as bar:
        for index, result in pools.spread(_grid_run, jobs, workers=workers, dask=dask):
            row = _lost(jobs[index], result) if isinstance(result, Exception) else result
            rows[index] = _seen(row)
            failed += rows[index]["status"] == "failed"
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update()
            # What is there counts if the sweep is stopped; at the end it is written below.
            if rows[index]["status"] == "finished" and len(rows) < len(jobs):
                _write_results(_table(told, rows, columns), moved, place)
    table = _table(told, rows, columns)
    _write(table, moved, place, dict(figure or {}))
    return table


def _table(
    points: Sequence[Mapping[str, Any]], rows: Mapping[int, Mapping[str, Any]], columns: list[str]
) -> pd.DataFrame:
    """The runs that are done, in the order of the grid."""
    return pd.DataFrame([{**points[i], **rows[i]} for i in sorted(rows)], columns=columns)


def _check_writable(place: Path) -> None:
    """Raise OSError now rather than after the first run, on a disk that is full or read-only."""
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
        file.write(bytes(4096))


def _checked_points(
    notebook: Path, axes: Mapping[str, Sequence[Any]], fixed: dict[str, Any], limit: int
) -> list[dict[str, Any]]:
    """The runs' parameters, each of the type that the notebook's default has."""
    defaults = parameters.of_notebook(notebook)
    if "out" not in defaults:
        raise ValueError(f"{notebook.name} has no parameter out, so its runs would share a folder")
    if "out" in {*fixed, *grids.swept(axes)}:
        raise ValueError("each run has a folder of its own: the sweep's is set by --out")
    for axis, values in axes.items():
        listed = isinstance(defaults.get(axis), list) and isinstance(values, (list, tuple))
        # Said here, as "takes list" alone does not tell what to write instead.
        if listed and any(not isinstance(value, (list, tuple)) for value in values):
            raise ValueError(f"{axis} is itself a list: write lists in a list, [{[*values]!r:.80}]")
    points = [parameters.absolute(point) for point in grids.points(axes, fixed, limit)]
    check_parameters([notebook], *points)
    points = [{n: parameters.typed(v, defaults[n]) for n, v in point.items()} for point in points]
    keys = [json.dumps({**defaults, **point}, sort_keys=True) for point in points]
    if len(set(keys)) < len(keys):
        twice = next(point for point, key in zip(points, keys, strict=True) if keys.count(key) > 1)
        raise ValueError(f"two runs of the grid are the same: {twice!r:.200}")
    return points


def _grid_run(
    notebook: Path,
    point: Mapping[str, Any],
    folder: Path,
    retry: bool,
    code: str,
    timeout: float | None,
) -> dict[str, Any] | str:
    """One run of a grid, or `pools.BUSY` if another process is making it."""
    if (own := code_of(notebook)) != code:
        raise RuntimeError(f"this worker has lbutils {own}, the sweep {code}: install the same")
    with _TURN, pools.locked(folder) as free:
        if not free:
            return pools.BUSY
        if (row := _kept(folder, retry)) is not None:
            return row
        # A run that is cut short from here on has no state, and is made again.
        for stale in (folder / "run.json", *(folder / "records").glob("*.json")):
            stale.unlink(missing_ok=True)
        start, trace = time.perf_counter(), None
        try:
            outcome = execution.execute(notebook, point, folder, timeout)
            error, trace = outcome.error, outcome.traceback
        # Whatever it is that fails, a full disk or a missing kernel, the other runs go on.
        except Exception as failure:
            error, trace = execution.reason(failure), traceback.format_exc()
        return _leave_state(folder, notebook, point, error, trace, time.perf_counter() - start)


def _leave_state(
    folder: Path,
    notebook: Path,
    point: Mapping[str, Any],
    error: str | None,
    trace: str | None,
    seconds: float,
) -> dict[str, Any]:
    status = "failed" if error else "finished"
    state = {"status": status, "seconds": round(seconds, 3), "error": error}
    kept = sorted(path.name for path in (folder / "records").glob("*.json"))
    told = parameters.discreet(point)
    described = {"notebook": notebook.name, "parameters": told, **state, "records": kept}
    try:
        if trace:
            write_text(folder / "traceback.txt", trace.rstrip() + "\n")
        else:
            (folder / "traceback.txt").unlink(missing_ok=True)
        write_text(folder / "run.json", json.dumps(described, indent=1) + "\n")
    except OSError as failure:  # a full disk; without a state the run is made again
        state |= {"status": "failed", "error": error or execution.reason(failure)}
    return {**state, "folder": str(folder)}


def _state(folder: Path) -> dict[str, Any] | None:
    """How a run ended; None if it has not, or its records cannot be read any more."""
    try:
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        state = {name: told[name] for name in ("status", "seconds", "error")}
        for name in told["records"]:
            records.read_record(folder / "records" / file_name(name, "record", "the run"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {**state, "folder": str(folder)} if state["status"] in STATES else None


def _kept(folder: Path, retry: bool) -> dict[str, Any] | None:
    """The row of a run that is not made again; None if it is to be made."""
    state = _state(folder)
    if state is None or (retry and state["status"] == "failed"):
        return None
    return state | {"status": "skipped" if state["status"] == "finished" else "failed"}


def _lost(job: tuple[Any, ...], error: Exception) -> dict[str, Any]:
    """The row of a run whose worker did not come back, kept as failed."""
    notebook, point, folder, *_ = job
    told, trace = execution.reason(error), "".join(traceback.format_exception(error))
    with suppress(OSError, ValueError), pools.locked(folder) as free:
        if free:
            return _leave_state(folder, notebook, point, told, trace, 0.0)
    return {"status": "failed", "seconds": 0.0, "error": told, "folder": str(folder)}


def _seen(row: dict[str, Any]) -> dict[str, Any]:
    """The row, if what its worker wrote can be seen from here."""
    if row["status"] == "failed" or _state(Path(row["folder"])) is not None:
        return row
    return row | {"status": "failed", "error": "its worker writes where this machine cannot read"}


def status(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per run in the folder of a grid, from what its files say now.

    Returns a DataFrame: ``run`` (its folder's name), ``status`` ("finished", "failed", "running",
    or "stopped": it began and no process is at it), ``cell`` (of how many, if running or stopped),
    ``since`` (when it began, UTC), ``parameters`` (JSON) and ``error``. Raises FileNotFoundError if
    there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder of a grid")
    rows = []
    for place in sorted(path.parent for path in Path(folder).glob("*/notebooks")):
        state, began = _state(place), _progress(place)
        if state is None:
            with suppress(ValueError, OSError), pools.locked(place) as free:
                # Asked again, as it may have ended in between.
                state = _state(place) or {"status": "stopped" if free else "running", "error": None}
        state = state or {"status": "running", "error": None}
        if state["status"] in STATES:
            began["cell"] = ""
        rows.append({"run": place.name, **{n: state[n] for n in ("status", "error")}, **began})
    columns = ["run", "status", "cell", "since", "parameters", "error"]
    return pd.DataFrame(rows, columns=columns)


def _progress(place: Path) -> dict[str, str]:
    """How far the executed notebook of a run came, as papermill notes it in the file."""
    told = {"cell": "", "since": "", "parameters": ""}
    # Not begun, or in the middle of being written.
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        (path,) = (place / "notebooks").glob("*.ipynb")
        noted = parameters.read_notebook(path)["metadata"]["papermill"]
        point = {name: value for name, value in noted["parameters"].items() if name != "out"}
        point = parameters.discreet(point)
        told |= {"since": noted["start_time"][:19], "parameters": json.dumps(point)}
        marks = execution.statuses(path)
        began = sum(mark not in (None, "pending") for mark in marks)
        told["cell"] = f"{began} of {len(marks)}"
    return told


def format_status(table: pd.DataFrame) -> str:
    """The table of `status` for a terminal, and how many there are of each."""
    lines = []
    for row in table.to_dict("records"):
        cell = f", cell {row['cell']}" if row["cell"] else ""
        error = f": {row['error']}" if row["error"] else ""
        lines.append(
            f"{row['status']:8} {row['parameters'] or row['run']}{cell}, since "
            f"{row['since'] or 'unknown'}{error}"
        )
    counts = ", ".join(f"{n} {name}" for name, n in table["status"].value_counts().items())
    return "\n".join([*lines, counts or "no run has begun"])


def results(table: pd.DataFrame, swept: Sequence[str] = ()) -> pd.DataFrame:
    """Every metric of every run of a grid that finished.

    `table` (DataFrame): as `grid` returns it. `swept` (sequence of str): its columns to carry over.

    Returns a DataFrame: ``run`` (its folder's name), a column ``set_...`` per name of `swept`
    (lists as JSON), then the columns of `records.collect`. Runs in the order of the grid. Several
    runs may have a metric under the same key, such as a mean over different domains.
    """
    parts = []
    for row in table[table["status"].isin(("finished", "skipped"))].to_dict("records"):
        part = records.collect(Path(row["folder"]) / "records")
        for at, name in enumerate(swept):
            value = row[name]
            plain = isinstance(value, (str, int, float))
            part.insert(at, f"set_{name}", value if plain else json.dumps(value))
        part.insert(0, "run", Path(row["folder"]).name)
        parts.append(part)
    empty = pd.DataFrame(columns=["run", *(f"set_{n}" for n in swept), *records.KEY, "value"])
    # Parts without rows would lend their types to the columns of others.
    found = pd.concat([part for part in parts if len(part)] or [empty], ignore_index=True)
    mixed = [c for c in found if c.startswith("set_") and found[c].map(type).nunique() > 1]
    return found.astype(dict.fromkeys(mixed, str))


def summary(
    found: pd.DataFrame, metric: str | None = None, x: str | None = None, by: str = "method"
) -> pd.DataFrame:
    """Mean and range of one metric over runs, by one column and along another.

    `found` (DataFrame): as `results` returns it. `metric` (str, optional): default: the one with
    the most rows. `x`, `by` (str): a swept parameter or a column; `x` is by default the first swept
    parameter of which there are several values, or the run.

    Returns a DataFrame: columns `by`, `x`, ``value`` (mean), ``low`` and ``high`` (least and
    greatest), ``rows`` and ``metric``. Means over domains that a record holds beside the domains
    themselves are left out. Raises ValueError if there is no such metric or column.
    """
    metrics = found["metric"].value_counts(sort=True)
    if metric is None:
        # Of several that are as frequent, always the same.
        metric = min(metrics.index, key=lambda name: (-metrics[name], name))
    elif metric not in metrics.index:
        raise ValueError(suggest(metric, sorted(metrics.index), "metric"))
    varied = [c for c in found if c.startswith("set_") and found[c].nunique() > 1]
    x = _column(x, found) if x else next(iter(varied), "run")
    by = _column(by, found)
    rows = found[found["metric"] == metric]
    if (rows["domain"] != "Mean").any():
        rows = rows[rows["domain"] != "Mean"]
    if by == x:
        raise ValueError(f"the figure's lines and its axis are both {x}: name another by or x")
    grouped = rows.groupby([by, x], sort=True, dropna=False)["value"]
    table = grouped.agg(value="mean", low="min", high="max", rows="size").reset_index()
    return table.assign(metric=metric)


def _column(name: str, found: pd.DataFrame) -> str:
    """The column of a name, in which a swept parameter goes before what records call the same."""
    if f"set_{name}" in found:
        return f"set_{name}"
    if name not in found:
        raise ValueError(suggest(name, [c.removeprefix("set_") for c in found], "column"))
    return name


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a grid without what depends on when its runs were made."""
    return table.assign(status=table["status"].replace("skipped", "finished"))


def _write_results(table: pd.DataFrame, swept: Sequence[str], out: Path) -> pd.DataFrame:
    """The `results` of the runs so far, now in `out` beside the table of runs."""
    shown = _plain(table).assign(folder=table["folder"].map(lambda f: Path(f).name))
    records.write_table(shown, out / "runs.csv")
    found = results(table, swept)
    records.write_table(found, out / "results.csv")
    records.write_table(found, out / "results.parquet")
    return found


def _write(table: pd.DataFrame, swept: Sequence[str], out: Path, figure: Mapping[str, str]) -> None:
    """Write what a grid found: its results, the summary with its figure, and a page."""
    found = _write_results(table, swept, out)
    _draw_summary(found, out, figure)
    write_text(out / "index.html", grid_page(_plain(table), out))


def _draw_summary(found: pd.DataFrame, out: Path, figure: Mapping[str, str]) -> None:
    # Here, as workers do without matplotlib.
    from lbutils import figures

    for stale in (out / "summary.csv", out / "summary.png"):
        stale.unlink(missing_ok=True)
    if len(found):
        try:
            drawn = summary(found, **figure)
        except ValueError as error:
            # Hours of runs are not lost to a word in the grid's last line.
            warnings.warn(f"no summary: {error}", stacklevel=3)
            return
        records.write_table(drawn, out / "summary.csv")
        figures.save(figures.sweep_lines(drawn), out / "summary", ["png"])
