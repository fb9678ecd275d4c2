"""Which name a cluster gets, if any: one-to-one, by optimal transport, or the nearest."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp, softmax

from lbutils._util import suggest

ASSIGNERS = ("hungarian", "sinkhorn", "nearest")
GAPS = ("none", "mean")


class Assignment(NamedTuple):
    """Names of K clusters.

    Attributes
    ----------
    names : ndarray, shape (K,), int64
        Name of each cluster, -1 for none.
    confidence : ndarray, shape (K,), float64
        Between 0 and 1: the share of a cluster's row of `plan` that its name has; 0 without name.
    plan : ndarray, shape (K, C), float64
        How much of a cluster goes to each name; rows sum to one, or to zero without a name.
    """

    names: np.ndarray
    confidence: np.ndarray
    plan: np.ndarray


def similarities(
    centres: Any, prototypes: Any, gap: str = "none", normalise: bool = True
) -> np.ndarray:
    """Cosines ``(K, C)`` of clusters' centres ``(K, D)`` and names' prototypes ``(C, D)``.

    Raises ValueError if shapes do not fit, a value is not finite, or `gap` is unknown.

    Parameters
    ----------
    gap : "none" or "mean"
        ``"mean"`` takes the mean of either side from it first, so that the modality gap between
        images and texts does not decide (Liang et al. 2022). Sides of one row are left as they are.
    normalise : bool
        Without it the result is dot products, which the released code matches by.
    """
    sides = []
    for what, rows in (("centres", centres), ("prototypes", prototypes)):
        side = np.asarray(rows, dtype=np.float64)
        if side.ndim != 2 or not np.isfinite(side).all():
            raise ValueError(f"{what} of shape {side.shape}: finite numbers (rows, D) are wanted")
        sides.append(side)
    if sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(f"centres {sides[0].shape} and prototypes {sides[1].shape} differ in D")
    if gap not in GAPS:
        raise ValueError(suggest(gap, GAPS, "correction of the modality gap"))
    if gap == "mean":
        sides = [side - side.mean(axis=0) if len(side) > 1 else side for side in sides]
    if not normalise:
        return sides[0] @ sides[1].T
    lengths = [np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in sides]
    return (sides[0] / lengths[0]) @ (sides[1] / lengths[1]).T


def assign(
    similarity: Any,
    method: str = "hungarian",
    *,
    temperature: float = 0.05,
    slack: float = 1.0,
    shares: Any = None,
    floor: float = 0.0,
) -> Assignment:
    """Names of clusters, from how similar clusters and names are.

    Raises ValueError if the similarity is not a finite matrix of one cluster and one name at least,
    or an argument is unknown or out of range. Source: maximum-weight bipartite matching is the
    paper's (section 5.3); entropic transport is Cuturi 2013, with relaxed marginals Chizat et al.
    2018.

    Parameters
    ----------
    similarity : array, shape (K, C)
        Rows are clusters, columns names.
    method : str
        ``"hungarian"``: the one-to-one matching of largest total similarity; with more clusters
        than names some stay without one. ``"sinkhorn"``: entropic optimal transport of clusters
        onto names, whose `plan` is soft; several clusters may share a name. ``"nearest"``: each
        cluster its most similar name.
    temperature : float
        Of the softmax over similarities, from which plans and confidences come.
    slack : float
        For ``"sinkhorn"``: how far names may miss their share of the clusters. 0 makes each
        name take its share to the full, as far as 1,000 iterations get at this temperature; 1 asks
        half of it (in logarithms); infinity asks nothing, so that each row is a softmax.
        Distractors, names without a cluster, need slack.
    shares : array, shape (C,), optional
        What share of the clusters a name may expect; all the same by default. It enters soft
        plans and confidences, and the Hungarian matching as a bonus of `temperature` times its
        logarithm.
    floor : float
        Clusters with less confidence get no name.
    """
    scores = np.asarray(similarity, dtype=np.float64)
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"similarities {scores.shape}: wanted is a finite matrix (K, C)")
    if method not in ASSIGNERS:
        raise ValueError(suggest(method, ASSIGNERS, "method"))
    if not temperature > 0 or not slack >= 0:
        raise ValueError("temperature must be above 0, and slack not below")
    expected = np.full(scores.shape[1], 1.0) if shares is None else np.asarray(shares, float)
    if expected.shape != scores.shape[1:] or not (
        np.isfinite(expected).all() and (expected >= 0).all() and expected.any()
    ):
        raise ValueError(f"shares {expected.shape}: one for each of {scores.shape[1]} names")
    expected = np.maximum(expected / expected.sum(), 1e-12)
    scaled = scores / temperature + np.log(expected)
    if method == "sinkhorn":
        plan = _transport(scores / temperature, expected, slack)
    else:
        plan = softmax(scaled, axis=1)
    names = plan.argmax(axis=1)
    if method == "hungarian":
        rows, columns = linear_sum_assignment(scaled, maximize=True)
        names = np.full(len(scores), -1)
        names[rows] = columns
    confidence = np.where(names < 0, 0.0, plan[np.arange(len(plan)), names])
    names = np.where(confidence < floor, -1, names)
    plan = np.where(names[:, None] < 0, 0.0, plan)
    return Assignment(names.astype(np.int64), np.where(names < 0, 0.0, confidence), plan)


def _transport(scores: np.ndarray, expected: np.ndarray, slack: float) -> Any:
    """Rows, each summing to one, of the relaxed entropic plan for scores over temperature.

    Where the columns are to be met to the full, iterations stop when they are, to 1e-9.
    """
    power = 1 / (1 + slack)
    wanted = np.log(expected * len(scores))
    columns = np.zeros(scores.shape[1])
    for _ in range(1000):
        rows = -logsumexp(scores + columns, axis=1)
        update = power * (wanted - logsumexp(scores + rows[:, None], axis=0))
        moved = np.abs(update - columns).max()
        columns = update
        if moved < 1e-9:
            break
    return softmax(scores + columns, axis=1)


def risk_coverage(confidence: Any, right: Any) -> pd.DataFrame:
    """Error among the answers that are given, over how many are given, the surest first.

    Answers of at least a threshold's confidence are given, so that equal confidences enter
    together: DataFrame of ``threshold``, ``coverage``, ``risk`` by falling threshold. Both
    arguments are ``(N,)``.

    Raises ValueError if there are none, or they do not fit each other or are not finite. Source:
    El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017.
    """
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if sure.ndim != 1 or sure.shape != hits.shape or not len(sure) or not np.isfinite(sure).all():
        raise ValueError(f"{sure.shape} confidences and {hits.shape} outcomes: one each an answer")
    table = pd.DataFrame({"threshold": sure, "wrong": ~hits})
    table = table.groupby("threshold")["wrong"].agg(["sum", "count"]).iloc[::-1].cumsum()
    given = table["count"].to_numpy()
    return pd.DataFrame(
        {
            "threshold": table.index.to_numpy(),
            "coverage": given / len(sure),
            "risk": table["sum"].to_numpy() / given,
        }
    )


def aurc(confidence: Any, right: Any) -> float:
    """Area under the risk-coverage curve, between 0 and 1; the smaller the better.

    Mean over answers, surest first, of the error up to and with it; arguments and errors as in
    `risk_coverage`. Equal confidences share the error of all of them.
    """
    table = risk_coverage(confidence, right)
    steps = np.diff(table["coverage"].to_numpy(), prepend=0.0)
    return float((steps * table["risk"]).sum())
