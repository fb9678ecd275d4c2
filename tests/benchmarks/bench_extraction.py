"""Features from JPEG files beside the bare model on pixels that are ready: ``make bench``.

Random weights. 2,000 files of 500 x 375, as ImageNet's are on average; the same number of images
goes through the model alone, in the same run and in turns. What is wanted is 95 % of its
throughput. On a CPU decoding takes its share of the same cores: the smaller the model, the larger
that share, so the cost of decoding alone is printed too.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from lbutils.data.benchmark import Files, Split
from lbutils.models.encoders import DualEncoder
from lbutils.models.features import image_features

MODEL = os.environ.get("LBUTILS_BENCH_MODEL", "ViT-S-32")
IMAGES = int(os.environ.get("LBUTILS_BENCH_IMAGES", "2000"))
BATCH = 64
TURNS = 4  # the images are cut in as many parts; bare model and files alternate
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A split of JPEG files with detail at all scales, like photographs."""
    folder = tmp_path_factory.mktemp("jpeg")
    draw = np.random.default_rng(0)
    scenes = []
    for _ in range(20):
        scene = np.zeros((375, 500, 3))
        for cells in (4, 12, 40, 120):
            patch = draw.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            grown = Image.fromarray(patch).resize((500, 375), Image.Resampling.BICUBIC)
            scene += np.asarray(grown) / 4
        scenes.append(scene + draw.normal(0, 6, scene.shape))
    names = tuple(f"{i:05d}.jpg" for i in range(IMAGES))
    for i, name in enumerate(names):
        pixels = np.roll(scenes[i % len(scenes)], 7 * i, axis=1).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=90)
    size = sum(path.stat().st_size for path in Path(folder).iterdir()) / IMAGES
    labels = np.zeros(IMAGES, dtype=int)
    split = Split(names, labels, ("thing",), (None,) * IMAGES, Files(folder))
    return split, size


def synchronise(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call, device):
    synchronise(device)
    begin = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begin


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autocast", [None, "bf16", "fp16"])
def test_files_beside_the_bare_model(files, device, autocast, capsys):
    if device == "cpu" and autocast:
        pytest.skip("autocast is for a GPU")
    split, size = files
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL, device=device)
    encoder = DualEncoder(model, open_clip.get_tokenizer(MODEL), name=MODEL)
    ready = torch.stack([encoder.preprocess(split.image(i)) for i in range(min(BATCH, IMAGES))])
    ready = ready.to(device)
    options = {"cache": False, "batch_size": BATCH, "autocast": autocast}

    def bare(many):
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(autocast, torch.float32)
        with torch.no_grad(), torch.autocast(device, kind, enabled=autocast is not None):
            for start in range(0, many, BATCH):
                encoder.encode_images(ready[: min(BATCH, many - start)])

    bare(len(ready))
    image_features(encoder, split.take(range(len(ready))), **options)
    alone, ours = [], []
    for rows in np.array_split(np.arange(IMAGES), TURNS):
        part = split.take(rows)
        alone.append(len(part) / timed(partial(bare, len(part)), device))
        ours.append(len(part) / timed(partial(image_features, encoder, part, **options), device))
    some = range(min(200, IMAGES))
    decoding = timed(lambda: [encoder.preprocess(split.image(i)) for i in some], "cpu") / len(some)
    shares = sorted(mine / other for mine, other in zip(ours, alone, strict=True))
    with capsys.disabled():
        print(f"\n{MODEL} on {device}, {autocast or 'fp32'}, {IMAGES} JPEG files of {size:,.0f} B")
        print(f"bare model   {np.median(alone):8.1f} images/s")
        print(f"from files   {np.median(ours):8.1f} images/s")
        print(f"share        {np.median(shares):8.1%} (from {shares[0]:.1%} to {shares[-1]:.1%})")
        print(f"decoding     {1000 * decoding:8.2f} ms an image on one core of {os.cpu_count()}")
        print(f"95 %, as are wanted: {'yes' if np.median(shares) >= 0.95 else 'no'}")
