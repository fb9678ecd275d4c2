from __future__ import annotations

import warnings

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import bpe_tokenizer, build_tiny
from sklearn.exceptions import NotFittedError
from torch.utils.flop_counter import FlopCounterMode

from lbutils import load_benchmark
from lbutils.data import hub, laion_beyond
from lbutils.learn import checks
from lbutils.learn.colours import told_colours
from lbutils.learn.knowledge import Knowledge, load_lexicon, without_names
from lbutils.models import classifier
from lbutils.models.classifier import text_classifier, text_features
from lbutils.models.encoders import DualEncoder
from lbutils.models.names import NameEmbeddings
from lbutils.rivals import context, probes
from lbutils.unlabelled import zsnl


def test_classifier_is_open_clip_s(tiny_encoder):
    names = ["red panda", "axolotl", "C++", "jack-o'-lantern", "a{x}b", "<i>ant</i>"]
    expected = open_clip.build_zero_shot_classifier(
        tiny_encoder.model, tiny_encoder.tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES
    ).T
    found = text_classifier(tiny_encoder, names, "openai80")
    assert torch.allclose(found, expected, atol=1e-6)


def test_eighty_templates_cost_at_most_five_times_one(monkeypatch):
    """In operations, beside open_clip's builder; `bench_prompts` measures the time."""
    encoder = DualEncoder(
        build_tiny(context_length=77, width=64),
        bpe_tokenizer(77),
        preprocess={"size": 32},
    )
    names, templates = open_clip.IMAGENET_CLASSNAMES[::50], open_clip.OPENAI_IMAGENET_TEMPLATES
    # The fused attention of inference hides its matrix products from the counter.
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    with FlopCounterMode(display=False) as one:
        open_clip.build_zero_shot_classifier(encoder.model, encoder.tokenizer, names, templates[:1])
    with FlopCounterMode(display=False) as all_of_them:
        text_classifier(encoder, names, "openai80")
    assert 0 < all_of_them.get_total_flops() <= 5 * one.get_total_flops()


def test_kept_text_features_are_those_of_the_prompts(tiny_encoder):
    own = {"fox": ["a fox"], "owl": ["an {name}", "owls"]}
    found = text_features(tiny_encoder, ["owl", "fox"], own)
    assert torch.equal(found, text_classifier(tiny_encoder, ["owl", "fox"], own))
    other = text_features(tiny_encoder, ["owl", "fox"], {**own, "fox": ["foxes"]})
    assert torch.equal(found[0], other[0]) and not torch.allclose(found[1], other[1])
    method = probes.ZeroShot(tiny_encoder, own)
    assert torch.equal(method.classifier_for(["owl", "fox"]), found)


def test_classifier_needs_names(tiny_encoder):
    with pytest.raises(ValueError, match="no class names"):
        classifier.text_classifier(tiny_encoder, [])


LONG = "the very long name of a thing that no context of sixteen tokens can hold to its end"


def test_names_that_are_read_alike_are_named(tiny_encoder):
    names = ["ant", f"{LONG}, red", "Ant", f"{LONG}, blue", "ant", "fox"]
    with pytest.warns(UserWarning, match="after 16 tokens") as caught:
        found = classifier.text_classifier(tiny_encoder, names, ["a {name}", "the {name}."])
    assert torch.allclose(found[1], found[3]) and torch.allclose(found[0], found[2])
    told = str(caught[0].message)
    assert "'ant' and 'Ant'" in told and LONG[:60] in told and "fox" not in told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.text_classifier(tiny_encoder, ["ant", "ant", f"{LONG}, red", "fox"])
        # Cut in one template, told apart in the other.
        classifier.text_classifier(tiny_encoder, ["ant", "fox"], [f"{LONG} {{name}}", "{name}"])


def test_names_cut_behind_a_learned_context_are_named(tiny_encoder):
    layout = context.ContextPrompts(tiny_encoder, 4)
    with pytest.warns(UserWarning, match="reads as the same text"):
        layout.sheet([f"{LONG}, red", f"{LONG}, blue"])


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.encode_text("fox"),
        lambda e: e.tokenize("fox"),
        lambda e: classifier.text_classifier(e, "fox"),
        lambda e: classifier.text_features(e, "fox"),
        lambda e: classifier.check_others("fox", ["ant"]),
        lambda e: probes.ZeroShot(e).other_logits(torch.zeros(1, e.dim), "fox"),
        lambda e: probes.ZeroShot(e).joint_logits(torch.zeros(1, e.dim), "fox"),
        lambda e: probes.SiM(e, "fox"),
        lambda e: probes.control_names("fox", "random"),
        lambda e: NameEmbeddings(e, "fox"),
        lambda e: Knowledge(e, load_lexicon(), "pieces"),
        lambda e: Knowledge(e, load_lexicon(), ["pieces"], hold_out="fox"),
        lambda e: Knowledge(e, load_lexicon(), ["pieces"]).prototypes("fox"),
        lambda e: Knowledge(e, load_lexicon(), ["pieces"]).shares("fox"),
        lambda e: load_lexicon().vector("fox"),
        lambda e: without_names(["a fox"], "fox"),
        lambda e: without_names("a fox", ["fox"]),
        lambda e: told_colours("red"),
        lambda e: list(checks.odd_names(e.tokenizer, "fox")),
        lambda e: list(checks.odd_names(e.tokenizer, ["ant"], "fox")),
        lambda e: zsnl.ZeroShotNameLearner(e, Knowledge(e, load_lexicon(), ["pieces"])).fit(
            torch.eye(2), "fox"
        ),
        lambda e: zsnl._vocabulary(["fox"], "ant", None),
        lambda e: zsnl._vocabulary(["fox"], (), "fox"),
        lambda e: laion_beyond.relabel(load_benchmark(), "fox", "medium"),
        lambda e: hub.download("Animals"),
        lambda e: context.ContextPrompts(e, 4).sheet("fox"),
    ],
)
def test_one_text_is_no_list(call, tiny_encoder):
    with pytest.raises(ValueError, match=r"must be a list of texts, not one text: pass \['"):
        call(tiny_encoder)


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
    plain = classifier.FeatureClassifier()
    with pytest.raises(NotFittedError, match="call fit"):
        plain.predict(torch.zeros(1, 8))
    assert not hasattr(plain, "names_")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        plain.nothing  # noqa: B018


def test_unit_rows_are_told_by_row():
    rows = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    found = classifier.unit_rows(rows.numpy().astype(np.float64), "rows", 8)
    assert found.dtype == torch.float32 and torch.allclose(found, rows)
    for wrong in (0.0, 2.0, float("nan"), float("inf")):
        broken = rows.clone()
        broken[2] *= wrong
        with pytest.raises(ValueError, match="texts must be of unit length.* row 2"):
            classifier.unit_rows(broken, "texts")
    for shape, width in (((8,), None), ((2, 3, 8), None), ((4, 8), 9)):
        with pytest.raises(ValueError, match="expected"):
            classifier.unit_rows(torch.ones(shape) / 8**0.5, "texts", width)


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

    class Renamed:
        context_length = 16

        def __init__(self, owl):
            self.owl = owl

        def encode(self, text):
            return plain.encode(text.replace("owl", self.owl))

        def __call__(self, texts):
            return plain([text.replace("owl", self.owl) for text in texts])

    for owl in ("ant", "bee", "cat"):
        encoder.tokenizer = None  # its place in memory is free for the next one
        encoder.tokenizer = Renamed(owl)
        assert torch.equal(text_features(encoder, ["owl"]), text_classifier(encoder, [owl])), owl
