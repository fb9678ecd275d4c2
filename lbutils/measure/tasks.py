"""Many methods on the same few-shot tasks: one fit a method, domain, number of shots and draw."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from lbutils._util import suggest
from lbutils.data.benchmark import join
from lbutils.learn import namelearner
from lbutils.learn.namelearner import NameLearner
from lbutils.measure.joint import JointScores, joint_scores
from lbutils.models.classifier import training_features
from lbutils.models.features import image_features
from lbutils.models.prompts import Templates
from lbutils.rivals import context
from lbutils.rivals.adapters import BeforeProjection
from lbutils.rivals.context import CoOp

_MOST = 10  # tasks of a batch, which methods learn together if they can
# factory(encoder, templates=, hint=, shots=, seed=, ip_names=) of a method that is not fitted
Factory = Callable[..., Any]
# {(method, shots): {domain: {draw: scores}}}
Scores: TypeAlias = dict[tuple[str, int], dict[str, dict[int, JointScores]]]


@dataclass(frozen=True, eq=False)
class Task:
    """One few-shot draw of a domain's OOP classes, with features, and what it is tested on."""

    domain: str
    shots: int
    draw: int
    hint: str | None
    split: Any  # training images of OOP classes
    features: Tensor  # their views (V, N, D)
    ip_names: tuple[str, ...]
    images: Tensor  # IP, then OOP test images (M, D)
    labels: np.ndarray  # over the joint vocabulary, IP names first (M,)
    before: tuple[Tensor, Tensor] | None = None  # both, before the last projection (ProLIP)

    def fit(
        self, factory: Factory, encoder: Any, templates: Templates = "mini", seed: int = 0
    ) -> Any:
        """The method that `factory` makes, fitted; its seed is `seed` plus the draw.

        It is fitted to the views of this task, so that all methods learn from the same ones: the
        method's own ``views`` and ``clean`` are not used.
        """
        model = self.made(factory, encoder, templates, seed)
        return model.fit(self.split, self._of(model)[0])

    def made(
        self, factory: Factory, encoder: Any, templates: Templates = "mini", seed: int = 0
    ) -> Any:
        """The method that `factory` makes for this task, not fitted; arguments as in `fit`."""
        return factory(
            encoder,
            templates=templates,
            hint=self.hint,
            shots=self.shots,
            seed=seed + self.draw,
            ip_names=self.ip_names,
        )

    def logits(self, model: Any) -> np.ndarray:
        """Logits (M, K + C) of a fitted method on the test images, IP names first."""
        found: Tensor = model.joint_logits(self._of(model)[1], self.ip_names)
        return found.numpy()

    def score(self, model: Any) -> JointScores:
        """Scores of a fitted method on the test images."""
        return joint_scores(self.logits(model), self.labels, len(self.ip_names))

    def _of(self, model: Any) -> tuple[Tensor, Tensor]:
        """Training and test features of the kind that a method takes."""
        if not hasattr(model, "images_from"):
            return self.features, self.images
        if self.before is None:
            raise ValueError("no features before the last projection: call tasks with before=True")
        return self.before


def tasks(
    encoder: Any,
    benchmark: Mapping[str, Any],
    shots: Iterable[int],
    draws: Iterable[int],
    views: int = 4,
    seed: int = 0,
    before: bool = True,
) -> Iterator[Task]:
    """Tasks of every domain, number of shots and draw; features are computed once a domain.

    Parameters
    ----------
    encoder : DualEncoder
    benchmark : mapping of str to Domain
    shots, draws : iterable of int
        Images a class, and numbers of few-shot draws.
    views, seed : int
        Augmented views of each training image, beside the image as it is, and their seed.
    before : bool
        Extract the features before the last projection, too, if the image tower ends in one:
        methods with ``images_from``, such as ProLIP, take them.
    """
    shots, draws = list(shots), list(draws)
    towers = [encoder]
    with suppress(ValueError):  # where the image tower ends in no projection
        towers += [BeforeProjection(encoder)] if before else []
    for name, domain in benchmark.items():
        kinds = [_features(tower, domain, views, seed) for tower in towers]
        place = {image_id: i for i, image_id in enumerate(domain.oop.train.ids)}
        labels = join(domain.ip.test, domain.oop.test).labels
        for number, draw in itertools.product(shots, draws):
            split = domain.oop.few_shot(number, draw)
            rows = [place[image_id] for image_id in split.ids]
            (features, images), *inner = [(train[:, rows], test) for train, test in kinds]
            yield Task(
                name,
                number,
                draw,
                domain.hint,
                split,
                features,
                domain.ip.names,
                images,
                labels,
                *inner,
            )


def _features(tower: Any, domain: Any, views: int, seed: int) -> tuple[Tensor, Tensor]:
    """Views of a domain's OOP training images, and its IP, then OOP test images."""
    test = [image_features(tower, part.test) for part in (domain.ip, domain.oop)]
    return training_features(tower, domain.oop.train, views, seed), torch.cat(test)


@dataclass(frozen=True)
class Trials:
    """What `run` found.

    Attributes
    ----------
    scores : dict
        ``{(method, shots): {domain: {draw: JointScores}}}``, as `lbutils.measure.joint` takes it.
    seconds : DataFrame
        Columns method, domain, shots, draw and seconds, of the fit and its test logits; of methods
        that learn several tasks in one batch an even share of its fit.
    calibrated : dict
        As `scores`, of the methods that were given a bias: the same logits with it, whereas
        `scores` are without.
    """

    scores: Scores
    seconds: pd.DataFrame
    calibrated: Scores = field(default_factory=dict)

    def at(
        self, shots: int, calibrated: bool = False
    ) -> dict[str, dict[str, dict[int, JointScores]]]:
        """Runs at one number of shots, ``{method: {domain: {draw: ...}}}``.

        Parameters
        ----------
        shots : int
        calibrated : bool
            Of the methods with a bias, under it, instead of all methods without.
        """
        held = self.calibrated if calibrated else self.scores
        return {method: runs for (method, number), runs in held.items() if number == shots}


def run(
    encoder: Any,
    benchmark: Mapping[str, Any],
    methods: Mapping[str, Factory],
    *,
    shots: Iterable[int] = (1, 2, 4),
    draws: Iterable[int] = range(10),
    templates: Templates = "mini",
    views: int = 4,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
    biases: Mapping[str, float] | None = None,
) -> Trials:
    """Scores of every method on every task.

    Raises ValueError if there is a bias for an unknown method, or one that is not a finite number;
    RuntimeError if a fit fails: its method, domain, shots and draw, and why.

    Parameters
    ----------
    encoder : DualEncoder
    benchmark : mapping of str to Domain
    methods : mapping of str to factory
        ``factory(encoder, templates=, hint=, shots=, seed=, ip_names=)`` returns a method that is
        not fitted, such as those of `lbutils.rivals.RIVALS`.
    shots, draws : iterable of int
        Images a class, and numbers of few-shot draws; all methods get the same.
    templates : str or sequence of str
    views, seed : int
        As in `tasks`.
    workers : int
        Processes, each on one thread. With an encoder on a GPU one process is used.
    biases : mapping of str to float, optional
        For some methods, what is added to the logits of learned names in the joint vocabulary;
        chosen on IP episodes (`joint.best_bias`), never on test images. Scores with it are in
        ``calibrated``, from the same fits.
    """
    biases = dict(biases or {})
    for name, bias in biases.items():
        if name not in methods:
            raise ValueError(suggest(name, methods, "method"))
        if not np.isfinite(bias):
            raise ValueError(f"the bias {bias} of {name} must be a finite number")
    shots, draws = list(shots), list(draws)
    before = _takes_before(encoder, benchmark, methods, templates, shots)
    todo = list(tasks(encoder, benchmark, shots, draws, views, seed, before))
    alone = workers == 1 or encoder.device.type != "cpu"
    batches = _batches(todo, 1 if alone else workers)
    one = delayed(_run_tasks)
    pool = Parallel(1 if alone else workers, return_as="generator_unordered")
    found = pool(one(batch, encoder, dict(methods), templates, seed, biases) for batch in batches)
    bar = tqdm(found, "batches of tasks", len(batches), disable=not progress, mininterval=2)
    with warnings.catch_warnings():
        # A process that has grown is replaced between two tasks, and nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        rows = sorted((row for part in bar for row in part), key=lambda row: row[:4])
    numbers = list(dict.fromkeys(task.shots for task in todo))
    plain, calibrated = (_empty(own, numbers, benchmark) for own in (methods, biases))
    for method, domain, number, draw, _, scores in rows:
        for table, one_score in zip((plain, calibrated), scores, strict=False):
            table[method, number][domain][draw] = one_score
    columns = ["method", "domain", "shots", "draw", "seconds"]
    seconds = pd.DataFrame([row[:5] for row in rows], columns=columns)
    return Trials(plain, seconds, calibrated)


def _empty(methods: Iterable[str], shots: Sequence[int], domains: Iterable[str]) -> Scores:
    domains = list(domains)
    return {(method, k): {domain: {} for domain in domains} for method in methods for k in shots}


def _takes_before(
    encoder: Any,
    benchmark: Mapping[str, Any],
    methods: Mapping[str, Factory],
    templates: Any,
    shots: Sequence[int],
) -> bool:
    """Whether a method takes features before the last projection; each is made once to see it."""
    for domain in list(benchmark.values())[:1]:
        task = {"hint": domain.hint, "shots": max(shots, default=1), "ip_names": domain.ip.names}
        for factory in methods.values():
            # What cannot be made fails again in its run, where the error says on which task.
            with suppress(ValueError, RuntimeError):
                if hasattr(factory(encoder, templates=templates, seed=0, **task), "images_from"):
                    return True
    return False


def smallest(benchmark: Mapping[str, Any], most: int | None = None) -> dict[str, Any]:
    """The domains of fewest OOP classes, as many as `most`, in their order; all for None.

    Raises ValueError if `most` is below 1.
    """
    if most is not None and most < 1:
        raise ValueError(f"most_domains={most} must be at least 1, or None for all")
    kept = sorted(benchmark, key=lambda name: len(benchmark[name].oop.names))[:most]
    return {name: domain for name, domain in benchmark.items() if name in kept}


def _batches(todo: Sequence[Task], workers: int) -> list[list[Task]]:
    """Tasks in batches of one or more domains, for every worker some; long ones first."""
    most = _MOST if workers == 1 else min(_MOST, max(1, len(todo) // (2 * workers)))
    batches = [list(todo[i : i + most]) for i in range(0, len(todo), most)]
    # They take a time about proportional to their images.
    return sorted(batches, key=lambda batch: -sum(len(task.split) for task in batch))


def _run_tasks(
    batch: Sequence[Task],
    encoder: Any,
    methods: Mapping[str, Factory],
    templates: Any,
    seed: int,
    biases: Mapping[str, float],
) -> list[tuple[str, str, int, int, float, list[JointScores]]]:
    """Rows (method, domain, shots, draw, seconds, scores without and, if any, with its bias)."""
    threads = torch.get_num_threads()
    # The products of a small model are too small to share among threads.
    torch.set_num_threads(1)
    rows = []
    try:
        for name, factory in methods.items():
            begin = time.perf_counter()
            together = _together(batch, factory, encoder, templates, seed)
            shared = (time.perf_counter() - begin) / len(batch)
            for i, task in enumerate(batch):
                start = time.perf_counter()
                try:
                    model = together[i] if together else task.fit(factory, encoder, templates, seed)
                    logits = task.logits(model)
                    spent = shared + time.perf_counter() - start
                    plain = joint_scores(logits, task.labels, len(task.ip_names))
                    scores = [plain]
                    if name in biases:
                        given = task.labels, len(task.ip_names)
                        scores.append(joint_scores(logits, *given, bias=biases[name]))
                except (ValueError, RuntimeError) as error:
                    where = f"{task.domain}, {task.shots} shots, draw {task.draw}"
                    raise RuntimeError(f"{name} failed on {where}: {error}") from error
                rows.append((name, task.domain, task.shots, task.draw, spent, scores))
    finally:
        torch.set_num_threads(threads)
    return rows


# By the `fit` that a method has, so that a subclass with one of its own is fitted by that.
_MANY: dict[Any, Callable[..., list[Any]]] = {
    NameLearner.fit: namelearner.fit_many,
    CoOp.fit: context.fit_many,
}


def _together(
    batch: Sequence[Task], factory: Factory, encoder: Any, templates: Any, seed: int
) -> list[Any]:
    """Methods fitted to all tasks in one pass; none of those that cannot be, or on failure."""
    # What fails is fitted again task by task, where the error says on which.
    with suppress(ValueError, RuntimeError):
        first = batch[0].made(factory, encoder, templates, seed)
        fit = getattr(type(first), "fit", None)
        if fit not in _MANY:
            return []
        made = [first, *(task.made(factory, encoder, templates, seed) for task in batch[1:])]
        if all(getattr(type(one), "fit", None) is fit for one in made):
            parts = [task.split for task in batch], [task.features for task in batch]
            return _MANY[fit](made, *parts)
    return []
