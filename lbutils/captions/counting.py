"""What a screening looks for, and the exact counting of it in batches of captions."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from lbutils._util import suggest
from lbutils.captions.match import PhraseIndex, joined, special_rows
from lbutils.captions.text import (
    UNSPACED_LETTERS,
    all_cleaned,
    as_names,
    canonical,
    compounds,
    folded_lines,
    inflections,
    is_unspaced,
    loosely_canonical,
    without_diacritics,
)

# From the strictest on; a caption counts at the first level at which it names the concept.
LEVELS = ("phrase", "compounds", "inflections", "diacritics", "synonyms")
UNSPACED = ("alone", "substring", "refuse")
# Part of the key of stored counts: to be raised when the same input would give other counts.
_RULES = 3
_SAMPLE = 1_000
_RENEWALS = frozenset(4**k for k in range(16))
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
            "counts": self.counts.tolist(),
            "unseen": sorted(self.unseen),
            "unseen_pieces": sorted(self.unseen_pieces),
            "rows": self.rows,
            "captions": self.captions,
            "worded": self.worded,
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

    Parameters
    ----------
    on_mentions : callable, optional
        Called for every batch with the rows (M,) and the concepts (M,) that they name.
    """

    def __init__(
        self,
        query: Query,
        on_mentions: Callable[[np.ndarray, np.ndarray], object] | None = None,
    ) -> None:
        self.query = query
        self.on_mentions = on_mentions
        self.tally = Tally.empty(query)
        self._phrases = list(dict.fromkeys(form[0] for form in query.forms))
        number = {phrase: k for k, phrase in enumerate(self._phrases)}
        # A phrase may be a form of several concepts: its forms are neighbours in these arrays.
        forms = sorted((number[phrase], *rest) for phrase, *rest in query.forms)
        columns = np.array(forms, np.int64).reshape(-1, 4).T
        self._phrase_of, self._concept, self._level, self._plain = columns
        anywhere = [query.substring and is_unspaced(phrase) for phrase in self._phrases]
        self._anywhere = np.flatnonzero(anywhere)
        self._spaced = np.flatnonzero(np.logical_not(anywhere))
        self._batches = 0
        self._frequency: Counter[str] = Counter()
        self._indexed_words: set[str] = set()
        self._index: PhraseIndex | None = None

    def add(self, captions: pa.StringArray, rows: np.ndarray, file: str) -> None:
        """Count a batch: captions (N,) without nulls, and the number of each one's row."""
        self.tally.captions += len(captions)
        self.tally.worded = self.tally.worded or has_words(captions)
        if not len(captions) or not self.query.names:
            return
        index = self._current_index(captions)
        text, first = joined(captions)
        special = special_rows(text, first)
        row, phrase = index.find(text, first, ascii_only=True)
        usual = np.ones(len(captions), bool)
        usual[special] = False
        usual = usual[row]
        hits = [self._mentions(index, row[usual], phrase[usual], (0, 1))]
        if len(special):
            hits += self._special(index, special, captions.take(pa.array(special)))
        self._count(np.concatenate(hits, axis=1), captions, rows, file)
        if self.query.tokenize and self.tally.unseen_pieces:
            _strike_out(self.tally.unseen_pieces, captions, self.query.tokenize)

    def _current_index(self, captions: pa.StringArray) -> PhraseIndex:
        """The index of all forms and of the words not yet seen.

        Common words are seen at once, and cost time as long as they are looked for; hence the
        index is renewed after 1, 4, 16, ... batches.
        """
        if self._index is None:
            # Only to tell common words from rare ones, for which lower case will do.
            sample = " ".join(captions.slice(0, _SAMPLE).to_pylist()).lower()
            self._frequency.update(re.findall(r"[^\W_]+", sample))
        stale = self._indexed_words - self.tally.unseen
        if self._index is None or (stale and self._batches in _RENEWALS):
            self._indexed_words = set(self.tally.unseen)
            spaced = (self._phrases[k] for k in self._spaced)
            wanted = dict.fromkeys([*spaced, *sorted(self.tally.unseen)])
            self._index = PhraseIndex(list(wanted), self._frequency)
        self._batches += 1
        return self._index

    def _special(
        self, index: PhraseIndex, rows: np.ndarray, captions: pa.StringArray
    ) -> list[np.ndarray]:
        """Mentions in captions with more than plain words and signs of ASCII."""
        captions = all_cleaned(captions)
        hits = []
        for kind in (0, 1) if self._plain.any() else (0,):
            row, phrase = index.find(*joined(loosely_canonical(captions, bare=bool(kind))))
            hits.append(self._mentions(index, rows[row], phrase, (kind,)))
        return [*hits, *self._unbounded(rows, captions)] if len(self._anywhere) else hits

    def _unbounded(self, rows: np.ndarray, captions: pa.StringArray) -> list[np.ndarray]:
        """Mentions of names in unspaced scripts, which have no boundaries to look for."""
        texts = pl.Series(captions)
        found = texts.str.contains(f"[{UNSPACED_LETTERS}]")
        lines = pl.Series(folded_lines(texts.filter(found).to_list()), dtype=pl.String)
        bounded = {_bounded(self._phrases[k]): k for k in self._anywhere}
        matches = (" " + lines + " ").str.extract_many(list(bounded), overlapping=True)
        table = pl.DataFrame({"row": rows[found.to_numpy()], "phrase": matches.list.unique()})
        table = table.explode("phrase").drop_nulls()
        phrase = np.array([bounded[text] for text in table["phrase"]], np.int64)
        return [self._forms_of(table["row"].to_numpy(), phrase, (0, 1))]

    def _mentions(
        self, index: PhraseIndex, row: np.ndarray, phrase: np.ndarray, kinds: tuple[int, ...]
    ) -> np.ndarray:
        """Matches of the index as mentions, its words struck out from those unseen."""
        if 0 in kinds and self.tally.unseen:
            found = np.zeros(len(index.phrases), bool)
            found[phrase] = True
            self.tally.unseen.difference_update(index.phrases[k] for k in np.flatnonzero(found))
        # The index has the forms first, in their order, and then mere words.
        named = phrase < len(self._spaced)
        return self._forms_of(row[named], self._spaced[phrase[named]], kinds)

    def _forms_of(self, row: np.ndarray, phrase: np.ndarray, kinds: tuple[int, ...]) -> np.ndarray:
        """Row, concept, level and phrase (4, M) of every concept that a phrase names."""
        begin = np.searchsorted(self._phrase_of, phrase, side="left")
        count = np.searchsorted(self._phrase_of, phrase, side="right") - begin
        rank = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        form = np.repeat(begin, count) + rank
        row = np.repeat(row, count)
        fits = np.isin(self._plain[form], kinds)
        form, row = form[fits], row[fits]
        return np.stack([row, self._concept[form], self._level[form], self._phrase_of[form]])

    def _count(
        self, mentions: np.ndarray, captions: pa.StringArray, rows: np.ndarray, file: str
    ) -> None:
        """Count each caption once for a concept, at the strictest level of its mentions."""
        row, concept, level, phrase = mentions[:, np.lexsort(mentions[2::-1])]
        once = np.ones(len(row), bool)
        once[1:] = (row[1:] != row[:-1]) | (concept[1:] != concept[:-1])
        row, concept, level, phrase = row[once], concept[once], level[once], phrase[once]
        np.add.at(self.tally.counts, (concept, level), 1)
        if self.on_mentions:
            self.on_mentions(rows[row], concept)
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


def has_words(captions: pa.StringArray) -> bool:
    """Whether any of the captions has a word."""
    return any(canonical(caption.as_py()) for caption in captions)


def _bounded(phrase: str) -> str:
    """The phrase with a space at each end that is not a letter of an unspaced script."""
    left = "" if is_unspaced(phrase[0]) else " "
    return f"{left}{phrase}{'' if is_unspaced(phrase[-1]) else ' '}"


def _strike_out(
    unseen: set[int], captions: pa.StringArray, tokenize: Callable[[str], Sequence[int]]
) -> None:
    """Remove from `unseen` the pieces that occur in the captions, in place."""
    for caption in dict.fromkeys(captions.to_pylist()):
        unseen.difference_update(tokenize(caption))
        if not unseen:
            return
