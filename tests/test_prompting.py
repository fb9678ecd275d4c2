from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lbutils.models import classifier, text
from lbutils.models.classifier import check_training, text_classifier, text_features
from lbutils.rivals import context
from lbutils.rivals.context import CoCoOp, ContextPrompts, CoOp, KgCoOp

NAMES = ["red panda", "something else entirely", "犬"]


def plain_coop(encoder, split, views, steps, lr, weight=0.0):
    """CoOp's loss at each step, by whole prompts through the model's own tower."""
    generator = torch.Generator().manual_seed(0)
    table = encoder.model.token_embedding
    context = (0.02 * torch.randn(4, 32, generator=generator)).requires_grad_()
    optimiser = torch.optim.Adam([context], lr=lr)
    ids = encoder.tokenize([f"! ! ! ! {name}" for name in split.names])
    anchor = text_classifier(encoder, split.names)
    turns = torch.randperm(len(views), generator=generator)
    losses = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * (
            1 + torch.cos(torch.tensor(torch.pi * step / steps))
        )
        optimiser.param_groups[0]["lr"] /= 2

        def put(module, inputs, output):
            return torch.cat([output[:, :1], context.expand(len(ids), -1, -1), output[:, 5:]], 1)

        hook = table.register_forward_hook(put)
        texts = F.normalize(encoder.model.encode_text(ids), dim=-1)
        hook.remove()
        scaled = encoder.logit_scale * views[turns[step]] @ texts.T
        loss = F.cross_entropy(scaled, torch.tensor(split.labels))
        loss = loss + weight * (1 - F.cosine_similarity(texts, anchor).mean())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", ["clip", "custom"])
def test_contexts_of_words_act_as_the_words_do(make_encoder, kind):
    encoder = make_encoder(kind)
    prompts = ContextPrompts(encoder, 3, ".")
    table = getattr(encoder.model, "text", encoder.model).token_embedding.weight
    contexts = [table[encoder.tokenizer.encode(words)] for words in ("a photo of", "my old blue")]
    found = prompts(prompts.sheet(NAMES, 2), torch.stack(contexts))
    for row, words in zip(found, ("a photo of", "my old blue"), strict=True):
        expected = encoder.encode_text([f"{words} {name}." for name in NAMES])
        assert torch.allclose(row, expected, atol=1e-5)


def test_both_text_forwards_have_the_same_gradients(tiny_encoder, monkeypatch):
    fast = ContextPrompts(tiny_encoder, 2)
    monkeypatch.setattr(text, "is_causal", lambda model, frame: False)
    whole = ContextPrompts(tiny_encoder, 2)
    assert type(fast.text) is not type(whole.text)
    start = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, len(NAMES), 32, generator=torch.Generator().manual_seed(2))
    found = []
    for prompts in (fast, whole):
        contexts = start.clone().requires_grad_()
        features = prompts(prompts.sheet(NAMES, 3), contexts)
        (features * weight).sum().backward()
        found.append((features.detach(), contexts.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5 * float(found[1][1].abs().max()))


def test_a_name_that_does_not_fit_loses_its_end(tiny_encoder):
    prompts = ContextPrompts(tiny_encoder, 3)
    long = " ".join(["very"] * 30)
    words = tiny_encoder.model.token_embedding.weight[tiny_encoder.tokenizer.encode("a photo of")]
    found = prompts(prompts.sheet([long]), words[None])[0]
    expected = tiny_encoder.encode_text([f"a photo of {' '.join(['very'] * 11)}"])
    assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="empty"):
        prompts.sheet(["\t"])
    with pytest.raises(ValueError, match="at most 13"):
        ContextPrompts(tiny_encoder, 14)


def test_coop_equals_a_plain_loop(tiny_encoder, captioned_images, image_views):
    views = image_views.repeat(2, 1, 1)
    coop = CoOp(tiny_encoder, steps=4).fit(captioned_images, views)
    expected = plain_coop(tiny_encoder, captioned_images, views, 4, 0.002)
    assert coop.history_ == pytest.approx(expected, rel=1e-4)


def test_class_contexts_equal_a_plain_loop(tiny_encoder, captioned_images, image_views):
    """A context a class, each name behind its own, by the model's own text tower, padded."""
    model = CoOp(tiny_encoder, class_specific=True, steps=4, lr=0.05)
    model.fit(captioned_images, image_views[:1])
    names, tokenizer = captioned_images.names, tiny_encoder.tokenizer
    start = 0.02 * torch.randn(len(names), 4, 32, generator=torch.Generator().manual_seed(0))
    contexts = start.clone().requires_grad_()
    ids = tokenizer([f"x x x x {name}" for name in names])
    table = tiny_encoder.model.token_embedding
    labels, scale = torch.tensor(captioned_images.labels), tiny_encoder.logit_scale
    optimiser, losses = torch.optim.Adam([contexts]), []

    def classifier():
        embedded = table(ids)
        lines = torch.cat([embedded[:, :1], contexts, embedded[:, 5:]], dim=1)
        hook = table.register_forward_hook(lambda *_: lines)
        try:
            return F.normalize(tiny_encoder.model.encode_text(ids), dim=-1)
        finally:
            hook.remove()

    for step in range(4):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 4)) / 2
        loss = F.cross_entropy(scale * image_views[0] @ classifier().T, labels)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.history_ == pytest.approx(losses, rel=1e-4)
    assert torch.allclose(model.context_, contexts.detach(), atol=5e-3)
    assert torch.allclose(model.classifier_, classifier().detach(), atol=5e-3)
    others = ["zebra", "hot air balloon"]
    assert torch.equal(model.classifier_for(others), text_classifier(tiny_encoder, others))
    with pytest.raises(ValueError, match="is for CoOp"):
        CoCoOp(tiny_encoder, class_specific=True)


def test_kgcoop_adds_the_distance_to_the_hand_made_prompt(
    tiny_encoder, captioned_images, image_views
):
    views = image_views.repeat(2, 1, 1)
    options = {"steps": 4, "ctx_init": None}
    model = KgCoOp(tiny_encoder, 8.0, **options).fit(captioned_images, views)
    expected = plain_coop(tiny_encoder, captioned_images, views, 4, 0.002, weight=8.0)
    assert model.history_ == pytest.approx(expected, rel=1e-4)
    without = KgCoOp(tiny_encoder, 0.0, **options).fit(captioned_images, views)
    coop = CoOp(tiny_encoder, steps=4).fit(captioned_images, views)
    assert torch.equal(without.classifier_, coop.classifier_)


def test_a_heavy_distance_keeps_the_hand_made_prompt(tiny_encoder, captioned_images, image_views):
    texts = text_classifier(tiny_encoder, captioned_images.names, "a photo of a {name}")

    def moved(weight):
        options = {"templates": "a photo of a {name}", "steps": 30, "lr": 0.02}
        model = KgCoOp(tiny_encoder, weight, **options).fit(captioned_images, image_views)
        return float((model.classifier_ - texts).norm())

    assert moved(1000.0) < 0.5 * moved(0.0)


def test_a_context_starts_as_the_words_of_a_template(tiny_encoder, captioned_images, image_views):
    model = CoOp(
        tiny_encoder, ctx_init="template", templates="a photo of a {name}", suffix=".", lr=1e-12
    )
    model.fit(captioned_images, image_views)
    for names in (captioned_images.names, ("something else", "犬")):
        expected = tiny_encoder.encode_text([f"a photo of a {name}." for name in names])
        assert torch.allclose(model.classifier_for(names), expected, atol=1e-5)
    # Without words there is nothing to start from but chance.
    random = CoOp(tiny_encoder, ctx_init="template", templates="{name}", steps=2)
    assert random.fit(captioned_images, image_views).context_.shape == (4, 32)


def test_cocoop_gives_each_image_its_own_prompts(tiny_encoder, captioned_images, image_views):
    model = CoCoOp(tiny_encoder, steps=15, batch_size=1).fit(captioned_images, image_views)
    images = image_views[0, :4]
    first, first_bias, second, second_bias = model.network_
    names = [*captioned_images.names, "zebra"]
    prompts = ContextPrompts(tiny_encoder, len(model.context_))
    for row, image in zip(model.other_logits(images, names), images, strict=True):
        shift = second @ torch.relu(first @ image + first_bias) + second_bias
        texts = prompts(prompts.sheet(names), (model.context_ + shift)[None])[0]
        assert torch.allclose(row, tiny_encoder.logit_scale * texts @ image, atol=1e-4)
    joint = model.joint_logits(images, ["zebra", "gnu"])
    assert torch.allclose(joint[:, 2:], model.logits(images), atol=1e-4)
    assert joint.shape == (4, 7)


def test_cocoop_without_a_network_is_one_context(tiny_encoder, captioned_images, image_views):
    model = CoCoOp(tiny_encoder, steps=4, batch_size=4).fit(captioned_images, image_views)
    model.network_ = [torch.zeros_like(part) for part in model.network_]
    model.shift_ = torch.zeros(32)
    expected = tiny_encoder.logit_scale * image_views[0] @ model.classifier_for(model.names_).T
    assert torch.allclose(model.logits(image_views[0]), expected, atol=1e-4)
    assert len(model.history_) == 4


@pytest.mark.parametrize("method", [CoOp, KgCoOp, CoCoOp])
def test_training_lowers_the_loss(method, tiny_encoder, captioned_images, image_views):
    options = {"steps": 12, "lr": 0.01}
    if method is CoCoOp:
        options["batch_size"] = 15
    history = method(tiny_encoder, **options).fit(captioned_images, image_views).history_
    assert history[-1] < history[0]
    assert not any(p.requires_grad for p in tiny_encoder.model.parameters())


def test_unfit_features_are_told_in_one_line(captioned_images, image_views):
    broken = image_views.clone()
    broken[1, 7, 3] = float("nan")
    cases = {
        "1 of 15 images are not finite (first: image 7)": broken,
        "row 0 has length 3": 3 * image_views,
        "expected (views, 15, D)": image_views[:, :4],
    }
    for message, features in cases.items():
        with pytest.raises(ValueError) as error:
            check_training(captioned_images, features)
        assert message in str(error.value) and "\n" not in str(error.value)
    features, labels = check_training(captioned_images, 3 * image_views, unit=False)
    assert features.dtype == torch.float32 and labels.dtype == torch.int64


def test_unfit_splits_are_told_in_one_line(captioned_images, image_views):
    cases = {
        "at least one shot": {"labels": captioned_images.labels[:0]},
        "'okapi' stands twice": {"names": ("okapi", "a", "b", "okapi", "c")},
        "labels must lie in 0 to 2": {"names": ("a", "b", "c")},
    }
    for message, changes in cases.items():
        split = dataclasses.replace(captioned_images, **changes)
        with pytest.raises(ValueError, match=message):
            check_training(split, image_views)


def test_text_features_are_kept_until_the_encoder_moves(make_encoder, monkeypatch):
    encoder = make_encoder()
    asked = []
    encode = classifier.encode_prompts

    def counted(encoder, prompts, *rest):
        asked.append(prompts)
        return encode(encoder, prompts, *rest)

    monkeypatch.setattr(classifier, "encode_prompts", counted)
    first = text_features(encoder, NAMES, "{name}")
    first += 1  # what comes back is the caller's own
    again = text_features(encoder, tuple(NAMES), ["{name}"])
    assert torch.allclose(again, text_classifier(encoder, NAMES, "{name}"))
    assert len(asked) == 2
    assert not torch.allclose(again, text_features(encoder, NAMES, "a {name}"))
    encoder.model.ln_final.weight.mul_(-1)
    moved = text_features(encoder, NAMES, "{name}")
    assert torch.allclose(moved, text_classifier(encoder, NAMES, "{name}"))
    assert not torch.allclose(moved, again)


def test_a_mixed_batch_is_fitted_as_each_method_alone(tiny_encoder, captioned_images, image_views):
    """Contexts of other lengths, one each or one a name; fewer names, whose rows are others."""
    few = captioned_images.first(2)
    kinds = [
        lambda: CoOp(tiny_encoder, n_ctx=2, steps=4, lr=0.05),
        lambda: CoOp(tiny_encoder, n_ctx=3, class_specific=True, steps=4, lr=0.05, seed=3),
        lambda: KgCoOp(tiny_encoder, steps=4, lr=0.05, weight=2.0),
        lambda: CoCoOp(tiny_encoder, steps=4, lr=0.05, batch_size=2, seed=1),
        lambda: CoOp(tiny_encoder, n_ctx=1, steps=3, lr=0.05),
    ]
    splits = [captioned_images, few, captioned_images, few, few]
    views = [image_views[:, : len(split.labels)] for split in splits]
    alone = [make().fit(split, own) for make, split, own in zip(kinds, splits, views, strict=True)]
    together = context.fit_many([make() for make in kinds], splits, views)
    for one, other, split in zip(alone, together, splits, strict=True):
        assert torch.allclose(one.classifier_, other.classifier_, atol=1e-5)
        assert torch.allclose(one.context_, other.context_, atol=1e-5)
        assert one.history_ == pytest.approx(other.history_, abs=1e-5)
        assert len(other.history_) == other.steps and other.names_ == split.names
    both = torch.cat([alone[3].shift_, *map(torch.flatten, alone[3].network_)])
    assert torch.allclose(
        both, torch.cat([together[3].shift_, *map(torch.flatten, together[3].network_)]), atol=1e-5
    )


def test_batches_of_methods_are_checked(tiny_encoder, make_encoder, captioned_images, image_views):
    one, other = CoOp(tiny_encoder, steps=1), CoOp(make_encoder("custom"), steps=1)
    two, views = [captioned_images] * 2, [image_views] * 2
    with pytest.raises(ValueError, match="share their encoder"):
        context.fit_many([one, other], two, views)
    with pytest.raises(ValueError, match="stands twice"):
        context.fit_many([one, one], two, views)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        context.fit_many([one], two, views)
    assert context.fit_many([], []) == []
