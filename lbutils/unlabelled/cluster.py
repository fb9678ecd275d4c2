"""Do images of one concept lie together? k-means, clustering accuracy and margins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.metrics.cluster import contingency_matrix


def kmeans(
    features: Any, k: int, seed: int = 0, n_init: int = 10, normalise: bool = True
) -> np.ndarray:
    """Cluster of each sample, ``(N,)`` int64, by k-means on features of unit length.

    Raises ValueError if there are fewer samples than clusters.

    Parameters
    ----------
    features : array, shape (N, D)
        Rows are normalised first, unless `normalise` is false. The paper's Table 1 is of features
        as the model gives them, those of `lbutils.models.encoders.Unnormalised`.
    k, seed, n_init : int
        Clusters; seed; k-means++ starts, of which the best is kept.
    """
    rows = _unit(features) if normalise else np.asarray(features, dtype=np.float64)
    if not 1 <= k <= len(rows):
        raise ValueError(f"{k} clusters of {len(rows)} samples: choose k between 1 and N")
    fitted = KMeans(k, n_init=n_init, random_state=seed).fit(rows)
    return fitted.labels_.astype(np.int64)


def clustering_accuracy(labels_true: Any, labels_pred: Any) -> float:
    """Share of samples, between 0 and 1, under the best one-to-one match of clusters to classes.

    The number of clusters may differ from the number of classes; samples of a cluster or a
    class without partner count as wrong. Both are ``(N,)``, of any values.

    Raises ValueError if the two are empty or not equally long. Source: the measure of the paper's
    Table 1; Hungarian method, Kuhn 1955.
    """
    return float(matched_hits(labels_true, labels_pred).mean())


def matched_hits(labels_true: Any, labels_pred: Any) -> np.ndarray:
    """Which samples, ``(N,)`` bool, lie in the cluster that is matched to their class.

    Parameters and errors are those of `clustering_accuracy`, of which this is the mean.
    """
    _, true = np.unique(np.asarray(labels_true), return_inverse=True)
    _, pred = np.unique(np.asarray(labels_pred), return_inverse=True)
    if len(true) != len(pred) or not len(true):
        raise ValueError(f"{len(true)} labels and {len(pred)} clusters: one of each per sample")
    partner = np.full(pred.max() + 1, -1)
    rows, columns = linear_sum_assignment(contingency_matrix(pred, true), maximize=True)
    partner[rows] = columns
    return partner[pred] == true


def equal_draws(
    first: Any, second: Any, resamples: int = 10, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Samples of two sides with as many classes, and as many images, on one as on the other.

    Clustering accuracy falls with the number of classes and depends on their sizes, so two
    sets of classes are compared on equal terms only. In each draw both sides give K classes at
    random, K the smaller of their numbers; classes are paired by size, the largest with the
    largest, and both of a pair give as many images at random as the smaller of them has.

    `first` ``(N,)`` and `second` ``(M,)`` are the classes of either side's samples. Returns
    ascending indices into both, one pair for each of the `resamples`.
    """
    rng = np.random.default_rng(seed)
    sides = [np.asarray(first), np.asarray(second)]
    members = [[np.flatnonzero(side == c) for c in np.unique(side)] for side in sides]
    k = min(map(len, members))
    draws = []
    for _ in range(resamples):
        chosen = [[own[i] for i in rng.permutation(len(own))[:k]] for own in members]
        paired = list(zip(*(sorted(own, key=len) for own in chosen), strict=True))
        sizes = [min(map(len, pair)) for pair in paired]
        picked = [
            [
                rng.choice(pair[side], size, replace=False)
                for pair, size in zip(paired, sizes, strict=True)
            ]
            for side in (0, 1)
        ]
        draws.append((np.sort(np.concatenate(picked[0])), np.sort(np.concatenate(picked[1]))))
    return draws


def class_hits(
    labels: Any, draws: Sequence[np.ndarray], clusters: Sequence[np.ndarray], classes: int
) -> np.ndarray:
    """Share of each class's images that clustering puts right, ``(C,)``; NaN for those not drawn.

    Clustering accuracy, class by class, is what a bootstrap over classes needs. `labels` ``(N,)``
    are integers below `classes`, which is C; `draws` are indices into them of the samples that were
    clustered together, `clusters` their clusters.
    """
    y = np.asarray(labels)
    hits, images = np.zeros(classes), np.zeros(classes)
    for drawn, found in zip(draws, clusters, strict=True):
        hits += np.bincount(y[drawn], matched_hits(y[drawn], found), minlength=classes)
        images += np.bincount(y[drawn], minlength=classes)
    return np.divide(hits, images, out=np.full(classes, np.nan), where=images > 0)


def clustering_report(features: Any, labels: Any, seed: int = 0) -> dict[str, float]:
    """Clustering of images against their classes: accuracy, nmi, ari, silhouette and margin.

    k-means on features ``(N, D)`` is given the number of classes in labels ``(N,)``, as in the
    paper. Source: its section 4.2 (Table 1: accuracy); the other measures are ours.

    Returns
    -------
    dict
        ``accuracy``, ``nmi`` and ``ari`` compare k-means with the classes; ``silhouette``
        (cosine) and ``margin`` (see `separation_margin`) need no clustering. A value that
        is undefined, as with one class, is NaN.
    """
    unit = _unit(features)
    _, classes = np.unique(np.asarray(labels), return_inverse=True)
    k = int(classes.max()) + 1
    clusters = kmeans(unit, k, seed)
    defined = 1 < k < len(unit)
    return {
        "accuracy": clustering_accuracy(classes, clusters),
        "nmi": float(normalized_mutual_info_score(classes, clusters)),
        "ari": float(adjusted_rand_score(classes, clusters)),
        "silhouette": float(silhouette_score(unit, classes, metric="cosine"))
        if defined
        else float("nan"),
        "margin": float(np.nanmean(separation_margin(unit, classes))) if k > 1 else float("nan"),
    }


def tsne(features: Any, seed: int = 0, perplexity: float = 20.0) -> np.ndarray:
    """Coordinates ``(N, 2)`` of a t-SNE map on cosine distances, started from the two first PCs.

    The perplexity is lowered where there are too few samples for it. Raises ValueError if there are
    fewer than 4. Source: the paper's Figure 3; van der Maaten and Hinton 2008.
    """
    unit = _unit(features)
    if len(unit) < 4:
        raise ValueError(f"a t-SNE map needs at least 4 samples, not {len(unit)}")
    # On unit vectors Euclidean distance orders pairs as cosine does, and it is faster.
    fitting = min(perplexity, (len(unit) - 1) / 3)
    # The first PCs are divided by their spread, in float32; without any, scikit-learn divides by
    # zero and its tree of points overflows the stack.
    flat = min(np.ptp(unit.astype(np.float32), axis=0).max(), unit.shape[1] - 1) < 1e-6
    start = "random" if flat else "pca"
    model = TSNE(2, perplexity=fitting, init=start, random_state=seed, learning_rate="auto")
    return model.fit_transform(unit)


def separation_margin(features: Any, labels: Any) -> np.ndarray:
    """Margin of each sample, ``(N,)``: cosine to its own class less the nearest other class.

    Classes stand as the direction of their mean; the sample itself is left out of its own.
    Positive means that the nearest-centre rule gets the sample right. NaN where a class has
    no other sample. Rows of the features ``(N, D)`` are normalised first; raises ValueError if
    there are fewer than two classes.
    """
    unit = _unit(features)
    _, classes = np.unique(np.asarray(labels), return_inverse=True)
    k = int(classes.max()) + 1
    if k < 2:
        raise ValueError("a margin needs at least two classes")
    sums = np.zeros((k, unit.shape[1]))
    np.add.at(sums, classes, unit)
    others = unit @ _unit(sums).T
    others[np.arange(len(unit)), classes] = -np.inf
    own = (unit * _unit(sums[classes] - unit)).sum(axis=1)
    own[np.bincount(classes)[classes] < 2] = np.nan
    return own - others.max(axis=1)


def _unit(features: Any) -> np.ndarray:
    array = np.asarray(features, dtype=np.float64)
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
