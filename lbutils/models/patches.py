"""Features of parts of images: of windows cut out of them, and of windows of a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import Normalize
from torchvision.transforms.functional import to_tensor


@torch.no_grad()
def encoded(encoder: Any, images: Sequence[Image.Image], batch_size: int = 256) -> Tensor:
    """Unit features ``(N, D)`` float32 on the CPU of images that no split holds."""
    blocks = [
        encoder.encode_images(torch.stack([encoder.preprocess(image) for image in part])).cpu()
        for part in (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    ]
    return torch.cat(blocks) if blocks else torch.empty(0, encoder.dim)


@torch.no_grad()
def patch_features(encoder: Any, images: Sequence[Image.Image], grid: int = 2) -> Tensor:
    """Unit features ``(N, grid * grid, D)`` float32 of equal parts of images, by one pass each.

    The image tower runs once over the whole image, which is not resized, and its feature map is
    cut into parts, row by row; each is pooled and projected as a whole image's map is. A part's
    feature therefore sees some of what is around it. The images are RGB, all of one size.

    Raises ValueError unless the encoder's image tower is one of timm behind open_clip, with a
    feature map ``(N, C, H, W)`` that `grid`, the parts along a side, divides.

    In the line of MaskCLIP (Zhou, Loy and Dai 2022, "Extract free dense labels from CLIP", ECCV),
    which projects single positions of a map.
    """
    visual = encoder.model.visual
    trunk: Any = getattr(visual, "trunk", None)
    if not (hasattr(trunk, "forward_features") and hasattr(trunk, "forward_head")):
        raise ValueError(f"the image tower of {encoder.name} gives no feature map: use windows")
    normalised = Normalize(encoder.preprocess_config["mean"], encoder.preprocess_config["std"])
    pixels = torch.stack([normalised(to_tensor(image)) for image in images])
    maps = trunk.forward_features(pixels.to(encoder.device, encoder.dtype))
    if maps.ndim != 4 or maps.shape[2] % grid or maps.shape[3] % grid:
        raise ValueError(f"a feature map {tuple(maps.shape)} has no {grid} x {grid} equal parts")
    rows = [part for band in maps.chunk(grid, dim=2) for part in band.chunk(grid, dim=3)]
    found = torch.stack([visual.head(trunk.forward_head(part)) for part in rows], dim=1)
    return F.normalize(found.float(), dim=-1).cpu()
