"""Many methods on the same few-shot tasks: one fit a method, domain, number of shots and draw."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from lbutils.adapters import BeforeProjection
from lbutils.benchmark import join
from lbutils.features import image_features
from lbutils.protocol import JointScores, joint_scores
from lbutils.zeroshot import training_features

# factory(encoder, templates=, hint=, shots=, seed=, ip_names=) of a method that is not fitted
Factory = Callable[..., Any]


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
        self, factory: Factory, encoder: Any, templates: str | Sequence[str] = "mini", seed: int = 0
    ) -> Any:
        """The method that `factory` makes, fitted; its seed is `seed` plus the draw."""
        model = factory(
            encoder,
            templates=templates,
            hint=self.hint,
            shots=self.shots,
            seed=seed + self.draw,
            ip_names=self.ip_names,
        )
        return model.fit(self.split, self._of(model)[0])

    def score(self, model: Any) -> JointScores:
        """Scores of a fitted method on the test images."""
        logits = model.joint_logits(self._of(model)[1], self.ip_names)
        return joint_scores(logits.numpy(), self.labels, len(self.ip_names))

    def _of(self, model: Any) -> tuple[Tensor, Tensor]:
        """Training and test features of the kind that a method takes."""
        if hasattr(model, "images_from") and self.before is not None:
            return self.before
        return self.features, self.images


def tasks(
    encoder: Any,
    benchmark: Mapping[str, Any],
    shots: Iterable[int],
    draws: Iterable[int],
    views: int = 4,
    seed: int = 0,
) -> Iterator[Task]:
    """Tasks of every domain, number of shots and draw; features are computed once a domain.

    Parameters
    ----------
    encoder : DualEncoder
    benchmark : mapping of str to Domain
    shots, draws : iterable of int
        Images a class, and numbers of few-shot draws.
    views : int
        Augmented views of each training image, beside the image as it is.
    seed : int
        Seed of the views.
    """
    shots, draws = list(shots), list(draws)
    towers = [encoder]
    with suppress(ValueError):  # where the image tower ends in no projection
        towers.append(BeforeProjection(encoder))
    for name, domain in benchmark.items():
        kinds = [_features(tower, domain, views, seed) for tower in towers]
        place = {image_id: i for i, image_id in enumerate(domain.oop.train.ids)}
        labels = join(domain.ip.test, domain.oop.test).labels
        for number, draw in itertools.product(shots, draws):
            split = domain.oop.few_shot(number, draw)
            rows = [place[image_id] for image_id in split.ids]
            (features, images), *before = [(train[:, rows], test) for train, test in kinds]
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
                *before,
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
        ``{(method, shots): {domain: {draw: JointScores}}}``, as `lbutils.protocol` takes it.
    seconds : DataFrame
        Columns method, domain, shots, draw and seconds, of the fit and its test logits.
    """

    scores: dict[tuple[str, int], dict[str, dict[int, JointScores]]]
    seconds: pd.DataFrame

    def at(self, shots: int) -> dict[str, dict[str, dict[int, JointScores]]]:
        """Runs of every method at one number of shots, ``{method: {domain: {draw: ...}}}``."""
        return {method: runs for (method, number), runs in self.scores.items() if number == shots}


def run(
    encoder: Any,
    benchmark: Mapping[str, Any],
    methods: Mapping[str, Factory],
    *,
    shots: Iterable[int] = (1, 2, 4),
    draws: Iterable[int] = range(10),
    templates: str | Sequence[str] = "mini",
    views: int = 4,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> Trials:
    """Scores of every method on every task.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    benchmark : mapping of str to Domain
    methods : mapping of str to factory
        ``factory(encoder, templates=, hint=, shots=, seed=, ip_names=)`` returns a method that is
        not fitted, such as those of `lbutils.baselines.RIVALS`.
    shots, draws : iterable of int
        Images a class, and numbers of few-shot draws; all methods get the same.
    templates : str or sequence of str
        Templates of the names.
    views, seed : int
        As in `tasks`.
    workers : int
        Processes, each on one thread. With an encoder on a GPU one process is used.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    RuntimeError
        If a fit fails: its method, domain, shots and draw, and why.
    """
    todo = list(tasks(encoder, benchmark, shots, draws, views, seed))
    # Tasks take a time about proportional to their images; long ones first waste least at the end.
    todo.sort(key=lambda task: -len(task.split))
    alone = workers == 1 or encoder.device.type != "cpu"
    one = delayed(_run_task)
    pool = Parallel(1 if alone else workers, return_as="generator_unordered")
    found = pool(one(task, encoder, dict(methods), templates, seed) for task in todo)
    bar = tqdm(found, "tasks", len(todo), disable=not progress, mininterval=2)
    rows = sorted((row for part in bar for row in part), key=lambda row: row[:4])
    scores: dict[tuple[str, int], dict[str, dict[int, JointScores]]] = {
        (method, number): {name: {} for name in benchmark}
        for method in methods
        for number in dict.fromkeys(task.shots for task in todo)
    }
    for method, domain, number, draw, one_score, _ in rows:
        scores[method, number][domain][draw] = one_score
    timed = [(*row[:4], row[5]) for row in rows]
    columns = ["method", "domain", "shots", "draw", "seconds"]
    return Trials(scores, pd.DataFrame(timed, columns=columns))


def _run_task(
    task: Task, encoder: Any, methods: Mapping[str, Factory], templates: Any, seed: int
) -> list[tuple[str, str, int, int, JointScores, float]]:
    """Rows (method, domain, shots, draw, scores, seconds) of one task."""
    threads = torch.get_num_threads()
    # The products of a small model are too small to share among threads.
    torch.set_num_threads(1)
    rows = []
    try:
        for name, factory in methods.items():
            start = time.perf_counter()
            try:
                scores = task.score(task.fit(factory, encoder, templates, seed))
            except (ValueError, RuntimeError) as error:
                where = f"{task.domain}, {task.shots} shots, draw {task.draw}"
                raise RuntimeError(f"{name} failed on {where}: {error}") from error
            spent = time.perf_counter() - start
            rows.append((name, task.domain, task.shots, task.draw, scores, spent))
    finally:
        torch.set_num_threads(threads)
    return rows
