"""Grids of parameters, from YAML or Python, as a list of runs.

::

    notebook: 03                       # number, name, or a path below this file's folder
    set: {benchmark: mini, shots: 4}   # the same in every run
    grid:
      seed: [1, 2, 3]                  # a list of values each
      domains: [[Food], [Animals]]     # values that are lists themselves
      shots, shot_counts:              # moved together
        - [1, [1]]
        - [4, [4]]
    figure: {metric: accuracy, x: seed, by: method}
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from lbutils._util import suggest

LIMIT = 1000
# What a sweep says of a run beside its parameters.
TOLD = ("status", "seconds", "error", "folder")
_KEYS = ("notebook", "set", "grid", "figure")
_FIGURE = ("metric", "x", "by")
_BYTES = 1_000_000


@dataclass(frozen=True)
class Grid:
    """A grid as its file has it: ``axes`` are its ``grid``, ``fixed`` is its ``set``."""

    notebook: str
    axes: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    figure: Mapping[str, str] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Safe YAML that takes no key twice and no aliases, which can make a small file huge."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="write the value out, not as *alias", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            problem = None
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key is a name, not a list or a mapping"
            elif key.tag == "tag:yaml.org,2002:merge":
                problem = "write the keys out, not as <<"
            elif key.value in seen:
                problem = f"the key {key.value} stands there twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The grid that a YAML file describes, in the format above.

    Raises ValueError in one line, with the file's name: not YAML, not a mapping, a key twice or
    unknown, a value that is not plain, a notebook outside the file's folder. Raises
    FileNotFoundError if there is no such file.
    """
    place = Path(path)
    try:
        if place.stat().st_size > _BYTES:
            raise ValueError(f"more than {_BYTES:,} bytes are no grid")
        found = yaml.load(place.read_text(encoding="utf-8"), _Loader)
        return _grid_of(found, place)
    except RecursionError:
        raise ValueError(f"{place}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{place}: {_one_line(error)}") from error


def _grid_of(found: Any, place: Path) -> Grid:
    if not isinstance(found, dict):
        raise ValueError(f"a grid is a mapping with {', '.join(_KEYS)}, not {_kind(found)}")
    for key in found:
        if key not in _KEYS:
            raise ValueError(suggest(key, _KEYS, "key"))
    for key in ("notebook", "grid"):
        if found.get(key) is None:
            raise ValueError(f"{key} is missing")
    parts = {key: found.get(key) or {} for key in _KEYS[1:]}
    for key, value in parts.items():
        if not isinstance(value, dict):
            raise ValueError(f"{key} is a mapping of names to values, not {_kind(value)}")
    for key, value in parts["figure"].items():
        if key not in _FIGURE:
            raise ValueError(suggest(key, _FIGURE, "key of figure"))
        if not isinstance(value, str):
            raise ValueError(f"{key} of figure is a name, not {_kind(value)}")
    grid = Grid(_notebook(found["notebook"], place), parts["grid"], parts["set"], parts["figure"])
    check_axes(grid.axes, grid.fixed)
    return grid


def _notebook(name: Any, place: Path) -> str:
    """A number or name as it is; a path, which must lie below the file's folder, in full."""
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise ValueError(f"notebook is a number, a name or a path, not {_kind(name)}")
    text = str(name)
    if not text.endswith(".ipynb"):
        return text
    folder = place.resolve().parent
    target = (folder / text).resolve()
    if PureWindowsPath(text).drive or not target.is_relative_to(folder):
        raise ValueError(f"the notebook {text} lies outside the folder of its grid")
    return str(target) if target.is_file() else text


def check_axes(axes: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raise ValueError if an axis is no list of plain values, or a parameter is set twice."""
    seen = set()
    for name, value in fixed.items():
        seen.add(name)
        _check_value(name, value)
    for axis, values in axes.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not len(values):
            raise ValueError(f"a grid takes a list of values for {axis}, not {values!r:.80}")
        names = names_of(axis)
        for name in names:
            if name in seen:
                raise ValueError(f"the parameter {name} is given twice")
            seen.add(name)
        for value in values:
            if len(names) > 1 and (
                not isinstance(value, (list, tuple)) or len(value) != len(names)
            ):
                raise ValueError(
                    f"{axis} takes lists of {len(names)} values each, not {value!r:.80}"
                )
            _check_value(axis, value)
        written = Counter(json.dumps(value) for value in values)
        text, number = written.most_common(1)[0]
        if number > 1:
            raise ValueError(f"{axis} has the value {text:.80} {number} times")


def names_of(axis: Any) -> list[str]:
    """Parameters that an axis moves: one, or several with commas between them."""
    names = [part.strip() for part in axis.split(",")] if isinstance(axis, str) else [""]
    if not all(name.isidentifier() for name in names):
        raise ValueError(f"{axis!r} is no name of a parameter")
    return names


def swept(axes: Mapping[str, Any]) -> list[str]:
    """Names of all parameters that the axes move, in order."""
    return [name for axis in axes for name in names_of(axis)]


def points(
    axes: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any], limit: int = LIMIT
) -> list[dict[str, Any]]:
    """Parameters of each run: the product of the axes, the last one moving fastest.

    Raises ValueError as `check_axes`, or if there are more than `limit`; they are counted before
    one is made.
    """
    check_axes(axes, fixed)
    number = math.prod(len(values) for values in axes.values())
    if number > limit:
        raise ValueError(
            f"{number:,} runs are more than {limit:,}: "
            f"leave some out, or allow them with --limit {number}"
        )
    made = []
    for chosen in itertools.product(*axes.values()):
        point = dict(fixed)
        for axis, value in zip(axes, chosen, strict=True):
            names = names_of(axis)
            point |= dict(zip(names, value if len(names) > 1 else [value], strict=True))
        made.append(point)
    return made


def _check_value(name: Any, value: Any) -> None:
    """A value must be a literal of Python and of JSON: papermill writes it into a cell."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_value(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_value(name, key)
            _check_value(name, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} takes no {value}")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise ValueError(f"{name} takes text, numbers, true, false, null or lists, not {value!r}")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
