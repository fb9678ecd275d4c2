"""What a run is known by: its notebook's code, what that imports, torch, the data, parameters."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lbutils
from lbutils._util import PACKAGE
from lbutils.data.folder import data_dir
from lbutils.measure import records
from lbutils.run import parameters


def run_names(notebook: Path, points: Iterable[Mapping[str, Any]], code: str) -> list[str]:
    """A name for each run of a notebook: the same as long as all code and the parameters are.

    `points` (iterable of mapping): parameters of each run. `code` (str): as `code_of` gives it.
    """
    setting = {name: os.environ[name] for name in parameters.VARIABLES if name in os.environ}
    cells, defaults = _cells(notebook), parameters.of_notebook(notebook)
    names = []
    for point in points:
        # A default that is written out is no other run.
        key = json.dumps([cells, {**defaults, **point}, code, setting], sort_keys=True)
        names.append(f"{notebook.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}")
    return names


def code_of(notebook: Path) -> str:
    """What gives a run's numbers beside its parameters: the code that it imports, torch, the data.

    Of this package only modules that the notebook imports, directly or not, and of those only what
    Python executes: a comment, a docstring or another line break makes no other run.
    """
    digest = hashlib.sha256()
    for path, source in sorted(_imported(notebook).items()):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{source.meaning}\0".encode())
    for package in ("torch", "open-clip-torch"):
        digest.update(f"{package} {records.installed(package)}\0".encode())
    checksums = data_dir() / "mini" / "checksums.csv"
    digest.update(checksums.read_bytes() if checksums.is_file() else b"")
    return f"{lbutils.__version__}+{digest.hexdigest()[:12]}"


def _cells(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = parameters.read_notebook(notebook)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@dataclass(frozen=True)
class _Source:
    """What is asked of a file of Python, or of a cell."""

    meaning: str  # a hash of its syntax tree, without docstrings, places and comments
    imports: tuple[str, ...]  # dotted names of this package, wherever it imports them
    left: Mapping[str, list[str]]  # names that a face leaves to modules, in its call of `lazy`


@cache
def _read(source: str) -> _Source:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic of IPython
        return _Source(source, (), {})
    names: list[str] = []
    left: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "lazy":
            left |= ast.literal_eval(node.args[1])
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    meaning = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    ours = tuple(name for name in names if name.split(".")[0] == "lbutils")
    return _Source(meaning, ours, left)


def _imported(notebook: Path) -> dict[Path, _Source]:
    """Files of this package that the code of a notebook imports, and that those import."""
    waiting = [name for cell in _cells(notebook) for name in _read(cell).imports]
    found: dict[Path, _Source] = {}
    seen: set[str] = set()
    while waiting:
        if (name := waiting.pop()) in seen:
            continue
        seen.add(name)
        parts = name.split(".")[1:]
        place = PACKAGE.joinpath(*parts)
        # A name of a face stands in the file above it.
        above = [place.parent / "__init__.py"] if parts else []
        for file in (place / "__init__.py", place.with_suffix(".py"), *above):
            if file not in found and file.is_file():
                found[file] = _read(file.read_text(encoding="utf-8"))
                waiting += found[file].imports
        for face in (file for file in above if file in found):
            package = ".".join(face.parent.relative_to(PACKAGE.parent).parts)
            left = found[face].left.items()
            waiting += [f"{package}.{module}" for module, names in left if parts[-1] in names]
    return found
