"""Scores against scikit-learn, SciPy and brute force; intervals by their coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import hmean, norm, t
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from lbutils import load_benchmark
from lbutils.measure import metrics as ev

pairs = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.int64, n, elements=st.integers(0, 4)),
        hnp.arrays(np.int64, n, elements=st.integers(0, 4)),
    )
)
shares = st.floats(0, 1, allow_subnormal=False)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@given(pairs)
def test_accuracies_equal_scikit_learn(pair):
    y, p = pair
    assert ev.accuracy(y, p) == pytest.approx(accuracy_score(y, p))
    present = np.unique(y)
    found = ev.per_class_accuracy(y, p, classes=5)
    recall = recall_score(y, p, labels=present, average=None, zero_division=0)
    np.testing.assert_allclose(found[present], recall)
    assert np.isnan(np.delete(found, present)).all() and len(found) == 5
    if set(p) <= set(y):
        assert np.nanmean(found) == pytest.approx(balanced_accuracy_score(y, p))


def test_accuracy_without_images_is_nan():
    assert math.isnan(ev.accuracy([], []))
    assert ev.per_class_accuracy([], []).shape == (0,)
    assert np.isnan(ev.per_class_accuracy([], [], classes=3)).all()


def test_predictions_out_of_the_labels_are_errors_of_the_class():
    assert ev.per_class_accuracy([0, 0, 1], [0, 9, -1]).tolist() == [0.5, 0.0]


def test_shapes_and_ranges_are_checked():
    with pytest.raises(ValueError, match=r"must both be \(N,\)"):
        ev.accuracy([1, 2], [1])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        ev.per_class_accuracy([2], [2], classes=2)
    with pytest.raises(ValueError, match="NaN"):
        ev.predict([[np.nan, 1]])
    with pytest.raises(ValueError, match="columns of logits"):
        ev.ece([[0.0, 1.0]], [2])


@given(shares, shares)
def test_harmonic_mean_equals_scipy(a, b):
    assert ev.harmonic_mean(a, b) == pytest.approx(hmean([a, b]), abs=1e-12)
    assert ev.harmonic_mean(a, b) == ev.harmonic_mean(b, a)
    assert ev.harmonic_mean(a, b) <= (a + b) / 2 + 1e-12


def test_harmonic_mean_of_zeros_and_negatives():
    assert ev.harmonic_mean(0, 0) == ev.harmonic_mean(0, 0.5) == 0
    with pytest.raises(ValueError, match=">= 0"):
        ev.harmonic_mean(-0.1, 0.5)


def test_joint_accuracy_equals_brute_force():
    rng = np.random.default_rng(0)
    logits, labels, n_ip = rng.normal(size=(200, 7)), rng.integers(0, 7, 200), 3
    logits[np.arange(200), labels] += 1
    found = ev.joint_accuracy(logits, labels, n_ip)
    hits = {name: [] for name in ("ip_joint", "oop_joint", "ip_separate", "oop_separate")}
    for row, label in zip(logits, labels, strict=True):
        kind, own = ("ip", range(3)) if label < n_ip else ("oop", range(3, 7))
        hits[f"{kind}_joint"].append(max(range(7), key=lambda c: row[c]) == label)
        hits[f"{kind}_separate"].append(max(own, key=lambda c: row[c]) == label)
    for name, values in hits.items():
        assert found[name] == pytest.approx(np.mean(values))
    for kind in ("joint", "separate"):
        assert found[f"h_{kind}"] == pytest.approx(
            hmean([found[f"ip_{kind}"], found[f"oop_{kind}"]])
        )
    assert found["ip_joint"] <= found["ip_separate"] and found["oop_joint"] <= found["oop_separate"]


def test_joint_accuracy_needs_both_sides():
    logits = np.eye(3)
    with pytest.raises(ValueError, match="both are needed"):
        ev.joint_accuracy(logits, [0, 0, 1], 2)
    for n_ip in (0, 3):
        with pytest.raises(ValueError, match="must part"):
            ev.joint_accuracy(logits, [0, 1, 2], n_ip)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 5, 15]))
def test_ece_equals_brute_force(seed, n, bins):
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.normal(size=(n, 4)), rng.integers(0, 4, n)
    expected = 0.0
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for low in np.arange(bins) / bins:
        inside = [i for i in range(n) if low < probabilities[i].max() <= low + 1 / bins]
        if inside:
            confidence = np.mean([probabilities[i].max() for i in inside])
            right = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            expected += len(inside) / n * abs(confidence - right)
    assert ev.ece(logits, labels, bins=bins) == pytest.approx(expected, abs=1e-9)


def test_ece_of_certain_and_of_large_logits():
    sure = np.array([[1e5, 0.0], [0.0, 1e5]], np.float32)
    assert ev.ece(sure, [0, 1]) == 0
    assert ev.ece(sure, [1, 0]) == 1
    assert math.isnan(ev.ece(np.zeros((0, 2)), []))
    with pytest.raises(ValueError, match="at least 1"):
        ev.ece(sure, [0, 1], bins=0)


def exact_means(values, weights):
    """Every bootstrap mean over classes, each resample once: all equally likely."""
    for chosen in itertools.product(range(len(values)), repeat=len(values)):
        own = weights[list(chosen)]
        yield (values[list(chosen)] * own).sum() / own.sum()


@pytest.mark.parametrize("weights", [None, [1, 5, 2, 2]])
def test_bootstrap_converges_to_the_exact_one(weights):
    values = np.array([0.1, 0.9, 0.4, 0.65])
    own = np.ones(4) if weights is None else np.array(weights, float)
    # Four classes: three degrees of freedom, and resamples vary by three quarters of the mean.
    tail = norm.cdf(t.ppf(0.25, 3) * math.sqrt(4 / 3))
    exact = np.quantile(list(exact_means(values, own)), [tail, 1 - tail])
    found = ev.bootstrap(values, weights, resamples=40_000, level=0.5)
    assert found.mean == pytest.approx(np.average(values, weights=own))
    np.testing.assert_allclose([found.low, found.high], exact, atol=0.02)


def test_bootstrap_leaves_out_empty_classes_and_is_seeded():
    values = [0.2, 0.4, np.nan, 0.9, 0.3]
    known = [0.2, 0.4, 0.9, 0.3]
    assert (
        ev.bootstrap(values) == ev.bootstrap(known) == ev.bootstrap([*known, 0.5], [1, 1, 1, 1, 0])
    )
    many = np.random.default_rng(0).random(20)
    assert ev.bootstrap(many) == ev.bootstrap(many) != ev.bootstrap(many, seed=1)
    wide, narrow = ev.bootstrap(values, level=0.99), ev.bootstrap(values, level=0.5)
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high


def test_bootstrap_edge_cases():
    assert all(math.isnan(v) for v in ev.bootstrap([]))
    one = ev.bootstrap([0.7])
    assert one.mean == 0.7 and math.isnan(one.low) and math.isnan(one.high)
    assert ev.bootstrap([0.5] * 9) == (0.5, pytest.approx(0.5), pytest.approx(0.5))
    with pytest.raises(ValueError, match="Landmark"):
        ev.bootstrap({"Food": [0.5, 0.1], "Landmark": []})
    with pytest.raises(ValueError, match="same domains"):
        ev.bootstrap({"Food": [0.5]}, {"Attire": [1]})
    with pytest.raises(ValueError, match="same domains"):
        ev.bootstrap({"Food": [0.5]}, [1])
    with pytest.raises(ValueError, match="lacks a value"):
        ev.bootstrap([[0.5, np.nan], [0.5, 0.1]])
    with pytest.raises(ValueError, match="need"):
        ev.bootstrap([0.5, 0.1], [1])
    for bad in ({"level": 1.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="must"):
            ev.bootstrap([0.5, 0.1], **bad)


def test_domains_count_the_same_whatever_their_size():
    rng = np.random.default_rng(0)
    values = {"small": rng.random(4), "large": rng.random(60)}
    found = ev.bootstrap(values)
    assert found.mean == pytest.approx((values["small"].mean() + values["large"].mean()) / 2)
    assert ev.bootstrap(dict(reversed(values.items()))) == found
    # Independent domains: the variance of the mean is a quarter of the sum of theirs.
    alone = [ev._means(v, None, 2000, 0)[1].std() for v in values.values()]
    both = ev._means(values, None, 2000, 0)[1].std()
    assert both == pytest.approx(math.hypot(*alone) / 2, rel=0.1)


def test_unpaired_classes_are_resampled_each_for_itself():
    rng = np.random.default_rng(1)
    first = {name: 100 * rng.random(size) for name, size in {"a": 9, "b": 5, "c": 30}.items()}
    second = {"b": 20 + 100 * rng.random(12)}
    found = ev.unpaired(first, second, seed=1)
    # One side has three domains and the other one: each mean is over its own.
    means = [np.mean([values.mean() for values in side.values()]) for side in (first, second)]
    assert found.mean == pytest.approx(means[0] - means[1])
    spread = [ev._means(side, None, 4000, 0)[1].std() for side in (first, second)]
    many = np.array([ev.unpaired(first, second, seed=s)[1:] for s in range(3)])
    half = (many[:, 1] - many[:, 0]).mean() / 2
    assert half == pytest.approx(1.96 * math.hypot(*spread), rel=0.2)
    weights = {"b": np.arange(12)}
    weighted = ev.unpaired(first, second, None, weights)
    own = np.average(second["b"], weights=weights["b"])
    assert weighted.mean == pytest.approx(means[0] - own)
    assert np.isnan(ev.unpaired(first, {})).all()
    # As many domains on both sides: twice each value with its sign, all in one mean.
    pair = {"b": first["b"]}, second
    signed = {"b 0": 2 * first["b"], "b 1": -2 * second["b"]}
    assert ev.unpaired(*pair, seed=3) == ev.bootstrap(signed, seed=3)


@pytest.mark.parametrize("clustered", [True, False])
def test_coverage_of_the_accuracy_interval(clustered):
    """About 95 % of intervals hold the truth when images of a class succeed or fail together."""
    rng = np.random.default_rng(1)
    covered = narrow = 0
    for trial in range(300):
        skill = rng.beta(1, 1, 40) if clustered else np.full(40, 0.5)
        labels = np.repeat(np.arange(40), 15)
        predictions = np.where(rng.random(600) < skill[labels], labels, -1)
        found = ev.bootstrap(ev.per_class_accuracy(labels, predictions), resamples=400, seed=trial)
        covered += found.low <= 0.5 <= found.high
        error = math.sqrt(found.mean * (1 - found.mean) / 600)
        narrow += abs(found.mean - 0.5) <= 1.96 * error
    assert 0.90 <= covered / 300 <= 0.98
    # Treating images as independent is what this clustering guards against.
    assert (narrow / 300 < 0.75) == clustered


def covered(sizes, trials, seed, draws=1, resamples=400):
    """How many of 95 % intervals hold the mean over domains; and p-values of that mean."""
    rng = np.random.default_rng(seed)
    skills = rng.uniform(0.2, 0.8, len(sizes))
    images = [rng.integers(2, 13, n) for n in sizes]
    inside, p = 0, []
    for trial in range(trials):
        values = {}
        for i, (n, skill) in enumerate(zip(sizes, skills, strict=True)):
            own = rng.beta(2 * skill, 2 * (1 - skill), n)
            values[str(i)] = rng.binomial(images[i], own, (draws, n)) / images[i]
        weights = {str(i): own for i, own in enumerate(images)}
        options = {"resamples": resamples, "seed": trial}
        found = ev.bootstrap(values, weights, **options)
        inside += found.low <= skills.mean() <= found.high
        truth = {name: np.full(own.shape, skills.mean()) for name, own in values.items()}
        p.append(ev.compare(values, truth, weights, **options).p)
    return inside / trials, np.array(p)


@pytest.mark.parametrize("draws", [1, 3])
def test_intervals_of_few_classes_are_wide_enough(draws):
    """Six classes: percentiles as they are hold the mean in 82 % of cases."""
    share, p = covered([6], 400, 0, draws, resamples=2000)
    assert 0.915 <= share <= 0.985
    assert share == pytest.approx(np.mean(p > 0.05), abs=0.03), "p must agree with the interval"


@pytest.mark.slow
@pytest.mark.parametrize("sides", [("oop",), ("ip", "oop")])
def test_intervals_over_the_miniatures_domains_cover_as_they_say(sides):
    """Classes as the miniature has them: percentiles as they are hold 91 to 94 %."""
    counts = load_benchmark("mini").summary().query("split == 'test'")
    sizes = counts[counts["subset"].isin(sides)]["classes"].tolist()
    assert min(sizes) == (6 if sides == ("oop",) else 5) and max(sizes) == 38
    share, p = covered(sizes, 1500, 1)
    assert 0.935 <= share <= 0.965
    assert 0.935 <= np.mean(p > 0.05) <= 0.97


def test_comparison_is_paired():
    """A small difference shows although each method varies far more over classes."""
    rng = np.random.default_rng(3)
    base = rng.random((10, 50))
    better = base + 0.02 + rng.normal(0, 0.01, base.shape)
    found = ev.compare(better, base)
    assert found.difference == pytest.approx((better - base).mean())
    assert 0.015 < found.low < found.difference < found.high < 0.025 and found.share == 1
    back = ev.compare(base, better)
    np.testing.assert_allclose(back[:3], [-found.difference, -found.high, -found.low])
    alone = ev.bootstrap(better)
    assert alone.high - alone.low > 5 * (found.high - found.low)


def test_comparison_of_equals_and_of_unequal_tables():
    table = np.random.default_rng(0).random((3, 5))
    assert ev.compare(table, table) == (0, 0, 0, 0.5, 1)
    assert ev.compare({"a": table}, {"a": table}).share == 0.5
    with pytest.raises(ValueError, match="no pairs"):
        ev.compare(table, table[:2])
    with pytest.raises(ValueError, match="no pairs"):
        ev.compare([0.1, np.nan], [0.1, 0.2])
    with pytest.raises(ValueError, match="throughout"):
        ev.compare({"a": table}, {"b": table})
    assert math.isnan(ev.compare([0.3], [0.1]).share)


def test_draws_add_to_the_interval():
    """Draws that differ widen the interval, which ten copies of one draw do not."""
    rng = np.random.default_rng(4)
    classes, draws = rng.normal(size=40), rng.normal(size=(10, 1))
    copies = ev.bootstrap(np.tile(classes, (10, 1)))
    single = ev.bootstrap(classes)
    varied = ev.bootstrap(classes + draws)
    assert copies.high - copies.low == pytest.approx(single.high - single.low, rel=0.1)
    assert varied.high - varied.low > 1.5 * (copies.high - copies.low)


def test_predict_takes_the_first_of_equals():
    assert ev.predict([[0.0, 1.0, 1.0], [2.0, 2.0, 0.0]]).tolist() == [1, 0]
    assert ev.predict(np.zeros((0, 3))).shape == (0,)


def test_images_and_names_without_a_logit():
    """-inf is a name that cannot be said: never right, whichever column comes first."""
    nothing = np.full((2, 4), -np.inf)
    logits = np.vstack([nothing, [[1, -np.inf, 0, -np.inf], [-np.inf, -np.inf, 2, 1]]])
    found = ev.joint_accuracy(logits, [0, 2, 0, 2], 2)
    assert found["ip_joint"] == found["ip_separate"] == 0.5
    assert found["oop_joint"] == found["oop_separate"] == 0.5
    margins = ev.joint_margins(logits, [0, 2, 0, 2], 2)
    assert margins.margin.tolist() == [0, 0, 1, -np.inf]
    assert margins.right.tolist() == [False, False, True, True]
    assert ev.ece(nothing, [0, 1]) == 0
    assert ev.confidences(nothing, [0, 1])[2].tolist() == [False, False]
    with pytest.raises(ValueError, match=r"NaN or \+inf"):
        ev.predict([[np.inf, 1.0]])


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([1, 4, 15]))
def test_reliability_adds_up_to_the_calibration_error(seed, n, bins):
    rng = np.random.default_rng(seed)
    logits, labels = 2 * rng.normal(size=(n, 3)), rng.integers(0, 3, n)
    table = ev.reliability(logits, labels, bins=bins)
    assert len(table) == bins and table["images"].sum() == n
    full = table.dropna()
    assert (full["images"] > 0).all() and len(full) == (table["images"] > 0).sum()
    inside = (full["low"] < full["confidence"] + 1e-12) & (full["confidence"] <= full["high"])
    assert inside.all()
    gaps = (full["accuracy"] - full["confidence"]).abs() * full["images"]
    assert gaps.sum() / n == pytest.approx(ev.ece(logits, labels, bins=bins))
    hits = (full["accuracy"] * full["images"]).sum()
    assert hits / n == pytest.approx(ev.accuracy(labels, ev.predict(logits)))


def test_reliability_of_chosen_confidences():
    shares = np.array([[0.95, 0.05], [0.91, 0.09], [0.55, 0.45], [0.5, 0.5]])
    table = ev.reliability(np.log(shares), [0, 1, 0, 1], bins=10)
    rows = table[table["images"] > 0]
    assert rows["high"].tolist() == [0.5, 0.6, 1.0] and rows["images"].tolist() == [1, 1, 2]
    assert rows["accuracy"].tolist() == [0.0, 1.0, 0.5]
    np.testing.assert_allclose(rows["confidence"], [0.5, 0.55, 0.93])
    assert ev.reliability(np.zeros((0, 2)), [])["images"].sum() == 0
    # Of many classes the surest answer may lie in the first bin; so does one of no class at all.
    for many in (np.zeros((1, 40)), np.full((1, 40), -np.inf)):
        assert ev.reliability(many, [3])["images"].tolist() == [1, *[0] * 14]


def step_down(p):
    """Holm's procedure as he wrote it: the smallest level at which each hypothesis is rejected."""
    adjusted = []
    for own in p:
        levels = []
        for other in p:
            if other <= own:
                levels.append(other * sum(rest >= other for rest in p))
        adjusted.append(min(1.0, max(levels)))
    return adjusted


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12, unique=True))
def test_holm_equals_the_definition(p):
    np.testing.assert_allclose(ev.holm(p), step_down(p))


def test_holm_of_known_values():
    # The example of statsmodels' own tests of multipletests, made there with R's multtest.
    p = [
        0.838541367553, 0.642193923795, 0.680845947633, 0.967833824309, 0.71626938238,
        0.177096952723, 5.23656777208e-005, 0.0202732688798, 0.00028140506198, 0.0149877310796,
    ]  # fmt: skip
    found = ev.holm(p)
    np.testing.assert_allclose(
        found[[6, 8, 9, 7]],
        [5.2365677720800003e-04, 2.5326455578200001e-03, 1.1990184863699999e-01, 0.14191288215900],
        rtol=1e-9,
    )
    assert (found[[0, 1, 2, 3, 4, 5]] == 1).all()
    with_gap = ev.holm([0.01, np.nan, 0.04])
    assert with_gap[[0, 2]].tolist() == [0.02, 0.04] and np.isnan(with_gap[1])
    assert ev.holm([0.02, 0.02]).tolist() == [0.04, 0.04] and ev.holm([]).shape == (0,)
    for bad in ([1.2], [[0.1]], [-0.1]):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            ev.holm(bad)


def test_p_values_of_comparisons():
    found = ev.comparison_of(1.0, np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
    assert found.p == pytest.approx(2 * 3 / 10) and found.share == pytest.approx(7.5 / 9)
    assert ev.comparison_of(-1.0, -np.ones(999)).p == pytest.approx(2 / 1000)
    assert math.isnan(ev.comparison_of(0.1, np.full(9, np.nan)).p)
    # Uniform where there is no difference: 5 % of 400 comparisons lie below 0.05, or about so.
    rng = np.random.default_rng(6)
    p = [ev.compare(*rng.normal(size=(2, 40)), resamples=400, seed=i).p for i in range(400)]
    assert 0.025 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert np.quantile(p, 0.5) == pytest.approx(0.5, abs=0.1)
