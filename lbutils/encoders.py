"""One frozen image-text model, whatever its family, behind one small interface."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip import pretrained as registry
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision import transforms

from lbutils import mini
from lbutils.benchmark import data_dir, mini_file
from lbutils.words import suggest

LOCAL = "local-dir:"
HUB = "hf-hub:"
CROP_SCALE = (0.08, 1.0)
# What decides how an image becomes pixels, among the keys of an open_clip weights tag.
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
_PROBE = "Don't dröp 2 naïve 狐 foxes' names, e.g. O'Brien & <b>Åse</b>!"


class DualEncoder:
    """A frozen image-text model with its tokenizer and preprocessing.

    Parameters
    ----------
    model : nn.Module
        An open_clip model with `encode_image`, `encode_text` and `logit_scale`. It is moved to
        the device, put in evaluation mode, and none of its parameters takes a gradient.
    tokenizer : callable
        From a list of N texts to token ids, int64 (N, context_length).
    preprocess : mapping, optional
        open_clip's preprocessing configuration, such as ``{"size": 64}``; by default the one on
        ``model.visual``.
    name, pretrained : str
        What tables and records call the architecture and its weights.
    device : str or torch.device, optional
        By default the model stays where it is.
    crop_scale : (float, float)
        Smallest and largest part of an image's area that an augmented view shows. By default
        that of the paper's random resized crops.

    Attributes
    ----------
    preprocess, augment : callable
        From a PIL image to pixels (3, H, W): resized and normalised; cropped at random, flipped
        at random and normalised.
    preprocess_config, augment_config : dict
        Plain descriptions of these two, for cache keys.
    context_length : int
        Longest text in tokens, start and end of text included.
    logit_scale : float
        Factor of the cosine similarities, the exponential of the model's parameter.

    Raises
    ------
    ValueError
        If no preprocessing is given and the model carries none.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        preprocess: Mapping[str, Any] | None = None,
        *,
        name: str = "custom",
        pretrained: str = "",
        device: str | torch.device | None = None,
        crop_scale: tuple[float, float] = CROP_SCALE,
    ):
        found = preprocess or getattr(model.visual, "preprocess_cfg", None)
        if found is None:
            raise ValueError(f"the model {name} carries no preprocessing: give preprocess=...")
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = next(model.parameters()).device
        self.tokenizer = tokenizer
        self.name, self.pretrained = name, pretrained
        config = PreprocessCfg(**found)
        self.preprocess_config = asdict(config)
        self.preprocess = image_transform_v2(config, is_train=False)
        self.augment_config = {"crop_scale": list(crop_scale), "flip": 0.5}
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    config.size,
                    scale=crop_scale,
                    interpolation=transforms.InterpolationMode.BICUBIC,
                ),
                transforms.RandomHorizontalFlip(self.augment_config["flip"]),
                transforms.ToTensor(),
                transforms.Normalize(config.mean, config.std),
            ]
        )
        text = getattr(model, "text", model)
        self.context_length = int(getattr(text, "context_length", tokenizer.context_length))
        self.logit_scale = float(model.logit_scale.exp())

    def __repr__(self) -> str:
        return f"DualEncoder({self.name!r}, {self.pretrained!r}, device={str(self.device)!r})"

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the model takes images."""
        return next(self.model.visual.parameters()).dtype

    @cached_property
    def dim(self) -> int:
        """Dimension D of the joint space."""
        return self.encode_text(["a"]).shape[1]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, context_length), int64, on the CPU."""
        return self.tokenizer(list(texts))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features (B, D) of unit length, float32, on the model's device.

        Parameters
        ----------
        pixels : Tensor, shape (B, 3, H, W)
            As `preprocess` or `augment` returns them.
        """
        features = self.model.encode_image(pixels.to(self.device, self.dtype))
        return F.normalize(features.float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text features (N, D) of unit length, float32, on the model's device."""
        features = self.model.encode_text(self.tokenize(texts).to(self.device))
        return F.normalize(features.float(), dim=-1)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, architecture, preprocessing and tokenizer.

        It is taken when first asked for; weights that change afterwards do not change it.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(data.numpy())
        # Weights alone do not tell a QuickGELU from a GELU.
        modules = [[name, type(module).__name__] for name, module in self.model.named_modules()]
        tokenizer = {
            "kind": type(self.tokenizer).__name__,
            "pieces": getattr(self.tokenizer, "pieces", None),
            "probe": self.tokenize([_PROBE]).tolist(),
        }
        described = [modules, self.preprocess_config, tokenizer]
        digest.update(json.dumps(described, sort_keys=True).encode())
        return digest.hexdigest()


def load_encoder(
    name: str = "mini",
    pretrained: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    *,
    crop_scale: tuple[float, float] | None = None,
) -> DualEncoder:
    """The frozen encoder of a name, ready to encode.

    Parameters
    ----------
    name : str
        ``"mini"``; an open_clip architecture such as ``"ViT-B-16"``; ``"local-dir:<folder>"``
        with an open_clip configuration and weights; or ``"hf-hub:<repository>"``.
    pretrained : str or path, optional
        For ``"mini"`` the scale of the pre-training corpus, by default ``"small"``. For an
        architecture one of open_clip's tags, such as ``"laion400m_e32"``, or a file of weights.
        The other two bring their own.
    device : str or torch.device, optional
        By default a GPU if there is one, else the CPU.
    crop_scale : (float, float), optional
        See `DualEncoder`. By default that of the paper, and (0.8, 1) for the miniature, whose
        drawings of 64 pixels are hard to recognise from a smaller part (chosen on IP classes).

    Raises
    ------
    ValueError
        If the name or the tag is unknown: one line with the valid ones and the nearest. If a
        file of weights is not one of this architecture.
    FileNotFoundError
        If a file of the miniature or of a local folder is missing.
    RuntimeError
        If weights cannot be downloaded: what to do instead.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    crop_scale = crop_scale or (mini.CROP_SCALE if name == "mini" else CROP_SCALE)
    if name == "mini":
        model, tokenizer, pretrained = _mini(str(pretrained or "small"))
    elif name.startswith((LOCAL, HUB)):
        if pretrained:
            raise ValueError(f"{name!r} brings its own weights: leave pretrained out")
        model, tokenizer, pretrained = _bundled(name)
    else:
        model, tokenizer, pretrained = _open_clip(name, pretrained)
    return DualEncoder(
        model,
        tokenizer,
        name=name,
        pretrained=str(pretrained),
        device=device,
        crop_scale=crop_scale,
    )


def _mini(scale: str) -> tuple[nn.Module, Any, str]:
    folder = data_dir() / "mini" / "encoder"
    available = sorted(path.parent.name for path in folder.glob("*/open_clip_config.json"))
    # Asked for before the folder is looked at, "small" gets the advice on how to restore it.
    if scale not in available and scale != "small":
        raise ValueError(suggest(scale, available, "scale of the miniature's encoder"))
    for file in ("open_clip_config.json", "open_clip_model.safetensors", "pieces.json"):
        mini_file(f"encoder/{scale}/{file}")
    model, tokenizer, _ = _bundled(f"{LOCAL}{folder / scale}")
    return model, tokenizer, scale


def _bundled(name: str) -> tuple[nn.Module, Any, str]:
    """A model whose folder or repository holds configuration and weights alike."""
    if name.startswith(HUB):
        with _downloading(name, "the hub", 'load_encoder("local-dir:<folder>")'):
            model = open_clip.create_model(name, require_pretrained=True)
            return model, open_clip.get_tokenizer(name), ""
    folder = Path(name.removeprefix(LOCAL))
    if not (folder / "open_clip_config.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'open_clip_config.json'} is missing: the folder after local-dir: must "
            "hold open_clip_config.json and open_clip_model.safetensors"
        )
    with _loading(name, folder):
        model = open_clip.create_model(name, require_pretrained=True)
    pieces = folder / "pieces.json"
    if pieces.is_file():
        kept = json.loads(pieces.read_text(encoding="utf-8"))
        return model, mini.PieceTokenizer(kept, model.context_length), ""
    return model, open_clip.get_tokenizer(name), ""


def _open_clip(name: str, pretrained: Any) -> tuple[nn.Module, Any, str]:
    """A model of an open_clip architecture, with weights of a tag or of a file."""
    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        raise ValueError(suggest(name, ["mini", *open_clip.list_models()], "encoder"))
    tags = registry.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"{name} needs pretrained weights: a file, or one of {', '.join(tags) or '(no tag)'}"
        )
    options: dict[str, Any]
    if registry.is_pretrained_cfg(name, str(pretrained)):
        config = registry.get_pretrained_cfg(name, str(pretrained))
        source = config.get("hf_hub") or config.get("url")
        call = f'load_encoder("{name}", "<file>")'
        with _downloading(f"{pretrained} of {name}", source, call):
            registry.download_pretrained(config)
        # open_clip merely warns when the architecture's activation is not that of the weights.
        options = {"force_quick_gelu": bool(config.get("quick_gelu"))}
    elif Path(pretrained).is_file():
        options = {"force_preprocess_cfg": _preprocessing(name, tags)}
    else:
        raise ValueError(suggest(pretrained, tags, f"file or tag of weights of {name}"))
    with _loading(name, pretrained):
        model = open_clip.create_model(name, str(pretrained), require_pretrained=True, **options)
    return model, open_clip.get_tokenizer(name), str(pretrained)


def _preprocessing(name: str, tags: Sequence[str]) -> dict[str, Any]:
    """Preprocessing that all tagged weights of an architecture share, for weights of a file."""
    configs = [registry.get_pretrained_cfg(name, tag) for tag in tags]
    shared = {}
    for key in _PREPROCESS_KEYS:
        values = {json.dumps(config.get(key)) for config in configs}
        if len(values) > 1:
            warnings.warn(
                f"weights of {name} differ in the {key} of their preprocessing; open_clip's "
                "default is used for this file",
                stacklevel=4,
            )
        elif values:
            shared[key] = json.loads(values.pop())
    return shared


@contextmanager
def _downloading(weights: str, source: str | None, call: str) -> Iterator[None]:
    """Whatever a download fails with becomes one message that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, HTTPException) as error:
        raise RuntimeError(
            f"weights {weights} could not be downloaded from {source} ({_reason(error)}): fetch "
            f"them where there is a network, then {call}"
        ) from error


@contextmanager
def _loading(name: str, source: Any) -> Iterator[None]:
    """What open_clip raises on unfit weights becomes one message that names them."""
    try:
        yield
    except (RuntimeError, SafetensorError, KeyError, EOFError) as error:
        raise ValueError(
            f"{source} does not hold intact weights of {name} ({_reason(error)})"
        ) from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
