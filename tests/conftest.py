from __future__ import annotations

import os

# Before numpy and torch start their threads: small tests are fastest on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

NAMES = ("red panda", "axolotl", "hot dog", "okapi", "sea otter")


@dataclass
class CaptionedImages:
    """What learners ask of a split, with features passed beside it."""

    labels: np.ndarray
    names: tuple[str, ...]
    captions: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.labels)


@pytest.fixture(scope="session")
def captioned_images() -> CaptionedImages:
    labels = np.repeat(np.arange(len(NAMES)), 3)
    forms = ("a {}", "a drawing of a {}", "An emoji of a {}.")
    captions = tuple(forms[i % 3].format(NAMES[label]) for i, label in enumerate(labels))
    return CaptionedImages(labels, NAMES, captions)


@pytest.fixture(scope="session")
def image_views(captioned_images: CaptionedImages) -> Any:
    """Features (2, N, 32) that gather around a direction per class."""
    import torch

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(NAMES), 32, generator=generator)[captioned_images.labels]
    noise = torch.randn(2, len(captioned_images), 32, generator=generator)
    return torch.nn.functional.normalize(centres + 0.3 * noise, dim=-1)


def build_tiny(kind: str = "clip", **text: Any) -> Any:
    """A random open_clip model in float32: "clip", or "custom" with its text tower apart."""
    import open_clip
    import torch

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    texts = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    family = {"clip": open_clip.CLIP, "custom": open_clip.CustomTextCLIP}[kind]
    model = family(32, vision, {**texts, **text})
    for parameter in model.parameters():
        # Biases and norms start at 0 and 1, where mistakes in them would not show.
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_encoder() -> Any:
    """Function from `build_tiny`'s arguments to a DualEncoder."""
    import open_clip

    from lbutils.encoders import DualEncoder

    def make(kind: str = "clip", **text: Any) -> Any:
        model = build_tiny(kind, **text)
        tokenizer = open_clip.SimpleTokenizer(context_length=16)
        return DualEncoder(model, tokenizer, name=f"tiny {kind}", preprocess={"size": 32})

    return make


@pytest.fixture(scope="session")
def tiny_encoder(make_encoder: Any) -> Any:
    return make_encoder()
