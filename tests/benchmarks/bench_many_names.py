"""Names of many tasks learned in one batch, beside one fit after another: ``make bench``.

The miniature's domains and text tower, four shots, our defaults; features are random directions, as
what images show costs nothing. At least three times cheaper is wanted.

That batch and single fits are the same sums is seen with the tower in float64. In float32 thirty
steps enlarge what rounding leaves: how a product adds up depends on how many rows it has.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils.learn.namelearner import fit_many
from lbutils.models.classifier import text_features

DRAWS = int(os.environ.get("LBUTILS_BENCH_DRAWS", "3"))
SHOTS, VIEWS = 4, 5


def problems(encoder, draws=DRAWS, domains=None):
    """Learners, splits and features ``(V, N, D)`` of every domain, or of some, and draw."""
    found = []
    for domain in load_benchmark("mini", domains=domains).values():
        names = tuple(domain.oop.names)
        labels = np.repeat(np.arange(len(names)), SHOTS)
        split = SimpleNamespace(labels=labels, names=names, captions=(None,) * len(labels))
        text_features(encoder, domain.ip.names)  # kept, and counted for neither
        for draw in range(draws):
            generator = torch.Generator().manual_seed(draw)
            centres = torch.randn(len(names), encoder.dim, generator=generator)[labels]
            noise = torch.randn(VIEWS, *centres.shape, generator=generator)
            learner = NameLearner(encoder, negatives=domain.ip.names, seed=draw)
            views = F.normalize(centres + 0.5 * noise, dim=-1).to(encoder.model.logit_scale.dtype)
            found.append((learner, split, views))
    return found


def apart(tasks):
    """Learners, each fitted by itself."""
    return [learner.fit(*given) for learner, *given in tasks]


def worst(some, others):
    """The greatest difference of an entry of two learners' classifiers."""
    pairs = zip(some, others, strict=True)
    return max(float((a.classifier_ - b.classifier_).abs().max()) for a, b in pairs)


def timed(fit):
    """What a fit gives, and the CPU seconds of this process."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    found = fit()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, clock() - start


def test_a_batch_beside_single_fits(capsys):
    torch.set_num_threads(1)
    encoder = load_encoder("mini")
    ours, theirs = problems(encoder), problems(encoder)
    ours[0][0].fit(*ours[0][1:])  # warm
    alone, single = timed(lambda: apart(theirs))
    together, batch = timed(lambda: fit_many(*zip(*ours, strict=True)))
    far = worst(together, alone)
    with capsys.disabled():
        print(f"\n{len(ours)} fits, {encoder.device}: apart {single:.1f} s, together {batch:.1f}")
        print(f"ratio {single / batch:.2f}, three wanted; in float32 they differ by {far:.1e}")


def test_a_batch_is_the_single_fits(capsys):
    encoder = load_encoder("mini", device="cpu")
    encoder.model.double()
    ours, theirs = (problems(encoder, 2, ["Insects", "Landmark"]) for _ in range(2))
    far = worst(fit_many(*zip(*ours, strict=True)), apart(theirs))
    with capsys.disabled():
        print(f"\n{len(ours)} fits, the tower in float64: classifiers differ by {far:.1e}")
    assert far < 1e-5
