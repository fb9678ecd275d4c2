from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import load_script
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid

from lbutils import load_benchmark
from lbutils.data.lots import lots
from lbutils.learn.namelearner import Alignment, NameLearner
from lbutils.models.classifier import text_classifier
from lbutils.rivals.probes import (
    CONTROLS,
    GDA,
    Control,
    LinearProbe,
    Prototypes,
    SiM,
    ZeroShot,
    control_names,
    renamed,
)
from lbutils.rivals.table import RIVALS

SELECTIONS = Path(__file__).parents[1] / "data" / "mini"

GENERIC = ("zebra", "tulip", "red brick house", "soup", "violin", "winter coat")


def make(name, encoder):
    """A rival of the table, with few steps where there are many."""
    model = RIVALS[name](encoder, "mini", "animal", 3, 0, GENERIC)
    model.steps = min(getattr(model, "steps", 3), 3)
    return model


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_has_the_same_interface(name, tiny_encoder, captioned_images, image_views):
    model = make(name, tiny_encoder)
    images = image_views[0]
    for ask in (model.logits, lambda x: model.joint_logits(x, GENERIC)):
        with pytest.raises(NotFittedError, match="call fit"):
            ask(images)
    assert model.fit(captioned_images, image_views) is model
    logits = model.logits(images)
    assert logits.shape == (15, 5) and logits.dtype == torch.float32
    assert not logits.requires_grad and logits.isfinite().all()
    assert np.array_equal(model.predict(images), logits.argmax(1).numpy())
    assert tuple(model.names_) == captioned_images.names
    assert model.classifier_for(GENERIC).shape == (6, 32)
    joint = model.joint_logits(images, GENERIC)
    assert joint.shape == (15, 11) and joint.isfinite().all()
    assert torch.allclose(joint[:, :6], model.other_logits(images, GENERIC), atol=1e-4)
    with pytest.raises(ValueError, match="learned and stands among the other names"):
        model.joint_logits(images, [*GENERIC, captioned_images.names[1]])


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_are_deterministic_and_leave_the_encoder_alone(
    name, tiny_encoder, captioned_images, image_views
):
    weights = {key: value.clone() for key, value in tiny_encoder.model.state_dict().items()}
    fits = [
        make(name, tiny_encoder).fit(captioned_images, image_views).logits(image_views[0])
        for _ in range(2)
    ]
    assert torch.equal(*fits)
    after = tiny_encoder.model.state_dict()
    assert all(torch.equal(weights[key], after[key]) for key in weights)


@pytest.mark.parametrize("name", [name for name in RIVALS if not name.startswith("zero-shot")])
def test_rivals_refuse_features_that_are_not_numbers(
    name, tiny_encoder, captioned_images, image_views
):
    broken = image_views.clone()
    broken[0, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        make(name, tiny_encoder).fit(captioned_images, broken)


CONTRASTING = [
    *("CoOp", "CoCoOp", "KgCoOp", "CLIP-Adapter", "TaskRes", "Tip-Adapter-F", "linear probe"),
    *("linear probe, C searched", "LP++", "CLAP", "ProLIP"),
]


@pytest.mark.parametrize("name", CONTRASTING)
def test_one_class_is_refused_where_it_teaches_nothing(
    name, tiny_encoder, captioned_images, image_views
):
    one = dataclasses.replace(
        captioned_images, labels=captioned_images.labels * 0, names=("okapi",)
    )
    with pytest.raises(ValueError, match="at least two"):
        make(name, tiny_encoder).fit(one, image_views)


@pytest.mark.parametrize("name", RIVALS)
def test_a_row_says_where_it_comes_from_and_makes_the_authors_setting(name, tiny_encoder):
    row = RIVALS[name]
    assert row.source
    made = row.as_published()(tiny_encoder, "mini", "animal", 3, 7, GENERIC)
    method = made.method if row.control else made
    assert type(method) is row.method and (method.templates, method.hint) == ("mini", "animal")
    assert getattr(method, "seed", 7) == 7
    for option, value in row.authors.items():
        assert getattr(method, option) == (value(3, GENERIC) if callable(value) else value)


def test_zero_shot_is_the_text_classifier(tiny_encoder, captioned_images):
    model = ZeroShot(tiny_encoder, "paper").fit(captioned_images)
    expected = text_classifier(tiny_encoder, captioned_images.names, "paper")
    assert torch.equal(model.classifier_, expected)


def test_linear_probe_equals_scikit_learn(tiny_encoder, captioned_images, image_views):
    probe = LinearProbe(tiny_encoder, C=2.0).fit(captioned_images, image_views)
    plain = LogisticRegression(C=2.0, max_iter=300)
    plain.fit(image_views.flatten(0, 1).numpy(), np.tile(captioned_images.labels, 2))
    expected = plain.decision_function(image_views[0].numpy())
    assert np.allclose(probe.logits(image_views[0]).numpy(), expected, atol=1e-5)


def test_a_searched_probe_finds_the_best_of_validation(tiny_encoder, captioned_images, image_views):
    held = image_views[1], captioned_images.labels
    probe = LinearProbe(tiny_encoder, "search", validation=held)
    probe.fit(captioned_images, image_views[:1])

    def right(C):
        plain = LogisticRegression(C=C, max_iter=300)
        plain.fit(image_views[0].numpy(), captioned_images.labels)
        return (plain.predict(held[0].numpy()) == held[1]).mean()

    assert right(probe.C_) >= max(right(10.0**power) for power in (-6, -4, -2, 0, 2, 4, 6))
    assert 1e-8 <= probe.C_ <= 1e8


def test_a_search_without_validation_folds_the_training_images(
    tiny_encoder, captioned_images, image_views
):
    generator = torch.Generator().manual_seed(4)
    noisy = F.normalize(image_views + 0.4 * torch.randn(2, 15, 32, generator=generator), dim=-1)
    probe = LinearProbe(tiny_encoder, "search").fit(captioned_images, noisy)
    plain = LinearProbe(tiny_encoder, probe.C_).fit(captioned_images, noisy)
    assert torch.equal(probe.logits(noisy[0]), plain.logits(noisy[0]))
    # One shot leaves nothing to hold out.
    one = captioned_images.take(np.arange(0, 15, 3))
    assert LinearProbe(tiny_encoder, "search").fit(one, noisy[:, ::3]).C_ == 1.0


def test_a_probe_stands_beside_names_as_cosines_or_decisions(
    tiny_encoder, captioned_images, image_views
):
    images = image_views[0]
    for classes in (5, 2):
        kept = np.flatnonzero(captioned_images.labels < classes)
        names = captioned_images.names[:classes]
        split = dataclasses.replace(captioned_images.take(kept), names=names)
        probe = LinearProbe(tiny_encoder).fit(split, image_views[:, kept])
        rows = torch.from_numpy(probe.model_.coef_).float()
        rows = torch.cat([-rows, rows]) if classes == 2 else rows
        own = probe.joint_logits(images, GENERIC)[:, 6:]
        cosines = F.cosine_similarity(images[:, None], rows[None], dim=-1)
        assert torch.allclose(own, tiny_encoder.logit_scale * cosines, atol=1e-4)
        probe.beside = "decision"
        assert torch.equal(probe.joint_logits(images, GENERIC)[:, 6:], probe.logits(images))


def test_prototypes_equal_the_nearest_centroid(tiny_encoder, captioned_images, image_views):
    model = Prototypes(tiny_encoder).fit(captioned_images, image_views)
    samples = image_views.flatten(0, 1).numpy()
    plain = NearestCentroid().fit(samples, np.tile(captioned_images.labels, 2))
    centroids = F.normalize(torch.from_numpy(plain.centroids_).float(), dim=-1)
    assert torch.allclose(model.classifier_, centroids, atol=1e-6)


class Shrunk:
    """The authors' covariance as scikit-learn takes it: of each class, to be weighted by priors."""

    def __init__(self, classes, samples):
        self.classes, self.samples = classes, samples

    def fit(self, features):
        within = features - features.mean(0)
        scatter = within.T @ within
        spread = np.trace(scatter) / (self.samples - 1)
        shrunk = scatter + spread * np.eye(len(scatter))
        self.covariance_ = self.classes * shrunk / len(scatter)
        return self


def test_gda_equals_linear_discriminant_analysis(tiny_encoder, captioned_images, image_views):
    model = GDA(tiny_encoder, alpha=0.7, background=False).fit(captioned_images, image_views)
    samples, labels = image_views.flatten(0, 1).double(), np.tile(captioned_images.labels, 2)
    plain = LinearDiscriminantAnalysis("lsqr", covariance_estimator=Shrunk(5, 30))
    plain.fit(samples.numpy(), labels)
    images = image_views[0]
    texts = text_classifier(tiny_encoder, captioned_images.names)
    expected = tiny_encoder.logit_scale * images @ texts.T
    expected = expected + 0.7 * torch.from_numpy(plain.decision_function(images.numpy())).float()
    assert torch.allclose(model.logits(images), expected, rtol=1e-3, atol=1e-3)
    zero = GDA(tiny_encoder, alpha=0.0).fit(captioned_images, image_views)
    assert torch.allclose(zero.logits(images), tiny_encoder.logit_scale * images @ texts.T)


def test_the_background_shifts_all_learned_columns_alike(
    tiny_encoder, captioned_images, image_views
):
    images = image_views[0]
    model = GDA(tiny_encoder, alpha=0.5).fit(captioned_images, image_views)
    with_it = model.logits(images)
    assert torch.equal(model.joint_logits(images, GENERIC)[:, 6:], with_it)
    model.background = False
    shift = model.logits(images) - with_it
    assert torch.allclose(shift, shift[:, :1].expand(-1, 5), atol=1e-3)
    # Of the class whose mean is the mean of means, by the definition of its discriminant.
    samples = image_views.flatten(0, 1).double()
    means = torch.stack(
        [samples[np.tile(captioned_images.labels, 2) == c].mean(0) for c in range(5)]
    )
    within = samples - means[np.tile(captioned_images.labels, 2)]
    scatter = within.T @ within
    precision = 32 * torch.linalg.inv(scatter + scatter.trace() / 29 * torch.eye(32).double())
    centre = means.mean(0)
    unknown = images.double() @ precision @ centre - centre @ precision @ centre / 2 - np.log(5)
    assert torch.allclose(shift[:, 0].double(), 0.5 * unknown, rtol=1e-3, atol=1e-3)


def test_gda_leaves_a_class_without_images_to_its_text(tiny_encoder, captioned_images, image_views):
    kept = np.flatnonzero(captioned_images.labels != 2)
    split = captioned_images.take(kept)
    model = GDA(tiny_encoder, alpha=1.0).fit(split, image_views[:, kept])
    plain = ZeroShot(tiny_encoder).fit(captioned_images)
    images = image_views[0]
    assert torch.allclose(model.logits(images)[:, 2], plain.logits(images)[:, 2], atol=1e-4)
    joint = model.joint_logits(images, GENERIC)[:, 6:]
    assert torch.allclose(joint[:, 2], plain.logits(images)[:, 2], atol=1e-4)


def test_gda_needs_spread_within_a_class(tiny_encoder, captioned_images, image_views):
    one = captioned_images.take(np.arange(0, 15, 3))
    with pytest.raises(ValueError, match="two shots, or views"):
        GDA(tiny_encoder).fit(one, image_views[:1, ::3])


def test_sim_equals_a_ridge_regression(tiny_encoder, captioned_images, image_views):
    model = SiM(tiny_encoder, GENERIC, ridge=0.3).fit(captioned_images, image_views)
    generic = text_classifier(tiny_encoder, GENERIC).numpy()
    similar = image_views.flatten(0, 1).numpy() @ generic.T
    wanted = np.eye(5)[np.tile(captioned_images.labels, 2)]
    plain = Ridge(alpha=0.3, fit_intercept=False).fit(similar, wanted)
    assert np.allclose(model.mapping_.numpy(), plain.coef_.T, atol=1e-3)
    expected = tiny_encoder.logit_scale * plain.predict(image_views[0].numpy() @ generic.T)
    assert np.allclose(model.logits(image_views[0]).numpy(), expected, atol=1e-2)


def test_sim_does_not_look_at_class_names(tiny_encoder, captioned_images, image_views):
    other = dataclasses.replace(captioned_images, names=("a", "b", "c", "d", "e"))
    fits = [
        SiM(tiny_encoder, GENERIC).fit(split, image_views) for split in (captioned_images, other)
    ]
    assert torch.equal(fits[0].logits(image_views[0]), fits[1].logits(image_views[0]))
    with pytest.raises(ValueError, match="no generic prompts"):
        SiM(tiny_encoder, ())


@pytest.mark.parametrize(
    "method", [LinearProbe, Prototypes, lambda encoder: SiM(encoder, GENERIC, ridge=0.01)]
)
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_without_images_are_never_chosen(
    method, classes, tiny_encoder, captioned_images, image_views
):
    kept = np.flatnonzero(captioned_images.labels >= 5 - classes)
    split = captioned_images.take(kept)
    model = method(tiny_encoder).fit(split, image_views[:, kept])
    assert torch.isneginf(model.logits(image_views[0])[:, : 5 - classes]).all()
    assert (model.predict(image_views[0][kept]) == split.labels).all()


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("n", [2, 3, 8])
def test_control_names_are_others(kind, n):
    names = [f"name {letter}" for letter in "abcdefgh"[:n]]
    found = control_names(names, kind, seed=1)
    assert found == control_names(names, kind, seed=1)
    assert len(set(found)) == n
    assert n < 4 or found != control_names(names, kind, seed=2)
    kept = [old == new for old, new in zip(names, found, strict=True)]
    if kind == "random":
        assert not set(names) & set(found)
        assert [len(name.split()) for name in found] == [2] * n
    else:
        assert sorted(found) == sorted(names)
        assert sum(kept) == (n % 2 if kind == "swapped" else 0)
    if kind == "swapped":
        mapping = dict(zip(names, found, strict=True))
        assert all(mapping[mapping[name]] == name for name in names)


def test_controls_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="random, permuted, swapped"):
        control_names(["a", "b"], "shuffled")
    with pytest.raises(ValueError, match="a single name cannot be permuted"):
        control_names(["a"], "permuted")
    with pytest.raises(ValueError, match="random, permuted, swapped"):
        Control(None, "shuffled")


@pytest.mark.parametrize("name", [name for name, row in RIVALS.items() if not row.control])
def test_every_rival_can_be_controlled(name, tiny_encoder, captioned_images, image_views):
    """Also a probe, which has no text classifier."""
    method = make(name, tiny_encoder)
    model = Control(method, "permuted").fit(captioned_images, image_views)
    assert torch.equal(model.logits(image_views[0]), method.logits(image_views[0]))
    assert tuple(method.names_) == model.controls_ and model.names_ == captioned_images.names


def test_a_control_keeps_the_true_columns(tiny_encoder, captioned_images, image_views):
    model = Control(ZeroShot(tiny_encoder), "permuted", seed=3).fit(captioned_images)
    texts = text_classifier(tiny_encoder, model.controls_)
    assert model.names_ == captioned_images.names and set(model.controls_) == set(model.names_)
    assert torch.allclose(
        model.logits(image_views[0]), tiny_encoder.logit_scale * image_views[0] @ texts.T, atol=1e-4
    )


def test_a_control_of_name_learning_renames_the_captions(
    tiny_encoder, captioned_images, image_views
):
    split = renamed(captioned_images, ("a", "b", "c", "d", "e"))
    assert split.names == ("a", "b", "c", "d", "e")
    assert split.captions[:3] == ("a a", "a drawing of a a", "An emoji of a a.")
    learner = NameLearner.fsnl(tiny_encoder, steps=2)
    model = Control(learner, "random").fit(captioned_images, image_views)
    assert learner.captions_without_name_ == 0
    assert tuple(learner.names_) == model.controls_ and model.names_ == captioned_images.names
    with pytest.raises(ValueError, match="give one for each"):
        renamed(captioned_images, ("a",))


def test_the_penalty_of_prolip_is_searched_over_the_number_of_shots(choosing, tiny_encoder):
    row = choosing.made("ProLIP", {"penalty": 0.2})
    assert [row(tiny_encoder, shots=shots).penalty for shots in (1, 4)] == [0.2, 0.05]


def test_an_alignment_moves_prototypes_and_leaves_empty_classes_out(
    tiny_encoder, captioned_images, image_views
):
    names = (*captioned_images.names, "ant")
    split = dataclasses.replace(captioned_images, names=names)
    plain = Prototypes(tiny_encoder).fit(split, image_views)
    texts = torch.roll(plain.classifier_[:5], 1, dims=1)
    alignment = Alignment(penalty=1e-6).fit(image_views[0], captioned_images.labels, texts)
    moved = Prototypes(tiny_encoder, alignment).fit(split, image_views)
    cosines = (moved.classifier_[:5] * texts).sum(1)
    assert (cosines > (plain.classifier_[:5] * texts).sum(1)).all()
    assert (moved.logits(image_views[0])[:, 5] == -torch.inf).all()


def test_textual_inversion_is_the_plain_loop(tiny_encoder, captioned_images, image_views):
    """One row for a name, and nothing but the cosine with the mean of its own images."""
    row = RIVALS["textual inversion"]
    model = dataclasses.replace(row, chosen={**row.chosen, "lr": 0.05, "steps": 6})(
        tiny_encoder, "a {name}", None
    )
    model.fit(captioned_images, image_views)
    labels = captioned_images.labels
    means = [image_views[:, labels == c].mean((0, 1)) for c in range(5)]
    tower, table = tiny_encoder.model, tiny_encoder.model.token_embedding
    ids = tiny_encoder.tokenizer(["a x"])
    noise = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for c, mean in enumerate(means):
        word = (0.02 * noise[c]).requires_grad_()
        optimiser = torch.optim.Adam([word])
        for step in range(7):
            line = torch.cat([table(ids)[:, :2], word[None, None], table(ids)[:, 3:]], dim=1)
            hook = table.register_forward_hook(lambda *_, line=line: line)
            text = F.normalize(tower.encode_text(ids)[0], dim=0)
            hook.remove()
            if step < 6:
                optimiser.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / 6)) / 2
                optimiser.zero_grad()
                (1 - text @ F.normalize(mean, dim=0)).backward()
                optimiser.step()
        assert torch.allclose(model.classifier_[c], text.detach(), atol=5e-3)


@pytest.fixture(scope="module")
def choosing():
    return load_script("choose_rivals")


def test_every_method_has_the_same_budget_and_its_authors_setting(choosing, tiny_encoder):
    known = {name for name, row in RIVALS.items() if not row.control}
    assert set(choosing.METHODS) == {"names", "FSNL", *known - set(choosing.FIXED)}
    for method, row in choosing.METHODS.items():
        own = [json.dumps(setting, sort_keys=True) for setting in choosing.settings(method)]
        assert len(set(own)) == len(own) >= choosing.LEAST, method
        first = next(choosing.settings(method))
        assert {k: v for k, v in row.authors.items() if not callable(v)}.items() <= first.items()
        for setting in choosing.settings(method):
            made = choosing.made(method, setting)(tiny_encoder, ip_names=GENERIC, shots=4)
            for option, value in setting.items():
                assert getattr(made, option) == (value / 4 if option == "penalty" else value)


def test_the_rule_of_choice_takes_the_fewest_steps_of_those_near_the_best(choosing):
    scores = {(100, "a"): (50.0, 50.2), (400, "b"): (50.4, 50.6), (200, "c"): (50.3, 50.5)}
    rows = [
        {"setting": json.dumps({"steps": steps, "name": name}), "encoder": encoder, "oop": score}
        for (steps, name), own in scores.items()
        for encoder, score in enumerate(own)
    ]
    # Of one encoder only, as what is no finalist is.
    rows.append({"setting": json.dumps({"steps": 10, "name": "d"}), "encoder": 0, "oop": 99.0})
    found = choosing.chosen(pd.DataFrame(rows))
    assert found.tolist() == [True, True, *[False] * 5]
    more = choosing.chosen(pd.DataFrame([{**r, "oop": r["oop"] * 3} for r in rows]))
    assert more.tolist() == [*[False] * 4, True, True, False]


def test_a_search_goes_on_where_it_was(
    choosing, tiny_encoder, captioned_images, image_views, tmp_path, monkeypatch
):
    images = image_views[0]
    case = choosing.Episode(
        4, captioned_images, (image_views,) * 2, (images,) * 2, captioned_images.labels, GENERIC
    )
    monkeypatch.setattr(choosing, "prepared", lambda folder: (tiny_encoder, [case]))
    table, folders = tmp_path / "table.csv", [tmp_path / f"lots-{k}-seed-0" for k in range(3)]
    choosing.search(folders, "GDA", table)
    whole = pd.read_csv(table)
    first = whole[whole["encoder"] == "lots-0-seed-0"]
    assert first["oop"].max() > 90
    assert list(first["setting"]) == [json.dumps(one) for one in choosing.settings("GDA")]
    best = set(first.sort_values("oop", ascending=False)["setting"][: choosing.FINALISTS])
    for encoder in ("lots-1-seed-0", "lots-2-seed-0"):
        own = set(whole.loc[whole["encoder"] == encoder, "setting"])
        assert len(own) == choosing.FINALISTS
        assert (
            first[first["setting"].isin(own)]["oop"].min()
            >= first[first["setting"].isin(best)]["oop"].min()
        )
    assert len(set(whole.loc[whole["chosen"], "setting"])) == 1 and whole["chosen"].sum() == 3
    whole.iloc[:3].to_csv(table, index=False)
    choosing.search(folders, "GDA", table)
    choosing.search(folders, "SiM", table)
    columns = ["method", "setting", "encoder", "oop", "chosen"]
    assert pd.read_csv(table)[: len(whole)][columns].equals(whole[columns])
    assert set(pd.read_csv(table)["method"]) == {"GDA", "SiM"}


def test_episodes_read_no_test_image_and_none_of_oop_classes(choosing, tiny_encoder, monkeypatch):
    monkeypatch.setattr(choosing, "training_features", features_by_place)
    monkeypatch.setattr(choosing, "BeforeProjection", lambda encoder: encoder)
    bench = load_benchmark("mini")
    ids = {i for d in bench.values() for part in (d.ip.train, d.ip.val) for i in part.ids}
    taken: set[str] = set()
    for rotation in ("lots-0", "lots-1", "lots-2"):
        arms = lots().set_index(["domain", "name"])[rotation]
        unseen = {n for d in bench.values() for n in d.ip.names if arms[d.name, n] == "neither"}
        cases = choosing.episodes(tiny_encoder, rotation)
        assert [case.shots for case in cases] == [4, 1]
        names = set(cases[0].split.names)
        assert len(names) == choosing.CLASSES and names <= unseen and not names & taken
        taken |= names
        for case in cases:
            assert set(case.split.names) == names and set(case.split.ids) <= ids
            assert len(case.split) == case.shots * len(names) and not unseen & set(case.known)
            learned, scored = case.views[0][0, :, 0], case.images[0][:, 0]
            assert not set(learned.tolist()) & set(scored.tolist()), "scored on what was learned"
            assert len(case.labels) == len(scored) and case.labels.max() == len(names) - 1


def features_by_place(encoder, split, *args):
    """Views (2, N, 1) that hold the place of each image."""
    return torch.arange(float(len(split)))[None, :, None].repeat(2, 1, 1)


def chosen_in(table):
    with (SELECTIONS / table).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["chosen"] == "True"]
    return {row["method"]: json.loads(row["setting"]) for row in rows}


CHOSEN = chosen_in("selection_fewshot.csv")


def used(method, encoder):
    """A method as notebooks make it, at two shots."""
    learners = {"names": NameLearner, "FSNL": NameLearner.fsnl}
    if method in learners:
        return learners[method](encoder, negatives=["ant"])
    return RIVALS[method](encoder, ip_names=("ant", "bee"), shots=2)


def test_every_method_that_has_something_to_choose_was_searched(choosing):
    assert set(CHOSEN) == set(choosing.METHODS)


def test_choices_lie_within_what_was_searched_where_findings_does_not_say_otherwise(choosing):
    beyond = {
        "CoOp": {"steps"},
        "CoCoOp": {"steps"},
        "KgCoOp": {"lr", "steps"},
        "ProLIP": {"steps"},
    }
    least = {"penalty": 0.0, "min_rows": 1}  # nothing lies below
    for method in CHOSEN.keys() - {"names"}:
        searched = list(choosing.settings(method))
        found = set()
        for option, value in CHOSEN[method].items():
            values = {own[option] for own in searched if option in own}
            if isinstance(value, (int, float)) and not isinstance(value, bool) and len(values) > 1:
                low = value == min(values) and option != "steps" and least.get(option) != value
                if low or (value == max(values) and (option, value) != ("ratio", 1.0)):
                    found.add(option)
        assert found == beyond.get(method, set()), method


@pytest.mark.parametrize("method", CHOSEN)
def test_what_was_chosen_on_classes_never_met_is_what_is_used(method, tiny_encoder):
    options = CHOSEN[method]
    if "penalty" in options:
        options = {**options, "penalty": options["penalty"] / 2}
    model = used(method, tiny_encoder)
    assert {name: getattr(model, name) for name in options} == options


def test_biases_were_chosen_at_the_settings_that_are_used(tiny_encoder):
    table = chosen_in("selection.csv")
    for method in ("names", "prototypes"):
        options, model = table[method], used(method, tiny_encoder)
        options.pop("negatives", None)
        assert (model.alignment is not None) == options.pop("aligned")
        assert {name: getattr(model, name) for name in options} == options


def test_both_choices_are_compared_at_the_settings_that_were_chosen():
    with (SELECTIONS.parent / "results" / "choices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    made = {(row["method"], row["chosen_on"]): json.loads(row["setting"]) for row in rows}
    early, late = chosen_in("selection.csv"), CHOSEN
    both = (early.keys() & late.keys()) - {"names"}
    assert made == {
        **{(method, "classes of pre-training"): early[method] for method in both},
        **{(method, "classes never met"): late[method] for method in both},
    }
