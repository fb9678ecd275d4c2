"""The folders in which LAION-Beyond is released: their names, split files and images.

A benchmark is a folder of folders, ``{Domain}{n_classes}_{OOP|IP}``, each with ``images/<class>/``
and ``split_Xin_{folder}.json``. Nothing read here is trusted: a split file comes from a download,
and every path that it names has to stay inside of the benchmark's folder.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from lbutils._util import (
    file_name,
    is_installed,
    is_text,
    shipped,
    short,
    suggest,
    write_text,
)

SPLITS = ("train", "val", "test")
SUBSETS = ("ip", "oop")
# Spellings met in the released files, after `plain`, that are not the paper's.
ALIASES = {"plantsfugi": "Plants_Fungi"}
LAYOUT = "{Domain}{n_classes}_{OOP|IP}/ with split_Xin_*.json and images/<class>/<file> in it"
# Ours, beside the released files: few-shot draws of a folder; what an exported benchmark is.
FEW_SHOT = "few_shot.json"
LEFT_OUT = "left_out.json"
MANIFEST = "benchmark.json"

# The largest folder has 113 classes and 29,000 images. A prompt for each of this many classes
# would take an encoder hours, and a file beyond this size is no split file.
MAX_CLASSES = 10_000
MAX_JSON_BYTES = 1 << 29

_FOLDER = re.compile(r"(?P<domain>.+?)(?P<classes>\d*)_(?P<kind>oop|ip)", re.IGNORECASE)
_FIELDS = ("classname", "image_name", "label")
_BIGGEST_LABEL = 1_000_000_000


def data_dir() -> Path:
    """The folder of committed data: ``$LBUTILS_DATA``, or `shipped`'s."""
    override = os.environ.get("LBUTILS_DATA")
    return Path(override) if override else shipped("data")


def how_to_restore(name: str) -> str:
    """What to do about a file or folder of `data_dir` that is missing or was changed.

    `name` (str): its path below ``data/``.
    """
    if os.environ.get("LBUTILS_DATA"):
        return f"copy data/{name} of the repository to $LBUTILS_DATA again, or unset LBUTILS_DATA"
    if is_installed():
        return (
            "install lbutils again from where it came, with "
            "`python -m pip install --force-reinstall --no-deps`"
        )
    return f"restore it with `git checkout -- data/{name}`"


def data_file(name: str) -> Path:
    """A file of `data_dir`. Raises FileNotFoundError if it is missing, with what to do."""
    path = data_dir() / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {how_to_restore(name)}")
    return path


def read_hints(benchmark: str) -> dict[str, str]:
    """The hint of every domain of a benchmark, such as "animal", from ``prompts/hints.csv``."""
    table = pd.read_csv(data_file("prompts/hints.csv"), keep_default_na=False)
    rows = table[table["benchmark"] == benchmark]
    if rows.empty:
        raise ValueError(suggest(benchmark, table["benchmark"].unique(), "benchmark"))
    return dict(zip(rows["domain"], rows["hint"], strict=True))


def read_synonyms(benchmark: str) -> dict[str, list[str]]:
    """Other words for a benchmark's names, from ``prompts/synonyms.csv``; none if it has none."""
    table = pd.read_csv(data_file("prompts/synonyms.csv"), keep_default_na=False)
    rows = table[table["benchmark"] == benchmark]
    return {str(name): list(own) for name, own in rows.groupby("name", sort=False)["synonym"]}


def read_translations(benchmark: str) -> dict[str, dict[str, str]]:
    """A benchmark's names in other languages, by language, from ``prompts/languages.csv``.

    A name may lack a word; without words of a benchmark it is empty.
    """
    table = pd.read_csv(data_file("prompts/languages.csv"), keep_default_na=False)
    rows = table[table["benchmark"] == benchmark]
    by_language = rows.groupby("language", sort=False)
    return {
        str(lang): dict(zip(own["name"], own["word"], strict=True)) for lang, own in by_language
    }


def published_table(name: str) -> pd.DataFrame:
    """One published table, as it lies in `data/published/{name}.csv`.

    `name` (str): a file's stem, such as ``"table1_clustering"``. Accuracies are in percent.

    Raises ValueError if there is no such table. Raises FileNotFoundError if the folder of published
    tables is missing.
    """
    folder = data_dir() / "published"
    known = sorted(path.stem for path in folder.glob("*.csv"))
    if not known:
        raise FileNotFoundError(f"no tables in {folder}: {how_to_restore('published')}")
    if name not in known:
        raise ValueError(suggest(name, known, "published table"))
    return pd.read_csv(folder / f"{name}.csv")


def published_classes(scale: str) -> dict[tuple[str, str], int]:
    """The paper's number of classes of each (domain, "ip" or "oop") at a scale."""
    table = published_table("figure2_class_counts")
    rows = table[table["scale"] == scale]
    keys = zip(rows["domain"], rows["subset"], strict=True)
    return dict(zip(keys, (int(n) for n in rows["classes"]), strict=True))


# --- places --------------------------------------------------------------------------------


def places(root: Path) -> tuple[Path, ...]:
    """Where the files of a benchmark or encoder in `root` may lie, links followed: in `root`.

    A snapshot in the cache of the hub is made of links to the blobs beside it, or to those that
    the repositories in one cache share; these are admitted too.
    """
    real = root.resolve()
    for snapshot in (real, *real.parents):
        repository = snapshot.parent.parent
        kinds = ("datasets--", "models--")
        if snapshot.parent.name == "snapshots" and repository.name.startswith(kinds):
            blobs = (repository / "blobs", repository.parent / "blobs")
            return (real, *(folder.resolve() for folder in blobs if folder.is_dir()))
    return (real,)


def is_inside(path: Path, admitted: Sequence[Path]) -> bool:
    """Whether a path, its links followed, lies in one of some resolved folders."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    return any(real.is_relative_to(place) for place in admitted)


def as_spelt(path: Path, root: Path) -> Path:
    """The path of a file as its folders and itself are written on this disk.

    Disks and archives write é as one sign or as two; names that differ in nothing else are one
    name. Where none is there, or several are, the path is as it was.
    """
    found = root
    for part in path.relative_to(root).parts:
        there = found / part
        if not there.exists():
            # By its time as well, as files may come while a process runs.
            names = _spelt(found, found.stat().st_mtime_ns).get(normal(part), [])
            if len(names) != 1:
                return path
            there = found / names[0]
        found = there
    return found


def normal(name: str) -> str:
    """A file's name in Unicode's composed normal form (NFC)."""
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=4096)
def _spelt(folder: Path, _: int) -> dict[str, list[str]]:
    """Names in a folder by their normal form."""
    found: dict[str, list[str]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        found.setdefault(normal(path.name), []).append(path.name)
    return found


# --- names of folders ----------------------------------------------------------------------


class FolderName(NamedTuple):
    """What a folder's name says: the domain, in the paper's spelling and its own, and the rest."""

    domain: str
    written: str
    classes: int | None
    kind: str


def plain(name: str) -> str:
    """The letters of a name, by which spellings of a domain are compared."""
    return re.sub("[^a-z]", "", name.lower())


@cache
def _spellings(known: tuple[str, ...]) -> dict[str, str]:
    """The paper's name of each domain by the `plain` spellings that are met."""
    return {plain(name): name for name in known} | ALIASES


def parse_folder(name: str, known: Iterable[str]) -> FolderName | None:
    """What ``{Domain}{n_classes}_{OOP|IP}`` says, or None if a name is not of this form."""
    if (match := _FOLDER.fullmatch(name)) is None:
        return None
    written = match["domain"]
    domain = _spellings(tuple(known)).get(plain(written), written)
    number = match["classes"]
    classes = int(number) if number and len(number) < 10 else None
    return FolderName(domain, written, classes, match["kind"].lower())


def is_published(name: FolderName, scale: str) -> bool:
    """Whether a folder has the paper's number of classes at a scale, to one.

    The authors' code counts 54 OOP classes of Attire where the paper counts 53.
    """
    published = published_classes(scale).get((name.domain, name.kind))
    return published is not None and name.classes is not None and abs(name.classes - published) <= 1


def find_folders(root: Path, known: Sequence[str], scale: str) -> dict[tuple[str, str], Path]:
    """Folder of each (domain, kind), domains in the order of `known`, then by name.

    `root` (Path): the benchmark's folder. `known` (sequence of str): the paper's names of domains;
    others are found too. `scale` (str): where several folders hold one subset, that with the
    paper's number of classes at this scale is taken.

    Raises ValueError if there is none, one leads out of `root`, or several could be meant.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        if name := parse_folder(path.name, known):
            found.setdefault((name.domain, name.kind), []).append(path)
    if not found:
        raise ValueError(f"{root} has no folder of LAION-Beyond: expected {LAYOUT}")
    order = {name: i for i, name in enumerate(known)}
    keys = sorted(found, key=lambda key: (order.get(key[0], len(order)), key))
    folders = {key: _only(found[key], known, scale) for key in keys}
    for path in folders.values():
        if not is_inside(path, (root.resolve(),)):
            raise ValueError(f"{path} leads out of {root}: put the folder itself there")
    return folders


def _only(paths: Sequence[Path], known: Sequence[str], scale: str) -> Path:
    """The one of several folders whose number of classes is the published one."""
    if len(paths) > 1:
        names = {path: parse_folder(path.name, known) for path in paths}
        paths = [p for p, name in names.items() if name and is_published(name, scale)] or paths
    if len(paths) > 1:
        shown = " and ".join(str(path) for path in paths)
        raise ValueError(f"{shown} hold the same subset: keep only one")
    return paths[0]


# --- reading -------------------------------------------------------------------------------


class Row(NamedTuple):
    """One image of a split file; `path` leads to it from the benchmark's folder.

    So does `image_id` in what the authors release. An exported benchmark keeps the ids that its
    images had, by which augmented views and few-shot draws are computed.
    """

    split: str
    label: int
    name: str
    image_id: str
    path: str
    caption: str | None


def split_file(folder: Path) -> Path:
    """The split file of a folder. Raises FileNotFoundError or ValueError unless it has one."""
    files = sorted(folder.glob("split_Xin_*.json")) or sorted(folder.glob("split*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} has no split_Xin_*.json: expected {LAYOUT}")
    if len(files) > 1:
        found = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several split files ({found}): keep only one")
    return files[0]


def read_json(file: Path, root: Path) -> Any:
    """The content of a JSON file in a benchmark's folder.

    Raises ValueError if it leads out of `root`, is no file or larger than a split file can be, is
    cut short or nested beyond what can be read.
    """
    if not is_inside(file, places(root)):
        raise ValueError(f"{file} leads out of {root}: put the file itself there")
    if not file.is_file():
        raise ValueError(f"{file} is no file: download it again")
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{file} has {size:,} bytes, more than any split file: download it again")
    try:
        # Some editors begin a file with a mark of its encoding, which is no part of the text.
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON, download it again: {error}") from error


def read_left_out(root: Path) -> frozenset[str]:
    """Ids of images that a benchmark does without: the list in its `LEFT_OUT`, if there is one.

    Raises ValueError if the file is no list of texts, or as `read_json` does.
    """
    file = root / LEFT_OUT
    if not file.exists():
        return frozenset()
    content = read_json(file, root)
    if not isinstance(content, list) or not all(isinstance(image, str) for image in content):
        raise ValueError(f"{file} must be a list of image ids: remove it, or write it anew")
    return frozenset(content)


def read_rows(folder: Path, root: Path) -> list[Row]:
    """The images that a folder's split file lists, in its order: train, val, test.

    `folder` (Path): ``{Domain}{n_classes}_{OOP|IP}`` in `root`. `root` (Path): the benchmark's
    folder, which no entry may leave.

    Raises ValueError for a file that is not readable or does not follow the layout; an entry at
    fault is named: a field that is missing or of another type, a name that is a path or leads out
    of the folder, labels that disagree with names, more classes than can be meant. Raises
    FileNotFoundError if there is no split file.
    """
    file = split_file(folder)
    content = read_json(file, root)
    if not isinstance(content, dict) or not set(SPLITS) & set(content):
        raise ValueError(f"{file} must be an object with the keys train, val and test")
    reader = _Reader(folder, places(root))
    return [
        reader.row(file, split, key, entry)
        for split in SPLITS
        for key, entry in _entries(file, split, content.get(split))
    ]


def _entries(file: Path, split: str, found: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(found, (dict, list, type(None))):
        kind = type(found).__name__
        raise ValueError(f"{file}: {split} must be an object or a list of entries, not {kind}")
    yield from found.items() if isinstance(found, dict) else enumerate(found or ())


@dataclass
class _Reader:
    """Turns entries of one split file into rows, and remembers which class has which label."""

    folder: Path
    admitted: Sequence[Path]
    labels: dict[str, tuple[int, str]] = field(default_factory=dict)
    names: dict[int, tuple[str, str]] = field(default_factory=dict)

    def row(self, file: Path, split: str, key: Any, entry: Any) -> Row:
        where = f"entry {short(key)} of {split}"
        try:
            return self._row(split, where, entry)
        except ValueError as error:
            raise ValueError(f"{file}: {where} {error}") from error

    def _row(self, split: str, where: str, entry: Any) -> Row:
        lacking = [name for name in _FIELDS if not isinstance(entry, dict) or name not in entry]
        if lacking:
            raise ValueError(f"needs classname, image_name and label: no {', '.join(lacking)}")
        name = _held(entry["classname"], "classname")
        image_name = _image_name(entry["image_name"], name)
        label = _label(entry["label"])
        self._agree(name, label, where)
        path = f"{self.folder.name}/images/{image_name}"
        image_id = entry.get("id", path)
        if not isinstance(image_id, str) or not image_id or not is_text(image_id):
            raise ValueError(f"has an id that is no text: {short(image_id)}")
        return Row(split, label, name, image_id, path, _caption(entry.get("INFO")))

    def _agree(self, name: str, label: int, where: str) -> None:
        known = name in self.labels
        other, there = self.labels.setdefault(name, (label, where))
        if other != label:
            raise ValueError(f"gives {short(name)} label {label}, but {there} gives it {other}")
        other_name, there = self.names.setdefault(label, (name, where))
        if other_name != name:
            both = f"{short(name)}, but {there} to {short(other_name)}"
            raise ValueError(f"gives label {label} to {both}")
        if known:
            return
        if len(self.labels) > MAX_CLASSES:
            raise ValueError(f"is of a class beyond the {MAX_CLASSES:,} that a folder may have")
        # Once a class: to resolve every image of the benchmark would take seconds. `Files` does
        # so for each image that is read.
        if not is_inside(self.folder / "images" / name, self.admitted):
            raise ValueError(f"leaves the folder of images: {short(name)} is a link out of it")


def _held(value: Any, what: str, owner: str = "") -> str:
    """A name of a class or an image, as its authors chose it."""
    return file_name(value, what, owner, portable=False)


def _image_name(value: Any, class_name: str) -> str:
    """The image's path under ``images/``, with its class's folder if that was left out."""
    if not isinstance(value, str):
        raise ValueError(f"has an image_name that is no text: {short(value)}")
    if value.startswith("/"):
        raise ValueError(f"leaves the folder of images: image_name {short(value)} is absolute")
    parts = [_held(part, "image_name") for part in value.split("/")]
    if parts[0] != class_name or len(parts) == 1:
        parts = [class_name, *parts]
    return "/".join(parts)


def _label(value: Any) -> int:
    """A label, which upstream reads with `int`: a whole number, perhaps written as a text."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        return int(value)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value < _BIGGEST_LABEL:
        raise ValueError(f"has a label that is no whole number from 0: {short(value)}")
    return int(value)


def _caption(info: Any) -> str | None:
    if not isinstance(info, (dict, type(None))):
        raise ValueError(f"has an INFO that is no object: {short(info)}")
    caption = (info or {}).get("Refined_caption3")
    # Tables write a missing caption as NaN.
    if caption is None or (isinstance(caption, float) and math.isnan(caption)):
        return None
    if not isinstance(caption, str) or not is_text(caption):
        raise ValueError(f"has a Refined_caption3 that is no text: {short(caption)}")
    return caption if caption.strip() else None


def read_draws(folder: Path, root: Path, rows: Iterable[Row]) -> dict[int, dict[str, list[str]]]:
    """Few-shot draws that lie beside a split file: image ids by rank, of each draw and class.

    Empty where there are none, as in what the authors release. Raises ValueError for a draw
    with an image that is not a training image of its class.
    """
    file = folder / FEW_SHOT
    if not file.is_file():
        return {}
    train: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.split == "train":
            file_of = PurePosixPath(row.path).name
            train.setdefault(row.name, {})[file_of] = row.image_id
    content = read_json(file, root)
    draws: dict[int, dict[str, list[str]]] = {}
    for draw, classes in content.items() if isinstance(content, dict) else ():
        if not re.fullmatch("[0-9]{1,9}", draw) or not isinstance(classes, dict):
            raise ValueError(f"{file}: draw {short(draw)} must be a number, its classes an object")
        for name, images in classes.items():
            own = train.get(name, {})
            fit = isinstance(images, list) and len(set(map(repr, images))) == len(images)
            if not fit or not all(isinstance(image, str) and image in own for image in images):
                where = f"draw {draw}, class {short(name)}"
                raise ValueError(f"{file}: {where} must list training images of it, each once")
            draws.setdefault(int(draw), {})[name] = [own[image] for image in images]
    if not draws:
        raise ValueError(f"{file} holds no draws: remove it, or export the benchmark again")
    return draws


class Manifest(NamedTuple):
    """What an exported benchmark is: name, scale, hints by domain, compositional OOP names."""

    name: str
    scale: str
    hints: dict[str, str]
    compositional: dict[str, list[str]]


def read_manifest(root: Path) -> Manifest | None:
    """What an exported benchmark says of itself, or None, as for a download."""
    file = root / MANIFEST
    if not file.is_file():
        return None
    content = read_json(file, root)
    content = content if isinstance(content, dict) else {}
    name, scale = content.get("name"), content.get("scale")
    hints, names = content.get("hints"), content.get("compositional")
    if not isinstance(hints, dict) or not isinstance(names, dict):
        hints, names = {"": None}, {}
    texts = [name, scale, *hints.values()]
    for listed in names.values():
        texts += listed if isinstance(listed, list) else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{file} does not say what the folder holds: export the benchmark again")
    folders = (parse_folder(path.name, hints) for path in root.iterdir() if path.is_dir())
    here = {(folder.domain, folder.kind) for folder in folders if folder}
    for domain in hints:
        for kind in SUBSETS:
            if (domain, kind) not in here:
                raise ValueError(f"{root} lacks {domain} {kind}: export the benchmark again")
        file_name(domain, "domain", file)
    return Manifest(str(name), str(scale), hints, names)


# --- writing -------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One image to be written, in the terms of the released split files."""

    split: str
    label: int
    name: str
    image_name: str
    content: bytes
    caption: str | None
    superclass: str = ""
    image_id: str | None = None  # where it is not to be its path


def write_released(
    folder: Path,
    entries: Iterable[Entry],
    draws: Mapping[int, Mapping[str, Sequence[str]]] | None = None,
) -> None:
    """Write a folder of the released layout: its images, and last its split file.

    `draws`: few-shot draws, if there are any, as `read_draws` reads them.

    Raises ValueError if a name cannot be that of a folder or file, or two images would share one.
    Raises FileExistsError if the folder is there and not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is there already: give a folder of another name")
    content: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    seen: set[str] = set()
    files: dict[str | None, str] = {}
    for entry in entries:
        name = _held(entry.name, "classname", "an entry")
        path = f"{name}/{_held(entry.image_name, 'image_name', 'an entry')}"
        # Some systems take two names that differ in case alone for one.
        if path.casefold() in seen:
            raise ValueError(f"two images would be {path}")
        seen.add(path.casefold())
        files[entry.image_id] = entry.image_name
        place = folder / "images" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        # Not one by one through a temporary file: without its split file the folder is none.
        place.write_bytes(entry.content)
        rows = content[entry.split]
        rows[str(len(rows))] = {
            "classname": name,
            "image_name": entry.image_name,
            "label": entry.label,
            "superclass": entry.superclass,
            "s_label": 0,
            **({"INFO": {"Refined_caption3": entry.caption}} if entry.caption else {}),
            **({"id": entry.image_id} if entry.image_id else {}),
        }
    folder.mkdir(parents=True, exist_ok=True)
    if draws:
        drawn = {
            draw: {name: [files[image_id] for image_id in ids] for name, ids in classes.items()}
            for draw, classes in sorted(draws.items())
        }
        write_text(folder / FEW_SHOT, json.dumps(drawn, ensure_ascii=False, indent=1))
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_text(folder / f"split_Xin_{folder.name}.json", text)


def generate(
    root: str | os.PathLike[str],
    domains: Sequence[str] = ("Animals", "Plants_Fungi"),
    *,
    oop: int = 3,
    ip: int = 2,
    images: tuple[int, int, int] = (4, 2, 3),
    side: int = 32,
    seed: int = 0,
) -> Path:
    """The folder of a small benchmark, built as LAION-Beyond is, for tests and for readers.

    Folders and split files have the released names, misspelt where they are upstream; OOP
    images have captions and three splits, IP images neither. An image is a JPEG of its class's
    colour under noise, so that classes can be told apart and no two files are equal.

    `domains` (sequence of str): the paper's names. `oop`, `ip` (int): classes of each subset.
    `images` (tuple of int): those of an OOP class in train, val and test; an IP class has those of
    test. `side` (int): pixels. `seed` (int): of colours and noise.
    """
    misspelt = {name: wrong for wrong, name in _MISSPELT.items()}
    hints = read_hints("laion_beyond")
    for number, domain in enumerate(domains):
        if domain not in hints:
            raise ValueError(suggest(domain, hints, "domain"))
        for kind, classes in (("oop", oop), ("ip", ip)):
            shares = images if kind == "oop" else (0, 0, images[2])
            rng = np.random.default_rng([seed, number, kind == "oop"])
            folder = Path(root) / f"{misspelt.get(domain, domain)}{classes}_{kind.upper()}"
            names = [f"{hints[domain]} {kind} {i}" for i in range(classes)]
            write_released(folder, _drawn(names, shares, side, rng, captioned=kind == "oop"))
    return Path(root)


# As the authors' loaders spell the folder; `ALIASES` reads it back.
_MISSPELT = {"Plants_Fugi": "Plants_Fungi"}


def _drawn(
    names: Collection[str],
    shares: tuple[int, int, int],
    side: int,
    rng: np.random.Generator,
    *,
    captioned: bool,
) -> Iterator[Entry]:
    for label, name in enumerate(names):
        colour = rng.integers(40, 216, 3)
        for split, number in zip(SPLITS, shares, strict=True):
            for i in range(number):
                noise = rng.integers(-40, 40, (side, side, 3))
                content = io.BytesIO()
                Image.fromarray((colour + noise).astype(np.uint8)).save(content, "JPEG")
                caption = f"a picture of a {name}, number {i}" if captioned else None
                file = f"{name}_{split}_{i}.jpg"
                yield Entry(split, label, name, file, content.getvalue(), caption, "thing")
