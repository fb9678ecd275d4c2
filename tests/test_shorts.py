"""Boxes at the top of notebooks: they say what is committed, and what the outputs hold."""

import json
import re

import pandas as pd
import pytest

from lbutils.__main__ import main
from lbutils.measure import records
from lbutils.run import find_notebooks, lessons, page, parameters, shorts

BOXED = shorts.boxed()
each = pytest.mark.parametrize("path", BOXED, ids=[path.stem for path in BOXED])


def title(path):
    return parameters.read_notebook(path)["cells"][0]


def number(path):
    return path.stem.split("_")[0]


def test_boxes_are_of_notebooks_that_are_there():
    assert set(shorts.shorts()) == {number(path) for path in BOXED}


@each
def test_a_box_is_as_it_should_be(path):
    """Written anew from the committed table and the stored outputs, nothing changes."""
    assert shorts.renewed(path) == path.read_text(encoding="utf-8"), "run: lbutils keep"


@each
def test_a_box_answers_on_the_first_screen(path):
    source = "".join(title(path)["source"])
    heading, mark, opening = source.split("\n\n")[:3]
    assert heading.startswith("# ") and mark == shorts.BEGIN
    assert opening.startswith("**In short.** *") and len(opening.split()) < 75
    box = source[: source.index(shorts.END)]
    lines = [line for line in box.splitlines() if line.startswith("|")]
    heads, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert 1 <= len(rows) <= 4
    for name, *column in zip(heads, *rows, strict=True):
        assert any(column), f"nothing stands under {name}"
        assert name != "verdict" or set(column) <= {*records.VERDICTS, ""}
    assert re.search(r"!\[[^\]]{20,}\]\(attachment:in-short.png\)", box)


@each
def test_figures_that_are_no_claims_stand_in_the_outputs(path):
    cells = parameters.read_notebook(path)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    kinds = ("text/plain", "text/markdown")
    texts = [output.get("data", {}).get(kind, "") for output in outputs for kind in kinds]
    texts += [output.get("text", "") for output in outputs]
    printed = "\n".join("".join(text) for text in texts)
    for row in shorts.shorts()[number(path)]["rows"]:
        seen = row.get("seen", [])
        for line in seen:
            assert line in printed, line
        told = re.findall(r"\d+\.?\d*", row.get("ours", ""))
        assert all(re.search(rf"(?<![\d.]){re.escape(n)}(?![\d])", "\n".join(seen)) for n in told)


def test_an_answer_to_another_verdict_is_refused(monkeypatch):
    (path,) = find_notebooks(["03"])
    told = shorts.shorts()["03"]
    table = page.full_figures()
    table.loc["zero_shot_fails", "verdict"] = "contradicted"
    monkeypatch.setattr(page, "full_figures", lambda: table)
    with pytest.raises(ValueError, match="zero_shot_fails is contradicted.*say it anew"):
        shorts.box(path, told)


def test_a_figure_of_a_cell_that_is_not_there_is_refused():
    (path,) = find_notebooks(["03"])
    told = shorts.shorts()["03"]
    told["figure"]["cell"] += "x"
    with pytest.raises(ValueError, match="shorts.yaml: unknown cell .* Did you mean"):
        shorts.box(path, told)


@pytest.mark.usefixtures("full_runs")
def test_the_full_run_is_kept_unless_another_folder_is_named(tmp_path, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(shorts, "keep", lambda folder: kept.append(folder) or ["ip_cost"])
    assert main(["keep"]) == main(["keep", str(tmp_path)]) == 0
    assert kept == [parameters.place({}), tmp_path]
    assert capsys.readouterr().out.count("1 claims kept: ip_cost") == 2


def test_what_a_full_run_found_is_kept(tmp_path, monkeypatch):
    data, notebooks = tmp_path / "data", tmp_path / "notebooks"
    (data / "results").mkdir(parents=True)
    notebooks.mkdir()
    (source,) = find_notebooks(["03"])
    copy = notebooks / source.name
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    table = page.full_figures()
    table.to_csv(data / "results" / "claims.csv", float_format="%.1f")
    before = page.full_times()
    before.to_csv(data / "results" / "times.csv", index=False)
    for module in (shorts, page):
        monkeypatch.setattr(module, "data_dir", lambda: data)
    monkeypatch.setattr(shorts, "find_notebooks", lambda names=(): [copy])
    claim = {"id": "zero_shot_fails", "ours": 51.04, "low": -0.04, "high": 60.0}
    claim |= {"verdict": "reproduced", "published": 34.7}
    quick = claim | {"ours": 1.0}
    folder = tmp_path / "run"
    for settings, found in (({}, claim), ({"seed": 1}, quick)):
        records.write_record(folder / "records", source.stem, {}, claims=[found],
                             settings=settings, provenance={})  # fmt: skip
    took = {"notebook": source.stem, "seconds": 9.0, "cpu": 8.0, "memory": 1234.0, "cores": 2}
    took |= {"date": "2026-01-01"}
    pd.DataFrame([took | {"profile": p} for p in ("quick", "full")]).to_csv(
        folder / "times.csv", index=False
    )
    (tmp_path / "README.md").write_text(f"| [a](notebooks/{source.name}) | b | c |\n# d\n")
    assert shorts.keep(folder) == ["zero_shot_fails"]
    after = page.full_times().set_index(["profile", "notebook"])
    assert after.loc[[("quick", source.stem), ("full", source.stem)], "cpu"].tolist() == [8, 8]
    rest = before[before["notebook"] != source.stem].set_index(["profile", "notebook"])
    assert after.loc[rest.index, "cpu"].tolist() == rest["cpu"].tolist()
    readme = (tmp_path / "README.md").read_text()
    assert readme == f"| [a](notebooks/{source.name}) | b | 8 s | 1.2 GB |\n# d\n"
    now = page.full_figures()
    assert now.loc["zero_shot_fails", ["ours", "low", "high"]].tolist() == [51.0, 0.0, 60.0]
    assert now.drop(index="zero_shot_fails").equals(table.drop(index="zero_shot_fails"))
    assert "51.0\u00a0[0.0,\u00a060.0] | 34.7 | reproduced" in "".join(title(copy)["source"])


def test_students_copies_do_not_begin_with_the_answer(tmp_path):
    for solved in (False, True):
        for path in BOXED[:1]:
            made = lessons.copy_for_lesson(path, lessons.read_lesson(path), solved=solved)
            assert ("In short" in made.cells[0].source) == solved
            assert bool(made.cells[0].get("attachments")) == solved
            assert json.dumps(made)
