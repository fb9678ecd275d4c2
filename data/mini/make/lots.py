"""Deal by lot which concepts an encoder reads by name, only sees, or never meets.

    python data/mini/make/lots.py deal                      # writes lots.csv and lots.parquet
    python data/mini/make/lots.py corpus 0 .build/lots-0    # the data folder of one rotation
    python data/mini/make/pretrain.py --data .build/lots-0/mini --tower lbutils_residual_half \
        --epochs 30 --seed 0 --out data/mini/encoder/lots-0-seed-0 --work .build/pretrain/lots-0-0

In the corpora small, medium and large a concept's drawings come and go with its name, and which
concepts are named goes with how common they are. Here lots decide, within each domain, and they
decide on names and drawings apart. A dealt concept is in one of three arms:

both     its training drawings, with the captions that they have, which name it
image    the same drawings, with captions that do not name it: what kind of thing it is, colours
         (read off the pixels), style, and tags of its captions that name no dealt concept, share no
         word with its own names, and consist of words that at least 5 captions of the part that
         all rotations have in common hold
neither  no drawing and no caption

Each concept has a first arm, drawn by lot, and goes on to the next one in each of three rotations.
So over the rotations it is in each arm once, and all contrasts are within a concept. Everything
else is the same in all rotations: captions that name a dealt concept and do not belong to it, and
pairs that belong to two, are left out of every one.

A concept is dealt if at most 40 pairs name it and no other concept's name holds its name; others
are always named. "Names" means the name or a synonym of `make/concepts.csv` in any spelling that
`assemble.py` knows, or with spaces put in or left out ("sun flower"), or the one BPE piece that is
its name.

Writes `lots.csv`, for each concept its first arm and its number of pairs, and `lots.parquet`, the
pairs of each arm. A pair of `pairs.parquet` whose drawing is in `lots.parquet` is replaced by what
stands there; `lbutils.data.lots` does so. Run `checksums.py` afterwards, then `screen.py`, which
derives from the captions which names each rotation has, and `checksums.py` again.
"""

from __future__ import annotations

import argparse
import io
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from assemble import (
    CAPTIONS,
    CATEGORY,
    HERE,
    STYLE,
    Naming,
    article,
    caption,
    inflections,
    rng_of,
)
from choose_zsnl import DATA, data_folder
from match import fingerprints, near_duplicates, read_concepts
from PIL import Image
from pretrain import read_images

from lbutils.captions.text import canonical
from lbutils.data.benchmark import ROTATIONS
from lbutils.data.lots import ALWAYS, ARMS, lot_pairs
from lbutils.learn.colours import BASIC, colour_shares

MAX_PAIRS = 40
# A colour is told if it has this share of the visible pixels.
TOLD_COLOUR = 0.2
# Words of a tag are common if so many captions of the constant part hold them.
MIN_CAPTIONS = 5
SEED = 31


class Spellings(Naming):
    """`assemble.Naming` that also finds a name whose spaces were moved ("sun flower")."""

    def __init__(self, concepts: pl.DataFrame):
        super().__init__(concepts)
        self.closed: dict[str, set[str]] = {}
        for form, named in self.by_form.items():
            self.closed.setdefault(form.replace(" ", ""), set()).update(named)

    def __call__(self, text: str) -> set[str]:
        words, found = canonical(text).split(), super().__call__(text)
        for n in range(1, self.longest + 2):
            for i in range(len(words) - n + 1):
                found |= self.closed.get("".join(words[i : i + n]), set())
        return found


class Pictures:
    """Drawings as `colour_shares` and `fingerprints` take them, from their WebP bytes."""

    def __init__(self, webp: list[bytes]):
        self.webp = webp

    def __len__(self) -> int:
        return len(self.webp)

    def image(self, i: int, transparent: bool = True) -> Image.Image:
        """The drawing, RGBA."""
        return Image.open(io.BytesIO(self.webp[i])).convert("RGBA")


def unnamed_caption(row: dict[str, Any], rng: random.Random) -> str:
    """One caption of a drawing that says everything but what it shows."""
    kind, colours, tags = row["kind_of_thing"], row["colours"], row["tags"]
    told = f"{rng.choice(colours)} {kind}" if colours else kind
    draw = rng.random()
    if draw < 0.20:
        text = article(told)
    elif draw < 0.45:
        text = f"a drawing of {article(told)}"
    elif draw < 0.55:
        text = f"{'an emoji' if row['kind'] == 'emoji' else 'an icon'} of {article(told)}"
    elif draw < 0.65:
        text = f"a {STYLE.get(row['source'], 'simple')} picture of {article(told)}"
    elif draw < 0.85 and tags:
        text = f"{told}, {', '.join(rng.sample(tags, min(2, len(tags))))}"
    elif draw < 0.95 and tags:
        text = f"{rng.choice(tags)}, {told}"
    elif len(colours) > 1:
        text = article(f"{colours[0]} and {colours[1]} {kind}")
    else:
        text = told
    return text


def eligible(concepts: pl.DataFrame, naming: Naming, named: list[set[str]]) -> list[str]:
    """The concepts that lots may decide on, in order."""
    inside = {
        other
        for row in concepts.iter_rows(named=True)
        for label in (row["name"], *row["emoji_labels"].split("|"))
        for other in naming(label) - {row["concept_id"]}
    }
    pairs = Counter(concept for found in named for concept in found)
    ids = concepts["concept_id"].to_list()
    return [c for c in ids if c not in inside and pairs[c] <= MAX_PAIRS]


def deal(concepts: pl.DataFrame, seed: int = SEED) -> dict[str, int]:
    """The place in `ARMS` where each concept begins, as even as can be within each domain."""
    rng, first = np.random.default_rng(seed), {}
    for _, own in concepts.group_by("domain", maintain_order=True):
        start = int(rng.integers(len(ARMS)))
        places = rng.permutation([(start + i) % len(ARMS) for i in range(len(own))])
        first |= dict(zip(own["concept_id"], map(int, places), strict=True))
    return first


def never_paired(samples: pd.DataFrame, paired: set[str]) -> pd.DataFrame:
    """Training drawings that no corpus has, less those that nearly equal a held-out one."""
    held = samples[samples["split"] != "train"]
    new = samples[(samples["split"] == "train") & ~samples["image_id"].isin(paired)]
    webp = read_images(DATA, {*held["image_id"], *new["image_id"]})

    def prints(ids: pd.Series) -> Any:
        pictures = Pictures([webp[i] for i in ids])
        return fingerprints(np.stack([np.asarray(pictures.image(i)) for i in range(len(ids))]))

    return new[~near_duplicates(prints(new["image_id"]), prints(held["image_id"])).any(1)]


def drawn(ids: list[str]) -> dict[str, dict[str, Any]]:
    """What captions tell of each drawing besides its name: source, kind of set, colours."""
    sources = pd.read_parquet(DATA / "attribution.parquet").set_index("image_id")["source"]
    kinds = pd.read_csv(HERE / "sources.csv").set_index("source")["kind"]
    webp = read_images(DATA, set(ids))
    shares = colour_shares(Pictures([webp[i] for i in ids]))
    rows = {}
    for image_id, share in zip(ids, shares, strict=True):
        order = [int(k) for k in np.argsort(-share, kind="stable") if share[k] >= TOLD_COLOUR]
        source = sources[image_id]
        colours = [BASIC[k] for k in order[:2]]
        rows[image_id] = {"source": source, "kind": kinds[source], "colours": colours}
    return rows


def own_words(concept: dict[str, Any]) -> set[str]:
    """The words of a concept's names, in any plain inflection."""
    names = [concept["name"], *concept["emoji_labels"].split("|")]
    names += (concept["other_labels"] or "").split("|")
    words = {word for name in names if name for word in canonical(name).split()}
    return words | {form for word in words for form in inflections(word)}


def unit(
    image_id: str,
    concept: dict[str, Any],
    told: list[str],
    seen: dict[str, Any],
    naming: Naming,
    dealt: set[str],
    common: set[str],
) -> Iterator[tuple[str, str, str, list[str]]]:
    """The rows of `lots.parquet` of one drawing of a dealt concept: its pair in each arm.

    `told` are its captions in `pairs.parquet`; without any they are made as `assemble.py` does.
    """
    own, kind = concept["concept_id"], CATEGORY[concept["domain"]]
    row = {**seen, "name": concept["name"], "label": concept["name"], "tags": []}
    row |= {"domain": concept["domain"], "kind_of_thing": kind}
    if not told:
        rngs = [rng_of("caption", image_id, k) for k in range(CAPTIONS)]
        told = list(dict.fromkeys(caption(row, rng, always_name=True) for rng in rngs))
    told = [text for text in told if not (naming(text) & dealt) - {own}]
    parts = dict.fromkeys(part for text in told for part in text.split(", "))
    usable = common - own_words(concept)
    row["tags"] = [
        part
        for part in parts
        if not naming(part) & dealt and part != kind and set(canonical(part).split()) <= usable
    ]
    rngs = [rng_of("unnamed", image_id, k) for k in range(CAPTIONS)]
    unnamed = dict.fromkeys(unnamed_caption(row, rng) for rng in rngs)
    unnamed = [text for text in unnamed if not naming(text) & dealt]
    yield image_id, own, "both", told
    yield image_id, own, "image", unnamed


def make() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `lots.csv` and `lots.parquet`."""
    kept = pd.read_csv(DATA / "concepts.csv")
    concepts = read_concepts().filter(pl.col("concept_id").is_in(kept["concept_id"].to_list()))
    pairs, samples = (pd.read_parquet(DATA / f"{n}.parquet") for n in ("pairs", "samples"))
    naming = Spellings(concepts)
    by_label = [naming(label) for label in pairs["label"]]
    named = [
        found.union(*map(naming, told))
        for found, told in zip(by_label, pairs["captions"], strict=True)
    ]
    dealt = set(eligible(concepts, naming, named))
    first = deal(concepts.filter(pl.col("concept_id").is_in(list(dealt))))
    new = never_paired(samples, set(pairs["image_id"]))
    new = new[new["concept_id"].isin(dealt)]
    owners = dict(zip(samples["image_id"], samples["concept_id"], strict=True))
    owned = [
        (found | ({owners[image]} if image in owners else set())) & dealt
        for image, found in zip(pairs["image_id"], by_label, strict=True)
    ]
    mine = [i for i, own in enumerate(owned) if len(own) == 1]
    by_id = {row["concept_id"]: row for row in concepts.iter_rows(named=True)}
    seen = drawn([*pairs["image_id"].iloc[mine], *new["image_id"]])
    constant = [texts for texts, own in zip(pairs["captions"], owned, strict=True) if not own]
    held = Counter(w for texts in constant for t in texts for w in set(canonical(t).split()))
    common = {word for word, count in held.items() if count >= MIN_CAPTIONS}
    rows: list[tuple] = []
    for i, (image_id, own) in enumerate(zip(pairs["image_id"], owned, strict=True)):
        told = list(pairs["captions"].iloc[i])
        if len(own) == 1:
            concept = by_id[next(iter(own))]
            rows += unit(image_id, concept, told, seen[image_id], naming, dealt, common)
        elif foreign := [t for t in told if naming(t) & dealt]:
            left = [] if own else [t for t in told if t not in foreign]
            rows.append((image_id, None, ALWAYS, left))
    for image_id, own in zip(new["image_id"], new["concept_id"], strict=True):
        rows += unit(image_id, by_id[own], [], seen[image_id], naming, dealt, common)
    lots = kept.assign(arm=[ARMS[first[c]] if c in first else ALWAYS for c in kept["concept_id"]])
    table = pd.DataFrame(rows, columns=["image_id", "concept_id", "arm", "captions"])
    label = dict(zip(pairs["image_id"], pairs["label"], strict=True))
    kind = {c: CATEGORY[row["domain"]] for c, row in by_id.items()}
    name = {c: canonical(row["name"]) for c, row in by_id.items()}
    table["label"] = [
        kind[c] if arm == "image" else label.get(i) or name[c]
        for i, c, arm in table[["image_id", "concept_id", "arm"]].itertuples(index=False)
    ]
    own = table[table["arm"] == "both"].groupby("concept_id").size()
    lots["pairs"] = lots["concept_id"].map(own).fillna(0).astype(int)
    return lots[["concept_id", "arm", "pairs"]], table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("deal", help="write lots.csv and lots.parquet")
    one = commands.add_parser("corpus", help="write the data folder of one rotation")
    one.add_argument("rotation", type=int, choices=range(len(ARMS)))
    one.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "deal":
        lots, table = make()
        lots.to_csv(DATA / "lots.csv", index=False, lineterminator="\n")
        table.to_parquet(DATA / "lots.parquet", index=False, compression="zstd")
        print(lots["arm"].value_counts().to_dict(), table["arm"].value_counts().to_dict())
    else:
        pairs = lot_pairs(ROTATIONS[args.rotation])
        data_folder(args.folder, pairs)
        print(f"{(pairs['scale'] == 'small').sum()} pairs in {args.folder}")


if __name__ == "__main__":
    main()
