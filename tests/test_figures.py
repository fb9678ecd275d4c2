from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from lbutils.figures import charts as figures

DOMAINS = ["Animals", "Insects_Spiders", "Food", "Mean"]
METHODS = ["FSNL", "linear probe", "a $method_ of {ours}", "zero-shot"]
RNG = np.random.default_rng(0)


def summary():
    rows = [
        (domain, subset, split, 5 + i, 20 * (i + 1))
        for i, domain in enumerate(DOMAINS)
        for subset in ("ip", "oop")
        for split in ("train", "test")
    ]
    return pd.DataFrame(rows, columns=["domain", "subset", "split", "classes", "images"])


def examples():
    image = RNG.random((8, 8, 3))
    rows = [(image, "<b>$x_1$</b> {name}", row, s) for row in "ab" for s in ("ip", "oop", "ip")]
    return pd.DataFrame(rows, columns=["image", "name", "row", "subset"])


def points():
    rows = [
        (*RNG.normal(size=2), subset, f"{subset} $class {i % 3}", panel)
        for panel in ("OOP alone", "OOP among IP")
        for subset in ("ip", "oop")
        for i in range(12)
        if subset == "oop" or "among" in panel
    ]
    return pd.DataFrame(rows, columns=["x", "y", "subset", "name", "panel"])


def bars():
    rows = [(d, s, v, v - 3, v + 3, 8) for d in DOMAINS for s, v in (("ip", 60), ("oop", 12))]
    return pd.DataFrame(rows, columns=["domain", "subset", "value", "low", "high", "chance"])


def shots():
    rows = [
        (domain, method, k, 10.0 * i + k, 10.0 * i + k - 2, 10.0 * i + k + 2)
        for domain in DOMAINS
        for i, method in enumerate(METHODS)
        for k in ((0,) if method == "zero-shot" else (1, 2, 4))
    ]
    return pd.DataFrame(rows, columns=["domain", "method", "shots", "value", "low", "high"])


def plane():
    table = pd.DataFrame({"method": METHODS, "ip": [60, 50, 30, 65], "oop": [40, 45, 50, 5]})
    return table.assign(shots=4, ip_low=table.ip - 2, ip_high=table.ip + 2)


def margins():
    rows = [(s, m, p) for p in ("one", "$two") for s in ("ip", "oop") for m in RNG.normal(size=20)]
    return pd.DataFrame(rows, columns=["subset", "margin", "panel"])


def shares():
    rows = [(d, p, v) for d in DOMAINS for p, v in (("own $name", 20), ("other", 50), ("IP", 30))]
    return pd.DataFrame(rows, columns=["domain", "part", "value"])


def gaps():
    rows = [("names", 30, 20, 40, "text", 34), ("$k$-means", 1, -5, 7, "images", np.nan)]
    return pd.DataFrame(rows, columns=["label", "value", "low", "high", "group", "published"])


def protocol_rows():
    rows = [
        (m, k, v, v - 2, v + 3, p)
        for k, shift in (("h_joint", 0), ("ausuc", -10))
        for m, v, p in zip(METHODS, np.array([50, 40, 45, 20]) + shift, P_HOLM, strict=True)
    ]
    return pd.DataFrame(rows, columns=["method", "measure", "value", "low", "high", "p_holm"])


P_HOLM = (np.nan, 0.01, 0.2, 0.001)


def curves():
    turn = np.linspace(0, np.pi / 2, 20)
    tables = [
        pd.DataFrame({"method": m, "ip": r * np.cos(turn), "oop": r * np.sin(turn), "own": False})
        for m, r in zip(METHODS[:3], (60, 50, 55), strict=True)
    ]
    marks = pd.DataFrame({"method": METHODS[:3], "ip": 30, "oop": [50, 40, 45], "own": True})
    return pd.concat([*tables, marks])


def bins():
    edges = np.arange(11) / 10
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "confidence": edges[1:] - 0.05})
    table = table.assign(accuracy=table["confidence"] * 0.8, images=np.arange(10))
    table.loc[0, ["confidence", "accuracy"]] = np.nan
    return pd.concat([table.assign(panel=panel, ece=12.3) for panel in METHODS])


def many_shots():
    rows = [
        (f"m {i}" if i else "FSNL", k, 30 + i + k, 28 + i + k, 32 + i + k)
        for i in range(17)
        for k in (1, 2, 4)
    ]
    rows.append(("zero-shot", 0, 20.0, np.nan, np.nan))
    return pd.DataFrame(rows, columns=["method", "shots", "value", "low", "high"])


def moves():
    rows = [
        (*RNG.normal(size=2), kind, f"$class {i}", panel)
        for panel in ("one", "two")
        for i in range(4)
        for kind in ("image", "image", "before", "after", "ip")
    ]
    return pd.DataFrame(rows, columns=["x", "y", "kind", "class", "panel"])


def named_examples():
    return examples().drop(columns="subset").assign(right=[True, False] * 3)


def risks():
    rows = [(m, c, c / 2 + 0.1 * i) for i, m in enumerate(("a $b$", "c")) for c in (0.2, 0.6, 1)]
    return pd.DataFrame(rows, columns=["method", "coverage", "risk"])


def sized():
    rows = [
        (p, line + end, x, 30 + 5 * i, f"model {x}")
        for p, places in (("ours", ("small", "large")), ("$published", (0.15, 5.0)))
        for line in ("IP", "OOP")
        for end in ("", figures.LEARNED)
        for i, x in enumerate(places)
    ]
    table = pd.DataFrame(rows, columns=["panel", "line", "x", "value", "point"])
    table.loc[table["panel"] == "ours", "point"] = np.nan
    return table.assign(low=table["value"] - 3, high=table["value"] + 4)


DRAWN = {
    "panels": lambda: figures.lines_in_panels(sized(), "corpus", "accuracy (%)"),
    "one panel of lines": lambda: figures.lines_in_panels(
        sized().query("panel == 'ours'").drop(columns=["low", "high", "point"])
    ),
    "named": lambda: figures.example_grid(named_examples(), columns=3),
    "risks": lambda: figures.risk_curves(risks()),
    "protocol": lambda: figures.protocol_overview(protocol_rows(), curves()),
    "bare protocol": lambda: figures.protocol_overview(protocol_rows().drop(columns="p_holm")),
    "reliability": lambda: figures.reliability_diagrams(bins(), columns=3),
    "many methods": lambda: figures.methods_over_shots(many_shots(), ["FSNL", "zero-shot"]),
    "beside published": lambda: figures.methods_over_shots(
        many_shots(), ["FSNL", "m 3"], published=shots().query("domain == 'Food'")
    ),
    "moves": lambda: figures.names_in_space(moves()),
    "one panel of moves": lambda: figures.names_in_space(
        moves().query("panel == 'one' and kind != 'ip'").drop(columns="panel")
    ),
    "margins": lambda: figures.margin_curves(margins()),
    "one margin": lambda: figures.margin_curves(margins().drop(columns="panel")),
    "shares": lambda: figures.share_bars(shares()),
    "gaps": lambda: figures.gap_intervals(gaps(), "IP less OOP"),
    "bare gaps": lambda: figures.gap_intervals(gaps().iloc[:, :4], "IP less OOP"),
    "statistics": lambda: figures.benchmark_statistics(summary()),
    "examples": lambda: figures.example_grid(examples(), columns=4),
    "tsne": lambda: figures.tsne_scatter(points()),
    "bars": lambda: figures.subset_bars(bars(), published=bars().head(4)),
    "bare bars": lambda: figures.subset_bars(bars()[["domain", "subset", "value"]]),
    "shots": lambda: figures.accuracy_over_shots(shots(), METHODS),
    "one panel": lambda: figures.accuracy_over_shots(
        shots().query("domain == 'Food'").drop(columns="domain")
    ),
    "plane": lambda: figures.joint_plane(plane(), "Mean of $all"),
}


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.filterwarnings("error")
def test_every_figure_is_drawn_and_saved(name, tmp_path):
    figure = DRAWN[name]()
    assert isinstance(figure, Figure) and not plt.get_fignums()
    files = figures.save(figure, tmp_path / "new" / "figure", ["png"])
    assert files == [tmp_path / "new" / "figure.png"] and files[0].stat().st_size > 3000
    assert list(files[0].parent.iterdir()) == files


def test_panels_have_categories_or_a_logarithmic_axis():
    ours, published = DRAWN["panels"]().axes
    assert [t.get_text() for t in ours.get_xticklabels()] == ["small", "large"]
    assert published.get_xscale() == "log"
    dashed = [line for line in ours.lines if line.get_linestyle() == "--"]
    assert len(ours.lines) == 4 and len(dashed) == 2
    assert [line.get_ydata().tolist() for line in ours.lines] == [[30, 35]] * 4
    assert [np.round(line.get_xdata()).tolist() for line in ours.lines] == [[0, 1]] * 4
    assert [text.get_text() for text in published.texts] == ["model 0.15", "model 5.0"]
    dots = [line for line in published.lines if line.get_marker() in ("o", "s")]
    assert len(dots) == 4 and {line.get_linestyle() for line in dots} == {"None"}


def test_points_at_one_place_share_a_text():
    close = sized().query("panel != 'ours'").replace({"x": {5.0: 0.155}})
    axis = figures.lines_in_panels(close).axes[0]
    assert [text.get_text() for text in axis.texts] == ["model 0.15\nmodel 5.0"]


def test_statistics_add_up_images_but_not_classes():
    text = words(DRAWN["statistics"]())
    assert "Classes (26 IP, 26 OOP)" in text and "Images (400 IP, 400 OOP)" in text


def test_bars_stand_at_the_values_of_the_table():
    figure = DRAWN["bars"]()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [60] * 4 + [12] * 4
    assert "chance" in words(figure) and "Insects &\nSpiders" in words(figure)


def test_lines_go_through_the_values_of_the_table():
    axis = DRAWN["one panel"]().axes[0]
    lines = {tuple(line.get_ydata()) for line in axis.lines}
    assert {(1.0, 2.0, 4.0), (11.0, 12.0, 14.0), (30.0, 30.0)} <= lines


def test_risks_are_drawn_in_percent_by_coverage():
    lines = DRAWN["risks"]().axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[20, 60, 100]] * 2
    assert list(lines[0].get_ydata()) == [10, 30, 50]


def test_right_and_wrong_differ_without_colour():
    figure = DRAWN["named"]()
    dashes = [axis.spines["left"].get_linestyle() for axis in figure.axes]
    assert len(set(dashes[:2])) == 2 and "right" in words(figure) and "wrong" in words(figure)


def test_names_are_not_taken_for_mathematics():
    assert r"a \$method_ of {ours}" in words(DRAWN["shots"]())
    assert r"<b>\$x_1\$</b>" in words(DRAWN["examples"]())


def test_shares_are_stacked_and_gaps_stand_in_order():
    bars = figures.share_bars(shares()).axes[0].patches
    assert {bar.get_x() + bar.get_width() for bar in bars} == {20, 70, 100}
    axis = figures.gap_intervals(gaps(), "IP less OOP").axes[0]
    ticks = {
        label.get_text(): y
        for label, y in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)
    }
    assert ticks["names"] > ticks[r"\$k\$-means"]


def test_margin_curves_rise_to_all_images():
    axes = figures.margin_curves(margins()).axes
    curves = [line.get_ydata() for axis in axes for line in axis.lines if len(line.get_xdata()) > 2]
    assert len(curves) == 4 and all(curve[-1] == 100 for curve in curves)


def test_methods_keep_their_looks_and_differ_in_shape_too():
    looks = figures.line_styles(["CoOp", "new", "FSNL", *(f"m{i}" for i in range(12))])
    assert looks["FSNL"] == figures.line_styles(["FSNL"])["FSNL"]
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)


def test_labels_are_moved_apart_by_the_least():
    found = figures._apart([0.0, 0.1, 0.2, 5.0], 1.0)
    assert np.allclose(np.diff(found)[:2], 1.0) and found[3] == 5.0
    assert np.isclose(np.mean(found[:3]), 0.1)
    assert figures._apart([1.0, 3.0], 1.0) == [1.0, 3.0]


def test_the_protocol_is_sorted_and_hollow_where_it_cannot_tell():
    axes = DRAWN["protocol"]().axes
    assert [text.get_text() for text in axes[0].get_yticklabels()] == [
        "zero-shot",
        "linear probe",
        r"a \$method_ of {ours}",
        "FSNL",
    ]
    for axis, shift in zip(axes[:2], (0, -10), strict=True):
        dots = [line for line in axis.lines if len(line.get_xdata()) == 1]
        found = [(line.get_xdata()[0], line.get_markerfacecolor() == "white") for line in dots]
        values = [(20, False), (40, False), (45, True), (50, False)]
        assert found == [(value + shift, hollow) for value, hollow in values]
    assert "not told apart from FSNL" in words(DRAWN["protocol"]())
    assert "not told apart" not in words(DRAWN["bare protocol"]())


def test_a_protocol_that_lacks_something_is_refused_before_it_is_drawn():
    with pytest.raises(ValueError, match="unknown measure 'h'"):
        figures.protocol_overview(protocol_rows(), measures=["h"])
    with pytest.raises(ValueError, match="columns method, ip, oop, own"):
        figures.protocol_overview(protocol_rows(), curves().drop(columns="own"))
    assert not plt.get_fignums()


def test_reliability_dots_stand_at_the_values_of_the_table():
    axis = DRAWN["reliability"]().axes[0]
    points = axis.collections[-1].get_offsets()
    np.testing.assert_allclose(points[:, 1], 0.8 * points[:, 0])
    assert len(points) == 9 and axis.get_title(loc="left") == "FSNL\nECE 12.3 %"


def test_every_one_of_many_methods_is_named_apart_and_within_the_panel():
    figure = DRAWN["many methods"]()
    figure.draw_without_rendering()
    axis = figure.axes[0]
    boxes = sorted((t.get_window_extent() for t in axis.texts), key=lambda box: box.y0)
    assert len(boxes) == 18
    assert all(one.y1 <= other.y0 + 1 for one, other in pairwise(boxes))
    frame = axis.get_window_extent()
    assert boxes[0].y0 > frame.y0 - 8 and boxes[-1].y1 < frame.y1 + 8
    assert boxes[-1].x1 <= figure.bbox.x1
    lines = {tuple(line.get_ydata()) for line in axis.lines}
    assert {(31, 32, 34), (47, 48, 50), (20, 20)} <= lines


def test_names_move_from_before_to_after():
    table = moves().query("panel == 'one'").drop(columns="panel")
    axis = figures.names_in_space(table).axes[0]
    arrows = [text for text in axis.texts if getattr(text, "arrow_patch", None)]
    found = [(arrow.xyann, arrow.xy) for arrow in arrows]
    ends = [table[table["kind"] == kind][["x", "y"]].to_numpy() for kind in ("before", "after")]
    np.testing.assert_allclose(found, np.stack(ends, axis=1))
    assert sum(r"\$class" in text.get_text() for text in axis.texts) == 4
    with pytest.raises(ValueError, match="kind before and one of kind after"):
        figures.names_in_space(table[table["kind"] != "before"])
    with pytest.raises(ValueError, match="unknown kind of point"):
        figures.names_in_space(table.replace("ip", "IP name"))
    assert not plt.get_fignums()


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"domain": ["x"]})])
def test_a_table_that_does_not_fit_is_refused(table):
    with pytest.raises(ValueError, match="columns domain, subset, value; it has"):
        figures.subset_bars(table)


def test_figures_do_not_import_torch():
    code = "import sys, lbutils.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_sweep_of_any_number_of_lines():
    for lines in (1, 50, 60, 300):
        rows = [(f"run {i}", x, i + x, i, i + 2 * x, "m") for i in range(lines) for x in (1, 2)]
        table = pd.DataFrame(rows, columns=["run", "x", "value", "low", "high", "metric"])
        figure = figures.sweep_lines(table)
        (axis,) = figure.axes
        assert len(axis.containers) == lines and max(figure.get_size_inches()) < 20
        assert bool(figure.legends) == (lines <= 60)
        assert ("too many to name" in axis.get_title(loc="left")) == (lines > 60)


def fonts(monkeypatch, *files):
    """Only these fonts are installed, beside matplotlib's own."""
    own = [f for f in font_manager.fontManager.ttflist if f.name.startswith(("DejaVu", "STIX"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*own, *files])
    monkeypatch.setattr(figures, "_fallbacks", [])
    figures._find_fonts.cache_clear()
    figures._warn_of_fonts.cache_clear()


def named(name):
    table = points()
    return table.assign(name=[name if i == 0 else text for i, text in enumerate(table["name"])])


def test_letters_that_no_font_has_are_told_once(monkeypatch, tmp_path, recwarn):
    fonts(monkeypatch)
    for _ in range(2):
        figure = figures.tsne_scatter(named("東京 きつね 여우"))
        figures.save(figure, tmp_path / "a", ["png"])
        figures.preview(figure)
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == 1 and "install Noto Sans CJK" in told[0]
    figures.tsne_scatter(named("ไทย"))
    assert "install Noto Sans (" in str(recwarn.list[-1].message)
    # Names of the miniature need none.
    count = len(recwarn)
    figures.tsne_scatter(named("jalapeño — crème"))
    assert len(recwarn) == count


def test_letters_come_from_a_font_that_has_them(monkeypatch, tmp_path, recwarn):
    """Any installed font will do: here one with letters of mathematics that the usual one lacks."""
    (file,) = [
        f for f in font_manager.fontManager.ttflist
        if f.name == "STIXNonUnicode" and f.style == "normal" and f.weight == 400
    ]  # fmt: skip
    usual = font_manager.get_font(
        font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))
    )
    there = font_manager.get_font(file.fname).get_charmap()
    letter = chr(next(c for c in there if c > 0xE000 and not usual.get_char_index(c)))
    monkeypatch.setattr(figures.unicodedata, "category", lambda _: "Lo")
    fonts(monkeypatch, file)
    figure = figures.tsne_scatter(named(letter * 3))
    figures.save(figure, tmp_path / "a", ["png"])
    assert figures._fallbacks == ["STIXNonUnicode"]
    texts = [t for t in figure.findobj(Text) if letter in t.get_text()]
    assert texts and all("STIXNonUnicode" in t.get_fontfamily() for t in texts)
    assert not list(recwarn)
