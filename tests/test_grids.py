"""Grids as files, and what many processes, kills and failures leave of them."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from conftest import save_notebook

from lbutils.measure import published, records
from lbutils.run import (
    commands,
    execution,
    grid,
    keys,
    notebooks,
    parameters,
    pools,
    sweeps,
)

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = """
seed = 0
rate = 0.5
sizes = [1, 2]
domains = None
gate = ""
out = ""
"""
# Told with O_APPEND, by which lines of several processes stay whole.
WORK = """
import json, os, time
from pathlib import Path

told = f"{seed} {os.getpid()} {os.getppid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n"
with open("log.txt", "a") as log:
    log.write(told)
while gate and not Path(gate).exists():
    time.sleep(0.05)
if Path("broken").exists():
    raise KeyError("broken on purpose")
row = dict(method="m", encoder=None, benchmark=None, domain=None, vocabulary=None, shots=None,
           seed=None, metric="accuracy", value=seed * rate, low=None, high=None)
record = dict(kind="k", key={}, params={}, metrics=[row], claims=[], provenance={})
Path(out, "records", "k.json").write_text(json.dumps(record))
"""


def notebook(folder, work=WORK, parameters=PARAMETERS):
    return save_notebook(folder / "tiny.ipynb", parameters, work)


def written(folder, axes, **fixed):
    """A grid's file beside a tiny notebook."""
    notebook(folder)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"notebook": "tiny.ipynb", "set": fixed, "grid": axes}))
    return path


def started(folder):
    """Seed, process, parent and GPU of each run that was started, in order."""
    log = folder / "log.txt"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def until(holds, seconds=240):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def launch(*arguments, **variables):
    command = [sys.executable, "-m", "lbutils", "run", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alive(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody waits for is dead as well.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "a grid is a mapping with notebook, set, grid, figure, not list"),
        ("just text", "not str 'just text'"),
        ("", "not nothing"),
        ("notebook: 03\ngrid: {seed: [1]}\ngrid: {seed: [2]}", "line 3: the key grid .* twice"),
        ("notebook: 03\ngrid: {seed: [1], seed: [2]}", "line 2: the key seed .* twice"),
        ("notebook: 03\ngrid: {seed: &a [1], rate: *a}", "line 2: write the value out"),
        ("notebook: 03\ngird: {seed: [1]}", "unknown key 'gird'.*Did you mean 'grid'"),
        ("notebook: 03", "grid is missing"),
        ("grid: {seed: [1]}", "notebook is missing"),
        ("notebook: [3]\ngrid: {seed: [1]}", "notebook is a number, a name or a path"),
        ("notebook: 03\ngrid: [seed]", "grid is a mapping of names to values"),
        ("notebook: 03\ngrid: {seed: 1}", "list of values for seed, not 1"),
        ("notebook: 03\ngrid: {seed: '12'}", "list of values for seed"),
        ("notebook: 03\ngrid: {seed: []}", "list of values for seed"),
        ("notebook: 03\ngrid: {seed: [1, 1]}", "seed has the value 1 2 times"),
        ("notebook: 03\ngrid: {seed: [2020-01-01]}", "seed takes text, numbers"),
        ("notebook: 03\ngrid: {rate: [.inf]}", "rate takes no inf"),
        ("notebook: 03\ngrid: {1: [1]}", "1 is no name of a parameter"),
        ("notebook: 03\ngrid: {'a; b': [1]}", "'a; b' is no name"),
        ("notebook: 03\ngrid: {'a, b': [[1, 2], [3]]}", "a, b takes lists of 2 values each"),
        ("notebook: 03\nset: {a: 1}\ngrid: {'a, b': [[1, 2]]}", "parameter a is given twice"),
        ("notebook: ../x.ipynb\ngrid: {seed: [1]}", "lies outside the folder"),
        ("notebook: /x.ipynb\ngrid: {seed: [1]}", "lies outside the folder"),
        ("notebook: 03\ngrid: {seed: [1]}\nfigure: {mtric: a}", "Did you mean 'metric'"),
        ("notebook: !!python/name:os.system x\ngrid: {}", "could not determine a constructor"),
        ("notebook: {", "line 1: "),
        ("notebook: 03\ngrid: {[a, b]: [[1, 2]]}", "line 2: a key is a name, not a list"),
        ("notebook: 03\ngrid:\n  ? [seed]\n  : [1]", "line 3: a key is a name, not a list"),
        ("notebook: 03\ngrid: {{a: 1}: [1]}", "line 2: a key is a name"),
        ("[notebook]: 03\ngrid: {seed: [1]}", "line 1: a key is a name"),
        ("notebook: 03\ngrid: {seed: [1], <<: {seed: [2]}}", "line 2: write the keys out"),
        ("[" * 5000, "nested too deeply"),
        ("#" * 1_000_001, "more than 1,000,000 bytes"),
    ],
)
def test_bad_files_are_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"bad.yaml: .*{message}") as error:
        grid.read_grid(path)
    assert "\n" not in str(error.value)


def test_points_are_the_product_in_order():
    axes = {"a, b": [[1, [1]], [2, [2]]], "c": ["x", "y"]}
    assert grid.points(axes, {"d": None}) == [
        {"d": None, "a": 1, "b": [1], "c": "x"},
        {"d": None, "a": 1, "b": [1], "c": "y"},
        {"d": None, "a": 2, "b": [2], "c": "x"},
        {"d": None, "a": 2, "b": [2], "c": "y"},
    ]
    assert grid.points({}, {"d": 1}) == [{"d": 1}]
    million = {"a": range(1000), "b": range(1000)}
    with pytest.raises(ValueError, match="1,000,000 runs are more than 1,000: .*--limit 1000000"):
        grid.points(million, {})
    assert len(grid.points({"a": range(1001)}, {}, limit=1001)) == 1001


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"sizes": [1, 2]}, r"sizes is itself a list: write lists in a list, \[\[1, 2\]\]"),
        ({"sizes": [[1, "x"]]}, "sizes takes list of int"),
        ({"seeds": [1]}, "unknown parameter 'seeds'.*Did you mean 'seed'"),
        ({"seed": ["1e3"]}, "seed takes int"),
        ({"seed": [0, 0.0]}, "two runs of the grid are the same"),
        ({"out": ["x"]}, "set by --out"),
    ],
)
def test_grids_that_do_not_fit_the_notebook(tmp_path, capsys, axes, message):
    path = written(tmp_path, axes)
    with pytest.raises(ValueError, match=message):
        sweeps.grid_file(path, out=tmp_path / "out")
    assert commands.main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_command_lines(tmp_path, capsys):
    path = written(tmp_path, {"seed": [0, 1]})
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in (
        ([path, "03"], "one grid at a time"),
        ([tmp_path / "none.yaml"], "none.yaml"),
        ([path, "-p", "seed=3"], "seed is given twice"),
        ([path, "--workers", "0"], "workers must be 1 or more"),
        ([path, "--limit", "1"], "2 runs are more than 1"),
        ([path, "--dask", "nowhere"], "no Dask scheduler answers at nowhere"),
    ):
        assert commands.main(["run", *map(str, arguments), *out]) == 2
        assert message in capsys.readouterr().err
    notebook(tmp_path, parameters="seed = 0")
    assert commands.main(["run", str(path), *out]) == 2
    assert "no parameter out" in capsys.readouterr().err
    assert not started(tmp_path) and not (tmp_path / "out").exists()


def test_the_key_of_a_run(tmp_path, monkeypatch):
    monkeypatch.delenv("LBUTILS_PROFILE", raising=False)  # `make test` sets it
    path, points = notebook(tmp_path), [{"seed": 1}, {"rate": 0.5, "seed": 1}, {"seed": 2}]
    name, same, other = keys.run_names(path, points, "code")
    assert name == same
    others = {
        other,
        *keys.run_names(path, points[:1], "other code"),
        *keys.run_names(notebook(tmp_path / "b", WORK + "\n1"), points[:1], "code"),
    }
    monkeypatch.setenv("LBUTILS_PROFILE", "test")
    others.update(keys.run_names(path, points[:1], "code"))
    assert len(others | {name}) == 5


def test_a_disk_without_locks_is_told_from_a_run_that_is_busy(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(pools.FileLock, "acquire", refuse)
    with (
        pytest.raises(ValueError, match="cannot be locked .*choose a folder"),
        pools.locked(tmp_path),
    ):
        pass


def test_gpus_are_dealt_out(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5,-1,6")
    assert pools.gpus() == ["3", "GPU-5"]
    dealt = [made["CUDA_VISIBLE_DEVICES"] for made in pools.environments(3)]
    assert dealt == ["3", "GPU-5", "3"]
    for preset in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", preset)
        assert "CUDA_VISIBLE_DEVICES" not in pools.environments(1)[0]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pools, "_DRIVER", tmp_path / "driver")
    assert pools.gpus() == []
    for bus in ("0000:01:00.0", "0000:81:00.0"):
        (tmp_path / "driver" / bus).mkdir(parents=True)
    assert pools.gpus() == ["0", "1"]
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0\necho 1\n")
    tool.chmod(0o755)
    assert pools.gpus() == ["0", "1"]
    tool.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert pools.gpus() == []


def test_a_worker_that_dies_costs_its_job_alone():
    # A child's end is a signal that does nothing.
    jobs = [(signal.SIGCHLD,), (signal.SIGKILL,), (signal.SIGCHLD,), (signal.SIGCHLD,)]
    found = dict(pools.spread(signal.raise_signal, jobs, workers=2))
    assert sorted(found) == [0, 1, 2, 3] and isinstance(found.pop(1), BrokenProcessPool)
    assert set(found.values()) == {None}


def test_a_worker_is_started_once_and_again_if_it_died_between_two_jobs(monkeypatch):
    """Such as one that waited for a run of another sweep, and was killed for its memory."""
    made = []

    class Dying(pools._Here):
        def __init__(self):
            made.append(self)

        def submit(self, *job):
            if self is made[0] and job[1] == 2:
                raise BrokenProcessPool
            return super().submit(*job)

    monkeypatch.setattr(pools, "_Here", Dying)
    assert dict(pools.spread(str, [(1,), (2,), (3,)])) == {0: "1", 1: "2", 2: "3"}
    assert len(made) == 2


@pytest.mark.slow
def test_kill_in_the_middle_and_go_on(tmp_path):
    gate, out = tmp_path / "gate", tmp_path / "out"
    path = written(tmp_path, {"seed": [1, 2, 3]}, rate=0.25, gate=str(gate))
    arguments = [path, "--out", out, "--workers", "2"]
    first = launch(*arguments, CUDA_VISIBLE_DEVICES="3,5")
    try:
        until(lambda: len(started(tmp_path)) == 2)
        gate.touch()
        until(lambda: len(list(out.glob("*/run.json"))) >= 1)
        gate.unlink()
        until(lambda: len(started(tmp_path)) == 3)
    finally:
        first.kill()
        first.communicate()
    runs = started(tmp_path)
    assert {gpu for *_, gpu in runs} == {"3", "5"}
    # Neither workers nor kernels outlive the sweep.
    until(lambda: not any(alive(pid) for run in runs for pid in run[1:3]))
    done = {json.loads(p.read_text())["parameters"]["seed"] for p in out.glob("*/run.json")}
    # A killed sweep leaves the results of runs that it saw end, and of no others.
    left = out / "results.csv"
    assert 1 <= len(done) <= 2
    assert set(pd.read_csv(left)["set_seed"] if left.exists() else ()) <= done

    gate.touch()
    table = sweeps.grid_file(path, out=out, workers=1, progress=False)
    expected = ["skipped" if seed in done else "finished" for seed in (1, 2, 3)]
    assert table["status"].tolist() == expected
    again = started(tmp_path)[3:]
    assert {int(seed) for seed, *_ in again} == {1, 2, 3} - done

    found = pd.read_csv(out / "results.csv")
    assert found["set_seed"].tolist() == [1, 2, 3]
    assert found["value"].tolist() == [0.25, 0.5, 0.75]
    assert found["run"].tolist() == [Path(folder).name for folder in table["folder"]]
    before = {name: (out / name).read_bytes() for name in ("results.csv", "summary.csv")}
    # The same from a sweep that found all of it done, and from one that nothing disturbed.
    for other in (out, tmp_path / "undisturbed"):
        sweeps.grid_file(path, out=other, progress=False)
        assert before == {name: (other / name).read_bytes() for name in before}
    assert (out / "summary.png").stat().st_size > 1000
    assert pd.read_csv(out / "runs.csv")["status"].tolist() == ["finished"] * 3


@pytest.mark.slow
def test_two_sweeps_share_a_folder(tmp_path):
    gate, out = tmp_path / "gate", tmp_path / "out"
    path = written(tmp_path, {"seed": [1, 2]}, gate=str(gate))
    both = [launch(path, "--out", out) for _ in range(2)]
    try:
        # Each holds a run that the other wants.
        until(lambda: len(started(tmp_path)) == 2)
        gate.touch()
        printed = [sweep.communicate(timeout=120)[0] for sweep in both]
    finally:
        for sweep in both:
            sweep.kill()
    assert [sweep.returncode for sweep in both] == [0, 0]
    assert all("1 finished, 1 skipped, 0 failed" in text for text in printed)
    seeds, _, parents, _ = zip(*started(tmp_path), strict=True)
    assert sorted(seeds) == ["1", "2"] and len(set(parents)) == 2
    assert pd.read_csv(out / "results.csv")["value"].tolist() == [0.5, 1.0]


def test_failures_are_kept_and_retried_on_request(tmp_path, capsys):
    path, out = written(tmp_path, {"seed": [1]}), tmp_path / "out"
    (tmp_path / "broken").touch()
    command = ["run", str(path), "--out", str(out)]
    assert commands.main(command) == 1
    printed = capsys.readouterr().out
    assert "failed: KeyError: 'broken on purpose'" in printed and "--retry" in printed
    (folder,) = (path.parent for path in out.glob("*/run.json"))
    trace = (folder / "traceback.txt").read_text()
    assert 'raise KeyError("broken on purpose")' in trace and "\x1b" not in trace
    (tmp_path / "broken").unlink()
    assert commands.main(command) == 1 and len(started(tmp_path)) == 1
    assert commands.main([*command, "--retry"]) == 0 and len(started(tmp_path)) == 2
    assert not (folder / "traceback.txt").exists()
    assert records.collect(out)["value"].tolist() == [0.5]


def test_no_password_gets_into_what_a_sweep_leaves(tmp_path, capsys):
    """A notebook's parameters are noted in many places, and told in more."""
    secret = "https://me:s3cret@host/a.parquet?sig=s3cret"
    path, out = written(tmp_path, {"seed": [1]}, domains=[secret]), tmp_path / "out"
    (tmp_path / "broken").touch()
    assert commands.main(["run", str(path), "--out", str(out)]) == 1
    assert commands.main(["run", str(path), "--out", str(out), "--dry-run"]) == 0
    assert commands.main(["status", str(out)]) == 0
    changed = parameters.differing({"captions": secret}, {})
    shown = [*capsys.readouterr(), str(parameters.place(changed)), parameters.described(changed)]
    left = [path.read_text(errors="replace") for path in out.rglob("*") if path.is_file()]
    assert "host/a.parquet" in (out / "runs.csv").read_text() and len(left) > 5
    assert not [text for text in (*shown, *left) if "s3cret" in text]


def test_no_password_stays_where_a_notebook_could_not_be_started(tmp_path, monkeypatch):
    secret = "https://host/a.parquet?sig=s3cret"

    def fail(source, executed, given, **_):
        Path(executed).write_text(json.dumps({"parameters": given}))
        raise OSError("no such kernel")

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    with pytest.raises(OSError, match="no such kernel"):
        execution.execute(notebook(tmp_path), {"larger": [["2b", secret]]}, tmp_path / "run")
    left = (tmp_path / "run" / "notebooks" / "tiny.ipynb").read_text()
    assert "host/a.parquet" in left and "s3cret" not in left


def test_a_run_that_ends_while_its_status_is_asked_has_not_stopped(tmp_path, monkeypatch):
    (tmp_path / "run" / "notebooks").mkdir(parents=True)
    locked = pools.locked

    def ended(folder):
        sweeps._leave_state(folder, Path("tiny.ipynb"), {}, None, None, 1.0)
        return locked(folder)

    monkeypatch.setattr(pools, "locked", ended)
    assert sweeps.status(tmp_path)["status"].tolist() == ["finished"]


def test_what_is_no_notebooks_fault_is_kept_too(tmp_path, monkeypatch):
    path, out = written(tmp_path, {"seed": [1, 2]}), tmp_path / "out"

    def full(notebook, point, folder, timeout):
        if point["seed"] == 1:
            raise OSError(28, "No space left on device")
        return execution.Outcome(notebook, folder, 1.0)

    monkeypatch.setattr(execution, "execute", full)
    table = sweeps.grid_file(path, out=out, progress=False)
    assert table["status"].tolist() == ["failed", "finished"]
    assert table["error"][0] == "OSError: [Errno 28] No space left on device"
    # One without records is finished all the same, and there is nothing to draw.
    assert sweeps.grid_file(path, out=out, progress=False)["status"][1] == "skipped"
    assert len(pd.read_csv(out / "results.csv")) == 0 and not (out / "summary.png").exists()


def test_over_dask(tmp_path):
    distributed = pytest.importorskip("distributed")
    path, out = written(tmp_path, {"seed": [1, 2]}), tmp_path / "out"
    options = {"processes": False, "dashboard_address": None, "protocol": "tcp://"}
    with distributed.LocalCluster(1, threads_per_worker=2, **options) as cluster:
        address = cluster.scheduler_address
        table = sweeps.grid_file(path, out=out, dask=address, progress=False)
        assert table["status"].tolist() == ["finished"] * 2
        again = sweeps.grid_file(path, out=out, dask=address, progress=False)
        assert again["status"].tolist() == ["skipped"] * 2
    assert pd.read_csv(out / "results.csv")["value"].tolist() == [0.5, 1.0]


def test_a_worker_of_another_version(tmp_path):
    with pytest.raises(RuntimeError, match="install the same"):
        sweeps._grid_run(notebook(tmp_path), {}, tmp_path / "run", False, "0.0.9+abc", None)
    assert not (tmp_path / "run").exists()


def measured(run, seed, method, value, metric="accuracy", domain="Food"):
    row = dict.fromkeys((*records.KEY, *records.VALUES))
    row |= {"method": method, "domain": domain, "metric": metric, "value": value, "seed": 0}
    return {"run": run, "set_seed": seed, "set_kind": '["a"]', **row}


def test_summary_over_runs():
    rows = [measured(f"r{s}", s, m, 10 * s + n) for s in (1, 2) for n, m in enumerate("ab")]
    rows += [measured("r1", 1, "a", 14.0, domain="Pets"), measured("r1", 1, "a", 12, domain="Mean")]
    rows += [measured("r2", 2, "a", 0.5, "loss")]
    table = pd.DataFrame(rows)
    found = sweeps.summary(table)
    # A swept seed goes before the one of the records, and means before nothing.
    assert list(found) == ["method", "set_seed", "value", "low", "high", "rows", "metric"]
    wide = found.pivot(index="method", columns="set_seed", values="value")
    np.testing.assert_allclose(wide.loc[["a", "b"], [1, 2]], [[12, 20], [11, 21]])
    assert found.loc[0, ["low", "high", "rows"]].tolist() == [10, 14, 2]
    assert set(sweeps.summary(table, "loss")["metric"]) == {"loss"}
    assert list(sweeps.summary(table, x="domain", by="seed"))[:2] == ["set_seed", "domain"]
    for options, message in (
        ({"metric": "accurcy"}, "unknown metric.*Did you mean 'accuracy'"),
        ({"x": "sed"}, "unknown column 'sed'.*Did you mean 'seed'"),
        ({"x": "seed", "by": "seed"}, "name another"),
    ):
        with pytest.raises(ValueError, match=message):
            sweeps.summary(table, **options)


def test_the_papers_grid(monkeypatch):
    found = grid.read_grid(ROOT / "sweeps" / "paper.yaml")
    (path,) = notebooks.find_notebooks([found.notebook])
    opened = []
    monkeypatch.setattr(notebooks, "load_benchmark", lambda name, **kw: opened.append((name, kw)))
    points = sweeps._checked_points(path, found.axes, dict(found.fixed), grid.LIMIT)
    assert path.stem == "04_few_shot_name_learning" and len(points) == 9 * 5 * 3
    # The domains and shots of the published figure are the ones that are swept.
    theirs = published.table("figure5_few_shot").query("shots > 0 and domain != 'average'")
    assert {point["domains"][0] for point in points} == set(theirs["domain"])
    assert {point["shots"] for point in points} == set(theirs["shots"])
    assert {point["seed"] for point in points} == {1, 2, 3}
    assert all(point["shot_counts"] == [point["shots"]] for point in points)
    assert {name for name, _ in opened} == {"laion-beyond"} and len(opened) == 9


@pytest.mark.usefixtures("full_runs")
def test_a_grid_has_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    """None that a run of notebooks has, whatever the grid's file is called."""
    monkeypatch.setattr(sweeps, "results_dir", lambda: tmp_path)
    monkeypatch.setattr(parameters, "results_dir", lambda: tmp_path)
    path = written(tmp_path, {"seed": [1]}).rename(tmp_path / "mini.yaml")
    table = sweeps.grid_file(path, dry_run=True)
    assert Path(table["folder"][0]).parent == tmp_path / "sweeps" / "mini"
    assert parameters.place({}) == tmp_path / "mini"
    assert commands.main(["run", str(path), "--dry-run"]) == 0
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "claims.csv").touch()
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "runs.csv").touch()
    capsys.readouterr()
    for asked, out, told in (
        (path, "mini", "is the folder of a run of notebooks"),
        (tmp_path / "tiny.ipynb", "swept", "is the folder of a grid"),
    ):
        assert commands.main(["run", str(asked), "--out", str(tmp_path / out)]) == 2
        assert told in capsys.readouterr().err
    assert not started(tmp_path)


@pytest.mark.slow
def test_the_small_grid_on_the_miniature(tmp_path):
    found = grid.read_grid(ROOT / "sweeps" / "mini.yaml")
    assert len(grid.points(found.axes, found.fixed)) == 2
    axes = {name: values[:1] for name, values in found.axes.items()}
    made = [
        sweeps.grid(found.notebook, axes, tmp_path, fixed=found.fixed, progress=False)
        for _ in range(2)
    ]
    assert [table["status"][0] for table in made] == ["finished", "skipped"]
    table = pd.read_parquet(tmp_path / "results.parquet")
    assert set(table["benchmark"]) == {"mini"} and set(table["set_seed"]) == {0}
    assert "Food" in set(table["domain"]) and len(table) > 10
    executed = nbformat.read(next(tmp_path.glob("*/notebooks/*.ipynb")), as_version=4)
    injected = next(c for c in executed.cells if "injected-parameters" in c.metadata.tags)
    assert 'domains = ["Food"]' in injected.source and "controls = 2" in injected.source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two rooms, and a notebook that imports some of it."""
    root = tmp_path / "lbutils"
    files = {
        "__init__.py": 'lazy(__name__, {"room.a": ["thing"]})',
        "room/__init__.py": 'lazy(__name__, {"b": ["other"]})',
        "room/a.py": "from lbutils.room import other\n\n\ndef thing():\n    return other() + 1\n",
        "room/b.py": "def other():\n    return 1\n",
        "room/unused.py": "x = 1\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(keys, "PACKAGE", root)
    return root, notebook(tmp_path, "from lbutils import thing")


def test_a_comment_makes_no_other_run(package, monkeypatch):
    root, path = package
    before = keys.code_of(path)
    a, b = root / "room" / "a.py", root / "room" / "b.py"
    a.write_text('"""Words."""\n# more\n' + a.read_text().replace(":\n", ':\n    """What."""\n'))
    (root / "room" / "unused.py").write_text("x = 2\n")
    assert keys.code_of(path) == before
    # By way of two faces.
    b.write_text("def other():\n    return 2\n")
    changed = keys.code_of(path)
    assert changed != before
    monkeypatch.setattr(records, "installed", lambda name: f"another {name}")
    assert keys.code_of(path) not in (before, changed)


def test_the_code_of_a_real_notebook_is_what_it_imports():
    (third,) = notebooks.find_notebooks(["03"])
    found = {path.relative_to(ROOT / "lbutils").as_posix() for path in keys._imported(third)}
    assert {"models/classifier.py", "figures/__init__.py", "_util.py", "data/folder.py"} <= found
    assert "run/pools.py" not in found and "captions/screening.py" not in found


@pytest.mark.slow
def test_a_run_that_takes_too_long_has_failed(tmp_path, capsys):
    path = written(tmp_path, {"seed": [1, 2]})
    notebook(tmp_path, WORK + "\nif seed == 2:\n    time.sleep(300)")
    begun, out = time.monotonic(), str(tmp_path / "out")
    assert commands.main(["run", str(path), "--out", out, "--timeout", "40"]) == 1
    assert time.monotonic() - begun < 280
    printed = capsys.readouterr().out
    assert "failed: TimeoutError: not done after 40 s\n  at seed=2\n" in printed
    assert "1 finished, 0 skipped, 1 failed" in printed
    page = (tmp_path / "out" / "index.html").read_text()
    assert "TimeoutError" in page and "tiny.ipynb" in page and "traceback.txt" in page
    assert commands.main(["status", out]) == 0
    printed = capsys.readouterr().out
    assert "seed" in printed and "1 finished" in printed and "1 failed" in printed


def test_what_would_run_is_said_and_nothing_is_written(tmp_path, capsys):
    path, out = written(tmp_path, {"seed": [1, 2]}), tmp_path / "out"
    assert commands.main(["run", str(path), "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "to run   seed=1\n" in printed and "2 to run of 2" in printed
    assert not out.exists() and not started(tmp_path)


@pytest.mark.parametrize(
    "option",
    [["--dask", "x"], ["--retry"], ["--limit", "3"]],
)
def test_options_that_say_nothing_without_a_grid(capsys, option):
    assert commands.main(["run", "03", *option]) == 2
    assert f"{option[0]} is for grids" in capsys.readouterr().err


@pytest.mark.usefixtures("full_runs")
def test_no_worker_is_too_few(capsys):
    assert commands.main(["run", "03", "--workers", "0"]) == 2
    assert "workers must be 1 or more, not 0" in capsys.readouterr().err


def test_two_sweeps_look_at_the_disk_at_once(tmp_path):
    """What the one writes to see whether it can is not what the other takes away."""
    place = tmp_path / "out"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sweeps._check_writable, [place] * 400))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_is_told_before_anything_runs(tmp_path, monkeypatch, capsys):
    path = written(tmp_path, {"seed": [1]})
    (tmp_path / "file").write_text("")
    assert commands.main(["run", str(path), "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not started(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sweeps, "write_text", full)
    monkeypatch.setattr(execution, "execute", full)
    tiny = tmp_path / "tiny.ipynb"
    found = sweeps._grid_run(tiny, {}, tmp_path / "run", False, keys.code_of(tiny), None)
    assert found["status"] == "failed" and "No space left" in found["error"]


@pytest.mark.slow
def test_ctrl_c_says_one_line_and_keeps_what_is_done(tmp_path):
    gate, out = tmp_path / "gate", tmp_path / "out"
    path = written(tmp_path, {"seed": [1, 2, 3]}, gate=str(gate))
    command = [sys.executable, "-m", "lbutils", "run", path, "--out", out, "--workers", "2"]
    sweep = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: len(started(tmp_path)) == 2)
        told = sweeps.status(out)
        gate.touch()
        until(lambda: (out / "results.csv").exists())
        gate.unlink()
        os.killpg(sweep.pid, signal.SIGINT)
        _, said = sweep.communicate(timeout=90)
    finally:
        sweep.kill()
    assert told["status"].tolist() == ["running"] * 2 and told["cell"].tolist() == ["3 of 3"] * 2
    assert sweep.returncode == 130 and "stopped; what is done is kept" in said
    assert "Traceback" not in said
    until(lambda: not any(alive(pid) for run in started(tmp_path) for pid in run[1:3]))
    assert 1 <= len(pd.read_csv(out / "results.csv")) <= 3
