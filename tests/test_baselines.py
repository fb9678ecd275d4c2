from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from lbutils.baselines import CoOp, LinearProbe, Prototypes, ZeroShot
from lbutils.zeroshot import text_classifier

METHODS = [ZeroShot, CoOp, LinearProbe, Prototypes]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_same_shape(method, tiny_encoder, captioned_images, image_views):
    model = method(tiny_encoder)
    with pytest.raises(RuntimeError, match="call fit"):
        model.logits(image_views[0])
    assert model.fit(captioned_images, image_views) is model
    logits = model.logits(image_views[0])
    assert logits.shape == (15, 5) and logits.dtype == torch.float32
    assert np.array_equal(model.predict(image_views[0]), logits.argmax(1).numpy())
    assert tuple(model.names_) == captioned_images.names


def test_zero_shot_is_the_text_classifier(tiny_encoder, captioned_images):
    model = ZeroShot(tiny_encoder, "paper").fit(captioned_images)
    expected = text_classifier(tiny_encoder, captioned_images.names, "paper")
    assert torch.equal(model.classifier_, expected)


def test_coop_tunes_one_context_before_fixed_names(tiny_encoder, captioned_images, image_views):
    coop = CoOp(tiny_encoder, n_ctx=3, suffix=".", steps=15).fit(captioned_images, image_views)
    assert coop.history_[-1] < coop.history_[0]
    # The context as pieces of the model's own vocabulary must act as the text does.
    pieces = tiny_encoder.tokenizer.encode("a photo of")
    coop.context_ = tiny_encoder.model.token_embedding.weight[pieces]
    names = ["red panda", "something else", "犬"]
    expected = tiny_encoder.encode_text([f"a photo of {name}." for name in names])
    assert torch.allclose(coop.classifier_for(names), expected, atol=1e-5)


def test_coop_is_deterministic_and_checks_its_length(tiny_encoder, captioned_images, image_views):
    first, again = (CoOp(tiny_encoder, steps=3).fit(captioned_images, image_views) for _ in "ab")
    assert torch.equal(first.classifier_, again.classifier_)
    with pytest.raises(ValueError, match="at most 13"):
        CoOp(tiny_encoder, n_ctx=14).fit(captioned_images, image_views)
    with pytest.raises(RuntimeError, match="call fit"):
        CoOp(tiny_encoder).classifier_for(["x"])


def test_linear_probe_equals_scikit_learn(tiny_encoder, captioned_images, image_views):
    probe = LinearProbe(tiny_encoder, C=2.0).fit(captioned_images, image_views)
    plain = LogisticRegression(C=2.0, max_iter=300)
    plain.fit(image_views.flatten(0, 1).numpy(), np.tile(captioned_images.labels, 2))
    expected = plain.decision_function(image_views[0].numpy())
    assert np.allclose(probe.logits(image_views[0]).numpy(), expected, atol=1e-5)


def test_prototypes_are_normalised_means(tiny_encoder, captioned_images, image_views):
    model = Prototypes(tiny_encoder).fit(captioned_images, image_views)
    own = image_views[:, captioned_images.labels == 2].flatten(0, 1)
    assert torch.allclose(model.classifier_[2], F.normalize(own.mean(0), dim=0), atol=1e-6)


@pytest.mark.parametrize("method", [LinearProbe, Prototypes])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_without_images_are_never_chosen(
    method, classes, tiny_encoder, captioned_images, image_views
):
    kept = np.flatnonzero(captioned_images.labels >= 5 - classes)
    split = dataclasses.replace(
        captioned_images,
        labels=captioned_images.labels[kept],
        captions=tuple(captioned_images.captions[i] for i in kept),
    )
    model = method(tiny_encoder).fit(split, image_views[:, kept])
    assert torch.isneginf(model.logits(image_views[0])[:, : 5 - classes]).all()
    assert (model.predict(image_views[0][kept]) == split.labels).all()


def test_linear_probe_needs_two_classes(tiny_encoder, captioned_images, image_views):
    split = dataclasses.replace(captioned_images, labels=np.zeros(15, dtype=int))
    with pytest.raises(ValueError, match="at least two"):
        LinearProbe(tiny_encoder).fit(split, image_views)
