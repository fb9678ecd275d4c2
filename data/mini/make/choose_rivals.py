"""Choose the settings of few-shot methods on classes that an encoder has not met.

    python data/mini/make/choose_rivals.py [--methods GDA names ...]

`choose.py` plays with IP classes whose training drawings the encoder knows, which tells good
settings badly from others: what is learned from drawings that were seen is learned too easily. So
here the encoders of the lots choose on classes that they met neither in captions nor in drawings:
of each rotation `CLASSES` of arm "neither", drawn by lot among the benchmark's IP classes, in one
vocabulary over all domains. `SHOTS` drawings a class are learned from, and all other training and
validation drawings of these classes are for the score. No OOP image, no test image and no image of
another class is read, and no class is in the episodes of two rotations.

The measure, named before anything was run: accuracy among the learned names at four shots; of a
method that is given a prior, which matters most where images are few, the mean of that and the
same at one shot.

Every method has `LEAST` settings or more, its authors' own first (as far as the code of these
methods has it), and steps up to several times the defaults. Where a rival's or FSNL's choice lay at
an end of what was searched, and more lies beyond that end, the search went on there, in steps up to
2000 (CoCoOp 2560, ProLIP 3000). That of `names` did not go on: what it may have missed speaks
against it. All settings are run on the first rotation, the best `FINALISTS` of them on the other
two (successive halving, Jamieson and Talwalkar 2016); finalists of before a search went on stay
finalists. The rule of choice: of the finalists less than `SLACK` points below the highest mean
score over the rotations, the one of fewest steps; of these the one of the highest score.

Writes `selection_fewshot.csv`, row by row, a row a method, setting and encoder, and goes on with a
table that was begun: delete the rows of what a change of code may have changed. A method's choice
is marked once all its rows are there. Run `checksums.py` afterwards. An episode has some 70
drawings for the score, so that a few points between two settings are noise. `seconds`, of fit and
score, are as the machine had them at the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils._util import write_text
from lbutils.data.benchmark import Split, data_dir, join
from lbutils.data.lots import ALWAYS, ROTATIONS, lots
from lbutils.measure.lots import restricted
from lbutils.measure.metrics import accuracy
from lbutils.models.classifier import training_features
from lbutils.rivals.adapters import BeforeProjection
from lbutils.rivals.table import RIVALS, Rival

TABLE = data_dir() / "mini" / "selection_fewshot.csv"
SHOTS, CLASSES, LEAST, FINALISTS, SLACK = 4, 15, 24, 4, 0.5
# What has nothing to choose, or chooses for itself.
FIXED = ("zero-shot", "prototypes", "linear probe, C searched")
OURS = {
    "names": Rival(
        NameLearner,
        "ours",
        fixed={"negatives": lambda shots, known: known},
        authors={"lr": 0.01, "steps": 30, "name_weight": 0.2, "temperature": 2.0},
    ),
    "FSNL": Rival(
        NameLearner.fsnl,
        "Chen et al., CVPR 2025",
        authors={"optimizer": "sgd", "lr": 0.0002, "steps": 200},
    ),
}
# Methods that are given a prior.
PRIOR: tuple[str, ...] = ()
METHODS = OURS | {k: v for k, v in RIVALS.items() if k not in FIXED and not v.control}
TEXT_STEPS = (60, 180, 400)
# A strength for each third of a power of ten.
STRENGTHS = tuple(float(f"{10 ** (k / 3):.3g}") for k in range(-9, 16))
MORE_STEPS = (*TEXT_STEPS, 1000, 2000)
CONTEXT = {
    "lr": (0.002, 0.005, 0.02, 0.05, 0.1), "steps": TEXT_STEPS, "ctx_init": (None, "template"),
}  # fmt: skip
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "names": {
        "lr": (0.01, 0.003, 0.03), "steps": (60, 120), "name_weight": (0.2, 1.0),
        "temperature": (2.0, 1.0),
    },
    "FSNL": {
        "lr": (0.01, 0.003, 0.03, 0.1), "steps": (40, 120), "min_rows": (1, 3),
        "init": ("clip", "random"),
    },
    "CoOp": CONTEXT | {"lr": (*CONTEXT["lr"], 0.2, 0.0005), "steps": MORE_STEPS},
    "CoOp, class contexts": CONTEXT,
    "KgCoOp": {
        "lr": (0.002, 0.01, 0.05, 0.1), "steps": MORE_STEPS, "weight": (8.0, 2.0, 0.5, 0.1),
    },
    "CoCoOp": {
        "lr": (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5),
        "steps": (40, 80, 160, 640, 2560), "batch_size": (1,),
    },
    "CLIP-Adapter": {
        "ratio": (0.2, 0.4, 0.6, 0.8, 1.0), "lr": (0.001, 0.01, 0.1), "steps": (100, 300, 1000),
    },
    "TaskRes": {
        "alpha": (0.1, 0.2, 0.5, 1.0, 2.0), "lr": (0.002, 0.01, 0.05), "steps": (50, 200, 800),
    },
    "Tip-Adapter": {"alpha": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0), "beta": (5.5, 1.0, 3.0, 10.0)},
    "Tip-Adapter-F": {
        "alpha": (1.0, 10.0, 100.0, 1000.0), "beta": (5.5, 1.0, 0.2), "lr": (1e-4, 0.001, 0.01),
        "steps": (20, 100),
    },
    "linear probe": {"C": STRENGTHS},
    "LP++": {
        "start": (250.0, 1000.0, 500.0, 100.0, 30.0, 10.0), "steps": (100, 300),
        "accumulate": (True, False),
    },
    "CLAP": {
        "constraint": (1.0, 0.0, 0.1, 10.0), "lr": (0.1, 0.01, 0.001, 1.0), "steps": (100, 300),
    },
    "GDA": {"alpha": STRENGTHS},
    # Over the number of shots, as the authors have it.
    "ProLIP": {
        "penalty": (1.0, 0.1, 0.01, 0.0), "lr": (1e-3, 1e-4, 1e-2, 3e-2, 0.1),
        "steps": (100, 300, 1000, 3000),
    },
    "SiM": {"ridge": (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, *STRENGTHS)},
    "cross-modal probe": {
        "lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3), "steps": (50, 200, 800),
    },
    "textual inversion": {
        "lr": (0.005, 0.02, 0.05, 0.2, 0.5), "steps": (30, 100, 300),
        "optimizer": ("adam", "adamw"),
    },
}  # fmt: skip


def settings(method: str) -> Iterator[dict[str, Any]]:
    """Every setting of a method: its authors', then the points of its grid."""
    row = METHODS[method]
    authors = {key: value for key, value in row.authors.items() if not callable(value)}
    yield {**({"penalty": 1.0} if method == "ProLIP" else {}), **authors}
    for point in itertools.product(*GRIDS[method].values()):
        yield dict(zip(GRIDS[method], point, strict=True))


def made(method: str, setting: Mapping[str, Any]) -> Rival:
    """Row of the method with a setting, whose penalty is divided by the shots."""
    options: dict[str, Any] = dict(setting)
    if "penalty" in options:
        options["penalty"] = lambda shots, _: setting["penalty"] / shots
    return replace(METHODS[method], chosen=options)


def shots_of(method: str) -> tuple[int, ...]:
    """Numbers of shots whose mean score is a method's."""
    return (SHOTS, 1) if method in PRIOR else (SHOTS,)


class Episode(NamedTuple):
    """A draw of classes that play OOP: training views and images for the score, by kind.

    The second kind is that before the last projection, which ProLIP takes.
    """

    shots: int
    split: Split
    views: tuple[torch.Tensor, ...]  # (V, N, D) and (V, N, P)
    images: tuple[torch.Tensor, ...]  # (M, D) and (M, P)
    labels: np.ndarray  # (M,)
    known: tuple[str, ...]  # names that captions of the encoder tell

    def score(self, row: Rival, encoder: Any) -> float:
        """Accuracy in per cent on the images that were not learned from."""
        model = row(encoder, shots=self.shots, ip_names=self.known)
        kind = int(hasattr(model, "images_from"))
        guess = model.fit(self.split, self.views[kind]).predict(self.images[kind])
        return 100 * accuracy(self.labels, guess)


def pooled(splits: Iterable[Split]) -> Split:
    """Splits over disjoint vocabularies as one."""
    return reduce(join, splits)


@cache
def unmet(rotation: str) -> tuple[Split, Callable[[int, int], Split], tuple[str, ...]]:
    """IP classes that the encoder of a rotation met nowhere, and the names that it read.

    Their training and validation drawings as one split; a function of shots and draw for their
    few-shot splits; names of other classes, which captions tell.
    """
    arms = lots().set_index(["domain", "name"])[rotation]
    subsets = [domain.ip for domain in load_benchmark("mini").values()]
    own = np.array([arms[ip.domain, name] for ip in subsets for name in ip.names])
    unseen = np.flatnonzero(own == "neither")
    unseen = np.sort(np.random.default_rng(0).permutation(unseen)[:CLASSES])
    train, val = (pooled(getattr(ip, part) for ip in subsets) for part in ("train", "val"))
    captions, labels = train.captions + val.captions, np.append(train.labels, val.labels)
    whole = Split(train.ids + val.ids, labels, train.names, captions, train.source)
    every = restricted(whole, unseen)
    told = {n for n, arm in zip(whole.names, own, strict=True) if arm in ("both", ALWAYS)}

    def few_shot(shots: int, draw: int) -> Split:
        return restricted(pooled(ip.few_shot(shots, draw) for ip in subsets), unseen)

    return every, few_shot, tuple(sorted(told - set(every.names)))


def drawn(
    rotation: str, shots: Iterable[int], draw: int
) -> tuple[dict[int, tuple[Split, list[int]]], np.ndarray]:
    """By shots the split of a draw and its rows in `unmet`, and the rows that none learns from."""
    every, few_shot, _ = unmet(rotation)
    place = {image_id: i for i, image_id in enumerate(every.ids)}
    splits = {k: few_shot(k, draw) for k in shots}
    found = {k: (split, [place[i] for i in split.ids]) for k, split in splits.items()}
    # Splits of a draw are nested: the largest holds all others.
    return found, np.setdiff1d(np.arange(len(every)), found[max(found)][1])


def episodes(encoder: Any, rotation: str) -> list[Episode]:
    """An episode for each number of shots, in one vocabulary over all domains."""
    every, _, known = unmet(rotation)
    towers: list[Any] = [encoder, BeforeProjection(encoder)]
    views = [training_features(tower, every) for tower in towers]
    splits, rest = drawn(rotation, (SHOTS, 1), 0)
    return [
        Episode(
            k,
            split,
            *zip(*((v[:, rows], v[0, rest]) for v in views), strict=True),
            every.labels[rest],
            known,
        )
        for k, (split, rows) in splits.items()
    ]


def finalists(table: pd.DataFrame, first: str) -> list[str]:
    """The best settings of one method on the encoder that all were run on."""
    own = table[table["encoder"] == first]
    return list(own.sort_values("oop", ascending=False, kind="stable")["setting"][:FINALISTS])


def chosen(table: pd.DataFrame) -> pd.Series:
    """Which rows hold the setting that the rule of choice takes, in one method's table.

    Only settings that were run on every encoder can be taken.
    """
    runs = table.groupby("setting", sort=False)["oop"].agg(["mean", "size"])
    score = runs.loc[runs["size"] == table["encoder"].nunique(), "mean"]
    near = score[score > score.max() - SLACK].sort_values(ascending=False, kind="stable")
    steps = [json.loads(setting).get("steps", 0) for setting in near.index]
    return table["setting"] == near.index[int(np.argmin(steps))]


@cache
def loaded(folder: Path) -> Any:
    """An encoder of the lots."""
    return load_encoder(f"local-dir:{folder}", crop_scale=(0.8, 1.0))


@cache
def prepared(folder: Path) -> tuple[Any, list[Episode]]:
    """An encoder of the lots, and its episodes."""
    encoder = loaded(folder)
    return encoder, episodes(encoder, folder.name.partition("-seed")[0])


def search(folders: Sequence[Path], method: str, path: Path) -> None:
    """Add a row for every setting of a method that the table has not got, and mark the choice."""
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    todo = [json.dumps(setting) for setting in settings(method)]
    for folder in folders:
        done = {(row["method"], row["setting"], row["encoder"]) for row in rows}
        for setting in tqdm(todo, f"{method}, {folder.name}", disable=None):
            key = {"method": method, "setting": setting, "encoder": folder.name}
            if tuple(key.values()) in done:
                continue
            encoder, cases = prepared(folder)
            start = time.process_time()
            row = made(method, json.loads(setting))
            scores = [case.score(row, encoder) for case in cases if case.shots in shots_of(method)]
            seconds = round((time.process_time() - start) / len(scores), 2)
            oop = round(float(np.mean(scores)), 2)
            rows.append({**key, "oop": oop, "seconds": seconds, "chosen": False})
            write(path, rows)
        if folder == folders[0]:
            own = pd.DataFrame([row for row in rows if row["method"] == method])
            todo = finalists(own, folder.name)
    table = pd.DataFrame(rows)
    own = table[table["method"] == method]
    table.loc[own.index, "chosen"] = chosen(own)
    write(path, table.to_dict("records"))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", type=Path, default=data_dir() / "mini" / "encoder")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = [args.encoders / f"{rotation}-seed-0" for rotation in ROTATIONS]
    for method in args.methods:
        search(folders, method, args.table)


if __name__ == "__main__":
    main()
