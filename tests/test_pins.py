"""pyproject.toml, requirements.lock and environment.yml say the same."""

import json
import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires
from itertools import product
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import lbutils

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK_TEXT = (ROOT / "requirements.lock").read_text()
# A pin and its hashes are one line that goes on.
LINES = [
    line.split()
    for line in LOCK_TEXT.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
HASHES = {
    " ".join(part for part in line if not part.startswith("--")): [
        part for part in line if part.startswith("--")
    ]
    for line in LINES
}
LOCK = [Requirement(pin) for pin in HASHES]
# Some forty packages for the stores of others, which no test can reach; and the site's, which have
# a lock of their own beside this one.
UNLOCKED = {"s3", "gcs", "azure", "site"}
LOCKED = sorted(set(PROJECT["optional-dependencies"]) - UNLOCKED)
RANGES = [
    Requirement(line)
    for lines in (
        PROJECT["dependencies"],
        *(PROJECT["optional-dependencies"][extra] for extra in LOCKED),
    )
    for line in lines
]
POST_BUILD = ROOT / "postBuild"
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
PLATFORMS = [
    ("linux", "Linux", "x86_64"),
    ("linux", "Linux", "aarch64"),
    ("darwin", "Darwin", "arm64"),
    ("win32", "Windows", "AMD64"),
]


def environment(python, platform):
    name, system, machine = platform
    return {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": name,
        "os_name": "nt" if name == "win32" else "posix",
        "platform_system": system,
        "platform_machine": machine,
        "extra": "",
    }


def applies(requirement, where):
    return requirement.marker is None or requirement.marker.evaluate(where)


def versions(where):
    """The version that the lock gives each package in an environment, at most one."""
    found = {}
    for pin in LOCK:
        if applies(pin, where):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice for {where}"
            (specifier,) = pin.specifier
            found[name] = Version(specifier.version)
    return found


def test_the_lock_holds_names_versions_and_hashes_only():
    assert len(HASHES) == len(LINES)
    for pin in LOCK:
        assert pin.url is None and not pin.extras, pin
        assert [s.operator for s in pin.specifier] == ["=="] and "*" not in str(pin.specifier), pin
    assert "://" not in LOCK_TEXT
    names = [canonicalize_name(pin.name) for pin in LOCK]
    assert names == sorted(names)


def test_the_lock_says_which_extras_it_holds():
    header = "".join(line for line in LOCK_TEXT.splitlines() if line.startswith("#"))
    assert sorted(re.findall(r"--extra (\S+)", header)) == LOCKED
    assert not UNLOCKED - set(PROJECT["optional-dependencies"])


def test_every_pin_has_the_hashes_of_its_files():
    """With one hash among them pip takes no file without, which `make env` asks for in words."""
    for pin, hashes in HASHES.items():
        assert hashes and len(set(hashes)) == len(hashes), pin
        for given in hashes:
            assert re.fullmatch("--hash=sha256:[0-9a-f]{64}", given), (pin, given)
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"(?:\$\(PIP\)|uv pip sync) .*", makefile)
    locked = [line for line in installs if not line.endswith("-e .")]
    assert len(locked) == 3 and all("--require-hashes" in line for line in locked)


def test_make_env_takes_from_the_lock_the_pin_of_uv_alone():
    (script,) = re.findall(
        r"sed -n '(/\^uv==.*?)' requirements.lock", (ROOT / "Makefile").read_text()
    )
    taken = subprocess.run(
        ["sed", "-n", script.replace("$$", "$"), "requirements.lock"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    first, *rest = taken.replace("\\\n", " ").splitlines()
    name, version = first.split()[0].split("==")
    assert name == "uv" and not rest and first.count("--hash=sha256:") > 3
    assert Version(version) == versions(environment_of("3.12"))["uv"]


def test_actions_and_packages_of_others_are_pinned_by_content():
    workflows = (ROOT / ".github" / "workflows").glob("*.yml")
    used = re.findall(r"uses: *(\S+)", "".join(path.read_text() for path in workflows))
    assert used and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)
    make = ROOT / "data" / "mini" / "make"
    rows = [line.split(",")[:3] for line in (make / "sources.csv").read_text().splitlines()[1:]]
    wanted = json.loads((make / "package.json").read_text())["dependencies"]
    drawings = {name: version for _, name, version in rows if name.startswith("@")}
    assert wanted == {**drawings, "emojibase-data": wanted["emojibase-data"]}
    lock = json.loads((make / "package-lock.json").read_text())["packages"]
    assert lock.pop("")["dependencies"] == wanted
    for name, package in lock.items():
        assert re.fullmatch("sha512-[A-Za-z0-9+/]{86}==", package["integrity"]), name
        assert "resolved" not in package and not package.get("hasInstallScript"), name
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    fetch = (make / "fetch.sh").read_text()
    assert "npm ci " in fetch and re.search("sha256sum .*[^$]*[0-9a-f]{64}", fetch)


def test_every_range_holds_its_pin():
    for python, platform in product(PYTHONS, PLATFORMS):
        where = environment(python, platform)
        pinned = versions(where)
        for wanted in (wanted for wanted in RANGES if applies(wanted, where)):
            name, said = canonicalize_name(wanted.name), (str(wanted), python, platform)
            assert name in pinned, said
            assert wanted.specifier.contains(pinned[name]), (*said, pinned[name])


def test_the_sites_lock_holds_its_extra_and_agrees_with_the_other():
    text = (ROOT / "docs" / "requirements.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.search("--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    pins = [Requirement(line.split("--hash")[0]) for line in lines]
    where = environment("3.12", PLATFORMS[0])
    own = {canonicalize_name(p.name): str(p.specifier) for p in pins if applies(p, where)}
    for wanted in map(Requirement, PROJECT["optional-dependencies"]["site"]):
        assert wanted.specifier.contains(own[wanted.name].removeprefix("==")), wanted
    both = {name: f"=={version}" for name, version in versions(where).items() if name in own}
    assert both and both == {name: own[name] for name in both}


@pytest.mark.parametrize("platform", PLATFORMS, ids="-".join)
def test_cuda_is_for_linux_alone(platform):
    cuda = re.compile(r"nvidia-|cuda-|triton$")
    found = [name for name in versions(environment("3.12", platform)) if cuda.match(name)]
    assert bool(found) == (platform[0] == "linux")


def test_torch_and_torchvision_are_one_pair():
    for python in PYTHONS:
        pinned = versions(environment(python, PLATFORMS[0]))
        # torchvision 0.N.P is built for torch 2.(N - 15).P.
        torch, vision = pinned["torch"], pinned["torchvision"]
        assert (torch.minor + 15, torch.micro) == (vision.minor, vision.micro)


def test_the_lock_is_complete_and_has_nothing_unneeded():
    where = {**default_environment(), "extra": ""}
    pinned = versions(where)
    waiting = [wanted for wanted in RANGES if applies(wanted, where)]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        assert name in pinned, f"{wanted} is needed, but not in requirements.lock"
        assert wanted.specifier.contains(pinned[name], prereleases=True), wanted
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                lines = requires(name) or []
            except PackageNotFoundError:
                pytest.skip(f"{name} is not installed: run make env")
            needed = (Requirement(line) for line in lines)
            waiting += [r for r in needed if applies(r, {**where, "extra": extra})]
    assert set(pinned) == {name for name, _ in seen}


def test_the_conda_environment_is_the_locks():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    # Where hashes are asked for, pip takes no folder: the project itself is installed afterwards.
    assert pip == ["-r requirements.lock"]
    after = "pip install --no-deps --no-build-isolation -e ."
    assert after in (ROOT / "environment.yml").read_text() and after in POST_BUILD.read_text()
    assert os.access(POST_BUILD, os.X_OK)
    (python,) = (line.partition("=")[2] for line in conda if line.startswith("python="))
    assert python in PYTHONS and SpecifierSet(PROJECT["requires-python"]).contains(python)
    pinned = versions(environment_of(python))
    for line in (*conda, *pip):
        name, _, version = line.replace("==", "=").partition("=")
        if version and name != "python":
            assert pinned[canonicalize_name(name)] == Version(version), line


def environment_of(python):
    return environment(python, PLATFORMS[0])


def test_one_version_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == lbutils.__version__ == citation["version"]


def test_hooks_use_the_locked_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = (repo["rev"] for repo in hooks if repo["repo"].endswith("/ruff-pre-commit"))
    assert Version(revision) == versions(environment_of("3.12"))["ruff"]
