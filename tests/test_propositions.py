"""What is measured of both propositions, against formulas and distributions that are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lbutils import load_benchmark, load_encoder
from lbutils.data.benchmark import Split
from lbutils.measure import propositions
from lbutils.rivals import RIVALS


def test_sample_terms_are_those_of_the_formula():
    n, m, d = 400, 25, 0.05
    expected = (
        1.5 * math.sqrt(math.log(4 / d) / (2 * n))
        + 1.5 * math.sqrt(math.log(4 / d) / (2 * m))
        + 0.5 * math.sqrt(math.log(4 / d) / 2 * (1 / n + 1 / m))
    )
    assert propositions.sample_terms(n, m) == pytest.approx(expected)


def test_the_distance_is_none_between_alike_and_whole_between_apart():
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(n, 4, generator=draw) for n in (300, 90))
    assert propositions.half_a_distance(one, other) < 0.2
    assert propositions.half_a_distance(one, other + 20) == 1


class Method:
    """What was trained on IP names gives each image the logits that its names' lengths say."""

    def __init__(self, names=None):
        self.own = names

    def fit(self, split):
        self.names_ = split.names
        return self

    def joint_logits(self, features, others):
        names = (*others, *self.names_)
        return features @ torch.tensor([[float(len(name)), 1.0] for name in names]).T


def test_columns_are_turned_so_that_ip_names_stand_first(monkeypatch):
    names = ("a", "bb"), ("ccc", "dddd")
    of_tests = zip(names, ([0, 1], [1, 0]), strict=True)
    tests = [Split(("", ""), np.array(y), own, (None, None), None) for own, y in of_tests]
    ip, oop = (SimpleNamespace(names=test.names, test=test) for test in tests)
    for subset in (ip, oop):
        subset.few_shot = lambda shots, draw, names=subset.names: SimpleNamespace(names=names)
    features = torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    monkeypatch.setattr(propositions, "image_features", lambda encoder, split: features)
    domain = SimpleNamespace(name="d", hint="h", ip=ip, oop=oop)
    bench = {"d": domain}
    learned = propositions.learned_names(None, bench, lambda e, **o: Method())
    found = propositions.uninformative_names(
        None, bench, {"m": lambda e, **o: Method()}, learned, progress=False
    ).set_index("names")
    assert list(found.index) == ["as they are", "permuted", "random", "learned"]
    # Images with a negative feature go to the shortest name, "a"; with a positive to "dddd".
    for kind in ("as they are", "learned"):
        assert found.loc[kind, ["ip_joint", "oop_joint"]].tolist() == [50, 50]
        assert found.loc[kind, "told_apart"] == 100
    # "dddd" stands in the place of "ccc", so that it is the other image that is right.
    assert found.loc["permuted", "oop_joint"] == 50 and found.loc["permuted", "ip_joint"] == 50


@pytest.fixture(scope="module")
def insects():
    return load_encoder("mini", device="cpu"), load_benchmark("mini", domains="Insects")


def test_an_adapter_trained_on_ip_cannot_use_names_that_say_nothing(insects):
    encoder, benchmark = insects
    methods = {name: RIVALS[name] for name in ("zero-shot", "CLIP-Adapter")}
    learned = propositions.learned_names(encoder, benchmark, RIVALS["zero-shot"])
    found = propositions.uninformative_names(
        encoder, benchmark, methods, learned, progress=False
    ).set_index(["method", "names"])
    assert len(found) == 2 * 3 + 1
    chance = 100 / len(benchmark["Insects"].oop.names)
    for method in methods:
        assert found.loc[(method, "random"), "oop_separate"] < 2.5 * chance
        ip = found.loc[method]["ip_separate"]
        assert ip.nunique() == 1 and ip.iloc[0] > 2 * chance
    # A learner that does not learn gives what the names give as they are.
    as_they_are = found.loc[("zero-shot", "as they are"), "oop_separate"]
    assert found.loc[("names", "learned"), "oop_separate"] == pytest.approx(as_they_are)


def test_terms_add_up_and_stand_beside_the_risk(insects):
    encoder, benchmark = insects
    learned = propositions.learned_names(encoder, benchmark, RIVALS["prototypes"])
    found = propositions.bound_terms(encoder, benchmark, learned, progress=False)
    (row,) = found.to_dict("records")
    parts = [row[key] for key in ("risk_ip", "risk_oop", "gap", "samples")]
    assert row["sum"] == pytest.approx(sum(parts)) and all(part >= 0 for part in parts)
    assert 0 <= row["risk_ip"] < 0.5 and 0 < row["risk"] < 1 and row["gap"] <= 1
