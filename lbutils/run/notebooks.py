"""Notebooks: which there are, whether their parameters can be meant, running them in order."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from tqdm import tqdm

from lbutils._util import shipped, suggest, write_text
from lbutils.data.benchmark import load_benchmark
from lbutils.data.folder import data_dir
from lbutils.measure import records
from lbutils.run import execution, parameters, pools, profiles
from lbutils.run import page as pages
from lbutils.run.execution import Outcome
from lbutils.run.keys import code_of, run_names
from lbutils.run.page import clock

_NUMBERED = re.compile(r"(\d+)_\w+")  # not Jupyter's copies, such as 01_x-Copy1
_PAUSE = 0.5  # seconds between two looks at how far notebooks are
_UNKNOWN = 60.0  # seconds that a notebook is expected to take if nobody has measured it
_ROOM = 2e9  # bytes for a notebook and what runs it; `times.csv` has up to 1.6 GB for one
_TAKEN = ("seconds", "cpu", "memory")  # what an `Outcome` says that a notebook took
_SOURCES = ("local-dir:", "hf-hub:", "transformers:")  # of encoders that no table lists


def find_notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks that `names` stand for, in the order of their numbers; all by default.

    `names` (sequence of str): a number (``"3"``, ``"03"``), a stem, a file name, or the path of any
    notebook, such as a copy to work in. What is a file here goes before what is called so.

    Raises ValueError if a name stands for no notebook, or two files have the same name.
    """
    places = {path: _NUMBERED.fullmatch(path.stem) for path in shipped("notebooks").glob("*.ipynb")}
    numbers = {path: int(match[1]) for path, match in sorted(places.items()) if match}
    known = [path.stem for path in numbers]
    found = []
    for name in names or known:
        stem = name.removesuffix(".ipynb")
        number = int(stem) if stem.isdecimal() else None
        named = [path for path in numbers if stem == path.stem or number == numbers[path]]
        if name.endswith(".ipynb") and Path(name).is_file():
            found.append(Path(name).resolve())
        elif named:
            found.append(named[0])
        else:
            raise ValueError(suggest(name, known, "notebook"))
    chosen = sorted(dict.fromkeys(found), key=lambda path: path.name)
    for one, other in itertools.pairwise(chosen):
        if one.name == other.name:
            raise ValueError(f"{one} and {other} have one name: run one at a time")
    return chosen


def check_parameters(notebooks: Sequence[Path], *points: Mapping[str, Any]) -> None:
    """Refuse parameters that no notebook has, or whose values cannot be meant.

    Called before anything runs: papermill itself only warns of an unknown name.

    ``*points`` (mapping): Parameters of one run each; what is not named keeps the notebook's
    default.

    Raises ValueError with the valid names and the nearest match. Raises FileNotFoundError if the
    benchmark's files are missing.
    """
    defaults = parameters.of_notebooks(notebooks)
    _check((defaults, point) for point in points or ({},))


def _check(runs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Check parameters beside their defaults, and each encoder and benchmark among them once."""
    encoders: dict[str, None] = {}
    benchmarks: list[dict[str, Any]] = []
    for defaults, given in runs:
        for name, value in given.items():
            if name not in defaults:
                raise ValueError(suggest(name, defaults, "parameter"))
            parameters.check_value(name, parameters.typed(value, defaults[name]), defaults[name])
        if "encoder" in given:
            encoders[given["encoder"]] = None
        chosen = {**defaults, **given}
        wanted = {"name": chosen.get("benchmark")}
        wanted |= {name: chosen.get(name) for name in ("scale", "domains")}
        if "benchmark" in defaults and wanted not in benchmarks:
            benchmarks.append(wanted)
    if encoders:
        _check_encoders(encoders)
    for wanted in benchmarks:
        load_benchmark(**wanted)


def _check_encoders(names: Iterable[str]) -> None:
    """Refuse an encoder that nobody knows, without loading open_clip (and torch)."""
    spec = importlib.util.find_spec("open_clip")
    known = ["mini"]
    for place in (spec.submodule_search_locations or []) if spec else []:
        known += sorted(path.stem for path in Path(place, "model_configs").glob("*.json"))
    obstacles: dict[str, str] = {}
    if (table := data_dir() / "encoders.csv").is_file():
        rows = pd.read_csv(table, dtype=str, keep_default_na=False).to_dict("records")
        obstacles = {row["name"]: row.get("obstacle", "") for row in rows}
        known += [row for row, obstacle in obstacles.items() if not obstacle]
    for name in names:
        if obstacles.get(name):
            raise ValueError(f"{name} cannot be loaded: {obstacles[name]}")
        if name.replace("/", "-") not in known and not name.startswith(_SOURCES):
            raise ValueError(suggest(name, known, "encoder"))


def planned(
    notebooks: Sequence[Path], given: Mapping[str, Any], profile: str | None = None
) -> dict[Path, dict[str, Any]]:
    """Parameters of each notebook: those of the profile, and of the given ones that it has.

    Raises ValueError, FileNotFoundError as `check_parameters`.
    """
    given = parameters.absolute(given)
    known = parameters.of_notebooks(notebooks)
    for name in given:
        if name not in known:
            raise ValueError(suggest(name, known, "parameter"))
    defaults = {path: parameters.of_notebook(path) for path in notebooks}
    chosen = {path: _chosen(path, own, given, profile) for path, own in defaults.items()}
    _check((own, chosen[path]) for path, own in defaults.items())
    return chosen


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
    timeout : float, optional
        Seconds that a notebook may take; one that takes longer has failed.
    """
    given = parameters.absolute(given or {})
    chosen = planned(notebooks, given, profile)
    out = Path(out).resolve()
    settings = settings_of(given, profile)
    if (out / "runs.csv").exists():
        raise ValueError(f"{out} is the folder of a grid: give --out another")
    if profile:
        _check_unmixed(out, settings)
        print(f"{profile} run, not the full one (lbutils full): {described(given, profile)}",
              flush=True)  # fmt: skip
    keys = {path: run_names(path, [own], code_of(path))[0] for path, own in chosen.items()}
    done = {path: execution.noted(out, path, keys[path]) if resume else None for path in chosen}
    outcomes = {path: Outcome(path, out, **told) for path, told in done.items() if told}
    jobs = {path: (path, own, out, keys[path], timeout) for path, own in chosen.items()
            if path not in outcomes}  # fmt: skip
    seconds = pages.expected(profile)
    found = _spread(_run_one, jobs, out, workers=workers, seconds=seconds, progress=progress)
    for path, result in found:
        outcomes[path] = outcome = _arrived(path, out, result)
        tqdm.write(f"{path.stem:<32} {clock(outcome.seconds):>8}", file=sys.stdout)
        if outcome.error:
            told = f"  failed: {outcome.error}\n  see {outcome.executed}"
            tqdm.write(told, file=sys.stdout)
    ordered = [outcomes[path] for path in notebooks]
    _gather(ordered, out, given, profile, settings)
    return ordered


def at_a_time() -> int:
    """Notebooks that run at a time: two, where cores and free memory are enough for them."""
    room = int(psutil.virtual_memory().available / _ROOM)
    return max(1, min(2, os.cpu_count() or 1, room))


def _spread(
    work: Callable[..., Any],
    jobs: Mapping[Path, tuple[Any, ...]],
    out: Path,
    *,
    workers: int,
    seconds: Mapping[str, float],
    progress: bool = True,
) -> Iterator[tuple[Path, Any]]:
    """Notebook and result of each job as it is done, the longest first.

    `work` (callable): called with a job's arguments, by notebook in `jobs`. `seconds` (mapping of
    str to float): what notebooks are expected to take, by their stems. A bar counts that; how far
    notebooks are shows in their executed copies in `out`.
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

        def show() -> None:
            left = 0.0
            for path in sorted(waiting):
                part[path] = _share(execution.executed_copy(out, path), part[path])
                left += lasts[path] * (1 - part[path])
            bar.n = sum(lasts.values()) - left
            bar.refresh()

        def look() -> None:
            while not ended.wait(pace):
                show()

        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        try:
            for index, result in pools.spread(work, [jobs[p] for p in order], workers=workers):
                waiting.discard(order[index])
                yield order[index], result
        finally:
            ended.set()
            watch.join()
            show()


def _share(executed: Path, before: float) -> float:
    """The share of a notebook's code cells that have run, or what it was `before`."""
    try:
        marks = execution.statuses(executed)
        return marks.count("completed") / len(marks)
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return before  # not there yet, or in the middle of being written


def _chosen(
    path: Path, defaults: Mapping[str, Any], given: Mapping[str, Any], profile: str | None
) -> dict[str, Any]:
    known = profiles.of_profile(profile, path.stem) if path.stem in parameters.OWN else {}
    return {**known, **{name: value for name, value in given.items() if name in defaults}}


def settings_of(given: Mapping[str, Any], profile: str | None = None) -> dict[str, dict[str, Any]]:
    """What differs from the defaults in each numbered notebook, by its stem, under `given`."""
    found = {}
    for path in find_notebooks():
        own = parameters.of_notebook(path)
        found[path.stem] = parameters.differing(_chosen(path, own, given, profile), own)
    return found


def described(given: Mapping[str, Any], profile: str | None) -> str:
    """The settings of a run in words."""
    if not profile:
        return parameters.described(given)
    also = f", {parameters.described(given)}" if given else ""
    return f"profile {profile} ({profiles.named(profile)['about']}){also}"


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
    execution.forget(out, notebook)
    outcome = execution.execute(notebook, given, out, timeout)
    execution.write_page(outcome)
    _stamp(out, notebook.stem, parameters.differing(given, parameters.of_notebook(notebook)))
    if not outcome.error:
        execution.note(out, notebook, key, {name: getattr(outcome, name) for name in _TAKEN})
    return outcome


def _stamp(out: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """Note the settings in records of a notebook of one's own that does not say them itself."""
    for path in (out / "records").glob(f"{kind}-*.json") if settings else ():
        record = records.read_record(path)
        if not record["settings"]:
            record["settings"] = dict(settings)
            write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _arrived(notebook: Path, out: Path, result: Outcome | Exception) -> Outcome:
    """The outcome; of a notebook whose process did not come back, that it failed."""
    if isinstance(result, Outcome):
        return result
    trace = "".join(traceback.format_exception(result))
    return Outcome(notebook, out, error=execution.reason(result), traceback=trace)


def _gather(
    outcomes: Sequence[Outcome],
    out: Path,
    given: Mapping[str, Any],
    profile: str | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the tables and the page over everything that lies in `out`."""
    troubles: list[str] = []
    for one in outcomes:
        if one.page:  # now that all are there
            html = one.page.read_text(encoding="utf-8")
            write_text(one.page, pages.relinked(html, one.notebook.resolve().parent, out))
    table = pages.claims_table(out, settings, troubles)
    if profile:
        table = pages.beside_full(table)
    found = records.collect(out, troubles=troubles)
    records.write_table(table, out / "claims.csv")
    records.write_table(found, out / "records.csv")
    records.write_table(found, out / "records.parquet")
    took = [
        {"notebook": one.notebook.stem, **{n: getattr(one, n) for n in _TAKEN}}
        for one in outcomes
        if not one.error
    ]
    records.write_table(pages.times_table(took, profile), out / "times.csv")
    troubles = list(dict.fromkeys(troubles))
    about = described(given, profile)
    page = pages.index_page(outcomes, table, out, given, settings, about, troubles)
    write_text(out / "index.html", page)
    for trouble in troubles:
        print(f"passed over: {trouble}", file=sys.stderr)
