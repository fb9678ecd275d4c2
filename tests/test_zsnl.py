from __future__ import annotations

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import examples, load_script
from hypothesis import given, settings
from hypothesis import strategies as st

from lbutils import load_encoder
from lbutils.data.benchmark import mini_file
from lbutils.learn.knowledge import Knowledge, Lexicon
from lbutils.models.classifier import text_features
from lbutils.unlabelled import zsnl
from lbutils.unlabelled.zsnl import MATCHINGS, ZeroShotNameLearner, joint_iteration

KNOWN = ("dog", "apple", "hat")
NEW = ("zorbit", "flumen", "krait", "vexil", "quob", "tarn")
QUICK = {"steps": 3, "templates": "a {name}"}


class Told:
    """Knowledge whose prototypes are given."""

    def __init__(self, rows, shares=None):
        self.rows, self.given = rows, shares

    def prototypes(self, names):
        return torch.stack([self.rows[name] for name in names])

    def shares(self, names, known=(), hint=None):
        return np.full(len(names), 1 / len(names))

    def told_colours(self, names):
        return None


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("mini")


def planted(encoder, images=12, blur=0.25, noise=0.05, names=NEW, seed=0):
    """Images of known and new classes; each name's prototype is its direction, blurred.

    Returns what `fit` takes, prototypes by name, and classes of the images, known ones first.
    """
    draw = torch.Generator().manual_seed(seed)
    known = text_features(encoder, KNOWN, "a {name}")
    hidden = torch.linalg.qr(torch.randn(encoder.dim, len(names), generator=draw))[0].T
    rows = F.normalize(
        hidden + blur * F.normalize(torch.randn(hidden.shape, generator=draw)), dim=1
    )
    centres = torch.cat([known, hidden])
    labels = torch.arange(len(centres)).repeat_interleave(images)
    labels = labels[torch.randperm(len(labels), generator=draw)]

    def shown(labels):
        clouds = torch.randn(len(labels), encoder.dim, generator=draw)
        return F.normalize(centres[labels] + noise * clouds, dim=1)

    taught = torch.arange(len(KNOWN)).repeat_interleave(4)
    extra = {"known": KNOWN, "labelled": shown(taught), "labels": taught}
    return shown(labels), extra, dict(zip(names, rows, strict=True)), labels.numpy()


def named(learner, labels):
    return float((learner.weights_.argmax(dim=1).numpy() == labels).mean())


@pytest.mark.parametrize("matching", MATCHINGS)
def test_separable_classes_get_their_names(encoder, matching):
    images, extra, rows, labels = planted(encoder)
    learner = ZeroShotNameLearner(encoder, Told(rows), matching=matching, **QUICK)
    k = None if matching == "joint" else len(NEW)
    order = [3, 0, 5, 1, 4, 2]
    candidates = [NEW[i] for i in order]
    learner.fit(images, candidates, **extra, n_classes=k)
    place = np.concatenate([np.arange(3), 3 + np.argsort(order)])
    assert named(learner, place[labels]) == 1
    assert learner.new_share_ == pytest.approx(6 / 9, abs=0.02)
    new = labels >= 3
    found = learner.logits(images[new])[:, learner.columns(NEW)].argmax(dim=1).numpy()
    # Six short words and three steps do not reach every direction; they must beat the start.
    start = text_features(encoder, NEW, "a {name}")
    before = (images[new] @ start.T).argmax(dim=1).numpy()
    assert (found == labels[new] - 3).mean() > (before == labels[new] - 3).mean() + 0.3
    assert set(learner.names_) == set(NEW)


@pytest.mark.parametrize("matching", ["joint", "hungarian"])
def test_names_without_images_and_images_without_names(encoder, matching):
    images, extra, rows, labels = planted(encoder)
    options = {"matching": matching, **QUICK}
    # Half of the candidates belong to no image of the pool.
    kept = labels < 6
    learner = ZeroShotNameLearner(encoder, Told(rows), **options)
    learner.fit(images[torch.from_numpy(kept)], NEW, **extra, n_classes=3)
    assert named(learner, labels[kept]) == 1
    centres = learner.centres_[3:]
    prototypes = torch.stack([rows[name] for name in NEW[3:]])
    assert ((centres * prototypes).sum(dim=1) > 0.95).all()
    # Half of the clusters have no name among the candidates.
    learner.fit(images, NEW[:3], **extra, n_classes=6)
    with_name = labels < 6
    assert named_among(learner, labels, with_name) == 1
    if matching == "hungarian":
        assert (learner.assignment_.names == -1).sum() == 3
        assert float(learner.weights_[torch.from_numpy(~with_name)].sum(dim=1).max()) < 0.5


def named_among(learner, labels, mask):
    return float((learner.weights_.argmax(dim=1).numpy() == labels)[mask].mean())


def test_a_class_of_two_clusters_bears_one_name(encoder):
    images, extra, rows, labels = planted(encoder)
    # The last two classes are one: its prototype lies between them, and no name is left over.
    merged = {**rows, "quob": F.normalize(rows["quob"] + rows["tarn"], dim=0)}
    learner = ZeroShotNameLearner(encoder, Told(merged), **QUICK)
    learner.fit(images, NEW[:5], **extra)
    assert named(learner, np.minimum(labels, 7)) == 1


@pytest.mark.parametrize("matching", MATCHINGS)
def test_one_image_a_class(encoder, matching):
    images, extra, rows, labels = planted(encoder, images=1)
    learner = ZeroShotNameLearner(encoder, Told(rows), matching=matching, **QUICK)
    learner.fit(images, NEW, **extra, n_classes=6)
    assert named(learner, labels) == 1


def test_oracles_leave_out_what_they_say(encoder):
    images, extra, rows, labels = planted(encoder, noise=0.12)
    new = labels >= 3
    learner = ZeroShotNameLearner(encoder, Told(rows), **QUICK)
    learner.fit(images, NEW, **extra, membership=new, vocabulary=NEW[2:4])
    assert learner.candidates_ == NEW[2:4] and learner.classifier_.shape[0] == 2
    assert not learner.weights_[torch.from_numpy(~new)].any()
    assert not learner.weights_[:, :3].any()
    assert learner.new_share_ == 1
    with pytest.raises(ValueError, match="learned name"):
        learner.columns(["zorbit"])


def test_the_order_of_images_does_not_matter(encoder):
    images, extra, rows, _ = planted(encoder, noise=0.12)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    first = ZeroShotNameLearner(encoder, Told(rows), **QUICK).fit(images, NEW, **extra)
    second = ZeroShotNameLearner(encoder, Told(rows), **QUICK).fit(images[order], NEW, **extra)
    torch.testing.assert_close(first.classifier_, second.classifier_, atol=1e-4, rtol=0)
    torch.testing.assert_close(first.weights_[order], second.weights_, atol=1e-4, rtol=0)


@pytest.mark.parametrize("matching", ["joint", "sinkhorn"])
def test_the_same_seed_gives_the_same_bits(encoder, matching):
    images, extra, rows, _ = planted(encoder, noise=0.12)
    runs = []
    for _ in range(2):
        # Else the second run would be handed what the first was taught.
        zsnl._TAUGHT.clear()
        learner = ZeroShotNameLearner(encoder, Told(rows), matching=matching, steps=4)
        runs.append(learner.fit(images, NEW, **extra, n_classes=6))
    assert torch.equal(runs[0].classifier_, runs[1].classifier_)
    assert torch.equal(runs[0].weights_, runs[1].weights_)
    assert runs[0].history_ == runs[1].history_


def test_loss_falls_and_rounds_go_on_from_the_rows_learned(encoder):
    images, extra, rows, _ = planted(encoder)
    learner = ZeroShotNameLearner(encoder, Told(rows), steps=12, rounds=2, templates="a {name}")
    learner.fit(images, NEW, **extra)
    taught, first, second = (learner.history_[i : i + 12] for i in (0, 12, 24))
    assert len(second) == 12 and len(learner.history_) == 36
    assert taught[-1] < taught[0] - 0.1
    assert first[-1] < first[0] - 0.05
    assert second[0] < first[0] - 0.05
    zsnl._TAUGHT.clear()
    again = ZeroShotNameLearner(encoder, Told(rows), steps=12, rounds=2, templates="a {name}")
    assert again.fit(images, NEW, **extra).history_ == learner.history_


def plain_mixture(images, prototypes, known, concentration, prior, rounds):
    """The mixture's iterations as loops over images and classes, in double precision."""
    x, p = images.double().numpy(), prototypes.double().numpy()
    fixed = known.double().numpy()
    centres, new, trace = p.copy(), 0.5, []
    for _ in range(rounds):
        weights = np.zeros((len(x), len(fixed) + len(p)))
        total = 0.0
        for i, row in enumerate(x):
            parts = [(1 - new) / len(fixed) * math.exp(concentration * row @ k) for k in fixed]
            parts += [new / len(p) * math.exp(concentration * row @ c) for c in centres]
            weights[i] = np.array(parts) / sum(parts)
            total += math.log(sum(parts))
        total += sum(prior * concentration * c @ q for c, q in zip(centres, p, strict=True))
        trace.append(total / len(x))
        for j in range(len(p)):
            moved = prior * p[j] + sum(
                w * row for w, row in zip(weights[:, len(fixed) + j], x, strict=True)
            )
            centres[j] = moved / np.linalg.norm(moved)
        new = weights[:, len(fixed) :].sum() / len(x)
    return centres, weights, new, trace


def test_joint_iteration_equals_plain_loops():
    draw = torch.Generator().manual_seed(0)
    images, prototypes, known = (
        F.normalize(torch.randn(n, 6, generator=draw), dim=1) for n in (15, 4, 3)
    )
    found = joint_iteration(images, prototypes, known, concentration=7.0, prior=1.5, iterations=6)
    centres, weights, new, trace = plain_mixture(images, prototypes, known, 7.0, 1.5, 6)
    np.testing.assert_allclose(found.centres.numpy(), centres, atol=1e-4)
    np.testing.assert_allclose(found.weights.numpy(), weights, atol=1e-4)
    np.testing.assert_allclose(found.objective, trace, atol=1e-4)
    assert found.new_share == pytest.approx(new, abs=1e-4)


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 4), st.integers(0, 10**6))
@settings(max_examples=examples(40))
def test_the_objective_never_falls(n, c, a, seed):
    draw = torch.Generator().manual_seed(seed)
    images, prototypes, known = (
        F.normalize(torch.randn(k, 5, generator=draw, dtype=torch.float64), dim=1)
        for k in (n, c, a)
    )
    found = joint_iteration(images, prototypes, known if a else None, iterations=8)
    steps = np.diff(found.objective)
    assert (steps > -1e-9).all()
    torch.testing.assert_close(found.weights.sum(dim=1), torch.ones(n, dtype=torch.float64))


def test_shares_decide_where_images_do_not():
    images = F.normalize(torch.ones(4, 3), dim=1)
    prototypes = torch.eye(3)
    found = joint_iteration(images, prototypes, shares=[0.1, 0.8, 0.1], iterations=1)
    np.testing.assert_allclose(found.weights.numpy(), [[0.1, 0.8, 0.1]] * 4, atol=1e-6)


def test_names_of_clusters_are_drawn_to_images_and_prototypes_by_the_prior(encoder):
    images, extra, rows, _ = planted(encoder, noise=0.12)
    prototypes = torch.stack([rows[name] for name in NEW])
    for prior in (0.5, 20.0):
        learner = ZeroShotNameLearner(
            encoder, Told(rows), matching="hungarian", prior=prior, **QUICK
        )
        learner.fit(images, NEW, **extra, n_classes=6)
        expected = prior * prototypes + learner.weights_[:, 3:].T @ images
        torch.testing.assert_close(learner.centres_, F.normalize(expected, dim=1))


def test_the_image_term_is_a_cross_entropy_with_the_margin_on_new_names(encoder):
    images, extra, rows, _ = planted(encoder, images=3)
    options = {"margin": 1.5, "temperature": 3.0, **QUICK}
    learner = ZeroShotNameLearner(encoder, Told(rows), **options).fit(images, NEW, **extra)
    names = zsnl._vocabulary(NEW, KNOWN, None)
    pool = learner._pool(images, names, extra["labelled"], extra["labels"], None, None, None)
    texts = text_features(encoder, KNOWN, "a {name}").numpy()
    scale, total, weight = encoder.logit_scale / 3, 0.0, 0.0
    shown = [*zip(images.numpy(), learner.weights_.numpy(), strict=True)]
    shown += zip(extra["labelled"].numpy(), np.eye(9)[extra["labels"]], strict=True)
    for image, shares in shown:
        logits = [scale * image @ text for text in texts]
        logits += [scale * image @ prompt + 1.5 for prompt in learner.classifier_.numpy()]
        below = math.log(sum(map(math.exp, logits)))
        total -= sum(share * (one - below) for share, one in zip(shares, logits, strict=True))
        weight += shares.sum()
    found = learner._image_term(pool, learner.weights_, learner.classifier_)
    assert float(found) == pytest.approx(total / weight, rel=1e-4)


def quickly(make):
    def shorter(shots, n_classes):
        learner = make(shots, n_classes)
        learner.steps, learner.epochs = 20, 0
        return learner

    return shorter


def test_released_setting_drops_small_clusters(encoder):
    images, extra, _, labels = planted(encoder, images=24)
    new = labels >= 3
    small = np.flatnonzero(labels == 8)[5:]
    keep = np.setdiff1d(np.arange(len(labels)), small)
    empty = Lexicon({}, {}, {})
    learner = ZeroShotNameLearner.released(encoder, empty, "thing", discovery="kmeans")
    made = learner.learner(9, 6)
    assert made.epochs == 200 and made.batch_size == 4 * 6
    assert (learner.matching, learner.unit_centres, learner.min_images) == ("hungarian", False, 20)
    learner.learner = quickly(learner.learner)
    learner.fit(images[keep], NEW, **extra, n_classes=6, membership=new[keep], vocabulary=NEW)
    assert not learner.weights_[torch.from_numpy(labels[keep] == 8)].round(decimals=3).any()
    assert float(learner.weights_[torch.from_numpy(labels[keep] == 4)].sum(dim=1).min()) > 0
    assert len(learner.history_) == 20
    with pytest.raises(ValueError, match="min_images"):
        learner.fit(images[keep][:20], NEW, **extra, n_classes=6, membership=new[keep][:20])


@pytest.mark.parametrize("matching", MATCHINGS)
def test_hard_pools_have_an_answer(encoder, matching):
    images, extra, rows, labels = planted(encoder, images=4)
    learner = ZeroShotNameLearner(encoder, Told(rows), matching=matching, **QUICK)
    one = torch.from_numpy(labels == 4)
    learner.fit(images[one], NEW, **extra, n_classes=1)
    assert (learner.weights_.argmax(dim=1) == 4).all()
    same = images[one][:1].repeat(5, 1)
    learner.fit(same, NEW, n_classes=2)
    assert (learner.weights_.argmax(dim=1) == 1).all()
    learner.fit(images[torch.from_numpy(labels > 2)], NEW[:1], n_classes=6)
    assert learner.classifier_.isfinite().all() and learner.classifier_.shape == (1, encoder.dim)


@pytest.mark.parametrize("matching", MATCHINGS)
def test_without_labelled_images_known_names_stand_for_them(encoder, matching):
    images, _, rows, labels = planted(encoder)
    learner = ZeroShotNameLearner(encoder, Told(rows), matching=matching, **QUICK)
    for none in ({}, {"labelled": images[:0], "labels": []}):
        learner.fit(images, NEW, known=KNOWN, n_classes=6, **none)
        assert named(learner, labels) == 1


@pytest.mark.parametrize("kind", [np.asarray, torch.Tensor.double, torch.Tensor.half])
def test_features_of_any_kind_will_do(encoder, kind):
    images, extra, rows, labels = planted(encoder)
    extra["labelled"] = kind(extra["labelled"])
    learner = ZeroShotNameLearner(encoder, Told(rows), **QUICK)
    assert named(learner.fit(kind(images), NEW, **extra), labels) == 1
    wants = images.clone().requires_grad_()
    assert named(learner.fit(wants, NEW, **extra), labels) == 1


def test_unsure_names_count_for_less_and_none_below_the_floor(encoder):
    images, extra, rows, labels = planted(encoder)
    unsure = {name: F.normalize(row + 4 * sum(rows.values()), dim=0) for name, row in rows.items()}
    options = {"matching": "hungarian", "concentration": 5.0, **QUICK}
    learner = ZeroShotNameLearner(encoder, Told(unsure), **options).fit(
        images, NEW, **extra, n_classes=6
    )
    new = torch.from_numpy(labels >= 3)
    assert float(learner.weights_[new].sum(dim=1).max()) < 0.6
    learner = ZeroShotNameLearner(encoder, Told(unsure), floor=0.9, **options)
    learner.fit(images, NEW, **extra, n_classes=6)
    assert (learner.assignment_.names == -1).all()
    assert float(learner.weights_[new].sum(dim=1).max()) < 0.1


@pytest.mark.parametrize("matching", MATCHINGS)
def test_colours_decide_where_prototypes_do_not(encoder, matching):
    images, extra, rows, labels = planted(encoder)
    alike = dict.fromkeys(NEW, F.normalize(sum(rows.values()), dim=0))
    told = np.eye(11)[: len(KNOWN) + len(NEW)]
    knowledge = Told(alike)
    knowledge.told_colours = lambda names: told[[[*KNOWN, *NEW].index(name) for name in names]]
    shown = 0.9 * told[labels] + 0.1 / 11
    learner = ZeroShotNameLearner(encoder, knowledge, matching=matching, **QUICK)
    learner.fit(images, NEW, **extra, colours=shown, n_classes=6)
    assert named(learner, labels) == 1
    new = labels >= 3
    learner.fit(images, NEW, **extra, colours=shown, n_classes=6, membership=new)
    assert named_among(learner, labels, new) == 1
    for wrong in (None, shown[:3], np.full_like(shown, np.nan)):
        with pytest.raises(ValueError, match="colour_shares"):
            learner.fit(images, NEW, **extra, colours=wrong)


def broken(images, kind):
    if kind == "nan":
        images = images.clone()
        images[0, 0] = float("nan")
    return images[:0] if kind == "none" else 3 * images if kind == "long" else images


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("nan", {}, "NaN"),
        ("none", {}, "one at least"),
        ("long", {}, "unit length"),
        ("", {"candidates": []}, "one name"),
        ("", {"candidates": "zorbit"}, "list"),
        ("", {"candidates": ["dog"]}, "learned and stands"),
        ("", {"candidates": ["zorbit", "zorbit"]}, "twice"),
        ("", {"known": "dog"}, "list"),
        ("", {"labels": None}, "both or neither"),
        ("", {"labels": [7] * 12}, "0 to 2"),
        ("", {"labelled": torch.eye(12)}, "labelled are .12, 12.; expected .N, "),
        ("", {"labels": [0]}, "each"),
        ("", {"labels": [0.5] * 12}, "integer"),
        ("", {"known": ["dog", "dog", "hat"]}, "twice"),
        ("", {"membership": [True]}, "membership"),
        ("", {"membership": np.zeros(108, bool)}, "membership"),
        ("", {"membership": np.ones(108)}, "membership"),
        ("", {"vocabulary": ["zorbitt"]}, "zorbit"),
        ("", {"vocabulary": []}, "empty"),
        ("", {"n_classes": 0}, "n_classes=0"),
        ("hungarian", {"n_classes": 0}, "n_classes=0"),
        ("hungarian", {"n_classes": 109}, "n_classes=109"),
        ("hungarian", {"n_classes": 2.5}, "whole number"),
    ],
)
def test_bad_input_is_told(encoder, kind, changes, word):
    images, extra, rows, _ = planted(encoder)
    matching = kind if kind in MATCHINGS else "joint"
    learner = ZeroShotNameLearner(encoder, Told(rows), matching=matching, **QUICK)
    arguments = {"candidates": NEW, **extra, **changes}
    with pytest.raises(ValueError, match=word):
        learner.fit(broken(images, kind), arguments.pop("candidates"), **arguments)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"matching": "hungry"}, "matching"),
        ({"rounds": 0}, "rounds=0"),
        ({"prior": 0.0}, "prior=0.0"),
        ({"prior": float("nan")}, "prior=nan"),
        ({"image_weight": -1.0}, "image_weight=-1.0"),
        ({"gap": "men"}, "mean"),
        ({"discovery": "k-means"}, "kmeans"),
        ({"image_weight": 0.0, "anchor_weight": 0.0}, "above 0"),
        ({"concentration": 0.0}, "concentration=0.0"),
    ],
)
def test_options_are_checked(encoder, options, word):
    with pytest.raises(ValueError, match=word):
        ZeroShotNameLearner(encoder, Told({}), **options)


def test_real_knowledge_goes_through(encoder):
    """Names, hints and descriptions end to end, with a lexicon of the caller's own."""
    images, extra, _, _ = planted(encoder)
    draw = np.random.default_rng(0)
    texts = [*NEW, *KNOWN, "thing", "a red ball", "dog", "cat", "house", "tree"]
    vectors = {text: draw.normal(size=8).astype(np.float32) for text in texts}
    vectors = {text: row / np.linalg.norm(row) for text, row in vectors.items()}
    told = {"descriptions": dict.fromkeys(NEW, ("a red ball",))}
    lexicon = Lexicon(vectors, told, {"dog": 3, "cat": 1, "tree": 2})
    sources = ("language", "descriptions", "hints")
    knowledge = Knowledge(encoder, lexicon, sources)
    learner = ZeroShotNameLearner(encoder, knowledge, hint="thing", **QUICK).fit(
        images, NEW, **extra
    )
    assert learner.logits(images).shape == (len(images), len(NEW))
    assert learner.joint_logits(images, KNOWN).shape == (len(images), 9)


def test_the_objective_never_falls_among_thousands_of_names():
    draw = torch.Generator().manual_seed(0)
    images, names = (F.normalize(torch.randn(n, 32, generator=draw), dim=1) for n in (40, 4000))
    found = joint_iteration(images, names, prior=2.0, iterations=40)
    assert np.diff(found.objective).min() > -5e-6


def test_defaults_are_those_that_the_selection_table_was_made_with():
    table = pd.read_csv(mini_file("selection_zsnl.csv"))
    assert table["setting"][0] == load_script("choose_zsnl").defaults()
    # The mixture by itself has those of the learner.
    for name in ("concentration", "prior", "iterations"):
        own = inspect.signature(joint_iteration).parameters[name].default
        assert own == getattr(ZeroShotNameLearner, name), name
    # The rule of the table's script: no setting that keeps IP images gains half a point.
    kept = table[table["ip_change"] > -2]
    gains = kept[["oop_oracles", "oop"]].mean(axis=1)
    assert kept.index[0] == 0 and gains.max() < gains[0] + 0.5
