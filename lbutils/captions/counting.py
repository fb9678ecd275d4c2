"""What a screening looks for, and the exact counting of it in batches of captions."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from lbutils._util import suggest
from lbutils.captions.tables import Batch
from lbutils.captions.text import (
    all_cleaned,
    as_names,
    canonical,
    canonical_lines,
    compounds,
    inflections,
    is_unspaced,
    without_diacritics,
)

# From the strictest on; a caption counts at the first level at which it names the concept.
LEVELS = ("phrase", "compounds", "inflections", "diacritics", "synonyms")
UNSPACED = ("alone", "substring", "refuse")
# Part of the key of stored counts: to be raised when the same input would give other counts.
_RULES = 3
_SHOWN = 400  # letters kept of an example


@dataclass(frozen=True)
class Query:
    """Names and rules of a screening, everything that its counts depend on but the captions.

    `forms` has a row per form of a name: phrase, concept, level, and whether it is compared
    with captions without diacritics.
    """

    names: tuple[str, ...]
    phrases: tuple[str, ...]
    levels: tuple[str, ...]
    forms: tuple[tuple[str, int, int, bool], ...]
    pieces: tuple[tuple[int, ...], ...]
    tokenize: Callable[[str], Sequence[int]] | None
    substring: bool
    examples: int

    @property
    def key(self) -> str:
        """SHA-256 of all this, of the rules and of the Unicode tables, in hexadecimal."""
        # A tokenizer has no content to hash; what it makes of the names stands for it.
        parts = [self.names, self.levels, self.forms, self.pieces, self.substring, self.examples]
        text = json.dumps([*parts, _RULES, unicodedata.unidata_version])
        return hashlib.sha256(text.encode()).hexdigest()


def make_query(
    concepts: Iterable[str],
    tokenize: Callable[[str], Sequence[int]] | None,
    levels: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None,
    unspaced: str,
    examples: int,
) -> Query:
    """The query of `lbutils.captions.survey.survey`'s arguments, with every form of every name.

    Raises ValueError if a concept or synonym has no letter or digit, or an option is unknown.
    """
    names = tuple(as_names(concepts, "concepts"))
    phrases = tuple(_phrase(name) for name in names)
    levels = [levels] if isinstance(levels, str) else levels
    for level in levels:
        if level not in LEVELS:
            raise ValueError(suggest(level, LEVELS, "level"))
    for name in synonyms or ():
        if name not in names:
            raise ValueError(f"synonyms: {suggest(name, names, 'concept')}")
        as_names((synonyms or {})[name], f"synonyms of {name!r}")
    if unspaced not in UNSPACED:
        raise ValueError(suggest(unspaced, UNSPACED, "treatment of unspaced scripts"))
    _check_unspaced([n for n, p in zip(names, phrases, strict=True) if is_unspaced(p)], unspaced)
    wanted = {"phrase", *levels, *(["synonyms"] if synonyms else [])}
    kept = tuple(level for level in LEVELS if level in wanted)
    forms = dict.fromkeys(
        (phrase, concept, kept.index(level), plain)
        for concept, name in enumerate(names)
        for phrase, level, plain in _forms(name, phrases[concept], kept, synonyms or {})
    )
    pieces = tuple(tuple(map(int, tokenize(name))) if tokenize else () for name in names)
    substring = unspaced == "substring"
    return Query(names, phrases, kept, tuple(forms), pieces, tokenize, substring, examples)


def _phrase(name: str) -> str:
    phrase = canonical(name)
    if not phrase:
        raise ValueError(f"concept {name!r} has no letter or digit, so it cannot be screened")
    return phrase


def _check_unspaced(names: list[str], unspaced: str) -> None:
    if not names or unspaced == "substring":
        return
    shown = f"{', '.join(map(repr, names[:5]))}{' and others' if len(names) > 5 else ''}"
    if unspaced == "refuse":
        raise ValueError(
            f"scripts without spaces are not segmented: {shown} cannot be screened at word "
            'boundaries; pass unspaced="substring"'
        )
    warnings.warn(
        f"scripts without spaces are not segmented: {shown} found only where they stand alone",
        stacklevel=5,
    )


def _forms(
    name: str, phrase: str, levels: Sequence[str], synonyms: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, bool]]:
    """Phrases that name a concept, their level, and whether they have lost their diacritics."""
    yield phrase, "phrase", False
    forms = [phrase]
    for level, others in (("compounds", compounds), ("inflections", inflections)):
        if level in levels:
            forms += (own := others(phrase))
            yield from ((form, level, False) for form in own)
    if "diacritics" in levels:
        yield from ((without_diacritics(form), "diacritics", True) for form in forms)
    for synonym in map(_phrase, synonyms.get(name, ())):
        yield synonym, "synonyms", False
        if "diacritics" in levels:
            yield without_diacritics(synonym), "synonyms", True


@dataclass
class Tally:
    """Exact counts over some captions, which add up over files.

    `counts` (concepts, levels) int64: captions whose strictest mention of the concept is at
    that level. `unseen` and `unseen_pieces` hold the names' words and pieces that no caption has.
    `worded` tells whether any caption has a word: captions that are all blank prove nothing.
    """

    counts: np.ndarray
    unseen: set[str]
    unseen_pieces: set[int]
    rows: int = 0
    captions: int = 0
    worded: bool = False
    examples: dict[tuple[int, int], list[tuple[str, str, int, str]]] = field(default_factory=dict)

    @classmethod
    def empty(cls, query: Query) -> Tally:
        """The counts before anything is read."""
        return cls(
            np.zeros((len(query.names), len(query.levels)), np.int64),
            {word for phrase in query.phrases for word in phrase.split()},
            {piece for ids in query.pieces for piece in ids},
        )

    def merge(self, other: Tally, examples: int) -> None:
        """Add the counts of captions that come after these, in place."""
        self.counts += other.counts
        self.unseen &= other.unseen
        self.unseen_pieces &= other.unseen_pieces
        self.rows += other.rows
        self.captions += other.captions
        self.worded |= other.worded
        for key, found in other.examples.items():
            self.examples[key] = [*self.examples.get(key, ()), *found][:examples]

    def to_json(self) -> dict[str, Any]:
        """The counts in JSON's own types."""
        kept = [[*key, found] for key, found in self.examples.items()]
        return {
            **vars(self),
            "counts": self.counts.tolist(),
            "unseen": sorted(self.unseen),
            "unseen_pieces": sorted(self.unseen_pieces),
            "examples": kept,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], query: Query) -> Tally:
        """The counts that `to_json` stored.

        Raises ValueError, KeyError, TypeError if they are not counts of this query.
        """
        whole = cls.empty(query)
        counts, rows, captions = stored["counts"], stored["rows"], stored["captions"]
        numbers = [rows, captions, *(count for own in counts for count in own)]
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise ValueError("a count is not a whole number from 0 on")
        found = np.array(counts, np.int64).reshape(len(counts), -1)
        # Sums of Python's own integers do not wrap round.
        if found.size != whole.counts.size or any(sum(own) > captions for own in counts):
            raise ValueError("more counts than concepts, or than captions")
        unseen, pieces = set(stored["unseen"]), set(stored["unseen_pieces"])
        if not (unseen <= whole.unseen and pieces <= whole.unseen_pieces):
            raise ValueError("words or pieces that no concept has")
        examples = {(k, level): [tuple(e) for e in own] for k, level, own in stored["examples"]}
        if not all(0 <= k < len(query.names) and found[k, level] for k, level in examples):
            raise ValueError("examples of what was not counted")
        worded = stored["worded"]
        if type(worded) is not bool or (found.any() and not worded):
            raise ValueError("names in captions without a word")
        counts = found.reshape(whole.counts.shape)
        return cls(counts, unseen, pieces, rows, captions, worded, examples)


class CaptionCounter:
    """Counts batches of captions, one after the other, into its `tally`.

    `mentions` (list, optional): gets for every batch the rows, and the concepts that they name
    (2, M) int64.
    """

    def __init__(self, query: Query, mentions: list[np.ndarray] | None = None) -> None:
        self.query = query
        self.mentions = mentions
        self.tally = Tally.empty(query)
        self._phrases = list(dict.fromkeys(form[0] for form in query.forms))
        number = {phrase: k for k, phrase in enumerate(self._phrases)}
        # A phrase may be a form of several concepts: its forms are neighbours in these arrays.
        forms = sorted((number[phrase], *rest) for phrase, *rest in query.forms)
        columns = np.array(forms, np.int64).reshape(-1, 4).T
        self._phrase_of, self._concept, self._level, self._plain = columns
        self._patterns = {self._pattern(phrase): k for k, phrase in enumerate(self._phrases)}

    def _pattern(self, phrase: str) -> str:
        """What stands in a canonical line, with a space at both ends, that has the phrase."""
        anywhere = self.query.substring and is_unspaced(phrase)
        left = "" if anywhere and is_unspaced(phrase[0]) else " "
        return f"{left}{phrase}{'' if anywhere and is_unspaced(phrase[-1]) else ' '}"

    def add(self, batch: Batch, file: str) -> None:
        """Count a batch of a file."""
        captions, rows, read = batch
        self.tally.rows += read
        self.tally.captions += len(captions)
        if not self.tally.worded:
            self.tally.worded = any(canonical(caption.as_py()) for caption in captions)
        if not len(captions) or not self.query.names:
            return
        texts, special = all_cleaned(pl.Series(captions, dtype=pl.String))
        unseen = {f" {word} ": word for word in self.tally.unseen}
        found = _found(canonical_lines(texts), [*self._patterns, *unseen])
        self.tally.unseen -= {unseen[text] for text in found["text"].unique() if text in unseen}
        mentions = self._forms_of(found)
        if self._plain.any():
            # Forms without diacritics are looked for in captions without them.
            places = special.to_numpy()
            mentions = mentions[:, ~(np.isin(mentions[0], places) & (mentions[4] == 1))]
            lines = canonical_lines(texts.gather(special), bare=True)
            bare = self._forms_of(_found(lines, self._patterns))
            bare[0] = places[bare[0]]
            mentions = np.concatenate([mentions, bare[:, bare[4] == 1]], axis=1)
        self._count(mentions[:4], captions, rows, file)
        if self.query.tokenize and self.tally.unseen_pieces:
            _strike_out(self.tally.unseen_pieces, captions, self.query.tokenize)

    def _forms_of(self, found: pl.DataFrame) -> np.ndarray:
        """Row, concept, level, phrase and `plain` (5, M) of every concept that a match names."""
        number = pl.col("text").replace_strict(self._patterns, default=None, return_dtype=pl.Int64)
        row, phrase = found.with_columns(number).drop_nulls().to_numpy().T.astype(np.int64)
        begin = np.searchsorted(self._phrase_of, phrase, side="left")
        count = np.searchsorted(self._phrase_of, phrase, side="right") - begin
        rank = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        form = np.repeat(begin, count) + rank
        columns = (self._concept, self._level, self._phrase_of, self._plain)
        return np.stack([np.repeat(row, count), *(column[form] for column in columns)])

    def _count(
        self, mentions: np.ndarray, captions: pa.StringArray, rows: np.ndarray, file: str
    ) -> None:
        """Count each caption once for a concept, at the strictest level of its mentions."""
        row, concept, level, phrase = mentions[:, np.lexsort(mentions[::-1])]
        once = np.ones(len(row), bool)
        once[1:] = (row[1:] != row[:-1]) | (concept[1:] != concept[:-1])
        row, concept, level, phrase = row[once], concept[once], level[once], phrase[once]
        np.add.at(self.tally.counts, (concept, level), 1)
        if self.mentions is not None:
            self.mentions.append(np.stack([rows[row], concept]))
        if not self.query.examples:
            return
        kept = self.tally.examples
        full = np.zeros(self.tally.counts.shape, bool)
        for key, found in kept.items():
            full[key] = len(found) >= self.query.examples
        for k in np.flatnonzero(~full[concept, level]):
            found = kept.setdefault((int(concept[k]), int(level[k])), [])
            if len(found) < self.query.examples:
                caption = captions[int(row[k])].as_py()[:_SHOWN]
                found.append((self._phrases[phrase[k]], file, int(rows[row[k]]), caption))


def _found(lines: pl.Series, patterns: Iterable[str]) -> pl.DataFrame:
    """Rows and texts of the patterns in canonical lines, each pair once."""
    texts = (" " + lines + " ").str.extract_many(list(patterns), overlapping=True)
    table = pl.DataFrame({"row": np.arange(len(lines)), "text": texts})
    return table.explode("text").drop_nulls().unique()


def _strike_out(
    unseen: set[int], captions: pa.StringArray, tokenize: Callable[[str], Sequence[int]]
) -> None:
    """Remove from `unseen` the pieces that occur in the captions, in place."""
    for caption in dict.fromkeys(captions.to_pylist()):
        unseen.difference_update(tokenize(caption))
        if not unseen:
            return
