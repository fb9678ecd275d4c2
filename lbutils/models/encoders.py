"""One frozen image-text model, whatever its family, behind one small interface."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import huggingface_hub as hub
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip import pretrained as registry
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms

from lbutils._util import suggest
from lbutils.captions.text import as_names
from lbutils.data.folder import data_dir, data_file
from lbutils.data.mini import mini_file
from lbutils.models import families, foreign, mini

LOCAL = "local-dir:"
HUB = "hf-hub:"
TRANSFORMERS = "transformers:"
CROP_SCALE = (0.08, 1.0)
# What decides how an image becomes pixels, among the keys of an open_clip weights tag.
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
_QUICK = "-quickgelu"
# How the hub's cache names the folder of a repository.
_CACHED = "models--"
# What torch raises where a file of weights holds code.
_UNSAFE = torch.serialization.pickle.UnpicklingError
_PROBE = "Don't dröp 2 naïve 狐 foxes' names, e.g. O'Brien & <b>Åse</b>!"


class DualEncoder:
    """A frozen image-text model with its tokenizer and preprocessing.

    Raises ValueError if no preprocessing is given and the model carries none, or if it carries
    another.

    Parameters
    ----------
    model : nn.Module
        An open_clip model, or a `families.HubModel`. It is moved to the device, put in evaluation
        mode, and none of its parameters takes a gradient.
    tokenizer : callable
        From a list of N texts to token ids, int64 (N, context_length).
    preprocess : mapping or families.HubPixels, optional
        open_clip's preprocessing configuration, such as ``{"size": 64}``, or a function that
        transformers' image processor is behind; by default the configuration on
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
    logit_bias : float
        What a model trained with a sigmoid loss, such as SigLIP, adds to the scaled
        similarities; 0 for others. It changes no ranking and no softmax.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        preprocess: Mapping[str, Any] | families.HubPixels | None = None,
        *,
        name: str = "custom",
        pretrained: str = "",
        device: str | torch.device | None = None,
        crop_scale: tuple[float, float] = CROP_SCALE,
    ):
        carried = getattr(model.visual, "preprocess_cfg", None)
        found = preprocess or carried
        if found is None:
            raise ValueError(f"the model {name} carries no preprocessing: give preprocess=...")
        self._weights: tuple[Any, Any] | None = None
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = next(model.parameters()).device
        self.tokenizer = tokenizer
        self.name, self.pretrained = name, pretrained
        size, finish = self._set_preprocess(found, carried)
        self.augment_config = {"crop_scale": list(crop_scale), "flip": 0.5}
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    size,
                    scale=crop_scale,
                    interpolation=transforms.InterpolationMode.BICUBIC,
                ),
                transforms.RandomHorizontalFlip(self.augment_config["flip"]),
                *finish,
            ]
        )
        text = getattr(model, "text", model)
        self.context_length = int(getattr(text, "context_length", tokenizer.context_length))
        self.logit_scale = float(model.logit_scale.exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = 0.0 if bias is None else float(bias)

    def _set_preprocess(self, found: Any, carried: Any) -> tuple[Any, list[Any]]:
        """Size of the pixels, and what makes them of an image of that size."""
        if isinstance(found, families.HubPixels):
            self.preprocess: Callable[[Any], Tensor] = found
            self.preprocess_config = found.config
            return found.size, [found.normalised]
        config = PreprocessCfg(**found)
        if carried is not None:
            _same_preprocessing(self.name, asdict(config), asdict(PreprocessCfg(**carried)))
        self.preprocess_config = asdict(config)
        self.preprocess = image_transform_v2(config, is_train=False)
        return config.size, [transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]

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
        return self.tokenizer(as_names(texts, "texts"))

    def encode_images(self, pixels: Tensor, normalise: bool = True) -> Tensor:
        """Image features (B, D), float32, on the model's device.

        `pixels` (B, 3, H, W) are as `preprocess` or `augment` returns them. Features are of unit
        length, or as the model gives them without `normalise`.
        """
        features = self.model.encode_image(pixels.to(self.device, self.dtype)).float()
        return F.normalize(features, dim=-1) if normalise else features

    def encode_text(self, texts: Sequence[str], normalise: bool = True) -> Tensor:
        """Text features (N, D), float32, on the model's device; `normalise` as above."""
        features = self.model.encode_text(self.tokenize(texts).to(self.device)).float()
        return F.normalize(features, dim=-1) if normalise else features

    def __getstate__(self) -> dict[str, Any]:
        # A hash that is not finished cannot go to another process, which makes its own.
        return {**self.__dict__, "_weights": None}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, architecture, preprocessing and tokenizer, as they are now.

        Weights are looked at each time, and hashed again where one was written to or replaced:
        PyTorch counts the writes that it sees, and a CRC-32 of each tensor sees the others
        (through ``.data``, through numpy). That takes some 0.7 ms a megabyte on one core.
        """
        state = self.model.state_dict()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            sums = pool.map(lambda tensor: zlib.crc32(_bytes(tensor)), state.values())
            seen = tuple(
                # Writes are not counted in inference mode.
                (name, tensor.dtype, tensor.shape, tensor.is_inference() or tensor._version, found)
                for (name, tensor), found in zip(state.items(), sums, strict=True)
            )
        if self._weights is None or self._weights[0] != seen:
            digest = hashlib.sha256()
            for name, tensor in sorted(state.items()):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(_bytes(tensor))
            self._weights = seen, digest
        # Weights alone do not tell a QuickGELU from a GELU.
        modules = [[name, type(module).__name__] for name, module in self.model.named_modules()]
        tokenizer = {
            "kind": type(self.tokenizer).__name__,
            "pieces": getattr(self.tokenizer, "pieces", None),
            "probe": self.tokenize([_PROBE]).tolist(),
        }
        described: list[Any] = [modules, self.preprocess_config, tokenizer]
        if training := [name for name, part in self.model.named_modules() if part.training]:
            described.append({"training": training})
        digest = self._weights[1].copy()
        digest.update(json.dumps(described, sort_keys=True).encode())
        return digest.hexdigest()


class ImageTower:
    """Features of an encoder's images other than its own unit ones, behind its interface.

    `image_features` takes it in the place of an encoder, and caches what it returns under a key
    of its own, which `what` goes into.
    """

    def __init__(self, encoder: DualEncoder, what: str):
        self.encoder, self._what = encoder, what
        self.device, self.dtype = encoder.device, encoder.dtype
        for name in ("preprocess", "augment", "preprocess_config", "augment_config"):
            setattr(self, name, getattr(encoder, name))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the encoder's own fingerprint and what differs."""
        return hashlib.sha256(f"{self.encoder.fingerprint} {self._what}".encode()).hexdigest()


class Unnormalised(ImageTower):
    """An encoder whose image features have the length that the model gives them."""

    def __init__(self, encoder: DualEncoder):
        super().__init__(encoder, "unnormalised")
        self.dim = encoder.dim

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Features (B, D), float32, on the model's device."""
        return self.encoder.encode_images(pixels, normalise=False)


def _bytes(tensor: Tensor) -> Any:
    """A tensor's content, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def encoder_table() -> pd.DataFrame:
    """The encoders of ``data/encoders.csv`` by name, as texts; empty where not known.

    Columns: family, library, model, pretrained (the loader's arguments), data, pairs, seen (the
    pre-training data, its image-text pairs, and how many were shown), parameters, image_size,
    imagenet (published zero-shot accuracy in percent), source (of that figure), obstacle (why it
    cannot be loaded), and survey, organization, released, survey_imagenet: a survey's row on it.
    """
    table = pd.read_csv(data_file("encoders.csv"), dtype=str, keep_default_na=False)
    return table.set_index("name")


def load_encoder(
    name: str = "mini",
    pretrained: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    *,
    crop_scale: tuple[float, float] | None = None,
) -> DualEncoder:
    """The frozen encoder of a name, ready to encode.

    Weights are read by safetensors, or by torch with ``weights_only=True``. What was downloaded
    before is found without a network (``HF_HUB_OFFLINE=1``).

    Parameters
    ----------
    name : str
        ``"mini"``; a name in `encoder_table`; an open_clip architecture such as ``"ViT-B-16"``;
        ``"local-dir:<folder>"`` with an open_clip configuration and weights;
        ``"hf-hub:<repository>"`` with the same; or ``"transformers:<folder or repository>"``
        with a model of transformers.
    pretrained : str or path, optional
        For ``"mini"`` the corpus that it was pre-trained on, ``"small"`` (default), ``"medium"`` or
        ``"large"``; ``"small-half"`` and ``"small-tiny"`` have image towers of half and a quarter
        of the widths, ``"large-dosed"`` met names as often as lots decided (`scales.doses`), and
        ``"lots-0-seed-0"`` and its like are those of the lots (`lbutils.data.lots`).
        For an architecture one of open_clip's tags, such as ``"laion400m_e32"``, or a file of
        weights. For a name in the table, the file or folder in which its weights lie. The others
        bring their own.
    device : str or torch.device, optional
        By default a GPU if there is one, else the CPU.
    crop_scale : (float, float), optional
        See `DualEncoder`. By default that of the paper, and (0.8, 1) for the miniature, whose
        drawings of 64 pixels are hard to recognise from a smaller part (chosen on IP classes).

    Raises
    ------
    ValueError
        If the name or the tag is unknown: one line with the valid ones and the nearest. If it is
        of a model that cannot be had: why. If a file of weights is not one of this architecture,
        was trained with the other kind of GELU or at another image size, or holds more than
        weights. If a folder's preprocessing is unsaid, or not that of its weights.
    FileNotFoundError
        If a file of the miniature or of a local folder is missing.
    ModuleNotFoundError
        If a model of transformers is asked for and it is not installed.
    RuntimeError
        If weights cannot be downloaded: what to do instead.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    crop_scale = crop_scale or (mini.CROP_SCALE if name == "mini" else CROP_SCALE)
    listed = _listed().get(name, {})
    preprocess = None
    if listed.get("obstacle"):
        raise ValueError(f"{name} cannot be loaded: {listed['obstacle']}")
    if name == "mini":
        model, tokenizer, pretrained = _mini(str(pretrained or "small"))
    elif name.startswith((LOCAL, HUB, TRANSFORMERS)):
        if pretrained:
            raise ValueError(f"{name!r} brings its own weights: leave pretrained out")
        bundled = _transformers if name.startswith(TRANSFORMERS) else _bundled
        model, tokenizer, preprocess = bundled(name)
    elif listed.get("library") == "transformers":
        model, tokenizer, preprocess = _transformers(
            f"{TRANSFORMERS}{pretrained or listed['model']}"
        )
    elif listed.get("model", "").startswith(HUB):
        bundle = f"{LOCAL}{pretrained}" if pretrained else listed["model"]
        model, tokenizer, preprocess = _bundled(bundle)
    else:
        name, tag = listed.get("model", name), listed.get("pretrained", "")
        model, tokenizer, pretrained = _open_clip(name, pretrained or tag, tag)
    return DualEncoder(
        model,
        tokenizer,
        preprocess,
        name=name,
        pretrained=str(pretrained or ""),
        device=device,
        crop_scale=crop_scale,
    )


def _listed() -> dict[str, dict[str, str]]:
    """Rows of the table, which a data folder of one's own need not hold."""
    there = (data_dir() / "encoders.csv").is_file()
    return encoder_table().to_dict("index") if there else {}


def _mini(scale: str) -> tuple[nn.Module, Any, str]:
    folder = data_dir() / "mini" / "encoder"
    available = sorted(path.parent.name for path in folder.glob("*/open_clip_config.json"))
    # Asked for before the folder is looked at, "small" gets the advice on how to restore it.
    if scale not in available and scale != "small":
        raise ValueError(suggest(scale, available, "scale of the miniature's encoder"))
    weights = "open_clip_model.safetensors"
    if (folder / scale / mini.EIGHT_BIT_FILE).is_file():
        weights = mini.EIGHT_BIT_FILE
    for file in ("open_clip_config.json", weights, "pieces.json"):
        mini_file(f"encoder/{scale}/{file}")
    model, tokenizer, _ = _bundled(f"{LOCAL}{folder / scale}")
    return model, tokenizer, scale


def _bundled(name: str) -> tuple[nn.Module, Any, None]:
    """A model of open_clip whose folder or repository holds configuration and weights alike."""
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        with _downloading(f"weights {name}", "the hub", 'load_encoder("local-dir:<folder>")'):
            file = Path(hub.hf_hub_download(repository, foreign.OPEN_CLIP))
            described = foreign.read_object(file)
            settings = foreign.open_clip_settings(described, f"{repository}/{file.name}")
            registry.download_pretrained_from_hf(repository)
        with _loading(name, name):
            model = open_clip.create_model(name, require_pretrained=True, **settings)
        tokenizer = _tokenizer(name, settings)
        _check_registered(name, repository, model)
        return model, tokenizer, None
    folder = Path(name.removeprefix(LOCAL))
    file = folder / foreign.OPEN_CLIP
    if not file.is_file():
        kind = f'; load_encoder("{TRANSFORMERS}{folder}") reads one of transformers'
        raise FileNotFoundError(
            f"{file} is missing: the folder after local-dir: must "
            "hold open_clip_config.json and open_clip_model.safetensors"
            + (kind if (folder / "config.json").is_file() else "")
        )
    foreign.check_folder(folder)
    described = foreign.read_object(file)
    settings = foreign.open_clip_settings(described, str(file), folder)
    packed = folder / mini.EIGHT_BIT_FILE
    with _loading(name, folder):
        if packed.is_file():
            # It would warn that no weights are loaded: they follow.
            quiet = logging.root.manager.disable
            logging.disable(max(quiet, logging.WARNING))
            try:
                model = open_clip.create_model(name, load_weights=False, **settings)
            finally:
                logging.disable(quiet)
            model.load_state_dict(mini.from_eight_bits(load_file(packed)))
        else:
            model = open_clip.create_model(name, require_pretrained=True, **settings)
    _check_described(folder, described.get("preprocess_cfg", {}), model)
    pieces = folder / "pieces.json"
    with _loading(name, pieces if pieces.is_file() else folder, what="a tokenizer"):
        if pieces.is_file():
            kept = json.loads(pieces.read_text(encoding="utf-8"))
            return model, mini.PieceTokenizer(kept, model.context_length), None
        return model, foreign.tokenizer(name, settings, folder), None


def _check_described(folder: Path, described: Mapping[str, Any], model: nn.Module) -> None:
    """Raise where a folder does not say how images are normalised, or gives a size not its own."""
    file = folder / foreign.OPEN_CLIP
    absent = [key for key in ("mean", "std") if key not in described]
    if absent:
        raise ValueError(
            f"{file} does not say how images are prepared: add {' and '.join(absent)} of the "
            'pre-training to its "preprocess_cfg"'
        )
    size = {"size": described.get("size", model.visual.image_size)}
    _same_preprocessing(str(file), size, {"size": model.visual.image_size})
    for part in folder.parts:
        if part.startswith(_CACHED):
            _check_registered(str(folder), part.removeprefix(_CACHED).replace("--", "/"), model)


def _check_registered(name: str, repository: str, model: nn.Module) -> None:
    """Raise where a repository that open_clip knows is not prepared for as open_clip does."""
    for arch, tag in registry.list_pretrained():
        config = registry.get_pretrained_cfg(arch, tag)
        own = bool(config.get("quick_gelu")) == _has_quick_gelu(arch)
        if own and config.get("hf_hub", "").rstrip("/") == repository:
            call = f'load_encoder("{arch}", "{tag}")'
            wanted = {key: config[key] for key in _PREPROCESS_KEYS}
            _same_preprocessing(name, model.visual.preprocess_cfg, wanted, call)


def _transformers(name: str) -> tuple[nn.Module, Any, families.HubPixels]:
    """A model of transformers in a folder or a repository, with its preprocessing."""
    source = name.removeprefix(TRANSFORMERS)
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise FileNotFoundError(
                f"{Path(source) / 'config.json'} is missing: the folder after {TRANSFORMERS} must "
                "hold what save_pretrained writes of a model, its tokenizer and image processor"
            )
        foreign.check_folder(Path(source))
        with _loading(name, source):
            model, tokenizer, pixels = families.read_model(source)
    else:
        call = f'load_encoder("{TRANSFORMERS}<folder>")'
        with (
            _downloading(f"weights {name}", "the hub", call),
            _loading(name, source, passing=(OSError, HTTPException)),
        ):
            foreign.check_repository(source)
            model, tokenizer, pixels = families.read_model(source)
    try:
        with torch.no_grad():
            model.eval().encode_image(torch.zeros(1, 3, *pixels.size))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the image processor of {source} makes {pixels.size[0]} x {pixels.size[1]} pixels, "
            f"which its model does not take ({_reason(error)}): take the processor of these weights"
        ) from error
    return model, tokenizer, pixels


def _open_clip(name: str, pretrained: Any, tag: str = "") -> tuple[nn.Module, Any, str]:
    """A model of an open_clip architecture, with weights of a tag, or of a file (of a tag)."""
    name = name.replace("/", "-")
    if name not in open_clip.list_models():
        raise ValueError(suggest(name, ["mini", *open_clip.list_models(), *_listed()], "encoder"))
    tags = registry.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise ValueError(
            f"{name} needs pretrained weights: a file, or one of {', '.join(tags) or '(no tag)'}"
        )
    options: dict[str, Any] = {}
    if registry.is_pretrained_cfg(name, str(pretrained)):
        config = registry.get_pretrained_cfg(name, str(pretrained))
        _check_gelu(name, str(pretrained), config)
        source = config.get("hf_hub") or config.get("url")
        call = f'load_encoder("{name}", "<file>")'
        with _downloading(f"weights {pretrained} of {name}", source, call):
            registry.download_pretrained(config)
    elif Path(pretrained).is_file():
        options = {"force_preprocess_cfg": _preprocessing(name, Path(pretrained), tag)}
    else:
        # A tag that the architecture may have only without its -quickgelu.
        plain = name.removesuffix(_QUICK)
        _check_gelu(name, str(pretrained), registry.get_pretrained_cfg(plain, str(pretrained)))
        raise ValueError(suggest(pretrained, tags, f"file or tag of weights of {name}"))
    with _loading(name, pretrained):
        model = open_clip.create_model(name, str(pretrained), require_pretrained=True, **options)
        if options:
            _check_size(name, Path(pretrained), model)
    return model, _tokenizer(name, open_clip.get_model_config(name)), str(pretrained)


def _tokenizer(name: str, settings: Mapping[str, Any]) -> Any:
    """open_clip's tokenizer of an architecture or of a repository on the hub."""
    with (
        _downloading(f"the tokenizer of {name}", "the hub", "the same with its cache"),
        _loading(name, name, what="a tokenizer", passing=(OSError, HTTPException)),
    ):
        return foreign.tokenizer(name, settings)


def _check_gelu(name: str, weights: str, config: Mapping[str, Any]) -> None:
    """Raise where an architecture's activation is not that of the weights."""
    # open_clip merely warns, and the features are off by a little that goes unnoticed.
    wanted = bool(config.get("quick_gelu"))
    if config and wanted != _has_quick_gelu(name):
        right = name.removesuffix(_QUICK) + (_QUICK if wanted else "")
        raise ValueError(
            f"{weights} was trained {'with' if wanted else 'without'} QuickGELU, {name} is "
            f'{"without" if wanted else "with"}: load_encoder("{right}", "{weights}")'
        )


def _has_quick_gelu(name: str) -> bool:
    return bool(open_clip.get_model_config(name).get("quick_gelu"))


def _preprocessing(name: str, file: Path, tag: str) -> dict[str, Any]:
    """Preprocessing of weights of a file: of their tag where it shows, else what all tags share."""
    plain = name.removesuffix(_QUICK)
    tags = registry.list_pretrained_tags_by_model(plain)  # with either activation
    configs = {key: registry.get_pretrained_cfg(plain, key) for key in tags}
    tag = tag or next((key for key, config in configs.items() if _is_copy(file, config)), "")
    if tag:
        config = configs[tag]
        _check_gelu(name, str(file), config)
        return {key: config[key] for key in _PREPROCESS_KEYS}
    shared = {}
    for key in _PREPROCESS_KEYS:
        values = {json.dumps(config.get(key)) for config in configs.values()}
        if len(values) > 1:
            warnings.warn(
                f"weights of {name} differ in the {key} of their preprocessing; open_clip's "
                "default is used for this file",
                stacklevel=4,
            )
        elif values:
            shared[key] = json.loads(values.pop())
    if len({bool(config.get("quick_gelu")) for config in configs.values()}) > 1:
        warnings.warn(
            f"weights of {plain} come with and without QuickGELU, and {file.name} does not say "
            f"which: {name} is {'with' if _has_quick_gelu(name) else 'without'}",
            stacklevel=4,
        )
    return shared


def _is_copy(file: Path, config: Mapping[str, Any]) -> bool:
    """Whether a file is named like a tag's download, or lies where the hub's cache has it."""
    url, repository = config.get("url", ""), config.get("hf_hub", "").strip("/")
    cached = _CACHED + repository.replace("/", "--")
    return (bool(url) and file.name == url.rpartition("/")[2]) or cached in file.parts


def _check_size(name: str, file: Path, model: nn.Module) -> None:
    """Raise where open_clip has silently resized the position embeddings of a file."""
    shapes = _shapes(file)
    for key, value in model.state_dict().items():
        if not key.endswith("positional_embedding"):
            continue
        shape = tuple(value.shape)
        found = shapes.get(key, shapes.get(key.removeprefix("text."), shape))
        if found != shape:
            raise foreign.Refused(
                f"{file} holds weights of another image size or text length than {name} "
                f"({key} is {found}, not {shape}): take the architecture that they were trained as"
            )


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file of weights."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as held:
            return {key: tuple(held.get_slice(key).get_shape()) for key in held.keys()}  # noqa: SIM118
    if file.suffix in (".npz", ".npy"):
        return {}
    held = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    held = held.get("state_dict", held)
    tensors = {key: value for key, value in held.items() if isinstance(value, Tensor)}
    return {key.removeprefix("module."): tuple(value.shape) for key, value in tensors.items()}


def _same_preprocessing(
    name: str,
    given: Mapping[str, Any],
    wanted: Mapping[str, Any],
    call: str = "leave the preprocessing to them",
) -> None:
    """Raise where a preprocessing is not the one that weights were trained with."""
    for key in ("size", *_PREPROCESS_KEYS):
        if key in wanted and _plain(given.get(key)) != _plain(wanted[key]):
            raise ValueError(
                f"{name}: images would be prepared with {key} {_plain(given.get(key))}, its "
                f"weights want {_plain(wanted[key])}: {call}"
            )


def _plain(value: Any) -> Any:
    """A setting in one form: a side for a square, lists for tuples."""
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(value) == 2 and value[0] == value[1] else list(value)


@contextmanager
def _downloading(what: str, source: str | None, call: str) -> Iterator[None]:
    """Whatever a download fails with becomes one message that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, HTTPException) as error:
        raise RuntimeError(
            f"{what} could not be downloaded from {source} ({_reason(error)}): fetch "
            f"them where there is a network, then {call}"
        ) from error


@contextmanager
def _loading(
    name: str,
    source: Any,
    *,
    what: str = "intact weights",
    passing: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Whatever a library raises on unfit files becomes one message that names them.

    What was refused already, a missing package and exceptions in `passing` keep their own.
    """
    own: tuple[type[Exception], ...] = (foreign.Refused, ModuleNotFoundError, MemoryError, *passing)
    try:
        yield
    except own:
        raise
    except _UNSAFE as error:
        raise ValueError(
            f"{source} holds more than weights, and is not read ({_reason(error)}): convert it to "
            "safetensors where you trust it"
        ) from error
    except Exception as error:
        # Libraries raise anything, bare exceptions among it, on files that were tampered with.
        raise ValueError(
            f"{source} does not hold {what} of {name} ({_reason(error)}): download it again"
        ) from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
