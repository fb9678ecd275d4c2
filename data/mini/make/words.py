"""Writes `data/prompts/synonyms.csv`: other words for the miniature's names.

    python data/mini/make/words.py

They are the labels that drawings were matched by (`concepts.csv` beside this script).
"""

from __future__ import annotations

import csv
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]
PROMPTS = DATA.parent / "prompts"


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write(path: Path, columns: list[str], rows: list[tuple[str, ...]]) -> None:
    """Write rows under their columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def main() -> None:
    """Write the file."""
    kept = {row["name"] for row in read(DATA / "concepts.csv")}
    synonyms = []
    for row in read(DATA / "make" / "concepts.csv"):
        own = "|".join([row["emoji_labels"], row["other_labels"]]).replace("\u2019", "'").split("|")
        others = [word for word in dict.fromkeys(own) if word and word != row["name"]]
        synonyms += [("mini", row["name"], word) for word in others if row["name"] in kept]
    write(PROMPTS / "synonyms.csv", ["benchmark", "name", "synonym"], synonyms)


if __name__ == "__main__":
    main()
