"""A mixture of known classes and named new ones, by which images and names settle each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Joint(NamedTuple):
    """A mixture of known classes and named new ones, fitted to images without labels.

    Attributes
    ----------
    centres : Tensor, shape (C, D)
        Unit rows of the candidate names.
    weights : Tensor, shape (N, A + C)
        Share of each image that a class has, known classes first; rows sum to one.
    new_share : float
        Share of the images that show no known class.
    objective : list of float
        Log-posterior of each iteration, a mean over images; it never falls.
    """

    centres: Tensor
    weights: Tensor
    new_share: float
    objective: list[float]


def joint_iteration(
    images: Tensor,
    prototypes: Tensor,
    known: Tensor | None = None,
    *,
    shares: Any = None,
    evidence: Tensor | None = None,
    concentration: float = 20.0,
    prior: float | Tensor = 2.0,
    iterations: int = 15,
) -> Joint:
    """Mixture of known classes and names, in which images and prototypes settle each other.

    Expectation-maximisation for directions (von Mises-Fisher) of one concentration. A name's centre
    has its prototype as prior, a known class's centre is fixed. A name without images keeps its
    prototype, so that neither the number of classes nor the exact vocabulary need be known.

    Source: clustering on the sphere, Banerjee et al. 2005; the prior on centres is ours. The share
    of new images is estimated; known classes, and names, divide theirs as told beforehand.

    Parameters
    ----------
    images, prototypes : Tensor, shape (N, D) and (C, D)
        Unit features, and unit rows for the candidate names, as from `Knowledge.prototypes`.
    known : Tensor, shape (A, D), optional
        Unit centres of the known classes; without them all images are taken as new.
    shares : array, shape (C,), optional
        Share of the new images that each name may expect; all the same by default.
    evidence : Tensor, shape (N, A + C), optional
        Log-likelihood of something else that is seen of each image, in each class.
    concentration : float
        Of the directions of a class around its centre.
    prior : float or Tensor of shape (C,)
        Weight of prototypes, of all or of each, in images.
    """
    a = 0 if known is None else len(known)
    own = np.full(len(prototypes), 1.0) if shares is None else np.asarray(shares, dtype=np.float64)
    names = torch.from_numpy(np.log(np.maximum(own / own.sum(), 1e-12))).to(images)
    fixed = None if known is None else images @ known.T * concentration - np.log(max(a, 1))
    centres, new = prototypes, 0.5 if a else 1.0
    weight = torch.as_tensor(prior).to(prototypes).reshape(-1, 1)
    objective: list[float] = []
    weights = torch.zeros(len(images), a + len(prototypes))
    for _ in range(iterations):
        logits = images @ centres.T * concentration + names + np.log(max(new, 1e-12))
        if fixed is not None and a:
            logits = torch.cat([fixed + np.log(max(1 - new, 1e-12)), logits], dim=1)
        if evidence is not None:
            logits = logits + evidence
        # In double: among many names the sum loses more in single than an iteration brings.
        told = concentration * float((centres.double() * (weight * prototypes).double()).sum())
        objective.append((float(logits.double().logsumexp(1).sum()) + told) / len(images))
        weights = logits.softmax(dim=1)
        theirs = weights[:, a:]
        centres = F.normalize(weight * prototypes + theirs.T @ images, dim=1)
        new = float(theirs.sum()) / len(images) if a else 1.0
    return Joint(centres, weights, new, objective)
