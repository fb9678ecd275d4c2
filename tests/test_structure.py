"""Rules that the package keeps: who imports whom, no torch in tables, no pickle, docstrings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lbutils

ROOT = Path(__file__).resolve().parents[1]
# A module imports only from those before it.
ORDER = (
    "atomic words matching counting corpora vocabulary certificates screening "
    "layout downloads benchmark colours mini foreign towers encoders features exchange prompts "
    "zeroshot clustering textforward installing names fewshot knowledge assignment discovery zsnl "
    "transduction prompting adapters baselines teaching evaluation protocol trials mixtures scales "
    "records published laion_beyond figures grids pools sweeps"
).split()
WITHOUT_TORCH = (
    "atomic",
    "words",
    "matching",
    "counting",
    "corpora",
    "vocabulary",
    "certificates",
    "screening",
    "layout",
    "downloads",
    "benchmark",
    "colours",
    "assignment",
    "evaluation",
    "protocol",
    "records",
    "published",
    "laion_beyond",
    "figures",
    "grids",
    "pools",
    "sweeps",
)
MODULES = sorted(
    path for path in (ROOT / "lbutils").glob("*.py") if path.stem not in ("__init__", "__main__")
)
SCRIPTS = sorted((ROOT / "data").rglob("*.py"))
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


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


def test_every_module_has_its_place():
    assert {path.stem for path in MODULES} <= set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_follow_the_order(path):
    before = ORDER[: ORDER.index(path.stem)]
    parts = (name.split(".") for name in imported(path))
    ours = {part[1] for part in parts if part[0] == "lbutils" and len(part) > 1}
    late = (ours & set(ORDER)) - set(before)
    assert not late, f"{path.stem} imports {late}, which come after it"
    # The package's own names are lazy and may load any module.
    assert not ours & set(lbutils.__all__)


def test_tables_and_figures_do_without_torch():
    script = (
        "import importlib, sys\n"
        f"for name in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(f'lbutils.{name}')\n"
        "    assert 'torch' not in sys.modules, f'lbutils.{name} loads torch'\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_no_torch_in_functions_either(name):
    tops = {found.split(".")[0] for found in imported(ROOT / "lbutils" / f"{name}.py")}
    assert not tops & {"torch", "torchvision", "open_clip", "timm"}


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
    from lbutils import vocabulary

    assert lbutils.screen is vocabulary.screen


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_no_pickle(path):
    assert not {name.split(".")[0] for name in imported(path)} & PICKLERS
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        where = f"{name_of(path)}:{node.lineno}"
        assert not called.endswith(("read_pickle", "to_pickle")), where
        assert options.get("allow_pickle", "False") == "False", where
        if called == "torch.load":
            assert options.get("weights_only") == "True", f"{where}: weights_only=True is missing"


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_what_is_public_is_described(path):
    module = tree(path)
    assert ast.get_docstring(module), f"{path.stem} has no docstring"
    bare = [name for name, node in public(module) if not ast.get_docstring(node)]
    assert not bare, f"{path.stem}: no docstring on {', '.join(bare)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_path_edits_and_no_absolute_paths(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "sys.path", f"{path.stem}:{node.lineno}"
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
