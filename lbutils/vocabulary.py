"""Canonical text, and the screening of concept names against pre-training captions.

A concept is in pre-training (IP) when its name occurs in the captions at word boundaries,
and out of pre-training (OOP) otherwise.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

# Captions held in memory at once: large enough that building the automaton is cheap beside
# running it, small enough for LAION-sized files on a laptop.
BATCH = 65_536

_APOSTROPHES = dict.fromkeys(map(ord, "'`\u00b4\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02bd\u2032"))
# Joiners, soft hyphens and variation selectors change how a word looks, not which word it is.
_INVISIBLE = dict.fromkeys(
    [
        0x00AD,
        0x034F,
        0x200C,
        0x200D,
        0x2060,
        0xFEFF,
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    ]
)
_DROPPED = {**_APOSTROPHES, **_INVISIBLE}
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


def suggest(word: object, options: Iterable[object], what: str) -> str:
    """One line for an unknown name: what it should be, the valid options, the nearest match.

    Parameters
    ----------
    word : object
        The name that was given.
    options : iterable
        The valid names, printed in this order.
    what : str
        What the name stands for, such as ``"domain"``.
    """
    valid = [str(option) for option in options]
    folded = {option.casefold(): option for option in reversed(valid)}
    near = difflib.get_close_matches(str(word).casefold(), list(folded), n=1, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"unknown {what} {str(word)!r}: choose from {', '.join(valid) or '(none)'}.{hint}"


@cache
def _word_pattern() -> re.Pattern[str]:
    r"""A word: letters and digits of any script, with the combining marks that follow them.

    Python's ``\w`` has no combining marks, without which Indic words fall to pieces.
    """
    marks = [chr(c) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c))[0] == "M"]
    return re.compile(rf"[^\W_](?:[^\W_]|[{''.join(marks)}])*")


def canonical(text: str) -> str:
    """The text as its words: NFKC, case-folded, one space between words.

    Apostrophes and invisible joiners are dropped (``"Pig's ear"`` is ``"pigs ear"``); every
    other run of characters that are not letters, digits or combining marks becomes one space.
    The result is a fixed point: ``canonical(canonical(x)) == canonical(x)``. It may be empty.

    Scripts written without spaces (Chinese, Japanese, Thai, ...) are not segmented: a run of
    their letters counts as one word.
    """
    if text.isascii():
        return " ".join(re.findall("[a-z0-9]+", text.lower().replace("'", "").replace("`", "")))
    while True:
        folded = unicodedata.normalize("NFKC", text.translate(_DROPPED)).casefold()
        folded = unicodedata.normalize("NFKC", folded).translate(_DROPPED)
        folded = " ".join(_word_pattern().findall(folded))
        # Dropping a character may let its neighbours compose, which a second round settles.
        if folded == text:
            return folded
        text = folded


def screen(
    concepts: Iterable[str],
    captions: Any,
    *,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    column: str = "caption",
    progress: bool = False,
) -> pd.DataFrame:
    """One row per concept, in order: does its name occur in the captions, and how often.

    Names and captions are compared in canonical form (see `canonical`) and at word
    boundaries, so "ant" is found in "an ant, an ant" (one caption) and not in "elephant".
    Counts are exact. Captions are streamed; memory does not grow with their number.

    Parameters
    ----------
    concepts : iterable of str
        Names, taken literally; they may repeat, overlap or contain one another.
    captions : str or path, or iterable of str
        A Parquet file or a folder of them (read in batches), or captions as a list, an
        iterator, or a Polars, Arrow or pandas column. Nulls are skipped.
    tokenize : callable, optional
        ``str -> ids`` without start and end tokens. Adds the token level: which pieces of
        a name occur in any caption. Without it `pieces` and `pieces_seen` are 0.
    column : str
        Column of captions in Parquet input: strings, or lists of strings.
    progress : bool
        Show a progress bar over captions.

    Returns
    -------
    DataFrame
        ``name``; ``phrase`` (canonical); ``captions`` (number of captions with the phrase);
        ``words``, ``words_seen``, ``pieces``, ``pieces_seen`` (number of the name's words and
        pieces, and how many of them occur in captions); ``subset`` ("ip" or "oop");
        ``compositional`` (OOP, but all pieces occur; without `tokenize`, all words).

    Raises
    ------
    ValueError
        If a concept has no letter or digit, if a file is not readable Parquet or lacks
        `column`.
    FileNotFoundError
        If `captions` names a path that does not exist.
    TypeError
        If a caption is not a string.

    Warns
    -----
    UserWarning
        For names in scripts written without spaces: they are found only where they stand
        between spaces or punctuation, so OOP is not proven for them.

    Notes
    -----
    Source: vocabulary screening, section 3 of the paper, made exact: word boundaries in
    place of substrings, and the token level.
    """
    names = list(concepts)
    phrases = [canonical(name) for name in names]
    for name, phrase in zip(names, phrases, strict=True):
        if not phrase:
            raise ValueError(f"concept {name!r} has no letter or digit, so it cannot be screened")
    unspaced = [
        name for name, phrase in zip(names, phrases, strict=True) if _UNSPACED.search(phrase)
    ]
    if unspaced:
        warnings.warn(
            f"scripts without spaces are not segmented: {', '.join(map(repr, unspaced[:5]))}"
            f"{' and others' if len(unspaced) > 5 else ''} found only where they stand alone",
            stacklevel=2,
        )
    pieces = [list(tokenize(name)) if tokenize else [] for name in names]
    counts: Counter[str] = Counter()
    unseen_words = {word for phrase in phrases for word in phrase.split()}
    unseen_pieces = {piece for ids in pieces for piece in ids}
    total, batches = _batches(captions, column)
    with tqdm(total=total, unit=" captions", disable=not progress, desc="screening") as bar:
        for batch in batches if names else ():
            found = _occurrences(batch, {*phrases, *unseen_words})
            counts.update(found)
            unseen_words -= found.keys()
            if tokenize and unseen_pieces:
                _strike_out(unseen_pieces, batch, tokenize)
            bar.update(len(batch))
    return _table(names, phrases, pieces, counts, unseen_words, unseen_pieces)


def _table(
    names: list[str],
    phrases: list[str],
    pieces: list[list[int]],
    counts: Counter[str],
    unseen_words: set[str],
    unseen_pieces: set[int],
) -> pd.DataFrame:
    rows = []
    for name, phrase, ids in zip(names, phrases, pieces, strict=True):
        words = phrase.split()
        words_seen = sum(word not in unseen_words for word in words)
        pieces_seen = sum(piece not in unseen_pieces for piece in ids)
        all_seen = pieces_seen == len(ids) if ids else words_seen == len(words)
        oop = counts[phrase] == 0
        subset = "oop" if oop else "ip"
        counted = (counts[phrase], len(words), words_seen, len(ids), pieces_seen)
        rows.append((name, phrase, *counted, subset, oop and all_seen))
    columns = "name phrase captions words words_seen pieces pieces_seen subset compositional"
    table = pd.DataFrame(rows, columns=columns.split())
    integers = ["captions", "words", "words_seen", "pieces", "pieces_seen"]
    return table.astype({**dict.fromkeys(integers, "int64"), "compositional": bool})


def _occurrences(captions: pl.Series, phrases: set[str]) -> Counter[str]:
    """Number of captions in which each canonical phrase occurs at word boundaries."""
    ascii_only = captions.str.len_bytes() == captions.str.len_chars()
    # `canonical` for ASCII, in Polars; the equality of the two is tested.
    plain = captions.filter(ascii_only).str.to_lowercase().str.replace_all("['`]", "")
    plain = plain.str.replace_all("[^a-z0-9]+", " ").str.strip_chars(" ")
    other = pl.Series([canonical(text) for text in captions.filter(~ascii_only)], dtype=pl.String)
    padded = (
        pl.concat([plain, other])
        .rename("caption")
        .to_frame()
        .select(pl.format(" {} ", pl.col("caption")))
        .to_series()
    )
    # Neighbouring words share a space and names contain names, hence overlapping matches.
    patterns = [f" {phrase} " for phrase in sorted(phrases)]
    matches = padded.str.extract_many(patterns, overlapping=True)
    hits = matches.list.unique().explode().drop_nulls().value_counts(name="count")
    return Counter({phrase[1:-1]: count for phrase, count in hits.iter_rows()})


def _strike_out(
    unseen: set[int], captions: pl.Series, tokenize: Callable[[str], Sequence[int]]
) -> None:
    """Remove from `unseen` the pieces that occur in the captions, in place."""
    for caption in captions.unique(maintain_order=True):
        unseen.difference_update(tokenize(caption))
        if not unseen:
            return


def _batches(captions: Any, column: str) -> tuple[int | None, Iterator[pl.Series]]:
    """Number of rows where it is known, and the captions in batches without nulls."""
    if isinstance(captions, (str, os.PathLike)):
        files = _parquet_files(Path(captions), column)
        return sum(rows for _, rows in files), _read_parquet([path for path, _ in files], column)
    if isinstance(captions, (pa.Array, pa.ChunkedArray)):
        captions = pl.Series(captions)
    if isinstance(captions, (pl.DataFrame, pd.DataFrame, pa.Table)):
        raise TypeError(f"pass one column of captions, for example captions[{column!r}]")
    total = len(captions) if hasattr(captions, "__len__") else None
    return total, _read_iterable(iter(captions))


def _read_iterable(captions: Iterator[Any]) -> Iterator[pl.Series]:
    while block := list(islice(captions, BATCH)):
        kept = [text for text in block if not _is_null(text)]
        wrong = next((text for text in kept if not isinstance(text, str)), None)
        if wrong is not None:
            raise TypeError(f"captions must be strings, not {type(wrong).__name__}: {wrong!r:.80}")
        # Lone surrogates have no UTF-8 form, and no name can match them.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in kept]
        yield pl.Series(clean, dtype=pl.String)


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _parquet_files(path: Path, column: str) -> list[tuple[Path, int]]:
    """The Parquet files at `path` with their number of rows, checked before anything is read."""
    if not path.exists():
        raise FileNotFoundError(f"no Parquet file or folder of captions at {path}")
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise FileNotFoundError(f"no *.parquet file in {path}")
    files = []
    for file in paths:
        try:
            with pq.ParquetFile(file) as parquet:
                schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a readable Parquet file: {error}") from error
        if column not in schema.names:
            raise ValueError(f"{file}: {suggest(column, schema.names, 'column')}")
        kind = schema.field(column).type
        kind = kind.value_type if hasattr(kind, "value_type") else kind
        if kind not in (pa.string(), pa.large_string(), pa.string_view()):
            raise ValueError(f"{file}: column {column!r} holds {kind}, not captions")
        files.append((file, rows))
    return files


def _read_parquet(paths: list[Path], column: str) -> Iterator[pl.Series]:
    for path in paths:
        try:
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(batch_size=BATCH, columns=[column]):
                    series = pl.Series(batch.column(0))
                    while isinstance(series.dtype, pl.List):
                        series = series.explode()
                    yield series.cast(pl.String).drop_nulls()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is truncated or corrupt: {error}") from error
