"""Collect and render every drawing of the pinned packages.

Reads `.build/sources` (see `fetch.sh`) and `sources.csv`; writes `.build/drawings.parquet` (one
row a drawing: what it is and where it comes from) and `.build/drawings.npy` (uint8 RGBA).
"""

import argparse
import io
import json
import re
import zlib
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import polars as pl
import resvg_py
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
SIZE = 64
# Flags, letters, clock faces and the like: hundreds of near-identical pictures no domain needs.
EMOJI_GROUPS_OUT = {"flags"}
EMOJI_SUBGROUPS_OUT = {"keycap", "alphanum", "geometric", "time", "zodiac", "gender", "av-symbol"}
CLIPART_OUT = ("computer/icons", "shapes/", "signs_and_symbols/", "special/")
# Words of an icon's file name that tell its style, not what it shows.
STYLE_WORDS = frozenset(
    "fill filled outline outlined line bold duotone light thin regular solid linear broken twotone "
    "rounded sharp round remix color alt off bulk stroke standard flat one two three".split()
)
# One style a set: the others are the same drawing with another line width.
STYLE_KEPT = {"ph": ("fill", "duotone"), "solar": ("bold-duotone",), "mingcute": ("fill",)}
STYLE_OUT = {"material-symbols": ("outline", "rounded", "sharp"), "mdi": ("outline",)}
# Icons are drawn in `currentColor`; a fixed palette keeps colour from telling the source.
PALETTE = "#222222 #000000 #c0392b #2471a3 #1e8449 #7d3c98 #ca6f1e #5d4037".split()
CLIPART_CREATORS = re.compile(
    r"\b(architetto|francesco rollandin|francesco|rollandin|clip ?art|ganson|machovka|"
    r"johnny automatic|gerald g|mcol|liftarn|ryanlerch)\b"
)


def code_key(hexcode: str) -> str:
    """A code point sequence without variation selectors, as the vendors' tables differ in them."""
    return "-".join(p for p in hexcode.upper().split("-") if p != "FE0F").lstrip("0")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[’']", "", text.lower())).strip("-")


def load_emoji(sources: Path) -> dict[str, dict]:
    """Emoji by code key: label, tags and group, without the groups that are left out."""
    folder = sources / "node_modules/emojibase-data"
    meta = json.loads((folder / "meta/groups.json").read_text())
    found = {}
    for e in json.loads((folder / "en/data.json").read_text()):
        group = meta["groups"].get(str(e.get("group")), "")
        sub = meta["subgroups"].get(str(e.get("subgroup")), "")
        if group in EMOJI_GROUPS_OUT or sub in EMOJI_SUBGROUPS_OUT or not group:
            continue
        found[code_key(e["hexcode"])] = {"label": e["label"].lower(), "tags": e.get("tags", [])}
    return found


def emoji_names(icons: dict, chars: dict, emoji: dict[str, dict]) -> dict[str, str]:
    """Icon name of each code key: by the vendor's own table, else by the label."""
    if chars:
        return {k: n for code, n in chars.items() if (k := code_key(code)) in emoji}
    by_label = {slug(e["label"]).replace("-", ""): k for k, e in emoji.items()}
    return {k: n for n in icons if (k := by_label.get(n.replace("-", "")))}


def iconify_emoji(source: dict, sources: Path, emoji: dict[str, dict]):
    """Rows of an emoji set of Iconify."""
    folder = sources / "node_modules" / source["package"]
    data = json.loads((folder / "icons.json").read_text())
    chars = folder / "chars.json"
    table = json.loads(chars.read_text()) if chars.exists() else {}
    for key, name in emoji_names(data["icons"], table, emoji).items():
        title = name
        while name not in data["icons"] and name in data.get("aliases", {}):
            name = data["aliases"][name]["parent"]
        if name in data["icons"]:
            yield emoji[key] | {"icon": title, "svg": svg_of(data, name)}


def lobehub_emoji(source: dict, sources: Path, emoji: dict[str, dict]):
    """Rows of the three-dimensional Fluent emoji, which come as WebP files named by code points."""
    for file in sorted((sources / "node_modules" / source["package"] / "assets").glob("*.webp")):
        if (e := emoji.get(code_key(file.stem))) is not None:
            yield e | {"icon": file.stem, "file": str(file)}


def iconify_icons(source: dict, sources: Path, emoji: dict[str, dict]):
    """Rows of an icon set of Iconify: the label is the file name without its style words."""
    name_of_set = source["source"]
    data = json.loads((sources / "node_modules" / source["package"] / "icons.json").read_text())
    seen = set()
    for name, icon in data["icons"].items():
        parts = name.split("-")
        if icon.get("hidden") or not name.endswith(STYLE_KEPT.get(name_of_set, "")):
            continue
        if set(STYLE_OUT.get(name_of_set, ())) & set(parts) or f"{name}-filled" in data["icons"]:
            continue
        words = [p for p in parts if p not in STYLE_WORDS and not p.isdigit()]
        label = " ".join(words)
        if not words or re.search(r"\d", label) or (label in seen and name_of_set != "game-icons"):
            continue
        seen.add(label)
        yield {"label": label, "tags": [], "icon": name, "svg": svg_of(data, name)}


def clipart(source: dict, sources: Path, emoji: dict[str, dict]):
    """Rows of the Open Clip Art Library: only files that declare the public domain themselves."""
    root = sources / "openclipart/usr/share/openclipart/svg"
    for file in sorted(root.rglob("*.svg")):
        place = file.relative_to(root).as_posix()
        if place.startswith(CLIPART_OUT) or file.stat().st_size > 300_000:
            continue
        text = file.read_text(errors="ignore")
        if not re.search(r"public ?domain", text, re.IGNORECASE):
            continue
        label = re.sub(r"[_\d]+", " ", file.stem).strip().lower()
        label = " ".join(CLIPART_CREATORS.sub(" ", label).split())
        label = re.sub(r"( \w){1,2}$", "", label)
        folders = [p.replace("_", " ") for p in place.split("/")[:-1]]
        subjects = [
            s.strip().lower() for s in re.findall(r"<rdf:li[^>]*>([^<]{2,40})</rdf:li>", text)
        ]
        subjects = [
            s for s in subjects if s and not re.search(r"clip|unchecked|unsorted|public", s)
        ]
        creator = re.search(r"<dc:creator>.*?<dc:title>([^<]+)<", text, re.DOTALL)
        yield {
            "label": label if len(label) > 2 else folders[-1],
            "tags": list(dict.fromkeys(subjects + folders)),
            "icon": place,
            "file": str(file),
            "author": creator.group(1).strip() if creator else source["author"],
        }


def svg_of(data: dict, name: str) -> str:
    """An icon of an Iconify set as a stand-alone SVG, `currentColor` filled from the palette."""
    icon = data["icons"][name]
    box = [
        icon.get(k, data.get(k, d))
        for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    colour = PALETTE[zlib.crc32(f"{data['prefix']}:{name}".encode()) % len(PALETTE)]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}">'
        + icon["body"].replace("currentColor", colour)
        + "</svg>"
    )


def open_drawing(row: dict) -> Image.Image:
    if svg := row.get("svg"):
        data = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE)
    elif row["file"].endswith(".svg"):
        data = resvg_py.svg_to_bytes(svg_path=row["file"], width=2 * SIZE)
    else:
        data = Path(row["file"]).read_bytes()
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def render(row: dict) -> np.ndarray | None:
    """The drawing, cropped and centred on a transparent square; None if it cannot be drawn."""
    try:
        image = open_drawing(row)
    except (ValueError, OSError, RuntimeError):
        return None
    box = image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = (SIZE - 4) / max(image.size)
    image = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(canvas)


def collect(sources: Path) -> list[dict]:
    emoji = load_emoji(sources)
    rows = []
    for source in pl.read_csv(HERE / "sources.csv").iter_rows(named=True):
        if source["source"] == "openclipart":
            reader = clipart
        elif source["source"] == "fluent-emoji-3d":
            reader = lobehub_emoji
        else:
            reader = iconify_emoji if source["kind"] == "emoji" else iconify_icons
        for row in reader(source, sources, emoji):
            rows.append(
                {k: source[k] for k in ("source", "family", "kind", "author", "licence")} | row
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, default=Path(".build/sources"))
    parser.add_argument("--out", type=Path, default=Path(".build"))
    args = parser.parse_args()
    rows = collect(args.sources)
    with Pool() as pool:
        pictures = list(
            tqdm(pool.imap(render, rows, chunksize=100), total=len(rows), unit="drawing")
        )
    kept = [i for i, p in enumerate(pictures) if p is not None]
    np.save(args.out / "drawings.npy", np.stack([pictures[i] for i in kept]))
    columns = ("source", "family", "kind", "author", "licence", "icon", "label", "tags")
    table = pl.DataFrame([{k: rows[i][k] for k in columns} for i in kept])
    image_id = pl.concat_str(pl.col("source"), pl.lit(":"), pl.col("icon"))
    table.with_columns(image_id=image_id).write_parquet(args.out / "drawings.parquet")
    print(f"{len(kept)} drawings rendered, {len(rows) - len(kept)} could not be")
    print(table.group_by("source").len().sort("len", descending=True))


if __name__ == "__main__":
    main()
