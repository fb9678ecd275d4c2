"""The miniature's CLIP is open_clip's own, and its tokenizer is open_clip's, cut."""

from __future__ import annotations

import json
import logging

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import bpe_tokenizer, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lbutils.models import mini
from lbutils.models.encoders import load_encoder

BPE = bpe_tokenizer(mini.CONTEXT_LENGTH)
WHOLE = mini.PieceTokenizer(range(BPE.vocab_size))
FEW = mini.PieceTokenizer(sorted({*mini.always_kept(BPE), *BPE.encode("a drawing of a fox")}))
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text("aeiou fox'&;<>/_-\u0301狐é😀", max_size=60),
    st.sampled_from(["<end_of_text>", "a &lt;b&gt; c", "‘fox’", "\ud800", "\x00", "ﬁ", ""]),
)


def lively(model):
    """Random statistics for batch norms, whose initial ones would hide mistakes."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def plain_tower(state, x):
    """The tower written out with torch.nn.functional."""

    def layer(x, conv, norm, stride):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(state[f"{norm}.{name}"] for name in names)))

    x = layer(x, "stem.0", "stem.1", 2)
    for stage in range(3):
        name = f"stages.{stage}"
        x = layer(x, f"{name}.0.0", f"{name}.0.1", 2)
        inner = layer(x, f"{name}.1.first.0", f"{name}.1.first.1", 1)
        x = x + layer(inner, f"{name}.1.second.0", f"{name}.1.second.1", 1)
    flat = x.flatten(2)
    return torch.cat([flat.mean(2), flat.max(2).values], dim=1)


@pytest.mark.parametrize(("name", "widths"), [("", (32, 64, 128, 256)), ("_tiny", (8, 16, 32, 64))])
@pytest.mark.parametrize("size", [16, 40, 64])
def test_tower_equals_a_plain_one(name, widths, size):
    torch.manual_seed(0)
    tower = lively(timm.create_model(f"lbutils_residual{name}")).eval()
    x = torch.randn(3, 3, size, size)
    convolutions = [m for m in tower.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 10 and convolutions[0].kernel_size == (4, 4)
    assert {conv.out_channels for conv in convolutions} == set(widths)
    expected = plain_tower(tower.state_dict(), x)
    torch.testing.assert_close(tower(x), expected, atol=1e-5, rtol=1e-5)
    assert tower(x).shape == (3, tower.num_features)


def test_the_tower_refuses_what_it_does_not_have():
    with pytest.raises(ValueError, match=r"option\(s\) drop_rate"):
        timm.create_model("lbutils_residual", drop_rate=0.1)
    with pytest.raises(ValueError, match="pretrained"):
        timm.create_model("lbutils_residual", pretrained=True)
    with pytest.raises(ValueError, match="no classifier"):
        mini.ResidualTower().reset_classifier(10)


def test_size_of_the_default_model():
    model = open_clip.CLIP(**mini.model_config(8500))
    assert 2 * sum(p.numel() for p in model.parameters()) < 12e6
    assert model.visual.image_size == (64, 64) and model.context_length == 16


@pytest.fixture
def encoder_folder(tmp_path, monkeypatch):
    """A random encoder where load_encoder("mini", "small") looks for it."""
    monkeypatch.setenv("LBUTILS_DATA", str(tmp_path))
    folder = tmp_path / "mini" / "encoder" / "small"
    folder.mkdir(parents=True)
    config = mini.model_config(
        FEW.vocab_size, embed_dim=16, width=16, heads=2, layers=2, tower="lbutils_residual_tiny"
    )
    torch.manual_seed(0)
    model = lively(open_clip.CLIP(**config))
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    described = {"model_cfg": config, "preprocess_cfg": mini.preprocess_config()}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "pieces.json").write_text(json.dumps(FEW.pieces))
    return folder


def test_open_clips_factory_gives_the_same_features(encoder_folder, monkeypatch):
    monkeypatch.setattr(
        "lbutils.models.encoders.mini_file", lambda name: encoder_folder.parent / name
    )
    encoder = load_encoder("mini", device="cpu")
    model = open_clip.create_model(f"local-dir:{encoder_folder}").eval()
    assert isinstance(model.visual.trunk, mini.ResidualTower)
    texts = ["a fox", "an archipelago, drawn", "狐"]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        image, text = model.encode_image(pixels, True), model.encode_text(FEW(texts), True)
    # Not bit for bit: a processor's kernels may add up in another order (6e-8 was seen).
    found = ((encoder.encode_images(pixels), image), (encoder.encode_text(texts), text))
    for ours, theirs in found:
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    again = load_encoder(f"local-dir:{encoder_folder}", device="cpu")
    assert again.fingerprint == encoder.fingerprint
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_cropped_text_forward_equals_open_clips_gradients_included():
    torch.manual_seed(0)
    config = mini.model_config(600, embed_dim=24, width=16, heads=2, layers=3)
    model = open_clip.CLIP(**config)
    tokens = torch.zeros(7, 16, dtype=torch.long)
    for row in range(7):
        tokens[row, : 2 + row] = torch.randint(1, 590, (2 + row,))
        tokens[row, 1 + row] = 599
    weight = torch.randn(7, 24)
    results = []
    for forward in (model.encode_text, lambda tokens: mini.encode_text(model, tokens)):
        model.zero_grad()
        features = forward(tokens)
        (features * weight).sum().backward()
        named = model.named_parameters()
        grads = {name: p.grad.clone() for name, p in named if p.grad is not None}
        results.append((features.detach(), grads))
    (expected, expected_grads), (features, grads) = results
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=2e-5, rtol=1e-4)
    # What training relies on: no gradient at all reaches the padding.
    assert not grads["token_embedding.weight"][0].any()


# --------------------------------------------------------------------------- tokenizer


@settings(max_examples=examples(200))
@given(TEXTS)
def test_with_all_pieces_it_is_open_clips(text):
    assert torch.equal(WHOLE([text]), BPE([text]))
    assert WHOLE.encode(text) == BPE.encode(text)


@settings(max_examples=examples(200))
@given(TEXTS, st.sampled_from([WHOLE, FEW]))
def test_any_text_tokenizes_and_comes_back(text, tokenizer):
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == BPE.decode(BPE.encode(text))


@settings(max_examples=examples(100))
@given(st.lists(TEXTS, max_size=4), st.sampled_from([WHOLE, FEW]))
def test_rows_end_with_the_highest_id(texts, tokenizer):
    tokens = tokenizer(texts)
    assert tokens.shape == (len(texts), 16) and tokens.dtype == torch.long
    for row, text in zip(tokens, texts, strict=True):
        length = min(16, len(tokenizer.encode(text)) + 2)
        assert row[0] == tokenizer.sot_token_id and row[length - 1] == tokenizer.eot_token_id
        assert tokenizer.eot_token_id == tokenizer.vocab_size - 1 == row.max()
        assert not row[length:].any()


def test_words_without_kept_pieces_are_spelt():
    assert len(FEW.encode("a drawing of a fox")) == 5
    assert [FEW.decode([i]) for i in FEW.encode("owls")] == ["o", "w", "l", "s "]
    assert FEW("fox").shape == (1, 16) and FEW(["fox"], 5).shape == (1, 5)


@pytest.mark.parametrize(
    "pieces", [[3, 2], [], range(600), [*range(511), 49406, 49407], [*WHOLE.pieces, 49408]]
)
def test_unusable_pieces_are_refused(pieces):
    with pytest.raises(ValueError, match="kept BPE pieces must be"):
        mini.PieceTokenizer(pieces)


def test_eight_bits_are_within_half_a_step_of_the_weights():
    draw = torch.Generator().manual_seed(0)
    weights = {
        "matrix": torch.randn(7, 5, generator=draw).half(),
        "zero": torch.zeros(2, 3).half(),
        "filter": torch.randn(4, 3, 2, 2, generator=draw).half(),
        "gain": torch.randn(6, generator=draw).half(),
        "count": torch.tensor(3),
    }
    weights["matrix"][2] *= 1000
    packed = mini.to_eight_bits(weights)
    found = mini.from_eight_bits(packed)
    assert packed["matrix"].dtype == packed["zero"].dtype == torch.int8
    assert found.keys() == weights.keys()
    for name in ("filter", "gain", "count"):
        assert torch.equal(found[name], weights[name])
    largest = weights["matrix"].float().abs().amax(1, keepdim=True)
    error = (found["matrix"] - weights["matrix"].float()).abs()
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    assert torch.equal(found["zero"], torch.zeros(2, 3))


@pytest.mark.parametrize("change", ["missing", "short", "nan", "orphan", "flat"])
def test_eight_bits_without_their_steps_are_refused(change):
    packed = mini.to_eight_bits({"matrix": torch.ones(3, 2)})
    if change == "missing":
        del packed["matrix.step"]
    elif change == "short":
        packed["matrix.step"] = packed["matrix.step"][:2]
    elif change == "nan":
        packed["matrix.step"][1] = float("nan")
    elif change == "orphan":
        del packed["matrix"]
    else:
        packed["matrix"] = packed["matrix"].flatten()
    with pytest.raises(ValueError, match="matrix"):
        mini.from_eight_bits(packed)


def test_an_encoder_in_eight_bits_loads_as_its_rounded_weights(encoder_folder, caplog, monkeypatch):
    whole = encoder_folder / "open_clip_model.safetensors"
    rounded = mini.from_eight_bits(mini.to_eight_bits(load_file(whole)))
    save_file(mini.to_eight_bits(load_file(whole)), encoder_folder / mini.EIGHT_BIT_FILE)
    whole.unlink()
    monkeypatch.setattr(logging.root.manager, "disable", logging.DEBUG)
    model = load_encoder(f"local-dir:{encoder_folder}", device="cpu").model
    assert not caplog.records and logging.root.manager.disable == logging.DEBUG
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, rounded[name].to(tensor.dtype)), name
    (encoder_folder / mini.EIGHT_BIT_FILE).write_bytes(b"no weights")
    with pytest.raises(ValueError, match="download it again"):
        load_encoder(f"local-dir:{encoder_folder}", device="cpu")
