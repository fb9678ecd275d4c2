"""Concepts as the pre-training corpus grows: which names it admits, and what their captions buy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from lbutils.captions.survey import screen
from lbutils.data.mini import mini_file
from lbutils.measure import tasks
from lbutils.measure.metrics import checked, per_class_accuracy
from lbutils.models.prompts import Templates

NEVER = "never"
# Drawings that `data/mini/make/dose.py` gives back to a concept by lot.
ARMS = ("0", "1", "2", "4", "all")


def admissions(benchmarks: Mapping[str, Any]) -> pd.DataFrame:
    """Since which corpus each concept is named, and by how many captions of each.

    Raises ValueError if there is no scale, a name is IP and OOP again at a later scale, or a later
    scale lacks a domain or a name.

    Parameters
    ----------
    benchmarks : mapping of str to Benchmark
        The same benchmark at each scale, from the smallest corpus on; corpora are nested.

    Returns
    -------
    DataFrame
        One row a concept, in the order of the first benchmark's domains, IP classes before OOP:
        ``domain``, ``name``, ``subset`` (at the first scale), ``since`` (the first scale at which
        it is IP, or "never") and ``captions_<scale>`` (with the name as a phrase; NaN for a
        benchmark without pre-training captions).
    """
    if not benchmarks:
        raise ValueError("admissions need one scale at least")
    first = next(iter(benchmarks.values()))
    rows = [
        {"domain": domain.name, "name": name, "subset": subset.kind}
        for domain in first.values()
        for subset in (domain.ip, domain.oop)
        for name in subset.names
    ]
    for row in rows:
        kinds = {scale: _kind(bench, row, scale) for scale, bench in benchmarks.items()}
        row["since"] = next((scale for scale, kind in kinds.items() if kind == "ip"), NEVER)
        if list(kinds.values()) != sorted(kinds.values(), reverse=True):
            raise ValueError(f"{row['domain']}: {row['name']!r} is IP, then OOP again: {kinds}")
    table = pd.DataFrame(rows)
    for scale, bench in benchmarks.items():
        table[f"captions_{scale}"] = _captions(bench, table["name"])
    return table


def _kind(bench: Any, row: Mapping[str, str], scale: str) -> str:
    """Whether a concept is "ip" or "oop" at a scale."""
    domain = bench.get(row["domain"])
    for subset in (domain.ip, domain.oop) if domain else ():
        if row["name"] in subset.names:
            return str(subset.kind)
    raise ValueError(f"{row['domain']} has no class {row['name']!r} at scale {scale}")


def _captions(bench: Any, names: pd.Series) -> np.ndarray:
    if bench.name != "mini":  # LAION-Beyond, whose captions would have to be screened
        return np.full(len(names), np.nan)
    unique = list(dict.fromkeys(names))
    counts = screen(unique, bench.pair_captions()).set_index("name")["captions"]
    return counts.loc[names].to_numpy(float)


def class_accuracies(
    logits: ArrayLike, labels: ArrayLike, n_ip: int, groups: Sequence[str]
) -> pd.DataFrame:
    """Accuracy of every class, over three vocabularies.

    Raises ValueError if the shapes disagree, a label is no place in the vocabulary, or logits are
    NaN or +inf.

    Parameters
    ----------
    logits : array-like, shape (M, C)
        Of test images, `n_ip` IP names first.
    labels : array-like, shape (M,)
        Places in the joint vocabulary, 0 to C - 1.
    groups : sequence of str, length C
        The group of each class, such as ``admissions(...)["since"]``.

    Returns
    -------
    DataFrame
        One row a class: ``own`` (in percent, among the names of its subset, IP or OOP), ``group``
        (among the names of its group), ``joint`` (among all) and ``images``. NaN without images.
    """
    (scores, y), own, count = checked(logits, labels), np.asarray(groups), len(groups)
    if scores.shape[1] != count:
        raise ValueError(f"logits {scores.shape} must be (M, C), groups {own.shape} must be (C,)")
    ip = np.arange(count) < n_ip
    parts = {
        "own": [ip, ~ip],
        "group": [own == group for group in dict.fromkeys(groups)],
        "joint": [np.ones(count, dtype=bool)],
    }
    found = {}
    for vocabulary, sets in parts.items():
        taken = np.full(len(y), -1)
        for names in filter(np.any, sets):
            rows = names[y]
            taken[rows] = np.where(names, scores[rows], -np.inf).argmax(axis=1)
        found[vocabulary] = 100 * per_class_accuracy(y, taken, count)
    return pd.DataFrame(found | {"images": np.bincount(y, minlength=count)})


def class_table(
    encoder: Any,
    benchmark: Mapping[str, Any],
    methods: Mapping[str, tasks.Factory],
    concepts: pd.DataFrame,
    *,
    shots: int = 4,
    draws: Iterable[int] = (0,),
    templates: Templates = "mini",
    views: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Accuracy of each class of a benchmark under each method, with one encoder.

    Returns a DataFrame: one row a method, draw and class: ``method``, ``draw``, the columns of
    `concepts`, and those of `class_accuracies`. Raises ValueError if there is no task, or
    `concepts` lacks a class; and whatever a method raises.

    Parameters
    ----------
    benchmark : mapping of str to Domain
        The classes, and their images: the same for every encoder that is to be compared.
    methods : mapping of str to factory
        As `tasks.run` takes them.
    concepts : DataFrame
        Of `admissions`, for the same domains.
    shots, draws : int, iterable of int
        Training images of an OOP class, and numbers of draws of them.
    templates, views, seed
        As in `tasks.run`.
    """
    numbers = list(draws)
    todo = tasks.tasks(encoder, benchmark, [shots], numbers, views, seed, before=False)
    parts = []
    count = len(benchmark) * len(numbers)
    for task in tqdm(todo, "tasks", count, disable=not progress, mininterval=2):
        own = concepts[concepts["domain"] == task.domain].reset_index(drop=True)
        for method, factory in methods.items():
            logits = task.logits(task.fit(factory, encoder, templates, seed))
            found = class_accuracies(logits, task.labels, len(task.ip_names), list(own["since"]))
            parts.append(pd.concat([own, found], axis=1).assign(method=method, draw=task.draw))
    if not parts:
        raise ValueError("no domain or no draw: there is nothing to measure")
    return pd.concat(parts, ignore_index=True)


def doses() -> pd.DataFrame:
    """What lots gave back to the concepts that the miniature's largest corpus admits.

    Returns a DataFrame: ``domain``, ``name``, ``arm`` (of `ARMS`), ``drawings`` (with the name, in
    the corpus of the encoder "large-dosed") and ``captions`` (with the name as a phrase).
    """
    table = pd.read_csv(mini_file("doses.csv"), dtype={"arm": str})
    found = table.merge(pd.read_csv(mini_file("concepts.csv")), validate="one_to_one")
    return found[["domain", "name", "arm", "drawings", "captions"]]


class LearnedAmong:
    """Classifier of names as they are, but for some that are learned.

    Parameters
    ----------
    learner, plain : not fitted methods
        As `tasks.run` takes them: the one whose logits the learned names have, and that of all
        others. Both must have the encoder's scale, as `NameLearner` and `ZeroShot` do.
    learned : collection of str
        OOP names to learn.
    """

    def __init__(self, learner: Any, plain: Any, learned: Collection[str]):
        self.learner, self.plain, self.learned = learner, plain, frozenset(learned)

    def fit(self, split: Any, features: Any = None) -> LearnedAmong:
        """Self, both fitted to a few-shot split, whose other classes serve as contrast."""
        self.learner.fit(split, features)
        self.plain.fit(split, features)
        self.names_ = tuple(split.names)
        return self

    def joint_logits(self, images: Any, ip_names: Sequence[str]) -> Any:
        """Logits (M, K + C), IP names first."""
        logits = self.plain.joint_logits(images, ip_names).clone()
        rows = [len(ip_names) + i for i, name in enumerate(self.names_) if name in self.learned]
        logits[:, rows] = self.learner.joint_logits(images, ip_names)[:, rows]
        return logits
