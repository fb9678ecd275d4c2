"""Features in the folders of clip-retrieval, written and read.

``img_emb/img_emb_0.npy`` (and ``text_emb/text_emb_0.npy``) hold half-precision features, row by row
those of ``metadata/metadata_0.parquet``, which has the columns ``image_path`` and ``caption``. A
large folder has more such files, numbered on.

Source: Beaumont, clip-retrieval, ``clip_inference/writer.py``.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lbutils._util import replacing

if TYPE_CHECKING:
    from lbutils.data.benchmark import Split

# Rows of a file, as clip-retrieval writes them.
ROWS = 1_000_000
_METADATA = re.compile(r"metadata_(\d+)\.parquet")


class Embeddings(NamedTuple):
    """Features of a folder and what they are of.

    Attributes
    ----------
    images, texts : Tensor or None
        (N, D) float32, None where the folder has none.
    metadata : DataFrame
        N rows: ``image_path``, ``caption`` and what else was written.
    """

    images: Tensor | None
    texts: Tensor | None
    metadata: pd.DataFrame


def write_embeddings(
    folder: str | os.PathLike[str],
    split: Split,
    images: Tensor,
    texts: Tensor | None = None,
    *,
    rows: int = ROWS,
) -> Path:
    """The folder, with the features of a split in it.

    Parameters
    ----------
    folder : path
        Made where it is missing; must hold no features yet.
    split : Split
        The N images. Ids become ``image_path``; captions, ``caption``, empty where there is
        none; class names, ``class``.
    images : Tensor, shape (N, D)
        Their features, kept in half precision.
    texts : Tensor, shape (N, D), optional
        Features of their captions.
    rows : int
        Rows of a file.

    Raises
    ------
    ValueError
        If features do not fit the split, or are not finite.
    FileExistsError
        If the folder holds features.
    """
    place = Path(folder)
    kinds = {"img_emb": images} | ({} if texts is None else {"text_emb": texts})
    for kind, features in kinds.items():
        if features.ndim != 2 or len(features) != len(split):
            raise ValueError(
                f"{kind} features are {tuple(features.shape)}; expected ({len(split)}, D)"
            )
        if not features.isfinite().all():
            raise ValueError(f"{kind} features hold NaN or infinity: compute them anew")
    if any(place.glob("*_emb/*.npy")) or any(place.glob("metadata/*.parquet")):
        raise FileExistsError(f"{place} holds features already: write to another folder")
    starts = range(0, max(len(split), 1), rows)
    digits = int(math.log10(len(starts))) + 1
    for number, start in enumerate(starts):
        part = slice(start, start + rows)
        name = str(number).zfill(digits)
        for kind, features in kinds.items():
            with replacing(place / kind / f"{kind}_{name}.npy") as draft, draft.open("wb") as file:
                np.save(file, features[part].detach().cpu().half().numpy(), allow_pickle=False)
        # Last, so that what metadata names is there.
        with replacing(place / "metadata" / f"metadata_{name}.parquet") as draft:
            pq.write_table(pa.table(_columns(split, part)), draft)
    return place


def _columns(split: Any, part: slice) -> dict[str, list[str]]:
    return {
        "image_path": list(split.ids[part]),
        "caption": [caption or "" for caption in split.captions[part]],
        "class": [split.names[label] for label in split.labels[part]],
    }


def read_embeddings(folder: str | os.PathLike[str]) -> Embeddings:
    """Features of all files of a folder, in the order of their numbers, and their metadata.

    Parameters
    ----------
    folder : path
        As `write_embeddings` or clip-retrieval writes it.

    Raises
    ------
    FileNotFoundError
        If there is no metadata, or no features beside it.
    ValueError
        If a file is corrupt, holds objects instead of numbers, NaN or infinity, or another number
        of rows than its metadata.
    """
    place = Path(folder)
    found = [_METADATA.fullmatch(path.name) for path in (place / "metadata").glob("*.parquet")]
    numbers = sorted((match[1] for match in found if match), key=int)
    kinds = [kind for kind in ("img_emb", "text_emb") if (place / kind).is_dir()]
    if not numbers or not kinds:
        raise FileNotFoundError(
            f"{place} holds no features: expected metadata/metadata_0.parquet and "
            "img_emb/img_emb_0.npy"
        )
    tables = [_table(place / "metadata" / f"metadata_{number}.parquet") for number in numbers]
    features = {
        kind: torch.cat(
            [
                _array(place / kind / f"{kind}_{number}.npy", len(table))
                for number, table in zip(numbers, tables, strict=True)
            ]
        )
        for kind in kinds
    }
    metadata = pd.concat(tables, ignore_index=True)
    return Embeddings(features.get("img_emb"), features.get("text_emb"), metadata)


def _table(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is corrupt ({error}): write it anew") from error


def _array(path: Path, rows: int) -> Tensor:
    """Features (rows, D) of a file, float32."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, which its metadata names")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path} is corrupt or holds no numbers ({error}): write it anew"
        ) from error
    if found.ndim != 2 or len(found) != rows:
        raise ValueError(f"{path} is {found.shape}, its metadata has {rows} rows: write both anew")
    features = torch.from_numpy(found).float()
    if not features.isfinite().all():
        raise ValueError(f"{path} holds NaN or infinity: write it anew")
    return features
