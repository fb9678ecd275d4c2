"""Captions on disk or at a URL: which files there are, what identifies them, and their rows.

Nothing here holds more than a batch of captions in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from lbutils._util import suggest
from lbutils.captions.text import url_path

_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
SUFFIXES = (".parquet", *_TABLES)
_TEXT = (pa.string(), pa.large_string(), pa.string_view())
# What stores call the digest of a file's content, so that it need not be downloaded for one.
_TAGS = ("ETag", "etag", "sha256", "md5Hash", "md5", "checksum", "content_md5")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# Bytes of captions in one batch, about: captions may be a megabyte long.
BATCH_BYTES = 1 << 25
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Layout:
    """How a published corpus lies on disk: caption column, files and captions in all, scale."""

    column: str
    files: int
    captions: int
    scale: str


# Source: the corpora's own pages, and the download recipes of img2dataset (dataset_examples).
LAYOUTS = {
    "laion400m": Layout("TEXT", 32, 413_000_000, "400m"),
    "laion2B-en": Layout("TEXT", 128, 2_320_000_000, "2b"),
    "laion2B-multi": Layout("TEXT", 128, 2_260_000_000, "5b"),
    "laion1B-nolang": Layout("TEXT", 128, 1_270_000_000, "5b"),
    "laion5B": Layout("TEXT", 384, 5_850_000_000, "5b"),
    "relaion2B-en": Layout("caption", 128, 2_100_000_000, "2b"),
}
# Tried in this order where neither a column nor a layout is named.
_COLUMNS = ("caption", "TEXT")


class Sources(tuple[str, ...]):
    """Paths, patterns and URLs of files of captions, to tell them from captions themselves."""


@dataclass(frozen=True)
class File:
    """One file of captions: its URL or path, and the column that holds them."""

    url: str = field(repr=False)  # it may hold a password, and clusters print their tasks
    column: str
    rows: int | None  # None where only reading it all would tell
    error: str = ""

    @property
    def name(self) -> str:
        """The file's own name, without folders and without a URL's query."""
        return PurePosixPath(url_path(self.url)).name


def find_urls(source: str | os.PathLike[str]) -> list[str]:
    """The files of captions at a path or URL, sorted.

    Parameters
    ----------
    source : str or path
        A file; a folder, searched to any depth; a pattern (``s3://bucket/part-*.parquet``); or
        numbered URLs, ``https://host/part-{00000..00031}.parquet``. Any protocol that fsspec
        knows. Parquet, CSV and TSV files are taken, the latter also compressed by gzip.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    """
    source = os.fspath(source)
    if numbered := _RANGE.search(source):
        low, high = numbered.groups()
        numbers = (f"{k:0{len(low)}}" for k in range(int(low), int(high) + 1))
        head, tail = source[: numbered.start()], source[numbered.end() :]
        return [url for number in numbers for url in find_urls(f"{head}{number}{tail}")]
    system, path = fsspec.core.url_to_fs(source)
    if any(sign in path for sign in "*?[") and not system.exists(path):
        found = [name for name in system.glob(path) if url_path(name).endswith(SUFFIXES)]
        what = f"no file of captions matches {source}"
    elif system.isdir(path):
        found = [name for name in system.find(path) if url_path(name).endswith(SUFFIXES)]
        what = f"no *.parquet or *.csv file in {source}"
    else:
        found = [path] if system.exists(path) else []
        what = f"no Parquet or CSV file, or folder of them, at {source}"
    # What another program is still writing, or macOS leaves behind, starts with a dot.
    found = [name for name in found if len(found) == 1 or PurePosixPath(name).name[0] != "."]
    if not found:
        raise FileNotFoundError(what)
    return sorted(system.unstrip_protocol(name) if "://" in source else name for name in found)


def inspect(url: str, column: str | None = None) -> File:
    """The file with its column and number of rows, or with what is wrong with it in `error`."""
    try:
        kind, columns, rows = _parquet_head(url) if _kind(url) == "Parquet" else _csv_head(url)
    except (pa.ArrowException, OSError, EOFError) as error:
        return File(url, column or "", None, f"{url} is not a readable {_kind(url)} file: {error}")
    wanted = column or default_column(columns)
    if wanted not in columns:
        return File(url, wanted, None, f"{url}: {suggest(wanted, columns, 'column')}")
    found = kind(wanted)
    if not is_text(found):
        return File(url, wanted, None, f"{url}: column {wanted!r} holds {found}, not captions")
    return File(url, wanted, rows)


def default_column(columns: Iterable[str]) -> str:
    """The column of captions where none is named: ``caption``, or else ``TEXT``."""
    names = list(columns)
    return next((name for name in _COLUMNS if name in names), _COLUMNS[0])


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, plain or in dictionaries or lists."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return kind in _TEXT


def _kind(url: str) -> str:
    return "Parquet" if url_path(url).endswith(".parquet") else "CSV"


def _parquet_head(url: str) -> tuple[Any, list[str], int]:
    with _parquet(url) as parquet:
        schema = parquet.schema_arrow
        return (lambda column: schema.field(column).type), schema.names, parquet.metadata.num_rows


def _csv_head(url: str) -> tuple[Any, list[str], None]:
    with _open(url) as raw, pa.csv.open_csv(raw, **_csv_options(url)) as reader:
        return (lambda column: pa.string()), reader.schema.names, None


def _csv_options(url: str, column: str | None = None) -> dict[str, Any]:
    delimiter = "\t" if ".tsv" in PurePosixPath(url_path(url)).suffixes else ","
    # Read as they stand: no caption is a number or a null because it looks like one.
    only = {"include_columns": [column], "column_types": {column: pa.string()}} if column else {}
    return {
        "read_options": pa.csv.ReadOptions(block_size=_BLOCK, use_threads=False),
        "parse_options": pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        "convert_options": pa.csv.ConvertOptions(**only),
    }


def _open(url: str) -> Any:
    system, path = fsspec.core.url_to_fs(url)
    return system.open(path, "rb", compression="gzip" if url_path(url).endswith(".gz") else None)


@contextmanager
def _parquet(url: str) -> Iterator[pq.ParquetFile]:
    system, path = fsspec.core.url_to_fs(url)
    # Arrow reads a local file itself, without the interpreter's lock. Whole columns of a row
    # group are not fetched ahead, as some corpora put millions of rows into one.
    local = "file" in system.protocol
    with (
        nullcontext(path) if local else system.open(path, "rb") as source,
        pq.ParquetFile(source, pre_buffer=False) as parquet,
    ):
        yield parquet


def fingerprint(url: str) -> str:
    """What identifies the file's content: SHA-256 of a local file, the store's tag of a remote.

    A store that keeps no digest (plain HTTP often does not) is asked for the file instead.
    """
    system, path = fsspec.core.url_to_fs(url)
    if "file" not in system.protocol:
        info = system.info(path)
        tags = {name: str(info[name]) for name in _TAGS if info.get(name)}
        if tags:
            name, tag = next(iter(tags.items()))
            return f"{name.lower()}:{tag} size:{info.get('size')}"
    digest = hashlib.sha256()
    with system.open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def read(file: File, rows: int) -> Iterator[tuple[pa.StringArray, np.ndarray, int]]:
    """Batches of a file: captions (N,) without nulls, their row numbers (N,), rows read.

    Parameters
    ----------
    file : File
    rows : int
        Rows in a batch, at most; fewer where captions are long.

    Raises
    ------
    ValueError
        If the file is truncated or corrupt; the message names it.
    """
    start = 0
    try:
        for column in _columns(file, rows):
            # A reader may give more than was asked for: CSV comes in blocks.
            for k in range(0, len(column), rows):
                part = column.slice(k, rows)
                captions, numbers = flatten(part)
                yield captions, numbers + start, len(part)
                start += len(part)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.url} is truncated or corrupt: {error}") from error


def _columns(file: File, rows: int) -> Iterator[pa.Array]:
    if _kind(file.url) != "Parquet":
        options = _csv_options(file.url, file.column)
        with _open(file.url) as raw, pa.csv.open_csv(raw, **options) as reader:
            yield from (batch.column(0) for batch in reader)
        return
    with _parquet(file.url) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            meta = parquet.metadata.row_group(group)
            parts = (meta.column(k) for k in range(meta.num_columns))
            size = sum(
                part.total_uncompressed_size
                for part in parts
                if part.path_in_schema.split(".")[0] == file.column
            )
            fitting = max(1, BATCH_BYTES * max(meta.num_rows, 1) // max(size, 1))
            batches = parquet.iter_batches(
                min(rows, fitting), row_groups=[group], columns=[file.column], use_threads=False
            )
            yield from (batch.column(0) for batch in batches)


def flatten(column: pa.Array) -> tuple[pa.StringArray, np.ndarray]:
    """The captions of a column of strings, or of lists of them, and the row of each.

    Nulls are left out.
    """
    rows = np.arange(len(column))
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows = rows[pc.list_parent_indices(column).to_numpy()]
        column = pc.list_flatten(column)
    if column.null_count:
        rows = rows[pc.is_valid(column).to_numpy(zero_copy_only=False)]
        column = column.drop_null()
    return column.cast(pa.string()), rows
