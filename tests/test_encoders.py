"""Encoders: unit features, frozen weights, telling fingerprints, and messages that help."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import torch
from conftest import bpe_tokenizer
from PIL import Image
from safetensors.torch import save_file

from lbutils.models import mini
from lbutils.models.encoders import DualEncoder, encoder_table, load_encoder

FILES = ("open_clip_config.json", "open_clip_model.safetensors", "pieces.json")


@pytest.fixture(scope="module")
def tokenizer():
    return mini.PieceTokenizer(mini.always_kept(bpe_tokenizer()))


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
    (folder / FILES[2]).write_text(json.dumps(mini.always_kept(bpe_tokenizer())))
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
        fingerprint(tokens=bpe_tokenizer()),
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
    restore = f"copy data/mini/encoder/small/{file} of the repository"
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

    monkeypatch.setattr("lbutils.models.encoders.registry.download_pretrained", unreachable)
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


# --------------------------------------------------------------------------- settings that differ


def test_a_preprocessing_of_other_weights_is_refused(tokenizer):
    model = tiny_model()
    model.visual.preprocess_cfg = mini.preprocess_config(32)
    assert DualEncoder(model, tokenizer, mini.preprocess_config(32)).preprocess_config["size"] == 32
    for key, value in (("mean", (0.5, 0.5, 0.5)), ("size", 48), ("resize_mode", "squash")):
        with pytest.raises(ValueError, match=f"prepared with {key} .*leave the preprocessing"):
            DualEncoder(model, tokenizer, {**mini.preprocess_config(32), key: value})


@pytest.mark.parametrize(
    ("name", "tag", "right"),
    [
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-L-14", "metaclip_400m", "ViT-L-14-quickgelu"),
        ("ViT-H-14", "dfn5b", "ViT-H-14-quickgelu"),
        ("ViT-B-16-quickgelu", "laion400m_e32", "ViT-B-16"),
    ],
)
def test_the_other_gelu_is_refused(name, tag, right):
    with pytest.raises(ValueError, match="QuickGELU") as error:
        load_encoder(name, tag)
    assert f'load_encoder("{right}", "{tag}")' in str(error.value)
    assert (right, tag) in open_clip.list_pretrained()


def test_a_file_in_the_hubs_cache_is_known_by_its_place(tmp_path):
    folder = tmp_path / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / "1"
    folder.mkdir(parents=True)
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="was trained with QuickGELU, ViT-B-16 is without"):
        load_encoder("ViT-B-16", file)
    file = tmp_path / "b16_400m.pt"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r'load_encoder\("ViT-B-16-quickgelu", ".*b16_400m.pt"\)'):
        load_encoder("ViT-B-16", file)


def test_weights_of_another_size_are_not_resized(tmp_path):
    config = tiny_config()
    config["vision_cfg"] = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    config["text_cfg"]["vocab_size"] = 49408
    paths = {}
    for side in (32, 64):
        paths[side] = tmp_path / f"tiny-{side}.json"
        config["vision_cfg"]["image_size"] = side
        paths[side].write_text(json.dumps(config))
        open_clip.add_model_config(paths[side])
    try:
        torch.manual_seed(0)
        state = open_clip.create_model("tiny-64").state_dict()
        save_file(state, tmp_path / "w.safetensors")
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
        for file in (tmp_path / "w.safetensors", tmp_path / "w.pt"):
            assert load_encoder("tiny-64", file, "cpu").preprocess_config["size"] == (64, 64)
            with pytest.raises(ValueError, match=r"another image size.*\(65, 32\), not \(17, 32\)"):
                load_encoder("tiny-32", file, "cpu")
    finally:
        for side, path in paths.items():
            open_clip.factory._MODEL_CONFIGS.pop(f"tiny-{side}")
            open_clip.factory._MODEL_CONFIG_PATHS.remove(path)


class Spy:
    """An object that would write a file if it were unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_code_in_a_file_of_weights_is_not_run(architecture, tmp_path):
    file, place = tmp_path / "weights.pt", tmp_path / "ran"
    torch.save({"state_dict": {"logit_scale": Spy(place)}}, file)
    with pytest.raises(ValueError, match=r"weights\.pt holds more than weights"):
        load_encoder("tiny-test", file, "cpu")
    assert not place.exists()


def test_a_folder_must_say_how_images_are_prepared(tmp_path):
    folder = write_folder(tmp_path / "mine")
    described = json.loads((folder / FILES[0]).read_text())

    def described_as(preprocess):
        (folder / FILES[0]).write_text(json.dumps({**described, "preprocess_cfg": preprocess}))
        return f"local-dir:{folder}"

    told = described["preprocess_cfg"]
    for key in ("mean", "std"):
        silent = {name: value for name, value in told.items() if name != key}
        with pytest.raises(
            ValueError, match=f"does not say how images are prepared: add {key} of "
        ):
            load_encoder(described_as(silent), device="cpu")
    with pytest.raises(ValueError, match="prepared with size 64, its weights want 32"):
        load_encoder(described_as({**told, "size": 64}), device="cpu")
    assert load_encoder(described_as(told), device="cpu").preprocess_config["mean"] == told["mean"]


def test_a_copy_on_the_hub_must_have_the_registrys_preprocessing(monkeypatch, tmp_path):
    from lbutils.models import encoders

    name = "hf-hub:laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    model = tiny_model()
    model.visual.preprocess_cfg = mini.preprocess_config(32)  # not that of these weights
    monkeypatch.setattr(encoders.open_clip, "create_model", lambda *_, **__: model)
    monkeypatch.setattr(encoders.open_clip, "get_tokenizer", lambda *_, **__: None)
    file = write_folder(tmp_path / "mine") / FILES[0]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr(encoders.registry, "download_pretrained_from_hf", lambda *_: str(file))
    right = r'load_encoder\("ViT-L-14", "laion2b_s32b_b82k"\)'
    with pytest.raises(ValueError, match=rf"weights want \[0\.5, 0\.5, 0\.5\]: {right}"):
        load_encoder(name)


def test_a_folder_in_the_hubs_cache_must_too(tmp_path):
    place = tmp_path / "models--apple--DFN5B-CLIP-ViT-H-14" / "snapshots" / "1"
    folder = write_folder(place)
    right = r'load_encoder\("ViT-H-14-quickgelu", "dfn5b"\)'
    with pytest.raises(ValueError, match=f"resize_mode shortest, its weights want squash: {right}"):
        load_encoder(f"local-dir:{folder}", device="cpu")


# --------------------------------------------------------------------------- the table


def test_a_row_names_model_and_tag(monkeypatch):
    asked = []

    def unreachable(config):
        asked.append(config["hf_hub"])
        raise URLError("no route to host")

    monkeypatch.setattr("lbutils.models.encoders.registry.download_pretrained", unreachable)
    for name in ("ViT-B-16-quickgelu:openai", "EVA02-B-16:merged2b_s8b_b131k"):
        row = encoder_table().loc[name]
        with pytest.raises(RuntimeError, match=f"{row['pretrained']} of {row['model']} could not"):
            load_encoder(name)
    assert asked == [
        "timm/vit_base_patch16_clip_224.openai/",
        "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k/",
    ]
    with pytest.raises(ValueError, match="Did you mean 'ViT-B-16:laion400m_e32'"):
        load_encoder("ViT-B-16:laion400m")


def test_a_row_with_weights_at_hand(tmp_path):
    """The file is read as the row's, preprocessing included; a folder, as transformers'."""
    file = tmp_path / "mine.safetensors"
    save_file({"logit_scale": torch.zeros(())}, file)
    with pytest.raises(ValueError, match=r"mine\.safetensors does not hold intact weights of RN50"):
        load_encoder("RN50-quickgelu:openai", file)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: the folder after tran"):
        load_encoder("align-base", tmp_path)


def test_a_file_of_a_row_gets_the_preprocessing_of_its_tag(architecture, tmp_path, monkeypatch):
    tagged = open_clip.pretrained._pcfg(hf_hub="me/tiny/", mean=(0.1, 0.2, 0.3), std=(0.5,) * 3)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-test", {"mine": tagged})
    monkeypatch.setenv("LBUTILS_DATA", str(tmp_path))
    (tmp_path / "encoders.csv").write_text(
        "name,library,model,pretrained\ntiny-test:mine,open_clip,tiny-test,mine\n"
    )
    file = tmp_path / "weights.safetensors"
    save_file(open_clip.CLIP(**architecture).state_dict(), file)
    encoder = load_encoder("tiny-test:mine", file, "cpu")
    assert (encoder.name, encoder.pretrained) == ("tiny-test", str(file))
    assert encoder.preprocess_config["mean"] == (0.1, 0.2, 0.3)


def test_folders_of_the_two_libraries_are_told_apart(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match='load_encoder."transformers:.*reads one of trans'):
        load_encoder(f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match="brings its own weights"):
        load_encoder(f"transformers:{tmp_path}", "openai")


# --------------------------------------------------------------------------- transformers


def save_clip(folder, **crop):
    transformers = pytest.importorskip("transformers")
    from conftest import save_word_pieces

    save_word_pieces(folder, ("[CLS]", "[SEP]"))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    texts = {"vocab_size": 256, "max_position_embeddings": 12, "eos_token_id": 3}
    config = transformers.CLIPConfig(
        text_config={**small, **texts}, vision_config={**small, "image_size": 32, "patch_size": 8}
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32, **crop}
    transformers.CLIPImageProcessor(crop_size=size, size={"shortest_edge": 32}).save_pretrained(
        folder
    )
    return folder


def test_a_folder_of_transformers_that_does_not_fit(tmp_path):
    folder = save_clip(tmp_path)
    name = f"transformers:{folder}"
    encoder = load_encoder(name, device="cpu")
    assert (encoder.name, encoder.context_length) == (name, 12)
    assert encoder.fingerprint == load_encoder(name, device="cpu").fingerprint
    config = json.loads((folder / "config.json").read_text())
    wider = {**config, "projection_dim": 20}
    (folder / "config.json").write_text(json.dumps(wider))
    with pytest.raises(ValueError, match="does not hold intact weights"):
        load_encoder(name, device="cpu")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="does not hold intact weights"):
        load_encoder(name, device="cpu")
    save_clip(folder, height=48, width=48)
    with pytest.raises(ValueError, match="makes 48 x 48 pixels, which its model does not take"):
        load_encoder(name, device="cpu")


def cached(home, repository, folder):
    """A folder as the hub's cache keeps a repository."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    Path(folder).rename(place / "snapshots" / ("0" * 40))


OFFLINE = """
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
import open_clip
from open_clip import pretrained as registry
from lbutils import load_encoder
from lbutils.models import mini
print(load_encoder("hf-hub:me/open-clip-tiny", device="cpu").fingerprint)
print(load_encoder("transformers:me/clip-tiny", device="cpu").fingerprint)
open_clip.add_model_config(Path("tiny-test.json"))
tag = registry._pcfg(hf_hub="me/open-clip-tiny/")
registry._PRETRAINED["tiny-test"] = {"mine": tag}
print(load_encoder("tiny-test", "mine", device="cpu").fingerprint)
for name in ("hf-hub:me/absent", "transformers:me/absent", "ViT-B-32:laion2b_s34b_b79k"):
    try:
        load_encoder(name, device="cpu")
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.slow
def test_what_was_downloaded_is_found_offline(tmp_path):
    (tmp_path / "b").mkdir()
    ours, theirs = write_folder(tmp_path / "a"), save_clip(tmp_path / "b")
    described = json.loads((ours / FILES[0]).read_text())
    described["model_cfg"]["text_cfg"]["vocab_size"] = 49408
    (ours / FILES[0]).write_text(json.dumps(described))
    torch.manual_seed(0)
    model = open_clip.CLIP(**described["model_cfg"])
    save_file(model.state_dict(), ours / FILES[1])
    (ours / FILES[2]).unlink()
    expected = [
        load_encoder(name, device="cpu").fingerprint
        for name in (f"local-dir:{ours}", f"transformers:{theirs}")
    ]
    (tmp_path / "tiny-test.json").write_text(json.dumps(described["model_cfg"]))
    cached(tmp_path / "home", "me/open-clip-tiny", ours)
    cached(tmp_path / "home", "me/clip-tiny", theirs)
    found = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    lines = found.stdout.splitlines()
    assert lines[:2] == expected and len(lines) == 6, found.stderr
    # The tag's own preprocessing, which is white around images in the folder's configuration only.
    assert lines[2] != expected[0] and len(lines[2]) == 64
    assert all("could not be downloaded from" in line for line in lines[3:])
