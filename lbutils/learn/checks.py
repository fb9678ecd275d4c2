"""A folder of images becomes a split to learn names from, with a report of what is wrong with it.

Everything that a check finds is a row of a DataFrame: how grave, which class, which image, what
was found, and what to do about it. Images and folders that cannot be used are left out of the
split, never silently; everything else is left for its owner to decide.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import binom
from torch import Tensor

from lbutils._util import file_name, is_text
from lbutils.captions.text import as_names, canonical
from lbutils.data.benchmark import Split
from lbutils.data.folder import is_inside
from lbutils.data.images import MAX_BYTES, SUFFIXES, Files, decode, first_line, suffix_of
from lbutils.models.classifier import text_classifier
from lbutils.models.features import image_features
from lbutils.models.prompts import Templates, pieces, take_out

SEVERITIES = ("error", "warning", "note")

MAX_CAPTION_BYTES = 10_000
# No encoder sees more than 600 pixels a side; the smallest random crop (8 % of the area) of a
# side of 1024 still has 290.
LONGEST_SHORT_SIDE = 1024

# The numbers below are what these thresholds do to IP classes of the miniature, on the drawings
# of train and val: classes to be learned are played by them, and OOP images chose nothing.
# tests/test_teaching.py holds some of them to it.

# Means of 1, 2, 4 and 8 train images are nearest to 52, 59, 63 and 67 % of the val images.
MIN_IMAGES = 4
# With name_weight=0.1 and temperature=1, a class of two images loses 2.7 points where the others
# grow from two images to eight.
UNBALANCED = 4
# Of a class's own images that find its name beforehand. The names of 64 of 119 IP classes are
# known by their val drawings. To learn them all the same, from four images each and with the
# settings above, took the known ones from 64.0 to 62.5 %.
KNOWN = 0.5
LUCK = 0.05  # probability that so many find it if all names are alike to them
# Near-duplicates reach both. Of saved-again JPEGs of quality 30, 95 % do; of pairs of drawings
# of one class 1.6 %, nearly all repeats of one drawing; of two classes 1 pair of 114,690.
SAME_FEATURES = 0.93
SAME_PIXELS = 0.93
# Finds 84 to 98 % of single images in a wrong folder; 3 to 7 % of the right ones are suspected.
ODD = 0.3
# Of a class's images that lie with another class, or others; then it is no matter of single
# images. Of classes dealt out to two folders 35 to 64 % are found. With four images or more, 1 to
# 3 % of classes in order are called scattered among five, 9 to 12 % among ten.
SWALLOWED = 0.5

_KINDS = "PNG, JPEG, WebP, TIFF, GIF or BMP"
_LAYOUT = f"one folder a class, named as the class, with {_KINDS} images in it"
_CAPTIONS = "captions.csv"
_WRITTEN = ".written-by-lbutils"  # in a folder that `write_folder` made
_REMEDY = "replace or remove the file, and read the folder again"


class Finding(NamedTuple):
    """One row of a report; `name` is the class, `image` an id of the split or empty."""

    severity: str
    name: str
    image: str
    finding: str
    advice: str


class ImageFolder(NamedTuple):
    """What `read_folder` returns: the split, and the report of what was left out of it."""

    split: Split
    report: pd.DataFrame


def report(findings: Iterable[Finding]) -> pd.DataFrame:
    """One row a finding, the gravest first: severity, class, image, finding, advice.

    An "error" was left out or has to be mended before names are learned, a "warning" is likely
    to spoil a name, a "note" is good to know.
    """
    rows = sorted(findings, key=lambda row: SEVERITIES.index(row.severity))
    columns = ["severity", "class", "image", "finding", "advice"]
    return pd.DataFrame(rows, columns=columns).astype("str")


# --- the folder ----------------------------------------------------------------------------


def read_folder(root: str | os.PathLike[str]) -> ImageFolder:
    """Split of a folder that has one sub-folder of images per class, and a report on it.

    Class names are the names of the sub-folders as they are written, in the order of the
    alphabet. Captions are optional: a text file beside an image (``fox/1.png``, ``fox/1.txt``),
    or ``captions.csv`` with the columns ``file`` and ``caption``, in the root (``fox/1.png``) or
    in a class's folder (``1.png``); the text file wins. Hidden files are not looked at.

    All images of the split have been decoded once. Links that lead out of the folder are refused.

    Raises FileNotFoundError if there is no such folder. Raises ValueError if it is not a folder, or
    no sub-folder has an image that can be used.
    """
    place = Path(root).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"there is no folder {str(root)!r}: give {_LAYOUT}")
    if not place.is_dir():
        raise ValueError(f"{str(root)!r} is not a folder: give {_LAYOUT}")
    place = place.resolve()
    found: list[Finding] = []
    source = Files(place, short_side=LONGEST_SHORT_SIDE, remedy=_REMEDY)
    classes = _classes(place, found)
    owner = {image: name for name, images in classes.items() for image in images}
    usable = _usable(source, owner, found)
    kept = dict.fromkeys(owner[image] for image in usable)
    for name in classes:
        if name not in kept:
            advice = f"put {MIN_IMAGES} or more into its folder, or remove the folder"
            found.append(Finding("error", name, "", "no image that can be used", advice))
    if not kept:
        raise ValueError(f"no image that can be used in {str(root)!r}: give {_LAYOUT}")
    captions = _read_captions(place, owner, found)
    names = tuple(kept)
    split = Split(
        tuple(usable),
        np.array([names.index(owner[image]) for image in usable]),
        names,
        tuple(captions.get(image) for image in usable),
        source,
    )
    return ImageFolder(split, report(found))


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden things and the lists that systems keep."""
    kept = ("__MACOSX", "Thumbs.db", "desktop.ini")
    return sorted(p for p in folder.iterdir() if p.name[:1] != "." and p.name not in kept)


def _classes(root: Path, found: list[Finding]) -> dict[str, list[str]]:
    """Ids of what look like images, by class; what is passed over is added to `found`."""
    classes: dict[str, list[str]] = {}
    for folder in _visible(root):
        name = unicodedata.normalize("NFC", folder.name).strip()
        if not folder.is_dir() and not folder.is_symlink():
            if folder.suffix.lower() in SUFFIXES:
                advice = "move it into the folder of its class"
                found.append(Finding("warning", "", folder.name, "an image of no class", advice))
            continue
        if not is_inside(folder, (root,)):
            advice = "put a copy of the folder here"
            found.append(Finding("error", _shown(name), "", "a link out of the folder", advice))
        elif not is_text(name) or name in classes or not name:
            advice = "give the folder a name of its own, in UTF-8"
            found.append(Finding("error", _shown(name), "", "no name, or one twice", advice))
        elif folder.is_dir():
            classes[name] = _images(folder, root, name, found)
    return classes


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _images(folder: Path, root: Path, name: str, found: list[Finding]) -> list[str]:
    try:
        inside = _visible(folder)
    except OSError as error:
        reason = f"the folder cannot be opened: {error.strerror}"
        found.append(Finding("error", name, "", reason, "mend its permissions"))
        return []
    images, other = [], []
    for path in inside:
        image = path.relative_to(root).as_posix()
        if not is_text(image):
            advice = "give the file a name in UTF-8"
            found.append(Finding("error", name, _shown(image), "its name is no text", advice))
        elif path.suffix.lower() in SUFFIXES:
            images.append(image)
        elif path.suffix.lower() != ".txt" and path.name != _CAPTIONS:
            other.append(path.name)
    if other:
        listed = f"not read: {', '.join(other[:3])}{', ...' if len(other) > 3 else ''}"
        advice = f"save images as {_KINDS}, directly in the class's folder"
        found.append(Finding("note", name, "", listed, advice))
    return images


def _usable(source: Files, owner: Mapping[str, str], found: list[Finding]) -> list[str]:
    """Ids, among those with an owner, of images that can be decoded; others go to `found`."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        troubles = list(pool.map(partial(_trouble, source), owner))
    for (image, name), trouble in zip(owner.items(), troubles, strict=True):
        if trouble:
            found.append(Finding("error", name, image, trouble, "replace or remove it"))
    return [image for image, trouble in zip(owner, troubles, strict=True) if not trouble]


def _trouble(source: Files, image_id: str) -> str:
    """Why an image cannot be used, in a few words; empty if it can."""
    try:
        decode(source.path(image_id), short_side=source.short_side)
    except (ValueError, OSError) as error:
        said = str(error).removeprefix(f"image {str(source.root / image_id)!r} ")
        return said.removesuffix(f": {source.advice}").removeprefix("is unreadable: ")
    return ""


def _read_captions(root: Path, owner: Mapping[str, str], found: list[Finding]) -> dict[str, str]:
    """Caption of each image that has one; what cannot be read is added to `found`."""
    spelt = {unicodedata.normalize("NFC", image): image for image in owner}
    captions: dict[str, str] = {}
    folders = dict.fromkeys((root / image).parent for image in owner)
    for file in (folder / _CAPTIONS for folder in (root, *folders)):
        if file.exists():
            _read_table(file, root, spelt, captions, found)
    for image, name in owner.items():
        file = (root / image).with_suffix(".txt")
        if file.exists():
            try:
                captions[image] = " ".join(_text(file, root, MAX_CAPTION_BYTES).split())
            except (OSError, ValueError) as error:
                reason = f"caption {file.name!r} not read: {first_line(error)}"
                found.append(Finding("warning", name, image, reason, "save it as plain UTF-8"))
    return {image: caption for image, caption in captions.items() if caption}


def _text(file: Path, root: Path, limit: int) -> str:
    if not is_inside(file, (root,)) or not file.is_file():
        raise ValueError("it leads out of the folder, or is no file")
    if file.stat().st_size > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return file.read_text(encoding="utf-8-sig")


def _read_table(
    file: Path,
    root: Path,
    spelt: Mapping[str, str],
    captions: dict[str, str],
    found: list[Finding],
) -> None:
    """Add the captions of one captions.csv; `spelt` has the images by their ids in Unicode NFC."""
    where = file.relative_to(root).as_posix()
    advice = "save it as UTF-8 with the columns file and caption, separated by commas"
    try:
        rows = list(csv.DictReader(io.StringIO(_text(file, root, MAX_BYTES), newline="")))
        pairs = [(row["file"], row["caption"]) for row in rows]
        # The csv module has a limit too, but one for all code in the process, which may raise it.
        if any(len(cell or "") > MAX_CAPTION_BYTES for pair in pairs for cell in pair):
            raise ValueError(f"field larger than {MAX_CAPTION_BYTES:,} signs")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        reason = f"{where} not read: {first_line(error)}"
        found.append(Finding("warning", "", "", reason, advice))
        return
    folder = file.parent.relative_to(root)
    lost = 0
    for name, caption in pairs:
        image = unicodedata.normalize("NFC", (folder / (name or "")).as_posix())
        if image in spelt:
            captions[spelt[image]] = " ".join((caption or "").split())
        else:
            lost += 1
    if lost:
        reason = f"{lost} of {len(pairs)} rows of {where} name no image"
        found.append(Finding("warning", "", "", reason, "write files as class/file"))


def write_folder(split: Split, root: str | os.PathLike[str]) -> Path:
    """Path of a folder that `read_folder` reads as this split: images as they are, captions.

    A folder that an earlier call has written is replaced as a whole: what was left of it would be
    learned from too.

    Raises ValueError if a class name cannot be the name of a folder. Raises FileExistsError if
    there is something in the folder that no earlier call has written.
    """
    place = Path(root)
    for name in split.names:
        file_name(name, "class name", "the split")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        if not (place / _WRITTEN).is_file():
            raise FileExistsError(f"{place} is there already: give a new or empty folder")
        shutil.rmtree(place)
    place.mkdir(parents=True, exist_ok=True)
    (place / _WRITTEN).touch()
    number: Counter[str] = Counter()
    lines = []
    for image, label, caption in zip(split.ids, split.labels, split.captions, strict=True):
        name = split.names[label]
        content = split.source.read(image)
        number[name] += 1
        file = f"{name}/{number[name]:02d}{suffix_of(content)}"
        (place / name).mkdir(exist_ok=True)
        (place / file).write_bytes(content)
        if caption:
            lines.append((file, caption))
    with (place / _CAPTIONS).open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([("file", "caption"), *lines])
    return place


def folds(split: Split, n: int = 3, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each of n rounds the indices to learn from, and those held out.

    Every image is held out once, and every class gives up one image in n of its own; a class of
    fewer than n images is whole in some rounds.

    Raises ValueError if n is below 2, or above the number of images of the largest class.
    """
    most = int(np.bincount(split.labels).max(initial=0))
    if not 2 <= n <= most:
        raise ValueError(f"n={n} rounds: choose from 2 to {most}, the images of the largest class")
    rng = np.random.default_rng(seed)
    turn = np.empty(len(split), int)
    for label in range(len(split.names)):
        own = rng.permutation(np.flatnonzero(split.labels == label))
        turn[own] = (np.arange(len(own)) + rng.integers(n)) % n
    for held in range(n):
        yield np.flatnonzero(turn != held), np.flatnonzero(turn == held)


# --- the checks ----------------------------------------------------------------------------


def check(
    encoder: Any,
    split: Split,
    others: Sequence[str] = (),
    *,
    templates: Templates = "mini",
    hint: str | None = None,
    features: Tensor | None = None,
) -> pd.DataFrame:
    """Report on classes and images before their names are learned; see `report` for its columns.

    Copies are looked for first: labels are judged without the second of two copies, which would
    bear the first one out.

    `encoder` is the model that is to learn the names, `others` are names that they will stand
    beside, `templates` and `hint` as `NameLearner` takes them. `features` ``(N, D)`` of the split's
    N images, of unit length, are computed if not given.
    """
    others = as_names(others, "other names")
    if features is None:
        features = image_features(encoder, split)
    features = features.cpu()
    found = [*odd_names(encoder.tokenizer, split.names, others), *few_images(split)]
    found += odd_captions(split)
    twice = list(copies(split, features))
    alone = ~np.isin(split.ids, [row.image for row in twice])
    found += twice
    texts = [name for name in split.names if pieces(encoder.tokenizer, name)]
    if len(texts) == len(split.names):
        classifier = text_classifier(encoder, [*others, *split.names], templates, hint)
        found += known_names(features @ classifier.T, split, len(others))
    found += odd_labels(features[torch.from_numpy(alone)], split.take(alone))
    return report(found)


def odd_names(
    tokenizer: Any, names: Sequence[str], others: Sequence[str] = ()
) -> Iterator[Finding]:
    """Findings on names: without a token, equal up to spelling, or with an underscore.

    `others` are names that those to be learned will stand beside.
    """
    names, others = as_names(names), as_names(others, "other names")
    seen = {_spelling(name): name for name in others}
    mine: dict[str, str] = {}
    for name in names:
        key = _spelling(name)
        if not pieces(tokenizer, name):
            advice = "choose a name of letters or digits"
            yield Finding("error", name, "", "the name has no token", advice)
        elif key in mine:
            advice = "rename one of them, or put their images into one folder"
            yield Finding("error", name, "", f"the same words as {mine[key]!r}", advice)
        elif key in seen:
            advice = "rename the class, or take that name out of the others"
            yield Finding("error", name, "", f"the other name {seen[key]!r} too", advice)
        if "_" in name:
            advice = "names are read as they are written: use spaces"
            yield Finding("note", name, "", "an underscore in the name", advice)
        mine.setdefault(key, name)


def _spelling(name: str) -> str:
    """What two names share that a reader takes for one; signs and emoji stay apart."""
    return canonical(name) or name.casefold()


def few_images(split: Split) -> Iterator[Finding]:
    """Findings on numbers of images: too few in a class, or many more than in the others."""
    number = np.bincount(split.labels, minlength=len(split.names))
    usual = float(np.median(number)) if len(number) else 0.0
    for name, n in zip(split.names, number.tolist(), strict=True):
        if n < MIN_IMAGES:
            finding = f"too few: {n} image{'s' * (n != 1)}"
            advice = f"add images until there are {MIN_IMAGES} or more"
            yield Finding("warning", name, "", finding, advice)
        if n > UNBALANCED * usual:
            finding = f"{n} images, where the classes' median is {usual:g}"
            advice = "add images to the others, or take the most alike of these out"
            yield Finding("warning", name, "", finding, advice)


def odd_captions(split: Split) -> Iterator[Finding]:
    """Findings on captions that lack the name of their class, one row a class."""
    lacking: Counter[str] = Counter()
    given: Counter[str] = Counter()
    for caption, label in zip(split.captions, split.labels, strict=True):
        name = split.names[label]
        if caption:
            given[name] += 1
            lacking[name] += take_out(caption, name) is None
    for name, n in lacking.items():
        if n:
            finding = f"{n} of {given[name]} captions without the name"
            advice = "write the name into them; learners of captions append them as they are"
            yield Finding("note", name, "", finding, advice)


def copies(split: Split, features: Tensor) -> Iterator[Finding]:
    """Findings on images that repeat an earlier one: the same pixels, or nearly.

    Near-duplicates have features ``(N, D)``, of unit length, of a cosine of `SAME_FEATURES` or more
    *and* thumbnails of a correlation of `SAME_PIXELS` or more: features alone put different
    drawings of one thing close together, thumbnails alone different things of one outline.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pairs = list(pool.map(lambda i: _fingerprint(split.image(i)), range(len(split))))
    digests = [digest for digest, _ in pairs]
    thumbnails = np.array([row for _, row in pairs], np.float32).reshape(-1, 16 * 16 * 3)
    first = {digest: i for i, digest in reversed(list(enumerate(digests)))}
    near = (features @ features.T).numpy() >= SAME_FEATURES
    near &= thumbnails @ thumbnails.T >= SAME_PIXELS
    for i, digest in enumerate(digests):
        same = first[digest] < i
        earlier = [first[digest]] if same else np.flatnonzero(near[i, :i]).tolist()
        if not earlier:
            continue
        # Of several, one of another class is the worse news.
        other = next((j for j in earlier if split.labels[j] != split.labels[i]), earlier[0])
        across = split.labels[other] != split.labels[i]
        finding = f"{'the same as' if same else 'nearly the same as'} {split.ids[other]}"
        advice = "keep it in the right class only" if across else "remove it: it adds nothing"
        severity = "error" if across and same else "warning"
        yield Finding(severity, split.names[split.labels[i]], split.ids[i], finding, advice)


def _fingerprint(image: Image.Image) -> tuple[str, np.ndarray]:
    """SHA-256 of an image's pixels, and its thumbnail as a row of unit length."""
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    small = image.resize((16, 16), Image.Resampling.BOX)
    row = np.asarray(small, np.float32).ravel()
    row = row - row.mean()
    return digest, row / max(float(np.linalg.norm(row)), 1e-6)


def known_names(scores: Tensor, split: Split, n_others: int = 0) -> Iterator[Finding]:
    """Findings on names that half of a class's own images find before anything is learned.

    `scores` ``(N, K + C)`` are similarities of the images to K other names and then the C names.
    """
    said = scores.argmax(1).numpy() - n_others
    for label, name in enumerate(split.names):
        own = said[split.labels == label]
        hits = int((own == label).sum())
        luck = binom.sf(hits - 1, len(own), 1 / scores.shape[1])
        if hits >= max(2, KNOWN * len(own)) and luck < LUCK:
            finding = f"already known: it is the nearest of {scores.shape[1]} names to {hits} of "
            advice = "use the name as it is; learning may make it worse"
            yield Finding("warning", name, "", f"{finding}{len(own)} images", advice)


def leave_one_out(features: Tensor, labels: np.ndarray, n_classes: int) -> Tensor:
    """Cosines ``(N, C)`` of images with class means, each image left out of its own class's.

    NaN for the own class of an image that is alone in it, and for classes without an image.
    Features ``(N, D)`` are of unit length.
    """
    own = torch.tensor(labels)
    sums = features.new_zeros(n_classes, features.shape[1]).index_add(0, own, features)
    number = torch.bincount(own, minlength=n_classes)
    scores = features @ F.normalize(sums).T
    scores[:, number == 0] = torch.nan
    rest = (features * F.normalize(sums[own] - features)).sum(1)
    rest[number[own] < 2] = torch.nan
    scores[torch.arange(len(own)), own] = rest
    return scores


def odd_labels(features: Tensor, split: Split) -> Iterator[Finding]:
    """Findings on images that lie with another class than their own, and on classes that do.

    An image is odd if the mean of another class is nearer than that of the other images of its
    own, by `ODD` of what usually separates own from other. Two findings stand for a whole class
    in place of its images: most of them lie with one other class, which swallows it, or with
    several, so that they have no place of their own. No image is said to look like such a
    scattered class. Features ``(N, D)`` are of unit length; classes of one image are not judged.
    """
    scores = leave_one_out(features, split.labels, len(split.names)).numpy()
    everyone = np.arange(len(split))
    own = scores[everyone, split.labels]
    scores[everyone, split.labels] = np.nan
    judged = ~np.isnan(own) & ~np.isnan(scores).all(1)
    if not judged.any():
        return
    usual = max(float(np.median(own[judged] - np.nanmean(scores[judged], axis=1))), 0.0)
    taken = _nearest(scores, own, split.labels)
    yield from swallowed(split.labels, taken, split.names)
    whole = _swallowing(split.labels, taken)
    away = np.bincount(split.labels, judged & (taken != split.labels), len(split.names))
    number = np.bincount(split.labels, minlength=len(split.names))
    scattered = (away >= 2) & (away > SWALLOWED * number)
    scattered[[label for label, _ in whole]] = False
    for label in np.flatnonzero(scattered):
        finding = f"scattered: {away[label]:.0f} of {number[label]} images lie with other classes"
        advice = "see whether they show one thing alike; split the class, or add images"
        yield Finding("warning", split.names[label], "", finding, advice)
    scores[:, scattered] = np.nan
    taken = _nearest(scores, own + ODD * usual, split.labels)
    odd = (taken != split.labels) & ~scattered[split.labels]
    for i in np.flatnonzero(odd):
        if (split.labels[i], taken[i]) not in whole:
            name, other = split.names[split.labels[i]], split.names[taken[i]]
            advice = "look at it: move it there, or keep it if it is right"
            yield Finding("warning", name, split.ids[i], f"looks like {other!r}", advice)


def _nearest(scores: np.ndarray, own: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class of highest score where it is above the own one, else the label; NaN is none."""
    others = np.nan_to_num(scores, nan=-np.inf)
    return np.where(others.max(1) > np.nan_to_num(own, nan=np.inf), others.argmax(1), labels)


def swallowed(
    labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> Iterator[Finding]:
    """Findings on classes that are given most of another class's images, two at least.

    `labels` and `predictions` ``(N,)`` are true and given classes, of held-out images or left-out
    ones.
    """
    for (label, given), n in _swallowing(labels, predictions).items():
        finding = f"swallows {n} of {int((labels == label).sum())} images of {names[label]!r}"
        advice = "add images that tell the two apart, or make them one class"
        yield Finding("warning", names[given], "", finding, advice)


def _swallowing(labels: np.ndarray, predictions: np.ndarray) -> dict[tuple[int, int], int]:
    """Number of images of class i that are given to class j, where it is most of i's."""
    pairs = Counter(zip(labels.tolist(), predictions.tolist(), strict=True))
    number = Counter(labels.tolist())
    return {
        (i, j): n for (i, j), n in pairs.items() if i != j and n >= 2 and n > SWALLOWED * number[i]
    }
