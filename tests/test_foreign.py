"""Somebody else's encoder is data: nothing in it runs code, reaches out or leads elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from test_families import build_hub, build_open_clip

from lbutils.models import foreign
from lbutils.models.encoders import load_encoder

CODE = """
import os
os.mkdir({canary!r})
from transformers import *
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(PreTrainedConfig): model_type = "evil"
class EvilModel(CLIPModel): pass
class EvilProcessor(CLIPImageProcessor): pass
"""
COMMIT = "0" * 40


class Pickled:
    """An object that makes a folder where it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of open_clip's with a text tower of transformers, and one of transformers."""
    folders = {}
    for kind, build, family in (("open_clip", build_open_clip, "LiT"), ("hub", build_hub, "CLIP")):
        folders[kind] = tmp_path_factory.mktemp(kind)
        build(family, folders[kind])
    change(folders["open_clip"] / "open_clip_config.json", hf_model_name=".")
    return folders


@pytest.fixture
def planted(kept, tmp_path, monkeypatch):
    """Function from a kind to a copy of its folder with a file of code, and the code's canary."""
    canary = tmp_path / "ran"
    asked = []
    monkeypatch.setattr("builtins.input", lambda *told: asked.append(told) or "y")
    for reach in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, reach, lambda *there: asked.append(there) or 1 / 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *there, **_: asked.append(there) or 1 / 0)

    def copy(kind):
        folder = tmp_path / kind
        shutil.copytree(kept[kind], folder)
        (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
        return folder

    copy.canary, copy.asked = canary, asked
    return copy


def change(file, **settings):
    """Set keys of a JSON file, in whichever of its objects has them, else at its top."""
    content = json.loads(file.read_text()) if file.exists() else {}

    def place(found, key):
        if key in found:
            return found
        inner = [part for part in found.values() if isinstance(part, dict)]
        return next((at for at in (place(part, key) for part in inner) if at), None)

    for key, value in settings.items():
        (place(content, key) or content)[key] = value
    file.write_text(json.dumps(content))


def tower(folder, part, **settings):
    """Set keys of a tower in an open_clip_config.json."""
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"][part] |= settings
    file.write_text(json.dumps(content))


def code(file, *kinds, **more):
    """A plant: a configuration that maps classes of transformers to the file of code."""
    classes = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.EvilConfig"}
    classes |= {"AutoModel": "evil.EvilModel", "AutoImageProcessor": "evil.EvilProcessor"}
    mapped = {kind: classes[kind] for kind in kinds}
    return lambda folder: change(folder / file, auto_map=mapped, **more)


def pickled(file, weights):
    def plant(folder):
        (folder / weights).unlink()
        torch.save({"logit_scale": Pickled(folder.parent / "ran")}, folder / file)

    return plant


def linked(file):
    def plant(folder):
        (folder / file).rename(folder.parent / "away")
        (folder / file).symlink_to(folder.parent / "away")

    return plant


def index(name):
    def plant(folder):
        (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
        listed = json.dumps({"metadata": {}, "weight_map": {"logit_scale": name}})
        (folder / "model.safetensors.index.json").write_text(listed)

    return plant


def described(part, **settings):
    return lambda folder: tower(folder, part, **settings)


def config(file="config.json", **settings):
    return lambda folder: change(folder / file, **settings)


def trusting(folder):
    tower(folder, "text_cfg", tokenizer_kwargs={"trust_remote_code": True})
    code("tokenizer_config.json", "AutoTokenizer")(folder)


TOKENIZER = "tokenizer_config.json"
# Of a folder of open_clip's or transformers' (or both), what is planted, and what is refused.
ANY = {
    "tokenizer": (code(TOKENIZER, "AutoTokenizer"), "auto_map"),
    "a tokenizer of another class": (
        code(TOKENIZER, "AutoTokenizer", tokenizer_class="Evil"),
        "auto_map",
    ),
    "processor": (code("processor_config.json", "AutoImageProcessor"), "auto_map"),
    "generation": (config("generation_config.json", custom_generate="evil.py"), "custom_generate"),
    "configuration": (code("config.json", "AutoConfig", "AutoModel"), "auto_map"),
    "an unknown type": (
        code("config.json", "AutoConfig", model_type="evil", architectures=["EvilModel"]),
        "auto_map",
    ),
    "kernel": (config(_attn_implementation="evil/kernel"), "_attn_implementation"),
    "kernel by parts": (config(attn_implementation={"": "evil/kernel@v1:run"}), "kernel to fetch"),
    "packed weights": (config(quantization_config={"quant_method": "evil"}), "quantization_config"),
    "trunk": (config(backbone="evil/trunk", use_timm_backbone=True), "backbone"),
    "trunk of timm": (config(architecture="hf-hub:evil/trunk"), "architecture"),
    "weights of a trunk": (config(use_pretrained_backbone=True), "use_pretrained_backbone"),
    "adapter": (
        config("adapter_config.json", base_model_name_or_path="evil/base"),
        "adapter_config",
    ),
    "vocabulary": (config(TOKENIZER, vocab_file="../../vocab.txt"), "vocab_file"),
    "vocabulary of the disk": (config(TOKENIZER, vocab_file="/etc/passwd"), "vocab_file"),
    "arguments": (config(TOKENIZER, init_inputs=["/etc/passwd"]), "init_inputs"),
    "link": (linked(TOKENIZER), "is a link out of"),
    "mark": (
        lambda folder: (folder / "config.json").write_bytes(
            b"\xef\xbb\xbf" + (folder / "config.json").read_bytes()
        ),
        "byte-order mark",
    ),
    "cut short": (lambda folder: (folder / "config.json").write_text("{"), "not readable JSON"),
    "a list": (lambda folder: (folder / TOKENIZER).write_text("[]"), "no JSON object"),
}
OPEN_CLIP = {
    "trust in code": (trusting, "auto_map|trust_remote_code"),
    "trust": (
        described("text_cfg", tokenizer_kwargs={"trust_remote_code": True}),
        "trust_remote_code",
    ),
    "vocabulary of the tokenizer": (
        described("text_cfg", tokenizer_kwargs={"bpe_path": "/etc/passwd"}),
        "bpe_path",
    ),
    "text tower of the hub": (described("text_cfg", hf_model_name="evil/text"), "evil/text"),
    "text tower above": (described("text_cfg", hf_model_name="../hub"), r"\.\./hub"),
    "trunk of the hub": (
        described("vision_cfg", timm_model_name="hf-hub:evil/trunk"),
        "hf-hub:evil/trunk",
    ),
    "trunk of the disk": (
        described("vision_cfg", timm_model_name="local-dir:/tmp"),
        "local-dir:/tmp",
    ),
    "unknown key": (described("text_cfg", checkpoint="/etc/passwd"), "checkpoint"),
    "another type": (described("vision_cfg", layers="1"), "layers of vision_cfg is '1', wanted"),
    "a number beyond reason": (described("vision_cfg", width=10**12), "width of vision_cfg"),
    "no division": (described("vision_cfg", head_width=0), "does not hold intact weights"),
    "projection": (described("text_cfg", hf_proj_type="evil"), "does not hold intact weights"),
    "pooler": (described("text_cfg", hf_pooler_type="os.mkdir"), "does not hold intact weights"),
    "not a mapping": (
        lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": []}'),
        "no model_cfg",
    ),
    "no towers": (
        lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": {}}'),
        "lacks embed_dim, vision_cfg, text_cfg",
    ),
}
OPEN_CLIP_FILES = {
    "pickle": (
        pickled("open_clip_pytorch_model.bin", "open_clip_model.safetensors"),
        "holds more than weights",
    ),
    "weights by link": (linked("open_clip_model.safetensors"), "is a link out of"),
    "a broken zip": (
        lambda folder: [
            (folder / "open_clip_model.safetensors").unlink(),
            (folder / "open_clip_pytorch_model.bin").write_bytes(b"PK\x03\x04 and no more"),
        ],
        "does not hold intact weights",
    ),
}
HUB = {
    "image processor": (code("preprocessor_config.json", "AutoImageProcessor"), "auto_map"),
    "kernel of a tower": (
        lambda folder: change(folder / "config.json", text_config={"_attn_implementation": "a/b"}),
        "_attn_implementation",
    ),
}
HUB_FILES = {
    "no class of models": (config(architectures=["pipeline"]), "'pipeline' among its arch"),
    "pickle": (pickled("pytorch_model.bin", "model.safetensors"), "does not hold|more than weigh"),
    "index": (index("../model.safetensors"), r"names weights outside.*\.\./model"),
    "index of the disk": (index("/tmp/model.safetensors"), "names weights outside"),
    "index without names": (index(["a"]), "no weight_map"),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": 7}'),
        "does not hold",
    ),
}


def replaced(file, make):
    def plant(folder):
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return plant


DISK = {
    "a pipe": (replaced(TOKENIZER, os.mkfifo), "is no file"),
    "a pipe for settings": (replaced("processor_config.json", os.mkfifo), "is no file"),
    "a folder for a file": (replaced(TOKENIZER, Path.mkdir), "is no file"),
    # Where disks take names in any case, it is config.json.
    "another case": (code("Tokenizer_Config.JSON", "AutoTokenizer"), "auto_map"),
    "adapter in another case": (
        config("Adapter_Config.json", base_model_name_or_path="evil/base"),
        "Adapter_Config",
    ),
}
# The folder of open_clip here has no image processor of transformers, and no weights for it.
FOLDERS = [
    *(("open_clip", plant) for plant in {**ANY, **DISK, **OPEN_CLIP, **OPEN_CLIP_FILES}.items()),
    *(("hub", plant) for plant in {**ANY, **DISK, **HUB, **HUB_FILES}.items()),
]


def label(case):
    return f"{case[0]}, {case[1][0]}"


def refuses(planted, name, told):
    with pytest.raises((ValueError, RuntimeError), match=told) as error:
        load_encoder(name, device="cpu")
    assert not planted.canary.exists() and planted.asked == []
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("case", FOLDERS, ids=label)
def test_a_folder_is_data(planted, case):
    kind, (_, (plant, told)) = case
    folder = planted(kind)
    plant(folder)
    prefix = {"open_clip": "local-dir:", "hub": "transformers:"}[kind]
    assert str(folder) in refuses(planted, f"{prefix}{folder}", told)


@pytest.fixture
def published(planted, tmp_path, monkeypatch):
    """Function that puts a folder into the hub's cache, as the repository evil/model."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def publish(folder, name="evil/model"):
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        shutil.copytree(folder, place / "snapshots" / COMMIT)
        return name

    return publish


# The same checks run on what was fetched: one case for each file that they must find there, and
# what a repository may name that a folder may not. What a link names is not on this disk.
FETCHED = ("tokenizer", "processor", "generation", "configuration", "adapter", "mark")
REPOSITORIES = [
    *(("open_clip", (name, ANY[name])) for name in FETCHED),
    *(("open_clip", (name, OPEN_CLIP[name])) for name in ("trust in code", "text tower above")),
    *(("open_clip", (name, OPEN_CLIP[name])) for name in ("trunk of the hub", "not a mapping")),
    *(("hub", plant) for plant in {**{name: ANY[name] for name in FETCHED}, **HUB}.items()),
]


@pytest.mark.parametrize("case", REPOSITORIES, ids=label)
def test_a_repository_is_data(planted, published, case):
    kind, (_, (plant, told)) = case
    folder = planted(kind)
    tower_of = {"open_clip": "evil/model"}
    if kind in tower_of:
        tower(folder, "text_cfg", hf_model_name="evil/model", hf_tokenizer_name="evil/model")
    plant(folder)
    prefix = {"open_clip": "hf-hub:", "hub": "transformers:"}[kind]
    refuses(planted, f"{prefix}{published(folder)}", told)


@pytest.mark.parametrize("kind", ["open_clip", "hub"])
def test_what_is_plain_loads_alike(kept, planted, published, kind):
    """From a folder, and by a repository's name from the hub's cache, without a network."""
    folder = planted(kind)
    here, there = {"open_clip": ("local-dir:", "hf-hub:"), "hub": ("transformers:",) * 2}[kind]
    first = load_encoder(f"{here}{folder}", device="cpu")
    if kind == "open_clip":
        tower(folder, "text_cfg", hf_model_name="evil/model", hf_tokenizer_name="evil/model")
    second = load_encoder(f"{there}{published(folder)}", device="cpu")
    texts = ["the drawing of axolotl"]
    assert torch.equal(first.encode_text(texts), second.encode_text(texts))
    assert planted.asked == [] and not planted.canary.exists()


def test_links_of_the_hubs_cache_are_followed(kept, planted, published):
    """A snapshot is made of links to the blobs beside it."""
    name = published(planted("hub"))
    place = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    (place / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(place / "blobs" / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    assert load_encoder(f"transformers:{snapshot}", device="cpu").dim == 24


def test_open_clips_own_configurations_are_admitted(monkeypatch):
    monkeypatch.setattr(foreign, "check_repository", lambda name: None)
    for name in open_clip.list_models():
        described = {"model_cfg": open_clip.get_model_config(name)}
        assert foreign.open_clip_settings(described, name)["vision_cfg"]


def test_pieces_that_are_none(planted, kept):
    folder = planted("open_clip")
    for text in ("{", "[1, 2]", '["a"]', "\ufeff[]"):
        (folder / "pieces.json").write_text(text)
        assert "pieces.json" in refuses(planted, f"local-dir:{folder}", "does not hold a tokenizer")
