"""Screen a list of names from a shell, and choose classes by how often they are named.

    lbutils screen names.txt "captions/*.parquet" --out certificate.json

Exit status: 0 if all that was named was read and every name is in or out, 1 if something could not
be read or a name is undecided (what and why is printed, all else is counted), 2 if nothing was
screened: the arguments are wrong, or a file or folder that they name is not there.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lbutils._util import suggest
from lbutils.captions import corpora
from lbutils.captions.certificate import certify, check_place, to_table, write_certificate
from lbutils.captions.counting import LEVELS, UNSPACED
from lbutils.captions.survey import mentions, screen, survey
from lbutils.captions.text import as_names, canonical, redacted


def most_frequent(
    names: Iterable[str], captions: Any, synonyms: Mapping[str, Sequence[str]], **options: Any
) -> pd.DataFrame:
    """For each name the text that captions have most often: the name, or a synonym of it.

    A model knows best what it read most, so this is the first thing to try for a name that it does
    not know, before anything is learned.

    Returns a DataFrame: one row a name, in order: ``name``; ``text``, the name itself unless a
    synonym is in more captions; ``captions``, in how many `text` is, and ``captions_name`` the
    name. Raises ValueError as `screen` does, or if synonyms are given for what is no name.

    Source: REAL-Prompt of Parashar et al., "The neglected tails in vision-language models", CVPR
    2024, whose counts were of LAION's captions.

    Parameters
    ----------
    synonyms : mapping of str to sequence of str
        Other texts for the same thing, of some of the names.
    **options
        As in `screen`, which counts.
    """
    names = as_names(names)
    for name in synonyms:
        if name not in names:
            raise ValueError(suggest(name, names, "name"))
    choices = {name: [name, *as_names(synonyms.get(name, ()), "synonyms")] for name in names}
    texts = list(dict.fromkeys(text for own in choices.values() for text in own))
    counts = dict(zip(texts, screen(texts, captions, **options)["captions"], strict=True))
    best = [max(own, key=counts.__getitem__) for own in choices.values()]
    columns = {"text": best, "captions": [counts[text] for text in best]}
    own = [counts[name] for name in names]
    return pd.DataFrame({"name": names, **columns, "captions_name": own})


def choose_classes(
    candidates: pd.DataFrame,
    captions: Any,
    *,
    oop: int,
    ip: int,
    least: int = 1,
    **options: Any,
) -> pd.DataFrame:
    """An OOP and an IP set for each domain, with the smallest collateral.

    To make a name OOP, every caption that holds it is withheld. The collateral of a set is the
    number of captions withheld: nothing for a name that no caption holds, and less for names
    that share their captions. OOP names are taken one by one, across domains, each time the one
    that costs fewest further captions; then the IP names that are left in most captions.

    Raises ValueError if a domain has two names of one canonical form, or too few candidates; the
    message says which; if a file cannot be read, or no caption was read of something that is named.

    Greedy choice: exact for names that share no caption. The cheapest set in general is a
    minimum-weight cover, which is NP-hard.

    Parameters
    ----------
    candidates : DataFrame
        ``domain`` and ``name``, in order of preference: the first wins a tie.
    captions : any
        As in `lbutils.captions.survey.screen`.
    oop, ip : int
        Names of either kind for each domain.
    least : int
        Captions that an IP name must keep.
    **options
        `column`, `levels`, `synonyms`, `unspaced`, as in `lbutils.captions.survey.mentions`. With
        inflections, captions with the plural are withheld as well.

    Returns
    -------
    DataFrame
        ``domain``, ``name``, ``subset`` ("oop", "ip", or "" if not chosen), ``captions`` (that name
        it), ``withheld`` (captions lost to the corpus when this name was taken, in that order),
        ``kept`` (captions that name it and are left).
    """
    names = as_names(candidates["name"], "candidates")
    domains = list(candidates["domain"])
    first: dict[tuple[Any, str], str] = {}
    for domain, name in zip(domains, names, strict=True):
        key = domain, canonical(name)
        if key in first:
            raise ValueError(f"candidates {first[key]!r} and {name!r} of {domain!r} are one name")
        first[key] = name
    pairs = mentions(names, captions, **options)
    where = [np.empty(0, np.int64)] * len(names)
    for concept, rows in pairs.groupby("concept")["caption"]:
        where[int(concept)] = rows.to_numpy()
    gone = np.zeros(int(pairs["caption"].max()) + 1 if len(pairs) else 0, bool)
    withheld = _take_cheapest(domains, where, gone, oop)
    subset = ["oop" if k in withheld else "" for k in range(len(names))]
    kept = [int((~gone[rows]).sum()) for rows in where]
    for domain in dict.fromkeys(domains):
        free = [k for k, d in enumerate(domains) if d == domain and not subset[k]]
        free = sorted((k for k in free if kept[k] >= least), key=lambda k: (-kept[k], k))
        if len(free) < ip:
            raise ValueError(
                f"domain {domain!r}: {len(free)} names are left in {least} captions or more, "
                f"{ip} are wanted"
            )
        for k in free[:ip]:
            subset[k] = "ip"
    counts, lost = [len(rows) for rows in where], [withheld.get(k, 0) for k in range(len(names))]
    chosen = {"subset": subset, "captions": counts, "withheld": lost, "kept": kept}
    return candidates[["domain", "name"]].reset_index(drop=True).assign(**chosen)


def _take_cheapest(
    domains: list[Any], where: Sequence[np.ndarray], gone: np.ndarray, number: int
) -> dict[int, int]:
    """The names to withhold, `number` a domain, and how many further captions each costs.

    `where`: the captions of each name. `gone` (bool, a caption each) is marked in place.
    """
    taken: dict[int, int] = {}
    left = dict.fromkeys(domains, number)
    while any(left.values()):
        cost = {
            k: int((~gone[where[k]]).sum())
            for k, domain in enumerate(domains)
            if left[domain] and k not in taken
        }
        if missing := {d for d in left if left[d]} - {domains[k] for k in cost}:
            raise ValueError(f"domain {sorted(missing)[0]!r} has fewer than {number} candidates")
        best = min(cost, key=cost.__getitem__)
        taken[best] = cost[best]
        gone[where[best]] = True
        left[domains[best]] -= 1
    return taken


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_names(path: str | os.PathLike[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Names, each once, and their synonyms, from a text file or a table, in UTF-8.

    `path` (str or path): ``.txt`` or no suffix: a name a line. ``.csv`` or ``.tsv``: a column
    ``name``, and perhaps ``synonyms``, separated by semicolons. Rows of one name are merged.

    Raises ValueError if the file is another kind of file or not UTF-8, if it has no name, if a
    table has no column ``name`` or two, or a row with another number of cells or without a name.
    """
    place = Path(path)
    suffix = place.suffix.lower()
    if suffix not in ("", ".txt", *_DELIMITERS):
        raise ValueError(f"{place}: names are read from .txt, .csv and .tsv, not from {suffix}")
    try:
        text = place.read_text(encoding="utf-8-sig")  # Excel begins its files with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not in UTF-8: save it as UTF-8 text ({error})") from error
    if suffix in _DELIMITERS:
        rows = _table_rows(place, text, _DELIMITERS[suffix])
    else:
        lines = [line.strip() for line in text.splitlines()]
        cells = re.split("[,;\t]", lines[0]) if lines else []
        if len(cells) > 1 and "name" in (cell.strip(' "').lower() for cell in cells):
            raise ValueError(f"{place} begins like a table, {lines[0]!r}: name it .csv or .tsv")
        rows = [(line, "") for line in lines if line]
    if not rows:
        raise ValueError(f"{place} has no names")
    merged: dict[str, dict[str, None]] = {name: {} for name, _ in rows}
    for name, others in rows:
        merged[name].update(dict.fromkeys(filter(None, map(str.strip, others.split(";")))))
    return list(merged), {name: list(others) for name, others in merged.items() if others}


def _table_rows(place: Path, text: str, delimiter: str) -> list[tuple[str, str]]:
    """Name and synonyms of each row of a table."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if header.count("name") != 1 or header.count("synonyms") > 1:
            raise ValueError(f"{place} must have one column 'name', it has {', '.join(header)}")
        rows = []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{place}, line {reader.line_num}: {len(row)} cells under {len(header)} "
                    "headers; put cells with a separator in double quotes"
                )
            cells = dict(zip(header, map(str.strip, row), strict=True))
            if not cells["name"]:
                raise ValueError(f"{place}, line {reader.line_num}: the name is missing")
            rows.append((cells["name"], cells.get("synonyms", "")))
    except csv.Error as error:
        raise ValueError(f"{place}, line {reader.line_num}: {error}") from error
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lbutils screen",
        description="Do these names occur in these captions? Writes a certificate.",
        epilog="Exit status: 0 if all that was named was read and every name is in or out; 1 if "
        "something could not be read or a name is undecided; 2 if nothing was screened.",
    )
    parser.add_argument(
        "names", help="text file, a name a line, or .csv or .tsv with a column name"
    )
    parser.add_argument("captions", nargs="+", help="files, folders, patterns or URLs")
    parser.add_argument("--out", help="certificate to write (.json, and a .csv beside it)")
    parser.add_argument("--corpus", default="captions", help="name of the corpus")
    parser.add_argument("--corpus-version", default="", help="its release or date")
    parser.add_argument("--scale", help="scale of the corpus, such as 400m")
    parser.add_argument("--layout", choices=sorted(corpora.LAYOUTS), help="a published corpus")
    parser.add_argument("--column", help="column of captions; default: caption or TEXT")
    parser.add_argument("--levels", nargs="*", default=list(LEVELS[1:4]), choices=LEVELS)
    parser.add_argument("--unspaced", default="substring", choices=UNSPACED)
    parser.add_argument("--examples", type=int, default=10, help="captions kept a name and level")
    parser.add_argument("--workers", type=int, default=1, help="threads, a file each")
    parser.add_argument("--scheduler", help="address of a Dask scheduler, for a cluster")
    parser.add_argument("--state", help="folder of finished counts, to resume from")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, 1 if anything is undecided, 2 if nothing was screened."""
    given = _parser().parse_args(arguments)
    try:
        if given.out:  # before hours of reading, not after
            check_place(given.out)
        names, synonyms = read_names(given.names)
        found = survey(
            names,
            corpora.Sources(given.captions),
            column=given.column,
            layout=given.layout,
            levels=given.levels,
            synonyms=synonyms,
            unspaced=given.unspaced,
            examples=given.examples,
            workers=given.workers,
            scheduler=given.scheduler,
            state=given.state,
            progress=not given.quiet,
        )
        scale = given.scale or (corpora.LAYOUTS[given.layout].scale if given.layout else "all")
        certificate = certify(
            {scale: found}, corpus=given.corpus, corpus_version=given.corpus_version
        )
        if given.out:
            write_certificate(certificate, given.out)
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        print(redacted(str(error)), file=sys.stderr)
        return 2
    table = to_table(certificate).drop(columns=["phrase", "example"])
    print(table.to_string(index=False))
    read = (found.files["error"] == "").sum()
    total = found.total
    print(f"{total.captions:,} captions in {total.rows:,} rows of {read:,} files")
    for row in found.passed_over.itertuples():
        print(f"passed over: {row.file}: {row.reason}", file=sys.stderr)
    faults = set(found.files["error"])
    for doubt in found.doubts:
        print(f"not {'counted' if doubt in faults else 'complete'}: {doubt}", file=sys.stderr)
    undecided = (table["verdict"] == "undecided").sum()
    if undecided:
        print(f"undecided: {undecided:,} of {len(table):,} names", file=sys.stderr)
    return 0 if found.complete and not undecided else 1
