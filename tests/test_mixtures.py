from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lbutils import load_benchmark, load_encoder
from lbutils.data import folder
from lbutils.measure import joint
from lbutils.measure.mixtures import ORACLES, mixtures, with_labelled
from lbutils.models.classifier import text_features
from lbutils.rivals.probes import ZeroShot
from lbutils.unlabelled.zsnl import ZeroShotNameLearner


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("mini")


@pytest.fixture(scope="module")
def mixed(encoder):
    bench = load_benchmark("mini", domains=["Insects", "Plants"])
    return list(mixtures(encoder, bench, range(2))), bench


class Answers:
    """A learner that was told what to answer."""

    def __init__(self, encoder, weights, names, discovery=None):
        self.encoder, self.weights_, self.names_ = encoder, weights, names
        self.discovery_ = discovery
        self.rows = F.normalize(torch.randn(len(names), encoder.dim), dim=1)

    def joint_logits(self, images, others):
        return images @ torch.cat([text_features(self.encoder, others), self.rows]).T


def test_nothing_is_on_both_sides(mixed):
    for mixture in mixed[0]:
        domain = mixed[1][mixture.domain]
        tests = {*domain.ip.test.ids, *domain.oop.test.ids}
        assert not tests & set(mixture.ids)
        assert not set(domain.ip.train.ids) & set(mixture.ids)
        assert len(mixture.labelled) == len(domain.ip.train)
        whole = np.concatenate([domain.ip.val.labels, domain.oop.train.labels + len(mixture.known)])
        for label in np.unique(whole):
            wanted = max(1, round(0.8 * (whole == label).sum()))
            assert (mixture.labels == label).sum() == wanted
        assert mixture.colours.shape[0] == len(mixture.images) == len(mixture.ids)


def test_draws_differ_and_repeat(mixed, encoder):
    first, second = (m for m in mixed[0] if m.domain == "Plants")
    assert first.ids != second.ids
    again = next(mixtures(encoder, {"Plants": mixed[1]["Plants"]}, [0]))
    assert again.ids == first.ids


def test_candidates_do_not_tell_who_is_new(mixed):
    mixture = mixed[0][0]
    assert list(mixture.candidates) == sorted(mixture.candidates)
    assert set(mixture.new) < set(mixture.candidates)
    assert not set(mixture.known) & set(mixture.candidates)
    assert set(mixture.distractors) == set(mixed[1]["Plants"].oop.names)


def test_oracles_hold_the_truth_and_nothing_unasked(mixed):
    mixture = mixed[0][0]
    assert mixture.oracles(()) == {}
    told = mixture.oracles(ORACLES)
    assert set(told) == set(ORACLES)
    assert told["n_classes"] == len(set(mixture.labels[mixture.labels >= len(mixture.known)]))
    np.testing.assert_array_equal(told["membership"], mixture.labels >= len(mixture.known))
    with pytest.raises(ValueError, match="membership"):
        mixture.oracles(["members"])


def test_zero_shot_is_scored_as_elsewhere(mixed, encoder):
    mixture, domain = mixed[0][0], mixed[1]["Insects"]
    score = mixture.score(mixture.zero_shot(ZeroShot(encoder)))
    texts = text_features(encoder, domain.oop.names)
    unseen = torch.from_numpy(mixture.test_labels >= len(mixture.known))
    found = (mixture.test_images[unseen] @ texts.T).argmax(dim=1).numpy()
    expected = (found == domain.oop.test.labels).mean()
    assert joint.value({"": [score]}, "oop_separate") == pytest.approx(expected)


def weights_of(mixture, names, given):
    """One-hot weights over known names and candidates; None is no name."""
    rows = torch.zeros(len(given), len(mixture.known) + len(names))
    for i, name in enumerate(given):
        if name is not None:
            rows[i, [*mixture.known, *names].index(name)] = 1
    return rows


def test_the_budget_parts_naming_from_clustering(mixed, encoder):
    mixture = mixed[0][0]
    names = list(mixture.candidates)
    every = [*mixture.known, *mixture.new]
    truth = [every[label] for label in mixture.labels]
    n = mixture.is_new.sum()

    def parts(given):
        return mixture.budget(Answers(encoder, weights_of(mixture, names, given), names))

    assert parts(truth)["right"] == 1
    # A cyclic change of the new names: clusters are perfect, every name is wrong.
    turned = dict(zip(mixture.new, [*mixture.new[1:], mixture.new[0]], strict=True))
    assert parts([turned.get(name, name) for name in truth])["misnamed"] == 1
    lost = parts([mixture.known[0]] * len(truth))
    assert lost["taken for known"] == 1
    # All of them one cluster with the name of the first class.
    one = parts([name if name in mixture.known else mixture.new[0] for name in truth])
    first = sum(name == mixture.new[0] for name in truth) / n
    assert one["right"] == pytest.approx(first)
    assert sum(one.values()) == pytest.approx(1)
    nothing = parts([None] * len(truth))
    assert nothing["right"] == 0 and sum(nothing.values()) == pytest.approx(1)


def test_the_budget_looks_at_clusters_where_there_are_some(mixed, encoder):
    mixture = mixed[0][0]
    names, new = list(mixture.candidates), mixture.is_new
    every = [*mixture.known, *mixture.new]
    # One cluster a class; most images of the first new class lie in that of the first known.
    clusters, known = mixture.labels.copy(), np.arange(len(every))
    known[len(mixture.known) :] = -1
    first = np.flatnonzero(mixture.labels == len(mixture.known))
    clusters[first[: len(first) // 2 + 1]] = 0
    turned = dict(zip(mixture.new, [*mixture.new[1:], mixture.new[0]], strict=True))
    given = [turned.get(every[c], every[c]) for c in clusters]
    found = SimpleNamespace(clusters=clusters, known=known)
    learner = Answers(encoder, weights_of(mixture, names, given), names, found)
    parts = mixture.budget(learner)
    assert parts["taken for known"] == pytest.approx((len(first) // 2 + 1) / new.sum())
    assert parts["misnamed"] == pytest.approx(1 - parts["taken for known"])
    # Under the membership oracle new images alone were clustered.
    alone = SimpleNamespace(
        clusters=mixture.labels[new] - len(mixture.known), known=known[-len(mixture.new) :]
    )
    assert mixture.budget(Answers(encoder, learner.weights_, names, alone))["misclustered"] == 0


def test_confidence_goes_with_the_name_and_known_images_have_none(mixed, encoder):
    mixture = mixed[0][0]
    names = list(mixture.candidates)
    every = [*mixture.known, *mixture.new]
    weights = 0.7 * weights_of(mixture, names, [every[label] for label in mixture.labels])
    sure, right = mixture.confidence(Answers(encoder, weights, names))
    np.testing.assert_allclose(sure, np.where(mixture.is_new, 0.7, -0.7), atol=1e-6)
    np.testing.assert_array_equal(right, mixture.is_new)


class Rows:
    """Knowledge whose prototypes are given, and colours perhaps."""

    def __init__(self, rows, told=None):
        self.rows, self.told = F.normalize(rows, dim=1), told

    def prototypes(self, names):
        return self.rows

    def shares(self, names, known=(), hint=None):
        return np.full(len(names), 1 / len(names))

    def told_colours(self, names):
        return self.told


def test_perfect_knowledge_names_all_classes_and_wrong_knowledge_none(mixed):
    mixture = mixed[0][0]
    own = [mixture.labels == len(mixture.known) + c for c in range(len(mixture.new))]
    means = torch.stack([mixture.images[torch.from_numpy(mask)].mean(0) for mask in own])
    assert mixture.named_from_truth(Rows(means)) == 1
    assert mixture.named_from_truth(Rows(means.roll(1, 0))) == 0
    # Colours alone decide where all prototypes are the same.
    told = np.stack([mixture.colours[mask].mean(axis=0) for mask in own])
    alike = means.mean(dim=0, keepdim=True).expand(len(means), -1)
    coloured = mixture.named_from_truth(Rows(alike, told / told.sum(axis=1, keepdims=True)))
    assert coloured > 2 / len(mixture.new)


def test_among_candidates_equals_a_loop(mixed, encoder):
    mixture = mixed[0][0]
    torch.manual_seed(0)
    learner = Answers(encoder, torch.zeros(0, 0), list(mixture.candidates))
    found = mixture.among_candidates(learner)
    texts = torch.cat([text_features(encoder, mixture.known), learner.rows])
    every = [*mixture.known, *mixture.candidates]
    own = [*mixture.known, *mixture.new]
    right = [
        every[int((texts @ image).argmax())] == own[label]
        for image, label in zip(mixture.test_images, mixture.test_labels, strict=True)
    ]
    new = mixture.test_labels >= len(mixture.known)
    assert found["oop_wide"] == pytest.approx(np.mean(np.array(right)[new]))
    assert found["ip_wide"] == pytest.approx(np.mean(np.array(right)[~new]))


def test_labels_of_unlabelled_images_do_not_reach_a_learner(mixed, encoder):
    mixture = mixed[0][0]
    knowledge = Rows(text_features(encoder, mixture.candidates))
    shuffled = replace(mixture, labels=np.random.default_rng(0).permutation(mixture.labels))
    learners = [
        m.fit(ZeroShotNameLearner(encoder, knowledge, steps=2)) for m in (mixture, shuffled)
    ]
    assert torch.equal(learners[0].weights_, learners[1].weights_)
    assert torch.equal(learners[0].classifier_, learners[1].classifier_)


def test_a_learner_is_fitted_with_what_it_may_know(mixed, encoder):
    knowledge = Rows(text_features(encoder, mixed[0][0].new))
    learner = mixed[0][0].fit(ZeroShotNameLearner(encoder, knowledge, steps=2), ["vocabulary"])
    assert learner.candidates_ == mixed[0][0].new and learner.known_ == mixed[0][0].known
    assert set(learner.names_) == set(mixed[0][0].new)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_shares_are_checked(mixed, encoder, share):
    with pytest.raises(ValueError, match="share"):
        next(mixtures(encoder, mixed[1], share=share))


def test_few_domains_do(encoder, mixed):
    found = list(mixtures(encoder, mixed[1], [0], most_domains=1))
    assert [(m.domain, m.draw) for m in found] == [("Insects", 0)]
    # Distractors are the names of all domains none the less.
    assert set(found[0].distractors) == set(mixed[1]["Plants"].oop.names)


def test_labelled_images_are_lent_by_the_test_images_where_there_are_none(tmp_path, encoder):
    """As IP classes of LAION-Beyond have test images only."""
    folder.generate(tmp_path, ["Animals"], images=(2, 0, 12))
    domain = load_benchmark(tmp_path)["Animals"]
    with pytest.raises(ValueError, match="no training images of IP"):
        next(mixtures(encoder, {"Animals": domain}))
    lent = with_labelled(domain)
    assert np.bincount(lent.ip.train.labels).tolist() == [2, 2]
    assert np.bincount(lent.ip.test.labels).tolist() == [10, 10]
    parts = lent.ip.train.ids, lent.ip.test.ids
    assert sorted(parts[0] + parts[1]) == sorted(domain.ip.test.ids)
    assert with_labelled(domain).ip.train.ids == parts[0] and lent.oop is domain.oop
    found = next(mixtures(encoder, {"Animals": lent}))
    assert not set(found.ids) & {*parts[1], *domain.oop.test.ids}
    assert len(found.test_labels) == len(parts[1]) + len(domain.oop.test)
    assert with_labelled(lent) is lent


def test_a_class_of_one_image_lends_none(tmp_path):
    folder.generate(tmp_path, ["Animals"], images=(2, 0, 1))
    domain = with_labelled(load_benchmark(tmp_path)["Animals"])
    assert not len(domain.ip.train) and len(domain.ip.test) == 2
