"""One reader of images: of the miniature, of LAION-Beyond and of folders of one's own.

What `decode` returns, whatever the file says:

- the first frame of an animation, the first page of a TIFF, turned as its EXIF orientation says;
- eight bits a channel. Integers of more bits are shifted right until the fewest of 8, 10, 12, 14 or
  16 bits that hold the image's largest value become eight, so that 12 bits kept in 16 are not
  nearly black; colour channels share one shift, alpha has its own. Floats from 0 to 1 are taken
  times 255, greater ones as integers; grey with negative values, or with values beyond 16 bits, is
  stretched from its smallest value to its largest;
- RGB on white where there is transparency (an alpha channel, a palette's, or one colour that is
  declared transparent), or RGBA where that is asked for. Colour profiles are not applied.

A file that cannot be read so, or that is made to fill the memory, is refused in one line.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from lbutils._util import hexdigest
from lbutils.data import folder as layout

# Formats that are read, and the suffixes of their files. Not all that Pillow reads: some of its
# formats start other programs.
FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# Refused before they are decoded: 50 megapixels take 200 MB of memory in each of eight threads.
MAX_PIXELS = 50_000_000
MAX_BYTES = 64_000_000
MAX_RATIO = 1000  # of an image's sides

_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # of TIFF
_DEPTHS = (8, 10, 12, 14, 16)
# Pillow's raw modes of 16 bits a channel, of which it keeps the upper half, and their byte order.
_DEEP = re.compile("(RGBX?|RGBA|LA);16([BLN])")
_LITTLE = ("L", "N") if sys.byteorder == "little" else ("L",)


class ImageError(ValueError):
    """Why an image is not read, to be put behind its name: "is unreadable: ..."."""


def decode(
    source: bytes | str | os.PathLike[str],
    *,
    transparent: bool = False,
    short_side: int | None = None,
) -> Image.Image:
    """The image of a file, RGB; by the rules at the head of this module.

    Raises ImageError if it is no such file, is damaged or larger than images are, or would take
    more memory than it may. The message continues a sentence that begins with the image's name.
    Raises FileNotFoundError if there is no file at a path.

    Parameters
    ----------
    source : bytes or path
        A JPEG, PNG, WebP, GIF, BMP or TIFF file.
    transparent : bool
        RGBA instead, as the file has it.
    short_side : int, optional
        Shrink an image whose shorter side has more pixels, so that it has these.
    """
    content = source if isinstance(source, bytes) else read_file(Path(source))
    try:
        found = _decoded(content)
        if short_side is not None and min(found.size) > short_side:
            found = _flat(found, keep_alpha=True)
            shrink = short_side / min(found.size)
            size = (round(found.width * shrink), round(found.height * shrink))
            found = found.resize(size, Image.Resampling.LANCZOS)
        return found.convert("RGBA") if transparent else _flat(found)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"is unreadable: not an image in {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(f"more than {MAX_PIXELS:,} pixels") from error
    # Hostile files lead Pillow's parsers into errors of every kind.
    except Exception as error:
        raise ImageError(f"is unreadable: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first 120 characters of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def suffix_of(content: bytes) -> str:
    """The suffix of an image file's format, as its content tells it; ".jpg" if it does not."""
    try:
        with _opened(content) as image:
            return FORMATS[image.format][0]
    except Exception:  # no image, or one of JPEG's kin such as MPO
        return FORMATS["JPEG"][0]


def read_file(path: Path) -> bytes:
    """The bytes of an image file, or ImageError if it is none or larger than images are."""
    _check_bytes(path.stat().st_size)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"is unreadable: {error.strerror or 'it cannot be opened'}") from error


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(f"has {size:,} bytes, and an image may have {MAX_BYTES:,}")
    if not size:
        raise ImageError("is unreadable: the file is empty")


def _bomb(reason: str) -> ImageError:
    return ImageError(f"is refused as a decompression bomb, {reason}")


def _decoded(content: bytes) -> Image.Image:
    """The first frame, upright, in eight bits a channel."""
    _check_bytes(len(content))
    with _opened(content) as image:
        # A line one pixel high is small until its shorter side is resized to a model's pixels.
        short, long = sorted(image.size)
        if short * long > MAX_PIXELS or long > MAX_RATIO * short:
            raise _bomb(
                f"{image.width} x {image.height} pixels where {MAX_PIXELS:,} are admitted, and no "
                f"side {MAX_RATIO} times the other"
            )
        raw = _raw_mode(image)
        image.load()
        turn = _TURNS.get(_orientation(image))
        found = _in_eight_bits(image, content, raw)
        found = image.copy() if found is image else found
    return found if turn is None else found.transpose(turn)


def _opened(content: bytes) -> Any:
    return Image.open(io.BytesIO(content), formats=tuple(FORMATS))


def _orientation(image: Any) -> Any:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of a damaged note beside an image that is not damaged
        return 1


def _flat(image: Image.Image, *, keep_alpha: bool = False) -> Image.Image:
    """RGB, on white where it is transparent; or RGBA where it is, if alpha is kept."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    if keep_alpha:
        return rgba
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


# --- more and fewer than eight bits --------------------------------------------------------


def _in_eight_bits(image: Any, content: bytes, raw: str) -> Image.Image:
    """The image, or one of its values in eight bits, where it has more."""
    key = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = _in_eight(values)
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            grey = 255 - grey
        if not isinstance(key, int):
            return Image.fromarray(grey)
        return Image.fromarray(np.dstack([grey, np.where(values == key, 0, 255).astype(np.uint8)]))
    if match := _DEEP.fullmatch(raw):
        return _in_eight_colours(_sixteen_bits(image, content, *match.groups()), key)
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int):
        # Pillow spreads 2 and 4 bits over eight, but not the transparent value.
        depth = content[24]
        image.info["transparency"] = key * 255 // (2**depth - 1)
    return image


def _in_eight(values: np.ndarray) -> np.ndarray:
    """Values of one scale (...) in eight bits, uint8, by the rule at the head of this module."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageError("is unreadable: it has values that are not finite")
        if low >= 0 and high <= 1:
            return np.rint(values * 255).astype(np.uint8)
    if low >= 0 and high < 1 << _DEPTHS[-1]:
        depth = next(depth for depth in _DEPTHS if high < 1 << depth)
        return (values.astype(np.uint16) >> (depth - 8)).astype(np.uint8)
    spread = float(high) - float(low) or 1.0
    return np.rint((values.astype(np.float64) - float(low)) * (255 / spread)).astype(np.uint8)


def _in_eight_colours(values: np.ndarray, key: Any) -> Image.Image:
    """RGB or RGBA of 16-bit channels (H, W, 3 or 4); `key` is the one transparent colour."""
    channels = [_in_eight(values[..., :3])]
    if values.shape[-1] == 4:
        channels.append(_in_eight(values[..., 3]))
    elif isinstance(key, tuple):
        channels.append(np.where((values == key).all(-1), 0, 255).astype(np.uint8))
    return Image.fromarray(np.dstack(channels))


def _raw_mode(image: Any) -> str:
    """How the pixels lie in the file, in Pillow's words; empty if that is not said."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    args = args[0] if isinstance(args, tuple) and args else args
    return args if isinstance(args, str) else ""


def _sixteen_bits(image: Any, content: bytes, bands: str, order: str) -> np.ndarray:
    """All bits (H, W, C), uint16, of an image of which Pillow has loaded the upper halves.

    The lower halves are what it loads if it takes the bytes to be in the other order.
    """
    upper = np.asarray(image).astype(np.uint16)
    if bands == "LA":  # four bytes a pixel, as in RGBA
        quads = _loaded_as(content, "RGBA").astype(np.uint16)
        grey, alpha = (quads[..., i] << 8 | quads[..., i + 1] for i in (0, 2))
        return np.dstack([grey, grey, grey, alpha])
    return upper << 8 | _loaded_as(content, f"{bands};16{'B' if order in _LITTLE else 'L'}")


def _loaded_as(content: bytes, raw: str) -> np.ndarray:
    with _opened(content) as image:
        image.tile = [
            tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
            for tile in image.tile
        ]
        return np.asarray(image)


# --- files ---------------------------------------------------------------------------------


class ImageSource(Protocol):
    """Where the images of a split come from."""

    @property
    def advice(self) -> str:
        """What to do about an image that is missing or unreadable."""

    def read(self, image_id: str) -> bytes:
        """The image's encoded bytes. Raises FileNotFoundError if there is none."""

    def stamp(self, image_id: str) -> str:
        """A text that changes when the image's content does: by default the bytes' SHA-256."""
        return hashlib.sha256(self.read(image_id)).hexdigest()


@dataclass(frozen=True)
class Files:
    """Images as files under a root, which is not left.

    An id is a path relative to the root, unless `paths` has one for it. Images whose shorter side
    has more than `short_side` pixels are shrunk when they are decoded.
    """

    root: Path
    paths: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    short_side: int | None = None
    remedy: str | None = field(default=None, repr=False, compare=False)

    @property
    def advice(self) -> str:
        """Download it again; and how to see all damage at once, or to do without such files."""
        return self.remedy or (
            "download it again; Benchmark.report() lists all such files, and `python -m "
            f"lbutils check-folder {self.root} --leave-out` makes do without them"
        )

    def read(self, image_id: str) -> bytes:
        """The bytes of an image file.

        Raises FileNotFoundError if there is no such file. Raises ValueError if it lies outside of
        the root, links followed, or is larger than images are.
        """
        path = self.path(image_id)
        try:
            return read_file(path)
        except ImageError as error:
            raise ImageError(f"image {str(path)!r} {error}: {self.advice}") from error

    def stamp(self, image_id: str) -> str:
        """SHA-256 of the file, and to what it is shrunk. One that is not read has its size."""
        path = self.path(image_id)
        size = path.stat().st_size
        return f"{sha256(path) if size <= MAX_BYTES else size}:{self.short_side}"

    @cached_property
    def _places(self) -> tuple[Path, ...]:
        return layout.places(self.root)

    def path(self, image_id: str) -> Path:
        """The file of an image. Raises as `read`, but for its content."""
        path = self.root / self.paths.get(image_id, image_id)
        if not str(path).isascii() and not path.is_file() and path.is_relative_to(self.root):
            path = layout.as_spelt(path, self.root)
        if not layout.is_inside(path, self._places):
            raise ImageError(f"image {str(path)!r} leads out of {self.root}: {self.advice}")
        if not path.exists():
            raise FileNotFoundError(f"image {str(path)!r} is missing: {self.advice}")
        if not path.is_file():  # to open a pipe would wait for ever
            raise ImageError(f"image {str(path)!r} is not a file: {self.advice}")
        return path


_DIGESTS: dict[Path, tuple[tuple[int, ...], str]] = {}
_SETTLED = 2_000_000_000  # nanoseconds


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, taken once per process while the file is not touched.

    Not size and time of writing alone tell that, which `cp -p` and archives put back, but also
    the time of the last change of any kind, which nobody sets. Where the system has none
    (Windows), and within two seconds of it, when clocks may not tell two changes apart, the file
    is read again.
    """
    state = path.stat()
    seen = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    known = _DIGESTS.get(path)
    if known is not None and known[0] == seen:
        return known[1]
    with path.open("rb") as stream:
        digest = hexdigest(stream, hashlib.sha256())
    if os.name == "posix" and abs(time.time_ns() - state.st_ctime_ns) > _SETTLED:
        _DIGESTS[path] = seen, digest
    return digest
