"""Derive the subsets of the miniature: screen its concepts against the captions of each corpus.

Writes `screening.csv`. Run `checksums.py` afterwards.
"""

from pathlib import Path

import polars as pl
from open_clip.tokenizer import SimpleTokenizer

from lbutils import screen
from lbutils.data.benchmark import ROTATIONS, SCALES, mini_captions

DATA = Path(__file__).parent.parent


def main() -> None:
    concepts = pl.read_csv(DATA / "concepts.csv")
    result = concepts.select("concept_id")
    tokenize = SimpleTokenizer().encode
    for scale in (*SCALES["mini"], *ROTATIONS):
        table = screen(concepts["name"].to_list(), mini_captions(scale), tokenize=tokenize)
        for column in ("subset", "captions", "compositional"):
            series = pl.Series(f"{column}_{scale}", table[column].to_list())
            result = result.with_columns(series)
    result.write_csv(DATA / "screening.csv")
    print(result.group_by([f"subset_{s}" for s in SCALES["mini"]]).len())


if __name__ == "__main__":
    main()
