"""Give back to each withheld name a number of drawings that is drawn by lot: a dose.

    python data/mini/make/dose.py .build/dosed
    python data/mini/make/pretrain.py --scale large --data .build/dosed/mini \
        --out data/mini/encoder/large-dosed

The corpora medium and large give back all pairs of a name or none, and which names they give back
goes with how many pairs there are. Here lots decide, within each domain: a concept that large
admits gets 0, 1, 2, 4 or all of its pairs, so that concepts of different doses differ in nothing
else. Pairs that show a concept under another name only ("wastebasket") are left out.

Writes `doses.csv`: for each such concept the arm, the drawings that it got, and how many captions
with its name come with them. Run `checksums.py` afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from choose_zsnl import DATA, data_folder

from lbutils.captions.survey import mentions
from lbutils.measure.scales import ARMS

SEED = 20


def named_pairs(pairs: pd.DataFrame, names: list[str]) -> pd.Series:
    """The place in `names` that each pair's label or captions name, -1 for none.

    Raises ValueError if a pair names two of them.
    """
    texts = [[label, *own] for label, own in zip(pairs["label"], pairs["captions"], strict=True)]
    owner = np.repeat(np.arange(len(pairs)), [len(own) for own in texts])
    found = mentions(names, [text for own in texts for text in own], levels=["inflections"])
    found = found.assign(pair=owner[found["caption"]]).drop_duplicates(["pair", "concept"])
    if found["pair"].duplicated().any():
        twice = pairs["label"].iloc[found.loc[found["pair"].duplicated(), "pair"].iloc[0]]
        raise ValueError(f"the pair {twice!r} names two concepts")
    places = found.set_index("pair")["concept"].reindex(range(len(pairs)), fill_value=-1)
    return places.set_axis(pairs.index)


def lots(concepts: pd.DataFrame, rng: np.random.Generator) -> pd.Series:
    """An arm for each concept, as even as can be within each domain."""
    arms = pd.Series(index=concepts.index, dtype=str)
    for _, own in concepts.groupby("domain", sort=False):
        first = rng.integers(len(ARMS))  # else small domains would have the first arms only
        dealt = [ARMS[(first + i) % len(ARMS)] for i in range(len(own))]
        arms[own.index] = rng.permutation(dealt)
    return arms


def dosed(seed: int = SEED) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pairs of the dosed corpus, and the table of doses."""
    concepts = pd.read_csv(DATA / "concepts.csv").merge(pd.read_csv(DATA / "screening.csv"))
    admitted = (concepts["subset_small"] == "oop") & (concepts["subset_large"] == "ip")
    concepts = concepts[admitted].reset_index(drop=True)
    every = pd.read_parquet(DATA / "pairs.parquet")
    withheld = every[every["scale"] != "small"]
    place = named_pairs(withheld, concepts["name"].tolist())
    rng = np.random.default_rng(seed)
    concepts["arm"] = lots(concepts, rng)
    kept = []
    for i, arm in enumerate(concepts["arm"]):
        own = withheld.index[place == i]
        kept.append(rng.permutation(own)[: len(own) if arm == "all" else int(arm)])
    pairs = every[(every["scale"] == "small") | every.index.isin(np.concatenate(kept))]
    told = pairs["captions"].explode()
    named = mentions(concepts["name"], told.tolist())
    concepts["drawings"] = [len(own) for own in kept]
    concepts["captions"] = np.bincount(named["concept"], minlength=len(concepts))
    return pairs, concepts[["concept_id", "arm", "drawings", "captions"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    pairs, doses = dosed()
    data_folder(folder, pairs)
    doses.to_csv(DATA / "doses.csv", index=False)
    print(doses.groupby("arm")[["drawings", "captions"]].agg(["count", "median"]))
    print(f"{len(pairs)} pairs in {folder}")


if __name__ == "__main__":
    main()
