"""Parameters: what a notebook takes, where its results go, and what stops it."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import save_notebook

from lbutils.figures import style
from lbutils.run import parameters, profiles
from lbutils.run.parameters import check, differing, parse, place

ROOT = Path(__file__).resolve().parents[1]
STEM = "03_zero_shot_gaps"
DEFAULTS = {**parameters.COMMON, **parameters.OWN[STEM]}
CELL = "\n".join(f"{name} = {value!r}" for name, value in DEFAULTS.items())


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in parameters.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def session(*cells, **given):
    """A notebook's namespace after these cells, as IPython keeps it."""
    namespace = {"In": ["", "import numpy as np", *cells]}
    for cell in cells:
        exec(cell, namespace)
    return namespace | given


def test_defaults_go_where_they_always_went():
    run = check(STEM, session(CELL))
    assert run.changed == {} and run.place == ROOT / "runs" / "mini"
    assert run.params == {name: value for name, value in DEFAULTS.items() if name != "out"}
    assert check(STEM, session(CELL, out="/x/y")).place.as_posix() == "/x/y"


def test_other_settings_have_a_folder_of_their_own():
    food = check(STEM, session(CELL, domains=["Food"]))
    assert food.changed == {"domains": ["Food"]}
    assert food.place.name.startswith("mini--domains=Food-")
    # The same in any other process, for any notebook that has the parameter, and from a sweep.
    script = "from lbutils.run.parameters import place; print(place({'domains': ['Food']}).name)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert printed.stdout.strip() == food.place.name == place({"domains": ["Food"]}).name
    places = {
        place(differing(given, DEFAULTS)).name.casefold()
        for given in (
            {},
            {"domains": ["Food"]},
            {"domains": ["food"]},
            {"domains": ["Food", "Animals"]},
            {"domains": ["Food Animals"]},
            {"seed": 1},
            {"margin": 1.5},
            {"benchmark": "laion-beyond"},
            {"benchmark": "laion-beyond", "seed": 1},
            {"benchmark": "elsewhere/mini"},
            {"templates": ["a {name}/..", "the {name}"]},
            {"templates": "x" * 300},
            {"templates": "x" * 301},
        )
    }
    assert len(places) == 13 and all(len(name) < 100 and "/" not in name for name in places)


def test_a_profile_of_the_environment_sets_what_has_its_default(monkeypatch):
    known = {
        "p": {"notebooks": {"03": {"resamples": 3, "controls": 5}}},
        "other": {"notebooks": {}},
    }
    monkeypatch.setattr(profiles, "profiles", lambda: known)
    monkeypatch.setenv("LBUTILS_PROFILE", "p")
    cells = session(CELL, controls=7)
    run = check(STEM, cells)
    assert (cells["resamples"], cells["controls"]) == (3, 7)
    assert run.changed == {"LBUTILS_PROFILE": "p", "resamples": 3, "controls": 7}
    # One that changes nothing here has a folder of its own all the same.
    monkeypatch.setenv("LBUTILS_PROFILE", "other")
    assert check(STEM, session(CELL)).place.name.startswith("mini--LBUTILS_PROFILE=other-")
    monkeypatch.setenv("LBUTILS_PROFILE", "others")
    with pytest.raises(ValueError, match="unknown profile 'others'.*Did you mean 'other'"):
        check(STEM, session(CELL))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"startz": 1}, "'startz'.*Did you mean 'starts'"), ({"starts": "two"}, "starts takes int")],
)
def test_a_profile_that_sets_nonsense_is_refused(monkeypatch, given, message):
    monkeypatch.setattr(profiles, "profiles", lambda: {"p": {"notebooks": {"03": given}}})
    monkeypatch.setenv("LBUTILS_PROFILE", "p")
    with pytest.raises(ValueError, match=message):
        check(STEM, session(CELL))


def test_a_figure_is_saved_by_the_notebooks_number_and_shown(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    run = check(STEM, session(CELL, out=str(tmp_path)))
    run.show(style.described(style.Drawing(), "a line"), "lines")
    assert (tmp_path / "figures" / "03_lines.png").is_file()
    assert [image._repr_mimebundle_()[1] for image in shown] == [{"image/png": {"alt": "a line"}}]


def cells(html):
    """Texts of all cells, by table and row."""
    tables = ElementTree.fromstring(f"<p>{html}</p>").iter("table")
    return [[[cell.text or "" for cell in row] for row in table.iter("tr")] for table in tables]


def test_a_long_table_is_saved_whole_and_shown_in_part(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda told, raw: shown.append(told))
    run = check(STEM, session(CELL, out=str(tmp_path)))
    table = pd.DataFrame({"a <b>": range(12), "c": [1.5, None] * 6}, index=list("zyxwvutsrqpo"))
    run.table(table, "all", columns=["c"])
    run.table(table.head(3), "few")
    run.table(table, "all", rows=0)
    kept = pd.read_csv(tmp_path / "tables" / "03_all.csv", index_col=0)
    pd.testing.assert_frame_equal(kept, table)
    part, few, none = (told["text/html"] for told in shown)
    (seen, whole), (only,) = cells(part), cells(none)
    assert [row[0] for row in seen] == ["", *"zyxwvutsrq"] and seen[0] == ["", "c"]
    assert whole[0] == ["", "a <b>", "c"] and len(whole) == 13 and only == whole
    assert none.startswith("<details>") and "<details>" not in few and len(cells(few)[0]) == 4
    assert "03_all.csv: 12 rows and 2 columns" in part and "NaN" not in part
    assert shown[0]["text/plain"] == table.to_string()


def test_a_default_that_is_written_out_is_none():
    assert differing({"margin": 5, "domains": None, "seed": 0, "out": "x"}, DEFAULTS) == {}
    # 0 and False are equal in Python, and no 0 was meant.
    assert differing({"integrity": 1}, {"integrity": True}) == {"integrity": 1}
    assert differing({"slow": ("a",)}, {"slow": ["a"]}) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "1"}, "seed takes int .default 0., not '1'"),
        ({"seed": 1.0}, "seed takes int"),
        ({"seed": True}, "seed takes int"),
        ({"seed": None}, "seed takes int"),
        ({"margin": "5"}, "margin takes float"),
        ({"margin": float("nan")}, "margin takes float"),
        ({"margin": float("inf")}, "margin takes float"),
        ({"domains": "Food"}, r"domains takes list of str .*in a list: \['Food'\]"),
        ({"domains": ["Food", 1]}, "domains takes list of str"),
        ({"domains": {"Food": 1}}, "domains takes list of str"),
        ({"templates": 3}, "templates takes str or list of str"),
        ({"benchmark": None}, "benchmark takes str"),
        ({"benchmark": ["mini"]}, "benchmark takes str"),
        ({"pretrained": 400}, "pretrained takes str"),
    ],
)
def test_wrong_values_stop_the_run(given, message):
    with pytest.raises(ValueError, match=message) as error:
        check(STEM, session(CELL, **given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("others", "right"), [("cat", False), (["cat"], True), (None, True)])
def test_a_list_as_text_is_refused(others, right):
    stem = "07_teach_clip_your_own_words"
    namespace = {**parameters.COMMON, **parameters.OWN[stem], "others": others}
    if right:
        assert check(stem, namespace).params["others"] == others
        return
    with pytest.raises(ValueError, match=r"others takes list of str .*in a list: \['cat'\]"):
        check(stem, namespace)


def test_names_that_nobody_has_stop_the_run():
    with pytest.raises(ValueError, match="unknown parameter 'sede'.*Did you mean 'seed'"):
        check(STEM, session(CELL, "# Parameters\nsede = 1\n"))
    with pytest.raises(ValueError, match="unknown parameter 'shotz'"):
        check(STEM, session(CELL + "\nshotz = 3"))
    with pytest.raises(ValueError, match="the parameters cell sets no seed: write seed = 0"):
        check(STEM, {name: value for name, value in DEFAULTS.items() if name != "seed"})
    with pytest.raises(ValueError, match="unknown notebook '03_zero_shot_gap'.*Did you mean"):
        check("03_zero_shot_gap", session(CELL))


def test_a_session_may_hold_anything_else():
    """What was mended, what cells made, magics and scratch cells are no parameters."""
    cells = ["# Parameters\nsede = 1", CELL, "# Parameters\nseed = 1", "answer = 42", "table = []"]
    assert check(STEM, session(*cells)).changed == {"seed": 1}
    assert check(STEM, session(CELL) | {"In": ["%matplotlib inline", CELL, "x = ("]}).changed == {}
    passed_on = "# Parameters\nPAPERMILL_INPUT_PATH = 'a'\nseed = 2"
    assert check(STEM, session(CELL, passed_on)).changed == {"seed": 2}


def test_relative_paths_become_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "bench", "weights"):
        (tmp_path / name).mkdir()
    (tmp_path / "w.pt").write_bytes(b"")
    full = parameters.absolute(
        {
            "folder": "mine",
            "lexicon": "nowhere",
            "captions": "caps/part-{0..3}.csv",
            "benchmark": "bench",
            "pretrained": "w.pt",
            "encoder": "local-dir:weights",
            "larger": [["2b", "ViT-B-16", "w.pt"]],
            "hint": "mine",
        }
    )
    at = str(tmp_path.resolve())
    assert full == {
        "folder": f"{at}/mine",
        "lexicon": f"{at}/nowhere",
        "captions": f"{at}/caps/part-{{0..3}}.csv",
        "benchmark": f"{at}/bench",
        "pretrained": f"{at}/w.pt",
        "encoder": f"local-dir:{at}/weights",
        "larger": [["2b", "ViT-B-16", f"{at}/w.pt"]],
        "hint": "mine",
    }
    assert parameters.absolute(full) == full
    published = {
        "captions": "s3://bucket/*.parquet",
        "benchmark": "laion-beyond",
        "pretrained": "laion400m_e32",
        "encoder": "hf-hub:a/b",
        "folder": "",
        "domains": ["mine"],
    }
    assert parameters.absolute(published) == published


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("others=cat", ["cat"]),
        ("others=cat, dog", ["cat", "dog"]),
        ("others=['cat']", ["cat"]),
        ("others=1", ["1"]),
        ("others=None", None),
        ("shot_counts=4", [4]),
        ("shot_counts=1,4", [1, 4]),
        ("shot_counts=[1, 4]", [1, 4]),
        ("shots=4", 4),
        ("hint=1, 2", "1, 2"),
        ("shots=" + "(" * 300, "(" * 300),
    ],
)
def test_lists_on_the_command_line(text, value):
    defaults = {"others": None, "shot_counts": [1], "shots": 4, "hint": None}
    assert parse(text, defaults)[1] == value


@pytest.mark.slow
def test_under_papermill_alone(tmp_path):
    """Without this package's own runner, which checks before it starts anything."""
    before = [nbformat.v4.new_code_cell("from lbutils.run.parameters import check")]
    after = [f"run = check({STEM!r}, globals())\nprint(run.place.name)", "print('went on')"]
    path = save_notebook(tmp_path / "n.ipynb", CELL, *after, before=before)
    ran = tmp_path / "ran.ipynb"
    options = {"kernel_name": "python3", "progress_bar": False}
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'resample'"):
        papermill.execute_notebook(str(path), str(ran), {"resample": 2}, **options)
    assert not nbformat.read(ran, as_version=4).cells[-1].outputs
    papermill.execute_notebook(str(path), str(ran), {"domains": ["Food"]}, **options)
    printed = nbformat.read(ran, as_version=4).cells[-2].outputs[0].text.strip()
    assert printed == place({"domains": ["Food"]}).name
