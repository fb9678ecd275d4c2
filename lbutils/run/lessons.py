"""Copies of the notebooks: to work in, and to teach with.

``lbutils start DIR`` copies them as they are, so that running them changes no committed file.
``lbutils lesson DIR`` makes copies for students and for teachers from the same notebooks, and what
`notebooks/lessons` says beside them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell

from lbutils._util import shipped, suggest, write_text
from lbutils.run import find_notebooks, shorts
from lbutils.run.profiles import of_profile

# Of nbgrader's metadata, whose schema has this version.
_SCHEMA = 3
# A paragraph on what came out of the cell above it.
_SEEN = re.compile(r"^\*Seen\*:.*?(?:\n\n|\Z)", re.DOTALL | re.MULTILINE)
_KEYS = {
    "lesson": {"objectives", "prerequisites", "predict", "discussion", "exercises"},
    "exercise": {"name", "text", "setup", "starter", "solution", "check"},
    "question": {"question", "answer"},
}


def lessons_dir() -> Path:
    """The folder that holds a lesson's YAML for each notebook that has one, and ``plan.md``."""
    return shipped("notebooks") / "lessons"


def read_lesson(notebook: Path) -> dict[str, Any]:
    """What is said of a notebook to those who teach with it.

    The lesson is the file of `lessons_dir` that has the notebook's number. A dict comes back:
    ``objectives`` (list of str), ``prerequisites`` (str), ``predict`` (a question to answer before
    anything is run, and its answer), ``discussion`` (a list of the same) and ``exercises``: each
    has a ``name``, a ``text``, and the code of its ``setup``, ``starter``, ``solution`` and
    ``check``. It is empty if there is no lesson.

    Raises ValueError if the file has other keys, or lacks one.
    """
    place = lessons_dir() / f"{notebook.stem.split('_')[0]}.yaml"
    if not place.is_file():
        return {}
    found = yaml.safe_load(place.read_text(encoding="utf-8"))
    told: dict[str, Any] = {"discussion": [], "exercises": [], **found}

    def check(kind: str, part: Mapping[str, Any]) -> None:
        for key in set(part) ^ _KEYS[kind]:
            problem = suggest(key, _KEYS[kind], "key") if key in part else f"no {key}"
            raise ValueError(f"{place.name}, {kind}: {problem}")

    check("lesson", told)
    for one in (told["predict"], *told["discussion"]):
        check("question", one)
    for one in told["exercises"]:
        check("exercise", one)
    return told


def start(folder: Path, names: Sequence[str] = ()) -> tuple[list[Path], list[Path]]:
    """Copies of the notebooks that were made, and those that were there already.

    A file that is there is kept as it is, as somebody may have worked in it.

    `names` (sequence of str): as `find_notebooks` takes them.
    """
    places = [(notebook, folder / notebook.name) for notebook in find_notebooks(names)]
    kept = [place for _, place in places if place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for notebook, place in places:
        if place not in kept:
            shutil.copyfile(notebook, place)
    return [place for _, place in places if place not in kept], kept


def lesson(folder: Path, names: Sequence[str] = (), nbgrader: bool = False) -> list[Path]:
    """The files that were written: student copies, solution copies, and the plan.

    Student copies have no solutions and no outputs, and for each exercise a cell to begin with
    and one that checks it. Both kinds run with the profile ``lesson``.

    `names` (sequence of str): as `find_notebooks` takes them. `nbgrader` (bool): write nbgrader's
    ``source/lesson`` in place of student copies: the same notebooks, with solutions between its
    marks and its metadata, from which ``nbgrader generate_assignment lesson`` makes the students'.

    Raises FileExistsError if something lies in `folder`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name a new folder")
    notebooks = find_notebooks(names)
    told = {notebook: read_lesson(notebook) for notebook in notebooks}
    first = "source/lesson" if nbgrader else "student"
    written = []
    for notebook, own in told.items():
        for kind in (first, "solutions"):
            made = copy_for_lesson(notebook, own, solved=kind == "solutions", nbgrader=nbgrader)
            place = folder / kind / notebook.name
            write_text(place, nbformat.writes(made) + "\n")
            written.append(place)
    plan = folder / "plan.md"
    write_text(plan, (lessons_dir() / "plan.md").read_text(encoding="utf-8") + _about(told))
    if nbgrader:
        config = folder / "nbgrader_config.py"
        write_text(config, 'c = get_config()\nc.CourseDirectory.course_id = "lbutils"\n')
        written.append(config)
    return [*written, plan]


def copy_for_lesson(
    notebook: Path, told: Mapping[str, Any], *, solved: bool, nbgrader: bool = False
) -> nbformat.NotebookNode:
    """A notebook as students get it, or with solutions and answers.

    `told` (mapping): as `read_lesson` gives it. `solved` (bool): keep cells tagged ``solution``,
    and add solutions and answers. `nbgrader` (bool): give cells of exercises the metadata of
    nbgrader; where not `solved`, with the solution between the marks that nbgrader takes out.
    """
    made = nbformat.read(notebook, 4)
    if not solved:  # what came out is not told before it is asked
        made.cells[0].source = shorts.without(made.cells[0].source)
        made.cells[0].pop("attachments", None)
        for cell in (cell for cell in made.cells if cell.cell_type == "markdown"):
            cell.source = _SEEN.sub("", cell.source)
    cells = []
    for cell in made.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags and not solved:
            continue
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cells.append(cell)
        if "parameters" in tags:
            cells.append(_parameters(notebook))
    if told:
        cells.insert(1, new_markdown_cell(_opening(told, solved), id="lesson"))
        cells += _closing(notebook, told, solved, nbgrader)
    made.cells = cells
    return made


def _parameters(notebook: Path) -> nbformat.NotebookNode:
    """A cell that sets what the profile ``lesson`` changes, as papermill would add it."""
    given = of_profile("lesson", notebook.stem)
    source = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in given.items())])
    return new_code_cell(source, id="lesson-parameters", metadata={"tags": ["injected-parameters"]})


def _opening(told: Mapping[str, Any], solved: bool) -> str:
    listed = "\n".join(f"- {one}" for one in told["objectives"])
    parts = [
        f"**After this lesson** you can\n\n{listed}",
        f"**You need** {told['prerequisites']}",
        f"**Before you run anything, predict.** {told['predict']['question'].strip()}",
    ]
    if solved:
        parts.append(f"*Answer.* {told['predict']['answer'].strip()}")
    return "\n\n".join(parts)


def _closing(
    notebook: Path, told: Mapping[str, Any], solved: bool, nbgrader: bool
) -> list[nbformat.NotebookNode]:
    """Exercises with their checks, and questions for discussion."""
    number = notebook.stem.split("_")[0]
    cells = []
    if told["exercises"]:
        text = "## Exercises with a check\n\n"
        text += "Each runs alone. Change its second cell until the third is silent."
        cells.append(new_markdown_cell(text, id="exercises"))
    for at, one in enumerate(told["exercises"], start=1):
        name = f"exercise-{number}-{at}"
        answer = one["solution" if solved else "starter"]
        if nbgrader and not solved:
            answer += f"### BEGIN SOLUTION\n{one['solution']}### END SOLUTION\n"
        text = f"### {at}. {one['name'].capitalize()}\n\n{one['text'].strip()}"
        parts = [new_markdown_cell(text, id=f"{name}-text")]
        for part, code in (("setup", one["setup"]), ("answer", answer), ("check", one["check"])):
            marks = _marks(f"{name}-{part}", part) if nbgrader and part != "setup" else {}
            parts.append(new_code_cell(code.rstrip(), id=f"{name}-{part}", metadata=marks))
        cells += parts
    if told["discussion"]:
        lines = ["## To discuss"]
        for at, one in enumerate(told["discussion"], start=1):
            lines.append(f"{at}. {' '.join(one['question'].split())}")
            if solved:
                lines.append(f"   *{' '.join(one['answer'].split())}*")
        cells.append(new_markdown_cell("\n\n".join(lines), id="discussion"))
    return cells


def _marks(name: str, part: str) -> dict[str, Any]:
    """The metadata by which nbgrader knows an answer, and the cell that grades it."""
    graded = part == "check"
    marks = {"grade_id": name, "grade": graded, "solution": not graded, "locked": graded}
    marks |= {"schema_version": _SCHEMA, "task": False}
    return {"nbgrader": marks | ({"points": 1} if graded else {})}


def _about(told: Mapping[Path, Mapping[str, Any]]) -> str:
    """Objectives and what is needed for them, a section for each notebook with a lesson."""
    parts = []
    for notebook, own in told.items():
        if own:
            listed = "\n".join(f"- {one}" for one in own["objectives"])
            needs = f"Needs: {own['prerequisites']}"
            parts.append(f"\n## {notebook.stem.replace('_', ' ')}\n\n{listed}\n\n{needs}\n")
    return "".join(parts)
