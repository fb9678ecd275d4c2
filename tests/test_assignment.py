from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from lbutils.unlabelled import match as assignment
from lbutils.unlabelled.match import assign, aurc, risk_coverage, similarities


def best_total(scores):
    """Largest total of a one-to-one matching, by trying all."""
    k, c = scores.shape
    if k > c:
        return best_total(scores.T)
    return max(sum(scores[i, p[i]] for i in range(k)) for p in permutations(range(c), k))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=examples(60))
def test_hungarian_equals_brute_force(k, c, seed):
    scores = np.random.default_rng(seed).normal(size=(k, c))
    found = assign(scores, "hungarian", temperature=1.0)
    named = found.names >= 0
    assert named.sum() == min(k, c) == len(set(found.names[named]))
    total = scores[np.flatnonzero(named), found.names[named]].sum()
    assert total == pytest.approx(best_total(scores))


def slow_transport(scores, shares, power, rounds=2000):
    """Sinkhorn's iterations as loops over exponentials; a relaxed column is met to a power."""
    kernel = np.exp(scores)
    k, c = kernel.shape
    left, right = np.ones(k), np.ones(c)
    for _ in range(rounds):
        for i in range(k):
            left[i] = 1 / sum(kernel[i, j] * right[j] for j in range(c))
        for j in range(c):
            had = sum(left[i] * kernel[i, j] for i in range(k))
            right[j] = (shares[j] * k / had) ** power
    plan = left[:, None] * kernel * right
    return plan / plan.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("slack", [0.0, 0.5, 2.0])
def test_transport_equals_plain_loops(slack):
    rng = np.random.default_rng(0)
    scores, shares = rng.normal(size=(5, 4)), rng.dirichlet(np.ones(4))
    found = assign(scores * 0.3, "sinkhorn", temperature=0.3, slack=slack, shares=shares)
    np.testing.assert_allclose(
        found.plan, slow_transport(scores, shares, 1 / (1 + slack)), atol=1e-6
    )


def test_transport_meets_its_names_without_slack_and_ignores_them_with_all():
    scores = np.random.default_rng(1).normal(size=(6, 3))
    shares = np.array([0.5, 0.3, 0.2])
    exact = assign(scores, "sinkhorn", temperature=1.0, slack=0.0, shares=shares).plan
    np.testing.assert_allclose(exact.sum(axis=0), 6 * shares, atol=1e-6)
    free = assign(scores, "sinkhorn", temperature=1.0, slack=np.inf, shares=shares).plan
    np.testing.assert_allclose(free, softmax(scores, axis=1), atol=1e-12)


@pytest.mark.parametrize("method", assignment.ASSIGNERS)
def test_a_permuted_vocabulary_is_found_among_distractors(method):
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    order = rng.permutation(16)
    noise = 0.1 * rng.normal(size=(8, 24))
    scores = similarities(directions[order[:8]] + noise, directions[:16])
    found = assign(scores, method)
    np.testing.assert_array_equal(found.names, order[:8])
    assert (found.confidence > 0.5).all()
    np.testing.assert_allclose(found.plan.sum(axis=1), 1)


def test_a_split_class_shares_its_name_only_where_names_may_be_shared():
    rng = np.random.default_rng(2)
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    clusters = directions[[0, 0, 1, 2]] + 0.02 * rng.normal(size=(4, 8))
    scores = similarities(clusters, directions[:4])
    assert assign(scores, "nearest").names.tolist() == [0, 0, 1, 2]
    assert assign(scores, "sinkhorn", slack=4.0).names.tolist() == [0, 0, 1, 2]
    one_to_one = assign(scores, "hungarian").names
    assert sorted(one_to_one) == [0, 1, 2, 3] and one_to_one[2:].tolist() == [1, 2]


def test_clusters_beyond_the_names_and_below_the_floor_go_without():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.12]])
    found = assign(scores, "hungarian")
    assert (found.names == -1).sum() == 1
    assert found.confidence[found.names == -1] == 0
    sure = assign(scores, "nearest", temperature=0.1, floor=0.9)
    assert sure.names.tolist() == [0, 0, -1]
    assert not sure.plan[2].any()


def test_shares_decide_between_equals():
    scores = np.zeros((2, 3))
    for method in assignment.ASSIGNERS:
        found = assign(scores, method, shares=[0.05, 0.9, 0.05])
        assert 1 in found.names
    assert assign(scores, "nearest", shares=[0, 1, 0]).names.tolist() == [1, 1]


def test_a_gap_between_the_sides_is_taken_away():
    rng = np.random.default_rng(3)
    names = rng.normal(size=(6, 12))
    clusters = names + 0.1 * rng.normal(size=names.shape) + 5 * rng.normal(size=12)
    apart = similarities(clusters, names)
    assert not np.array_equal(apart.argmax(axis=1), np.arange(6))
    np.testing.assert_array_equal(similarities(clusters, names, "mean").argmax(axis=1), range(6))
    np.testing.assert_allclose(similarities(clusters, names, normalise=False), clusters @ names.T)
    assert similarities(clusters[:1], names[:1], "mean").shape == (1, 1)


def test_risk_and_coverage_equal_a_loop():
    rng = np.random.default_rng(0)
    sure, right = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.4
    table = risk_coverage(sure, right)
    assert table["threshold"].is_monotonic_decreasing
    for threshold, coverage, risk in table.itertuples(index=False):
        given_ = sure >= threshold
        assert coverage == pytest.approx(given_.mean())
        assert risk == pytest.approx(1 - right[given_].mean())
    assert table["coverage"].iloc[-1] == 1


def test_area_is_smallest_for_the_best_order_and_the_error_for_none():
    right = np.array([True] * 3 + [False])
    assert aurc([4, 3, 2, 1], right) == pytest.approx((0 + 0 + 0 + 0.25) / 4)
    assert aurc([1, 2, 3, 4], right) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert aurc(np.ones(4), right) == pytest.approx(0.25)


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=5))
@settings(max_examples=examples(50))
def test_any_finite_similarity_gets_a_sound_answer(rows):
    for method in assignment.ASSIGNERS:
        found = assign(rows, method)
        assert ((found.names >= -1) & (found.names < 3)).all()
        assert ((found.confidence >= 0) & (found.confidence <= 1 + 1e-12)).all()
        kept = found.names >= 0
        np.testing.assert_allclose(found.plan[kept].sum(axis=1), 1)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: assign(np.empty((0, 3))), "finite"),
        (lambda: assign([[np.nan]]), "finite"),
        (lambda: assign([[1.0]], "hungarain"), "hungarian"),
        (lambda: assign([[1.0]], temperature=0), "temperature"),
        (lambda: assign([[1.0]], slack=-1), "slack"),
        (lambda: assign([[1.0]], slack=float("nan")), "slack"),
        (lambda: assign([[1.0]], temperature=float("nan")), "temperature"),
        (lambda: assign([[1.0, 2.0]], shares=[float("inf"), 1.0]), "shares"),
        (lambda: assign([[1.0, 2.0]], shares=[1.0]), "shares"),
        (lambda: assign([[1.0, 2.0]], shares=[0.0, 0.0]), "shares"),
        (lambda: similarities([[1.0]], [[1.0, 2.0]]), "differ"),
        (lambda: similarities([[np.inf]], [[1.0]]), "finite"),
        (lambda: similarities([[1.0]], [[1.0]], "median"), "gap"),
        (lambda: risk_coverage([], []), "one each"),
        (lambda: risk_coverage([np.nan], [True]), "one each"),
        (lambda: aurc([1.0], [True, False]), "one each"),
    ],
)
def test_bad_input_is_told(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_names_take_their_share_of_random_clusters():
    scores = np.random.default_rng(0).normal(size=(40, 12))
    found = assign(scores, "sinkhorn", temperature=0.1, slack=0.0)
    np.testing.assert_allclose(found.plan.sum(axis=0), 40 / 12, rtol=0.02)
