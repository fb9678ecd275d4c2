"""Zero-shot name learning (ZSNL): names learned from images without labels.

Images are discovered, matched to candidate names by declared knowledge, and the names tuned on
what came out. What the released code is given of the truth is an argument here, None by default:
the number of classes, which images are out of pre-training, and the exact vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbutils._util import suggest
from lbutils.captions.text import as_names
from lbutils.learn.colours import colour_evidence
from lbutils.learn.descent import descend, frozen
from lbutils.learn.knowledge import Knowledge, Lexicon
from lbutils.learn.mixture import joint_iteration
from lbutils.learn.namelearner import Labelled, NameLearner
from lbutils.models.classifier import (
    FeatureClassifier,
    check_labelled,
    check_others,
    class_means,
    state_of,
    text_features,
    unit_rows,
)
from lbutils.models.names import NameEmbeddings, Names
from lbutils.models.prompts import resolve
from lbutils.unlabelled import match
from lbutils.unlabelled.discovery import METHODS, Discovery, discover

MATCHINGS = ("joint", *match.ASSIGNERS)


class _Vocabulary(NamedTuple):
    """Names split by a comparison: `known` of the labelled images, `candidates` for the others."""

    known: tuple[str, ...]
    candidates: tuple[str, ...]


class _Pool(NamedTuple):
    """Unlabelled images that are used, known centres and texts, and what discovery made of them."""

    used: Tensor  # mask of the images that are
    images: Tensor
    centres: Tensor
    texts: Tensor
    discovery: Discovery | None
    labelled: Tensor  # (M, D), none without labelled images
    labels: Tensor  # (M,)
    colours: tuple[np.ndarray, np.ndarray] | None  # shown (N, 11) and told (A + C, 11)


@dataclass(eq=False, repr=False)
class ZeroShotNameLearner(FeatureClassifier):
    """Classifier whose new names are learned from images that nobody has labelled.

    1. Discover: the clusters of the images (`discover`; the joint matching needs none).
    2. Match: clusters to candidate names, by the prototypes of `Knowledge`.
    3. Tune: all names' rows towards their prototypes; then by the images, weighted with how surely
       they bear a name, against the known names with the labelled images, and towards the centre
       of images and prototype.

    Further rounds match again, by prototypes and the names just learned together.

    Parameters
    ----------
    knowledge : Knowledge
        Where prototypes and shares of names come from.
    matching : str
        ``"joint"`` (`joint_iteration`), or a method of `match.assign` on discovered clusters.
    discovery : str
        Method of `discover`. This, `gap`, `unit_centres`, `min_images` and `floor` are about
        clusters: the joint matching, which has none, does without.
    gap : "none" or "mean"
        Correction of the modality gap, see `match.similarities`.
    prior : float
        Weight of a prototype beside the images matched to its name, in images.
    concentration, iterations : float, int
        Of `joint_iteration`. One over the concentration is the temperature of `match.assign`.
    rounds : int
        Times to match and tune.
    unit_centres : bool
        Whether clusters' centres are normalised before they are matched; the released code's
        are not.
    min_images : int
        Clusters that are the likeliest of fewer images get no name. 0 keeps all.
    floor : float
        Clusters whose name has less confidence get none.
    learner : callable, optional
        Tunes names instead of the procedure above: called with the images for each name matched
        (at least 1) and the number of names, it returns a `NameLearner`, which is fitted to the
        images that a name was matched to, with hard labels.
    hint : str, optional
        The domain's superclass, for templates with a ``{hint}`` and for the source ``"hints"``.
    templates : str or sequence of str
        A template set, one template, or several.
    image_weight, anchor_weight : float
        Weights of the image term and of the centres in tuning.
    least : float
        Images, in sum of weights, from which on a name is tuned by images; others keep what their
        prototype taught them, which is faster where most candidates are distractors.
    margin : float
        Given to the logits of new names while tuning, so that they end lower beside the known.
    temperature : float
        Logits are divided by it while tuning.
    lr, steps : float, int
        Of Adam with a cosine.
    min_rows : int
        Rows that a name has at least.

    Attributes
    ----------
    names_ : Names
        Learned rows by name.
    candidates_, known_ : tuple of str
    weights_ : Tensor, shape (N, A + C)
        What each image of the pool was taken for, known names first. Rows of the joint matching sum
        to one; with clusters a name counts for the confidence in it, and a cluster without one for
        nothing. Images outside of `membership` have zeros.
    centres_ : Tensor, shape (C, D)
        Unit rows that the names were tuned towards.
    new_share_ : float
        Share of the images used that was taken for new.
    discovery_ : Discovery or None
    clusters_, assignment_ : ndarray of shape (K,) and Assignment, or None
        Clusters of ``discovery_`` that were matched, and the names that they got: those that stand
        for no known class and have enough images.
    history_ : list of float
        Loss of each step of tuning: towards prototypes, then round by round.
    objective_ : list of float
        Of the last joint iteration, see `Joint`; empty for other matchings.

    Notes
    -----
    Source: discovery, matching and name-tuning on pseudo labels are section 5.3 of the paper; joint
    iteration, confidence weights and knowledge are ours. Defaults were chosen on IP classes
    that play OOP (``data/mini/make/choose_zsnl.py``).
    """

    encoder: Any
    knowledge: Knowledge
    _: KW_ONLY
    matching: str = "joint"
    discovery: str = "semi_kmeans"
    gap: str = "none"
    prior: float = 2.0
    concentration: float = 20.0
    iterations: int = 15
    rounds: int = 1
    unit_centres: bool = True
    min_images: int = 0
    floor: float = 0.0
    learner: Callable[[int, int], NameLearner] | None = None
    hint: str | None = None
    templates: str | Sequence[str] = "mini"
    image_weight: float = 0.1
    anchor_weight: float = 1.0
    least: float = 0.0
    margin: float = 2.5
    temperature: float = 2.0
    lr: float = 0.02
    steps: int = 15
    min_rows: int = 3
    seed: int = 0

    _counts: ClassVar[tuple[str, ...]] = ("rounds", "iterations", "steps")
    _positive: ClassVar[tuple[str, ...]] = ("concentration", "temperature", "prior")
    _signed: ClassVar[tuple[str, ...]] = ("margin",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, valid, what in (
            (self.matching, MATCHINGS, "matching"),
            (self.discovery, METHODS, "method of discovery"),
            (self.gap, match.GAPS, "correction of the modality gap"),
        ):
            if value not in valid:
                raise ValueError(suggest(value, valid, what))
        if not self.image_weight + self.anchor_weight > 0:
            raise ValueError("image_weight, anchor_weight: one must be above 0")

    @classmethod
    def released(
        cls, encoder: Any, lexicon: Lexicon, hint: str, **changes: Any
    ) -> ZeroShotNameLearner:
        """Learner with the constants of the authors' released code; `fit` gives it the oracles.

        Contrastive mean-shift, centres that are not normalised, one-to-one matching with the names'
        text features (CLIP's own pieces), clusters of fewer than 20 images dropped, and
        `NameLearner.released` on what is left. The released code is told the number of classes, the
        membership and the vocabulary; captions are not at hand here, and images are not cropped
        anew, as features are computed once. It trains the image tower's last block and a head of
        three layers to find the clusters, where here a linear map is trained.

        Parameters
        ----------
        lexicon : Lexicon
            Not asked, as pieces are the only source.
        hint : str
            Superclass, such as ``"animal"``.
        **changes
            Arguments of `ZeroShotNameLearner` to differ in.
        """
        template = resolve("released")[0].replace("{hint}", hint)
        constants: dict[str, Any] = {
            "matching": "hungarian",
            "discovery": "contrastive_mean_shift",
            "unit_centres": False,
            "min_images": 20,
            "hint": hint,
            "templates": "released",
            "learner": partial(_released_learner, encoder, hint),
        }
        pieces = Knowledge(encoder, lexicon, ("pieces",), template=template)
        return cls(encoder, pieces, **{**constants, **changes})

    def fit(
        self,
        images: Tensor,
        candidates: Sequence[str],
        *,
        known: Sequence[str] = (),
        labelled: Tensor | None = None,
        labels: Any = None,
        colours: Any = None,
        n_classes: int | None = None,
        membership: Any = None,
        vocabulary: Sequence[str] | None = None,
    ) -> ZeroShotNameLearner:
        """Self, with the candidate names learned.

        Parameters
        ----------
        images : Tensor, shape (N, D)
            Unit features of images without labels, of known and of new classes.
        candidates : sequence of str
            Names that the new classes may bear; some of them may be borne by none.
        known : sequence of str
            Names in pre-training.
        labelled, labels : Tensor, shape (M, D) and (M,), optional
            Unit features of images of known classes, and which; without them the known names'
            text features stand for their images, in discovery too.
        colours : array, shape (N, 11), optional
            `colours.colour_shares` of the images, which the source ``"colours"`` needs.
        n_classes : int, optional
            Oracle: how many new classes the images show. Without it `discover` estimates it; the
            joint matching asks for none, and does not look at it.
        membership : bool array, shape (N,), optional
            Oracle: which images show new classes. The others are left out, and so are known
            classes in discovery.
        vocabulary : sequence of str, optional
            Oracle: the names that the new classes bear, of `candidates`. Others are not learned,
            and hints have nothing to tell.

        Raises
        ------
        ValueError
            If there are no images or candidates, names repeat or are both known and candidates,
            features are no unit vectors, or an oracle does not fit.
        RuntimeError
            If the encoder is not frozen, or the loss is no longer finite.
        """
        names = _vocabulary(candidates, known, vocabulary)
        pool = self._pool(images, names, labelled, labels, colours, n_classes, membership)
        prototypes = self.knowledge.prototypes(names.candidates)
        shares = np.full(len(names.candidates), 1.0)
        if vocabulary is None:
            shares = self.knowledge.shares(names.candidates, names.known, self.hint)
        self.candidates_, self.known_ = names.candidates, names.known
        self.discovery_ = pool.discovery
        self.history_: list[float] = []
        rows = None if self.learner else self._taught(names.candidates, prototypes)
        for _ in range(self.rounds):
            weights = self._match(pool, prototypes, shares)
            if rows is not None:
                rows = self._tune(pool, weights, rows)
            else:
                self._hand_on(names.candidates, pool, weights)
            prototypes = F.normalize(prototypes + self.classifier_, dim=1)
        self.names_: Names = self.embeddings_.learned()
        self.weights_ = torch.zeros(len(images), weights.shape[1])
        self.weights_[pool.used] = weights.cpu()
        return self

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """Columns of the logits of some candidate names; raises ValueError for another name."""
        place = {name: column for column, name in enumerate(self.candidates_)}
        for name in as_names(names):
            if name not in place:
                raise ValueError(suggest(name, list(place), "learned name"))
        return np.array([place[name] for name in names], dtype=np.int64)

    def _pool(
        self,
        images: Tensor,
        names: _Vocabulary,
        labelled: Tensor | None,
        labels: Any,
        colours: Any,
        n_classes: int | None,
        membership: Any,
    ) -> _Pool:
        """What matching needs, checked."""
        images = unit_rows(images, "images")
        if not len(images):
            raise ValueError("there is no image to learn from: give one at least")
        shown, places = check_labelled(labelled, labels, len(names.known), images.shape[1])
        used = _mask(len(images), membership)
        images = images[used]
        if n_classes is not None and not 1 <= n_classes <= len(images):
            raise ValueError(f"n_classes={n_classes} for {len(images)} images: 1 for each at most")
        texts = torch.empty(0, images.shape[1])
        if names.known:
            texts = text_features(self.encoder, names.known, self.templates, self.hint)
        centres, found = texts, None
        if len(shown):
            means, _ = class_means(shown[None], places, len(texts))
            centres = F.normalize(texts + F.normalize(means, dim=1), dim=1)
        if self.matching != "joint":
            told: dict[str, Any] = {"method": self.discovery, "seed": self.seed}
            k = n_classes
            if membership is None and names.known:
                # Without images, a known class's text feature is its one labelled image.
                rows, which = (shown, places) if len(shown) else (texts, torch.arange(len(texts)))
                k = None if k is None else k + len(torch.unique(which))
                told |= {"labelled": rows, "labels": which.numpy()}
            found = discover(images, k, **told)
        if membership is not None:
            centres = centres[:0]
        seen = self._colours(names, colours, used)
        return _Pool(used, images, centres, texts, found, shown, places, seen)

    def _colours(
        self, names: _Vocabulary, colours: Any, used: Tensor
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Colours that images show and names tell, if that is a source of the knowledge."""
        told = self.knowledge.told_colours([*names.known, *names.candidates])
        if told is None:
            return None
        shown = np.asarray([] if colours is None else colours, dtype=np.float64)
        if shown.shape != (len(used), told.shape[1]) or not np.isfinite(shown).all():
            raise ValueError(
                f"colours {shown.shape}: the source 'colours' needs those of {len(used)} images, "
                "lbutils.learn.colours.colour_shares(split)"
            )
        return shown[used.numpy()], told

    def _match(self, pool: _Pool, prototypes: Tensor, shares: np.ndarray) -> Tensor:
        """Share of each image that a name has, ``(N, A + C)``; sets what `fit` documents."""
        self.clusters_: np.ndarray | None = None
        self.assignment_: match.Assignment | None = None
        self.objective_: list[float] = []
        a, c = len(pool.texts), len(prototypes)
        if pool.discovery is None:
            found = joint_iteration(
                pool.images,
                prototypes,
                pool.centres if len(pool.centres) else None,
                shares=shares,
                evidence=_evidence(pool, len(pool.centres) + c),
                concentration=self.concentration,
                prior=self.prior,
                iterations=self.iterations,
            )
            self.centres_, self.objective_ = found.centres, found.objective
            self.new_share_ = found.new_share
            return F.pad(found.weights, (a + c - found.weights.shape[1], 0))
        weights, clusters, known = pool.discovery.weights, *pool.discovery[2:]
        sizes = np.bincount(pool.discovery.clusters, minlength=len(known))
        fresh = np.flatnonzero((known < 0) & (sizes >= max(self.min_images, 1)))
        plan = np.zeros((len(fresh), c))
        if len(fresh):
            plan = self._named(pool, clusters[fresh], fresh, prototypes, shares)
        old, shown = known >= 0, np.zeros((len(weights), a))
        shown[:, known[old]] = weights[:, old]
        joined = torch.from_numpy(np.concatenate([shown, weights[:, fresh] @ plan], axis=1)).float()
        self.new_share_ = float(weights[:, ~old].sum() / len(weights))
        moved = self.prior * prototypes + joined[:, a:].T @ pool.images
        self.centres_ = F.normalize(moved, dim=1)
        return joined

    def _named(
        self, pool: _Pool, centres: np.ndarray, fresh: np.ndarray, prototypes: Tensor, shares: Any
    ) -> np.ndarray:
        """How much of each new cluster ``(K,)`` goes to each name, ``(K, C)``."""
        if not self.unit_centres:
            centres = centres * _lengths(pool)[fresh, None]
        cosines = match.similarities(centres, prototypes, self.gap, normalise=self.unit_centres)
        if pool.colours is not None:
            assert pool.discovery is not None
            weights = pool.discovery.weights[:, fresh]
            shown = weights.T @ pool.colours[0] / weights.sum(axis=0)[:, None]
            told = pool.colours[1][-len(prototypes) :]
            cosines = cosines + colour_evidence(shown, told) / self.concentration
        self.clusters_ = fresh
        self.assignment_ = match.assign(
            cosines,
            self.matching,
            shares=shares,
            temperature=1 / self.concentration,
            floor=self.floor,
        )
        if self.matching == "sinkhorn":
            return self.assignment_.plan
        one_hot = np.eye(cosines.shape[1] + 1)[self.assignment_.names][:, :-1]
        return one_hot * self.assignment_.confidence[:, None]

    def _hand_on(self, names: Sequence[str], pool: _Pool, weights: Tensor) -> None:
        """Names learned by `learner` from hard labels; ``classifier_`` follows them."""
        new = weights[:, len(pool.texts) :]
        sure = (new.sum(dim=1) > 0).nonzero()[:, 0]
        if not len(sure):
            raise ValueError(
                f"no image was matched to a name: lower min_images (now {self.min_images})"
            )
        labels = new[sure].argmax(dim=1).numpy()
        borne = len(np.unique(labels))
        pseudo = Labelled(labels, tuple(names), (None,) * len(labels))
        assert self.learner is not None
        learner = self.learner(max(1, len(labels) // borne), len(names))
        learner.fit(pseudo, pool.images[sure][None])
        self.embeddings_, self.classifier_ = learner.embeddings_, learner.classifier_
        self.history_ += learner.history_

    def _taught(self, names: tuple[str, ...], prototypes: Tensor) -> dict[str, Tensor]:
        """Rows of each name after tuning towards its prototype; the latest answers are kept."""
        templates = resolve(self.templates)
        # A hint that no template asks for does not tell vocabularies apart.
        hint = self.hint if any("{hint}" in template for template in templates) else None
        options = (templates, hint, self.lr, self.steps, self.min_rows, self.seed)
        key = (names, str(options), prototypes.numpy().tobytes(), state_of(self.encoder))
        kept = _TAUGHT.setdefault(self.encoder, OrderedDict())
        if key not in kept:
            learned = self._embeddings(names, "clip")
            goal = prototypes.to(learned.rows)
            losses = self._descend(learned, lambda prompts: 1 - (prompts * goal).sum(dim=1).mean())
            kept[key] = dict(learned.learned()), losses
            while len(kept) > _KEPT:
                kept.popitem(last=False)
        rows, losses = kept[key]
        self.history_ += losses
        return dict(rows)

    def _tune(self, pool: _Pool, weights: Tensor, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows of each name, moved by the images matched to it; sets ``classifier_``."""
        own = weights[:, len(pool.texts) :]
        borne = (own.sum(dim=0) >= self.least).nonzero()[:, 0]
        if len(borne):
            names = [list(rows)[i] for i in borne]
            learned = self._embeddings(names, {name: rows[name] for name in names})
            shown = torch.cat([weights[:, : len(pool.texts)], own[:, borne]], dim=1)
            centres = self.centres_[borne]

            def loss(prompts: Tensor) -> Tensor:
                away = (1 - (prompts * centres.to(prompts)).sum(dim=1)).mean()
                images = self._image_term(pool, shown, prompts)
                return self.anchor_weight * away + self.image_weight * images

            self.history_ += self._descend(learned, loss)
            rows = {**rows, **learned.learned()}
        self.embeddings_ = self._embeddings(tuple(rows), rows)
        with torch.no_grad():
            self.classifier_ = self.embeddings_().cpu()
        return rows

    def _embeddings(self, names: Sequence[str], rows: Any) -> NameEmbeddings:
        return NameEmbeddings(
            self.encoder, names, self.templates, self.hint, rows, self.seed, min_rows=self.min_rows
        )

    def _descend(self, names: NameEmbeddings, loss_of: Callable[[Tensor], Tensor]) -> list[float]:
        """Loss of each step of a descent on a function of the names' text features."""
        generator = torch.Generator().manual_seed(self.seed)

        def losses() -> Iterator[Tensor]:
            while True:
                drawn = torch.randint(len(names.template_contexts), (1,), generator=generator)
                context = names.template_contexts[int(drawn)]
                yield loss_of(names.features([(context, i) for i in range(len(names.names))]))

        with frozen(self.encoder.model):
            return descend([names.rows], losses(), self.steps, lr=self.lr)

    def _image_term(self, pool: _Pool, weights: Tensor, prompts: Tensor) -> Tensor:
        """Cross-entropy of images with what they were taken for, over known and new names."""
        images = torch.cat([pool.images, pool.labelled])
        sure = F.one_hot(pool.labels, weights.shape[1])
        weights = torch.cat([weights, sure.to(weights)])
        images, texts, weights = (t.to(prompts) for t in (images, pool.texts, weights))
        scale = self.encoder.logit_scale / self.temperature
        wrong, own = scale * images @ texts.T, scale * images @ prompts.T
        logits = torch.cat([wrong, own + self.margin], dim=1)
        return -(weights * logits.log_softmax(dim=1)).sum() / weights.sum().clamp(min=1e-6)


# Rows taught by prototypes alone, by encoder: the same for every pool of one vocabulary.
_TAUGHT: WeakKeyDictionary[Any, OrderedDict[Any, Any]] = WeakKeyDictionary()
_KEPT = 32


def _released_learner(encoder: Any, hint: str, shots: int, n_classes: int) -> NameLearner:
    return NameLearner.released(
        encoder, hint, shots, n_classes, views=0, clean=True, caption_weight=0.0
    )


def _lengths(pool: _Pool) -> np.ndarray:
    """Length of the mean of each cluster's images, ``(K,)``; 0 for a cluster without any."""
    assert pool.discovery is not None
    k = len(pool.discovery.known)
    clusters = torch.from_numpy(pool.discovery.clusters)
    means, _ = class_means(pool.images[None], clusters, k)
    return means.norm(dim=1).double().numpy()


def _vocabulary(
    candidates: Sequence[str], known: Sequence[str], vocabulary: Sequence[str] | None
) -> _Vocabulary:
    candidates = as_names(candidates, "candidates")
    if not candidates:
        raise ValueError("candidates must be a list of one name at least")
    check_others(known, candidates)
    if len(set(known)) < len(known):
        raise ValueError("a known name stands twice: merge its images")
    names = tuple(candidates)
    if vocabulary is not None:
        for name in as_names(vocabulary, "the vocabulary"):
            if name not in names:
                raise ValueError(suggest(name, names, "candidate name"))
        names = tuple(vocabulary)
        if not names:
            raise ValueError("the vocabulary is empty: give one name at least, or None")
    return _Vocabulary(tuple(known), names)


def _evidence(pool: _Pool, columns: int) -> Tensor | None:
    """Evidence of colours ``(N, columns)`` for the last columns of the vocabulary."""
    if pool.colours is None:
        return None
    shown, told = pool.colours
    return torch.from_numpy(colour_evidence(shown, told[-columns:])).to(pool.images)


def _mask(n: int, membership: Any) -> Tensor:
    """Mask ``(n,)`` of the images that are used."""
    if membership is None:
        return torch.ones(n, dtype=torch.bool)
    mask = torch.as_tensor(np.asarray(membership))
    if mask.dtype != torch.bool or mask.shape != (n,) or not mask.any():
        raise ValueError(
            f"membership {tuple(mask.shape)}: a bool for each image, one True at least"
        )
    return mask
