"""The package without its checkout: what a wheel holds, and that it works from any folder."""

import json
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest

from lbutils import __main__, _util
from lbutils.data import folder
from lbutils.data.images import sha256
from lbutils.measure import records
from lbutils.models.features import cache_dir
from lbutils.run import commands, execution, find_notebooks, place

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "lbutils", "data", "notebooks")
MOST_BYTES = 100_000_000
BUILD = """
from setuptools.build_meta import build_wheel
build_wheel("dist", {"--build-option": ["--compression=stored"]})  # packing takes the longest
"""
USE = """
import json
import lbutils
from lbutils._util import PACKAGE
from lbutils.data import data_dir
from lbutils.measure.records import provenance_of
from lbutils.run import find_notebooks, place

bench = lbutils.load_benchmark("mini")
found = {
    "package": str(PACKAGE),
    "data": str(data_dir()),
    "domains": len(bench.domains),
    "size": bench["Food"].oop.test.image(0).size,
    "notebooks": [str(path) for path in find_notebooks()],
    "commit": provenance_of()["commit"],
    "place": str(place({})),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built in a folder of its own, so that nothing of it stays in the checkout."""
    build = tmp_path_factory.mktemp("build")
    for name in BUILT_FROM:
        (build / name).symlink_to(ROOT / name)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (found,) = (build / "dist").iterdir()
    return found


def visible(root, pattern="*"):
    """Files below a folder, without hidden ones and what Python left."""
    paths = (path.relative_to(root) for path in root.rglob(pattern) if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if not any(part.startswith((".", "__pycache__")) for part in path.parts)
    }


@pytest.mark.slow
def test_a_wheel_holds_what_runs_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    own = visible(_util.PACKAGE, "*.py") | {"README.md", "run/page.html"}
    wanted = {f"lbutils/{name}" for name in own}
    wanted |= {f"lbutils/_notebooks/{name}" for name in visible(ROOT / "notebooks")}
    data = {name for name in visible(ROOT / "data") if not name.startswith("mini/make/")}
    assert {name for name in names if ".dist-info/" not in name} == wanted | {
        f"lbutils/_data/{name}" for name in data
    }
    assert len(data) > 50 and wheel.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(wheel, tmp_path):
    # An environment often lies in the repository of another project.
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "another"], check=True)
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {n: v for n, v in os.environ.items() if not n.startswith("LBUTILS_")}
    environment |= {"PYTHONPATH": str(site), "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-B", "-c", USE]
    used = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
    found, package = json.loads(used.stdout), site / "lbutils"
    own = [str(package / "_notebooks" / path.name) for path in find_notebooks()]
    assert found == {
        "package": str(package),
        "data": str(package / "_data"),
        "domains": 9,
        "size": [64, 64],
        "notebooks": own,
        "commit": None,
        "place": str(empty / "runs" / "mini"),
    }
    assert not list(empty.iterdir())


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package, and a folder beside it that is the current one."""
    package, here = tmp_path / "site" / "lbutils", tmp_path / "here"
    (package / "_notebooks").mkdir(parents=True)
    (package / "_data").symlink_to(ROOT / "data")
    here.mkdir()
    monkeypatch.setattr(_util, "PACKAGE", package)
    monkeypatch.setattr(execution, "PACKAGE", package)
    monkeypatch.delenv("LBUTILS_DATA", raising=False)
    monkeypatch.chdir(here)
    return package


@pytest.mark.usefixtures("full_runs")
def test_a_run_writes_nothing_into_the_package(installed):
    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell("out = ''", metadata={"tags": ["parameters"]})
    writing = nbformat.v4.new_code_cell("from pathlib import Path; Path('left').write_text('')")
    notebook.cells, notebook.metadata["language_info"] = [parameters, writing], {"name": "python"}
    nbformat.write(notebook, installed / "_notebooks" / "01_writes.ipynb")
    before = visible(installed / "_notebooks")
    assert commands.main(["full"]) == 0
    assert visible(installed / "_notebooks") == before
    out = Path.cwd() / "runs" / "mini"
    assert {"left", "index.html", "notebooks/01_writes.ipynb"} <= visible(out)


def test_no_results_in_the_package_either(installed, monkeypatch):
    monkeypatch.chdir(installed / "_notebooks")
    with pytest.raises(ValueError, match="part of the installed package.*set `out`"):
        place({})


def test_features_are_kept_in_the_users_cache(installed, monkeypatch, tmp_path):
    from platformdirs import user_cache_path

    monkeypatch.delenv("LBUTILS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir() == user_cache_path("lbutils", appauthor=False)
    assert sys.platform != "linux" or cache_dir() == tmp_path / "cache" / "lbutils"
    monkeypatch.setenv("LBUTILS_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_features_of_a_checkout_stay_in_it(monkeypatch):
    monkeypatch.delenv("LBUTILS_CACHE", raising=False)
    assert cache_dir() == ROOT / "runs" / "cache"


def test_an_installed_package_is_not_restored_from_a_checkout(installed, monkeypatch):
    told = folder.how_to_restore("mini")
    assert "--force-reinstall" in told and "git" not in told
    monkeypatch.setenv("LBUTILS_DATA", "elsewhere")
    assert "copy data/mini of the repository to $LBUTILS_DATA" in folder.how_to_restore("mini")


@pytest.mark.parametrize("name", ["torch", "open_clip"])
@pytest.mark.parametrize("failure", [ModuleNotFoundError("no", name="x"), OSError("broken")])
def test_an_installed_package_is_not_mended_by_the_lock(installed, monkeypatch, name, failure):
    load = __main__.import_module

    def fail(wanted):
        if wanted == name:
            raise failure
        return load(wanted)

    monkeypatch.setattr(__main__, "import_module", fail)
    told = __main__.diagnose()
    assert "python -m pip" in told and "requirements.lock" not in told and "make" not in told


def test_git_converts_no_file_that_has_a_checksum():
    """Where `core.autocrlf` is set, as Git for Windows does, text would get other bytes."""
    git = ["git", "-C", str(ROOT), "-c", "core.autocrlf=true", "archive", "--worktree-attributes"]
    listed = (ROOT / "data" / "mini" / "checksums.csv").read_text().splitlines()[1:]
    sums = dict(line.split(",") for line in listed if ".parquet" not in line)
    paths = [f"data/mini/{name}" for name in sums]
    packed = subprocess.run([*git, "HEAD", *paths], capture_output=True)
    if b"not a git repository" in packed.stderr:
        pytest.skip("not a clone")
    assert packed.returncode == 0, packed.stderr
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        texts = {name: archive.extractfile(f"data/mini/{name}").read() for name in sums}
    for name, content in texts.items():
        assert content == (ROOT / "data" / "mini" / name).read_bytes(), name
        assert sha256(ROOT / "data" / "mini" / name) == sums[name]


def test_the_commit_of_a_checkout_is_known():
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode:
        pytest.skip("not a clone")
    assert records.provenance_of()["commit"].rstrip("+") == head.stdout.strip()
