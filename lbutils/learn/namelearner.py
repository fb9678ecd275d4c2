"""Few-shot name learning (FSNL): the names of classes learned from a few captioned images.

Only the rows of the names move. Image features are computed once. Every ablation of the paper,
and everything that we add to it, is an argument of `NameLearner`: `NameLearner.released` is the
authors' procedure to the last constant, `NameLearner.fsnl` their loss with a faster optimiser,
and the defaults are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import count
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbutils.learn.descent import descend, frozen
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
from lbutils.models.names import NameEmbeddings, Names, check_rows
from lbutils.models.prompts import Slots, slots, take_out


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

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Image features of known classes, unit length.
        labels : array-like, shape (N,)
            Rows of `texts`.
        texts : Tensor, shape (C, D)
            Text features of the known classes. Those without an image are left out.

        Raises
        ------
        ValueError
            If fewer than two classes have images, or no class has two.
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

    Notes
    -----
    Source: name and caption term: sections 5.1 and 5.2 of the paper (eq. 2 and 4) and the authors'
    released code. Anchor and stand-in term: ours; the shift between image and text features is the
    modality gap of Liang et al. 2022, "Mind the gap". Defaults were chosen on IP classes that
    play OOP (``data/mini/make/choose.py``).
    """

    encoder: Any
    _: KW_ONLY
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
    _positive: ClassVar[tuple[str, ...]] = ("temperature",)
    _signed: ClassVar[tuple[str, ...]] = ("margin", "init")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name_weight + self.caption_weight + self.anchor_weight > 0:
            raise ValueError("name_weight, caption_weight, anchor_weight: one must be above 0")
        if self.average > 1:
            raise ValueError(f"average={self.average}: give a share of the steps, 1 at most")

    @classmethod
    def fsnl(cls, encoder: Any, **changes: Any) -> NameLearner:
        """Learner with the paper's loss and nothing of ours: no anchors, no stand-ins.

        Half a name term plus half a caption term, by 40 steps of Adam over all images at once,
        where the released code takes at least 200 of SGD (`released`). `changes` are arguments of
        `NameLearner` to differ in.
        """
        return cls(encoder, **{**_PAPER, "lr": 0.01, "steps": 40, **changes})

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

        Parameters
        ----------
        hint : str
            Superclass, such as ``"animal"``.
        shots, n_classes : int
            Images per class and number of classes.
        **changes
            Arguments of `NameLearner` to differ in, for ablations.
        """
        batch = min(shots, 4) * n_classes
        epochs = 200
        constants: dict[str, Any] = {
            **_PAPER,
            "hint": hint,
            "templates": "released",
            "optimizer": "sgd",
            "lr": batch / 128 * 2e-4,
            "epochs": epochs,
            "batch_size": batch,
            "every_mention": True,
            "warmup_epochs": 1,
            "views": epochs,
            "clean": False,
        }
        return cls(encoder, **{**constants, **changes})

    def fit(self, split: Any, features: Tensor | None = None) -> NameLearner:
        """Self, with the names of the split learned.

        Parameters
        ----------
        split : Split
            Training images with labels, class names and captions (which may be None).
        features : Tensor, shape (V, N, D), optional
            Features of V views of the images; computed (and cached) if not given.

        Raises
        ------
        ValueError
            If the split is empty, the features do not fit it or are not unit vectors, or a single
            class has nothing to be told from.
        RuntimeError
            If the encoder is not frozen, or moved, or the loss is no longer finite.
        """
        if features is None:
            features = training_features(self.encoder, split, self.views, self.seed, self.clean)
        features, labels = check_training(split, features)
        features = features.to(self.encoder.device)
        names = NameEmbeddings(
            self.encoder,
            split.names,
            self.templates,
            self.hint,
            self.init,
            self.seed,
            min_rows=self.min_rows,
        )
        known = self._known(features, labels, split.names)
        if len(split.names) < 2 and known.negatives is None and not self.anchor_weight:
            raise ValueError("one class alone has nothing to be told from: pass negatives=")
        contexts = self._contexts(split, labels, names) if self.caption_weight else labels
        size = min(self.batch_size or len(labels), len(labels))
        per_epoch = len(labels) // size if self.epochs else -(-len(labels) // size)
        steps = self.epochs * per_epoch if self.epochs else self.steps
        with frozen(self.encoder.model):
            self.history_ = descend(
                [names.rows],
                self._losses(names, features, labels, contexts, known, size),
                steps,
                lr=self.lr,
                optimizer=self.optimizer,
                weight_decay=self.weight_decay,
                per_epoch=per_epoch,
                warmup_epochs=self.warmup_epochs,
                average=self.average,
            )
            with torch.no_grad():
                self.classifier_ = names().cpu()
        self.embeddings_ = names
        self.names_: Names = names.learned()
        try:  # a loss is taken before its step: the last one has none after it
            check_rows(self.names_)
        except ValueError as error:
            raise RuntimeError(
                f"after the last of {steps} steps {error}, with a lower lr (now {self.lr})"
            ) from error
        return self

    def _negatives(self, names: Sequence[str], features: Tensor) -> Tensor | None:
        """Text features ``(K, D)`` of the other names, checked."""
        if self.negatives is None:
            return None
        if isinstance(self.negatives, Tensor):
            return unit_rows(self.negatives, "negatives", features.shape[2]).to(features)
        check_others(self.negatives, names)
        texts = text_features(self.encoder, self.negatives, self.templates, self.hint)
        return texts.to(features)

    def _known(self, features: Tensor, labels: Tensor, names: Sequence[str]) -> Known:
        """What the terms that are ours hold names against."""
        negatives = self._negatives(names, features)
        means, counts = class_means(features.cpu(), labels, len(names))
        anchors = F.normalize(means, dim=1).to(features)
        if self.alignment is not None:
            shots = len(labels) / int((counts > 0).sum())
            anchors = self.alignment(anchors, shots)
        if negatives is None or not self.stand_in_weight:
            return Known(anchors, negatives)
        shift = anchors[anchors.any(1)].mean(0) - negatives.mean(0)
        return Known(anchors, negatives, F.normalize(negatives + shift, dim=1))

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

    def _losses(
        self,
        names: NameEmbeddings,
        features: Tensor,
        labels: Tensor,
        contexts: Tensor,
        known: Known,
        size: int,
    ) -> Iterator[Tensor]:
        """Losses of batches of `size`, without end; each pass over the images shows one view."""
        generator = torch.Generator().manual_seed(self.seed)
        shown = len(labels) - len(labels) % size if self.epochs else len(labels)
        for epoch in count():
            order = torch.randperm(len(labels), generator=generator)
            if epoch % len(features) == 0:
                turns = torch.randperm(len(features), generator=generator)
            view = features[turns[epoch % len(features)]]
            for batch in order[:shown].split(size):
                images = view.index_select(0, batch.to(view.device))
                yield self._loss(names, images, labels[batch], contexts[batch], known, generator)

    def _loss(
        self,
        names: NameEmbeddings,
        images: Tensor,
        labels: Tensor,
        contexts: Tensor,
        known: Known,
        generator: torch.Generator,
    ) -> Tensor:
        """Weighted sum of the terms for one batch, from one pass through the text tower."""
        pairs: list[tuple[int, int]] = []
        if self.name_weight or self.anchor_weight:
            drawn = torch.randint(len(names.template_contexts), (1,), generator=generator)
            template = names.template_contexts[int(drawn)]
            pairs += [(template, owner) for owner in range(len(names.names))]
        n_prompts = len(pairs)
        if self.caption_weight:
            if self.swap:
                contexts = contexts[swap_contexts(labels, generator)]
            pairs += zip(contexts.tolist(), labels.tolist(), strict=True)
        texts = names.features(pairs)
        prompts, captions = texts[:n_prompts], texts[n_prompts:]
        labels = labels.to(images.device)
        loss = torch.zeros((), device=images.device)
        if self.name_weight:
            loss = loss + self.name_weight * self._name_term(images, prompts, labels, known)
        if self.caption_weight:
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
