"""Rivals that adapt cached features: no text tower runs while they train.

CLIP-Adapter and ProLIP change the image features, TaskRes and CLAP the text features, Tip-Adapter
and LP++ add what the training images say to what the names say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lbutils.models.classifier import check_training, class_means, training_features
from lbutils.models.features import image_features
from lbutils.rivals.context import FewShotClassifier, descend, rounds, two_classes


class CLIPAdapter(FewShotClassifier):
    """A bottleneck behind the image encoder, mixed with the feature that went in.

    The feature f becomes ``ratio * A(f) + (1 - ratio) * f``, normalised, where A is two layers
    without bias, each followed by a ReLU.

    Parameters
    ----------
    encoder : DualEncoder
    ratio : float
        Share of the adapter; 0 is zero-shot. The authors' is 0.2.
    reduction : int
        How many times narrower the bottleneck is. The authors' is 4.
    optimizer, lr, steps
        See `descend`; all images in a step, in one view. The authors train 200 epochs of small
        batches; the defaults are ours, not searched.
    **common
        ``templates``, ``hint``, ``views``, ``clean`` and ``seed`` of `FewShotClassifier`.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Text features of the names, not changed.
    weights_ : tuple of Tensor
        Of the layers, (D / reduction, D) and (D, D / reduction).
    history_ : list of float

    Notes
    -----
    Source: Gao et al. 2024, "CLIP-Adapter: better vision-language models with feature adapters",
    IJCV; the image adapter, as in the released code.
    """

    def __init__(
        self,
        encoder: Any,
        ratio: float = 0.2,
        reduction: int = 4,
        *,
        optimizer: str = "adam",
        lr: float = 0.01,
        steps: int = 100,
        **common: Any,
    ):
        super().__init__(encoder, **common)
        if not 0 <= ratio <= 1 or reduction < 1:
            raise ValueError("ratio must lie in 0 to 1, and reduction be at least 1")
        self.ratio, self.reduction = ratio, reduction
        self.optimizer, self.lr, self.steps = optimizer, lr, steps

    def fit(self, split: Any, features: Tensor | None = None) -> CLIPAdapter:
        """Self, with the adapter trained; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        two_classes(self.names_)
        texts = self.classifier_for(self.names_)
        generator = torch.Generator().manual_seed(self.seed)
        width = images.shape[-1]
        inner = max(1, width // self.reduction)
        weights = tuple(
            ((torch.rand(out, given, generator=generator) * 2 - 1) / given**0.5).requires_grad_()
            for out, given in ((inner, width), (width, inner))
        )
        turns = rounds(len(images), generator)

        def objective() -> Tensor:
            changed = self._adapt(images[next(turns)], weights)
            return F.cross_entropy(self.encoder.logit_scale * changed @ texts.T, labels)

        if self.ratio:
            descent: dict[str, Any] = {
                "optimizer": self.optimizer,
                "lr": self.lr,
                "steps": self.steps,
            }
            self.history_ = descend(weights, objective, **descent)
        else:
            self.history_ = []
        self.weights_ = tuple(weight.detach() for weight in weights)
        self.classifier_ = texts
        return self

    def _adapt(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        inner = F.linear(images, weights[0]).relu()
        mixed = self.ratio * F.linear(inner, weights[1]).relu() + (1 - self.ratio) * images
        return F.normalize(mixed, dim=-1)

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` of the adapted image features."""
        self._needs_fit("weights_")
        return super().logits(self._adapt(self._features(images).float(), self.weights_))

    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of other names: they, too, meet the adapted image features."""
        self._needs_fit("weights_")
        adapted = self._adapt(self._features(images).float(), self.weights_)
        return super().other_logits(adapted, names)


class TaskRes(FewShotClassifier):
    """Text features with a learned residual each: ``t + alpha * r``, normalised.

    Parameters
    ----------
    encoder : DualEncoder
    alpha : float
        Factor of the residuals; 0 is zero-shot. The authors' is 0.5 (1 on Flowers102).
    optimizer, lr, steps
        See `descend`; all images in a step, in one view. The authors train 100 to 200 epochs of
        small batches by Adam at 0.002; the defaults are chosen on IP classes.
    **common
        ``templates``, ``hint``, ``views``, ``clean`` and ``seed`` of `FewShotClassifier`.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
    residuals_ : Tensor, shape (C, D)
    history_ : list of float

    Notes
    -----
    Source: Yu et al. 2023, "Task residual for tuning vision-language models", CVPR; the regular
    base. Names that were not learned have no residual.
    """

    def __init__(
        self,
        encoder: Any,
        alpha: float = 0.5,
        *,
        optimizer: str = "adam",
        lr: float = 0.02,
        steps: int = 50,
        **common: Any,
    ):
        super().__init__(encoder, **common)
        self.alpha, self.optimizer, self.lr, self.steps = alpha, optimizer, lr, steps

    def fit(self, split: Any, features: Tensor | None = None) -> TaskRes:
        """Self, with the residuals learned; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        two_classes(self.names_)
        texts = self.classifier_for(self.names_)
        residuals = torch.zeros_like(texts, requires_grad=True)
        turns = rounds(len(images), torch.Generator().manual_seed(self.seed))

        def objective() -> Tensor:
            classifier = F.normalize(texts + self.alpha * residuals, dim=-1)
            scaled = self.encoder.logit_scale * images[next(turns)] @ classifier.T
            return F.cross_entropy(scaled, labels)

        descent: dict[str, Any] = {"optimizer": self.optimizer, "lr": self.lr, "steps": self.steps}
        self.history_ = descend([residuals], objective, **descent)
        self.residuals_ = residuals.detach()
        self.classifier_ = F.normalize(texts + self.alpha * self.residuals_, dim=-1)
        return self


class TipAdapter(FewShotClassifier):
    """Zero-shot logits plus those of a cache of the training images; without training.

    The cache adds ``alpha * exp(-beta * (1 - f k))`` to the class of each key k. A key is the
    normalised mean of an image's views.

    Parameters
    ----------
    encoder : DualEncoder
    alpha : float
        Weight of the cache; 0 is zero-shot.
    beta : float
        Sharpness of the cache. The authors start from alpha 1 and beta 5.5 and search both on
        validation data; here both are as given.
    **common
        ``templates``, ``hint``, ``views``, ``clean`` and ``seed`` of `FewShotClassifier`.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Text features of the names, not changed.
    keys_ : Tensor, shape (N, D)
    values_ : Tensor, shape (N, C)
        One-hot labels of the keys.

    Notes
    -----
    Source: Zhang et al. 2022, "Tip-Adapter: training-free adaption of CLIP for few-shot
    classification", ECCV. Names that were not learned have no key, so only the columns of the
    learned names get a cache term.
    """

    def __init__(self, encoder: Any, alpha: float = 1.0, beta: float = 5.5, **common: Any):
        super().__init__(encoder, **common)
        if alpha < 0 or beta <= 0:
            raise ValueError("alpha must not be negative, and beta must be positive")
        self.alpha, self.beta = alpha, beta

    def fit(self, split: Any, features: Tensor | None = None) -> TipAdapter:
        """Self, with the cache filled; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        keys = F.normalize(images.mean(dim=0), dim=-1)
        values = F.one_hot(labels, len(self.names_)).float()
        self.classifier_ = self.classifier_for(self.names_)
        self.keys_, self.values_ = self._tune(keys, values, images, labels), values
        return self

    def _tune(self, keys: Tensor, values: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return keys

    def _cache(self, images: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.alpha * ((images @ keys.T - 1) * self.beta).exp() @ values

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)``: zero-shot's plus the cache's."""
        self._needs_fit("keys_")
        features = self._features(images).float()
        return super().logits(features) + self._cache(features, self.keys_, self.values_)


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are fine-tuned.

    Parameters
    ----------
    encoder : DualEncoder
    alpha, beta
        As in `TipAdapter`.
    lr, steps
        Of AdamW; all images in a step, in one view. The authors train 20 epochs at 0.001.
    **common
        As in `TipAdapter`.

    Attributes
    ----------
    classifier_, keys_, values_
        As in `TipAdapter`; keys are no longer of unit length.
    history_ : list of float

    Notes
    -----
    Source: Zhang et al. 2022, as `TipAdapter`. The released code keeps the best epoch on test
    data; here the last step is the result.
    """

    def __init__(
        self,
        encoder: Any,
        alpha: float = 1.0,
        beta: float = 5.5,
        *,
        lr: float = 0.001,
        steps: int = 20,
        **common: Any,
    ):
        super().__init__(encoder, alpha, beta, **common)
        self.lr, self.steps = lr, steps

    def _tune(self, keys: Tensor, values: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        two_classes(self.names_)
        moved = keys.clone().requires_grad_()
        texts = [self.encoder.logit_scale * view @ self.classifier_.T for view in images]
        turns = rounds(len(images), torch.Generator().manual_seed(self.seed))

        def objective() -> Tensor:
            turn = next(turns)
            return F.cross_entropy(texts[turn] + self._cache(images[turn], moved, values), labels)

        self.history_ = []
        if self.alpha:
            options: dict[str, Any] = {"optimizer": "adamw", "lr": self.lr, "steps": self.steps}
            self.history_ = descend([moved], objective, **options)
        return moved.detach()


class CLAP(FewShotClassifier):
    """Class-adaptive linear probe: starts at the text features, and each class is held to its own.

    The loss is the cross-entropy of scaled cosines plus the mean over classes of
    ``m_c * |w_c - t_c|^2``. The multiplier m_c is the mean probability that zero-shot gives the
    class on its own training images, so names that work are held and others let go; nothing is
    tuned on validation data.

    Parameters
    ----------
    encoder : DualEncoder
    constraint : float
        Factor of all multipliers: the authors' is 1; 0 is their plain probe (ZS-LP), and infinity
        leaves zero-shot.
    lr, steps
        Of SGD with momentum 0.9 down a cosine; all views of all images are samples of a step. The
        authors take 0.1 and 300 epochs; on IP classes 100 steps do as well.
    **common
        ``templates``, ``hint``, ``views``, ``clean`` and ``seed`` of `FewShotClassifier`.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
    multipliers_ : Tensor, shape (C,)
        1 for a class without a training image, which keeps it at its text.
    history_ : list of float

    Notes
    -----
    Source: Silva-Rodriguez et al. 2024, "A closer look at the few-shot adaptation of large
    vision-language models", CVPR, and its released code (multipliers are set once).
    """

    def __init__(
        self,
        encoder: Any,
        constraint: float = 1.0,
        *,
        lr: float = 0.1,
        steps: int = 100,
        **common: Any,
    ):
        super().__init__(encoder, **common)
        if not constraint >= 0:
            raise ValueError(f"constraint={constraint} must not be negative")
        self.constraint, self.lr, self.steps = constraint, lr, steps

    def fit(self, split: Any, features: Tensor | None = None) -> CLAP:
        """Self, with the probe trained; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        two_classes(self.names_)
        texts = self.classifier_for(self.names_)
        samples, owners = images.flatten(0, 1), labels.repeat(len(images))
        scale = self.encoder.logit_scale
        self.multipliers_ = own_probability(scale * samples @ texts.T, owners)
        weights = texts.clone().requires_grad_()
        pull = self.constraint * self.multipliers_

        def objective() -> Tensor:
            scaled = scale * samples @ F.normalize(weights, dim=-1).T
            apart = (weights - texts).square().sum(dim=1)
            return F.cross_entropy(scaled, owners) + (pull * apart).mean()

        self.history_ = []
        if self.constraint < float("inf"):
            options: dict[str, Any] = {"optimizer": "sgd", "lr": self.lr, "steps": self.steps}
            self.history_ = descend([weights], objective, **options)
        self.classifier_ = F.normalize(weights.detach(), dim=-1)
        return self


def own_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean probability ``(C,)`` that the samples of a class give it; 1 where it has none.

    Parameters
    ----------
    logits : Tensor, shape (N, C)
    labels : Tensor, shape (N,)
    """
    own = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    counts = torch.bincount(labels, minlength=logits.shape[1])
    sums = torch.zeros(logits.shape[1]).index_add_(0, labels, own)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.ones(()))


class LPPlusPlus(FewShotClassifier):
    """LP++: a linear probe whose weights are ``w_k + alpha_k t_k``, visual and text.

    Cross-entropy over visual prototypes w, biases b and one multiplier alpha of the text for each
    class. Step sizes come from Lipschitz bounds on the data. The prototypes start at the sums of
    their class's features, the multipliers at `start` times the mean similarity of an image to
    its own name.

    Parameters
    ----------
    encoder : DualEncoder
    start : float
        The authors' is 250.
    steps : int
        The authors take 300 and keep the best on validation data; here the last is the result,
        and on IP classes 100 do as well.
    every : int
        Steps of the prototypes to one of the multipliers. The authors' is 10.
    **common
        ``templates``, ``hint``, ``views``, ``clean`` and ``seed`` of `FewShotClassifier`.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        ``w + alpha * t``; not of unit length.
    bias_ : Tensor, shape (C,)
    alpha_ : Tensor, shape (C,)
    history_ : list of float

    Notes
    -----
    Source: Huang et al. 2024, "LP++: a surprisingly strong linear probe for few-shot CLIP", CVPR,
    and its released code. A name that was not learned is a class without images, for which the
    model has its text alone: its logit is the mean multiplier times the similarity.
    """

    def __init__(
        self,
        encoder: Any,
        start: float = 250.0,
        *,
        steps: int = 100,
        every: int = 10,
        **common: Any,
    ):
        super().__init__(encoder, **common)
        if steps < 1 or every < 1:
            raise ValueError("steps and every must be at least 1")
        self.start, self.steps, self.every = start, steps, every

    def fit(self, split: Any, features: Tensor | None = None) -> LPPlusPlus:
        """Self, with both blocks descended; all views of all images are samples."""
        images, labels = self._training(split, features)
        two_classes(self.names_)
        texts = self.classifier_for(self.names_)
        means, counts = class_means(images, labels, len(self.names_))
        samples, owners = images.flatten(0, 1), labels.repeat(len(images))
        similar = samples @ texts.T
        own = (means * texts).sum(dim=1)[counts > 0]
        alpha = torch.full((len(texts),), self.start * float(own.mean()))
        weights, alpha, bias = self._descend(
            samples, similar, owners, means * counts[:, None], alpha
        )
        self.alpha_, self.bias_ = alpha, bias
        self.classifier_ = weights + alpha[:, None] * texts
        return self

    def _descend(
        self, samples: Tensor, similar: Tensor, owners: Tensor, weights: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks after the descent. Steps in closed form: autograd would cost more than they."""
        wanted = F.one_hot(owners, similar.shape[1]).float()
        step, alpha_step = step_sizes(samples, similar)
        bias, pace, bias_pace = (
            torch.zeros(len(alpha)),
            torch.zeros_like(weights),
            torch.zeros(len(alpha)),
        )
        self.history_ = []
        for turn in range(self.steps):
            log_shares = (samples @ weights.T + bias + alpha * similar).log_softmax(dim=1)
            self.history_.append(-float(log_shares.gather(1, owners[:, None]).mean()))
            wrong = (log_shares.exp() - wanted) / len(samples)
            pace = 0.9 * pace + wrong.T @ samples
            bias_pace = 0.9 * bias_pace + wrong.sum(dim=0)
            weights, bias = weights - step * pace, bias - step * bias_pace
            if (turn + 1) % self.every == 0:
                alpha = alpha - alpha_step * (wrong * similar).sum(dim=0)
        return weights, alpha, bias

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)``, by the weights that the fit has scaled."""
        self._needs_fit("alpha_")
        return self._features(images).float() @ self.classifier_.T + self.bias_

    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of other names: the mean multiplier times their similarity."""
        self._needs_fit("alpha_")
        texts = self.classifier_for(names)
        return self.alpha_.mean() * self._features(images).float() @ texts.T


def step_sizes(samples: Tensor, similar: Tensor) -> tuple[float, float]:
    """LP++'s step sizes of the prototypes and of the multipliers.

    With 1/4 as the bound of the derivative of a probability by its own logit, the mean
    cross-entropy's gradient has the Lipschitz constants ``lambda / (4 N)`` by a prototype, lambda
    being the largest eigenvalue of ``samples.T @ samples``, and ``m / (4 N)`` by the multipliers,
    m being the largest sum over samples of squared similarities to a name. The first step is the
    inverse, ``4 N / lambda``. The second is ``N / (4 m)``, a sixteenth of the inverse: the more
    cautious step of the released code.

    Parameters
    ----------
    samples : Tensor, shape (N, D)
    similar : Tensor, shape (N, C)
        Similarities of samples and text features.
    """
    largest = float(torch.linalg.matrix_norm(samples, ord=2)) ** 2
    return 4 * len(samples) / largest, len(samples) / (4 * float(similar.square().sum(0).max()))


class _Tower(nn.Module):
    """A model's `encode_image` as a module, for `functional_call`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


class BeforeProjection:
    """An encoder's image tower before its last projection, behind a `DualEncoder`'s interface.

    `image_features` and `training_features` take it in the place of an encoder, and cache what it
    returns under a key of its own.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.

    Attributes
    ----------
    weight : Tensor, shape (D, P)
        The projection: image features are ``weight @ before + bias``, normalised.
    bias : Tensor, shape (D,)
        Zeros where the projection has none.

    Raises
    ------
    ValueError
        If the image tower does not end in a linear projection.

    Notes
    -----
    The projection is replaced by the identity while the tower runs; the model stays as it is.
    """

    def __init__(self, encoder: Any):
        self.encoder, self._tower = encoder, _Tower(encoder.model)
        held = dict(encoder.model.named_parameters())
        # A matrix that multiplies from the right, or a layer at the end of a head or a pool.
        places = {
            "visual.proj": "visual.proj",
            **{f"visual.{head}.weight": f"visual.{head}.bias" for head in _HEADS},
        }
        self._name = next((name for name in places if name in held), "")
        if not self._name or held[self._name].ndim != 2:
            raise ValueError(
                f"the image tower of {encoder.name} ends in no linear projection, which ProLIP "
                "tunes: use another method, or a model with one"
            )
        matrix = held[self._name].detach()
        self.weight = (matrix.T if self._name == "visual.proj" else matrix).float().cpu().clone()
        self._bias = places[self._name] if places[self._name] != self._name else ""
        zeros = torch.zeros(len(self.weight))
        self.bias = held[self._bias].detach().float().cpu() if self._bias in held else zeros
        self.dim = self.weight.shape[1]
        self.device, self.dtype = encoder.device, encoder.dtype
        for name in ("preprocess", "augment", "preprocess_config", "augment_config"):
            setattr(self, name, getattr(encoder, name))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the encoder's own fingerprint and the name of the projection."""
        return hashlib.sha256(
            f"{self.encoder.fingerprint} before {self._name}".encode()
        ).hexdigest()

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Features (B, P) before the projection, float32, on the model's device."""
        pixels = pixels.to(self.device, self.dtype)
        swapped = {f"model.{self._name}": torch.eye(self.dim).to(pixels)}
        if self._bias in dict(self.encoder.model.named_parameters()):
            swapped[f"model.{self._bias}"] = torch.zeros(self.dim).to(pixels)
        with torch.no_grad():
            return functional_call(self._tower, swapped, (pixels,)).float()


_HEADS = ("head.proj", "attnpool.c_proj", "head", "proj")


class ProLIP(FewShotClassifier):
    """The last visual projection, fine-tuned with a penalty on how far it moves.

    The loss is the cross-entropy of scaled cosines plus ``penalty * |W - W_0|^2`` (Frobenius).

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model; its image tower must end in a linear projection.
    penalty : float, optional
        By default one over the number of shots, the authors' validation-free setting. Infinity
        leaves zero-shot.
    lr, steps
        Of Adam; all images in a step, in one view. The authors take 300 steps at 1e-5 to 1e-2.
    **common
        ``templates``, ``hint``, ``views``, ``clean`` and ``seed`` of `FewShotClassifier`.

    Attributes
    ----------
    images_from : BeforeProjection
        What computes the features that `fit` and `logits` take: ``image_features(
        prolip.images_from, split)``. Splits may be passed in their place.
    classifier_ : Tensor, shape (C, D)
        Text features of the names, not changed.
    weight_ : Tensor, shape (D, P)
        The projection.
    history_ : list of float

    Notes
    -----
    Source: Fahes et al. 2025, "CLIP's visual embedding projector is a few-shot cornucopia"
    (ProLIP), arXiv:2410.05270, and its released code.
    """

    def __init__(
        self,
        encoder: Any,
        penalty: float | None = None,
        *,
        lr: float = 1e-3,
        steps: int = 100,
        **common: Any,
    ):
        super().__init__(encoder, **common)
        if penalty is not None and not penalty >= 0:
            raise ValueError(f"penalty={penalty} must not be negative")
        self.images_from = BeforeProjection(encoder)
        self.penalty, self.lr, self.steps = penalty, lr, steps

    def fit(self, split: Any, features: Tensor | None = None) -> ProLIP:
        """Self, with the projection tuned.

        Parameters
        ----------
        split : Split
            Training images with labels and class names.
        features : Tensor, shape (V, N, P), optional
            Features before the projection; computed (and cached) if not given.

        Raises
        ------
        ValueError
            If the features are not those before the projection, or there is one class only.
        """
        if features is None:
            tower: Any = self.images_from
            features = training_features(tower, split, self.views, self.seed, self.clean)
        images, labels = check_training(split, self._before(features), unit=False)
        self.names_ = tuple(split.names)
        two_classes(self.names_)
        texts = self.classifier_for(self.names_)
        start, bias, scale = (
            self.images_from.weight,
            self.images_from.bias,
            self.encoder.logit_scale,
        )
        weight = start.clone().requires_grad_()
        shots = len(labels) / len(labels.unique())
        penalty = 1 / shots if self.penalty is None else self.penalty
        turns = rounds(len(images), torch.Generator().manual_seed(self.seed))

        def objective() -> Tensor:
            projected = F.normalize(F.linear(images[next(turns)], weight, bias), dim=-1)
            moved = (weight - start).square().sum()
            return F.cross_entropy(scale * projected @ texts.T, labels) + penalty * moved

        self.history_ = []
        if penalty < float("inf"):
            self.history_ = descend([weight], objective, lr=self.lr, steps=self.steps)
        self.weight_, self.classifier_ = weight.detach(), texts
        return self

    def _before(self, features: Tensor) -> Tensor:
        if features.shape[-1] != self.images_from.dim:
            raise ValueError(
                f"features are {features.shape[-1]} wide; ProLIP takes the {self.images_from.dim} "
                "before the projection: image_features(prolip.images_from, split), or the split"
            )
        return features

    def _features(self, images: Any) -> Tensor:
        if isinstance(images, Tensor):
            return self._before(images).cpu()
        tower: Any = self.images_from
        return image_features(tower, images)

    def _project(self, images: Any) -> Tensor:
        self._needs_fit("weight_")
        before = self._features(images).float()
        return F.normalize(F.linear(before, self.weight_, self.images_from.bias), dim=-1)

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)``; `images` is a split, or features ``(N, P)`` before the projection."""
        return self.encoder.logit_scale * self._project(images) @ self.classifier_.T

    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of other names: they, too, meet the tuned projection."""
        projected = self._project(images)
        return self.encoder.logit_scale * projected @ self.classifier_for(names).T
