"""The basic colours that images show and words tell.

A description says "a red fruit with black spots". Whether an image shows these colours can be
read off its pixels, whatever an encoder makes of the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import XKCD_COLORS, to_rgb

from lbutils.captions.text import as_names, canonical

# The basic colour terms of English: Berlin and Kay 1969.
BASIC = (
    *("black", "white", "gray", "red", "orange", "yellow"),
    *("green", "blue", "purple", "pink", "brown"),
)
# Other words for them, each in a description of the miniature.
_ALSO = {"grey": "gray", "cream": "white", "gold": "yellow", "violet": "purple", "dark": "black"}
_SIDE = 32
# CIE standard illuminant D65, and linear sRGB to XYZ: IEC 61966-2-1.
_WHITE = np.array([0.95047, 1.0, 1.08883])
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(rgb: Any) -> np.ndarray:
    """CIELAB coordinates ``(..., 3)`` float64 of sRGB colours ``(..., 3)`` in 0..1 (CIE 1976)."""
    values = np.asarray(rgb, dtype=np.float64)
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    ratio = linear @ _XYZ.T / _WHITE
    cube = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(cube, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _focal() -> np.ndarray:
    """CIELAB of the basic colours, ``(11, 3)``."""
    xkcd = {name.removeprefix("xkcd:"): value for name, value in XKCD_COLORS.items()}
    return lab([to_rgb(xkcd["grey" if name == "gray" else name]) for name in BASIC])


def colour_shares(split: Any) -> np.ndarray:
    """Share of each image's visible pixels that is nearest to each basic colour, ``(N, 11)``.

    Rows sum to one; an image without a visible pixel gets equal shares. Images are looked at 32
    pixels wide and high; pixels less than half opaque are not visible. Errors are those of
    `Split.image`.

    Source: the focal colours are the XKCD colour survey's (Munroe 2010, public domain), as in
    matplotlib; nearness is Euclidean in CIELAB.
    """
    focal, rows = _focal(), np.full((len(split), len(BASIC)), 1 / len(BASIC))
    for i in range(len(split)):
        image = split.image(i, transparent=True).resize((_SIDE, _SIDE))
        pixels = np.asarray(image, dtype=np.float64).reshape(-1, 4) / 255
        seen = lab(pixels[pixels[:, 3] >= 0.5, :3])
        if len(seen):
            nearest = ((seen[:, None] - focal) ** 2).sum(axis=2).argmin(axis=1)
            rows[i] = np.bincount(nearest, minlength=len(BASIC)) / len(seen)
    return rows


def told_colours(phrases: Sequence[str]) -> np.ndarray:
    """Shares of basic colours among the colour words of phrases, ``(11,)``; zeros without any."""
    counts = np.zeros(len(BASIC))
    for phrase in as_names(phrases, "phrases"):
        for word in canonical(phrase).split():
            if _ALSO.get(word, word) in BASIC:
                counts[BASIC.index(_ALSO.get(word, word))] += 1
    return counts / max(counts.sum(), 1)


def colour_evidence(shown: Any, told: Any, floor: float = 0.1) -> np.ndarray:
    """How well images' colours go with each name's words, ``(N, C)`` float64, in logarithms.

    How many times more of the colours that a name tells an image shows than images do on average,
    plus a `floor` for what no words can exclude. A name without colours is told by none: once.
    `shown` ``(N, 11)`` is as from `colour_shares`, `told` ``(C, 11)`` as from `told_colours`;
    others raise ValueError.
    """
    seen, words = np.asarray(shown, dtype=np.float64), np.asarray(told, dtype=np.float64)
    if seen.ndim != 2 or words.ndim != 2 or seen.shape[1:] != words.shape[1:] or not len(seen):
        raise ValueError(f"colours of images {seen.shape} and of names {words.shape} do not fit")
    # A colour that hardly any image shows must not decide by its few pixels.
    usual = seen.mean(axis=0) + 0.02
    ratio = np.where(words.any(axis=1), (seen / usual) @ words.T, 1.0)
    return np.log(ratio + floor)
