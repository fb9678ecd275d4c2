from __future__ import annotations

import dataclasses
import math

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import bpe_tokenizer

from lbutils.models.classifier import class_means, text_classifier
from lbutils.models.encoders import DualEncoder
from lbutils.rivals.adapters import (
    CLAP,
    BeforeProjection,
    CLIPAdapter,
    CrossModalProbe,
    LPPlusPlus,
    ProLIP,
    TaskRes,
    TipAdapter,
    TipAdapterF,
    own_probability,
    step_sizes,
)
from lbutils.rivals.probes import ZeroShot

FEATURE_METHODS = [CLIPAdapter, TaskRes, TipAdapter, TipAdapterF, CLAP, LPPlusPlus, CrossModalProbe]
OTHERS = ["zebra", "hot air balloon"]


def without_class(split, views, empty):
    """Split and views that lack the images of a class, whose name stays."""
    kept = np.flatnonzero(split.labels != empty)
    return split.take(kept), views[:, kept]


def pixels(n=6, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def zero_shot(tiny_encoder, captioned_images):
    return ZeroShot(tiny_encoder).fit(captioned_images)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (CLIPAdapter, {"ratio": 0.0}),
        (TaskRes, {"alpha": 0.0}),
        (TipAdapter, {"alpha": 0.0}),
        (TipAdapterF, {"alpha": 0.0}),
        (CLAP, {"constraint": float("inf")}),
    ],
)
def test_each_at_its_limit_is_zero_shot(
    method, options, tiny_encoder, captioned_images, image_views, zero_shot
):
    model = method(tiny_encoder, **options).fit(captioned_images, image_views)
    images = image_views[0]
    expected = zero_shot.joint_logits(images, OTHERS)
    assert torch.allclose(model.joint_logits(images, OTHERS), expected, atol=1e-4)


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_planted_classes_are_learned(method, tiny_encoder, captioned_images, image_views):
    options = {"alpha": 50.0} if method in (TipAdapter, TipAdapterF) else {}
    if method is CLIPAdapter:
        options = {"ratio": 0.8, "steps": 300, "lr": 0.01}
    if method in (TaskRes, CrossModalProbe):
        options = {"lr": 0.05}
    model = method(tiny_encoder, **options).fit(captioned_images, image_views)
    generator = torch.Generator().manual_seed(9)
    fresh = image_views[0] + 0.02 * torch.randn(image_views[0].shape, generator=generator)
    right = model.predict(F.normalize(fresh, dim=-1)) == captioned_images.labels
    assert right.mean() >= 0.9


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_a_class_without_images_is_left_to_its_text(
    method, tiny_encoder, captioned_images, image_views
):
    model = method(tiny_encoder).fit(*without_class(captioned_images, image_views, 1))
    logits = model.logits(image_views[0])
    assert logits.shape == (15, 5) and logits.isfinite().all()


def test_class_means_run_over_views_and_images():
    features = torch.arange(12.0).reshape(2, 3, 2)
    means, counts = class_means(features, torch.tensor([2, 0, 2]), 3)
    assert torch.equal(counts, torch.tensor([1, 0, 2]))
    assert torch.allclose(means[2], features[:, [0, 2]].mean((0, 1))) and not means[1].any()


def test_tip_adapter_is_the_formula(tiny_encoder, captioned_images, image_views, zero_shot):
    options = {"alpha": 2.0, "beta": 3.0, "background": False}
    model = TipAdapter(tiny_encoder, **options).fit(captioned_images, image_views)
    images = image_views[1]
    keys = F.normalize(image_views.mean(0), dim=-1)
    expected = zero_shot.logits(images).clone()
    for i, label in enumerate(captioned_images.labels):
        expected[:, label] += 2.0 * torch.exp(-3.0 * (1 - images @ keys[i]))
    assert torch.allclose(model.logits(images), expected, atol=1e-4)
    beside = model.joint_logits(images, OTHERS)[:, :2]
    assert torch.allclose(beside, zero_shot.other_logits(images, OTHERS), atol=1e-4)


def test_tip_adapter_sets_classes_beside_names_without_images(
    tiny_encoder, captioned_images, image_views
):
    """Its offset is what a class at the mean of the class means would get; see GDA's."""
    split, views = without_class(captioned_images, image_views, 1)
    options = {"alpha": 20.0, "beta": 3.0}
    plain = TipAdapter(tiny_encoder, **options, background=False).fit(split, views)
    moved = TipAdapter(tiny_encoder, **options).fit(split, views)
    images = image_views[1]
    keys = F.normalize(views.mean(0), dim=-1)
    means = torch.stack([keys[split.labels == c].mean(0) for c in (0, 2, 3, 4)])
    offset = 3 * 20.0 * torch.exp(3.0 * (images @ means.mean(0) - 1))
    expected = plain.joint_logits(images, OTHERS)
    expected[:, [2, 4, 5, 6]] -= offset[:, None]
    assert torch.allclose(moved.joint_logits(images, OTHERS), expected, atol=1e-4)


def test_the_cross_modal_probe_is_the_plain_loop(tiny_encoder, captioned_images, image_views):
    """Text features of the names are samples beside the images, half of the loss."""
    forms = ["a {name}", "a photo of a {name}"]
    model = CrossModalProbe(tiny_encoder, templates=forms, steps=6, lr=0.01)
    model.fit(captioned_images, image_views[:1])
    texts = torch.cat(
        [
            tiny_encoder.encode_text([f.format(name=n) for n in captioned_images.names])
            for f in forms
        ]
    )
    owners, labels = torch.arange(5).repeat(2), torch.tensor(captioned_images.labels)
    weights = F.normalize(texts[:5] + texts[5:], dim=1).requires_grad_()
    optimiser = torch.optim.AdamW([weights], eps=1e-4)
    for step in range(6):
        optimiser.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / 6)) / 2
        scale = tiny_encoder.logit_scale
        loss = F.cross_entropy(scale * image_views[0] @ weights.T, labels) / 2
        loss = loss + F.cross_entropy(scale * texts @ weights.T, owners) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.allclose(model.classifier_, weights.detach(), atol=1e-5)


def test_tuned_keys_start_at_the_cache_and_fit_better(tiny_encoder, captioned_images, image_views):
    still = TipAdapter(tiny_encoder, alpha=5.0).fit(captioned_images, image_views)
    options = {"alpha": 5.0, "lr": 0.01, "steps": 50}
    tuned = TipAdapterF(tiny_encoder, **options).fit(captioned_images, image_views)
    labels = torch.tensor(captioned_images.labels)
    losses = [
        F.cross_entropy(m.logits(image_views.flatten(0, 1)), labels.repeat(2))
        for m in (still, tuned)
    ]
    assert losses[1] < losses[0]
    frozen = TipAdapterF(tiny_encoder, alpha=5.0, lr=1e-9).fit(captioned_images, image_views)
    assert torch.allclose(frozen.keys_, still.keys_, atol=1e-6)


def test_taskres_moves_no_other_name(tiny_encoder, captioned_images, image_views, zero_shot):
    model = TaskRes(tiny_encoder, alpha=0.5, lr=0.05).fit(captioned_images, image_views)
    texts = zero_shot.classifier_
    assert torch.allclose(
        model.classifier_, F.normalize(texts + 0.5 * model.residuals_, dim=-1), atol=1e-6
    )
    assert (model.classifier_ * texts).sum(1).max() < 0.999
    others = model.joint_logits(image_views[0], OTHERS)[:, :2]
    assert torch.allclose(others, zero_shot.other_logits(image_views[0], OTHERS), atol=1e-5)


def test_clip_adapter_changes_images_for_all_names(tiny_encoder, captioned_images, image_views):
    model = CLIPAdapter(tiny_encoder, ratio=0.4).fit(captioned_images, image_views)
    down, up = model.weights_
    image = image_views[0, 3]
    mixed = 0.4 * torch.relu(up @ torch.relu(down @ image)) + 0.6 * image
    names = [*OTHERS, *captioned_images.names]
    texts = text_classifier(tiny_encoder, names)
    expected = tiny_encoder.logit_scale * texts @ (mixed / mixed.norm())
    assert torch.allclose(model.joint_logits(image[None], OTHERS)[0], expected, atol=1e-4)
    assert down.shape == (8, 32)


def test_clap_is_the_constrained_problem(tiny_encoder, captioned_images, image_views, zero_shot):
    model = CLAP(tiny_encoder, steps=1500, lr=0.02).fit(captioned_images, image_views)
    texts, scale = zero_shot.classifier_, tiny_encoder.logit_scale
    labels = captioned_images.labels
    shares = (scale * image_views @ texts.T).softmax(-1)
    expected = torch.tensor([float(shares[:, labels == c, c].mean()) for c in range(5)])
    assert torch.allclose(model.multipliers_, expected, atol=1e-5)
    # Where it ends, no direction of the objective, written anew, goes further down.
    samples, owners = image_views.flatten(0, 1), torch.tensor(labels).repeat(2)

    def objective(weights):
        logits = scale * F.cosine_similarity(samples[:, None], weights[None], dim=-1)
        apart = ((weights - texts) ** 2).sum(1)
        return F.cross_entropy(logits, owners) + (expected * apart).sum() / 5

    weights = texts.clone().requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = objective(weights)
        loss.backward()
        return loss

    solver.step(closure)
    assert model.history_[-1] == pytest.approx(float(objective(weights.detach())), abs=2e-3)


def test_clap_lets_go_of_names_that_fail(tiny_encoder, captioned_images, image_views, zero_shot):
    free = CLAP(tiny_encoder, 0.0).fit(captioned_images, image_views)
    held = CLAP(tiny_encoder, 100.0, lr=0.01).fit(captioned_images, image_views)
    far = [float((m.classifier_ - zero_shot.classifier_).norm()) for m in (free, held)]
    assert far[1] < far[0]
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = own_probability(logits, torch.tensor([0, 0]))
    assert float(found[0]) == pytest.approx(float(logits.softmax(1)[:, 0].mean()))
    assert torch.equal(found[1:], torch.ones(2))


def test_clap_as_released(make_encoder, captioned_images, image_views):
    """The authors' loop, written out: prototypes and penalty have the text features' own length."""
    encoder = make_encoder()
    encoder.model.text_projection.data *= 7
    prompts = [f"a photo of a {name}" for name in captioned_images.names]
    base = encoder.model.encode_text(encoder.tokenizer(prompts)).detach()
    assert (base.norm(dim=1) > 3).all()
    samples, labels = image_views.flatten(0, 1), torch.tensor(captioned_images.labels).repeat(2)
    unit = base / base.norm(dim=1, keepdim=True)
    shares = (encoder.logit_scale * samples @ unit.T).softmax(1)
    alphas = torch.stack([shares[labels == c, c].mean() for c in range(5)])
    prototypes = base.clone().requires_grad_()
    optimiser = torch.optim.SGD([prototypes], lr=0.1, momentum=0.9)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 30)
    for _ in range(30):
        directions = prototypes / prototypes.norm(dim=-1, keepdim=True)
        loss = F.cross_entropy(encoder.logit_scale * samples @ directions.T, labels)
        loss = loss + (alphas * ((prototypes - base) ** 2).sum(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    expected = F.normalize(prototypes.detach(), dim=-1)
    options = {"templates": "a photo of a {name}", "steps": 30}
    found = CLAP(encoder, unit=False, **options).fit(captioned_images, image_views)
    assert torch.allclose(found.classifier_, expected, atol=1e-4)
    other = CLAP(encoder, **options).fit(captioned_images, image_views)
    assert not torch.allclose(other.classifier_, expected, atol=0.05)


@pytest.mark.parametrize("accumulate", [False, True])
def test_lpplusplus_gradients_equal_autograd(
    accumulate, tiny_encoder, captioned_images, image_views
):
    """A few steps by hand against the same blocks by autograd and SGD.

    The authors' code zeroes the gradient of the weights only: with `accumulate`.
    """
    model = LPPlusPlus(tiny_encoder, start=30.0, steps=25, every=5, accumulate=accumulate)
    model.fit(captioned_images, image_views)
    texts = text_classifier(tiny_encoder, captioned_images.names)
    samples = image_views.flatten(0, 1)
    labels = torch.tensor(captioned_images.labels)
    sums = torch.stack([image_views[:, labels == c].mean(0).sum(0) for c in range(5)])
    weights, bias = sums.clone().requires_grad_(), torch.zeros(5, requires_grad=True)
    own = torch.stack([(image_views[:, labels == c] @ texts[c]).mean() for c in range(5)])
    alpha = torch.full((5,), 30.0 * float(own.mean())).requires_grad_()
    eigen = float(torch.linalg.eigvalsh(samples.T @ samples)[-1])
    optimiser = torch.optim.SGD([weights, bias], lr=4 * 30 / eigen, momentum=0.9)
    alpha_step = 30 / (4 * float((samples @ texts.T).square().sum(0).max()))
    losses = []
    for turn in range(25):
        logits = samples @ weights.T + bias + alpha * (samples @ texts.T)
        loss = F.cross_entropy(logits, labels.repeat(2))
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        if not accumulate:
            alpha.grad = None
        loss.backward()
        optimiser.step()
        if (turn + 1) % 5 == 0:
            alpha.data -= alpha_step * alpha.grad
    assert model.history_ == pytest.approx(losses, rel=1e-3, abs=1e-5)
    assert torch.allclose(model.alpha_, alpha.detach(), rtol=1e-4)
    expected = image_views[0] @ weights.T + bias + alpha * (image_views[0] @ texts.T)
    assert torch.allclose(model.logits(image_views[0]), expected.detach(), rtol=1e-3, atol=1e-2)


def test_lpplusplus_steps_are_an_inverse_lipschitz_constant_and_a_sixteenth_of_one():
    samples = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    similar = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    step, alpha_step = step_sizes(samples, similar)
    eigen = torch.linalg.eigvalsh(samples.T @ samples / 40)[-1]
    assert step == pytest.approx(4 / float(eigen), rel=1e-4)
    assert alpha_step == pytest.approx(1 / (4 * float((similar**2).mean(0).max())), rel=1e-4)


def test_lpplusplus_scores_other_names_by_the_mean_multiplier(
    tiny_encoder, captioned_images, image_views
):
    model = LPPlusPlus(tiny_encoder).fit(captioned_images, image_views)
    texts = text_classifier(tiny_encoder, OTHERS)
    expected = model.alpha_.mean() * image_views[0] @ texts.T
    assert torch.allclose(model.joint_logits(image_views[0], OTHERS)[:, :2], expected, atol=1e-4)


def encoders():
    """Encoders whose image towers end in a matrix, a layer of a head, and one of a pool."""
    torch.manual_seed(0)
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    plain = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 48, "head_width": 16}
    residual = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 16}
    timm = {"timm_model_name": "lbutils_residual", "timm_pool": "", "timm_proj": "linear"}
    towers = {"matrix": plain, "pool": residual, "head": {**timm, "image_size": 32}}
    for kind, vision in towers.items():
        family = open_clip.CustomTextCLIP if kind == "head" else open_clip.CLIP
        model = family(32, vision, text).eval()
        encoder = DualEncoder(model, bpe_tokenizer(), name=kind, preprocess={"size": 32})
        yield pytest.param(encoder, id=kind)


@pytest.mark.parametrize("encoder", list(encoders()))
def test_what_stands_before_the_projection(encoder):
    tower = BeforeProjection(encoder)
    before = tower.encode_images(pixels())
    assert before.shape == (6, tower.dim) and tower.weight.shape == (32, tower.dim)
    projected = F.normalize(F.linear(before, tower.weight, tower.bias), dim=-1)
    assert torch.allclose(projected, encoder.encode_images(pixels()), atol=1e-5)
    assert tower.fingerprint != encoder.fingerprint


def test_an_image_tower_without_a_projection_is_named(tiny_encoder):
    class Bare(torch.nn.Module):
        visual = torch.nn.ReLU()

    encoder = dataclasses.make_dataclass("E", ["model", "name"])(Bare(), "bare tower")
    with pytest.raises(ValueError, match="bare tower ends in no linear projection"):
        BeforeProjection(encoder)


@pytest.fixture(scope="module")
def before(tiny_encoder, captioned_images):
    """Features (2, 15, 32) before the projection that gather around a direction per class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 32, generator=generator)[captioned_images.labels]
    return 3 * (centres + 0.3 * torch.randn(2, 15, 32, generator=generator))


def test_prolip_held_fast_is_zero_shot(tiny_encoder, captioned_images, before, zero_shot):
    tower = BeforeProjection(tiny_encoder)
    images = F.normalize(F.linear(before[0], tower.weight), dim=-1)
    expected = zero_shot.joint_logits(images, OTHERS)
    for options in ({"penalty": float("inf")}, {"lr": 1e-12}, {"penalty": 1e9, "lr": 1e-8}):
        model = ProLIP(tiny_encoder, **options).fit(captioned_images, before)
        assert torch.allclose(model.joint_logits(before[0], OTHERS), expected, atol=1e-2)


def test_prolip_learns_and_is_held_by_its_penalty(tiny_encoder, captioned_images, before):
    start = BeforeProjection(tiny_encoder).weight
    free = ProLIP(tiny_encoder, 0.0, lr=0.01, steps=200).fit(captioned_images, before)
    held = ProLIP(tiny_encoder, 100.0, lr=0.01, steps=200).fit(captioned_images, before)
    assert (free.predict(before[1]) == captioned_images.labels).mean() >= 0.9
    assert (held.weight_ - start).norm() < 0.2 * (free.weight_ - start).norm()
    default = ProLIP(tiny_encoder, lr=0.01, steps=20).fit(captioned_images, before)
    named = ProLIP(tiny_encoder, 1 / 3, lr=0.01, steps=20).fit(captioned_images, before)
    assert torch.equal(default.weight_, named.weight_)


def test_prolip_says_which_features_it_takes(captioned_images, image_views):
    encoder = next(iter(encoders())).values[0]
    with pytest.raises(ValueError, match="takes the 48 before the projection"):
        ProLIP(encoder).fit(captioned_images, image_views)
    model = ProLIP(encoder, steps=2).fit(captioned_images, torch.randn(1, 15, 48))
    with pytest.raises(ValueError, match="takes the 48 before the projection"):
        model.logits(image_views[0])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (CLIPAdapter, {"ratio": 1.5}),
        (CLIPAdapter, {"reduction": 0}),
        (TipAdapter, {"beta": 0.0}),
        (TaskRes, {"steps": 0}),
        (CLAP, {"constraint": -1.0}),
        (LPPlusPlus, {"every": 0}),
        (ProLIP, {"penalty": -1.0}),
    ],
)
def test_options_that_make_no_sense_are_refused(method, options, tiny_encoder):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* give"):
        method(tiny_encoder, **options)
