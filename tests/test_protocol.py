"""The joint vocabulary against brute force: sweeps of the bias, loops over pairs and resamples."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom, hmean

from lbutils.measure import joint as protocol
from lbutils.measure import metrics as ev

QUICK = settings(max_examples=examples(60))


@st.composite
def tasks(draw):
    """Logits of few levels, so that ties abound, with names that cannot be predicted."""
    n_ip, n_oop = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    images = draw(st.integers(0, 8))
    labels = [0, n_ip, *draw(st.lists(st.integers(0, n_ip + n_oop - 1), max_size=images))]
    levels = st.one_of(st.integers(-3, 3).map(float), st.just(-np.inf))
    logits = draw(hnp.arrays(np.float32, (len(labels), n_ip + n_oop), elements=levels))
    return logits, np.array(labels), n_ip


def predicted(row, n_ip, bias):
    """The name of one image under a bias, by looking at every name; None if there is none."""
    best, name = -math.inf, None
    for i, logit in enumerate(row):
        shifted = float(logit) + (bias if i >= n_ip else 0)
        if shifted > best:
            best, name = shifted, i
    return name


def swept(logits, labels, n_ip, bias):
    """IP and OOP accuracy under one bias, by looking at every image."""
    hits = {True: [], False: []}
    for row, label in zip(logits, labels, strict=True):
        hits[bool(label < n_ip)].append(predicted(row, n_ip, bias) == label)
    return np.mean(hits[True]), np.mean(hits[False])


def separate(logits, labels, n_ip):
    """IP and OOP accuracy over their own names, by looking at every image."""
    masked = logits.astype(float)
    for row, label in zip(masked, labels, strict=True):
        row[slice(n_ip, None) if label < n_ip else slice(n_ip)] = -np.inf
    return swept(masked, labels, n_ip, 0.0)


# Margins are whole numbers within -6..6, so quarters meet every tie and every gap between them.
SWEEP = np.arange(-8, 8.01, 0.25)


@QUICK
@given(tasks())
def test_the_curve_is_a_sweep_of_the_bias(task):
    curve = protocol.mean_curve(ev.joint_margins(*task))
    assert (np.diff(curve.bias) > 0).all()
    for bias, ip, oop in zip(*curve, strict=True):
        if np.isfinite(bias):
            assert (ip, oop) == pytest.approx(swept(*task, bias))
    points = {(round(ip, 9), round(oop, 9)) for _, ip, oop in zip(*curve, strict=True)}
    missed = {tuple(np.round(swept(*task, bias), 9)) for bias in SWEEP} - points
    assert not missed
    ends = separate(*task)
    assert (curve.ip[0], curve.oop[0]) == pytest.approx((ends[0], 0))
    assert (curve.ip[-1], curve.oop[-1]) == pytest.approx((0, ends[1]))


def area_of(logits, labels, n_ip):
    runs = [protocol.joint_scores(logits, labels, n_ip)]
    return protocol.value({"": runs}, "ausuc")


@QUICK
@given(tasks())
def test_the_area_is_that_under_the_curve_and_that_over_pairs(task):
    area = area_of(*task)
    curve = protocol.mean_curve(ev.joint_margins(*task))
    assert area == pytest.approx(-np.trapezoid(curve.oop, curve.ip))
    margins = ev.joint_margins(*task)
    kind = [
        [i for i in range(len(margins.labels)) if (margins.labels[i] < task[2]) == ip]
        for ip in (True, False)
    ]
    wins = [
        np.mean([margins.margin[i] > margins.margin[j], margins.margin[i] >= margins.margin[j]])
        if margins.right[i] and margins.right[j]
        else 0.0
        for i, j in itertools.product(*kind)
    ]
    assert area == pytest.approx(np.mean(wins))
    assert area <= math.prod(separate(*task)) + 1e-12


def test_the_area_without_ties_equals_a_dense_sweep():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), 12)
    logits = rng.normal(size=(108, 9))
    logits[np.arange(108), labels] += 1.5
    grid = [swept(logits, labels, 4, bias) for bias in np.linspace(-8, 8, 1201)]
    ip, oop = np.array(grid).T
    assert area_of(logits, labels, 4) == pytest.approx(-np.trapezoid(oop, ip), abs=2e-3)
    # Shifting all OOP logits moves along the curve and does not change it.
    shifted = logits + np.repeat([0.0, 0.7], [4, 5])
    assert area_of(shifted, labels, 4) == pytest.approx(area_of(logits, labels, 4))


@QUICK
@given(tasks(), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0]))
def test_accuracies_at_a_bias_are_those_of_shifted_logits(task, bias):
    logits, labels, n_ip = task
    found = ev.joint_accuracy(*task, bias=bias)
    expected = swept(*task, bias)
    assert (found["ip_joint"], found["oop_joint"]) == pytest.approx(expected)
    assert (found["ip_separate"], found["oop_separate"]) == pytest.approx(separate(*task))
    assert found["h_joint"] == pytest.approx(hmean(expected))
    runs = {"Food": [protocol.joint_scores(*task, bias=bias)]}
    for measure, value in found.items():
        assert protocol.value(runs, measure) == pytest.approx(value)
    shifted = logits + np.where(np.arange(logits.shape[1]) < n_ip, 0, bias)
    assert protocol.value(runs, "ece") == pytest.approx(ev.ece(shifted, labels))
    assert protocol.value(runs, "ausuc") == pytest.approx(area_of(*task))  # whatever the bias
    said = [predicted(row, n_ip, bias) for row in logits]
    said = [-1 if name is None else name for name in said]
    balanced = np.nanmean(ev.per_class_accuracy(labels, said))
    assert protocol.value(runs, "balanced") == pytest.approx(balanced)
    names = n_ip, logits.shape[1] - n_ip
    weighted = np.dot(expected, names) / sum(names)
    assert protocol.value(runs, "class_balanced") == pytest.approx(weighted)


@QUICK
@given(st.lists(tasks(), min_size=1, max_size=3))
def test_the_best_bias_is_the_best_of_a_sweep(many):
    runs = [ev.joint_margins(*task) for task in many]
    found = protocol.best_bias(runs)

    def score(bias):
        pairs = np.array([swept(*task, bias) for task in many])
        return *pairs.mean(0), np.mean([ev.harmonic_mean(*pair) for pair in pairs])

    best = max(score(bias)[-1] for bias in SWEEP)
    assert found.h == pytest.approx(best)
    assert found[1:] == pytest.approx(score(found.bias))
    middles = [0.0, *(float(b) for b in protocol.mean_curve(runs).bias if np.isfinite(b))]
    as_good = [abs(bias) for bias in middles if score(bias)[-1] >= best - 1e-12]
    assert abs(found.bias) == min(as_good)


@QUICK
@given(st.lists(tasks(), min_size=1, max_size=3), st.floats(0, 1))
def test_oop_at_a_floor_of_ip_is_the_best_of_a_sweep(many, floor):
    found = protocol.best_bias([ev.joint_margins(*task) for task in many], floor)
    pairs = [np.mean([swept(*task, bias) for task in many], axis=0) for bias in SWEEP]
    kept = [oop for ip, oop in pairs if ip >= floor - 1e-12]
    if not kept:
        assert all(math.isnan(number) for number in found)
    else:
        assert found.oop == pytest.approx(max(kept)) and found.ip >= floor - 1e-12


def test_a_bias_wants_runs():
    run = ev.joint_margins(np.eye(4), [0, 1, 2, 3], 2)
    with pytest.raises(ValueError, match="no runs"):
        protocol.best_bias([])
    assert protocol.best_bias([run]) == (0.0, 1.0, 1.0, 1.0)


def task_of(seed, skill=1.5, classes=(4, 5), images=None, scale=2.0):
    """Logits and labels of a made task with uneven classes."""
    rng = np.random.default_rng(0 if images is None else images)
    count = rng.integers(2, 6, sum(classes))
    labels = np.repeat(np.arange(sum(classes)), count)
    rng = np.random.default_rng([seed, 7])
    logits = rng.normal(size=(len(labels), sum(classes)))
    logits[np.arange(len(labels)), labels] += skill
    return scale * logits, labels, classes[0]


def runs_of(seed, skill=1.5, draws=3, **options):
    """A method on two domains."""
    return {
        domain: [
            protocol.joint_scores(*task_of([seed, d, i], skill, sizes, i, **options))
            for d in range(draws)
        ]
        for i, (domain, sizes) in enumerate({"Food": (4, 5), "Attire": (3, 6)}.items())
    }


def measured(logits, labels, n_ip, chosen):
    """Every measure of a resample of classes, its images gathered one after the other."""
    rows = np.concatenate([np.flatnonzero(labels == label) for label in chosen])
    # A class drawn twice is two classes to the balanced accuracy, so it has a number of its own.
    drawn = np.repeat(np.arange(len(chosen)), [np.sum(labels == label) for label in chosen])
    found = ev.joint_accuracy(logits[rows], labels[rows], n_ip)
    found["ece"] = ev.ece(logits[rows], labels[rows])
    found["ausuc"] = area_of(logits[rows], labels[rows], n_ip)
    hits = ev.predict(logits[rows]) == labels[rows]
    found["balanced"] = np.mean([hits[drawn == i].mean() for i in range(len(chosen))])
    n_oop = logits.shape[1] - n_ip
    found["class_balanced"] = (n_ip * found["ip_joint"] + n_oop * found["oop_joint"]) / (
        n_ip + n_oop
    )
    return found


def naive(methods, resamples, rng):
    """The paired bootstrap written out: {measure: (resamples, methods)}."""
    collected = {measure: [] for measure in protocol.MEASURES}
    for _ in range(resamples):
        total = {measure: np.zeros(len(methods)) for measure in protocol.MEASURES}
        for domain in methods[0]:
            _, labels, n_ip = methods[0][domain][0]
            oop = np.arange(n_ip, labels.max() + 1)
            chosen = [*rng.choice(n_ip, n_ip), *rng.choice(oop, len(oop))]
            draws = rng.choice(len(methods[0][domain]), len(methods[0][domain]))
            for i, method in enumerate(methods):
                for draw in draws if len(method[domain]) > 1 else [0] * len(draws):
                    found = measured(*method[domain][draw], chosen)
                    for measure, values in total.items():
                        values[i] += found[measure] / len(draws) / len(methods[0])
        for measure, values in total.items():
            collected[measure].append(values)
    return {measure: np.array(values) for measure, values in collected.items()}


@pytest.mark.slow
def test_intervals_and_comparisons_equal_explicit_resampling():
    sizes = {"Food": (4, 5), "Attire": (3, 6)}
    raw = [
        {
            domain: [task_of([seed, d, i], skill, own, i) for d in range(draws)]
            for i, (domain, own) in enumerate(sizes.items())
        }
        for seed, skill, draws in ((1, 1.5, 2), (2, 1.1, 2), (3, 0.8, 1))
    ]
    many = [{d: [protocol.joint_scores(*t) for t in own] for d, own in m.items()} for m in raw]
    many[2] = {domain: {None: own[0]} for domain, own in many[2].items()}
    slow = naive(raw, 400, np.random.default_rng(0))
    ends = [0.1, 0.9]
    for measure, values in slow.items():
        for i, runs in enumerate(many):
            found = protocol.interval(runs, measure, level=0.8, resamples=8000)
            spread = values[:, i].std()
            # Mirrored at the estimate, as the basic bootstrap has it.
            basic = 2 * found.mean - np.quantile(values[:, i], ends)[::-1]
            np.testing.assert_allclose(found[1:], basic.clip(0, 1), atol=spread / 3)
            whole = [measured(*t, range(9)) for own in raw[i].values() for t in own]
            assert found.mean == pytest.approx(np.mean([w[measure] for w in whole]))
        for i, j in ((0, 1), (0, 2), (2, 1)):
            gap = values[:, i] - values[:, j]
            found = protocol.compare_joint(many[i], many[j], measure, level=0.8, resamples=8000)
            mirrored = 2 * found.difference - gap
            expected = np.quantile(mirrored, ends)
            np.testing.assert_allclose(found[1:3], expected, atol=gap.std() / 3)
            assert found.share == pytest.approx((gap > 0).mean(), abs=0.08)
            back = protocol.compare_joint(many[j], many[i], measure, level=0.8, resamples=8000)
            np.testing.assert_allclose(back[:3], [-found[0], -found[2], -found[1]], atol=1e-12)


def test_an_interval_of_accuracy_is_that_of_evaluation():
    runs = runs_of(4, draws=1)
    values, images = {}, {}
    for domain, (run,) in runs.items():
        oop = run.labels >= run.n_ip
        hit = np.where(run.right & (run.margin < 0), run.labels, -1)[oop] - run.n_ip
        values[domain] = ev.per_class_accuracy(run.labels[oop] - run.n_ip, hit)
        images[domain] = np.bincount(run.labels[oop] - run.n_ip)
    other = ev.interval_of(*ev._means(values, images, 20_000, 0)[:2])
    found = protocol.interval(runs, "oop_joint", resamples=20_000)
    assert found.mean == pytest.approx(other.mean)
    mirrored = 2 * other.mean - other.high, 2 * other.mean - other.low
    np.testing.assert_allclose(found[1:], mirrored, atol=0.01)


def made_runs(rng, sizes, images=6, draws=3):
    """Runs of a method whose classes, images and draws each have a say, without any logits."""
    found = {}
    for i, (n_ip, n_oop) in enumerate(sizes):
        size = n_ip + n_oop
        labels = np.repeat(np.arange(size), images)
        ease, side = rng.normal(size=(2, size))[:, labels]
        luck = rng.normal(size=(2, len(labels)))
        found[f"domain {i}"] = [
            protocol.JointScores(
                labels=labels,
                right=ease + luck[0] + 0.4 * rng.normal(size=size)[labels] > -0.2,
                margin=np.where(labels < n_ip, 1, -1) * (side + luck[1] + 0.4),
                n_ip=n_ip,
                n_oop=n_oop,
                gaps=np.zeros((size, 1)),
                bias=0.0,
                gaps_bias=0.0,
            )
            for _ in range(draws)
        ]
    return found


@pytest.mark.parametrize("measure", ["h_joint", "ausuc"])
def test_coverage_of_the_interval(measure):
    """About 95 % hold the value of all classes, and H's percentile interval would not."""
    rng = np.random.default_rng(5)
    truth = protocol.value(made_runs(rng, [(3000, 3000)], draws=1), measure)
    covered = percentile = 0
    for trial in range(150):
        runs = made_runs(rng, [(9, 11)] * 6, draws=2)
        found = protocol.interval(runs, measure, resamples=300, seed=trial)
        covered += found.low <= truth <= found.high
        other = 2 * found.mean - np.array(found[1:])
        percentile += other[1] <= truth <= other[0]
    assert 0.9 <= covered / 150 <= 0.99
    assert (percentile / 150 < 0.88) == (measure == "h_joint")


def test_names_without_test_images_count_as_names_only():
    logits, labels, _ = task_of(1)
    wider = np.insert(logits, [4, 9], -np.inf, axis=1)  # one IP and one OOP name more
    moved = labels + (labels >= 4)
    plain, more = (
        {"Food": [protocol.joint_scores(logits, labels, 4)]},
        {"Food": [protocol.joint_scores(wider, moved, 5)]},
    )
    for measure in protocol.MEASURES:
        if measure == "class_balanced":
            continue
        first, second = (protocol.interval(runs, measure) for runs in (plain, more))
        assert first == pytest.approx(second)
    joint = ev.joint_accuracy(logits, labels, 4)
    weighted = (5 * joint["ip_joint"] + 6 * joint["oop_joint"]) / 11
    assert protocol.value(more, "class_balanced") == pytest.approx(weighted)


def test_a_method_without_draws_pairs_with_every_draw():
    one, many = runs_of(1, draws=1), runs_of(2, draws=4)
    copied = {domain: own * 4 for domain, own in one.items()}
    fixed = {domain: {None: own[0]} for domain, own in one.items()}
    for measure in protocol.MEASURES:
        found = protocol.compare_joint(many, fixed, measure)
        assert found == pytest.approx(protocol.compare_joint(many, copied, measure))
        assert found[0] == pytest.approx(-protocol.compare_joint(fixed, many, measure)[0])
    assert protocol.compare_joint(fixed, fixed, "ausuc") == (0, 0, 0, 0.5, 1)
    assert protocol.interval(fixed, "ausuc") == protocol.interval(one, "ausuc")
    with pytest.raises(ValueError, match="stands for every draw"):
        protocol.interval({"Food": {None: one["Food"][0], 0: one["Food"][0]}}, "ausuc")


def test_a_single_draw_is_not_every_draw():
    one, many = runs_of(1, draws=1), runs_of(2, draws=4)
    for pair in ((one, many), (many, one)):
        with pytest.raises(ValueError, match="same draws, or give {None: run}"):
            protocol.compare_joint(*pair, "ausuc")
    second = {domain: {1: own[0]} for domain, own in one.items()}
    with pytest.raises(ValueError, match="same draws"):
        protocol.compare_joint(one, second, "ausuc")


def test_the_share_counts_resamples_that_the_first_leads():
    """Ahead by 1 image in four classes and behind by 3 in the fifth, against the binomial."""
    labels = np.append(np.repeat(np.arange(5), 5) + 2, [0, 1])

    def run(hits):
        right = np.concatenate([np.arange(5) < k for k in hits] + [[True, True]])
        margin = np.where(labels < 2, 1.0, -1.0)
        return protocol.JointScores(labels, margin, right, 2, 5, np.zeros((7, 1)), 0.0, 0.0)

    first, second = ({"Food": [run(hits)]} for hits in ([3, 3, 3, 3, 1], [2, 2, 2, 2, 4]))
    # 5 - k classes of the four kinds and k of the fifth: ahead while (5 - k) > 3 k.
    ahead = binom.cdf(1, 5, 1 / 5)
    options = {"resamples": 20_000, "seed": 2}
    found = protocol.compare_joint(first, second, "oop_joint", **options)
    assert found.share == pytest.approx(ahead, abs=0.015)
    back = protocol.compare_joint(second, first, "oop_joint", **options)
    assert back.share == pytest.approx(1 - found.share)


def test_the_same_method_never_differs_from_itself():
    runs = runs_of(1)
    assert protocol.compare_joint(runs, runs, "ausuc") == (0, 0, 0, 0.5, 1)
    order = {d: {k: runs[d][k] for k in (2, 0, 1)} for d in reversed(runs)}
    assert protocol.compare_joint(runs, order, "ece").p == 1
    assert protocol.interval(runs, "h_joint") == protocol.interval(order, "h_joint")
    assert protocol.interval(runs, "h_joint") != protocol.interval(runs, "h_joint", seed=1)


def test_one_class_a_side_has_no_interval():
    run = protocol.joint_scores([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [0, 1, 1], 1)
    found = protocol.interval({"Food": [run]}, "oop_joint")
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    other = protocol.compare_joint({"Food": [run]}, {"Food": [run]}, "oop_joint")
    assert other.difference == 0 and math.isnan(other.p)


@pytest.mark.parametrize("lone", ["ip", "oop"])
@pytest.mark.parametrize("draws", [1, 2])
def test_one_class_on_a_side_of_a_measure_leaves_no_interval(lone, draws):
    sizes = (1, 4) if lone == "ip" else (4, 1)

    def runs(seed):
        return [protocol.joint_scores(*task_of([seed, i], classes=sizes)) for i in range(draws)]

    first, second = {"Food": runs(1)}, {"Food": runs(2)}
    several = {"oop": "ip", "ip": "oop"}[lone]
    with_interval = set()
    for measure in protocol.MEASURES:
        found = protocol.interval(first, measure)
        gap = protocol.compare_joint(first, second, measure)
        ends = np.array([*found[1:], *gap[1:]])
        assert np.isfinite([found.mean, gap.difference]).all()
        assert np.isnan(ends).all() or np.isfinite(ends).all()
        with_interval |= {measure} if np.isfinite(ends).all() else set()
    assert with_interval == {f"{several}_separate", f"{several}_joint"}
    table = protocol.protocol_table({"a": first, "b": second}, "a").set_index(["method", "measure"])
    assert np.isnan(table.loc[("b", f"{lone}_joint"), "p_holm"])
    assert np.isfinite(table.loc[("b", f"{several}_joint"), "p_holm"])
    # A domain with several classes on that side is enough.
    more = {"Attire": [protocol.joint_scores(*task_of(3))] * draws}
    assert np.isfinite(protocol.interval(first | more, "h_joint")).all()


def test_unequal_runs_are_refused():
    runs, other = runs_of(1), runs_of(2)
    few = {domain: own[:2] for domain, own in other.items()}
    with pytest.raises(ValueError, match="same draws"):
        protocol.compare_joint(runs, few, "ausuc")
    with pytest.raises(ValueError, match="same draws"):
        protocol.compare_joint(
            {d: {0: own[0], 1: own[1]} for d, own in runs.items()},
            {d: {0: own[0], 2: own[1]} for d, own in runs.items()},
            "ausuc",
        )
    with pytest.raises(ValueError, match="same for every method"):
        protocol.compare_joint(runs, {"Food": other["Food"]}, "ausuc")
    with pytest.raises(ValueError, match="same test split"):
        swapped = {"Food": other["Attire"], "Attire": other["Food"]}
        protocol.compare_joint(runs, swapped, "ausuc")
    with pytest.raises(ValueError, match="leave the domain out"):
        protocol.interval({"Food": []}, "ausuc")
    with pytest.raises(ValueError, match="at least one domain"):
        protocol.interval({}, "ausuc")
    with pytest.raises(ValueError, match="put it in a list"):
        protocol.interval({"Food": runs["Food"][0]}, "ausuc")
    with pytest.raises(ValueError, match="measure"):
        protocol.interval(runs, "auc")


def test_logits_that_cannot_be_scored_are_refused():
    logits, labels, n_ip = task_of(1)
    broken = logits.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or"):
        protocol.joint_scores(broken, labels, n_ip)
    with pytest.raises(ValueError, match="NaN or"):
        area_of(np.where(logits > 3, np.inf, logits), labels, n_ip)
    for kept in (labels < n_ip, labels >= n_ip):
        with pytest.raises(ValueError, match="both are needed"):
            protocol.mean_curve(ev.joint_margins(logits[kept], labels[kept], n_ip))
    for bias in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            protocol.joint_scores(logits, labels, n_ip, bias=bias)
    with pytest.raises(ValueError, match="bias is NaN"):
        ev.joint_accuracy(logits, labels, n_ip, bias=np.nan)


def test_scores_survive_a_file(tmp_path):
    run = protocol.joint_scores(*task_of(1), bias=0.25)
    np.savez(tmp_path / "run.npz", **run._asdict())
    with np.load(tmp_path / "run.npz") as file:
        back = protocol.JointScores(**file)
    for measure in protocol.MEASURES:
        assert protocol.value({"a": [back]}, measure) == protocol.value({"a": [run]}, measure)


def test_another_bias_moves_accuracies_and_voids_the_calibration_error():
    task = task_of(1)
    plain, right = protocol.joint_scores(*task), protocol.joint_scores(*task, bias=1.5)
    moved = plain._replace(bias=1.5)
    for measure in protocol.MEASURES:
        found = protocol.interval({"a": [moved]}, measure)
        if measure == "ece":
            assert np.isnan(found).all()
            assert math.isnan(protocol.compare_joint({"a": [moved]}, {"a": [plain]}, measure).p)
        else:
            assert found == protocol.interval({"a": [right]}, measure)
    back = {"a": [moved._replace(bias=0.0)]}
    assert protocol.value(back, "ece") == pytest.approx(ev.ece(*task[:2]))


def methods():
    fixed = {domain: {None: own[0]} for domain, own in runs_of(3, 0.3, 1).items()}
    return {"ours": runs_of(1, 2.0), "rival $one$": runs_of(2, 1.2), "fixed": fixed}


def test_the_table_says_what_the_functions_say():
    table = protocol.protocol_table(methods(), "ours", ("h_joint", "ece"), resamples=500, seed=3)
    assert list(table["method"]) == [name for name in methods() for _ in range(2)]
    options = {"resamples": 500, "seed": 3}
    for _, row in table.iterrows():
        runs = methods()[row["method"]]
        found = protocol.interval(runs, row["measure"], **options)
        np.testing.assert_allclose(row[["value", "low", "high"]].tolist(), 100 * np.array(found))
        if row["method"] == "ours":
            assert row[["difference", "difference_low", "p", "p_holm"]].isna().all()
            continue
        gap = protocol.compare_joint(runs, methods()["ours"], row["measure"], **options)
        columns = ["difference", "difference_low", "difference_high"]
        np.testing.assert_allclose(row[columns].tolist(), 100 * np.array(gap[:3]))
        assert row["p"] == pytest.approx(gap.p)
    for _, own in table.groupby("measure"):
        rivals = own.dropna(subset=["p"])
        np.testing.assert_allclose(rivals["p_holm"], ev.holm(rivals["p"]))
    bare = protocol.protocol_table(methods(), measures=["h_joint"], resamples=500, seed=3)
    assert list(bare) == ["method", "measure", "value", "low", "high"]
    with pytest.raises(ValueError, match="method"):
        protocol.protocol_table(methods(), "our")
    with pytest.raises(ValueError, match="at least resamples=80"):
        protocol.protocol_table(methods(), "ours", resamples=60)
    with pytest.raises(ValueError, match="no methods"):
        protocol.protocol_table({})


def test_the_table_is_shown_as_text():
    table = protocol.protocol_table(methods(), "ours", ("h_joint", "ece"), resamples=500)
    shown = protocol.displayed(table)
    assert list(shown.index) == list(methods()) and list(shown) == ["h_joint", "ece"]
    first = table.iloc[0]
    assert shown.iloc[0, 0] == f"{first.value:.1f} [{first.low:.1f}, {first.high:.1f}]"
    gaps = protocol.displayed(table, differences=True)
    assert list(gaps.index) == list(methods())[1:]
    row = table[(table["method"] == "fixed") & (table["measure"] == "h_joint")].iloc[0]
    assert gaps.loc["fixed", "h_joint"].startswith(f"{row.difference:+.1f} [")
    assert gaps.loc["fixed", "h_joint"].endswith(f"p {row.p_holm:.3f}")
    with pytest.raises(ValueError, match="with a reference"):
        protocol.displayed(table.drop(columns="difference"), differences=True)


def test_curves_for_a_figure_lie_on_the_curve():
    runs = {"biased": {d: [r._replace(bias=0.3) for r in o] for d, o in runs_of(1).items()}}
    table = protocol.curve_table(runs, points=50)
    full = protocol.mean_curve(runs["biased"])
    known = pd.DataFrame(full._asdict())
    drawn = table[~table["own"]]
    assert len(drawn) <= 51 and drawn["bias"].isin(known["bias"]).all()
    own = table[table["own"]].iloc[0]
    assert own["bias"] == 0.3
    below = known[known["bias"] <= 0.3].iloc[-1], known[known["bias"] > 0.3].iloc[0]
    assert below[1]["ip"] * 100 <= own["ip"] + 1e-9 <= below[0]["ip"] * 100 + 2e-9
    ends = drawn.iloc[[0, -1]]
    np.testing.assert_allclose(ends[["ip", "oop"]], 100 * known[["ip", "oop"]].iloc[[0, -1]])
