from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lbutils.models import classifier
from lbutils.models.classifier import text_classifier, text_features


def test_classifier_is_the_normalised_mean_over_templates(tiny_encoder):
    names = ["red panda", "a{x}b", "<i>ant</i>"]
    found = classifier.text_classifier(
        tiny_encoder, names, ["a {name}", "the {name}."], batch_size=2
    )
    plain = [tiny_encoder.encode_text([f"a {n}" for n in names])]
    plain.append(tiny_encoder.encode_text([f"the {n}." for n in names]))
    expected = F.normalize(torch.stack(plain).mean(0), dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=-1), torch.ones(3), atol=1e-6)


def test_classifier_needs_names(tiny_encoder):
    with pytest.raises(ValueError, match="no class names"):
        classifier.text_classifier(tiny_encoder, [])


def test_logits_are_scaled_cosines_over_a_joint_vocabulary():
    generator = torch.Generator().manual_seed(0)
    features, ip, oop = (
        F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (5, 3, 2)
    )
    joint = classifier.logits(features, torch.cat([ip, oop]), 20.0)
    assert joint.shape == (5, 5)
    assert torch.allclose(joint[:, 3:], classifier.logits(features.numpy(), oop, 20.0))
    assert joint.abs().max() <= 20.0 + 1e-4


def test_unfitted_classifier_says_so():
    with pytest.raises(RuntimeError, match="call fit"):
        classifier.FeatureClassifier().predict(torch.zeros(1, 8))


def test_training_features_stack_clean_and_augmented_views(monkeypatch):
    def fake(encoder, split, *, views=0, seed=0):
        return torch.full((views, 3, 4), float(seed)) if views else torch.ones(3, 4)

    monkeypatch.setattr(classifier, "image_features", fake)
    both = classifier.training_features(None, None, views=2, seed=7)
    assert both.shape == (3, 3, 4)
    assert np.allclose(both[:, 0, 0], [1, 7, 7])
    assert classifier.training_features(None, None, views=2, clean=False).shape == (2, 3, 4)
    assert classifier.training_features(None, None, views=0).shape == (1, 3, 4)
    with pytest.raises(ValueError, match="no image"):
        classifier.training_features(None, None, views=0, clean=False)


@pytest.mark.parametrize("through", ["in place", ".data"])
def test_kept_text_features_follow_the_weights(make_encoder, through):
    """A key that did not look at the encoder's state would give the old answer again."""
    encoder = make_encoder()
    first = text_features(encoder, ["fox", "owl"])
    assert torch.equal(text_features(encoder, ["fox", "owl"]), first)
    weight = encoder.model.token_embedding.weight
    with torch.no_grad():
        (weight if through == "in place" else weight.data).add_(torch.randn_like(weight))
    found = text_features(encoder, ["fox", "owl"])
    assert not torch.allclose(found, first, atol=1e-3)
    assert torch.equal(found, text_classifier(encoder, ["fox", "owl"]))


def test_kept_text_features_follow_the_tokenizer(make_encoder):
    encoder = make_encoder()
    first = text_features(encoder, ["fox", "owl"])
    plain = encoder.tokenizer

    class Reversed(type(plain)):
        def __call__(self, texts, *args, **options):
            return super().__call__([text[::-1] for text in texts], *args, **options)

    encoder.tokenizer = Reversed(context_length=16)
    found = text_features(encoder, ["fox", "owl"])
    assert not torch.equal(found, first)
    assert torch.equal(found, text_classifier(encoder, ["fox", "owl"]))
