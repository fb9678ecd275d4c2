"""Rivals of name learning behind the same ``fit``, ``logits`` and ``predict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lbutils.fewshot import Frozen, optimiser_for, schedule
from lbutils.names import Frame, text_forward
from lbutils.prompts import pieces
from lbutils.zeroshot import FeatureClassifier, text_classifier, training_features


class ZeroShot(FeatureClassifier):
    """The encoder as it is: class names in templates, nothing learned.

    Parameters
    ----------
    encoder : DualEncoder
    templates : str or sequence of str
        A template set, one template, or several.
    hint : str, optional
        Superclass for templates with a ``{hint}``.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
    names_ : tuple of str

    Notes
    -----
    Source: Radford et al. 2021, "Learning transferable visual models from natural language
    supervision".
    """

    def __init__(
        self, encoder: Any, templates: str | Sequence[str] = "mini", hint: str | None = None
    ):
        self.encoder, self.templates, self.hint = encoder, templates, hint

    def fit(self, split: Any, features: Tensor | None = None) -> ZeroShot:
        """Self, with the classifier of the split's class names; its images are not looked at."""
        self.names_ = tuple(split.names)
        self.classifier_ = self.classifier_for(self.names_)
        return self

    def classifier_for(self, names: Sequence[str]) -> Tensor:
        """Text features ``(C, D)`` of any names."""
        return text_classifier(self.encoder, names, self.templates, self.hint)


class CoOp(FeatureClassifier):
    """Context optimisation: one learned context, shared by all classes, before fixed names.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    n_ctx : int
        Number of learned context tokens, which start as N(0, 0.02).
    suffix : str
        Text after the name. The authors' is ``"."``.
    optimizer, lr, steps, views, clean, seed
        As in `NameLearner`, all images in each step.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
    names_ : tuple of str
    context_ : Tensor, shape (n_ctx, W)
    history_ : list of float
        Cross-entropy of each step.

    Notes
    -----
    Source: Zhou et al. 2022, "Learning to prompt for vision-language models": unified context,
    class token at the end.
    """

    def __init__(
        self,
        encoder: Any,
        n_ctx: int = 4,
        *,
        suffix: str = "",
        optimizer: str = "adam",
        lr: float = 0.002,
        steps: int = 80,
        views: int = 4,
        clean: bool = True,
        seed: int = 0,
    ):
        if n_ctx < 1 or steps < 1:
            raise ValueError("n_ctx and steps must be at least 1")
        self.encoder, self.n_ctx, self.suffix = encoder, n_ctx, suffix
        self.optimizer, self.lr, self.steps = optimizer, lr, steps
        self.views, self.clean, self.seed = views, clean, seed

    def fit(self, split: Any, features: Tensor | None = None) -> CoOp:
        """Self, with the context learned; arguments as in `NameLearner.fit`."""
        if features is None:
            features = training_features(self.encoder, split, self.views, self.seed, self.clean)
        self.names_ = tuple(split.names)
        self._text = text_forward(self.encoder)
        sheet = self._text.sheet(self._codes(self.names_))
        generator = torch.Generator().manual_seed(self.seed)
        labels = torch.tensor(np.asarray(split.labels)).to(self.encoder.device)
        start = 0.02 * torch.randn(self.n_ctx, self._text.width, generator=generator)
        context = start.to(self.encoder.device).requires_grad_()
        optimiser = optimiser_for(context, self.optimizer, self.lr)
        self.history_ = []
        with Frozen(self.encoder.model):
            for step in range(self.steps):
                if step % len(features) == 0:
                    turns = torch.randperm(len(features), generator=generator)
                optimiser.param_groups[0]["lr"] = schedule(step, self.steps, self.lr)
                images = features[turns[step % len(features)]].to(self.encoder.device)
                texts = self._text(sheet, context)
                loss = F.cross_entropy(self.encoder.logit_scale * images @ texts.T, labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                self.history_.append(float(loss.detach()))
        self.context_ = context.detach()
        self.classifier_ = self.classifier_for(self.names_)
        return self

    @torch.no_grad()
    def classifier_for(self, names: Sequence[str]) -> Tensor:
        """Text features ``(C, D)`` of any names behind the learned context.

        Raises
        ------
        RuntimeError
            If `fit` has not been called.
        """
        if not hasattr(self, "context_"):
            raise RuntimeError("this CoOp has no context yet: call fit first")
        return self._text(self._text.sheet(self._codes(names)), self.context_).cpu()

    def _codes(self, names: Sequence[str]) -> list[list[int]]:
        frame, tokenizer = Frame.of(self.encoder), self.encoder.tokenizer
        context = [-1 - row for row in range(self.n_ctx)]
        after = pieces(tokenizer, self.suffix)
        if self.n_ctx >= frame.room:
            most = frame.room - 1
            raise ValueError(f"n_ctx={self.n_ctx} leaves no room for a name: at most {most}")
        bodies = [[*context, *pieces(tokenizer, name), *after] for name in names]
        return [[*frame.lead, *body[: frame.room], *frame.tail] for body in bodies]


class LinearProbe(FeatureClassifier):
    """Logistic regression on image features: no names, no text.

    Parameters
    ----------
    encoder : DualEncoder
    C : float
        Inverse strength of the L2 penalty.
    max_iter : int
        Iterations of L-BFGS at most.
    views, clean, seed
        Training views as in `NameLearner`; each counts as a sample.

    Attributes
    ----------
    model_ : sklearn.linear_model.LogisticRegression
    names_ : tuple of str

    Notes
    -----
    Source: Radford et al. 2021, section 3.2; scikit-learn.
    """

    def __init__(
        self,
        encoder: Any,
        C: float = 1.0,
        *,
        max_iter: int = 300,
        views: int = 4,
        clean: bool = True,
        seed: int = 0,
    ):
        self.encoder, self.C, self.max_iter = encoder, C, max_iter
        self.views, self.clean, self.seed = views, clean, seed

    def fit(self, split: Any, features: Tensor | None = None) -> LinearProbe:
        """Self, fitted on all views of the images; arguments as in `NameLearner.fit`.

        Raises
        ------
        ValueError
            If the images are of fewer than two classes.
        """
        if features is None:
            features = training_features(self.encoder, split, self.views, self.seed, self.clean)
        self.names_ = tuple(split.names)
        labels = np.tile(np.asarray(split.labels), len(features))
        if len(np.unique(labels)) < 2:
            raise ValueError("a linear probe needs images of at least two classes")
        model = LogisticRegression(C=self.C, max_iter=self.max_iter)
        self.model_ = model.fit(features.flatten(0, 1).cpu().numpy(), labels)
        return self

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` float32; minus infinity for classes without a training image."""
        if not hasattr(self, "model_"):
            raise RuntimeError("this LinearProbe is not fitted yet: call fit first")
        scores = self.model_.decision_function(self._features(images).numpy())
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        full = np.full((len(scores), len(self.names_)), -np.inf, dtype=np.float32)
        full[:, self.model_.classes_] = scores
        return torch.from_numpy(full)


class Prototypes(FeatureClassifier):
    """Nearest class mean among image features: no names, no text.

    Parameters
    ----------
    encoder : DualEncoder
    views, clean, seed
        Training views as in `NameLearner`; the mean runs over all.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Normalised means; NaN for classes without a training image.
    names_ : tuple of str

    Notes
    -----
    Source: Snell et al. 2017, "Prototypical networks for few-shot learning"; Wang et al. 2019,
    "SimpleShot".
    """

    def __init__(self, encoder: Any, *, views: int = 4, clean: bool = True, seed: int = 0):
        self.encoder, self.views, self.clean, self.seed = encoder, views, clean, seed

    def fit(self, split: Any, features: Tensor | None = None) -> Prototypes:
        """Self, with the class means; arguments as in `NameLearner.fit`."""
        if features is None:
            features = training_features(self.encoder, split, self.views, self.seed, self.clean)
        self.names_ = tuple(split.names)
        labels = torch.tensor(np.asarray(split.labels))
        sums = torch.zeros(len(self.names_), features.shape[-1])
        sums.index_add_(0, labels, features.cpu().mean(0))
        sums[torch.bincount(labels, minlength=len(self.names_)) == 0] = float("nan")
        self.classifier_ = F.normalize(sums, dim=-1)
        return self

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` float32; minus infinity for classes without a training image."""
        return super().logits(images).nan_to_num(nan=float("-inf"))
