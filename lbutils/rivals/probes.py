"""Zero-shot, probes, prototypes and discriminants of image features, and negative controls."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits
from torch import Tensor

from lbutils._util import suggest
from lbutils.captions.text import as_names
from lbutils.learn.knowledge import Knowledge, among_images, check_choice
from lbutils.learn.namelearner import Alignment
from lbutils.models.classifier import FeatureClassifier, check_others, class_means
from lbutils.models.prompts import Templates, take_out
from lbutils.rivals.context import FewShotClassifier

CONTROLS = ("random", "permuted", "swapped")


@dataclass(eq=False, repr=False)
class ZeroShot(FeatureClassifier):
    """The encoder as it is: class names in templates, nothing learned.

    Source: Radford et al. 2021, "Learning transferable visual models from natural language
    supervision".
    """

    encoder: Any
    templates: Templates = "mini"
    hint: str | None = None

    def fit(self, split: Any, features: Tensor | None = None) -> ZeroShot:
        """Self, with the classifier of the split's class names; its images are not looked at."""
        self.names_ = tuple(split.names)
        self.classifier_ = self.classifier_for(self.names_)
        return self


@dataclass(eq=False, repr=False)
class LinearProbe(FewShotClassifier):
    """Logistic regression on image features, each view a sample: no names, no text.

    Source: Radford et al. 2021, section 3.2 and appendix A.3; the binary search is that of CoOp's
    released code (``lpclip``); scikit-learn. The joint vocabulary is not the authors'.

    Parameters
    ----------
    C : float or "search"
        Inverse strength of the L2 penalty. ``"search"`` is the authors' search: seven powers of
        ten from 1e-6 to 1e6, then halving of the interval around the best, by accuracy on
        `validation`, or, without it, in stratified cross-validation over the training images;
        with one image a class, 1.
    max_iter : int
        Iterations of L-BFGS at most.
    beside : "cosine" or "decision"
        What stands beside the logits of other names in `joint_logits`: scaled cosines with the
        rows of the probe, which are on the scale of text features whatever C is; or its decision
        values, whose scale C decides. `logits` are decision values in either case.
    validation : (Tensor, Tensor), optional
        Features (M, D) and labels (M,) to search C on.

    Attributes
    ----------
    model_ : sklearn.linear_model.LogisticRegression
    C_ : float
        The C that was used. There is no ``classifier_``.
    """

    C: float | str = 1.0
    _: KW_ONLY
    max_iter: int = 300
    beside: str = "cosine"
    validation: tuple[Tensor, Any] | None = None

    _counts: ClassVar[tuple[str, ...]] = ("max_iter",)
    _positive: ClassVar[tuple[str, ...]] = ("C",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.C, str) and self.C != "search":
            raise ValueError(f"C={self.C!r}: give a positive number or 'search'")
        if self.beside not in ("cosine", "decision"):
            raise ValueError(suggest(self.beside, ("cosine", "decision"), "beside"))

    def fit(self, split: Any, features: Tensor | None = None) -> LinearProbe:
        """Self, fitted; arguments as in `CoOp.fit`. Images of one class raise ValueError."""
        images, labels = self._training(split, features)
        if len(labels.unique()) < 2:
            raise ValueError("a linear probe needs images of at least two classes")
        # Products this small lose more to the start of threads than these save.
        with threadpool_limits(1):
            self.C_ = self._search(images, labels) if isinstance(self.C, str) else float(self.C)
            self.model_ = self._probe(images, labels, self.C_)
        return self

    def _probe(self, images: Tensor, labels: Tensor, C: float) -> LogisticRegression:
        samples = images.flatten(0, 1).numpy()
        model = LogisticRegression(C=C, max_iter=self.max_iter)
        return model.fit(samples, labels.repeat(len(images)).numpy())

    def _search(self, images: Tensor, labels: Tensor) -> float:
        """Best C by CoOp's binary search; of equally good ones the nearest to 1."""
        folds = self._folds(images, labels)
        if not folds:
            return 1.0
        scores: dict[float, float] = {}

        def score(power: float) -> float:
            if power not in scores:
                right = [
                    self._probe(fitted, owners, 10.0**power).predict(held.numpy()) == wanted.numpy()
                    for fitted, owners, held, wanted in folds
                ]
                scores[power] = float(np.concatenate(right).mean())
            return scores[power]

        powers = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
        best, half = max(powers, key=lambda power: (score(power), -abs(power))), 1.0
        while half > 0.1:
            near = (best - half, best, best + half)
            best, half = max(near, key=lambda power: (score(power), -abs(power))), half / 2
        return 10.0**best

    def _folds(self, images: Tensor, labels: Tensor) -> list[Any]:
        """What is fitted and what is scored: views and labels, then features and labels."""
        if self.validation is not None:
            held, wanted = self.validation
            return [(images, labels, held.cpu().float(), torch.as_tensor(np.asarray(wanted)))]
        fewest = int(torch.bincount(labels)[labels.unique()].min())
        if fewest < 2:
            return []
        cut = StratifiedKFold(2, shuffle=True, random_state=self.seed)
        return [
            (images[:, train], labels[train], images[0, held], labels[held])
            for train, held in cut.split(labels, labels)
        ]

    def logits(self, images: Any) -> Tensor:
        """Decision values ``(N, C)``; minus infinity for classes without a training image."""
        model = self.model_
        scores = model.decision_function(self._features(images).numpy())
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return self._full(torch.from_numpy(scores).float())

    def joint_logits(self, images: Any, others: Sequence[str]) -> Tensor:
        """Logits ``(N, K + C)``: zero-shot of other names, then the probe's, see `beside`."""
        check_others(others, self.names_)
        model, features = self.model_, self._features(images)
        own = self.logits(features)
        if self.beside == "cosine":
            rows = torch.from_numpy(model.coef_).float()
            rows = torch.cat([-rows, rows]) if len(rows) == 1 else rows
            own = self._full(self.encoder.logit_scale * features @ F.normalize(rows, dim=1).T)
        return torch.cat([self.other_logits(features, others), own], dim=1)

    def _full(self, scores: Tensor) -> Tensor:
        full = torch.full((len(scores), len(self.names_)), float("-inf"))
        full[:, torch.from_numpy(self.model_.classes_)] = scores
        return full


class _ByImages(FewShotClassifier):
    """Base of what knows classes by images alone; a NaN row of ``classifier_`` is one without."""

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` float32; minus infinity for classes without a training image."""
        unseen = self.classifier_.isnan().any(dim=1)
        return super().logits(images).masked_fill(unseen, float("-inf"))


@dataclass(eq=False, repr=False)
class Prototypes(_ByImages):
    """Nearest class mean among image features of all views: no names, no text.

    Source: Snell et al. 2017, "Prototypical networks for few-shot learning", NeurIPS; Wang et al.
    2019, "SimpleShot", arXiv:1911.04623. In the joint vocabulary, scaled cosines with the means
    stand beside scaled cosines with text features.

    Parameters
    ----------
    alignment : Alignment, optional
        Moves the means to where text features lie: what is left of `NameLearner` without a name.
    prior, prior_weight, without_knowledge
        Knowledge of the names that counts as some images of them, as in `NameLearner`. Then there
        are names in it.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Normalised means; NaN for classes without a training image or knowledge.
    """

    alignment: Alignment | None = None
    prior: Knowledge | None = None
    prior_weight: float = 1.0
    without_knowledge: str = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.without_knowledge)

    def fit(self, split: Any, features: Tensor | None = None) -> Prototypes:
        """Self, with the class means; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        means, counts = class_means(images, labels, len(self.names_))
        means = F.normalize(means, dim=-1)
        if self.alignment is not None:
            means = self.alignment(means, len(labels) / int((counts > 0).sum()))
        if self.prior is not None:
            told = among_images(
                self.prior, self.encoder, self.names_, means, self.without_knowledge
            )
            means = F.normalize(counts[:, None] * means + self.prior_weight * told, dim=1)
        means[~means.any(dim=1)] = float("nan")
        self.classifier_ = means
        return self


@dataclass(eq=False, repr=False)
class GDA(FewShotClassifier):
    """Gaussian discriminant analysis of image features, added to zero-shot; without training.

    One Gaussian a class with a shared precision, ``D * inv(S + tr(cov) * I)``: S is the scatter
    within classes and cov that over one less than the number of samples, each view a sample. Logits
    are zero-shot's plus `alpha` times the discriminant ``f P m_k - m_k P m_k / 2 + log(1 / C)``.

    Source: Wang et al. 2024, "A hard-to-beat baseline for training-free CLIP-based adaptation",
    ICLR, and its released code. `background` is ours.

    Parameters
    ----------
    alpha : float
        Weight of the discriminant; 0 is zero-shot. The authors search 1e-4 to 1e2 on validation
        data; the default is chosen on IP classes.
    background : bool
        Whether the discriminant of a class at the mean of all class means, which is what is known
        of a class without images, is taken from that of each class with images: the same for all
        of these, it sets them beside names without images.

    Attributes
    ----------
    weights_, bias_ : Tensor, shape (C, D) and (C,)
        Of the discriminant; 0 for a class without a training image, which is left to its text.
        ``classifier_`` is zero-shot's.
    background_ : Tensor, shape (D + 1,)
        Weights of the class at the mean of means, then its bias.
    """

    alpha: float = 1.0
    _: KW_ONLY
    background: bool = True

    def fit(self, split: Any, features: Tensor | None = None) -> GDA:
        """Self, with means and precision; arguments as in `CoOp.fit`.

        Raises ValueError if features do not differ within any class.
        """
        images, labels = self._training(split, features)
        self.classifier_ = self.classifier_for(self.names_)
        means, counts = class_means(images, labels, len(self.names_))
        samples = images.flatten(0, 1).double()
        means = means.double()
        within = samples - means[labels.repeat(len(images))]
        scatter = within.T @ within
        spread = float(scatter.trace()) / max(len(within) - 1, 1)
        if spread < 1e-10:
            raise ValueError("features do not differ within a class: GDA needs two shots, or views")
        width = scatter.shape[0]
        shrunk = scatter + spread * torch.eye(width, dtype=scatter.dtype)
        centre = means[counts > 0].mean(dim=0)
        rows = torch.cat([means, centre[None]])
        weights = width * torch.linalg.solve(shrunk, rows.T).T
        bias = -(weights * rows).sum(dim=1) / 2 - np.log(len(means))
        has = (counts > 0).double()
        self.weights_ = (weights[:-1] * has[:, None]).float()
        self.bias_ = (bias[:-1] * has).float()
        self.background_ = torch.cat([weights[-1], bias[-1:]]).float()
        self._seen = has.float()
        return self

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)``: zero-shot's plus `alpha` times the discriminant."""
        weights, features = self.weights_, self._features(images)
        found = features @ weights.T + self.bias_
        if self.background:
            unknown = features @ self.background_[:-1] + self.background_[-1]
            found = found - unknown[:, None] * self._seen
        return super().logits(features) + self.alpha * found


@dataclass(eq=False, repr=False)
class SiM(_ByImages):
    """Similarity mapping: similarities to generic prompts, mapped to classes; no class names.

    A ridge regression without intercept from the cosines with M generic prompts to one-hot
    labels, each view a sample. It never sees the names of the classes, so it says how much of a
    method's success is the images' alone.

    Source: Zanella et al. 2025, "Vocabulary-free few-shot learning for vision-language models",
    CVPR workshops, and its released code. Logits are the mapped similarities times the model's
    logit scale: an image's own class is regressed to 1 as a cosine would be.

    Parameters
    ----------
    prompts : sequence of str
        Generic names, put into `templates`; names that the encoder knows serve best, such as the
        IP names.
    ridge : float
        Penalty of the regression. The authors' is 0.1 for ImageNet's 1000 names.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        The mapping carried over to image features; not of unit length. NaN for classes without
        a training image.
    mapping_ : Tensor, shape (M, C)
    """

    prompts: Sequence[str] = ()
    ridge: float = 0.1

    _positive: ClassVar[tuple[str, ...]] = ("ridge",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.prompts):
            raise ValueError("no generic prompts given: pass prompts=, such as the IP names")
        self.prompts = tuple(as_names(self.prompts, "prompts"))

    def fit(self, split: Any, features: Tensor | None = None) -> SiM:
        """Self, with the mapping; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        generic = self.classifier_for(self.prompts).double()
        similar = images.flatten(0, 1).double() @ generic.T
        wanted = F.one_hot(labels.repeat(len(images)), len(self.names_)).double()
        gram = similar.T @ similar + self.ridge * torch.eye(len(generic), dtype=similar.dtype)
        mapping = torch.linalg.solve(gram, similar.T @ wanted)
        mapping[:, torch.bincount(labels, minlength=len(self.names_)) == 0] = float("nan")
        self.mapping_ = mapping.float()
        self.classifier_ = (mapping.T @ generic).float()
        return self


def control_names(names: Sequence[str], kind: str, seed: int = 0) -> tuple[str, ...]:
    """Names for a negative control, as many and as different as those given.

    `names` (sequence of str): class names, all different. `kind` (str): ``"random"`` letters, each
    word as long as before; the names ``"permuted"``, none in its place; or ``"swapped"`` in random
    pairs, one class of an odd number keeping its own.

    Raises ValueError if there is no such kind, or names cannot change places because there is one
    only.
    """
    if kind not in CONTROLS:
        raise ValueError(suggest(kind, CONTROLS, "kind of control"))
    names = as_names(names)
    generator = np.random.default_rng(seed)
    if kind == "random":
        return _random_names(names, generator)
    if len(names) < 2:
        raise ValueError(f"a single name cannot be {kind}: give two or more, or kind='random'")
    order = generator.permutation(len(names))
    # Along the permutation, each class takes the name of the next, or of its neighbour.
    step = np.roll(order, -1)
    if kind == "swapped":
        even = len(order) - len(order) % 2
        step = order.copy()
        step[:even] = order[:even].reshape(-1, 2)[:, ::-1].ravel()
    found = list(names)
    for place, source in zip(order.tolist(), step.tolist(), strict=True):
        found[place] = names[source]
    return tuple(found)


def _random_names(names: Sequence[str], generator: np.random.Generator) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        lengths, words = [max(len(word), 3) for word in name.split()] or [3], name
        while words in found or words in names:
            drawn = [generator.choice(list(string.ascii_lowercase), size=n) for n in lengths]
            words = " ".join("".join(word) for word in drawn)
        found.append(words)
    return tuple(found)


class Control(FeatureClassifier):
    """A method whose class names are replaced by those of a negative control, see `control_names`.

    What it learns from names beyond the images shows in how much worse it gets. `method` is any
    that is not fitted yet, such as ``ZeroShot(encoder)`` or a `NameLearner`.

    Source: proposition 2 of the paper, by which names that say nothing leave nothing to adapt.

    Attributes
    ----------
    names_, controls_ : tuple of str
        The true names, whose order the columns of the logits have, and those that the method got.
    """

    def __init__(self, method: Any, kind: str = "random", seed: int = 0):
        if kind not in CONTROLS:
            raise ValueError(suggest(kind, CONTROLS, "kind of control"))
        self.method, self.kind, self.seed = method, kind, seed
        self.encoder, self.templates, self.hint = method.encoder, method.templates, method.hint

    def fit(self, split: Any, features: Tensor | None = None) -> Control:
        """Self, with the method fitted under the names of the control."""
        self.names_ = tuple(split.names)
        self.controls_ = control_names(self.names_, self.kind, self.seed)
        self.method.fit(renamed(split, self.controls_), features)
        return self

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` of the method, a column for each true name."""
        return self.method.logits(images)

    def classifier_for(self, names: Sequence[str]) -> Tensor:
        """Text features ``(K, D)`` of names that were not learned, which stay themselves."""
        return self.method.classifier_for(names)

    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of names that were not learned."""
        return self.method.other_logits(images, names)

    def joint_logits(self, images: Any, others: Sequence[str]) -> Tensor:
        """Logits ``(N, K + C)`` over the joint vocabulary: other names first."""
        check_others(others, self.names_)
        return self.method.joint_logits(images, others)


def renamed(split: Any, names: Sequence[str]) -> Any:
    """Split with other class names, one for each class, in its captions too; the images stay.

    Raises ValueError if there are not as many names as classes.
    """
    names = as_names(names)
    if len(names) != len(split.names):
        raise ValueError(f"{len(names)} names for {len(split.names)} classes: give one for each")
    captions = []
    for caption, label in zip(split.captions, np.asarray(split.labels).tolist(), strict=True):
        cut = take_out(caption, split.names[label]) if caption else None
        captions.append(f"{cut.before}{names[label]}{cut.after}" if cut else caption)
    return replace(split, names=tuple(names), captions=tuple(captions))
