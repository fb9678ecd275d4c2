"""Which drawing shows which concept: by label, then by what an audit by eye took out.

Reads `.build/drawings.parquet`, `concepts.csv` and `audit.csv`; writes `.build/matched.parquet`.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import imagehash
import numpy as np
import polars as pl
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from words import words_of

from lbutils.captions.text import canonical

HERE = Path(__file__).parent
# Words that icon sets put before or after the thing itself.
BEFORE = frozenset("animal food emoji pet cute building insect fruit plant".split())
AFTER = frozenset("face head animal emoji icon front cartoon".split())
# Near-duplicates differ in few of 64 bits and have nearly the same pixels; both bounds were set
# by looking at pairs around them.
HASH_BITS = 10
PIXEL_CORRELATION = 0.93


def read_concepts() -> pl.DataFrame:
    """The candidate concepts, each with its `concept_id` such as "animals/polar-bear"."""
    slug = pl.col("name").str.replace_all(r"[^a-z0-9]+", "-")
    domain = pl.col("domain").str.to_lowercase()
    return pl.read_csv(HERE / "concepts.csv").with_columns(
        concept_id=pl.concat_str(domain, pl.lit("/"), slug)
    )


def bare(label: str) -> str:
    """An icon's canonical label without the words around the thing itself."""
    words = canonical(label).split()
    while len(words) > 1 and words[0] in BEFORE:
        words = words[1:]
    while len(words) > 1 and words[-1] in AFTER:
        words = words[:-1]
    return " ".join(words)


def match(drawings: pl.DataFrame, concepts: pl.DataFrame) -> list[str | None]:
    """The concept id of each drawing, or None: emoji by their label, others by name or synonym."""
    emoji, other = {}, {}
    for row in concepts.iter_rows(named=True):
        labels = [canonical(w) for w in row["emoji_labels"].split("|")]
        emoji.update(dict.fromkeys(labels, row["concept_id"]))
        for word in words_of(row):
            other.setdefault(canonical(word), row["concept_id"])
    found = []
    for label, kind in drawings.select("label", "kind").iter_rows():
        whole = canonical(label)
        if kind == "emoji":
            found.append(emoji.get(whole))
        else:
            found.append(other.get(whole) or other.get(bare(label)))
    return found


def composite(picture: np.ndarray) -> Image.Image:
    """The drawing on white."""
    image = Image.fromarray(picture, "RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def fingerprints(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hashes (N,) uint64, and centred unit-length grey thumbnails (N, 256) float32."""
    hashes = np.empty(len(pictures), dtype=np.uint64)
    thumbs = np.empty((len(pictures), 256), dtype=np.float32)
    for i, picture in enumerate(pictures):
        image = composite(picture)
        bits = imagehash.phash(image).hash.ravel()
        hashes[i] = np.packbits(bits).view(">u8")[0]
        thumbs[i] = np.asarray(image.convert("L").resize((16, 16)), dtype=np.float32).ravel()
    thumbs -= thumbs.mean(1, keepdims=True)
    thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True) + 1e-6
    return hashes, thumbs


def near_duplicates(a, b) -> np.ndarray:
    """Boolean (len(a), len(b)): which pairs are near-duplicates; a and b from `fingerprints`."""
    bits = np.bitwise_count(a[0][:, None] ^ b[0][None, :])
    return (bits <= HASH_BITS) & (a[1] @ b[1].T >= PIXEL_CORRELATION)


def groups(table: pl.DataFrame, prints) -> list[str]:
    """The drawing family of each row, families merged within a concept where a drawing repeats."""
    result = [""] * len(table)
    by_concept = defaultdict(list)
    for i, concept in enumerate(table["concept_id"]):
        by_concept[concept].append(i)
    for concept, rows in by_concept.items():
        ix = np.array(rows)
        part = (prints[0][ix], prints[1][ix])
        family = table["family"].to_numpy()[ix]
        same = near_duplicates(part, part) | (family[:, None] == family[None, :])
        _, label = connected_components(coo_array(same), directed=False)
        for k, i in enumerate(rows):
            members = sorted(set(family[label == label[k]]))
            result[i] = f"{concept}:{'+'.join(members)}"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path(".build"))
    args = parser.parse_args()
    drawings = pl.read_parquet(args.build / "drawings.parquet").with_row_index("row")
    pictures = np.load(args.build / "drawings.npy", mmap_mode="r")
    concepts = read_concepts()
    out = pl.read_csv(HERE / "audit.csv")
    matched = (
        drawings.with_columns(concept_id=pl.Series(match(drawings, concepts), dtype=pl.String))
        .filter(pl.col("concept_id").is_not_null())
        .join(concepts.select("concept_id", "domain", "name"), on="concept_id")
        .join(out, on="image_id", how="anti")
        .sort(pl.col("kind") == "emoji", "row")  # what needs the eye most stands first
    )
    prints = fingerprints(pictures[matched["row"].to_numpy()])
    matched = matched.with_columns(group=pl.Series(groups(matched, prints)))
    matched.write_parquet(args.build / "matched.parquet")
    counts = matched.group_by("domain", "concept_id").agg(
        drawings=pl.len(), groups=pl.col("group").n_unique()
    )
    enough = counts.filter((pl.col("drawings") >= 8) & (pl.col("groups") >= 3))
    print(f"{len(matched)} drawings of {len(counts)} concepts; {len(enough)} have enough")
    print(enough.group_by("domain", maintain_order=True).len())


if __name__ == "__main__":
    main()
