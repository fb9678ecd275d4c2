"""What the paper's grid would cost, from counted operations: for where no GPU is at hand.

Models are built without memory for their weights (PyTorch's meta device), and one image and one
text of full length go through them while multiplications are counted. Seconds follow from an
assumed rate, which is no measurement: ``bench_encoders.py`` measures, and has the last word::

    LBUTILS_BENCH_TFLOPS=100 pytest tests/benchmarks/bench_projection.py
"""

from __future__ import annotations

import os

import open_clip
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ENCODERS = os.environ.get(
    "LBUTILS_BENCH_ENCODERS",
    "ViT-B-32 ViT-B-16 ViT-L-14 ViT-g-14 EVA01-g-14 EVA02-E-14-plus",
).split()
# Reached, not promised: about a third of the bf16 peak of an A100, a tenth of that of an H100.
RATE = 1e12 * float(os.environ.get("LBUTILS_BENCH_TFLOPS", "100"))
# Names are learned in fp32, and the gradient of a frozen tower costs another forward pass.
SLOWER = 10
CLASSES = int(os.environ.get("LBUTILS_BENCH_CLASSES", "75"))
# As sweeps/README.md counts them: images as they are, and 4 views for each of 3 seeds.
PASSES = 157_382 + 3 * 4 * 53_026


def counted(call):
    """Floating-point operations of a call, two for each multiplication."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ENCODERS)
def test_projection(name, capsys):
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta", load_weights=False).eval()
    size = model.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    image = counted(lambda: model.encode_image(torch.zeros(1, 3, height, width, device="meta")))
    length = getattr(model, "context_length", 77)
    token = torch.zeros(1, length, dtype=torch.long, device="meta")
    text = counted(lambda: model.encode_text(token))
    weights = sum(p.numel() for p in model.parameters())
    assert image > 1e9 and text > 1e8
    step = 2 * CLASSES * text / (RATE / SLOWER)
    with capsys.disabled():
        print(
            f"\n{name}: {weights / 1e6:,.0f} M parameters, {4 * weights / 2**30:.1f} GiB in fp32; "
            f"{image / 1e9:,.0f} GFLOP an image, {text / 1e9:,.1f} a text\n"
            f"  at {RATE / 1e12:.0f} TFLOP/s {RATE / image:,.0f} images/s, {PASSES:,} passes in "
            f"{PASSES * image / RATE / 3600:.2f} hours; at a tenth of it {step:.2f} s a step of "
            f"{CLASSES} names"
        )
