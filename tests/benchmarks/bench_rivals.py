"""The whole table of few-shot methods on the miniature: ``make bench``.

Nine domains, three numbers of shots, three draws, two processes. At most five minutes are wanted on
two cores. Features are extracted before the clock starts.
"""

from __future__ import annotations

import os
import time

import torch

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils.measure import tasks
from lbutils.rivals import RIVALS

DRAWS = int(os.environ.get("LBUTILS_BENCH_DRAWS", "3"))


def names(encoder, *, templates, hint, shots, seed, ip_names):
    return NameLearner(encoder, templates=templates, hint=hint, seed=seed, negatives=ip_names)


def fsnl(encoder, *, templates, hint, shots, seed, ip_names):
    return NameLearner.fsnl(encoder, templates=templates, hint=hint, seed=seed)


def test_table_of_rivals(capsys):
    encoder, benchmark = load_encoder("mini"), load_benchmark("mini")
    methods = {"names": names, "FSNL": fsnl, **RIVALS}
    drawn = {"shots": (1, 2, 4), "draws": range(DRAWS), "progress": False}
    workers = 2 if encoder.device.type == "cpu" else 1
    torch.manual_seed(0)
    tasks.run(encoder, benchmark, {"prototypes": RIVALS["prototypes"]}, **drawn)
    begin = time.perf_counter()
    found = tasks.run(encoder, benchmark, methods, workers=workers, **drawn)
    spent = time.perf_counter() - begin
    by_method = found.seconds.groupby("method")["seconds"].sum().sort_values(ascending=False)
    assert len(found.seconds) == len(methods) * len(benchmark) * 3 * DRAWS
    with capsys.disabled():
        print(f"\n{len(methods)} methods, {len(found.seconds)} fits, {workers} processes")
        print(by_method.round(1).to_string(header=False))
        print(f"{spent:.0f} s; five minutes, as are wanted: {'yes' if spent <= 300 else 'no'}")
