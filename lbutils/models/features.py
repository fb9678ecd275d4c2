"""Image features of a split, computed once: in blocks that survive a kill, in a shared cache.

Threads read and prepare images ahead of the model, which never waits for more than the first.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from PIL import Image
from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lbutils._util import is_installed, replacing, results_dir, suggest

if TYPE_CHECKING:
    from lbutils.data.benchmark import Split
    from lbutils.models.encoders import DualEncoder

# Images between two writes. It decides how much a kill costs, and is no part of the key.
BLOCK = 2048
FORMAT = 1
# Batches that are read while the model is at work on another.
AHEAD = 2
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

Cache = str | os.PathLike[str] | Literal[False] | None


class Extraction(NamedTuple):
    """Features of the images that can be read.

    Attributes
    ----------
    split : Split
        Those images, M of N.
    features : Tensor
        (M, D), or (views, M, D).
    skipped : tuple of str
        Ids of the others.
    """

    split: Split
    features: Tensor
    skipped: tuple[str, ...]


class _Block(NamedTuple):
    """Features ([views,] B, D) of some rows, NaN where an image is unreadable, and their ids."""

    features: Tensor
    skipped: tuple[str, ...]


class _Batch(NamedTuple):
    """Rows, those among them (by place) whose image is readable, and what is made of these."""

    rows: range
    kept: list[int]
    images: Any  # pixels (K, 3, H, W), or K PIL images to draw views of


class _Job(NamedTuple):
    """What is computed, and how."""

    encoder: Any
    split: Any
    views: int
    seed: int
    batch_size: int
    workers: int
    autocast: str | None
    skip: bool


def image_features(
    encoder: DualEncoder,
    split: Split,
    *,
    cache: Cache = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """Features of unit length of a split's N images, float32, on the CPU.

    They are (N, D) if `views` is 0, else (views, N, D).

    Parameters
    ----------
    encoder : DualEncoder
        Its fingerprint and preprocessing are part of the cache key.
    split : Split
    views : int, default 0
        0 for the images as they are; otherwise the number of randomly augmented views of each.
    seed : int, default 0
        Of the augmentation. An image's views depend on the seed, the number of the view and the
        image's id, not on the split that it stands in.
    cache : path, None or False
        Folder of the cache. By default ``$LBUTILS_CACHE`` (``none`` for no cache), else
        ``runs/cache`` of the checkout, and for an installed package the user's cache; False for
        no cache.
    batch_size : int, default 256
        Images that go through the model at once.
    workers : int, optional
        Threads that read and prepare images; by default one for each core, at most 16.
    autocast : "bf16" or "fp16", optional
        Precision of the model's products, on a GPU only. Features are another entry of the cache.
        By default ``$LBUTILS_AUTOCAST``, which encoders on a CPU pass over.

    Raises
    ------
    ValueError
        If an image is unreadable: the message names it, and `extract` leaves such images out. If
        a file of the cache is truncated, corrupt, or does not hold what its name stands for: the
        message names it; once it is deleted its features are computed anew. If `autocast` is
        unknown, or the model is not on a GPU.
        If a feature is not finite or all zero: the message names its image, and it is neither
        returned nor kept. If weights or image files change while features are computed.
    OSError
        If the cache cannot be written. What it holds already stays valid, and is used next time.
    """
    job = _job(encoder, split, False, **options)
    found = _extract(job, cache, progress)
    if found.skipped:
        raise ValueError(
            f"{len(found.skipped)} of {len(split)} images are unreadable, the first being "
            f"{found.skipped[0]!r}: restore them, or leave them out: of one split with "
            "features.extract, of a folder for good with "
            "`python -m lbutils check-folder FOLDER --leave-out`"
        )
    return found.features


def extract(
    encoder: DualEncoder,
    split: Split,
    *,
    cache: Cache = None,
    progress: bool = False,
    **options: Any,
) -> Extraction:
    """Features of the images that can be read, these images, and the ids of the others.

    Parameters are those of `image_features`. A warning says how many images are left out, and the
    cache remembers which. A file that is missing is an error here as well.

    Raises ValueError, OSError as `image_features` does, unreadable images apart.
    """
    job = _job(encoder, split, True, **options)
    features, skipped = _extract(job, cache, progress)
    if not skipped:
        return Extraction(split, features, ())
    left_out = set(skipped)
    warnings.warn(
        f"{len(skipped)} of {len(split)} images are unreadable and left out, the first being "
        f"{skipped[0]!r}",
        stacklevel=2,
    )
    kept = [row for row, image_id in enumerate(split.ids) if image_id not in left_out]
    return Extraction(split.take(kept), features[..., kept, :], skipped)


def _job(
    encoder: Any,
    split: Any,
    skip: bool,
    *,
    views: int = 0,
    seed: int = 0,
    batch_size: int = 256,
    workers: int | None = None,
    autocast: str | None = None,
) -> _Job:
    """What is asked for by the options of `image_features`, checked."""
    if views < 0:
        raise ValueError(f"views must be 0 or more, not {views}")
    workers = min(16, os.cpu_count() or 1) if workers is None else workers
    if min(batch_size, workers) < 1:
        raise ValueError("batch_size and workers must be 1 or more")
    asked = autocast is not None
    if not asked:
        autocast = os.environ.get("LBUTILS_AUTOCAST") or None
    if autocast not in (None, *AUTOCAST):
        raise ValueError(suggest(autocast, AUTOCAST, "autocast"))
    if encoder.device.type == "cpu":
        if asked:
            raise ValueError(f"autocast={autocast!r} is for a GPU, and the encoder is on the CPU")
        autocast = None
    return _Job(encoder, split, views, seed, batch_size, workers, autocast, skip)


def _extract(job: _Job, cache: Cache, progress: bool) -> _Block:
    """Features of all rows, taken from the cache as far as it has them."""
    split, folder = job.split, cache_dir(cache)
    description = describe(job.encoder, split, job.views, job.seed, job.autocast)
    key = hashlib.sha256(description.encode()).hexdigest()
    whole = folder / f"{key}.safetensors" if folder else None
    all_rows = [range(i, min(i + BLOCK, len(split))) for i in range(0, len(split), BLOCK)]
    names = [f"{key}.{rows.start:07d}-{rows.stop:07d}.safetensors" for rows in all_rows]
    parts = [folder / name for name in names] if folder else []
    if (found := _read(whole, description, split.ids)) is not None:
        _remove(parts)  # of a process that was killed when all was done
        return found
    blocks: dict[range, _Block | None] = dict.fromkeys(all_rows)
    for rows, part in zip(all_rows, parts, strict=False):
        blocks[rows] = _read(part, description, _ids(split, rows))
    lacking = [rows for rows, block in blocks.items() if block is None]
    done = len(split) - sum(map(len, lacking))
    bar = tqdm(total=len(split), initial=done, desc="features", unit="image", disable=not progress)
    with bar, closing(_computed(job, lacking, bar)) as computed:
        for rows, block in computed:
            blocks[rows] = block
            # Another process may have finished while this one was at work on a block.
            if (found := _read(whole, description, split.ids)) is not None:
                return found
            if folder and len(rows) < len(split):
                _write(parts[rows.start // BLOCK], block, description, _ids(split, rows))
    joined = _joined(job, [block for block in blocks.values() if block is not None])
    if lacking and describe(job.encoder, split, job.views, job.seed, job.autocast) != description:
        _remove(parts)
        raise ValueError(
            "the encoder's weights or the image files changed while features were computed, so "
            "these are of neither state: compute them again"
        )
    if whole:
        _write(whole, joined, description, split.ids)
        _remove(parts)
    return joined


def _remove(parts: Iterable[Path]) -> None:
    """Remove blocks that are no longer needed; a cache that others filled may be read-only."""
    with suppress(OSError):
        for part in parts:
            part.unlink(missing_ok=True)


def describe(
    encoder: DualEncoder, split: Split, views: int = 0, seed: int = 0, autocast: str | None = None
) -> str:
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
    if autocast:
        described["autocast"] = autocast
    return json.dumps(described, sort_keys=True, separators=(",", ":"))


def cache_dir(cache: Cache = None) -> Path | None:
    """The folder that a `cache` argument stands for, or None for no cache."""
    if cache is False:
        return None
    if cache is None:
        cache = os.environ.get("LBUTILS_CACHE")
        if cache is None:
            if is_installed():
                return user_cache_path("lbutils", appauthor=False)
            return results_dir() / "cache"
        if cache.strip().lower() in ("", "none"):
            return None
    return Path(cache).expanduser()


def _ids(split: Split, rows: range) -> tuple[str, ...]:
    return split.ids[rows.start : rows.stop]


@torch.no_grad()
def _computed(
    job: _Job, blocks: Sequence[range], bar: tqdm
) -> Generator[tuple[range, _Block], None, None]:
    """Each block's rows and features, in order."""
    size = job.batch_size
    batches = [
        range(i, min(i + size, rows.stop))
        for rows in blocks
        for i in range(rows.start, rows.stop, size)
    ]
    with closing(_encoded(job, batches, bar)) as encoded:
        for rows in blocks:
            yield rows, _joined(job, [next(encoded) for _ in range(rows.start, rows.stop, size)])


def _encoded(job: _Job, batches: Sequence[range], bar: tqdm) -> Generator[_Block, None, None]:
    """Features of each batch. The next one is under way when a batch comes back from a GPU."""
    last: tuple[range, _Block] | None = None
    with closing(_prepared(job, batches)) as prepared:
        try:
            for batch in prepared:
                found = _encode(job, batch)
                if last is not None:
                    yield _sound(job, *last)
                last = batch.rows, found
                bar.update(len(batch.rows))
        except Exception:
            # What came before an image that cannot be read is not lost with it.
            if last is not None:
                yield _sound(job, *last)
            raise
    if last is not None:
        yield _sound(job, *last)


def _sound(job: _Job, rows: range, block: _Block) -> _Block:
    """A batch on the CPU. Raises ValueError for features that no image has."""
    block = block._replace(features=block.features.cpu())
    if (bad := _unsound(block, _ids(job.split, rows))) is not None:
        raise ValueError(
            f"the encoder's features of image {bad!r} are not finite or all zero, so none are "
            "kept of it: look at the weights and the precision, or leave the image out "
            "(split.take)"
        )
    return block


def _unsound(block: _Block, ids: Sequence[str]) -> str | None:
    """The first id with a feature that is not finite or all zero, those skipped apart."""
    features = block.features
    good = features.isfinite().all(-1) & (features != 0).any(-1)
    good = good if good.ndim == 1 else good.all(0)
    left_out = set(block.skipped)
    return next((ids[i] for i in (~good).nonzero()[:, 0] if ids[i] not in left_out), None)


def _prepared(job: _Job, batches: Sequence[range]) -> Generator[_Batch, None, None]:
    """Each batch, read ahead."""
    # PIL and torch let go of the interpreter while they decode and resize, so threads help.
    pool = ThreadPoolExecutor(job.workers)
    waiting: deque[Future[_Batch]] = deque()
    try:
        for rows in batches:
            images = [pool.submit(_prepare, job, row) for row in rows]
            # Its images stand before it in the queue, so that it never waits for its own thread.
            waiting.append(pool.submit(_gather, job, rows, images))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(job: _Job, row: int) -> Any:
    """Pixels of an image, or the image where views are drawn; None for one that is skipped."""
    try:
        image = job.split.image(row)
    except ValueError:
        if job.skip:
            return None
        raise
    return image if job.views else job.encoder.preprocess(image)


def _gather(job: _Job, rows: range, images: Sequence[Future[Any]]) -> _Batch:
    """A batch of images that are being prepared."""
    found = [image.result() for image in images]
    kept = [i for i, image in enumerate(found) if image is not None]
    good = [found[i] for i in kept]
    if job.views or not good:
        return _Batch(rows, kept, good)
    pixels = torch.stack(good)
    on_gpu = job.encoder.device.type == "cuda"
    return _Batch(rows, kept, pixels.pin_memory() if on_gpu else pixels)


def _encode(job: _Job, batch: _Batch) -> _Block:
    """Features ([views,] B, D) of a batch, on the model's device."""
    rows, kept = batch.rows, batch.kept
    unread = sorted(set(range(len(rows))) - set(kept))
    skipped = tuple(job.split.ids[rows[i]] for i in unread)
    lead = [job.views] if job.views else []
    if not kept:
        return _Block(torch.full((*lead, len(rows), job.encoder.dim), torch.nan), skipped)
    kind = AUTOCAST[job.autocast] if job.autocast else None
    with torch.autocast(job.encoder.device.type, kind) if kind else nullcontext():
        if job.views:
            own = [rows[i] for i in kept]
            drawn = (_views(job, own, batch.images, view) for view in range(job.views))
            found = torch.stack([job.encoder.encode_images(pixels) for pixels in drawn])
        else:
            pixels = batch.images
            pixels = pixels.to(job.encoder.device, non_blocking=pixels.is_pinned())
            found = job.encoder.encode_images(pixels)
    if skipped:
        spread = found.new_full((*lead, len(rows), found.shape[-1]), torch.nan)
        spread[..., kept, :] = found
        found = spread
    return _Block(found, skipped)


def _views(job: _Job, rows: Sequence[int], images: list[Image.Image], view: int) -> Tensor:
    """Pixels (B, 3, H, W) of one augmented view; the global generator is left as it was."""
    pixels = []
    with torch.random.fork_rng(devices=[]):
        for row, image in zip(rows, images, strict=True):
            digest = hashlib.sha256(f"{job.seed}/{view}/{job.split.ids[row]}".encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
            pixels.append(job.encoder.augment(image))
    return torch.stack(pixels)


def _joined(job: _Job, blocks: Sequence[_Block]) -> _Block:
    if not blocks:
        return _Block(torch.empty(*([job.views] if job.views else []), 0, job.encoder.dim), ())
    skipped = tuple(image_id for block in blocks for image_id in block.skipped)
    return _Block(torch.cat([block.features for block in blocks], dim=-2), skipped)


def _sha256(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy()).hexdigest()


def _write(path: Path, block: _Block, description: str, ids: tuple[str, ...]) -> None:
    """Write features with the table of their ids, and move the file into place."""
    metadata = {
        "description": description,
        "ids": json.dumps(ids),
        "sha256": _sha256(block.features),
    }
    if block.skipped:
        metadata["skipped"] = json.dumps(block.skipped)
    try:
        with replacing(path) as temporary:
            save_file({"features": block.features.contiguous()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"features could not be written to {path.parent} ({error}): free space there, or set "
            "LBUTILS_CACHE to another folder; what is there stays valid, and is used next time"
        ) from error


def _read(path: Path | None, description: str, ids: tuple[str, ...]) -> _Block | None:
    """Features of a cache file, or None if there is no such file.

    Raises ValueError if it is truncated, corrupt, or of other weights, preprocessing or images.
    """
    if path is None:
        return None
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
    block = _Block(features, tuple(json.loads(metadata.get("skipped", "[]"))))
    whole = metadata.get("sha256") == _sha256(features)
    if not whole or features.shape[-2:-1] != (len(ids),) or _unsound(block, ids) is not None:
        raise ValueError(f"{path} is corrupt: delete it, and it is computed anew")
    return block
