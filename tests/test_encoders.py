"""Encoders: unit features, frozen weights, telling fingerprints, and messages that help."""

from __future__ import annotations

import csv
import hashlib
import json
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lbutils import mini
from lbutils.encoders import DualEncoder, load_encoder

FILES = ("open_clip_config.json", "open_clip_model.safetensors", "pieces.json")


@pytest.fixture(scope="module")
def tokenizer():
    bpe = open_clip.SimpleTokenizer()
    return mini.PieceTokenizer(mini.always_kept(bpe))


def tiny_config(**options):
    small = {"embed_dim": 16, "width": 16, "heads": 2, "layers": 1, "image_size": 32}
    return mini.model_config(514, **{**small, "tower": "lbutils_residual_tiny", **options})


def tiny_model(**options):
    torch.manual_seed(0)
    return open_clip.CLIP(**tiny_config(), **options)


@pytest.fixture
def encoder(tokenizer):
    return DualEncoder(tiny_model(), tokenizer, {"size": 32}, name="tiny")


def write_folder(folder):
    folder.mkdir(parents=True)
    described = {"model_cfg": tiny_config(), "preprocess_cfg": mini.preprocess_config(32)}
    (folder / FILES[0]).write_text(json.dumps(described))
    save_file(tiny_model().state_dict(), folder / FILES[1])
    (folder / FILES[2]).write_text(json.dumps(mini.always_kept(open_clip.SimpleTokenizer())))
    return folder


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """A data folder with an encoder "small" and its checksums."""
    monkeypatch.setenv("LBUTILS_DATA", str(tmp_path))
    folder = write_folder(tmp_path / "mini" / "encoder" / "small")
    with (tmp_path / "mini" / "checksums.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "sha256"])
        for path in folder.iterdir():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            writer.writerow([f"encoder/small/{path.name}", digest])
    return folder


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def test_features_have_unit_length(encoder, image):
    pixels = torch.stack([encoder.preprocess(image), encoder.augment(image)])
    assert pixels.shape == (2, 3, 32, 32)
    images, texts = encoder.encode_images(pixels), encoder.encode_text(["a fox", "an owl", "狐"])
    assert images.shape == (2, 16) and texts.shape == (3, 16) and encoder.dim == 16
    for features in (images, texts):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    expected = torch.nn.functional.normalize(encoder.model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(images, expected)


def test_texts_tokenize_to_the_context_length(encoder):
    assert encoder.context_length == 16
    assert encoder.tokenize(("a fox", "b")).shape == (2, 16)


def test_the_encoder_is_frozen(encoder, image):
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    encoder.encode_images(encoder.preprocess(image)[None].expand(4, -1, -1, -1))
    after = encoder.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_white_stays_white_without_augmentation(encoder):
    pixels = encoder.preprocess(Image.new("RGB", (50, 32), "white"))
    config = mini.preprocess_config()
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(pixels, ((1 - mean) / std).expand(3, 32, 32))


def test_fingerprint_tells_what_decides_the_features(tokenizer):
    def fingerprint(model=None, tokens=tokenizer, **preprocess):
        preprocess = {"size": 32, **preprocess}
        return DualEncoder(model or tiny_model(), tokens, preprocess).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    weights = tiny_model()
    with torch.no_grad():
        weights.visual.trunk.stem[0].weight[0, 0, 0, 0] += 1e-3
    statistics = tiny_model()
    statistics.visual.trunk.stem[1].running_var[0] += 1e-3
    others = [
        fingerprint(weights),
        fingerprint(statistics),
        fingerprint(tiny_model(quick_gelu=True)),
        fingerprint(size=48),
        fingerprint(mean=(0.5, 0.5, 0.5)),
        fingerprint(tokens=open_clip.SimpleTokenizer(context_length=16)),
        fingerprint(tokens=mini.PieceTokenizer(sorted({*tokenizer.pieces, 40000}))),
    ]
    assert len({first, *others}) == 8


def test_fingerprint_of_half_precision(tokenizer):
    model = tiny_model()
    halves = [DualEncoder(tiny_model().to(t), tokenizer, {"size": 32}) for t in (None, torch.half)]
    bfloat = DualEncoder(model.bfloat16(), tokenizer, {"size": 32})
    assert len({encoder.fingerprint for encoder in [*halves, bfloat]}) == 3
    assert bfloat.encode_images(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_preprocessing_must_come_from_somewhere(tokenizer):
    with pytest.raises(ValueError, match="preprocess"):
        DualEncoder(tiny_model(), tokenizer)


# --------------------------------------------------------------------------- loading


def test_the_miniature_loads(committed):
    encoder = load_encoder("mini", device="cpu")
    assert (encoder.name, encoder.pretrained) == ("mini", "small")
    assert isinstance(encoder.tokenizer, mini.PieceTokenizer)
    assert encoder.preprocess_config["size"] in (32, (32, 32))
    assert load_encoder("mini", "small", "cpu").fingerprint == encoder.fingerprint
    assert encoder.model.logit_scale.dtype == torch.float32


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_miniature_is_restored_by_a_named_command(committed, file):
    restore = f"git checkout -- data/mini/encoder/small/{file}"
    data = (committed / file).read_bytes()
    (committed / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=restore):
        load_encoder("mini")
    (committed / file).unlink()
    with pytest.raises(FileNotFoundError, match=restore):
        load_encoder("mini")


def test_unknown_names_get_the_nearest(committed):
    with pytest.raises(ValueError, match=r"choose from small\. Did you mean 'small'\?"):
        load_encoder("mini", "smal")
    with pytest.raises(ValueError, match=r"unknown encoder .*mini.*Did you mean 'ViT-B-16'\?"):
        load_encoder("ViT-B16", "openai")
    with pytest.raises(ValueError, match=r"openai.*Did you mean 'laion400m_e32'\?"):
        load_encoder("ViT-B-16", "laion400_e32")
    with pytest.raises(ValueError, match=r"ViT-B-16 needs pretrained weights: a file, or one of"):
        load_encoder("ViT-B-16")
    for name in ("ViT-B16", "nothing at all"):
        with pytest.raises(ValueError) as error:
            load_encoder(name)
        assert "\n" not in str(error.value)


def test_weights_out_of_reach_say_what_to_do(monkeypatch):
    def unreachable(config):
        raise URLError("no route to host\nand more")

    monkeypatch.setattr("lbutils.encoders.registry.download_pretrained", unreachable)
    with pytest.raises(RuntimeError) as error:
        load_encoder("ViT-B-16", "laion400m_e32")
    message = str(error.value)
    assert "laion400m_e32 of ViT-B-16" in message and "no route to host" in message
    assert 'load_encoder("ViT-B-16", "<file>")' in message and "\n" not in message


@pytest.fixture
def architecture(tmp_path):
    """A tiny architecture "tiny-test" that open_clip knows."""
    path = tmp_path / "tiny-test.json"
    config = tiny_config()
    config["text_cfg"]["vocab_size"] = 49408
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    yield config
    from open_clip import factory

    del factory._MODEL_CONFIGS["tiny-test"]
    factory._MODEL_CONFIG_PATHS.remove(path)


def test_weights_of_a_file(architecture, tmp_path):
    torch.manual_seed(1)
    model = open_clip.CLIP(**architecture)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    encoder = load_encoder("tiny-test", file, "cpu")
    assert encoder.pretrained == str(file)
    pixels = torch.randn(2, 3, 32, 32)
    expected = model.eval().encode_image(pixels, normalize=True)
    torch.testing.assert_close(encoder.encode_images(pixels), expected)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"weights\.safetensors does not hold intact weights"):
        load_encoder("tiny-test", file, "cpu")
    save_file(tiny_model().state_dict(), file)
    with pytest.raises(ValueError, match=r"weights\.safetensors does not hold intact weights"):
        load_encoder("tiny-test", file, "cpu")
    with pytest.raises(ValueError, match="unknown file or tag of weights of tiny-test"):
        load_encoder("tiny-test", tmp_path / "absent.safetensors", "cpu")


def test_a_local_folder(tmp_path):
    folder = write_folder(tmp_path / "mine")
    encoder = load_encoder(f"local-dir:{folder}", device="cpu")
    assert encoder.tokenizer.vocab_size == 514
    with pytest.raises(ValueError, match="brings its own weights"):
        load_encoder(f"local-dir:{folder}", "small")
    (folder / FILES[1]).write_bytes(b"{}")
    with pytest.raises(ValueError, match="does not hold intact weights"):
        load_encoder(f"local-dir:{folder}", device="cpu")
    (folder / FILES[0]).unlink()
    with pytest.raises(FileNotFoundError, match=r"open_clip_config\.json is missing"):
        load_encoder(f"local-dir:{folder}", device="cpu")
