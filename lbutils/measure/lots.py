"""Effects of reading a name and of meeting its images, within each concept, by lot.

Measures, estimands and rules are those of ``data/mini/PREREGISTRATION.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score
from tqdm.auto import tqdm

from lbutils._util import interval_text
from lbutils.data.benchmark import Split, data_dir, join
from lbutils.data.lots import ALWAYS, ARMS, lots
from lbutils.learn.namelearner import NameLearner, fit_many
from lbutils.measure.metrics import per_class_accuracy
from lbutils.measure.published import LOTS
from lbutils.measure.records import above, both, equivalent
from lbutils.models.classifier import class_means, text_classifier, training_features
from lbutils.models.features import image_features
from lbutils.unlabelled.cluster import class_hits, kmeans

WORDS = {"both": "name and drawings", "image": "drawings only", "neither": "neither"}
# Arms of an image tower, or of captions, that bring no name.
UNNAMED = ("image", "neither")
STARTS = 20
SHOTS = (1, 2, 4)
TEMPLATES = ("{name}", "a drawing of {name}")
EFFECTS = {"name": ("both", "image"), "image": ("image", "neither"), "gap": ("both", "neither")}
MARGIN = 5.0
BOUND = 10.0  # points that an effect of the name must exceed
RESAMPLES = 10_000
FIGURES = {  # of claims, whose interval gives the verdict
    "lots_zero_shot": "effect of the name on zero-shot accuracy",
    "lots_cluster_name": "effect of the name on clustering",
    "lots_cluster_image": "effect of the image on clustering",
    "lots_learned_half": "learned from 4 images less zero-shot, less half of the gap",
    "lots_learned_image": "effect of the image on names learned from 4 images",
    "lots_retrieval": "effect of the name less that of the image, average precision",
}
# Panels of what a name is worth, by method.
WORTH = {"names": "labelled images alone", "names, unlabelled": "unlabelled ones beside them"}


def results(name: str) -> pd.DataFrame:
    """A committed table of ``data/results``, such as "lots": a row a concept and run.

    Raises FileNotFoundError if it was not made: the script that makes it.
    """
    path = data_dir() / "results" / f"{name}.csv"
    if not path.is_file():
        made_by = {
            "lots": "measure_lots.py",
            "prior": "choose_prior.py",
            "filtered": "interventions.py --kept",
        }
        script = made_by.get(name, f"{name}.py")
        raise FileNotFoundError(f"{path} is missing: make it by data/mini/make/{script}")
    return pd.read_csv(path)


def measure(
    encoder: Any,
    benchmark: Any,
    shots: Iterable[int] = SHOTS,
    draws: Iterable[int] = range(10),
    progress: bool = True,
) -> pd.DataFrame:
    """Every measure of every concept, with an encoder of the lots.

    Parameters
    ----------
    encoder : DualEncoder
        Pre-trained on the benchmark's rotation.
    benchmark : Benchmark
        The miniature at scale "lots-0", "lots-1" or "lots-2".
    shots, draws : iterable of int
        Training images of a name that is learned, and the committed draws of them.

    Returns
    -------
    DataFrame
        One row a concept: ``domain``, ``name``, ``arm``, and in per cent ``zero_shot_all``,
        ``zero_shot_arm``, ``cluster``, ``centres``, ``retrieval`` and ``learned_<shots>``. The
        measures among an arm's names are NaN for concepts that were not dealt.
    """
    arms = lots().set_index(["domain", "name"])[benchmark.scale]
    parts = []
    for domain in tqdm(benchmark.values(), "domains", disable=not progress):
        test = join(domain.ip.test, domain.oop.test)
        own = np.array([arms[domain.name, name] for name in test.names])
        images = image_features(encoder, test)
        table = pd.DataFrame({"domain": domain.name, "name": test.names, "arm": own})
        table = table.assign(**_text_measures(encoder, images, test, own))
        train = join(domain.ip.train, domain.oop.train)
        views = training_features(encoder, train)
        table = table.assign(**_image_measures(train, views, images, test, own))
        learned = _learned(
            encoder, domain, train, views, images, test, own, list(shots), list(draws)
        )
        parts.append(table.assign(**learned))
    return pd.concat(parts, ignore_index=True)


def _text_measures(
    encoder: Any, images: Any, test: Split, arms: np.ndarray
) -> dict[str, np.ndarray]:
    """Zero-shot accuracies over both vocabularies, and average precision."""
    scores = (images @ text_classifier(encoder, test.names, TEMPLATES).T).numpy()
    y, count = test.labels, len(test.names)
    among = np.where(arms[y][:, None] == arms[None], scores, -np.inf)
    found = {
        "zero_shot_all": 100 * per_class_accuracy(y, scores.argmax(1), count),
        "zero_shot_arm": 100 * per_class_accuracy(y, among.argmax(1), count),
        "retrieval": np.array(
            [100 * average_precision_score(y == c, scores[:, c]) for c in range(count)]
        ),
    }
    found["zero_shot_arm"][arms == ALWAYS] = np.nan
    return found


def _image_measures(
    train: Split, views: Any, images: Any, test: Split, arms: np.ndarray
) -> dict[str, np.ndarray]:
    """Clustering of the concepts of an arm, and nearest class means among all names."""
    count = len(test.names)
    # The first view is the images as they are.
    means, _ = class_means(views[:1], torch.tensor(train.labels), count)
    nearest = (images @ (means / means.norm(dim=1, keepdim=True)).T).argmax(1).numpy()
    cluster = np.full(count, np.nan)
    for arm in ARMS:
        own = np.flatnonzero(arms == arm)
        rows = np.flatnonzero(np.isin(test.labels, own))
        found = [kmeans(images[rows].numpy(), len(own), seed) for seed in range(STARTS)]
        hits = class_hits(test.labels, [rows] * STARTS, found, count)
        cluster[own] = 100 * hits[own]
    return {"cluster": cluster, "centres": 100 * per_class_accuracy(test.labels, nearest, count)}


def _learned(
    encoder: Any,
    domain: Any,
    train: Split,
    views: Any,
    images: Any,
    test: Split,
    arms: np.ndarray,
    shots: Sequence[int],
    draws: Sequence[int],
) -> dict[str, np.ndarray]:
    """Accuracy among the names of the arm, all of them learned; mean over draws."""
    place = {image_id: i for i, image_id in enumerate(train.ids)}
    totals = {f"learned_{k}": np.zeros(len(arms)) for k in shots}
    for arm in ARMS:
        own = np.flatnonzero(arms == arm)
        named = [n for n, a in zip(test.names, arms, strict=True) if a in ("both", ALWAYS)]
        others = [name for name in named if name not in {test.names[i] for i in own}]
        rows = np.flatnonzero(np.isin(test.labels, own))
        labels = np.searchsorted(own, test.labels[rows])
        pairs = list(itertools.product(shots, draws))
        drawn = [join(domain.ip.few_shot(*pair), domain.oop.few_shot(*pair)) for pair in pairs]
        splits = [restricted(split, own) for split in drawn]
        features = [views[:, [place[image_id] for image_id in split.ids]] for split in splits]
        options = {"hint": domain.hint, "negatives": others or None}
        learners = [NameLearner(encoder, seed=draw, **options) for _, draw in pairs]
        fit_many(learners, splits, features)
        for (k, _), learner in zip(pairs, learners, strict=True):
            right = per_class_accuracy(labels, learner.predict(images[rows]), len(own))
            totals[f"learned_{k}"][own] += 100 * right / len(draws)
    dealt = arms != ALWAYS
    return {name: np.where(dealt, total, np.nan) for name, total in totals.items()}


def restricted(split: Split, classes: np.ndarray) -> Split:
    """The images of some classes (ascending places in ``split.names``), over their names alone."""
    kept = split.take(np.isin(split.labels, classes))
    labels = np.searchsorted(classes, kept.labels)
    return replace(kept, labels=labels, names=tuple(split.names[i] for i in classes))


def by_arm(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A measure of each dealt concept in each arm, mean over seeds: one row a concept.

    `table` (DataFrame): of `measure`, for all rotations and seeds. `column` (str): the measure.

    Raises ValueError if a concept lacks an arm: all three rotations are needed.
    """
    own = table[table["arm"] != ALWAYS]
    wide = own.pivot_table(column, ["domain", "name"], "arm", aggfunc="mean", sort=False)
    if set(wide.columns) != set(ARMS) or wide.isna().any(axis=None):
        raise ValueError(f"{column}: every concept needs all three arms, from three rotations")
    return wide[list(ARMS)]


def interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean over concepts with its 95 % interval, by a BCa bootstrap over them."""
    x = np.asarray(values, dtype=float)
    if np.ptp(x) == 0:
        return float(x.mean()), float(x[0]), float(x[0])
    rng = np.random.default_rng(seed)
    found = bootstrap((x,), np.mean, n_resamples=RESAMPLES, rng=rng, batch=1000).confidence_interval
    return float(x.mean()), float(found.low), float(found.high)


def effects(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean in each arm, and the effects of name and image, for each measure.

    Returns a DataFrame: one row a measure and quantity (the three arms and `EFFECTS`): ``measure``,
    ``quantity``, ``mean``, ``low``, ``high``, ``concepts``.
    """
    rows = []
    for column in columns:
        wide = by_arm(table, column)
        values = {arm: wide[arm] for arm in ARMS}
        values |= {
            f"effect of the {name}" if name != "gap" else name: wide[a] - wide[b]
            for name, (a, b) in EFFECTS.items()
        }
        for quantity, value in values.items():
            rows.append((column, quantity, *interval(value), len(value)))
    return pd.DataFrame(rows, columns=["measure", "quantity", "mean", "low", "high", "concepts"])


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The pre-registered claims 1 to 6 with their figures and verdicts.

    Returns a DataFrame: ``id``, ``claim``, ``figure``, ``mean``, ``low``, ``high``, ``verdict``.
    """
    arms = {c: by_arm(table, c) for c in ("zero_shot_all", "zero_shot_arm", "cluster")}
    arms |= {c: by_arm(table, c) for c in ("retrieval", "learned_4")}

    def effect(column: str, name: str) -> pd.Series:
        first, second = EFFECTS[name]
        return arms[column][first] - arms[column][second]

    zero, group = "zero_shot_all", "zero_shot_arm"
    name = interval(effect(zero, "name"))
    ahead = interval(effect(zero, "name") - effect(zero, "image"))
    image = interval(effect("learned_4", "image"))
    gap = arms["learned_4"]["neither"] - arms[group]["neither"]
    closed = interval(gap - effect(group, "gap") / 2)
    retrieval = interval(effect("retrieval", "name") - effect("retrieval", "image"))
    cluster = {n: interval(effect("cluster", n)) for n in ("name", "image")}
    found = {
        "lots_zero_shot": (name, both(above(name, BOUND), above(ahead, 0))),
        "lots_cluster_name": (cluster["name"], equivalent(cluster["name"], MARGIN)),
        "lots_cluster_image": (cluster["image"], equivalent(cluster["image"], MARGIN)),
        "lots_learned_half": (closed, above(closed, 0)),
        "lots_learned_image": (image, equivalent(image, MARGIN)),
        "lots_retrieval": (retrieval, above(retrieval, 0)),
    }
    return _judged([(key, FIGURES[key], *own, verdict) for key, (own, verdict) in found.items()])


def _judged(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["id", "figure", "mean", "low", "high", "verdict"])
    table.insert(1, "claim", table["id"].map(LOTS))
    return table


def text_cells(table: pd.DataFrame, variant: str = "infonce") -> pd.DataFrame:
    """Zero-shot accuracy of each dealt concept by what image tower and captions hold of it.

    Returns a DataFrame: one row a concept, a column for each pair (arm of the image tower, arm of
    the captions), in per cent, mean over seeds. Raises ValueError if a concept lacks a cell.

    `table` (DataFrame): of ``data/results/interventions.csv``: text towers trained anew on frozen
    image towers. `variant` (str): one of its variants; all but "infonce" have the cells alone in
    which both arms agree.
    """
    own = table[(table["variant"] == variant) & (table["text_arm"] != ALWAYS)]
    wide = own.pivot_table(
        "zero_shot_all", ["domain", "name"], ["image_arm", "text_arm"], aggfunc="mean", sort=False
    )
    pairs = [(i, t) for i in ARMS for t in ARMS if variant == "infonce" or i == t]
    if set(wide.columns) != set(pairs) or wide.isna().any(axis=None):
        raise ValueError(f"{variant}: every concept needs all {len(pairs)} cells of arms")
    return wide[pairs]


def _text_effects(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The two effects of claim 7 on each concept: of its captions, and of an image tower."""
    cells = text_cells(table)
    captions = cells.xs("both", axis=1, level=1) - cells.xs("image", axis=1, level=1)
    towers = cells["both"] - cells["neither"]
    return captions.mean(axis=1), towers[list(UNNAMED)].mean(axis=1)


def text_verdict(table: pd.DataFrame) -> pd.DataFrame:
    """The pre-registered claim 7, what captions and what image towers do, with its verdict.

    Returns a DataFrame: two rows with the columns of `verdicts`, each with the verdict on its own
    part, and one on the claim as a whole, whose figures are NaN.
    """
    name, image = map(interval, _text_effects(table))
    parts = above(name, BOUND), equivalent(image, MARGIN)
    key, tower = "lots_text_side", "effect of an image tower that met it, captions not naming it"
    rows = [
        (key, "effect of captions that name the concept", *name, parts[0]),
        (key, tower, *image, parts[1]),
        (key, "both", *[np.nan] * 3, both(*parts)),
    ]
    return _judged(rows)


def text_effects_by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """The two effects of claim 7, in points, with the text towers of each seed alone.

    Returns a DataFrame: a row a seed, columns ``captions`` and ``image tower``.
    """
    seeds = table[table["variant"] == "infonce"].groupby("seed")
    rows = {seed: [own.mean() for own in _text_effects(part)] for seed, part in seeds}
    found = pd.DataFrame.from_dict(rows, orient="index", columns=["captions", "image tower"])
    return found.rename_axis("seed")


def variant_effects(table: pd.DataFrame) -> pd.DataFrame:
    """Effects of name and image under each variant, image tower and captions of one rotation.

    Of the seeds that all variants were trained with. Returns a DataFrame: ``variant``,
    ``quantity``, ``mean``, ``low``, ``high``; no verdict was registered.
    """
    rows = []
    variants = table.groupby("seed")["variant"].transform("nunique")
    table = table[variants == table["variant"].nunique()]
    for variant in dict.fromkeys(table["variant"]):
        cells = text_cells(table, variant)
        for quantity, (one, other) in EFFECTS.items():
            effect = interval(cells[one, one] - cells[other, other])
            rows.append((variant, quantity, *effect))
    return pd.DataFrame(rows, columns=["variant", "quantity", "mean", "low", "high"])


def kept_shares(table: pd.DataFrame) -> pd.Series:
    """Per cent of the pairs that filtering by an encoder's score keeps, by arm of their concept.

    `table` (DataFrame): of ``data/results/filtered.csv``: the encoder has met neither name nor
    drawings of the concepts whose captions name them here, and was trained on the pairs of
    concepts that were not dealt.
    """
    words = {**WORDS, ALWAYS: "not dealt"}
    sums = table.groupby("arm")[["kept", "pairs"]].sum().rename(index=words)
    return 100 * sums["kept"] / sums["pairs"]


def arm_table(table: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Means of the dealt concepts in each arm, for `figures.arm_intervals`.

    Parameters
    ----------
    table : DataFrame
        Of ``data/results/lots.csv``.
    titles : mapping
        Measures, and what a figure calls them.
    """
    found = effects(table, list(titles)).rename(columns={"mean": "value", "quantity": "arm"})
    found = found[found["arm"].isin(ARMS)].replace({"arm": WORDS})
    return found.assign(measure=found["measure"].map(dict(titles)))


def tile_table(table: pd.DataFrame) -> pd.DataFrame:
    """The 2 x 2 of captions and image towers, for `figures.two_by_two`.

    `table` (DataFrame): of ``data/results/interventions.csv``. Captions that do not name a concept
    are those that hold its drawings; an image tower that did not meet it had neither.
    """
    cells = text_cells(table)
    captions = {"both": "captions name the concept", "image": "captions do not"}
    towers = {"both": "image tower met its drawings", "neither": "image tower did not"}
    rows = [
        (row, column, *interval(cells[image_arm, text_arm]))
        for text_arm, row in captions.items()
        for image_arm, column in towers.items()
    ]
    return pd.DataFrame(rows, columns=["row", "column", "value", "low", "high"])


def _worth(table: pd.DataFrame) -> pd.DataFrame:
    """A row a concept; columns are method, whether with a prior, and labelled images."""
    # Without labelled image and prior, a name is left as it is.
    start = table[table["method"] == "as it is, neither"].assign(method="names")
    own = pd.concat([table, start])
    own = own.assign(prior=own["knowledge"] != "none")
    return own.pivot_table("oop", ["rotation", "concept"], ["method", "prior", "shots"])


def worth_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of learned names over labelled images, for `figures.lines_in_panels`.

    A name without labelled image and prior is the name as it is.

    `table` (DataFrame): of ``data/results/worth.csv``.
    """
    wide = _worth(table)
    lines = {False: "names (ours)", True: "names (ours) + prior"}
    rows = [
        (panel, line, str(k), *interval(wide[method, prior, k]))
        for method, panel in WORTH.items()
        for k in wide[method, True]
        for prior, line in lines.items()
        if (method, prior, k) in wide
    ]
    return pd.DataFrame(rows, columns=["panel", "line", "x", "value", "low", "high"])


def worth_levels(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the same names as they are, where captions had the concepts' drawings.

    `table` (DataFrame): of ``data/results/worth.csv``. Returns a DataFrame: ``line``, ``value``,
    ``low``, ``high``; captions that hold the name, and captions that hide it.
    """
    wide = _worth(table)
    rows = [
        (f"as it is, captions {verb} the name", *interval(wide[f"as it is, {arm}", False, 0]))
        for arm, verb in (("both", "hold"), ("image", "hide"))
    ]
    return pd.DataFrame(rows, columns=["line", "value", "low", "high"])


def worth_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Learned names beside other ways, in points, by number of labelled images.

    Returns a DataFrame: one row a number of labelled images; differences within the same concepts
    with their 95 % intervals, as text: what the prior brings and what unlabelled images do, names
    with the prior less names that captions hold, names less prototypes without a prior and with
    one. Empty where one of both was not run.

    `table` (DataFrame): of ``data/results/worth.csv``.
    """
    wide = _worth(table)
    (names, piled), means = WORTH, "prototypes"
    asked = {
        "the prior brings": ((names, True), (names, False)),
        "unlabelled ones bring": ((piled, False), (names, False)),
        "less the name in captions": ((names, True), ("as it is, both", False)),
        "less prototypes": ((names, False), (means, False)),
        "less these, both with a prior": ((names, True), (means, True)),
    }
    found: dict[str, dict[int, str]] = {}
    for title, (one, other) in asked.items():
        first, second = wide[one], wide[other]
        for k in first:
            # Names as they are have one column, whatever is learned beside them.
            base = second[0] if list(second) == [0] else second.get(k)
            if base is not None:
                text = interval_text(interval(first[k] - base), "+.1f")
                found.setdefault(title, {})[k] = text
    return pd.DataFrame(found).rename_axis("labelled images").sort_index().fillna("")


def as_claims(judged: pd.DataFrame) -> list[dict[str, Any]]:
    """Verdicts of `verdicts` or `text_verdict` as claims of a record: the first figure of each."""
    found = []
    for key, own in judged.groupby("id", sort=False):
        row = own.iloc[0]
        ends = {"ours": row["mean"], "low": row["low"], "high": row["high"], "unit": "points"}
        note = f"{row['figure']}; same concepts, by lot"
        verdict = own["verdict"].iloc[-1]
        found.append({"id": key, "claim": row["claim"], **ends, "verdict": verdict, "note": note})
    return found
