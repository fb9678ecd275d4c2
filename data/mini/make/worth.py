"""Measure what a name is worth: names from 0 to 8 labelled images, beside captions that hold them.

    python data/mini/make/worth.py           # some six CPU minutes
    python data/mini/make/worth.py --print   # what the table says

The concepts are those of `choose_prior.py`: of each rotation of the lots `CLASSES` IP classes of
which its encoder met neither names nor drawings, in one vocabulary. For each of ten draws their
names are learned from 1, 2, 4 and 8 drawings, and from none, with the prior that `choose_prior.py`
chose and without, with unlabelled drawings beside and without; and prototypes are made of the same
drawings, with their own prior. Unlabelled are the training and validation drawings that the draw
does not learn from at eight shots, the same ones at each number. A name without any drawing, prior
or caption is left as it is.

Beside them stands what captions do. Lots go round: the concepts that one encoder met nowhere are
together again under another, which read their names in captions of their drawings ("both"), and
under the third, which met the same drawings under captions that do not name them ("image"). Names
as they are, in the same vocabulary, are scored under all three.

All are scored on the test drawings of these concepts, which no choice has looked at; that the
prior was chosen on other drawings of the same concepts is what it gains by choice, if anything.

Writes `data/results/worth.csv`: a row for each rotation, method, knowledge, weight, number of shots
and concept, with the concept's accuracy in per cent, a mean over draws. A rotation that is there is
not measured again: after a change of code, delete the table first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from choose_prior import DRAWS, Trial, begin, chosen, known, of_learners, of_means, predicted, rows
from choose_rivals import drawn, loaded, pooled, unmet

from lbutils import NameLearner, load_benchmark
from lbutils._util import write_text
from lbutils.data.benchmark import Split, data_dir
from lbutils.data.lots import ROTATIONS, lots
from lbutils.measure.lots import (
    restricted,
    results,
    worth_differences,
    worth_levels,
    worth_lines,
)
from lbutils.models.classifier import training_features
from lbutils.models.features import image_features
from lbutils.rivals.probes import ZeroShot

TABLE = data_dir() / "results" / "worth.csv"
SHOTS = (1, 2, 4, 8)


def tested(names: tuple[str, ...]) -> Split:
    """The test drawings of IP classes, over their names alone."""
    whole = pooled(domain.ip.test for domain in load_benchmark("mini").values())
    found = restricted(whole, np.flatnonzero(np.isin(whole.names, names)))
    assert found.names == names
    return found


def trials(encoder: Any, rotation: str, test: Split) -> Iterator[tuple[int, Trial, torch.Tensor]]:
    """Every draw at every number of shots, and the unlabelled images ``(M, D)`` beside it."""
    every = unmet(rotation)[0]
    views, images = training_features(encoder, every), image_features(encoder, test)
    nothing = every.take(np.zeros(0, int)), []
    for draw in DRAWS:
        splits, rest = drawn(rotation, SHOTS, draw)
        pile = views[0, rest]
        for k, (split, at) in {0: nothing, **splits}.items():
            yield draw, Trial(k, split, views[:, at], images, test.labels), pile


def of_names(encoder: Any, rotation: str, own: list[Any], kind: str, prior: Any) -> Iterator[Any]:
    """Rows of learned names, with a prior and without, with unlabelled images and without."""
    negatives = unmet(rotation)[2]
    weight = NameLearner.prior_weight
    for weighed, piled in itertools.product((0.0, weight), (False, True)):
        options = {"prior": prior} if weighed else {}
        draws, ran, piles = zip(*(job for job in own if job[1].shots or weighed), strict=True)
        learners = [NameLearner(encoder, negatives=negatives, seed=d, **options) for d in draws]
        runs = of_learners(learners, ran, piles if piled else None)
        method = "names, unlabelled" if piled else "names"
        yield from rows((rotation, method, kind if weighed else "none", weighed), runs)


def of_prototypes(
    encoder: Any, rotation: str, own: list[Any], kind: str, prior: Any, weight: float
) -> Iterator[Any]:
    """Rows of prototypes, with a prior and without."""
    ran = [trial for _, trial, _ in own if trial.shots]
    for weighed in (0.0, weight):
        runs = of_means(encoder, ran, prior if weighed else None, weighed)
        yield from rows((rotation, "prototypes", kind if weighed else "none", weighed), runs)


def as_they_are(folder: Path, rotation: str, test: Split) -> Iterator[Any]:
    """Rows of the names as they are, under the encoder of each arm."""
    arms = lots().set_index("name").loc[list(test.names), list(ROTATIONS)]
    for other in ROTATIONS:
        (arm,) = set(arms[other])
        encoder = loaded(folder / f"{other}-seed-0")
        images = image_features(encoder, test)
        trial = Trial(0, test, images[None], images, test.labels)
        key = (rotation, f"as it is, {arm}", "none", 0.0)
        yield from rows(key, predicted([ZeroShot(encoder).fit(test)], [trial]))


def measured(folder: Path, rotation: str) -> pd.DataFrame:
    """The rows of a rotation."""
    encoder, names = loaded(folder / f"{rotation}-seed-0"), unmet(rotation)[0].names
    test, before = tested(names), results("prior")
    kind, weight = chosen(before, "names")
    assert weight == NameLearner.prior_weight
    knowledge = dict(known(encoder, rotation, names))
    own = list(trials(encoder, rotation, test))
    found = list(as_they_are(folder, rotation, test))
    found += of_names(encoder, rotation, own, kind, knowledge[kind])
    kind, weight = chosen(before, "prototypes")
    found += of_prototypes(encoder, rotation, own, kind, knowledge[kind], weight)
    return pd.DataFrame(found)


def main() -> None:
    args = begin(__doc__, TABLE)
    table = pd.read_csv(args.table) if args.table.is_file() else pd.DataFrame()
    done = set(ROTATIONS) if args.print else set(table.get("rotation", ()))
    for rotation in [rotation for rotation in ROTATIONS if rotation not in done]:
        table = pd.concat([table, measured(args.encoders, rotation)], ignore_index=True)
        write_text(args.table, table.to_csv(index=False, lineterminator="\n"))
    print(worth_lines(table).round(1).to_string(index=False))
    print(worth_levels(table).round(1).to_string(index=False))
    print(worth_differences(table).to_string())


if __name__ == "__main__":
    main()
