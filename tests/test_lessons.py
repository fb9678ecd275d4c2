"""Lessons: every solution passes its check, every starter fails it; copies are what they say."""

import json
import re
from functools import cache

import nbformat
import pytest
import yaml

from lbutils.__main__ import main
from lbutils.data.benchmark import load_benchmark
from lbutils.run import find_notebooks, lessons, notebooks, parameters, profiles

NOTEBOOKS = find_notebooks()
LESSONS = {path: lessons.read_lesson(path) for path in NOTEBOOKS}
EXERCISES = {
    f"{path.stem[:2]}-{one['name'].replace(' ', '-')}": one
    for path, told in LESSONS.items()
    for one in told.get("exercises", ())
}
NAMES = sorted(profiles.profiles())


def cells(notebook, kind="code"):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.mark.parametrize("name", EXERCISES)
def test_a_solution_passes_its_check_and_the_starter_does_not(name):
    one, given = EXERCISES[name], {}
    exec(one["setup"], given)
    for answer in ("starter", "solution"):
        namespace = dict(given)
        exec(one[answer], namespace)
        if answer == "solution":
            exec(one["check"], namespace)
            continue
        with pytest.raises(AssertionError) as failed:
            exec(one["check"], namespace)
        assert str(failed.value), "the check does not say what is wrong"
    assert "assert " in one["check"]


def test_the_five_notebooks_of_the_short_lesson_have_exercises():
    numbers = {name[:2] for name in EXERCISES}
    assert numbers >= {"01", "02", "03", "04", "07"} and len(EXERCISES) >= 9


def test_the_plan_names_those_notebooks_and_fills_ninety_minutes():
    plan = (lessons.lessons_dir() / "plan.md").read_text(encoding="utf-8")
    table = plan[plan.index("## Ninety") : plan.index("## A week")]
    rows = re.findall(r"^\| (\d+) \| (\d\d) ", table, re.MULTILINE)
    assert sum(int(minutes) for minutes, _ in rows) == 90
    assert [number for _, number in rows] == ["01", "02", "03", "04", "07"]


@cache
def loaded(name, scale, domains):
    return load_benchmark(name, scale=scale, domains=domains and list(domains))


@pytest.mark.usefixtures("full_runs")
@pytest.mark.parametrize("name", NAMES)
def test_a_profile_sets_what_its_notebooks_have(name, monkeypatch):
    # Whether there is such a benchmark need not be asked for each notebook anew.
    monkeypatch.setattr(
        notebooks,
        "load_benchmark",
        lambda name, scale, domains: loaded(name, scale, domains and tuple(domains)),
    )
    known = {path.stem[:2] for path in NOTEBOOKS}
    assert set(profiles.profiles()[name]["notebooks"]) <= known
    for notebook in NOTEBOOKS:
        given = profiles.of_profile(name, notebook.stem)
        defaults = parameters.of_notebook(notebook)
        assert not given or parameters.differing(given, defaults) == given
        notebooks.check_parameters([notebook], given)


def test_a_profile_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="unknown profile 'leson'.*Did you mean 'lesson'"):
        profiles.of_profile("leson", NOTEBOOKS[0].stem)
    assert profiles.of_profile(None, NOTEBOOKS[0].stem) == {}


def test_start_copies_notebooks_and_keeps_what_is_there(tmp_path, capsys):
    assert main(["start", str(tmp_path / "mine"), "01", "3"]) == 0
    first = tmp_path / "mine" / NOTEBOOKS[0].name
    assert first.read_bytes() == NOTEBOOKS[0].read_bytes()
    assert len(list(first.parent.iterdir())) == 2
    first.write_text("worked in")
    assert main(["start", str(tmp_path / "mine")]) == 0
    assert first.read_text() == "worked in" and f"kept as it is: {first}" in capsys.readouterr().out
    assert {path.name for path in first.parent.iterdir()} == {path.name for path in NOTEBOOKS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lesson") / "class"
    lessons.lesson(folder)
    return folder


@pytest.mark.parametrize("kind", ["student", "solutions"])
def test_copies_are_notebooks_without_outputs_that_take_the_lessons_parameters(made, kind):
    for notebook in NOTEBOOKS:
        copy = nbformat.read(made / kind / notebook.name, 4)
        nbformat.validate(copy)
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)
        (injected,) = [c for c in code if "injected-parameters" in c.metadata.get("tags", [])]
        given = {}
        exec(injected.source, given)
        wanted = profiles.of_profile("lesson", notebook.stem)
        assert {name: given[name] for name in wanted} == wanted
        before = code[code.index(injected) - 1]
        assert "parameters" in before.metadata["tags"]


def test_students_see_no_solution_and_no_answer_and_teachers_see_all(made):
    for notebook, told in LESSONS.items():
        student, solved = (
            nbformat.read(made / kind / notebook.name, 4) for kind in ("student", "solutions")
        )
        tagged = [c.source for c in nbformat.read(notebook, 4).cells
                  if "solution" in c.metadata.get("tags", [])]  # fmt: skip
        assert not set(tagged) & set(cells(student)) and set(tagged) <= set(cells(solved))
        shown = [any("*Seen*" in text for text in cells(c, "markdown")) for c in (student, solved)]
        assert shown == [False, True]
        for one in told.get("exercises", ()):
            assert one["starter"].rstrip() in cells(student)
            assert one["solution"].rstrip() not in cells(student)
            assert one["solution"].rstrip() in cells(solved)
            assert all(one["check"].rstrip() in cells(copy) for copy in (student, solved))
        for one in (told["predict"], *told["discussion"]) if told else ():
            answer = " ".join(one["answer"].split())
            texts = [
                " ".join(" ".join(cells(copy, "markdown")).split()) for copy in (student, solved)
            ]
            assert answer not in texts[0] and answer in texts[1]


def test_the_plan_goes_along_with_objectives(made):
    plan = (made / "plan.md").read_text(encoding="utf-8")
    for told in LESSONS.values():
        assert all(one in plan for one in told.get("objectives", ()))


def test_a_folder_in_use_is_refused(made, capsys):
    assert main(["lesson", str(made)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_copies_for_nbgrader(tmp_path):
    lessons.lesson(tmp_path, ["04"], nbgrader=True)
    assert not (tmp_path / "student").exists() and (tmp_path / "nbgrader_config.py").is_file()
    source = nbformat.read(tmp_path / "source" / "lesson" / NOTEBOOKS[3].name, 4)
    nbformat.validate(source)
    marked = [cell for cell in source.cells if "nbgrader" in cell.metadata]
    ids = [cell.metadata["nbgrader"]["grade_id"] for cell in marked]
    assert len(set(ids)) == len(ids) == 2 * len(LESSONS[NOTEBOOKS[3]]["exercises"])
    for cell in marked:
        # What nbgrader's schema 3 asks of a cell.
        own = cell.metadata["nbgrader"]
        assert re.fullmatch(r"[a-zA-Z0-9_\-]+", own["grade_id"]) and own["schema_version"] == 3
        assert own["grade"] is own["locked"] is (not own["solution"]) and own["task"] is False
        assert ("points" in own) is own["grade"]
        assert ("### BEGIN SOLUTION\n" in cell.source) is own["solution"]
    plain = [cell.source for cell in source.cells if "nbgrader" not in cell.metadata]
    solutions = [one["solution"].rstrip() for one in LESSONS[NOTEBOOKS[3]]["exercises"]]
    assert not any(solution in text for solution in solutions for text in plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectifs": []}, "objectifs.*objectives"),
        ({"predict": None}, "lesson: no predict"),
        ({"discussion": [{"question": "?"}]}, "question: no answer"),
    ],
)
def test_a_lesson_with_other_keys_is_refused(tmp_path, monkeypatch, change, message):
    told = yaml.safe_load((lessons.lessons_dir() / "08.yaml").read_text(encoding="utf-8")) | change
    told = {key: value for key, value in told.items() if value is not None}
    (tmp_path / "08.yaml").write_text(json.dumps(told))
    monkeypatch.setattr(lessons, "lessons_dir", lambda: tmp_path)
    (notebook,) = find_notebooks(["08"])
    with pytest.raises(ValueError, match=message):
        lessons.read_lesson(notebook)
