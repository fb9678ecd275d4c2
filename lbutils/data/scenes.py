"""Scenes of four drawings: where a named thing is, how often, and which of two comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from lbutils.data.benchmark import Split

CELLS = 4


class Scene(NamedTuple):
    """Four drawings in a square, cells row by row.

    ``cells`` (4,) holds the label of the drawing in each cell, -1 for one that is not of the
    classes asked for; ``labels`` are these classes.
    """

    image: Image.Image
    labels: tuple[int, ...]
    cells: np.ndarray

    def windows(self) -> list[Image.Image]:
        """The four cells as images."""
        side = self.image.width // 2
        corners = [(x, y) for y in (0, side) for x in (0, side)]
        return [self.image.crop((x, y, x + side, y + side)) for x, y in corners]


def scenes(
    split: Split,
    others: Sequence[Split],
    counts: Sequence[int] = (1,),
    number: int = 40,
    side: int = 64,
    seed: int = 0,
) -> list[Scene]:
    """Scenes with drawings of some classes among drawings of other splits.

    Parameters
    ----------
    split : Split
        Whose classes are asked for: a scene has as many as `counts` has numbers, drawn at random.
    others : sequence of Split
        Whose images fill the other cells, such as those of other domains.
    counts : sequence of int
        Drawings of each class in a scene, no drawing twice; four at most in all.
    number, side, seed : int
        Scenes; pixels of a cell, to which images are resized; what is drawn.

    Raises
    ------
    ValueError
        If counts are not 1 or more and at most four in all, too few classes have that many
        images, or `others` is needed and has no image.
    """
    if not counts or min(counts) < 1 or sum(counts) > CELLS or number < 1:
        raise ValueError(f"counts={tuple(counts)}: numbers from 1, at most {CELLS} in all")
    rng = np.random.default_rng(seed)
    rows = {int(c): np.flatnonzero(split.labels == c) for c in np.unique(split.labels)}
    classes = [c for c, own in rows.items() if len(own) >= max(counts)]
    beside = [(other, i) for other in others for i in range(len(other))]
    if len(classes) < len(counts) or (sum(counts) < CELLS and not beside):
        raise ValueError(
            f"{len(classes)} classes with {max(counts)} images and {len(beside)} other images: "
            "too few for such scenes"
        )
    found = []
    for _ in range(number):
        labels = tuple(int(c) for c in rng.choice(classes, len(counts), replace=False))
        filled = [
            (split, int(i), label)
            for label, count in zip(labels, counts, strict=True)
            for i in rng.choice(rows[label], count, replace=False)
        ]
        filled += [(*beside[rng.integers(len(beside))], -1) for _ in range(CELLS - len(filled))]
        order = rng.permutation(CELLS)
        drawings = [filled[i][0].image(filled[i][1]) for i in order]
        cells = np.array([filled[i][2] for i in order])
        found.append(Scene(_square(drawings, side), labels, cells))
    return found


def _square(drawings: Sequence[Image.Image], side: int) -> Image.Image:
    canvas = Image.new("RGB", (2 * side, 2 * side), "white")
    for cell, drawing in enumerate(drawings):
        canvas.paste(drawing.resize((side, side)), (side * (cell % 2), side * (cell // 2)))
    return canvas
