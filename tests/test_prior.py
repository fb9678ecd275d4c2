"""Names from a prior, from few images, from unlabelled ones: one learner, and many at a time."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import load_script

from lbutils.data.benchmark import data_dir
from lbutils.learn import namelearner
from lbutils.learn.namelearner import NameLearner, fit_many
from lbutils.measure.lots import results
from lbutils.rivals import Prototypes

QUICK = {"templates": "a {name}", "steps": 4}


class Told:
    """Knowledge whose prototypes are given, of the names that have one."""

    sources = ("told",)

    def __init__(self, encoder, rows):
        self.encoder, self.rows = encoder, rows

    def lacking(self, names):
        return [name for name in names if name not in self.rows]

    def prototypes(self, names):
        return torch.stack([self.rows[name] for name in names])


@pytest.fixture
def told(tiny_encoder, captioned_images):
    rows = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(7)), dim=1)
    return Told(tiny_encoder, dict(zip(captioned_images.names, rows, strict=True)))


def anchors(monkeypatch, learner, *given):
    """What a learner draws its names to."""
    seen = []
    own = NameLearner._known
    monkeypatch.setattr(
        NameLearner, "_known", lambda self, *args: seen.append(own(self, *args)) or seen[-1]
    )
    learner.fit(*given)
    return seen[-1].anchors


SETTINGS = [
    (NameLearner, {}),
    (NameLearner, {"negatives": ["ant", "bee"], "margin": 0.3}),
    (NameLearner, {"optimizer": "sgd", "lr": 0.1, "average": 0.5, "batch_size": 4}),
    (NameLearner, {"lr": 0.003, "steps": 6, "templates": ["a {name}", "the {name} here"]}),
    (NameLearner.fsnl, {}),
    (NameLearner.fsnl, {"batch_size": 7, "info_nce": True, "swap": False}),
]


def test_a_batch_is_every_single_fit(monkeypatch, tiny_encoder, captioned_images, image_views):
    """Learners with rates, steps, batches and streams of their own, of splits of several sizes."""
    fewer = captioned_images.take(np.arange(9))
    fewer = dataclasses.replace(fewer, names=captioned_images.names[:4])
    jobs = [
        (make, {"steps": 5, "seed": seed, **options}, split)
        for seed, split in enumerate([captioned_images, fewer, captioned_images])
        for make, options in SETTINGS
    ]
    passes = []
    own = namelearner.features_together
    monkeypatch.setattr(
        namelearner,
        "features_together",
        lambda tables, pairs: passes.append(len(tables)) or own(tables, pairs),
    )
    made = [[make(tiny_encoder, **options) for make, options, _ in jobs] for _ in range(2)]
    splits = [split for *_, split in jobs]
    features = [image_views[:, : len(split)] for split in splits]
    assert fit_many(made[0], splits, features) == made[0]
    assert max(passes) > 3, "learners that descend alike go through the tower together"
    for one, other, split, views in zip(*made, splits, features, strict=True):
        other.fit(split, views)
        assert one.history_ == pytest.approx(other.history_, abs=1e-5)
        assert torch.allclose(one.classifier_, other.classifier_, atol=1e-5)
        assert torch.allclose(one.embeddings_.rows, other.embeddings_.rows, atol=1e-5)
        assert list(one.names_) == list(split.names)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_either_text_forward_takes_batches(kind, make_encoder, captioned_images, image_views):
    encoder = make_encoder(kind)
    both = [NameLearner(encoder, seed=seed, **QUICK) for seed in (0, 1)]
    fit_many(both, [captioned_images] * 2, [image_views] * 2)
    alone = NameLearner(encoder, seed=1, **QUICK).fit(captioned_images, image_views)
    assert torch.allclose(both[1].classifier_, alone.classifier_, atol=1e-5)
    assert not torch.allclose(both[0].classifier_, alone.classifier_, atol=1e-4)


def test_few_names_at_a_time_are_the_same(tiny_encoder, captioned_images, image_views):
    given = [captioned_images] * 3, [image_views] * 3
    wide, narrow = (
        fit_many([NameLearner(tiny_encoder, seed=s, **QUICK) for s in range(3)], *given, most=most)
        for most in (100, 1)
    )
    for one, other in zip(wide, narrow, strict=True):
        assert torch.allclose(one.classifier_, other.classifier_, atol=1e-5)


def test_batches_are_checked(tiny_encoder, make_encoder, captioned_images, image_views):
    assert fit_many([], []) == []
    two = [NameLearner(tiny_encoder), NameLearner(make_encoder())]
    with pytest.raises(ValueError, match="share their encoder"):
        fit_many(two, [captioned_images] * 2, [image_views] * 2)
    learners = [NameLearner(tiny_encoder, **QUICK) for _ in range(2)]
    with pytest.raises(ValueError, match="shorter"):
        fit_many(learners, [captioned_images], [image_views])
    with pytest.raises(ValueError, match="stands twice"):
        fit_many([learners[0]] * 2, [captioned_images] * 2, [image_views] * 2)
    with pytest.raises(RuntimeError, match="of 4.*lower lr"):
        learners = [NameLearner(tiny_encoder, optimizer="sgd", lr=1e38, **QUICK) for _ in range(2)]
        fit_many(learners, [captioned_images] * 2, [image_views] * 2)


def test_a_prior_counts_as_images(monkeypatch, tiny_encoder, captioned_images, image_views, told):
    """Anchors by plain loops: sums of the images' mean and the moved prototype."""
    learner = NameLearner(tiny_encoder, told, prior_weight=1.5, **QUICK)
    found = anchors(monkeypatch, learner, captioned_images, image_views)
    mean_of = [image_views.mean(0)[captioned_images.labels == c].mean(0) for c in range(5)]
    means = torch.stack([mean / mean.norm() for mean in mean_of])
    rows = told.prototypes(captioned_images.names)
    for c in range(5):
        moved = rows[c] + means.mean(0) - rows.mean(0)
        expected = 3 * means[c] + 1.5 * moved / moved.norm()
        assert torch.allclose(found[c], expected / expected.norm(), atol=1e-6)


def test_prototypes_take_the_same_prior(
    monkeypatch, tiny_encoder, captioned_images, image_views, told
):
    learner = NameLearner(tiny_encoder, told, prior_weight=0.7, **QUICK)
    expected = anchors(monkeypatch, learner, captioned_images, image_views)
    rival = Prototypes(tiny_encoder, prior=told, prior_weight=0.7)
    rival.fit(captioned_images, image_views)
    assert torch.allclose(rival.classifier_, expected, atol=1e-6)
    del told.rows["okapi"]
    with pytest.raises(ValueError, match="'okapi'"):
        rival.fit(captioned_images, image_views)


def test_a_weightless_prior_is_no_prior(tiny_encoder, captioned_images, image_views, told):
    plain = NameLearner(tiny_encoder, **QUICK).fit(captioned_images, image_views)
    none = NameLearner(tiny_encoder, told, prior_weight=0.0, **QUICK)
    none.fit(captioned_images, image_views)
    assert torch.allclose(plain.classifier_, none.classifier_, atol=1e-6)


def test_without_images_the_prior_alone_is_learned_and_said(tiny_encoder, captioned_images, told):
    learner = NameLearner(
        tiny_encoder, told, negatives=["ant"], **QUICK | {"steps": 60, "lr": 0.05}
    )
    with pytest.warns(UserWarning, match=r"no image of 5 names.*prior alone \(told\)") as seen:
        learner.fit(captioned_images.names)
    assert seen[0].filename == __file__
    rows = told.prototypes(captioned_images.names)
    start = NameLearner(tiny_encoder, told, **QUICK | {"steps": 1, "lr": 0.0})
    with pytest.warns(UserWarning, match="prior alone"):
        start.fit(captioned_images.take([]))
    own = [(one.classifier_ * rows).sum(1) for one in (learner, start)]
    assert (own[0] > own[1] + 0.1).all()
    captioned = NameLearner(tiny_encoder, told, caption_weight=1.0, **QUICK)
    with pytest.warns(UserWarning, match="prior alone"):
        captioned.fit(captioned_images.names)  # has no caption to read
    with pytest.raises(ValueError, match="no image to learn from"):
        NameLearner(tiny_encoder, **QUICK).fit(captioned_images.names)
    with pytest.raises(ValueError, match="anchor_weight above 0"):
        NameLearner(tiny_encoder, told, anchor_weight=0.0, **QUICK).fit(captioned_images.names)


def test_a_pass_over_no_image_is_a_step(tiny_encoder, captioned_images, told):
    options = {"lr": 0.05, "average": 0.0, "templates": "a {name}"}
    found = [
        NameLearner(tiny_encoder, told, **options, **number)
        for number in ({"epochs": 9}, {"steps": 9})
    ]
    for learner in found:
        with pytest.warns(UserWarning, match="prior alone"):
            learner.fit(captioned_images.names)
    assert len(found[0].history_) == 9 and found[0].history_[-1] < found[0].history_[0]
    assert torch.allclose(found[0].classifier_, found[1].classifier_, atol=1e-6)


def test_one_name_without_images_is_learned_beside_the_others(
    monkeypatch, tiny_encoder, captioned_images, image_views, told
):
    keep = captioned_images.labels > 0
    split = captioned_images.take(np.flatnonzero(keep))
    learner = NameLearner(tiny_encoder, told, **QUICK)
    found = anchors(monkeypatch, learner, split, image_views[:, torch.from_numpy(keep)])
    means = torch.stack(
        [image_views.mean(0)[captioned_images.labels == c].mean(0) for c in (1, 2, 3, 4)]
    )
    means = F.normalize(means, dim=1)
    rows = told.prototypes(captioned_images.names)
    expected = F.normalize(rows[0] + means.mean(0) - rows[1:].mean(0), dim=0)
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_names_without_knowledge_are_named_or_left_to_their_images(
    monkeypatch, tiny_encoder, captioned_images, image_views, told
):
    del told.rows["okapi"]
    with pytest.raises(ValueError, match="nothing of 1 of 5 names, such as 'okapi'"):
        NameLearner(tiny_encoder, told, **QUICK).fit(captioned_images, image_views)
    learner = NameLearner(tiny_encoder, told, without_knowledge="images", **QUICK)
    found = anchors(monkeypatch, learner, captioned_images, image_views)
    mean = image_views.mean(0)[captioned_images.labels == 3].mean(0)
    assert torch.allclose(found[3], mean / mean.norm(), atol=1e-6)
    told.rows.clear()
    plain = NameLearner(tiny_encoder, **QUICK).fit(captioned_images, image_views)
    learner.fit(captioned_images, image_views)
    assert torch.allclose(learner.classifier_, plain.classifier_, atol=1e-6)
    with pytest.raises(ValueError, match="Did you mean 'images'"):
        NameLearner(tiny_encoder, told, without_knowledge="image")


def test_knowledge_of_another_encoder_is_refused(
    tiny_encoder, make_encoder, captioned_images, image_views, told
):
    told.encoder = make_encoder()
    told.encoder.model.ln_final.weight.data += 0.1
    with pytest.raises(ValueError, match="another encoder"):
        NameLearner(tiny_encoder, told, **QUICK).fit(captioned_images, image_views)


def test_unlabelled_images_move_the_anchors_to_their_classes(
    monkeypatch, tiny_encoder, captioned_images, image_views, told
):
    generator = torch.Generator().manual_seed(3)
    hidden = F.normalize(torch.randn(5, 32, generator=generator), dim=1)
    classes = torch.arange(5).repeat_interleave(20)

    def images(noise):
        return F.normalize(
            hidden[classes] + noise * torch.randn(100, 32, generator=generator), dim=1
        )

    few = images(0.25)[None, ::20]
    split = dataclasses.replace(captioned_images, labels=np.arange(5), captions=(None,) * 5)
    learner = NameLearner(tiny_encoder, **QUICK)
    found = anchors(monkeypatch, learner, split, few, images(0.15))
    before, after = ((rows * hidden).sum(1).mean() for rows in (few[0], found))
    assert after > before + 0.1
    assert (learner.mixture_.weights.argmax(1) == classes).float().mean() > 0.95
    assert not hasattr(learner.fit(split, few), "mixture_")
    # With the prior alone, and unlabelled images, nothing is warned of.
    told.rows = dict(zip(captioned_images.names, few[0], strict=True))
    alone = NameLearner(tiny_encoder, told, **QUICK)
    found = anchors(monkeypatch, alone, split.names, None, images(0.15))
    assert (found * hidden).sum(1).mean() > before + 0.1
    with pytest.raises(ValueError, match="'red panda' has no labelled image and no prior"):
        NameLearner(tiny_encoder, **QUICK).fit(
            dataclasses.replace(split, labels=np.ones(5, int)), few, images(0.1)
        )
    with pytest.raises(ValueError, match="unlabelled images must be of unit length"):
        learner.fit(split, few, 2 * images(0.1))


def test_real_knowledge_says_what_it_lacks():
    from lbutils.learn.knowledge import Knowledge, Lexicon

    told = {"descriptions": {"bee": ("striped",), "cow": ()}}
    lexicon = Lexicon({"ant": np.ones(2), "bee": np.ones(2)}, told, {})
    known = Knowledge.__new__(Knowledge)
    known.lexicon = lexicon
    for sources, expected in (
        (("pieces",), []),
        (("language",), ["cow"]),
        (("descriptions", "hints"), ["ant", "cow"]),
    ):
        known.sources = sources
        assert known.lacking(["ant", "bee", "cow"]) == expected


@pytest.fixture(scope="module")
def choosing():
    return load_script("choose_prior")


def test_the_choice_of_a_prior_takes_no_control_and_the_least_weight(choosing):
    kinds = {
        ("language", 0.5): 50.0,
        ("language", 1.0): 50.4,
        ("language, glosses", 0.5): 50.3,
        ("language, glosses", 2.0): 45.0,
        ("language, drawings described", 1.0): 60.0,
        ("language, glosses, shuffled", 1.0): 61.0,
        ("language, blind", 1.0): 62.0,
        ("none", 0.0): 70.0,
    }
    rows = [
        {"rotation": rotation, "method": "prototypes", "knowledge": kind, "weight": weight}
        | {"shots": shots, "concept": f"{rotation}{n}", "oop": score + n - 1}
        for (kind, weight), score in kinds.items()
        for rotation in ("lots-0", "lots-1")
        for shots in (1, 2, 4)
        for n in range(3)
    ]
    # What is known alone, without an image, has no weight to choose.
    rows.append({**rows[0], "shots": 0, "weight": np.nan, "oop": 99.0})
    table = pd.DataFrame(rows)
    assert choosing.chosen(table, "prototypes") == ("language", 0.5)
    more = table.assign(oop=10 * table["oop"])
    assert choosing.chosen(more, "prototypes") == ("language", 1.0)


def test_knowledge_alone_stands_beside_language_and_its_control(choosing):
    scores = {"language": 10, "language, glosses": 14, "language, glosses, shuffled": 8}
    scores |= {"language, drawings described": 30, "language, blind": 21}
    rows = [
        {"rotation": "lots-0", "method": method, "knowledge": kind, "weight": np.nan}
        | {"shots": shots, "concept": f"c{n}", "oop": score + n + shots}
        for kind, score in scores.items()
        for n in range(4)
        for method, shots in (("prototypes", 0), ("prototypes", 1), ("names", 0))
    ]
    found = choosing.alone(pd.DataFrame(rows)).set_index("knowledge")
    assert found["oop"].to_dict() == {k: scores[k] + 1.5 for k in choosing.ALL}
    assert found.loc["language, glosses"].tolist()[1:] == [
        "+4.0 [+4.0, +4.0]",
        "+6.0 [+6.0, +6.0]",
    ]
    assert found.loc["language, blind"].tolist()[1:] == ["+11.0 [+11.0, +11.0]", ""]


def test_names_stand_beside_prototypes_of_the_same_draws(choosing):
    scores = {
        "prototypes": {0.0: 20, 0.5: 60, 1.0: 50},  # chooses the weight of the next
        choosing.SAME: {0.0: 40, 0.5: 44, 1.0: 90},
        "names": {0.0: 41, 0.5: 43, 1.0: 50},
        choosing.ALONE: {0.0: 38, 0.5: 45, 1.0: 44},
    }
    rows = [
        {"rotation": "lots-0", "method": method, "weight": weight, "shots": shots}
        | {"knowledge": "language" if weight else "none", "concept": f"c{n}"}
        | {"oop": score + n + shots * (method == "names")}
        for method, own in scores.items()
        for weight, score in own.items()
        for shots in (1, 2, 4)
        for n in range(3)
    ]
    found = choosing.ahead(pd.DataFrame(rows)).set_index(["method", "shots"])
    assert set(found["weights"]) == {"1.0, 0.5", "0.5, 0.5"}
    assert found.loc[("names", 2)].tolist()[1:] == [
        f"{d:+.1f} [{d:+.1f}, {d:+.1f}]" for d in (3, 8, 12)
    ]
    assert found.loc[(choosing.ALONE, 4)].tolist()[1:] == [
        f"{d:+.1f} [{d:+.1f}, {d:+.1f}]" for d in (-2, 1, 5)
    ]


def test_names_without_others_and_prototypes_are_run_on_the_draws_of_names(choosing, monkeypatch):
    made = []

    class Learner:
        def __init__(self, encoder, **options):
            made.append(options)

        def predict(self, images):
            return np.zeros(len(images), int)

    split = choosing.unmet("lots-0")[0].take([0])
    trial = choosing.Trial(1, split, torch.zeros(1, 1, 4), torch.zeros(3, 4), np.zeros(3, int))
    monkeypatch.setattr(choosing, "trials", lambda *args: [trial] * 30)
    monkeypatch.setattr(choosing, "NameLearner", Learner)
    monkeypatch.setattr(choosing, "fit_many", lambda *args: None)
    ran = []

    def of_means(encoder, own, prior, weight):
        ran.append((len(own), prior, weight))
        return []

    monkeypatch.setattr(choosing, "of_means", of_means)
    number = choosing.FEW * 3
    for method, beside in (("names", choosing.unmet("lots-0")[2]), (choosing.ALONE, None)):
        made.clear()
        found = list(choosing.of_names(None, "lots-0", "language", "prior", method))
        assert {row["method"] for row in found} == {method}
        assert len(made) == number * (1 + len(choosing.WEIGHTS))
        assert all(options["negatives"] == beside for options in made)
        assert sum("prior" in options for options in made) == number * len(choosing.WEIGHTS)
    assert not list(choosing.of_names(None, "lots-0", "language", "prior", choosing.SAME))
    weighed = [(number, "prior", weight) for weight in choosing.WEIGHTS]
    assert ran == [(number, None, 0.0), *weighed]


def places(encoder, split, *args):
    """Views (2, N, 1) that hold the place of each image."""
    return torch.arange(float(len(split)))[None, :, None].repeat(2, 1, 1)


def test_trials_of_a_prior_are_scored_on_what_no_draw_learned(choosing, tiny_encoder, monkeypatch):
    monkeypatch.setattr(choosing, "training_features", places)
    found = choosing.trials(tiny_encoder, "lots-1")
    assert len(found) == 3 * len(choosing.DRAWS)
    for one, two, four in zip(*[iter(found)] * 3, strict=True):
        assert [trial.shots for trial in (one, two, four)] == [1, 2, 4]
        learned = [set(trial.views[0, :, 0].tolist()) for trial in (one, two, four)]
        assert learned[0] < learned[1] < learned[2]
        for trial in (one, two, four):
            assert len(trial.split) == trial.shots * len(trial.split.names)
            assert not learned[2] & set(trial.images[:, 0].tolist())
            assert len(trial.labels) == len(trial.images)


def test_the_committed_table_tells_every_kind_of_knowledge(choosing):
    table = results("prior")
    own = table[(table["method"] == "prototypes") & table["weight"].notna()]
    sizes = own.groupby(["rotation", "knowledge", "weight"]).size()
    assert len(sizes) == 3 * (1 + 7 * len(choosing.WEIGHTS)) and set(sizes) == {15 * 3}
    assert table["oop"].between(0, 100).all() and table.notna().drop(columns="weight").all(
        axis=None
    )
    for method in ("names", choosing.ALONE, choosing.SAME):
        names = table[table["method"] == method]
        assert set(names["weight"]) == {0.0, *choosing.WEIGHTS}
        assert set(names.groupby(["rotation", "weight"]).size()) == {15 * 3}
        assert set(names["knowledge"]) == {"none", choosing.chosen(table, "prototypes")[0]}
    names = table[table["method"] == "names"]
    assert choosing.chosen(table, "names") == ("language", NameLearner.prior_weight)
    said = (data_dir().parent / "docs" / "findings.md").read_text(encoding="utf-8")
    (said,) = [own for own in said.split("\n\n") if "choose_prior.py --print" in own]
    said = said.replace("\n", " ")
    worth = {
        (row["method"], row["knowledge"], row["shots"]): row
        for method in ("prototypes", "names")
        for row in choosing.worth(table, method).to_dict("records")
    }
    figures = [worth["names", "language", shots]["less none"] for shots in (1, 2, 4)]
    figures.append(worth["prototypes", "language", 1]["less none"])
    for kind in choosing.CONTROLLED:
        own = worth["prototypes", kind, 1]
        figures += [own["less none"], own["less shuffled"]]
    bare = choosing.alone(table).set_index("knowledge").loc[choosing.BLIND]
    figures += [bare["less language"], bare["less shuffled"]]
    beside = choosing.ahead(table).set_index(["method", "shots"])["each with its own"]
    figures += [beside[method, k] for method in ("names", choosing.ALONE) for k in (1, 2, 4)]
    assert f"Without any drawing they name {bare['oop']} %" in said
    assert re.findall(r"[-+][\d.]+ \[[^]]*\]", said) == figures
    assert worth["names", "language", 1]["oop"] == 48.2
    assert names[(names["weight"] == 0) & (names["shots"] == 1)]["oop"].mean().round(1) == 42.4


def test_the_committed_table_says_what_a_name_is_worth(choosing):
    worth = load_script("worth")
    table = results("worth")
    assert set(table["rotation"]) == set(worth.ROTATIONS) and table["oop"].between(0, 100).all()
    piled, kind = "names, unlabelled", choosing.chosen(results("prior"), "names")[0]
    wanted = {(f"as it is, {arm}", "none", 0.0, 0) for arm in ("both", "image", "neither")}
    for method in ("names", piled, "prototypes"):
        weight = choosing.chosen(results("prior"), method.partition(",")[0])[1]
        wanted |= {(method, "none", 0.0, k) for k in worth.SHOTS}
        wanted |= {(method, kind, weight, k) for k in worth.SHOTS}
    wanted |= {(method, kind, NameLearner.prior_weight, 0) for method in ("names", piled)}
    sizes = table.groupby(["rotation", "method", "knowledge", "weight", "shots"]).size()
    assert {key[1:] for key in sizes.index} == wanted and set(sizes) == {15}
    assert len(sizes) == 3 * len(wanted)
    for rotation in worth.ROTATIONS:
        names = set(table.loc[table["rotation"] == rotation, "concept"])
        assert names == set(choosing.unmet(rotation)[0].names)


def test_worth_is_measured_on_test_drawings_with_a_pile_that_no_draw_learns_from(
    choosing, tiny_encoder, monkeypatch
):
    worth = load_script("worth")
    monkeypatch.setattr(worth, "training_features", places)
    monkeypatch.setattr(worth, "image_features", lambda encoder, split: places(0, split)[0])
    every = choosing.unmet("lots-2")[0]
    test = worth.tested(every.names)
    assert test.names == every.names and set(test.labels) == set(range(15))
    assert not set(test.ids) & set(every.ids)
    found = list(worth.trials(tiny_encoder, "lots-2", test))
    assert [(draw, trial.shots) for draw, trial, _ in found] == [
        (draw, k) for draw in range(10) for k in (0, 1, 2, 4, 8)
    ]
    for at in range(0, 50, 5):
        learned = [set(trial.views[0, :, 0].tolist()) for _, trial, _ in found[at : at + 5]]
        piles = [set(pile[:, 0].tolist()) for *_, pile in found[at : at + 5]]
        assert not learned[0] and learned[1] < learned[2] < learned[3] < learned[4]
        assert all(pile == piles[0] for pile in piles) and not piles[0] & learned[4]
        assert len(piles[0]) + len(learned[4]) == len(every)
