"""Image features of a split, computed once: in blocks that survive a kill, in a shared cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lbutils.atomic import replacing

if TYPE_CHECKING:
    from lbutils.benchmark import Split
    from lbutils.encoders import DualEncoder

# Images between two writes. It decides how much a kill costs, and is no part of the key.
BLOCK = 2048
FORMAT = 1


def image_features(
    encoder: DualEncoder,
    split: Split,
    *,
    views: int = 0,
    seed: int = 0,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    progress: bool = False,
    batch_size: int = 256,
) -> Tensor:
    """Features of unit length of a split's images, float32, on the CPU.

    Parameters
    ----------
    encoder : DualEncoder
        The model; its fingerprint and preprocessing are part of the cache key.
    split : Split
        The N images.
    views : int
        0 for the images as they are; otherwise the number of randomly augmented views of each.
    seed : int
        Of the augmentation. An image's views depend on the seed, the number of the view and the
        image's id, not on the split that it stands in.
    cache : path, None or False
        Folder of the cache. By default ``$LBUTILS_CACHE`` (``none`` for no cache), else
        ``runs/cache``; False for no cache.
    progress : bool
        Whether to show a progress bar.
    batch_size : int
        Images that go through the model at once.

    Returns
    -------
    Tensor
        (N, D) if `views` is 0, else (views, N, D).

    Raises
    ------
    ValueError
        If a file of the cache is truncated, corrupt, or does not hold what its name stands for.
        The message names the file; once it is deleted its features are computed anew.
    """
    if views < 0:
        raise ValueError(f"views must be 0 or more, not {views}")
    description = describe(encoder, split, views, seed)
    folder = cache_dir(cache)
    if folder is None:
        blocks = [
            _compute(encoder, split, rows, views, seed, batch_size, bar)
            for rows, bar in _progress(split, progress)
        ]
        return _join(encoder, blocks, views)
    key = hashlib.sha256(description.encode()).hexdigest()
    whole = folder / f"{key}.safetensors"
    if (found := _read(whole, description, split.ids)) is not None:
        return found
    blocks, parts = [], []
    for rows, bar in _progress(split, progress):
        # Another process may have finished while this one was at work on a block.
        if (found := _read(whole, description, split.ids)) is not None:
            return found
        part = folder / f"{key}.{rows.start:07d}-{rows.stop:07d}.safetensors"
        ids = split.ids[rows.start : rows.stop]
        block = _read(part, description, ids)
        if block is None:
            block = _compute(encoder, split, rows, views, seed, batch_size, bar)
            if len(rows) < len(split):
                _write(part, block, description, ids)
        else:
            bar.update(len(rows))
        blocks.append(block)
        parts.append(part)
    features = _join(encoder, blocks, views)
    _write(whole, features, description, split.ids)
    for part in parts:
        part.unlink(missing_ok=True)
    return features


def describe(encoder: DualEncoder, split: Split, views: int = 0, seed: int = 0) -> str:
    """Canonical JSON of all that decides the features; its SHA-256 is the cache key."""
    described: dict[str, Any] = {
        "format": FORMAT,
        "weights": encoder.fingerprint,
        "preprocess": encoder.preprocess_config,
        "images": split.key,
        "views": views,
    }
    if views:
        described |= {"seed": seed, "augment": encoder.augment_config}
    return json.dumps(described, sort_keys=True, separators=(",", ":"))


def cache_dir(cache: str | os.PathLike[str] | Literal[False] | None = None) -> Path | None:
    """The folder that a `cache` argument stands for, or None for no cache."""
    if cache is False:
        return None
    if cache is None:
        cache = os.environ.get("LBUTILS_CACHE")
        if cache is None:
            return Path(__file__).resolve().parents[1] / "runs" / "cache"
        if cache.strip().lower() in ("", "none"):
            return None
    return Path(cache).expanduser()


def _progress(split: Split, shown: bool) -> Iterator[tuple[range, tqdm]]:
    """Blocks of row numbers, each with the bar to advance."""
    with tqdm(total=len(split), desc="features", unit="image", disable=not shown) as bar:
        for start in range(0, len(split), BLOCK):
            yield range(start, min(start + BLOCK, len(split))), bar


@torch.no_grad()
def _compute(
    encoder: DualEncoder,
    split: Split,
    rows: range,
    views: int,
    seed: int,
    batch_size: int,
    bar: tqdm,
) -> Tensor:
    """Features ([views,] B, D) of the images of some rows."""
    batches = []
    # PIL lets go of the interpreter while it decodes, so threads help.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(rows.start, rows.stop, batch_size):
            batch = range(start, min(start + batch_size, rows.stop))
            images = list(pool.map(split.image, batch))
            if views:
                encoded = [
                    encoder.encode_images(_views(encoder, split, batch, images, seed, view))
                    for view in range(views)
                ]
                batches.append(torch.stack(encoded).cpu())
            else:
                pixels = torch.stack(list(pool.map(encoder.preprocess, images)))
                batches.append(encoder.encode_images(pixels).cpu())
            bar.update(len(batch))
    return torch.cat(batches, dim=-2)


def _views(
    encoder: DualEncoder,
    split: Split,
    rows: range,
    images: list[Image.Image],
    seed: int,
    view: int,
) -> Tensor:
    """Pixels (B, 3, H, W) of one augmented view; the global generator is left as it was."""
    pixels = []
    with torch.random.fork_rng(devices=[]):
        for row, image in zip(rows, images, strict=True):
            digest = hashlib.sha256(f"{seed}/{view}/{split.ids[row]}".encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
            pixels.append(encoder.augment(image))
    return torch.stack(pixels)


def _join(encoder: DualEncoder, blocks: list[Tensor], views: int) -> Tensor:
    if blocks:
        return torch.cat(blocks, dim=-2)
    return torch.empty(*([views] if views else []), 0, encoder.dim)


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy()).hexdigest()


def _write(path: Path, features: Tensor, description: str, ids: tuple[str, ...]) -> None:
    """Write features with the table of their ids, and move the file into place."""
    metadata = {
        "description": description,
        "ids": json.dumps(ids),
        "sha256": _sha256(features),
    }
    with replacing(path) as temporary:
        save_file({"features": features.contiguous()}, temporary, metadata)


def _read(path: Path, description: str, ids: tuple[str, ...]) -> Tensor | None:
    """Features of a cache file, or None if there is no such file.

    Raises
    ------
    ValueError
        If it is truncated, corrupt, or of other weights, preprocessing or images.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, features = file.metadata() or {}, file.get_tensor("features")
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or corrupt ({error}): delete it, and it is computed anew"
        ) from error
    if metadata.get("description") != description or metadata.get("ids") != json.dumps(ids):
        raise ValueError(
            f"{path} does not hold the features that its name stands for (other weights, "
            "preprocessing or images): delete it, and it is computed anew"
        )
    if metadata.get("sha256") != _sha256(features):
        raise ValueError(f"{path} is corrupt: delete it, and it is computed anew")
    return features
