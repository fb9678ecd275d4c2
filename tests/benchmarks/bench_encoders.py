"""Time and memory of encoders with random weights, for the projection in ``sweeps/README.md``.

Name one or more architectures of open_clip; on a GPU memory is the peak that PyTorch allocated::

    LBUTILS_BENCH_ENCODERS="ViT-B-16 ViT-L-14" pytest tests/benchmarks/bench_encoders.py
"""

from __future__ import annotations

import os
import time

import numpy as np
import open_clip
import pytest
import torch

from lbutils.models.encoders import DualEncoder
from lbutils.models.names import NameEmbeddings

ENCODERS = os.environ.get("LBUTILS_BENCH_ENCODERS", "ViT-S-32").split()
CLASSES = int(os.environ.get("LBUTILS_BENCH_CLASSES", "75"))
BATCH = int(os.environ.get("LBUTILS_BENCH_BATCH", "64"))
ROUNDS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISIONS = [None, "bf16", "fp16"] if DEVICE == "cuda" else [None]


def measured(call):
    """Median seconds of a call, after one that warms up, and the peak of a GPU's memory."""
    call()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    if DEVICE == "cpu":
        return np.median(seconds), "not measured"
    return np.median(seconds), f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"


@pytest.mark.parametrize("name", ENCODERS)
def test_time_and_memory(name, capsys):
    torch.manual_seed(0)
    model = open_clip.create_model(name, device=DEVICE)
    encoder = DualEncoder(model, open_clip.get_tokenizer(name), name=name)
    size = model.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    images = torch.rand(BATCH, 3, height, width, device=DEVICE)
    lines = [f"{name} on {DEVICE}: {sum(p.numel() for p in model.parameters()):,} parameters"]
    for precision in PRECISIONS:
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)

        def extract(kind=kind, precision=precision):
            with torch.no_grad(), torch.autocast(DEVICE, kind, enabled=precision is not None):
                encoder.encode_images(images)

        seconds, peak = measured(extract)
        lines.append(
            f"  images, {precision or 'fp32'}: {BATCH / seconds:.1f} a second, peak {peak}"
        )
    names = [f"thing {chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(CLASSES)]
    learned = NameEmbeddings(encoder, names, ["a photo of a {name}"])
    target = torch.randn(CLASSES, learned().shape[1], device=learned().device)

    def step():
        learned.zero_grad()
        (learned() * target).sum().backward()

    seconds, peak = measured(step)
    lines.append(f"  a step of {CLASSES} names, fp32: {seconds:.3f} s, peak {peak}")
    assert all(torch.isfinite(p.grad).all() for p in learned.parameters() if p.requires_grad)
    with capsys.disabled():
        print("", *lines, sep="\n")
