"""Bars and differences: benchmarks by domain, shares, intervals about zero, reliability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lbutils._util import interval_text
from lbutils.figures import style as st

_DOT: dict[str, Any] = {"ls": "", "color": st.INK, "marker": "o", "ms": 5, "elinewidth": 1.4}


@st.styled
def benchmark_statistics(summary: pd.DataFrame) -> Figure:
    """Classes and images of each domain, IP and OOP, as in the paper's Figure 2.

    `summary` (DataFrame): ``domain``, ``subset`` ("ip" or "oop"), ``classes``, ``images``, and
    ``split`` where there are several rows a subset: images are added up, classes are not.
    """
    st.require(summary, "domain", "subset", "classes", "images")
    rows = summary.groupby(["domain", "subset"], sort=False, as_index=False)
    totals = rows.agg(classes=("classes", "max"), images=("images", "sum"))
    columns, domains = ("classes", "images"), st.unique(totals["domain"])
    figure, axes = st.panels(columns, 7.2, 0.8 + 0.36 * len(domains), sharey=True)
    told = []
    for axis, column in zip(axes, columns, strict=True):
        _bars_by_subset(axis, totals, x=column, y="domain")
        for bars in axis.containers:
            axis.bar_label(bars, fmt="{:,.0f}", padding=2.5, fontsize=7.5)
        sums = totals.groupby("subset")[column].sum()
        of = ", ".join(f"{sums[s]:,.0f} {s.upper()}" for s in st.SUBSETS if s in sums)
        axis.set_title(f"{column.capitalize()} ({of})")
        axis.set(xlabel="", ylabel="", xticks=[])
        axis.set_yticks(range(len(domains)), list(map(st.pretty, domains)))
        st.bare(axis)
        st.bare(axis, "bottom")
        axis.margins(x=0.14)
        told.append(f"{column}: {of}")
    st.subset_legend(figure)
    return st.described(figure, f"Bars of {'; '.join(told)}; by domain: {st.listed(domains)}.")


def _bars_by_subset(axis: Axes, table: pd.DataFrame, **columns: Any) -> list[str]:
    """Draw IP bars beside OOP bars in their colours and hatches; the subsets that are there."""
    shown = [subset for subset in st.SUBSETS if (table["subset"] == subset).any()]
    options: dict[str, Any] = {"hue_order": shown, "gap": 0.05, "errorbar": None, "legend": False}
    sns.barplot(table, hue="subset", ax=axis, **options, **columns)
    for subset, bars in zip(shown, axis.containers, strict=True):
        for bar in bars:
            bar.set(**st.STYLES[subset].bar)
    return shown


@st.styled
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
        interval) and ``chance``. A domain called "Mean" is set apart.
    published : DataFrame, optional
        ``domain``, ``subset``, ``value``: marks over our bars, for the domains that both have.
    published_label, chance_label : str
        Words for the legend. Published values, raw pixels and class means have marks of their
        own, by their label.
    """
    st.require(table, "domain", "subset", "value")
    domains = st.unique(table["domain"])
    places = _places(domains)
    theirs = st.reference_style(published_label)
    figure, (axis,) = st.panels([""], max(3.2, 1.0 + 0.7 * len(domains)), 3.0)
    at = table.assign(place=table["domain"].map(places))
    shown = _bars_by_subset(axis, at, x="place", y="value", native_scale=True)
    has_chance = "chance" in table and table["chance"].notna().any()
    for i, subset in enumerate(shown):
        side = 0.4 * (i - 0.5) if len(shown) > 1 else 0.0
        ours = at[at["subset"] == subset]
        x = ours["place"] + side
        lengths = st.reach(ours)
        if lengths is not None:
            bars = axis.errorbar(x, ours["value"], lengths, ls="", ecolor=st.INK, elinewidth=1.1)
            for part in bars[2]:
                part.set_path_effects(st.HALO)
        if has_chance:
            half = 0.8 / len(shown) / 2 - 0.01
            options = {"color": st.INK, "lw": 1.3, "zorder": 5, "path_effects": st.HALO}
            axis.hlines(ours["chance"], x - half, x + half, **options)
        if published is not None:
            st.require(published, "domain", "subset", "value")
            marks = published[published["subset"] == subset].set_index("domain")["value"]
            marks = marks[marks.index.isin(domains)]
            x = marks.index.map(places).to_numpy(float) + side
            axis.plot(x, marks, **theirs.point, ms=5, zorder=6, clip_on=False)
    axis.set_xticks(list(places.values()), [st.wrapped(st.pretty(domain), 9) for domain in domains])
    axis.tick_params(axis="x", length=0, labelsize=8)
    axis.set(xlabel="", ylabel=ylabel)
    axis.set_ylim(bottom=min(0, float(table["value"].min()) * 1.1))
    axis.grid(axis="y")
    axis.margins(x=0.015)
    more: dict[str, Any] = {}
    if has_chance:
        more[chance_label] = Line2D([], [], color=st.INK, lw=1.3)
    if published is not None:
        more[published_label] = st.mark(theirs, ms=5)
    st.subset_legend(figure, more)
    rows = table[table["domain"] == domains[-1]]
    last = ", ".join(f"{r.subset.upper()} {r.value:.3g}" for r in rows.itertuples())
    beside = f", beside {st.listed(more)}" if more else ""
    return st.described(
        figure,
        f"Bars of {ylabel}, IP and OOP, in {st.listed(domains)}{beside}. {domains[-1]}: {last}.",
    )


def _places(domains: list[str]) -> dict[str, float]:
    """Where domains stand; a mean is set apart."""
    return {d: i + 0.35 * (d.lower() in ("mean", "average")) for i, d in enumerate(domains)}


def _stacked(
    axis: Axes, places: Any, wide: pd.DataFrame, styles: dict[str, st.Style], least: float
) -> None:
    """Draw rows as bars from left to right, with the numbers that are at least `least`.

    By hand: seaborn's histplot stacks counts, but neither sets a bar apart nor takes hatches.
    """
    left = np.zeros(len(wide))
    for part, values in wide.items():
        look = styles[str(part)].bar | {"edgecolor": "white", "linewidth": 0.8}
        bars = axis.barh(places, values, height=0.72, left=left, label=st.plain(part), **look)
        texts = [f"{value:,.0f}" if value >= least else "" for value in values]
        for text in axis.bar_label(bars, texts, label_type="center", fontsize=8):
            text.set_path_effects(st.HALO)
        left += values.to_numpy(float)
    st.bare(axis)


@st.styled
def share_bars(table: pd.DataFrame, xlabel: str = "share of images (%)") -> Figure:
    """Shares that add up, stacked from left to right, a bar a domain.

    `table` (DataFrame): ``domain``, ``part`` and ``value`` in percent; parts are stacked in their
    order.
    """
    st.require(table, "domain", "part", "value")
    domains, parts = st.unique(table["domain"]), st.unique(table["part"])
    wide = table.pivot(index="domain", columns="part", values="value")
    wide = wide.reindex(domains)[parts].fillna(0)
    figure, (axis,) = st.panels([""], 7.2, 0.9 + 0.3 * len(domains))
    places = list(_places(domains).values())
    hatches = ("", "////", "....", "\\\\\\\\", "xxx")
    styles = st.looks(parts)
    for i, part in enumerate(parts):
        if not styles[part].hatch and part.lower() not in st.STYLES:
            styles[part] = styles[part]._replace(hatch=hatches[i % 5])
    _stacked(axis, places, wide, styles, 6)
    axis.set_yticks(places, list(map(st.pretty, domains)))
    axis.invert_yaxis()
    axis.set(xlim=(0, max(100.0, float(wide.sum(axis=1).max()))), xlabel=xlabel)
    axis.margins(y=0.02)
    st.legend(figure, {part: Patch(**styles[part].bar) for part in parts})
    last = ", ".join(f"{part} {wide[part].iloc[-1]:.0f}" for part in parts)
    return st.described(
        figure, f"Stacked bars of {xlabel}: {st.listed(domains)}. {domains[-1]}: {last}."
    )


@st.styled
def screening_levels(table: pd.DataFrame) -> Figure:
    """Concepts of each corpus by what its captions hold of their names, a bar a corpus.

    `table` (DataFrame): ``scale``, ``level`` and ``concepts`` (a count). The first level is drawn
    as IP, the others as OOP, paler from one to the next.
    """
    st.require(table, "scale", "level", "concepts")
    scales, levels = st.unique(table["scale"]), st.unique(table["level"])
    wide = table.pivot(index="scale", columns="level", values="concepts")
    wide = wide.reindex(scales)[levels].fillna(0)
    figure, (axis,) = st.panels([""], 7.2, 0.9 + 0.42 * len(scales))
    paler = [*st.PALER_OOP, *[st.PALER_OOP[-1]] * len(levels)]
    styles = dict(zip(levels, [st.STYLES["ip"], *paler], strict=False))
    _stacked(axis, range(len(scales)), wide, styles, 1)
    axis.set_yticks(range(len(scales)), list(map(st.plain, scales)))
    axis.invert_yaxis()
    axis.set_xlabel("concepts")
    axis.margins(x=0.01)
    st.legend(figure, {level: Patch(**styles[level].bar) for level in levels})
    told = "; ".join(
        f"{scale}: " + ", ".join(f"{level} {wide.loc[scale, level]:.0f}" for level in levels)
        for scale in scales
    )
    return st.described(figure, f"Stacked bars of concepts a corpus. {told}.")


@st.styled
def gap_intervals(table: pd.DataFrame, xlabel: str) -> Figure:
    """Differences with their intervals, a row each, about a line at zero.

    A single row that lies far outside the others is drawn at the edge with its value, so that
    the others can be told apart.

    `table` (DataFrame): ``label``, ``value``, ``low``, ``high``; optionally ``published`` (a
    diamond) and ``group``. Groups that share a label stand in one row, one above another.
    """
    st.require(table, "label", "value", "low", "high")
    own = table["group"] if "group" in table else pd.Series("", table.index)
    groups, labels = st.unique(own), st.unique(table["label"])
    step = 0.26 if len(labels) < len(table) else 0.0
    middles = table["label"].map(labels.index).to_numpy()
    places = middles + step * (own.map(groups.index).to_numpy() - (len(groups) - 1) / 2)
    height = 0.36 + 0.14 * (len(groups) - 1) * (step > 0)
    figure, (axis,) = st.panels([""], 6.4, 0.85 + height * len(labels))
    axis.axvline(0, color=st.INK, lw=0.9, zorder=1)
    styles, handles = st.looks(groups), {}
    for group in groups:
        mine = (own == group).to_numpy()
        style, rows = styles[group], table[mine]
        look = style.point | {"mec": style.colour, "ms": 5.5 if step else 7, "elinewidth": 1.8}
        axis.errorbar(rows["value"], places[mine], xerr=st.reach(rows), **look)
        handles[group] = st.mark(style, mec=style.colour)
    if "published" in table and table["published"].notna().any():
        axis.plot(table["published"], places, **st.STYLES["published"].point, ms=5, zorder=5)
        handles["published, LAION-Beyond"] = st.mark(st.STYLES["published"])
    _within(axis, table, places)
    axis.set_yticks(range(len(labels)), list(map(st.plain, labels)))
    axis.set(xlabel=xlabel, ylim=(len(labels) - 0.4, -0.6))
    st.bare(axis)
    axis.grid(axis="x")
    if len(handles) > 1 or any(groups):
        st.legend(figure, handles)
    shown = zip(table["label"], table[["value", "low", "high"]].to_numpy(float), strict=True)
    told = st.listed((f"{label} {interval_text(own, '.3g')}" for label, own in shown), 12)
    return st.described(figure, f"{xlabel}, with intervals: {told}.")


def _within(axis: Axes, table: pd.DataFrame, places: np.ndarray) -> None:
    """Limit the axis to all rows but one, where that one would stretch it threefold."""
    ends = table[["low", "high"]].to_numpy(float)
    if len(table) < 4 or np.isnan(ends).any():
        return
    rest = [np.append(np.delete(ends, i, axis=0), 0) for i in range(len(ends))]
    spans = np.array([np.ptp(one) for one in rest])
    i = int(spans.argmin())
    if np.ptp(np.append(ends, 0)) < 3 * spans[i]:
        return
    low, high = rest[i].min() - 0.1 * spans[i], rest[i].max() + 0.1 * spans[i]
    axis.set_xlim(low, high)
    row = table.iloc[i]
    if low <= row["value"] <= high:
        return
    left = row["value"] < low
    text = interval_text(row[["value", "low", "high"]])
    edge, shift, side = (low, 4, "left") if left else (high, -4, "right")
    axis.annotate(
        f"← {text}" if left else f"{text} →", (edge, places[i]), (shift, 0),
        textcoords="offset points", ha=side, va="center", fontsize=8, color=st.dark(st.INK),
    )  # fmt: skip


@st.styled
def reliability_diagrams(table: pd.DataFrame, columns: int = 4) -> Figure:
    """Accuracy against confidence, a panel a method, with the share of images in each bin.

    `table` (DataFrame): ``panel`` and the columns of `metrics.reliability`: ``low``, ``high``,
    ``confidence``, ``accuracy`` (in 0..1) and ``images``; optionally ``ece``, in percent.
    """
    st.require(table, "panel", "low", "high", "confidence", "accuracy", "images")
    names = st.unique(table["panel"])
    rows = -(-len(names) // columns)
    width, height = max(2.6, 1.8 * min(columns, len(names))), 2.0 * rows + 0.5
    figure, axes = st.panels(names, width, height, columns, sharex=True, sharey=True)
    dot, gap, grey = st.Style(st.FREE_COLOURS[0]), st.FREE_COLOURS[2], st.RULE
    for axis, name in zip(axes, names, strict=True):
        own = table[table["panel"] == name]
        left, right = 100 * own["low"], 100 * own["high"]
        share = 100 * own["images"] / own["images"].sum()
        axis.bar(left, share, right - left, align="edge", color=grey, edgecolor="white", lw=0.6)
        axis.plot([0, 100], [0, 100], color=st.INK, lw=0.9, ls=(0, (4, 2)))
        filled = own[own["images"] > 0]
        x, y = 100 * filled["confidence"], 100 * filled["accuracy"]
        axis.vlines(x, x, y, color=gap, lw=1.6)
        size = 6 + 60 * filled["images"] / own["images"].max()
        axis.scatter(x, y, size, dot.colour, edgecolors="white", lw=0.6, zorder=4, clip_on=False)
        axis.set(xlim=(0, 100), ylim=(0, 100), xticks=[0, 50, 100], yticks=[0, 50, 100])
        error = f"\nECE {own['ece'].iloc[0]:.1f} %" if "ece" in own else ""
        axis.set_title(st.wrapped(st.plain(name), 22) + error, fontsize=8.5)
    st.outer_labels(figure, "confidence (%)", "accuracy (%)")
    handles = {"a bin of confidence": st.mark(dot, ms=6), "share of images": Patch(facecolor=grey)}
    st.legend(figure, handles | {"its gap": Line2D([], [], color=gap, lw=1.6)})
    errors = table.drop_duplicates("panel")["ece"] if "ece" in table else [None] * len(names)
    told = [n if e is None else f"{n} (ECE {e:.1f} %)" for n, e in zip(names, errors, strict=True)]
    return st.described(figure, f"Accuracy against confidence, a panel each: {st.listed(told)}.")


@st.styled
def two_by_two(cells: pd.DataFrame, effects: pd.DataFrame, margin: float = 5.0) -> Figure:
    """Four accuracies as shaded tiles, and beside them the effects of rows and of columns.

    Parameters
    ----------
    cells : DataFrame
        ``row``, ``column``, ``value``, ``low``, ``high``, in per cent.
    effects : DataFrame
        ``label``, ``value``, ``low``, ``high``, in points.
    margin : float
        Half of the band about 0 within which an effect counts as none.
    """
    st.require(cells, "row", "column", "value", "low", "high")
    st.require(effects, "label", "value", "low", "high")
    rows, columns = st.unique(cells["row"]), st.unique(cells["column"])
    figure, (tiles, points) = st.panels(
        ["zero-shot accuracy (%)", "effects (points)"], 7.2, 2.5, width_ratios=[1.25, 1]
    )
    shades = sns.light_palette(st.BLUE, as_cmap=True)
    wide = cells.pivot(index="row", columns="column", values="value").loc[rows, columns]
    tiles.imshow(wide, cmap=shades, vmin=0, vmax=100, aspect="auto")
    for cell in cells.itertuples():
        at = columns.index(cell.column), rows.index(cell.row)
        colour = "white" if cell.value > 55 else st.INK
        options = {"ha": "center", "va": "center", "color": colour}
        tiles.text(at[0], at[1] - 0.08, f"{cell.value:.1f}", fontsize=17, weight="bold", **options)
        tiles.text(at[0], at[1] + 0.24, f"[{cell.low:.1f}, {cell.high:.1f}]", fontsize=8, **options)
    tiles.set_xticks(range(len(columns)), [st.wrapped(c, 18) for c in columns])
    tiles.set_yticks(range(len(rows)), [st.wrapped(r, 16) for r in rows])
    tiles.tick_params(length=0)
    tiles.spines[:].set_visible(False)
    tiles.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    tiles.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    tiles.grid(which="minor", color="white", lw=3)
    tiles.tick_params(which="minor", length=0)
    _about_zero(points, effects, margin)
    told = "; ".join(f"{c.row}, {c.column}: {c.value:.1f}" for c in cells.itertuples())
    last = "; ".join(f"{e.label}: {e.value:+.1f}" for e in effects.itertuples())
    return st.described(figure, f"Tiles of zero-shot accuracy. {told}. Effects. {last}.")


def _about_zero(axis: Axes, rows: pd.DataFrame, margin: float) -> None:
    """Draw values with their intervals about zero, the margin as a band."""
    places = np.arange(len(rows))
    axis.axvspan(-margin, margin, color=st.RULE, lw=0, zorder=0)
    axis.axvline(0, color=st.GREY, lw=0.8)
    axis.errorbar(rows["value"], places, xerr=st.reach(rows), **_DOT)
    for place, row in zip(places, rows.itertuples(), strict=True):
        told = interval_text((row.value, row.low, row.high), "+.1f")
        options = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5}
        axis.annotate(told, (row.value, place), (0, 7), **options)
    axis.set_yticks(places, [st.wrapped(label, 22) for label in rows["label"]])
    axis.set_ylim(len(rows) - 0.4, -0.7)
    axis.margins(x=0.3)
    st.bare(axis)


@st.styled
def arm_intervals(table: pd.DataFrame) -> Figure:
    """Means of the same concepts in each arm of an experiment, a panel a measure.

    `table` (DataFrame): ``measure``, ``arm``, ``value``, ``low``, ``high``; optionally ``chance``.
    Arms stand from left to right in their order.
    """
    st.require(table, "measure", "arm", "value", "low", "high")
    measures, arms = st.unique(table["measure"]), st.unique(table["arm"])
    figure, axes = st.panels(measures, 7.2, 2.5, sharey=True)
    for axis, measure in zip(axes, measures, strict=True):
        rows = table[table["measure"] == measure]
        places = [arms.index(arm) for arm in rows["arm"]]
        axis.plot(places, rows["value"], color=st.PALE, lw=1, zorder=1)
        axis.errorbar(places, rows["value"], st.reach(rows), **_DOT)
        for place, value in zip(places, rows["value"], strict=True):
            options = {"textcoords": "offset points", "fontsize": 8}
            axis.annotate(f"{value:.1f}", (place, value), (5, 4), **options)
        axis.set_xticks(range(len(arms)), [st.wrapped(arm, 9) for arm in arms])
        axis.set_xlim(-0.4, len(arms) - 0.35)
        axis.tick_params(axis="x", length=0, labelsize=7.5)
        axis.grid(axis="y")
    axes[0].set(ylabel="mean over concepts (%)", ylim=(0, 1.06 * float(table["high"].max())))
    told = "; ".join(
        f"{measure}: " + ", ".join(f"{r.arm} {r.value:.1f}" for r in rows.itertuples())
        for measure, rows in table.groupby("measure", sort=False)
    )
    return st.described(figure, f"Points with intervals. {told}.")
