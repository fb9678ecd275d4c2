"""Writes `synonyms.csv` and `languages.csv` of `data/prompts`: other words for the names.

    python data/mini/make/words.py [--sources .build/sources]

Synonyms are the labels that drawings were matched by (`concepts.csv` beside this script). Words of
other languages are those of emojibase (MIT; its labels are those of Unicode's CLDR, under the
Unicode licence) for the first emoji that shows a concept; `fetch.sh` brings its package.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]
PROMPTS = DATA.parent / "prompts"
LANGUAGES = ("de", "fr", "fi", "ru", "ja")


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write(path: Path, columns: list[str], rows: list[tuple[str, ...]]) -> None:
    """Write rows under their columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def words_of(row: dict[str, str]) -> list[str]:
    """The name of a row of `concepts.csv`, then the labels that its drawings were matched by."""
    labels = [*row["emoji_labels"].split("|"), *(row["other_labels"] or "").split("|")]
    return [row["name"], *filter(None, labels)]


def labels(folder: Path, language: str) -> dict[str, str]:
    """Label of each emoji of emojibase by its code points."""
    emoji = json.loads((folder / language / "data.json").read_text(encoding="utf-8"))
    return {one["hexcode"]: one["label"] for one in emoji}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=Path, default=Path(".build/sources"))
    folder = parser.parse_args().sources / "node_modules" / "emojibase-data"
    kept = {row["name"] for row in read(DATA / "concepts.csv")}
    concepts = [row for row in read(DATA / "make" / "concepts.csv") if row["name"] in kept]
    synonyms = []
    for row in concepts:
        own = dict.fromkeys(word.replace("\u2019", "'") for word in words_of(row))
        synonyms += [("mini", row["name"], word) for word in own if word != row["name"]]
    write(PROMPTS / "synonyms.csv", ["benchmark", "name", "synonym"], synonyms)
    code = {label: hexcode for hexcode, label in labels(folder, "en").items()}
    shown = {
        row["name"]: next((code[one] for one in row["emoji_labels"].split("|") if one in code), "")
        for row in concepts
    }
    words = [
        ("mini", language, name, told[hexcode])
        for language in LANGUAGES
        for told in [labels(folder, language)]
        for name, hexcode in shown.items()
        if hexcode in told
    ]
    write(PROMPTS / "languages.csv", ["benchmark", "language", "name", "word"], words)


if __name__ == "__main__":
    main()
