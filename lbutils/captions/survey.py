"""Screening of concept names against pre-training captions, from a list to LAION-5B.

A concept is in pre-training (IP) when its name occurs in the captions at word boundaries,
and out of pre-training (OOP) otherwise. What else may count as an occurrence is a level of its
own, and reported apart.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from tqdm import tqdm

from lbutils._util import suggest, write_text
from lbutils.captions import corpora
from lbutils.captions.counting import LEVELS, CaptionCounter, Query, Tally, make_query
from lbutils.captions.tables import Batch, batches, format_of, holds_text, open_system
from lbutils.captions.text import canonical, discreetly, is_unspaced, redacted

# Captions in one batch: enough that what is done once a batch costs little beside the rest.
BATCH = 65_536
_FILE_COLUMNS = ["file", "source", "fingerprint", "rows", "captions", "error"]
_BESIDE = ["file", "reason"]


def screen(
    concepts: Iterable[str],
    captions: Any,
    *,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    column: str | None = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """One row per concept, in order: does its name occur in the captions, and how often.

    Names and captions are compared in canonical form (see `lbutils.captions.text.canonical`) and at
    word boundaries, so "ant" is found in "an ant, an ant" (one caption) and not in "elephant".
    Counts are exact. Captions are streamed; memory does not grow with their number.

    Raises ValueError if a concept has no letter or digit, if a file is unreadable, truncated or
    lacks `column`, or if an option is unknown. Raises FileNotFoundError if `captions` names a path
    that does not exist. Raises TypeError if a caption is not a string.

    Source: vocabulary screening, section 4.1 of the paper, made exact: word boundaries in place of
    substrings, and the token level.

    Parameters
    ----------
    concepts : iterable of str
        Names, taken literally; they may repeat, overlap or contain one another.
    captions : str or path, or iterable of str, or column or table of captions
        Parquet or CSV files: a path, folder, pattern or URL (see `corpora.find_urls`), a
        list of `pathlib.Path`, or `corpora.Sources`. Or captions: a list, an iterator, a
        Polars, Arrow or pandas column, a Polars or Arrow table. Nulls are skipped.
    tokenize : callable, optional
        ``str -> ids`` without start and end tokens. Adds the token level: which pieces of
        a name occur in any caption. Without it `pieces` and `pieces_seen` are 0. It reads every
        caption as long as a piece is missing, which takes far longer than the rest.
    column : str, optional
        Column of captions in files and tables: strings, or lists of strings. Default:
        ``caption``, or ``TEXT`` as in LAION.
    progress : bool
        Show a progress bar with captions per second and the time left.
    **options
        `layout`, `levels`, `synonyms`, `unspaced`, `workers`, `scheduler`, `state`, as in `survey`.

    Returns
    -------
    DataFrame
        ``name``; ``phrase`` (canonical); ``captions`` (number of captions with the phrase);
        ``words``, ``words_seen``, ``pieces``, ``pieces_seen`` (number of the name's words and
        pieces, and how many of them occur in captions); ``subset`` ("ip"; "oop" if all was read,
        a caption of everything that was named at least, and none has the phrase; else "undecided");
        ``compositional`` (OOP, but all pieces occur; without `tokenize`, all words); then
        ``captions_<level>`` for each further level: captions at this level or a stricter one.

    Warns
    -----
    UserWarning
        For names in scripts written without spaces, unless `unspaced` says what to do: they are
        found only where they stand between spaces or punctuation, so OOP is not proven for them.
        For every file that is passed over, and for what leaves names undecided.
    """
    # A table has no place for the files' hashes, which take time, nor for a file's error.
    options = {"hashes": options.get("state") is not None, "on_error": "raise", **options}
    found = survey(
        concepts, captions, tokenize=tokenize, column=column, progress=progress, **options
    )
    if options["on_error"] == "raise":
        for error in filter(None, found.files["error"]):
            raise ValueError(error)
    for row in found.passed_over.itertuples():
        warnings.warn(f"passed over: {row.file}: {row.reason}", stacklevel=2)
    for doubt in found.doubts:
        warnings.warn(f"no name is said to be absent: {doubt}", stacklevel=2)
    return found.table


def survey(
    concepts: Iterable[str],
    captions: Any,
    *,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    column: str | None = None,
    layout: str | None = None,
    levels: Sequence[str] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
    unspaced: str = "alone",
    examples: int = 0,
    workers: int = 1,
    scheduler: Any = None,
    state: str | os.PathLike[str] | None = None,
    hashes: bool = True,
    on_error: str = "report",
    progress: bool = False,
) -> Survey:
    """What `screen` finds, with its evidence: counts by level, examples, and the files read.

    A file that cannot be read does not stop the others: it is named in the result, none of its
    captions is counted, and `Survey.complete` is False.

    Raises ValueError, FileNotFoundError, TypeError as `screen`, but not for a file that is
    unreadable among others.

    Parameters
    ----------
    concepts, captions, tokenize, column, progress
        As in `screen`.
    layout : str, optional
        A corpus of `corpora.LAYOUTS`: gives the column and the number of files that
        make it complete.
    levels : sequence of str
        Of ``"compounds"`` (words joined or apart: see `text.compounds`), ``"inflections"``
        (that, number and possessive: see `text.inflections`), ``"diacritics"`` (letters
        without their marks, in name and caption) and ``"synonyms"``, beyond the phrase itself.
    synonyms : mapping, optional
        Name to other names of the same concept; adds the level ``"synonyms"``.
    unspaced : {"alone", "substring", "refuse"}
        Names in scripts written without spaces: find them only where they stand alone, and
        warn; or anywhere in a run of such letters, so that none found proves OOP; or raise.
    examples : int
        Captions kept for each concept and level, the first ones.
    workers : int
        Threads, each on a file of its own. Ignored with `scheduler`.
    scheduler : str or distributed.Client, optional
        Address of a Dask scheduler, or a client: files are spread over its workers, which must
        see them under the same paths. Files of a worker that dies are counted by another.
    state : path, optional
        Folder for the counts of each file once it is finished, keyed by its content and by all
        that matters here: a run that was interrupted takes up where it stopped.
    hashes : bool
        Compute each file's fingerprint (see `corpora.fingerprint`), which certificates
        and `state` need.
    on_error : {"report", "raise"}
        "raise" stops at a file that cannot be opened, before any is read.
    """
    query = make_query(concepts, tokenize, levels, synonyms, unspaced, examples)
    sources = _sources(captions)
    if sources is not None:
        wanted = corpora.LAYOUTS.get(layout) if layout else None
        if layout and wanted is None:
            raise ValueError(suggest(layout, corpora.LAYOUTS, "layout"))
        with discreetly():
            column = column or (wanted.column if wanted else None)
            files, beside = corpora.find(sources)
            files = [corpora.inspect(file, column) for file in files]
            if on_error == "raise" and (faults := [file.error for file in files if file.error]):
                raise ValueError(faults[0])
            found = _over_files(query, files, workers, scheduler, state, hashes, progress)
        passed_over = [(_writable(one.url), _writable(one.reason)) for one in beside]
        tallies = [outcome[1] for outcome in found if not isinstance(outcome, str)]
        return Survey(
            query,
            tallies,
            _doubts(files, found, wanted.files if wanted else None),
            _files_table(files, found),
            pd.DataFrame(passed_over, columns=_BESIDE),
            expected=wanted.files if wanted else None,
        )
    if state or scheduler or layout:
        raise ValueError("state, scheduler and layout are for files: pass their folder or pattern")
    tally = _in_memory(query, captions, column, progress)
    return Survey(query, [tally], [] if tally.worded else ["there was no caption to read"])


def level_column(level: str) -> str:
    """The column of a table that has the captions at this level or a stricter one."""
    return "captions" if level == LEVELS[0] else f"captions_{level}"


def mentions(
    concepts: Iterable[str],
    captions: Any,
    *,
    column: str | None = None,
    levels: Sequence[str] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
    unspaced: str = "alone",
) -> pd.DataFrame:
    """Which captions name which concepts: a row for every such pair, with `caption` and `concept`.

    Returns a DataFrame: ``caption``: number of the caption's row, counted through all files;
    ``concept``: place in `concepts`. Sorted by caption.

    Parameters
    ----------
    concepts, captions, column, levels, synonyms, unspaced
        As in `survey`. Memory grows with the number of mentions, not with that of captions.
    """
    query = make_query(concepts, None, levels, synonyms, unspaced, 0)
    found: list[np.ndarray] = [np.empty((2, 0), np.int64)]
    worded: dict[str, bool] = {}
    start = 0
    with discreetly():
        for name, parts in _named_batches(captions, column):
            own: list[np.ndarray] = []
            tally = _tally(CaptionCounter(query, own), parts)
            found += [pairs + [[start], [0]] for pairs in own]
            start += tally.rows
            worded[name] = tally.worded or worded.get(name, False)
        if blank := [name for name, known in worded.items() if not known]:
            raise ValueError(f"no caption was read of {blank[0]}, so nothing is known of any name")
    caption, concept = np.concatenate(found, axis=1)
    return pd.DataFrame({"caption": caption, "concept": concept})


def _named_batches(captions: Any, column: str | None) -> list[tuple[str, Iterator[Batch]]]:
    """Batches of captions in memory, or of every file, and what named it.

    Raises ValueError if a file cannot be read.
    """
    sources = _sources(captions)
    if sources is None:
        return [("the captions", _batches(captions, column)[1])]
    files = [corpora.inspect(file, column) for file in corpora.find(sources)[0]]
    if faults := [file.error for file in files if file.error]:
        raise ValueError(faults[0])
    for doubt in (file.doubt for file in files if file.doubt):
        warnings.warn(_writable(doubt), stacklevel=3)
    return [(file.source, corpora.read_batches(file, BATCH)) for file in files]


def _tally(
    counter: CaptionCounter,
    parts: Iterable[Batch],
    file: str = "",
    tick: Callable[[int], object] | None = None,
) -> Tally:
    """The counts of all batches of a file; `tick` is told the number of rows as they are read."""
    for batch in parts:
        counter.add(batch, file)
        if tick:
            tick(batch[2])
    return counter.tally


@dataclass(frozen=True)
class Survey:
    """Result of `survey`.

    Parameters
    ----------
    query : Query
        The names and rules.
    tallies : list of Tally
        Counts of each file that was read, or of the captions in memory.
    doubts : list of str
        Why no name can be said to be absent, in words; empty if all was read.
    files : DataFrame
        ``file``, ``source`` (what named it), ``fingerprint``, ``rows``, ``captions``, ``error``
        (empty if none; no caption of a file with an error is counted). No rows for captions in
        memory.
    passed_over : DataFrame
        ``file`` and ``reason`` of what was found and holds no captions of its own.
    expected : int, optional
        Number of files of a known layout.
    """

    query: Query
    tallies: list[Tally]
    doubts: list[str]
    files: pd.DataFrame = field(default_factory=lambda: _files_table((), ()))
    passed_over: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_BESIDE))
    expected: int | None = None

    @cached_property
    def total(self) -> Tally:
        """The counts over all files that could be read."""
        total = Tally.empty(self.query)
        for tally in self.tallies:
            total.merge(tally, self.query.examples)
        return total

    @property
    def complete(self) -> bool:
        """Whether all was read: every file, and a caption at least of everything that was named."""
        return not self.doubts

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that were looked at, the strictest first."""
        return self.query.levels

    @property
    def table(self) -> pd.DataFrame:
        """One row per concept, with the columns that `screen` describes."""
        return _table(self.query, self.total, self.complete)

    @property
    def examples(self) -> pd.DataFrame:
        """Captions that name a concept.

        ``name``, ``level``, ``form`` (as it was found), ``file``, ``row`` (of the file, from 0) and
        ``caption``, cut at 400 letters.
        """
        columns = ["name", "level", "form", "file", "row", "caption"]
        rows = [
            (self.query.names[k], self.levels[level], *example)
            for (k, level), kept in sorted(self.total.examples.items())
            for example in kept
        ]
        return pd.DataFrame(rows, columns=columns)


def _table(query: Query, tally: Tally, complete: bool) -> pd.DataFrame:
    rows = []
    cumulative = tally.counts.cumsum(axis=1)
    for k, (name, phrase, ids) in enumerate(
        zip(query.names, query.phrases, query.pieces, strict=True)
    ):
        words = phrase.split()
        words_seen = sum(word not in tally.unseen for word in words)
        pieces_seen = sum(piece not in tally.unseen_pieces for piece in ids)
        all_seen = pieces_seen == len(ids) if ids else words_seen == len(words)
        counted = (cumulative[k, 0], len(words), words_seen, len(ids), pieces_seen)
        # A name within a run of letters is not looked for unless that is asked for.
        proven = complete and (query.substring or not is_unspaced(phrase))
        subset = "ip" if cumulative[k, 0] else "oop" if proven else "undecided"
        compositional = subset == "oop" and all_seen
        rows.append((name, phrase, *counted, subset, compositional, *cumulative[k, 1:]))
    columns = "name phrase captions words words_seen pieces pieces_seen subset compositional"
    further = [level_column(level) for level in query.levels[1:]]
    table = pd.DataFrame(rows, columns=[*columns.split(), *further])
    integers = ["captions", "words", "words_seen", "pieces", "pieces_seen", *further]
    return table.astype({**dict.fromkeys(integers, "int64"), "compositional": bool})


# --- captions in memory ---------------------------------------------------------------------


def _in_memory(query: Query, captions: Any, column: str | None, progress: bool) -> Tally:
    total, parts = _batches(captions, column)
    with tqdm(total=total, unit=" captions", disable=not progress, desc="screening") as bar:
        return _tally(CaptionCounter(query), parts, tick=bar.update)


def _batches(captions: Any, column: str | None) -> tuple[int | None, Iterator[Batch]]:
    """Number of rows where it is known, and batches."""
    if isinstance(captions, (pl.DataFrame, pa.Table)):
        names = captions.columns if isinstance(captions, pl.DataFrame) else captions.column_names
        wanted = column or corpora.default_column(names)
        if wanted not in names:
            raise ValueError(suggest(wanted, names, "column"))
        captions = captions[wanted]
    if isinstance(captions, (pd.DataFrame, Mapping)):
        raise TypeError("pass one column of captions, for example captions['caption']")
    if isinstance(captions, pl.Series):
        captions = captions.to_arrow()
    if isinstance(captions, (pa.Array, pa.ChunkedArray)):
        columns = captions.chunks if isinstance(captions, pa.ChunkedArray) else [captions]
        return len(captions), _refuse_paths(batches(_parts(columns), BATCH))
    total = len(captions) if hasattr(captions, "__len__") else None
    return total, _refuse_paths(batches(_parts(_blocks(iter(captions))), BATCH))


def _refuse_paths(parts: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, unless all captions turn out to be paths, which would be screened as texts.

    Raises ValueError at the end, where one caption that is no path is enough to go on.
    """
    path = ""
    only_paths = True
    for part in parts:
        for text in part[0].to_pylist() if only_paths else ():
            if canonical(text):
                only_paths = corpora.is_path(text)
                path = path or text
            if not only_paths:
                break
        yield part
    if only_paths and path:
        raise ValueError(
            f"these captions are paths, such as {path!r}: to screen the files, pass "
            "lbutils.captions.corpora.Sources(paths), or one folder or pattern as a text"
        )


def _parts(columns: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """The columns in pieces of at most a batch, if they hold text."""
    for column in columns:
        if not holds_text(column.type):
            raise TypeError(f"captions must be strings, not {column.type}")
        yield from (column.slice(k, BATCH) for k in range(0, len(column), BATCH))


def _blocks(captions: Iterator[Any]) -> Iterator[pa.Array]:
    while block := list(islice(captions, BATCH)):
        texts = [None if _is_null(text) else text for text in block]
        wrong = next((text for text in texts if not isinstance(text, (str, type(None)))), None)
        if wrong is not None:
            hint = "; pass a list of paths, not an iterator" * isinstance(wrong, os.PathLike)
            raise TypeError(
                f"captions must be strings, not {type(wrong).__name__}: {wrong!r:.80}{hint}"
            )
        # Lone surrogates have no UTF-8 form, and no name can match them.
        clean = [None if text is None else text.encode("utf-8", "replace") for text in texts]
        yield pa.array(clean, pa.large_string())


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


# --- captions in files ----------------------------------------------------------------------


def _sources(captions: Any) -> corpora.Sources | None:
    """The files that are meant, or None if these are the captions themselves."""
    if isinstance(captions, (str, os.PathLike)):
        return corpora.Sources([os.fspath(captions)])
    if isinstance(captions, corpora.Sources):
        return captions
    some = isinstance(captions, (list, tuple)) and captions
    if some and all(isinstance(item, os.PathLike) for item in captions):
        return corpora.Sources(map(os.fspath, captions))
    return None


_Outcome = str | tuple[str, Tally]


def _outcome(
    query: Query,
    file: corpora.File,
    state: str | None,
    hashes: bool,
    tick: Callable[[int], object] | None,
) -> _Outcome:
    """Fingerprint and counts of one file, or why it was not read, and then nothing is stored.

    `state` (str, optional): folder or URL of counts, from which they are taken if they are there,
    and where they are stored else. `hashes` (bool): without `state`, whether to compute the
    fingerprint, which is empty otherwise. `tick`: as in `_tally`.
    """
    if file.error:
        return file.error
    try:
        fingerprint = corpora.fingerprint(file.url) if hashes or state else ""
        # The same bytes have other captions as TSV than as CSV.
        key = f"{query.key} {file.column} {format_of(file.url)} {fingerprint}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        place = f"{state}/{name}.json" if state else None
        if place and (stored := _load(place, query)):
            if tick:
                tick(stored.rows)
            return fingerprint, stored
        parts = corpora.read_batches(file, BATCH)
        tally = _tally(CaptionCounter(query), parts, _writable(file.name), tick)
        if place:
            _store(place, tally)
        return fingerprint, tally
    except ValueError as error:
        return str(error)


def _load(place: str, query: Query) -> Tally | None:
    system, path = open_system(place)
    if not system.exists(path):
        return None
    try:
        with system.open(path, "rb") as file:
            stored = json.loads(file.read())
        if stored["sha256"] != _checksum(place, stored["tally"]):
            raise ValueError("its checksum is another")
        return Tally.from_json(stored["tally"], query)
    # Also numbers of thousands of digits, and lists within lists within lists.
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        warnings.warn(
            f"{redacted(place)} is damaged, so its file is counted anew and it is replaced "
            f"({type(error).__name__}: {str(error)[:100]})",
            stacklevel=2,
        )
        return None


def _checksum(place: str, tally: Any) -> str:
    """SHA-256 of stored counts and of the name of their file, which says what was counted."""
    text = json.dumps([place.rpartition("/")[2], tally], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _store(place: str, tally: Tally) -> None:
    """Write the counts to a temporary file and move it into place, so that none is half there."""
    system, path = open_system(place)
    counts = tally.to_json()
    text = json.dumps({"sha256": _checksum(place, counts), "tally": counts}, ensure_ascii=False)
    if "file" in system.protocol:
        write_text(Path(path), text)
        return
    folder, _, name = path.rpartition("/")
    system.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        system.pipe_file(temporary, text.encode())
        system.mv(temporary, path)
    finally:
        if system.exists(temporary):
            system.rm_file(temporary)


def _over_files(
    query: Query,
    files: Sequence[corpora.File],
    workers: int,
    scheduler: Any,
    state: str | os.PathLike[str] | None,
    hashes: bool,
    progress: bool,
) -> list[_Outcome]:
    """Fingerprint and counts of every file, or why it was not read, in the order of the files."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    folder = None if state is None else os.fspath(state)
    if folder and "://" not in folder:
        folder = str(Path(folder).absolute())  # workers of a cluster may have another folder
    known = [file.rows for file in files if not file.error]
    total = None if None in known else sum(rows for rows in known if rows)
    lock, stopped = threading.Lock(), threading.Event()
    with tqdm(total=total, unit=" captions", unit_scale=True, disable=not progress) as bar:
        bar.set_description("screening")

        def tick(rows: int) -> None:
            if stopped.is_set():
                raise InterruptedError("another file's thread was stopped")
            with lock:
                bar.update(rows)

        if scheduler is None and workers == 1:
            return [_outcome(query, file, folder, hashes, tick) for file in files]
        with _executor(query, workers, scheduler) as (executor, sent):
            here = tick if scheduler is None else None
            futures = [
                executor.submit(_outcome, sent, file, folder, hashes, here) for file in files
            ]
            try:
                for future in as_completed(futures):
                    found = future.result()
                    if here is None and not isinstance(found, str):
                        tick(found[1].rows)
            finally:
                # On Ctrl-C: begin no other file, and end those begun at their next batch.
                stopped.set()
                for future in futures:
                    future.cancel()
            return [future.result() for future in futures]


@contextmanager
def _executor(query: Query, workers: int, scheduler: Any) -> Iterator[tuple[Executor, Any]]:
    """Threads, or the workers of a Dask cluster, and the query as it is given to them.

    A file is counted anew by another worker if its own dies.
    """
    if scheduler is None:
        with ThreadPoolExecutor(workers) as pool:
            yield pool, query
        return
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Dask is not installed: python -m pip install 'lbutils[cluster]'"
        ) from error
    client = scheduler if isinstance(scheduler, Client) else Client(scheduler)
    try:
        sent = client.scatter(query, broadcast=True, hash=False)
        yield client.get_executor(pure=False), sent
    finally:
        if client is not scheduler:
            client.close()


def _files_table(files: Sequence[corpora.File], outcomes: Sequence[_Outcome]) -> pd.DataFrame:
    """A row for every file, in their order, without what should stay secret."""
    rows = [
        ("", 0, 0, _writable(found))
        if isinstance(found, str)
        else (found[0], found[1].rows, found[1].captions, "")
        for found in outcomes
    ]
    named = ((_writable(file.name), _writable(file.source)) for file in files)
    table = [(*names, *row) for names, row in zip(named, rows, strict=True)]
    return pd.DataFrame(table, columns=_FILE_COLUMNS).astype({"error": str})


def _writable(text: str) -> str:
    """A text without secrets that can be written: names of files may be in no encoding."""
    return redacted(text).encode("utf-8", "backslashreplace").decode()


def _doubts(
    files: Sequence[corpora.File], outcomes: Sequence[_Outcome], expected: int | None
) -> list[str]:
    """Why no name can be said to be absent."""
    doubts = [found for found in outcomes if isinstance(found, str)]
    read = len(files) - len(doubts)
    doubts += [file.doubt for file in files if file.doubt]
    if expected is not None and read != expected:
        doubts.append(f"{read} files were read, the corpus has {expected}")
    worded = dict.fromkeys((file.source for file in files), False)
    for file, found in zip(files, outcomes, strict=True):
        worded[file.source] |= not isinstance(found, str) and found[1].worded
    doubts += [
        f"no caption was read of {name}" for name, any_read in worded.items() if not any_read
    ]
    return [_writable(doubt) for doubt in doubts]
