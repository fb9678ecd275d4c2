"""Rivals of learning names without a shot: TransCLIP, S3A, ConSE and DeViSE on cached features.

All of `TRANSDUCTIVE` are fitted alike, on unlabelled images and what is known of names, and give
logits over the joint vocabulary: known names first, then candidates. None sees a label of the
unlabelled images, and none runs an encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from torch import Tensor

from lbutils.learn.descent import descend_in_epochs
from lbutils.models.classifier import Estimator, check_labelled, unit_rows
from lbutils.models.classifier import logits as cosine_logits
from lbutils.unlabelled.discovery import discover

# Rows of images against all others at a time: 0.2 GB for 20,000 images.
_BLOCK = 2500
# A direction in which no image of a class differs has no variance to divide by.
_LEAST_VARIANCE = 1e-8
_T = TypeVar("_T", bound="TransductiveClassifier")


class _Given(NamedTuple):
    """What a rival is fitted on, checked; `names` and `vectors` are those of known names first."""

    pool: Tensor
    names: Tensor
    n_known: int
    labelled: Tensor
    labels: Tensor
    vectors: Tensor


@dataclass(eq=False)
class TransductiveClassifier(Estimator):
    """Base of all: checks what it is given, and asks a subclass for `_fit` and `_logits`.

    `scale` (float): the encoder's ``logit_scale``.

    Attributes
    ----------
    pool_logits_ : Tensor, shape (N, A + C)
        Logits of the images that it was fitted on. Only TransCLIP's differ from what `logits`
        says of the same images.
    """

    scale: float
    seed: int = 0
    pool_logits_: Tensor = field(init=False, repr=False)
    _positive: ClassVar[tuple[str, ...]] = ("scale",)
    _by_words: ClassVar[bool] = False

    def fit(
        self: _T,
        pool: Any,
        texts: Any,
        known: Any = None,
        labelled: Any = None,
        labels: Any = None,
        vectors: tuple[Any, Any] | None = None,
    ) -> _T:
        """Self, fitted.

        Raises ValueError if there is no image, or one name alone; if shapes do not fit, rows are
        not finite or not of unit length, labels are not rows of `known`; or the method lacks what
        it needs.

        Parameters
        ----------
        pool : Tensor or array, shape (N, D)
            Unit features of unlabelled images of known and new classes, or of new ones only.
        texts : Tensor or array, shape (C, D)
            Unit prototypes of the candidate names, from any source.
        known : Tensor or array, shape (A, D), optional
            Unit text features of known names. Without them the vocabulary is the candidates.
        labelled, labels : shape (M, D) and (M,), optional
            Unit features of images of known classes, and their rows in `known`. DeViSE's only.
        vectors : (known, candidates), shape (A, W) and (C, W), optional
            Word vectors of the names, of any length but zero. Of ConSE and DeViSE only.
        """
        given = _given(pool, texts, known, labelled, labels, vectors)
        if self._by_words and (vectors is None or given.n_known < 2):
            raise ValueError(
                f"{type(self).__name__} goes by known names and word vectors: pass known=, two or "
                "more, and vectors=(theirs, those of candidates)"
            )
        self._width = given.pool.shape[1]
        self._fit(given)
        self.pool_logits_ = self._pool_logits(given.pool)
        return self

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, A + C)`` float32 over the joint vocabulary, of images seen before or not.

        Images are unit features ``(N, D)`` as wide as those that it was fitted on.
        """
        self.pool_logits_  # noqa: B018 - raises where nothing was fitted
        return self._logits(unit_rows(images, "images", self._width))

    def predict(self, images: Any) -> np.ndarray:
        """Place in the joint vocabulary ``(N,)`` int64 of the highest logits, as in `logits`."""
        return self.logits(images).argmax(dim=1).numpy()

    def _fit(self, given: _Given) -> None:
        raise NotImplementedError

    def _logits(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def _pool_logits(self, pool: Tensor) -> Tensor:
        return self._logits(pool)


def _given(pool: Any, texts: Any, known: Any, labelled: Any, labels: Any, vectors: Any) -> _Given:
    images = unit_rows(pool, "pool")
    if not len(images):
        raise ValueError("the pool holds no image: transduction needs unlabelled images")
    width = images.shape[1]
    candidates = unit_rows(texts, "texts", width)
    old = unit_rows(np.empty((0, width)) if known is None else known, "known", width)
    names = torch.cat([old, candidates])
    if len(names) < 2:
        raise ValueError(f"{len(names)} names in all: an image needs two or more to choose from")
    shown = check_labelled(labelled, labels, len(old), width)
    words = torch.empty(0) if vectors is None else _words(vectors, len(old), len(candidates))
    return _Given(images, names, len(old), *shown, words)


def _words(vectors: Any, n_known: int, n_candidates: int) -> Tensor:
    """Word vectors of unit length, of known names and then of candidates."""
    if len(vectors) != 2:
        raise ValueError("vectors must be a pair: those of known names, those of candidates")
    old, new = (np.array(part, dtype=np.float32) for part in vectors)
    if old.ndim != 2 or (len(old), new.shape) != (n_known, (n_candidates, old.shape[1])):
        raise ValueError(
            f"word vectors {old.shape} of {n_known} known names and {new.shape} of "
            f"{n_candidates} candidates: one each, equally wide"
        )
    words = F.normalize(torch.from_numpy(np.concatenate([old, new])), dim=1)
    return unit_rows(words, "word vectors")


# ---- TransCLIP


@dataclass(eq=False)
class TransCLIP(TransductiveClassifier):
    """Gaussian mixture of the pool that is held to the texts, and to agree among neighbours.

    Each class is a Gaussian about a unit mean, all with one diagonal covariance. An image's
    assignment z weighs its likelihood, the zero-shot probabilities, and the assignments of the
    images nearest to it, in turn with means and variances. Nothing is drawn.

    Source: Zanella, Gérin and Ben Ayed 2024, "Boosting vision-language models with transduction",
    NeurIPS; the zero-shot variant and all constants of the released code, which divides the
    log-likelihood by 50 and the sum over neighbours, counted both ways, by twice their number.
    Labelled images are not looked at, as there. Ours: images not in the pool get the posterior
    under the final means, variances and the text term, without neighbours; an affinity below 0 is 0
    (the paper's formula, not the code's); a class that lost all images keeps its mean; a variance
    has a floor.

    Parameters
    ----------
    text_weight, likelihood_weight : float
        Of the divergence from zero-shot probabilities (lambda), and of the log-likelihood.
    neighbours : int
        Neighbours of an image; 0 leaves the term out.
    confident : int
        Images whose weighted mean a class's mean starts from.
    iterations, inner : int
        Updates of means and variances, and of assignments between them.

    Attributes
    ----------
    pool_logits_ : Tensor, shape (N, A + C)
        Logarithm of the final assignments: the transductive result.
    means_, variances_ : Tensor, shape (A + C, D) and (D,)
    """

    text_weight: float = 1.0
    likelihood_weight: float = 0.02
    neighbours: int = 3
    confident: int = 8
    iterations: int = 10
    inner: int = 5

    _counts: ClassVar[tuple[str, ...]] = ("confident", "inner")

    def _fit(self, given: _Given) -> None:
        pool, self._names = given.pool, given.names
        graph = _affinities(pool, self.neighbours)
        logs = cosine_logits(pool, self._names, self.scale).log_softmax(dim=1)
        sure, rows = logs.topk(min(self.confident, len(pool)), dim=0)
        # Divided by the largest, as the probabilities of a rare class may all vanish.
        weights = (sure - sure[0]).exp()
        self.means_ = F.normalize(torch.einsum("nc,ncd->cd", weights, pool[rows]), dim=1)
        self.variances_ = torch.full((pool.shape[1],), 1 / pool.shape[1])
        squares = pool.double().square().mean(dim=0)
        for step in range(self.iterations + 1):
            evidence = self._evidence(pool)
            logs = _update_assignments(evidence, logs.exp(), graph, self.neighbours, self.inner)
            if step < self.iterations:
                self._update_gaussians(logs.exp(), pool, squares)
        self._final = logs

    def _update_gaussians(self, z: Tensor, pool: Tensor, squares: Tensor) -> None:
        sums, held = (z.T @ pool).double(), z.sum(dim=0).double()[:, None]
        there = sums.norm(dim=1, keepdim=True) > 1e-12
        self.means_ = torch.where(there, F.normalize(sums, dim=1).float(), self.means_)
        means = self.means_.double()
        spread = squares + (held * means.square() - 2 * means * sums).sum(dim=0) / len(pool)
        self.variances_ = spread.clamp(min=_LEAST_VARIANCE).float()

    def _evidence(self, images: Tensor) -> Tensor:
        """Weighted log of zero-shot probability and of likelihood, but for a constant a row."""
        texts = cosine_logits(images, self._names, self.scale).log_softmax(dim=1)
        scaled = self.means_ / self.variances_
        likelihood = images @ scaled.T - (scaled * self.means_).sum(dim=1) / 2
        return self.text_weight * texts + self.likelihood_weight * likelihood

    def _logits(self, images: Tensor) -> Tensor:
        return self._evidence(images).log_softmax(dim=1)

    def _pool_logits(self, pool: Tensor) -> Tensor:
        return self._final


def _affinities(pool: Tensor, neighbours: int) -> csr_array:
    """Sparse cosines ``(N, N)``, at least 0, of each image (row) to its nearest others."""
    count = min(neighbours, len(pool) - 1)
    values, columns = [], []
    for start in range(0, len(pool), _BLOCK):
        cosines = pool[start : start + _BLOCK] @ pool.T
        own = torch.arange(len(cosines))
        cosines[own, start + own] = -torch.inf
        near = cosines.topk(count, dim=1)
        values.append(near.values.clamp(min=0).flatten())
        columns.append(near.indices.flatten())
    ends = count * np.arange(len(pool) + 1)
    parts = (torch.cat(values).numpy(), torch.cat(columns).numpy(), ends)
    return csr_array(parts, shape=(len(pool), len(pool)))


def _update_assignments(
    evidence: Tensor, z: Tensor, graph: csr_array, neighbours: int, inner: int
) -> Tensor:
    """Logarithm ``(N, K)`` of assignments after `inner` updates of all images at once.

    `evidence` is what each image says by itself, as a logarithm; `z` `(N, K)` was before.
    """
    both = ((graph + graph.T) / (2 * max(neighbours, 1))).astype(np.float32)
    for _ in range(inner):
        logs = (evidence + torch.from_numpy(both @ z.numpy())).log_softmax(dim=1)
        z = logs.exp()
    return logs


# ---- S3A


@dataclass(eq=False)
class S3A(TransductiveClassifier):
    """Classifier that starts at the texts and teaches itself by clusters and by sure images.

    Clusters of the pool vote for names, one name a cluster. A student learns the name of each
    image's cluster, and what its teacher, a running mean of itself, is sure of.

    Source, "S3A-style": Zhang et al. 2024, "S3A: Towards realistic zero-shot classification via
    self structural semantic alignment", AAAI, and its released code. Theirs: clusters; votes by the
    first choice of each image, matched one to one (Hungarian), in three rounds; weights, threshold,
    warm-up and batches; a teacher's memory of 5,000 of 30,000 steps. Left out: asking a language
    model for what tells the names voted for apart; such descriptions may enter through `texts`.
    Ours: the encoder is frozen, so a classifier is trained in its stead, with dropout for their
    augmented views; spherical k-means; the rate, and a third of their epochs. Their code realigns
    images, which leaves nothing of the clusters where names are no more than clusters (theirs are
    21,000), hence our default. Labelled images are not looked at, as there.

    Parameters
    ----------
    scale, seed
        As in `TransductiveClassifier`.
    k : int, optional
        Number of clusters; that of names, at most N, by default (see `discovery.estimate_k`).
    clustering : str
        One of `discovery.METHODS`.
    votes : int
        Rounds of voting. After each, images move to the nearest of the names voted for.
    realign : "clusters" or "images"
        Whether in the end all images of a cluster take its name, or each the nearest of the names
        voted for.
    structural, instance : float
        Weights of the loss on names by clusters, and by the teacher.
    threshold : float
        Probability from which on the teacher is sure.
    warm_up : int
        Epochs before the teacher's predictions, not zero-shot's, are what clusters vote by.
    memory : float
        Share of all steps over which the teacher averages.
    dropout : float
        Share of a feature's entries that the student does not see.
    lr, epochs, batch_size
        Of Adam down a cosine.

    Attributes
    ----------
    classifier_ : Tensor, shape (A + C, D)
        The teacher's, unit length.
    structural_labels_ : ndarray, shape (N,)
        Names of the pool's images in the last epoch, by clusters.
    history_ : list of float
        Loss of each epoch.
    """

    k: int | None = None
    clustering: str = "spherical"
    votes: int = 3
    realign: str = "clusters"
    structural: float = 0.25
    instance: float = 1.0
    threshold: float = 0.5
    warm_up: int = 2
    memory: float = 1 / 6
    dropout: float = 0.2
    lr: float = 0.005
    epochs: int = 10
    batch_size: int = 128

    _counts: ClassVar[tuple[str, ...]] = ("votes", "epochs", "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.realign not in ("clusters", "images"):
            raise ValueError(f"realign={self.realign!r}: choose 'clusters' or 'images'")

    def _fit(self, given: _Given) -> None:
        pool = given.pool
        k = min(len(given.names), len(pool)) if self.k is None else self.k
        found = discover(pool.numpy(), k, method=self.clustering, seed=self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        rows, teacher = given.names.clone().requires_grad_(), given.names.clone()
        steps = self.epochs * -(-len(pool) // self.batch_size)
        decay = 1 - 1 / max(self.memory * steps, 1)

        def losses_of(epoch: int) -> Callable[[Tensor], Tensor]:
            if epoch == 0 or epoch >= self.warm_up:
                said = cosine_logits(pool, F.normalize(teacher, dim=1), self.scale)
                self.structural_labels_ = self._structure(found.clusters, said.numpy())
            names = torch.from_numpy(self.structural_labels_)

            def loss_of(batch: Tensor) -> Tensor:
                # The student has just moved, but for the first step, when the two are one.
                teacher.lerp_(rows.detach(), 1 - decay)
                taught = self._said(pool[batch], teacher).softmax(dim=1)
                kept = torch.rand(len(batch), pool.shape[1], generator=generator) >= self.dropout
                return self._loss(self._said(pool[batch] * kept, rows), taught, names[batch])

            return loss_of

        self.history_ = descend_in_epochs(
            rows,
            len(pool),
            losses_of,
            epochs=self.epochs,
            batch_size=self.batch_size,
            generator=generator,
            lr=self.lr,
        )
        self.classifier_ = F.normalize(teacher.lerp_(rows.detach(), 1 - decay), dim=1)

    def _said(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.scale * F.normalize(images, dim=1) @ F.normalize(rows, dim=1).T

    def _loss(self, said: Tensor, taught: Tensor, names: Tensor) -> Tensor:
        loss = self.structural * F.cross_entropy(said, names)
        certainty, told = taught.max(dim=1)
        sure = certainty > self.threshold
        if sure.any():
            loss = loss + self.instance * F.cross_entropy(said[sure], told[sure])
        return loss

    def _structure(self, clusters: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Name of each image, ``(N,)`` int64, by rounds of voting and then by its cluster."""
        first, parts = logits.argmax(axis=1), clusters
        for _ in range(self.votes):
            chosen = np.unique(_vote(parts, first, logits.shape[1]))
            parts = logits[:, chosen].argmax(axis=1)
        if self.realign == "images":
            return chosen[parts]
        return chosen[_vote(clusters, parts, len(chosen))]

    def _logits(self, images: Tensor) -> Tensor:
        return cosine_logits(images, self.classifier_, self.scale)


def _vote(parts: np.ndarray, choices: np.ndarray, n_names: int) -> np.ndarray:
    """Name of each image's part, ``(N,)``: parts and names are matched one to one by votes.

    Where there are more parts than names, those left over take the name with most of their votes.
    """
    _, parts = np.unique(parts, return_inverse=True)
    shares = np.zeros((parts.max() + 1, n_names))
    np.add.at(shares, (parts, choices), 1)
    shares /= shares.sum(axis=1, keepdims=True)
    names = shares.argmax(axis=1)
    rows, columns = linear_sum_assignment(shares, maximize=True)
    names[rows] = columns
    return names[parts]


# ---- by word vectors


@dataclass(eq=False)
class ConSE(TransductiveClassifier):
    """Mean of the word vectors of the likeliest known names, and the names nearest to it.

    Logits are `scale` times cosines; `top` is T, the number of known names, all at most. Nothing is
    learned, neither from the pool nor from labelled images, and nothing is drawn.

    Source: Norouzi et al. 2014, "Zero-shot learning by convex combination of semantic embeddings",
    ICLR, with their T of 10. Ours: probabilities are the encoder's zero-shot over known names, not
    a trained classifier's; word vectors are brought to unit length.
    """

    top: int = 10

    _counts: ClassVar[tuple[str, ...]] = ("top",)
    _by_words: ClassVar[bool] = True

    def _fit(self, given: _Given) -> None:
        self._vectors = given.vectors
        self._known = given.names[: given.n_known]

    def _logits(self, images: Tensor) -> Tensor:
        shares = cosine_logits(images, self._known, self.scale).softmax(dim=1)
        likeliest, which = shares.topk(min(self.top, shares.shape[1]), dim=1)
        mixed = torch.einsum("nt,ntw->nw", likeliest, self._vectors[which])
        return cosine_logits(F.normalize(mixed, dim=1), self._vectors, self.scale)


@dataclass(eq=False)
class DeViSE(TransductiveClassifier):
    """Linear map from image features to word vectors, trained on images of known classes.

    Logits are `scale` times cosines of mapped features and word vectors. The map ``map_`` ``(W,
    D)`` starts at zero and descends by Adam down a cosine; the true name's vector should beat each
    other known name's by `margin`. The pool is not looked at.

    Source: Frome et al. 2013, "DeViSE: a deep visual-semantic embedding model", NIPS: hinge rank
    loss with margin 0.1 on unit word vectors, no bias. Ours: image features of unit length, a loss
    over all wrong names (theirs stops at the first that violates the margin, in random order), Adam
    (theirs: Adagrad) and its settings; the image encoder stays frozen.
    """

    margin: float = 0.1
    lr: float = 1e-3
    epochs: int = 30
    batch_size: int = 256

    _counts: ClassVar[tuple[str, ...]] = ("epochs", "batch_size")
    _by_words: ClassVar[bool] = True

    def _fit(self, given: _Given) -> None:
        if len(given.labels.unique()) < 2:
            raise ValueError("DeViSE learns from images of two known classes: pass labelled=")
        self._vectors = given.vectors
        known, labels = self._vectors[: given.n_known], given.labels
        matrix = torch.zeros(known.shape[1], given.pool.shape[1], requires_grad=True)

        def loss_of(batch: Tensor) -> Tensor:
            mapped = given.labelled[batch] @ matrix.T
            return _hinge_rank_loss(mapped, known, labels[batch], self.margin)

        self.history_ = descend_in_epochs(
            matrix,
            len(labels),
            lambda epoch: loss_of,
            epochs=self.epochs,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(self.seed),
            lr=self.lr,
        )
        self.map_ = matrix.detach()

    def _logits(self, images: Tensor) -> Tensor:
        mapped = F.normalize(images @ self.map_.T, dim=1)
        return cosine_logits(mapped, self._vectors, self.scale)


def _hinge_rank_loss(mapped: Tensor, vectors: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over rows of ``sum_(j != y) max(0, margin - v_y m + v_j m)``, a scalar.

    m are the images `mapped`, v the `vectors` of names, y the `labels`.
    """
    products = mapped @ vectors.T
    own = products.gather(1, labels[:, None])
    # What the right name adds by being compared with itself is the margin.
    return (margin - own + products).relu().sum(dim=1).mean() - margin


TRANSDUCTIVE: dict[str, type[TransductiveClassifier]] = {
    "transclip": TransCLIP,
    "s3a": S3A,
    "conse": ConSE,
    "devise": DeViSE,
}
