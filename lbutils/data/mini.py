"""Files of the miniature: their content is checked, and the images lie in Parquet shards."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq

from lbutils.data.folder import data_file, how_to_restore
from lbutils.data.images import ImageSource, sha256

_CHECKSUMS = "mini/checksums.csv"


def mini_file(name: str) -> Path:
    """The path of a file of the miniature, whose content has been checked.

    Raises FileNotFoundError, ValueError if the file is missing, is not listed in ``checksums.csv``
    or differs from its SHA-256 there. The message has the command that restores it.

    A file is hashed once per process, and again only if it was touched (`images.sha256`).

    `name` (str): relative to ``data/mini``, with forward slashes.
    """
    expected = _checksums().get(name)
    path = data_file(f"mini/{name}")
    if expected is None:
        raise ValueError(f"{path} is not listed in checksums.csv: {how_to_restore(_CHECKSUMS)}")
    if sha256(path) != expected:
        raise ValueError(f"{path} is corrupt or was changed: {how_to_restore(f'mini/{name}')}")
    return path


def _checksums() -> dict[str, str]:
    path = data_file(_CHECKSUMS)
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return {row["file"]: row["sha256"] for row in csv.DictReader(lines)}
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is corrupt: {how_to_restore(_CHECKSUMS)}") from error


@cache
def _mini_images(folder: Path) -> dict[str, bytes]:
    """WebP bytes of every image in the shards of ``folder``, about 40 MB, by image id."""
    shards = sorted(name for name in _checksums() if re.fullmatch(r"images-.*\.parquet", name))
    found: dict[str, bytes] = {}
    for name in shards:
        table = pq.read_table(mini_file(name), columns=["image_id", "webp"])
        found.update(zip(*(table[c].to_pylist() for c in ("image_id", "webp")), strict=True))
    return found


@dataclass(frozen=True)
class Shards(ImageSource):
    """Images kept as WebP in the Parquet shards of the miniature, read at first use."""

    folder: Path

    @property
    def advice(self) -> str:
        """How to restore all shards."""
        return how_to_restore("mini")

    def read(self, image_id: str) -> bytes:
        """The WebP bytes of an image."""
        images = _mini_images(self.folder)
        if image_id not in images:
            raise FileNotFoundError(f"image {image_id!r} is missing: {self.advice}")
        return images[image_id]
