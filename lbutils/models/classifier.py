"""Names, templates and an encoder in; a classifier over image features out."""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import NotFittedError

from lbutils.captions.text import as_names
from lbutils.models.features import image_features
from lbutils.models.prompts import Templates, prompts_by_class
from lbutils.models.text import encode_prompts


def text_classifier(
    encoder: Any,
    names: Sequence[str],
    templates: Templates = "mini",
    hint: str | None = None,
    batch_size: int = 256,
) -> torch.Tensor:
    """Text features of the names, ``(C, D)`` float32 of unit length, on the CPU.

    Raises ValueError if there are no names, or one text in place of a list, or a template does not
    fit, or a name has no prompt.

    Warns with UserWarning if the encoder reads different names as the same text, as it does with
    names that are alike up to where a prompt is cut, or up to case: their rows are equal then.
    Source: Radford et al. 2021, section 3.1.4; open_clip, ``zero_shot_classifier.py``.

    Parameters
    ----------
    names : sequence of str
        Class names, taken literally.
    templates : str, sequence of str, or mapping of str to sequence of str
        A template set (see `prompts.templates`), one template, or several; or prompts of their
        own for each name (`prompts.prompts_by_class`). The normalised features of a name's
        prompts are averaged and normalised again.
    hint : str, optional
        Superclass for templates with a ``{hint}``.
    """
    names = as_names(names, "class names")
    if not names:
        raise ValueError("no class names given: pass at least one")
    lists = prompts_by_class(templates, names, hint)
    # The first prompt of each name, then the second: those of one template lie side by side.
    owned = [
        (owner, own[place])
        for place in range(max(map(len, lists)))
        for owner, own in enumerate(lists)
        if place < len(own)
    ]
    prompts = [prompt for _, prompt in owned]
    owners = [owner for owner, _ in owned]
    sums = torch.zeros(len(names), 1)
    read = [b""] * len(names)
    done = 0
    for features, ids in encode_prompts(encoder, prompts, batch_size):
        own = owners[done : done + len(ids)]
        sums = sums.expand(-1, features.shape[1]).index_add(0, torch.tensor(own), features)
        for owner, row in zip(own, ids, strict=True):
            read[owner] += row
        done += len(ids)
    warn_of_twins(names, read, encoder.context_length)
    return F.normalize(sums, dim=-1)


def warn_of_twins(names: Sequence[str], read: Sequence[Hashable], length: int) -> None:
    """Warn of different names that are read as the same ids, naming them.

    `read` is what the encoder reads for each name, `length` the tokens that a prompt may have.
    """
    first: dict[Hashable, str] = {}
    pairs = [(first.setdefault(ids, name), name) for name, ids in zip(names, read, strict=True)]
    twins = [f"{one!r:.80} and {other!r:.80}" for one, other in pairs if one != other]
    if twins:
        more = f" (and {len(twins) - 3} other pairs)" if len(twins) > 3 else ""
        warnings.warn(
            f"the encoder reads as the same text {', '.join(twins[:3])}{more}: it cuts prompts "
            f"after {length} tokens and may not tell case or signs, so their classes have equal "
            "logits; shorten or rename them",
            stacklevel=3,
        )


# Text features by encoder, for the methods of one table, which ask for the same again and again.
_TEXTS: WeakKeyDictionary[Any, OrderedDict[Any, torch.Tensor]] = WeakKeyDictionary()
_KEPT = 64


def text_features(
    encoder: Any,
    names: Sequence[str],
    templates: Templates = "mini",
    hint: str | None = None,
) -> torch.Tensor:
    """What `text_classifier` returns ``(C, D)``; the latest answers of an encoder are kept.

    An answer is given again only while the encoder's weights and tokenizer are what they were.
    """
    names = as_names(names, "class names")
    key = (tuple(names), prompts_by_class(templates, names, hint), state_of(encoder))
    known = _TEXTS.setdefault(encoder, OrderedDict())
    found = known.get(key)
    if found is None:
        found = known[key] = text_classifier(encoder, names, templates, hint)
        while len(known) > _KEPT:
            known.popitem(last=False)
    return found.clone()


def state_of(encoder: Any) -> tuple[str, Any]:
    """What changes when the encoder's weights, however written to, or its tokenizer do."""
    # Not the tokenizer's id, which another may get once this one is gone.
    return encoder.fingerprint, encoder.tokenizer


def logits(features: Any, classifier: torch.Tensor, scale: float) -> torch.Tensor:
    """Scaled cosine similarities ``(N, C)`` of image features and a classifier, on the CPU.

    Rows of the features ``(N, D)`` and of the classifier ``(C, D)`` are of unit length, the scale
    is the model's ``logit_scale``. The joint vocabulary is the classifiers of its parts, one below
    the other.
    """
    features = torch.as_tensor(np.asarray(features), dtype=torch.float32)
    return scale * features @ classifier.cpu().float().T


class Estimator:
    """What has options and is fitted: checks its numbers, and says where `fit` was not called.

    What is fitted ends in ``_``; to ask for it before `fit` raises `NotFittedError`.
    """

    _counts: ClassVar[tuple[str, ...]] = ()  # options that are 1 or more
    _positive: ClassVar[tuple[str, ...]] = ()
    _signed: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of range: one below 0, if its class says nothing."""
        for option, value in vars(self).items():
            if isinstance(value, (int, float, np.number)) and option not in self._signed:
                least = int(option in self._counts)
                fits, wanted = value >= least, f"{least} or more"
                if option in self._positive:
                    fits, wanted = value > 0, "a number above 0"
                if not fits:
                    raise ValueError(f"{option}={value}: give {wanted}")

    if not TYPE_CHECKING:  # which would take every misspelt attribute for one

        def __getattr__(self, name: str) -> Any:
            if name.endswith("_") and not name.startswith("_"):
                raise NotFittedError(
                    f"this {type(self).__name__} has no {name} yet: call fit first"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class FeatureClassifier(Estimator):
    """Base of every method: `logits` and `predict` from a fitted ``classifier_`` ``(C, D)``.

    A method adds ``fit(split, features=None)``, which returns self and sets ``classifier_``
    and ``names_``. Methods return logits; scoring is left to `lbutils.measure.metrics`.

    `joint_logits` sets the names that were learned beside others that were not. Which of its
    steps a method changes follows from what it moves: a context that all names share changes
    `classifier_for`, a change of the image features changes `other_logits`.
    """

    encoder: Any
    classifier_: torch.Tensor
    templates: Templates = "mini"
    hint: str | None = None

    def logits(self, images: Any) -> torch.Tensor:
        """Logits ``(N, C)`` float32 on the CPU, classes in the order of ``names_``.

        `images` are a Split, or features ``(N, D)``.
        """
        classifier = self.classifier_  # asked for before images are looked at
        return logits(self._features(images), classifier, self.encoder.logit_scale)

    def classifier_for(self, names: Sequence[str]) -> torch.Tensor:
        """Text features ``(K, D)`` of names that were not learned, as this method sees them."""
        return text_features(self.encoder, names, self.templates, self.hint)

    def other_logits(self, images: Any, names: Sequence[str]) -> torch.Tensor:
        """Logits ``(N, K)`` of names that were not learned; `images` as in `logits`."""
        return logits(self._features(images), self.classifier_for(names), self.encoder.logit_scale)

    def joint_logits(self, images: Any, others: Sequence[str]) -> torch.Tensor:
        """Logits ``(N, K + C)`` over the joint vocabulary: other names first, then ``names_``."""
        check_others(others, getattr(self, "names_", ()))
        features = self._features(images)
        return torch.cat([self.other_logits(features, others), self.logits(features)], dim=1)

    def predict(self, images: Any) -> np.ndarray:
        """Class indices ``(N,)`` int64 of the highest logits; `images` as in `logits`."""
        return self.logits(images).argmax(dim=1).numpy()

    def _features(self, images: Any) -> torch.Tensor:
        """Features ``(N, D)`` float32 on the CPU."""
        found = images if isinstance(images, torch.Tensor) else image_features(self.encoder, images)
        found = found.detach().cpu().float()
        if not found.isfinite().all():
            raise ValueError("image features hold NaN or infinity: compute them anew")
        return found


def training_features(
    encoder: Any, split: Any, views: int = 4, seed: int = 0, clean: bool = True
) -> torch.Tensor:
    """Features ``(V, N, D)`` to fit on: the images as they are, if `clean`, then augmented views.

    The views are drawn by ``encoder.augment`` under `seed`, computed once and cached. Raises
    ValueError if neither clean images nor views are asked for.
    """
    parts = [image_features(encoder, split)[None]] if clean else []
    if views:
        parts.append(image_features(encoder, split, views=views, seed=seed))
    if not parts:
        raise ValueError("views=0 and clean=False leave no image to fit on")
    return torch.cat([part.cpu() for part in parts])


def check_others(others: Sequence[str], names: Iterable[str]) -> None:
    """Raise ValueError if `others` is a single text, or shares a name with `names`."""
    both = set(as_names(others, "other names")) & set(names)
    if both:
        raise ValueError(f"{min(both)!r} is learned and stands among the other names: leave it out")


def unit_rows(rows: Any, what: str, width: int | None = None) -> torch.Tensor:
    """Rows ``(N, D)`` float32 on the CPU; raises ValueError unless all are of unit length.

    `what` names the rows in the error; D must be the `width`, if that is given.
    """
    if not isinstance(rows, torch.Tensor):
        rows = torch.from_numpy(np.array(rows, dtype=np.float32))
    found = rows.detach().cpu().float()
    if found.ndim != 2 or width not in (None, found.shape[1]):
        wanted = f"(N, {'D' if width is None else width})"
        raise ValueError(f"{what} are {tuple(found.shape)}; expected {wanted}")
    norms = found.norm(dim=1)
    wrong = (~((norms - 1).abs() < 1e-2)).nonzero()[:, 0]  # NaN is not below either
    if len(wrong):
        raise ValueError(
            f"{what} must be of unit length, without NaN, but row {int(wrong[0])} has length "
            f"{float(norms[wrong[0]]):.3g}: pass torch.nn.functional.normalize(rows, dim=-1)"
        )
    return found


def check_labelled(
    labelled: Any, labels: Any, n_classes: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features ``(M, D)`` and labels ``(M,)`` int64 of labelled images; M is 0 without any.

    Raises ValueError if there is one without the other, or they do not fit: rows must be of unit
    length and as wide as `width`, labels integers below `n_classes`, one for each row.
    """
    if (labelled is None) != (labels is None):
        raise ValueError("labelled images and their labels go together: give both or neither")
    rows = unit_rows(np.empty((0, width)) if labelled is None else labelled, "labelled", width)
    given = np.asarray([] if labels is None else labels)
    if given.shape != (len(rows),) or (len(rows) and given.dtype.kind not in "iu"):
        raise ValueError(f"labels {given.shape} of {len(rows)} labelled images: one integer each")
    if len(rows) and not 0 <= given.min() <= given.max() < n_classes:
        raise ValueError(f"labels must be places among the known names, 0 to {n_classes - 1}")
    return rows, torch.from_numpy(given.astype(np.int64))


def check_training(
    split: Any, features: torch.Tensor, unit: bool = True, empty: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``(V, N, D)`` float32 and labels ``(N,)`` int64, on the CPU and fit to train on.

    `features` ``(V, N, D)`` are of V views of the split's images. `unit` says whether they must be
    of unit length, `empty` whether a split without images will do.

    Raises ValueError if the split is empty, names two classes alike, or has a label without a name;
    if the features do not fit it, are not finite, or not of unit length.
    """
    labels = torch.tensor(np.asarray(split.labels), dtype=torch.long)
    if not len(labels) and not empty:
        raise ValueError("the split has no image to learn from: draw at least one shot")
    twice = next((name for name, times in Counter(split.names).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"class names must be all different, but {twice!r} stands twice: merge it")
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(split.names)):
        raise ValueError(f"labels must lie in 0 to {len(split.names) - 1}, one for each name")
    if features.ndim != 3 or features.shape[1] != len(labels) or not len(features):
        raise ValueError(
            f"features are {tuple(features.shape)}; expected (views, {len(labels)}, D)"
        )
    features = features.detach().cpu().float()
    broken = (~features.isfinite()).any(dim=2).any(dim=0).nonzero()[:, 0].tolist()
    if broken:
        raise ValueError(
            f"features of {len(broken)} of {len(labels)} images are not finite (first: image "
            f"{broken[0]}): compute them anew, or leave these images out"
        )
    if unit:
        unit_rows(features.flatten(0, 1), "features")
    return features, labels


def class_means(
    features: torch.Tensor, labels: torch.Tensor, n_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means ``(C, D)`` of the features of each class and numbers of images ``(C,)``.

    The mean runs over all views of features ``(V, N, D)``, labels are ``(N,)``; a class without
    images gets zeros.
    """
    counts = torch.bincount(labels, minlength=n_classes)
    sums = torch.zeros(n_classes, features.shape[-1]).index_add_(0, labels, features.mean(dim=0))
    return sums / counts.clamp(min=1)[:, None], counts
