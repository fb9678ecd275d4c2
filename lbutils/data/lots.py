"""What lots decided: which concepts each rotation's captions name, which drawings it holds.

The miniature's scales "lots-0", "lots-1" and "lots-2" are its pre-training pairs with the concepts
dealt into three arms, as ``data/mini/make/lots.py`` says. Every concept is in each arm once.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from lbutils.data.mini import mini_file

# Corpora of the miniature in which lots decide on names and drawings.
ROTATIONS = ("lots-0", "lots-1", "lots-2")
ARMS = ("both", "image", "neither")
# Arm of the concepts that were not dealt: their names and drawings are in every rotation.
ALWAYS = "always"


@cache
def lots() -> pd.DataFrame:
    """The arm of every concept in every rotation.

    Returns
    -------
    DataFrame
        One row a concept, in the order of ``concepts.csv``: ``concept_id``, ``domain``, ``name``,
        ``pairs`` (pre-training pairs of its drawings) and a column for each of `ROTATIONS`, with
        one of `ARMS` or "always".
    """
    table = pd.read_csv(mini_file("concepts.csv"), keep_default_na=False)
    dealt = pd.read_csv(mini_file("lots.csv"))
    table = table.merge(dealt, on="concept_id", validate="one_to_one")
    for k, rotation in enumerate(ROTATIONS):
        table[rotation] = [rotated(arm, k) for arm in table["arm"]]
    return table[["concept_id", "domain", "name", "pairs", *ROTATIONS]]


def rotated(arm: str, rotation: int) -> str:
    """The arm, in a rotation (0, 1, 2), of a concept that begins in `arm`."""
    return arm if arm == ALWAYS else ARMS[(ARMS.index(arm) + rotation) % len(ARMS)]


def lot_pairs(rotation: str) -> pd.DataFrame:
    """The pre-training pairs of a rotation, one of `ROTATIONS`, with columns as ``pairs.parquet``.

    The pairs that only other arms have are there too, as scale "large", which an encoder of the
    lots is not trained on; those of the rotation are scale "small". So the encoders of all
    rotations keep the same BPE pieces.
    """
    pairs = pd.read_parquet(mini_file("pairs.parquet"))
    table = pd.read_parquet(mini_file("lots.parquet"))
    arm = lots().set_index("concept_id")[rotation]
    own = (table["arm"] == ALWAYS) | (table["arm"] == table["concept_id"].map(arm))
    base = pairs[~pairs["image_id"].isin(table["image_id"])].assign(scale="small")
    replaced = table.assign(scale=np.where(own, "small", "large"))
    replaced = replaced[replaced["captions"].str.len() > 0]
    return pd.concat([base, replaced[pairs.columns]], ignore_index=True)
