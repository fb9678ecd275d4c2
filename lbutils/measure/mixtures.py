"""Zero-shot name learning on a benchmark: what is mixed, which oracles are told, what is scored.

A learner gets images and names, never a label of an image that it is to name: labels are here, and
reach it only as oracles that are asked for by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbutils._util import suggest
from lbutils.data.benchmark import Domain, join
from lbutils.learn.colours import colour_evidence, colour_shares
from lbutils.measure.joint import JointScores, joint_scores
from lbutils.measure.tasks import smallest
from lbutils.models.classifier import class_means
from lbutils.models.features import image_features
from lbutils.unlabelled.cluster import matched_hits
from lbutils.unlabelled.match import assign, similarities

ORACLES = ("n_classes", "membership", "vocabulary")


@dataclass(frozen=True, eq=False)
class Mixture:
    """Unlabelled images of a domain's known and new classes, with what it takes to score them.

    Attributes
    ----------
    known, new, distractors : tuple of str
        Names of IP classes, of OOP classes, and candidates that no image shows.
    leaks : ndarray, shape (len(new),), bool
        Whether all BPE pieces of a new name occurred in pre-training.
    labelled : Tensor, shape (M, D)
    taught : ndarray, shape (M,), int64
        Features of labelled images and their classes among `known`.
    images : Tensor, shape (N, D)
    labels : ndarray, shape (N,), int64
        Features of unlabelled images; their classes, known names first, then new ones.
    colours : ndarray, shape (N, 11)
        Of the unlabelled images; see `colours.colour_shares`.
    test_images, test_labels
        The same of test images.
    """

    domain: str
    hint: str | None
    draw: int
    known: tuple[str, ...]
    new: tuple[str, ...]
    distractors: tuple[str, ...]
    leaks: np.ndarray
    labelled: Tensor
    taught: np.ndarray
    images: Tensor
    labels: np.ndarray
    ids: tuple[str, ...]
    colours: np.ndarray
    test_images: Tensor
    test_labels: np.ndarray

    @property
    def is_new(self) -> np.ndarray:
        """Which unlabelled images show a new class, bool ``(N,)``."""
        return self.labels >= len(self.known)

    @property
    def candidates(self) -> tuple[str, ...]:
        """New names and distractors, sorted, so that their order tells nothing."""
        return tuple(sorted({*self.new, *self.distractors}))

    def oracles(self, told: Collection[str]) -> dict[str, Any]:
        """Arguments of `ZeroShotNameLearner.fit` that hold the truth, of `ORACLES`.

        Raises ValueError for an unknown oracle.
        """
        truth = {
            "n_classes": len(np.unique(self.labels[self.is_new])),
            "membership": self.is_new,
            "vocabulary": self.new,
        }
        for oracle in told:
            if oracle not in truth:
                raise ValueError(suggest(oracle, ORACLES, "oracle"))
        return {oracle: truth[oracle] for oracle in told}

    def fit(self, learner: Any, told: Collection[str] = ()) -> Any:
        """The learner, fitted to the unlabelled images with the oracles that it is told."""
        return learner.fit(
            self.images,
            self.candidates,
            known=self.known,
            labelled=self.labelled,
            labels=self.taught,
            colours=self.colours,
            **self.oracles(told),
        )

    def zero_shot(self, classifier: Any) -> Any:
        """A few-shot method that looks at names only, such as `ZeroShot`, fitted to candidates."""
        return classifier.fit(SimpleNamespace(names=self.candidates))

    def _columns(self, learner: Any) -> np.ndarray:
        """Where known, then new names stand among known ones and, after these, a learner's own."""
        place = {name: len(self.known) + i for i, name in enumerate(learner.names_)}
        return np.array([*range(len(self.known)), *(place[name] for name in self.new)])

    def score(self, learner: Any) -> JointScores:
        """Scores of a fitted learner on test images, over known and new names alone."""
        found = learner.joint_logits(self.test_images, self.known)[:, self._columns(learner)]
        return joint_scores(found.numpy(), self.test_labels, len(self.known))

    def among_candidates(self, learner: Any) -> dict[str, float]:
        """Accuracies on test images where known names and all candidates learned are choices.

        Returns a dict: ``ip_wide``, ``oop_wide``: of images of known and of new classes, as shares.
        """
        found = learner.joint_logits(self.test_images, self.known).argmax(dim=1).numpy()
        hits = found == self._columns(learner)[self.test_labels]
        new = self.test_labels >= len(self.known)
        return {"ip_wide": float(hits[~new].mean()), "oop_wide": float(hits[new].mean())}

    def budget(self, learner: Any) -> dict[str, float]:
        """What became of the unlabelled images of new classes, as shares that add up to one.

        Returns a dict: ``right``: the image got its name. ``misnamed``: it lies in the cluster of
        its class, under the best one-to-one match of clusters to classes, and the cluster has
        another name. ``misclustered``: it lies in a cluster of other images. ``taken for known``:
        in that of a known class. Where names were the clusters, as in the joint matching, they are
        matched alike.
        """
        given = learner.weights_.argmax(dim=1).numpy()[self.is_new]
        bare = ~learner.weights_.any(dim=1).numpy()[self.is_new]
        truth = self.labels[self.is_new]
        place = self._columns(learner)[truth]
        clusters, lost = given, (given < len(self.known)) & ~bare
        if learner.discovery_ is not None:
            clusters, known = learner.discovery_.clusters, learner.discovery_.known
            # Under the membership oracle, new images alone were clustered.
            clusters = clusters if len(clusters) == len(truth) else clusters[self.is_new]
            lost = known[clusters] >= 0
        right = (given == place) & ~bare & ~lost
        hits = np.zeros(len(truth), dtype=bool)
        if not lost.all():
            hits[~lost] = matched_hits(truth[~lost], clusters[~lost])
        shares = {
            "right": right,
            "misnamed": hits & ~right,
            "misclustered": ~hits & ~right & ~lost,
            "taken for known": lost,
        }
        return {part: float(mask.mean()) for part, mask in shares.items()}

    def confidence(self, learner: Any) -> tuple[np.ndarray, np.ndarray]:
        """How sure each unlabelled image's new name is, and whether it is right, ``(N,)``.

        Images of known classes are among them: a new name is wrong for each. An image that is
        taken for a known class has a confidence of zero or less, the lower the surer.
        """
        place = np.where(self.is_new, self._columns(learner)[self.labels], -1)
        known = learner.weights_[:, : len(self.known)].sum(dim=1)
        sure, given = learner.weights_[:, len(self.known) :].max(dim=1)
        right = (given.numpy() + len(self.known) == place) & (sure.numpy() > 0)
        return np.where(known > sure, -known, sure).astype(np.float64), right

    def named_from_truth(self, knowledge: Any, concentration: float = 20.0) -> float:
        """Share of new images named right by one-to-one matching if clusters were the true classes.

        Parameters
        ----------
        knowledge : Knowledge
            Whose prototypes (and colours) of the new names are matched one-to-one to the classes
            that have images.
        concentration : float
            As in `ZeroShotNameLearner`, whose one-to-one matching this is.
        """
        truth = self.labels[self.is_new] - len(self.known)
        images = self.images[torch.from_numpy(self.is_new)]
        means, counts = class_means(images[None], torch.from_numpy(truth), len(self.new))
        shown = np.flatnonzero(counts.numpy())
        cosines = similarities(F.normalize(means[shown], dim=1), knowledge.prototypes(self.new))
        told = knowledge.told_colours(self.new)
        if told is not None:
            own = [self.colours[self.is_new][truth == c].mean(axis=0) for c in shown]
            cosines = cosines + colour_evidence(own, told) / concentration
        found = assign(cosines, temperature=1 / concentration).names
        return float(counts.numpy()[shown[found == shown]].sum() / counts.sum())


def mixtures(
    encoder: Any,
    benchmark: Mapping[str, Any],
    draws: Iterable[int] = range(10),
    *,
    share: float = 0.8,
    others: bool = True,
    most_domains: int | None = None,
) -> Iterator[Mixture]:
    """Mixtures of every domain and draw.

    IP training images are labelled. The unlabelled images are a random share of the OOP training
    and IP validation images of each class; test images are those of both.

    Raises ValueError if `share` is not in 0..1, or a domain has no training images of IP classes.

    Parameters
    ----------
    benchmark : mapping of str to Domain
        Domains need training and test images of IP and OOP classes; IP validation images, where
        there are none, are replaced by half of the IP training images.
    draws : iterable of int
        Numbers of draws, each its own random share.
    share : float
        Of each class's images, at least one.
    others : bool
        Whether the OOP names of all other domains are distractors.
    most_domains : int, optional
        Make do with so many domains, as `tasks.smallest` chooses them; distractors stay.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be above 0, and 1 at most")
    draws = list(draws)
    for name, domain in smallest(benchmark, most_domains).items():
        ip, oop = domain.ip, domain.oop
        if not len(ip.train):
            raise ValueError(f"{name} has no training images of IP classes: leave it out")
        seen, (labelled, mixed) = image_features(encoder, ip.train), (ip.train, ip.val)
        if len(mixed):
            unseen = image_features(encoder, mixed)
        else:
            half = np.arange(len(ip.train)) % 2 == 0
            labelled, mixed = ip.train.take(half), ip.train.take(~half)
            seen, unseen = seen[torch.from_numpy(half)], seen[torch.from_numpy(~half)]
        images = torch.cat([unseen, image_features(encoder, oop.train)])
        pool, test = join(mixed, oop.train), join(ip.test, oop.test)
        shown = colour_shares(pool)
        tested = torch.cat([image_features(encoder, part.test) for part in (ip, oop)])
        away = {n for other in benchmark.values() for n in other.oop.names}
        away -= {*oop.names, *ip.names}
        for draw in draws:
            rows = _drawn(pool.labels, share, draw)
            yield Mixture(
                name,
                domain.hint,
                draw,
                tuple(ip.names),
                tuple(oop.names),
                tuple(sorted(away)) if others else (),
                np.asarray(oop.compositional, dtype=bool),
                seen,
                np.asarray(labelled.labels),
                images[torch.from_numpy(rows)],
                pool.labels[rows],
                tuple(pool.ids[i] for i in rows),
                shown[rows],
                tested,
                test.labels,
            )


def with_labelled(domain: Domain, share: float = 1 / 6) -> Domain:
    """The domain itself, or with labelled IP images out of its test images if it has no others.

    IP images of LAION-Beyond are for evaluation. The released code, whose discovery needs labelled
    ones, keeps five sixths of each class for that.

    `share` (float): of the IP test images of each class, which become its training images; always
    the same. A class of one image keeps it for the test.
    """
    ip = domain.ip
    counts = np.bincount(ip.test.labels, minlength=len(ip.names))
    rows = np.flatnonzero(counts[ip.test.labels] > 1)
    if len(ip.train) or not len(rows):
        return domain
    taken = rows[_drawn(ip.test.labels[rows], share, draw=0)]
    kept = np.setdiff1d(np.arange(len(ip.test)), taken)
    return replace(domain, ip=replace(ip, train=ip.test.take(taken), test=ip.test.take(kept)))


def _drawn(labels: np.ndarray, share: float, draw: int) -> np.ndarray:
    """Rows of a random share of each class, one at least, in order."""
    rng = np.random.default_rng(draw)
    kept = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        kept.append(rng.permutation(own)[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))
