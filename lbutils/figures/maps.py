"""Pictures, points and tiles: images in rows, classes and names in the plane, scores by domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lbutils._util import suggest
from lbutils.figures import style as st


@st.styled
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
    st.require(examples, "image", "name", "row")
    rows = st.unique(examples["row"])
    side, label_height, line_height = 7.2 / columns, 0.2, 0.125
    shown = {row: examples[examples["row"] == row].head(columns) for row in rows}
    names = {row: [st.wrapped(st.plain(n), 14) for n in own["name"]] for row, own in shown.items()}
    lines = {row: 1 + max(name.count("\n") for name in own) for row, own in names.items()}
    heights = [side + label_height + line_height * lines[row] for row in rows]
    # One axis in inches: an axis an image would take seconds to make and to lay out.
    figure, (axis,) = st.panels([""], 7.2, sum(heights) + 0.25)
    for row, top in zip(rows, np.cumsum([0.0, *heights]), strict=False):
        axis.text(0, top + 0.15, st.pretty(row), fontsize=9, weight="bold")
        for i, (_, example) in enumerate(shown[row].iterrows()):
            picture = np.asarray(example["image"])
            width, height = 0.94 * side * np.divide(picture.shape[1::-1], max(picture.shape[:2]))
            left, above = (i + 0.5) * side - width / 2, top + label_height
            extent = (left, left + width, above + height, above)
            axis.imshow(picture, interpolation="lanczos", extent=extent)
            frame = _frame(example.get("subset"), example.get("right"))
            axis.add_patch(Rectangle((left, above), width, height, fill=False, **frame))
            look = {"fontsize": 7.5, "ha": "center", "va": "top"}
            axis.text((i + 0.5) * side, above + height + 0.03, names[row][i], **look)
    axis.set(xlim=(0, 7.2), ylim=(sum(heights), 0))
    axis.set_axis_off()
    handles = {}
    if "subset" in examples and set(examples["subset"]) == set(st.SUBSETS):
        handles = {words: Line2D([], [], **_frame(s, None)) for s, words in st.SUBSETS.items()}
    if "right" in examples:
        answers = {"right": True, "wrong": False}
        handles = {word: Line2D([], [], **_frame(None, right)) for word, right in answers.items()}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=2)
    told = st.listed(
        f"{row} ({st.listed(st.unique(examples.loc[examples['row'] == row, 'name']), 4)})"
        for row in rows
    )
    return st.described(figure, f"Images in rows: {told}.")


def _frame(subset: Any, right: bool | None) -> dict[str, Any]:
    """Line of an image's frame: by its subset, or by whether it was named right."""
    key = subset if right is None else "right" if right else "wrong"
    style = st.STYLES.get(str(key), st.Style(st.RULE))
    dashes = (0, (3, 1.5)) if style.dashes else "-"
    return {"color": style.colour, "linestyle": dashes, "linewidth": 1.6 if key else 0.7}


@st.styled
def tsne_scatter(points: pd.DataFrame, label_classes: int = 24) -> Figure:
    """Images in the plane, one panel a map: OOP classes in colour, IP in grey (Figure 3).

    Colours and markers are of a panel; three panels stand in a row.

    Parameters
    ----------
    points : DataFrame
        ``x``, ``y``, ``subset``, ``name`` (the class), ``panel`` (title of the panel).
    label_classes : int
        OOP classes are named at their centres if a panel has at most so many.
    """
    st.require(points, "x", "y", "subset", "name", "panel")
    names = st.unique(points["panel"])
    # A single map is larger, so that its labels find room.
    columns, size = min(3, len(names)), 6.0 if len(names) == 1 else 3.0
    height = size * -(-len(names) // columns) * 1.05
    figure, axes = st.panels(names, size * columns, height, columns)
    for axis, name in zip(axes, names, strict=True):
        here = points[points["panel"] == name]
        oop, ip = here[here["subset"] == "oop"], here[here["subset"] == "ip"]
        classes = st.unique(oop["name"])
        styles = dict(zip(classes, st.class_styles(len(classes)), strict=True))
        axis.scatter(ip["x"], ip["y"], s=9, c=st.PALE, linewidths=0, rasterized=True)
        _scatter(axis, oop, "name", styles, s=17, linewidth=0.3, edgecolor="white")
        middles = oop.groupby("name", sort=False)[["x", "y"]].median()
        texts = [
            axis.text(*middle, st.plain(label), fontsize=7, ha="center", va="center")
            for label, middle in zip(middles.index, middles.to_numpy(), strict=True)
            if len(classes) <= label_classes
        ]
        _plane(figure, axis, texts)
        if len(ip):
            note = f"grey: {ip['name'].nunique()} IP classes"
            axis.set_xlabel(note, fontsize=8, color=st.FAINT, loc="left")
    shown = st.unique(points.loc[points["subset"] == "oop", "name"])
    return st.described(
        figure,
        f"Images in the plane ({st.listed(names)}), in colour: {st.listed(shown, 24)}.",
    )


def _scatter(
    axis: Axes, rows: pd.DataFrame, column: str, styles: dict[str, st.Style], **look: Any
) -> None:
    """Points of classes in their colours and markers."""
    if rows.empty:
        return
    sns.scatterplot(
        rows,
        x="x",
        y="y",
        hue=column,
        style=column,
        palette={name: style.colour for name, style in styles.items()},
        markers={name: style.marker for name, style in styles.items()},
        hue_order=list(styles),
        style_order=list(styles),
        legend=False,
        rasterized=True,
        ax=axis,
        **look,
    )


def _plane(figure: Figure, axis: Axes, texts: Sequence[Any]) -> None:
    """Make the axis a map: no numbers, a frame, one unit both ways, labels apart."""
    axis.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axis.margins(0.06)
    axis.set_aspect("equal", adjustable="datalim")
    for spine in axis.spines.values():
        spine.set(visible=True, color=st.RULE)
    for text in texts:
        text.set(path_effects=st.HALO, zorder=7)
    _spread(figure, axis, texts)


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


NAME_KINDS = {
    "image": ("images", st.Style(st.GREY)),
    "before": ("name before learning", st.Style(st.INK, "o", hollow=True)),
    "after": ("name after learning", st.Style(st.INK, "*")),
    "ip": ("IP names", st.Style(st.GREY, "X")),
}


@st.styled
def names_in_space(points: pd.DataFrame, label_classes: int = st.MOST_NAMED) -> Figure:
    """Images and names in the plane, an arrow from each name before to the same after learning.

    Moves that cross none of one another are in colour and named, the same in all panels. Other
    classes are grey.

    Raises ValueError if a kind is unknown, or a name is not there once before and once after.

    Parameters
    ----------
    points : DataFrame
        ``x``, ``y``, ``kind`` ("image", "before", "after", or "ip" for names that do not move)
        and ``class``; optionally ``panel``.
    label_classes : int
        So many classes are in colour at most.
    """
    st.require(points, "x", "y", "kind", "class")
    for kind in st.unique(points["kind"]):
        if kind not in NAME_KINDS:
            raise ValueError(suggest(kind, NAME_KINDS, "kind of point"))
    points = points if "panel" in points else points.assign(panel="")
    moved = points[points["kind"].isin(["before", "after"])]
    ends = moved.groupby(["panel", "class"])["kind"].agg(sorted)
    if not ends.map(["after", "before"].__eq__).all():
        raise ValueError("each learned name needs one point of kind before and one of kind after")
    names = st.unique(points["panel"])
    moves = moved.pivot(index=["panel", "class"], columns="kind", values=["x", "y"])
    arrows = {key: row.to_numpy(float).reshape(2, 2).T[::-1] for key, row in moves.iterrows()}
    shown = _uncrossed(arrows, label_classes)
    styles = dict(zip(shown, st.class_styles(len(shown)), strict=True))
    figure, axes = st.panels(names, max(4.8, 3.7 * len(names)), 4.3)
    for axis, name in zip(axes, names, strict=True):
        here = points[points["panel"] == name]
        images, ip = here[here["kind"] == "image"], here[here["kind"] == "ip"]
        own = images[images["class"].isin(shown)]
        for grey, size, kind in ((ip, 26, "ip"), (images.drop(own.index), 9, "image")):
            look = {"color": st.GREY, "marker": NAME_KINDS[kind][1].marker, "alpha": 0.6}
            axis.scatter(grey["x"], grey["y"], size, **look, linewidths=0)
        _scatter(axis, own, "class", styles, s=15, linewidth=0, alpha=0.6)
        mine = {key[1]: ends for key, ends in arrows.items() if key[0] == name}
        above = 0.035 * float(np.ptp(here["y"]))
        texts = []
        for label, (start, end) in mine.items():
            _arrow(axis, start, end, styles.get(label))
            if label in styles:
                look = {"fontsize": 7.5, "ha": "center", "va": "center"}
                texts.append(axis.text(end[0], end[1] + above, st.plain(label), **look))
        _plane(figure, axis, texts)
    kinds = [NAME_KINDS[kind] for kind in NAME_KINDS if kind in set(points["kind"])]
    st.legend(
        figure,
        {words: st.mark(style, ms=11 if style.marker == "*" else 7) for words, style in kinds},
    )
    rest = moved["class"].nunique() - len(shown)
    if rest:
        axes[0].set_xlabel(f"grey: {rest} more classes", fontsize=8, color=st.FAINT, loc="left")
    of = f" ({st.listed(names)})" if any(names) else ""
    return st.described(
        figure, f"Where names move{of}: {st.listed(shown)}, and {rest} more in grey."
    )


def _uncrossed(arrows: dict[tuple[str, str], np.ndarray], most: int) -> list[str]:
    """Classes whose moves cross none of one another in any panel, in their order.

    Those that cross the fewest others are taken first, of these the longest.
    """
    pairs = {
        (one, other)
        for (panel, one), move in arrows.items()
        for (beside, other), against in arrows.items()
        if panel == beside and _cross(move, against)
    }
    labels = st.unique(label for _, label in arrows)
    length = dict.fromkeys(labels, 0.0)
    for (_, label), (start, end) in arrows.items():
        length[label] += float(np.linalg.norm(end - start))
    kept: set[str] = set()
    for label in sorted(labels, key=lambda c: (sum(c == one for one, _ in pairs), -length[c])):
        if len(kept) < most and not any((label, other) in pairs for other in kept):
            kept.add(label)
    return [label for label in labels if label in kept]


def _cross(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two segments cross: the ends of each lie on either side of the other."""

    def side(line: np.ndarray, point: np.ndarray) -> float:
        (x, y), (u, v) = line[1] - line[0], point - line[0]
        return float(np.sign(x * v - y * u))

    return all(side(a, b[0]) * side(a, b[1]) < 0 for a, b in ((one, other), (other, one)))


def _arrow(axis: Axes, start: np.ndarray, end: np.ndarray, style: st.Style | None) -> None:
    colour = st.dark(style.colour) if style else st.PALE
    look = {"arrowstyle": "-|>", "color": colour, "lw": 1.2 if style else 0.7}
    look |= {"shrinkA": 3, "shrinkB": 5}
    order = 4 if style else 2
    axis.annotate("", tuple(end), tuple(start), arrowprops=look, zorder=order)
    size = 1.0 if style else 0.6
    axis.plot(*start, "o", mfc="white", mec=colour, mew=1.2, ms=5.5 * size, zorder=order + 1)
    face = style.colour if style else st.PALE
    edge = st.INK if style else "white"
    axis.plot(*end, "*", mfc=face, mec=edge, mew=0.6, ms=12 * size, zorder=order + 2)


@st.styled
def caption_counts(table: pd.DataFrame) -> Figure:
    """How often each concept is named, a dot a concept on a logarithmic axis, by domain.

    The names at either end of a domain stand beside their dots.

    `table` (DataFrame): ``domain``, ``name`` and ``captions``: the number of captions with the
    name. Names that occur in none are counted at the left.
    """
    st.require(table, "domain", "name", "captions")
    domains = st.unique(table["domain"])[::-1]
    figure, (axis,) = st.panels([""], 7.2, 0.9 + 0.43 * len(domains))
    ip, oop = st.STYLES["ip"].colour, st.STYLES["oop"].colour
    seen = table[table["captions"] > 0]
    top = max(10, int(seen["captions"].max())) if len(seen) else 10
    low = min(10.0, float(seen["captions"].min())) if len(seen) else 1.0
    zero = low / (top / low) ** 0.11
    axis.set_xscale("log")
    for height, domain in enumerate(domains):
        own = seen[seen["domain"] == domain].sort_values("captions")
        absent = int((table["domain"] == domain).sum()) - len(own)
        box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": oop}
        look = {"fontsize": 9, "fontweight": "bold", "color": st.dark(oop), "bbox": box}
        axis.text(zero, height, f"{absent}", ha="center", va="center", **look)
        if own.empty:
            continue
        axis.hlines(height, own["captions"].min(), own["captions"].max(), color=st.RULE, lw=0.8)
        # A fixed zigzag, so that dots of one count stay apart and a figure is the same twice,
        # which the random one of seaborn's stripplot is not.
        heights = height + 0.11 * (np.arange(len(own)) % 3 - 1)
        axis.scatter(own["captions"], heights, s=16, color=ip, alpha=0.75, linewidths=0)
        axis.vlines(own["captions"].median(), height - 0.27, height + 0.27, color=st.INK, lw=1.6)
        ends = [(own.iloc[0], -6, "right"), (own.iloc[-1], 6, "left")]
        for row, shift, side in ends if len(own) > 1 else ends[1:]:
            axis.annotate(
                st.plain(row["name"]), (row["captions"], height), (shift, 0),
                textcoords="offset points", ha=side, va="center", fontsize=7.5, color=st.FAINT,
                path_effects=st.HALO,
            )  # fmt: skip
    axis.set_xlim(zero / 1.2, top * (top / low) ** 0.12)
    ticks = [t for t in (1, 3, 10, 30, 100, 300, *10 ** np.arange(3, 11)) if low <= t <= top]
    axis.set_xticks([zero, *ticks], ["none", *(f"{tick:,}" for tick in ticks)])
    axis.minorticks_off()
    axis.axvline(zero * (low / zero) ** 0.45, color=st.RULE, lw=0.8)
    axis.set_yticks(range(len(domains)), list(map(st.pretty, domains)))
    st.bare(axis)
    axis.margins(y=0.06)
    axis.set_xlabel("captions that hold the name")
    handles = {
        "number of OOP names": st.mark(st.Style(oop, "s", hollow=True), ms=8),
        "one IP name": st.mark(st.Style(ip), ms=5),
        "median of IP names": Line2D([], [], ls="", marker="|", color=st.INK, ms=9, mew=1.6),
    }
    st.legend(figure, handles)
    named = f"{len(seen)} of {len(table)} names occur"
    most = f", {seen.loc[seen['captions'].idxmax(), 'name']} most often" if len(seen) else ""
    return st.described(figure, f"Captions that hold each name, by domain: {named}{most}.")


@st.styled
def scores_by_domain(table: pd.DataFrame, label: str) -> Figure:
    """Scores as tiles, a row a method, a column a domain, their mean in the last column.

    Parameters
    ----------
    table : DataFrame
        ``method``, ``domain`` and ``value``, in per cent, one a method and domain. Methods stand
        in the order of their means, the best on top; domains in the table's.
    label : str
        What a value is, above the tiles.
    """
    st.require(table, "method", "domain", "value")
    tiles = table.pivot(index="method", columns="domain", values="value")
    tiles = tiles[st.unique(table["domain"])].rename(columns=st.pretty, index=st.plain)
    tiles = tiles.assign(mean=tiles.mean(axis=1)).sort_values("mean", ascending=False)
    width, height = 1.9 + 0.53 * tiles.shape[1], 0.9 + 0.21 * len(tiles)
    figure, (axis,) = st.panels([label], width, height)
    sns.heatmap(
        tiles, ax=axis, cmap="cividis", annot=True, fmt=".0f", annot_kws={"fontsize": 7.5},
        linewidths=0.4, cbar=False,
    )  # fmt: skip
    axis.axvline(tiles.shape[1] - 1, color="white", lw=3)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="both", length=0)
    axis.set_xticklabels(axis.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    told = st.listed(f"{name} {value:.0f}" for name, value in tiles["mean"].items())
    return st.described(figure, f"{label} by method and domain; means: {told}.")
