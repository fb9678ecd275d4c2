"""Choose the hyper-parameters of few-shot learning on IP classes that play OOP.

    python data/mini/make/choose.py [--methods "linear probe" CoOp ...]

In an episode one half of a domain's IP classes plays OOP: its images get names of real OOP classes
of the domain, which the encoder knows as little as any; the other half stays IP. Training images
are few-shot draws of IP classes, scores come from their validation drawings, over the joint
vocabulary. Each half plays OOP once. The encoder saw the training drawings in pre-training, which
it has not of real OOP classes: the one thing in which these episodes are easier. No OOP image and
no test image is read. An `Alignment` is fitted without the classes that play OOP.

Writes `selection.csv`: for each method and setting, mean of domains, halves, draws and shots, the
accuracy among the learned names (oop), H over the joint vocabulary (h_joint), the area under the
IP-OOP curve (ausuc), the one bias for learned names that is best for H (bias) and H there (h_bias).
Chosen is, among the settings less than half a point below the highest ausuc, the one of fewest
steps, and of these the first of its grid, which begins at the value of the method's authors or
at the default. These are the defaults of `lbutils`. Run `checksums.py` afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils._util import write_text
from lbutils.learn.namelearner import Alignment
from lbutils.measure import joint
from lbutils.models.classifier import text_classifier, training_features
from lbutils.models.features import image_features
from lbutils.rivals.adapters import (
    CLAP,
    BeforeProjection,
    CLIPAdapter,
    LPPlusPlus,
    ProLIP,
    TaskRes,
    TipAdapter,
    TipAdapterF,
)
from lbutils.rivals.context import CoCoOp, CoOp, KgCoOp
from lbutils.rivals.probes import GDA, LinearProbe, Prototypes, SiM, renamed

DATA = Path(__file__).parent.parent
SLACK = 0.5
MEASURES = ("oop_separate", "h_joint", "ausuc")
COLUMNS = (
    *("method", "setting", "shots", "draws", "oop", "h_joint", "ausuc", "bias", "h_bias"),
    *("seconds", "chosen"),
)
# Settings of a method: the points of the grids; a first value is its authors', or the default.
GRIDS: dict[str, list[dict[str, list[Any]]]] = {
    "prototypes": [{}, {"aligned": [True]}],
    "names": [
        {},
        {"aligned": [True]},
        {"negatives": [None]},
        {"stand_in_weight": [0.0]},
        {"name_weight": [0.0]},
        {"anchor_weight": [0.0]},
        {"temperature": [1.0]},
        {"min_rows": [1]},
        {"text_to_image": [True]},
        {"caption_weight": [0.2]},
        {"average": [0.3]},
        {"margin": [-0.5]},
        {"lr": [0.003, 0.03]},
        {"templates": ["a {name}"]},
    ],
    "FSNL": [{"lr": [0.003, 0.01], "steps": [20, 40]}],
    "linear probe": [{"C": [1.0, 0.3, 3.0, 10.0, 30.0]}],
    "CoOp": [{"lr": [0.002], "steps": [40, 80, 160]}, {"lr": [0.005], "steps": [40, 80]}],
    "KgCoOp": [{"lr": [0.002, 0.01], "steps": [40]}],
    "CoCoOp": [{"lr": [0.01]}],  # too slow to search
    "CLIP-Adapter": [{"ratio": [0.2, 0.6]}],
    "TaskRes": [{"alpha": [0.5, 1.0, 2.0]}, {"alpha": [1.0], "lr": [0.005, 0.05]}],
    "Tip-Adapter": [{"alpha": [1.0, 10.0, 30.0, 100.0, 300.0]}],
    "Tip-Adapter-F": [{"alpha": [1.0, 10.0, 30.0, 100.0, 300.0]}],
    "LP++": [{"steps": [100, 300]}],
    "CLAP": [{"steps": [100, 300]}],
    "GDA": [{"alpha": [1.0, 0.1, 10.0]}],
    "ProLIP": [{"penalty": [0.1, 0.01, 0.001]}],
    "SiM": [{"ridge": [0.1, 0.01, 1.0, 10.0, 100.0]}],
}  # fmt: skip


def _names(encoder: Any, task: Task, **options: Any) -> Any:
    known = {"negatives": task.others} | {k: v for k, v in options.items() if k != "aligned"}
    alignment = task.alignment() if options.get("aligned") else None
    return NameLearner(encoder, hint=task.hint, seed=task.draw, alignment=alignment, **known)


def _fsnl(encoder: Any, task: Task, **options: Any) -> Any:
    return NameLearner.fsnl(encoder, hint=task.hint, seed=task.draw, **options)


def _prototypes(encoder: Any, task: Task, aligned: bool = False) -> Any:
    return Prototypes(encoder, alignment=task.alignment() if aligned else None)


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda encoder, task, **options: method(encoder, seed=task.draw, **options)


MAKERS: dict[str, Callable[..., Any]] = {
    "prototypes": _prototypes,
    "names": _names,
    "FSNL": _fsnl,
    "SiM": lambda encoder, task, **options: SiM(encoder, task.others, **options),
    "ProLIP": lambda encoder, task, penalty: ProLIP(encoder, penalty / task.shots, seed=task.draw),
    **{name: _plain(method) for name, method in {
        "linear probe": LinearProbe, "CoOp": CoOp, "KgCoOp": KgCoOp, "CoCoOp": CoCoOp,
        "CLIP-Adapter": CLIPAdapter, "TaskRes": TaskRes, "Tip-Adapter": TipAdapter,
        "Tip-Adapter-F": TipAdapterF, "LP++": LPPlusPlus, "CLAP": CLAP, "GDA": GDA,
    }.items()},
}  # fmt: skip


class World:
    """IP classes of every domain with their features, computed once a process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.encoder = load_encoder("mini")
        self.domains = load_benchmark("mini")
        self.train = {n: training_features(self.encoder, d.ip.train) for n, d in self.items()}
        tower: Any = BeforeProjection(self.encoder)
        self.before = {
            n: (training_features(tower, d.ip.train), image_features(tower, d.ip.val))
            for n, d in self.items()
        }
        self.val = {n: image_features(self.encoder, d.ip.val) for n, d in self.items()}
        self.texts = {n: text_classifier(self.encoder, d.ip.names) for n, d in self.items()}

    def items(self) -> Any:
        return self.domains.items()


world = lru_cache(maxsize=1)(World)


class Task:
    """One half of a domain's IP classes as OOP: a few-shot task over a joint vocabulary."""

    def __init__(self, domain: str, half: int, shots: int, draw: int):
        self.domain, self.shots, self.draw = domain, shots, draw
        own = world().domains[domain]
        self.hint = own.hint
        order = np.random.default_rng(len(own.ip.names)).permutation(len(own.ip.names))
        self.learned = np.sort(order[half::2])
        rest = np.setdiff1d(order, self.learned)
        self.others = [own.ip.names[i] for i in rest]
        # Labels over the joint vocabulary: others first.
        self.place = np.argsort(np.concatenate([rest, self.learned]))

    def few_shot(self, views: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Split of the learned classes under OOP names, and its features among `views`."""
        own = world().domains[self.domain]
        split = own.ip.few_shot(self.shots, self.draw)
        split = split.take(np.isin(split.labels, self.learned))
        place = {image_id: i for i, image_id in enumerate(own.ip.train.ids)}
        features = views[:, [place[i] for i in split.ids]]
        labels = np.searchsorted(self.learned, split.labels)
        spare = own.oop.names[: len(own.ip.names)]
        alias = renamed(split, [spare[i] for i in range(len(own.ip.names))])
        names = tuple(spare[i] for i in self.learned)
        return type(split)(split.ids, labels, names, alias.captions, split.source), features

    def alignment(self) -> Alignment:
        """Alignment over the training drawings of every IP class that does not play OOP here."""
        features, labels, texts, start = [], [], [], 0
        for name, domain in world().items():
            own = domain.ip.train.labels
            kept = ~np.isin(own, self.learned) if name == self.domain else np.ones(len(own), bool)
            features.append(world().train[name][0][torch.from_numpy(kept)])
            labels.append(own[kept] + start)
            texts.append(world().texts[name])
            start += len(texts[-1])
        return Alignment().fit(torch.cat(features), np.concatenate(labels), torch.cat(texts))

    def scores(self, method: str, options: dict[str, Any]) -> joint.JointScores:
        """Scores of a method on the validation drawings of the domain's IP classes."""
        model = MAKERS[method](world().encoder, self, **options)
        views, images = world().train[self.domain], world().val[self.domain]
        if hasattr(model, "images_from"):
            views, images = world().before[self.domain]
        logits = model.fit(*self.few_shot(views)).joint_logits(images, self.others)
        labels = self.place[world().domains[self.domain].ip.val.labels]
        return joint.joint_scores(logits.numpy(), labels, len(self.others))


def score(job: tuple[str, dict[str, Any], tuple[str, int, int, int]]) -> tuple[Any, float]:
    """Scores of a method with a setting on a task, and its seconds."""
    method, options, task = job
    start = time.perf_counter()
    found = Task(*task).scores(method, options)
    return found, time.perf_counter() - start


def settings(method: str) -> Iterator[dict[str, Any]]:
    """Every setting of a method's grids."""
    for grid in GRIDS[method]:
        for point in itertools.product(*grid.values()):
            yield dict(zip(grid, point, strict=True))


def resolved(method: str, options: dict[str, Any], task: Task) -> dict[str, Any]:
    """Every option that the grids of a method have, as it is with these options."""
    made = MAKERS[method](world().encoder, task, **options)
    special = {
        "aligned": lambda: made.alignment is not None,
        "negatives": lambda: made.negatives is not None,
        "penalty": lambda: options["penalty"],
    }
    keys = dict.fromkeys(key for grid in GRIDS[method] for key in grid)
    return {key: special[key]() if key in special else getattr(made, key) for key in keys}


def row(method: str, options: dict[str, Any], runs: list[Any], seconds: float) -> dict[str, Any]:
    """One line of the table, from the runs by (domain, half, shots, draw)."""
    by_domain: dict[str, list[Any]] = {}
    for (domain, *_), run in runs:
        by_domain.setdefault(domain, []).append(run)
    # A run is a task with names of its own, so values are means over runs, then over domains.
    means = [
        np.mean([np.mean([joint.value({d: [run]}, m) for run in own])
                 for d, own in by_domain.items()])
        for m in MEASURES
    ]  # fmt: skip
    point = joint.best_bias([run for own in by_domain.values() for run in own])
    oop, h_joint, ausuc = (round(100 * float(mean), 2) for mean in means)
    return {
        "method": method,
        "setting": json.dumps(options),
        "oop": oop,
        "h_joint": h_joint,
        "ausuc": ausuc,
        "bias": round(float(point.bias), 2),
        "h_bias": round(100 * float(point.h), 2),
        "seconds": round(seconds, 3),
        "chosen": False,
    }


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The cheapest row less than `SLACK` below the highest ausuc; of equally cheap ones the first.

    Grids begin at the value of a method's authors, or at the default.
    """
    best = max(row["ausuc"] for row in rows)
    near = [row for row in rows if row["ausuc"] > best - SLACK]
    return min(near, key=lambda row: json.loads(row["setting"]).get("steps", 0))


def kept(path: Path, anew: list[str]) -> list[dict[str, Any]]:
    """Rows of an earlier table, but for those of methods that are chosen anew."""
    table = pd.read_csv(path)
    return table[~table["method"].isin(anew)].to_dict("records")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=DATA / "selection.csv")
    args = parser.parse_args()
    domains = list(load_benchmark("mini"))
    tasks = list(itertools.product(domains, range(2), args.shots, range(args.draws)))
    table = [] if args.methods == list(GRIDS) else kept(args.out, args.methods)
    with ProcessPoolExecutor(args.workers) as pool:
        for method in args.methods:
            own = []
            for options in settings(method):
                jobs = [(method, options, task) for task in tasks]
                found = list(
                    tqdm(pool.map(score, jobs, chunksize=4), method, len(jobs), disable=None)
                )
                runs = list(zip(tasks, [scores for scores, _ in found], strict=True))
                seconds = float(np.mean([spent for _, spent in found]))
                task = {"shots": " ".join(map(str, args.shots)), "draws": args.draws}
                setting = resolved(method, options, Task(*tasks[0]))
                own.append(task | row(method, setting, runs, seconds))
                print({key: own[-1][key] for key in COLUMNS[:-1]}, flush=True)
            choose(own)["chosen"] = True
            table += own
    frame = pd.DataFrame(table, columns=list(COLUMNS))
    write_text(args.out, frame.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    main()
