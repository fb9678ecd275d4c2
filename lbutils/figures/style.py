"""How figures look: one table of styles, and what all figures share.

`STYLES` has a row for each thing that is drawn, so that it has one colour and one marker in all
notebooks. Whatever a colour says, a marker, a dash, a hatch or a label says too, and colours that
meet in a figure were chosen to differ for deuteranopes and protanopes. Sizes are in inches, for a
text column about 7 inches wide; `save` writes 300 dots an inch.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image as Shown
from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from lbutils._util import replacing
from lbutils.figures import fonts

INK, FAINT, GREY, PALE, RULE = "#222222", "#6B6B6B", "#9A9A9A", "#C4C4C4", "#D9D9D9"
DASHED, DOTTED = (4.0, 1.5), (1.2, 1.2)


class Style(NamedTuple):
    """How one thing looks: colour, marker, dashes of a line, hatch of a bar, hollow markers."""

    colour: str
    marker: str = "o"
    dashes: tuple[float, ...] = ()
    hatch: str = ""
    hollow: bool = False

    @property
    def point(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` for points without a line."""
        # A white edge keeps marks apart, but eats thin ones.
        edge = self.colour if self.hollow or self.marker in "*XP" else "white"
        face, width = ("white", 1.2) if self.hollow else (self.colour, 0.6)
        filled = {"mfc": face, "mec": edge, "mew": width}
        return {"color": self.colour, "ls": "", "marker": self.marker, **filled}

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` for a line with points."""
        return self.point | {"ls": (0, self.dashes) if self.dashes else "-"}

    @property
    def bar(self) -> dict[str, Any]:
        """Properties of a bar."""
        edge = "white" if self.hatch else self.colour
        return {"facecolor": self.colour, "edgecolor": edge, "hatch": self.hatch, "linewidth": 0}


BLUE, ORANGE, BLACK, SKY, BROWN = "#0072B2", "#E69F00", "#000000", "#56B4E9", "#7A3E00"
VERMILLION, GREEN, VIOLET, TEAL, WINE = "#D55E00", "#117733", "#AA4499", "#44AA99", "#882255"
# Methods of a family share a colour: learned contexts, classifiers on features, adapters, means.
STYLES = {
    "ip": Style(BLUE, "o"),
    "oop": Style(ORANGE, "^", DASHED, "////"),
    "always named": Style(BLUE, "o"),
    "never named": Style(ORANGE, "^", DASHED, "////"),
    "as it is, captions hold the name": Style(BLUE),
    "as it is, captions hide the name": Style(ORANGE, "^", DOTTED),
    "names": Style(BLACK, "*"),
    "names (ours)": Style(BLACK, "*"),
    "fsnl": Style(VERMILLION, "s"),
    "zero-shot": Style(FAINT, "h", DASHED),
    "textual inversion": Style(VERMILLION, "P"),
    "coop": Style(VIOLET, "v"),
    "coop, class contexts": Style(VIOLET, "P"),
    "cocoop": Style(VIOLET, "X"),
    "kgcoop": Style(VIOLET, ">"),
    "linear probe": Style(SKY, "p"),
    "cross-modal probe": Style(SKY, "s"),
    "lp++": Style(SKY, "<"),
    "clap": Style(SKY, "d"),
    "clip-adapter": Style(BROWN, "P"),
    "taskres": Style(BROWN, "^"),
    "tip-adapter": Style(BROWN, "<"),
    "tip-adapter-f": Style(BROWN, ">"),
    "prolip": Style(BROWN, "d"),
    "prototypes": Style(GREEN, "D"),
    "gda": Style(GREEN, "8"),
    "sim": Style(GREEN, "H"),
    # Marks over bars, beside ours.
    "published": Style(INK, "D", hollow=True),
    "raw pixels": Style(INK, "s", hollow=True),
    "class means": Style(INK, "o", hollow=True),
    "chance": Style(INK, "_", DOTTED),
    # Where images go.
    "right": Style(TEAL),
    "wrong": Style(WINE, "X", (3.0, 1.5), "xxx"),
    "own name": Style(TEAL),
    "another oop name": Style(ORANGE, "^", DASHED, "////"),
    "an ip name": Style(BLUE),
    "misnamed": Style(ORANGE, "^", DASHED, "////"),
    "misclustered": Style("#DDCC77", "v", DOTTED, "...."),
    "taken for known": Style(BLUE),
}
# Screening tells OOP names apart by what captions hold of them.
PALER_OOP = (STYLES["oop"], Style("#F5CF85", hatch="...."), Style("#FAE7C2"))
SUBSETS = {"ip": "in pre-training (IP)", "oop": "out of pre-training (OOP)"}
# Ends the names of lines that are drawn as the learned side of another.
LEARNED = ", names learned"
# What is a method with something more has its look, hollow and dotted.
VARIANTS = (LEARNED, " + alignment", " + negatives", " + prior", ", c searched")
# Looks of what has no row in the table, in their order.
FREE_COLOURS, MARKERS = ("#332288", "#999933", "#CC6677", "#444444"), "svPXp<>dh8o^D"
# Classes are many and have no looks of their own: these colours stay apart without colour vision.
CLASS_COLOURS = (BLUE, ORANGE, BLACK, SKY, BROWN)
MOST_NAMED = 8  # lines or arrows with a colour and a label; others are grey

HALO = [patheffects.withStroke(linewidth=2.8, foreground="white")]
_RC: dict[str, Any] = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=0.95),
    "font.sans-serif": [fonts.USUAL],
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8A8A8A",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}
_P = ParamSpec("_P")


class Drawing(Figure):
    """A figure with a sentence that says what it shows, for those who cannot see it."""

    alt = ""


@contextmanager
def _style() -> Iterator[None]:
    """The style of this module, with every family that its texts were found to need."""
    family = ["sans-serif", *fonts.fallbacks]
    with rc_context({**_RC, "font.family": family}), warnings.catch_warnings():
        # Said once by `find_fonts`, with what to do.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """`draw` under the style of this module."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        fonts.find_fonts(frozenset("".join(fonts.texts([*args, *kwargs.values()]))))
        with _style():
            return draw(*args, **kwargs)

    return drawn


def described(figure: Drawing, text: str) -> Figure:
    """The figure with its alternative text, which `save` and `preview` hand on."""
    figure.alt = text
    return figure


def panels(
    titles: Sequence[Any], width: float, height: float, columns: int = 99, **options: Any
) -> tuple[Drawing, list[Axes]]:
    """A figure of so many inches, and an axis for each title, row by row.

    `options` are those of `Figure.subplots`.
    """
    columns = min(columns, len(titles))
    figure = Drawing(figsize=(width, height))
    grid = figure.subplots(-(-len(titles) // columns), columns, squeeze=False, **options).ravel()
    axes = list(grid[: len(titles)])
    for axis in grid[len(titles) :]:
        axis.set_axis_off()
    for axis in axes[-columns:]:
        axis.tick_params(labelbottom=True)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(plain(title))
    return figure, axes


def looks(names: Iterable[str]) -> dict[str, Style]:
    """Style of each name: its row in the table, whatever its capitals, or one that is free."""
    free = (Style(*pair) for pair in zip(cycle(FREE_COLOURS), cycle(MARKERS), strict=False))
    bases: dict[str, Style] = {}
    found = {}
    for name in names:
        key = name.lower()
        variant = next((v for v in VARIANTS if key.endswith(v)), "")
        base = key.removesuffix(variant)
        if base not in bases:
            bases[base] = STYLES[base] if base in STYLES else next(free)
        style = bases[base]
        found[name] = style._replace(dashes=DOTTED, hollow=True) if variant else style
    return found


def class_styles(number: int) -> list[Style]:
    """Styles of classes, 65 of them different."""
    n = len(CLASS_COLOURS)
    return [Style(CLASS_COLOURS[i % n], MARKERS[(i // n + 3 * i) % 13]) for i in range(number)]


def reference_style(label: str) -> Style:
    """Style of the marks that stand beside our bars, by what their label speaks of."""
    keys = ("published", "raw pixels", "class means")
    return next((STYLES[key] for key in keys if key in label.lower()), Style(INK, "v", hollow=True))


def legend(figure: Figure, handles: Mapping[str, Any], columns: int = 9) -> None:
    """A legend above the panels."""
    columns = min(columns, len(handles))
    options = {"loc": "outside upper left", "columnspacing": 1.4, "handlelength": 1.8}
    figure.legend(list(handles.values()), list(map(plain, handles)), ncols=columns, **options)


def subset_legend(figure: Figure, more: Mapping[str, Any] | None = None) -> None:
    """A legend of IP and OOP bars, and more."""
    legend(
        figure, {words: Patch(**STYLES[s].bar) for s, words in SUBSETS.items()} | dict(more or {})
    )


def mark(style: Style, **options: Any) -> Line2D:
    """A point for a legend."""
    return Line2D([], [], **style.point | options)


def reach(rows: pd.DataFrame) -> np.ndarray | None:
    """Lengths of the intervals' two sides (2, N) for `Axes.errorbar`; None where none is given."""
    if "low" not in rows:
        return None
    value = rows["value"].to_numpy(float)
    return np.abs(rows[["low", "high"]].to_numpy(float).T - value)


def outer_labels(figure: Figure, x: str, y: str) -> None:
    """What the axes of all panels are, below and beside them."""
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)


def bare(axis: Axes, side: str = "left") -> None:
    """Take the line and the ticks off the side of an axis that has words and no numbers."""
    axis.spines[side].set_visible(False)
    axis.tick_params(axis="y" if side == "left" else "x", length=0)


def save(
    figure: Figure, path: str | os.PathLike[str], formats: Iterable[str] = ("png", "pdf")
) -> list[Path]:
    """Paths of the files written: the figure at 300 dots an inch with its text, in each format.

    Parameters
    ----------
    path : path
        Without suffix; its folder is made. A file is written whole or not at all.
    formats : iterable of str
        Such as "png", "pdf", "svg".
    """
    stem = Path(path)
    written = []
    for suffix in formats:
        target = stem.with_name(f"{stem.name}.{suffix}")
        key = {"png": "Description", "svg": "Description", "pdf": "Subject"}.get(suffix)
        about = {key: getattr(figure, "alt", "")} if key else None
        with replacing(target) as draft, _style():
            figure.savefig(
                draft, format=suffix, bbox_inches="tight", pad_inches=0.04, metadata=about
            )
        written.append(target)
    return written


def preview(figure: Figure, dpi: int = 100) -> Shown:
    """The figure for display in a notebook: a PNG of 256 colours, with its alternative text.

    Photographs and gradients take about a quarter of the space of a full PNG.
    """
    full, light = io.BytesIO(), io.BytesIO()
    with _style():
        figure.savefig(full, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.04)
    # Without dithering, flat colours stay flat and compress.
    flat = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    flat.save(light, "PNG", optimize=True)
    return Shown(light.getvalue(), format="png", alt=getattr(figure, "alt", "") or None)


def pretty(domain: str) -> str:
    """Domain as a reader writes it: "Insects_Spiders" is "Insects & Spiders"."""
    text = str(domain)
    spaced = "".join(
        f" {c}" if i and c.isupper() and text[i - 1].islower() else c for i, c in enumerate(text)
    )
    return plain(spaced.replace("_", " & "))


def dark(colour: str) -> str:
    """The colour at a luminance that reads as text on white."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    luminance = float(rgb @ [0.2126, 0.7152, 0.0722])
    rgb = rgb * min(1.0, 0.38 / max(luminance, 1e-6))
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def plain(text: Any) -> str:
    """Text that matplotlib does not take for mathematics."""
    return str(text).replace("$", r"\$")


def wrapped(text: Any, width: int) -> str:
    """Text in lines of at most so many letters, longer words whole."""
    return "\n".join(wrap(str(text), width, break_long_words=False, break_on_hyphens=False))


def unique(values: Iterable[Any]) -> list[Any]:
    """Values in the order in which they come first."""
    return list(dict.fromkeys(values))


def listed(words: Iterable[Any], most: int = 8) -> str:
    """Words in a row for a sentence, those beyond `most` as a number."""
    words = list(map(str, words))
    more = [f"{len(words) - most} more"] if len(words) > most else []
    return ", ".join(words[:most] + more)


def require(table: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError with what a table lacks."""
    missing = [column for column in columns if column not in table]
    if missing or not len(table):
        has = ", ".join(map(str, table.columns)) or "nothing"
        raise ValueError(
            f"the table needs rows with the columns {', '.join(columns)}; it has "
            f"{len(table)} rows of {has}"
        )
