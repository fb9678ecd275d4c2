"""Public data sets: which there are, what their classes are called, and benchmarks made of them.

A data set is a row of ``data/datasets.csv``, or a folder of one's own. torchvision reads the
images, in `lbutils.measure.suite`, as nothing here loads torch; what is read here is tables, names
and archives of webdataset's kind.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lbutils._util import short, suggest
from lbutils.captions.certificate import read_certificate, to_table
from lbutils.captions.text import canonical
from lbutils.data.benchmark import Benchmark, Domain, Split, Subset
from lbutils.data.folder import data_file, how_to_restore, is_inside, places
from lbutils.data.images import SUFFIXES, ImageSource

METRICS = ("accuracy", "mean_per_class")
# Of ImageNet's 1,000 published names two stand twice. Source: WordNet's lemmas, as in timm.
_SECOND = {"n04008634": "projectile", "n04355933": "sunglass"}


@dataclass(frozen=True)
class Dataset:
    """A row of ``data/datasets.csv``, as texts, but for what its reader is told.

    `test` and `train` are arguments of the loader, a class of torchvision; None where its authors
    have no such split. `names` is "own" (what its files call the classes), "imagenet" (open_clip's
    list) or a list of ``prompts/class_names.json``. `metric` is the one that DataComp takes.
    `obstacle` says why a data set cannot be had here.
    """

    name: str
    title: str
    loader: str
    test: dict[str, Any] | None
    train: dict[str, Any] | None
    names: str
    templates: str
    hint: str
    metric: str
    classes: int | None = None
    images: int | None = None
    gigabytes: str = ""
    suites: str = ""
    licence: str = ""
    source: str = ""
    obstacle: str = ""


def dataset_table() -> pd.DataFrame:
    """The rows of ``data/datasets.csv`` by name, as texts; empty where not known.

    Raises FileNotFoundError if the file is missing. Raises ValueError if a column is: which.
    """
    path = data_file("datasets.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if absent := [one.name for one in fields(Dataset) if one.name not in table]:
        raise ValueError(f"{path} lacks the column {absent[0]}: {how_to_restore('datasets.csv')}")
    return table.set_index("name", drop=False)


def find_dataset(name: str) -> Dataset:
    """The data set of a name in the table.

    Raises ValueError if there is none of this name, or it cannot be had: why.
    """
    table = dataset_table()
    if name not in table.index:
        options = [*table.index[table["obstacle"] == ""], "a folder"]
        raise ValueError(suggest(name, options, "data set"))
    row = dict(table.loc[name])
    if row["obstacle"]:
        raise ValueError(f"{row['title']} cannot be had here: {row['obstacle']} ({row['source']})")
    for key in ("test", "train"):
        row[key] = json.loads(row[key]) if row[key] else None
    for key in ("classes", "images"):
        row[key] = int(row[key])
    return Dataset(**row)


# --- names ---------------------------------------------------------------------------------


def class_names(dataset: Dataset, own: Sequence[str] | None) -> tuple[str, ...]:
    """The published name of each class, in the order of the labels.

    `own` (sequence of str or None): what the files call the classes, where they do.

    Raises ValueError if there are others than the data set has, or two are one name: which.
    """
    if dataset.names == "own":
        found = [re.sub(r"[_\s]+", " ", name).strip() for name in own or ()]
    elif dataset.names == "imagenet":
        found = _imagenet(own or (), dataset.title)
    else:
        found = _published_names(dataset.names)
    there = len(found) if own is None else len(own)
    if dataset.classes not in (None, there) or there != len(found):
        raise ValueError(
            f"{dataset.title} has {dataset.classes or len(found)} classes, here are {there}"
            f"{_first(own)}: is this another data set, or another layout of it?"
        )
    check_names(found, dataset.title)
    return tuple(found)


def _first(own: Sequence[str] | None) -> str:
    return f" ({', '.join(map(repr, own[:3]))}, ...)" if own else ""


def _imagenet(own: Sequence[str], title: str) -> list[str]:
    """Names of classes that are folders called by WordNet's number, or by ImageNet's label."""
    synsets = _package_file("timm", "data/_info/imagenet_synsets.txt").read_text().split()
    label = {synset: i for i, synset in enumerate(synsets)}
    listed = _open_clip_names()
    found = []
    for folder in own:
        place = label.get(folder, int(folder) if re.fullmatch(r"\d{1,3}", folder) else None)
        if place is None:
            raise ValueError(
                f"{title}: the folder {short(folder)} is no class of ImageNet, which are called as "
                f"{synsets[0]}, or by number"
            )
        found.append(_SECOND.get(synsets[place], listed[place]))
    return found


def _open_clip_names() -> list[str]:
    """open_clip's names of ImageNet's classes, out of its source, as its import loads torch."""
    file = _package_file("open_clip", "zero_shot_metadata.py")
    return list(runpy.run_path(str(file))["IMAGENET_CLASSNAMES"])


def _package_file(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if Path(place, file).is_file():
            return Path(place, file)
    raise FileNotFoundError(f"{package} has no {file}: install the version of requirements.lock")


def _published_names(key: str) -> list[str]:
    file = data_file("prompts/class_names.json")
    return json.loads(file.read_text(encoding="utf-8"))["names"][key]


def check_names(names: Sequence[str], title: str) -> None:
    """Raise ValueError if two class names, or a name and none, are one in canonical form."""
    first: dict[str, str] = {}
    for name in names:
        phrase = canonical(name)
        if not phrase:
            raise ValueError(f"{title}: the class name {short(name)} has no letter: rename it")
        if phrase in first:
            raise ValueError(
                f"{title}: the classes {first[phrase]!r} and {name!r} have one name, "
                f"{phrase!r}: rename one of them, or merge them"
            )
        first[phrase] = name


# --- images --------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """Images of one split as a loader gives them: ids, and labels ``(N,)``."""

    ids: tuple[str, ...]
    labels: np.ndarray


def split_of(part: Labelled, names: Sequence[str], source: Any, title: str) -> Split:
    """The split of labelled images over `names`, without captions.

    Raises ValueError if there is no image, or a label is beyond the names: the image and its label.
    """
    labels = np.asarray(part.labels, dtype=np.int64)
    if not len(labels):
        raise ValueError(f"{title} has no image here")
    beyond = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(beyond):
        where = int(beyond[0])
        raise ValueError(
            f"{title}: the image {part.ids[where]} has the label {labels[where]}, and there are "
            f"{len(names)} class names, labels 0 to {len(names) - 1}"
        )
    return Split(part.ids, labels, tuple(names), (None,) * len(labels), source)


@dataclass(frozen=True)
class Tars(ImageSource):
    """Images inside of tar files, read where they lie; an id is ``<tar file>/<member>``."""

    root: Path
    members: Mapping[str, tuple[str, int, int]] = field(repr=False, compare=False)
    advice: str = "download the archive again"

    def read(self, image_id: str) -> bytes:
        """The image's encoded bytes."""
        if image_id not in self.members:
            raise FileNotFoundError(f"image {image_id!r} is missing: {self.advice}")
        file, offset, size = self.members[image_id]
        with (self.root / file).open("rb") as archive:
            archive.seek(offset)
            return archive.read(size)


@dataclass(frozen=True)
class Webdataset:
    """A folder of webdataset's kind: ``test/0.tar`` and on, ``classnames.txt`` beside them.

    A member ``<key>.cls`` holds the label of the image ``<key>.jpg`` (or another suffix). This is
    how CLIP_benchmark and DataComp keep their tasks. ``zeroshot_classification_templates.txt``
    has the templates, with ``{c}`` for the name.

    Raises ValueError if a file is missing, an image has no label, or a label none or two: which.
    """

    root: Path

    @cached_property
    def names(self) -> list[str]:
        """Class names, a line each."""
        return self._lines("classnames.txt")

    @cached_property
    def templates(self) -> list[str]:
        """Templates with ``{name}``; none if the folder has none."""
        file = "zeroshot_classification_templates.txt"
        if not (self.root / file).is_file():
            return []
        return [line.replace("{c}", "{name}") for line in self._lines(file)]

    def _lines(self, file: str) -> list[str]:
        if not (self.root / file).is_file():
            raise ValueError(f"{self.root} has no {file}: {_LAYOUTS}")
        return [line for line in (self.root / file).read_text("utf-8").splitlines() if line.strip()]

    def part(self, split: str) -> Labelled | None:
        """Ids and labels of a split, or None if the folder has no such split."""
        own = [image for image in self._read if image.startswith(f"{split}/")]
        if not own:
            return None
        return Labelled(tuple(own), np.array([self._read[image][0] for image in own]))

    @property
    def source(self) -> Tars:
        """Where the images of all splits are."""
        return Tars(self.root, {image: found[1] for image, found in self._read.items()})

    @cached_property
    def _read(self) -> dict[str, tuple[int, tuple[str, int, int]]]:
        """Label and place of each image of every split."""
        found: dict[str, tuple[int, tuple[str, int, int]]] = {}
        for file in sorted(self.root.glob("*/*.tar")):
            if not is_inside(file, places(self.root)):
                raise ValueError(f"{file} leads out of {self.root}: put the archive itself there")
            found |= _members(file, file.relative_to(self.root).as_posix())
        return found


def _members(file: Path, name: str) -> dict[str, tuple[int, tuple[str, int, int]]]:
    """Label and place of each image in an archive, by id."""
    labels: dict[str, int] = {}
    images: dict[str, tuple[str, tuple[str, int, int]]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                key, _, suffix = member.name.rpartition(".")
                if not member.isreg():
                    continue
                if suffix == "cls":
                    content: Any = archive.extractfile(member)
                    labels[key] = int(content.read(32))
                elif f".{suffix.lower()}" in SUFFIXES:
                    if key in images:
                        raise ValueError(f"{key} has two images")
                    place = (name, member.offset_data, member.size)
                    images[key] = (f"{name}/{member.name}", place)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no archive of labelled images: {error}") from error
    for key in labels.keys() ^ images.keys():
        lacks = "no image" if key in labels else "no label, <key>.cls"
        raise ValueError(f"{file}: {key} has {lacks}")
    return {image: (labels[key], place) for key, (image, place) in images.items()}


_LAYOUTS = (
    "a folder of one's own has a sub-folder of images for each class, or two folders train and "
    "test of such, or it is webdataset's: test/0.tar, ..., and classnames.txt"
)


def folder_dataset(root: Path) -> Dataset:
    """A folder of one's own as a data set: class folders, or archives of webdataset's kind.

    Raises ValueError if it is neither.
    """
    name = root.resolve().name
    given: dict[str, Any] = {
        "name": name,
        "title": name,
        "names": "own",
        "hint": "thing",
        "metric": METRICS[0],
    }
    if any(root.glob("*/*.tar")):
        own = Webdataset(root)
        templates = json.dumps(own.templates) if own.templates else "openai80"
        return Dataset(**given, loader="webdataset", test={}, train={}, templates=templates)
    folders = {path.name for path in root.iterdir() if path.is_dir() and path.name[:1] != "."}
    if "test" in folders and folders <= {"train", "val", "test"}:
        test: dict[str, Any] = {"folder": "test"}
        train = {"folder": "train"} if "train" in folders else None
    else:
        test, train = {"folder": ""}, None
    if not any(path.suffix.lower() in SUFFIXES for path in (root / test["folder"]).glob("*/*")):
        raise ValueError(f"{root} has no class with an image: {_LAYOUTS}")
    return Dataset(**given, loader="ImageFolder", test=test, train=train, templates="openai80")


# --- names in pre-training, and benchmarks --------------------------------------------------


class Verdicts(NamedTuple):
    """What a certificate says of class names: the corpus, and a verdict and a count for each."""

    corpus: str
    verdict: tuple[str, ...]
    captions: tuple[int, ...]


def read_verdicts(
    path: str | os.PathLike[str], names: Sequence[str], scale: str | None = None
) -> Verdicts:
    """Whether each name is in the captions that a certificate of `lbutils screen` is about.

    Names are found by their canonical form.

    `path` (path): the certificate. `scale` (str, optional): which of its scales; needed if it has
    several.

    Raises ValueError if it is no certificate, has no such scale, or lacks a name: which.
    """
    certificate = read_certificate(path)
    scales = list(certificate["scales"])
    if scale is None and len(scales) > 1:
        raise ValueError(f"{path} has the scales {', '.join(scales)}: name one with --scale")
    if scale not in (None, *scales):
        raise ValueError(suggest(scale, scales, f"scale of {path}"))
    table = to_table(certificate)
    rows = table[table["scale"] == (scale or scales[0])].set_index("phrase")
    phrases = [canonical(name) for name in names]
    lacking = [name for name, at in zip(names, phrases, strict=True) if at not in rows.index]
    if lacking:
        raise ValueError(
            f"{path} lacks {len(lacking)} of {len(names)} class names, {lacking[0]!r} the first of "
            "them: `lbutils datasets names` lists them, and `lbutils screen` screens them"
        )
    own = rows[~rows.index.duplicated()].loc[phrases]
    counts = tuple(int(count) for count in own["captions"])
    return Verdicts(
        f"{certificate['corpus']['name']}:{scale or scales[0]}", (*own["verdict"],), counts
    )


def as_benchmark(
    dataset: Dataset, train: Split | None, test: Split, verdicts: Verdicts
) -> Benchmark:
    """A data set as a benchmark of one domain: IP and OOP are what a certificate says.

    Classes whose verdict is "undecided" are left out, with a warning. Draws are computed from
    names and ids, as `Subset.few_shot` does where none are committed.

    Raises ValueError if no class is IP, or none OOP.
    """
    groups = defaultdict(list)
    for label, verdict in enumerate(verdicts.verdict):
        groups[verdict].append(label)
    for kind in ("ip", "oop"):
        if not groups[kind]:
            raise ValueError(
                f"no class name of {dataset.title} is {kind.upper()} by {verdicts.corpus}: a "
                "benchmark needs names in and out of pre-training"
            )
    if groups["undecided"]:
        warnings.warn(
            f"{len(groups['undecided'])} classes of {dataset.title} are left out, as it is "
            "undecided whether captions name them",
            stacklevel=2,
        )
    # In a folder's name the number of classes follows the domain's, which can have no figures.
    domain = re.sub("[^A-Za-z]+", "_", dataset.name).strip("_") or "own"
    none, unmarked = test.take([]), np.zeros(len(test.names), bool)
    ip, oop = (
        Subset(domain, kind, test.names, unmarked, train or none, none, test).only(groups[kind])
        for kind in ("ip", "oop")
    )
    return Benchmark(dataset.name, verdicts.corpus, [Domain(domain, dataset.hint, ip, oop)])
