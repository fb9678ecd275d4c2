"""Captions as they come out of one file: Parquet, CSV, TSV or JSON lines, a batch at a time.

A file is read as it stands or not at all: what could be read in two ways raises, and so does what
is longer than a batch may be.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lbutils.captions.text import url_path

_FORMATS = {
    ".parquet": "Parquet",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
}
_PACKINGS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
SUFFIXES = (
    "*.parquet, *.csv, *.tsv, *.jsonl or *.ndjson, all but the first also .gz, .bz2, .xz, .zst"
)
# Columns of captions, tried in this order where neither a column nor a layout is named.
COLUMNS = ("caption", "TEXT")
_TEXT = (pa.string(), pa.large_string(), pa.string_view())
_VIEWS = (pa.ListViewType, pa.LargeListViewType)
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, *_VIEWS)
# Captions (N,) without nulls, the number of each one's row (N,) int64, rows that were read since
# the batch before.
Batch = tuple[pa.StringArray, np.ndarray, int]
# Bytes of captions in one batch, about, and of the longest caption in a file.
BATCH_BYTES = 1 << 25
_BLOCK = 1 << 24
# Rows of Parquet that are decoded at a time. A few bytes may stand for captions of megabytes (in a
# dictionary), so that only the number of rows bounds what they become; more rows are no faster.
_STEP = 64
# What to install for the protocols that fsspec itself does not read.
_EXTRAS = {
    "http": "http",
    "https": "http",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
}

# Limits that the csv module had before captions were read, one for each file that is open.
_limits: list[int] = []
_limits_lock = threading.Lock()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Raise the csv module's limit, 128 kB for all of the process, while captions are read."""
    with _limits_lock:
        _limits.append(csv.field_size_limit(BATCH_BYTES))
    try:
        yield
    finally:
        with _limits_lock:
            before = _limits.pop()
            if not _limits:
                csv.field_size_limit(before)


def name_of(url: str) -> str:
    """The file's own name: of ``zip://in/a.csv::s3://b/c.zip`` that is ``a.csv``."""
    link = next((part for part in url.split("::") if "://" in part), url)
    return PurePosixPath(url_path(link)).name


def format_of(url: str) -> tuple[str, str | None] | None:
    """Format and compression that a file's name tells, whatever its case; None if neither."""
    name = PurePosixPath(name_of(url).lower())
    packing = _PACKINGS.get(name.suffix)
    found = _FORMATS.get(name.with_suffix("").suffix if packing else name.suffix)
    return None if found is None or (packing and found == "Parquet") else (found, packing)


def open_system(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path within it.

    Raises ModuleNotFoundError if a package for the protocol is missing; the message says what to
    install.
    """
    if "://" not in url:
        # For fsspec "::" links places; in the name of a file here it means nothing.
        system = fsspec.filesystem("file")
        return system, system._strip_protocol(url)
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        schemes = re.findall(r"(\w+)(?=::|://)", url)
        extra = next((_EXTRAS[name] for name in schemes if name in _EXTRAS), None)
        remedy = f": python -m pip install 'lbutils[{extra}]'" if extra else ""
        raise ModuleNotFoundError(
            f"{'://, '.join(schemes)}:// cannot be read without a package that is missing"
            f"{remedy} ({error})"
        ) from error


@contextmanager
def open_bytes(url: str) -> Iterator[Any]:
    """The content of a file, without the compression that its name tells."""
    system, path = open_system(url)
    packing = (format_of(url) or ("", None))[1]
    if packing in ("gzip", "bz2", "zstd"):  # Arrow refuses what follows a stream and is none
        with system.open(path, "rb") as raw, pa.CompressedInputStream(raw, packing) as file:
            yield file
    else:
        with system.open(path, "rb") as raw:
            yield io.BufferedReader(_Streams(raw), _BLOCK) if packing == "xz" else raw


class _Streams(io.RawIOBase):
    """Streams of xz, one after the other, and nothing else.

    Python's own reader passes over what follows a stream and is none, such as one whose first bytes
    are damaged.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = b""
        while not part:
            if self._stream.eof:
                content = self._stream.unused_data.lstrip(b"\0")  # between streams
                while not content and (block := self._raw.read(_BLOCK)):
                    content = block.lstrip(b"\0")
                if not content:
                    return 0
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            elif self._stream.needs_input:
                content = self._raw.read(_BLOCK)
                if not content:
                    raise ValueError("its end is missing")
            else:
                content = b""
            part = self._stream.decompress(content, len(buffer))
        buffer[: len(part)] = part
        return len(part)


def head(url: str) -> tuple[list[tuple[str, pa.DataType]], int | None]:
    """Columns of a file with their types, and the number of its rows where it is known."""
    kind = _format(url)
    if kind == "Parquet":
        with _parquet(url) as parquet:
            columns = [(column.name, column.type) for column in parquet.schema_arrow]
            return columns, parquet.metadata.num_rows
    if kind == "JSON lines":
        with closing(_objects(url)) as objects:
            # A key may be missing where there is nothing to say.
            first = list(islice(objects, 1000))
        if not first:
            raise ValueError("it is empty: not one object is there")
        return [
            (key, pa.null()) for key in dict.fromkeys(key for row in first for key in row)
        ], None
    with closing(_records(url, kind, quoted=True)) as records:
        names = next(records)
    if not names:
        raise ValueError("it is empty: not even names of columns are there")
    return [(name, pa.string()) for name in names], None


def is_perhaps_cut(url: str) -> bool:
    """Whether a CSV or TSV file without compression has no line break at its end.

    Formats of other kinds tell themselves that their end is missing. False as well where the store
    cannot be asked for a file's last byte.
    """
    if format_of(url) not in (("CSV", None), ("TSV", None)):
        return False
    system, path = open_system(url)
    try:
        with system.open(path, "rb") as file:
            file.seek(-1, io.SEEK_END)
            return file.read(1) not in (b"\n", b"\r")
    except (OSError, ValueError, NotImplementedError):
        return False


def read_columns(url: str, column: str, rows: int) -> Iterator[pa.Array]:
    """Pieces of a column, one after the other, of at most `rows` rows each."""
    kind = _format(url)
    if kind == "Parquet":
        yield from _parquet_columns(url, column, rows)
        return
    values = _json_values(url, column) if kind == "JSON lines" else _csv_values(url, column, kind)
    with closing(values):
        yield from _pieces(values, rows)


def _format(url: str) -> str:
    if found := format_of(url):
        return found[0]
    raise ValueError(f"its name has no suffix that is read ({SUFFIXES})")


# --- Parquet --------------------------------------------------------------------------------------


@contextmanager
def _parquet(url: str, dictionaries: Iterable[str] = ()) -> Iterator[pq.ParquetFile]:
    system, path = open_system(url)
    # Arrow reads a local file itself, without the interpreter's lock. Whole columns of a row
    # group are not fetched ahead, as some corpora put millions of rows into one.
    options = {"read_dictionary": list(dictionaries), "page_checksum_verification": True}
    with (
        nullcontext(path) if "file" in system.protocol else system.open(path, "rb") as source,
        pq.ParquetFile(source, pre_buffer=False, **options) as parquet,
    ):
        yield parquet


def _parquet_columns(url: str, column: str, rows: int) -> Iterator[pa.Array]:
    with _parquet(url) as parquet:
        nested = _is_list(parquet.schema_arrow.field(column).type)
        names = [parquet.schema.column(k).path for k in range(len(parquet.schema))]
    # A row may have any number of captions, so that lists stay in dictionaries until `flatten`.
    leaves = [name for name in names if name.split(".")[0] == column] if nested else []
    with _parquet(url, leaves) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            meta = parquet.metadata.row_group(group)
            parts = (meta.column(k) for k in range(meta.num_columns))
            size = sum(
                part.total_uncompressed_size
                for part in parts
                if part.path_in_schema.split(".")[0] == column
            )
            fitting = min(rows, max(1, BATCH_BYTES * max(meta.num_rows, 1) // max(size, 1)))
            batches = parquet.iter_batches(
                fitting if nested else min(fitting, _STEP),
                row_groups=[group],
                columns=[column],
                use_threads=False,
            )
            found = (batch.column(0) for batch in batches)
            yield from found if nested else _joined(found, rows)


def _joined(columns: Iterable[pa.Array], rows: int) -> Iterator[pa.Array]:
    """Short columns put together, as far as a batch goes."""
    kept: list[pa.Array] = []
    number = size = 0
    for column in columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if kept and (number + len(column) > rows or size >= BATCH_BYTES):
            yield pa.concat_arrays(kept)
            kept, number, size = [], 0, 0
        kept.append(column)
        number, size = number + len(column), size + column.nbytes
    if kept:
        yield pa.concat_arrays(kept)


# --- CSV, TSV and JSON lines ----------------------------------------------------------------------


def _lines(url: str) -> Generator[str, None, None]:
    """Lines of a text in UTF-8, with their ends."""
    with open_bytes(url) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        while line := text.readline(BATCH_BYTES):
            if len(line) == BATCH_BYTES and line[-1] not in "\r\n":
                raise ValueError(f"a line of it is longer than {BATCH_BYTES:,} letters")
            yield line


def _records(url: str, kind: str, quoted: bool) -> Generator[list[str], None, None]:
    """Names of the columns, then the fields of every row, all rows being equally long."""
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with _long_fields(), closing(_lines(url)) as lines:
        delimiter = "\t" if kind == "TSV" else ","
        reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
        columns = next(reader, [])
        yield columns
        for record in reader:
            if not record and len(columns) == 1:
                record = [""]  # an empty line is an empty caption where there is nothing else
            if record and len(record) != len(columns):
                raise ValueError(
                    f"line {reader.line_num} has {len(record)} fields, the first {len(columns)}"
                )
            if record:
                yield record


def _is_quoted(url: str, kind: str) -> bool:
    """Whether quotes enclose fields, or are letters like others, as in many TSV files.

    The file is read both ways, and one of them must fail or both give the same rows. A title
    that begins with a quote would otherwise swallow the rows up to the next quote.
    """
    with open_bytes(url) as raw:
        if not any(b'"' in block for block in iter(lambda: raw.read(_BLOCK), b"")):
            return False
    rows, columns, faults = {}, 0, {}
    for quoted in (True, False):
        try:
            with closing(_records(url, kind, quoted)) as records:
                columns = len(next(records))
                rows[quoted] = sum(1 for _ in records)
        except (ValueError, csv.Error) as error:
            faults[quoted] = error
    if len(faults) == 2:
        raise faults[True]
    if str(faults.get(True)) == "unexpected end of data" and _has_enclosed(url, kind):
        raise ValueError(
            "a quote is open at its end and others enclose fields: it may be cut short"
        )
    # In one column any text has as many rows as lines, but in CSV the quotes are the rule.
    if not faults and rows[True] != rows[False] and not (kind == "CSV" and columns == 1):
        raise ValueError(
            f"it has {rows[True]:,} rows if quotes enclose fields, {rows[False]:,} if they do not, "
            "and either may be meant: write it as Parquet"
        )
    return True not in faults


def _has_enclosed(url: str, kind: str) -> bool:
    """Whether a field has a quote at both ends, as those have that quotes enclose."""
    with closing(_records(url, kind, quoted=False)) as records:
        return any(
            len(field) > 1 and field[0] == field[-1] == '"' for row in records for field in row
        )


def _csv_values(url: str, column: str, kind: str) -> Generator[str, None, None]:
    with closing(_records(url, kind, _is_quoted(url, kind))) as records:
        place = next(records).index(column)
        yield from (record[place] for record in records)


def _objects(url: str) -> Generator[dict[str, Any], None, None]:
    """The object of every line that is not blank."""
    with closing(_lines(url)) as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            found = json.loads(line, object_pairs_hook=_object)
            if not isinstance(found, dict):
                raise ValueError(f"line {number} is not an object with named values")
            yield found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"one object has the same key twice: {[key for key, _ in pairs]}")
    return found


def _json_values(url: str, column: str) -> Generator[Any, None, None]:
    alike = {column.casefold(), *(name.casefold() for name in COLUMNS)}
    with closing(_objects(url)) as objects:
        for row in objects:
            # Programs that changed their mind in the middle of a file, not an absent caption.
            other = [key for key in row if key.strip().casefold() in alike]
            if column not in row and other:
                raise ValueError(f"an object has {other[0]!r} where others have {column!r}")
            yield row.get(column)


def _pieces(values: Iterable[Any], rows: int) -> Iterator[pa.Array]:
    """Columns of as many values as a batch may hold."""
    kept: list[Any] = []
    size = 0
    for value in values:
        kept.append(value)
        # Lists nest, so what they hold is not counted letter by letter.
        size += len(value) if isinstance(value, str) else len(str(value))
        if len(kept) >= rows or size >= BATCH_BYTES:
            yield _array(kept)
            kept, size = [], 0
    if kept:
        yield _array(kept)


def _array(values: list[Any]) -> pa.Array:
    column = pa.array(values)
    if not holds_text(column.type):
        raise ValueError(f"its column holds {column.type}, not captions")
    return column


# --- columns --------------------------------------------------------------------------------------


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, in dictionaries or lists or not, or nulls."""
    while _is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in _TEXT or pa.types.is_null(kind)


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(kind, _LISTS)


def batches(columns: Iterable[pa.Array], rows: int) -> Iterator[Batch]:
    """`flatten` of one column after the other, with rows that are numbered through all of them."""
    start = 0
    for column in columns:
        for captions, number in flatten(column, rows):
            yield captions, number + start, 0
        start += len(column)
        # Its rows are numbered together, so they count as read once it is done.
        yield pa.array([], pa.string()), np.empty(0, np.int64), len(column)


def flatten(column: pa.Array, rows: int) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    """Batches of the captions of a column of strings, or of lists of them, and the row of each.

    Nulls are left out. A batch has at most `rows` captions, and of bytes no more than
    `BATCH_BYTES` unless a single caption has.

    Raises pyarrow.ArrowInvalid if a caption is not UTF-8. This is a ValueError too.
    """
    number = np.arange(len(column))
    while _is_list(column.type):
        number = number[pc.list_parent_indices(column).to_numpy()]
        column = pc.list_flatten(column)
    if pa.types.is_null(column.type):
        return
    end = np.cumsum(_sizes(column))
    start = 0
    while start < len(column):
        before = end[start - 1] if start else 0
        stop = int(np.searchsorted(end, before + BATCH_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + rows)
        part, place = column.slice(start, stop - start), number[start:stop]
        if pa.types.is_dictionary(part.type):
            part = part.dictionary_decode()
        part = part.cast(pa.string())
        if part.null_count:
            place = place[pc.is_valid(part).to_numpy(zero_copy_only=False)]
            part = part.drop_null()
        part.validate(full=True)
        yield part, place
        start = stop


def _sizes(column: pa.Array) -> np.ndarray:
    """Bytes of every value (N,) int64, none for nulls."""
    if pa.types.is_dictionary(column.type):
        sizes = np.append(_sizes(column.dictionary), 0)
        return sizes[column.indices.cast(pa.int64()).fill_null(len(sizes) - 1).to_numpy()]
    if column.type == pa.string_view():
        column = column.cast(pa.large_string())
    sizes = pc.binary_length(column).fill_null(0)
    return sizes.to_numpy(zero_copy_only=False).astype(np.int64)
