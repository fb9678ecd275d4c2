"""Rules that the package keeps: nine rooms, who imports whom, no torch in tables, no pickle."""

import ast
import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lbutils
from lbutils.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
# Rooms from the lowest to the highest: one imports from itself and from those before it.
ROOMS = "captions data models learn unlabelled rivals measure figures run".split()
# Nothing here knows of images, models or results: captions are text, figures take tables.
ALONE = ("captions", "figures")
# Whole rooms, and of others the modules that work on tables alone.
WITHOUT_TORCH = (
    "_util __main__ captions data figures run learn.colours unlabelled.match "
    "measure.metrics measure.joint measure.records measure.published"
).split()
FEWEST, MOST = 5, 12  # names of a room's face; `figures` has a name for each figure
PACKAGE = ROOT / "lbutils"
MODULES = sorted(PACKAGE.rglob("*.py"))
FACES = {room: PACKAGE / room / "__init__.py" for room in ROOMS}
SCRIPTS = sorted((ROOT / "data").rglob("*.py"))
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """Every module that a file imports, anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["lbutils" if node.level else "", node.module or ""]))
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def dotted(path):
    """A module as it is imported, without the package: ``captions.text``; ``captions`` its face."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name, places):
    return any(name == place or name.startswith(f"{place}.") for place in places)


def late_imports(room, names):
    """Those of the imported names that lie in a room after `room`, or in the package's face."""
    allowed = {"_util", room, *(() if room in ALONE else ROOMS[: ROOMS.index(room)])}
    ours = [name.split(".")[1] for name in names if name.startswith("lbutils.")]
    # `import lbutils` gives the version; the names of its face may load any room.
    return set(ours) - allowed - {"__version__"}


def borrowed(room, path):
    """What another room keeps for itself, by a leading underscore, and this file uses."""
    bound, found = set(), []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lbutils."):
            if node.module.split(".")[1] == room:
                continue
            bound.update(alias.asname or alias.name for alias in node.names)
            found += [alias.name for alias in node.names if alias.name.startswith("_")]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.value.id in bound:
                found.append(f"{node.value.id}.{node.attr}")
    return found


IN_ROOMS = [path for path in MODULES if path.parent != PACKAGE]


def test_the_package_is_its_rooms():
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert folders == set(ROOMS)
    flat = {path.stem for path in PACKAGE.glob("*.py")}
    assert flat == {"__init__", "__main__", "_util"}
    # One level of rooms, no folder below them.
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in MODULES)


def test_imports_run_downwards():
    rooms = {path: path.parent.name for path in IN_ROOMS}
    late = {dotted(path): late_imports(room, imported(path)) for path, room in rooms.items()}
    assert not {name: found for name, found in late.items() if found}
    private = {dotted(path): borrowed(room, path) for path, room in rooms.items()}
    assert not {name: found for name, found in private.items() if found}


def test_an_upward_import_is_found(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "from lbutils.run import grid\nfrom lbutils import screen\nimport lbutils.rivals.probes\n"
        "from lbutils.captions.text import canonical\nfrom lbutils._util import suggest\n"
    )
    assert late_imports("learn", imported(file)) == {"run", "screen", "rivals"}
    assert not late_imports("run", imported(file)) - {"screen"}


def test_a_borrowed_private_name_is_found(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "from lbutils.models.names import Names, _read\nfrom lbutils.data import folder as layout\n"
        "layout._FOLDER\nNames.__init__\nself._own\n"
    )
    assert borrowed("learn", file) == ["_read", "layout._FOLDER"]
    assert borrowed("models", file) == ["layout._FOLDER"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_says_what_the_room_is_for(room):
    face = importlib.import_module(f"lbutils.{room}")
    said = ast.get_docstring(tree(FACES[room]))
    assert re.search(r"\bIn comes?\b", said) and re.search(r"\bOut comes?\b", said)
    assert len(set(face.__all__)) == len(face.__all__) >= FEWEST
    assert len(face.__all__) <= MOST or room == "figures"
    # The import system sets a module's name on its package, over a lazy name.
    assert not set(face.__all__) & {path.stem for path in FACES[room].parent.glob("*.py")}
    for name in face.__all__:
        assert getattr(face, name) is not None
    assert set(face.__all__) <= set(dir(face))
    with pytest.raises(AttributeError, match=f"'lbutils.{room}' has no attribute 'nothing'"):
        _ = face.nothing


def test_the_guide_names_every_file():
    guide = (PACKAGE / "README.md").read_text(encoding="utf-8")
    rows = {
        room: row for row in guide.splitlines() for room in ROOMS if row.startswith(f"| `{room}`")
    }
    assert list(rows) == ROOMS
    for path in IN_ROOMS:
        if path.stem != "__init__":
            assert f"`{path.stem}`" in rows[path.parent.name], f"{dotted(path)} is not in the guide"


@pytest.mark.slow
def test_tables_and_figures_do_without_torch():
    names = [dotted(path) for path in MODULES if within(dotted(path), WITHOUT_TORCH)]
    assert len(names) > len(WITHOUT_TORCH)
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(f'lbutils.{name}')\n"
        "    assert 'torch' not in sys.modules, f'lbutils.{name} loads torch'\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr


def test_no_torch_in_functions_either():
    # `python -m lbutils` asks whether torch loads.
    light = [path for path in MODULES if within(dotted(path), WITHOUT_TORCH)]
    for path in (path for path in light if path.stem != "__main__"):
        tops = {found.split(".")[0] for found in imported(path)}
        assert not tops & {"torch", "torchvision", "open_clip", "timm"}, dotted(path)


def test_the_package_itself_is_light():
    script = "import lbutils, sys; print(sorted({'torch', 'pandas', 'polars'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    assert set(lbutils.__all__) <= set(dir(lbutils))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lbutils.nothing


def test_lazy_names_resolve():
    from lbutils.captions import survey

    assert lbutils.screen is survey.screen
    assert {name for name in lbutils.__all__ if not hasattr(lbutils, name)} == set()


def pickling(path):
    """Where a file reads or writes pickles, or might."""
    found = [name for name in imported(path) if name.split(".")[0] in PICKLERS]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            allowed = options.get("allow_pickle", "False") == "False"
            if called == "torch.load":
                allowed = options.get("weights_only") == "True"
            if called.endswith(("read_pickle", "to_pickle")) or not allowed:
                found.append(f"{name_of(path)}:{node.lineno}")
    return found


def test_no_pickle():
    assert not [where for path in (*MODULES, *SCRIPTS) for where in pickling(path)]


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from joblib import load", "torch.load(x)", "pd.read_pickle(x)"),
        *("torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)"),
    ],
)
def test_a_pickle_is_found(line, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name, lines in (("fine", []), ("wrong", [line])):
        lines = [*lines, "torch.load(x, weights_only=True)", "np.load(x)"]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
    assert not pickling(tmp_path / "fine.py") and pickling(tmp_path / "wrong.py")


def test_nothing_is_for_one_system_alone():
    posix = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios"}
    for path in MODULES:
        assert not imported(path) & (posix | {"_winapi", "msvcrt", "winreg"}), name_of(path)


def public(node, prefix=""):
    """Public functions, classes and methods of a module or class, with their names."""
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            # A torch module's `forward` is described by its class.
            if child.name.startswith("_") or child.name == "forward":
                continue
            yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


def test_what_is_public_is_described():
    for path in MODULES:
        assert ast.get_docstring(tree(path)), f"{name_of(path)} has no docstring"
        bare = [name for name, node in public(tree(path)) if not ast.get_docstring(node)]
        assert not bare, f"{name_of(path)}: no docstring on {', '.join(bare)}"


def test_no_path_edits_and_no_absolute_paths():
    nodes = ((path, node) for path in MODULES for node in ast.walk(tree(path)))
    for path, node in nodes:
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.path", f"{name_of(path)}:{node.lineno}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith(("/home/", "/root/", "/tmp/", "/mnt/", "/Users/"))
            # Wherever this checkout lies, no module names its place.
            assert str(Path(__file__).resolve().parents[1]) not in node.value


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "do not work together"),
        ("import nothing_of_this_name", "nothing_of_this_name is not installed: run `make env`"),
    ],
)
def test_a_broken_pair_is_told_in_one_line(tmp_path, broken, message):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    (tmp_path / "lbutils").symlink_to(ROOT / "lbutils")
    found = subprocess.run(
        [sys.executable, "-m", "lbutils"], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 1 and found.stdout == ""
    assert message in found.stderr and found.stderr.count("\n") == 1
    assert "-r requirements.lock" in found.stderr


def test_the_command_line_is_light():
    script = (
        "import sys\nfrom lbutils.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'polars', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    assert all(f"  {name} " in found.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: lbutils {name} ")


def test_a_wrong_command_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["sweep_"])
    assert end.value.code == 2 and "check-folder" in capsys.readouterr().err


def test_a_sign_that_the_terminal_lacks_stops_no_command(tmp_path):
    (tmp_path / "names.txt").write_text("caf\u00e9 \u732b\n", encoding="utf-8")
    (tmp_path / "captions.csv").write_text("caption\nred fox\n")
    command = [sys.executable, "-m", "lbutils", "screen", "names.txt", "captions.csv", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert found.returncode == 0, found.stderr
    assert b"caf\xe9 \\u732b" in found.stdout


def test_what_goes_to_a_command_reaches_it(tmp_path, capsys):
    (tmp_path / "names.txt").write_text("red fox\ncoyote\n")
    (tmp_path / "captions.csv").write_text("caption\na red fox\n")
    given = ["screen", str(tmp_path / "names.txt"), str(tmp_path / "captions.csv"), "--quiet"]
    assert main(given) == 0
    assert "1 captions in 1 rows of 1 files" in capsys.readouterr().out
    assert main(["check-folder", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
