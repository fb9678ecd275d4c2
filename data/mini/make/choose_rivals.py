"""Choose the settings of few-shot methods on classes that an encoder has not met.

    python data/mini/make/choose_rivals.py FOLDER/lots-0-seed-0 [--methods CoOp GDA ...]
    python data/mini/make/choose_rivals.py --choose

`choose.py` plays with IP classes whose training drawings the encoder knows, which tells good
settings badly from others: what is learned from drawings that were seen is learned too easily. So
here the encoder of a rotation of the lots (`pretrain.py`) chooses on the classes that it met
neither in captions nor in drawings: arm "neither", of the benchmark's IP classes alone, in one
vocabulary over all domains. For each of `DRAWS` draws, four drawings a class are learned from, and
all other training and validation drawings of these classes are for the score, their accuracy among
the learned names. No OOP image, no test image and no image of another class is read.

Every method has `LEAST` settings or more, its authors' own first (as far as the code of these
methods has it), and steps up to several times the defaults. The rule of choice: of the
settings less than `SLACK` points below the highest mean score over all encoders at hand, the one
of fewest steps; of these the one of the highest score.

Writes `selection_fewshot.csv`, row by row, a row a method, setting and encoder, and goes on with a
table that was begun: after a change of code, delete it first. ``--choose`` marks the chosen
settings once all are there. Run `checksums.py` afterwards. It has not been run: defaults are still
those of `choose.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils.data.benchmark import Split, join
from lbutils.data.lots import ALWAYS, lots
from lbutils.measure import records
from lbutils.measure.lots import restricted
from lbutils.measure.metrics import accuracy
from lbutils.models.classifier import training_features
from lbutils.rivals.adapters import BeforeProjection
from lbutils.rivals.table import RIVALS, Rival

TABLE = Path(__file__).parent.parent / "selection_fewshot.csv"
SHOTS, DRAWS, LEAST, SLACK = 4, 2, 24, 0.5
# What has nothing to choose, or chooses for itself.
FIXED = ("zero-shot", "prototypes", "linear probe, C searched")
OURS = {
    "names": Rival(NameLearner, "ours", chosen={"negatives": lambda shots, known: known}),
    "FSNL": Rival(
        NameLearner.fsnl,
        "Chen et al., CVPR 2025",
        authors={"optimizer": "sgd", "lr": 0.0002, "steps": 200},
    ),
}
METHODS = OURS | {k: v for k, v in RIVALS.items() if k not in FIXED and not v.control}
TEXT_STEPS = (60, 180, 400)
# A strength for each third of a power of ten.
STRENGTHS = tuple(float(f"{10 ** (k / 3):.3g}") for k in range(-9, 16))
CONTEXT = {
    "lr": (0.002, 0.005, 0.02, 0.05), "steps": TEXT_STEPS, "ctx_init": (None, "template"),
}  # fmt: skip
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "names": {"lr": (0.003, 0.01, 0.03), "steps": (30, 100, 300), "name_weight": (0.2, 0.05, 1.0)},
    "FSNL": {"lr": (0.003, 0.01, 0.03, 0.001), "steps": (40, 120, 360), "init": ("clip", "random")},
    "CoOp": CONTEXT,
    "CoOp, class contexts": CONTEXT,
    "KgCoOp": {"lr": (0.002, 0.01, 0.05), "steps": TEXT_STEPS, "weight": (8.0, 2.0, 0.5)},
    "CoCoOp": {"lr": (0.002, 0.01, 0.03, 0.1), "steps": TEXT_STEPS, "batch_size": (1, 2)},
    "CLIP-Adapter": {
        "ratio": (0.2, 0.4, 0.6, 0.8), "lr": (0.001, 0.01), "steps": (100, 300, 1000),
    },
    "TaskRes": {"alpha": (0.5, 1.0, 2.0), "lr": (0.002, 0.01, 0.05), "steps": (50, 200, 800)},
    "Tip-Adapter": {"alpha": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0), "beta": (5.5, 1.0, 3.0, 10.0)},
    "Tip-Adapter-F": {
        "alpha": (1.0, 10.0, 100.0), "beta": (5.5, 1.0), "lr": (0.001, 0.01), "steps": (20, 100),
    },
    "linear probe": {"C": STRENGTHS},
    "LP++": {
        "start": (250.0, 1000.0, 500.0, 100.0, 30.0, 10.0), "steps": (100, 300),
        "accumulate": (True, False),
    },
    "CLAP": {
        "constraint": (1.0, 0.0, 0.1, 10.0), "lr": (0.1, 0.01, 1.0), "steps": (100, 300),
    },
    "GDA": {"alpha": STRENGTHS},
    # Over the number of shots, as the authors have it.
    "ProLIP": {"penalty": (1.0, 0.1, 0.01, 0.0), "lr": (1e-3, 1e-4, 1e-2), "steps": (100, 300)},
    "SiM": {"ridge": STRENGTHS},
    "cross-modal probe": {
        "lr": (1e-3, 1e-4, 3e-4, 3e-3, 1e-2, 3e-2), "steps": (50, 200, 800, 3200),
    },
    "textual inversion": {
        "lr": (0.005, 0.02, 0.05, 0.2), "steps": (30, 100, 350), "templates": ("mini", "a {name}"),
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
    """Row of the method with a setting; what makes the row what it is stays."""
    row = METHODS[method]
    fixed = {k: v for k, v in row.chosen.items() if k not in GRIDS[method]}
    options = dict(setting)
    if "penalty" in options:
        options["penalty"] /= SHOTS
    return replace(row, chosen=fixed | options)


class Episode(NamedTuple):
    """A draw of classes that play OOP: training views and images for the score, by kind.

    The second kind is that before the last projection, which ProLIP takes.
    """

    draw: int
    split: Split
    views: tuple[torch.Tensor, ...]  # (V, N, D) and (V, N, P)
    images: tuple[torch.Tensor, ...]  # (M, D) and (M, P)
    labels: np.ndarray  # (M,)
    known: tuple[str, ...]  # names that captions of the encoder tell

    def score(self, row: Rival, encoder: Any) -> float:
        """Accuracy in per cent on the images that were not learned from."""
        model = row(encoder, shots=SHOTS, seed=self.draw, ip_names=self.known)
        kind = int(hasattr(model, "images_from"))
        guess = model.fit(self.split, self.views[kind]).predict(self.images[kind])
        return 100 * accuracy(self.labels, guess)


def pooled(splits: Iterable[Split]) -> Split:
    """Splits over disjoint vocabularies as one."""
    return reduce(join, splits)


def episodes(encoder: Any, rotation: str, draws: int = DRAWS) -> list[Episode]:
    """An episode for each draw: the classes that the encoder met nowhere, in one vocabulary."""
    arms = lots().set_index(["domain", "name"])[rotation]
    subsets = [domain.ip for domain in load_benchmark("mini").values()]
    own = np.array([arms[ip.domain, name] for ip in subsets for name in ip.names])
    unseen = np.flatnonzero(own == "neither")
    train, val = (pooled(getattr(ip, part) for ip in subsets) for part in ("train", "val"))
    captions, labels = train.captions + val.captions, np.append(train.labels, val.labels)
    whole = Split(train.ids + val.ids, labels, train.names, captions, train.source)
    every = restricted(whole, unseen)
    told = {n for n, arm in zip(whole.names, own, strict=True) if arm in ("both", ALWAYS)}
    towers: list[Any] = [encoder, BeforeProjection(encoder)]
    views = [training_features(tower, every) for tower in towers]
    place = {image_id: i for i, image_id in enumerate(every.ids)}
    found = []
    for draw in range(draws):
        split = restricted(pooled(ip.few_shot(SHOTS, draw) for ip in subsets), unseen)
        rows = [place[image_id] for image_id in split.ids]
        rest = np.setdiff1d(np.arange(len(every)), rows)
        parts = tuple(zip(*((v[:, rows], v[0, rest]) for v in views), strict=True))
        known = tuple(sorted(told - set(split.names)))
        found.append(Episode(draw, split, *parts, every.labels[rest], known))
    return found


def chosen(table: pd.DataFrame) -> pd.Series:
    """Which rows hold the setting that the rule of choice takes, in one method's table."""
    score = table.groupby("setting", sort=False)["oop"].mean()
    near = score[score > score.max() - SLACK].sort_values(ascending=False, kind="stable")
    steps = [json.loads(setting).get("steps", 0) for setting in near.index]
    return table["setting"] == near.index[int(np.argmin(steps))]


def search(folder: Path, rotation: str, methods: Sequence[str], table: Path, draws: int) -> None:
    """Add a row for every setting that the table has not got of this encoder."""
    encoder = load_encoder(f"local-dir:{folder}", crop_scale=(0.8, 1.0))
    cases = episodes(encoder, rotation, draws)
    print(f"{len(cases[0].split.names)} classes, {len(cases[0].labels)} images for the score")
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    done = {(row["method"], row["setting"], row["encoder"]) for row in rows}
    for method in methods:
        for setting in tqdm(list(settings(method)), method):
            key = {"method": method, "setting": json.dumps(setting), "encoder": folder.name}
            if tuple(key.values()) in done:
                continue
            start = time.perf_counter()
            scores = [case.score(made(method, setting), encoder) for case in cases]
            seconds = round((time.perf_counter() - start) / len(cases), 2)
            oop = round(float(np.mean(scores)), 2)
            rows.append({**key, "draws": draws, "oop": oop, "seconds": seconds, "chosen": False})
            records.write_text(table, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of an encoder, named as the lots are")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.folder:
        rotation = args.folder.name.partition("-seed")[0]
        search(args.folder, rotation, args.methods, args.table, args.draws)
    if args.choose:
        rows = pd.read_csv(args.table)
        for _, own in rows.groupby("method", sort=False):
            rows.loc[own.index, "chosen"] = chosen(own)
        records.write_text(args.table, rows.to_csv(index=False, lineterminator="\n"))


if __name__ == "__main__":
    main()
