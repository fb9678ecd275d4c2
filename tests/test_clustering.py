from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from lbutils.unlabelled import cluster


def brute_force(true, pred):
    """Best share over all one-to-one maps of clusters to classes, by trying each."""
    classes, clusters = sorted(set(true)), sorted(set(pred))
    size = max(len(classes), len(clusters))
    classes += [None] * (size - len(classes))
    best = 0
    for order in permutations(classes):
        match = dict(zip(clusters, order, strict=False))
        best = max(best, sum(match[p] == t for t, p in zip(true, pred, strict=True)))
    return best / len(true)


@settings(max_examples=examples(60))
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=25))
def test_accuracy_equals_brute_force(pairs):
    true, pred = zip(*pairs, strict=True)
    assert cluster.clustering_accuracy(true, pred) == pytest.approx(brute_force(true, pred))


def test_accuracy_takes_any_labels_and_ignores_their_names():
    true = ["ant", "ant", "bee", "bee", "<cat>"]
    assert cluster.clustering_accuracy(true, [7, 7, -1, -1, 3]) == 1.0
    assert cluster.clustering_accuracy(true, [0, 0, 0, 0, 0]) == 0.4
    for bad in ([], [1]):
        with pytest.raises(ValueError, match="one of each"):
            cluster.clustering_accuracy(bad, [])


def test_hits_are_the_accuracy_class_by_class():
    rng = np.random.default_rng(2)
    labels, draws = rng.integers(0, 5, 60), [rng.permutation(60)[:40] for _ in range(3)]
    clusters = [rng.integers(0, 4, 40) for _ in draws]
    shares = cluster.class_hits(labels, draws, clusters, 6)
    assert np.isnan(shares[5]) and ((shares[:5] >= 0) & (shares[:5] <= 1)).all()
    images = np.bincount(np.concatenate([labels[drawn] for drawn in draws]))
    pairs = zip(draws, clusters, strict=True)
    whole = [cluster.clustering_accuracy(labels[drawn], found) for drawn, found in pairs]
    assert np.average(shares[:5], weights=images) == pytest.approx(np.mean(whole))


def test_clusters_of_features_as_they_are():
    """Two classes that differ in length alone: unit features cannot tell them, Table 1's can."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([[1.0, 0.0] + rng.normal(0, 0.02, (20, 2)), np.zeros((20, 2))])
    rows[20:] = [9.0, 0.0] + rng.normal(0, 0.02, (20, 2))
    labels = np.repeat([0, 1], 20)
    for normalise, expected in ((False, True), (True, False)):
        found = cluster.kmeans(rows, 2, normalise=normalise)
        assert (cluster.clustering_accuracy(labels, found) == 1) == expected


@settings(max_examples=examples(40))
@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 8), min_size=1))
def test_equal_draws_are_equal(first, second):
    first, second = np.array(first), np.array(second)
    draws = cluster.equal_draws(first, second, resamples=4, seed=1)
    assert len(draws) == 4
    k = min(len(set(first)), len(set(second)))
    for one, two in draws:
        sizes = [np.unique(labels, return_counts=True)[1] for labels in (first[one], second[two])]
        assert len(set(one)) == len(one) == len(two) and len(set(two)) == len(two)
        assert len(sizes[0]) == k and sorted(sizes[0]) == sorted(sizes[1])
    again = cluster.equal_draws(first, second, resamples=4, seed=1)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(draws, again, strict=True))


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    return np.eye(8)[labels] + 0.05 * rng.normal(size=(48, 8)), labels


def test_separate_clouds_are_found(clouds):
    features, labels = clouds
    report = cluster.clustering_report(features, labels)
    assert report["accuracy"] == report["nmi"] == report["ari"] == 1.0
    assert report["silhouette"] > 0.8 and report["margin"] > 0.8
    shuffled = cluster.clustering_report(features, np.roll(labels, 6))
    assert shuffled["accuracy"] < 0.7 and shuffled["margin"] < 0.1


def test_kmeans_is_deterministic_and_ignores_length(clouds):
    features, _ = clouds
    lengths = np.linspace(1, 9, len(features))[:, None]
    first = cluster.kmeans(features, 4, seed=3)
    assert np.array_equal(first, cluster.kmeans(features, 4, seed=3))
    assert cluster.clustering_accuracy(first, cluster.kmeans(features * lengths, 4)) == 1.0
    with pytest.raises(ValueError, match="between 1 and N"):
        cluster.kmeans(features, 49)


def test_margin_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(20, 6)), rng.integers(0, 3, 20)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    expected = []
    for i, label in enumerate(labels):
        own = unit[(labels == label) & (np.arange(20) != i)].sum(0)
        others = [cosine(unit[i], unit[labels == c].sum(0)) for c in range(3) if c != label]
        expected.append(cosine(unit[i], own) - max(others))
    assert np.allclose(cluster.separation_margin(features, labels), expected)


def test_margin_of_a_class_of_one_is_undefined():
    margins = cluster.separation_margin(np.eye(3), [0, 0, 1])
    assert np.isnan(margins[2]) and np.isfinite(margins[:2]).all()
    with pytest.raises(ValueError, match="two classes"):
        cluster.separation_margin(np.eye(3), [0, 0, 0])
    one = cluster.clustering_report(np.eye(3), [0, 0, 0])
    assert one["accuracy"] == 1.0 and np.isnan(one["margin"]) and np.isnan(one["silhouette"])


def test_tsne_keeps_separate_clouds_apart(clouds):
    features, labels = clouds
    plane = cluster.tsne(features, seed=1)
    assert plane.shape == (48, 2)
    assert np.array_equal(plane, cluster.tsne(features, seed=1))
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).all()
    with pytest.raises(ValueError, match="at least 4"):
        cluster.tsne(features[:3])


def test_a_map_of_rows_that_are_the_same():
    """What scikit-learn did was to overflow the stack, which ends the process."""
    noise = np.random.default_rng(0).normal(size=(40, 8))
    for spread in (0.0, 1e-12, 1e-8):
        found = cluster.tsne(np.ones((40, 8)) + spread * noise)
        assert np.isfinite(found).all() and len(found) == 40
    for features in (np.zeros((4, 3)), np.ones((9, 1))):
        assert np.isfinite(cluster.tsne(features)).all()
