"""Rivals that adapt cached features: no text tower runs while they train.

CLIP-Adapter and ProLIP change the image features, TaskRes and CLAP the text features, Tip-Adapter
and LP++ add what the training images say to what the names say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lbutils.models.classifier import class_means
from lbutils.models.encoders import ImageTower
from lbutils.models.features import image_features
from lbutils.models.prompts import prompts_by_class
from lbutils.rivals.context import FewShotClassifier, TrainedClassifier


@dataclass(eq=False, repr=False)
class CLIPAdapter(TrainedClassifier):
    """A bottleneck behind the image encoder, mixed with the feature that went in.

    The feature f becomes ``ratio * A(f) + (1 - ratio) * f``, normalised, where A is two layers
    without bias, each followed by a ReLU.

    Source: Gao et al. 2024, "CLIP-Adapter: better vision-language models with feature adapters",
    IJCV; the image adapter, as in the released code.

    Parameters
    ----------
    ratio : float
        Share of the adapter; 0 is zero-shot. The authors' is 0.2.
    reduction : int
        How many times narrower the bottleneck is. The authors' is 4.
    lr, steps
        Not searched. The authors train 200 epochs of small batches.

    Attributes
    ----------
    weights_ : tuple of Tensor
        Of the layers, (D / reduction, D) and (D, D / reduction). ``classifier_`` is zero-shot's.
    """

    ratio: float = 0.2
    reduction: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio > 1:
            raise ValueError(f"ratio={self.ratio}: give a share, 0 to 1")

    def fit(self, split: Any, features: Tensor | None = None) -> CLIPAdapter:
        """Self, with the adapter trained; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        texts = self.classifier_for(self.names_)
        generator = torch.Generator().manual_seed(self.seed)
        width = images.shape[-1]
        inner = max(1, width // self.reduction)
        weights = tuple(
            ((torch.rand(out, given, generator=generator) * 2 - 1) / given**0.5).requires_grad_()
            for out, given in ((inner, width), (width, inner))
        )

        def loss_of(view: Tensor) -> Tensor:
            changed = self._adapt(view, weights)
            return F.cross_entropy(self.encoder.logit_scale * changed @ texts.T, labels)

        self._descend(weights, self._in_turn(images, loss_of, generator))
        self.weights_ = tuple(weight.detach() for weight in weights)
        self.classifier_ = texts
        return self

    def _adapt(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        inner = F.linear(images, weights[0]).relu()
        mixed = self.ratio * F.linear(inner, weights[1]).relu() + (1 - self.ratio) * images
        return F.normalize(mixed, dim=-1)

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` of the adapted image features."""
        weights = self.weights_
        return super().logits(self._adapt(self._features(images), weights))

    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of other names: they, too, meet the adapted image features."""
        weights = self.weights_
        return super().other_logits(self._adapt(self._features(images), weights), names)


@dataclass(eq=False, repr=False)
class TaskRes(TrainedClassifier):
    """Text features with a learned residual each: ``t + alpha * r``, normalised.

    Source: Yu et al. 2023, "Task residual for tuning vision-language models", CVPR; the regular
    base. Names that were not learned have no residual.

    Parameters
    ----------
    alpha : float
        Factor of the residuals; 0 is zero-shot. The authors' is 0.5 (1 on Flowers102).
    lr, steps
        Chosen on IP classes. The authors train 100 to 200 epochs of small batches by Adam at 0.002.

    Attributes
    ----------
    residuals_ : Tensor, shape (C, D)
    """

    alpha: float = 0.5
    _: KW_ONLY
    lr: float = 0.02
    steps: int = 50

    def fit(self, split: Any, features: Tensor | None = None) -> TaskRes:
        """Self, with the residuals learned; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        texts = self.classifier_for(self.names_)
        residuals = torch.zeros_like(texts, requires_grad=True)

        def loss_of(view: Tensor) -> Tensor:
            classifier = F.normalize(texts + self.alpha * residuals, dim=-1)
            return F.cross_entropy(self.encoder.logit_scale * view @ classifier.T, labels)

        self._descend([residuals], self._in_turn(images, loss_of))
        self.residuals_ = residuals.detach()
        self.classifier_ = F.normalize(texts + self.alpha * self.residuals_, dim=-1)
        return self


@dataclass(eq=False, repr=False)
class TipAdapter(FewShotClassifier):
    """Zero-shot logits plus those of a cache of the training images; without training.

    The cache adds ``alpha * exp(-beta * (1 - f k))`` to the class of each key k. A key is the
    normalised mean of an image's views.

    Source: Zhang et al. 2022, "Tip-Adapter: training-free adaption of CLIP for few-shot
    classification", ECCV. Names that were not learned have no key, so only the columns of the
    learned names get a cache term; `background` is ours. The authors' keys are the mean of the
    views' features before these are normalised, here after: features are kept at unit length, and
    the views of one image have about the same length.

    Parameters
    ----------
    alpha, beta : float
        Weight of the cache (0 is zero-shot) and its sharpness. The authors start from 1 and 5.5
        and search both on validation data; here both are as given.
    background : bool
        Whether what the cache would give a class at the mean of all classes' mean keys, which is
        what is known of a class without images, is taken from what it gives each class with
        images: the same for all of these, it sets them beside names without images, as in `GDA`.

    Attributes
    ----------
    keys_, values_ : Tensor, shape (N, D) and (N, C)
        Values are one-hot labels. ``classifier_`` is zero-shot's.
    """

    alpha: float = 1.0
    beta: float = 5.5
    _: KW_ONLY
    background: bool = True

    _positive: ClassVar[tuple[str, ...]] = ("beta",)

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
        keys, values, features = self.keys_, self.values_, self._features(images)
        found = self._cache(features, keys, values)
        if self.background:
            counts = values.sum(dim=0)
            has = (counts > 0).float()
            centre = (values / counts.clamp(min=1)).T @ keys / has.sum()
            unknown = self._cache(features, centre.sum(dim=0, keepdim=True), has[None])
            found = found - unknown * counts.sum() / has.sum()
        return super().logits(features) + found


@dataclass(eq=False, repr=False)
class TipAdapterF(TrainedClassifier, TipAdapter):
    """Tip-Adapter whose keys are fine-tuned; they do not stay of unit length.

    The authors train 20 epochs at 0.001 and keep the best on test data; here the last step is the
    result.

    Source: Zhang et al. 2022, as `TipAdapter`.
    """

    _: KW_ONLY
    optimizer: str = "adamw"
    lr: float = 0.001
    steps: int = 20

    def _tune(self, keys: Tensor, values: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        moved = keys.clone().requires_grad_()

        def loss_of(view: Tensor) -> Tensor:
            plain = self.encoder.logit_scale * view @ self.classifier_.T
            return F.cross_entropy(plain + self._cache(view, moved, values), labels)

        self._descend([moved], self._in_turn(images, loss_of))
        return moved.detach()


@dataclass(eq=False, repr=False)
class CrossModalProbe(TrainedClassifier):
    """Linear probe on the features of images and of the class names alike.

    Starts at the text features. The names, one sample in each template, are half of every step,
    the images the other half.

    `optimizer`, `lr`, `steps`: the authors take AdamW at 0.0001 or 0.001 and batches of 8, half of
    them texts, for up to 12,800 steps, stopped early on validation data.

    Source: Lin et al. 2023, "Multimodality helps unimodality: cross-modal few-shot learning with
    multimodal models", CVPR; the linear probe. Names that were not learned keep their text.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Rows of the probe; not of unit length.
    """

    optimizer: str = "adamw"
    lr: float = 0.001

    def fit(self, split: Any, features: Tensor | None = None) -> CrossModalProbe:
        """Self, with the probe trained; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        scale, names = self.encoder.logit_scale, torch.arange(len(self.names_))
        prompts = _prompts_of(self)
        samples = self.encoder.encode_text([text for own in prompts for text in own]).cpu()
        owners = names.repeat_interleave(torch.tensor([len(own) for own in prompts]))
        weights = self.classifier_for(self.names_).clone().requires_grad_()

        def loss_of(view: Tensor) -> Tensor:
            seen = F.cross_entropy(scale * view @ weights.T, labels)
            return (seen + F.cross_entropy(scale * samples @ weights.T, owners)) / 2

        self._descend([weights], self._in_turn(images, loss_of))
        self.classifier_ = weights.detach()
        return self


@dataclass(eq=False, repr=False)
class CLAP(TrainedClassifier):
    """Class-adaptive linear probe: starts at the text features, and each class is held to its own.

    The loss is the cross-entropy of scaled cosines plus the mean over classes of
    ``m_c * |w_c - t_c|^2``. The multiplier m_c is the mean probability that zero-shot gives the
    class on its own training images, so names that work are held and others let go; nothing is
    tuned on validation data. All views of all images are samples of a step.

    Source: Silva-Rodriguez et al. 2024, "A closer look at the few-shot adaptation of large
    vision-language models", CVPR, and its released code (multipliers are set once).

    Parameters
    ----------
    constraint : float
        Factor of all multipliers: the authors' is 1; 0 is their plain probe (ZS-LP), and infinity
        leaves zero-shot.
    unit : bool
        Whether the text features that the probe starts at, and is held to, are of unit length.
        The authors' have the length that the model gives them: for features of length r their
        probe is this one at ``constraint * r**2`` and ``lr / r**2``, another method at equal
        nominal values.
    optimizer, lr, steps
        The authors take SGD at 0.1 and 300 epochs; on IP classes 100 steps do as well.

    Attributes
    ----------
    multipliers_ : Tensor, shape (C,)
        1 for a class without a training image, which keeps it at its text.
    """

    constraint: float = 1.0
    _: KW_ONLY
    unit: bool = True
    optimizer: str = "sgd"
    lr: float = 0.1

    def fit(self, split: Any, features: Tensor | None = None) -> CLAP:
        """Self, with the probe trained; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        texts = self.classifier_for(self.names_)
        samples, owners = images.flatten(0, 1), labels.repeat(len(images))
        scale = self.encoder.logit_scale
        self.multipliers_ = own_probability(scale * samples @ texts.T, owners)
        if not self.unit:
            found = [self.encoder.encode_text(own, normalise=False) for own in _prompts_of(self)]
            texts = torch.stack([rows.mean(dim=0) for rows in found]).cpu()
        weights = texts.clone().requires_grad_()
        pull = self.constraint * self.multipliers_

        def loss_of(view: Tensor) -> Tensor:
            scaled = scale * view @ F.normalize(weights, dim=-1).T
            apart = (weights - texts).square().sum(dim=1)
            return F.cross_entropy(scaled, owners) + (pull * apart).mean()

        self.history_ = []
        if self.constraint < float("inf"):
            self._descend([weights], self._in_turn(samples[None], loss_of))
        self.classifier_ = F.normalize(weights.detach(), dim=-1)
        return self


def _prompts_of(method: FewShotClassifier) -> list[list[str]]:
    """Prompts of each name that the method learns."""
    found = prompts_by_class(method.templates, method.names_, method.hint)
    return [["".join(prompt) for prompt in own] for own in found]


def own_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean probability ``(C,)`` that the samples of a class give it; 1 where it has none.

    Logits are ``(N, C)``, labels ``(N,)``.
    """
    own = logits.softmax(dim=1).gather(1, labels[:, None])
    means, counts = class_means(own[None], labels, logits.shape[1])
    return torch.where(counts > 0, means[:, 0], 1.0)


@dataclass(eq=False, repr=False)
class LPPlusPlus(FewShotClassifier):
    """LP++: a linear probe whose weights are ``w_k + alpha_k t_k``, visual and text.

    Cross-entropy over visual prototypes w, biases b and one multiplier alpha of the text for each
    class. Step sizes come from Lipschitz bounds on the data. The prototypes start at the sums of
    their class's features, the multipliers at `start` times the mean similarity of an image to
    its own name.

    Source: Huang et al. 2024, "LP++: a surprisingly strong linear probe for few-shot CLIP", CVPR,
    and its released code. A name that was not learned is a class without images, for which the
    model has its text alone: its logit is the mean multiplier times the similarity.

    Parameters
    ----------
    start : float
        The authors' is 250.
    steps : int
        The authors take 300 and keep the best on validation data; here the last is the result,
        and on IP classes 100 do as well.
    every : int
        Steps of the prototypes to one of the multipliers. The authors' is 10.
    accumulate : bool
        Whether a step of the multipliers goes by the sum of all gradients since the start, as in
        the authors' code, which never sets that gradient back; otherwise by the gradient.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        ``w + alpha * t``; not of unit length.
    bias_, alpha_ : Tensor, shape (C,)
    history_ : list of float
        Loss of each step.
    """

    start: float = 250.0
    _: KW_ONLY
    steps: int = 100
    every: int = 10
    accumulate: bool = False

    _counts: ClassVar[tuple[str, ...]] = ("steps", "every")
    _contrasts: ClassVar[bool] = True

    def fit(self, split: Any, features: Tensor | None = None) -> LPPlusPlus:
        """Self, with both blocks descended; all views of all images are samples."""
        images, labels = self._training(split, features)
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
        bias, bias_pace = torch.zeros_like(alpha), torch.zeros_like(alpha)
        pace, pull = torch.zeros_like(weights), torch.zeros_like(alpha)
        self.history_ = []
        for turn in range(self.steps):
            log_shares = (samples @ weights.T + bias + alpha * similar).log_softmax(dim=1)
            self.history_.append(-float(log_shares.gather(1, owners[:, None]).mean()))
            wrong = (log_shares.exp() - wanted) / len(samples)
            pace = 0.9 * pace + wrong.T @ samples
            bias_pace = 0.9 * bias_pace + wrong.sum(dim=0)
            weights, bias = weights - step * pace, bias - step * bias_pace
            pull = (wrong * similar).sum(dim=0) + (pull if self.accumulate else 0)
            if (turn + 1) % self.every == 0:
                alpha = alpha - alpha_step * pull
        return weights, alpha, bias

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)``, by the weights that the fit has scaled."""
        bias = self.bias_
        return self._features(images) @ self.classifier_.T + bias

    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of other names: the mean multiplier times their similarity."""
        scale = self.alpha_.mean()
        return scale * self._features(images) @ self.classifier_for(names).T


def step_sizes(samples: Tensor, similar: Tensor) -> tuple[float, float]:
    """LP++'s step sizes of the prototypes and of the multipliers.

    With 1/4 as the bound of the derivative of a probability by its own logit, the mean
    cross-entropy's gradient has the Lipschitz constants ``lambda / (4 N)`` by a prototype, lambda
    being the largest eigenvalue of ``samples.T @ samples``, and ``m / (4 N)`` by the multipliers,
    m being the largest sum over samples of squared similarities to a name. The first step is the
    inverse, ``4 N / lambda``. The second is ``N / (4 m)``, a sixteenth of the inverse: the more
    cautious step of the released code. Samples are ``(N, D)``, their similarities to the text
    features ``(N, C)``.
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


class BeforeProjection(ImageTower):
    """An encoder's image tower before its last projection.

    The projection is the identity while the tower runs; the model stays as it is.

    Raises ValueError if the image tower does not end in a linear projection.

    Attributes
    ----------
    weight, bias : Tensor, shape (D, P) and (D,)
        Image features are ``weight @ before + bias``, normalised; zeros where there is no bias.
    """

    def __init__(self, encoder: Any):
        self._tower = _Tower(encoder.model)
        held = dict(encoder.model.named_parameters())
        self._name = next((name for name in _PROJECTIONS if name in held), "")
        if not self._name or held[self._name].ndim != 2:
            raise ValueError(
                f"the image tower of {encoder.name} ends in no linear projection, which ProLIP "
                "tunes: use another method, or a model with one"
            )
        matrix = held[self._name].detach()
        self.weight = (matrix.T if self._name == "visual.proj" else matrix).float().cpu().clone()
        self._bias = f"{self._name.removesuffix('.weight')}.bias"
        zeros = torch.zeros(len(self.weight))
        self.bias = held[self._bias].detach().float().cpu() if self._bias in held else zeros
        self.dim = self.weight.shape[1]
        super().__init__(encoder, f"before {self._name}")

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Features (B, P) before the projection, float32, on the model's device."""
        pixels = pixels.to(self.device, self.dtype)
        swapped = {f"model.{self._name}": torch.eye(self.dim).to(pixels)}
        if self._bias in dict(self.encoder.model.named_parameters()):
            swapped[f"model.{self._bias}"] = torch.zeros(self.dim).to(pixels)
        with torch.no_grad():
            return functional_call(self._tower, swapped, (pixels,)).float()


# A matrix that multiplies from the right, or a layer at the end of a head or a pool.
_PROJECTIONS = (
    "visual.proj",
    *(f"visual.{head}.weight" for head in ("head.proj", "attnpool.c_proj", "head", "proj")),
)


@dataclass(eq=False, repr=False)
class ProLIP(TrainedClassifier):
    """The last visual projection, fine-tuned with a penalty on how far it moves.

    The loss is the cross-entropy of scaled cosines plus ``penalty * |W - W_0|^2`` (Frobenius).

    Source: Fahes et al. 2025, "CLIP's visual embedding projector is a few-shot cornucopia"
    (ProLIP), arXiv:2410.05270, and its released code.

    Parameters
    ----------
    encoder : DualEncoder
        Its image tower must end in a linear projection.
    penalty : float, optional
        By default one over the number of shots, the authors' validation-free setting. Infinity
        leaves zero-shot.
    lr, steps
        The authors take 300 steps at 1e-5 to 1e-2.

    Attributes
    ----------
    images_from : BeforeProjection
        What computes the features that `fit` and `logits` take: ``image_features(
        prolip.images_from, split)``. Splits may be passed in their place.
    weight_ : Tensor, shape (D, P)
        The projection. ``classifier_`` is zero-shot's.
    """

    penalty: float | None = None
    _: KW_ONLY
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.images_from = BeforeProjection(self.encoder)

    def fit(self, split: Any, features: Tensor | None = None) -> ProLIP:
        """Self, with the projection tuned.

        Arguments are those of `CoOp.fit`, but for features ``(V, N, P)`` before the projection;
        others raise ValueError.
        """
        if features is not None:
            self._check_width(features)
        images, labels = self._training(split, features, self.images_from, unit=False)
        texts, scale = self.classifier_for(self.names_), self.encoder.logit_scale
        start, bias = self.images_from.weight, self.images_from.bias
        weight = start.clone().requires_grad_()
        shots = len(labels) / len(labels.unique())
        penalty = 1 / shots if self.penalty is None else self.penalty

        def loss_of(view: Tensor) -> Tensor:
            projected = F.normalize(F.linear(view, weight, bias), dim=-1)
            moved = (weight - start).square().sum()
            return F.cross_entropy(scale * projected @ texts.T, labels) + penalty * moved

        self.history_ = []
        if penalty < float("inf"):
            self._descend([weight], self._in_turn(images, loss_of))
        self.weight_, self.classifier_ = weight.detach(), texts
        return self

    def _check_width(self, features: Tensor) -> None:
        if features.shape[-1] != self.images_from.dim:
            raise ValueError(
                f"features are {features.shape[-1]} wide; ProLIP takes the {self.images_from.dim} "
                "before the projection: image_features(prolip.images_from, split), or the split"
            )

    def _features(self, images: Any) -> Tensor:
        tower: Any = self.images_from
        found = images if isinstance(images, Tensor) else image_features(tower, images)
        self._check_width(found)
        return super()._features(found)

    def _project(self, images: Any) -> Tensor:
        weight = self.weight_
        projected = F.linear(self._features(images), weight, self.images_from.bias)
        return F.normalize(projected, dim=-1)

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)``; `images` is a split, or features ``(N, P)`` before the projection."""
        return self.encoder.logit_scale * self._project(images) @ self.classifier_.T

    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of other names: they, too, meet the tuned projection."""
        projected = self._project(images)
        return self.encoder.logit_scale * projected @ self.classifier_for(names).T
