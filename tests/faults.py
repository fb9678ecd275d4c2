"""Plant faults in the package one by one, and tell those that no test finds.

    python tests/faults.py lbutils/measure/metrics.py --number 50 --seed 1

mutmut leaves decorated functions out, which every figure is, and the defaults of arguments, where
chosen constants stand; cosmic-ray starts Python anew for each fault. Here faults are planted in a
copy, and each is tried in a process that is forked after all libraries are imported.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# By module: the tests that are to find its faults.
WATCHED = {
    "lbutils/data/benchmark.py": ["benchmark", "layout", "laion_beyond"],
    "lbutils/figures/bars.py": ["figures"],
    "lbutils/figures/lines.py": ["figures"],
    "lbutils/figures/maps.py": ["figures"],
    "lbutils/learn/knowledge.py": ["knowledge", "zsnl", "prior"],
    "lbutils/learn/mixture.py": ["zsnl", "mixtures", "prior"],
    "lbutils/measure/joint.py": ["protocol"],
    "lbutils/measure/metrics.py": ["evaluation", "protocol", "survey"],
    "lbutils/models/names.py": ["names", "install"],
    "lbutils/unlabelled/zsnl.py": ["zsnl"],
}
# How things look is no fault: widths, sizes, places of words, and what lies above what. Nor is it
# one to zip without a look at lengths that are equal.
LOOKS = set(
    "lw linewidth linewidths elinewidth ms mew s size fontsize labelsize pad padding labelpad "
    "alpha zorder width height pad_inches linespacing rotation handlelength columnspacing margin "
    "xytext weight saturation gap dpi round textcoords shrinkA shrinkB ncols framealpha "
    "clip_on repr length strict".split()
)
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SECONDS = 300  # of processor time, that a fault may take to be found


def faulty(node: ast.AST) -> ast.AST | None:
    """A node with a fault in the place of one without; None if no fault is known for its kind."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return ast.Constant(not node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        twice = isinstance(node.value, float) and node.value
        return ast.Constant(2 * node.value if twice else node.value + 1)
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        return ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp):
        return ast.BoolOp(SWAPS[type(node.op)](), node.values)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.UnaryOp):
        return node.operand
    if isinstance(node, ast.IfExp):
        return ast.IfExp(node.test, node.orelse, node.body)
    if isinstance(node, ast.Return) and node.value is not None:
        return ast.Return(ast.Constant(None))
    return None


def within(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes below one, without errors and their words, annotations and looks."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        if isinstance(node, ast.Dict) and name == "values":
            keys = [getattr(key, "value", None) for key in node.keys]
            value = [one for key, one in zip(keys, value, strict=True) if key not in LOOKS]
        for child in value if isinstance(value, list) else [value]:
            look = isinstance(child, ast.keyword) and child.arg in LOOKS
            if isinstance(child, ast.AST) and not look and not isinstance(child, ast.Raise):
                yield child
                yield from within(child)


def faults(text: str) -> list[tuple[int, str, str]]:
    """Line, description and text with the fault, of every fault that is known for a module."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    content, found = text.encode(), []
    for node in within(ast.parse(text)):
        wrong = faulty(node)
        if wrong is None or not hasattr(node, "lineno"):
            continue
        at = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        told = ast.unparse(ast.fix_missing_locations(wrong))
        told = told if isinstance(node, ast.Return) else f"({told})"
        planted = (content[:at] + told.encode() + content[end:]).decode()
        try:
            compile(planted, "planted", "exec")
        except SyntaxError:  # within a text with fields, in old Python
            continue
        found.append((node.lineno, f"{content[at:end].decode()} -> {told}", planted))
    return found


def is_found(tests: list[str], log: Path) -> bool:
    """Whether a test fails, or does not come to an end, in a process of its own."""
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        status = pytest.main([*tests, "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"])
        os._exit(int(status))
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    # A failure, a module that does not load, or no end.
    if status not in (0, 1, 2, -signal.SIGXCPU, -signal.SIGKILL):
        raise RuntimeError(f"the tests could not be run: see {log}")
    return status != 0


def prepare(modules: list[str]) -> Path:
    """Copy of the checkout from which everything but this package is imported already."""
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    for name in ("lbutils", "tests", "notebooks", "docs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "pyproject.toml", "README.md", "requirements.lock", "Makefile"):
        (place / name).symlink_to(ROOT / name)
    os.chdir(place)
    sys.path[:0] = [str(place), str(place / "tests")]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(place), OMP_NUM_THREADS="1", MPLBACKEND="agg")
    for name in {f"test_{test}" for module in modules for test in WATCHED[module]}:
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.partition(".")[0] in ("lbutils", "conftest") or name.startswith("test_"):
            del sys.modules[name]
    return place


def main(given: list[str] | None = None) -> int:
    """Number of faults that no test found; 0 is what is wanted, four of five what must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(WATCHED)}")
    parser.add_argument("--number", type=int, default=20, help="faults drawn of each module")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    modules = options.modules or list(WATCHED)
    if unknown := set(modules) - set(WATCHED):
        parser.error(f"no tests are known to watch {', '.join(unknown)}")
    place, missed, tried = prepare(modules), 0, 0
    for module in modules:
        file, tests = place / module, [f"tests/test_{name}.py" for name in WATCHED[module]]
        text = file.read_text(encoding="utf-8")
        every = faults(text)
        drawn = random.Random(options.seed).sample(every, min(options.number, len(every)))
        found = 0
        for line, told, planted in sorted(drawn):
            file.write_text(planted, encoding="utf-8")
            if is_found(tests, place / "log.txt"):
                found += 1
            else:
                print(f"not found: {module}:{line}: {told}", flush=True)
        file.write_text(text, encoding="utf-8")
        print(f"{module}: {found} of {len(drawn)} found, {len(every)} are known", flush=True)
        missed, tried = missed + len(drawn) - found, tried + len(drawn)
    print(f"{tried - missed} of {tried} faults found")
    shutil.rmtree(place)
    return 0 if missed <= tried / 5 else 1


if __name__ == "__main__":
    sys.exit(main())
