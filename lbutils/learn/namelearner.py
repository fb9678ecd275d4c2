"""Few-shot name learning (FSNL): the names of classes learned from a few captioned images.

Only the rows of the names move. Image features are computed once. Every ablation of the paper,
and everything that we add to it, is an argument of `NameLearner`: `NameLearner.released` is the
authors' procedure to the last constant, `NameLearner.fsnl` their loss with a faster optimiser,
and the defaults are our own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import count
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbutils.captions.text import as_names
from lbutils.learn.descent import MOST, descend_together, shared_encoder
from lbutils.learn.knowledge import Knowledge, among_images, check_choice
from lbutils.learn.mixture import joint_iteration
from lbutils.models.classifier import (
    Estimator,
    FeatureClassifier,
    check_others,
    check_training,
    class_means,
    text_features,
    training_features,
    unit_rows,
)
from lbutils.models.names import (
    NameEmbeddings,
    Names,
    check_rows,
    classifiers_together,
    features_together,
)
from lbutils.models.prompts import Slots, slots, take_out
from lbutils.models.text import text_forward


def multi_positive_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over rows of ``-log(sum_j softmax(logits)_ij positives_ij + 1e-10)``, a scalar.

    `positives`, bool like the logits ``(N, M)``, says which columns are right for a row; a row with
    none adds a constant. Source: the authors' released code.
    """
    share = (logits.softmax(dim=1) * positives).sum(dim=1)
    return -(share + 1e-10).log().mean()


def both_ways(logits: Tensor, positives: Tensor) -> Tensor:
    """Half the `multi_positive_loss` of image to text plus half that of text to image."""
    across = multi_positive_loss(logits, positives)
    return (across + multi_positive_loss(logits.T, positives.T)) / 2


def cross_entropies(logits: Tensor, own: Tensor) -> Tensor:
    """Half the cross-entropy of image to text plus half that of text to image, a scalar.

    The logits are ``(N, N)``; the right column of each row, and row of each column, is in `own`.
    """
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def swap_contexts(labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each sample the index of a random sample of another class, ``(N,)``.

    Its own index where the batch has one class only. `labels` are ``(N,)``, the generator is one of
    the CPU. Source: the context swap of FSNL, section 5.2 of the paper and the authors' released
    code.
    """
    labels = labels.cpu()
    draw = torch.rand(len(labels), len(labels), generator=generator)
    draw[labels[:, None] == labels] = -1
    draw.fill_diagonal_(-0.5)
    return draw.argmax(dim=1)


@dataclass(eq=False, repr=False)
class Alignment(Estimator):
    """Linear map from class means of image features to text features, fitted on known classes.

    Least squares over known classes between the mean of k images and the text feature, k being
    the shots that it is asked for: the scatter of images inside their classes counts as the noise
    that the mean of k of them has. The penalty draws the map to the identity, in units of the
    features' mean square.

    Attributes
    ----------
    between_, within_, cross_ : Tensor, shape (D, D)
        Second moment of the class means, scatter inside classes, and class means times texts.
    n_images_, n_classes_ : int

    Notes
    -----
    Source: ours, in the line of maps between image and text features such as DeViSE (Frome et al.
    2013). It is knowledge about the encoder, taken from classes that it was pre-trained on; no
    image of a class to be learned, or to be tested on, is among them.
    """

    penalty: float = 1.0

    _positive: ClassVar[tuple[str, ...]] = ("penalty",)

    def fit(self, features: Tensor, labels: Any, texts: Tensor) -> Alignment:
        """Self, with the moments of known classes.

        Of image features ``(N, D)`` of unit length, `labels` ``(N,)`` which are rows of `texts`,
        and the classes' text features ``(C, D)``; classes without an image are left out.

        Raises ValueError if fewer than two classes have images, or no class has two.
        """
        labels = torch.as_tensor(np.asarray(labels))
        features = unit_rows(features, "features")
        means, number = class_means(features[None], labels, len(texts))
        if (number > 0).sum() < 2 or number.max() < 2:
            raise ValueError("an alignment needs images of two classes or more, and two of one")
        scatter = features - means[labels]
        there = number > 0
        self.n_images_, self.n_classes_ = len(features), int(there.sum())
        self.within_ = scatter.T @ scatter / (self.n_images_ - self.n_classes_)
        self.between_ = means[there].T @ means[there] / self.n_classes_
        self.cross_ = means[there].T @ texts[there] / self.n_classes_
        return self

    def __call__(self, means: Tensor, shots: float) -> Tensor:
        """Class means ``(C, D)`` of `shots` images each, moved and of unit length; zeros stay."""
        ridge = self.penalty / len(self.cross_) * torch.eye(len(self.cross_))
        matrix = torch.linalg.solve(
            self.between_ + self.within_ / shots + ridge, self.cross_ + ridge
        )
        return F.normalize(means @ matrix.to(means), dim=1)


class Known(NamedTuple):
    """What names are held against: anchors ``(C, D)``, negatives ``(K, D)``, their stand-ins."""

    anchors: Tensor
    negatives: Tensor | None = None
    stand_ins: Tensor | None = None


_PAPER = {
    "min_rows": 1,
    "name_weight": 0.5,
    "caption_weight": 0.5,
    "anchor_weight": 0.0,
    "stand_in_weight": 0.0,
    "temperature": 1.0,
    "text_to_image": True,
}


@dataclass(eq=False, repr=False)
class NameLearner(FeatureClassifier):
    """Classifier whose class names are learned from a few images.

    The loss is a weighted sum of four terms.

    - Name term: images against prompts of all names, multi-positive. Where other names are given
      as `negatives`, they are wrong answers for every image.
    - Caption term: images against captions, each of which is the context of a sample of another
      class with the sample's own name put in. (This and the first are the paper's.)
    - Anchor term: one minus the cosine of a name's text feature and its anchor, the mean of the
      class's image features. It keeps a name near its images where few images would let the
      others overfit; the text tower keeps it near what a text can say.
    - Stand-in term: images of the `negatives` are not at hand; their text features, moved by
      the difference of the anchors' mean and the negatives' mean, stand in for them, each to
      be told from the names that are learned.

    No other parameter than the rows of the names moves, so the classifiers of other names stay
    as they were.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    prior : Knowledge, optional
        What is known of the names before an image is seen, of declared sources. Its prototypes,
        moved to where the images lie, count as `prior_weight` images of their names in the
        anchors, so that a name without images can be learned too. None is the plain question:
        names from images alone.
    prior_weight : float
        Images that a prototype of the prior counts for; chosen on classes that encoders never
        met (``data/mini/make/choose_prior.py``).
    without_knowledge : "refuse" or "images"
        Whether a name that the prior's sources do not know is an error, or is learned from its
        images alone.
    concentration : float
        Of `joint_iteration`, which shares out images without labels.
    hint : str, optional
        Superclass for templates with a ``{hint}``.
    templates : str or sequence of str
        A template set, one template, or several. Training draws one of several at each step;
        ``classifier_`` is their mean.
    negatives : sequence of str, or Tensor of shape (K, D), optional
        Other names that the joint vocabulary will hold (such as the IP names), or their text
        features. They are not moved, and no image of theirs is used. Without them there is no
        stand-in term.
    init : "clip", "random", int or mapping
        Start of the rows, see `NameEmbeddings`.
    min_rows : int
        Rows that a name has at least: one BPE piece alone can move too little.
    name_weight, caption_weight, anchor_weight, stand_in_weight : float
        Weights of the terms; 0 leaves a term out.
    alignment : Alignment, optional
        Moves anchors from where a class's images lie to where its text would; see `Alignment`.
    temperature : float
        Logits are divided by it while learning. Above 1, a few images are fitted less sharply.
    margin : float
        Taken from the logits of the names against the negatives in the name term: a positive
        one makes OOP logits larger in the end, a negative one smaller.
    text_to_image : bool
        Whether the name term is half the loss of each prompt against the images, as the
        paper's is.
    swap : bool
        Whether captions exchange contexts; otherwise each sample keeps its own.
    info_nce : bool
        Whether in the caption term only a sample's own caption counts as right; it is the mean of
        the cross-entropies of both ways then.
    every_mention : bool
        Whether captions are read as the authors' code reads them: in lower case, the name looked
        for as a bare substring, and put in at every mention. Otherwise it is looked for word by
        word, and put in at the first mention, further ones being left out.
    optimizer, weight_decay
        One of `descent.OPTIMIZERS`, and the decay of ``"sgd"``, the authors'.
    lr : float
        Learning rate at the start of the cosine.
    steps : int
        Optimiser steps. The last one is the result.
    epochs : int, optional
        Passes over the images, each without its last incomplete batch, in place of `steps`.
    average : float
        Share of the last steps whose rows are averaged; 0 takes the rows of the last step.
    batch_size : int, optional
        Images a step; all of them by default, since their features are at hand.
    warmup_epochs : int
        Passes at a learning rate of 1e-5 before the cosine.
    views : int
        Augmented views of each image, computed once; each pass over the images uses one.
    clean : bool
        Whether the images as they are count as a view too.
    seed : int
        Seed of views, contexts, batches and a random start.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Text features of the learned names, unit length, on the CPU.
    names_ : Names
        Learned rows by name; ``names_.save(path)`` writes them.
    history_ : list of float
        Loss of each step.
    captions_without_name_, captions_missing_ : int
        Where there is a caption term: captions in which the class name was not found (their whole
        text follows the plain prompt as context), and images without a caption (the plain
        prompt is their context).
    embeddings_ : NameEmbeddings
    mixture_ : Joint
        Where there were unlabelled images: what they were taken for.

    Notes
    -----
    Source: name and caption term: sections 5.1 and 5.2 of the paper (eq. 2 and 4) and the authors'
    released code. Anchor and stand-in term: ours; the shift between image and text features is the
    modality gap of Liang et al. 2022, "Mind the gap". Defaults were chosen on IP classes that
    play OOP (``data/mini/make/choose.py``); of 25 settings they were again the choice on classes
    that encoders never met (``data/mini/make/choose_rivals.py``).
    """

    encoder: Any
    prior: Knowledge | None = None
    _: KW_ONLY
    prior_weight: float = 1.0
    without_knowledge: str = "refuse"
    concentration: float = 20.0
    hint: str | None = None
    templates: str | Sequence[str] = "mini"
    negatives: Tensor | Sequence[str] | None = None
    init: Any = "clip"
    min_rows: int = 3
    name_weight: float = 0.2
    caption_weight: float = 0.0
    anchor_weight: float = 1.0
    stand_in_weight: float = 0.2
    alignment: Alignment | None = None
    temperature: float = 2.0
    margin: float = 0.0
    text_to_image: bool = False
    swap: bool = True
    info_nce: bool = False
    every_mention: bool = False
    optimizer: str = "adam"
    weight_decay: float = 5e-4
    lr: float = 0.01
    steps: int = 30
    epochs: int | None = None
    average: float = 0.0
    batch_size: int | None = None
    warmup_epochs: int = 0
    views: int = 4
    clean: bool = True
    seed: int = 0

    _counts: ClassVar[tuple[str, ...]] = ("steps", "epochs", "batch_size")
    _positive: ClassVar[tuple[str, ...]] = ("temperature", "concentration")
    _signed: ClassVar[tuple[str, ...]] = ("margin", "init")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name_weight + self.caption_weight + self.anchor_weight > 0:
            raise ValueError("name_weight, caption_weight, anchor_weight: one must be above 0")
        if self.average > 1:
            raise ValueError(f"average={self.average}: give a share of the steps, 1 at most")
        check_choice(self.without_knowledge)

    @classmethod
    def fsnl(cls, encoder: Any, **changes: Any) -> NameLearner:
        """Learner with the paper's loss and nothing of ours: no anchors, no stand-ins.

        Half a name term plus half a caption term, by 40 steps of Adam over all images at once,
        where the released code takes at least 200 of SGD (`released`); chosen on classes that
        encoders never met (``data/mini/selection_fewshot.csv``). `changes` are arguments of
        `NameLearner` to differ in.
        """
        return cls(encoder, **{**_PAPER, "lr": 0.03, "steps": 40, **changes})

    @classmethod
    def released(
        cls, encoder: Any, hint: str, shots: int, n_classes: int, **changes: Any
    ) -> NameLearner:
        """Learner with the constants of the authors' released code.

        SGD over 200 epochs, the first at 1e-5; batch of ``min(shots, 4) * n_classes``; learning
        rate ``batch / 128 * 2e-4``; crops drawn anew in every epoch (200 views, so the image
        tower runs 200 times over the images).

        What still differs from that code: it takes a caption to be of the first class whose name
        stands in it, here the label says; names of other classes that stand in a context are
        trainable rows there, and plain words here; a caption without any name ends its run, here
        it stands behind the template.

        `hint` is the superclass, such as ``"animal"``, `shots` the images per class; `changes` are
        arguments of `NameLearner` to differ in, for ablations.
        """
        batch = min(shots, 4) * n_classes
        constants: dict[str, Any] = {
            **_PAPER,
            "hint": hint,
            "templates": "released",
            "optimizer": "sgd",
            "lr": batch / 128 * 2e-4,
            "epochs": 200,
            "batch_size": batch,
            "every_mention": True,
            "warmup_epochs": 1,
            "views": 200,
            "clean": False,
        }
        return cls(encoder, **{**constants, **changes})

    def fit(
        self,
        split: Any,
        features: Tensor | None = None,
        unlabelled: Tensor | None = None,
    ) -> NameLearner:
        """Self, with the names of the split learned.

        Parameters
        ----------
        split : Split or sequence of str
            Training images with labels, class names and captions (which may be None); or names
            alone, of which no image has a label.
        features : Tensor, shape (V, N, D), optional
            Features of V views of the images; computed (and cached) if not given.
        unlabelled : Tensor, shape (M, D), optional
            Unit features of images of these classes, or of the negatives', that nobody labelled.

        Raises
        ------
        ValueError
            If there is no image and no prior, the features do not fit the split or are not unit
            vectors, a single class has nothing to be told from, a name is without knowledge where
            the prior needs some, or the prior is of another encoder.
        RuntimeError
            If the encoder is not frozen, or moved, or the loss is no longer finite.

        Warns
        -----
        UserWarning
            If there is no image at all: the names are what the prior says, and no more.
        """
        return fit_many([self], [split], [features], [unlabelled])[0]

    def _negatives(self, names: Sequence[str], features: Tensor) -> Tensor | None:
        """Text features ``(K, D)`` of the other names, checked."""
        if self.negatives is None:
            return None
        if isinstance(self.negatives, Tensor):
            return unit_rows(self.negatives, "negatives", features.shape[2]).to(features)
        check_others(self.negatives, names)
        texts = text_features(self.encoder, self.negatives, self.templates, self.hint)
        return texts.to(features)

    def _known(
        self, names: Sequence[str], features: Tensor, labels: Tensor, unlabelled: Tensor | None
    ) -> Known:
        """What the terms that are ours hold names against."""
        negatives = self._negatives(names, features)
        means, counts = class_means(features.cpu(), labels, len(names))
        anchors = F.normalize(means, dim=1)
        if self.alignment is not None and counts.any():
            anchors = self.alignment(anchors, len(labels) / int((counts > 0).sum()))
        sums = counts[:, None] * anchors
        if self.prior is not None:
            rows = among_images(self.prior, self.encoder, names, anchors, self.without_knowledge)
            sums = sums + self.prior_weight * rows
            anchors = F.normalize(sums, dim=1)
        anchors = anchors.to(features)
        stand_ins = negatives
        if negatives is not None and counts.any():
            # Without images all is told where texts lie, as the negatives are.
            shift = anchors[anchors.any(1)].mean(0) - negatives.mean(0)
            stand_ins = F.normalize(negatives + shift, dim=1)
        if unlabelled is not None:
            anchors = self._shown(names, sums, stand_ins, unlabelled).to(features)
        return Known(anchors, negatives, stand_ins if self.stand_in_weight else None)

    def _shown(
        self, names: Sequence[str], sums: Tensor, stand_ins: Tensor | None, unlabelled: Tensor
    ) -> Tensor:
        """Centres ``(C, D)`` of the names among images without labels, see `joint_iteration`."""
        images = unit_rows(unlabelled, "unlabelled images", sums.shape[1])
        bare = (~sums.any(1)).nonzero()[:, 0].tolist()
        if bare:
            raise ValueError(
                f"{names[bare[0]]!r} has no labelled image and no prior: no unlabelled image can "
                "be known to show it; leave it out, or give one of both"
            )
        self.mixture_ = joint_iteration(
            images,
            F.normalize(sums, dim=1),
            None if stand_ins is None else stand_ins.cpu(),
            concentration=self.concentration,
            prior=sums.norm(dim=1),
        )
        return self.mixture_.centres

    def _contexts(self, split: Any, labels: Tensor, names: NameEmbeddings) -> Tensor:
        """Number of each sample's context in `names`, ``(N,)``."""
        plain = slots(names.templates[0], self.hint)
        self.captions_missing_ = sum(not caption for caption in split.captions)
        self.captions_without_name_ = 0
        found = []
        for caption, label in zip(split.captions, labels.tolist(), strict=True):
            cut = self._cut(caption, split.names[label]) if caption else plain
            if cut is None:
                self.captions_without_name_ += 1
                cut = Slots(plain.before, f"{plain.after} {caption}")
            found.append(cut)
        return torch.tensor(names.add_contexts(found))

    def _cut(self, caption: str, name: str) -> Sequence[str] | None:
        """What stands around a caption's name, None without it; see `every_mention`."""
        if not self.every_mention:
            return take_out(caption, name)
        parts = caption.lower().split(name.lower())
        return parts if len(parts) > 1 else None

    def _draws(
        self, names: NameEmbeddings, features: Tensor, labels: Tensor, contexts: Tensor, size: int
    ) -> Iterator[Draw]:
        """Draws of `size` images, without end; each pass over the images shows one view."""
        generator = torch.Generator().manual_seed(self.seed)
        shown = len(labels) - len(labels) % size if self.epochs else len(labels)
        for epoch in count():
            order = torch.randperm(len(labels), generator=generator)
            if epoch % len(features) == 0:
                turns = torch.randperm(len(features), generator=generator)
            view = features[turns[epoch % len(features)]]
            for batch in order[:shown].split(size):
                images = view.index_select(0, batch.to(view.device))
                yield self._draw(names, images, labels[batch], contexts[batch], generator)

    def _draw(
        self,
        names: NameEmbeddings,
        images: Tensor,
        labels: Tensor,
        contexts: Tensor,
        generator: torch.Generator,
    ) -> Draw:
        """The images with the texts that a step asks for: prompts of all names, then captions."""
        pairs: list[tuple[int, int]] = []
        if self.name_weight or self.anchor_weight:
            drawn = torch.randint(len(names.template_contexts), (1,), generator=generator)
            template = names.template_contexts[int(drawn)]
            pairs += [(template, owner) for owner in range(len(names.names))]
        n_prompts = len(pairs)
        if self.caption_weight and len(images):
            if self.swap:
                contexts = contexts[swap_contexts(labels, generator)]
            pairs += zip(contexts.tolist(), labels.tolist(), strict=True)
        return Draw(images, labels.to(images.device), pairs, n_prompts)

    def _loss(self, draw: Draw, texts: Tensor, known: Known) -> Tensor:
        """Weighted sum of the terms for one draw, from the features of its texts."""
        images, labels = draw.images, draw.labels
        prompts, captions = texts[: draw.n_prompts], texts[draw.n_prompts :]
        loss = torch.zeros((), device=images.device)
        if self.name_weight and len(images):
            loss = loss + self.name_weight * self._name_term(images, prompts, labels, known)
        if self.caption_weight and len(images):
            scaled = self._logits(images, captions)
            if self.info_nce:
                term = cross_entropies(scaled, torch.arange(len(labels), device=labels.device))
            else:
                term = both_ways(scaled, labels[:, None] == labels)
            loss = loss + self.caption_weight * term
        if self.anchor_weight:
            there = known.anchors.any(1)
            cosines = (prompts * known.anchors).sum(1)[there]
            loss = loss + self.anchor_weight * (1 - cosines).mean()
        if known.stand_ins is not None:
            wrong = self._logits(known.stand_ins, torch.cat([known.negatives, prompts]))
            own = torch.arange(len(wrong), device=wrong.device)
            loss = loss + self.stand_in_weight * F.cross_entropy(wrong, own)
        return loss

    def _end(self, fit: _Fit, classifier: Tensor) -> None:
        """Set what a fitted learner has."""
        self.history_, self.embeddings_ = fit.history, fit.names
        self.classifier_ = classifier.cpu()
        self.names_: Names = fit.names.learned()
        try:  # a loss is taken before its step: the last one has none after it
            check_rows(self.names_)
        except ValueError as error:
            steps = len(fit.history)
            raise RuntimeError(
                f"after the last of {steps} steps {error}, with a lower lr (now {self.lr})"
            ) from error

    def _logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.encoder.logit_scale / self.temperature * images @ texts.T

    def _name_term(self, images: Tensor, prompts: Tensor, labels: Tensor, known: Known) -> Tensor:
        scaled = self._logits(images, prompts)
        positives = labels[:, None] == torch.arange(len(prompts), device=labels.device)
        choices, right = scaled, positives
        if known.negatives is not None:
            wrong = self._logits(images, known.negatives)
            choices = torch.cat([scaled - self.margin, wrong], dim=1)
            right = F.pad(positives, (0, wrong.shape[1]))
        across = multi_positive_loss(choices, right)
        if not self.text_to_image:
            return across
        return (across + multi_positive_loss(scaled.T, positives.T)) / 2


class Draw(NamedTuple):
    """What one step looks at: images ``(B, D)``, their labels ``(B,)``, and texts by name."""

    images: Tensor
    labels: Tensor
    pairs: list[tuple[int, int]]
    n_prompts: int


class Labelled(NamedTuple):
    """Images with labels as `NameLearner.fit` takes them, where there are features and no files."""

    labels: np.ndarray
    names: tuple[str, ...]
    captions: tuple[None, ...]


@dataclass(eq=False)
class _Fit:
    """A learner's fit under way."""

    learner: NameLearner
    names: NameEmbeddings
    known: Known
    draws: Iterator[Draw]
    descent: dict[str, Any]  # arguments of `descend`
    history: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> list[Tensor]:
        """The rows of all names."""
        return [self.names.rows]

    @property
    def size(self) -> int:
        """Names that pass through the tower in a step."""
        return len(self.names.names)


def fit_many(
    learners: Sequence[NameLearner],
    splits: Sequence[Any],
    features: Sequence[Tensor | None] | None = None,
    unlabelled: Sequence[Tensor | None] | None = None,
    most: int = MOST,
) -> list[NameLearner]:
    """The learners, each fitted to its split as its own `fit` would, in one batch.

    All names that are learned at a time pass through the text tower together. Learners do not see
    one another: each draws its own batches, views and templates, and has a loss, and a state of
    the optimiser, of its own.

    Parameters
    ----------
    learners : sequence of NameLearner
        Of one encoder; all other settings may differ.
    splits, features, unlabelled : sequence
        Arguments of `NameLearner.fit` for each; without `features` they are computed.
    most : int
        Names that pass through the tower at a time, if not of one learner alone.

    Raises
    ------
    ValueError, RuntimeError
        As `NameLearner.fit` does; where a loss is not finite, it may be any learner's.
    """
    learners, nothing = list(learners), [None] * len(learners)
    encoder = shared_encoder(learners)
    forward = text_forward(encoder) if learners else None
    features = nothing if features is None else features
    given = zip(learners, splits, features, unlabelled or nothing, strict=True)
    fits = []
    for own in given:  # no comprehension: a warning counts the frames above it
        fits.append(_begun(*own, forward))
    for group in descend_together(encoder, fits, _losses, most):
        with torch.no_grad():
            classifiers = classifiers_together([fit.names for fit in group])
        for fit, classifier in zip(group, classifiers, strict=True):
            fit.learner._end(fit, classifier)
    return learners


def _begun(
    learner: NameLearner,
    split: Any,
    features: Tensor | None,
    unlabelled: Tensor | None,
    forward: Any,
) -> _Fit:
    """A learner's fit before its first step."""
    if not hasattr(split, "labels"):
        split = Labelled(np.empty(0, np.int64), tuple(as_names(split, "names")), ())
    encoder, prior = learner.encoder, learner.prior
    for stale in ("mixture_", "captions_missing_", "captions_without_name_"):
        vars(learner).pop(stale, None)  # of an earlier fit
    if features is None:
        features = torch.zeros(1, 0, encoder.dim)
        if len(split.labels):
            features = training_features(encoder, split, learner.views, learner.seed, learner.clean)
    features, labels = check_training(split, features, empty=prior is not None)
    features = features.to(encoder.device)
    start = {"init": learner.init, "seed": learner.seed, "min_rows": learner.min_rows}
    names = NameEmbeddings(
        encoder, split.names, learner.templates, learner.hint, forward=forward, **start
    )
    known = learner._known(split.names, features, labels, unlabelled)
    if len(split.names) < 2 and known.negatives is None and not learner.anchor_weight:
        raise ValueError("one class alone has nothing to be told from: pass negatives=")
    if not len(labels):
        if not learner.anchor_weight:
            raise ValueError("without labelled images a prior is learned by anchor_weight above 0")
        if unlabelled is None and prior is not None:
            warnings.warn(
                f"no image of {len(split.names)} names: they are learned from the prior alone "
                f"({', '.join(prior.sources)})",
                stacklevel=4,
            )
    contexts = labels
    if learner.caption_weight and len(labels):
        contexts = learner._contexts(split, labels, names)
    size = max(1, min(learner.batch_size or len(labels), len(labels)))
    # Epochs are the authors': whole batches, what is left over dropped. A pass over no image at
    # all is one step, which the prior alone takes.
    per_epoch = max(1, len(labels) // size if learner.epochs else -(-len(labels) // size))
    steps = learner.epochs * per_epoch if learner.epochs else learner.steps
    same = ("lr", "optimizer", "weight_decay", "warmup_epochs", "average")
    descent = {"steps": steps, "per_epoch": per_epoch, **{k: getattr(learner, k) for k in same}}
    draws = learner._draws(names, features, labels, contexts, size)
    return _Fit(learner, names, known, draws, descent)


def _losses(group: Sequence[_Fit]) -> Iterator[list[Tensor]]:
    """Losses of a group's fits at each step."""
    while True:
        draws = [next(fit.draws) for fit in group]
        texts = features_together([fit.names for fit in group], [draw.pairs for draw in draws])
        yield [
            fit.learner._loss(draw, own, fit.known)
            for fit, draw, own in zip(group, draws, texts, strict=True)
        ]
