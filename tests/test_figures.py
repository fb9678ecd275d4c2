from __future__ import annotations

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lbutils import figures

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


DRAWN = {
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


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"domain": ["x"]})])
def test_a_table_that_does_not_fit_is_refused(table):
    with pytest.raises(ValueError, match="columns domain, subset, value; it has"):
        figures.subset_bars(table)


def test_figures_do_not_import_torch():
    code = "import sys, lbutils.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
