"""Pages of the site: links led to pages, the map's places there, broken links seen."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from lbutils.measure import published
from lbutils.run import find_notebooks

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("site_build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)
MAP = yaml.safe_load((ROOT / "docs" / "map.yaml").read_text(encoding="utf-8"))
# Where the paper has what a notebook is about, by the numbers that its sections really have.
SECTIONS = {"01": "4.1", "02": "4.2", "03": "4.2", "04": "5.1", "05": "5.3", "06": "6", "07": "5.1"}


@pytest.mark.parametrize("row", MAP, ids=lambda row: f"{row['place']} {row['what']}")
def test_a_row_of_the_map_leads_somewhere(row):
    (notebook,) = find_notebooks([row["notebook"]])
    build.heading_of(notebook, row["cell"])  # KeyError if there is no such cell
    if "claim" in row:
        assert row["claim"] in build.claim_rows()
    if "published" in row:
        assert len(published.table(row["published"]))


def test_every_claim_has_a_place_on_the_map():
    listed = {row["claim"] for row in MAP if "claim" in row}
    assert len(listed) >= len(published.CLAIMS) and listed <= set(build.claim_rows())


def test_a_claim_stands_on_the_map_where_its_published_figure_stands_in_the_paper():
    where = published.claims().set_index("claim")["where"]
    for row in (row for row in MAP if "claim" in row):
        assert where[row["claim"]] in row["place"], row


def test_the_map_has_the_figures_of_readme():
    page = build.map_page()
    for row in (row for row in MAP if "claim" in row):
        own = build.claim_rows()[row["claim"]]
        assert f"| {own['ours']} | {own['verdict']} |" in page
    committed = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    assert committed == page, "run: python docs/build.py --map"


@pytest.mark.parametrize(("number", "section"), SECTIONS.items())
def test_a_notebook_names_the_papers_section_by_its_number(number, section):
    (notebook,) = find_notebooks([number])
    text = nbformat.read(notebook, 4).cells[0].source
    named = re.findall(r"sections? (\d(?:\.\d)?)", text)
    assert named[0] == section


def test_no_docstring_has_a_section_of_the_paper_without_its_subsection():
    pattern = re.compile(
        r"section (?:4|5) of the paper|paper's \(section (?:4|5)\)|, section [45] of"
    )
    found = [path for path in (ROOT / "lbutils").rglob("*.py") if pattern.search(path.read_text())]
    assert not found


def test_links_lead_to_pages_or_become_text():
    text = "[a](../mini/README.md) [b](map.yaml) [c](https://x.org) [d](#here) ![e](e.png)"
    said = build.relinked(text, "data/published/README.md")
    assert said == "[a](miniature.md) b [c](https://x.org) [d](#here) ![e](e.png)"
    own = build.relinked("[04](notebooks/04_few_shot_name_learning.ipynb#x)", "README.md")
    assert own == "[04](notebooks/04_few_shot_name_learning.ipynb#x)"
    text = "[card](../data/mini/README.md) [2](02_clustering_analysis.ipynb) [c](../LICENSE)"
    said = build.relinked(text, "notebooks/03_zero_shot_gaps.ipynb")
    assert said == "[card](../miniature.md) [2](02_clustering_analysis.ipynb) c"


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.html").write_text("<p id='there'></p><a href='../index.html#no'></a>")
    page = "<h1 id='top'></h1><a href='a/b.html#there'></a><a href='#top'></a><img src='c.png'>"
    (tmp_path / "index.html").write_text(page + "<a href='https://x.org'></a>")
    wanted = ["a/b.html: ../index.html#no", "index.html: c.png"]
    assert sorted(build.broken_links(tmp_path)) == wanted


def test_constants_are_not_told_by_what_they_are_made_of():
    page = build.reference_page()
    assert ".. py:data:: lbutils.rivals.RIVALS\n" in page and "autodata" not in page


def test_pictures_in_the_text_of_a_notebook_become_files():
    (notebook,) = find_notebooks(["03"])
    (name, picture), *_ = build.attached(notebook).items()
    assert picture.startswith(b"\x89PNG")
    text = build.relocated(notebook)
    assert f"]({name})" in text and "attachment" not in text
