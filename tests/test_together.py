"""All notebooks at once: what is run again, where results go, what stands beside them."""

import io
import json
import os
import re
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest
from conftest import save_notebook
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from lbutils.figures import style
from lbutils.measure import published, records
from lbutils.run import (
    commands,
    execution,
    find_notebooks,
    notebooks,
    page,
    parameters,
    profiles,
)

pytestmark = pytest.mark.usefixtures("full_runs")
PARAMETERS = 'out = ""\nshots = 4'
WORK = """
import pathlib
folder = pathlib.Path(out)
(folder / f"ran-{shots}").mkdir(exist_ok=True)
times = len(list((folder / f"ran-{shots}").iterdir()))
(folder / f"ran-{shots}" / str(times)).touch()
if shots == 13:
    raise RuntimeError("no such thing")
"""


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two small notebooks, in place of the committed ones, and profiles that change one."""
    own = []
    for number in ("01_first", "02_second"):
        own.append(save_notebook(tmp_path / f"{number}.ipynb", PARAMETERS, WORK))
        monkeypatch.setitem(parameters.OWN, number, {"shots": 4})
    monkeypatch.setattr(notebooks, "find_notebooks", lambda names=(): own)
    known = {
        "p": {"about": "one shot", "notebooks": {"02": {"shots": 1}}},
        "bad": {"about": "", "notebooks": {"02": {"shots": 13}}},
    }
    monkeypatch.setattr(profiles, "profiles", lambda: known)
    return own


def ran(out, shots):
    return len(list((out / f"ran-{shots}").glob("*")))


@pytest.mark.slow
def test_what_has_run_is_not_run_again_and_what_failed_is(two, tmp_path):
    out = tmp_path / "out"
    run = {"out": out, "progress": False, "resume": True}
    for _ in range(2):
        outcomes = notebooks.run(two, profile="p", **run)
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert all(outcome.seconds > 0 and outcome.page for outcome in outcomes)
        assert (ran(out, 4), ran(out, 1)) == (1, 1)
    notebooks.run(two[1:], profile="p", **run | {"resume": False})
    assert (ran(out, 4), ran(out, 1)) == (1, 2)
    # Another code is another run.
    text = two[0].read_text(encoding="utf-8").replace("no such thing", "no such thing at all")
    two[0].write_text(text, encoding="utf-8")
    notebooks.run(two, profile="p", **run)
    assert (ran(out, 4), ran(out, 1)) == (2, 2)
    run["out"] = bad = tmp_path / "bad"
    for times in (1, 2):
        outcomes = notebooks.run(two, profile="bad", **run)
        assert "no such thing" in outcomes[1].error and ran(bad, 13) == times
    assert ran(bad, 4) == 1


@pytest.mark.slow
def test_two_at_a_time(two, tmp_path):
    outcomes = notebooks.run(two, profile="p", out=tmp_path / "out", workers=2, progress=False)
    assert [outcome.notebook for outcome in outcomes] == two
    assert [outcome.error for outcome in outcomes] == [None, None]
    took = pd.read_csv(tmp_path / "out" / "times.csv")
    assert took["notebook"].tolist() == [path.stem for path in two]
    # A kernel holds some memory and takes some time.
    assert (took["memory"] > 20).all() and (took["seconds"] > 0).all()
    assert set(took["profile"]) == {"p"} and (took["cores"] == os.cpu_count()).all()


def test_a_folder_with_the_full_results_is_refused(two, tmp_path):
    out = tmp_path / "out"
    path = records.write_record(out / "records", "02_second", {"seed": 0}, provenance={})
    with pytest.raises(ValueError, match=r"made with other settings \(defaults\)"):
        notebooks.run(two, profile="p", out=out)
    assert path.is_file() and not (out / "notebooks").exists()


def test_commands_and_profiles(two, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parameters, "results_dir", lambda: tmp_path)
    quick = {"quick": profiles.profiles()["p"], **profiles.profiles()}
    monkeypatch.setattr(profiles, "profiles", lambda: quick)

    def place(*arguments):
        assert commands.main([*arguments, "--dry-run"]) == 0
        return re.search(r"results would go to (.*)", capsys.readouterr().out)[1]

    assert place("full") == str(tmp_path / "mini")
    assert place("run") == str(tmp_path / "mini--quick")
    assert place("run", "--profile", "p") == str(tmp_path / "mini--p")
    # Another value than the default of one of them, and so no part of the full run.
    monkeypatch.setattr(parameters, "of_notebook", lambda path: {
        "shots": {"01_first": 4, "02_second": 8}[path.stem], "out": ""})  # fmt: skip
    for shots in ("4", "8"):
        assert place("full", "-p", f"shots={shots}").startswith(str(tmp_path / "mini--shots="))
    assert place("full", "-p", "shots=2") == place("run", "-p", "shots=2").removesuffix("--quick")
    monkeypatch.setenv("LBUTILS_PROFILE", "p")
    for command in ("run", "full"):
        assert commands.main([command]) == 2 and "unset it" in capsys.readouterr().err
    monkeypatch.delenv("LBUTILS_PROFILE")
    assert commands.main(["run", "--profile", "qick"]) == 2
    assert "Did you mean 'quick'" in capsys.readouterr().err
    assert commands.main(["full", "a.yaml"]) == 2 and "grid" in capsys.readouterr().err
    assert commands.main(["run", "a.yaml", "--profile", "p"]) == 2


def test_a_quick_run_stands_beside_the_full_one():
    full = page.full_figures()
    assert set(full.index) == {*published.CLAIMS, *published.LOTS}
    claims = pd.DataFrame({
        "id": full.index, "claim": full.index, "ours": 1.25, "low": 0.5, "high": 2.0,
        "unit": "points", "published": 3.0, "verdict": "not shown", "note": "",
    })  # fmt: skip
    lines = page.format_claims(page.beside_full(claims)).splitlines()[2:]
    for line, row in zip(lines, full.itertuples(), strict=True):
        assert "1.2 [0.5, 2.0] points" in line and line.endswith("not shown")
        assert f"{row.ours:.1f} [{row.low:.1f}, {row.high:.1f}] points" in line


def test_times_are_of_notebooks_and_profiles_that_are_there():
    table, stems = page.full_times(), {path.stem for path in find_notebooks()}
    assert set(table["notebook"]) <= stems
    assert set(table["profile"]) <= {page.FULL, *profiles.profiles()}
    assert not table.duplicated(["notebook", "profile"]).any()
    assert (table[["seconds", "cpu", "memory", "cores"]] > 0).all(axis=None)


def test_how_far_a_notebook_is_shows_in_its_file(tmp_path):
    marks = ["completed", "completed", "running", "pending"]
    cells = [new_code_cell("", metadata={"papermill": {"status": mark}}) for mark in marks]
    nbformat.write(new_notebook(cells=cells), path := tmp_path / "01_x.ipynb")
    assert notebooks._share(path, 0.0) == 0.5
    path.write_text(json.dumps({"cells": [{"cell_type": "code"}]}))
    assert notebooks._share(path, 0.3) == notebooks._share(tmp_path / "02_x.ipynb", 0.3) == 0.3


def test_jobs_go_the_longest_first_and_are_told_by_their_notebook(tmp_path):
    order, jobs = [], {}
    for name in ("a", "b", "c"):
        jobs[tmp_path / f"{name}.ipynb"] = (name,)
    took = {"b": 90.0, "c": 5.0}
    found = dict(
        notebooks._spread(order.append, jobs, tmp_path, workers=1, seconds=took, progress=False)
    )
    assert order == ["b", "a", "c"] and set(found) == set(jobs)


def test_links_of_exported_pages_lead_somewhere(tmp_path):
    home, out = tmp_path / "notebooks", tmp_path / "runs" / "mini"
    for file in (home / "02_b.ipynb", home / "03_c.ipynb", tmp_path / "data" / "a b.md",
                 out / "02_b.html"):  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    html = ('<a href="02_b.ipynb"> <a href="03_c.ipynb#x"> <a href="../data/a%20b.md#y">'
            ' <a href="#z"> <a href="https://c.d/02_b.ipynb"> <a href="gone.md">')  # fmt: skip
    made = page.relinked(html, home, out)
    assert re.findall('href="(.*?)"', made) == [
        "02_b.html", "../../notebooks/03_c.ipynb#x", "../../data/a%20b.md#y", "#z",
        "https://c.d/02_b.ipynb", "gone.md",
    ]  # fmt: skip
    assert page.relinked(made, home, out) == made
    (out / "03_c.html").touch()
    assert '"03_c.html"' in page.relinked(made, home, out)


def test_a_figure_of_the_index_says_what_it_shows(tmp_path):
    figure = style.described(style.Drawing(figsize=(1, 1)), "Bars & points. " + "word " * 40)
    (file,) = style.save(figure, tmp_path / "figures" / "01_bars", ["png"])
    bare = tmp_path / "figures" / "02_bare.png"
    Image.new("L", (2, 2)).save(bare)
    html = page.index_page([], page.claims_table(tmp_path), tmp_path, {}, {}, "defaults")
    assert f"alt='{'Bars &amp; points. ' + 'word ' * 39}word" in html
    assert "<span>01: Bars &amp; points. word" in html and "…</span>" in html
    assert "alt='02 bare'" in html and file.is_file()


def test_the_index_leads_to_the_tables_that_notebooks_show_in_part(tmp_path):
    def html():
        return page.index_page([], page.claims_table(tmp_path), tmp_path, {}, {}, "defaults")

    assert "tables/" not in html()
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "04_protocol.csv").touch()
    assert "<a href='tables/04_protocol.csv'>04_protocol.csv</a>." in html()


@pytest.mark.parametrize(
    ("cores", "free", "expected"),
    [(8, 16.0, 2), (1, 16.0, 1), (2, 3.1, 1), (2, 0.5, 1), (2, 4.1, 2)],
)
def test_two_notebooks_at_a_time_where_there_is_room(monkeypatch, cores, free, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    memory = psutil.virtual_memory()._replace(available=free * 1e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert notebooks.at_a_time() == expected


def test_what_processes_took_is_measured(monkeypatch):
    monkeypatch.setattr(execution, "_LOOK", 0.2)
    with execution.measured() as took:
        os.system("python3 -c \"import time; x = 'x' * 10**8; time.sleep(1.5)\"")
        time.sleep(0.1)
    assert took["memory"] > 100 and took["cpu"] > 0


def test_processes_that_were_there_before_are_not_measured(monkeypatch):
    monkeypatch.setattr(execution, "_SOON", 0.1)
    hold = "x = b'x' * 2 * 10**8; print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as other:
        other.stdout.readline()  # it holds its 200 MB by now
        with execution.measured() as took:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)"], check=True)
        other.communicate(b"\n")
    assert 0 < took["memory"] < 150


@pytest.mark.skipif(not psutil.LINUX, reason="others do not tell what processes share")
def test_memory_that_processes_share_counts_once(monkeypatch):
    monkeypatch.setattr(execution, "_LOOK", 0.2)
    fork = "import os, time; x = b'x' * 10**8; os.fork(); time.sleep(1.5)"
    with execution.measured() as took:
        subprocess.run([sys.executable, "-c", fork], check=True)
        time.sleep(0.1)
    assert 100 < took["memory"] < 180


def test_the_bar_says_how_far_notebooks_are_while_they_run(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def work(path):
        path.parent.mkdir(exist_ok=True)
        marks = ("completed", "pending")
        cells = [new_code_cell("", metadata={"papermill": {"status": mark}}) for mark in marks]
        nbformat.write(new_notebook(cells=cells), path)
        time.sleep(0.5)
        path.write_text("{")  # in the middle of being written
        time.sleep(0.3)

    told = Terminal()
    monkeypatch.setattr(notebooks, "_PAUSE", 0.05)
    monkeypatch.setattr(sys, "stderr", told)
    path = tmp_path / "notebooks" / "01_x.ipynb"
    list(notebooks._spread(work, {path: (path,)}, tmp_path, workers=1, seconds={}))
    after = told.getvalue().partition(" 50 %")[2]
    assert " left" in after and "  0 %" not in after
    assert after.rpartition("notebooks:")[2].startswith(" 100 %")
