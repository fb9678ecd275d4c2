"""Contact sheets for the audit by eye: one row a concept, its drawings numbered from 0.

Writes `.build/sheets/NN.png`; what the eye rejects goes into `audit.csv` with its reason.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from match import composite
from PIL import Image, ImageDraw

ROWS, COLUMNS, CELL = 16, 24, 68


def draw_sheet(concepts: list[str], table: pl.DataFrame, pictures: np.ndarray) -> Image.Image:
    """One sheet; drawings of a concept stand in the order of `matched.parquet`."""
    sheet = Image.new("RGB", (110 + COLUMNS * CELL, len(concepts) * (CELL + 12)), "white")
    pen = ImageDraw.Draw(sheet)
    for r, concept in enumerate(concepts):
        top = r * (CELL + 12)
        pen.text((2, top + 20), concept.split("/")[1][:18], fill="black")
        part = table.filter(pl.col("concept_id") == concept).head(COLUMNS)
        families = part["group"].unique(maintain_order=True).to_list()
        for c, row in enumerate(part.iter_rows(named=True)):
            sheet.paste(composite(pictures[row["row"]]), (110 + c * CELL, top + 12))
            text = f"{c} g{families.index(row['group'])} {row['source'][:6]}"
            pen.text((110 + c * CELL, top), text, fill="firebrick")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path(".build"))
    args = parser.parse_args()
    table = pl.read_parquet(args.build / "matched.parquet")
    pictures = np.load(args.build / "drawings.npy", mmap_mode="r")
    enough = (
        table.group_by("domain", "concept_id", maintain_order=True).len().filter(pl.col("len") >= 8)
    )
    names = enough.sort("domain", "concept_id")["concept_id"].to_list()
    folder = args.build / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(0, len(names), ROWS):
        draw_sheet(names[n : n + ROWS], table, pictures).save(folder / f"{n // ROWS:02d}.png")
    print(f"{len(names)} concepts on {len(range(0, len(names), ROWS))} sheets in {folder}")


if __name__ == "__main__":
    main()
