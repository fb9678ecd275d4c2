"""Every figure of README and `findings` stands in the stored outputs of the notebook it names."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from lbutils.measure import published, records
from lbutils.run import page, shorts

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?![\w.]*\d)")


@cache
def outputs(notebook):
    """The decimal numbers that a notebook printed, in their order, tags and styles left out."""
    (path,) = (ROOT / "notebooks").glob(f"{notebook}_*.ipynb")
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = data.get("text/html") or data.get("text/markdown") or data.get("text/plain", "")
            text = "".join(text) + "".join(output.get("text", ""))
            text = re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)
            found += [float(number) for number in NUMBER.findall(text)]
    return found


def stands(numbers, notebook):
    """Whether a notebook printed these numbers one after the other, rounded as they are here."""
    wanted = [float(number) for number in numbers]
    digits = [len(number.split(".")[1]) for number in numbers]
    said, size = outputs(notebook), len(wanted)
    return any(
        all(abs(a - b) <= 0.5001 * 10**-d for a, b, d in zip(wanted, part, digits, strict=True))
        for part in (said[i : i + size] for i in range(len(said) - size + 1))
    )


def figures(text):
    """Figures of a text: a number with its interval belongs together, others stand alone."""
    found = []
    for match in re.finditer(r"([-+]?\d+\.\d+)( \[([^\]]*)\])?", text.replace("\n", " ")):
        ends = NUMBER.findall(match[3] or "")
        found.append([match[1], *ends])
    inside = {number for own in found if len(own) > 1 for number in own[1:]}
    return [own for own in found if len(own) > 1 or own[0] not in inside]


@cache
def results():
    """What README says came out, and the findings in full that it leads to."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    findings = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    return text[text.index("## What came out") : text.index("## Read\n")] + findings


def rows(heading):
    table = results()[results().index(heading) :].split("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]


@pytest.mark.parametrize(
    "row", [*rows("| the paper's claim"), *rows("| by lot")], ids=lambda row: f"{row[0]}: {row[1]}"
)
def test_claims_stand_in_the_notebook_that_they_name(row):
    _, _, ours, paper, _, notebook = row
    assert figures(ours)
    for numbers in figures(ours):
        assert stands(numbers, notebook), (numbers, notebook)
    printed = {round(value, 1) for value in published.claims()["published"].dropna()}
    for number, *_ in figures(paper):
        assert stands([number], notebook) or round(float(number), 1) in printed, number


@pytest.mark.parametrize("row", [*rows("| the paper's claim"), *rows("| by lot")], ids=" ".join)
def test_a_verdict_is_one_of_four(row):
    assert row[4].startswith(records.VERDICTS), row[4]


def test_what_is_not_told_apart_is_not_called_level():
    """Level is what lies within a margin: what no test tells apart is called no more than that."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert cell["cell_type"] != "code" or "level with" not in "".join(cell["source"]), path


@pytest.mark.parametrize("row", list(page.full_figures().itertuples()), ids=lambda row: row.Index)
def test_the_committed_claims_stand_in_their_notebooks(row):
    numbers = [f"{value:.1f}" for value in (row.ours, row.low, row.high)]
    assert stands(numbers, row.notebook[:2]), numbers


@pytest.mark.parametrize("row", rows("| four shots"), ids=lambda row: row[0])
def test_methods_stand_in_notebook_04(row):
    assert len(row) == 4
    for cell in row[1:]:
        (numbers,) = figures(cell)
        assert len(numbers) == 3 and stands(numbers, "04"), numbers


def test_figures_in_sentences_stand_in_the_notebook_that_the_paragraph_names():
    told = 0
    for paragraph in re.split(r"\n\n|\n(?=- )", results()):
        named = re.findall(r"notebook (\d\d)", paragraph)
        if paragraph.startswith("|") or not named:
            continue
        for numbers in figures(paragraph):
            assert any(stands(numbers, notebook) for notebook in named), (numbers, named)
            told += 1
    assert told >= 15


@pytest.mark.parametrize("wrong", [["40.8", "35.9", "46.3"], ["35.9", "40.8", "46.2"], ["40.82"]])
def test_a_wrong_figure_is_seen(wrong):
    assert stands(["40.8", "35.9", "46.2"], "04") and not stands(wrong, "04")


def test_times_of_notebooks_are_those_that_were_measured():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert shorts.timed(text) == text, "run: lbutils keep"
    took = page.full_times().query("profile == 'quick'")
    for row in took.itertuples():
        (line,) = [line for line in text.splitlines() if f"](notebooks/{row.notebook}." in line]
        assert line.endswith(f" | {row.cpu:.0f} s | {row.memory / 1000:.1f} GB |")
