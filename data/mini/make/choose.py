"""Choose the hyper-parameters of few-shot learning on IP classes that play OOP.

    python data/mini/make/choose.py

Names that the encoder knows would make learning look easy, so their rows are drawn anew
(`init="random"`), and CoOp, which leaves rows alone, is given names of OOP classes of the same
domain in their place. Training images are few-shot draws of IP classes, scores come from their
validation drawings. The encoder saw the training drawings in pre-training, which it has not of
real OOP classes: the one thing in which these episodes are easier. No OOP image and no test image
is read.

Writes `selection.csv`: for each method the accuracy of every setting, the mean of all domains, and
the chosen one: the fewest steps among those within two points of the best, and of these the
best. Its values are the defaults of `lbutils`. Run `checksums.py` afterwards.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils.baselines import CoOp, LinearProbe, Prototypes
from lbutils.evaluation import bootstrap, per_class_accuracy
from lbutils.features import image_features
from lbutils.zeroshot import training_features

DATA = Path(__file__).parent.parent
SLACK = 2.0
# A later round of a method keeps what the one before it has chosen, but for its own options.
ROUNDS: tuple[tuple[str, dict[str, list[Any]]], ...] = (
    ("prototypes", {"views": [0, 4]}),
    ("linear probe", {"C": [0.3, 1.0, 3.0, 10.0], "views": [4]}),
    ("FSNL", {"lr": [0.003, 0.01, 0.03], "steps": [20, 40], "caption_weight": [0.0],
              "views": [4]}),
    ("FSNL", {"caption_weight": [0.5]}),
    ("CoOp", {"lr": [0.002, 0.005, 0.02], "steps": [40, 80], "views": [4]}),
)  # fmt: skip
OPTIONS = ("lr", "steps", "caption_weight", "C", "views")
MAKERS: dict[str, Callable[..., Any]] = {
    "FSNL": lambda encoder, **options: NameLearner(encoder, init="random", **options),
    "CoOp": CoOp,
    "linear probe": lambda encoder, C, **_: LinearProbe(encoder, C),
    "prototypes": lambda encoder, **_: Prototypes(encoder),
}
COLUMNS = ("method", *OPTIONS, *"shots draws classes accuracy low high chosen".split())


class Episodes:
    """IP classes of every domain as few-shot tasks, their features computed once."""

    def __init__(self, encoder: Any, shots: int, draws: int, views: int):
        self.encoder, self.shots, self.draws = encoder, shots, draws
        self.domains = load_benchmark("mini").values()
        self.train = {d.name: training_features(encoder, d.ip.train, views) for d in self.domains}
        self.val = {d.name: image_features(encoder, d.ip.val) for d in self.domains}
        self.classes = sum(len(d.ip.names) for d in self.domains)

    def score(self, method: str, options: dict[str, Any], domain: Any, draw: int) -> np.ndarray:
        """Accuracy in percent of each class of a domain, (C,)."""
        split = domain.ip.few_shot(self.shots, draw)
        place = {image_id: i for i, image_id in enumerate(domain.ip.train.ids)}
        rows = [place[image_id] for image_id in split.ids]
        features = self.train[domain.name][: options["views"] + 1, rows]
        if method == "CoOp":
            split = replace(split, names=domain.oop.names[: len(split.names)])
        given = {"seed": draw} if method in ("FSNL", "CoOp") else {}
        model = MAKERS[method](self.encoder, **options, **given).fit(split, features)
        predictions = model.predict(self.val[domain.name])
        labels, n = domain.ip.val.labels, len(domain.ip.names)
        return 100 * per_class_accuracy(labels, predictions, n)

    def table(self, method: str, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A row for each setting of a method, with its accuracy and interval."""
        jobs = list(itertools.product(points, self.domains, range(self.draws)))
        # One thread a fit and a fit a core: the products in the text tower are too small to share.
        torch.set_num_threads(1)
        with ThreadPoolExecutor() as pool:
            scores = pool.map(lambda job: self.score(method, *job), jobs)
            found = iter(tqdm(scores, method, len(jobs), mininterval=5))
            rows = [self.row(method, options, found) for options in points]
        return rows

    def row(
        self, method: str, options: dict[str, Any], found: Iterator[np.ndarray]
    ) -> dict[str, Any]:
        """One setting, with the next scores of those found."""
        own = {d.name: np.stack([next(found) for _ in range(self.draws)]) for d in self.domains}
        interval = [round(end, 2) for end in bootstrap(own)]
        scored = dict(zip(("accuracy", "low", "high"), interval, strict=True))
        task = {"shots": self.shots, "draws": self.draws, "classes": self.classes}
        return {"method": method, **options, **task, **scored, "chosen": False}


def points(grid: dict[str, list[Any]], chosen: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every point of a grid, other options as chosen before; without that point itself."""
    kept = {key: [chosen[key]] for key in OPTIONS if key in chosen} if chosen else {}
    grid = {**kept, **grid}
    found = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    return [one for one in found if not chosen or any(chosen[key] != one[key] for key in one)]


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row to take: the cheapest within `SLACK` of the best, the better of equally cheap."""
    best = max(row["accuracy"] for row in rows)
    near = [row for row in rows if row["accuracy"] >= best - SLACK]
    return min(near, key=lambda row: (row.get("steps", 0), -row["accuracy"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--out", type=Path, default=DATA / "selection.csv")
    args = parser.parse_args()
    views = max(view for _, grid in ROUNDS for view in grid.get("views", []))
    episodes = Episodes(load_encoder("mini"), args.shots, args.draws, views)
    table: list[dict[str, Any]] = []
    for method, grid in ROUNDS:
        before = next((row for row in table if row["method"] == method and row["chosen"]), None)
        table += episodes.table(method, points(grid, before))
        own = [row for row in table if row["method"] == method]
        for row in own:
            row["chosen"] = row is choose(own)
        print({key: value for key, value in choose(own).items() if key != "chosen"})
    with args.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
