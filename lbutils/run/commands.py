"""The commands that run notebooks, copy them, and keep what they found.

``lbutils run`` runs every notebook on the miniature, few draws of few domains, and prints the
paper's claims beside what was found, now and in the full run. ``lbutils full`` makes the full
run, and goes on where it was stopped; ``lbutils run grid.yaml`` runs one notebook over a grid, and
``lbutils status`` says how far that is. ``lbutils start DIR`` copies notebooks to work in,
``lbutils lesson DIR`` to teach with; ``lbutils keep`` commits what a full run found.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lbutils.run import grid as grids
from lbutils.run import lessons, notebooks, parameters, profiles, shorts, sweeps
from lbutils.run.execution import measured
from lbutils.run.page import clock, format_claims

_OF_GRIDS = ("dask", "retry", "limit")  # options that say nothing without a grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of a command: 0, 1 if a notebook failed, 2 if the input is wrong."""
    asked = vars(_parser().parse_args(arguments))
    try:
        status: int = asked.pop("call")(**asked)
        return status
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is done is kept, and the same command goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    """What is not given is no argument of the function that is called."""
    parser = argparse.ArgumentParser("lbutils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, about: str, **fixed: Any) -> argparse.ArgumentParser:
        absent = argparse.SUPPRESS
        command = commands.add_parser(name, help=about, description=about, argument_default=absent)
        command.set_defaults(**fixed)
        return command

    run = add("run", "few draws and domains, or a grid in YAML", call=_run, full=False)
    full = add("full", "what the committed outputs show", call=_run, full=True)
    for command in (run, full):
        command.add_argument(
            "names", nargs="*", default=[], metavar="notebooks",
            help="number, name or path, or a grid in YAML; default: all",
        )  # fmt: skip
        command.add_argument("--benchmark", help="mini, or the folder of LAION-Beyond")
        command.add_argument(
            "--out", type=Path, help="default: in runs/, by the settings; of a grid runs/sweeps/"
        )
        command.add_argument("--timeout", type=float, metavar="SECONDS", help="of one run")
        command.add_argument("--dry-run", action="store_true", help="check, say what would run")
        command.add_argument(
            "--workers", type=int, help="notebooks at a time; of a grid, processes"
        )
        command.add_argument("-p", dest="texts", action="append", default=[],
                             metavar="NAME=VALUE", help="repeatable")  # fmt: skip
    run.add_argument("--profile", help="of notebooks/profiles.yaml; default: quick")
    full.add_argument("--again", action="store_true", help="make what is done once more")
    only = run.add_argument_group("grids")
    only.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster")
    only.add_argument("--retry", action="store_true", help="make runs again that failed")
    only.add_argument("--limit", type=int, help="most runs that are allowed")
    status = add("status", "which runs of a grid are where", call=_status)
    status.add_argument("folder", type=Path, help="the sweep's --out")
    keep = add("keep", "commit what a full run found", call=_keep)
    keep.add_argument("folder", nargs="?", type=Path, default=None,
                      help="of the run; default: runs/mini")  # fmt: skip
    start = add("start", "copies to work in", call=_start)
    lesson = add("lesson", "copies for students and teachers, and a plan", call=_lesson)
    for command in (start, lesson):
        command.add_argument("folder", type=Path, help="where they go")
        command.add_argument("names", nargs="*", metavar="notebooks", default=[],
                             help="number or name; default: all")  # fmt: skip
    lesson.add_argument("--nbgrader", action="store_true", help="for nbgrader, with its metadata")
    return parser


def _run(
    names: list[str], texts: list[str], full: bool, benchmark: str | None = None, **asked: Any
) -> int:
    """`run` and `full`, of notebooks or of a grid."""
    if asked.get("timeout", 1.0) <= 0:
        raise ValueError(f"--timeout takes seconds above 0, not {asked['timeout']:g}")
    file = _grid_of(names, full, asked)
    found = notebooks.find_notebooks([grids.read_grid(file).notebook] if file else names)
    known = parameters.of_notebooks(found)
    given = dict(parameters.parse(text, known) for text in texts)
    if "out" in given:
        raise ValueError("the folder is set by --out, not by -p out=")
    if benchmark is not None:
        given["benchmark"] = benchmark
    if file:
        return _run_grid(file, given, **asked)
    if os.environ.get(profiles.VARIABLE):
        raise ValueError(f"{profiles.VARIABLE} is set: unset it, --profile is for these commands")
    if full:
        asked |= {"profile": None, "resume": not asked.pop("again", False)}
    return _run_all(found, given, **asked)


def _grid_of(names: list[str], full: bool, asked: dict[str, Any]) -> str | None:
    """The grid's file that was named, if one was; with options that fit what is to run."""
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    if files and full:
        raise ValueError("a grid sets its own parameters: lbutils run has grids")
    if files and len(names) > 1:
        raise ValueError("one grid at a time, and no notebooks beside it")
    if files and "profile" in asked:
        raise ValueError("--profile is for notebooks: a grid sets its own parameters")
    if not files and (idle := [name for name in _OF_GRIDS if name in asked]):
        raise ValueError(f"--{idle[0]} is for grids: name one in YAML")
    return files[0] if files else None


def _run_all(
    found: list[Path],
    given: dict[str, Any],
    profile: str | None = "quick",
    out: Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    **options: Any,
) -> int:
    told = notebooks.described(given, profile)
    place = parameters.place(parameters.differing_in(found, given))
    out = out or (place.with_name(f"{place.name}--{profile}") if profile else place)
    if dry_run:
        notebooks.planned(found, given, profile)
        print("\n".join(f"to run   {notebook.stem}" for notebook in found))
        print(f"settings: {told}\nresults would go to {out}")
        return 0
    workers = notebooks.at_a_time() if workers is None else workers
    start = time.perf_counter()
    with measured() as took:
        outcomes = notebooks.run(found, given, out=out, profile=profile, workers=workers, **options)
    print(f"\nsettings: {told}")
    print(format_claims(pd.read_csv(out / "claims.csv")))
    spent = clock(time.perf_counter() - start), clock(took["cpu"]), took["memory"] / 1000
    print("\ntook {}, of processors {}, at most {:.1f} GB at a time".format(*spent))
    print(f"results: {Path(out).resolve() / 'index.html'}")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _run_grid(
    file: str, given: dict[str, Any], out: Path | None = None, dry_run: bool = False, **options: Any
) -> int:
    out = (out or sweeps.sweep_dir(file)).resolve()
    table = sweeps.grid_file(file, given, out=out, dry_run=dry_run, **options)
    swept = [column for column in table if column not in grids.TOLD]
    if dry_run:
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
    print(", ".join(f"{counts.get(status, 0)} {status}" for status in sweeps.STATES))
    print(f"results: {out / 'results.csv'}")
    if counts.get("failed", 0):
        print("--retry makes the failed ones again", flush=True)
    return 1 if counts.get("failed", 0) else 0


def _status(folder: Path) -> int:
    print(sweeps.format_status(sweeps.status(folder)))
    return 0


def _keep(folder: Path | None) -> int:
    kept = shorts.keep(folder or parameters.place({}))
    print(f"{len(kept)} claims kept: {', '.join(kept) or 'none'}; the boxes are as they should be")
    return 0


def _start(folder: Path, names: list[str]) -> int:
    made, kept = lessons.start(folder, names)
    print(f"{len(made)} notebooks copied to {folder}")
    for place in kept:
        print(f"kept as it is: {place}")
    print(f"open them with: python -m jupyterlab {folder}")
    return 0


def _lesson(folder: Path, names: list[str], nbgrader: bool = False) -> int:
    written = lessons.lesson(folder, names, nbgrader)
    print(f"{len(written)} files in {folder}; begin with {written[-1]}")
    return 0
