"""Letters that the usual font lacks: which installed font has them, and what to install if none."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pandas as pd
from matplotlib import font_manager

USUAL = "DejaVu Sans"  # which matplotlib brings: a figure is the same anywhere
# Families that have what the usual one lacked so far, in this process.
fallbacks: list[str] = []


def texts(values: Iterable[Any]) -> Iterator[str]:
    """Every text in tables, lists and texts."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, pd.DataFrame):
            yield from map(str, value.columns)
            for name in value.columns:
                if not pd.api.types.is_numeric_dtype(value[name]):
                    yield from (text for text in value[name] if isinstance(text, str))
        elif isinstance(value, (list, tuple)):
            yield from texts(value)


@cache
def find_fonts(characters: frozenset[str]) -> None:
    """Look among the installed fonts for what the usual one cannot draw; warn of what none can."""
    usual = font_manager.get_font(font_manager.findfont(USUAL))
    written = (c for c in characters if not c.isspace() and unicodedata.category(c)[0] != "C")
    lacking = {c for c in written if not usual.get_char_index(ord(c))}
    files: dict[str, str] = {}
    # Upright ones of medium weight first, as names come in no order.
    order = sorted(
        font_manager.fontManager.ttflist, key=lambda f: (f.style != "normal", f.weight != 400)
    )
    for entry in order if lacking else ():
        if "last resort" not in entry.name.lower():  # which has a box for everything
            files.setdefault(entry.name, entry.fname)
    for family in [*fallbacks, *files]:
        if not lacking:
            return
        try:
            font = font_manager.get_font(files[family])
        except (KeyError, OSError, RuntimeError):  # gone, or damaged
            continue
        had = {c for c in lacking if font.get_char_index(ord(c))}
        if had and family not in fallbacks:
            fallbacks.append(family)
        lacking -= had
    if lacking:
        warn_of_fonts("CJK" if any(map(_is_east_asian, lacking)) else "")


def _is_east_asian(character: str) -> bool:
    kinds = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")
    return unicodedata.name(character, "").startswith(kinds)


@cache
def warn_of_fonts(script: str) -> None:
    """Warn once of a script that no installed font has."""
    font = f"Noto Sans {script}".strip()
    package = "fonts-noto-cjk" if script else "fonts-noto-core"
    warnings.warn(
        f"no installed font has all letters of these names, so figures show boxes: install {font} "
        f"(Debian and Ubuntu: {package}) and start again",
        stacklevel=5,
    )
