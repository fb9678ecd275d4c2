"""Scores of logits, always with intervals: accuracy, harmonic mean, calibration, comparisons.

Classes, not images, are what a claim about concepts generalises over. Images of one class
share its name and its look, so every interval here resamples classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

# One value a class, (C,) or (draws, C), or such an array for each domain.
ClassValues: TypeAlias = ArrayLike | Mapping[str, ArrayLike]


class Interval(NamedTuple):
    """A mean with the lower and upper end of its confidence interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """First minus second, its interval, and the share of resamples with the first ahead."""

    difference: float
    low: float
    high: float
    share: float


def _pair(labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels), np.asarray(predictions)
    if y.ndim != 1 or y.shape != p.shape:
        raise ValueError(f"labels {y.shape} and predictions {p.shape} must both be (N,)")
    return y, p


def _logits(logits: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, y = np.asarray(logits), np.asarray(labels)
    if scores.ndim != 2 or y.shape != scores.shape[:1]:
        raise ValueError(f"logits {scores.shape} must be (N, C), labels {y.shape} must be (N,)")
    if len(y) and not 0 <= y.min() <= y.max() < scores.shape[1]:
        raise ValueError(f"labels must lie in 0..{scores.shape[1] - 1}, the columns of logits")
    if np.isnan(scores).any():
        raise ValueError("logits hold NaN: the method that gave them has failed")
    return scores, y


def predict(logits: ArrayLike) -> np.ndarray:
    """The column of the largest logit of each row, (N,); the first of equal ones."""
    scores = np.asarray(logits)
    return _logits(scores, np.zeros(len(scores), int))[0].argmax(axis=1)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The share of images whose prediction equals the label; NaN without images."""
    y, p = _pair(labels, predictions)
    return float(np.mean(y == p)) if len(y) else float("nan")


def per_class_accuracy(
    labels: ArrayLike, predictions: ArrayLike, classes: int | None = None
) -> np.ndarray:
    """Accuracy of each class, (C,); NaN for a class without images.

    Parameters
    ----------
    labels, predictions : array-like
        (N,) integers.
    classes : int, optional
        C, the size of the vocabulary; by default one more than the largest label.
    """
    y, p = _pair(labels, predictions)
    size = (int(y.max()) + 1 if len(y) else 0) if classes is None else classes
    if len(y) and (y.min() < 0 or y.max() >= size):
        raise ValueError(f"labels must lie in 0..{size - 1}")
    y = y.astype(np.int64)
    images = np.bincount(y, minlength=size)
    hits = np.bincount(y[y == p], minlength=size)
    return np.divide(hits, images, out=np.full(size, np.nan), where=images > 0)


def balanced_accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The mean over classes with images of their accuracies; NaN without images."""
    return _nanmean(per_class_accuracy(labels, predictions))


def class_balanced(accuracy: float, n_this: int, n_other: int) -> float:
    """A subset's accuracy weighted by its share of classes, ``n_this / (n_this + n_other)``.

    Source: Figure 4 of the paper, ``N_subset / (N_IP + N_OOP)`` with N a number of classes.
    Raises ValueError if there are no classes or a number is negative.
    """
    if min(n_this, n_other) < 0 or n_this + n_other == 0:
        raise ValueError(f"no share of classes: n_this={n_this}, n_other={n_other}")
    return accuracy * n_this / (n_this + n_other)


def harmonic_mean(first: float, second: float) -> float:
    """H = 2ab / (a + b) of two accuracies, 0 if both are 0. Source: the paper's headline, H."""
    if min(first, second) < 0:
        raise ValueError(f"the harmonic mean needs numbers >= 0, not {first} and {second}")
    return 2 * first * second / (first + second) if first + second else 0.0


def joint_accuracy(logits: ArrayLike, labels: ArrayLike, n_ip: int) -> dict[str, float]:
    """Accuracies of IP and OOP images over the joint vocabulary and over their own names.

    Parameters
    ----------
    logits : array-like
        (N, C) over the joint vocabulary, IP names first, as `benchmark.join` orders them.
    labels : array-like
        (N,) in the joint vocabulary; an image is IP when its label is below `n_ip`.
    n_ip : int
        Number of IP names.

    Returns
    -------
    dict
        ``ip_joint`` and ``oop_joint`` (over all names) with ``h_joint``, their harmonic mean;
        ``ip_separate`` and ``oop_separate`` (each over its own names) with ``h_separate``. The
        paper's table is ``h_separate``; a deployed classifier meets the joint vocabulary.

    Raises
    ------
    ValueError
        If the shapes disagree, `n_ip` leaves IP or OOP without names, or one has no images.
    """
    scores, y = _logits(logits, labels)
    if not 0 < n_ip < scores.shape[1]:
        raise ValueError(f"n_ip={n_ip} must part the {scores.shape[1]} names into IP and OOP")
    ip = y < n_ip
    if ip.all() or not ip.any():
        raise ValueError(f"{ip.sum()} IP and {(~ip).sum()} OOP images: both are needed")
    best = scores.argmax(axis=1)
    found = {
        "ip_joint": accuracy(y[ip], best[ip]),
        "oop_joint": accuracy(y[~ip], best[~ip]),
        "ip_separate": accuracy(y[ip], scores[ip, :n_ip].argmax(axis=1)),
        "oop_separate": accuracy(y[~ip] - n_ip, scores[~ip, n_ip:].argmax(axis=1)),
    }
    for kind in ("joint", "separate"):
        found[f"h_{kind}"] = harmonic_mean(found[f"ip_{kind}"], found[f"oop_{kind}"])
    return found


def ece(logits: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy, in 0..1.

    Confidence is the largest softmax probability; images are put into `bins` intervals
    ``(low, high]`` of equal width, and the gaps of the bins are weighted by their images. NaN
    without images.

    Parameters
    ----------
    logits : array-like
        (N, C), with the logit scale already applied.
    labels : array-like
        (N,) columns of `logits`.
    bins : int
        Number of intervals of 0..1.

    Notes
    -----
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    scores, y = _logits(logits, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if not len(y):
        return float("nan")
    probabilities = softmax(scores.astype(np.float64), axis=1)
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == y
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _by_domain(*arguments: ClassValues | None) -> list[dict[str, Any]]:
    """Each argument as {domain: array}, one nameless domain for arrays; None for each if None."""
    given = [argument for argument in arguments if argument is not None]
    mappings = [argument for argument in given if isinstance(argument, Mapping)]
    if not mappings:
        return [{"": argument} for argument in arguments]
    domains = sorted(mappings[0])
    if len(mappings) < len(given) or any(sorted(mapping) != domains for mapping in mappings):
        raise ValueError("pass arrays throughout, or mappings with the same domains throughout")
    return [
        {domain: argument[domain] if isinstance(argument, Mapping) else None for domain in domains}
        for argument in arguments
    ]


def _table(domain: str, values: ArrayLike, weights: ArrayLike | None) -> tuple[np.ndarray, ...]:
    """Values (draws, classes) and weights (classes,) of one domain, without empty classes."""
    table = np.atleast_2d(np.asarray(values, float))
    own = np.ones(table.shape[1:]) if weights is None else np.asarray(weights, float)
    where = f" in {domain}" if domain else ""
    if table.ndim != 2 or own.shape != table.shape[1:]:
        raise ValueError(f"values {table.shape}, weights {own.shape}{where}: need (draws, C), (C,)")
    empty = np.isnan(table).all(axis=0) | (own == 0)
    table, own = table[:, ~empty], own[~empty]
    if np.isnan(table).any() or np.isnan(own).any() or (own < 0).any():
        raise ValueError(f"a class{where} lacks a value in some draws, or has a bad weight")
    if domain and not own.size:
        raise ValueError(f"no class with images{where}: leave the domain out")
    return table, own


def _resample(
    table: np.ndarray, weights: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means (resamples,) with classes, and draws where there are several, drawn with replacement.

    How often each is drawn is multinomial, which turns the bootstrap into two matrix products.
    """
    draws, classes = table.shape
    times = rng.multinomial(classes, np.full(classes, 1 / classes), size=resamples) * weights
    if draws == 1:
        return times @ table[0] / times.sum(axis=1)
    share = rng.multinomial(draws, np.full(draws, 1 / draws), size=resamples) / draws
    return ((share @ table) * times).sum(axis=1) / times.sum(axis=1)


def _means(
    values: ClassValues, weights: ClassValues | None, resamples: int, seed: int
) -> tuple[float, np.ndarray]:
    """The mean over domains, and (resamples,) bootstrap replicates of it."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    by_domain, own = _by_domain(values, weights)
    tables = [_table(domain, by_domain[domain], own[domain]) for domain in by_domain]
    sizes = [weight.size for _, weight in tables]
    if not sizes or not min(sizes):
        return float("nan"), np.full(resamples, np.nan)
    mean = np.mean([np.average(table.mean(axis=0), weights=weight) for table, weight in tables])
    if max(sizes) == 1:
        return float(mean), np.full(resamples, np.nan)
    rng = np.random.default_rng(seed)
    draws = [_resample(table, weight, resamples, rng) for table, weight in tables]
    return float(mean), np.mean(draws, axis=0)


def _interval(mean: float, replicates: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def bootstrap(
    values: ClassValues,
    weights: ClassValues | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of per-class values with its percentile interval, classes resampled.

    Parameters
    ----------
    values : array-like or mapping
        (C,) one value a class, such as `per_class_accuracy`, or (draws, C) over few-shot
        draws, which are then resampled too. NaN classes are left out. A mapping holds such an
        array for each domain: classes are resampled inside each domain, and the mean is over
        domains, each counting the same.
    weights : array-like or mapping, optional
        (C,) images a class: the mean over images instead of the mean over classes.
    resamples, level, seed : int, float, int
        Number of bootstrap samples, coverage, and seed; the same seed gives the same interval.

    Returns
    -------
    Interval
        ``(mean, low, high)``. Without classes all are NaN; with a single class in every
        domain the interval is NaN, since nothing can be resampled.

    Raises
    ------
    ValueError
        If a domain has no class with images, a class lacks some draws, or shapes disagree.
    """
    return _interval(*_means(values, weights, resamples, seed), level)


def bootstrap_accuracy(
    labels: ArrayLike | Mapping[str, ArrayLike],
    predictions: ArrayLike | Mapping[str, ArrayLike],
    *,
    balanced: bool = False,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Accuracy with an interval clustered by class; the mean over domains for mappings.

    Parameters
    ----------
    labels, predictions : array-like or mapping
        (N,) integers, or such an array for each domain.
    balanced : bool
        Count classes equally rather than images.
    resamples, level, seed : int, float, int
        See `bootstrap`.
    """
    y, p = _by_domain(labels, predictions)
    values: Any = {domain: per_class_accuracy(y[domain], p[domain]) for domain in y}
    images: Any = {domain: np.bincount(np.asarray(y[domain], np.int64)) for domain in y}
    if not isinstance(labels, Mapping):
        values, images = values[""], images[""]
    return bootstrap(
        values, None if balanced else images, resamples=resamples, level=level, seed=seed
    )


def bootstrap_harmonic_mean(
    first: ClassValues,
    second: ClassValues,
    first_weights: ClassValues | None = None,
    second_weights: ClassValues | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """H of two subsets with an interval: classes of both are resampled, domain by domain.

    Parameters
    ----------
    first, second : array-like or mapping
        Values of IP and of OOP classes as in `bootstrap`; H is taken in each domain, then the
        mean over domains, as in the paper's table.
    first_weights, second_weights : array-like or mapping, optional
        Images a class.
    resamples, level, seed : int, float, int
        See `bootstrap`.
    """
    ones, others, one_weights, other_weights = _by_domain(
        first, second, first_weights, second_weights
    )
    means, replicates = [], []
    for i, domain in enumerate(ones):
        # Seeds of their own, since IP and OOP classes vary independently.
        a, many_a = _means(ones[domain], one_weights[domain], resamples, _spawn(seed, 2 * i))
        b, many_b = _means(
            others[domain], other_weights[domain], resamples, _spawn(seed, 2 * i + 1)
        )
        total = many_a + many_b
        means.append(harmonic_mean(a, b))
        replicates.append(np.divide(2 * many_a * many_b, total, out=total * 0, where=total != 0))
    return _interval(float(np.mean(means)), np.mean(replicates, axis=0), level)


def _spawn(seed: int, index: int) -> int:
    """A seed of its own for each of several independent resamplings."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def compare(
    first: ClassValues,
    second: ClassValues,
    weights: ClassValues | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """How much better the first of two methods is, paired over draws and classes.

    Parameters
    ----------
    first, second : array-like or mapping
        (C,) or (draws, C) values of the two methods on the same classes and draws, or such an
        array for each domain; see `bootstrap`.
    weights : array-like or mapping, optional
        (C,) images a class.
    resamples, level, seed : int, float, int
        See `bootstrap`.

    Returns
    -------
    Comparison
        ``difference`` (first minus second), ``low``, ``high``, and ``share``: in how many of
        the resamples the first is ahead, ties counting half.

    Raises
    ------
    ValueError
        If the methods were not scored on the same domains, classes and draws.
    """
    ones, others = _by_domain(first, second)
    gaps = {domain: _gap(ones[domain], others[domain]) for domain in ones}
    gap = gaps if isinstance(first, Mapping) else gaps[""]
    mean, replicates = _means(gap, weights, resamples, seed)
    interval = _interval(mean, replicates, level)
    share = float(np.mean((np.sign(replicates) + 1) / 2))
    return Comparison(interval.mean, interval.low, interval.high, share)


def _gap(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        raise ValueError(
            f"the methods differ in draws or classes, {a.shape} and {b.shape}: no pairs"
        )
    return a - b
