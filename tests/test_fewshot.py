from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.exceptions import NotFittedError

from lbutils.learn.namelearner import (
    Alignment,
    NameLearner,
    both_ways,
    multi_positive_loss,
    swap_contexts,
)
from lbutils.models import text as textforward
from lbutils.models.classifier import text_classifier
from lbutils.models.prompts import fill, slots, take_out


def digest(model):
    """SHA-256 over every parameter and buffer, bit by bit."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def plain_loss(logits, positives):
    """The released loss as loops over the batch."""
    rows = []
    for row, right in zip(logits.tolist(), positives.tolist(), strict=True):
        exps = torch.tensor(row, dtype=torch.float64).exp()
        share = sum(float(e) for e, r in zip(exps, right, strict=True) if r) / float(exps.sum())
        rows.append(-torch.tensor(share + 1e-10).log().item())
    return sum(rows) / len(rows)


def test_multi_positive_loss_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=generator)
    positives = torch.rand(7, 5, generator=generator) < 0.4
    positives[0] = False
    found = float(multi_positive_loss(logits, positives))
    assert found == pytest.approx(plain_loss(logits, positives), rel=1e-5)
    ways = plain_loss(logits, positives) + plain_loss(logits.T, positives.T)
    assert float(both_ways(logits, positives)) == pytest.approx(ways / 2, rel=1e-5)


def test_contexts_come_from_other_classes():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([swap_contexts(labels, generator) for _ in range(200)])
    assert (labels[drawn] != labels).all()
    for sample, label in enumerate(labels):
        assert set(drawn[:, sample].tolist()) == set((labels != label).nonzero()[:, 0].tolist())
    alone = swap_contexts(torch.zeros(3, dtype=torch.long), generator)
    assert alone.tolist() == [0, 1, 2]


def test_first_loss_equals_the_objective_written_out(tiny_encoder, captioned_images, image_views):
    """Half name term plus half caption term, prompts built as text, no shared machinery."""
    split, views = captioned_images, image_views[:1]
    learner = NameLearner.fsnl(tiny_encoder, templates="a {name}", steps=1, seed=3)
    learner.fit(split, views)

    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(len(split), generator=generator)
    torch.randperm(1, generator=generator)
    torch.randint(1, (1,), generator=generator)
    labels, images = torch.tensor(split.labels)[order], views[0][order]
    swapped = order[swap_contexts(labels, generator)]
    captions = []
    for label, other in zip(labels.tolist(), swapped.tolist(), strict=True):
        before, after = take_out(split.captions[other], split.names[split.labels[other]])
        captions.append(before + split.names[label] + after)
    prompts = tiny_encoder.encode_text([fill("a {name}", name) for name in split.names])
    scale = tiny_encoder.logit_scale
    classes = scale * images @ prompts.T
    texts = scale * images @ tiny_encoder.encode_text(captions).T
    right = labels[:, None] == torch.arange(len(split.names))
    same = labels[:, None] == labels
    expected = sum(
        plain_loss(s, m) + plain_loss(s.T, m.T) for s, m in ((classes, right), (texts, same))
    )
    assert learner.history_[0] == pytest.approx(expected / 4, rel=1e-4)


ABLATIONS = [
    {},
    {"name_weight": 0.0},
    {"caption_weight": 0.0},
    {"name_weight": 0.0, "swap": False, "info_nce": True},
    {"init": "random"},
    {"init": 4},
    {"optimizer": "sgd", "lr": 0.5, "batch_size": 4},
]
OURS = [
    {},
    {"name_weight": 0.0},
    {"name_weight": 1.0, "anchor_weight": 0.0},
    {"negatives": ["ant", "bee"], "margin": -0.5},
    {"negatives": ["ant", "bee"], "stand_in_weight": 0.0, "temperature": 2.0},
    {"average": 0.5},
]


@pytest.mark.parametrize(
    ("make", "changes"),
    [(NameLearner.fsnl, changes) for changes in ABLATIONS]
    + [(NameLearner, changes) for changes in OURS],
    ids=str,
)
def test_names_are_learned_and_only_their_rows_move(
    make, changes, tiny_encoder, captioned_images, image_views
):
    before = digest(tiny_encoder.model)
    settings = {"lr": 0.05, "steps": 40, **changes}
    start = make(tiny_encoder, **{**settings, "lr": 0.0, "steps": 1})
    start.fit(captioned_images, image_views)
    learner = make(tiny_encoder, **settings).fit(captioned_images, image_views)
    assert digest(tiny_encoder.model) == before
    assert all(p.grad is None for p in tiny_encoder.model.parameters())
    moved = learner.embeddings_.rows.detach() - start.embeddings_.rows.detach()
    assert (moved.abs().amax(1) > 1e-4).all(), "every row of every name must have moved"
    assert sum(learner.history_[-5:]) < sum(learner.history_[:5])
    right = (learner.predict(image_views[1]) == captioned_images.labels).mean()
    assert right > (start.predict(image_views[1]) == captioned_images.labels).mean()
    assert learner.classifier_.shape == (5, 32)
    assert list(learner.names_) == list(captioned_images.names)


def test_our_loss_equals_its_four_terms_written_out(tiny_encoder, captioned_images, image_views):
    """The first loss of every term together, prompts built as text, in float64 loops."""
    others = ["ant", "hammerhead shark"]
    weights = {"name_weight": 0.7, "anchor_weight": 1.3, "stand_in_weight": 0.4}
    settings = {"templates": "a {name}", "min_rows": 1, "temperature": 3.0, "margin": 0.2}
    split, images = captioned_images, image_views[0].double()
    learner = NameLearner(tiny_encoder, negatives=others, steps=1, **weights, **settings)
    learner.fit(split, image_views[:1])
    prompts = tiny_encoder.encode_text([fill("a {name}", name) for name in split.names]).double()
    known = tiny_encoder.encode_text([fill("a {name}", name) for name in others]).double()
    scale = tiny_encoder.logit_scale / 3
    anchors = [images[split.labels == c].sum(0) for c in range(len(split.names))]
    anchors = [anchor / anchor.norm() for anchor in anchors]
    name = 0.0
    for image, label in zip(images, split.labels, strict=True):
        own = [scale * float(image @ prompt) - 0.2 for prompt in prompts]
        every = own + [scale * float(image @ text) for text in known]
        name -= own[label] - math.log(sum(map(math.exp, every)))
    anchor = sum(1 - float(p @ a) for p, a in zip(prompts, anchors, strict=True)) / len(anchors)
    shift = sum(anchors) / len(anchors) - sum(known) / len(known)
    stand = 0.0
    for k, text in enumerate(known):
        moved = (text + shift) / (text + shift).norm()
        every = [scale * float(moved @ other) for other in [*known, *prompts]]
        stand -= every[k] - math.log(sum(map(math.exp, every)))
    expected = 0.7 * name / len(images) + 1.3 * anchor + 0.4 * stand / len(known)
    assert learner.history_[0] == pytest.approx(expected, rel=1e-4)


def test_names_of_negatives_are_their_text_features(tiny_encoder, captioned_images, image_views):
    others = ["ant", "bee"]
    texts = text_classifier(tiny_encoder, others)
    named, given = (
        NameLearner(tiny_encoder, negatives=n, steps=3).fit(captioned_images, image_views)
        for n in (others, texts)
    )
    assert named.history_ == given.history_


def test_rows_are_averaged_over_the_share_of_steps_asked_for(
    tiny_encoder, captioned_images, image_views
):
    last, one, all_four = (
        NameLearner(tiny_encoder, steps=4, optimizer="sgd", lr=0.1, average=share)
        .fit(captioned_images, image_views)
        .embeddings_.rows.detach()
        for share in (0.0, 0.25, 1.0)
    )
    assert torch.allclose(one, last, rtol=1e-6) and not torch.allclose(all_four, last, atol=1e-4)


def test_alignment_is_the_least_squares_map(image_views, captioned_images):
    """Against a solver run on very many means of k images drawn anew."""
    labels = torch.tensor(captioned_images.labels)
    features = image_views[0]
    texts = F.normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(4)), dim=1)
    fitted = Alignment(penalty=0.5).fit(features, labels, texts)  # the last class has no image
    means = torch.stack([features[labels == c].mean(0) for c in range(5)])
    scatter = features - means[labels]
    cov = (scatter.T @ scatter / (15 - 5)).double()
    noise = torch.linalg.cholesky(cov + 1e-9 * torch.eye(32)) / math.sqrt(3)
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(40_000, 5, 32, generator=generator, dtype=torch.float64) @ noise.T
    drawn = (means + drawn).flatten(0, 1)
    target = texts[:5].double().repeat(40_000, 1)
    ridge = math.sqrt(0.5 / 32 * len(drawn)) * torch.eye(32, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([drawn, ridge]), torch.cat([target, ridge])).solution
    found = fitted(means, shots=3)
    assert torch.allclose(found, F.normalize(means @ expected.float(), dim=1), atol=5e-3)
    assert torch.equal(fitted(torch.zeros(1, 32), 3), torch.zeros(1, 32))
    identity = Alignment(penalty=1e9).fit(features, labels, texts)
    assert torch.allclose(identity(means, 1), F.normalize(means, dim=1), atol=1e-4)


def test_alignment_refuses_what_it_cannot_use(image_views):
    with pytest.raises(ValueError, match="two of one"):
        Alignment().fit(image_views[0], torch.arange(15), torch.eye(32)[:15])
    with pytest.raises(NotFittedError, match="call fit first"):
        Alignment()(image_views[0], 1)


def test_the_same_seed_gives_the_same_bits(tiny_encoder, captioned_images, image_views):
    runs = [
        NameLearner(tiny_encoder, steps=5, seed=seed).fit(captioned_images, image_views)
        for seed in (1, 1, 2)
    ]
    assert runs[0].history_ == runs[1].history_ != runs[2].history_
    assert torch.equal(runs[0].classifier_, runs[1].classifier_)


def test_both_text_forwards_leave_the_same_trace(
    monkeypatch, tiny_encoder, captioned_images, image_views
):
    fast = NameLearner(tiny_encoder, steps=6, lr=0.05).fit(captioned_images, image_views)
    monkeypatch.setattr(textforward, "is_causal", lambda model, frame: False)
    plain = NameLearner(tiny_encoder, steps=6, lr=0.05).fit(captioned_images, image_views)
    assert fast.history_ == pytest.approx(plain.history_, rel=1e-4)
    assert torch.allclose(fast.classifier_, plain.classifier_, atol=1e-4)


def test_negatives_are_wrong_answers_to_images_only(tiny_encoder, captioned_images, image_views):
    settings = {"caption_weight": 0.0, "steps": 1, "templates": "a {name}"}
    plain = NameLearner.fsnl(tiny_encoder, **settings).fit(captioned_images, image_views)
    far = NameLearner.fsnl(tiny_encoder, negatives=-image_views[0], **settings)
    near = NameLearner.fsnl(tiny_encoder, negatives=image_views[0], **settings)
    assert near.fit(captioned_images, image_views).history_[0] > plain.history_[0] + 0.1
    assert far.fit(captioned_images, image_views).history_[0] < near.history_[0]


def test_captions_without_their_name_are_counted(tiny_encoder, captioned_images, image_views):
    captions = list(captioned_images.captions)
    captions[0], captions[4] = "something red-pandaish", None
    split = dataclasses.replace(captioned_images, captions=tuple(captions))
    learner = NameLearner.fsnl(tiny_encoder, steps=1, templates="the {name}")
    learner.fit(split, image_views)
    assert (learner.captions_without_name_, learner.captions_missing_) == (1, 1)
    tokenizer = tiny_encoder.tokenizer
    keys = learner.embeddings_._keys
    before = slots("the {name}").before
    assert (tuple(tokenizer.encode(before)), ()) in keys
    assert (tuple(tokenizer.encode(before)), tuple(tokenizer.encode(captions[0]))) in keys


def test_a_trainable_encoder_is_refused(make_encoder, captioned_images, image_views):
    encoder = make_encoder()
    encoder.model.ln_final.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="must be frozen"):
        NameLearner(encoder, steps=1).fit(captioned_images, image_views)


def test_released_constants(tiny_encoder):
    learner = NameLearner.released(tiny_encoder, "animal", shots=16, n_classes=92)
    assert learner.batch_size == 368 and learner.epochs == 200 and learner.warmup_epochs == 1
    assert learner.lr == pytest.approx(368 / 128 * 2e-4)
    assert (learner.templates, learner.optimizer, learner.views) == ("released", "sgd", 200)
    assert learner.weight_decay == 5e-4
    one = NameLearner.released(tiny_encoder, "animal", 1, 92, swap=False)
    assert one.epochs == 200 and one.batch_size == 92 and not one.swap


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name_weight": 0, "caption_weight": 0, "anchor_weight": 0}, "one must be above 0"),
        ({"anchor_weight": -1}, "anchor_weight=-1: give 0 or more"),
        ({"temperature": 0}, "temperature=0: give a number above 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"average": 2}, "average=2"),
        ({"steps": 0}, "steps=0: give 1 or more"),
        ({"steps": np.int64(0)}, "steps=0: give 1 or more"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"optimizer": "adan"}, "'adam'"),
        ({"init": "lm"}, "choose 'clip'"),
    ],
)
def test_wrong_settings(settings, words, tiny_encoder, captioned_images, image_views):
    with pytest.raises(ValueError, match=words):
        NameLearner(tiny_encoder, **settings).fit(captioned_images, image_views)


def test_wrong_features(tiny_encoder, captioned_images, image_views):
    learner = NameLearner(tiny_encoder)
    with pytest.raises(ValueError, match="expected \\(views, 15, D\\)"):
        learner.fit(captioned_images, image_views[0])
    with pytest.raises(ValueError, match="unit length"):
        learner.fit(captioned_images, 2 * image_views)
    broken = image_views.clone()
    broken[1, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 15 images are not finite"):
        learner.fit(captioned_images, broken)


def test_a_run_that_diverges_in_its_last_step_is_noticed(
    tiny_encoder, captioned_images, image_views
):
    learner = NameLearner.fsnl(
        tiny_encoder, optimizer="sgd", lr=1e38, steps=1, warmup_epochs=0, average=0
    )
    with pytest.raises(RuntimeError, match="last of 1 steps a number is not finite: lower lr"):
        learner.fit(captioned_images, image_views)


def test_a_diverging_run_says_where_and_why(tiny_encoder, captioned_images, image_views):
    learner = NameLearner.fsnl(tiny_encoder, optimizer="sgd", lr=1e38, steps=30)
    with pytest.raises(RuntimeError, match=r"at step \d+ of 30: lower lr"):
        learner.fit(captioned_images, image_views)


def test_one_class_needs_something_to_be_told_from(tiny_encoder, captioned_images, image_views):
    alone = captioned_images.first(1)
    with pytest.raises(ValueError, match="one class alone"):
        NameLearner.fsnl(tiny_encoder).fit(alone, image_views[:, :3])
    learner = NameLearner(tiny_encoder, negatives=["ant"]).fit(alone, image_views[:, :3])
    assert learner.classifier_.shape == (1, 32)


def test_a_class_without_images_is_left_to_its_text(tiny_encoder, captioned_images, image_views):
    names = (*captioned_images.names, "ant")
    split = dataclasses.replace(captioned_images, names=names)
    learner = NameLearner(tiny_encoder, negatives=["bee"], steps=3).fit(split, image_views)
    assert learner.classifier_.isfinite().all() and len(learner.classifier_) == 6
