"""Names of many tasks learned in one batch, beside one fit after another: ``make bench``.

The miniature's domains and text tower, four shots, our defaults; features are random directions, as
what images show costs nothing. At least three times cheaper is wanted.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils.learn.namelearner import fit_many
from lbutils.models.classifier import text_features

DRAWS = int(os.environ.get("LBUTILS_BENCH_DRAWS", "3"))
SHOTS, VIEWS = 4, 5


def problems(encoder, draws=DRAWS):
    """Learners, splits and features ``(V, N, D)`` of every domain and draw."""
    found = []
    for domain in load_benchmark("mini").values():
        names = tuple(domain.oop.names)
        labels = np.repeat(np.arange(len(names)), SHOTS)
        split = SimpleNamespace(labels=labels, names=names, captions=(None,) * len(labels))
        text_features(encoder, domain.ip.names)  # kept, and counted for neither
        for draw in range(draws):
            generator = torch.Generator().manual_seed(draw)
            centres = torch.randn(len(names), encoder.dim, generator=generator)[labels]
            noise = torch.randn(VIEWS, *centres.shape, generator=generator)
            learner = NameLearner(encoder, negatives=domain.ip.names, seed=draw)
            found.append((learner, split, F.normalize(centres + 0.5 * noise, dim=-1)))
    return found


def seconds(fit):
    """CPU seconds of this process."""
    start = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
    fit()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()) - start


@pytest.mark.parametrize("most", [512])
def test_a_batch_beside_single_fits(most, capsys):
    torch.set_num_threads(1)
    encoder = load_encoder("mini")
    ours, theirs = problems(encoder), problems(encoder)
    ours[0][0].fit(*ours[0][1:])  # warm
    apart = seconds(lambda: [learner.fit(*given) for learner, *given in theirs])
    together = seconds(lambda: fit_many(*zip(*ours, strict=True), most=most))
    pairs = [
        (one.classifier_, other.classifier_)
        for (one, *_), (other, *_) in zip(ours, theirs, strict=True)
    ]
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    with capsys.disabled():
        print(f"\n{len(ours)} fits, {encoder.device}: apart {apart:.1f} s, together {together:.1f}")
        print(f"ratio {apart / together:.2f}, three wanted; classifiers differ by {worst:.1e}")
    assert worst < 1e-5
