"""The joint vocabulary of IP and OOP names: curves under a bias, intervals, a table of methods.

A run is one method on one domain with one few-shot draw. `joint_scores` keeps of its logits what
every measure here needs, so that the bootstrap never goes back to images: classes are resampled
by multiplying tables of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lbutils._util import interval_text, suggest
from lbutils.measure.metrics import (
    Comparison,
    Interval,
    Margins,
    comparison_of,
    confidences,
    harmonic_mean,
    holm,
    interval_of,
    joint_margins,
    resampled,
)
from lbutils.measure.records import VALUES, values


class JointScores(NamedTuple):
    """What is kept of one run: arrays only, so ``np.savez(path, **scores._asdict())`` saves it.

    ``labels``, ``margin``, ``right``, ``n_ip`` and ``n_oop`` are those of `metrics.Margins`;
    ``gaps`` (n_ip + n_oop, bins) sums hits less confidences of each class in each bin of
    confidence, over the joint vocabulary under ``gaps_bias``. Where ``bias`` has been replaced by
    another since, the calibration error is NaN, as confidences need logits; all else holds.
    """

    labels: np.ndarray
    margin: np.ndarray
    right: np.ndarray
    n_ip: int
    n_oop: int
    gaps: np.ndarray
    bias: float
    gaps_bias: float


# {domain: runs of a method, one a few-shot draw}, in order or by the number of the draw. A method
# that needs no draw has {None: run}.
Runs: TypeAlias = Mapping[str, Sequence[JointScores] | Mapping[Any, JointScores]]
# Such a mapping, or runs of whatever tasks, or a single one.
AnyRuns: TypeAlias = Runs | Iterable[Margins | JointScores] | Margins | JointScores


class Curve(NamedTuple):
    """Joint accuracies as the bias of OOP names rises from -inf to inf, arrays of one length."""

    bias: np.ndarray
    ip: np.ndarray
    oop: np.ndarray


class Point(NamedTuple):
    """One bias, with the IP and OOP accuracies over the joint vocabulary and their H."""

    bias: float
    ip: float
    oop: float
    h: float


def joint_scores(
    logits: ArrayLike, labels: ArrayLike, n_ip: int, *, bias: float = 0.0, bins: int = 15
) -> JointScores:
    """The scores of one run, from which every measure of `MEASURES` follows.

    Raises ValueError as `metrics.joint_margins`, or if `bias` is not a finite number.

    Parameters
    ----------
    logits, labels, n_ip : array-like, array-like, int
        See `metrics.joint_margins`; with the logit scale applied, of IP and OOP test images.
    bias : float
        Added to the logits of OOP names. It is part of the method: choose it on IP classes
        (`best_bias`), never on test images.
    bins : int
        Bins of confidence for the calibration error.
    """
    of = joint_margins(logits, labels, n_ip)
    if not np.isfinite(bias):
        raise ValueError(f"bias={bias} must be a finite number")
    shift = np.repeat([0.0, float(bias)], [of.n_ip, of.n_oop])
    place, confidence, hit = confidences(np.asarray(logits) + shift, labels, bins)
    size = (of.n_ip + of.n_oop, bins)
    gaps = np.bincount(of.labels * bins + place, weights=hit - confidence, minlength=np.prod(size))
    return JointScores(*of, gaps=gaps.reshape(size), bias=float(bias), gaps_bias=float(bias))


# ---- the curve under a bias


def _pairs(of: Margins | JointScores) -> np.ndarray:
    """(n_ip, n_oop) pairs of right images of two classes with the IP image's margin larger.

    Ties count half. Their share of all pairs of an IP and an OOP image is the area under OOP over
    IP accuracy as a bias runs, exact: no classifier has a larger area than the product of its
    accuracies over separate vocabularies. Source: Chao et al., ECCV 2016 (the area under the
    seen-unseen curve).
    """
    ip = of.labels < of.n_ip
    own, other = of.right & ip, of.right & ~ip
    table = np.zeros((of.n_ip, of.n_oop))
    for label in range(of.n_oop):
        rivals = np.sort(of.margin[other & (of.labels == label + of.n_ip)])
        if not len(rivals):
            continue
        below = np.searchsorted(rivals, of.margin[own], "left")
        upto = np.searchsorted(rivals, of.margin[own], "right")
        table[:, label] = np.bincount(of.labels[own], weights=(below + upto) / 2, minlength=of.n_ip)
    return table


def mean_curve(runs: AnyRuns) -> Curve:
    """IP and OOP accuracy of runs under every bias common to them, each run counting the same.

    Between two neighbouring margins of images nothing changes, so one bias between each two,
    one beyond either end and the two infinities are the whole curve: no grid is involved.

    Returns a Curve: ``bias`` ascending, added to the logits of OOP names; ``ip`` falls from the
    accuracy over IP names alone to 0 while ``oop`` rises from 0 to that over OOP names alone.
    Source: Chao et al., An Empirical Study and Analysis of Generalized Zero-Shot Learning for
    Object Recognition in the Wild, ECCV 2016 (calibrated stacking, section 4).

    Parameters
    ----------
    runs : mapping or iterable
        {domain: runs} as in `interval`, or any runs: `JointScores` or `metrics.Margins`, or
        one of these.
    """
    many = _flat(runs)
    edges = np.unique(np.concatenate([run.margin for run in many]))
    edges = edges[np.isfinite(edges)]
    bias = np.array([-np.inf, 0.0, np.inf])
    if len(edges):
        # Above the lower edge even where two edges are neighbouring floats.
        between = np.maximum(edges[:-1] + np.diff(edges) / 2, np.nextafter(edges[:-1], np.inf))
        bias = np.concatenate([[-np.inf, edges[0] - 1], between, [edges[-1] + 1, np.inf]])
    ip, oop, _ = _means(many, bias)
    return Curve(bias, ip, oop)


def _means(many: Sequence[Margins | JointScores], bias: np.ndarray) -> np.ndarray:
    """(3, K) means over runs of IP and OOP accuracy and their H under each bias (K,)."""
    total = np.zeros((3, len(bias)))
    for run in many:
        ip, oop = _accuracies(run, bias)
        total += [ip, oop, harmonic_mean(ip, oop)]
    return total / len(many)


def _accuracies(of: Margins | JointScores, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IP and OOP accuracy (K,) over the joint vocabulary under each bias (K,)."""
    ip = of.labels < of.n_ip
    kept, won = np.sort(of.margin[of.right & ip]), np.sort(of.margin[of.right & ~ip])
    # An image whose margin equals the bias goes to the IP names, the first of equals.
    first = (len(kept) - np.searchsorted(kept, bias, "left")) / ip.sum()
    # IP names are gone at the end, also for images that know no OOP name.
    return np.where(bias == np.inf, 0, first), np.searchsorted(won, bias, "left") / (~ip).sum()


def _flat(runs: AnyRuns) -> list[Any]:
    if isinstance(runs, (JointScores, Margins)):
        return [runs]
    if isinstance(runs, Mapping):
        runs = [run for own in runs.values() for run in _by_draw(own).values()]
    many = list(runs)
    if not many:
        raise ValueError("no runs: pass at least one")
    return many


def best_bias(runs: AnyRuns, floor: float | None = None) -> Point:
    """The one bias of OOP names that serves all runs best, with the accuracies it gives.

    Best is the highest mean over runs of H over the joint vocabulary; with a floor of IP accuracy,
    of OOP accuracy. A bias is a hyper-parameter: pass runs of IP episodes, in which some IP classes
    play OOP and are learned from a few images; a bias chosen on test images makes every result
    after it void. The bias that is found belongs into `joint_scores` of the test runs. With a
    floor, on test runs, the OOP accuracy says what a method could reach with the right bias.

    Returns a Point: accuracies change at thresholds only: of 0 and the middles between neighbouring
    thresholds, the best, and of equally good ones the nearest to 0. All NaN if none keeps the
    floor.

    Parameters
    ----------
    runs : mapping or iterable
        {domain: runs} or any runs, pooled: `JointScores` or `metrics.Margins`.
    floor : float, optional
        The mean over runs of the IP accuracy over the joint vocabulary must not fall below it, in
        0..1, such as zero-shot's less 0.01.
    """
    many = _flat(runs)
    curve = mean_curve(many)
    bias = np.sort(np.append(curve.bias[np.isfinite(curve.bias)], 0.0))
    ip, oop, h = _means(many, bias)
    value = h if floor is None else np.where(ip >= floor - 1e-12, oop, -np.inf)
    if np.isneginf(value).all():
        return Point(*[float("nan")] * 4)
    ties = np.flatnonzero(value >= value.max() - 1e-12)
    best = ties[np.abs(bias[ties]).argmin()]
    return Point(float(bias[best]), float(ip[best]), float(oop[best]), float(h[best]))


# ---- measures of runs, under weights of classes


class _Stack(NamedTuple):
    """The draws of one domain as tables of its A IP and B OOP classes that have test images.

    ``images`` (A + B,), hits ``joint`` and ``separate`` (D, A + B), ``gaps`` (D, A + B, bins);
    ``names`` counts all IP and OOP names, whether or not they have images.
    """

    runs: Sequence[JointScores]
    kept: np.ndarray
    ip: np.ndarray
    images: np.ndarray
    joint: np.ndarray
    separate: np.ndarray
    gaps: np.ndarray
    names: tuple[int, int]

    def shares(self, hits: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies (R, D) of IP and of OOP images under weights of classes (R, A + B)."""
        own = [weights * self.ip, weights * ~self.ip]
        ip, oop = ((of @ hits.T) / (of @ self.images)[:, None] for of in own)
        return ip, oop


def _stack(runs: Sequence[JointScores]) -> _Stack:
    """Tables of runs on the same test images."""
    one = runs[0]
    size = one.n_ip + one.n_oop
    images = np.bincount(one.labels, minlength=size)
    kept = images > 0
    joint, separate = np.zeros((2, len(runs), size))
    for i, run in enumerate(runs):
        said_ip = run.margin >= run.bias
        own = run.right & (said_ip == (run.labels < run.n_ip))
        joint[i] = np.bincount(run.labels[own], minlength=size)
        separate[i] = np.bincount(run.labels[run.right], minlength=size)
    gaps = np.stack([run.gaps for run in runs])[:, kept]
    ip = np.arange(size)[kept] < one.n_ip
    names = (one.n_ip, one.n_oop)
    return _Stack(runs, kept, ip, images[kept], joint[:, kept], separate[:, kept], gaps, names)


def _area(of: _Stack, weights: np.ndarray) -> np.ndarray:
    ip, oop = weights[:, of.ip], weights[:, ~of.ip]
    tables = [_pairs(run)[of.kept[: of.names[0]]][:, of.kept[of.names[0] :]] for run in of.runs]
    total = np.stack([((ip @ table) * oop).sum(axis=1) for table in tables], axis=1)
    return total / ((ip @ of.images[of.ip]) * (oop @ of.images[~of.ip]))[:, None]


def _calibration(of: _Stack, weights: np.ndarray) -> np.ndarray:
    gaps = np.stack([np.abs(weights @ own).sum(axis=1) for own in of.gaps], axis=1)
    stale = np.array([float(run.bias) != float(run.gaps_bias) for run in of.runs])
    return np.where(stale, np.nan, gaps / (weights @ of.images)[:, None])


def _by_names(of: _Stack, weights: np.ndarray) -> np.ndarray:
    """Source: Figure 4 of the paper, ``N_subset / (N_IP + N_OOP)``, N a number of classes."""
    ip, oop = of.shares(of.joint, weights)
    return (of.names[0] * ip + of.names[1] * oop) / sum(of.names)


# Each gives (R, D) values of D draws under R weightings (R, A + B) of the classes.
_MEASURES: dict[str, Callable[[_Stack, np.ndarray], np.ndarray]] = {
    "ip_separate": lambda of, weights: of.shares(of.separate, weights)[0],
    "oop_separate": lambda of, weights: of.shares(of.separate, weights)[1],
    "h_separate": lambda of, weights: harmonic_mean(*of.shares(of.separate, weights)),
    "ip_joint": lambda of, weights: of.shares(of.joint, weights)[0],
    "oop_joint": lambda of, weights: of.shares(of.joint, weights)[1],
    "h_joint": lambda of, weights: harmonic_mean(*of.shares(of.joint, weights)),
    "ausuc": _area,
    "class_balanced": _by_names,
    "balanced": lambda of, weights: weights @ (of.joint / of.images).T / len(of.images),
    "ece": _calibration,
}

MEASURES = {
    "ip_separate": "accuracy of IP images over IP names",
    "oop_separate": "accuracy of OOP images over OOP names",
    "h_separate": "harmonic mean of these two, the paper's H",
    "ip_joint": "accuracy of IP images over all names",
    "oop_joint": "accuracy of OOP images over all names",
    "h_joint": "harmonic mean of these two",
    "ausuc": "area under OOP over IP accuracy as a bias between them runs",
    "class_balanced": "ip_joint and oop_joint weighted by their numbers of names",
    "balanced": "mean of the accuracies of all classes over all names",
    "ece": "expected calibration error over all names; lower is better",
}


def value(runs: Runs, measure: str) -> float:
    """The mean over domains of the mean over draws of a measure of `MEASURES`, in 0..1."""
    return float(_replicates({"": runs}, [measure], 0, 0)["", measure][0])


def interval(
    runs: Runs,
    measure: str,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A method's `value` with its bootstrap interval, in 0..1.

    In each domain, IP classes, OOP classes and draws are each drawn with replacement, all
    independently; domains are those of the benchmark and are not resampled.

    Returns an Interval: NaN ends where no domain has two IP classes, or two OOP classes, with test
    images and the measure is of that side: one class says nothing of others, however many the
    draws. Raises ValueError if the measure is unknown, there are no runs, or runs of a domain have
    different test images.

    H, areas and calibration errors are taken in each run and then averaged. H of few classes is
    biased downwards, the calibration error upwards, and those of a resample once more: so the
    interval is the basic one (Davison and Hinkley, Bootstrap Methods and their Application, 1997,
    section 5.2), whose ends are the percentiles mirrored at the estimate; the percentile interval
    of H covers far too rarely. Resampling classes and draws at once errs on the side of wide
    intervals: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007.

    Parameters
    ----------
    runs : mapping
        {domain: runs}, one a few-shot draw: a sequence, or a mapping by the draw's number; or
        {domain: {None: run}} of a method that needs no draw.
    measure : str
        One of `MEASURES`.
    resamples, level, seed : int, float, int
        Number of bootstrap samples, coverage, and seed; one seed draws the same classes and
        draws for every method and measure.
    """
    many = _replicates({"": runs}, [measure], resamples, seed)["", measure]
    return _bounded(interval_of(float(many[0]), _mirrored(many), level))


def _mirrored(many: np.ndarray) -> np.ndarray:
    """Replicates mirrored at the estimate, which comes first: their percentiles are basic ends."""
    return 2 * many[0] - many[1:]


def _bounded(found: Interval) -> Interval:
    """The interval within 0..1, where every measure lies; mirrored ends may stick out."""
    return Interval(found.mean, *(float(np.clip(end, 0, 1)) for end in found[1:]))


def compare_joint(
    first: Runs,
    second: Runs,
    measure: str,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """By how much the first of two methods exceeds the second, paired over classes and draws.

    Returns a Comparison with a basic interval, with which ``p`` agrees. NaN ends, share and p as in
    `interval`. Raises ValueError as `interval`, or if the methods differ in domains, test images,
    names or draws.

    Parameters
    ----------
    first, second : mapping
        {domain: runs} on the same test images and draws. A method that needs no draw, such as
        zero-shot, may have a single run by the key None, which is set against every draw of the
        other; one run by any other key is one draw, and wants the same draw of the other.
    measure, resamples, level, seed
        See `interval`.
    """
    many = _replicates({0: first, 1: second}, [measure], resamples, seed)
    return _compared(many[0, measure] - many[1, measure], level)


def _compared(gap: np.ndarray, level: float) -> Comparison:
    """The comparison that a difference and its replicates give."""
    share = comparison_of(float(gap[0]), gap[1:], level).share
    return comparison_of(float(gap[0]), _mirrored(gap), level)._replace(share=share)


def _by_draw(runs: Sequence[JointScores] | Mapping[Any, JointScores]) -> dict[Any, JointScores]:
    if isinstance(runs, JointScores):
        raise ValueError("a single run: put it in a list, one run a few-shot draw")
    own = dict(runs) if isinstance(runs, Mapping) else dict(enumerate(runs))
    if None in own and len(own) > 1:
        raise ValueError("a run by None stands for every draw: leave out the runs of single draws")
    return own


def _domain_runs(methods: Mapping[Any, Runs], domain: str) -> dict[Any, list[JointScores]]:
    """Runs of each method in one domain, draws in one order, checked to be pairs."""
    drawn = {name: _by_draw(runs[domain]) for name, runs in methods.items()}
    if not all(drawn.values()):
        raise ValueError(f"no runs in {domain}: leave the domain out of every method")
    draws = sorted(next((own for own in drawn.values() if None not in own), {None: None}), key=str)
    one = next(iter(drawn.values()))
    test = next(iter(one.values()))
    for name, own in drawn.items():
        which = f" of {name}" if name != "" and len(methods) > 1 else ""
        if None not in own and set(own) != set(draws):
            raise ValueError(
                f"draws {list(own)}{which} in {domain}, draws {draws} of another method: run both "
                "on the same draws, or give {None: run} for a method that needs no draw"
            )
        for draw, run in own.items():
            same = (run.n_ip, run.n_oop) == (test.n_ip, test.n_oop)
            if not same or not np.array_equal(run.labels, test.labels):
                raise ValueError(
                    f"draw {draw}{which} in {domain} has other names or test images: score all "
                    "runs on the same test split, in its order"
                )
    return {
        name: [own[draw] for draw in (own if None in own else draws)] for name, own in drawn.items()
    }


def _resampled(of: _Stack, draws: int, resamples: int, rng: np.random.Generator) -> Any:
    """Weights of classes (1 + resamples, A + B) and of draws (1 + resamples, draws).

    The first row is the sample itself. The others say how often each class or draw is drawn.
    """
    parts = [np.flatnonzero(of.ip), np.flatnonzero(~of.ip)]
    weights = np.ones((1 + resamples, len(of.ip)))
    for part in parts:
        weights[1:, part] = resampled(len(part), resamples, rng)
    shares = np.full((1 + resamples, draws), 1 / draws)
    shares[1:] = resampled(draws, resamples, rng) / draws
    return weights, shares


def _replicates(
    methods: Mapping[Any, Runs], measures: Sequence[str], resamples: int, seed: int
) -> dict[tuple[Any, str], np.ndarray]:
    """(1 + resamples,) values of each method and measure: the estimate, then its replicates."""
    for measure in measures:
        if measure not in _MEASURES:
            raise ValueError(suggest(measure, MEASURES, "measure"))
    domains = sorted(next(iter(methods.values()), ()))
    if not domains or any(sorted(runs) != domains for runs in methods.values()):
        raise ValueError("pass {domain: runs} with at least one domain, the same for every method")
    found = {(name, measure): np.zeros(1 + resamples) for name in methods for measure in measures}
    several: set[str] = set()  # sides on which there are classes to resample
    for domain in domains:
        runs = _domain_runs(methods, domain)
        stacks = {name: _stack(own) for name, own in runs.items()}
        any_stack = next(iter(stacks.values()))
        classes = {"ip": any_stack.ip.sum(), "oop": (~any_stack.ip).sum()}
        several |= {side for side, count in classes.items() if count > 1}
        # A generator of its own for each domain, whichever domains stand beside it.
        rng = np.random.default_rng([seed, *domain.encode()])
        draws = max(map(len, runs.values()))
        weights, shares = _resampled(any_stack, draws, resamples, rng)
        for name, stack in stacks.items():
            own = shares if len(runs[name]) > 1 else 1
            for measure in measures:
                values = _MEASURES[measure](stack, weights)
                found[name, measure] += (values * own).sum(axis=1) / len(domains)
    for (_, measure), replicates in found.items():
        # A measure of images of one side alone begins with it.
        if ({measure.partition("_")[0]} & {"ip", "oop"} or {"ip", "oop"}) - several:
            replicates[1:] = np.nan
    return found


# ---- one table


def protocol_table(
    methods: Mapping[str, Runs],
    reference: str | None = None,
    measures: Sequence[str] = tuple(MEASURES),
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a method and measure, in percent, with intervals and Holm's correction.

    Returns a DataFrame: ``method``, ``measure``, ``value``, ``low``, ``high``; with a reference
    also ``difference`` (the row's method minus the reference), ``difference_low``,
    ``difference_high``, ``p`` and ``p_holm``, which are NaN in the reference's own rows. The family
    of Holm's correction is the rivals of the reference under one measure. Raises ValueError as
    `compare_joint`, or if the reference is not a method, or the resamples are too few for any rival
    to be told apart after Holm's correction.

    Parameters
    ----------
    methods : mapping
        {method: {domain: runs}}, all on the same test images and draws; see `compare_joint`.
    reference : str, optional
        The method that all others are set against.
    measures : sequence of str
        Of `MEASURES`.
    resamples, level, seed : int, float, int
        See `interval`. The smallest p-value is ``2 / (resamples + 1)``, which Holm multiplies
        by the number of rivals.
    """
    if not methods:
        raise ValueError("no methods: pass {method: {domain: runs}}")
    if reference is not None and reference not in methods:
        raise ValueError(suggest(reference, methods, "method"))
    needed = int(np.ceil(2 * (len(methods) - 1) / (1 - level)))
    if reference is not None and resamples < needed:
        raise ValueError(
            f"{resamples} resamples cannot tell {len(methods) - 1} rivals apart: pass at least "
            f"resamples={needed}"
        )
    many = _replicates(methods, measures, resamples, seed)
    rows = []
    for (name, measure), own in many.items():
        row: dict[str, Any] = {"method": name, "measure": measure}
        found = _bounded(interval_of(float(own[0]), _mirrored(own), level))
        row |= values(100 * np.array(found))
        if reference is not None and name != reference:
            paired = _compared(100 * (own - many[reference, measure]), level)
            row |= dict(zip(_DIFFERENCE, (*paired[:3], paired.p), strict=True))
        rows.append(row)
    columns = ["method", "measure", *VALUES]
    columns += _DIFFERENCE if reference is not None else []
    table = pd.DataFrame(rows).reindex(columns=columns)
    if reference is not None:
        table["p_holm"] = table.groupby("measure")["p"].transform(holm)
    return table


_DIFFERENCE = ["difference", "difference_low", "difference_high", "p"]


def displayed(table: pd.DataFrame, differences: bool = False, digits: int = 1) -> pd.DataFrame:
    """The protocol table to be read: a row a method, a column a measure, cells as text.

    Returns a DataFrame: cells such as ``"48.3 [46.1, 50.2]"`` or ``"-3.6 [-5.0, -2.1] p 0.004"``.

    `table` (DataFrame): from `protocol_table`. `differences` (bool): show the differences to the
    reference, with their Holm-adjusted p-value, instead of the values; the reference's own row is
    left out. `digits` (int): decimals of values in percent.
    """
    if differences and "difference" not in table:
        raise ValueError("the table has no differences: call protocol_table with a reference")
    rows = table.dropna(subset=["difference"]) if differences else table
    columns = _DIFFERENCE[:3] if differences else list(VALUES)
    spec, text = f"{'+' * differences}.{digits}f", []
    for _, row in rows.iterrows():
        cell = interval_text(row[columns], spec, spec)
        if differences and np.isfinite(row["p_holm"]):
            cell += f" p {row['p_holm']:.3f}"
        text.append(cell)
    wide = rows.assign(text=text).pivot(index="method", columns="measure", values="text")
    order = list(dict.fromkeys(rows["method"])), list(dict.fromkeys(rows["measure"]))
    return wide.loc[order].rename_axis(index=None, columns=None)


def curve_table(methods: Mapping[str, Runs], points: int = 400) -> pd.DataFrame:
    """Seen-unseen curves of several methods for a figure, in percent.

    Returns a DataFrame: ``method``, ``bias``, ``ip``, ``oop`` and ``own``: true in one row a
    method, the mean of its runs each at its own bias (NaN where these differ).

    `methods` (mapping): {method: {domain: runs}}; the curve of a method is its `mean_curve`.
    `points` (int): points a curve at most, spread evenly along it.
    """
    tables = []
    for name, runs in methods.items():
        curve = mean_curve(runs)
        length = np.append(0, np.cumsum(np.hypot(np.diff(curve.ip), np.diff(curve.oop))))
        wanted = np.linspace(0, length[-1], points)
        chosen = np.unique(np.searchsorted(length, wanted).clip(max=len(length) - 1))
        table = pd.DataFrame({"method": name, **{k: v[chosen] for k, v in curve._asdict().items()}})
        biases = {run.bias for run in _flat(runs)}
        own = {"method": name, "bias": biases.pop() if len(biases) == 1 else np.nan}
        own |= {kind: value(runs, f"{kind}_joint") for kind in ("ip", "oop")}
        tables += [table.assign(own=False), pd.DataFrame([{**own, "own": True}])]
    found = pd.concat(tables, ignore_index=True)
    found[["ip", "oop"]] *= 100
    return found
