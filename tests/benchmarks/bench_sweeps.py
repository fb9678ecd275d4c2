"""What a run of a sweep costs beyond its notebook's own time: ``make bench``.

The notebook's own time is that of its kernel: from its start to its end, which the same notebook
takes without a sweep, by nbclient alone. At most two seconds more are wanted.
"""

from __future__ import annotations

import os
import time

import nbclient
import nbformat
import numpy as np

from lbutils.run import sweeps

RUNS = int(os.environ.get("LBUTILS_BENCH_RUNS", "5"))
PARAMETERS = 'seed = 0\nout = ""'
WORK = """
import json
from pathlib import Path

row = dict(method="m", encoder=None, benchmark=None, domain=None, vocabulary=None, shots=None,
           seed=seed, metric="accuracy", value=1.0, low=None, high=None)
record = dict(kind="k", key={}, params={}, metrics=[row], claims=[], provenance={})
Path(out or ".", "records").mkdir(exist_ok=True)
Path(out or ".", "records", "k.json").write_text(json.dumps(record))
"""


def test_overhead_of_a_run(tmp_path, capsys):
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(WORK),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    alone, swept = [], []
    # In turns, as the machine may do other work; the first of each loads modules and is left out.
    for turn in range(RUNS + 1):
        begin = time.perf_counter()
        options = {"resources": {"metadata": {"path": str(tmp_path)}}, "kernel_name": "python3"}
        nbclient.NotebookClient(nbformat.read(path, as_version=4), **options).execute()
        alone.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        table = sweeps.grid(path, {"seed": [turn]}, tmp_path / "out", progress=False)
        swept.append(time.perf_counter() - begin)
        assert table["status"].tolist() == ["finished"]
    many = list(range(100, 100 + RUNS))
    begin = time.perf_counter()
    sweeps.grid(path, {"seed": many}, tmp_path / "out", progress=False)
    each = (time.perf_counter() - begin) / RUNS
    begin = time.perf_counter()
    sweeps.grid(path, {"seed": many}, tmp_path / "out", progress=False)
    skipped = (time.perf_counter() - begin) / RUNS
    own, whole = np.median(alone[1:]), np.median(swept[1:])
    with capsys.disabled():
        print(f"\nnotebook alone             {own:6.2f} s (median of {RUNS}, with its kernel)")
        print(f"a sweep of one run         {whole:6.2f} s, with its tables and figure")
        print(f"a run among {RUNS:<3}            {each:6.2f} s, {each - own:+.2f} s a run")
        print(f"a run that is skipped      {skipped:6.2f} s")
        print(f"at most 2 s, as is wanted: {'yes' if each - own <= 2 else 'no'}")
