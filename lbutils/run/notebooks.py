"""Notebooks run in order, or over a grid of parameters, and what they found in one place.

``lbutils run`` runs every notebook on the miniature, few draws of few domains, and prints the
paper's claims beside what was found, now and in the full run. ``lbutils full`` makes the full
run, and goes on where it was stopped; ``lbutils run grid.yaml`` runs one notebook over a grid.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

import lbutils
from lbutils._util import (
    PACKAGE,
    file_name,
    replacing,
    results_dir,
    shipped,
    suggest,
    write_text,
)
from lbutils.captions.text import redacted
from lbutils.data.benchmark import load_benchmark
from lbutils.data.folder import data_dir
from lbutils.measure import records
from lbutils.run import grid as grids
from lbutils.run import parameters, pools, profiles, together
from lbutils.run.page import (
    beside_full,
    claims_table,
    clock,
    format_claims,
    grid_page,
    index_page,
    relinked,
)

_BENCHMARK = ("benchmark", "scale", "domains")
_TAKEN = ("seconds", "cpu", "memory")  # what an `Outcome` says that a notebook took
_SOURCES = ("local-dir:", "hf-hub:", "transformers:")  # of encoders that no table lists


@dataclass(frozen=True)
class Outcome:
    """How one notebook went: where its executed copy lies, what it took, its error if any.

    ``seconds`` passed; ``cpu`` and ``memory`` are as `together.measured` has them.
    """

    notebook: Path
    title: str
    executed: Path
    page: Path | None
    seconds: float
    error: str | None
    traceback: str | None = None
    cpu: float = 0.0
    memory: float = 0.0


# ---------------------------------------------------------------------------------------------
# Notebooks and their parameters
# ---------------------------------------------------------------------------------------------


def find_notebooks(
    names: Sequence[str] = (), folder: str | os.PathLike[str] | None = None
) -> list[Path]:
    """The notebooks that `names` stand for, in the order of their numbers; all by default.

    `names` (sequence of str): a number (``"3"``, ``"03"``), a stem, a file name, or the path of a
    notebook elsewhere. `folder` (path, optional): default: ``notebooks`` of the checkout, or of the
    installed package.

    Raises ValueError if a name stands for no notebook. Raises FileNotFoundError if `folder` holds
    none.
    """
    place = shipped("notebooks") if folder is None else Path(folder)
    known = {path.stem: path for path in sorted(place.glob("[0-9]*.ipynb"))}
    if not names:
        if not known:
            raise FileNotFoundError(f"no numbered notebook in {place}")
        return list(known.values())
    found = []
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        numbered = [key for key in known if stem.isdigit() and int(key.split("_")[0]) == int(stem)]
        if stem in known or numbered:
            found.append(known[stem] if stem in known else known[numbered[0]])
        elif name.endswith(".ipynb") and Path(name).is_file():
            found.append(Path(name))
        else:
            raise ValueError(suggest(name, known, "notebook"))
    return sorted(dict.fromkeys(found), key=lambda path: path.name)


def check_parameters(notebooks: Sequence[Path], *points: Mapping[str, Any]) -> None:
    """Refuse parameters that no notebook has, or whose values cannot be meant.

    Called before anything runs: papermill itself only warns of an unknown name.

    ``*points`` (mapping): Parameters of one run each; what is not named keeps the notebook's
    default.

    Raises ValueError with the valid names and the nearest match. Raises FileNotFoundError if the
    benchmark's files are missing.
    """
    defaults: dict[str, Any] = {}
    for notebook in notebooks:
        defaults = {**parameters.of_notebook(notebook), **defaults}
    loaded = []
    for given in points or ({},):
        for name, value in given.items():
            if name not in defaults:
                raise ValueError(suggest(name, defaults, "parameter"))
            parameters.check_value(name, parameters.typed(value, defaults[name]), defaults[name])
        if "encoder" in given:
            _check_encoder(given["encoder"])
        chosen = {**defaults, **given}
        wanted: dict[str, Any] = {name: chosen.get(name) for name in _BENCHMARK}
        if "benchmark" in defaults and wanted not in loaded:
            load_benchmark(wanted["benchmark"], scale=wanted["scale"], domains=wanted["domains"])
            loaded.append(wanted)


def _check_encoder(name: str) -> None:
    """Refuse an encoder that nobody knows, without loading open_clip (and torch)."""
    spec = importlib.util.find_spec("open_clip")
    known = ["mini"]
    for place in (spec.submodule_search_locations or []) if spec else []:
        known += sorted(path.stem for path in Path(place, "model_configs").glob("*.json"))
    table = data_dir() / "encoders.csv"
    if table.is_file():
        rows = pd.read_csv(table, dtype=str, keep_default_na=False).to_dict("records")
        obstacles = {row["name"]: row.get("obstacle", "") for row in rows}
        if obstacles.get(name):
            raise ValueError(f"{name} cannot be loaded: {obstacles[name]}")
        known += [row for row, obstacle in obstacles.items() if not obstacle]
    if name.replace("/", "-") not in known and not name.startswith(_SOURCES):
        raise ValueError(suggest(name, known, "encoder"))


# ---------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------


def run(
    notebooks: Sequence[Path],
    given: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str],
    profile: str | None = None,
    workers: int = 1,
    resume: bool = False,
    progress: bool = True,
    timeout: float | None = None,
) -> list[Outcome]:
    """Run notebooks and gather everything that they found under `out`.

    Under `out` lie afterwards ``notebooks/`` (executed), one HTML page a notebook,
    ``figures/``, ``records/``, ``records.csv`` and ``.parquet``, ``claims.csv``, ``times.csv``
    and ``index.html``. A notebook that fails does not stop the others.

    Raises ValueError, FileNotFoundError as `check_parameters`, or if `out` belongs to something
    else; before anything runs.

    Parameters
    ----------
    given : mapping, optional
        Parameters; each notebook gets those that it has.
    out : path
        Folder for everything that is written.
    profile : str, optional
        As `profiles.of_profile` takes it; what is `given` goes before it. `out` may then hold
        no records that were made with other settings, such as those of the full run.
    workers : int
        Notebooks at a time, the longest first.
    resume : bool
        Leave out notebooks that ran to their end in `out` with the same code and parameters.
    progress : bool
        Show a bar over all notebooks.
    timeout : float, optional
        Seconds that a notebook may take; one that takes longer has failed.
    """
    given = parameters.absolute(given or {})
    check_parameters(notebooks, given)
    chosen = {path: _chosen(path, given, profile) for path in notebooks}
    for path, own in chosen.items():
        check_parameters([path], own)
    out = Path(out).resolve()
    settings = settings_of(given, profile)
    if (out / "runs.csv").exists():
        raise ValueError(f"{out} is the folder of a grid: give --out another")
    if profile:
        _check_unmixed(out, settings)
    keys = {path: _run_name(path, own, _code(path)) for path, own in chosen.items()}
    done = {path: together.noted(out, path, keys[path]) if resume else None for path in chosen}
    outcomes = {path: _again(path, out, told) for path, told in done.items() if told}
    jobs = {path: (path, own, out, keys[path], timeout) for path, own in chosen.items()
            if path not in outcomes}  # fmt: skip
    seconds = together.expected(profile)
    found = together.spread(
        _run_one, jobs, out, workers=workers, seconds=seconds, progress=progress
    )
    for path, result in found:
        outcomes[path] = outcome = _arrived(path, out, result)
        tqdm.write(f"{path.stem:<32} {clock(outcome.seconds):>8}", file=sys.stdout)
        if outcome.error:
            told = f"  failed: {outcome.error}\n  see {outcome.executed}"
            tqdm.write(told, file=sys.stdout)
    ordered = [outcomes[path] for path in notebooks]
    _gather(ordered, out, given, profile)
    return ordered


def _chosen(path: Path, given: Mapping[str, Any], profile: str | None) -> dict[str, Any]:
    """Parameters of one notebook: those of the profile, and of the given ones that it has."""
    own = parameters.of_notebook(path)
    known = profiles.of_profile(profile, path.stem) if path.stem in parameters.OWN else {}
    return {**known, **{name: value for name, value in given.items() if name in own}}


def _check_unmixed(out: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a folder with results of other settings, such as those of the full run."""
    for name, record in records.read_records(out, []).items():
        wanted = settings.get(record["kind"])
        if wanted is not None and record["settings"] != dict(wanted):
            told = parameters.described(record["settings"])
            raise ValueError(f"{out / name} was made with other settings ({told}): "
                             "give --out another folder")  # fmt: skip


def _run_one(
    notebook: Path, given: Mapping[str, Any], out: Path, key: str, timeout: float | None
) -> Outcome:
    """Run one notebook in the folder that it shares with others, and note that it is done."""
    together.forget(out, notebook)
    outcome = _execute(notebook, given, out, timeout=timeout)
    _stamp(out, notebook.stem, parameters.differing(given, parameters.of_notebook(notebook)))
    if not outcome.error:
        together.note(out, notebook, key, {name: getattr(outcome, name) for name in _TAKEN})
    return outcome


def _again(notebook: Path, out: Path, told: Mapping[str, Any]) -> Outcome:
    """The outcome of a notebook that ran before, from what was noted of it."""
    page = out / f"{notebook.stem}.html"
    executed = out / "notebooks" / notebook.name
    shown = page if page.is_file() else None
    return Outcome(notebook, _title(notebook), executed, shown, error=None, **told)


def _arrived(notebook: Path, out: Path, result: Outcome | Exception) -> Outcome:
    """The outcome; of a notebook whose process did not come back, that it failed."""
    if isinstance(result, Outcome):
        return result
    executed = out / "notebooks" / notebook.name
    trace = "".join(traceback.format_exception(result))
    return Outcome(notebook, _title(notebook), executed, None, 0.0, _told(result), trace)


def _gather(
    outcomes: Sequence[Outcome], out: Path, given: Mapping[str, Any], profile: str | None
) -> None:
    """Write the tables and the page over everything that lies in `out`."""
    troubles: list[str] = []
    for one in outcomes:
        if one.page:  # now that all are there
            html = one.page.read_text(encoding="utf-8")
            write_text(one.page, relinked(html, one.notebook.resolve().parent, out))
    table = claims_table(out, settings_of(given, profile), troubles)
    if profile:
        table = beside_full(table)
    found = records.collect(out, troubles=troubles)
    records.write_table(table, out / "claims.csv")
    records.write_table(found, out / "records.csv")
    records.write_table(found, out / "records.parquet")
    took = [
        {"notebook": one.notebook.stem, **{n: getattr(one, n) for n in _TAKEN}}
        for one in outcomes
        if not one.error
    ]
    records.write_table(together.times_table(took, profile), out / "times.csv")
    troubles = list(dict.fromkeys(troubles))
    page = index_page(
        outcomes,
        table,
        out,
        given,
        settings_of(given, profile),
        _described(given, profile),
        troubles,
    )
    write_text(out / "index.html", page)
    for trouble in troubles:
        print(f"passed over: {trouble}", file=sys.stderr)


def settings_of(given: Mapping[str, Any], profile: str | None = None) -> dict[str, dict[str, Any]]:
    """What differs from the defaults in each numbered notebook, by its stem, under `given`."""
    return {
        path.stem: parameters.differing(_chosen(path, given, profile), parameters.of_notebook(path))
        for path in find_notebooks()
    }


def _stamp(out: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """Note the settings in records of a notebook of one's own that does not say them itself."""
    for path in (out / "records").glob(f"{kind}-*.json") if settings else ():
        record = records.read_record(path)
        if not record["settings"]:
            record["settings"] = dict(settings)
            write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _execute(
    notebook: Path,
    given: Mapping[str, Any],
    out: Path,
    paged: bool = True,
    timeout: float | None = None,
) -> Outcome:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbconvert.filters import strip_ansi

    executed = out / "notebooks" / notebook.name
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
        with together.measured() as took:
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
    seconds = time.perf_counter() - start
    error, trace = (redacted(told) if told else told for told in (error, trace))
    _forget(executed, given)
    page = _page(executed, out) if paged and executed.exists() else None
    return Outcome(notebook, _title(notebook), executed, page, seconds, error, trace, **took)


def _forget(executed: Path, given: Mapping[str, Any]) -> None:
    """Take passwords and signatures, which papermill notes, out of an executed notebook."""
    if not executed.exists() or parameters.discreet(given) == {**given}:
        return
    text = executed.read_text(encoding="utf-8")
    values = [part for value in given.values() for part in (value, *_items(value))]
    for secret in {value for value in values if isinstance(value, str)}:
        text = text.replace(json.dumps(secret)[1:-1], json.dumps(redacted(secret))[1:-1])
    write_text(executed, text)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _page(executed: Path, out: Path) -> Path:
    """The executed notebook as one HTML file that stands alone."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(embed_images=True)
    body, _ = exporter.from_filename(str(executed))
    page = out / f"{executed.stem}.html"
    write_text(page, body)
    return page


def _title(notebook: Path) -> str:
    for cell in parameters.read_notebook(notebook)["cells"]:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return notebook.stem


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


def _described(given: Mapping[str, Any], profile: str | None) -> str:
    """The settings of a run in words."""
    if not profile:
        return parameters.described(given)
    also = f", {parameters.described(given)}" if given else ""
    return f"profile {profile} ({profiles.profiles()[profile]['about']}){also}"


# ---------------------------------------------------------------------------------------------
# Grids
# ---------------------------------------------------------------------------------------------

# Papermill changes the working folder of the process, so threads of a Dask worker take turns.
_TURN = threading.Lock()
_DONE = {"finished": "skipped", "failed": "failed"}
_STATES = {"finished": "finished", "skipped": "finished", "failed": "failed"}


def grid_file(
    path: str | os.PathLike[str],
    given: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run the grid that a YAML file describes; one row per run comes back.

    `path` (path): `lbutils.run.grid` has the format. `given` (mapping, optional): Parameters that
    are the same in every run, in place of those that the file has in ``set``. `out` (path,
    optional): default: `sweep_dir`. ``**options``: as `grid` takes them.

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
    (`results`), ``summary.csv`` (`summary`) and ``summary.png``.

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
    retry : bool
        Make runs again that failed.
    timeout : float, optional
        Seconds that a run may take; one that takes longer has failed.
    dry_run : bool
        Run and write nothing; those that would run have the status "to run".
    limit : int
        Refuse a grid of more runs.
    figure : mapping, optional
        ``metric``, ``x`` and ``by``, as `summary` takes them.
    progress : bool
        Show a bar over runs.
    """
    (path,) = find_notebooks([os.fspath(notebook)])
    place = Path(out).resolve()
    path, fixed = path.resolve(), dict(fixed or {})
    points = _checked_points(path, axes, fixed, limit)
    code = _code(path)
    jobs = [
        (path, point, place / _run_name(path, point, code), retry, code, timeout)
        for point in points
    ]
    points = [parameters.discreet(point) for point in points]
    rows: dict[int, dict[str, Any]] = {}
    failed = 0
    columns = [*fixed, *grids.swept(axes), "status", "seconds", "error", "folder"]
    if (place / "claims.csv").exists():
        raise ValueError(f"{place} is the folder of a run of notebooks: give --out another")
    if dry_run:
        return _foreseen(jobs, columns)
    _check_writable(place)
    with tqdm(total=len(jobs), unit="run", desc=path.stem, disable=not progress) as bar:
        for index, found in pools.spread(_grid_run, jobs, workers=workers, dask=dask):
            row = _lost(jobs[index], found) if isinstance(found, Exception) else found
            rows[index] = _seen(row)
            failed += rows[index]["status"] == "failed"
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update()
            # What is there counts if the sweep is stopped; at the end it is written below.
            if rows[index]["status"] == "finished" and len(rows) < len(jobs):
                _write_results(_table(points, rows, columns), grids.swept(axes), place)
    table = _table(points, rows, columns)
    _write_grid(table, grids.swept(axes), place, dict(figure or {}))
    return table


def _table(
    points: Sequence[Mapping[str, Any]], rows: Mapping[int, Mapping[str, Any]], columns: list[str]
) -> pd.DataFrame:
    """The runs that are done, in the order of the grid."""
    return pd.DataFrame([{**points[i], **rows[i]} for i in sorted(rows)], columns=columns)


def _foreseen(jobs: Sequence[tuple[Any, ...]], columns: list[str]) -> pd.DataFrame:
    """What a sweep would do: its runs, of which some are done."""
    rows = []
    for _, point, folder, retry, *_ in jobs:
        state = _state(folder) or {}
        done = state.get("status") == "finished" or (state and not retry)
        status = _DONE[state["status"]] if done else "to run"
        told = {"seconds": state.get("seconds"), "error": state.get("error")}
        point = parameters.discreet(point)
        rows.append({**point, **told, "status": status, "folder": str(folder)})
    return pd.DataFrame(rows, columns=columns)


def _check_writable(place: Path) -> None:
    """Raise OSError now rather than after the first run, on a disk that is full or read-only."""
    with replacing(place / "writable") as temporary:
        temporary.write_bytes(bytes(4096))
    (place / "writable").unlink()
    with suppress(OSError):
        place.rmdir()  # if nothing is in it: the sweep may yet be refused


def _checked_points(
    notebook: Path, axes: Mapping[str, Sequence[Any]], fixed: dict[str, Any], limit: int
) -> list[dict[str, Any]]:
    """The runs' parameters, each of the type that the notebook's default has."""
    defaults = parameters.of_notebook(notebook)
    if "out" not in defaults:
        raise ValueError(f"{notebook.name} has no parameter out, so its runs would share a folder")
    names = {*fixed, *grids.swept(axes)}
    if "out" in names:
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


def _code(notebook: Path) -> str:
    """What gives a run's numbers beside its parameters: the code that it imports, torch, the data.

    Of this package only modules that the notebook imports, directly or not, and of those only what
    Python executes: a comment, a docstring or another line break makes no other run.
    """
    digest = hashlib.sha256()
    for path in sorted(_imported(notebook)):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{_meaning(path)}\0".encode())
    for package in ("torch", "open-clip-torch"):
        digest.update(f"{package} {records.installed(package)}\0".encode())
    checksums = data_dir() / "mini" / "checksums.csv"
    digest.update(checksums.read_bytes() if checksums.is_file() else b"")
    return f"{lbutils.__version__}+{digest.hexdigest()[:12]}"


def _cells(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = parameters.read_notebook(notebook)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _imported(notebook: Path) -> set[Path]:
    """Files of this package that the code of a notebook imports, and that those import."""
    waiting = [name for source in _cells(notebook) for name in _names_imported(source)]
    found: set[Path] = set()
    while waiting:
        parts = waiting.pop().split(".")[1:]
        place = PACKAGE.joinpath(*parts)
        # A name of a room's face, or of a module, stands in the file above it.
        above = [place.parent / "__init__.py"] if parts else []
        for file in (place / "__init__.py", place.with_suffix(".py"), *above):
            if file.is_file() and file.is_relative_to(PACKAGE) and file not in found:
                found.add(file)
                waiting += _names_imported(file.read_text(encoding="utf-8"))
        for face in filter(Path.is_file, above):
            waiting += _of_face(face, parts[-1])
    return found


@cache
def _names_imported(source: str) -> tuple[str, ...]:
    """Dotted names of this package in a source's imports, wherever they stand in it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic of IPython
        return ()
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.split(".")[0] == "lbutils")


def _of_face(face: Path, name: str) -> Iterator[str]:
    """The module to which a face leaves a name in its call of `lazy`; read, not imported."""
    for module, names in _left_by(face.read_text(encoding="utf-8")).items():
        if name in names:
            yield ".".join([*face.parent.relative_to(PACKAGE.parent).parts, module])


@cache
def _left_by(source: str) -> dict[str, list[str]]:
    """Names that a face leaves to its modules."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict) and all(isinstance(v, ast.List) for v in node.values):
            found |= ast.literal_eval(node)
    return found


@cache
def _meaning(path: Path) -> str:
    """The syntax tree of a file, without docstrings, places and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return ast.dump(tree)


def _run_name(notebook: Path, point: Mapping[str, Any], code: str) -> str:
    """Folder of a run: the same as long as all code and the parameters are."""
    setting = {name: os.environ[name] for name in parameters.VARIABLES if name in os.environ}
    # A default that is written out is no other run.
    given = {**parameters.of_notebook(notebook), **point}
    key = json.dumps([_cells(notebook), given, code, setting], sort_keys=True)
    return f"{notebook.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _grid_run(
    notebook: Path,
    point: Mapping[str, Any],
    folder: Path,
    retry: bool,
    code: str,
    timeout: float | None,
) -> dict[str, Any] | str:
    """One run of a grid, or `pools.BUSY` if another process is making it."""
    if (own := _code(notebook)) != code:
        raise RuntimeError(f"this worker has lbutils {own}, the sweep {code}: install the same")
    with _TURN, pools.locked(folder) as free:
        if not free:
            return pools.BUSY
        state = _state(folder)
        if state is not None and not (retry and state["status"] == "failed"):
            return state | {"status": "skipped" if state["status"] == "finished" else "failed"}
        # A run that is cut short from here on has no state, and is made again.
        for stale in (folder / "run.json", *(folder / "records").glob("*.json")):
            stale.unlink(missing_ok=True)
        start, trace = time.perf_counter(), None
        try:
            outcome = _execute(notebook, point, folder, paged=False, timeout=timeout)
            error, trace = outcome.error, outcome.traceback
        # Whatever it is that fails, a full disk or a missing kernel, the other runs go on.
        except Exception as failure:
            error, trace = _told(failure), traceback.format_exc()
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
        state |= {"status": "failed", "error": error or _told(failure)}
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
    return {**state, "folder": str(folder)} if state["status"] in _STATES else None


def _lost(job: tuple[Any, ...], error: Exception) -> dict[str, Any]:
    """The row of a run whose worker did not come back, kept as failed."""
    notebook, point, folder, *_ = job
    trace = "".join(traceback.format_exception(error))
    with suppress(OSError, ValueError), pools.locked(folder) as free:
        if free:
            return _leave_state(folder, notebook, point, _told(error), trace, 0.0)
    return {"status": "failed", "seconds": 0.0, "error": _told(error), "folder": str(folder)}


def _seen(row: dict[str, Any]) -> dict[str, Any]:
    """The row, if what its worker wrote can be seen from here."""
    if row["status"] == "failed" or _state(Path(row["folder"])) is not None:
        return row
    return row | {"status": "failed", "error": "its worker writes where this machine cannot read"}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(str(error))}"


def status(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per run in the folder of a grid, from what its files say now.

    Raises FileNotFoundError if there is no such folder.

    Returns
    -------
    DataFrame
        ``run`` (its folder's name), ``status`` ("finished", "failed", "running", or "stopped": it
        began and no process is at it), ``cell`` (of how many, if running or stopped), ``since``
        (when it began, UTC), ``parameters`` (JSON) and ``error``.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder of a grid")
    rows = []
    for place in sorted(path.parent for path in Path(folder).glob("*/notebooks")):
        state, began = _state(place), _progress(place)
        if state is None:
            with suppress(ValueError, OSError), pools.locked(place) as free:
                state = {"status": "stopped" if free else "running", "error": None}
        state = state or {"status": "running", "error": None}
        if state["status"] in _STATES:
            began["cell"] = ""
        rows.append({"run": place.name, **{n: state[n] for n in ("status", "error")}, **began})
    columns = ["run", "status", "cell", "since", "parameters", "error"]
    return pd.DataFrame(rows, columns=columns)


def _progress(place: Path) -> dict[str, str]:
    """How far the executed notebook of a run came, as papermill notes it in the file."""
    told = {"cell": "", "since": "", "parameters": ""}
    try:
        (path,) = (place / "notebooks").glob("*.ipynb")
        notebook = parameters.read_notebook(path)
        noted = notebook["metadata"]["papermill"]
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        marks = [cell["metadata"].get("papermill", {}).get("status") for cell in code]
        began = sum(mark not in (None, "pending") for mark in marks)
        point = {name: value for name, value in noted["parameters"].items() if name != "out"}
        point = parameters.discreet(point)
        told |= {"since": noted["start_time"][:19], "parameters": json.dumps(point)}
        told["cell"] = f"{began} of {len(code)}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not begun, or in the middle of being written
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

    Parameters
    ----------
    table : DataFrame
        As `grid` returns it.
    swept : sequence of str
        Columns of `table` to carry over.

    Returns
    -------
    DataFrame
        ``run`` (its folder's name), a column ``set_...`` per name of `swept` (lists as JSON),
        then the columns of `records.collect`. Runs in the order of the grid. Several
        runs may have a metric under the same key, such as a mean over different domains.
    """
    parts = []
    for row in table[table["status"].map(_STATES.get) == "finished"].to_dict("records"):
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

    Raises ValueError if there is no such metric or column.

    Parameters
    ----------
    found : DataFrame
        As `results` returns it.
    metric : str, optional
        Default: the one with the most rows.
    x : str, optional
        A swept parameter or a column. Default: the first swept parameter of which there are
        several values, or the run.
    by : str
        A column, or a swept parameter.

    Returns
    -------
    DataFrame
        Columns `by`, `x`, ``value`` (mean), ``low`` and ``high`` (least and greatest), ``rows``
        and ``metric``. Means over domains that a record holds beside the domains themselves
        are left out.
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


def _as_states(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a grid without what depends on when its runs were made."""
    return table.assign(status=table["status"].map(_STATES))


def _write_results(table: pd.DataFrame, swept: Sequence[str], out: Path) -> pd.DataFrame:
    shown = _as_states(table).assign(folder=table["folder"].map(lambda f: Path(f).name))
    records.write_table(shown, out / "runs.csv")
    found = results(table, swept)
    records.write_table(found, out / "results.csv")
    records.write_table(found, out / "results.parquet")
    return found


def _write_grid(
    table: pd.DataFrame, swept: Sequence[str], out: Path, figure: Mapping[str, str]
) -> None:
    """Write what a grid found. Nothing in results and summary depends on when a run was made."""
    found = _write_results(table, swept, out)
    _draw_summary(found, out, figure)
    write_text(out / "index.html", grid_page(_as_states(table), out))


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


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, 1 if a notebook failed, 2 if the input is wrong."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "status":
            print(format_status(status(options.folder)))
            return 0
        if options.timeout is not None and options.timeout <= 0:
            raise ValueError(f"--timeout takes seconds above 0, not {options.timeout:g}")
        file = _grid_of(options)
        names = [grids.read_grid(file).notebook] if file else options.notebooks
        own = [parameters.of_notebook(path) for path in find_notebooks(names)]
        defaults = {name: value for found in reversed(own) for name, value in found.items()}
        given = dict(parameters.parse(text, defaults) for text in options.parameters)
        if "out" in given:
            raise ValueError("the folder is set by --out, not by -p out=")
        if options.benchmark is not None:
            given["benchmark"] = options.benchmark
        return _run_grid(file, given, options) if file else _run_all(given, options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is done is kept, and the same command goes on", file=sys.stderr)
        return 130


def _grid_of(options: argparse.Namespace) -> str | None:
    """The grid's file that was named, if one was; with options that fit what is to run."""
    files = [name for name in options.notebooks if name.endswith((".yaml", ".yml"))]
    if files and options.command == "full":
        raise ValueError("a grid sets its own parameters: lbutils run has grids")
    if files and len(options.notebooks) > 1:
        raise ValueError("one grid at a time, and no notebooks beside it")
    if files and options.profile:
        raise ValueError("--profile is for notebooks: a grid sets its own parameters")
    if not files and (idle := [n for n in _OF_GRIDS if _is_given(options, n)]):
        raise ValueError(f"--{idle[0]} is for grids: name one in YAML")
    return files[0] if files else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lbutils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="few draws and domains, or a grid in YAML")
    full = commands.add_parser("full", help="what the committed outputs show")
    for command in (run_, full):
        command.add_argument(
            "notebooks", nargs="*", help="number, name or path, or a grid in YAML; default: all"
        )
        command.add_argument("--benchmark", help="mini, or the folder of LAION-Beyond")
        command.add_argument(
            "--out", type=Path, help="default: in runs/, by the settings; of a grid runs/sweeps/"
        )
        command.add_argument("--timeout", type=float, metavar="SECONDS", help="of one run")
        command.add_argument("--dry-run", action="store_true", help="check, say what would run")
        command.add_argument(
            "--workers", type=int, help="notebooks at a time; of a grid, processes"
        )
        command.add_argument("-p", dest="parameters", action="append", default=[],
                             metavar="NAME=VALUE", help="repeatable")  # fmt: skip
    run_.add_argument("--profile", help="of notebooks/profiles.yaml; default: quick")
    full.add_argument("--again", action="store_true", help="make what is done once more")
    only = run_.add_argument_group("grids")
    only.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster")
    only.add_argument("--retry", action="store_true", help="make runs again that failed")
    only.add_argument("--limit", type=int, help="most runs that are allowed")
    command = commands.add_parser("status", help="which runs of a grid are where")
    command.add_argument("folder", type=Path, help="the sweep's --out")
    full.set_defaults(profile=None, dask=None, retry=False, limit=None)
    return parser


_OF_GRIDS = ("dask", "retry", "limit")  # options that say nothing without a grid


def _is_given(options: argparse.Namespace, name: str) -> bool:
    # 0 is a wrong number, not an absent one.
    return getattr(options, name) is not None and getattr(options, name) is not False


def _profile_of(options: argparse.Namespace) -> str | None:
    """The profile that is asked for; none of the full run."""
    if os.environ.get(profiles.VARIABLE):
        raise ValueError(f"{profiles.VARIABLE} is set: unset it, --profile is for these commands")
    if options.command == "full":
        return None
    profile: str = options.profile or "quick"
    profiles.of_profile(profile, "")  # refuses one that is not there
    return profile


def _run_all(given: dict[str, Any], options: argparse.Namespace) -> int:
    notebooks, profile = find_notebooks(options.notebooks), _profile_of(options)
    defaults = {n: v for path in notebooks for n, v in parameters.of_notebook(path).items()}
    place = parameters.place(parameters.differing(given, defaults))
    out = options.out or (place.with_name(f"{place.name}--{profile}") if profile else place)
    told = _described(given, profile)
    check_parameters(notebooks, parameters.absolute(given))
    if options.dry_run:
        for path in notebooks:
            check_parameters([path], parameters.absolute(_chosen(path, given, profile)))
        print("\n".join(f"to run   {notebook.stem}" for notebook in notebooks))
        print(f"settings: {told}\nresults would go to {out}")
        return 0
    workers = options.workers or together.at_a_time()
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers takes 1 or more, not {options.workers}")
    if profile:
        print(f"{profile} run, not the full one (lbutils full): {told}", flush=True)
    resume, start = options.command == "full" and not options.again, time.perf_counter()
    with together.measured() as took:
        outcomes = run(notebooks, given, out=out, profile=profile, workers=workers, resume=resume,
                       timeout=options.timeout)  # fmt: skip
    claims = claims_table(out, settings_of(given, profile), [])
    print(f"\nsettings: {told}")
    print(format_claims(beside_full(claims) if profile else claims))
    spent = clock(time.perf_counter() - start), clock(took["cpu"]), took["memory"] / 1000
    print("\ntook {}, of processors {}, at most {:.1f} GB at a time".format(*spent))
    print(f"results: {Path(out).resolve() / 'index.html'}")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _run_grid(file: str, given: dict[str, Any], options: argparse.Namespace) -> int:
    out = (options.out or sweep_dir(file)).resolve()
    names = [n for n in (*_OF_GRIDS, "workers", "timeout", "dry_run") if _is_given(options, n)]
    settings = {name: getattr(options, name) for name in names}
    table = grid_file(file, given, out=out, **settings)
    swept = [c for c in table if c not in ("status", "seconds", "error", "folder")]
    if options.dry_run:
        for row in table.to_dict("records"):
            print(f"{row['status']:8} {parameters.in_words(swept, row)}")
        print(f"{(table['status'] == 'to run').sum()} to run of {len(table)}")
        return 0
    if (out / "summary.csv").exists():
        drawn = pd.read_csv(out / "summary.csv")
        print(drawn.to_string(index=False, float_format="{:.4g}".format), end="\n\n")
    for row in table[table["status"] == "failed"].to_dict("records"):
        print(f"failed: {row['error']}\n  at {parameters.in_words(swept, row)}")
        print(f"  see {Path(row['folder']) / 'traceback.txt'}")
    counts = table["status"].value_counts()
    print(", ".join(f"{counts.get(status, 0)} {status}" for status in _STATES))
    print(f"results: {out / 'results.csv'}")
    if counts.get("failed", 0):
        print("--retry makes the failed ones again", flush=True)
    return 1 if counts.get("failed", 0) else 0
