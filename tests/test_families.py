"""Every family of encoders, tiny and random: one path from a folder to learned names."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import save_bert, save_word_pieces
from open_clip import pretrained as registry
from PIL import Image
from safetensors.torch import save_file

from lbutils import NameLearner
from lbutils.data.benchmark import Split
from lbutils.models import encoders
from lbutils.models import families as towers
from lbutils.models.classifier import text_classifier
from lbutils.models.encoders import encoder_table, load_encoder
from lbutils.models.features import image_features
from lbutils.rivals.probes import ZeroShot

transformers = pytest.importorskip("transformers")

NAMES = ("red panda", "axolotl", "hammerhead shark")
TEMPLATE = "the drawing of {name}"
PROMPTS = [TEMPLATE.format(name=name) for name in NAMES]
LENGTH, SIDE = 12, 32


@dataclass(frozen=True)
class InMemory:
    """Images of noise around a colour for each class, as PNG."""

    advice = "draw it again"

    def read(self, image_id):
        draw = np.random.default_rng(int(image_id))
        shade = np.eye(3)[int(image_id) % 3] * 160
        pixels = np.clip(shade + draw.integers(0, 96, (40, 48, 3)), 0, 255).astype(np.uint8)
        written = io.BytesIO()
        Image.fromarray(pixels).save(written, "PNG")
        return written.getvalue()

    def stamp(self, image_id):
        return image_id


@pytest.fixture(scope="module")
def pictures():
    ids = tuple(str(i) for i in range(6))
    return Split(ids, np.arange(6) % 3, NAMES, (None,) * 6, InMemory())


def roughen(model):
    """Biases and norms start at 0 and 1, where mistakes in them would not show; weights, so small
    that all images look alike."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif parameter.ndim in (2, 4):
            parameter.data *= 3
    return model.eval()


# --------------------------------------------------------------------------- open_clip

# A family's architecture, and a small trunk of the same kind where timm builds its image tower.
OPEN_CLIP = {
    "OpenAI CLIP": ("ViT-B-16-quickgelu", "openai", ""),
    "OpenAI CLIP, residual": ("RN50-quickgelu", "openai", ""),
    "OpenCLIP 400M": ("ViT-B-16", "laion400m_e32", ""),
    "OpenCLIP 2B": ("convnext_base_w", "laion2b_s13b_b82k_augreg", "test_convnext"),
    "MetaCLIP": ("ViT-B-32-quickgelu", "metaclip_400m", ""),
    "MetaCLIP 2": ("ViT-H-14-worldwide-quickgelu", "metaclip2_worldwide", ""),
    "DataComp": ("ViT-B-32-256", "datacomp_s34b_b86k", ""),
    "DFN": ("ViT-H-14-378-quickgelu", "dfn5b", ""),
    "EVA-CLIP": ("EVA02-B-16", "merged2b_s8b_b131k", "eva02_tiny_patch14_224"),
    "SigLIP": ("ViT-B-16-SigLIP", "webli", "test_vit"),
    "SigLIP 2": ("ViT-B-16-SigLIP2", "webli", "test_vit"),
    "PE-Core": ("PE-Core-B-16", "meta", "test_vit"),
    "CoCa": ("coca_ViT-B-32", "laion2b_s13b_b90k", ""),
    "LiT": ("xlm-roberta-large-ViT-H-14", "frozen_laion5b_s13b_b90k", ""),
}


def shrunk(arch, trunk, folder):
    """open_clip's own configuration of an architecture, its numbers made small."""
    config = open_clip.get_model_config(arch)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = 32
    if trunk:
        side = {"eva02_tiny_patch14_224": 224, "test_vit": 160}.get(trunk, SIDE)
        vision |= {"timm_model_name": trunk, "image_size": side}
        config["embed_dim"] = 64 if vision.get("timm_proj") == "none" else 32
    else:
        residual = isinstance(vision["layers"], list)
        small = {"layers": [1] * 4, "width": 8} if residual else {"layers": 1, "width": 32}
        vision |= {**small, "image_size": SIDE, "head_width": 16}
        vision |= {} if residual else {"patch_size": 16}
        vision |= {"attn_pooler_heads": 2} if "attn_pooler_heads" in vision else {}
    if "hf_model_name" in text:
        text |= {"hf_model_name": save_bert(folder), "hf_model_pretrained": False}
        text |= {"hf_proj_type": "mlp", "context_length": LENGTH}
        return config
    text |= {"width": config["embed_dim"], "heads": 2, "layers": 1, "context_length": LENGTH}
    if "hf_tokenizer_name" in text:
        save_word_pieces(folder, ("", "</s>"))
        text["vocab_size"] = 256
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
        config["multimodal_cfg"]["context_length"] = LENGTH
    return config


def build_open_clip(family, folder):
    """Folder of a tiny random model of a family, and the name that loads it."""
    arch, tag, trunk = OPEN_CLIP[family]
    torch.manual_seed(0)
    config = shrunk(arch, trunk, folder)
    path = folder / f"{arch}-tiny.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    model = roughen(open_clip.create_model(path.stem, pretrained_text=False))
    open_clip.factory._MODEL_CONFIGS.pop(path.stem)
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
    tagged = registry.get_pretrained_cfg(arch, tag)
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {**{key: tagged[key] for key in keys}, "size": config["vision_cfg"]["image_size"]}
    described = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def reference_open_clip(name, images):
    """Features of images and prompts by open_clip alone, and its scale and bias."""
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    pixels = torch.stack([preprocess(image) for image in images])
    ids = open_clip.get_tokenizer(name)(PROMPTS)
    with torch.no_grad():
        model.eval()
        images, texts = model.encode_image(pixels), model.encode_text(ids)
        cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        bias = getattr(model, "logit_bias", None)
        scores = cosines * model.logit_scale.exp() + (0 if bias is None else bias)
    return images, texts, scores


# --------------------------------------------------------------------------- transformers


def small(**more):
    """Numbers that the configurations of transformers share."""
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    # BLIP's own is 1e-10, with which no image makes a difference.
    common["initializer_range"] = 0.02
    return {**common, "num_attention_heads": 2, **more}


def text_settings(**more):
    return small(vocab_size=256, max_position_embeddings=LENGTH, **more)


def vision_settings(**more):
    return small(image_size=SIDE, patch_size=16, **more)


def make_clip(start, end, pad):
    ends = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    config = transformers.CLIPConfig(
        text_config=text_settings(**ends), vision_config=vision_settings(), projection_dim=24
    )
    return transformers.CLIPModel(config)


def make_siglip(start, end, pad):
    config = transformers.SiglipConfig(
        text_config=text_settings(projection_size=32, eos_token_id=end, pad_token_id=pad),
        vision_config=vision_settings(),
    )
    return transformers.SiglipModel(config)


def make_align(start, end, pad):
    vision = {
        "image_size": SIDE,
        "kernel_sizes": [3, 5],
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "hidden_dim": 48,
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "initializer_range": 0.2,
    }
    config = transformers.AlignConfig(
        text_config=text_settings(pad_token_id=pad),
        vision_config=vision,
        projection_dim=48,
        temperature_init_value=0.3,
    )
    return transformers.AlignModel(config)


def make_blip(start, end, pad):
    config = transformers.BlipConfig(
        text_config=text_settings(encoder_hidden_size=32, pad_token_id=pad),
        vision_config=vision_settings(),
        image_text_hidden_size=24,
    )
    return transformers.BlipForImageTextRetrieval(config)


def make_blip2(start, end, pad):
    reads = {"use_qformer_text_input": True}
    config = transformers.Blip2Config(
        qformer_config=text_settings(encoder_hidden_size=32, pad_token_id=pad, **reads),
        vision_config=vision_settings(),
        num_query_tokens=4,
        image_text_hidden_size=24,
    )
    model = transformers.Blip2ForImageTextRetrieval(config)
    model.query_tokens.data.normal_()
    return model


def make_aimv2(start, end, pad):
    config = transformers.Aimv2Config(
        text_config=text_settings(eos_token_id=end), vision_config=vision_settings()
    )
    model = transformers.Aimv2Model(config)
    model.logit_scale.data.fill_(5.0)  # above the largest that its forward lets pass
    return model


def make_dinov2(start, end, pad):
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.Dinov2Config(**vision_settings()),
        transformers.BertConfig(**text_settings(pad_token_id=pad)),
        projection_dim=24,
    )
    return transformers.VisionTextDualEncoderModel(config)


def cropping():
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


def squashing(kind):
    return kind(size={"height": SIDE, "width": SIDE})


def efficient():
    return transformers.EfficientNetImageProcessor(
        size={"height": 40, "width": 40},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=True,
    )


# Model, tokens around a text and padding, image processor, what ours is made of.
HUB = {
    "CLIP": (make_clip, ("[CLS]", "[SEP]", "[SEP]"), cropping, towers.Contrastive),
    "SigLIP": (
        make_siglip,
        ("", "</s>", "</s>"),
        lambda: squashing(transformers.SiglipImageProcessor),
        towers.Contrastive,
    ),
    "ALIGN": (make_align, ("[CLS]", "[SEP]", "[PAD]"), efficient, towers.Contrastive),
    "BLIP": (
        make_blip,
        ("[CLS]", "[SEP]", "[PAD]"),
        lambda: squashing(transformers.BlipImageProcessor),
        towers.FirstTokens,
    ),
    "BLIP-2": (
        make_blip2,
        ("[CLS]", "[SEP]", "[PAD]"),
        lambda: squashing(transformers.BlipImageProcessor),
        towers.QueryTokens,
    ),
    "AIMv2": (make_aimv2, ("[CLS]", "[SEP]", "[SEP]"), cropping, towers.Contrastive),
    "DINOv2": (make_dinov2, ("[CLS]", "[SEP]", "[PAD]"), cropping, towers.Contrastive),
}


def build_hub(family, folder):
    """Folder of a tiny random model of a family, and the name that loads it."""
    make, (start, end, pad), processor, _ = HUB[family]
    torch.manual_seed(0)
    save_word_pieces(folder, (start, end), pad)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.convert_tokens_to_ids(token) if token else None for token in (start, end, pad)]
    roughen(make(*ids)).save_pretrained(folder)
    processor().save_pretrained(folder)
    return f"transformers:{folder}"


def reference_hub(family, name, images):
    """Features of images and prompts by transformers alone, and its scores."""
    folder = name.removeprefix("transformers:")
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    seen = transformers.AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    fixed = {"padding": "max_length", "max_length": LENGTH} if family == "SigLIP" else {}
    read = tokenizer(PROMPTS, return_tensors="pt", **{"padding": True, **fixed})
    inputs = {key: read[key] for key in ("input_ids", "attention_mask")}
    if family == "SigLIP":
        inputs.pop("attention_mask")
    with torch.no_grad():
        if family == "BLIP":
            found = model(**inputs, **seen, use_itm_head=False)
            return None, None, found.itm_score / towers.TEMPERATURE
        found = model(**inputs, **seen)
    if family == "BLIP-2":
        pooled = F.normalize(found.image_embeds.mean(dim=1), dim=-1)
        return pooled, found.text_embeds, pooled @ found.text_embeds.T / towers.TEMPERATURE
    return found.image_embeds, found.text_embeds, found.logits_per_image


# --------------------------------------------------------------------------- one path for all

FAMILIES = [*(f"open_clip: {key}" for key in OPEN_CLIP), *(f"transformers: {key}" for key in HUB)]


@pytest.fixture(scope="module", params=FAMILIES)
def built(request, tmp_path_factory, pictures):
    """Encoder of a family, its features of the pictures, and the library's own of all."""
    library, _, family = request.param.partition(": ")
    folder = tmp_path_factory.mktemp("family")
    images = [pictures.image(i) for i in range(len(pictures))]
    if library == "open_clip":
        name = build_open_clip(family, folder)
        expected = reference_open_clip(name, images)
    else:
        name = build_hub(family, folder)
        expected = reference_hub(family, name, images)
    encoder = load_encoder(name, device="cpu")
    return encoder, image_features(encoder, pictures, cache=False), expected


def test_features_are_the_librarys_own(built):
    encoder, found, (images, texts, scores) = built
    classifier = text_classifier(encoder, NAMES, TEMPLATE)
    if images is not None:
        assert torch.allclose(found, F.normalize(images, dim=-1), atol=1e-5)
        assert torch.allclose(classifier, F.normalize(texts, dim=-1), atol=1e-5)
    ours = encoder.logit_scale * found @ classifier.T + encoder.logit_bias
    assert torch.allclose(ours, scores, atol=1e-5 * max(1.0, encoder.logit_scale))
    # A feature that were the same for all would fit any of this.
    assert found.std(dim=0).max() > 1e-3 and classifier.std(dim=0).max() > 1e-3


def test_zero_shot(built, pictures):
    encoder, features, (_, _, scores) = built
    found = ZeroShot(encoder, TEMPLATE).fit(pictures).logits(features)
    assert torch.allclose(
        found + encoder.logit_bias, scores, atol=1e-5 * max(1.0, encoder.logit_scale)
    )


def frozen(encoder):
    """Bytes of all weights: what is not initialised may hold NaN, which equals nothing."""
    state = encoder.model.state_dict()
    return {key: value.contiguous().numpy().tobytes() for key, value in state.items()}


def test_names_are_learned_and_nothing_else_moves(built, pictures):
    encoder, features, _ = built
    before = frozen(encoder)
    learner = NameLearner(encoder, templates=TEMPLATE, steps=8, lr=0.05)
    learner.fit(pictures, features[None])
    assert learner.history_[-1] < learner.history_[0]
    assert frozen(encoder) == before
    start = text_classifier(encoder, NAMES, TEMPLATE)
    assert not torch.allclose(learner.classifier_, start, atol=1e-3)
    assert torch.allclose(learner.classifier_.norm(dim=1), torch.ones(3), atol=1e-5)


def test_augmented_views_have_the_models_size(built, pictures):
    encoder, _, _ = built
    image = pictures.image(0)
    plain, view = encoder.preprocess(image), encoder.augment(image)
    assert plain.shape == view.shape
    # Normalised alike: a view of an even image is that image.
    even = Image.new("RGB", (50, 50), (200, 40, 90))
    assert torch.allclose(encoder.preprocess(even), encoder.augment(even), atol=1e-2)


def test_what_each_family_is_made_of():
    for make, _, _, kind in HUB.values():
        made = make(1, 2, 0)
        assert [kind for kind in towers.KINDS if kind.fits(made)] == [kind]


def test_a_model_of_one_tower_is_refused():
    text = transformers.BertModel(transformers.BertConfig(**text_settings()))
    with pytest.raises(ValueError, match="BertModel gives no features of images and texts"):
        towers.wrap(text, None)


def test_pixels_of_no_one_size_are_refused():
    processor = transformers.CLIPImageProcessor(do_center_crop=False)
    with pytest.raises(ValueError, match="makes no pixels of one height and width"):
        towers.HubPixels(processor)


def test_names_learned_here_are_words_there(tmp_path, pictures):
    """Installed in a model that transformers loads, with its own tokenizer."""
    name = build_hub("CLIP", tmp_path)
    encoder = load_encoder(name, device="cpu")
    features = image_features(encoder, pictures, cache=False)[None]
    learner = NameLearner(encoder, templates="the {name}", steps=3).fit(pictures, features)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    learner.names_.install(model, tokenizer)
    read = tokenizer([f"the <{own}>" for own in NAMES], padding=True, return_tensors="pt")
    inputs = {key: read[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = model.get_text_features(**inputs).pooler_output
    assert torch.allclose(F.normalize(found, dim=-1), learner.classifier_, atol=1e-5)


def test_padding_is_no_part_of_a_text(tmp_path):
    """Features do not depend on the length that texts are padded to, where padding is masked."""
    encoder = load_encoder(build_hub("BLIP", tmp_path), device="cpu")
    long, short = (encoder.model.encode_text(encoder.tokenizer(PROMPTS, n)) for n in (12, 10))
    assert encoder.model.masked and torch.allclose(long, short, atol=1e-5)


# --------------------------------------------------------------------------- the table


def test_the_table_is_open_clips_registry():
    table = encoder_table()
    rows = table[(table["library"] == "open_clip") & ~table["model"].str.startswith("hf-hub:")]
    known = set(open_clip.list_pretrained())
    for name, row in rows.iterrows():
        assert (row["model"], row["pretrained"]) in known
        assert name == f"{row['model']}:{row['pretrained']}"
        config = open_clip.get_model_config(row["model"])
        tagged = registry.get_pretrained_cfg(row["model"], row["pretrained"])
        assert bool(config.get("quick_gelu")) == bool(tagged.get("quick_gelu")), name
        assert config["vision_cfg"]["image_size"] == int(row["image_size"]), name
    assert table.index.is_unique


def test_every_family_is_in_the_table_and_is_built_here():
    table = encoder_table()
    # A repository of the hub is read as a folder is, which all of these are here.
    apart = (table["obstacle"] != "") | table["model"].str.startswith("hf-hub:")
    families = set(table[~apart]["family"])
    tested = {key.split(",")[0] for key in OPEN_CLIP} | {"ALIGN", "BLIP", "BLIP-2"}
    assert families == tested


def test_published_figures_have_a_source():
    table = encoder_table()
    assert ((table["imagenet"] == "") == (table["source"] == "")).all()
    figures = table["imagenet"][table["imagenet"] != ""].astype(float)
    # DataComp's smaller pools make weak models, and are there for that.
    small = table["data"].str.startswith(("CommonPool", "DataComp small", "DataComp medium"))
    assert figures[~small].between(50, 90).all() and figures[small].between(2, 80).all()
    assert len(figures) > 60


def test_what_cannot_be_loaded_says_why():
    table = encoder_table()
    apart = table[table["obstacle"] != ""]
    assert len(apart) == 9 and not (apart["library"] != "").any()
    assert (table[table["obstacle"] == ""]["library"] != "").all()
    for name, row in apart.iterrows():
        with pytest.raises(ValueError, match=f"{re.escape(name)} cannot be loaded: .*") as told:
            load_encoder(name)
        assert row["obstacle"] in str(told.value)


def test_the_survey_s_table_of_models_is_drawn_from_the_table():
    page = (Path(__file__).parents[1] / "docs/survey.md").read_text(encoding="utf-8")
    rows = encoder_table().query("survey != ''")
    for name, row in rows.iterrows():
        here = "" if row["obstacle"] else f"`{name}`"
        said = [row[key] for key in ("survey", "organization", "released", "survey_imagenet")]
        assert f"| {' | '.join([*said, here, row['imagenet'], row['obstacle']])} |" in page
    assert len(rows) == 17


def test_a_row_of_the_hub_is_read_from_a_folder_too(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    name = build_open_clip("OpenCLIP 400M", folder)
    (tmp_path / "encoders.csv").write_text(
        "name,library,model,pretrained\nmine,open_clip,hf-hub:nobody/nothing,\n"
    )
    monkeypatch.setenv("LBUTILS_DATA", str(tmp_path))

    def absent(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(encoders.hub, "hf_hub_download", absent)
    found = load_encoder("mine", folder, "cpu").encode_text(PROMPTS)
    assert torch.equal(found, load_encoder(name, device="cpu").encode_text(PROMPTS))
    with pytest.raises(RuntimeError, match="hf-hub:nobody/nothing could not be downloaded"):
        load_encoder("mine")


def counted(arch):
    """Parameters of an architecture, without memory for them."""
    with torch.device("meta"):
        model = open_clip.create_model(arch, device="meta", load_weights=False)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", ["small", pytest.param("largest", marks=pytest.mark.slow)])
def test_parameters_are_counted(size):
    """Of every small architecture, and of each family's largest."""
    table = encoder_table()
    there = ~table["model"].str.startswith("hf-hub:") & (table["parameters"] != "")
    rows = table[(table["library"] == "open_clip") & there]
    sizes = rows["parameters"].astype(int)
    largest = sizes.groupby(rows["family"]).idxmax()
    chosen = rows[sizes < 155e6] if size == "small" else rows[rows.index.isin(largest)]
    plain = chosen["model"].str.removesuffix("-quickgelu")  # which has no parameters of its own
    for name in chosen[~plain.duplicated()].index:
        assert counted(rows.loc[name, "model"]) == int(rows.loc[name, "parameters"]), name
    assert len(set(plain)) > 5


def test_parameters_of_transformers_are_counted():
    table = encoder_table()
    built = {
        "align-base": (transformers.AlignModel, transformers.AlignConfig()),
        "blip-itm-base-coco": (transformers.BlipForImageTextRetrieval, transformers.BlipConfig()),
        "siglip-base-patch16-224": (transformers.SiglipModel, transformers.SiglipConfig()),
        "aimv2-large-patch14-224-lit": (transformers.Aimv2Model, transformers.Aimv2Config()),
        "clip-vit-base-patch16": (
            transformers.CLIPModel,
            transformers.CLIPConfig(vision_config={"patch_size": 16}),
        ),
    }
    for name, (kind, config) in built.items():
        with torch.device("meta"):
            model = kind(config)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == int(table.loc[name, "parameters"]), name
