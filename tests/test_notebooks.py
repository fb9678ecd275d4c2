"""The notebooks as they are committed: their shape, their outputs, and that nbval watches them."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from lbutils._util import interval_text
from lbutils.data import folder
from lbutils.measure import metrics, records
from lbutils.run import notebooks, parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
KILOBYTE = 1000
CHECKED = "nbval-check-output"
VERDICT = re.compile(r"(not )?reproduced|not shown|contradicted|not run")
TAGS = {"parameters", "solution", CHECKED, "hide-input"}
# Home folders, and roots that hold machines' files; a lone "/" in a caption is no path.
PATHS = re.compile(r"(?<![\w.:/<])/(?:home|root|Users|tmp|work|mnt|opt|usr|var|private)/|[A-Z]:\\")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@cache
def read(path):
    """A notebook, to read from only."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def printed(cell):
    """Everything that a cell's outputs say in words."""
    for output in cell.outputs:
        yield output.get("text", "")
        data = output.get("data", {})
        yield from (data[kind] for kind in data if kind.startswith("text/"))
        yield from output.get("traceback", [])


def test_notebooks_are_numbered_without_gaps():
    numbers = [int(path.stem.split("_")[0]) for path in NOTEBOOKS]
    assert numbers == list(range(1, len(NOTEBOOKS) + 1))


@each
def test_a_notebook_leads_to_the_one_before_and_the_one_after(path):
    title = read(path).cells[0].source
    at = NOTEBOOKS.index(path)
    for beside in NOTEBOOKS[max(0, at - 1) : at] + NOTEBOOKS[at + 1 : at + 2]:
        assert f"]({beside.name})" in title


@each
def test_shape(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert 15 <= len(notebook.cells) <= 25
    assert notebook.cells[0].cell_type == "markdown"
    number = int(path.stem.split("_")[0])
    assert notebook.cells[0].source.startswith(f"# {number}. ")
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids)) and not any(re.fullmatch("[0-9a-f]{8}", id) for id in ids)
    assert {tag for cell in notebook.cells for tag in tags(cell)} <= TAGS
    assert any("solution" in tags(cell) for cell in notebook.cells)
    assert any(CHECKED in tags(cell) for cell in notebook.cells)


@each
def test_long_cells_and_plumbing_can_be_hidden(path):
    """By the tag that the site folds; parameters are there to be seen."""
    for cell in code_cells(read(path)):
        long = len(cell.source.splitlines()) > 15
        plumbing = cell.id in ("imports", "derive", "check", "record")
        assert "hide-input" in tags(cell) or "parameters" in tags(cell) or not (long or plumbing)


@each
def test_parameters_are_the_common_ones_and_plain_literals(path):
    cells = [cell for cell in code_cells(read(path)) if "parameters" in tags(cell)]
    assert len(cells) == 1
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        assert isinstance(statement.targets[0], ast.Name)
        ast.literal_eval(statement.value)
    # What `parameters.check` holds a run against, in the same order.
    declared = {**parameters.COMMON, **parameters.OWN[path.stem]}
    found = parameters.of_notebook(path)
    assert found == declared and list(found)[: len(parameters.COMMON)] == list(parameters.COMMON)
    # Only imports may stand before: what is derived earlier would be stale once values change.
    before = code_cells(read(path))[: code_cells(read(path)).index(cells[0])]
    for cell in before:
        kinds = {type(statement) for statement in ast.parse(cell.source).body}
        assert kinds <= {ast.Import, ast.ImportFrom}, cell.id


@each
def test_parameters_are_checked_first_and_go_into_the_record(path):
    cells = code_cells(read(path))
    at = next(i for i, cell in enumerate(cells) if "parameters" in tags(cell))
    first = ast.parse(cells[at + 1].source).body[0]
    assert ast.unparse(first) == f"run = check({path.stem!r}, globals())"
    source = "\n".join(cell.source for cell in cells)
    assert source.count("write_record(") == source.count("settings=run.changed") == 1
    # Else a cell that runs again takes what was derived for what was set.
    declared = parameters.of_notebook(path)
    for cell in cells[at + 1 :]:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert node.id not in declared, (cell.id, node.id)


@each
def test_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", (cell.id, output.get("text", "")[:200])
            count = output.get("execution_count", cell.execution_count)
            assert count == cell.execution_count, cell.id


@each
def test_checked_cells_print_text(path):
    # nbval compares pandas' HTML to the last character and does not look at pictures.
    for cell in (cell for cell in code_cells(read(path)) if CHECKED in tags(cell)):
        assert "".join(printed(cell)).strip(), cell.id
        assert all(output.output_type == "stream" for output in cell.outputs), cell.id


@each
def test_light_and_free_of_this_machine(path):
    assert path.stat().st_size < 500 * KILOBYTE
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.language_info) == {"name"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
        said = [cell.source, *(printed(cell) if cell.cell_type == "code" else [])]
        for text in said:
            assert not PATHS.search(text), (cell.id, PATHS.search(text))
    for cell in code_cells(notebook):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert not {kind for kind in kinds if "widget" in kind}, cell.id


@each
def test_verdicts_are_four_and_no_rule_can_but_succeed(path):
    """A notebook takes verdicts from `records`, or spells the one against a claim, too."""
    trees = [ast.parse(cell.source) for cell in code_cells(read(path))]
    texts = [node.value for tree in trees for node in ast.walk(tree) if type(node) is ast.Constant]
    spelt = {text for text in texts if VERDICT.fullmatch(str(text))}
    assert spelt <= set(records.VERDICTS)
    assert "contradicted" in spelt or not spelt & {"reproduced", "not shown"}


@each
def test_definitions_are_short(path):
    for cell in code_cells(read(path)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.end_lineno - node.lineno < 8, f"{cell.id}: {node.name}"


def validate(path):
    """Result of nbval on a notebook, with the options of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"^NBVAL = (.*)$", makefile, re.MULTILINE)[1].split()
    options = [str(ROOT / word) if word.startswith("tests/") else word for word in options]
    command = [sys.executable, "-m", "pytest", str(path), *options, "-q", "-p", "no:cacheprovider"]
    # As when installed; a kernel that starts in another folder would not find the package.
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [*command, "--rootdir", str(path.parent), "-c", os.devnull],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
        cwd=path.parent,
    )


@each
def test_what_notebooks_take_from_the_package_is_there(path):
    """So that a renamed function is found at once, not when the notebook is run."""
    modules = {}
    for cell in code_cells(read(path)):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "lbutils":
                source = importlib.import_module(node.module)
                for name in node.names:
                    found = getattr(source, name.name, None)
                    if found is None:
                        found = importlib.import_module(f"{node.module}.{name.name}")
                    if inspect.ismodule(found):
                        modules[name.asname or name.name] = found
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id)
                assert module is None or hasattr(module, node.attr), ast.unparse(node)
    assert modules


@each
def test_what_lies_beside_the_records_is_no_json(path):
    """`lbutils.measure.records` takes every JSON file right in a run's folder for a record."""
    source = "\n".join(cell.source for cell in code_cells(read(path)))
    assert not re.search(r'place / f?"[^"/]*\.json"', source)


def verdicts_on_scales(by, order):
    """What notebook 08 concludes where all that it measures is `by` points."""
    interval = metrics.Interval(by, by - 1, by + 1)
    rows = pd.DataFrame(
        {"domain": "Food", "name": list("abc"), "draw": 0, "change": [by - 1, by, by + 1]}
    )
    level = rows.assign(change=[-1.0, 0.0, 1.0])
    groups = [*order, "never"]
    given = {
        "np": np, "records": records, "evaluation": metrics, "interval_text": interval_text,
        "first": "small", "order": order, "since": groups if len(order) > 1 else ["small"],
        "NEVER": "never", "ZERO": "zero-shot", "OURS": "ours", "seed": 0,
        "margin": 5.0, "small_share": 0.25, "AS_ARE": "as they are",
        "ran": pd.DataFrame({"domain": "Food", "since": groups}),
        "at": lambda s, method, group: group,
        "mean_of": lambda group, column: interval,
        "change": lambda method, group, *span: level if group == "never" else rows,
        "arms": ["0", "1"] if len(order) > 1 else [],
        "by_dose": {("as they are", "1"): {"more": interval, "risen more": interval}},
        "grown": interval if len(order) > 1 else None,
        "gains": pd.DataFrame({"gain": [by], "low": [by - 1], "high": [by + 1]}),
        "judged": pd.DataFrame(),
    }  # fmt: skip
    (notebook,) = (path for path in NOTEBOOKS if path.stem == "08_scales")
    (source,) = (cell.source for cell in code_cells(read(notebook)) if cell.id == "verdict")
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(source, given)
    return [line.rpartition(": ")[2] for line in told.getvalue().splitlines()]


@pytest.mark.parametrize("by", [200.0, -200.0])
def test_every_verdict_on_scales_can_be_a_contradiction(by):
    """By intervals that lie wholly on the other side of what each claim says."""
    risen, stayed = ("reproduced", "contradicted")[:: 1 if by > 0 else -1]
    found = verdicts_on_scales(by, ["small", "large"])
    assert found == [stayed, risen, risen, stayed, stayed, risen]


def test_what_notebook_08_has_no_figures_for_is_not_run():
    assert verdicts_on_scales(200.0, ["small"]) == ["not run"] * 5 + ["reproduced"]


@pytest.mark.slow
def test_nbval_fails_when_a_stored_output_is_corrupted(tmp_path):
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    # The first checked cell, and what it needs.
    last = next(i for i, cell in enumerate(notebook.cells) if CHECKED in tags(cell))
    notebook.cells = notebook.cells[: last + 1]
    intact, corrupt = tmp_path / "intact.ipynb", tmp_path / "corrupt.ipynb"
    nbformat.write(notebook, intact)
    output = notebook.cells[last].outputs[0]
    figure = re.search(r"\d(?=\D*$)", output.text.splitlines()[0])
    swapped = str((int(figure[0]) + 1) % 10)
    output.text = output.text[: figure.start()] + swapped + output.text[figure.end() :]
    nbformat.write(notebook, corrupt)
    assert json.loads(intact.read_text()) != json.loads(corrupt.read_text())

    passed = validate(intact)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    failed = validate(corrupt)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "mismatch" in failed.stdout and "1 failed" in failed.stdout


# Those to which it matters that IP classes have test images only. Names that no lexicon knows, few
# images of great likeness, and as few runs as will do.
RELEASED = {
    "05": {"sources": ["pieces"]},
    "07": {"leave_out": [], "classes": 2, "images": 3, "rounds": 2},
    "08": {"shots": 1},
}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder as LAION-Beyond is released: IP classes have test images only, and no caption."""
    root = tmp_path_factory.mktemp("released")
    return folder.generate(root, ["Animals"], oop=4, ip=4, images=(8, 4, 12))


@pytest.mark.slow
@pytest.mark.parametrize("number", RELEASED)
def test_notebooks_run_on_a_folder_of_the_released_layout(released, tmp_path, number):
    notebook = next(path for path in NOTEBOOKS if path.stem.startswith(number))
    given = RELEASED[number] | {"benchmark": str(released)}
    (outcome,) = notebooks.run([notebook], given, out=tmp_path, progress=False)
    assert outcome.error is None, outcome.traceback
    assert list((tmp_path / "records").glob(f"{number}_*.json"))
