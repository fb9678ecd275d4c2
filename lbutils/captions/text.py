"""Canonical text, and the forms under which a name may stand in a caption.

Everything here works on names and captions alone; nothing is read from disk.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from html.entities import html5

import ftfy
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES
from ftfy.chardata import CONTROL_CHARS, LIGATURES, WIDTH_MAP

_APOSTROPHES = "'`\u00b4\u2018\u2019\u201a\u201b\u02b9\u02bb\u02bc\u02bd\u2032"
# Joiners, soft hyphens and variation selectors change how a word looks, not which word it is.
_INVISIBLE = "\u00ad\u034f\u200c\u200d\u2060\ufeff\ufe00-\ufe0f"
_DROPPED = re.compile(f"[{_APOSTROPHES}{_INVISIBLE}]+")
_DROPPED_TAGS = re.compile("[\U000e0100-\U000e01ef]+")  # apart, as they slow the rest down
_UNSPACED_LETTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_UNSPACED_LETTERS}]")
# Latin to Arabic, punctuation and symbols, kana, ideographs, Hangul, emoji: see `_fold`.
_SIMPLE_RANGES = [
    (0x0080, 0x06FF),
    (0x1E00, 0x2BFF),
    (0x3000, 0x3029),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0x1F000, 0x1FAFF),
]
# What becomes of signs of ASCII.
_SIGNS = {sign: " " for sign in map(chr, range(128)) if not sign.isalnum()} | {"'": "", "`": ""}
_DIACRITICS = re.compile("[\u0300-\u036f]+")
# Letters that differ from a plain one by a stroke, which Unicode does not decompose.
_STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae"})
_STROKES |= str.maketrans({"œ": "oe", "þ": "th"})
_IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "louse": "lice",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "tooth": "teeth",
    "woman": "women",
}
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}
# A part of a word this short is too often a word of its own.
_SHORTEST_PART = 3


def as_names(names: Iterable[str], what: str = "names") -> list[str]:
    """The names as a list.

    `names` (iterable of str): a list, a column, the keys of a mapping. `what` (str): what they are,
    for the message.

    Raises ValueError if it is one text, which would be read letter by letter. Raises TypeError if
    it is a table, or one of the names is not text.
    """
    if isinstance(names, (str, bytes)):
        raise ValueError(f"{what} must be a list of texts, not one text: pass [{names!r}]")
    if isinstance(names, (pd.DataFrame, pl.DataFrame, pa.Table)):
        raise TypeError(f"{what} must be a list or one column: pass table['name']")
    if isinstance(names, (pa.Array, pa.ChunkedArray)):
        names = names.to_pylist()
    found = list(names)
    for place, name in enumerate(found):
        if not isinstance(name, str):
            raise TypeError(f"{what} must be texts, but number {place} is {name!r:.80}")
    return found


# "::" links the parts of a chain of fsspec, if another scheme follows; else it may be a password's.
_LINK = r"::[A-Za-z][A-Za-z0-9+.-]*(?:://|::)"
# A password may have quotes, which end a URL elsewhere. The length of a scheme is bounded, as else
# a text of letters alone would be looked through once from each of them.
_URL = re.compile(
    rf"([A-Za-z][A-Za-z0-9+.-]{{0,30}})://((?:[^\s/?#]*@)?(?:(?!{_LINK})[^\s'\"<>`])+)"
)
# With a slash in the password, which should not be there, but a port is none.
_USER = re.compile(r"[^/?#]*@|[^/@:]*:(?!\d+(?:[/?#]|$)).*@")
_QUERIED = re.compile("https?://", re.IGNORECASE)
_NO_SECRET = re.compile(r"(abfss?|wasbs?|az)\Z", re.IGNORECASE)
_REST = re.compile(r"([^\s'\"<>?]\?)[^\s'\"<>?]*=[^\s'\"<>]*")


def redacted(text: str) -> str:
    """The text with user, password, query and fragment taken out of every URL in it.

    All that is written or printed of a source goes through this: a URL may hold a password, and
    the query of a presigned one is as good as one. Messages of other libraries are treated as well,
    also if they have the path and query alone (``/a.parquet?Signature=...``). What was taken out
    of a query shows as ``?...``. A container before an Azure account is not a user and stays.
    """
    return _REST.sub(r"\1...", _URL.sub(_without_secrets, text))


def url_path(url: str) -> str:
    """The URL without query and fragment, which its suffix is not to be looked for in.

    Only ``http`` and ``https`` have them: elsewhere "?" and "#" are signs of a name or pattern.
    """
    return re.split("[?#]", url, maxsplit=1)[0] if _QUERIED.search(url) else url


@contextmanager
def discreetly() -> Iterator[None]:
    """Raise what is raised within with its message `redacted`, and without a cause that is not."""
    try:
        yield
    except Exception as error:
        said: BaseException | None = error
        while said and redacted(str(said)) == str(said):
            said = said.__cause__ or said.__context__
        if said is None:
            raise
        kinds = (FileNotFoundError, PermissionError, OSError, ValueError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        raise kind(redacted(str(error))) from None


def _without_secrets(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    user = _USER.match(rest)
    if user and (":" in user[0] or not _NO_SECRET.match(scheme)):
        rest = rest[user.end() :]
    path = url_path(shown := f"{scheme}://{rest}")
    return shown if path == shown else f"{path}?..."


@cache
def _word_pattern() -> re.Pattern[str]:
    r"""A word: letters and digits of any script, with the combining marks that follow them.

    Python's ``\w`` has no combining marks, without which Indic words fall to pieces. A line
    break is kept beside the words, so that many captions can be read at once.
    """
    marks = {c for c in range(0x300, 0x1F000) if unicodedata.category(chr(c))[0] == "M"}
    starts = sorted(c for c in marks if c - 1 not in marks)
    ends = sorted(c for c in marks if c + 1 not in marks)
    mark = "".join(f"{chr(low)}-{chr(high)}" for low, high in zip(starts, ends, strict=True))
    # The long class is tested only where a word is not followed by ASCII, as most are.
    return re.compile(rf"[^\W_]+(?:(?=[^\x00-\x7f])[{mark}]+[^\W_]*)*|\n")


def cleaned(text: str) -> str:
    """The text as open_clip's tokenizer reads it, but for case and white space.

    HTML entities are resolved, also escaped ones (``"AT&amp;amp;T"`` is ``"AT&T"``), wrongly
    decoded text is mended (``"cafÃ©"`` is ``"café"``) and control characters are taken out.

    Source: ``basic_clean`` of open_clip and of OpenAI's CLIP, which this equals but for white space
    at the ends.
    """
    return html.unescape(html.unescape(ftfy.fix_text(text)))


@cache
def _suspect_pattern() -> str:
    """Pattern, for Polars, of all that `cleaned` may change but for what canonical text levels."""
    # Rust's verbose mode ignores white space within brackets too, hence it is taken out here. Of
    # letters and digits Rust knows fewer.
    bad = re.sub(
        r"\[(?:\\.|[^\]])*\]|\s+|#[^\n]*",
        lambda part: part[0] if part[0].startswith("[") else "",
        BADNESS_RE.pattern,
    ).replace(r"\w", r"[\w\p{N}]")
    bare = "|".join(name for name in html5 if not name.endswith(";"))
    entity = f"&(?:#|[0-9A-Za-z]{{1,31}};|{bare})"
    control = "".join(rf"\x{{{code:x}}}" for code in CONTROL_CHARS)
    # ftfy looks at each line by itself, so its pattern for a beginning holds anywhere here.
    return f"{entity}|[{control}]|[ÃÂ] |{bad}"


@cache
def _unsettled_pattern() -> str:
    """Pattern of characters that ftfy replaces, after which it looks for wrong decoding again."""
    telling = re.compile(f"[\0-\x7f{''.join(MOJIBAKE_CATEGORIES.values())}]")
    every = map(chr, range(0x80, 0x30000))
    singles = [
        c for c in every if (n := unicodedata.normalize("NFC", c)) != c and telling.search(n)
    ]
    replaced = [*singles, *map(chr, [*LIGATURES, *WIDTH_MAP])]
    return rf"[\p{{M}}{''.join(replaced)}]"


_SETTLED = {**LIGATURES, **WIDTH_MAP}


# All that `cleaned` or `canonical` may read as anything but a letter, a digit or a space.
_SPECIAL = r"[^\t\n\f\r -~]|&"


def all_cleaned(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Texts with the canonical form of `cleaned` ones, and the places of those beyond plain ASCII.

    ftfy takes a thousand times longer than all else that is done with a caption. So a text, none of
    which is null, is given to it only if a pattern finds what ftfy or HTML could change in it.
    """
    places = texts.str.contains(_SPECIAL).arg_true()
    special = texts.gather(places)
    wanted = special.str.contains(_suspect_pattern())
    rows = (~wanted & special.str.contains(_unsettled_pattern())).arg_true()
    if len(rows):
        joined = "\n".join(text.replace("\n", " ") for text in special.gather(rows))
        settled = unicodedata.normalize("NFC", joined.translate(_SETTLED)).split("\n")
        wanted = wanted.scatter(rows, pl.Series(settled).str.contains(_suspect_pattern()))
    rows = wanted.arg_true()
    if len(rows):
        mended = pl.Series(list(map(cleaned, special.gather(rows))), dtype=pl.String)
        texts = texts.scatter(places.gather(rows), mended)
    return texts, places


def canonical(text: str) -> str:
    """The text as its words: `cleaned`, NFKC, case-folded, one space between words.

    Apostrophes and invisible joiners are dropped (``"Pig's ear"`` and ``"Pig&#39;s ear"`` are
    ``"pigs ear"``); every other run of characters that are not letters, digits or combining marks
    becomes one space. The result may be empty. It is a fixed point, ``canonical(canonical(x)) ==
    canonical(x)``, as long as small letters alone do not look like wrongly decoded text.

    Scripts written without spaces (Chinese, Japanese, Thai, ...) are not segmented: a run of
    their letters counts as one word.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(re.findall("[a-z0-9]+", text.lower().replace("'", "").replace("`", "")))
    return folded_lines([cleaned(text)])[0]


def folded_lines(texts: Sequence[str]) -> list[str]:
    """`canonical` of each of some `cleaned` texts, computed on all at once, which is faster."""
    if not texts:
        return []
    joined = "\n".join(text.replace("\n", " ") for text in texts)
    while True:
        folded = unicodedata.normalize("NFKC", _without_dropped(joined)).casefold()
        folded = _without_dropped(unicodedata.normalize("NFKC", folded))
        lines = " ".join(_word_pattern().findall(folded)).split("\n")
        lines = [line.strip(" ") for line in lines]
        folded = "\n".join(lines)
        # Dropping a character may let its neighbours compose, which a second round settles.
        if folded == joined:
            return lines
        joined = folded


def _without_dropped(text: str) -> str:
    return _DROPPED_TAGS.sub("", _DROPPED.sub("", text))


def without_diacritics(text: str) -> str:
    """Canonical text with Latin, Greek and Cyrillic letters stripped of their diacritics.

    ``"café"`` becomes ``"cafe"``, ``"smørrebrød"`` becomes ``"smorrebrod"``. Vowel signs of
    Indic and other scripts are letters in all but name, and stay.
    """
    plain = _DIACRITICS.sub("", unicodedata.normalize("NFKD", text)).translate(_STROKES)
    return unicodedata.normalize("NFKC", plain)


@cache
def _fold(char: str) -> tuple[str, str] | None:
    """What a character becomes, with and without diacritics; None if its neighbours matter.

    A character folds alike in any company if neither it nor what it becomes is a mark or a
    letter that could join with the one before it.
    """
    if not any(low <= ord(char) <= high for low, high in _SIMPLE_RANGES):
        return None
    text = unicodedata.normalize("NFKC", _without_dropped(char)).casefold()
    text = _without_dropped(unicodedata.normalize("NFKC", text))
    if any(unicodedata.category(c)[0] == "M" for c in char + text):
        return None
    folded = "".join(c if c.isalnum() else " " for c in text)
    if folded != folded.lower():
        return None
    return folded, without_diacritics(folded)


def canonical_lines(texts: pl.Series, *, bare: bool = False) -> pl.Series:
    """`canonical` of cleaned texts, without nulls, as `all_cleaned` returns them.

    Characters that fold alike in any company, which are most, are replaced in Polars; only
    texts with others take the path of `folded_lines`. With `bare` diacritics are taken off as well.
    """
    letters = np.frombuffer(texts.to_arrow().cast(pa.large_string()).buffers()[2] or b"", np.uint8)
    folds = {char: _fold(char) for char in set(letters[letters > 127].tobytes().decode())}
    table = {**_SIGNS, **{char: fold[bare] for char, fold in folds.items() if fold}}
    done = texts.str.replace_many(list(table), list(table.values())).str.to_lowercase()
    done = done.str.replace_all(" {2,}", " ").str.strip_chars(" ")
    others = [char for char, fold in folds.items() if fold is None]
    if others:
        hard = texts.str.contains_any(others)
        lines = folded_lines(texts.filter(hard).to_list())
        lines = without_diacritics("\n".join(lines)).split("\n") if bare else lines
        done = done.scatter(hard.arg_true(), lines)
    return done


def is_unspaced(text: str) -> bool:
    """Whether the text has a letter of a script that is written without spaces."""
    return bool(_UNSPACED.search(text))


def compounds(phrase: str) -> list[str]:
    """Other spellings of a canonical phrase: words joined, a single word apart.

    ``"hot dog"`` gives ``"hotdog"``, ``"sunflower"`` gives ``"sun flower"`` among others; a hyphen
    is a space in canonical text.
    """
    return [form for form in dict.fromkeys(_respaced(phrase)) if form != phrase]


def inflections(phrase: str) -> list[str]:
    """Other forms of a canonical phrase: number, possessive, and words joined or apart.

    English number and possessive of the last word, and of the head of "... of ..."; neighbours
    written as one word (a hyphen is a space in canonical text); a single word written as two.
    The rules are generous, as a form too many makes a verdict of absence only safer.
    """
    head, of, tail = phrase.partition(" of ")
    first, _, last = head.rpartition(" ")
    first += " " if first else ""
    forms = [phrase, *(f"{first}{other}{of}{tail}" for other in _other_number(last))]
    if of:
        before, _, last = tail.rpartition(" ")
        lead = f"{head} of {before} " if before else f"{head} of "
        forms += [f"{lead}{other}" for other in _other_number(last)]
    forms += [respaced for form in forms for respaced in _respaced(form)]
    return [form for form in dict.fromkeys(forms) if form != phrase]


def _other_number(word: str) -> Iterator[str]:
    """Plurals, possessives and singulars of an English word, by the spelling rules."""
    if not word.isascii() or not word.isalpha():
        return
    yield f"{word}s"  # also "fox's", whose apostrophe canonical text drops
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        yield f"{word}es"
    for ending, others in {"y": ["ies"], "f": ["ves"], "fe": ["ves"], "us": ["i"]}.items():
        if word.endswith(ending) and len(word) > len(ending) + 1:
            yield from (word.removesuffix(ending) + other for other in others)
    for table in (_IRREGULAR, _SINGULAR):
        for known, other in table.items():
            if word == known or (len(known) > 2 and word.endswith(known)):
                yield word.removesuffix(known) + other
    if word.endswith("ies") and len(word) > 4:
        yield f"{word[:-3]}y"
    if word.endswith("ves") and len(word) > 4:
        yield from (f"{word[:-3]}f", f"{word[:-3]}fe")
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")) and len(word) > 4:
        yield word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        yield word[:-1]


def _respaced(phrase: str) -> Iterator[str]:
    """The phrase with one space, or all, taken out; a single word with one space put in."""
    words = phrase.split()
    for i in range(len(words) - 1):
        yield " ".join([*words[:i], words[i] + words[i + 1], *words[i + 2 :]])
    if len(words) > 2:
        yield "".join(words)
    if len(words) == 1 and not is_unspaced(phrase):
        for i in range(_SHORTEST_PART, len(phrase) - _SHORTEST_PART + 1):
            # A combining mark belongs to the letter before it.
            if phrase[i].isalnum():
                yield f"{phrase[:i]} {phrase[i:]}"
        # "tshirt" and "email", but not "a corn": articles and pronouns are no prefixes.
        if len(phrase) > _SHORTEST_PART and phrase[0] not in "ai" and phrase[1].isalnum():
            yield f"{phrase[0]} {phrase[1:]}"
