"""Choose a prior for names beside few images, on classes that an encoder has not met.

    python data/mini/make/choose_prior.py           # some three CPU minutes
    python data/mini/make/choose_prior.py --print   # what the table says

The classes are those of `choose_rivals.py`: of each rotation of the lots `CLASSES` IP classes of
which its encoder met neither names nor drawings, in one vocabulary. For each of ten draws they are
learned from 0, 1, 2 and 4 drawings; scored are the training and validation drawings that the draw
does not learn from at four shots. The prior's map from language is fitted without any name that the
encoder did not read. No OOP image and no test image is read.

Sources of knowledge, each beside the language model's view of the name: WordNet's definitions
("glosses"), the phrases of `blind.csv`, written from the names alone ("blind"), and those of
`descriptions.csv`, written after the drawings had been seen ("drawings described"). Each has a
control in which names get one another's phrases: what it loses against its control is what its
words tell of the name.

The rule of choice, named before anything was run: of glosses and language the source, and of the
weights the one, with the highest mean over rotations and 1, 2 and 4 shots of the accuracy of
prototypes with that prior; of those less than `SLACK` points below it the smallest weight, and
language alone before language with glosses. Drawings described, phrases written blind (which came
later than the rule) and controls cannot be chosen. Names
(`NameLearner` with its defaults, `FEW` draws) are run with the chosen source at every weight, and
choose their weight by the same rule.

Names are held against names that the encoder read while they are learned, prototypes against
nothing. So that like is compared with like, names are also run without any beside them (`ALONE`),
and prototypes on the draws of the names (`SAME`); what is read of them all is among the learned
names.

Writes `data/results/prior.csv`: a row for each rotation, method, knowledge, weight, number of shots
and concept, with the concept's accuracy in per cent, a mean over draws.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from choose_rivals import drawn, loaded, unmet
from tqdm import tqdm

from lbutils import NameLearner
from lbutils._util import write_text
from lbutils.data.benchmark import Split, data_dir
from lbutils.data.lots import ALWAYS, ROTATIONS, lots
from lbutils.learn.knowledge import TOLD, Knowledge, Lexicon, load_lexicon
from lbutils.learn.namelearner import fit_many
from lbutils.measure.lots import interval
from lbutils.models.classifier import training_features
from lbutils.rivals.probes import Prototypes

TABLE = data_dir() / "results" / "prior.csv"
SHOTS, DRAWS, FEW, SLACK = (1, 2, 4), range(10), 3, 0.5
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
CHOICES = {"language": ("language",), "language, glosses": ("language", "glosses")}
DESCRIBED = "language, drawings described"
BLIND = "language, blind"
ALL = CHOICES | {DESCRIBED: ("language", "descriptions"), BLIND: ("language", "blind")}
CONTROLLED = ("language, glosses", DESCRIBED, BLIND)
ALONE, SAME = "names, none beside", "prototypes, draws of names"
KEY = ["rotation", "method", "knowledge", "weight", "shots", "concept"]


class Kept(Knowledge):
    """Knowledge that computes the prototypes of the same names once."""

    def prototypes(self, names: Any) -> torch.Tensor:
        kept = self.__dict__.setdefault("kept", {})
        if tuple(names) not in kept:
            kept[tuple(names)] = super().prototypes(names)
        return kept[tuple(names)]

    def with_only(self, lexicon: Lexicon, sources: tuple[str, ...]) -> Kept:
        """The same with another lexicon, whose words' vectors are these, and fewer sources."""
        other = copy.copy(self)
        other.lexicon, other.sources, other.__dict__["kept"] = lexicon, sources, {}
        return other


class Trial(NamedTuple):
    """A draw at a number of shots, and the images that it is scored on."""

    shots: int
    split: Split
    views: torch.Tensor  # (V, N, D)
    images: torch.Tensor  # (M, D)
    labels: np.ndarray  # (M,)


def trials(encoder: Any, rotation: str) -> list[Trial]:
    """Every draw at every number of shots of a rotation's classes."""
    every = unmet(rotation)[0]
    views = training_features(encoder, every)
    found = []
    for draw in DRAWS:
        splits, rest = drawn(rotation, SHOTS, draw)
        found += [
            Trial(k, split, views[:, rows], views[0, rest], every.labels[rest])
            for k, (split, rows) in splits.items()
        ]
    return found


def known(encoder: Any, rotation: str, names: tuple[str, ...]) -> Iterator[tuple[str, Knowledge]]:
    """Knowledge of each kind, its controls after it."""
    arms = lots().set_index("name")[rotation]
    hidden = list(arms.index[~arms.isin(["both", ALWAYS])])
    lexicon = load_lexicon()
    # The map from language is the same for all.
    whole = Kept(encoder, lexicon, ("language", *TOLD), hold_out=hidden)
    for kind, sources in ALL.items():
        yield kind, whole.with_only(lexicon, sources)
        if kind in CONTROLLED:
            told = lexicon.told[sources[-1]]
            own = lexicon.shuffled([name for name in names if name in told])
            yield f"{kind}, shuffled", whole.with_only(own, sources)


def by_concept(trial: Trial, guess: np.ndarray) -> pd.Series:
    """Share of right answers of each concept, in per cent."""
    names = np.array(trial.split.names)[trial.labels]
    return 100 * pd.Series(guess == trial.labels).groupby(names).mean()


def rows(key: tuple[Any, ...], runs: list[tuple[int, pd.Series]]) -> Iterator[dict[str, Any]]:
    """Rows of a method: means over draws of each concept, for each number of shots."""
    for shots in dict.fromkeys(k for k, _ in runs):
        mean = pd.concat([run for k, run in runs if k == shots]).groupby(level=0).mean()
        for concept, value in mean.items():
            yield dict(zip(KEY, (*key, shots, concept), strict=True)) | {"oop": round(value, 2)}


def predicted(models: Sequence[Any], own: Sequence[Trial]) -> list[tuple[int, pd.Series]]:
    """Number of shots and accuracy by concept of each model in its trial."""
    return [
        (trial.shots, by_concept(trial, model.predict(trial.images)))
        for trial, model in zip(own, models, strict=True)
    ]


def of_means(
    encoder: Any, own: Sequence[Trial], prior: Knowledge | None, weight: float
) -> list[tuple[int, pd.Series]]:
    """What `predicted` returns of prototypes, with a prior or without."""
    options = {"prior": prior, "prior_weight": weight, "without_knowledge": "images"}
    return predicted([Prototypes(encoder, **options).fit(t.split, t.views) for t in own], own)


def of_learners(
    learners: Sequence[NameLearner], own: Sequence[Trial], piles: Any = None
) -> list[tuple[int, pd.Series]]:
    """What `predicted` returns of learners, fitted together, with unlabelled images or without."""
    fit_many(learners, [trial.split for trial in own], [trial.views for trial in own], piles)
    return predicted(learners, own)


def of_prototypes(encoder: Any, rotation: str, all_: dict[str, Knowledge]) -> Iterator[Any]:
    """Rows of prototypes with every kind of knowledge at every weight, and of knowledge alone."""
    own = trials(encoder, rotation)
    kinds = [("none", 0.0), *itertools.product(all_, WEIGHTS)]
    for kind, weight in tqdm(kinds, rotation, disable=None):
        runs = of_means(encoder, own, all_.get(kind), weight)
        yield from rows((rotation, "prototypes", kind, weight), runs)
    for kind, knowledge in all_.items():
        names = own[0].split.names
        lacking = set(knowledge.lacking(names))
        has = [i for i, name in enumerate(names) if name not in lacking]
        alone = torch.zeros(len(names), encoder.dim)
        alone[has] = knowledge.prototypes([names[i] for i in has])
        runs = [
            (0, by_concept(trial, (trial.images @ alone.T).argmax(1).numpy()))
            for trial in own
            if trial.shots == max(SHOTS)
        ]
        yield from rows((rotation, "prototypes", kind, np.nan), runs)


def of_names(
    encoder: Any, rotation: str, kind: str, prior: Knowledge, method: str = "names"
) -> Iterator[Any]:
    """Rows of a method on few draws with one kind of knowledge at every weight, and without.

    The method is "names", `ALONE` or `SAME`.
    """
    own = trials(encoder, rotation)[: FEW * len(SHOTS)]
    negatives = unmet(rotation)[2] if method == "names" else None
    for weight in (0.0, *WEIGHTS):
        key = (rotation, method, kind if weight else "none", weight)
        options = {"prior": prior, "prior_weight": weight} if weight else {}
        if method == SAME:
            yield from rows(key, of_means(encoder, own, options.get("prior"), weight))
            continue
        learners = [
            NameLearner(encoder, negatives=negatives, without_knowledge="images", **options)
            for _ in own
        ]
        yield from rows(key, of_learners(learners, own))


def chosen(table: pd.DataFrame, method: str) -> tuple[str, float]:
    """Knowledge and weight that the rule of choice takes for a method."""
    own = table[(table["method"] == method) & table["knowledge"].isin(CHOICES)]
    own = own[own["weight"] > 0]
    each = own.groupby(["knowledge", "weight", "rotation", "shots"])["oop"].mean()
    means = each.groupby(["knowledge", "weight"]).mean()
    near = means[means > means.max() - SLACK]
    return min(near.index, key=lambda pair: (pair[1], list(CHOICES).index(pair[0])))


def told_of(difference: pd.Series) -> str:
    """A difference in points, mean over concepts with its interval, as text."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval(difference))


def alone(table: pd.DataFrame) -> pd.DataFrame:
    """What each knowledge names without any image, over language and over its control."""
    own = table[(table["method"] == "prototypes") & (table["shots"] == 0)]
    wide = own.pivot_table("oop", ["rotation", "concept"], "knowledge")
    found = []
    for kind in ALL:
        row = {"knowledge": kind, "oop": wide[kind].mean()}
        for base in ("language", f"{kind}, shuffled"):
            if base in wide and base != kind:
                row["less " + base.rpartition(", ")[2]] = told_of(wide[kind] - wide[base])
        found.append(row)
    return pd.DataFrame(found).fillna("").round(1)


def worth(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """What a method gains by each knowledge at its weight, and by its words over its control.

    A row for each knowledge and number of shots, with accuracies and differences in points, 95 %
    intervals over concepts.
    """
    weight = chosen(table, method)[1]
    own = table[(table["method"] == method) & table["weight"].isin([0.0, weight])]
    wide = own.pivot_table("oop", ["rotation", "concept"], ["knowledge", "shots"])
    found = []
    for kind, shots in itertools.product([kind for kind in ALL if kind in wide], SHOTS):
        row = {"method": method, "knowledge": kind, "weight": weight, "shots": shots}
        row["oop"] = wide[kind, shots].mean()
        for base in ("none", f"{kind}, shuffled"):
            if (base, shots) in wide:
                difference = wide[kind, shots] - wide[base, shots]
                row["less " + base.rpartition(", ")[2]] = told_of(difference)
        found.append(row)
    return pd.DataFrame(found).fillna("").round(1)


def ahead(table: pd.DataFrame) -> pd.DataFrame:
    """Names less prototypes on the same draws, in points, with 95 % intervals over concepts.

    A row for names held against others, and for names without any beside them, and number of
    shots: both without knowledge, each with the weight that it chose (prototypes on all draws), and
    names with it less prototypes without.
    """
    wide = table.pivot_table("oop", ["rotation", "concept"], ["method", "weight", "shots"])
    theirs = chosen(table, "prototypes")[1]
    found = []
    for method, shots in itertools.product(("names", ALONE), SHOTS):
        ours = chosen(table, method)[1]
        row = {"method": method, "weights": f"{ours}, {theirs}", "shots": shots}
        for title, one, other in (
            ("no knowledge", 0.0, 0.0),
            ("each with its own", ours, theirs),
            ("names with, prototypes without", ours, 0.0),
        ):
            row[title] = told_of(wide[method, one, shots] - wide[SAME, other, shots])
        found.append(row)
    return pd.DataFrame(found)


def told(table: pd.DataFrame) -> None:
    """Print what the table says."""
    means = table.pivot_table("oop", ["method", "knowledge", "weight"], "shots", sort=False)
    print(means.round(1).to_string())
    print("knowledge alone, no image:")
    print(alone(table).to_string(index=False))
    for method in ("prototypes", "names"):
        print("{} choose: {}, weight {}".format(method, *chosen(table, method)))
        print(worth(table, method).to_string(index=False))
    print("names less prototypes, both on the draws of names, by their weights:")
    print(ahead(table).to_string(index=False))


def begin(about: str, table: Path) -> argparse.Namespace:
    """The command line of a script that writes a table, or prints it; one thread from here on."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--encoders", type=Path, default=data_dir() / "mini" / "encoder")
    parser.add_argument("--table", type=Path, default=table)
    parser.add_argument("--print", action="store_true", help="what the table says, and no more")
    torch.set_num_threads(1)
    return parser.parse_args()


def main() -> None:
    args = begin(__doc__, TABLE)
    if not args.print:
        write_text(args.table, run(args.encoders).to_csv(index=False, lineterminator="\n"))
    told(pd.read_csv(args.table))


def run(encoders: Path) -> pd.DataFrame:
    """The table: prototypes of all rotations first, then names with what prototypes choose."""
    found: list[dict[str, Any]] = []
    ready = {}
    for rotation in ROTATIONS:
        encoder = loaded(encoders / f"{rotation}-seed-0")
        ready[rotation] = encoder, dict(known(encoder, rotation, unmet(rotation)[0].names))
        found += of_prototypes(encoder, rotation, ready[rotation][1])
    kind, _ = chosen(pd.DataFrame(found), "prototypes")
    for method, rotation in itertools.product(("names", ALONE, SAME), ready):
        encoder, own = ready[rotation]
        found += of_names(encoder, rotation, kind, own[kind], method)
    return pd.DataFrame(found)


if __name__ == "__main__":
    main()
