"""Folders and repositories of other people's encoders, read as data.

A model's configuration can name Python files to run, repositories to fetch and files anywhere on
the disk, and the libraries that read it follow. What is read here is checked first: open_clip's
configuration against the fields of its own classes, and every configuration that transformers
reads for what names code, a network or a place outside of the folder.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Union, get_args, get_origin, get_type_hints

import huggingface_hub as hub
import open_clip
import timm
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg

from lbutils._util import short
from lbutils.data.folder import is_inside, places

OPEN_CLIP = "open_clip_config.json"
# What transformers reads of a repository before its weights.
CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
# A base model of another place, and code that is fetched for it.
_ADAPTER = "adapter_config.json"
_MAX_BYTES = 1 << 26
_LARGEST = 1 << 20  # of a whole number; the largest vocabulary has 901,629 entries
_TOP = {
    "embed_dim": int,
    "quick_gelu": bool,
    "custom_text": bool,
    "init_logit_scale": float,
    "init_logit_bias": float | None,
    "nonscalar_logit_scale": bool,
    "pad_id": int,
}
_TOWERS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
_TOKENIZER = {"clean": str, "strip_sep_token": bool, "language": str}
_CODE = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "use_kernels")
# Not the weights that lie here: those of another place, or ones that other packages unpack.
_ELSEWHERE = ("use_pretrained_backbone", "quantization_config", "init_inputs")
_MODELS = ("architecture", "backbone", "timm_model_name")
_KERNEL = re.compile("_?(attn|experts)_implementation(_internal)?")
_KERNELS = (None, True, False, "eager", "sdpa", "flash_attention_2", "flex_attention")
# Where it lay on the machine that saved it; never opened.
_NOTES = ("special_tokens_map_file",)


# In the configuration of a tokenizer with installed words: see `install.add_words`.
WORDS_INSIDE = ("words are installed in this tokenizer: load it by AutoTokenizer",)


class Refused(ValueError):
    """What an encoder's files ask for is not done; one line says which and what to do."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of an encoder.

    Raises Refused if it is no file, too large, or is no JSON, no UTF-8 or no object.
    """
    if not file.is_file():  # to open a pipe would wait for ever
        raise Refused(f"{file} is no file: download it again")
    if (size := file.stat().st_size) > _MAX_BYTES:
        raise Refused(f"{file} has {size:,} bytes, more than any configuration: download it again")
    content = file.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        raise Refused(f"{file} begins with a byte-order mark: save it as UTF-8 without one")
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{file} is not readable JSON ({error}): download it again") from error
    if not isinstance(found, dict):
        raise Refused(f"{file} holds no JSON object: download it again")
    return found


def check_folder(folder: Path) -> None:
    """Raise `Refused` where files of an encoder's folder name code, a network or another place."""
    admitted = places(folder)
    for file in sorted(folder.iterdir()):
        if not is_inside(file, admitted):
            raise Refused(f"{file} is a link out of {folder}: put the file itself there")
        name = file.name.casefold()  # on some disks a name is found in any case
        if name.endswith(".index.json"):
            _check_index(file)
        elif name == _ADAPTER:
            _refuse_adapter(file)
        elif file.name != OPEN_CLIP and re.search("config.*[.]json$", name):
            _check(read_object(file), str(file), folder)


def check_repository(name: str) -> None:
    """Raise `Refused` where configurations of a repository on the hub name code or another place.

    Only they are downloaded, to the hub's cache.

    Raises OSError, RuntimeError if none can be downloaded.
    """
    found = {}
    lacking: EntryNotFoundError | None = None
    for file in (*CONFIGS, _ADAPTER):
        # A network that was out of reach for one file is not waited for again.
        local = isinstance(lacking, LocalEntryNotFoundError)
        try:
            found[file] = Path(hub.hf_hub_download(name, file, local_files_only=local))
        except EntryNotFoundError as error:
            lacking = error
    if not found and lacking:
        raise lacking
    for file, path in found.items():
        if file == _ADAPTER:
            _refuse_adapter(f"{name}/{file}")
        _check(read_object(path), f"{name}/{file}", None)


def _refuse_adapter(where: Any) -> None:
    raise Refused(f"{where} names a base model elsewhere: merge the adapter into its weights")


def _check_index(file: Path) -> None:
    """Raise where an index of weights names files that do not lie beside it."""
    named = read_object(file).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise Refused(f"{file} has no weight_map of file names: download it again")
    for name in sorted(set(named.values())):
        if Path(name).name != name or PureWindowsPath(name).name != name:
            raise Refused(f"{file} names weights outside of its folder: {name!r}")


def _check(content: Any, where: str, folder: Path | None) -> None:
    """Raise where a configuration of transformers, at any depth, is more than settings."""
    for key, value in _entries(content):
        told = f"{where}: {key} {short(value)}"
        if key in _CODE and value:
            raise Refused(f"{told} names code to run, which is not done: take a model without it")
        if key in _ELSEWHERE and value and value != list(WORDS_INSIDE):
            raise Refused(f"{told} is not followed: remove the entry, or save the weights plainly")
        if _KERNEL.fullmatch(key) and not _plain_kernel(value):
            raise Refused(f"{told} names an attention kernel to fetch: remove the entry")
        if key in _MODELS and isinstance(value, str) and re.search(r"[/\\:]", value):
            raise Refused(f"{told} names a model elsewhere, which is not fetched: name one of timm")
        if key.endswith("_file") and key not in _NOTES and _leaves(value, folder):
            raise Refused(f"{told} lies outside of the folder: put the file there, or remove this")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key in an object of JSON with its value, at any depth."""
    waiting = [content]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
        waiting += list(found.values()) if isinstance(found, dict) else found
        waiting = [part for part in waiting if isinstance(part, (dict, list))]


def _plain_kernel(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else [value]
    return all(not isinstance(part, (dict, list)) and part in _KERNELS for part in parts)


def _leaves(value: Any, folder: Path | None) -> bool:
    """Whether a path in a configuration leads out of the folder, or is one for a repository."""
    if not isinstance(value, str):
        return False
    if PureWindowsPath(value).drive or "\\" in value or ".." in PurePosixPath(value).parts:
        return True
    if folder is None:
        return value.startswith(("/", "~"))
    return not is_inside(folder / value, places(folder))


# --- open_clip -----------------------------------------------------------------------------


def open_clip_settings(
    described: Mapping[str, Any], where: str, folder: Path | None = None
) -> dict[str, Any]:
    """What `open_clip.create_model` takes of a configuration: its checked ``model_cfg``.

    `described` is the content of an ``open_clip_config.json``, which messages call `where`. The
    text tower's configuration may not leave the `folder` in which it lies: a path relative to it
    comes back whole. Without one, a repository may name others on the hub, whose configurations
    are then checked as well.

    Raises Refused if a key is unknown or of another type than open_clip's, a tower is missing, or a
    name leads elsewhere.
    """
    model = described.get("model_cfg")
    if not isinstance(model, dict):
        raise Refused(f"{where} has no model_cfg: copy that of the model's configuration there")
    lacking = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model]
    if lacking:
        raise Refused(f"{where} lacks {', '.join(lacking)} in its model_cfg: download it again")
    _check_fields({k: v for k, v in model.items() if k not in _TOWERS}, _TOP, where, "model_cfg")
    prepared = described.get("preprocess_cfg", {})
    _check_fields(prepared, get_type_hints(PreprocessCfg), where, "preprocess_cfg")
    towers = {}
    for part, kind in _TOWERS.items():
        if part in model:
            _check_fields(model[part], get_type_hints(kind), where, part)
            towers[part] = dict(model[part])
    vision, text = towers["vision_cfg"], towers["text_cfg"]
    given = text.get("tokenizer_kwargs") or {}
    _check_fields(given, _TOKENIZER, where, "tokenizer_kwargs")
    if trunk := vision.get("timm_model_name"):
        if not timm.is_model(trunk):
            raise Refused(
                f"{where}: timm_model_name {short(trunk)} is no model of timm, and none is "
                "fetched: name an architecture of timm.list_models()"
            )
        # Weights that timm would fetch; those of the whole model lie in the folder.
        vision["timm_model_pretrained"] = False
    if name := text.get("hf_model_name"):
        text |= {"hf_model_name": _text_model(name, where, folder), "hf_model_pretrained": False}
    if folder is None and text.get("hf_tokenizer_name"):
        _text_model(text["hf_tokenizer_name"], where, None, "hf_tokenizer_name")
    kept = {key: value for key, value in model.items() if key not in ("custom_text", *_TOWERS)}
    return {**kept, **towers}


def _text_model(name: str, where: str, folder: Path | None, key: str = "hf_model_name") -> str:
    """Folder in `folder`, or repository on the hub, of a text tower; what lies there is checked."""
    if folder is not None:
        place = folder / name
        if not is_inside(place, places(folder)):
            raise Refused(
                f"{where}: {key} {short(name)} lies outside of the folder, and is not fetched: "
                f'put its config.json into the folder and name it ".", or load the repository'
            )
        if not (place / "config.json").is_file():
            raise Refused(
                f"{where}: {key} {short(name)} has no config.json in the folder: put that of the "
                f'text model into the folder and name it "."'
            )
        check_folder(place)
        return str(place)
    if Path(name).exists() or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name, re.ASCII):
        raise Refused(f"{where}: {key} {short(name)} names no repository on the hub")
    check_repository(name)
    return name


def tokenizer(name: str, settings: Mapping[str, Any], folder: Path | None = None) -> Any:
    """open_clip's tokenizer for checked settings of an architecture, a repository or a folder.

    Code that a tokenizer brings is not run; for a folder nothing is fetched.
    """
    backed = bool(settings["text_cfg"].get("hf_tokenizer_name"))
    plain = {"trust_remote_code": False, **({"local_files_only": True} if folder else {})}
    return open_clip.get_tokenizer(name, **(plain if backed else {}))


def _check_fields(found: Any, hints: Mapping[str, Any], where: str, part: str) -> None:
    """Raise where an object has a key that is not among the hints, or a value of another type."""
    if not isinstance(found, dict):
        raise Refused(f"{where}: {part} must be an object, not {short(found)}")
    for key, value in found.items():
        if key not in hints:
            raise Refused(f"{where}: {part} has {short(key)}, which is not read: remove it")
        # open_clip's own configurations have null for what does not apply.
        if value is not None and not _fits(value, hints[key]):
            wanted = inspect.formatannotation(hints[key])
            raise Refused(f"{where}: {key} of {part} is {short(value)}, wanted is {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON has an annotated type, and no number is beyond reason."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        inner = inner[:1] * len(value) if inner[-1] is ... and isinstance(value, list) else inner
        fit = isinstance(value, list) and len(value) == len(inner)
        return fit and all(map(_fits, value, inner))
    if hint is dict:
        plain = str | bool | int | float
        return isinstance(value, dict) and all(_fits(part, plain) for part in value.values())
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and 0 <= value <= _LARGEST
    return isinstance(value, hint)
