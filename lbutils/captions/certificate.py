"""Certificates of absence: what a screening found, where, and by which rules, to hand out.

A certificate is a JSON document that stands for itself: counts at each level and scale, examples
with the rows they stand in, the hashes of the files that were read, and what to be wary of.

What it cannot tell: whether the files that were named are the whole corpus, and whether a file
was cut short where a shorter file would end too. Parquet files tell that they lack an end, and so
do compressed ones; CSV and TSV files are doubted if they have no line break there. A file of text
that is not compressed and is cut exactly at the end of a line, or a compressed one of several
streams cut exactly between two of them, is a whole, shorter file. Only its publisher's number of
rows or checksum says otherwise: compare them with ``files``, and name a `layout` if there is one.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from lbutils._util import write_text
from lbutils.captions.survey import Survey, level_column
from lbutils.captions.text import canonical, is_unspaced

FORMAT = "lbutils screening certificate, 2"
VERDICTS = ("ip", "oop", "undecided")
# Half of at least so many examples with one neighbour: the name is mostly part of a longer one.
_ENOUGH = 8
_FUNCTION_WORDS = frozenset(
    "a an and as at by for from in into is it its of on or our that the their this to with your "
    "my no not are be de la le el di und der die das".split()
)


def certify(
    surveys: Survey | Mapping[str, Survey],
    *,
    corpus: str,
    corpus_version: str = "",
    homonyms: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The certificate of a screening at one scale or several, as JSON's own types.

    Raises ValueError if the surveys differ in their names or rules.

    Parameters
    ----------
    surveys : Survey or mapping
        One survey, or scale to survey, from the smallest corpus on, of the same names by the
        same rules.
    corpus : str
        Its name.
    corpus_version : str
        Release, snapshot or date of the corpus.
    homonyms : mapping, optional
        Name to a note on its other meanings, for names that are known to have some.

    Returns
    -------
    dict
        ``format``, ``made``, ``tool`` (versions), ``corpus``, ``levels``, ``scales`` (``files``
        with what named them, fingerprints, captions and errors, what was ``passed_over`` and why,
        ``doubts``: why nothing can be said to be absent, and whether ``complete``: without any)
        and ``concepts``: for each its ``phrase``, ``warnings``, and at each scale ``verdict``,
        ``captions`` by level (those at the level or a stricter one), ``words_seen``,
        ``pieces_seen`` and ``examples``. The verdict is the ``subset`` of
        `lbutils.captions.survey.screen`: "ip", "oop" or "undecided".
    """
    if isinstance(surveys, Survey):
        surveys = {corpus: surveys}
    if len({survey.query.key for survey in surveys.values()}) != 1:
        raise ValueError("surveys of one certificate must have the same concepts, levels and rules")
    query = next(iter(surveys.values())).query
    at_scale = {scale: _findings(survey) for scale, survey in surveys.items()}
    warnings = _warnings(surveys, homonyms or {})
    concepts = [
        {
            "name": name,
            "phrase": query.phrases[k],
            "words": len(query.phrases[k].split()),
            "pieces": len(query.pieces[k]),
            "warnings": warnings[k],
            "scales": {scale: findings[k] for scale, findings in at_scale.items()},
        }
        for k, name in enumerate(query.names)
    ]
    return {
        "format": FORMAT,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tool": _tool(),
        "rules": query.key,
        "corpus": {"name": corpus, "version": corpus_version},
        "levels": list(query.levels),
        "scales": {scale: _scope(survey) for scale, survey in surveys.items()},
        "concepts": concepts,
    }


def _findings(survey: Survey) -> list[dict[str, Any]]:
    """What one survey says of each concept."""
    table, examples = survey.table, survey.examples
    by_name = {name: rows.drop(columns="name") for name, rows in examples.groupby("name")}
    findings = []
    for row in table.to_dict("records"):
        counts = {level: int(row[level_column(level)]) for level in survey.levels}
        kept = by_name.get(row["name"])
        findings.append(
            {
                "verdict": row["subset"],
                "captions": counts,
                "words_seen": int(row["words_seen"]),
                "pieces_seen": int(row["pieces_seen"]),
                "compositional": bool(row["compositional"]),
                "examples": [] if kept is None else kept.to_dict("records"),
            }
        )
    return findings


def _scope(survey: Survey) -> dict[str, Any]:
    """What was read for one scale."""
    return {
        "complete": survey.complete,
        "doubts": survey.doubts,
        "rows": int(survey.total.rows),
        "captions": int(survey.total.captions),
        "files_expected": survey.expected,
        "files": survey.files.to_dict("records"),
        "passed_over": survey.passed_over.to_dict("records"),
    }


def _tool() -> dict[str, str]:
    packages = {"lbutils": "", "polars": "", "pyarrow": ""}
    for name in packages:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed as a package"
    return {**packages, "unicode": unicodedata.unidata_version}


def _warnings(surveys: Mapping[str, Survey], homonyms: Mapping[str, str]) -> list[list[str]]:
    """What each verdict cannot be trusted with, in words."""
    query = next(iter(surveys.values())).query
    padded = {f" {phrase} ": name for phrase, name in zip(query.phrases, query.names, strict=True)}
    examples = pd.concat([survey.examples for survey in surveys.values()])
    captions = examples[examples["level"] == "phrase"].groupby("name")["caption"].agg(list)
    found = []
    for name, phrase in zip(query.names, query.phrases, strict=True):
        notes = [f"homonym: {homonyms[name]}"] if name in homonyms else []
        longer = [other for text, other in padded.items() if f" {phrase} " in text]
        if others := [other for other in longer if canonical(other) != phrase]:
            notes.append(f"part of other names on this list: {', '.join(others[:5])}")
        if name in captions:
            notes += _collocations(phrase, list(dict.fromkeys(captions[name])))
        if is_unspaced(phrase):
            how = "anywhere in a run of letters" if query.substring else "where it stands alone"
            notes.append(f"script without spaces: counted {how}")
        found.append(notes)
    return found


def _collocations(phrase: str, captions: Sequence[str]) -> Iterator[str]:
    """Longer names that the phrase is mostly a part of, among distinct example captions."""
    words = phrase.split()
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for caption in captions:
        text = canonical(caption).split()
        for k in range(len(text) - len(words) + 1):
            if text[k : k + len(words)] == words:
                before.update(text[k - 1 : k] if k else [])
                after.update(text[k + len(words) : k + len(words) + 1])
                break
    for neighbours, form in ((before, "{other} {phrase}"), (after, "{phrase} {other}")):
        for other, count in neighbours.most_common(1):
            mostly = len(captions) >= _ENOUGH and 2 * count >= len(captions)
            if mostly and other not in _FUNCTION_WORDS:
                name = form.format(other=other, phrase=phrase)
                yield f"perhaps a homonym: {count} of {len(captions)} examples have {name!r}"


def to_table(certificate: Mapping[str, Any]) -> pd.DataFrame:
    """One row per concept and scale of a certificate.

    Returns
    -------
    DataFrame
        ``name``, ``phrase``, ``scale``, ``verdict``, ``captions`` and ``captions_<level>`` as in
        `lbutils.captions.survey.screen`, ``words``, ``words_seen``, ``pieces``, ``pieces_seen``,
        ``absent_up_to`` (the loosest level at which no caption names the concept, empty if none),
        ``example`` and ``warnings``.
    """
    rows = []
    for concept in certificate["concepts"]:
        for scale, found in concept["scales"].items():
            counts = found["captions"]
            absent = [level for level in certificate["levels"] if not counts[level]]
            examples = found["examples"]
            rows.append(
                {
                    "name": concept["name"],
                    "phrase": concept["phrase"],
                    "scale": scale,
                    "verdict": found["verdict"],
                    **{level_column(level): count for level, count in counts.items()},
                    "words": concept["words"],
                    "words_seen": found["words_seen"],
                    "pieces": concept["pieces"],
                    "pieces_seen": found["pieces_seen"],
                    "absent_up_to": absent[-1] if absent else "",
                    "example": examples[0]["caption"] if examples else "",
                    "warnings": "; ".join(concept["warnings"]),
                }
            )
    return pd.DataFrame(rows)


_FIRST = b"name,phrase,scale,verdict,captions"
# Spreadsheets take a cell for a formula that begins so; also with the wide forms of these signs.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


def check_place(path: str | os.PathLike[str]) -> Path:
    """The path, if a certificate can be written there.

    Raises ValueError if it does not end in ``.json``, or if the file there, or the ``.csv`` beside
    it, is not one that `write_certificate` wrote. Raises OSError if its folder cannot be written
    to.
    """
    place = Path(path)
    if place.suffix != ".json":
        raise ValueError(f"a certificate is a .json file, not {place.name}: name it {place}.json")
    folder = next(folder for folder in place.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not a folder that can be written to: choose another")
    for file, begins in ((place, _is_certificate), (place.with_suffix(".csv"), _is_table)):
        if file.exists() and not begins(file):
            raise ValueError(
                f"{file} is not from a certificate and would be overwritten: choose another name "
                f"than {place.name}, or move it"
            )
    return place


def _is_certificate(file: Path) -> bool:
    try:
        found = json.loads(file.read_bytes())["format"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return False
    return str(found).partition(",")[0] == FORMAT.partition(",")[0]


def _is_table(file: Path) -> bool:
    return file.is_file() and file.read_bytes().replace(b'"', b"").startswith(_FIRST)


def write_certificate(certificate: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """The path of the certificate, written as JSON, and beside it as a table in CSV.

    In the CSV, a text that a spreadsheet would take for a formula, as it begins with "=", "+",
    "-", "@", a tabulator or a line break, has an apostrophe in front, and so has one that begins
    with an apostrophe itself: taking off one apostrophe gives back every text.

    Raises ValueError as `check_place`.
    """
    place = check_place(path)
    text = json.dumps(certificate, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    table = to_table(certificate).map(_defused)
    # With quotes around every text: a carriage return alone would not get any.
    lines = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
    write_text(place.with_suffix(".csv"), lines)
    write_text(place, text)
    return place


def _defused(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def read_certificate(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A certificate that `write_certificate` wrote.

    Raises ValueError if the file is not a certificate of this format; the message names it.
    """
    try:
        certificate = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a certificate: {error}") from error
    found = certificate.get("format") if isinstance(certificate, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is not a certificate that this version can vouch for: its format is "
            f"{found!r}, not {FORMAT!r}; screen again"
        )
    return certificate


def compare_certificates(first: Mapping[str, Any], second: Mapping[str, Any]) -> pd.DataFrame:
    """Where two certificates differ: what, of which concept and scale, in the first, the second.

    Time of making and examples are not compared.

    Returns a DataFrame: ``name`` (empty for what concerns all), ``scale``, ``what``, ``first``,
    ``second``. No rows if the certificates agree.
    """
    sides = [dict(_statements(certificate)) for certificate in (first, second)]
    rows = [
        (*key, *(side.get(key, "not there") for side in sides))
        for key in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(key, "not there") != sides[1].get(key, "not there")
    ]
    return pd.DataFrame(rows, columns=["name", "scale", "what", "first", "second"])


def _statements(certificate: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], Any]]:
    for what in ("tool", "corpus"):
        for key, value in certificate[what].items():
            yield ("", "", f"{what} {key}"), value
    yield ("", "", "levels"), ", ".join(certificate["levels"])
    for scale, scope in certificate["scales"].items():
        for what in ("complete", "captions"):
            yield ("", scale, what), scope[what]
        for file in scope["files"]:
            yield ("", scale, f"file {file['file']}"), file["fingerprint"] or file["error"]
    for concept in certificate["concepts"]:
        for scale, found in concept["scales"].items():
            yield (concept["name"], scale, "verdict"), found["verdict"]
            for level, count in found["captions"].items():
                yield (concept["name"], scale, f"captions, {level}"), count


def check_scales(certificate: Mapping[str, Any]) -> pd.DataFrame:
    """Concepts whose count falls from a scale to the next larger one, which nesting forbids.

    LAION-400M lies within LAION-2B, and that within LAION-5B only as far as the releases were
    made so; a row here says that the corpora are not nested, or a file was not read.

    Returns a DataFrame: ``name``, ``level``, ``smaller``, ``larger`` (scales),
    ``captions_smaller``, ``captions_larger``. No rows if a larger corpus only turned OOP into IP.
    """
    rows = []
    for concept in certificate["concepts"]:
        for (small, before), (large, after) in pairwise(concept["scales"].items()):
            for level, count in before["captions"].items():
                if after["captions"][level] < count:
                    now = after["captions"][level]
                    rows.append((concept["name"], level, small, large, count, now))
    columns = ["name", "level", "smaller", "larger", "captions_smaller", "captions_larger"]
    return pd.DataFrame(rows, columns=columns)
