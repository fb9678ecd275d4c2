"""Derive the subsets of the miniature: screen its concepts against the captions of each scale.

Writes `screening.csv`. Run `checksums.py` afterwards.
"""

from pathlib import Path

import polars as pl
from open_clip.tokenizer import SimpleTokenizer

from lbutils.captions.survey import screen

DATA = Path(__file__).parent.parent
SCALES = ("small", "medium", "large")


def main() -> None:
    concepts = pl.read_csv(DATA / "concepts.csv")
    pairs = pl.read_parquet(DATA / "pairs.parquet")
    result = concepts.select("concept_id")
    tokenize = SimpleTokenizer().encode
    for k, scale in enumerate(SCALES):
        admitted = pairs.filter(pl.col("scale").is_in(SCALES[: k + 1]))
        table = screen(
            concepts["name"].to_list(), admitted["captions"].explode(), tokenize=tokenize
        )
        for column in ("subset", "captions", "compositional"):
            series = pl.Series(f"{column}_{scale}", table[column].to_list())
            result = result.with_columns(series)
    result.write_csv(DATA / "screening.csv")
    print(result.group_by([f"subset_{s}" for s in SCALES]).len())


if __name__ == "__main__":
    main()
