"""Concepts as the corpus grows, on planted answers and by brute force."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from lbutils import load_benchmark, load_encoder
from lbutils.captions.text import canonical
from lbutils.data.benchmark import data_dir
from lbutils.measure.scales import (
    ARMS,
    NEVER,
    LearnedAmong,
    admissions,
    class_accuracies,
    class_table,
    doses,
)
from lbutils.models.classifier import text_classifier
from lbutils.models.features import image_features
from lbutils.rivals import RIVALS

SCALES = ("small", "medium", "large")


@pytest.fixture(scope="module")
def benches():
    return {scale: load_benchmark("mini", scale=scale) for scale in SCALES}


@pytest.fixture(scope="module")
def admitted(benches):
    return admissions(benches)


def test_admissions_agree_with_the_screening(admitted):
    found = admitted.set_index(["domain", "name"])
    concepts = pd.read_csv(data_dir() / "mini" / "concepts.csv")
    screening = pd.read_csv(data_dir() / "mini" / "screening.csv")
    told = concepts.merge(screening).set_index(["domain", "name"]).loc[found.index]
    for scale in SCALES:
        assert (found[f"captions_{scale}"] == told[f"captions_{scale}"]).all()
        named = found["since"].isin(SCALES[: SCALES.index(scale) + 1])
        assert (named == (told[f"subset_{scale}"] == "ip")).all()
    assert (found["subset"] == told["subset_small"]).all()
    assert {*found["since"]} == {*SCALES, NEVER}


def test_admissions_are_in_the_order_of_joint_logits(benches):
    found = admissions({"small": benches["small"]})
    animals = benches["small"]["Animals"]
    own = found.loc[found["domain"] == "Animals", "name"]
    assert list(own) == [*animals.ip.names, *animals.oop.names]


def test_corpora_that_forget_are_refused(benches):
    with pytest.raises(ValueError, match="IP, then OOP again"):
        admissions(dict(reversed(benches.items())))
    with pytest.raises(ValueError, match="one scale"):
        admissions({})
    fewer = load_benchmark("mini", scale="small", domains=["Food"])
    with pytest.raises(ValueError, match="Animals has no class"):
        admissions({"small": benches["small"], "medium": fewer})


class Silent:
    """A benchmark whose pre-training captions are not at hand."""

    name = "laion_beyond"

    def __init__(self, bench):
        self.get, self.values = bench.get, bench.values


def test_without_captions_there_are_no_counts(benches):
    found = admissions({"small": Silent(benches["small"])})
    assert found["captions_small"].isna().all()


@given(st.integers(0, 10**6))
@settings(max_examples=examples(30))
def test_class_accuracies_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 8))
    n_ip = int(rng.integers(0, count + 1))
    groups = rng.choice(["a", "b", "c"], count)
    labels = rng.integers(count, size=25)
    logits = rng.normal(size=(25, count))
    found = class_accuracies(logits, labels, n_ip, groups)
    for k in range(count):
        rows = np.flatnonzero(labels == k)
        assert found.loc[k, "images"] == len(rows)
        for vocabulary, names in {
            "own": [j for j in range(count) if (j < n_ip) == (k < n_ip)],
            "group": [j for j in range(count) if groups[j] == groups[k]],
            "joint": list(range(count)),
        }.items():
            hits = [max(names, key=lambda j, i=i: logits[i, j]) == k for i in rows]
            expected = 100 * np.mean(hits) if hits else np.nan
            assert found.loc[k, vocabulary] == pytest.approx(expected, nan_ok=True)


def test_class_accuracies_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"must be \((N|M), C\)"):
        class_accuracies(np.zeros((3, 2)), [0, 1, 0], 1, ["a"])
    with pytest.raises(ValueError, match=r"must be \((N|M), C\)"):
        class_accuracies(np.zeros((3, 2)), [0, 1], 1, ["a", "b"])


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_beyond_the_vocabulary_are_refused(label):
    with pytest.raises(ValueError, match="labels must lie in 0..1"):
        class_accuracies(np.zeros((1, 2)), [label], 1, ["a", "b"])


class Planted:
    """A method whose logits are given: right for every image but those of one class."""

    def __init__(self, wrong, right=1.0):
        self.wrong, self.right = wrong, right

    def fit(self, split, features=None):
        self.fitted = len(split)
        return self

    def joint_logits(self, images, ip_names):
        logits = torch.zeros(len(images), self.count(ip_names))
        labels = self.labels
        logits[torch.arange(len(images)), labels] = self.right
        logits[labels == self.wrong] = 0.0
        return logits

    def count(self, ip_names):
        return len(ip_names) + self.classes


def test_a_table_of_classes_has_every_draw_and_class(benches, admitted):
    encoder = load_encoder("mini")
    world = {name: benches["small"][name] for name in ("Insects", "Creatures")}
    made = []

    def planted(encoder, ip_names, shots, seed, **task):
        method = Planted(wrong=len(ip_names))
        domain = world["Insects"] if ip_names == world["Insects"].ip.names else world["Creatures"]
        tests = [domain.ip.test.labels, domain.oop.test.labels + len(ip_names)]
        method.labels, method.classes = np.concatenate(tests), len(domain.oop.names)
        made.append((domain.name, shots, seed))
        return method

    found = class_table(
        encoder, world, {"planted": planted}, admitted, shots=2, draws=[0, 3], progress=False
    )
    assert made == [(name, 2, draw) for name in world for draw in (0, 3)]
    for name, domain in world.items():
        own = found[(found["domain"] == name) & (found["draw"] == 3)]
        assert list(own["name"]) == [*domain.ip.names, *domain.oop.names]
        first = own["name"] == domain.oop.names[0]
        assert (own.loc[~first, "joint"] == 100).all() and (own.loc[first, "joint"] == 0).all()
        assert own["images"].sum() == len(domain.ip.test) + len(domain.oop.test)
        assert (own["method"] == "planted").all() and set(own["since"]) <= {*SCALES, NEVER}


def test_zero_shot_in_the_table_is_that_of_the_encoder(benches, admitted):
    encoder = load_encoder("mini", "medium")
    insects = benches["small"]["Insects"]
    methods = {"zero-shot": RIVALS["zero-shot"]}
    found = class_table(encoder, {"Insects": insects}, methods, admitted, progress=False)
    for subset in (insects.ip, insects.oop):
        texts = text_classifier(encoder, subset.names, "mini", insects.hint)
        taken = (image_features(encoder, subset.test) @ texts.T).argmax(dim=1).numpy()
        own = found[found["subset"] == subset.kind]
        for k, value in enumerate(own["own"]):
            assert value == pytest.approx(100 * np.mean(taken[subset.test.labels == k] == k))


def test_nothing_to_measure_is_said(admitted):
    with pytest.raises(ValueError, match="nothing to measure"):
        class_table(load_encoder("mini"), {}, {}, admitted)


class Fixed:
    def __init__(self, logits):
        self.logits = torch.as_tensor(logits)

    def fit(self, split, features=None):
        self.seen = split, features
        return self

    def joint_logits(self, images, ip_names):
        return self.logits


def test_some_names_learned_among_others():
    plain, learned = Fixed(np.zeros((4, 5))), Fixed(np.ones((4, 5)))
    split = type("Split", (), {"names": ("a", "b", "c")})()
    both = LearnedAmong(learned, plain, {"c", "a"}).fit(split, "features")
    assert plain.seen == learned.seen == (split, "features")
    logits = both.joint_logits(None, ["x", "y"])
    assert logits[0].tolist() == [0, 0, 1, 0, 1]
    assert not plain.logits.any()  # what the others gave is left alone


def test_the_committed_doses_are_those_of_the_lots(dose, benches):
    pairs, table = dose.dosed()
    found = doses()
    told = pd.read_csv(data_dir() / "mini" / "concepts.csv").merge(table)
    pd.testing.assert_frame_equal(
        found.sort_values(["domain", "name"], ignore_index=True),
        told[found.columns].sort_values(["domain", "name"], ignore_index=True),
    )
    every = pd.read_parquet(data_dir() / "mini" / "pairs.parquet")
    assert (pairs["scale"] == "small").sum() == (every["scale"] == "small").sum()
    assert (pairs["scale"] != "small").sum() == found["drawings"].sum()
    # Counted in another way: by plain string search in each caption.
    captions = [f" {canonical(c)} " for own in pairs["captions"] for c in own]
    for row in found.sample(12, random_state=0).itertuples():
        assert row.captions == sum(f" {canonical(row.name)} " in c for c in captions)


def test_lots_are_even_and_gave_what_they_say(admitted):
    found = doses()
    later = admitted.query("since in ['medium', 'large']")
    assert set(zip(found["domain"], found["name"], strict=True)) == set(
        zip(later["domain"], later["name"], strict=True)
    )
    for _, own in found.groupby("domain"):
        assert own["arm"].value_counts().reindex(ARMS, fill_value=0).agg(np.ptp) <= 1
    numbers = found[found["arm"] != "all"]
    assert (numbers["drawings"] == numbers["arm"].astype(int)).all()
    assert (found.loc[found["arm"] == "0", "captions"] == 0).all()
    assert (found.loc[found["arm"] != "0", "captions"] > 0).all()
    assert (found.loc[found["arm"] == "all", "drawings"] >= 4).all()


def test_a_pair_of_two_concepts_is_refused(dose):
    pairs = pd.DataFrame({"label": ["a fox", "fox and owl"], "captions": [["fox"], ["owls"]]})
    assert dose.named_pairs(pairs.iloc[:1], ["owl", "fox"]).tolist() == [1]
    with pytest.raises(ValueError, match="'fox and owl' names two"):
        dose.named_pairs(pairs, ["owl", "fox"])
