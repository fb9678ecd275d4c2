"""The command line, `lbutils` or `python -m lbutils`: each command is a room's own `main`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from lbutils import __version__
from lbutils._util import is_installed

# What a command does, and the module that does it; loaded only when it is called.
COMMANDS = {
    "check": ("whether the installed packages work together (the default)", ""),
    "run": ("run notebooks with few draws, or a grid over one", "run.commands"),
    "full": ("run notebooks as their committed outputs show them", "run.commands"),
    "keep": ("commit what a full run found: the table of claims, the boxes", "run.commands"),
    "status": ("the runs of a grid: which, which cell, since when", "run.commands"),
    "start": ("copies of the notebooks to work in", "run.commands"),
    "lesson": ("copies of the notebooks for students and teachers, and a plan", "run.commands"),
    "screen": ("do these names occur in these captions?", "captions.screening"),
    "download": ("domains of LAION-Beyond from the hub, checked", "data.laion_beyond"),
    "check-folder": ("a folder against the paper's counts, every image", "data.laion_beyond"),
    "export": ("the miniature in the layout of LAION-Beyond", "data.laion_beyond"),
    "datasets": ("public data sets: list, run methods, join a certificate", "measure.suite"),
    "generate": ("a small folder, built as LAION-Beyond is", "data.laion_beyond"),
}
_LOCKED = "python -m pip install --no-deps -r requirements.lock"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def diagnose() -> str | None:
    """One line that says what is broken and how to mend it; None when all is well.

    torchvision's compiled operators load only beside the torch build that they were made for.
    A CPU-only torch beside a CUDA torchvision fails with "operator torchvision::nms does not
    exist", and takes open_clip with it.
    """
    try:
        torch = import_module("torch")
        nms = import_module("torchvision.ops").nms
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except ModuleNotFoundError as error:
        return _missing(error)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        pair = f"torch {_version('torch')} and torchvision {_version('torchvision')}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        again = "python -m pip install torch torchvision" if is_installed() else _LOCKED
        mend = f"python -m pip uninstall -y torch torchvision && {again}"
        return f"{pair} do not work together ({reason}); in this environment run: {mend}"
    try:
        import_module("open_clip")
    except ModuleNotFoundError as error:
        return _missing(error)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        again = "python -m pip install --force-reinstall --no-deps open-clip-torch"
        return f"open_clip does not load ({error}): {again if is_installed() else _LOCKED}"
    return None


def _missing(error: ModuleNotFoundError) -> str:
    if not is_installed():
        return f"{error.name} is not installed: run `make env`, or {_LOCKED}"
    return f"{error.name} is not installed: run `python -m pip check`, and install what it names"


def check() -> int:
    """Exit status: 0 when torch, torchvision and open_clip load together, else 1."""
    problem = diagnose()
    if problem:
        print(problem, file=sys.stderr)
        return 1
    packages = ("torch", "torchvision", "open-clip-torch", "numpy", "polars")
    found = ", ".join(f"{package} {_version(package)}" for package in packages)
    print(f"environment ready: Python {sys.version.split()[0]}, {found}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of a command; without one, of `check`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Windows gives files and pipes an encoding that does not have every sign.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(
        "lbutils",
        description="CLIP and the concepts out of its pre-training.",
        epilog="commands:\n"
        + "".join(f"  {name:14}{about}\n" for name, (about, _) in COMMANDS.items())
        + "\n`lbutils COMMAND --help` has the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lbutils {__version__}")
    parser.add_argument("command", nargs="?", default="check", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(given[:1]).command
    rest = given[1:]
    if command == "check":
        argparse.ArgumentParser("lbutils check", description=COMMANDS["check"][0]).parse_args(rest)
        return check()
    module = import_module(f"lbutils.{COMMANDS[command][1]}")
    return module.main(rest if command == "screen" else given)


if __name__ == "__main__":
    sys.exit(main())
