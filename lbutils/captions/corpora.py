"""Captions on disk or at a URL: which files there are, what identifies them, and their rows.

Nothing here holds more than a batch of captions in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lbutils._util import hexdigest, suggest
from lbutils.captions.tables import (
    BATCH_BYTES,
    COLUMNS,
    SUFFIXES,
    Batch,
    batches,
    format_of,
    head,
    holds_text,
    is_perhaps_cut,
    name_of,
    open_system,
    read_columns,
)

# What stores call the digest of a file's content, so that it need not be downloaded for one.
_TAGS = ("ETag", "etag", "sha256", "md5Hash", "md5", "checksum", "content_md5")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# By their names no captions: what people and programs put beside tables.
_BESIDE = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog)(\.\w+)?"
    r"|.*\.(md|rst|crc|md5|sha1|sha256|sha512|py|ipynb|sh|ya?ml|toml|jpe?g|png|webp|gif|svg)",
    re.IGNORECASE,
)
# Folders of copies that a writer has not committed, or of what readers of Delta Lake look up.
_UNFINISHED = ("_temporary", "_delta_log")


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


class Sources(tuple[str, ...]):
    """Paths, patterns and URLs of files of captions, to tell them from captions themselves."""


@dataclass(frozen=True)
class File:
    """One file of captions: its URL or path, the column that holds them, and what named it.

    A file with an `error` is not read, so that no name can be said to be absent; nor can it with
    a `doubt`, of which the captions are counted.
    """

    url: str = field(repr=False)  # it may hold a password, and clusters print their tasks
    column: str
    rows: int | None  # None where only reading it all would tell
    error: str = ""
    source: str = ""
    doubt: str = ""

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return name_of(self.url)


@dataclass(frozen=True)
class Beside:
    """A file that is passed over and cannot hold captions of its own, and why."""

    url: str
    reason: str


def find(sources: Iterable[str | os.PathLike[str]]) -> tuple[list[File], list[Beside]]:
    """The files that sources name, each once, and what was found beside them.

    Every file that is found is in one of the lists. It is passed over as `Beside` if it was found
    already (under another name, by a link), or, in a folder or by a pattern, if its name tells that
    it holds no captions: documentation, checksums, code, images, and hidden files and markers
    (names that begin with "." or "_") without a suffix of captions. Anything else that cannot
    be read is a file with an `error`: other suffixes, hidden files with a suffix of captions,
    ``_temporary`` folders, a missing member of a range.

    Raises FileNotFoundError if a source names nothing that can be read or fails to be. Raises
    ValueError if there is no source, or a range ends before it begins.

    Parameters
    ----------
    sources : iterable of str or path
        A file; a folder, searched to any depth; a pattern (``s3://bucket/part-*.parquet``); or
        numbered URLs, ``https://host/part-{00000..00031}.parquet``. Any protocol that fsspec
        knows, and its chains: ``simplecache::https://...`` reads of servers that send whole files
        only. Parquet, CSV, TSV and JSON lines are read, the last three also compressed by gzip,
        bzip2, xz or zstd.
    """
    files: list[File] = []
    beside: list[Beside] = []
    for source in [os.fspath(source) for source in sources]:
        found = _reached(source)
        if all(isinstance(one, Beside) for one in found):
            raise FileNotFoundError(f"no file of captions ({SUFFIXES}) at {source}")
        files += [replace(one, source=source) for one in found if isinstance(one, File)]
        beside += [one for one in found if isinstance(one, Beside)]
    if not files:
        raise ValueError("no files of captions are named: the list of sources is empty")
    first: dict[Any, File] = {}
    keys = [_identity(*open_system(file.url), file.url) for file in files]
    # Of several names of a file, one under which it can be read, and the first of these.
    for key, file in sorted(zip(keys, files, strict=True), key=lambda pair: bool(pair[1].error)):
        first.setdefault(key, file)
    kept = [file for key, file in zip(keys, files, strict=True) if first[key] is file]
    beside += [
        Beside(file.url, f"the same file as {first[key].url}, which is counted once")
        for key, file in zip(keys, files, strict=True)
        if first[key] is not file
    ]
    return kept, list(dict.fromkeys(beside))


def find_urls(source: str | os.PathLike[str]) -> list[str]:
    """The files of captions at a path or URL that may be read, sorted; see `find`."""
    return [file.url for file in find([source])[0] if not file.error]


def _reached(source: str) -> list[File | Beside]:
    """`_members`, with the errors that stores have of their own as OSError."""
    try:
        return _members(source)
    except (OSError, ValueError, ModuleNotFoundError):
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        raise OSError(f"{source} cannot be reached: {said}") from error


def _members(source: str) -> list[File | Beside]:
    """All that a source names, in the order of their names."""
    if numbered := _RANGE.search(source):
        return _numbered(source, numbered)
    system, path = open_system(source)
    found: dict[str, tuple[str, str]] = {}
    if any(sign in path for sign in "*?[") and not system.exists(path):
        fixed = next(k for k, part in enumerate(path.split("/")) if any(c in part for c in "*?["))
        for name in system.glob(path):
            below = "/".join(name.split("/")[fixed:])
            found |= _walk(system, name, {}, below) if system.isdir(name) else {name: (below, "")}
    # Where there are no folders, asking for one may download the file.
    elif not (format_of(source) and "http" in system.protocol) and system.isdir(path):
        found = _walk(system, path, {})
    elif system.exists(path):
        return [File(source, "", None, _unreadable(source))]
    else:
        raise FileNotFoundError(f"nothing is there: {source}")
    return [_member(_url(source, system, name), *found[name]) for name in sorted(found)]


def _numbered(source: str, numbered: re.Match[str]) -> list[File | Beside]:
    """The members of the range; one that is missing is a file with an error."""
    low, high = numbered.groups()
    if int(low) > int(high):
        raise ValueError(f"{source}: the range {numbered[0]} is empty; {high} is less than {low}")
    head_, tail = source[: numbered.start()], source[numbered.end() :]
    found: list[File | Beside] = []
    missing = 0
    numbers = range(int(low), int(high) + 1)
    for k in numbers:
        url = f"{head_}{k:0{len(low)}}{tail}"
        try:
            found += _members(url)
        except OSError as error:
            found.append(File(url, "", None, f"{url} cannot be read: {error}"))
            missing += 1
    if missing == len(numbers):
        raise FileNotFoundError(f"no member of the range is there: {source}")
    return found


def _walk(
    system: Any, folder: str, seen: dict[Any, str], below: str = ""
) -> dict[str, tuple[str, str]]:
    """Every file in a folder: its path from there on, and an error; links to folders are followed.

    A folder that cannot be listed stands for what is in it.
    """
    key = _identity(system, folder, folder)
    if key in seen:
        return {}
    seen[key] = folder
    try:
        listed = system.ls(folder, detail=True)
    except OSError as error:
        return {folder: (below or folder, f"{folder} cannot be listed: {error}")}
    found: dict[str, tuple[str, str]] = {}
    for info in listed:
        name = info["name"].rstrip("/")
        inside = f"{below}/{PurePosixPath(name).name}".lstrip("/")
        if name == folder.rstrip("/"):
            continue  # some stores list a folder in itself
        if info["type"] == "directory" or (info["type"] == "other" and system.isdir(name)):
            found |= _walk(system, name, seen, inside)
        else:
            plain = info["type"] == "file" or system.isfile(name)
            found[name] = (inside, "" if plain else f"{name} is a broken link, or no file")
    return found


def _member(url: str, below: str, error: str) -> File | Beside:
    """A file in a folder or found by a pattern, judged by its name."""
    *folders, name = below.split("/")
    hidden = [part for part in (*folders, name) if part[:1] == "." or part in _UNFINISHED]
    if not error and (name.startswith("._") or (not format_of(name) and _BESIDE.fullmatch(name))):
        return Beside(url, "by its name no file of captions")
    if not error and not format_of(name) and (hidden or name.startswith("_")):
        return Beside(url, "hidden or a marker, and without a suffix of captions")
    if not error and "://" in url and "::" in below:
        error = f"{url} has :: in its name, by which another file would be read: rename it"
    if not error and hidden:
        error = f"{url} is hidden or unfinished ({hidden[0]}), so it is not read: remove it, or "
        error += "name the files that are meant by a pattern"
    return File(url, "", None, error or _unreadable(url))


def _unreadable(url: str) -> str:
    if format_of(url):
        return ""
    return f"{url} has no suffix that is read ({SUFFIXES}): convert it, or name the others only"


def _url(source: str, system: Any, name: str) -> str:
    """The name as `open_system` takes it, behind the protocols of its source."""
    if "://" not in source:
        return name
    links = source.split("::")
    first = next(k for k, link in enumerate(links) if "://" in link)
    return "::".join([*links[:first], system.unstrip_protocol(name), *links[first + 1 :]])


def _identity(system: Any, path: str, url: str) -> Any:
    """What is equal for two names of the same file, through links and spellings; else the URL."""
    if "file" not in system.protocol:
        return url
    try:
        found = Path(path).stat()
    except OSError:
        return url
    # Some file systems give several files one number.
    content = (found.st_size, found.st_mtime_ns)
    return (found.st_dev, found.st_ino, *content) if found.st_ino else str(Path(path).resolve())


@contextmanager
def _named(url: str, what: str) -> Iterator[None]:
    """Whatever a library raises while it reads the file, as a ValueError that names the file.

    Which errors there are depends on the format, the compression and the store, and none of
    them may end the reading of other files.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        # As fsspec says that a server sends whole files only.
        if re.search("range requests|seek streaming", said):
            said = "its server does not send parts of a file: put simplecache:: before its URL, by "
            said += "which it is downloaded first"
        raise ValueError(f"{url} {what}: {said}") from error


def inspect(file: File | str, column: str | None = None) -> File:
    """The file with its column, number of rows and `doubt`, or with what is wrong in `error`."""
    file = file if isinstance(file, File) else File(file, "", None, _unreadable(file))
    if file.error:
        return file
    kind = " ".join(filter(None, format_of(file.url) or ()))
    try:
        with _named(file.url, f"is not a readable {kind} file"):
            columns, rows = head(file.url)
        with _named(file.url, "is not read"):
            wanted = column or default_column(name for name, _ in columns)
    except ValueError as error:
        return replace(file, error=str(error))
    found = [held for name, held in columns if name == wanted]
    fault = ""
    if not found:
        shown = [name[:80] for name, _ in columns]  # a file of anything may be one long line
        fault = f"{file.url}: {suggest(wanted, shown, 'column')}"
    elif len(found) > 1:
        fault = f"{file.url}: more than one column is named {wanted!r}"
    elif not holds_text(found[0]):
        fault = f"{file.url}: column {wanted!r} holds {found[0]}, not captions"
    doubt = ""
    if not fault and is_perhaps_cut(file.url):
        doubt = f"{file.url} has no line break at its end, so that it may be cut short: if it is "
        doubt += "whole, add one"
    return replace(file, column=wanted, rows=None if fault else rows, error=fault, doubt=doubt)


def is_path(text: str) -> bool:
    """Whether a text is a URL, has the suffix of a file of captions, or a file has this name."""
    if format_of(text) or re.fullmatch(r"[\w+.-]+://\S+", text):
        return True
    return os.path.exists(text)  # noqa: PTH110 (Path.exists raises for texts that are too long)


def default_column(columns: Iterable[str]) -> str:
    """The column of captions where none is named: ``caption``, or else ``TEXT``.

    Raises ValueError if there are both, of which one may be empty.
    """
    names = list(columns)
    found = [name for name in COLUMNS if name in names]
    if len(found) > 1:
        raise ValueError(f"there are columns {' and '.join(found)}: say which by column (--column)")
    return found[0] if found else COLUMNS[0]


def fingerprint(url: str) -> str:
    """What identifies the file's content: SHA-256 of a local file, the store's tag of a remote.

    A store that keeps no digest (plain HTTP often does not) is asked for the file instead.

    Raises ValueError if the file cannot be read; the message names it.
    """
    with _named(url, "cannot be read"):
        system, path = open_system(url)
        if "file" not in system.protocol:
            info = system.info(path)
            tags = {name: str(info[name]) for name in _TAGS if info.get(name)}
            if tags:
                name, tag = next(iter(tags.items()))
                return f"{name.lower()}:{tag} size:{info.get('size')}"
        with system.open(path, "rb") as file:
            return f"sha256:{hexdigest(file, hashlib.sha256())}"


def read_batches(file: File, rows: int) -> Iterator[Batch]:
    """Batches of a file, of at most `rows` captions, fewer where they are long.

    Memory stays below some batches of `BATCH_BYTES` and 64 of the file's longest captions, plus
    what the pages of a Parquet file take that are read at a time.

    Raises ValueError if the file is truncated, corrupt or ambiguous, or has a caption of more than
    `BATCH_BYTES`; the message names it.
    """
    total = 0
    with _named(file.url, "is truncated or corrupt, or cannot be read"):
        for captions, numbers, read in batches(read_columns(file.url, file.column, rows), rows):
            if len(captions) == 1 and len(captions[0].as_buffer()) > BATCH_BYTES:
                raise ValueError(f"row {numbers[0]} has more than {BATCH_BYTES:,} bytes")
            total += read
            yield captions, numbers, read
        if file.rows is not None and total != file.rows:
            raise ValueError(f"{total:,} of its {file.rows:,} rows were there")
