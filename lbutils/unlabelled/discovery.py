"""Novel-class discovery: the clusters of unlabelled images, some of which show known classes.

Everything here works on features of a frozen encoder, computed once. `discover` runs any of
`METHODS`, `estimate_k` says how many classes there are, and `gcd_accuracy` how well it went.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.spatial.distance import pdist
from scipy.special import logsumexp
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from lbutils._util import suggest
from lbutils.learn.descent import descend_in_epochs
from lbutils.unlabelled.cluster import _unit, clustering_accuracy, kmeans, matched_hits

# A tree keeps the distances of all pairs: 0.4 GB for this many images.
_LARGEST_TREE = 10_000
# Numbers of clusters are compared on no more images than this.
_LARGEST_SAMPLE = 4_000
# Of distances, beside which those of unit vectors are nothing.
_APART = 1e3
# Below this a softmax over cosines is a maximum.
_COLDEST = 0.01


class Discovery(NamedTuple):
    """Clusters of unlabelled images, some of which stand for labelled classes.

    Attributes
    ----------
    clusters : ndarray, shape (N,), int64
        Cluster of each unlabelled image; it has the largest weight of its row.
    weights : ndarray, shape (N, K), float64
        Soft membership; rows sum to one.
    centres : ndarray, shape (K, D), float64
        Unit rows in the encoder's space: direction of the mean of a cluster's members by weight,
        labelled ones included. A cluster without members stands at the mean of all images.
    known : ndarray, shape (K,), int64
        The labelled class that a cluster stands for, -1 for a new one.
    """

    clusters: np.ndarray
    weights: np.ndarray
    centres: np.ndarray
    known: np.ndarray


class KEstimate(NamedTuple):
    """Number of clusters `k`, and the scores by k, a DataFrame with columns k and score."""

    k: int
    table: pd.DataFrame


class _Problem(NamedTuple):
    """Unit features of both kinds of images; `codes` number the labelled classes from 0.

    `temperature` is that of the softmax over cosines to centres that gives the weights.
    """

    features: np.ndarray
    labelled: np.ndarray
    codes: np.ndarray
    classes: np.ndarray
    seed: int = 0
    temperature: float | None = None

    @property
    def joint(self) -> np.ndarray:
        """All images, ``(M + N, D)``, the labelled first."""
        return np.concatenate([self.labelled, self.features])


def discover(
    features: Any,
    k: int | None = None,
    *,
    labelled: Any = None,
    labels: Any = None,
    method: str = "semi_kmeans",
    seed: int = 0,
    **options: Any,
) -> Discovery:
    """Clusters of unlabelled images, with soft membership, centres and the classes they show.

    Raises ValueError if the method or an option is unknown, `k` is out of range, features are not
    finite, a row is zero, or labelled images and labels do not fit each other.

    Parameters
    ----------
    features : array, shape (N, D)
        Features of unlabelled images; rows are normalised first.
    k : int, optional
        Number of all clusters, of known and of new classes: at least that of labelled classes,
        at most N more; 1 is one cluster of all. None estimates it: the tree methods
        (agglomerative and both mean-shifts) by where to cut their tree, the others by
        `estimate_k`.
    labelled, labels : array, shape (M, D) and (M,), optional
        Features and classes, integers from 0, of labelled images. Without them every method
        works unsupervised.
    method : str
        One of `METHODS`. In ``"semi_kmeans"``, ``"agglomerative"``, ``"mean_shift"`` and
        ``"contrastive_mean_shift"`` a labelled class lies in one cluster, and two never share
        one. ``"gaussian"`` and ``"parametric"`` start from such clusters, one for each class.
        ``"kmeans"`` and ``"spherical"`` do not look at labels; clusters are matched to classes
        afterwards, one to one, so that a class may be left without.
    **options
        Of the method: keyword arguments of its function in `METHODS`. A `temperature` is that of
        the softmax over cosines to centres that gives the weights, fitted if None.
    """
    if method not in METHODS:
        raise ValueError(suggest(method, METHODS, "method"))
    run = METHODS[method]
    known_options = list(inspect.signature(run).parameters)[2:]
    if method != "parametric":
        known_options.append("temperature")
    for option in options:
        if option not in known_options:
            raise ValueError(suggest(option, known_options, f"option of {method}"))
    temperature = options.pop("temperature", None)
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature={temperature}: give a number above 0, or None to fit it")
    problem = _problem(features, labelled, labels)
    problem = problem._replace(seed=seed, temperature=temperature)
    if method in _TREES:
        _check_tree(problem)
    elif k is None:
        known = problem.classes[problem.codes]
        k = estimate_k(features, labelled=problem.labelled, labels=known, seed=seed).k
    if k is not None:
        _check_k(problem, k)
    return run(problem, k, **options)


def _problem(features: Any, labelled: Any = None, labels: Any = None) -> _Problem:
    unit = _checked(features, "features")
    if not len(unit):
        raise ValueError("there are no images to cluster")
    if (labelled is None) != (labels is None):
        raise ValueError("labelled images and their labels go together: give both or neither")
    if labelled is None or not len(labelled):
        labelled = np.empty((0, unit.shape[1]))
    known = np.asarray([] if labels is None else labels)
    others = _checked(labelled, "labelled features")
    if others.shape[1] != unit.shape[1] or known.shape != (len(others),):
        raise ValueError(
            f"labelled features {others.shape} with labels {known.shape} beside features "
            f"{unit.shape}: as wide as these, and one label a row"
        )
    if len(known) and (known.dtype.kind not in "iu" or known.min() < 0):
        raise ValueError("labels must be integers from 0, as -1 stands for a new class")
    classes, codes = np.unique(known.astype(np.int64), return_inverse=True)
    return _Problem(unit, others, codes, classes)


def _checked(features: Any, what: str) -> np.ndarray:
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"{what} of shape {array.shape}: one row an image")
    usable = np.isfinite(array).all(axis=1) & array.any(axis=1)
    if not usable.all():
        raise ValueError(f"{what}: row {np.argmin(usable)} is zero or not finite; drop it")
    return _unit(array)


def _check_k(problem: _Problem, k: int) -> None:
    low, new = max(1, len(problem.classes)), len(problem.features)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise ValueError(f"k={k!r}: give a whole number of clusters, or None to estimate it")
    if not low <= k <= len(problem.classes) + new:
        raise ValueError(
            f"{k} clusters of {new} images and {len(problem.classes)} labelled classes: choose k "
            f"between {low} and {len(problem.classes) + new}"
        )


# ---- from clusters to what is returned


def _linked(problem: _Problem, space: np.ndarray, clusters: np.ndarray, k: int) -> Discovery:
    """Discovery of clusters `(M + N,)` that keep each labelled class together, in a given space."""
    m = len(problem.codes)
    new = np.setdiff1d(np.arange(k), clusters[:m])
    order = np.empty(k, dtype=np.int64)
    order[new] = np.arange(len(problem.classes), k)
    order[clusters[:m]] = problem.codes
    return _softened(problem, space, order[clusters], _known_first(problem, k))


def _known_first(problem: _Problem, k: int) -> np.ndarray:
    """The class of each cluster ``(k,)``, those of labelled classes standing first."""
    return np.pad(problem.classes, (0, k - len(problem.classes)), constant_values=-1)


def _matched(problem: _Problem, clusters: np.ndarray, k: int) -> Discovery:
    """Discovery of clusters `(M + N,)` that were found without a look at the labels."""
    m = len(problem.codes)
    known = np.full(k, -1, dtype=np.int64)
    if m:
        hits = matched_hits(problem.codes, clusters[:m])
        known[clusters[:m][hits]] = problem.classes[problem.codes[hits]]
    return _softened(problem, problem.joint, clusters, known)


def _softened(
    problem: _Problem, space: np.ndarray, clusters: np.ndarray, known: np.ndarray
) -> Discovery:
    """Discovery whose weights are a softmax of cosines to the centres of hard clusters.

    Without a temperature, the one is taken that left-out images ask for: see `_fitted`.
    """
    m, k = len(problem.codes), len(known)
    centres = _unit(_sums(clusters, space, k))
    logits = space[m:] @ centres.T
    logits[:, np.bincount(clusters, minlength=k) == 0] = -np.inf
    rows, own = np.arange(len(logits)), clusters[m:]
    logits[rows, own] = logits.max(axis=1)
    temperature = problem.temperature or _fitted(space, clusters, k)
    weights = np.exp((logits - logits[rows, own, None]) / temperature)
    return _discovery(problem, weights, own, clusters[:m], known)


def _fitted(space: np.ndarray, clusters: np.ndarray, k: int) -> float:
    """Temperature under which images left out of their own centre best find it again."""
    sums, counts = _sums(clusters, space, k), np.bincount(clusters, minlength=k)
    several = np.flatnonzero(counts[clusters] > 1)
    if not len(several) or np.count_nonzero(counts) < 2:
        return _COLDEST
    if len(several) > _LARGEST_SAMPLE:
        several = np.random.default_rng(0).choice(several, _LARGEST_SAMPLE, replace=False)
    own, rows = clusters[several], np.arange(len(several))
    cosines = space[several] @ _unit(sums).T
    cosines[rows, own] = (space[several] * _unit(sums[own] - space[several])).sum(axis=1)
    cosines[:, counts == 0] = -np.inf

    def missed(log_temperature: float) -> float:
        logits = cosines / np.exp(log_temperature)
        return float((logsumexp(logits, axis=1) - logits[rows, own]).mean())

    bounds = (np.log(_COLDEST), 0.0)
    return float(np.exp(minimize_scalar(missed, bounds=bounds, method="bounded").x))


def _discovery(
    problem: _Problem,
    weights: np.ndarray,
    clusters: np.ndarray,
    labelled: np.ndarray,
    known: np.ndarray,
) -> Discovery:
    weights = weights / weights.sum(axis=1, keepdims=True)
    sums = weights.T @ problem.features + _sums(labelled, problem.labelled, len(known))
    lost = np.linalg.norm(sums, axis=1) < 1e-12
    everything = problem.joint.sum(axis=0)
    sums[lost] = everything if np.linalg.norm(everything) > 1e-12 else problem.features[0]
    return Discovery(clusters.astype(np.int64), weights, _unit(sums), known)


def _sums(clusters: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Sum of the rows of each cluster, ``(k, D)``."""
    ones = np.ones(len(rows), dtype=rows.dtype)
    return csr_array((ones, (clusters, np.arange(len(rows)))), shape=(k, len(rows))) @ rows


# ---- k-means in its kinds


def _kmeans(problem: _Problem, k: int, n_init: int = 10) -> Discovery:
    """Discovery by plain k-means on unit features of all images; source: the paper's code."""
    with warnings.catch_warnings():
        # Equal images may be fewer than the clusters, some of which then stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = kmeans(problem.joint, k, problem.seed, n_init)
    return _matched(problem, clusters, k)


def _spherical(problem: _Problem, k: int, n_init: int = 10) -> Discovery:
    """Discovery by spherical k-means on all images; source: Dhillon and Modha 2001."""
    plain = _problem(problem.joint)._replace(seed=problem.seed)
    return _matched(problem, _lloyd(plain, k, n_init), k)


def _semi_kmeans(problem: _Problem, k: int, n_init: int = 10) -> Discovery:
    """Discovery by semi-supervised spherical k-means; source: Vaze et al., CVPR 2022 (GCD)."""
    return _linked(problem, problem.joint, _lloyd(problem, k, n_init), k)


def _lloyd(problem: _Problem, k: int, n_init: int) -> np.ndarray:
    """Clusters of all images, ``(M + N,)``; that of a labelled image is its class's number.

    Each start runs ten steps; the best of them runs to its end, as in the short runs of
    Biernacki, Celeux and Govaert 2003. Ten steps are mostly enough for a few hundred images.
    """
    rng = np.random.default_rng(problem.seed)
    features = problem.features.astype(np.float32)
    labelled = problem.labelled.astype(np.float32)
    starts = []
    for _ in range(max(1, n_init)):
        centres = _plus_plus(features, _sums(problem.codes, labelled, len(problem.classes)), k, rng)
        starts.append(_steps(features, labelled, problem.codes, centres, 10))
    best = min(starts, key=lambda found: found[1])
    clusters, _, _ = _steps(features, labelled, problem.codes, best[2], 100)
    return np.concatenate([problem.codes, clusters])


def _steps(
    features: np.ndarray, labelled: np.ndarray, codes: np.ndarray, centres: np.ndarray, most: int
) -> tuple[np.ndarray, float, np.ndarray]:
    """Clusters `(N,)`, the sum of one less cosine over all images, and centres after Lloyd's steps.

    The clusters are those nearest to the centres that are returned.
    """
    fixed = _sums(codes, labelled, len(centres))
    clusters = np.full(len(features), -1)
    for step in range(most + 1):
        cosines = features @ centres.T
        found = cosines.argmax(axis=1)
        near = cosines[np.arange(len(found)), found]
        if step == most or (found == clusters).all():
            break
        clusters = found
        counts = np.bincount(clusters, minlength=len(centres))
        counts += np.bincount(codes, minlength=len(centres))
        sums = _sums(clusters, features, len(centres)) + fixed
        empty = np.flatnonzero(counts == 0)
        # An empty cluster starts anew at one of the images that lie worst.
        sums[empty] = features[np.argsort(near, kind="stable")[: len(empty)]]
        centres = _unit(sums).astype(np.float32)
    lost = len(features) + len(codes) - near.sum(dtype=np.float64)
    lost -= (labelled * centres[codes]).sum(dtype=np.float64)
    return found, float(lost), centres


def _plus_plus(
    features: np.ndarray, given: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Unit centres `(k, D)`: those given, and images drawn far from all before (greedy k-means++).

    Of more than 4,000 images, or 20 a centre, a random sample is drawn from. Source: Arthur and
    Vassilvitskii 2007, with several trials a draw as in scikit-learn.
    """
    if len(features) > (most := max(_LARGEST_SAMPLE, 20 * k)):
        features = features[rng.choice(len(features), most, replace=False)]
    known = _unit(given).astype(np.float32)
    centres = list(known)
    distance = 1 - (features @ known.T).max(axis=1, initial=-1)
    trials = 2 + int(np.log(k))
    while len(centres) < k:
        # The first is drawn evenly, and so are those left once all images are centres.
        heap = np.cumsum(np.maximum(distance, 0) + 1e-9)
        drawn = np.searchsorted(heap, rng.random(trials) * heap[-1]).clip(max=len(features) - 1)
        tried = np.minimum(distance[:, None], 1 - features @ features[drawn].T)
        best = int(np.maximum(tried, 0).sum(axis=0).argmin())
        distance = tried[:, best]
        centres.append(features[drawn[best]])
    return np.stack(centres)


# ---- a mixture of normal distributions


def _gaussian(
    problem: _Problem,
    k: int,
    dimensions: int = 32,
    covariance: Literal["tied", "spherical"] = "tied",
    n_init: int = 10,
) -> Discovery:
    """Discovery by a mixture of Gaussians on principal components, started at semi-k-means.

    Components of labelled classes start at their images and unlabelled members; the labels play
    no part after that. ``"tied"`` is one covariance for all, ``"spherical"`` a variance for each.
    Weights are not the mixture's, which in many dimensions are all but hard.
    """
    start = _lloyd(problem, k, n_init)
    joint, m = problem.joint, len(problem.codes)
    # A mixture needs as many images as components, and images that differ.
    if len(joint) < max(2, k) or np.ptp(joint, axis=0).max() < 1e-9:
        return _linked(problem, joint, start, k)
    space = PCA(min(dimensions, *joint.shape), svd_solver="full").fit_transform(joint)
    space /= np.sqrt(space.var(axis=0).sum())
    counts = np.bincount(start, minlength=k)
    model = GaussianMixture(
        k,
        covariance_type=covariance,
        reg_covar=1e-4,
        weights_init=(counts + 1) / (counts + 1).sum(),
        means_init=_sums(start, space, k) / np.maximum(counts, 1)[:, None],
        random_state=problem.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.fit(space).predict(space)[m:]
    clusters = np.concatenate([problem.codes, found])
    return _softened(problem, joint, clusters, _known_first(problem, k))


# ---- trees: agglomerative clustering and mean-shift


def _agglomerative(
    problem: _Problem, k: int | None, joining: Literal["ward", "average", "complete"] = "ward"
) -> Discovery:
    """Discovery by agglomerative clustering of unit features with must and cannot links."""
    return _cut(problem, problem.joint, problem.joint, k, joining)


def _mean_shift(
    problem: _Problem, k: int | None, neighbours: int = 8, alpha: float = 0.5
) -> Discovery:
    """Discovery by mean-shift to nearest neighbours, then agglomerative clustering (Ward).

    Source: the inference of Choi, Kang and Cho, CVPR 2024, without their head.
    """
    return _shift_and_cut(problem, problem.joint, k, neighbours, alpha)


def _contrastive_mean_shift(
    problem: _Problem,
    k: int | None,
    neighbours: int = 8,
    alpha: float = 0.5,
    lr: float = 0.05,
    sharpness: float = 0.25,
    supervised: float = 0.35,
    epochs: int = 50,
    dropout: float = 0.2,
    views: Any = None,
    labelled_views: Any = None,
) -> Discovery:
    """Discovery by contrastive mean-shift: a trained head, then mean-shift and Ward's tree.

    The head is a linear map of unit features less their mean, under which an image's views,
    shifted by the share `alpha` to the mean of their neighbours, lie together. `lr` is of SGD down
    a cosine; `sharpness` is the temperature of the contrast, as in the authors' code, and
    `supervised` the weight of that of labelled images; `views`, `labelled_views` and `dropout` are
    those of `_Images`.

    Source: Choi, Kang and Cho, CVPR 2024. Theirs draws labelled and unlabelled images evenly and
    looks for neighbours among augmented views; ours takes all images, in plain view. The trainer
    that the paper's authors released makes more trainable than the paper says: the image tower's
    last block and its last layer norm, besides a head of three layers 768 wide. Here the encoder
    stays as it is and the head is one linear map, so figures "as released" are of another head.
    """
    images = _Images(problem, views, labelled_views, dropout)
    head, _ = _shift_head(
        images, min(neighbours, len(images.plain) - 1), alpha, sharpness, supervised, lr, epochs
    )
    space = _unit(_centred(problem.joint) @ head.T.astype(np.float64))
    return _shift_and_cut(problem, space, k, neighbours, alpha)


def _shift_and_cut(
    problem: _Problem, space: np.ndarray, k: int | None, neighbours: int, alpha: float
) -> Discovery:
    """Discovery from the cut of a tree over shifted features.

    Features shift on as long as the labelled images' accuracy does not fall, with two steps of
    patience, and at most 20 times; once where nothing is labelled.
    """
    m, shifted, best, patience = len(problem.codes), space, -1.0, 0
    kept = _shifted(space, neighbours, alpha)
    if k is None:
        k = _own_k(problem, kept, "ward")
    for _ in range(20 if m else 0):
        clusters = fcluster(linkage(shifted, "ward"), k, "maxclust") if len(shifted) > 1 else [0]
        accuracy = clustering_accuracy(problem.codes, clusters[:m])
        patience = 0 if accuracy > best else patience + 1
        if accuracy >= best:
            best, kept = accuracy, shifted
        if patience == 2:
            break
        shifted = _shifted(shifted, neighbours, alpha)
    return _cut(problem, kept, space, k, "ward")


def _shifted(space: np.ndarray, neighbours: int, alpha: float) -> np.ndarray:
    """Unit rows, each moved by the share `alpha` to the mean of its nearest neighbours."""
    count = min(neighbours, len(space) - 1)
    if count < 1:
        return space
    near = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(space)
    means = space[near.kneighbors(return_distance=False)].mean(axis=1)
    return _unit((1 - alpha) * space + alpha * means)


def _check_tree(problem: _Problem) -> None:
    images = len(problem.features) + len(problem.codes)
    if images > _LARGEST_TREE:
        raise ValueError(
            f"a tree of {images} images compares all pairs: at most {_LARGEST_TREE}; take "
            "'semi_kmeans', 'gaussian' or 'parametric'"
        )


def _cut(
    problem: _Problem, joined: np.ndarray, space: np.ndarray, k: int | None, joining: str
) -> Discovery:
    """Discovery from k clusters of a tree over the rows `joined`, softened in `space`.

    A labelled class enters as copies of its mean, which join first and weigh as many images as
    they are; images of two classes lie so far apart that they never join.
    """
    if k is None:
        k = _own_k(problem, joined, joining)
    m, joined = len(problem.codes), joined.copy()
    if len(joined) == 1:
        return _linked(problem, space, np.zeros(1, dtype=np.int64), k)
    means = _sums(problem.codes, joined[:m], len(problem.classes))
    means /= np.bincount(problem.codes, minlength=len(means))[:, None]
    joined[:m] = means[problem.codes]
    distances = pdist(joined) + 1e-9
    first, second = np.triu_indices(m, 1)
    same = problem.codes[first] == problem.codes[second]
    # Where the pair lies in the condensed form of scipy.
    at = len(joined) * first - first * (first + 1) // 2 + second - first - 1
    distances[at] = np.where(same, 0, _APART)
    clusters = cut_tree(linkage(distances, joining), n_clusters=k)[:, 0]
    return _linked(problem, space, clusters.astype(np.int64), k)


def _own_k(problem: _Problem, rows: np.ndarray, joining: str) -> int:
    """Where to cut a tree that knows no labels, by how well it keeps the labelled classes."""
    low, high = _range_of_k(problem, None)
    if high <= low:
        return max(1, len(problem.classes))
    tree = linkage(rows, joining)

    def score(k: int) -> float:
        return _score(rows, fcluster(tree, k, "maxclust"), problem.codes, problem.seed)

    return _search(score, low, high).k


# ---- trained heads


def _shift_head(
    images: _Images,
    count: int,
    alpha: float,
    temperature: float,
    supervised: float,
    lr: float,
    epochs: int,
) -> tuple[np.ndarray, list[float]]:
    """Map `(D, D)` float32, from the identity, and the mean loss of each epoch.

    See `_contrastive_mean_shift`; without neighbours, `count` of 0, it stays the identity.
    """
    head = torch.eye(images.plain.shape[1], requires_grad=True)

    def losses_of(epoch: int) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            memory = F.normalize(images.plain @ head.T, dim=1)

        def loss_of(batch: Tensor) -> Tensor:
            rows = [F.normalize(view @ head.T, dim=1) for view in images.two_views(batch)]
            shifted = torch.cat([_towards(row, memory, batch, count, alpha) for row in rows])
            pairs = torch.arange(len(batch)).repeat(2)
            loss = _contrast(shifted, pairs, temperature, alone=False) * (1 - supervised)
            own, codes = images.labelled(batch, rows)
            if len(codes):
                loss = loss + _contrast(own, codes, 0.07, alone=True) * supervised
            return loss

        return loss_of

    losses = images.descend(head, losses_of, epochs if count > 0 else 0, 128, lr)
    return head.detach().numpy(), losses


def _towards(rows: Tensor, memory: Tensor, batch: Tensor, count: int, alpha: float) -> Tensor:
    cosines = rows.detach() @ memory.T
    cosines[torch.arange(len(batch)), batch] = -torch.inf
    means = memory[cosines.topk(count, dim=1).indices].mean(dim=1)
    moved = (1 - alpha) * rows + alpha * means
    # The length is a constant to the gradient, as in the authors' code.
    return moved / moved.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)


def _contrast(rows: Tensor, groups: Tensor, temperature: float, alone: bool) -> Tensor:
    """Mean over rows of minus the log-share of others of the same group.

    The share is that of all other rows where `alone` (Khosla et al. 2020), of rows of other
    groups only where not (Choi et al. 2024).
    """
    logits = rows @ rows.T / temperature
    same = groups[:, None] == groups
    itself = torch.eye(len(rows), dtype=torch.bool)
    against = logits.masked_fill(itself if alone else same, -torch.inf)
    # Where all rows are of one group there is nothing to be told from.
    if not alone and bool(same.all()):
        return logits.sum() * 0
    shares = logits - against.logsumexp(dim=1, keepdim=True)
    positive = same & ~itself
    return -((shares * positive).sum(dim=1) / positive.sum(dim=1).clamp_min(1)).mean()


def _parametric(
    problem: _Problem,
    k: int,
    lr: float = 0.1,
    supervised: float = 0.35,
    entropy: float = 2.0,
    epochs: int = 100,
    dropout: float = 0.2,
    n_init: int = 10,
    views: Any = None,
    labelled_views: Any = None,
) -> Discovery:
    """Discovery by a classifier of prototypes that teaches itself.

    Prototypes of unit features less their mean start at the centres of semi-supervised k-means
    (the best of `n_init` starts). An image's sharpened prediction in one view is the target in
    the other; the mean prediction is kept even, with the weight `entropy`, and labelled images
    know theirs, with the weight `supervised`. `lr` is of SGD down a cosine; `views`,
    `labelled_views` and `dropout` are those of `_Images`.

    Source: Wen, Zhao and Qi, ICCV 2023 (SimGCD), whose temperatures and weights these are. Theirs
    start at random and train the encoder's last block too, by contrasts that we need not have.
    """
    images = _Images(problem, views, labelled_views, dropout)
    start = _lloyd(problem, k, n_init)
    first = _unit(_sums(start, images.plain.numpy(), k))
    rows, _ = _prototypes(images, first, supervised, entropy, lr, epochs)
    own = _centred(problem.joint)[len(problem.codes) :]
    logits = own @ rows.T.astype(np.float64) / _STUDENT
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    clusters, known = weights.argmax(axis=1), _known_first(problem, k)
    return _discovery(problem, weights, clusters, problem.codes, known)


def _prototypes(
    images: _Images, start: np.ndarray, supervised: float, entropy: float, lr: float, epochs: int
) -> tuple[np.ndarray, list[float]]:
    """Unit prototypes `(K, D)` float32 and the mean loss of each epoch; see `_parametric`."""
    rows = torch.from_numpy(start).float().requires_grad_()

    def losses_of(epoch: int) -> Callable[[Tensor], Tensor]:
        teacher = 0.07 - 0.03 * min(1.0, epoch / (0.15 * epochs))

        def loss_of(batch: Tensor) -> Tensor:
            unit = F.normalize(rows, dim=1)
            cosines = [view @ unit.T for view in images.two_views(batch)]
            loss = (1 - supervised) * _self_taught(cosines, teacher, entropy)
            told, codes = images.labelled(batch, cosines)
            if len(codes):
                loss = loss + supervised * F.cross_entropy(told / _STUDENT, codes)
            return loss

        return loss_of

    losses = images.descend(rows, losses_of, epochs, 1024, lr)
    return F.normalize(rows.detach(), dim=1).numpy(), losses


_STUDENT = 0.1


def _self_taught(cosines: list[Tensor], teacher: float, entropy: float) -> Tensor:
    """Cross-entropy of each view to the other's sharpened target, plus the unevenness of both."""
    student = [(part / _STUDENT).log_softmax(dim=1) for part in cosines]
    targets = [(part.detach() / teacher).softmax(dim=1) for part in reversed(cosines)]
    pairs = zip(targets, student, strict=True)
    crossed = torch.stack([-(target * log).sum(dim=1).mean() for target, log in pairs]).mean()
    even = torch.cat(student).exp().mean(dim=0)
    return crossed + entropy * (even * (even * len(even) + 1e-12).log()).sum()


class _Images:
    """All images for training, the labelled first: plain, and in two views.

    `views` ``(V, N, D)`` and `labelled_views` ``(V, M, D)`` are features of augmented images: in
    each step an image shows two of these and its plain features. Without them, it shows its
    features twice with a share of `dropout` set to zero.
    """

    def __init__(self, problem: _Problem, views: Any, labelled_views: Any, dropout: float):
        joint = problem.joint
        self.plain = torch.from_numpy(_centred(joint)).float()
        self.codes = torch.from_numpy(problem.codes)
        self.dropout = dropout
        self.generator = torch.Generator().manual_seed(problem.seed)
        self.views = None
        if views is not None:
            stack = _joint_views(problem, views, labelled_views)
            mean = joint.mean(axis=0)
            shown = [_unit(_checked(view, "views") - mean) for view in stack]
            self.views = torch.stack([self.plain, *(torch.from_numpy(v).float() for v in shown)])
        elif labelled_views is not None:
            raise ValueError("labelled_views without views: give both or neither")

    def descend(
        self,
        rows: Tensor,
        losses_of: Callable[[int], Callable[[Tensor], Tensor]],
        epochs: int,
        batch_size: int,
        lr: float,
    ) -> list[float]:
        """Mean loss of each epoch of the authors' SGD over all images."""
        return descend_in_epochs(
            rows,
            len(self.plain),
            losses_of,
            epochs=epochs,
            batch_size=batch_size,
            generator=self.generator,
            lr=lr,
            optimizer="sgd",
            weight_decay=5e-4,
        )

    def labelled(self, batch: Tensor, seen_twice: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of a batch's rows in two views those of labelled images, and their classes."""
        known = batch < len(self.codes)
        own = torch.cat([rows[known] for rows in seen_twice])
        return own, self.codes[batch[known]].repeat(2)

    def two_views(self, batch: Tensor) -> list[Tensor]:
        """Unit features of a batch, seen twice."""
        if self.views is None:
            kept = torch.rand(2, len(batch), self.plain.shape[1], generator=self.generator)
            seen = self.plain[batch] * (kept >= self.dropout)
            return list(F.normalize(seen, dim=2))
        drawn = torch.rand(len(batch), len(self.views), generator=self.generator)
        first, second = drawn.topk(2, dim=1).indices.T
        return [self.views[first, batch], self.views[second, batch]]


def _joint_views(problem: _Problem, views: Any, labelled_views: Any) -> np.ndarray:
    shown = np.asarray(views, dtype=np.float64)
    if shown.ndim != 3 or not len(shown) or shown.shape[1:] != problem.features.shape:
        raise ValueError(
            f"views of shape {shown.shape}: (V, {', '.join(map(str, problem.features.shape))})"
        )
    # Labelled images without views of their own show their plain features.
    others = np.broadcast_to(problem.labelled, (len(shown), *problem.labelled.shape))
    if labelled_views is not None:
        others = np.asarray(labelled_views, dtype=np.float64)
    if others.shape != (len(shown), *problem.labelled.shape):
        raise ValueError(f"labelled_views of shape {others.shape}: as many views as of the others")
    return np.concatenate([others, shown], axis=1)


def _centred(rows: np.ndarray) -> np.ndarray:
    """Unit rows less their mean: encoders of images put all of them into a narrow cone."""
    return _unit(rows - rows.mean(axis=0))


# ---- how many, and how well


def estimate_k(
    features: Any,
    *,
    labelled: Any = None,
    labels: Any = None,
    largest: int | None = None,
    method: str = "semi_kmeans",
    seed: int = 0,
) -> KEstimate:
    """Number of clusters of all images, known and new, and the scores from which it follows.

    Half of the labelled classes are treated as unlabelled, then the other half. The score of a k
    is the clustering accuracy of the classes so hidden, plus the silhouette (cosine) of all images
    without a label, these included. Where fewer than two classes are labelled it is the silhouette
    alone. The best k is looked for on a geometric grid, then more finely around the best.

    Returns a KEstimate: where nothing can be compared, as with two images or with images all alike,
    k is that of the labelled classes, at least 1, and scores are NaN or none. Raises ValueError as
    in `discover`, and if `largest` is smaller than the number of labelled classes.

    Source: accuracy on labelled classes is Vaze et al., CVPR 2022; hidden classes and silhouette
    together are Han, Vedaldi and Zisserman, ICCV 2019 (DTC).

    Parameters
    ----------
    features, labelled, labels, seed
        As in `discover`. Above 4,000 unlabelled images a random sample speaks for all.
    largest : int, optional
        Largest k to consider; by default one new class for every four images, and two at
        least, beside the labelled classes.
    method : str
        The method of `METHODS` that is run for each k.
    """
    if method not in METHODS:
        raise ValueError(suggest(method, METHODS, "method"))
    problem = _problem(features, labelled, labels)
    low, high = _range_of_k(problem, largest)
    fallback = max(1, len(problem.classes))
    if high < low:
        return KEstimate(fallback, pd.DataFrame({"k": [], "score": []}))
    problem, rng = problem._replace(seed=seed), np.random.default_rng(seed)
    if len(problem.features) > _LARGEST_SAMPLE:
        drawn = np.sort(rng.choice(len(problem.features), _LARGEST_SAMPLE, replace=False))
        problem = problem._replace(features=problem.features[drawn])
    order = rng.permutation(len(problem.classes))
    halves = [order[::2], order[1::2]] if len(order) > 1 else [order[:0]]
    options = {"n_init": 3} if "n_init" in inspect.signature(METHODS[method]).parameters else {}

    def score(k: int) -> float:
        return float(np.mean([_hidden(problem, half, k, method, options) for half in halves]))

    found = _search(score, low, min(high, len(problem.classes) + len(problem.features)))
    return found if found.table["score"].notna().any() else found._replace(k=fallback)


def _range_of_k(problem: _Problem, largest: int | None) -> tuple[int, int]:
    c, n = len(problem.classes), len(problem.features)
    if largest is None:
        largest = c + max(n // 4, 2)
    if largest < max(1, c):
        raise ValueError(f"largest={largest} is below the {c} labelled classes: choose more")
    # A silhouette needs two clusters, and fewer of them than images.
    return max(2, c), min(largest, len(problem.codes) + n - 1, c + n)


def _hidden(
    problem: _Problem, half: np.ndarray, k: int, method: str, options: dict[str, int]
) -> float:
    """Score of a k when the labels of the classes in `half` are hidden."""
    hide = np.isin(problem.codes, half)
    told = {
        "labelled": problem.labelled[~hide],
        "labels": problem.classes[problem.codes[~hide]],
    }
    mixed = np.concatenate([problem.labelled[hide], problem.features])
    found = discover(mixed, k, **told, method=method, seed=problem.seed, **options).clusters
    return _score(mixed, found, problem.codes[hide], problem.seed)


def _score(rows: np.ndarray, clusters: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Silhouette of all rows, plus the accuracy of the first, if any have labels; NaN without."""
    if not 1 < len(np.unique(clusters)) < len(rows):
        return float("nan")
    sample = None if len(rows) <= 2000 else 2000
    try:
        smooth = silhouette_score(
            rows, clusters, metric="cosine", sample_size=sample, random_state=seed
        )
    except ValueError:  # each image of the sample is a cluster
        return float("nan")
    if not len(labels):
        return float(smooth)
    return float(clustering_accuracy(labels, clusters[: len(labels)]) + smooth)


def _search(score: Callable[[int], float], low: int, high: int) -> KEstimate:
    """Best k between two bounds, and all scores: a geometric grid, then finer ones about the best.

    Ties go to the smallest k.
    """
    scores: dict[int, float] = {}
    grid = np.unique(np.geomspace(low, high, 14).round().astype(int))
    for _ in range(8):
        for k in grid:
            if int(k) not in scores:
                scores[int(k)] = score(int(k))
        ks = sorted(scores)
        values = np.array([scores[k] for k in ks])
        at = 0 if np.isnan(values).all() else int(np.nanargmax(values))
        left, right = ks[max(at - 1, 0)], ks[min(at + 1, len(ks) - 1)]
        grid = np.unique(np.linspace(left, right, 9).round().astype(int))
        if all(int(k) in scores for k in grid):
            break
    return KEstimate(ks[at], pd.DataFrame({"k": ks, "score": values}))


def gcd_accuracy(labels: Any, clusters: Any, new: Any) -> dict[str, float]:
    """Accuracies of all, old and new classes; each key names how clusters were matched to classes.

    Arguments are ``(N,)``: true classes and clusters of the unlabelled images, and whether an image
    is of a new class.

    Raises ValueError if the three are empty or not equally long, or a class is both old and new.

    Source: Vaze et al., CVPR 2022, whose code calls them v2 and v1. Where several matches put as
    many images right, ``all_global`` is that of each, but ``old_global`` and ``new_global`` are
    those of the one that the solver finds, here as there.

    Returns
    -------
    dict
        ``all_global``, ``old_global``, ``new_global``: under one best match over all images, so
        that a cluster serves one class only. ``old_per_subset``, ``new_per_subset``: each subset
        matched by itself, which is never lower, and ``all_per_subset``, the mean of these two
        weighted by images. NaN for a subset without images.
    """
    true, found, fresh = np.asarray(labels), np.asarray(clusters), np.asarray(new, dtype=bool)
    hits = matched_hits(true, found)
    if fresh.shape != hits.shape:
        raise ValueError(f"{len(hits)} labels and {fresh.size} marks of new ones: one a sample")
    if both := set(true[fresh].tolist()) & set(true[~fresh].tolist()):
        raise ValueError(f"class {sorted(both, key=str)[0]} is both old and new: mark it as one")
    values = {"all_global": float(hits.mean())}
    sides = {"old": ~fresh, "new": fresh}
    for side, mask in sides.items():
        values[f"{side}_global"] = float(hits[mask].mean()) if mask.any() else float("nan")
    for side, mask in sides.items():
        each = clustering_accuracy(true[mask], found[mask]) if mask.any() else float("nan")
        values[f"{side}_per_subset"] = each
    share = float(fresh.mean())
    parts = (values["old_per_subset"], 1 - share), (values["new_per_subset"], share)
    values["all_per_subset"] = sum(part * weight for part, weight in parts if weight)
    return values


METHODS: dict[str, Callable[..., Discovery]] = {
    "kmeans": _kmeans,
    "spherical": _spherical,
    "semi_kmeans": _semi_kmeans,
    "gaussian": _gaussian,
    "agglomerative": _agglomerative,
    "mean_shift": _mean_shift,
    "contrastive_mean_shift": _contrastive_mean_shift,
    "parametric": _parametric,
}
_TREES = ("agglomerative", "mean_shift", "contrastive_mean_shift")
