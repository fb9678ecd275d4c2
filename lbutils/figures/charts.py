"""A table in, a matplotlib Figure out. No model is imported here.

Colours are those of Okabe and Ito; whatever a colour says, a marker, a hatch or a label says too,
so the figures survive colour blindness and a grey printer. Sizes are in inches, for a text column
about 7 inches wide, and `save` writes 300 dots an inch.
"""

from __future__ import annotations

import io
import itertools
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from lbutils._util import replacing, suggest

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
SUBSETS = {"ip": "in pre-training (IP)", "oop": "out of pre-training (OOP)"}
SUBSET_COLOURS = {"ip": OKABE_ITO["blue"], "oop": OKABE_ITO["orange"]}
SUBSET_HATCHES = {"ip": "", "oop": "////"}
INK, FAINT, RULE = "#222222", "#6B6B6B", "#D9D9D9"
_METHODS = {
    "fsnl": ("vermillion", "o"),
    "linear probe": ("blue", "s"),
    "prototypes": ("green", "D"),
    "coop": ("purple", "^"),
    "clip-adapter": ("sky", "v"),
    "taskres": ("orange", "P"),
    "cocoop": ("black", "X"),
    "zero-shot": (FAINT, "h"),
    "names (ours)": ("black", "*"),
}
_MARKERS = "osD^vPX*<>ph"
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#8A8A8A",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.7,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}
# Ends the names of lines that are drawn as the learned side of another.
LEARNED = ", names learned"
_NAMED_LINES = 60  # of a sweep, that a legend names
_HALO = [patheffects.withStroke(linewidth=2.8, foreground="white")]
_P = ParamSpec("_P")


# Families that have what the sans-serif one lacked so far, in this process.
_fallbacks: list[str] = []


@contextmanager
def _style() -> Iterator[None]:
    """The style of this module, with every family that its texts were found to need."""
    family = ["sans-serif", *_fallbacks]
    with plt.rc_context({**_STYLE, "font.family": family}), warnings.catch_warnings():
        # Said once by `_find_fonts`, with what to do.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """Every text in tables, lists and texts."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, pd.DataFrame):
            yield from map(str, value.columns)
            for name in value.columns:
                if not pd.api.types.is_numeric_dtype(value[name]):
                    yield from (text for text in value[name] if isinstance(text, str))
        elif isinstance(value, (list, tuple)):
            yield from _texts(value)


@cache
def _find_fonts(characters: frozenset[str]) -> None:
    """Look among the installed fonts for what the usual one cannot draw; warn of what none can."""
    sans = font_manager.FontProperties(family=["sans-serif"])
    usual = font_manager.get_font(font_manager.findfont(sans))
    written = (c for c in characters if not c.isspace() and unicodedata.category(c)[0] != "C")
    lacking = {c for c in written if not usual.get_char_index(ord(c))}
    files: dict[str, str] = {}
    # Upright ones of medium weight first, as names come in no order.
    order = sorted(
        font_manager.fontManager.ttflist, key=lambda f: (f.style != "normal", f.weight != 400)
    )
    for entry in order if lacking else ():
        if "last resort" in entry.name.lower():  # which has a box for everything
            continue
        files.setdefault(entry.name, entry.fname)
    for family in [*_fallbacks, *files]:
        if not lacking:
            return
        try:
            font = font_manager.get_font(files[family])
        except (KeyError, OSError, RuntimeError):  # gone, or damaged
            continue
        had = {c for c in lacking if font.get_char_index(ord(c))}
        if had and family not in _fallbacks:
            _fallbacks.append(family)
        lacking -= had
    if lacking:
        _warn_of_fonts("CJK" if any(map(_is_east_asian, lacking)) else "")


def _is_east_asian(character: str) -> bool:
    kinds = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")
    return unicodedata.name(character, "").startswith(kinds)


@cache
def _warn_of_fonts(script: str) -> None:
    font = f"Noto Sans {script}".strip()
    package = "fonts-noto-cjk" if script else "fonts-noto-core"
    warnings.warn(
        f"no installed font has all letters of these names, so figures show boxes: install {font} "
        f"(Debian and Ubuntu: {package}) and start again",
        stacklevel=5,
    )


def _styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """`draw` under the style of this module, its figure taken out of pyplot's hands."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        _find_fonts(frozenset("".join(_texts([*args, *kwargs.values()]))))
        with _style():
            figure = draw(*args, **kwargs)
        plt.close(figure)  # else a notebook shows it twice
        return figure

    return drawn


@_styled
def benchmark_statistics(summary: pd.DataFrame) -> Figure:
    """Classes and images of each domain, IP and OOP, as in the paper's Figure 2.

    Parameters
    ----------
    summary : DataFrame
        ``domain``, ``subset`` ("ip" or "oop"), ``classes``, ``images``, and ``split`` where
        there are several rows a subset: images are added up, classes are not.
    """
    _require(summary, "domain", "subset", "classes", "images")
    totals = summary.groupby(["domain", "subset"], sort=False).agg(
        classes=("classes", "max"), images=("images", "sum")
    )
    domains = list(dict.fromkeys(summary["domain"]))[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 0.8 + 0.36 * len(domains)), sharey=True)
    for axis, column in zip(axes, ("classes", "images"), strict=True):
        for offset, subset in ((0.2, "ip"), (-0.2, "oop")):
            values = [_at(totals[column], (domain, subset)) for domain in domains]
            bars = axis.barh(np.arange(len(domains)) + offset, values, 0.38, **_bar_style(subset))
            axis.bar_label(bars, [f"{v:,.0f}" for v in values], padding=2.5, fontsize=7.5)
        of = ", ".join(
            f"{totals[column].xs(subset, level='subset').sum():,.0f} {subset.upper()}"
            for subset in SUBSETS
            if subset in totals.index.get_level_values("subset")
        )
        axis.set_title(f"{column.capitalize()} ({of})")
        axis.set_yticks(np.arange(len(domains)), [pretty(domain) for domain in domains])
        axis.tick_params(axis="y", length=0)
        axis.spines[["bottom", "left"]].set_visible(False)
        axis.set_xticks([])
        axis.margins(x=0.14, y=0.02)
    _subset_legend(figure)
    return figure


@_styled
def example_grid(examples: pd.DataFrame, columns: int = 8) -> Figure:
    """Images in rows with their names below, a row a group.

    Parameters
    ----------
    examples : DataFrame
        ``image`` (PIL image or array), ``name``, ``row`` (the label of the row) and,
        optionally, ``subset``, which frames the image in its colour, or ``right`` (bool), which
        frames it in a solid or a dashed line.
    columns : int
        Images a row at most; further ones are left out.
    """
    _require(examples, "image", "name", "row")
    rows = list(dict.fromkeys(examples["row"]))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(7.2, (7.0 / columns + 0.45) * len(rows) + 0.25), squeeze=False
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, label in zip(axes, rows, strict=True):
        shown = examples[examples["row"] == label].head(columns)
        # The title keeps the height free; as wide as it is, it would push the columns apart.
        line[0].set_title(" ", fontsize=9, pad=5)
        line[0].annotate(
            pretty(label),
            (0, 1),
            (0, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9,
            fontweight="bold",
        ).set_in_layout(False)
        for axis, (_, example) in zip(line, shown.iterrows(), strict=False):
            axis.set_axis_on()
            axis.imshow(np.asarray(example["image"]), interpolation="lanczos")
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(_wrapped(_plain(example["name"]), 14), fontsize=7.5, labelpad=2.5)
            for spine in axis.spines.values():
                spine.set(visible=True, **_frame(example.get("subset"), example.get("right")))
    if "subset" in examples and set(examples["subset"]) == set(SUBSETS):
        handles = [
            Line2D([], [], color=SUBSET_COLOURS[s], lw=1.6, ls="--" if s == "oop" else "-")
            for s in SUBSETS
        ]
        figure.legend(handles, list(SUBSETS.values()), loc="outside upper right", ncols=2)
    if "right" in examples:
        handles = [Line2D([], [], **_frame(None, right)) for right in (True, False)]
        figure.legend(handles, ["right", "wrong"], loc="outside upper right", ncols=2)
    return figure


def _frame(subset: str | None, right: bool | None) -> dict[str, Any]:
    """Line of an image's frame: by its subset, or by whether it was named right."""
    if right is not None:
        colour = OKABE_ITO["green" if right else "vermillion"]
        return {"color": colour, "linewidth": 1.6, "linestyle": "-" if right else (0, (3, 1.5))}
    return {
        "color": SUBSET_COLOURS.get(str(subset), RULE),
        "linewidth": 1.6 if subset in SUBSETS else 0.7,
        "linestyle": (0, (3, 1.5)) if subset == "oop" else "-",
    }


@_styled
def tsne_scatter(points: pd.DataFrame, label_classes: int = 24) -> Figure:
    """Images in the plane, one panel a map: OOP classes in colour, IP in grey (Figure 3).

    Parameters
    ----------
    points : DataFrame
        ``x``, ``y``, ``subset``, ``name`` (the class), ``panel`` (title of the panel).
    label_classes : int
        OOP classes are named at their centre in the first panel if there are at most so many.
    """
    _require(points, "x", "y", "subset", "name", "panel")
    panels = list(dict.fromkeys(points["panel"]))
    classes = list(dict.fromkeys(points.loc[points["subset"] == "oop", "name"]))
    colours = [c for name, c in OKABE_ITO.items() if name != "yellow"]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.7), squeeze=False)
    for number, (axis, panel) in enumerate(zip(axes[0], panels, strict=True)):
        here = points[points["panel"] == panel]
        grey = here[here["subset"] == "ip"]
        axis.scatter(grey["x"], grey["y"], s=9, c="#C4C4C4", linewidths=0, rasterized=True)
        texts = []
        for i, name in enumerate(classes):
            own = here[(here["name"] == name) & (here["subset"] == "oop")]
            # 7 colours and 12 markers have no common factor: 84 classes stay apart.
            colour, marker = colours[i % len(colours)], _MARKERS[i % len(_MARKERS)]
            axis.scatter(
                own["x"],
                own["y"],
                s=15,
                c=colour,
                marker=marker,
                linewidths=0.3,
                edgecolors="white",
                rasterized=True,
            )
            if number == 0 and len(classes) <= label_classes and len(own):
                middle = own[["x", "y"]].median()
                texts.append(axis.text(*middle, _plain(name), fontsize=7, ha="center", va="center"))
                texts[-1].set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="w")])
        axis.set(xticks=[], yticks=[], title=_plain(panel))
        axis.margins(0.04)
        axis.set_aspect("equal", adjustable="datalim")
        for spine in axis.spines.values():
            spine.set(visible=True, color=RULE)
        _spread(figure, axis, texts)
        if len(grey):
            note = f"grey: {grey['name'].nunique()} IP classes"
            axis.set_xlabel(note, fontsize=8, color=FAINT, loc="left")
    return figure


@_styled
def subset_bars(
    table: pd.DataFrame,
    ylabel: str = "accuracy (%)",
    published: pd.DataFrame | None = None,
    published_label: str = "published, LAION-Beyond",
    chance_label: str = "chance",
) -> Figure:
    """IP beside OOP in each domain, with intervals and chance (Table 1 and Figure 4).

    Parameters
    ----------
    table : DataFrame
        ``domain``, ``subset``, ``value``; optionally ``low`` and ``high`` (ends of the
        interval) and ``chance``. All in percent. A domain called "Mean" is set apart.
    ylabel : str
        What is measured.
    published : DataFrame, optional
        ``domain``, ``subset``, ``value``: drawn as diamonds over our bars, for the domains
        that both have.
    published_label, chance_label : str
        Words for the legend.
    """
    _require(table, "domain", "subset", "value")
    domains = list(dict.fromkeys(table["domain"]))
    places = np.arange(len(domains), dtype=float)
    places[[domain.lower() in ("mean", "average") for domain in domains]] += 0.35
    figure, axis = plt.subplots(figsize=(max(3.2, 1.0 + 0.7 * len(domains)), 3.0))
    has_chance = "chance" in table and table["chance"].notna().any()
    for side, subset in ((-0.2, "ip"), (0.2, "oop")):
        ours = table[table["subset"] == subset].set_index("domain").reindex(domains)
        x = places + side
        axis.bar(x, ours["value"], 0.38, **_bar_style(subset))
        _intervals(axis, x, ours)
        if has_chance:
            axis.hlines(
                ours["chance"], x - 0.19, x + 0.19, color=INK, lw=1.3, zorder=5, path_effects=_HALO
            )
        if published is not None:
            _require(published, "domain", "subset", "value")
            theirs = published[published["subset"] == subset].set_index("domain")["value"]
            axis.scatter(
                x,
                theirs.reindex(domains),
                s=26,
                marker="D",
                facecolors="white",
                edgecolors=INK,
                linewidths=1.0,
                zorder=6,
                clip_on=False,
            )
    axis.set_xticks(places, [_wrapped(pretty(domain), 9) for domain in domains])
    axis.tick_params(axis="x", length=0, labelsize=8)
    axis.set_ylabel(ylabel)
    axis.set_ylim(bottom=min(0, float(table["value"].min()) * 1.1))
    axis.grid(axis="y")
    axis.margins(x=0.015)
    extra: list[tuple[Any, str]] = []
    if has_chance:
        extra.append((Line2D([], [], color=INK, lw=1.3), chance_label))
    if published is not None:
        diamond = Line2D([], [], ls="", marker="D", mfc="white", mec=INK, ms=5)
        extra.append((diamond, published_label))
    _subset_legend(figure, extra)
    return figure


@_styled
def margin_curves(table: pd.DataFrame, xlabel: str = "separation margin (cosine)") -> Figure:
    """Share of images up to each margin, a curve each for IP and OOP.

    Where a curve crosses zero stands the share of images that lie nearer to another class.

    Parameters
    ----------
    table : DataFrame
        ``subset`` ("ip" or "oop") and ``margin``, one row an image; optionally ``panel``.
    xlabel : str
        What the margin is.
    """
    _require(table, "subset", "margin")
    panels = list(dict.fromkeys(table["panel"])) if "panel" in table else [""]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(max(4.4, 3.3 * len(panels)), 2.9), sharey=True, squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        here = table[table["panel"] == panel] if panel else table
        axis.axvline(0, color=INK, lw=0.9, zorder=1)
        for subset, dashes in (("ip", "-"), ("oop", (0, (4, 1.5)))):
            margins = np.sort(here.loc[here["subset"] == subset, "margin"].dropna())
            share = 100 * np.arange(1, len(margins) + 1) / max(len(margins), 1)
            axis.step(margins, share, where="post", color=SUBSET_COLOURS[subset], ls=dashes, lw=1.9)
        axis.set(title=_plain(panel), ylim=(0, 100))
        axis.grid(axis="y")
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel("share of images (%)", fontsize=9)
    handles = [
        Line2D([], [], color=SUBSET_COLOURS[s], lw=1.9, ls="-" if s == "ip" else (0, (4, 1.5)))
        for s in SUBSETS
    ]
    figure.legend(handles, list(SUBSETS.values()), loc="outside upper left", ncols=2)
    return figure


@_styled
def share_bars(table: pd.DataFrame, xlabel: str = "share of images (%)") -> Figure:
    """Shares that add up, stacked from left to right, a bar a domain.

    Parameters
    ----------
    table : DataFrame
        ``domain``, ``part`` and ``value`` in percent; parts are stacked in their order.
    xlabel : str
        What is shared out.
    """
    _require(table, "domain", "part", "value")
    domains = list(dict.fromkeys(table["domain"]))
    places = np.arange(len(domains), dtype=float)
    places[[domain.lower() in ("mean", "average") for domain in domains]] += 0.35
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.3 * len(domains)))
    looks = [("green", ""), ("orange", "////"), ("blue", ""), ("sky", "...."), ("purple", "\\\\")]
    left = np.zeros(len(domains))
    for i, part in enumerate(dict.fromkeys(table["part"])):
        colour, hatch = looks[i % len(looks)]
        values = table[table["part"] == part].set_index("domain")["value"].reindex(domains)
        axis.barh(
            places,
            values,
            0.72,
            left=left,
            facecolor=OKABE_ITO[colour],
            hatch=hatch,
            edgecolor="white",
            linewidth=0.8,
            label=_plain(part),
        )
        for y, start, value in zip(places, left, values, strict=True):
            if value >= 6:
                text = axis.text(
                    start + value / 2, y, f"{value:.0f}", ha="center", va="center", fontsize=8
                )
                text.set_path_effects(_HALO)
        left += values.fillna(0).to_numpy()
    axis.set_yticks(places, [pretty(domain) for domain in domains])
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set(xlim=(0, max(100.0, left.max())), xlabel=xlabel)
    axis.margins(y=0.02)
    figure.legend(loc="outside upper left", ncols=5, columnspacing=1.4, handlelength=1.6)
    return figure


@_styled
def gap_intervals(table: pd.DataFrame, xlabel: str) -> Figure:
    """Differences with their intervals, a row each, about a line at zero.

    Parameters
    ----------
    table : DataFrame
        ``label``, ``value``, ``low``, ``high``; optionally ``published`` (a diamond) and
        ``group``, whose first value is drawn strongest. Groups that share a label stand in one
        row, one above another.
    xlabel : str
        What differs from what.
    """
    _require(table, "label", "value", "low", "high")
    own = table["group"] if "group" in table else pd.Series("", table.index)
    groups, labels = list(dict.fromkeys(own)), list(dict.fromkeys(table["label"]))
    step = 0.26 if len(labels) < len(table) else 0.0
    middles = np.array([len(labels) - 1 - labels.index(label) for label in table["label"]])
    offsets = np.array([(len(groups) - 1) / 2 - groups.index(group) for group in own])
    places = middles + step * offsets
    height = 0.36 + 0.14 * (len(groups) - 1) * (step > 0)
    figure, axis = plt.subplots(figsize=(6.4, 0.85 + height * len(labels)))
    axis.axvline(0, color=INK, lw=0.9, zorder=1)
    for i, group in enumerate(groups):
        mine = (own == group).to_numpy()
        rows, y = table[mine], places[mine]
        colour = OKABE_ITO[("vermillion", "blue", "green", "purple")[i % 4]]
        axis.hlines(y, rows["low"], rows["high"], color=colour, lw=1.8)
        size = 5.5 if step else 7
        look = {"marker": "osD^"[i % 4], "ms": size, "color": colour}
        axis.plot(rows["value"], y, ls="", **look, label=_plain(group))
    if "published" in table and table["published"].notna().any():
        axis.plot(
            table["published"],
            places,
            ls="",
            marker="D",
            mfc="white",
            mec=INK,
            ms=5,
            label="published, LAION-Beyond",
        )
    axis.set_yticks(range(len(labels))[::-1], [_plain(label) for label in labels])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(xlabel)
    axis.set_ylim(-0.6, len(labels) - 0.4)
    axis.grid(axis="x")
    if any(groups) or "published" in table:
        figure.legend(loc="outside upper left", ncols=4, columnspacing=1.4, handlelength=1.6)
    return figure


@_styled
def accuracy_over_shots(
    table: pd.DataFrame,
    methods: Sequence[str] | None = None,
    ylabel: str = "accuracy on OOP names (%)",
    columns: int = 3,
) -> Figure:
    """Accuracy against shots, a line a method with its interval as a band (Figure 5).

    Parameters
    ----------
    table : DataFrame
        ``method``, ``shots``, ``value``; optionally ``low``, ``high``, and ``domain`` for one
        panel each. In percent. Rows of 0 shots are drawn as a level line.
    methods : sequence of str, optional
        Methods in the order of importance; the first is drawn strongest.
    ylabel : str
        What is measured.
    columns : int
        Panels a row.
    """
    _require(table, "method", "shots", "value")
    methods = list(methods or dict.fromkeys(table["method"]))
    looks = line_styles(methods)
    for method in methods:
        if (table.loc[table["method"] == method, "shots"] == 0).all():
            looks[method] |= {"marker": "", "ls": (0, (4, 2))}
    panels = list(dict.fromkeys(table["domain"])) if "domain" in table else [None]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width = 4.6 if len(panels) == 1 else 2.4 * columns
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, 3.2 if rows == 1 else 1.95 * rows + 0.45),
        sharex=True,
        squeeze=False,
    )
    ticks = sorted(table.loc[table["shots"] > 0, "shots"].unique())
    for axis, panel in zip(axes.flat, panels, strict=False):
        here = table if panel is None else table[table["domain"] == panel]
        ends = _method_lines(axis, here, methods, looks, ticks)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(int(tick)) for tick in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axis.grid(axis="y")
        axis.set_title("" if panel is None else pretty(panel))
        if len(panels) == 1:
            _end_labels(axis, ends, looks)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in axes.flat[: len(panels)][-columns:]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel("shots (images per class)", fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    if len(panels) > 1:
        handles = [Line2D([], [], **looks[method], lw=1.6) for method in methods]
        figure.legend(
            handles,
            list(map(_plain, methods)),
            loc="outside upper center",
            ncols=min(len(methods), 6),
            columnspacing=1.4,
            handlelength=2.2,
        )
    return figure


@_styled
def joint_plane(table: pd.DataFrame, title: str = "") -> Figure:
    """Methods in the plane of IP and OOP accuracy over the joint vocabulary, with curves of H.

    Parameters
    ----------
    table : DataFrame
        ``method``, ``ip``, ``oop``; optionally ``ip_low``, ``ip_high``, ``oop_low``,
        ``oop_high``; all in percent. With ``shots``, the points of a method are joined in
        their order and the number of shots stands beside them.
    title : str
        Title of the panel.
    """
    _require(table, "method", "ip", "oop")
    methods = list(dict.fromkeys(table["method"]))
    looks = line_styles(methods)
    columns = [c for c in ("ip", "oop", "ip_high", "oop_high") if c in table]
    top = min(100.0, 10 * np.ceil(float(np.nanmax(table[columns].to_numpy())) / 10 + 0.2))
    figure, axis = plt.subplots(figsize=(4.4, 4.2))
    axis.set(xlim=(0, top), ylim=(0, top), aspect="equal", title=_plain(title))
    _harmonic_curves(axis, top)
    axis.plot([0, top], [0, top], color=RULE, lw=0.8, ls=(0, (2, 3)), zorder=0)
    for method in methods:
        own = table[table["method"] == method]
        if "shots" in own:
            own = own.sort_values("shots")
        colour = looks[method]["color"]
        for end, other, draw in (("ip", "oop", axis.hlines), ("oop", "ip", axis.vlines)):
            if f"{end}_low" in own:
                draw(own[other], own[f"{end}_low"], own[f"{end}_high"], color=colour, lw=1.1)
        axis.plot(own["ip"], own["oop"], **looks[method], ms=7, lw=1.1)
        if "shots" in own and len(own) > 1:
            for _, row in own.iterrows():
                axis.annotate(
                    f"{int(row['shots'])}",
                    (row["ip"], row["oop"]),
                    (5, -8),
                    textcoords="offset points",
                    fontsize=7,
                    color=FAINT,
                )
        last = own.iloc[-1]
        left = last["ip"] > 0.62 * top
        text = axis.annotate(
            _plain(method),
            (last["ip"], last["oop"]),
            (-8 if left else 8, 4),
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom",
            color=_dark(colour),
            fontsize=8.5,
            fontweight="bold",
        )
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="w")])
    axis.set_xlabel("accuracy on IP images, joint vocabulary (%)")
    axis.set_ylabel("accuracy on OOP images, joint vocabulary (%)")
    return figure


def save(
    figure: Figure, path: str | os.PathLike[str], formats: Iterable[str] = ("png", "pdf")
) -> list[Path]:
    """Paths of the files written: the figure at 300 dots an inch, in each format.

    Parameters
    ----------
    figure : Figure
    path : path
        Without suffix; its folder is made. A file is written whole or not at all.
    formats : iterable of str
        Such as "png", "pdf", "svg".
    """
    stem = Path(path)
    written = []
    for suffix in formats:
        target = stem.with_name(f"{stem.name}.{suffix}")
        with replacing(target) as draft, _style():
            figure.savefig(draft, format=suffix, bbox_inches="tight", pad_inches=0.04)
        written.append(target)
    return written


def line_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each method: the same in every figure for those of the paper."""
    methods = list(methods)
    known = {method: _METHODS[method.lower()] for method in methods if method.lower() in _METHODS}
    free = [look for look in _METHODS.values() if look not in known.values()]
    free += [(colour, marker) for marker in "<>hp*" for colour in OKABE_ITO]
    looks = itertools.cycle(free)  # with more methods than looks, some share one
    styles: dict[str, dict[str, Any]] = {}
    for method in methods:
        colour, marker = known[method] if method in known else next(looks)
        styles[method] = {
            "color": OKABE_ITO.get(colour, colour),
            "marker": marker,
            "ls": "-",
            "mec": "white",
            "mew": 0.6,
        }
    return styles


def pretty(domain: str) -> str:
    """Domain as a reader writes it: "Insects_Spiders" is "Insects & Spiders"."""
    spaced = "".join(
        f" {c}" if i and c.isupper() and str(domain)[i - 1].islower() else c
        for i, c in enumerate(str(domain))
    )
    return _plain(spaced.replace("_", " & "))


def _method_lines(
    axis: Axes,
    table: pd.DataFrame,
    methods: Sequence[str],
    looks: dict[str, dict[str, Any]],
    ticks: Sequence[float],
) -> dict[str, float]:
    """Draw each method's line and band; the heights at which they end, by method."""
    ends = {}
    for rank, method in reversed(list(enumerate(methods))):
        own = table[table["method"] == method].sort_values("shots")
        level, tuned = own[own["shots"] == 0], own[own["shots"] > 0]
        look = looks[method]
        if len(level) and not len(tuned):
            axis.axhline(level["value"].iloc[0], color=look["color"], ls=look["ls"], lw=1.2)
            ends[method] = float(level["value"].iloc[0])
        if not len(tuned):
            continue
        if "low" in tuned:
            axis.fill_between(
                tuned["shots"], tuned["low"], tuned["high"], color=look["color"], alpha=0.16, lw=0
            )
        strong = rank == 0
        axis.plot(
            tuned["shots"],
            tuned["value"],
            **look,
            lw=2.2 if strong else 1.4,
            ms=6 if strong else 5,
            zorder=3 + strong,
            clip_on=False,
        )
        ends[method] = float(tuned["value"].iloc[-1])
    axis.set_xlim(min(ticks) / 1.15, max(ticks) * 1.15)
    return ends


def _end_labels(axis: Axes, ends: dict[str, float], looks: dict[str, dict[str, Any]]) -> None:
    """Name each line at its right end, moved apart where lines end close together."""
    low, high = axis.get_ylim()
    gap = (high - low) * 0.062
    order = sorted(ends, key=lambda method: ends[method])
    heights = _apart([ends[method] for method in order], gap)
    for method, height in zip(order, heights, strict=True):
        axis.annotate(
            _plain(method),
            (1.0, height),
            (7, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=_dark(looks[method]["color"]),
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved as little as possible to lie `gap` apart (pool, then spread)."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], gap) < _bottom(groups[-2], gap) + gap * len(
            groups[-2]
        ):
            upper = groups.pop()
            groups[-1] += upper
    return [_bottom(group, gap) + gap * i for group in groups for i in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) - gap * (len(group) - 1) / 2


def _spread(figure: Figure, axis: Axes, texts: Sequence[Any], rounds: int = 80) -> None:
    """Push overlapping labels apart, a little at a time, in place."""
    if not texts:
        return
    figure.draw_without_rendering()
    boxes = np.array([axis.transData.inverted().transform(t.get_window_extent()) for t in texts])
    half = (boxes[:, 1] - boxes[:, 0]) / 2 * [1.02, 1.1]
    home = np.array([text.get_position() for text in texts])
    place = home + np.linspace(-1e-3, 1e-3, len(texts))[:, None] * half
    for _ in range(rounds):
        apart = place[:, None] - place[None]
        over = half[:, None] + half[None] - np.abs(apart)
        clash = (over > 0).all(axis=2) & ~np.eye(len(texts), dtype=bool)
        if not clash.any():
            break
        # Labels are wide and low: moving them up or down is the shorter way.
        push = np.where(clash, np.sign(apart[..., 1]) * over[..., 1], 0).sum(axis=1)
        place[:, 1] += 0.35 * push
    low, high = axis.get_ylim()
    place[:, 1] = place[:, 1].clip(low + half[:, 1], high - half[:, 1])
    for text, position in zip(texts, place, strict=True):
        text.set_position(position)


def _harmonic_curves(axis: Axes, top: float) -> None:
    for level in np.arange(10, top, 10):
        edge = level * top / (2 * top - level)
        x = np.geomspace(edge, top, 200)
        axis.plot(x, level * x / (2 * x - level), color=RULE, lw=0.8, zorder=0)
        axis.text(top * 1.012, edge, f"H {level:.0f}", fontsize=7.5, color=FAINT, va="center")


def _intervals(axis: Axes, x: np.ndarray, rows: pd.DataFrame) -> None:
    if "low" not in rows or rows["low"].isna().all():
        return
    axis.vlines(x, rows["low"], rows["high"], color=INK, lw=1.1, zorder=3, path_effects=_HALO)


def _bar_style(subset: str) -> dict[str, Any]:
    hatch = SUBSET_HATCHES[subset]
    return {
        "facecolor": SUBSET_COLOURS[subset],
        "hatch": hatch,
        "edgecolor": "white" if hatch else SUBSET_COLOURS[subset],
        "linewidth": 0,
    }


def _subset_legend(figure: Figure, extra: Sequence[tuple[Any, str]] = ()) -> None:
    handles = [(Patch(**_bar_style(subset)), words) for subset, words in SUBSETS.items()]
    shown = [*handles, *extra]
    figure.legend(
        [handle for handle, _ in shown],
        [words for _, words in shown],
        loc="outside upper left",
        ncols=len(shown),
        columnspacing=1.4,
        handlelength=1.6,
    )


def _dark(colour: str) -> str:
    """The colour at a luminance that reads as text on white."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    luminance = float(rgb @ [0.2126, 0.7152, 0.0722])
    rgb = rgb * min(1.0, 0.38 / max(luminance, 1e-6))
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def _plain(text: Any) -> str:
    """Text that matplotlib does not take for mathematics."""
    return str(text).replace("$", r"\$")


def _wrapped(text: Any, width: int) -> str:
    lines = [""]
    for word in str(text).split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _at(column: pd.Series, key: Any) -> float:
    return float(column.get(key, 0))


def _require(table: pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing or not len(table):
        has = ", ".join(map(str, table.columns)) or "nothing"
        raise ValueError(
            f"the table needs rows with the columns {', '.join(columns)}; it has "
            f"{len(table)} rows of {has}"
        )


@_styled
def screening_levels(table: pd.DataFrame, xlabel: str = "concepts") -> Figure:
    """Concepts of each corpus by what its captions hold of their names, a bar a corpus.

    Parameters
    ----------
    table : DataFrame
        ``scale``, ``level`` and ``concepts`` (a count). The first level is drawn as IP, the
        others as OOP, paler from one to the next.
    xlabel : str
        What is counted.
    """
    _require(table, "scale", "level", "concepts")
    scales = list(dict.fromkeys(table["scale"]))[::-1]
    levels = list(dict.fromkeys(table["level"]))
    counts = table.set_index(["scale", "level"])["concepts"]
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.42 * len(scales)))
    starts = np.zeros(len(scales))
    for rank, level in enumerate(levels):
        widths = np.array([_at(counts, (scale, level)) for scale in scales])
        look = _bar_style("oop" if rank else "ip") | {"alpha": 1.0 if rank < 2 else 0.55}
        if rank > 1:
            look["hatch"] = ""
        bars = axis.barh(scales, widths, 0.62, left=starts, label=_plain(level), **look)
        texts = [f"{width:,.0f}" if width else "" for width in widths]
        for text in axis.bar_label(bars, texts, label_type="center", fontsize=8.5):
            text.set(color="white" if rank == 0 else INK, fontweight="bold")
            if rank:
                text.set_path_effects(_HALO)
        starts += widths
    axis.set_xlabel(xlabel)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.margins(x=0.01, y=0.04)
    figure.legend(loc="outside upper left", ncols=len(levels), columnspacing=1.4, handlelength=1.6)
    return figure


@_styled
def caption_counts(table: pd.DataFrame, labelled: int = 1) -> Figure:
    """How often each concept is named, a dot a concept on a logarithmic axis, by domain.

    Parameters
    ----------
    table : DataFrame
        ``domain``, ``name`` and ``captions``: the number of captions with the name. Names that
        occur in none are counted at the left.
    labelled : int
        So many names at either end of a domain stand beside their dots.
    """
    _require(table, "domain", "name", "captions")
    domains = list(dict.fromkeys(table["domain"]))[::-1]
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.43 * len(domains)))
    seen = table[table["captions"] > 0]
    top = max(10, int(seen["captions"].max())) if len(seen) else 10
    low = min(10.0, float(seen["captions"].min())) if len(seen) else 1.0
    zero = low / (top / low) ** 0.11
    blend = axis.get_yaxis_transform()
    for height, domain in enumerate(domains):
        own = seen[seen["domain"] == domain].sort_values("captions")
        absent = int((table["domain"] == domain).sum()) - len(own)
        axis.text(
            zero,
            height,
            f"{absent}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=_dark(SUBSET_COLOURS["oop"]),
            bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": SUBSET_COLOURS["oop"]},
        )
        if own.empty:
            continue
        axis.hlines(height, own["captions"].min(), own["captions"].max(), color=RULE, lw=0.8)
        axis.scatter(
            own["captions"],
            # A fixed zigzag, so that dots of one count stay apart and a figure is the same twice.
            height + 0.11 * (np.arange(len(own)) % 3 - 1),
            s=16,
            color=SUBSET_COLOURS["ip"],
            alpha=0.75,
            linewidths=0,
        )
        axis.vlines(own["captions"].median(), height - 0.27, height + 0.27, color=INK, lw=1.6)
        ends = [(own.head(labelled), -6, "right"), (own.tail(labelled), 6, "left")]
        for rows, shift, side in ends if len(own) > 1 else ends[1:]:
            place = rows.iloc[0 if side == "right" else -1]["captions"]
            axis.annotate(
                _plain(", ".join(rows["name"])),
                (place, height),
                (shift, 0),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=7.5,
                color=FAINT,
            ).set_path_effects(_HALO)
    axis.set_xscale("log")
    axis.set_xlim(zero / 1.2, top * (top / low) ** 0.12)
    ticks = [t for t in (1, 3, 10, 30, 100, 300, *10 ** np.arange(3, 11)) if low <= t <= top]
    axis.set_xticks([zero, *ticks], ["none", *(f"{tick:,}" for tick in ticks)])
    axis.minorticks_off()
    axis.plot([zero * (low / zero) ** 0.45] * 2, [0, 1], transform=blend, color=RULE, lw=0.8)
    axis.set_yticks(range(len(domains)), [pretty(domain) for domain in domains])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.margins(y=0.06)
    axis.set_xlabel("captions that hold the name")
    handles = [
        Line2D([], [], ls="", marker="s", mfc="white", mec=SUBSET_COLOURS["oop"], ms=8),
        Line2D([], [], ls="", marker="o", color=SUBSET_COLOURS["ip"], ms=4.5),
        Line2D([], [], ls="", marker="|", color=INK, ms=9, mew=1.6),
    ]
    words = ["number of OOP names", "one IP name", "median of IP names"]
    figure.legend(handles, words, loc="outside upper left", ncols=3, columnspacing=1.4)
    return figure


MEASURE_TITLES = {
    "ip_separate": "IP, own names (%)",
    "oop_separate": "OOP, own names (%)",
    "h_separate": "H, separate (%)",
    "ip_joint": "IP, joint (%)",
    "oop_joint": "OOP, joint (%)",
    "h_joint": "H, joint (%)",
    "ausuc": "AUSUC (%)",
    "class_balanced": "class-balanced (%)",
    "balanced": "balanced (%)",
    "ece": "ECE (%), lower is better",
}


@_styled
def protocol_overview(
    table: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    measures: Sequence[str] = ("h_joint", "ausuc"),
    highlight: Sequence[str] | None = None,
) -> Figure:
    """Methods with intervals under each measure; beside them the curves of some of them.

    Parameters
    ----------
    table : DataFrame
        ``method``, ``measure``, ``value``, ``low``, ``high`` in percent, as
        `joint.protocol_table` gives. With ``p_holm`` a method is hollow where it is not told
        apart from the reference, whose value is a line. Rows are sorted by the first measure.
    curves : DataFrame, optional
        ``method``, ``ip``, ``oop`` in percent and ``own`` (the point of the method's own bias),
        as `joint.curve_table` gives.
    measures : sequence of str
        One panel each.
    highlight : sequence of str, optional
        Methods with colours and markers of their own, eight at most; others are grey. By
        default those with curves.
    """
    _require(table, "method", "measure", "value", "low", "high")
    if curves is not None:
        _require(curves, "method", "ip", "oop", "own")
    for measure in measures:
        if measure not in set(table["measure"]):
            raise ValueError(suggest(measure, dict.fromkeys(table["measure"]), "measure"))
    first = table[table["measure"] == measures[0]].sort_values("value")
    methods = list(first["method"])
    alone = first.loc[first["p_holm"].isna(), "method"] if "p_holm" in first else ()
    of = next(iter(alone)) if len(alone) == 1 else None
    if highlight is None and curves is not None:
        highlight = list(dict.fromkeys(curves["method"]))
    elif highlight is None:
        highlight = list(dict.fromkeys([*([of] if of else []), *methods[::-1]]))[:8]
    looks = line_styles(highlight)
    widths = [1.0] * len(measures) + ([2.1] if curves is not None else [])
    figure, axes = plt.subplots(
        1,
        len(widths),
        figsize=(7.2, max(3.3, 0.75 + 0.2 * len(methods))),
        width_ratios=widths,
        squeeze=False,
    )
    for axis, measure in zip(axes[0], measures, strict=False):
        _dots(axis, table[table["measure"] == measure].set_index("method"), methods, looks, of)
        axis.set_title(MEASURE_TITLES.get(measure, _plain(measure)), fontsize=8.5)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    for text, method in zip(axes[0, 0].get_yticklabels(), methods, strict=True):
        text.set(fontsize=8, fontweight="bold" if method in looks else "normal")
    if of is not None:
        note = f"hollow: not told apart from {of} (Holm, 5 %)"
        figure.text(0.01, -0.01, _plain(note), fontsize=7.5, color=FAINT, va="top")
    if curves is not None:
        _curves(axes[0, -1], curves, looks)
    return figure


def _dots(
    axis: Axes,
    rows: pd.DataFrame,
    methods: Sequence[str],
    looks: dict[str, dict[str, Any]],
    reference: str | None,
) -> None:
    """One measure of each method as a dot with its interval, upwards in the order given."""
    if reference is not None:
        axis.axvline(rows.loc[reference, "value"], color=INK, lw=0.8, ls=(0, (2, 2)), zorder=0)
    for height, method in enumerate(methods):
        row = rows.loc[method]
        look = looks.get(method, {"color": FAINT, "marker": "o"})
        colour, strong = look["color"], method in looks
        axis.hlines(height, row["low"], row["high"], color=colour, lw=1.8 if strong else 1.0)
        hollow = row.get("p_holm", 0) >= 0.05
        axis.plot(
            row["value"],
            height,
            ls="",
            marker=look["marker"],
            ms=6 if strong else 4,
            mfc="white" if hollow else colour,
            mec=colour,
            mew=1.2,
            zorder=4,
        )
    axis.set_yticks(range(len(methods)), [_plain(method) for method in methods])
    axis.set_ylim(-0.6, len(methods) - 0.4)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.grid(axis="x")


def _curves(axis: Axes, curves: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """OOP over IP accuracy as a bias runs, with the point that each method has by itself."""
    top = 10 * np.ceil(float(curves[["ip", "oop"]].max().max()) / 10 + 0.5)
    _harmonic_curves(axis, min(top, 110.0))
    dashes = ["-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2))]
    handles = []
    for i, method in enumerate(dict.fromkeys(curves["method"])):
        own = curves[curves["method"] == method]
        look = looks.get(method, {"color": FAINT, "marker": "o", "mec": "white", "mew": 0.6})
        look = look | {"ls": dashes[i % len(dashes)]}
        line, point = own[~own["own"].astype(bool)], own[own["own"].astype(bool)]
        axis.plot(line["ip"], line["oop"], color=look["color"], ls=look["ls"], lw=1.5)
        axis.plot(point["ip"], point["oop"], **(look | {"ls": ""}), ms=7.5, zorder=5)
        handles.append(Line2D([], [], **look, lw=1.5, ms=6, label=_plain(method)))
    axis.set(xlim=(0, top), ylim=(0, top))
    axis.set_xlabel("IP accuracy, joint vocabulary (%)")
    axis.set_ylabel("OOP accuracy, joint vocabulary (%)")
    axis.set_title("any bias; the mark: its own", fontsize=8.5)
    box = {"frameon": True, "framealpha": 0.92, "edgecolor": "none"}
    axis.legend(handles=handles, loc="upper right", fontsize=7.5, handlelength=3.2, **box)


@_styled
def reliability_diagrams(table: pd.DataFrame, columns: int = 4) -> Figure:
    """Accuracy against confidence, a panel a method, with the share of images in each bin.

    Parameters
    ----------
    table : DataFrame
        ``panel`` and the columns of `metrics.reliability`: ``low``, ``high``,
        ``confidence``, ``accuracy`` (in 0..1) and ``images``; optionally ``ece``, in percent.
    columns : int
        Panels a row.
    """
    _require(table, "panel", "low", "high", "confidence", "accuracy", "images")
    panels = list(dict.fromkeys(table["panel"]))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(2.6, 1.8 * columns), 2.0 * rows + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis in axes.flat[: len(panels)][-columns:]:
        axis.tick_params(labelbottom=True)
    for axis, panel in zip(axes.flat, panels, strict=False):
        own = table[table["panel"] == panel]
        left, width = 100 * own["low"], 100 * (own["high"] - own["low"])
        share = 100 * own["images"] / own["images"].sum()
        axis.bar(left, share, width, align="edge", color="#D5D5D5", edgecolor="white", lw=0.6)
        axis.plot([0, 100], [0, 100], color=INK, lw=0.9, ls=(0, (4, 2)))
        filled = own[own["images"] > 0]
        x, y = 100 * filled["confidence"], 100 * filled["accuracy"]
        axis.vlines(x, x, y, color=OKABE_ITO["vermillion"], lw=1.6)
        size = 6 + 60 * filled["images"] / own["images"].max()
        dots = {"s": size, "color": OKABE_ITO["blue"], "edgecolors": "white", "lw": 0.6}
        axis.scatter(x, y, **dots, zorder=4, clip_on=False)
        axis.set(xlim=(0, 100), ylim=(0, 100), xticks=[0, 50, 100], yticks=[0, 50, 100])
        title = _wrapped(_plain(panel), 22)
        error = f"\nECE {own['ece'].iloc[0]:.1f} %" if "ece" in own else ""
        axis.set_title(title + error, fontsize=8.5)
    figure.supxlabel("confidence (%)", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    handles = [
        Line2D([], [], ls="", marker="o", color=OKABE_ITO["blue"], ms=6),
        Line2D([], [], color=OKABE_ITO["vermillion"], lw=1.6),
        Patch(facecolor="#D5D5D5"),
    ]
    words = ["a bin of confidence", "its gap", "share of images"]
    figure.legend(handles, words, loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


@_styled
def methods_over_shots(
    table: pd.DataFrame,
    highlight: Sequence[str],
    published: pd.DataFrame | None = None,
    ylabel: str = "accuracy on OOP names (%)",
    titles: tuple[str, str] = ("ours", "published, LAION-Beyond"),
) -> Figure:
    """Accuracy against shots for many methods: some strong, the others grey, each named.

    Parameters
    ----------
    table : DataFrame
        ``method``, ``shots``, ``value`` in percent; optionally ``low`` and ``high``, drawn for
        the highlighted methods. Rows of 0 shots are level lines.
    highlight : sequence of str
        Methods with colours and markers of their own, eight at most.
    published : DataFrame, optional
        The same columns for a panel of their own, as in the paper's Figure 5; capitals make no
        difference to the look of a method.
    ylabel : str
        What is measured.
    titles : tuple of str
        Titles of the panels.
    """
    tables = [table] if published is None else [table, published]
    for one in tables:
        _require(one, "method", "shots", "value")
    looks = {method.lower(): look for method, look in line_styles(highlight).items()}
    largest = max(one["method"].nunique() for one in tables)
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(4.6 if published is None else 7.4, max(3.2, 0.9 + 0.2 * largest)),
        sharey=True,
        squeeze=False,
    )
    ends = []
    for axis, one, title in zip(axes[0], tables, titles, strict=False):
        groups = one.groupby("method", sort=False)
        ends.append([_one_method(axis, str(name), own, looks) for name, own in groups])
        ticks = sorted(one.loc[one["shots"] > 0, "shots"].unique())
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(int(tick)) for tick in ticks])
        axis.set_xlim(min(ticks) / 1.15, max(ticks) * 1.1)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
        axis.grid(axis="y")
        axis.set_title(_plain(title) if len(tables) > 1 else "")
        axis.tick_params(labelleft=True)
    low, high = axes[0, 0].get_ylim()
    gap = (high - low) * 9.2 / (72 * (figure.get_figheight() - 0.8))
    for axis, own in zip(axes[0], ends, strict=True):
        _named_ends(axis, own, looks, gap)
    figure.supxlabel("shots (images per class)", fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    return figure


def _one_method(
    axis: Axes, method: str, own: pd.DataFrame, looks: dict[str, dict[str, Any]]
) -> tuple[str, float]:
    """Draw one method over its shots; its name and the height at which its line ends."""
    own = own.sort_values("shots")
    look = looks.get(method.lower())
    colour = look["color"] if look else "#9A9A9A"
    tuned = own[own["shots"] > 0]
    if not len(tuned):
        height = float(own["value"].iloc[-1])
        axis.axhline(height, color=colour, lw=1.3 if look else 0.9, ls=(0, (4, 2)), zorder=1)
        return method, height
    if look is None:
        axis.plot(tuned["shots"], tuned["value"], color=colour, lw=0.9, zorder=2)
    else:
        if "low" in tuned:
            band = tuned["shots"], tuned["low"], tuned["high"]
            axis.fill_between(*band, color=colour, alpha=0.15, lw=0)
        rank = list(looks).index(method.lower())
        size = {"lw": 1.7, "ms": 5.5} if rank else {"lw": 2.4, "ms": 7}
        axis.plot(
            tuned["shots"], tuned["value"], **look, **size, zorder=4 - 0.1 * rank, clip_on=False
        )
    return method, float(tuned["value"].iloc[-1])


def _named_ends(
    axis: Axes, ends: list[tuple[str, float]], looks: dict[str, dict[str, Any]], gap: float
) -> None:
    """Names at the right of the panel, apart from one another and tied to their lines."""
    low, high = axis.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    heights = _apart([height for _, height in ends], gap)
    for order, bound, step in ((range(len(ends))[::-1], high, -gap), (range(len(ends)), low, gap)):
        for i in order:
            heights[i] = min(heights[i], bound) if step < 0 else max(heights[i], bound)
            bound = heights[i] + step
    for (method, height), place in zip(ends, heights, strict=True):
        look = looks.get(method.lower())
        axis.plot(
            [1.005, 1.035, 1.05],
            [height, place, place],
            transform=axis.get_yaxis_transform(),
            color=look["color"] if look else "#B5B5B5",
            lw=0.7,
            clip_on=False,
        )
        axis.annotate(
            _plain(method),
            (1.06, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8 if look else 7.5,
            fontweight="bold" if look else "normal",
            color=_dark(look["color"]) if look else FAINT,
            annotation_clip=False,
        )
    axis.set_ylim(low, high)


NAME_KINDS = {
    "image": "images",
    "before": "name before learning",
    "after": "name after learning",
    "ip": "IP names",
}


@_styled
def names_in_space(points: pd.DataFrame, label_classes: int = 24) -> Figure:
    """Images and names in the plane, an arrow from each name before to the same after learning.

    Parameters
    ----------
    points : DataFrame
        ``x``, ``y``, ``kind`` ("image", "before", "after", or "ip" for names that do not move)
        and ``class``; optionally ``panel``.
    label_classes : int
        Learned names are written beside their arrows if there are at most so many.

    Raises
    ------
    ValueError
        If a kind is unknown, or a name is not there once before and once after.
    """
    _require(points, "x", "y", "kind", "class")
    for kind in dict.fromkeys(points["kind"]):
        if kind not in NAME_KINDS:
            raise ValueError(suggest(kind, NAME_KINDS, "kind of point"))
    panels = list(dict.fromkeys(points["panel"])) if "panel" in points else [None]
    moved = points[points["kind"].isin(["before", "after"])]
    ends = moved.groupby([c for c in ("panel", "class") if c in points])["kind"].agg(sorted)
    if not ends.map(["after", "before"].__eq__).all():
        raise ValueError("each learned name needs one point of kind before and one of kind after")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(max(4.8, 3.7 * len(panels)), 4.3), squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        here = points if panel is None else points[points["panel"] == panel]
        grey = here[here["kind"] == "ip"]
        axis.scatter(grey["x"], grey["y"], s=26, marker="x", c="#9A9A9A", linewidths=1.0)
        texts = _moves(axis, here, label_classes)
        axis.set(xticks=[], yticks=[], title="" if panel is None else _plain(panel))
        axis.margins(0.06)
        axis.set_aspect("equal", adjustable="datalim")
        for spine in axis.spines.values():
            spine.set(visible=True, color=RULE)
        _spread(figure, axis, texts)
    marks: dict[str, dict[str, Any]] = {
        "image": {"marker": "o", "color": "#9A9A9A", "ms": 4},
        "before": {"marker": "o", "mfc": "white", "mec": INK, "ms": 6},
        "after": {"marker": "*", "mfc": INK, "mec": "white", "ms": 11},
        "ip": {"marker": "x", "color": "#9A9A9A", "ms": 5},
    }
    shown = [kind for kind in NAME_KINDS if kind in set(points["kind"])]
    handles = [Line2D([], [], ls="", **marks[kind]) for kind in shown]
    words = [NAME_KINDS[kind] for kind in shown]
    figure.legend(handles, words, loc="outside upper left", ncols=len(shown), columnspacing=1.2)
    return figure


def _moves(axis: Axes, here: pd.DataFrame, label_classes: int) -> list[Any]:
    """Draw images and moves of the learned names in the colours of their classes; the labels."""
    ends = {kind: here[here["kind"] == kind].set_index("class") for kind in ("before", "after")}
    names = list(ends["after"].index)
    colours = [c for name, c in OKABE_ITO.items() if name not in ("yellow", "black")]
    above = 0.035 * float(np.ptp(here["y"]))
    texts = []
    for i, name in enumerate(names):
        colour, marker = colours[i % len(colours)], "osD^vP<>ph"[i % 10]
        own = here[(here["kind"] == "image") & (here["class"] == name)]
        axis.scatter(own["x"], own["y"], s=13, c=colour, marker=marker, alpha=0.55, linewidths=0)
        start, end = (ends[kind].loc[name, ["x", "y"]].astype(float) for kind in ends)
        axis.annotate(
            "",
            tuple(end),
            tuple(start),
            arrowprops={
                "arrowstyle": "-|>",
                "color": _dark(colour),
                "lw": 1.1,
                "shrinkA": 3,
                "shrinkB": 5,
            },
            zorder=4,
        )
        axis.plot(*start, "o", mfc="white", mec=_dark(colour), mew=1.2, ms=5.5, zorder=5)
        axis.plot(*end, "*", mfc=colour, mec=INK, mew=0.7, ms=12, zorder=6)
        if len(names) <= label_classes:
            place = end["x"], end["y"] + above
            texts.append(axis.text(*place, _plain(name), fontsize=7.5, ha="center", va="center"))
            texts[-1].set(path_effects=_HALO, zorder=7)
    return texts


def preview(figure: Figure, dpi: int = 100) -> Image.Image:
    """The figure as a PIL image of 256 colours, for notebooks that must stay light.

    Photographs and gradients take about a quarter of the space of a full PNG.

    Parameters
    ----------
    figure : Figure
    dpi : int
        Dots an inch.
    """
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.04)
    # Without dithering, flat colours stay flat and compress.
    return Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)


@_styled
def frequency_curve(table: pd.DataFrame) -> Figure:
    """Captions that name each concept, by rank, a curve a corpus, both axes logarithmic.

    Parameters
    ----------
    table : DataFrame
        ``scale`` and ``captions``, a row per concept and corpus. Concepts that no caption names
        have no place on the curve; the legend has their number.
    """
    _require(table, "scale", "captions")
    figure, axis = plt.subplots(figsize=(7.2, 2.9))
    looks = zip(("blue", "green", "vermillion", "purple", "black"), _MARKERS, strict=False)
    for scale, (colour, marker) in zip(dict.fromkeys(table["scale"]), looks, strict=False):
        counts = table.loc[table["scale"] == scale, "captions"].to_numpy()
        seen = np.sort(counts[counts > 0])[::-1]
        axis.plot(
            np.arange(1, len(seen) + 1),
            seen,
            color=OKABE_ITO[colour],
            marker=marker,
            markevery=0.08,
            markersize=4,
            linewidth=1.3,
            label=_plain(f"{scale} ({len(counts) - len(seen):,} in no caption)"),
        )
    axis.set(xscale="log", yscale="log", xlabel="rank of the name", ylabel="captions that hold it")
    for ruler in (axis.xaxis, axis.yaxis):
        ruler.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        ruler.set_major_formatter("{x:,.0f}")
        ruler.set_minor_formatter(NullFormatter())
    axis.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.4)
    return figure


@_styled
def risk_curves(table: pd.DataFrame) -> Figure:
    """Error among the answers given over the share of answers given, a line a method.

    Parameters
    ----------
    table : DataFrame
        ``method``, ``coverage`` and ``risk`` in 0..1, as from `match.risk_coverage`.
    """
    _require(table, "method", "coverage", "risk")
    figure, axis = plt.subplots(figsize=(5.2, 3.2))
    methods = list(dict.fromkeys(table["method"]))
    looks = line_styles(methods)
    for i, method in enumerate(methods):
        rows = table[table["method"] == method].sort_values("coverage")
        look = looks[method] | {"ls": ("-", (0, (4, 1.5)), (0, (1, 1)), "-.")[i % 4]}
        marks = max(1, len(rows) // 8)
        x, y = 100 * rows["coverage"], 100 * rows["risk"]
        axis.plot(x, y, **look, lw=1.7, markevery=marks, label=_plain(method))
    axis.set(xlim=(0, 100), ylim=(0, 100))
    axis.set(xlabel="images that get a name (%)", ylabel="of these, named wrong (%)")
    axis.grid()
    axis.legend(loc="lower right")
    return figure


@_styled
def sweep_lines(table: pd.DataFrame) -> Figure:
    """One metric over a swept parameter, a line a method, with its range over runs as bars.

    Parameters
    ----------
    table : DataFrame
        As `lbutils.run.notebooks.summary` returns it: first what the lines are, then what is swept,
        then ``value``, ``low`` and ``high``, and ``metric``. Numbers are spaced as they are,
        anything else evenly.
    """
    _require(table, "value", "low", "high", "metric")
    by, x = table.columns[:2]
    numeric = pd.api.types.is_numeric_dtype(table[x])
    ticks = sorted(table[x].dropna().unique()) if numeric else list(dict.fromkeys(table[x]))
    lines = list(dict.fromkeys(table[by].astype(str)))
    looks = line_styles(lines)
    named = len(lines) <= _NAMED_LINES
    figure, axis = plt.subplots(figsize=(6.4, max(3.2, 0.24 * len(lines)) if named else 4.8))
    for line in lines:
        rows = table[table[by].astype(str) == line].dropna(subset=["value"])
        at = rows[x].to_numpy(float) if numeric else [ticks.index(value) for value in rows[x]]
        reach = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["value"].to_numpy(float))
        axis.errorbar(
            at, rows["value"], reach, **looks[line], lw=1.4, elinewidth=0.7, label=_plain(line)
        )
    if not numeric:
        names = [_wrapped(tick, 16) for tick in ticks]
        axis.set_xticks(range(len(ticks)), names, rotation=30 if len(ticks) > 4 else 0)
    elif len(ticks) <= 12:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.grid(axis="y")
    axis.set(xlabel=_plain(str(x).removeprefix("set_")), ylabel=_plain(table["metric"].iloc[0]))
    if named:
        figure.legend(loc="outside right upper")
    else:
        axis.set_title(f"{len(lines)} lines, too many to name")
    return figure


@_styled
def lines_in_panels(table: pd.DataFrame, xlabel: str = "", ylabel: str = "") -> Figure:
    """A line a group, a panel a source, over corpora or sizes (Figures 4 and 6).

    Parameters
    ----------
    table : DataFrame
        ``panel``, ``line``, ``x``, ``value``; optionally ``low`` and ``high``. Where ``x`` holds
        numbers its axis is logarithmic, and ``point`` may have a text for a place; panels whose
        places have texts show dots without lines, as these are things of different kinds. Other
        values of ``x`` stand evenly. Lines whose name ends in ``", names learned"`` are
        dashed and share the look of the line without that.
    """
    _require(table, "panel", "line", "x", "value")
    panels = list(dict.fromkeys(table["panel"]))
    lines = list(dict.fromkeys(table["line"]))
    kinds = list(dict.fromkeys(line.removesuffix(LEARNED) for line in lines))
    # The plain colours in their order: lines here are groups of names, not methods.
    colours = ("blue", "vermillion", "green", "purple", "orange", "sky", "black")
    looks = {
        kind: (OKABE_ITO[colours[i % 7]], _MARKERS[i % len(_MARKERS)])
        for i, kind in enumerate(kinds)
    }
    told = table["point"].notna().any() if "point" in table else False
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(6.4 if len(panels) == 1 else 7.6, 4.2 if told else 3.4),
        sharey=True,
        squeeze=False,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel_lines(axis, table[table["panel"] == panel], looks)
        axis.set_title(_plain(panel) if len(panels) > 1 else "", pad=66 if told else None)
    axes[0, 0].set_ylim(bottom=0)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    handles = [Line2D([], [], **_line_look(line, looks)) for line in lines]
    figure.legend(handles, list(map(_plain, lines)), loc="outside upper left", ncols=3)
    return figure


def _panel_lines(axis: Axes, here: pd.DataFrame, looks: dict[str, tuple[str, str]]) -> None:
    if pd.api.types.is_numeric_dtype(here["x"].infer_objects()):
        here = here.assign(at=here["x"].astype(float))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(here["at"].min() / 1.6, here["at"].max() * 1.6)
    else:
        ticks = list(dict.fromkeys(here["x"]))
        axis.set_xlim(-0.3, len(ticks) - 0.7)
        lines = list(dict.fromkeys(here["line"]))
        # A little apart, so that intervals do not hide each other.
        beside = here["line"].map(lines.index) - (len(lines) - 1) / 2
        here = here.assign(at=here["x"].map(ticks.index) + 0.025 * beside)
        axis.set_xticks(range(len(ticks)), [_wrapped(tick, 14) for tick in ticks])
    places = _points(here)
    for line, rows in here.groupby("line", sort=False):
        look = _line_look(str(line), looks)
        axis.plot(rows["at"], rows["value"], **look | ({"ls": ""} if places else {}))
        if "low" in rows:
            axis.vlines(rows["at"], rows["low"], rows["high"], color=look["color"], lw=1, alpha=0.7)
    for at, text in places:
        axis.annotate(
            _plain(text), (at, 1.01), xycoords=("data", "axes fraction"), rotation=40,
            rotation_mode="anchor", fontsize=7.5, color=FAINT, ha="left", va="bottom",
        )  # fmt: skip
        axis.axvline(at, color=RULE, lw=0.7, zorder=0)
    axis.tick_params(labelleft=True)
    axis.grid(axis="y")


def _points(table: pd.DataFrame) -> list[tuple[float, str]]:
    """Places with their texts; those of neighbours that would overlap are joined."""
    if "point" not in table:
        return []
    found: list[tuple[float, str]] = []
    for row in table.dropna(subset=["point"]).sort_values("at", kind="stable").itertuples():
        if found and row.at < 1.1 * found[-1][0]:
            if str(row.point) not in found[-1][1].split("\n"):
                found[-1] = found[-1][0], f"{found[-1][1]}\n{row.point}"
        else:
            found.append((row.at, str(row.point)))
    return found


def _line_look(line: str, looks: dict[str, tuple[str, str]]) -> dict[str, Any]:
    colour, marker = looks[line.removesuffix(LEARNED)]
    dashed = line.endswith(LEARNED)
    face, style = ("white", (0, (4, 1.6))) if dashed else (colour, "-")
    return {"color": colour, "marker": marker, "mfc": face, "ls": style, "ms": 5, "lw": 1.5}
