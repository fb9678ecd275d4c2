from __future__ import annotations

import inspect
from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from lbutils.unlabelled import discovery
from lbutils.unlabelled.discovery import METHODS, discover, estimate_k, gcd_accuracy

LINKED = ("semi_kmeans", "agglomerative", "mean_shift", "contrastive_mean_shift")
QUICK = {"contrastive_mean_shift": {"epochs": 5}, "parametric": {"epochs": 20}}


def blobs(classes, images, noise=0.05, width=24, seed=0):
    """Features (classes * images, width) about random directions, and their classes."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(width, width)))[0][:classes]
    labels = np.repeat(np.arange(classes), images)
    return centres[labels] + noise * rng.normal(size=(len(labels), width)), labels


def planted(seed=0, noise=0.05):
    """Unlabelled images of classes 0 to 6; labelled ones of 0, 1, 2, named 10, 20, 30."""
    features, labels = blobs(7, 12, noise, seed=seed)
    rng = np.random.default_rng(seed)
    shown = np.isin(labels, [0, 1, 2]) & (np.arange(len(labels)) % 12 < 4)
    order = rng.permutation(np.flatnonzero(~shown))
    return features[order], labels[order], features[shown], 10 * (labels[shown] + 1)


def is_sound(found, features, k):
    assert found.clusters.shape == (len(features),) and found.clusters.dtype == np.int64
    assert found.weights.shape == (len(features), k) and (found.weights >= 0).all()
    assert found.known.shape == (k,) and found.known.dtype == np.int64
    assert found.centres.dtype == found.weights.dtype == np.float64
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1, rtol=1e-12)
    own = found.weights[np.arange(len(features)), found.clusters]
    np.testing.assert_allclose(own, found.weights.max(axis=1), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_separable_classes_are_found_and_known(method):
    features, truth, labelled, labels = planted()
    options = QUICK.get(method, {})
    found = discover(features, 7, labelled=labelled, labels=labels, method=method, **options)
    is_sound(found, features, 7)
    assert set(gcd_accuracy(truth, found.clusters, truth > 2).values()) == {1.0}
    stood_for = found.known[found.clusters]
    np.testing.assert_array_equal(stood_for, np.where(truth < 3, 10 * (truth + 1), -1))
    members = np.stack([features[truth == c].mean(axis=0) for c in range(7)])
    clusters = [found.clusters[truth == c][0] for c in range(7)]
    cosines = (members / np.linalg.norm(members, axis=1, keepdims=True)) @ found.centres.T
    assert (cosines[np.arange(7), clusters] > 0.99).all()


@pytest.mark.parametrize("method", METHODS)
def test_without_labels_and_the_same_twice(method):
    features, truth = planted()[:2]
    options = QUICK.get(method, {})
    found = discover(features, 7, method=method, seed=3, **options)
    is_sound(found, features, 7)
    assert adjusted_rand_score(truth, found.clusters) == 1 and (found.known == -1).all()
    again = discover(features * 5, 7, method=method, seed=3, **options)
    for first, second in zip(found, again, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", LINKED)
def test_links_hold_against_the_evidence(method):
    # Both labelled classes lie in two places each, and share one of them.
    features, places = blobs(3, 10)
    labelled, at = blobs(3, 4)
    labels = np.array([5, 5, 5, 5, 5, 5, 9, 9, 9, 9, 9, 9])
    assert (at[labels == 5] == 1).any() and (at[labels == 9] == 1).any()
    found = discover(
        features, 3, labelled=labelled, labels=labels, method=method, **QUICK.get(method, {})
    )
    is_sound(found, features, 3)
    assert found.known.tolist() == [5, 9, -1]
    pure = [set(found.clusters[places == place].tolist()) for place in range(3)]
    assert all(len(clusters) == 1 for clusters in pure) or method != "agglomerative"


def test_links_in_the_tree_itself(monkeypatch):
    rng = np.random.default_rng(0)
    problem = discovery._problem(rng.normal(size=(30, 8)), rng.normal(size=(12, 8)), [0, 1, 2] * 4)
    seen = []
    monkeypatch.setattr(discovery, "_linked", lambda *rest: seen.append(rest[2]))
    for k in (3, 4, 10, 33):
        for joining in ("ward", "average", "complete"):
            discovery._cut(problem, problem.joint, problem.joint, k, joining)
    assert len(seen) == 12
    for clusters in seen:
        told = clusters[:12].reshape(4, 3)
        assert (told == told[0]).all() and len(set(told[0])) == 3
    assert [len(set(clusters)) for clusters in seen[::3]] == [3, 4, 10, 33]


def test_a_class_in_two_parts_is_split_where_k_asks_for_it():
    features, parts = blobs(5, 10)
    classes = np.minimum(parts, 3)  # parts 3 and 4 are one class
    found = discover(features, 5, method="semi_kmeans")
    assert adjusted_rand_score(parts, found.clusters) == 1
    expected = {"all_global": 0.8, "old_global": 1.0, "new_global": 0.5}
    accuracies = gcd_accuracy(classes, found.clusters, classes == 3)
    assert {key: accuracies[key] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_one_image_a_class(method):
    features, truth = blobs(6, 1)
    labelled, labels = blobs(2, 1, seed=0)
    options = QUICK.get(method, {})
    found = discover(features, 6, labelled=labelled, labels=labels, method=method, **options)
    is_sound(found, features, 6)
    if method not in ("kmeans", "spherical"):
        assert adjusted_rand_score(truth, found.clusters) == 1
    alone = discover(features[:1], 1, method=method, **options)
    assert alone.weights.tolist() == [[1.0]] and alone.clusters.tolist() == [0]


@pytest.mark.parametrize("method", METHODS)
def test_images_all_alike_come_to_an_end(method):
    features = np.ones((9, 5))
    options = QUICK.get(method, {})
    is_sound(discover(features, 3, method=method, **options), features, 3)
    some = {"labelled": np.ones((4, 5)), "labels": [7, 7, 7, 7]}
    is_sound(discover(features, 2, **some, method=method, **options), features, 2)
    everything = discover(features, **some, method=method, **options)
    is_sound(everything, features, len(everything.known))


@settings(max_examples=examples(20))
@given(st.data())
def test_shapes_hold_for_any_problem(data):
    n, classes = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 4))
    labels = data.draw(st.lists(st.integers(0, classes - 1), max_size=8)) if classes else []
    width, seed = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 99))
    method = data.draw(st.sampled_from(sorted(METHODS)))
    k = data.draw(st.integers(max(1, len(set(labels))), len(set(labels)) + n))
    rng = np.random.default_rng(seed)
    features, labelled = rng.normal(size=(n, width)), rng.normal(size=(len(labels), width))
    options = {"epochs": 2} if method in QUICK else {}
    given_labels = np.array(labels, dtype=int)
    found = discover(
        features, k, labelled=labelled, labels=given_labels, method=method, seed=seed, **options
    )
    is_sound(found, features, k)
    known = found.known[found.known >= 0].tolist()
    assert len(known) == len(set(known)) and set(known) <= set(labels)
    if method not in ("kmeans", "spherical"):
        assert known == sorted(set(labels))


def spherical_loss(features, clusters):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    sums = [unit[clusters == c].sum(axis=0) for c in np.unique(clusters)]
    return len(unit) - sum(np.linalg.norm(total) for total in sums)


@pytest.mark.parametrize("seed", range(3))
def test_semi_kmeans_without_labels_is_spherical_kmeans(seed):
    features, _ = blobs(8, 9, noise=0.25, seed=seed)
    found = discover(features, 8, seed=seed).clusters
    np.testing.assert_array_equal(found, discover(features, 8, method="spherical", seed=seed)[0])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rival = KMeans(8, n_init=10, random_state=seed).fit(unit).labels_
    assert spherical_loss(features, found) <= spherical_loss(features, rival) * 1.02
    # No image lies nearer to another centre than to its own.
    sums = np.stack([unit[found == c].sum(axis=0) for c in range(8)])
    cosines = unit @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(cosines.argmax(axis=1), found)


def test_labels_help():
    features, truth, labelled, labels = planted(noise=0.27)
    new = truth > 2
    plain, helped = (
        np.mean(
            [
                gcd_accuracy(truth, discover(features, 7, **told, seed=s).clusters, new)[
                    "old_global"
                ]
                for s in range(3)
            ]
        )
        for told in ({}, {"labelled": labelled, "labels": labels})
    )
    assert plain + 0.02 < helped < 1


def brute_force(labels, clusters, mask):
    """Best share over all one-to-one maps of clusters to classes on the masked images."""
    size = max(labels.max(), clusters.max()) + 1
    tables = [np.array(order) for order in permutations(range(size))]
    return max((table[clusters] == labels)[mask].mean() for table in tables)


@settings(max_examples=examples(40))
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_accuracies_equal_brute_force(pairs):
    labels, clusters = np.array(pairs).T
    new = labels > 2
    found = gcd_accuracy(labels, clusters, new)
    assert found["all_global"] == pytest.approx(
        brute_force(labels, clusters, np.full(len(new), True))
    )
    shares, weighted = [], []
    for side, mask in {"old": ~new, "new": new}.items():
        if not mask.any():
            assert np.isnan(found[f"{side}_global"]) and np.isnan(found[f"{side}_per_subset"])
            continue
        assert found[f"{side}_per_subset"] == pytest.approx(brute_force(labels, clusters, mask))
        assert found[f"{side}_global"] <= found[f"{side}_per_subset"] + 1e-12
        shares.append(mask.mean() * found[f"{side}_global"])
        weighted.append(mask.mean() * found[f"{side}_per_subset"])
    assert sum(shares) == pytest.approx(found["all_global"])
    assert sum(weighted) == pytest.approx(found["all_per_subset"])


def test_accuracies_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="both old and new"):
        gcd_accuracy([0, 0], [0, 1], [True, False])
    with pytest.raises(ValueError, match="one a sample"):
        gcd_accuracy([0, 1], [0, 1], [True])
    with pytest.raises(ValueError, match="one of each"):
        gcd_accuracy([], [], [])


def test_the_number_of_clear_classes_is_exact():
    features, _, labelled, labels = planted(1)
    estimate = estimate_k(features, labelled=labelled, labels=labels, seed=1)
    assert estimate.k == 7 and list(estimate.table) == ["k", "score"]
    best = estimate.table["score"].idxmax()
    assert estimate.table["k"][best] == 7 and estimate.table["k"].is_monotonic_increasing
    assert estimate_k(features, seed=1).k == 7
    assert estimate_k(features, method="agglomerative", largest=10).table["k"].max() <= 10


@pytest.mark.parametrize("method", ["semi_kmeans", "agglomerative", "mean_shift"])
def test_methods_find_the_number_themselves(method):
    features, truth, labelled, labels = planted(1)
    told = {"labelled": labelled, "labels": labels}
    for known in (told, {}):
        found = discover(features, method=method, **known)
        assert len(found.known) == 7 and adjusted_rand_score(truth, found.clusters) == 1


def test_a_head_that_trains_finds_the_number_too():
    features, truth, labelled, labels = planted(1)
    told = {"labelled": labelled, "labels": labels}
    found = discover(features, method="contrastive_mean_shift", epochs=5, **told)
    assert len(found.known) == 7 and adjusted_rand_score(truth, found.clusters) == 1


def test_too_few_images_to_estimate():
    assert estimate_k(np.eye(3)[:1]).k == 1 and len(estimate_k(np.eye(3)[:1]).table) == 0
    assert estimate_k(np.ones((6, 3))).k == 1
    labelled = np.eye(5)[:3]
    assert estimate_k(np.eye(5)[3:4], labelled=labelled, labels=[0, 1, 2]).k in (3, 4)
    with pytest.raises(ValueError, match="below the 3 labelled classes"):
        estimate_k(np.eye(5), labelled=labelled, labels=[0, 1, 2], largest=2)


@pytest.mark.parametrize("views", [None, 1, 3])
def test_losses_of_heads_fall(views):
    features, _, labelled, labels = planted(noise=0.4)
    rng = np.random.default_rng(0)
    shown = []
    if views:
        shown = [
            rows + 0.1 * rng.normal(size=(views, *rows.shape)) for rows in (features, labelled)
        ]
    problem = discovery._problem(features, labelled, labels)
    images = discovery._Images(problem, *(shown or (None, None)), 0.2)
    start = discovery._unit(rng.normal(size=(7, 24)))
    heads = (
        discovery._shift_head(images, 8, 0.5, 0.25, 0.35, 0.05, 15),
        discovery._prototypes(images, start, 0.35, 2.0, 0.1, 15),
    )
    for rows, losses in heads:
        assert len(losses) == 15 and np.isfinite(rows).all()
        assert np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])
    assert heads[0][0].shape == (24, 24) and heads[1][0].shape == (7, 24)


def test_contrasts_equal_their_formulas():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 5))
    groups = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    for alone in (True, False):
        expected = []
        for i in range(8):
            logits = rows @ rows[i] / 0.5
            others = [j for j in range(8) if (j != i if alone else groups[j] != groups[i])]
            below = np.log(np.exp(logits[others]).sum())
            same = [j for j in range(8) if j != i and groups[j] == groups[i]]
            expected.append(-np.mean([logits[j] - below for j in same]))
        found = discovery._contrast(torch.tensor(rows), torch.tensor(groups), 0.5, alone)
        assert float(found) == pytest.approx(np.mean(expected))


def test_mean_shift_goes_to_the_mean_of_neighbours():
    features, _ = blobs(3, 5, noise=0.2)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    moved = discovery._shifted(unit, 2, 0.5)
    near = np.argsort(-(unit @ unit.T), axis=1)[:, 1:3]
    expected = unit + unit[near].mean(axis=1)
    np.testing.assert_allclose(moved, expected / np.linalg.norm(expected, axis=1, keepdims=True))


def test_weights_follow_the_temperature():
    features = planted(noise=0.2)[0]
    warm, cold = (discover(features, 7, temperature=t).weights.max(axis=1) for t in (1.0, 0.05))
    assert (warm < cold).all()
    found = discover(features, 7)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    sums = np.stack([unit[found.clusters == c].sum(axis=0) for c in range(7)])
    logits = unit @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T / 0.3
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(discover(features, 7, temperature=0.3).weights, expected)


BAD = {
    "choose k between 2 and 12": [{"k": k} for k in (0, 1, -3, 13)],
    "temperature=.* above 0": [{"temperature": t} for t in (0.0, -0.1, float("nan"))],
    "whole number": [{"k": 2.5}, {"k": True}],
    "Did you mean 'semi_kmeans'": [{"method": "semikmeans"}],
    "unknown option of kmeans 'epochs'": [{"method": "kmeans", "epochs": 3}],
    "give both or neither": [{"labels": None}, {"labelled": None}],
    "one label a row": [{"labels": [0]}, {"labelled": np.eye(5)[:4]}],
    "integers from 0": [{"labels": [0, 1, -1, 1]}, {"labels": [0.5, 1, 1, 1]}],
    "row 3 is zero or not finite": [
        {"features": np.where(np.arange(10)[:, None] == 3, bad, np.ones((10, 4)))}
        for bad in (0, np.nan, np.inf)
    ],
    "no images": [{"features": np.empty((0, 4))}],
    "one row an image": [{"features": np.ones(4)}],
    "views of shape": [
        {"method": "parametric", "views": np.ones((2, 3, 4))},
        {"method": "contrastive_mean_shift", "views": np.ones((10, 4))},
    ],
    "labelled_views": [{"method": "parametric", "labelled_views": np.ones((2, 4, 4))}],
}


@pytest.mark.parametrize(
    ("message", "wrong"), [(message, wrong) for message, cases in BAD.items() for wrong in cases]
)
def test_what_is_wrong_is_said(message, wrong):
    rng = np.random.default_rng(0)
    right = {"labelled": rng.normal(size=(4, 4)), "labels": [0, 0, 1, 1], "k": 3}
    features = rng.normal(size=(10, 4))
    asked = {**right, **wrong}
    features = asked.pop("features", features)
    with pytest.raises(ValueError, match=message):
        discover(features, **asked)


def test_a_tree_too_large_is_refused_before_it_grows():
    features = np.ones((discovery._LARGEST_TREE + 1, 2))
    for method in ("agglomerative", "mean_shift", "contrastive_mean_shift"):
        with pytest.raises(ValueError, match="take 'semi_kmeans'"):
            discover(features, 2, method=method)


# Of the authors' code: Choi, Kang and Cho 2024; Wen, Zhao and Qi 2023. Starts as in scikit-learn
# of the paper's days.
TREE = {"neighbours": 8, "alpha": 0.5}
HEAD = {"supervised": 0.35, "dropout": 0.2, "views": None, "labelled_views": None}
CONSTANTS = {
    **{key: {"n_init": 10} for key in ("kmeans", "spherical", "semi_kmeans")},
    "gaussian": {"dimensions": 32, "covariance": "tied", "n_init": 10},
    "agglomerative": {"joining": "ward"},
    "mean_shift": TREE,
    "contrastive_mean_shift": {**TREE, **HEAD, "lr": 0.05, "sharpness": 0.25, "epochs": 50},
    "parametric": {**HEAD, "lr": 0.1, "entropy": 2.0, "epochs": 100, "n_init": 10},
}


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_those_of_the_sources(method):
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[2:]
    assert {one.name: one.default for one in parameters} == CONSTANTS[method]
    assert (discovery._STUDENT, discovery._COLDEST) == (0.1, 0.01)
