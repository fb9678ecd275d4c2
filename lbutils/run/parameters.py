"""Parameters of notebooks: their defaults, what they take, and where a run of theirs belongs.

A notebook calls `check` in the first cell after its parameters. However it was started, by this
package, by papermill alone or by hand, a name that it does not have and a value of the wrong
kind stop it there, and a run with other settings than the defaults gets a folder of its own.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from lbutils._util import results_dir, suggest, write_text
from lbutils.captions.text import redacted
from lbutils.run import profiles

COMMON: dict[str, Any] = {
    "benchmark": "mini",
    "scale": None,
    "encoder": "mini",
    "pretrained": None,
    "domains": None,
    "seed": 0,
    "out": "",
}
_SHARES: dict[str, Any] = {"resamples": 10, "starts": 4, "margin": 5.0}
# The defaults of the committed notebooks, beside those in COMMON. They are said here as well as in
# the notebooks, as a cell that was edited in Jupyter no longer tells what it was; a test compares.
OWN: dict[str, dict[str, Any]] = {
    "01_vocabulary_screening": {
        "words": ["ant", "Elephants", "hot dog", "hot pepper", "Jack-O'-Lantern", "axolotl"],
        "captions": "",
        "layout": None,
        "column": None,
        "workers": 2,
        "sample": 200_000,
        "integrity": True,
    },
    "02_clustering_analysis": {**_SHARES, "resamples": 20, "map_domain": None, "map_images": 15},
    "03_zero_shot_gaps": {**_SHARES, "templates": None, "shots": 4, "controls": 20},
    "04_few_shot_name_learning": {
        "templates": None,
        "shot_counts": [1, 2, 4],
        "shots": 4,
        "draws": 10,
        "slow": [
            "names + alignment",
            "FSNL",
            "FSNL + negatives",
            "CoOp",
            "CoOp, class contexts",
            "KgCoOp",
            "CoCoOp",
            "CLIP-Adapter",
            "ProLIP",
            "textual inversion",
            "linear probe, C searched",
        ],
        "rare": ["KgCoOp", "CoCoOp"],
        "slow_draws": 1,
        "methods": None,
        "views": 4,
        "workers": 2,
        "most_domains": None,
    },
    "05_zero_shot_name_learning": {
        "lexicon": "",
        "sources": ["language", "descriptions", "colours", "hints"],
        "draws": 1,
        "share": 0.8,
        "small_domains": 2,
        "slow_discovery": ["gaussian", "contrastive_mean_shift", "parametric"],
        "released_min_images": 4,
        "shown_domain": None,
        "most_domains": None,
    },
    "06_ablations": {
        "templates": None,
        "shot_counts": [1, 4],
        "draws": 1,
        "views": 4,
        "workers": 2,
        "adapted": ["CoOp", "CoCoOp", "CLIP-Adapter"],
        "most_domains": None,
    },
    "07_teach_clip_your_own_words": {
        "folder": "",
        "others": None,
        "hint": None,
        "templates": None,
        "synonyms": None,
        "captions": "",
        "leave_out": None,
        "rounds": 3,
        "views": 4,
        "example_domain": "Food",
        "classes": 5,
        "images": 6,
    },
    "08_scales": {
        "larger": None,
        "backbones": None,
        "dosed": None,
        "templates": None,
        "shots": 4,
        "draws": 1,
        "views": 4,
        "small_share": 0.25,
        "margin": 5.0,
        "most_domains": None,
    },
    "09_can_text_save_a_name": {
        "lexicon": "",
        "link": ", ",
        "noise": 8,
        "shots": 4,
        "resamples": 1000,
        "shifts": ["grey", "outline", "silhouette", "noise", "blur", "jpeg"],
        "each": 2,
        "margin": 5.0,
    },
    "10_what_a_name_is_good_for": {
        "templates": None,
        "shots": 4,
        "top": [1, 5, 10],
        "number": 15,
        "languages": ["de", "fi", "ja"],
        "spoken": 3,
        "margin": 5.0,
    },
}
# What stands where a default is None, which says nothing of itself.
KINDS: dict[str, Any] = {
    "scale": str,
    "pretrained": str,
    "domains": list[str],
    "layout": str,
    "column": str,
    "map_domain": str,
    "templates": str | list[str],
    "shown_domain": str,
    "others": list[str],
    "hint": str,
    "leave_out": list[str],
    "synonyms": list[list[str]],
    "larger": list[list[str]],
    "backbones": list[list[str]],
    "dosed": str,
    "most_domains": int,
    "methods": list[str],
}
# Variables under which the same parameters give other numbers.
VARIABLES = ("LBUTILS_DATA", profiles.VARIABLE, "LBUTILS_AUTOCAST")
_PATHS = ("captions", "folder", "lexicon")  # parameters that name files, if they name anything
_PERHAPS = ("benchmark", "pretrained", "larger", "backbones")  # that may, or what is published
_PREFIXES = ("local-dir:", "transformers:")  # of encoders in folders
_NAMED = ("mini", "laion-beyond")  # benchmarks that are no folder


@dataclass(frozen=True)
class Run:
    """What one run of a notebook, by its stem, is.

    Attributes
    ----------
    params : dict
        Every parameter but ``out``, as it may be recorded.
    changed : dict
        Those that differ from the defaults, and variables of the environment that do; empty for
        a run of the defaults. It belongs into the run's record, as ``settings``.
    place : Path
        The folder for what the run writes: ``out`` if that was given, else `place`'s.
    """

    notebook: str
    params: dict[str, Any]
    changed: dict[str, Any]
    place: Path

    def show(self, figure: Any, name: str) -> None:
        """Display a figure, and save it as ``figures/NN_name.png`` with the notebook's number."""
        # Here, as what only asks for parameters does without matplotlib.
        from IPython.display import display

        from lbutils import figures

        figures.save(figure, self._file("figures", name), ["png"])
        display(figures.preview(figure))

    def table(
        self, table: Any, name: str, rows: int = 10, columns: Sequence[str] | None = None
    ) -> None:
        """Display a table's first `rows`, the whole behind a fold; save it as CSV.

        `table` (DataFrame): with the index that names its rows. `name` (str): of the file,
        ``tables/NN_name.csv`` with the notebook's number, in `place`. `rows`, `columns`: what is
        seen at once; without rows the fold alone.
        """
        from IPython.display import display

        path = self._file("tables", f"{name}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, table.to_csv(lineterminator="\n"))
        seen = table.head(rows) if columns is None else table.head(rows)[list(columns)]
        told = seen.to_html(na_rep="") if rows else ""
        if seen.shape != table.shape:
            size = f"{table.shape[0]} rows and {table.shape[1]} columns"
            whole = table.to_html(na_rep="")
            told += f"<details><summary>{path.name}: {size}</summary>{whole}</details>"
        display({"text/html": told, "text/plain": table.to_string()}, raw=True)

    def _file(self, folder: str, name: str) -> Path:
        return self.place / folder / f"{self.notebook.split('_')[0]}_{name}"


def check(notebook: str, namespace: MutableMapping[str, Any]) -> Run:
    """What this run of a notebook is, after its parameters were found to be right.

    `notebook` (str): the stem of a committed one. `namespace` (mapping): its ``globals()``. Under
    IPython they hold the source of the cells that ran, in which parameters are seen that the
    notebook does not have: papermill sets those all the same. Of those that have their default, the
    profile of the environment (`lbutils.run.profiles`) sets the ones that it names.

    Raises ValueError if a parameter is unknown, absent or of the wrong kind; with the nearest
    match.
    """
    if notebook not in OWN:
        raise ValueError(suggest(notebook, OWN, "notebook"))
    defaults = {**COMMON, **OWN[notebook]}
    for name in _assigned(namespace.get("In", ()), defaults):
        # Papermill's own, where it is told to pass on its paths.
        if name not in defaults and not name.startswith("PAPERMILL_"):
            raise ValueError(suggest(name, defaults, "parameter"))
    for name, default in defaults.items():
        if name not in namespace:
            raise ValueError(f"the parameters cell sets no {name}: write {name} = {default!r}")
        check_value(name, namespace[name], default)
    profile = os.environ.get(profiles.VARIABLE)
    for name, value in profiles.of_profile(profile, notebook).items():
        if name not in defaults:
            raise ValueError(suggest(name, defaults, "parameter"))
        check_value(name, value, defaults[name])
        if _same(namespace[name], defaults[name]):
            namespace[name] = value
    params = {name: namespace[name] for name in defaults if name != "out"}
    changed = differing(params, defaults)
    out = namespace["out"]
    return Run(notebook, discreet(params), changed, Path(out) if out else place(changed))


def _assigned(cells: Iterable[str], known: Iterable[str]) -> set[str]:
    """Names that the last parameters cell sets, and the one that papermill put after it."""
    found: set[str] = set()
    injected: set[str] = set()
    for source in cells:
        names = _assignments(source)
        if source.startswith("# Parameters"):
            injected = names
        elif 2 * len(names & set(known)) > max(len(names), len(COMMON)):
            found, injected = names, set()
    return found | injected


def _assignments(source: str) -> set[str]:
    """Names that a cell assigns, if it does nothing else."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):  # such as a magic of IPython
        return set()
    if not all(isinstance(statement, (ast.Assign, ast.AnnAssign)) for statement in body):
        return set()
    names = [node for s in body for node in ast.walk(s) if isinstance(node, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def check_value(name: str, value: Any, default: Any) -> None:
    """Raise ValueError, with what it takes, if a parameter of this default takes no such value."""
    kind = kind_of(name, default)
    if fits(value, kind) or (value is None and default is None):
        return
    advice = f"; in a list: {[value]!r:.80}" if fits([value], kind) else ""
    raise ValueError(
        f"parameter {name} takes {_said(kind)} (default {default!r:.80}), not {value!r:.80}{advice}"
    )


def kind_of(name: str, default: Any) -> Any:
    """The kind of a parameter: that of its default, or the one in `KINDS` if that is None."""
    if default is None:
        return KINDS.get(name, Any)
    if isinstance(default, (list, tuple)):
        kinds = {type(item) for item in default}
        return list[kinds.pop()] if len(kinds) == 1 else list  # type: ignore[misc]
    return type(default)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind. Truth is no number, and a float is finite."""
    if kind is Any:
        return True
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        listed = isinstance(value, (list, tuple))
        return listed and all(fits(item, get_args(kind)[0]) for item in value)
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, (list, tuple) if kind is list else kind)


def _said(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_said, get_args(kind)))
    if get_origin(kind) is list:
        return f"list of {_said(get_args(kind)[0])}"
    return str(kind.__name__)


def differing(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that are not as their defaults, and variables that are set, sorted.

    Paths are absolute, as one folder has one name; ``out`` says where, not what, and is left out.
    What comes back is written and printed, so that it is `discreet`.
    """
    full = absolute({name: params[name] for name in params if name != "out"})
    changed = {n: v for n, v in full.items() if n not in defaults or not _same(v, defaults[n])}
    changed |= {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    return {name: discreet(changed[name]) for name in sorted(changed)}


def differing_in(
    paths: Iterable[str | os.PathLike[str]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """What differs from the default in any of these notebooks, as `differing` has it, sorted."""
    changed = differing({}, {})
    for own in map(of_notebook, paths):
        changed |= differing({name: given[name] for name in given if name in own}, own)
    return dict(sorted(changed.items()))


def discreet(value: Any) -> Any:
    """A parameter, or a mapping or list of them, without passwords and signatures of URLs."""
    if isinstance(value, Mapping):
        return {key: discreet(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [discreet(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other and isinstance(one, bool) == isinstance(other, bool))


def place(changed: Mapping[str, Any]) -> Path:
    """The folder under `results_dir` for what differs from the defaults.

    Its name is the same in every process: the benchmark's for the defaults; else what differs as
    well, as far as a folder's name holds it, and eight digits of a hash that tells it from any
    other: ``mini--seed=1-0d9b7c30``.
    """
    benchmark = str(changed.get("benchmark", "mini"))
    base = re.sub(r"[^\w.+-]+", "_", Path(benchmark).resolve().name, flags=re.ASCII) or "root"
    told = {n: v for n, v in changed.items() if n != "benchmark" or benchmark not in _NAMED}
    if not told:
        return results_dir() / base
    parts = [base, *(f"{name}={_short(value)}" for name, value in told.items())]
    # Where the benchmark is a folder its name is there already.
    text = "--".join(part for part in parts if not part.startswith("benchmark="))[:80].rstrip("-.")
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    return results_dir() / f"{text}-{digest}"


def _short(value: Any) -> str:
    listed = isinstance(value, (list, tuple))
    text = "+".join(map(_short, value)) if listed else str(value)
    return re.sub(r"[^\w.+]+", "_", text, flags=re.ASCII)


def described(changed: Mapping[str, Any] | None) -> str:
    """Settings in words: ``seed = 1``; "defaults" if there are none, "unknown" for None."""
    if changed is None:
        return "unknown"
    told = discreet(changed).items()
    return ", ".join(f"{name} = {value!r}" for name, value in told) or "defaults"


def absolute(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with their relative paths in full, as they are where the caller stands.

    Notebooks run in their own folder, where a relative path would mean something else. What is
    no file or folder here, such as the name of weights, stays; so does a URL.
    """
    full = dict(given)
    for name in full:
        if name in (*_PATHS, *_PERHAPS) and full[name] not in _NAMED:
            full[name] = _absolute(full[name], name in _PATHS)
    if isinstance(encoder := full.get("encoder"), str) and encoder.startswith(_PREFIXES):
        prefix, _, folder = encoder.partition(":")
        full["encoder"] = f"{prefix}:{_absolute(folder)}"
    return full


def _absolute(value: Any, surely: bool = False) -> Any:
    if isinstance(value, (list, tuple)):
        return [_absolute(item, surely) for item in value]
    if not isinstance(value, str) or not value or "://" in value:
        return value
    path = Path(value).expanduser()
    return str(path.resolve()) if surely or path.exists() else value


def read_notebook(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notebook as JSON.

    Raises ValueError if the file is not a notebook; the message names it.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(notebook["cells"], list):
            raise ValueError("its cells are not a list")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a notebook: {error}") from error
    return notebook


def of_notebook(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Names and defaults of a notebook's parameters, as its `parameters` cell assigns them.

    Raises ValueError if the file is not a notebook, or the cell holds anything but literals.
    """
    defaults: dict[str, Any] = {}
    for cell in read_notebook(path)["cells"]:
        if "parameters" not in cell.get("metadata", {}).get("tags", []):
            continue
        for statement in ast.parse("".join(cell["source"])).body:
            if isinstance(statement, ast.Assign):
                targets, value = statement.targets, statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets, value = [statement.target], statement.value
            else:
                continue
            try:
                default = ast.literal_eval(value)
            except ValueError as error:
                line = f"{Path(path).name}, parameters cell, line {statement.lineno}"
                raise ValueError(f"{line}: parameters must be literals") from error
            defaults.update({t.id: default for t in targets if isinstance(t, ast.Name)})
    return defaults


def of_notebooks(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Any]:
    """Names and defaults of the parameters of several notebooks; of two defaults the first."""
    defaults: dict[str, Any] = {}
    for path in paths:
        defaults = {**of_notebook(path), **defaults}
    return defaults


def parse(text: str, defaults: Mapping[str, Any] | None = None) -> tuple[str, Any]:
    """Name and value of a ``name=value`` of the command line.

    The value is a Python or JSON literal where it reads as one, text otherwise. Where `defaults`
    has a parameter that takes a list, ``cat`` and ``cat, dog`` are lists as well, ``1, 2`` too.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"-p takes name=value, not {text!r}")
    name, value = name.strip(), value.strip()
    found = _literal(value)
    kind = kind_of(name, (defaults or {}).get(name))
    if get_origin(kind) is list and found is not None and not fits(found, kind):
        parts = [part.strip() for part in value.split(",") if part.strip()]
        for items in ([_literal(part) for part in parts], parts):
            if fits(items, kind):
                return name, items
    if get_origin(kind) is not list and isinstance(found, tuple):
        found = value  # a text with a comma
    return name, list(found) if isinstance(found, tuple) else found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False, "null": None}.get(text, text)


def typed(value: Any, default: Any) -> Any:
    """1 for 1.0 where the default is an integer, and 1.0 for 1 where it is a float."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (value, default))
    if not numbers or not math.isfinite(value) or type(default)(value) != value:
        return value
    return type(default)(value)


def in_words(names: Sequence[str], values: Mapping[str, Any]) -> str:
    """``seed=1, shots=4``: one point of a grid."""
    return ", ".join(f"{name}={values[name]!r}" for name in names)
