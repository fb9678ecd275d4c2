"""What a run found: one JSON file a run, and the tidy table over many of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lbutils._util import PACKAGE, file_name, is_installed, replacing, suggest, write_text

KEY = ("method", "encoder", "benchmark", "domain", "vocabulary", "shots", "seed", "metric")
VALUES = ("value", "low", "high")
CLAIM = ("id", "claim", "ours", "low", "high", "unit", "published", "verdict", "note")
VERDICTS = ("reproduced", "not shown", "contradicted", "not run")
ORIGIN = ("kind", "settings", "record")
_FIELDS: dict[str, type] = {
    "kind": str,
    "key": dict,
    "params": dict,
    "metrics": list,
    "claims": list,
    "provenance": dict,
}
_PACKAGES = (
    "lbutils",
    "numpy",
    "open-clip-torch",
    "pandas",
    "pillow",
    "polars",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)


def about(encoder: Any, benchmark: Any, seed: int) -> dict[str, Any]:
    """Columns of `KEY` that every figure of a run shares: of a `DualEncoder` and a `Benchmark`."""
    name = f"{encoder.name}/{encoder.pretrained}"
    return {"encoder": name, "benchmark": benchmark.name, "seed": seed}


def values(found: Iterable[float]) -> dict[str, float]:
    """A mean with the ends of its interval, in the columns `VALUES`."""
    return dict(zip(VALUES, found, strict=True))


def write_record(
    folder: str | os.PathLike[str],
    kind: str,
    key: Mapping[str, Any],
    metrics: Iterable[Mapping[str, Any]] | pd.DataFrame = (),
    *,
    settings: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    claims: Iterable[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """The path of the record that now holds this run's results.

    The file is written beside its place and moved there, so that a reader sees the whole
    record or none. A run with the same `kind`, `key` and `settings` replaces its record.

    Raises ValueError if a field is unknown, a verdict is not one of `VERDICTS`, a metric has no
    name or value, two metrics have the same key, or a number is infinite (NaN becomes null). Raises
    TypeError if something is neither JSON nor a NumPy scalar or array, nor a path.

    Parameters
    ----------
    folder : path
        Where records lie; made if missing. A path that ends in ``.json`` is taken as the file.
    kind : str
        What made the record: for a notebook its stem, such as ``"02_clustering_analysis"``.
    key : mapping
        What tells this run from others of its kind: benchmark, encoder, seed, ...
    metrics : iterable of mapping or DataFrame
        One row per figure: the columns of `KEY` that apply (others are null), and ``value``,
        and ``low`` and ``high`` where there is an interval.
    settings : mapping, optional
        What was set otherwise than by default, as `lbutils.run.parameters.check` finds it; nothing
        unless said. Records of different settings are never mixed.
    params : mapping, optional
        Whatever else is worth knowing of how it was made.
    claims : iterable of mapping
        Verdicts on the paper's claims: ``id``, ``claim``, ``ours``, ``low``, ``high``, ``unit``,
        ``published``, ``verdict`` (one of `VERDICTS`), ``note``; missing ones are null.
    provenance : mapping, optional
        Default: `provenance_of` the key's seed.
    """
    if isinstance(metrics, pd.DataFrame):
        metrics = metrics.to_dict("records")
    rows = [_row(row, (*KEY, *VALUES), "metric field", ("metric", "value")) for row in metrics]
    seen: set[str] = set()
    for row in rows:
        identity = _canonical({name: row[name] for name in KEY})
        if identity in seen:
            raise ValueError(f"two metrics of one record have the key {identity}")
        seen.add(identity)
    verdicts = [_row(row, CLAIM, "claim field", ("id", "verdict")) for row in claims]
    for row in verdicts:
        if row["verdict"] not in VERDICTS:
            raise ValueError(suggest(row["verdict"], VERDICTS, "verdict"))
    found = provenance_of(key.get("seed")) if provenance is None else provenance
    record = {
        "kind": kind,
        "key": _plain(key),
        "settings": _plain(settings or {}),
        "params": _plain(params or {}),
        "metrics": rows,
        "claims": verdicts,
        "provenance": _plain(found),
    }
    place = Path(folder)
    if place.suffix != ".json":
        told = [record["key"], record["settings"]] if record["settings"] else record["key"]
        digest = hashlib.sha256(_canonical(told).encode()).hexdigest()[:12]
        place = place / file_name(f"{kind}-{digest}.json", "kind", "the record")
    write_text(place, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return place


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One record, as a dictionary of kind, key, settings, params, metrics, claims and provenance.

    Records of before there were settings have None there: it is not known what was set.

    Raises ValueError if the file cannot be read or is not a record; the message names it.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        for field, kind in _FIELDS.items():
            if not isinstance(record.get(field), kind):
                raise ValueError(f"no {field}" if field not in record else f"{field} is no {kind}")
        record = {"settings": None, **record}
        if not isinstance(record["settings"], dict | None):
            raise ValueError("settings are no mapping")
        for row in record["metrics"]:
            _row(row, (*KEY, *VALUES), "metric field", ("metric", "value"))
            if any(isinstance(row.get(name), (str, list, dict)) for name in VALUES):
                raise ValueError(f"a value is no number: {row!r:.80}")
        for row in record["claims"]:
            _row(row, CLAIM, "claim field", ("id", "verdict"))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a readable record ({error}): delete it and run its notebook again"
        ) from error
    return record


def record_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The record files in `folder` and in every ``records`` folder below it, sorted."""
    root = Path(folder)
    nested = (path for path in root.rglob("*.json") if path.parent.name == "records")
    return sorted({*root.glob("*.json"), *nested} - {root / "run.json"})


def read_records(
    folder: str | os.PathLike[str], troubles: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Every record of a folder by its file, relative to the folder; the oldest file first.

    `folder` (path): searched as `record_files` does. `troubles` (list of str, optional): takes what
    is wrong with a file, which is then passed over.

    Raises ValueError if a file is not a record and `troubles` is not given; the message names it.
    """
    found = {}
    for path in sorted(record_files(folder), key=lambda path: path.stat().st_mtime_ns):
        try:
            found[path.relative_to(folder).as_posix()] = read_record(path)
        except ValueError as error:
            if troubles is None:
                raise
            troubles.append(str(error))
    return found


def collect(
    folder: str | os.PathLike[str], kind: str | None = None, troubles: list[str] | None = None
) -> pd.DataFrame:
    """A tidy table of every metric in the records of a folder.

    Raises ValueError if a file is not a record, or two records of the same settings give one key
    different values; the message names them. Where they agree, the first one's row is kept.

    `folder` (path): searched as `record_files` does. `kind` (str, optional): keep the records of
    this kind only. `troubles` (list of str, optional): takes what would be an error; damaged files
    are then passed over, and of rows that disagree all are kept.

    Returns
    -------
    DataFrame
        The columns of `KEY` and `VALUES`, then ``kind``, ``settings`` (canonical JSON, null if
        not known) and ``record`` (the file, relative to `folder`); sorted by key and settings.
        Shots and seeds are nullable integers.
    """
    rows = []
    for name, record in sorted(read_records(folder, troubles).items()):
        if kind is None or record["kind"] == kind:
            rows += [row | _origin(name, record) for row in record["metrics"]]
    table = pd.DataFrame(rows, columns=[*KEY, *VALUES, *ORIGIN])
    integers = dict.fromkeys(("shots", "seed"), "Int64")
    table = table.astype({**integers, **dict.fromkeys(VALUES, "float64")})
    identity, keep = [*KEY, "settings"], pd.Series(False, index=table.index)
    twice = table[table.duplicated(identity, keep=False)]
    for key, rows_of_key in twice.groupby(identity, dropna=False, sort=False):
        if _agree(rows_of_key):
            continue
        named = {name: part for name, part in zip(identity, key, strict=True) if pd.notna(part)}
        files = ", ".join(rows_of_key["record"])
        trouble = f"the key {named} has different values in {files}"
        if troubles is None:
            raise ValueError(trouble)
        troubles.append(trouble)
        keep[rows_of_key.index] = True
    table = table[~table.duplicated(identity) | keep]
    return table.sort_values(identity, ignore_index=True, kind="stable")


def collect_claims(
    folder: str | os.PathLike[str], troubles: list[str] | None = None
) -> pd.DataFrame:
    """One row per claim id and settings in the records of a folder, the newest of several.

    Parameters are those of `read_records`.

    Returns a DataFrame: the columns of `CLAIM`, then ``kind``, ``settings`` (canonical JSON, null
    if not known) and ``record``.
    """
    newest: dict[tuple[str | None, ...], dict[str, Any]] = {}
    for name, record in read_records(folder, troubles).items():
        origin = _origin(name, record)
        for row in record["claims"]:
            newest[row["id"], origin["settings"]] = row | origin
    return pd.DataFrame(list(newest.values()), columns=[*CLAIM, *ORIGIN])


def above(found: Sequence[float], bound: float) -> str:
    """Verdict on "lies above the bound", of a mean with its interval: by the whole interval.

    Parameters
    ----------
    found : sequence of float
        Mean, low, high, and whatever follows.
    """
    _, low, high = found[:3]
    return "reproduced" if low > bound else "contradicted" if high < bound else "not shown"


def below(found: Sequence[float], bound: float) -> str:
    """Verdict on "lies below the bound", as `above`."""
    mean, low, high = found[:3]
    return above((-mean, -high, -low), -bound)


def equivalent(found: Sequence[float], margin: float) -> str:
    """Verdict on "lies within the margin around nothing": by the whole interval."""
    _, low, high = found[:3]
    if -margin < low and high < margin:
        return "reproduced"
    return "contradicted" if low > margin or high < -margin else "not shown"


def both(*verdicts: str) -> str:
    """Verdict on a claim of several parts: all must hold, and one that fails decides.

    Of no part at all it is "not run".
    """
    found = [v for v in ("contradicted", "not run", "not shown", "reproduced") if v in verdicts]
    return found[0] if found else "not run"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings as the ``settings`` column of tables has them."""
    return _canonical(_plain(settings))


def _origin(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """The columns `ORIGIN` of a record's rows."""
    known = record["settings"] is not None
    settings = settings_text(record["settings"]) if known else None
    return {"kind": record["kind"], "settings": settings, "record": name}


def _agree(rows: pd.DataFrame) -> bool:
    """Whether rows with one key say the same, up to the last digits of another thread count."""
    values = rows[list(VALUES)].to_numpy()
    return bool(np.allclose(values, values[0], rtol=0, atol=1e-6, equal_nan=True))


def write_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """The path of the CSV or Parquet file (by its suffix) that now holds `table`."""
    place = Path(path)
    if place.suffix == ".csv":
        write_text(place, table.to_csv(index=False))
    elif place.suffix == ".parquet":
        with replacing(place) as temporary:
            table.to_parquet(temporary, index=False)
    else:
        raise ValueError(suggest(place.suffix, [".csv", ".parquet"], "table format"))
    return place


def provenance_of(seed: int | None = None) -> dict[str, Any]:
    """Where a result came from: versions, commit, platform, threads, seed and time."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := installed(name))},
        "commit": _commit(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": _threads(),
        "seed": None if seed is None else int(seed),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def installed(package: str) -> str | None:
    """Version of an installed package, if it is one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the repository that this package is used from, with a + if files differ from it.

    None for an installed package: a repository around its environment is another project's.
    """
    if is_installed():
        return None
    # No tag is looked for, so that the commit itself is told, in full.
    describe = "describe --always --exclude=* --abbrev=40 --dirty=+".split()
    git = ["git", "-C", str(PACKAGE), *describe]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _threads() -> int:
    # Asked of torch only if it is loaded already: this module works without it.
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() else os.cpu_count() or 1


def _row(
    row: Mapping[str, Any], fields: Sequence[str], what: str, required: Sequence[str]
) -> dict[str, Any]:
    """The row with every field in order, checked and made plain."""
    for name in row:
        if name not in fields:
            raise ValueError(suggest(name, fields, what))
    plain = {name: _plain(row.get(name)) for name in fields}
    for name in ("shots", "seed"):
        # A column of integers with gaps comes out of pandas as floats.
        if isinstance(plain.get(name), float) and plain[name].is_integer():
            plain[name] = int(plain[name])
    for name in required:
        if name not in row or (plain[name] is None and name != "value"):
            raise ValueError(f"a {what.split()[0]} without {name!r}: {dict(row)!r:.200}")
    return plain


def _plain(value: Any) -> Any:
    """The value in JSON's own types; NaN and pandas' missing values become null."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("a record cannot hold an infinite number")
        return None if math.isnan(value) else float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise TypeError(f"a record cannot hold {type(value).__name__}: {value!r:.80}")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
