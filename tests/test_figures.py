"""Figures by what they draw: the data of their artists against the table that was given."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.collections import Collection, LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from PIL import Image

from lbutils import figures
from lbutils.figures import fonts, lines, style
from lbutils.rivals import RIVALS

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).with_name("figures.json")
DOMAINS = ["Animals", "Insects_Spiders", "Mean"]
PLANE = np.random.default_rng(0).normal(size=(400, 2))
pytestmark = pytest.mark.filterwarnings("error")


def frame(rows, columns):
    return pd.DataFrame(rows, columns=columns.split())


def words(axis_labels):
    return [text.get_text() for text in axis_labels]


def keys(figure):
    """Texts of the legends, with the colours of their marks."""
    found = {}
    for legend in figure.legends:
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            found[text.get_text()] = handle
    return found


def bars_of(axis):
    return [list(c) for c in axis.containers if isinstance(c, BarContainer)]


def colours_of(bars):
    return {to_hex(bar.get_facecolor()) for bar in bars}


def intervals(axis):
    """Every point with an interval as x, y, and the ends of the interval, in the order drawn."""
    found = []
    for container in axis.containers:
        if isinstance(container, ErrorbarContainer):
            dots, _, (reach,) = container.lines
            for xy, ends in zip(dots.get_xydata(), reach.get_segments(), strict=True):
                along = 0 if ends[0][1] == ends[1][1] else 1
                found.append((*xy, *sorted(ends[:, along])))
    return np.round(found, 6).tolist()


def line_of(axis, look):
    """Points of the one line with the colour and the marker of a style."""
    wanted = look.colour, look.marker
    (line,) = [x for x in axis.lines if (x.get_color(), x.get_marker()) == wanted]
    return line.get_xydata().tolist()


# fmt: off
BARS = frame([(d, s, v + 3 * i, v - 2, v + 9 + i, v / 5 + i) for i, d in enumerate(DOMAINS)
              for s, v in (("ip", 60), ("oop", 12))], "domain subset value low high chance")
SHOTS = frame([(m, k, 9 * i + k, 9 * i + k - 2, 9 * i + k + 1)
               for i, m in enumerate(["FSNL", "CoOp", "$a_"]) for k in (1, 4, 16)]
              + [("zero-shot", 0, 5, np.nan, np.nan)], "method shots value low high")
MANY = frame([(f"m{i}", k, 30 + i + k) for i in range(17) for k in (1, 4)], "method shots value")
GAPS = frame([("names", 3, 2, 7, "text", 5), ("$k$-means", 1, -5, 2, "images", np.nan)],
             "label value low high group published")
PROTOCOL = frame([(m, k, v + by, v + by - 2, v + by + 3, p)
                  for k, by in (("h_joint", 0), ("ausuc", -9))
                  for m, v, p in (("FSNL", 50, np.nan), ("CoOp", 40, 0.01), ("$a_", 45, 0.2))],
                 "method measure value low high p_holm")
BIASED = frame([(m, x, y + i, own) for i, m in enumerate(["FSNL", "$a_"])
                for x, y, own in ((0, 40, False), (30, 20, True), (50, 0, False))],
               "method ip oop own")
BINS = frame([(p, low, low + 0.5, low + 0.3, a * (low + 0.3), n, 12.3)
              for p, a in (("$a_", 0.5), ("b", 0.9)) for low, n in ((0.0, 3), (0.5, 9))],
             "panel low high confidence accuracy images ece")
MOVES = frame([(*PLANE[40 * p + 5 * c + k], kind, f"$c{c}", panel)
               for p, panel in enumerate(["one", "two"]) for c in range(4)
               for k, kind in enumerate(["image", "image", "before", "after", "ip"])],
              "x y kind class panel")
POINTS = frame([(*PLANE[9 * i + j], s, f"{s} ${i % 2}", p) for i, (p, s) in enumerate(
    [("alone", "oop"), ("alone", "oop"), ("among", "ip"), ("among", "oop"), ("among", "oop")])
    for j in range(9)], "x y subset name panel")
SIZED = frame([(p, name + end, x, v + i + 5 * bool(end), v - 3, v + 20, v / 9 + i,
                None if p == "ours" else f"m{x}")
               for p, places in (("ours", ("small", "large")), ("$published", (0.2, 5.0)))
               for name, v in (("IP", 60), ("OOP", 20)) for end in ("", figures.LEARNED)
               for i, x in enumerate(places)], "panel line x value low high chance point")
PICTURES = frame([(np.full((4, 4, 3), 20 * i, np.uint8), f"$n{i}", "ab"[i // 3], i % 2 == 0)
                  for i in range(6)], "image name row right")
SUMMARY = frame([(d, s, split, 5 + i, 20 * (i + 1) + 7 * (s == "ip")) for i, d in enumerate(DOMAINS)
                 for s in ("ip", "oop") for split in ("train", "test")],
                "domain subset split classes images")
MARGINS = frame([(s, m, p) for p, s, ms in (
    ("one", "ip", (-1, 1, 2, 3)), ("one", "oop", (-2, -1, 0, 4)), ("$two", "ip", (5, 6)))
    for m in ms], "subset margin panel")
SHARES = frame([(d, p, v + i) for i, d in enumerate(DOMAINS)
                for p, v in (("right", 20), ("$b", 48), ("an IP name", 30))], "domain part value")
RISKS = frame([(m, c, c / 2 + i / 10) for i, m in enumerate("ab") for c in (1, 0.2, 0.6)],
              "method coverage risk")
COUNTS = frame([("Animals", "<b>$ant</b>", 0), ("Animals", "dog", 300), ("Animals", "$cat_1$", 30),
                ("Animals", "fox", 40),
                ("Insects_Spiders", "bee", 20), ("Creatures", "ogre", 0)], "domain name captions")
LEVELS = frame([(s, level, 10 * i + j + 1) for i, s in enumerate(["small", "large"])
                for j, level in enumerate(["named", "composed", "$new"])], "scale level concepts")
SWEPT = frame([(f"m{i}", x, i + x, i, i + 2 * x, "h") for i in range(3) for x in (1, 4)],
              "method set_shots value low high metric")
CAPTIONS = frame([(s, c) for s, cs in (("s", (3, 0, 9)), ("l", (4, 1, 9))) for c in cs],
                 "scale captions")
SCORED = frame([(m, d, v + i) for m, v in (("$low", 10), ("high", 40)) for i, d in enumerate(
    ("Insects_Spiders", "Animals"))], "method domain value")
TILES = frame([("named", "met", 44, 40, 48), ("named", "not met", 43, 39, 47),
               ("unnamed", "met", 12, 10, 14), ("unnamed", "not met", 11, 9, 13)],
              "row column value low high")
EFFECTS = frame([("of captions", 32, 28, 36), ("of images", 1, -2, 4)], "label value low high")
LEVEL = frame([("IP", 62, 55, 68), ("as it is, $n", 12, 9, 15)], "line value low high")
ROSE = frame([("1", 6, -12, 24), ("all", 31, 20, 43)], "x value low high")
ARMS = frame([("zero-shot", "both", 50, 45, 55), ("zero-shot", "image", 12, 10, 15),
              ("clusters", "image", 60, 55, 66), ("clusters", "both", 61, 56, 67)],
             "measure arm value low high")
# fmt: on
DRAWN = {
    "arm_intervals": lambda f: f(ARMS),
    "benchmark_statistics": lambda f: f(SUMMARY),
    "caption_counts": lambda f: f(COUNTS),
    "example_grid": lambda f: f(PICTURES, columns=3),
    "frequency_curve": lambda f: f(CAPTIONS),
    "gap_intervals": lambda f: f(GAPS, "IP less OOP"),
    "lines_in_panels": lambda f: f(SIZED, "corpus", "accuracy (%)"),
    "margin_curves": lambda f: f(MARGINS),
    "methods_over_shots": lambda f: f(SHOTS, ["FSNL"], MANY),
    "names_in_space": lambda f: f(MOVES),
    "protocol_overview": lambda f: f(PROTOCOL, BIASED, highlight=["CoOp", "$a_"]),
    "reliability_diagrams": lambda f: f(BINS),
    "rise_over_dose": lambda f: f(ROSE, (9.0, 5.0, 13.0), "names learned from 4 images"),
    "risk_curves": lambda f: f(RISKS),
    "scores_by_domain": lambda f: f(SCORED, "H (%)"),
    "screening_levels": lambda f: f(LEVELS),
    "share_bars": lambda f: f(SHARES),
    "subset_bars": lambda f: f(BARS, published=BARS),
    "sweep_lines": lambda f: f(SWEPT),
    "tsne_scatter": lambda f: f(POINTS),
    "two_by_two": lambda f: f(TILES, EFFECTS),
}
MORE = {  # the same figures, of tables with less or more in them
    "example_grid, of both subsets": lambda f: f(
        PICTURES.assign(subset=["ip", "oop"] * 3, row="a"), columns=2
    ),
    "gap_intervals, of two groups": lambda f: f(
        pd.concat([GAPS, GAPS.assign(group="b", value=GAPS["value"] + 1)]), "points"
    ),
    "lines_in_panels, with levels": lambda f: f(SIZED, "corpus", "accuracy (%)", LEVEL),
    "methods_over_shots, of few": lambda f: f(SHOTS, ["FSNL"]),
    "protocol_overview, in grey": lambda f: f(PROTOCOL, BIASED.query("method == 'FSNL'")),
    "reliability_diagrams, without errors": lambda f: f(BINS.drop(columns="ece"), columns=1),
    "subset_bars, of one subset": lambda f: f(BARS.query("subset == 'oop'")),
    "sweep_lines, in any order": lambda f: f(SWEPT.iloc[::-1]),
    "tsne_scatter, of one panel": lambda f: f(POINTS.query("panel == 'among'")),
    "two_by_two, with a margin": lambda f: f(TILES, EFFECTS, 2.0),
}


def test_statistics_of_a_benchmark():
    images, classes = {}, {}
    for row in SUMMARY.itertuples():
        images[row.domain, row.subset] = images.get((row.domain, row.subset), 0) + row.images
        classes[row.domain, row.subset] = row.classes
    figure = figures.benchmark_statistics(SUMMARY)
    for axis, expected in zip(figure.axes, (classes, images), strict=True):
        for subset, bars in zip(("ip", "oop"), bars_of(axis), strict=True):
            assert [b.get_width() for b in bars] == [expected[d, subset] for d in DOMAINS]
            side = -0.2 if subset == "ip" else 0.2
            assert np.allclose([b.get_y() + b.get_height() / 2 for b in bars], np.arange(3) + side)
            assert colours_of(bars) == {style.STYLES[subset].colour.lower()}
        assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first domain at the top
    assert words(figure.axes[0].get_yticklabels()) == ["Animals", "Insects & Spiders", "Mean"]
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["Classes (18 IP, 18 OOP)", "Images (282 IP, 240 OOP)"]


def test_bars_of_both_subsets_with_intervals_chance_and_marks():
    theirs = BARS.assign(value=BARS["value"] / 3).query("domain != 'Mean'")
    more = pd.concat([theirs, theirs.assign(domain="elsewhere")])
    figure = figures.subset_bars(BARS, "share", more, "raw pixels", "shuffled")
    (axis,) = figure.axes
    places = np.array([0, 1, 2.35])
    marks = [line.get_xydata() for line in axis.lines if line.get_marker() == "s"]
    flat = [part.get_segments() for part in axis.collections[1::2]]
    for i, (subset, side) in enumerate((("ip", -0.2), ("oop", 0.2))):
        own = BARS[BARS["subset"] == subset]
        bars = bars_of(axis)[i]
        assert [b.get_height() for b in bars] == own["value"].tolist()
        assert np.allclose([b.get_x() + b.get_width() / 2 for b in bars], places + side)
        assert colours_of(bars) == {style.STYLES[subset].colour.lower()}
        assert {bar.get_hatch() for bar in bars} == {style.STYLES[subset].hatch}
        rows = np.c_[places + side, own[["value", "low", "high"]]]
        assert np.allclose(intervals(axis)[3 * i : 3 * i + 3], rows)
        assert np.allclose(marks[i], np.c_[places[:2] + side, own["value"][:2] / 3])
        assert np.allclose([ends[0][1] for ends in flat[i]], own["chance"])
        assert np.allclose([ends.mean(axis=0)[0] for ends in flat[i]], places + side)
    assert words(axis.get_xticklabels()) == ["Animals", "Insects &\nSpiders", "Mean"]
    assert axis.get_ylabel() == "share" and axis.get_ylim()[0] == 0
    assert list(keys(figure)) == [*style.SUBSETS.values(), "shuffled", "raw pixels"]
    alone = figures.subset_bars(BARS.query("subset == 'oop'")[["domain", "subset", "value"]])
    assert [b.get_height() for b in bars_of(alone.axes[0])[0]] == [12, 15, 18]


@pytest.mark.parametrize(
    "draw, table, places",
    [
        ("share_bars", SHARES.set_axis(["row", "part", "n"], axis=1), [0, 1, 2.35]),
        ("screening_levels", LEVELS.set_axis(["row", "part", "n"], axis=1), [0, 1]),
    ],
)
def test_stacked_bars(draw, table, places):
    figure = DRAWN[draw](getattr(figures, draw))
    (axis,) = figure.axes
    starts = np.zeros(len(places))
    parts = list(dict.fromkeys(table["part"]))
    for part, bars in zip(parts, bars_of(axis), strict=True):
        numbers = table.loc[table["part"] == part, "n"].to_numpy(float)
        assert np.allclose([b.get_x() for b in bars], starts)
        assert np.allclose([b.get_width() for b in bars], numbers)
        assert np.allclose([b.get_y() + b.get_height() / 2 for b in bars], places)
        starts += numbers
    assert words(axis.texts) == [
        str(int(n)) for part in parts for n in table.loc[table["part"] == part, "n"]
    ]
    assert list(keys(figure)) == [part.replace("$", r"\$") for part in parts]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    names = [figures.pretty(row) for row in dict.fromkeys(table["row"])]
    assert words(axis.get_yticklabels()) == names
    faces = {(to_hex(bars[0].get_facecolor()), bars[0].get_hatch()) for bars in bars_of(axis)}
    assert len(faces) == len(parts)


def test_gaps_stand_at_their_labels():
    figure = figures.gap_intervals(GAPS, "IP less OOP")
    (axis,) = figure.axes
    assert intervals(axis) == [[3, 0, 2, 7], [1, 1, -5, 2]]
    assert words(axis.get_yticklabels()) == ["names", r"\$k\$-means"]
    assert axis.get_yticks().tolist() == [0, 1] and axis.get_ylim()[0] > axis.get_ylim()[1]
    diamonds = next(line for line in axis.lines if line.get_marker() == "D").get_xydata()
    assert diamonds[0].tolist() == [5, 0] and np.isnan(diamonds[1][0])
    assert axis.lines[0].get_xdata() == [0, 0] and axis.get_xlabel() == "IP less OOP"
    assert list(keys(figure)) == ["text", "images", "published, LAION-Beyond"]
    both = pd.concat([GAPS, GAPS.assign(group="b", value=GAPS["value"] + 1)])
    found = intervals(figures.gap_intervals(both, "").axes[0])
    assert [y for _, y, *_ in found] == [-0.26, 1, 0.26, 1.26]


def test_one_row_far_off_does_not_stretch_the_axis():
    rows = [(f"v{i}", -i, -i - 1, -i + 1) for i in range(4)] + [("sgd", -40.0, -44, -36)]
    (axis,) = figures.gap_intervals(frame(rows, "label value low high"), "x").axes
    assert np.allclose(axis.get_xlim(), (-4.5, 1.5))
    assert words(axis.texts) == ["← -40.0 [-44.0, -36.0]"] and axis.texts[0].xy == (-4.5, 4)


def test_reliability_of_each_panel():
    figure = figures.reliability_diagrams(BINS, columns=1)
    for axis, (name, own) in zip(figure.axes, BINS.groupby("panel", sort=False), strict=True):
        points = axis.collections[-1].get_offsets()
        assert np.allclose(points, 100 * own[["confidence", "accuracy"]])
        ends = np.array(axis.collections[0].get_segments())
        assert np.allclose(ends[:, :, 0], points[:, :1])
        assert np.allclose(ends[:, :, 1], np.c_[points[:, 0], points[:, 1]])
        assert [b.get_height() for b in axis.patches] == [25, 75]
        assert [b.get_x() for b in axis.patches] == [0, 50]
        assert np.array_equal(axis.lines[0].get_xydata(), [[0, 0], [100, 100]])
        assert axis.get_title(loc="left") == f"{name}\nECE 12.3 %".replace("$", r"\$")


def test_margins_are_cumulative():
    figure = figures.margin_curves(MARGINS)
    for axis, (name, here) in zip(figure.axes, MARGINS.groupby("panel", sort=False), strict=True):
        assert axis.lines[0].get_xdata() == [0, 0]
        assert axis.get_title(loc="left") == name.replace("$", r"\$")
        drawn = axis.lines[1:]
        assert len(drawn) == here["subset"].nunique()
        for line, subset in zip(drawn, ("ip", "oop"), strict=False):
            margins = np.sort(here.loc[here["subset"] == subset, "margin"])
            share = 100 * np.arange(1, len(margins) + 1) / len(margins)
            assert np.array_equal(line.get_xydata()[1:], np.c_[margins, share])
            assert line.get_color() == style.STYLES[subset].colour
            assert (line.get_linestyle() == "--") == (subset == "oop")
    assert figure.get_supylabel() == "images up to this margin (%)"


def test_risks_are_drawn_in_percent_by_coverage():
    (axis,) = figures.risk_curves(RISKS).axes
    drawn = {line.get_label(): line.get_xydata() for line in axis.lines}
    assert list(drawn) == ["a", "b"]
    for i, points in enumerate(drawn.values()):
        assert np.allclose(points, [(c, c / 2 + 10 * i) for c in (20, 60, 100)])
    assert axis.get_xlim() == axis.get_ylim() == (0, 100)


def test_ranks_start_at_one_and_absent_names_are_counted():
    figure = figures.frequency_curve(CAPTIONS)
    (axis,) = figure.axes
    found = [line.get_xydata().tolist() for line in axis.lines]
    assert found == [[[1, 9], [2, 3]], [[1, 9], [2, 4], [3, 1]]]
    assert list(keys(figure)) == ["s (1 in no caption)", "l (0 in no caption)"]
    assert axis.get_xscale() == axis.get_yscale() == "log"


def test_every_corpus_has_its_line_however_many():
    table = frame([(f"s{i}", i + k) for i in range(20) for k in (1, 2)], "scale captions")
    (axis,) = figures.frequency_curve(table).axes
    assert len({(line.get_marker(), line.get_color()) for line in axis.lines}) == 20


def test_lines_in_panels_with_intervals_and_chance():
    figure = figures.lines_in_panels(SIZED, "corpus", "accuracy (%)")
    ours, published = figure.axes
    assert words(ours.get_xticklabels()) == ["small", "large"]
    assert published.get_xscale() == "log" and ours.get_ylim()[0] == 0
    for axis, (_, here) in zip(figure.axes, SIZED.groupby("panel", sort=False), strict=True):
        found = np.array(intervals(axis))
        assert np.allclose(found[:, 1:], here[["value", "low", "high"]])
        places = here["x"].map({"small": 0, "large": 1}) if axis is ours else here["x"]
        assert np.allclose(found[:, 0], places.astype(float), atol=0.05)
        bare = [x for x in axis.lines if x.get_marker() == "None" and x.get_color() != style.RULE]
        chance = [y for line in bare for y in line.get_ydata()]
        assert chance == here["chance"].tolist()
    dots = [c[0] for c in ours.containers]
    looks = [(x.get_color(), x.get_marker(), x.get_markerfacecolor()) for x in dots]
    ip, oop = style.STYLES["ip"], style.STYLES["oop"]
    assert looks == [(s.colour, s.marker, face) for s in (ip, oop) for face in (s.colour, "white")]
    assert [c[0].get_linestyle() for c in published.containers] == ["None"] * 4
    assert words(published.texts) == ["m0.2", "m5.0"]
    close = SIZED.query("panel != 'ours'").replace({"x": {5.0: 0.21}})
    assert words(figures.lines_in_panels(close).axes[0].texts) == ["m0.2\nm5.0"]
    assert [*keys(figure)][:2] == ["IP", "IP, names learned"] and "chance" in keys(figure)


def test_levels_stand_with_their_bands_in_every_panel():
    figure = figures.lines_in_panels(SIZED, "corpus", "accuracy (%)", LEVEL)
    for axis in figure.axes:
        bands = [(band.get_y(), band.get_y() + band.get_height()) for band in axis.patches]
        assert bands == [(55, 68), (9, 15)]
        flat = [x.get_ydata()[0] for x in axis.lines if list(x.get_xdata()) == [0, 1]]
        assert [y for y in flat if y in (62, 12)] == [62, 12]
    assert list(keys(figure))[-1] == r"as it is, \$n"
    assert figure.alt.endswith("Level lines: IP 62.0, as it is, $n 12.0.")


def test_methods_over_shots_and_their_labels():
    figure = figures.methods_over_shots(SHOTS, ["CoOp", "FSNL"], MANY)
    ours, theirs = figure.axes
    for method in ("FSNL", "CoOp"):
        rows = SHOTS.loc[SHOTS["method"] == method, ["shots", "value"]]
        assert line_of(ours, style.STYLES[method.lower()]) == rows.to_numpy().tolist()
    level = next(x for x in ours.lines if x.get_color() == style.STYLES["zero-shot"].colour)
    assert level.get_ydata() == [5, 5]
    bands = [set(map(tuple, c.get_paths()[0].vertices)) for c in ours.collections]
    assert len(bands) == 3
    for i, band in enumerate(bands):
        assert band == {(k, 9 * i + k + d) for k in (1, 4, 16) for d in (-2, 1)}
    labels = {text.get_text(): round(text.xy[1], 6) for text in ours.texts}
    assert labels == {"zero-shot": 5, "FSNL": 16, "CoOp": 25, r"\$a_": 34}
    # None of seventeen methods is named there: no label, all grey, every value drawn.
    assert not theirs.texts and theirs.get_xlabel() == "grey: 17 more methods"
    grey = [line.get_ydata().tolist() for line in theirs.lines]
    assert grey == [[31 + i, 34 + i] for i in range(17)]
    assert {line.get_color() for line in theirs.lines} == {style.PALE}
    assert [a.get_title(loc="left") for a in figure.axes] == ["ours", "published, LAION-Beyond"]


def test_no_more_than_eight_labels_and_each_near_its_value():
    (axis,) = figures.methods_over_shots(MANY, [f"m{i}" for i in range(12)]).axes
    ends = {f"m{i}": 34 + i for i in range(8)}
    assert {t.get_text() for t in axis.texts} == set(ends)
    for text in axis.texts:
        assert abs(text.xy[1] - ends[text.get_text()]) < 4
    assert axis.get_ylim()[0] <= min(t.xy[1] for t in axis.texts)


def test_labels_are_moved_apart_by_the_least():
    found = lines._apart([0.0, 0.1, 0.2, 5.0], 1.0, -9, 9)
    assert np.allclose(found, [-0.9, 0.1, 1.1, 5.0])
    assert np.allclose(lines._apart([1.0, 3.0], 1.0, 0, 9), [1, 3])
    assert np.allclose(lines._apart([1.0, 1.1], 1.0, 1, 9), [1, 2])


def test_the_protocol_is_sorted_and_hollow_where_it_cannot_tell():
    figure = figures.protocol_overview(PROTOCOL, BIASED, highlight=["CoOp", "$a_"])
    names = ["CoOp", r"\$a_", "FSNL"]
    assert words(figure.axes[0].get_yticklabels()) == names
    for axis, shift in zip(figure.axes[:2], (0, -9), strict=True):
        values = [v + shift for v in (40, 45, 50)]
        assert intervals(axis) == [[v, i, v - 2, v + 3] for i, v in enumerate(values)]
        hollow = [c[0].get_markerfacecolor() == "white" for c in axis.containers]
        assert hollow == [False, True, False]
        assert axis.lines[0].get_xdata() == [values[-1]] * 2
    assert [a.get_title(loc="left") for a in figure.axes[:2]] == ["H, joint (%)", "AUSUC (%)"]
    plane = figure.axes[2]
    drawn = [line.get_xydata().tolist() for line in plane.lines if line.get_color() != style.RULE]
    assert drawn == [[[0, 40], [50, 0]], [[30, 20]], [[0, 41], [50, 1]], [[30, 21]]]
    # The lines behind them are of the harmonic mean that stands at their ends.
    levels = [line.get_xydata().T for line in plane.lines if line.get_color() == style.RULE]
    assert words(plane.texts) == [f"H {level}" for level in (10, 20, 30, 40, 50)]
    for level, (x, y), text in zip((10, 20, 30, 40, 50), levels, plane.texts, strict=True):
        assert np.allclose(2 * x * y / (x + y), level)
        assert np.isclose(text.get_position()[1], y[-1]) and np.isclose(x[-1], 60)
    assert figure.axes[0].containers[2][0].get_color() == style.FAINT  # not highlighted
    assert "not told apart from FSNL" in figure.texts[0].get_text()
    assert not figures.protocol_overview(PROTOCOL.drop(columns="p_holm")).texts
    with pytest.raises(ValueError, match="columns method, ip, oop, own"):
        figures.protocol_overview(PROTOCOL, BIASED.drop(columns="own"))


def test_a_sweep_of_any_number_of_lines():
    (axis,) = figures.sweep_lines(SWEPT).axes
    assert np.allclose(intervals(axis), SWEPT[["set_shots", "value", "low", "high"]])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("shots", "h")
    assert words(axis.get_xticklabels()) == ["1", "4"]
    many = pd.concat([SWEPT.head(1).assign(method=f"m{i}") for i in range(61)])
    for table in (many, many.head(60)):
        figure = figures.sweep_lines(table)
        (axis,) = figure.axes
        assert len(axis.containers) == len(table) and max(figure.get_size_inches()) < 20
        assert bool(figure.legends) == ("too many" not in axis.get_title(loc="left"))
        assert bool(figure.legends) == (len(table) == 60)


def test_examples_stand_in_their_rows():
    figure = figures.example_grid(PICTURES, columns=2)
    (axis,) = figure.axes
    shown = [0, 1, 3, 4]  # the third of each row is left out
    corners = []
    for picture, border, i in zip(axis.images, axis.patches, shown, strict=True):
        assert np.array_equal(picture.get_array(), PICTURES["image"][i])
        left, _, bottom, top = picture.get_extent()
        assert np.allclose([*border.get_xy(), border.get_height()], [left, top, bottom - top])
        corners.append((round(left, 6), round(top, 6)))
        right = PICTURES["right"][i]
        look = style.STYLES["right" if right else "wrong"]
        assert to_hex(border.get_edgecolor()) == look.colour.lower()
        assert (border.get_linestyle() in ("-", "solid")) == right
    (x, y), (beside, level), (under, below), _ = corners
    assert x == under and y == level and x < beside and y < below  # downwards: the axis is turned
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    told = [r"\$n0", r"\$n1", r"\$n3", r"\$n4"]
    assert words(axis.texts) == ["a", *told[:2], "b", *told[2:]]
    assert list(keys(figure)) == ["right", "wrong"]


def test_classes_in_the_plane():
    figure = figures.tsne_scatter(POINTS)
    looks = style.class_styles(2)
    for axis, (name, here) in zip(figure.axes, POINTS.groupby("panel", sort=False), strict=True):
        ip, oop = axis.collections[0], axis.collections[1]
        for points, subset in ((ip, "ip"), (oop, "oop")):
            rows = here.loc[here["subset"] == subset, ["x", "y"]]
            assert np.allclose(np.reshape(points.get_offsets(), (-1, 2)), rows)
        owners = here.loc[here["subset"] == "oop", "name"]
        order = list(dict.fromkeys(owners))  # colours are of a panel
        wanted = [looks[order.index(name)].colour.lower() for name in owners]
        assert [to_hex(c) for c in oop.get_facecolors()] == wanted
        middles = here[here["subset"] == "oop"].groupby("name")["x"].median()
        assert {t.get_text(): round(t.get_position()[0], 2) for t in axis.texts} == {
            n.replace("$", r"\$"): round(x, 2) for n, x in middles.items()
        }
        assert axis.get_title(loc="left") == name
    assert figure.axes[1].get_xlabel() == "grey: 1 IP classes"
    assert not figures.tsne_scatter(POINTS, label_classes=1).axes[0].texts


def test_names_move_from_before_to_after():
    figure = figures.names_in_space(MOVES)
    for axis, (_, here) in zip(figure.axes, MOVES.groupby("panel", sort=False), strict=True):
        arrows = [text for text in axis.texts if getattr(text, "arrow_patch", None)]
        found = [(arrow.xyann, arrow.xy) for arrow in arrows]
        ends = [here.loc[here["kind"] == kind, ["x", "y"]] for kind in ("before", "after")]
        assert np.allclose(found, np.stack(ends, axis=1))
        drawn = np.concatenate([c.get_offsets() for c in axis.collections])
        rest = here.loc[here["kind"].isin(["image", "ip"]), ["x", "y"]].to_numpy()
        assert np.allclose(np.sort(drawn, axis=0), np.sort(rest, axis=0))
        stars = [line.get_xydata()[0] for line in axis.lines if line.get_marker() == "*"]
        assert np.allclose(stars, ends[1])
    with pytest.raises(ValueError, match="kind before and one of kind after"):
        figures.names_in_space(MOVES[MOVES["kind"] != "before"])
    with pytest.raises(ValueError, match="unknown kind of point"):
        figures.names_in_space(MOVES.replace("ip", "IP name"))


def test_named_moves_do_not_cross():
    cross = {"a": (0, 0, 4, 4), "b": (0, 4, 4, 0), "c": (9, 0, 9, 1), "d": (5, 0, 5, 3)}
    rows = [
        (x, y, kind, c)
        for c, (*start, u, v) in cross.items()
        for kind, x, y in (("before", *start), ("after", u, v))
    ]
    for most, kept in ((8, {"a", "c", "d"}), (1, {"d"})):
        (axis,) = figures.names_in_space(frame(rows, "x y kind class"), most).axes
        assert {t.get_text() for t in axis.texts if t.get_text()} == kept
        arrows = [text.arrow_patch for text in axis.texts if not text.get_text()]
        grey = [a for a in arrows if to_hex(a.get_facecolor()) == style.PALE.lower()]
        assert len(grey) == 4 - len(kept)
        assert axis.get_xlabel() == f"grey: {len(grey)} more classes"


def test_dots_stand_at_the_counts_and_absent_names_are_counted():
    (axis,) = figures.caption_counts(COUNTS).axes
    assert words(axis.get_yticklabels()) == ["Creatures", "Insects & Spiders", "Animals"]
    dots = [c.get_offsets() for c in axis.collections if hasattr(c, "get_sizes")]
    found = {(round(float(y)), float(x)) for own in dots for x, y in own}
    assert found == {(2, 30), (2, 40), (2, 300), (1, 20)}
    upright = [c for c in axis.collections if c.get_linewidth()[0] == 1.6]
    assert [c.get_segments()[0][0][0] for c in upright] == [20, 40]
    boxed = {t.get_position()[1]: t.get_text() for t in axis.texts if t.get_bbox_patch()}
    assert boxed == {0: "1", 1: "0", 2: "1"}
    beside = {t.get_text(): t.xy for t in axis.texts if not t.get_bbox_patch()}
    assert beside == {"bee": (20, 1), r"\$cat_1\$": (30, 2), "dog": (300, 2)}
    none = figures.caption_counts(COUNTS.query("captions == 0")).axes[0]
    assert words(t for t in none.texts) == ["1", "1"]


def test_the_best_method_stands_on_top_of_the_tiles_and_the_mean_beside_them():
    figure = figures.scores_by_domain(SCORED, "H (%)")
    (axis,) = figure.axes
    assert words(axis.get_yticklabels()) == ["high", r"\$low"]
    assert words(axis.get_xticklabels()) == ["Insects & Spiders", "Animals", "mean"]
    tiles = axis.collections[0].get_array().reshape(2, 3)
    assert tiles.tolist() == [[40, 41, 40.5], [10, 11, 10.5]]
    assert words(axis.texts)[:2] == ["40", "41"] and axis.get_ylim() == (2, 0)
    assert "H (%)" in figure.alt and "high 40" in figure.alt


def test_tiles_stand_in_their_rows_and_columns_beside_the_effects():
    figure = figures.two_by_two(TILES, EFFECTS, margin=5)
    tiles, points = figure.axes
    assert tiles.images[0].get_array().tolist() == [[44, 43], [12, 11]]
    told = {(t.get_position()[0], round(t.get_position()[1])): t.get_text() for t in tiles.texts}
    assert told[1, 0] == "[39.0, 47.0]" and words(tiles.get_xticklabels()) == ["met", "not met"]
    assert words(tiles.get_yticklabels()) == ["named", "unnamed"]
    assert intervals(points) == [[32, 0, 28, 36], [1, 1, -2, 4]]
    band = points.patches[0]
    assert (band.get_x(), band.get_width()) == (-5, 10)
    assert "unnamed, met: 12.0" in figure.alt and "of captions: +32.0" in figure.alt


def test_arms_stand_in_one_order_in_every_panel():
    figure = figures.arm_intervals(ARMS)
    first, second = figure.axes
    assert intervals(first) == [[0, 50, 45, 55], [1, 12, 10, 15]]
    assert intervals(second) == [[1, 60, 55, 66], [0, 61, 56, 67]]
    assert words(first.get_xticklabels()) == words(second.get_xticklabels()) == ["both", "image"]
    assert first.get_title(loc="left") == "zero-shot" and "both 61.0" in figure.alt


def test_doses_rise_beside_a_band():
    figure = DRAWN["rise_over_dose"](figures.rise_over_dose)
    (axis,) = figure.axes
    assert intervals(axis) == [[0, 6, -12, 24], [1, 31, 20, 43]]
    assert words(axis.get_xticklabels()) == ["1", "all"]
    band = axis.patches[0]
    assert (band.get_y(), band.get_height()) == (5, 8)
    assert list(keys(figure)) == ["names as they are", "names learned from 4 images"]


def test_every_figure_says_what_it_shows_and_refuses_a_wrong_table():
    others = {"LEARNED", "MEASURE_TITLES", "STYLES", "looks", "pretty", "preview", "save"}
    assert set(DRAWN) == set(figures.__all__) - others
    wrong = pd.DataFrame({"nothing_of_ours": [1]})
    for name, draw in DRAWN.items():
        figure = draw(getattr(figures, name))
        assert 30 < len(figure.alt) < 900 and figure.alt.endswith("."), name
        with pytest.raises(ValueError, match="it has 1 rows of nothing_of_ours"):
            draw(lambda _, *rest, name=name, **more: getattr(figures, name)(wrong, *rest, **more))
    assert "IP 66, OOP 18" in figures.subset_bars(BARS).alt


def test_saved_and_shown_with_the_text(tmp_path):
    figure = figures.screening_levels(LEVELS)
    (file,) = figures.save(figure, tmp_path / "new" / "figure", ["png"])
    assert list(file.parent.iterdir()) == [file]
    assert Image.open(file).text["Description"] == figure.alt
    shown = figures.preview(figure)
    _, metadata = shown._repr_png_()
    assert metadata["alt"] == figure.alt and len(shown.data) < file.stat().st_size
    (tmp_path / "a.png").write_bytes(shown.data)
    picture = Image.open(tmp_path / "a.png")
    assert picture.mode == "P" and abs(picture.width / 100 - figure.get_figwidth()) < 0.3
    blue = [int(style.STYLES["ip"].colour[i : i + 2], 16) for i in (1, 3, 5)]
    pixels = np.asarray(picture.convert("RGB"), int)
    assert (np.abs(pixels - blue).sum(axis=2) < 12).sum() > 500


def test_one_colour_and_one_marker_for_each_thing():
    methods = [name for name in RIVALS if not name.startswith("zero-shot, ")]
    methods += ["FSNL", "names (ours)", "names + alignment", "prototypes + alignment"]
    looks = figures.looks([*methods, "IP", "OOP", "something new", "something else"])
    seen = [(s.colour, s.marker, s.hollow) for s in looks.values()]
    assert len(set(seen)) == len(seen)
    table = [looks[name] for name in methods]
    halves = {looks["IP"].colour, looks["OOP"].colour}
    assert not halves & {s.colour for s in table}
    assert not {s.colour for s in style.STYLES.values()} & set(style.FREE_COLOURS)
    assert figures.looks(["CoOp"])["CoOp"] == figures.looks(["new", "coop"])["coop"]
    learned = figures.looks(["new", "new" + figures.LEARNED])
    hollow = learned["new"]._replace(hollow=True, dashes=style.DOTTED)
    assert learned["new" + figures.LEARNED] == hollow
    assert len(set(style.class_styles(65))) == 65
    for path in (ROOT / "lbutils/figures").glob("*.py"):
        colours = re.findall("#[0-9A-Fa-f]{6}", path.read_text(encoding="utf-8"))
        assert path.stem == "style" or not colours, path


# Machado et al., 2009, severity 1: how linear RGB looks to deuteranopes and to protanopes.
# fmt: off
DEUTERANOPE = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.01182, 0.04294, 0.968881]]
PROTANOPE = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
             [-0.003882, -0.048116, 1.051998]]
XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]]  # over white
# fmt: on


@pytest.mark.parametrize("seen", [np.eye(3), DEUTERANOPE, PROTANOPE])
def test_colours_stay_apart_without_colour_vision(seen):
    def lab(colour):
        c = np.array(to_rgb(colour))
        rgb = np.clip(seen @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
        x, y, z = np.cbrt(XYZ @ rgb)
        return np.array([116 * y, 500 * (x - y), 200 * (y - z)])

    halves = [style.STYLES[subset].colour for subset in style.SUBSETS]
    for colours in ([*style.CLASS_COLOURS, style.PALE], halves):
        found = np.array([lab(colour) for colour in colours])
        apart = np.linalg.norm(found[:, None] - found[None], axis=2) + 99 * np.eye(len(found))
        assert apart.min() > 20


def fonts_installed(monkeypatch, *files):
    """Only these fonts are installed, beside matplotlib's own."""
    own = [f for f in font_manager.fontManager.ttflist if f.name.startswith(("DejaVu", "STIX"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*own, *files])
    monkeypatch.setattr(fonts, "fallbacks", [])
    fonts.find_fonts.cache_clear()
    fonts.warn_of_fonts.cache_clear()


@pytest.mark.filterwarnings("default")
def test_letters_that_no_font_has_are_told_once(monkeypatch, tmp_path, recwarn):
    fonts_installed(monkeypatch)
    for name in ("東京", "きつね 여우", "ไทย", "jalapeño — crème"):
        figures.preview(figures.risk_curves(RISKS.replace("a", name)))
    told = [re.search(r"install (.*?) \(", str(warning.message))[1] for warning in recwarn]
    assert told == ["Noto Sans CJK", "Noto Sans"]


def test_letters_come_from_a_font_that_has_them(monkeypatch):
    """Any installed font will do: here one with letters of mathematics that the usual one lacks."""
    found = font_manager.fontManager.ttflist
    upright = [f for f in found if f.style == "normal" and f.weight == 400]
    (file,) = [f for f in upright if f.name == "STIXNonUnicode"]
    usual = font_manager.get_font(font_manager.findfont(fonts.USUAL))
    there = font_manager.get_font(file.fname).get_charmap()
    letter = chr(next(c for c in there if c > 0xE000 and not usual.get_char_index(c)))
    monkeypatch.setattr(fonts.unicodedata, "category", lambda _: "Lo")
    fonts_installed(monkeypatch, file)
    figure = figures.risk_curves(RISKS.replace("a", letter * 3))
    figures.preview(figure)
    assert fonts.fallbacks == ["STIXNonUnicode"]
    drawn = [t for t in figure.findobj(Text) if letter in t.get_text()]
    assert drawn and all("STIXNonUnicode" in t.get_fontfamily() for t in drawn)


def rounded(values):
    """Numbers as they stand in `KEPT`; to round otherwise is no change."""
    return [None if np.isnan(v) else float(f"{v:.3g}") for v in np.asarray(values, float).ravel()]


def drawn(artist):
    """What an artist shows, without how wide, how large and where on paper."""
    if isinstance(artist, Line2D):
        look = [artist.get_color(), artist.get_marker(), artist.get_markerfacecolor()]
        return [*map(str, look), artist.get_linestyle(), *rounded(artist.get_xydata())]
    if isinstance(artist, LineCollection):
        return ["strokes", *rounded(np.concatenate([*artist.get_segments(), np.empty((0, 2))]))]
    if isinstance(artist, Collection):
        paths = [
            path.vertices for path in artist.get_paths() if not isinstance(artist, PathCollection)
        ]
        faces = sorted({to_hex(face) for face in artist.get_facecolor()})
        return ["area", *faces, *rounded(np.concatenate([artist.get_offsets(), *paths]))]
    if isinstance(artist, Text):
        at = artist.xy if isinstance(artist, Annotation) else artist.get_position()
        return [artist.get_text(), to_hex(artist.get_color()), *rounded(at)]
    if isinstance(artist, AxesImage):
        return [
            "image",
            artist.cmap.name,
            *rounded([*artist.get_clim(), artist.get_array().mean()]),
        ]
    box = artist.get_bbox()
    return ["box", to_hex(artist.get_facecolor()), artist.get_hatch(), *rounded([*box.p0, *box.p1])]


def shown(figure):
    """All that a figure shows, a list for each artist, axis and legend."""
    kinds = Line2D, Collection, Text, AxesImage, Rectangle
    found = [["alternative text", figure.alt], ["title", figure.get_suptitle()]]
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            ticks = [text.get_text() for text in side.get_ticklabels()]
            label = side.get_label_text()
            found.append(["axis", label, side.get_scale(), *rounded(side.get_view_interval())])
            found.append(["ticks", *ticks, *rounded(side.get_ticklocs())])
        parts = (part for part in axis.get_children() if isinstance(part, kinds))
        found += [drawn(part) for part in parts if part is not axis.patch]
    return [row for row in found if row[0]] + [["legend", text] for text in keys(figure)]


def shown_now(name):
    """What the figure of a row of `DRAWN` or `MORE` shows."""
    return shown((DRAWN | MORE)[name](getattr(figures, name.split(", ")[0])))


@pytest.mark.parametrize("name", DRAWN | MORE)
def test_a_figure_shows_what_it_showed_when_it_was_looked_at(name):
    """`python tests/test_figures.py` keeps what figures show now: look at them before."""
    assert shown_now(name) == json.loads(KEPT.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    rows = {
        name: "[\n" + ",\n".join(map(json.dumps, shown_now(name))) + "]" for name in DRAWN | MORE
    }
    text = ",\n".join(f"{json.dumps(name)}: {own}" for name, own in rows.items())
    KEPT.write_text(f"{{{text}}}\n", encoding="utf-8")
