"""Names, templates and an encoder in; a classifier over image features out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lbutils.features import image_features
from lbutils.prompts import fill, resolve


def text_classifier(
    encoder: Any,
    names: Sequence[str],
    templates: str | Sequence[str] = "mini",
    hint: str | None = None,
    batch_size: int = 256,
) -> torch.Tensor:
    """Text features of the names, ``(C, D)`` float32 of unit length, on the CPU.

    Parameters
    ----------
    encoder : DualEncoder
        The image-text model.
    names : sequence of str
        Class names, taken literally.
    templates : str or sequence of str
        A template set (see `prompts.templates`), one template, or several. The normalised
        features of several are averaged and normalised again.
    hint : str, optional
        Superclass for templates with a ``{hint}``.
    batch_size : int
        Prompts encoded at once.

    Raises
    ------
    ValueError
        If there are no names, or a template does not fit.

    Notes
    -----
    Source: Radford et al. 2021, section 3.1.4; open_clip, ``zero_shot_classifier.py``.
    """
    if not len(names):
        raise ValueError("no class names given")
    mean = torch.zeros(())
    for template in resolve(templates):
        prompts = [fill(template, name, hint) for name in names]
        blocks = [
            encoder.encode_text(prompts[start : start + batch_size]).cpu()
            for start in range(0, len(prompts), batch_size)
        ]
        mean = mean + F.normalize(torch.cat(blocks).float(), dim=-1)
    return F.normalize(mean, dim=-1)


def logits(features: Any, classifier: torch.Tensor, scale: float) -> torch.Tensor:
    """Scaled cosine similarities ``(N, C)`` of image features and a classifier, on the CPU.

    Parameters
    ----------
    features : Tensor or array, shape (N, D)
        Image features of unit length.
    classifier : Tensor, shape (C, D)
        One feature of unit length per class. The joint vocabulary is the classifiers of its
        parts, one below the other.
    scale : float
        The model's ``logit_scale``.
    """
    features = torch.as_tensor(np.asarray(features), dtype=torch.float32)
    return scale * features @ classifier.cpu().float().T


class FeatureClassifier:
    """Base of every method: `logits` and `predict` from a fitted ``classifier_`` ``(C, D)``.

    A method adds ``fit(split, features=None)``, which returns self and sets ``classifier_``
    and ``names_``. Methods return logits; scoring is left to `lbutils.evaluation`.
    """

    encoder: Any
    classifier_: torch.Tensor

    def logits(self, images: Any) -> torch.Tensor:
        """Logits ``(N, C)`` float32 on the CPU, classes in the order of ``names_``.

        Parameters
        ----------
        images : Split, or Tensor of shape (N, D)
            Images, or their features.

        Raises
        ------
        RuntimeError
            If `fit` has not been called.
        """
        if not hasattr(self, "classifier_"):
            raise RuntimeError(f"this {type(self).__name__} has no classifier yet: call fit first")
        return logits(self._features(images), self.classifier_, self.encoder.logit_scale)

    def predict(self, images: Any) -> np.ndarray:
        """Class indices ``(N,)`` int64 of the highest logits; `images` as in `logits`."""
        return self.logits(images).argmax(dim=1).numpy()

    def _features(self, images: Any) -> torch.Tensor:
        if isinstance(images, torch.Tensor):
            return images.cpu()
        return image_features(self.encoder, images)


def training_features(
    encoder: Any, split: Any, views: int = 4, seed: int = 0, clean: bool = True
) -> torch.Tensor:
    """Features ``(V, N, D)`` to fit on: the images as they are, then augmented views.

    Parameters
    ----------
    encoder : DualEncoder
        The image-text model; ``encoder.augment`` draws the views.
    split : Split
        The N training images.
    views : int
        Augmented views per image; they are computed once and cached.
    seed : int
        Seed of the augmentation.
    clean : bool
        Whether the images as they are come first.

    Raises
    ------
    ValueError
        If neither clean images nor views are asked for.
    """
    parts = [image_features(encoder, split)[None]] if clean else []
    if views:
        parts.append(image_features(encoder, split, views=views, seed=seed))
    if not parts:
        raise ValueError("views=0 and clean=False leave no image to fit on")
    return torch.cat([part.cpu() for part in parts])
