"""Lines: over shots, margins, ranks, coverage, corpora and swept parameters; the protocol.

Lines are drawn one by one: seaborn's `lineplot` has one face for all markers, and here hollow ones
say something, and intervals are given, not estimated from the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.optimize import isotonic_regression

from lbutils.figures import style as st

_NAMED_LINES = 60  # of a sweep, that a legend names
_DASHES: tuple[tuple[float, ...], ...] = ((), st.DASHED, st.DOTTED, (5, 1.5, 1.2, 1.5), (8, 2))


@st.styled
def margin_curves(table: pd.DataFrame) -> Figure:
    """Cumulative distribution of margins, a curve each for IP and OOP.

    Where a curve crosses zero stands the share of images that lie nearer to another class.

    `table` (DataFrame): ``subset`` ("ip" or "oop") and ``margin``, one row an image; optionally
    ``panel``.
    """
    st.require(table, "subset", "margin")
    names = st.unique(table["panel"]) if "panel" in table else [""]
    width = max(4.4, 3.3 * len(names))
    figure, axes = st.panels(names, width, 2.9, sharey=True)
    handles, told = {}, []
    for axis, name in zip(axes, names, strict=True):
        here = table[table["panel"] == name] if name else table
        axis.axvline(0, color=st.INK, lw=0.9, zorder=1)
        for subset, words in st.SUBSETS.items():
            margins = here.loc[here["subset"] == subset, "margin"].dropna()
            look = {key: st.STYLES[subset].line[key] for key in ("color", "ls")} | {"lw": 1.9}
            handles[words] = Line2D([], [], **look)
            if len(margins):
                sns.ecdfplot(x=margins, stat="percent", ax=axis, **look)
                told.append(f"{name} {subset.upper()} {100 * (margins <= 0).mean():.0f} %".strip())
        axis.set(xlabel="", ylabel="", ylim=(0, 100))
        axis.grid(axis="y")
    xlabel = "separation margin (cosine)"
    st.outer_labels(figure, xlabel, "images up to this margin (%)")
    st.legend(figure, handles)
    return st.described(
        figure, f"Cumulative curves of the {xlabel}; at zero or below: {st.listed(told)}."
    )


@st.styled
def frequency_curve(table: pd.DataFrame) -> Figure:
    """Captions that name each concept, by rank, a curve a corpus, both axes logarithmic.

    `table` (DataFrame): ``scale`` and ``captions``, a row per concept and corpus. Concepts that no
    caption names have no place on the curve; the legend has their number.
    """
    st.require(table, "scale", "captions")
    figure, (axis,) = st.panels([""], 7.2, 2.9)
    handles = {}
    for i, (scale, style) in enumerate(st.looks(st.unique(table["scale"])).items()):
        counts = table.loc[table["scale"] == scale, "captions"].to_numpy()
        seen = np.sort(counts[counts > 0])[::-1]
        label = f"{scale} ({len(counts) - len(seen):,} in no caption)"
        look = style._replace(dashes=_DASHES[i % 5]).line
        ranks = np.arange(1, len(seen) + 1)
        (handles[label],) = axis.plot(
            ranks, seen, **look, markevery=0.08, ms=5, lw=1.3, label=st.plain(label)
        )
    axis.set(xscale="log", yscale="log", xlabel="rank of the name", ylabel="captions that hold it")
    for ruler in (axis.xaxis, axis.yaxis):
        ruler.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        ruler.set_major_formatter("{x:,.0f}")
        ruler.set_minor_formatter(NullFormatter())
    axis.grid(axis="y")
    st.legend(figure, handles, 3)
    return st.described(figure, f"Captions that hold each name, by rank: {st.listed(handles)}.")


@st.styled
def risk_curves(table: pd.DataFrame) -> Figure:
    """Error among the answers given over the share of answers given, a line a method.

    `table` (DataFrame): ``method``, ``coverage`` and ``risk`` in 0..1, as from
    `match.risk_coverage`.
    """
    st.require(table, "method", "coverage", "risk")
    figure, (axis,) = st.panels([""], 5.2, 3.2)
    methods = st.unique(table["method"])
    told = []
    for i, (method, style) in enumerate(st.looks(methods).items()):
        rows = table[table["method"] == method].sort_values("coverage")
        look = style._replace(dashes=_DASHES[i % 5]).line
        x, y = 100 * rows["coverage"], 100 * rows["risk"]
        axis.plot(x, y, **look, lw=1.7, markevery=max(1, len(rows) // 8), label=st.plain(method))
        told.append(f"{method} {y.iloc[-1]:.0f} % at {x.iloc[-1]:.0f} %")
    axis.set(xlim=(0, 100), ylim=(0, 100))
    axis.set(xlabel="images that get a name (%)", ylabel="named images that are named wrong (%)")
    axis.grid()
    axis.legend(loc="best")
    return st.described(figure, f"Share of wrong names over the images named: {st.listed(told)}.")


@st.styled
def sweep_lines(table: pd.DataFrame) -> Figure:
    """One metric over a swept parameter, a line a method, with its range over runs as bars.

    `table` (DataFrame): as `lbutils.run.summary` returns it: first what the lines are,
    then what is swept, then ``value``, ``low`` and ``high``, and ``metric``. Numbers are spaced as
    they are, anything else evenly.
    """
    st.require(table, "value", "low", "high", "metric")
    by, x = table.columns[:2]
    numeric = pd.api.types.is_numeric_dtype(table[x])
    ticks = sorted(table[x].dropna().unique()) if numeric else st.unique(table[x])
    lines = st.unique(table[by].astype(str))
    named = len(lines) <= _NAMED_LINES
    figure, (axis,) = st.panels([""], 6.4, max(3.2, 0.24 * len(lines)) if named else 4.8)
    for line, style in st.looks(lines).items():
        rows = table[table[by].astype(str) == line].dropna(subset=["value"])
        at = rows[x].to_numpy(float) if numeric else [ticks.index(value) for value in rows[x]]
        look = style.line | {"lw": 1.4, "elinewidth": 0.7}
        axis.errorbar(at, rows["value"], st.reach(rows), **look, label=st.plain(line))
    if not numeric:
        names = [st.wrapped(tick, 16) for tick in ticks]
        axis.set_xticks(range(len(ticks)), names, rotation=30 if len(ticks) > 4 else 0)
    elif len(ticks) <= 12:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.grid(axis="y")
    metric, swept = table["metric"].iloc[0], str(x).removeprefix("set_")
    axis.set(xlabel=st.plain(swept), ylabel=st.plain(metric))
    if named:
        figure.legend(loc="outside right upper")
    else:
        axis.set_title(f"{len(lines)} lines, too many to name")
    return st.described(figure, f"{metric} over {swept}, a line each: {st.listed(lines)}.")


@st.styled
def lines_in_panels(
    table: pd.DataFrame, xlabel: str = "", ylabel: str = "", levels: pd.DataFrame | None = None
) -> Figure:
    """A line a group, a panel a source, over corpora or sizes (Figures 4 and 6).

    Parameters
    ----------
    table : DataFrame
        ``panel``, ``line``, ``x``, ``value``; optionally ``low`` and ``high``, and ``chance``,
        drawn dotted in the colour of its line. Where ``x`` holds numbers its axis is
        logarithmic, and ``point`` may have a text for a place; panels whose places have texts
        show dots without lines, as these are things of different kinds. Other values of ``x``
        stand evenly. Lines whose name ends in ``", names learned"`` are dotted, with hollow
        marks, and have the colour of the line without that.
    levels : DataFrame, optional
        ``line``, ``value``, ``low``, ``high``: level lines with their bands, in every panel.
    """
    st.require(table, "panel", "line", "x", "value")
    names, lines = st.unique(table["panel"]), st.unique(table["line"])
    styles = st.looks(lines)
    told = table["point"].notna().any() if "point" in table else False
    width = 6.4 if len(names) == 1 else 7.6
    figure, axes = st.panels(names, width, 4.2 if told else 3.4, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        _panel_lines(axis, table[table["panel"] == name], styles)
        axis.set_title(st.plain(name) if len(names) > 1 else "", pad=66 if told else None)
        level_handles = _levels(axis, levels)
    axes[0].set_ylim(bottom=0)
    st.outer_labels(figure, xlabel, ylabel)
    handles = {line: Line2D([], [], **styles[line].line, ms=5, lw=1.5) for line in lines}
    if "chance" in table and table["chance"].notna().any():
        handles["chance"] = Line2D([], [], color=st.FAINT, ls=(0, st.DOTTED), lw=1.2)
    st.legend(figure, handles | level_handles, 3)
    of = f" ({st.listed(names)})" if len(names) > 1 else ""
    said = f"{ylabel} over {xlabel}{of}, a line each: {st.listed(lines)}."
    if levels is not None:
        flat = (f"{row.line} {row.value:.1f}" for row in levels.itertuples())
        said += f" Level lines: {st.listed(flat)}."
    return st.described(figure, said)


def _levels(axis: Axes, levels: pd.DataFrame | None) -> dict[str, Line2D]:
    """Draw level lines with their bands; what a legend shows of them."""
    handles = {}
    for row in [] if levels is None else levels.to_dict("records"):
        (style,) = st.looks([row["line"]]).values()
        look = {"color": style.colour, "ls": (0, style.dashes or st.DASHED), "lw": 1.2}
        axis.axhspan(row["low"], row["high"], color=style.colour, alpha=0.12, lw=0, zorder=0)
        axis.axhline(row["value"], **look, zorder=1)
        handles[row["line"]] = Line2D([], [], **look)
    return handles


@st.styled
def rise_over_dose(table: pd.DataFrame, band: Sequence[float], label: str) -> Figure:
    """What each dose brings, beside a band for what another means brings.

    Parameters
    ----------
    table : DataFrame
        ``x`` (the dose, in order), ``value``, ``low``, ``high``, in points above dose 0.
    band : sequence of float
        Mean, low and high of the other means.
    label : str
        What the band is.
    """
    st.require(table, "x", "value", "low", "high")
    figure, (axis,) = st.panels([""], 6.4, 3.0)
    mean, low, high = band[:3]
    look = st.STYLES["names (ours)"]
    axis.axhspan(low, high, color=st.RULE, lw=0)
    axis.axhline(mean, color=look.colour, lw=1, ls=(0, st.DASHED))
    axis.axhline(0, color=st.GREY, lw=0.8)
    places = range(len(table))
    style = st.STYLES["zero-shot"]
    axis.errorbar(places, table["value"], st.reach(table), **style.point, ms=6, elinewidth=1.3)
    axis.set_xticks(list(places), list(map(str, table["x"])))
    xlabel, ylabel = "drawings with the name in pre-training", "rise over dose 0 (points)"
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.margins(x=0.15)
    axis.grid(axis="y")
    handles = {"names as they are": st.mark(style, ms=6)}
    handles[label] = Line2D([], [], color=look.colour, lw=1, ls=(0, st.DASHED))
    st.legend(figure, handles)
    told = ", ".join(f"{row.x}: {row.value:+.1f}" for row in table.itertuples())
    return st.described(figure, f"{ylabel} by {xlabel}. {told}; {label}: {mean:+.1f}.")


def _panel_lines(axis: Axes, here: pd.DataFrame, styles: dict[str, st.Style]) -> None:
    if pd.api.types.is_numeric_dtype(here["x"].infer_objects()):
        here = here.assign(at=here["x"].astype(float))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(here["at"].min() / 1.6, here["at"].max() * 1.6)
    else:
        ticks, lines = st.unique(here["x"]), st.unique(here["line"])
        axis.set_xlim(-0.3, len(ticks) - 0.7)
        # A little apart, so that intervals do not hide each other.
        beside = here["line"].map(lines.index) - (len(lines) - 1) / 2
        here = here.assign(at=here["x"].map(ticks.index) + 0.025 * beside)
        axis.set_xticks(range(len(ticks)), [st.wrapped(tick, 14) for tick in ticks])
    places = _points(here)
    for line, rows in here.groupby("line", sort=False):
        look = styles[str(line)].point if places else styles[str(line)].line
        axis.errorbar(rows["at"], rows["value"], st.reach(rows), **look, ms=5, lw=1.5, elinewidth=1)
        if "chance" in rows and rows["chance"].notna().any():
            axis.plot(rows["at"], rows["chance"], color=look["color"], ls=(0, st.DOTTED), lw=1.2)
    for at, text in places:
        axis.annotate(
            st.plain(text), (at, 1.01), xycoords=("data", "axes fraction"), rotation=40,
            rotation_mode="anchor", fontsize=7.5, color=st.FAINT, ha="left", va="bottom",
        )  # fmt: skip
        axis.axvline(at, color=st.RULE, lw=0.7, zorder=0)
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


@st.styled
def methods_over_shots(
    table: pd.DataFrame, highlight: Sequence[str], published: pd.DataFrame | None = None
) -> Figure:
    """Accuracy against shots for many methods: at most eight strong and named, the others grey.

    Parameters
    ----------
    table : DataFrame
        ``method``, ``shots``, ``value`` in percent; optionally ``low`` and ``high``, drawn for
        the named methods. Rows of 0 shots are level lines.
    highlight : sequence of str
        Methods that are named, the first drawn strongest; of more than eight the first. All are
        named in a panel of at most eight.
    published : DataFrame, optional
        The same columns for a panel of their own, as in the paper's Figure 5; capitals make no
        difference to the look of a method.
    """
    tables = [table] if published is None else [table, published]
    for one in tables:
        st.require(one, "method", "shots", "value")
    strong = {method.lower(): method for method in list(highlight)[: st.MOST_NAMED]}
    names = ("ours", "published, LAION-Beyond") if published is not None else ("",)
    figure, axes = st.panels(names, 4.8 if published is None else 7.6, 3.6, sharey=True)
    ends, told = [], []
    for axis, one, title in zip(axes, tables, names, strict=True):
        methods = st.unique(one["method"])
        named = [m for m in methods if m.lower() in strong or len(methods) <= st.MOST_NAMED]
        styles = st.looks(sorted(named, key=lambda m: [*strong, m.lower()].index(m.lower())))
        last = {m: _over_shots(axis, own, styles.get(m), m.lower() == next(iter(strong), None))
                for m, own in one.groupby("method", sort=False)}  # fmt: skip
        ends.append({method: (last[method], style) for method, style in styles.items()})
        _shot_axis(axis, sorted(one.loc[one["shots"] > 0, "shots"].unique()))
        more = f"grey: {len(methods) - len(named)} more methods" * (len(methods) > len(named))
        axis.set_xlabel(more, fontsize=8, color=st.FAINT, loc="left")
        told.append(f"{title} " + st.listed(f"{m} {v:.1f}" for m, (v, _) in ends[-1].items()))
    low, high = axes[0].get_ylim()
    for axis, own in zip(axes, ends, strict=True):
        _named_ends(axis, own, 0.055 * (high - low))
    ylabel = "accuracy on OOP names (%)"
    st.outer_labels(figure, "shots (images per class)", ylabel)
    return st.described(figure, f"{ylabel} over shots; with most shots: {'; '.join(told)}.")


def _shot_axis(axis: Axes, ticks: Sequence[float]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(int(tick)) for tick in ticks])
    axis.set_xlim(min(ticks) / 1.15, max(ticks) * 1.1)
    axis.minorticks_off()
    axis.yaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axis.grid(axis="y")
    axis.tick_params(labelleft=True)


def _over_shots(axis: Axes, own: pd.DataFrame, style: st.Style | None, first: bool) -> float:
    """Draw one method over its shots, grey without a style; the height at which its line ends."""
    own = own.sort_values("shots")
    tuned = own[own["shots"] > 0]
    colour = style.colour if style else st.PALE
    height = float(own["value"].iloc[-1])
    if not len(tuned):
        axis.axhline(height, color=colour, lw=1.3 if style else 0.9, ls=(0, st.DASHED), zorder=1)
    elif style is None:
        axis.plot(tuned["shots"], tuned["value"], color=colour, lw=0.9, zorder=2)
    else:
        if "low" in tuned:
            band = tuned["shots"], tuned["low"], tuned["high"]
            axis.fill_between(*band, color=colour, alpha=0.15, lw=0)
        size = {"lw": 2.4, "ms": 7, "zorder": 5} if first else {"lw": 1.7, "ms": 5.5, "zorder": 4}
        axis.plot(tuned["shots"], tuned["value"], **style.line, **size, clip_on=False)
    return height


def _named_ends(axis: Axes, ends: dict[str, tuple[float, st.Style]], gap: float) -> None:
    """Names at the right of the panel, apart from one another and tied to their lines."""
    low, high = axis.get_ylim()
    names = sorted(ends, key=lambda name: ends[name][0])
    heights = [ends[name][0] for name in names]
    for name, height, place in zip(names, heights, _apart(heights, gap, low, high), strict=True):
        colour = ends[name][1].colour
        line = [1.005, 1.035, 1.05], [height, place, place]
        axis.plot(*line, transform=axis.get_yaxis_transform(), color=colour, lw=0.7, clip_on=False)
        look = {"fontsize": 8, "fontweight": "bold", "color": st.dark(colour)}
        axis.annotate(st.plain(name), (1.06, place), xycoords=("axes fraction", "data"),
                      va="center", annotation_clip=False, **look)  # fmt: skip
    axis.set_ylim(low, high)


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Ascending heights, moved as little as possible to lie `gap` apart between two bounds."""
    steps = gap * np.arange(len(heights))
    if not len(steps):
        return steps
    return np.clip(isotonic_regression(heights - steps).x, low, high - steps[-1]) + steps


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


@st.styled
def protocol_overview(
    table: pd.DataFrame, curves: pd.DataFrame | None = None, highlight: Sequence[str] = ()
) -> Figure:
    """Methods with intervals, a panel a measure; beside them the curves of some of them.

    Parameters
    ----------
    table : DataFrame
        ``method``, ``measure``, ``value``, ``low``, ``high`` in percent, as
        `joint.protocol_table` gives. With ``p_holm`` a method is hollow where it is not told
        apart from the reference, whose value is a line. Rows are sorted by the first measure.
    curves : DataFrame, optional
        ``method``, ``ip``, ``oop`` in percent and ``own`` (the point of the method's own bias),
        as `joint.curve_table` gives.
    highlight : sequence of str
        Methods with colours and markers of their own, eight at most; others are grey.
    """
    st.require(table, "method", "measure", "value", "low", "high")
    if curves is not None:
        st.require(curves, "method", "ip", "oop", "own")
    measures = st.unique(table["measure"])
    first = table[table["measure"] == measures[0]].sort_values("value")
    methods = list(first["method"])
    alone = list(first.loc[first["p_holm"].isna(), "method"]) if "p_holm" in first else []
    of = alone[0] if len(alone) == 1 else None
    styles = st.looks(list(highlight)[: st.MOST_NAMED])
    names = [MEASURE_TITLES.get(m, m) for m in measures]
    widths = [1.0] * len(measures)
    if curves is not None:
        names, widths = [*names, "curve: with a bias on OOP names; mark: without"], [*widths, 2.1]
    height = max(3.3, 0.75 + 0.2 * len(methods))
    figure, axes = st.panels(names, 7.2, height, width_ratios=widths)
    for axis in axes:
        axis.set_title(axis.get_title(loc="left"), fontsize=8.5)
    for axis, measure in zip(axes, measures, strict=False):
        rows = table[table["measure"] == measure].set_index("method")
        _dots(axis, rows, methods, styles, of)
        axis.tick_params(labelleft=axis is axes[0])
    for text, method in zip(axes[0].get_yticklabels(), methods, strict=True):
        text.set(fontsize=8, fontweight="bold" if method in styles else "normal")
    if of is not None:
        note = f"hollow: not told apart from {of} (Holm, 5 %)"
        figure.text(0.01, -0.01, st.plain(note), fontsize=7.5, color=st.FAINT, va="top")
    if curves is not None:
        _curves(axes[-1], curves, styles)
    told = st.listed(f"{r.method} {r.value:.1f}" for r in first[::-1].itertuples())
    return st.described(figure, f"Methods by {names[0]}, best first: {told}.")


def _dots(
    axis: Axes,
    rows: pd.DataFrame,
    methods: Sequence[str],
    styles: dict[str, st.Style],
    reference: str | None,
) -> None:
    """One measure of each method as a dot with its interval, upwards in the order given."""
    if reference is not None:
        axis.axvline(rows.loc[reference, "value"], color=st.INK, lw=0.8, ls=(0, (2, 2)), zorder=0)
    for height, method in enumerate(methods):
        row, strong = rows.loc[[method]], method in styles
        hollow = bool((row.get("p_holm", pd.Series([0])) >= 0.05).any())
        style = styles.get(method, st.Style(st.FAINT))._replace(hollow=hollow)
        look = style.point | {"mec": style.colour, "mew": 1.2, "ms": 6 if strong else 4}
        width = 1.8 if strong else 1.0
        axis.errorbar(row["value"], height, xerr=st.reach(row), **look, elinewidth=width)
    axis.set_yticks(range(len(methods)), list(map(st.plain, methods)))
    axis.set_ylim(-0.6, len(methods) - 0.4)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.grid(axis="x")
    st.bare(axis)


def _curves(axis: Axes, curves: pd.DataFrame, styles: dict[str, st.Style]) -> None:
    """OOP over IP accuracy as a bias runs, with the point that each method has by itself."""
    top = 10 * np.ceil(float(curves[["ip", "oop"]].max().max()) / 10 + 0.5)
    for level in np.arange(10, min(top, 110.0), 10):  # of equal harmonic mean
        edge = level * top / (2 * top - level)
        x = np.geomspace(edge, top, 200)
        axis.plot(x, level * x / (2 * x - level), color=st.RULE, lw=0.8, zorder=0)
        axis.text(top * 1.012, edge, f"H {level:.0f}", fontsize=7.5, color=st.FAINT, va="center")
    handles = []
    for i, method in enumerate(st.unique(curves["method"])):
        own = curves[curves["method"] == method]
        style = styles.get(method, st.Style(st.FAINT))._replace(dashes=_DASHES[i % 5])
        line, point = own[~own["own"].astype(bool)], own[own["own"].astype(bool)]
        axis.plot(line["ip"], line["oop"], **style.line | {"marker": ""}, lw=1.5)
        axis.plot(point["ip"], point["oop"], **style.point, ms=7.5, zorder=5)
        handles.append(Line2D([], [], **style.line, lw=1.5, ms=6, label=st.plain(method)))
    axis.set(xlim=(0, top), ylim=(0, top))
    axis.set_xlabel("IP accuracy, joint vocabulary (%)")
    axis.set_ylabel("OOP accuracy, joint vocabulary (%)")
    box = {"frameon": True, "framealpha": 0.92, "edgecolor": "none"}
    axis.legend(handles=handles, loc="upper right", fontsize=7.5, handlelength=3.2, **box)
