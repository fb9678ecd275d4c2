"""Scores of logits, always with intervals: accuracy, harmonic mean, calibration, comparisons.

Classes, not images, are what a claim about concepts generalises over. Images of one class
share its name and its look, so every interval here resamples classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, ndtr, ndtri, softmax, stdtr, stdtrit

# One value a class, (C,) or (draws, C), or such an array for each domain.
ClassValues: TypeAlias = ArrayLike | Mapping[str, ArrayLike]


class Interval(NamedTuple):
    """A mean with the lower and upper end of its confidence interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """First minus second with its interval.

    ``share`` is that of the resamples with the first ahead, ties counting half, and ``p`` the
    two-sided bootstrap p-value of no difference, see `comparison_of`.
    """

    difference: float
    low: float
    high: float
    share: float
    p: float


class Spread(NamedTuple):
    """How much less resamples vary than estimates do, which few classes make noticeable.

    ``ratio`` is the standard error over the standard deviation of the resamples, ``freedom`` the
    degrees of freedom of the standard error.
    """

    ratio: float = 1.0
    freedom: float = float("inf")


_NONE = Spread()


def _pair(labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels), np.asarray(predictions)
    if y.ndim != 1 or y.shape != p.shape:
        raise ValueError(f"labels {y.shape} and predictions {p.shape} must both be (N,)")
    return y, p


def checked(logits: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and labels (N,) as arrays; raises ValueError unless they can be scored."""
    scores, y = np.asarray(logits), np.asarray(labels)
    if scores.ndim != 2 or y.shape != scores.shape[:1]:
        raise ValueError(f"logits {scores.shape} must be (N, C), labels {y.shape} must be (N,)")
    if len(y) and not 0 <= y.min() <= y.max() < scores.shape[1]:
        raise ValueError(f"labels must lie in 0..{scores.shape[1] - 1}, the columns of logits")
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise ValueError(
            "logits hold NaN or +inf: mend the method that gave them; -inf stands for a class "
            "that it cannot name"
        )
    return scores, y


def predict(logits: ArrayLike) -> np.ndarray:
    """The column of the largest logit of each row, (N,); the first of equal ones."""
    scores = np.asarray(logits)
    return checked(scores, np.zeros(len(scores), int))[0].argmax(axis=1)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """The share of images whose prediction equals the label; NaN without images."""
    y, p = _pair(labels, predictions)
    return float(np.mean(y == p)) if len(y) else float("nan")


def per_class_accuracy(
    labels: ArrayLike, predictions: ArrayLike, classes: int | None = None
) -> np.ndarray:
    """Accuracy of each class, (C,); NaN for a class without images.

    `labels`, `predictions` (array-like): (N,) integers. `classes` (int, optional): C, the size of
    the vocabulary; by default one more than the largest label.
    """
    y, p = _pair(labels, predictions)
    size = (int(y.max()) + 1 if len(y) else 0) if classes is None else classes
    if len(y) and (y.min() < 0 or y.max() >= size):
        raise ValueError(f"labels must lie in 0..{size - 1}")
    y = y.astype(np.int64)
    images = np.bincount(y, minlength=size)
    hits = np.bincount(y[y == p], minlength=size)
    return np.divide(hits, images, out=np.full(size, np.nan), where=images > 0)


def harmonic_mean(first: Any, second: Any) -> Any:
    """H = 2ab / (a + b) of accuracies, one or arrays of them, 0 where both are 0.

    Raises ValueError if one is negative. Source: the paper's headline, H.
    """
    total = np.add(first, second)
    if np.min([first, second]) < 0:
        raise ValueError(f"the harmonic mean needs numbers >= 0, not {first} and {second}")
    product = 2 * np.multiply(first, second)
    return np.divide(product, total, out=np.zeros(total.shape), where=total > 0)[()]


class Margins(NamedTuple):
    """What decides between the IP and the OOP names of a joint vocabulary, for each image.

    ``labels`` (N,) lie in the joint vocabulary; ``margin`` (N,) is the largest logit of an IP
    name less the largest of an OOP name; ``right`` (N,) says whether the image finds its name
    among those of its own subset; ``n_ip`` and ``n_oop`` count the names.
    """

    labels: np.ndarray
    margin: np.ndarray
    right: np.ndarray
    n_ip: int
    n_oop: int


def joint_margins(logits: ArrayLike, labels: ArrayLike, n_ip: int) -> Margins:
    """Margins between IP and OOP names, float64, and who is right among its own names.

    Added to the logits of all OOP names, a bias sends an image to the OOP names when it exceeds
    the image's margin, so these numbers hold its prediction under every bias.

    `logits` (array-like): (N, C) over the joint vocabulary, IP names first, as `benchmark.join`
    orders them. A name with -inf is never predicted; an image with -inf throughout is never right.
    `labels` (array-like): (N,) in the joint vocabulary; an image is IP when its label is below
    `n_ip`. `n_ip` (int): number of IP names.

    Raises ValueError if the shapes disagree, `n_ip` leaves IP or OOP without names, one has no
    images, or logits are NaN or +inf.
    """
    scores, y = checked(logits, labels)
    if not 0 < n_ip < scores.shape[1]:
        raise ValueError(f"n_ip={n_ip} must part the {scores.shape[1]} names into IP and OOP")
    ip = y < n_ip
    if ip.all() or not ip.any():
        raise ValueError(f"{ip.sum()} IP and {(~ip).sum()} OOP images: both are needed")
    sides = scores[:, :n_ip], scores[:, n_ip:]
    one, other = (side.max(axis=1).astype(np.float64) for side in sides)
    found = np.where(ip, sides[0].argmax(axis=1), n_ip + sides[1].argmax(axis=1))
    right = (found == y) & np.isfinite(np.where(ip, one, other))
    # Two sides of -inf have no margin; such an image is wrong whatever it is given.
    margin = np.subtract(one, other, out=np.zeros(len(y)), where=np.isfinite(one) | (one != other))
    return Margins(y.astype(np.int64), margin, right, int(n_ip), scores.shape[1] - int(n_ip))


def joint_accuracy(
    logits: ArrayLike, labels: ArrayLike, n_ip: int, *, bias: float = 0.0
) -> dict[str, float]:
    """Accuracies of IP and OOP images over the joint vocabulary and over their own names.

    Raises ValueError as `joint_margins`, or if `bias` is NaN.

    Parameters
    ----------
    logits, labels, n_ip : array-like, array-like, int
        See `joint_margins`.
    bias : float
        Added to the logits of OOP names; to be chosen on IP classes, never on test images.

    Returns
    -------
    dict
        ``ip_joint`` and ``oop_joint`` (over all names) with ``h_joint``, their harmonic mean;
        ``ip_separate`` and ``oop_separate`` (each over its own names) with ``h_separate``. The
        paper's table is ``h_separate``; a deployed classifier meets the joint vocabulary.
    """
    of = joint_margins(logits, labels, n_ip)
    if np.isnan(bias):
        raise ValueError("bias is NaN: pass a number")
    ip = of.labels < n_ip
    found = {
        "ip_joint": float(np.mean((of.right & (of.margin >= bias))[ip])),
        "oop_joint": float(np.mean((of.right & (of.margin < bias))[~ip])),
        "ip_separate": float(np.mean(of.right[ip])),
        "oop_separate": float(np.mean(of.right[~ip])),
    }
    for kind in ("joint", "separate"):
        found[f"h_{kind}"] = float(harmonic_mean(found[f"ip_{kind}"], found[f"oop_{kind}"]))
    return found


def confidences(
    logits: ArrayLike, labels: ArrayLike, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bin, confidence and hit of each image, (N,) int, float64 and bool.

    Confidence is the largest softmax probability, its bin one of `bins` intervals ``(low,
    high]`` of equal width. An image whose logits are all -inf has confidence 0 and is missed.
    """
    scores, y = checked(logits, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    sure = np.isfinite(scores).any(axis=1, keepdims=True)
    shares = softmax(np.where(sure, scores, 0.0).astype(np.float64), axis=1) * sure
    confidence = shares.max(axis=1)
    hit = (shares.argmax(axis=1) == y) & sure[:, 0]
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return place, confidence, hit


def ece(logits: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy, in 0..1.

    The gaps of the bins of `confidences` are weighted by their images. NaN without images. Source:
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    `logits` (array-like): (N, C), with the logit scale already applied. `labels` (array-like): (N,)
    columns of `logits`.
    """
    place, confidence, hit = confidences(logits, labels, bins)
    if not len(place):
        return float("nan")
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(place))


def reliability(logits: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> pd.DataFrame:
    """A reliability diagram: one row a bin of confidence, in its order.

    Returns a DataFrame: ``low`` and ``high`` (edges of the bin), ``confidence`` and ``accuracy``
    (means over its images, in 0..1, NaN without images) and ``images``. Source: Guo et al., On
    Calibration of Modern Neural Networks, ICML 2017, Figure 1. Arguments are those of `ece`, which
    is the mean of ``|accuracy - confidence|`` weighted by ``images``.
    """
    place, confidence, hit = confidences(logits, labels, bins)
    images = np.bincount(place, minlength=bins)
    means = [
        np.divide(total, images, out=np.full(bins, np.nan), where=images > 0)
        for total in (np.bincount(place, weights=own, minlength=bins) for own in (confidence, hit))
    ]
    edges = np.arange(bins + 1) / bins
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "confidence": means[0],
            "accuracy": means[1],
            "images": images,
        }
    )


def confidence_auroc(
    scored: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How well confidence tells right answers from wrong: mean area under the ROC curve, in 0..1.

    The area is the share of pairs of a right and a wrong answer in which the right one is the
    surer, ties counting half. The mean is over domains, as answers among more names are less
    sure; one in which all answers are right, or all wrong, has no such pair and is left out.

    Parameters
    ----------
    scored : mapping of str to (logits, labels)
        (N, C) and (N,) of each domain.
    resamples, level, seed : int, float, int
        See `bootstrap`: classes are resampled inside each domain, all images of each together.

    Returns
    -------
    Interval
        NaN if no domain has both right and wrong answers.

    Notes
    -----
    Source: Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and
    out-of-distribution examples in neural networks", ICLR.
    """
    rng, areas = np.random.default_rng(seed), []
    for logits, labels in scored.values():
        _, sure, right = confidences(logits, labels)
        of_class = np.unique(labels)[:, None] == np.asarray(labels)
        higher = sure[right, None] - sure[~right]
        won = of_class[:, right] @ ((higher > 0) + 0.5 * (higher == 0)) @ of_class[:, ~right].T
        pairs = np.outer(of_class[:, right].sum(axis=1), of_class[:, ~right].sum(axis=1))
        if not pairs.any():
            continue
        times = np.vstack([np.ones(len(of_class)), resampled(len(of_class), resamples, rng)])
        ahead, possible = (((times @ table) * times).sum(axis=1) for table in (won, pairs))
        # A resample may have no such pair: it says nothing of this domain.
        areas.append(
            np.divide(ahead, possible, out=np.full(len(times), np.nan), where=possible > 0)
        )
    if not areas:
        return Interval(*[float("nan")] * 3)
    means = np.ma.masked_invalid(areas).mean(axis=0)
    return interval_of(float(means[0]), means[1:].compressed(), level)


def temperature(scored: Sequence[tuple[ArrayLike, ArrayLike]]) -> float:
    """The number to divide logits by so that the labels become likeliest, in 1/100..100.

    `scored` (sequence of (logits, labels)): (N, C) and (N,) of each vocabulary, such as of a
    domain; all images count alike. Of images that are not those to be calibrated.

    Raises ValueError if there is no image, or shapes and labels do not fit. Source: Guo et al., On
    Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    many = [checked(logits, labels) for logits, labels in scored]
    if not sum(len(y) for _, y in many):
        raise ValueError("no image to fit a temperature on: pass logits and labels of some")

    def loss(log_t: float) -> float:
        parts = [
            log_softmax(scores.astype(np.float64) / np.exp(log_t), axis=1)[np.arange(len(y)), y]
            for scores, y in many
        ]
        return -float(np.concatenate(parts).mean())

    bound = np.log(100)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return float(np.exp(found.x))


def effective_robustness(
    method: ArrayLike,
    ordinary: ArrayLike,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Accuracy under a shift beyond what ordinary models of the same clean accuracy have.

    Ordinary models give a line from clean to shifted accuracy, both as log-odds; the result is
    the method's shifted accuracy less that line's value at its clean accuracy, in 0..1, with an
    interval over classes, the same in all models. Raises ValueError if shapes do not fit,
    accuracies are not in 0..1, or there are too few models.

    Parameters
    ----------
    method : array-like
        (2, C): accuracy of each class, clean and shifted.
    ordinary : array-like
        (M, 2, C): the same of M models, at least three of different accuracy.
    resamples, level, seed : int, float, int
        See `bootstrap`.

    Notes
    -----
    Source: Taori et al., Measuring robustness to natural distribution shifts in image
    classification, NeurIPS 2020, section 2; used of CLIP by Radford et al. 2021, section 3.3.
    Accuracies are kept half an image from 0 and 1, as if each class had one.
    """
    own, others = np.asarray(method, float), np.asarray(ordinary, float)
    if own.ndim != 2 or len(own) != 2 or others.shape[1:] != own.shape or len(others) < 3:
        raise ValueError(
            f"accuracies {own.shape}, ordinary {others.shape}: need (2, C), (3 or more, 2, C)"
        )
    both = np.concatenate([own[None], others])
    if not ((both >= 0) & (both <= 1)).all():
        raise ValueError("accuracies must lie in 0..1; leave out classes without images")
    classes = own.shape[1]
    if np.ptp(others[:, 0].mean(axis=1)) == 0:
        raise ValueError("the ordinary models are of one accuracy: no line goes through them")
    times = resampled(classes, resamples, np.random.default_rng(seed)) / classes
    drawn = np.concatenate([both.mean(axis=2)[None], np.einsum("rc,msc->rms", times, both)])
    drawn = np.clip(drawn, 1 / (2 * classes), 1 - 1 / (2 * classes))
    x, y = np.moveaxis(logit(drawn[:, 1:]), -1, 0)
    middle = x.mean(axis=1, keepdims=True)
    spread = np.square(x - middle).sum(axis=1)
    # Resampled, all models may be of one accuracy: then the line is level.
    slope = ((x - middle) * y).sum(axis=1) / np.where(spread > 0, spread, np.inf)
    expected = y.mean(axis=1) + slope * (logit(drawn[:, 0, 0]) - middle[:, 0])
    found = drawn[:, 0, 1] - expit(expected)
    return interval_of(float(found[0]), found[1:], level)


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


def resampled(number: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of so many is drawn in each resample, (resamples, number) int.

    These counts turn a bootstrap of means into a product of matrices.
    """
    return rng.multinomial(number, np.full(number, 1 / number), size=resamples)


def _resample(
    table: np.ndarray, weights: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means (resamples,) of classes, and of draws where there are several, drawn again."""
    draws, classes = table.shape
    times = resampled(classes, resamples, rng) * weights
    if draws == 1:
        return times @ table[0] / times.sum(axis=1)
    share = resampled(draws, resamples, rng) / draws
    return ((share @ table) * times).sum(axis=1) / times.sum(axis=1)


def _variances(table: np.ndarray, weights: np.ndarray) -> list[tuple[float, int]]:
    """Variance of a domain's mean over resamples, by classes and by draws, and counts of them."""
    classes, draws = table.mean(axis=0), np.average(table, axis=1, weights=weights)
    share = weights / weights.sum()
    apart = share * (classes - share @ classes)
    return [(float(apart @ apart), len(classes)), (float(draws.var() / len(draws)), len(draws))]


def _spread(tables: Sequence[tuple[np.ndarray, ...]]) -> Spread:
    """Spread of the mean over domains; degrees of freedom by Welch and Satterthwaite."""
    found = [part for table in tables for part in _variances(*table) if part[1] > 1]
    resampled, number = np.array(found).T
    true = resampled * number / (number - 1)
    if not true.sum():
        return _NONE
    freedom = true.sum() ** 2 / (true**2 / (number - 1)).sum()
    return Spread(float(np.sqrt(true.sum() / resampled.sum())), float(freedom))


def _means(
    values: ClassValues, weights: ClassValues | None, resamples: int, seed: int
) -> tuple[float, np.ndarray, Spread]:
    """The mean over domains, (resamples,) bootstrap replicates of it, and their spread."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    by_domain, own = _by_domain(values, weights)
    tables = [_table(domain, by_domain[domain], own[domain]) for domain in by_domain]
    sizes = [weight.size for _, weight in tables]
    if not sizes or not min(sizes):
        return float("nan"), np.full(resamples, np.nan), _NONE
    mean = np.mean([np.average(table.mean(axis=0), weights=weight) for table, weight in tables])
    if max(sizes) == 1:
        return float(mean), np.full(resamples, np.nan), _NONE
    rng = np.random.default_rng(seed)
    draws = [_resample(table, weight, resamples, rng) for table, weight in tables]
    return float(mean), np.mean(draws, axis=0), _spread(tables)


def interval_of(
    mean: float, replicates: np.ndarray, level: float = 0.95, spread: Spread = _NONE
) -> Interval:
    """The percentile interval of bootstrap replicates (resamples,) about a mean.

    With a `spread`, percentiles lie as far out as the interval by Student's t would have them.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    tail = ndtr(spread.ratio * stdtrit(spread.freedom, (1 - level) / 2))
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def bootstrap(
    values: ClassValues,
    weights: ClassValues | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean of per-class values with its expanded percentile interval, classes resampled.

    Returns an Interval: ``(mean, low, high)``. Without classes all are NaN; with a single class in
    every domain the interval is NaN, since nothing can be resampled. Raises ValueError if a domain
    has no class with images, a class lacks some draws, or shapes disagree.

    Resamples of n classes vary by (n - 1) / n of what the mean does, and percentiles take no
    account of how badly few classes show that variance. Both are made up for by percentiles further
    out, so that in simulation means over the miniature's domains are covered as often as `level`
    says; but where nearly all of a single domain's few classes score alike, such as 0, no interval
    knows of those that would not. Source: Hesterberg, What teachers should know about the
    bootstrap, The American Statistician 69, 2015; degrees of freedom over domains by Welch,
    Biometrika 34, 1947.

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
    """
    mean, replicates, spread = _means(values, weights, resamples, seed)
    return interval_of(mean, replicates, level, spread)


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

    Arguments are those of `bootstrap`, values of both on the same classes and draws. Raises
    ValueError if the methods were not scored on the same domains, classes and draws.
    """
    ones, others = _by_domain(first, second)
    gaps = {domain: _gap(ones[domain], others[domain]) for domain in ones}
    gap = gaps if isinstance(first, Mapping) else gaps[""]
    mean, replicates, spread = _means(gap, weights, resamples, seed)
    return comparison_of(mean, replicates, level, spread)


def unpaired(
    first: ClassValues,
    second: ClassValues,
    first_weights: ClassValues | None = None,
    second_weights: ClassValues | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """First less second where these are of different classes, each resampled for itself.

    NaN as in `bootstrap`, of which the arguments are those, once for each of both; the mean of
    each is over its own domains.
    """
    pairs = (first, first_weights), (second, second_weights)
    sides = [_by_domain(values, weights) for values, weights in pairs]
    domains = [len(values) for values, _ in sides]
    if not all(domains):
        return Interval(*[float("nan")] * 3)
    # The difference as one mean over the domains of both.
    strata, own = {}, {}
    for i, (values, weights) in enumerate(sides):
        factor = (-1) ** i * sum(domains) / domains[i]
        for domain, table in values.items():
            strata[f"{domain} {i}"] = factor * np.asarray(table, float)
            own[f"{domain} {i}"] = weights[domain]
    return bootstrap(strata, own, resamples=resamples, level=level, seed=seed)


def comparison_of(
    difference: float, replicates: np.ndarray, level: float = 0.95, spread: Spread = _NONE
) -> Comparison:
    """The comparison that bootstrap replicates (resamples,) of a paired difference give.

    ``p`` is twice the smaller share of replicates on one side of zero, zeros counted on both and
    the estimate itself as one replicate more (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 4.2): it agrees with the interval but for that one, and is never
    below ``2 / (resamples + 1)``. A `spread` moves it as it moves the interval.
    """
    interval = interval_of(difference, replicates, level, spread)
    if np.isnan(replicates).any():
        return Comparison(*interval, float("nan"), float("nan"))
    # Sums in another order leave dust where two methods are equal.
    sign = np.sign(np.where(np.abs(replicates) < 1e-12, 0, replicates))
    tail = min((sign <= 0).sum(), (sign >= 0).sum()) + 1
    far = ndtri(tail / (len(replicates) + 1)) / spread.ratio
    p = min(1.0, 2 * stdtr(spread.freedom, far))
    return Comparison(*interval, float(np.mean((sign + 1) / 2)), float(p))


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values adjusted for their number, (n,), in the order given; NaN stays and is not counted.

    Below a level they reject, the chance of any false rejection is at most that level, however
    the tests depend on one another.

    Raises ValueError if `p_values` is not (n,) or holds numbers outside 0..1. Source: Holm, A
    simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6,
    1979.
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or (p < 0).any() or (p > 1).any():
        raise ValueError("p_values must be (n,) numbers in 0..1")
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def _gap(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        raise ValueError(
            f"the methods differ in draws or classes, {a.shape} and {b.shape}: no pairs"
        )
    return a - b
