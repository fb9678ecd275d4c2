"""Figures of the screening notebook."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lbutils.figures import charts as figures

LEVELS = ["named in captions", "OOP, all pieces occur", "OOP, some piece is new"]


def levels(scales=("small", "large")):
    rows = [(s, level, 10 * i + j) for i, s in enumerate(scales) for j, level in enumerate(LEVELS)]
    return pd.DataFrame(rows, columns=["scale", "level", "concepts"])


def counts():
    rows = [
        ("Animals", "<b>$ant</b>", 0),
        ("Animals", "dog", 300),
        ("Animals", "$cat_1$", 30),
        ("Insects_Spiders", "bee", 20),
        ("Creatures", "ogre", 0),
    ]
    return pd.DataFrame(rows, columns=["domain", "name", "captions"])


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


DRAWN = {
    "levels": lambda: figures.screening_levels(levels()),
    "one corpus": lambda: figures.screening_levels(levels(["400m"])),
    "counts": lambda: figures.caption_counts(counts()),
    "no name occurs": lambda: figures.caption_counts(counts().query("captions == 0")),
    "a web of captions": lambda: figures.caption_counts(
        counts().assign(captions=lambda table: table["captions"] * 10_000)
    ),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.filterwarnings("error")
def test_every_figure_is_drawn_and_saved(name, tmp_path):
    figure = DRAWN[name]()
    assert isinstance(figure, Figure) and not plt.get_fignums()
    (file,) = figures.save(figure, tmp_path / "figure", ["png"])
    assert file.stat().st_size > 3000


def test_bars_have_the_lengths_of_the_table_and_differ_without_colour():
    axis = DRAWN["levels"]().axes[0]
    # Corpora from top to bottom, so the last one is drawn first.
    assert [bar.get_width() for bar in axis.patches] == [10, 0, 11, 1, 12, 2]
    looks = {(bar.get_hatch(), bar.get_facecolor()) for bar in axis.patches}
    assert len(looks) == len(LEVELS)
    assert all(level in words(axis.figure) for level in LEVELS)


def test_dots_stand_at_the_counts_and_absent_names_are_counted():
    axis = DRAWN["counts"]().axes[0]
    dots = sorted(float(x) for dots in axis.collections for x, _ in dots.get_offsets() if x > 1)
    assert [x for x in dots if x in (20, 30, 300)] == [20, 30, 300]
    boxed = {
        text.get_position()[1]: text.get_text() for text in axis.texts if text.get_bbox_patch()
    }
    assert boxed == {0: "1", 1: "0", 2: "1"}
    assert "dog" in words(axis.figure) and r"\$cat_1\$" in words(axis.figure)


@pytest.mark.parametrize("draw", [figures.screening_levels, figures.caption_counts])
def test_a_table_that_does_not_fit_is_refused(draw):
    with pytest.raises(ValueError, match="needs rows with the columns"):
        draw(pd.DataFrame({"domain": ["x"]}))


def test_a_preview_is_light_and_keeps_its_colours():
    figure = DRAWN["levels"]()
    picture = figures.preview(figure)
    assert picture.mode == "P" and abs(picture.width / 100 - figure.get_figwidth()) < 0.3
    blue = [int(figures.SUBSET_COLOURS["ip"][i : i + 2], 16) for i in (1, 3, 5)]
    pixels = np.asarray(picture.convert("RGB"), int)
    assert (np.abs(pixels - blue).sum(axis=2) < 12).sum() > 500
