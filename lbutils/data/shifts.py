"""Images that are shown otherwise: without colour, in outline, noisy, blurred, compressed.

`shifted` gives a split whose images went through a shift, so that features of it are computed and
cached like those of any other.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from lbutils._util import suggest
from lbutils.data.benchmark import Split
from lbutils.data.images import ImageSource, decode

_Shift = Callable[[Image.Image, np.random.Generator], Image.Image]
_WHITE = (255, 255, 255, 255)


def _grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.convert("LA")


def _silhouette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    shape = image.getchannel("A").point(lambda alpha: 255 if alpha >= 128 else 0)
    return Image.merge("LA", [Image.new("L", image.size), shape])


def _outline(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    # Pillow does not touch the outermost pixels, which a frame keeps off the drawing.
    framed = ImageOps.expand(_flat(image).convert("L"), 1, fill=255)
    edges = ImageOps.invert(framed.filter(ImageFilter.FIND_EDGES))
    return ImageOps.crop(edges, 1)


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(_flat(image), float)
    drawn = pixels + rng.normal(0, 0.15 * 255, pixels.shape)
    return Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8))


def _blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _flat(image).filter(ImageFilter.GaussianBlur(min(image.size) / 32))


def _contrast(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(_flat(image)).enhance(0.3)


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    _flat(image).save(stream, "JPEG", quality=10)
    return Image.open(io.BytesIO(stream.getvalue()))


def _flat(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")


SHIFTS: dict[str, _Shift] = {
    "grey": _grey,
    "outline": _outline,
    "silhouette": _silhouette,
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}


@dataclass(frozen=True)
class Shifted:
    """A source of images behind a shift; noise depends on an image's id and on nothing else."""

    source: ImageSource
    shift: str

    @property
    def advice(self) -> str:
        """That of the source."""
        return self.source.advice

    def read(self, image_id: str) -> bytes:
        """The shifted image as BMP, on white. Raises as the source, or ImageError."""
        short_side = getattr(self.source, "short_side", None)
        image = decode(self.source.read(image_id), transparent=True, short_side=short_side)
        digest = hashlib.sha256(image_id.encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        stream = io.BytesIO()
        _flat(SHIFTS[self.shift](image, rng).convert("RGBA")).save(stream, "BMP")
        return stream.getvalue()

    def stamp(self, image_id: str) -> str:
        """That of the source, with the shift."""
        return f"{self.source.stamp(image_id)}:{self.shift}"


def shifted(split: Split, shift: str) -> Split:
    """The split with every image shown otherwise.

    `shift` (str): one of `SHIFTS`: ``"grey"``; ``"outline"`` (edges, black on white);
    ``"silhouette"`` (black where the image is not transparent, so that a photograph is black
    throughout); and as in ImageNet-C ``"noise"`` (Gaussian, 0.15 of the range), ``"blur"``
    (Gaussian, a 32nd of the shorter side), ``"contrast"`` (0.3 of it), ``"jpeg"`` (quality 10).

    Raises ValueError if there is no such shift.

    Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common
    corruptions and perturbations", ICLR; one strength each, between their third and fifth.
    """
    if shift not in SHIFTS:
        raise ValueError(suggest(shift, SHIFTS, "shift"))
    return replace(split, source=Shifted(split.source, shift))


def one_coloured(image: Image.Image) -> bool:
    """Whether a drawing (RGBA) has one colour: its opaque pixels differ by few levels of 256 only.

    No channel's standard deviation is above 12 among the pixels of at least half opacity.
    """
    pixels = np.asarray(image.convert("RGBA"), float)
    opaque = pixels[pixels[..., 3] >= 128][:, :3]
    return not len(opaque) or float(opaque.std(axis=0).max()) <= 12
