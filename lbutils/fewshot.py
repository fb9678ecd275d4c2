"""Few-shot name learning (FSNL): the names of classes learned from a few captioned images.

Only the rows of the names move. Image features are computed once; every ablation of the paper is
an argument of `NameLearner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbutils.names import NameEmbeddings, Names
from lbutils.prompts import Slots, slots, take_out
from lbutils.zeroshot import FeatureClassifier, training_features


def multi_positive_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over rows of ``-log(sum_j softmax(logits)_ij positives_ij + 1e-10)``, a scalar.

    Parameters
    ----------
    logits : Tensor, shape (N, M)
    positives : bool Tensor, shape (N, M)
        Which columns are right for a row; a row with none adds a constant.

    Notes
    -----
    Source: the authors' released code.
    """
    share = (logits.softmax(dim=1) * positives).sum(dim=1)
    return -(share + 1e-10).log().mean()


def both_ways(logits: Tensor, positives: Tensor) -> Tensor:
    """Half the `multi_positive_loss` of image to text plus half that of text to image."""
    across = multi_positive_loss(logits, positives)
    return (across + multi_positive_loss(logits.T, positives.T)) / 2


def swap_contexts(labels: Tensor, generator: torch.Generator) -> Tensor:
    """For each sample the index of a random sample of another class, ``(N,)``.

    Its own index where the batch has one class only.

    Parameters
    ----------
    labels : Tensor, shape (N,)
    generator : torch.Generator
        On the CPU.

    Notes
    -----
    Source: the context swap of FSNL, section 4 of the paper and the authors' released code.
    """
    labels = labels.cpu()
    draw = torch.rand(len(labels), len(labels), generator=generator)
    draw[labels[:, None] == labels] = -1
    draw.fill_diagonal_(-0.5)
    return draw.argmax(dim=1)


def schedule(epoch: int, epochs: int, lr: float, warmup_epochs: int = 0) -> float:
    """Learning rate of an epoch: 1e-5 while warming up, then a cosine from `lr` to 0."""
    if epoch < warmup_epochs:
        return 1e-5
    return lr * (1 + np.cos(np.pi * epoch / epochs)) / 2


def optimiser_for(rows: Tensor, kind: str, lr: float) -> torch.optim.Optimizer:
    """Adam, or SGD with the authors' momentum 0.9 and weight decay 5e-4.

    Raises
    ------
    ValueError
        If `kind` is neither ``"adam"`` nor ``"sgd"``.
    """
    if kind == "adam":
        return torch.optim.Adam([rows], lr=lr)
    if kind == "sgd":
        return torch.optim.SGD([rows], lr=lr, momentum=0.9, weight_decay=5e-4)
    raise ValueError(f"optimizer={kind!r}: choose 'adam' or 'sgd'")


class Frozen:
    """Context in which no parameter of a model may change, or ask for a gradient.

    Raises
    ------
    RuntimeError
        On entering, if a parameter is trainable; on leaving, if one was written to.
    """

    def __init__(self, model: torch.nn.Module):
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def __enter__(self) -> Frozen:
        moving = [name for name, tensor in self.tensors.items() if tensor.requires_grad]
        if moving:
            raise RuntimeError(f"the encoder must be frozen: {moving[0]} asks for a gradient")
        self.versions = {name: tensor._version for name, tensor in self.tensors.items()}
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        moved = [name for name, was in self.versions.items() if self.tensors[name]._version != was]
        if moved and kind is None:
            raise RuntimeError(f"the encoder moved while names were learned: {moved[0]}")


class NameLearner(FeatureClassifier):
    """Classifier whose class names are learned from a few images and their captions.

    The loss is ``name_weight`` times a name term plus ``caption_weight`` times a caption term,
    both multi-positive and in both directions. The name term sets images against prompts of all
    names. The caption term sets images against captions, each of which is the context of a
    sample of another class with the sample's own name put in. No other parameter than the rows
    of the names moves, so the names' classifiers of other classes stay as they were.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    hint : str, optional
        Superclass for templates with a ``{hint}``.
    templates : str or sequence of str
        A template set, one template, or several. Training draws one of several at each step;
        ``classifier_`` is their mean.
    init : "clip", "random" or int
        Start of the rows, see `NameEmbeddings`.
    name_weight, caption_weight : float
        Weights of the terms; 0 leaves a term out.
    swap : bool
        Whether captions exchange contexts; otherwise each sample keeps its own.
    info_nce : bool
        Whether in the caption term only a sample's own caption counts as right.
    optimizer : "adam" or "sgd"
        Adam, or SGD with momentum 0.9 and weight decay 5e-4.
    lr : float
        Learning rate at the start of the cosine.
    steps : int
        Optimiser steps. The last one is the result.
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
    negatives : Tensor, shape (K, D), optional
        Text features of other classes (such as the IP names), which the name term sets against
        the images as wrong answers. They are not moved.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Text features of the learned names, unit length, on the CPU.
    names_ : Names
        Learned rows by name; ``names_.save(path)`` writes them.
    history_ : list of float
        Loss of each step.
    captions_without_name_ : int
        Captions in which the class name was not found. Their whole text follows the plain
        prompt as context.
    embeddings_ : NameEmbeddings

    Notes
    -----
    Source: section 4 of the paper (eq. 2 and 4) and the authors' released code, whose constants
    `released` sets.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        hint: str | None = None,
        templates: str | Sequence[str] = "mini",
        init: str | int = "clip",
        name_weight: float = 0.5,
        caption_weight: float = 0.5,
        swap: bool = True,
        info_nce: bool = False,
        optimizer: str = "adam",
        lr: float = 0.003,
        steps: int = 20,
        batch_size: int | None = None,
        warmup_epochs: int = 0,
        views: int = 4,
        clean: bool = True,
        seed: int = 0,
        negatives: Tensor | None = None,
    ):
        if name_weight < 0 or caption_weight < 0 or name_weight + caption_weight <= 0:
            raise ValueError("name_weight and caption_weight must not be negative, nor both 0")
        if steps < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError("steps and batch_size must be at least 1")
        self.encoder, self.hint, self.templates, self.init = encoder, hint, templates, init
        self.name_weight, self.caption_weight = name_weight, caption_weight
        self.swap, self.info_nce = swap, info_nce
        self.optimizer, self.lr, self.steps = optimizer, lr, steps
        self.batch_size, self.warmup_epochs = batch_size, warmup_epochs
        self.views, self.clean, self.seed, self.negatives = views, clean, seed, negatives

    @classmethod
    def released(
        cls, encoder: Any, hint: str, shots: int, n_classes: int, **changes: Any
    ) -> NameLearner:
        """Learner with the constants of the authors' released code.

        SGD over 200 epochs, the first at 1e-5; batch of ``min(shots, 4) * n_classes``; learning
        rate ``batch / 128 * 2e-4``; crops drawn anew in every epoch (200 views, so the image
        tower runs 200 times over the images).

        Parameters
        ----------
        encoder : DualEncoder
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
            "hint": hint,
            "templates": "released",
            "optimizer": "sgd",
            "lr": batch / 128 * 2e-4,
            "steps": epochs * -(-shots * n_classes // batch),
            "batch_size": batch,
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
            If the split is empty or the features do not fit it.
        RuntimeError
            If the encoder is not frozen, or moved.
        """
        if not len(split):
            raise ValueError("the split has no image to learn names from")
        if features is None:
            features = training_features(self.encoder, split, self.views, self.seed, self.clean)
        if features.ndim != 3 or features.shape[1] != len(split):
            raise ValueError(
                f"features are {tuple(features.shape)}; expected (views, {len(split)}, D)"
            )
        names = NameEmbeddings(
            self.encoder, split.names, self.templates, self.hint, self.init, self.seed
        )
        labels = torch.tensor(np.asarray(split.labels))
        contexts = self._contexts(split, labels, names)
        with Frozen(self.encoder.model):
            self.history_ = self._train(names, features.to(self.encoder.device), labels, contexts)
            with torch.no_grad():
                self.classifier_ = names().cpu()
        self.embeddings_ = names
        self.names_: Names = names.learned()
        return self

    def _contexts(self, split: Any, labels: Tensor, names: NameEmbeddings) -> Tensor:
        """Number of each sample's context in `names`, ``(N,)``."""
        plain = slots(names.templates[0], self.hint)
        self.captions_without_name_ = 0
        found = []
        for caption, label in zip(split.captions, labels.tolist(), strict=True):
            cut = take_out(caption, split.names[label]) if caption else plain
            if cut is None:
                self.captions_without_name_ += 1
                cut = Slots(plain.before, f"{plain.after} {caption}")
            found.append(cut)
        return torch.tensor(names.add_contexts(found))

    def _train(
        self, names: NameEmbeddings, features: Tensor, labels: Tensor, contexts: Tensor
    ) -> list[float]:
        generator = torch.Generator().manual_seed(self.seed)
        optimiser = optimiser_for(names.rows, self.optimizer, self.lr)
        size = min(self.batch_size or len(labels), len(labels))
        per_epoch = -(-len(labels) // size)
        history = []
        for step in range(self.steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                order = torch.randperm(len(labels), generator=generator)
                if epoch % len(features) == 0:
                    turns = torch.randperm(len(features), generator=generator)
            optimiser.param_groups[0]["lr"] = schedule(
                epoch, -(-self.steps // per_epoch), self.lr, self.warmup_epochs
            )
            batch = order[place * size : (place + 1) * size]
            view = features[turns[epoch % len(features)]]
            images = view.index_select(0, batch.to(view.device))
            loss = self._loss(names, images, labels[batch], contexts[batch], generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(float(loss.detach()))
        return history

    def _loss(
        self,
        names: NameEmbeddings,
        images: Tensor,
        labels: Tensor,
        contexts: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Weighted sum of both terms for one batch, from one pass through the text tower."""
        pairs: list[tuple[int, int]] = []
        if self.name_weight:
            drawn = torch.randint(len(names.template_contexts), (1,), generator=generator)
            template = names.template_contexts[int(drawn)]
            pairs += [(template, owner) for owner in range(len(names.names))]
        n_prompts = len(pairs)
        if self.caption_weight:
            if self.swap:
                contexts = contexts[swap_contexts(labels, generator)]
            pairs += zip(contexts.tolist(), labels.tolist(), strict=True)
        texts = names.features(pairs)
        labels = labels.to(images.device)
        scaled = self.encoder.logit_scale * images @ texts.T
        loss = torch.zeros((), device=images.device)
        if self.name_weight:
            classes = torch.arange(n_prompts, device=images.device)
            loss = loss + self.name_weight * self._name_term(
                scaled[:, :n_prompts], labels[:, None] == classes, images
            )
        if self.caption_weight:
            same = labels[:, None] == labels
            right = torch.eye(len(labels), dtype=torch.bool, device=same.device)
            loss = loss + self.caption_weight * both_ways(
                scaled[:, n_prompts:], right if self.info_nce else same
            )
        return loss

    def _name_term(self, scaled: Tensor, positives: Tensor, images: Tensor) -> Tensor:
        if self.negatives is None:
            return both_ways(scaled, positives)
        wrong = self.encoder.logit_scale * images @ self.negatives.to(images).T
        across = multi_positive_loss(
            torch.cat([scaled, wrong], dim=1), F.pad(positives, (0, wrong.shape[1]))
        )
        return (across + multi_positive_loss(scaled.T, positives.T)) / 2
