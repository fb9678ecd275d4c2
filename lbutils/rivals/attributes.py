"""Zero-shot learning before CLIP: attributes that classes share, predicted and put together.

A class without images is known by what is said of it: a table tells which attributes it has, and
attributes are learned from images of other classes. DAP predicts each attribute of an image, IAP
each known class and by way of these the attributes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from lbutils.captions.text import canonical
from lbutils.learn.knowledge import Lexicon
from lbutils.models.classifier import Estimator, unit_rows

_STOP = frozenset("a an and at by for from in it no of on or over that the to which with".split())
# A probability is kept from 0 and 1, so that no single attribute decides alone.
_LEAST = 1e-4


class Attributes(NamedTuple):
    """Which attributes classes have: `words` (K,), `known` (A, K) and `candidates` (C, K), bool."""

    words: tuple[str, ...]
    known: np.ndarray
    candidates: np.ndarray


def attributes(lexicon: Lexicon, known: Sequence[str], candidates: Sequence[str]) -> Attributes:
    """Words of the descriptions as attributes of classes.

    An attribute is a word that describes at least two known classes, so that it can be learned
    apart from any one of them, and at least one candidate. Function words are left out.

    Parameters
    ----------
    lexicon : Lexicon
        With a description of every name.
    known, candidates : sequence of str
        Names of classes with images, and of those without.

    Raises
    ------
    KeyError
        If a name has no description.
    ValueError
        If the descriptions of known classes and candidates share no word.
    """
    told = [
        [{*canonical(" ".join(lexicon.described(name))).split()} - _STOP for name in names]
        for names in (known, candidates)
    ]
    of_known, of_candidates = (Counter(word for own in side for word in own) for side in told)
    words = tuple(sorted(word for word in of_candidates if of_known[word] >= 2))
    if not words:
        raise ValueError(
            "no word describes two known classes and a candidate: describe them in common words"
        )
    tables = [np.array([[word in own for word in words] for own in side], bool) for side in told]
    return Attributes(words, *tables)


@dataclass(eq=False)
class DAP(Estimator):
    """Direct attribute prediction: a logistic regression for each attribute.

    The logit of a class is the log-probability of its attributes, present and absent, less what
    it would be for an image of which nothing is known.

    Parameters
    ----------
    C : float
        Inverse strength of the L2 penalty. The default is the best of 1, 10 and 100 for DAP, on
        known classes of the miniature that were held out of the fit in three folds; under IAP the
        three differed by less than a point.

    Attributes
    ----------
    prior_ : ndarray, shape (K,)
        Share of the known classes that have each attribute.

    Notes
    -----
    Source: Lampert, Nickisch and Harmeling 2014, "Attribute-based classification for zero-shot
    visual object categorization", TPAMI, equations 1 to 3 (DAP) and 4 (IAP), the prior of an
    attribute being its mean over known classes. Theirs: support vector machines with Platt
    scaling on image descriptors. Ours: logistic regression on the encoder's features.
    """

    _: KW_ONLY
    C: float = 10.0
    max_iter: int = 1000

    _counts: ClassVar[tuple[str, ...]] = ("max_iter",)
    _positive: ClassVar[tuple[str, ...]] = ("C",)

    def fit(self, images: Any, labels: Any, known: Any) -> DAP:
        """Self, fitted.

        Parameters
        ----------
        images : Tensor or array, shape (N, D)
            Unit features of images of known classes.
        labels : array, shape (N,)
            Their rows in `known`.
        known : array, shape (A, K)
            Attributes of the known classes, bool.

        Raises
        ------
        ValueError
            If shapes do not fit, labels are no rows of `known`, or an attribute is in all images
            or in none.
        """
        rows = unit_rows(images, "images").numpy()
        y, table = np.asarray(labels), np.asarray(known, bool)
        if table.ndim != 2 or y.shape != (len(rows),) or not len(rows):
            raise ValueError(f"{len(rows)} images, labels {y.shape}, attributes {table.shape}")
        if not 0 <= y.min() <= y.max() < len(table):
            raise ValueError(f"labels must be rows of known, 0 to {len(table) - 1}")
        shown = table[y].mean(axis=0)
        if ((shown == 0) | (shown == 1)).any():
            which = int(np.flatnonzero((shown == 0) | (shown == 1))[0])
            raise ValueError(f"attribute {which} is in all images or in none: leave it out")
        self.prior_ = table.mean(axis=0)
        self._width, self._known = rows.shape[1], table
        regression = LogisticRegression(C=self.C, max_iter=self.max_iter)
        with threadpool_limits(1):  # small systems: threads only wait for each other
            self._fit(regression, rows, y)
        return self

    def _fit(self, regression: LogisticRegression, rows: np.ndarray, labels: np.ndarray) -> None:
        self._model = OneVsRestClassifier(regression).fit(rows, self._known[labels].astype(int))

    def probabilities(self, images: Any) -> np.ndarray:
        """Probability of each attribute in each image, ``(N, K)`` float64."""
        self.prior_  # noqa: B018 - raises where nothing was fitted
        return self._shares(unit_rows(images, "images", self._width).numpy())

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        # Of a single attribute scikit-learn gives the columns absent and present.
        return np.asarray(self._model.predict_proba(rows))[:, -self._known.shape[1] :]

    def logits(self, images: Any, candidates: Any) -> Tensor:
        """Logits ``(N, C)`` float32 of candidates, by their attributes ``(C, K)``, bool."""
        table = np.asarray(candidates, bool)
        if table.ndim != 2 or table.shape[1] != len(self.prior_):
            raise ValueError(
                f"attributes {table.shape} of candidates; fitted on {self.prior_.size}"
            )
        shares = np.clip(self.probabilities(images), _LEAST, 1 - _LEAST)
        usual = np.clip(self.prior_, _LEAST, 1 - _LEAST)
        present, absent = np.log(shares / usual), np.log((1 - shares) / (1 - usual))
        return torch.from_numpy((present @ table.T + absent @ ~table.T).astype(np.float32))


@dataclass(eq=False)
class IAP(DAP):
    """Indirect attribute prediction: the likely known classes say which attributes an image has.

    Parameters and source are those of `DAP`; one logistic regression over all known classes.
    """

    def _fit(self, regression: LogisticRegression, rows: np.ndarray, labels: np.ndarray) -> None:
        self._model = regression.fit(rows, labels)

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict_proba(rows)) @ self._known[self._model.classes_]
