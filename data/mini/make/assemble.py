"""Assemble the miniature: concepts, splits, pre-training pairs at three scales, few-shot draws.

Reads `.build/drawings.*` and `.build/matched.parquet`; writes the tables of `data/mini`. Which
names are withheld is decided here; whether a concept *is* out of pre-training is not: `screen.py`
derives that from the captions written here.
"""

import argparse
import hashlib
import io
import random
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from match import fingerprints, near_duplicates, read_concepts
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from tqdm import tqdm
from words import words_of

from lbutils.captions.text import canonical

HERE = Path(__file__).parent
SCALES = ("small", "medium", "large", "never")
MIN_DRAWINGS, MIN_GROUPS, MIN_TRAIN, MIN_TEST = 8, 4, 4, 3
OOP_SHARE = 0.55  # the paper has 674 of 998
# A name that many other captions contain would take too many pairs with it.
MAX_COLLATERAL = 40
MAX_COMPOSITIONAL_SHARE = 0.2
CAPTIONS, DRAWS, MAX_SHOTS = 8, 10, 8
SHARD_BYTES = 9_000_000
CATEGORY = {
    "Animals": "animal",
    "Insects": "insect",
    "Plants": "plant",
    "Food": "food",
    "Attire": "clothing",
    "Architecture": "building",
    "Landmark": "place",
    "FolkArt": "craft",
    "Creatures": "fantasy creature",
}
STYLE = {
    "fluent-emoji-high-contrast": "black and white",
    "emojione-monotone": "monochrome",
    "fluent-emoji-3d": "3d",
    "fluent-emoji-flat": "flat",
    "openmoji": "outlined",
    "noto": "colorful",
    "game-icons": "silhouette",
    "openclipart": "clip art",
}
TOKENIZER = SimpleTokenizer()


def rng_of(*parts: object) -> random.Random:
    """A generator that depends on its arguments only, whatever was drawn before."""
    return random.Random(hashlib.sha256("|".join(map(str, parts)).encode()).digest())


def inflections(phrase: str) -> set[str]:
    """Canonical spellings of a name: singular, plurals, and a compound written as one word."""
    found = {phrase, phrase + "s", phrase + "es"}
    if phrase.endswith("y"):
        found.add(phrase[:-1] + "ies")
    elif phrase.endswith("fe"):
        found.add(phrase[:-2] + "ves")
    elif phrase.endswith("f"):
        found.add(phrase[:-1] + "ves")
    if phrase.endswith("ies"):
        found.add(phrase[:-3] + "y")
    for ending in ("s", "es"):
        if phrase.endswith(ending):
            found.add(phrase[: -len(ending)])
    found |= {form.replace(" ", "") for form in found if " " in form}
    return {form for form in found if len(form) > 2}


class Naming:
    """Which concepts a text names, by phrase in any spelling or by a whole-name BPE piece."""

    def __init__(self, concepts: pl.DataFrame):
        self.by_form: dict[str, set[str]] = {}
        self.by_piece: dict[int, set[str]] = {}
        for row in concepts.iter_rows(named=True):
            for form in set().union(*(inflections(canonical(w)) for w in words_of(row))):
                self.by_form.setdefault(form, set()).add(row["concept_id"])
            pieces = TOKENIZER.encode(canonical(row["name"]))
            if len(pieces) == 1:
                self.by_piece.setdefault(pieces[0], set()).add(row["concept_id"])
        self.longest = max(form.count(" ") + 1 for form in self.by_form)

    def __call__(self, text: str) -> set[str]:
        words = canonical(text).split()
        named = set()
        for n in range(1, self.longest + 1):
            for i in range(len(words) - n + 1):
                named |= self.by_form.get(" ".join(words[i : i + n]), set())
        for piece in TOKENIZER.encode(canonical(text)):
            named |= self.by_piece.get(piece, set())
        return named


def choose_withheld(concepts: pl.DataFrame, naming: Naming, texts: pl.DataFrame) -> dict[str, str]:
    """The smallest scale that admits each concept: "small" for most of IP, up to "never".

    Names inside another concept's name stay in: withholding them would starve the other. So do
    names that many other captions contain. Compositions of pieces that stay in are limited in
    number.
    """
    collateral, pieces = Counter(), Counter()
    for own, label, tags in texts.select("concept_id", "label", "tags").iter_rows():
        collateral.update(naming(label) - {own})
        pieces.update({(p, own) for t in (label, *tags) for p in TOKENIZER.encode(canonical(t))})
    pieces_elsewhere = Counter(p for p, _ in pieces)
    inside = Counter()
    for row in concepts.iter_rows(named=True):
        for label in (row["name"], *row["emoji_labels"].split("|")):
            inside.update(naming(label) - {row["concept_id"]})
    scale = dict.fromkeys(concepts["concept_id"], "small")
    for (domain,), part in concepts.group_by("domain", maintain_order=True):
        ids = part["concept_id"].to_list()
        rng_of("withheld", domain).shuffle(ids)
        names = dict(part.select("concept_id", "name").iter_rows())
        wanted = round(OOP_SHARE * len(ids))
        free = [c for c in ids if not inside[c] and collateral[c] <= MAX_COLLATERAL]
        whole = {
            c: all(pieces_elsewhere[p] - ((p, c) in pieces) > 0 for p in TOKENIZER.encode(names[c]))
            and len(TOKENIZER.encode(names[c])) > 1
            for c in free
        }
        composed = [c for c in free if whole[c]][: round(MAX_COMPOSITIONAL_SHARE * wanted)]
        chosen = ([c for c in free if not whole[c]][: wanted - len(composed)] + composed)[:wanted]
        rng_of("scale", domain).shuffle(chosen)
        for k, concept in enumerate(chosen):
            scale[concept] = SCALES[1 + k % 3]
    return scale


def split_families(table: pl.DataFrame, withheld: bool) -> dict[str, str]:
    """Split of each drawing family of one concept: greedily, the largest family first."""
    shares = {"train": 0.5, "test": 0.5} if withheld else {"train": 0.45, "val": 0.2, "test": 0.35}
    sizes = Counter(table["group"].to_list())
    order = sorted(sizes)
    rng_of("split", table["concept_id"][0]).shuffle(order)
    order.sort(key=lambda g: -sizes[g])
    held = dict.fromkeys(shares, 0)
    result = {}
    for group in order:
        split = max(shares, key=lambda s: shares[s] * len(table) - held[s])
        result[group] = split
        held[split] += sizes[group]
    return result


def split_concepts(matched: pl.DataFrame, scale: dict[str, str]) -> pl.DataFrame:
    """The samples table, with a split each; concepts that end up too small are left out."""
    parts = []
    for (concept,), part in matched.group_by("concept_id", maintain_order=True):
        split = split_families(part, scale[concept] != "small")
        part = part.with_columns(split=pl.col("group").replace_strict(split))
        held = Counter(part["split"].to_list())
        if held["train"] >= MIN_TRAIN - (scale[concept] == "small") and held["test"] >= MIN_TEST:
            parts.append(part)
    return pl.concat(parts)


def article(text: str) -> str:
    """The text behind its indefinite article."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def caption(row: dict, rng: random.Random, always_name: bool = False) -> str:
    """One caption of a drawing, in the manner of alternative texts: a name, a style, a few tags."""
    label = row["label"]
    if row["name"] and (always_name or rng.random() < 0.6):
        label = row["name"]
    kind = "an emoji of" if row["kind"] == "emoji" else "an icon of"
    draw, tags = rng.random(), row["tags"]
    if draw < 0.20:
        text = article(label)
    elif draw < 0.45:
        text = f"a drawing of {label}"
    elif draw < 0.55:
        text = f"{kind} {label}"
    elif draw < 0.62:
        text = f"a {STYLE.get(row['source'], 'simple')} picture of {label}"
    elif draw < 0.80 and tags:
        text = f"{label}, {', '.join(rng.sample(tags, min(2, len(tags))))}"
    elif draw < 0.90 and tags:
        text = f"{rng.choice(tags)}, {label}"
    else:
        text = label
    if row["domain"] and rng.random() < 0.15:
        text += ", " + CATEGORY[row["domain"]]
    return text


def make_pairs(table: pl.DataFrame, naming: Naming, scale: dict[str, str]) -> pl.DataFrame:
    """Pre-training pairs: image, smallest corpus that admits it, label, captions.

    A tag that names a withheld concept is dropped from every scale; a label that names one moves
    the whole pair to the scale that admits the concept. Nothing else differs between the scales.
    """
    rank = {c: SCALES.index(s) for c, s in scale.items()}
    rows = []
    for row in tqdm(table.iter_rows(named=True), total=len(table), unit="pair", mininterval=5):
        named = naming(row["label"]) | (naming(row["name"]) if row["name"] else set())
        admitted = max((rank.get(c, 0) for c in named), default=0)
        if row["concept_id"]:
            admitted = max(admitted, rank[row["concept_id"]])
        if SCALES[admitted] == "never":
            continue
        row["tags"] = [t for t in row["tags"] if not any(rank.get(c, 0) for c in naming(t))]
        texts = [caption(row, rng_of("caption", row["image_id"], k)) for k in range(CAPTIONS)]
        if any(rank.get(c, 0) > admitted for text in texts for c in naming(text)):
            continue  # a name across two tags or a tag and the label
        label = canonical(row["name"] or row["label"])
        rows.append((row["image_id"], SCALES[admitted], label, list(dict.fromkeys(texts))))
    return pl.DataFrame(rows, schema=["image_id", "scale", "label", "captions"], orient="row")


def settle(samples: pl.DataFrame, pairs: pl.DataFrame, scale: dict[str, str]) -> pl.DataFrame:
    """The samples, where a training drawing of an admitted concept is one that its corpus holds."""
    rank = {s: k for k, s in enumerate(SCALES)}
    in_corpus = dict(pairs.select("image_id", "scale").iter_rows())
    keep = [
        split != "train"
        or scale[concept] == "never"
        or rank[in_corpus.get(image, "never")] <= rank[scale[concept]]
        for image, concept, split in samples.select("image_id", "concept_id", "split").iter_rows()
    ]
    samples = samples.filter(pl.Series(keep))
    size = pl.len().over("concept_id")
    trained = (pl.col("split") == "train").sum().over("concept_id")
    enough = samples.filter((size >= MIN_DRAWINGS) & (trained >= MIN_TRAIN - 1))
    left_out = sorted(set(samples["concept_id"]) - set(enough["concept_id"]))
    print(f"{len(samples) - len(enough)} samples of concepts that became too small: {left_out}")
    return enough


def few_shot(samples: pl.DataFrame) -> pl.DataFrame:
    """Committed draws: per concept and draw an order of its training drawings, the first `shots` of
    which are the draw, so that 1, 2, 4 and 8 shots are nested."""
    rows = []
    for (concept,), part in samples.filter(pl.col("split") == "train").group_by(
        "concept_id", maintain_order=True
    ):
        for draw in range(DRAWS):
            order = part["image_id"].to_list()
            rng_of("few-shot", concept, draw).shuffle(order)
            rows += [(concept, draw, k, image) for k, image in enumerate(order[:MAX_SHOTS])]
    return pl.DataFrame(rows, schema=["concept_id", "draw", "rank", "image_id"], orient="row")


def encode(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(buffer, "WEBP", quality=75, alpha_quality=60)
    return buffer.getvalue()


def write_images(used: pl.DataFrame, pictures: np.ndarray, out: Path) -> list[str]:
    """Write the image shards; the SHA-256 of each image's bytes, in order."""
    for old in out.glob("images-*.parquet"):
        old.unlink()
    hashes, shard, size, number = [], [], 0, 0
    rows = used.select("image_id", "row").iter_rows()
    for image_id, row in tqdm(rows, total=len(used), unit="image", mininterval=5):
        data = encode(pictures[row])
        hashes.append(hashlib.sha256(data).hexdigest())
        shard.append((image_id, data))
        size += len(data)
        if size > SHARD_BYTES or len(hashes) == len(used):
            frame = pl.DataFrame(shard, schema=["image_id", "webp"], orient="row")
            frame.write_parquet(out / f"images-{number}.parquet", compression="uncompressed")
            shard, size, number = [], 0, number + 1
    return hashes


def drop_near_duplicates(
    pairs: pl.DataFrame, samples: pl.DataFrame, rows: dict, pictures
) -> pl.DataFrame:
    """The pairs without those whose picture nearly equals a validation or test drawing."""
    held = [rows[i] for i in samples.filter(pl.col("split") != "train")["image_id"]]
    print("perceptual hashes ...")
    prints_held = fingerprints(pictures[held])
    prints = fingerprints(pictures[[rows[i] for i in pairs["image_id"]]])
    keep = np.ones(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 2048):
        part = tuple(p[start : start + 2048] for p in prints)
        keep[start : start + 2048] = ~near_duplicates(part, prints_held).any(1)
    print(f"{(~keep).sum()} pairs dropped as near-duplicates of held-out drawings")
    return pairs.filter(pl.Series(keep))


def read_drawings(build: Path, matched: pl.DataFrame) -> pl.DataFrame:
    """All drawings that may become pairs, those of concepts with `concept_id`, `domain`, `name`."""
    sources = pl.read_csv(HERE / "sources.csv")
    general = sources.filter(pl.col("unmatched") == "yes")["source"].to_list()
    own = matched.select("image_id", "concept_id", "domain", "name")
    return (
        pl.read_parquet(build / "drawings.parquet")
        .with_row_index("row")
        .join(pl.read_csv(HERE / "audit.csv"), on="image_id", how="anti")
        .join(own, on="image_id", how="left")
        .filter(pl.col("concept_id").is_not_null() | pl.col("source").is_in(general))
        .sort("row")
    )


def write_tables(out: Path, concepts, samples, pairs, used: pl.DataFrame) -> None:
    """Write every table but the images and what `screen.py` derives."""
    columns = ["image_id", "source", "family", pl.col("icon").alias("title")]
    # A dictionary of texts that are nearly all different costs more than it saves.
    packed = {"compression": "zstd", "compression_level": 19, "use_pyarrow": True}
    packed["pyarrow_options"] = {"use_dictionary": False}
    used.select(*columns, "author", "licence", "sha256").write_parquet(
        out / "attribution.parquet", **packed
    )
    pairs.write_parquet(out / "pairs.parquet", **packed)
    samples.select("image_id", "concept_id", "split", "group", "caption").write_parquet(
        out / "samples.parquet", compression="zstd"
    )
    few_shot(samples).write_parquet(out / "fewshot.parquet", compression="zstd")
    concepts.select("concept_id", "domain", "name").write_csv(out / "concepts.csv")
    sources = pl.read_csv(HERE / "sources.csv").drop("kind", "unmatched", "family")
    counts = used.group_by("source").agg(drawings=pl.len())
    sources.join(counts, on="source", maintain_order="left").write_csv(out / "sources.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path(".build"))
    parser.add_argument("--out", type=Path, default=HERE.parent)
    args = parser.parse_args()
    pictures = np.load(args.build / "drawings.npy")
    matched = pl.read_parquet(args.build / "matched.parquet")
    enough = matched.group_by("concept_id").agg(n=pl.len(), g=pl.col("group").n_unique())
    enough = enough.filter((pl.col("n") >= MIN_DRAWINGS) & (pl.col("g") >= MIN_GROUPS))
    matched = matched.join(enough, on="concept_id", how="semi")
    concepts = read_concepts().join(enough, on="concept_id", how="semi", maintain_order="left")
    table = read_drawings(args.build, matched)
    naming = Naming(concepts)
    scale = choose_withheld(concepts, naming, table)
    samples = split_concepts(matched, scale)
    # Neither held-out drawings nor those of a concept that was left out may become pairs.
    taken = matched.join(
        samples.filter(pl.col("split") == "train"), on="image_id", how="anti"
    ).select("image_id")
    pairs = make_pairs(table.join(taken, on="image_id", how="anti"), naming, scale)
    rows = dict(table.select("image_id", "row").iter_rows())
    pairs = drop_near_duplicates(pairs, samples, rows, pictures)
    samples = settle(samples, pairs, scale)
    concepts = concepts.join(samples, on="concept_id", how="semi", maintain_order="left")
    texts = [
        caption(row, rng_of("sample", row["image_id"]), always_name=True)
        for row in samples.iter_rows(named=True)
    ]
    samples = samples.with_columns(caption=pl.Series(texts))
    wanted = pl.concat([pairs.select("image_id"), samples.select("image_id")]).unique()
    used = table.join(wanted, on="image_id", how="semi").sort("row")
    hashes = write_images(used, pictures, args.out)
    used = used.with_columns(sha256=pl.Series(hashes))
    write_tables(args.out, concepts, samples, pairs, used)
    print(
        f"{len(concepts)} concepts, {len(samples)} samples, {len(pairs)} pairs, {len(used)} images"
    )
    print(samples.group_by("split").len(), pairs.group_by("scale").len())


if __name__ == "__main__":
    main()
