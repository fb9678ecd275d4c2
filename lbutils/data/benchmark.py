"""Benchmarks of concepts in and out of pre-training: the miniature and LAION-Beyond.

`Benchmark` maps a domain's name to its `Domain`, which has two subsets, `ip` and `oop`; a
`Subset` has the splits `train`, `val` and `test`, and few-shot draws from `train`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from lbutils._util import file_name, suggest
from lbutils.data import folder as layout
from lbutils.data import hub
from lbutils.data.folder import SPLITS, SUBSETS, data_dir, read_hints
from lbutils.data.images import Files, ImageError, ImageSource, decode
from lbutils.data.lots import ROTATIONS, lot_pairs
from lbutils.data.mini import Shards, mini_file

SCALES = {"mini": ("small", "medium", "large"), "laion_beyond": ("400m", "2b", "5b")}
Finding = tuple[str, str, str]  # kind, where, detail


@dataclass(frozen=True, eq=False)
class Split:
    """Images with labels over a vocabulary of class names.

    Attributes
    ----------
    ids : tuple of str
        One identifier an image, (N,).
    labels : ndarray
        (N,) int64, indices into `names`; read-only.
    names : tuple of str
        Class names, (C,). A class may have no image here.
    captions : tuple of str or None
        One caption an image, (N,), None where there is none.
    source : ImageSource
        Where the images are.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    captions: tuple[str | None, ...]
    source: ImageSource = field(repr=False)

    def __post_init__(self) -> None:
        labels = np.array(self.labels, dtype=np.int64).reshape(-1)
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)
        if not len(self.ids) == len(labels) == len(self.captions):
            raise ValueError(
                f"{len(self.ids)} ids, {len(labels)} labels and {len(self.captions)} captions: "
                "a split needs one of each per image"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.names):
            raise ValueError(f"labels must lie in 0..{len(self.names) - 1}, the indices of names")

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int, transparent: bool = False) -> Image.Image:
        """The image at `index` as RGB, on white where it is transparent; or as RGBA, as it is.

        Raises FileNotFoundError, ValueError if the image is missing, cannot be decoded or is a
        decompression bomb (few bytes that would fill memory with pixels), with its name and what to
        do.
        """
        image_id = self.ids[index]
        content = self.source.read(image_id)
        short_side = getattr(self.source, "short_side", None)
        try:
            return decode(content, transparent=transparent, short_side=short_side)
        except ImageError as error:
            raise ImageError(f"image {image_id!r} {error}: {self.source.advice}") from error

    @property
    def key(self) -> str:
        """SHA-256 over ids and image contents, in order; labels and captions do not enter.

        The images are looked at anew each time it is asked for, files only where they were
        touched.
        """
        parts = [self.ids[i : i + 512] for i in range(0, len(self.ids), 512)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda part: [[i, self.source.stamp(i)] for i in part], parts)
            pairs = [pair for part in found for pair in part]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The split of the images at `indices` (or where a boolean mask is true), in that order."""
        chosen = np.asarray(indices)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ValueError(f"a mask must have shape ({len(self)},), not {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64, casting="same_kind") if chosen.size else np.arange(0)
        ids = tuple(self.ids[i] for i in chosen)
        captions = tuple(self.captions[i] for i in chosen)
        return replace(self, ids=ids, labels=self.labels[chosen], captions=captions)

    def only(self, labels: Sequence[int] | np.ndarray) -> Split:
        """The images of some classes, over the names of these alone, in the order of `labels`."""
        new = np.full(len(self.names), -1)
        new[list(labels)] = np.arange(len(labels))
        some = self.take(new[self.labels] >= 0)
        names = tuple(self.names[label] for label in labels)
        return replace(some, labels=new[some.labels], names=names)


def join(first: Split, second: Split) -> Split:
    """Both splits over the joint vocabulary ``first.names + second.names``.

    The labels of `second` are shifted by ``len(first.names)``. Raises ValueError if the
    splits belong to two benchmarks.
    """
    if first.source != second.source:
        raise ValueError("the splits belong to different benchmarks: join splits of one")
    return Split(
        first.ids + second.ids,
        np.concatenate([first.labels, second.labels + len(first.names)]),
        first.names + second.names,
        first.captions + second.captions,
        first.source,
    )


@dataclass(frozen=True, eq=False)
class Subset:
    """The concepts of one domain that are in pre-training (`ip`) or out of it (`oop`).

    Attributes
    ----------
    domain, kind : str
        The domain's name; "ip" or "oop".
    names : tuple of str
        Class names, (C,), taken literally.
    compositional : ndarray
        (C,) bool: OOP names whose pieces all occur in pre-training captions; zeros if unknown.
    train, val, test : Split
        Over `names`. The encoder of the miniature saw `train` of IP concepts in pre-training;
        `val` and `test` are held-out drawing families.
    """

    domain: str
    kind: str
    names: tuple[str, ...]
    compositional: np.ndarray
    train: Split
    val: Split
    test: Split
    # Committed draws: {draw: {label: image ids by rank}}; None where draws are computed.
    draws: Mapping[int, Mapping[int, Sequence[str]]] | None = field(default=None, repr=False)

    def few_shot(self, shots: int, seed: int = 0) -> Split:
        """At most `shots` training images a class; a class with fewer gives all it has.

        Draws are nested: those of a smaller `shots` are contained in those of a larger one.
        The miniature's are committed and `seed` numbers them. Elsewhere a class's training
        images are ranked by the SHA-256 of (class name, seed, image id), so a draw depends on
        no random generator, no other class and no order of files. IP images drawn here were
        seen by the encoder in pre-training.

        Raises ValueError if `shots` is not a positive integer or more than committed draws have
        of any class, or no draw numbered `seed` is committed.
        """
        if isinstance(shots, bool) or not isinstance(shots, (int, np.integer)) or shots < 1:
            raise ValueError(f"shots must be a positive integer, not {shots!r}")
        if self.draws is not None and seed not in self.draws:
            raise ValueError(
                f"no few-shot draw {seed!r} is committed for {self.domain} {self.kind}: "
                f"choose from {', '.join(map(str, sorted(self.draws))) or '(none)'}"
            )
        most = shots if self.draws is None else max(map(len, self.draws[seed].values()), default=0)
        if most < shots and most < np.bincount(self.train.labels, minlength=1).max():
            raise ValueError(
                f"the draws that are committed for {self.domain} {self.kind} have {most} images a "
                f"class at most, and some classes have more: shots={shots} is beyond them"
            )
        chosen: list[int] = []
        position = {image_id: i for i, image_id in enumerate(self.train.ids)}
        for label, name in enumerate(self.names):
            if self.draws is None:
                own = [self.train.ids[i] for i in np.flatnonzero(self.train.labels == label)]
                own.sort(key=partial(_rank, name, seed))
            else:
                own = list(self.draws[seed].get(label, ()))
            chosen.extend(position[image_id] for image_id in own[:shots])
        return self.train.take(chosen)

    def only(self, labels: Sequence[int] | np.ndarray) -> Subset:
        """The subset of some classes, in the order of `labels`, with their images and draws."""
        train, val, test = (split.only(labels) for split in (self.train, self.val, self.test))
        marked = self.compositional[list(labels)]
        draws = self.draws and {
            draw: {k: classes[label] for k, label in enumerate(labels) if label in classes}
            for draw, classes in self.draws.items()
        }
        return Subset(self.domain, self.kind, train.names, marked, train, val, test, draws)


def _rank(name: str, seed: int, image_id: str) -> str:
    return hashlib.sha256(json.dumps([name, int(seed), image_id]).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Domain:
    """A domain: its name, the hint of its prompts ("animal"), its subsets `ip` and `oop`.

    Files are named after it: ValueError is raised for a name that cannot be that of a file.
    """

    name: str
    hint: str
    ip: Subset
    oop: Subset

    def __post_init__(self) -> None:
        file_name(self.name, "domain", "the benchmark")


class Benchmark(Mapping[str, Domain]):
    """Domains by name; see `load_benchmark`.

    Attributes
    ----------
    name : str
        "mini" or "laion_beyond".
    scale : str
        The pre-training corpus that IP and OOP refer to.
    inspect : callable
        What the files themselves disagree on, for `report`.
    """

    def __init__(
        self,
        name: str,
        scale: str,
        domains: Sequence[Domain],
        inspect: Callable[[], Iterable[Finding]] = tuple,
    ) -> None:
        self.name = name
        self.scale = scale
        self._domains = {domain.name: domain for domain in domains}
        self.inspect = inspect

    def __getitem__(self, name: str) -> Domain:
        try:
            return self._domains[name]
        except KeyError:
            raise KeyError(suggest(name, self._domains, "domain")) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __len__(self) -> int:
        return len(self._domains)

    def __repr__(self) -> str:
        return f"Benchmark({self.name!r}, scale={self.scale!r}, domains={self.domains})"

    @property
    def templates(self) -> str:
        """The template set that is meant for its names: the miniature's own, or the paper's."""
        return "mini" if self.name == "mini" else "paper"

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in order."""
        return list(self._domains)

    def splits(self) -> Iterator[tuple[Subset, str, Split]]:
        """Every (subset, name of the split, split), domain by domain."""
        for domain in self.values():
            for subset in (domain.ip, domain.oop):
                for name in SPLITS:
                    yield subset, name, getattr(subset, name)

    def summary(self) -> pd.DataFrame:
        """One row a split: domain, subset, split, classes with an image in it, images."""
        rows = [
            (subset.domain, subset.kind, name, len(np.unique(split.labels)), len(split))
            for subset, name, split in self.splits()
        ]
        return pd.DataFrame(rows, columns=["domain", "subset", "split", "classes", "images"])

    def pair_captions(self) -> list[str]:
        """All captions that the miniature's encoder of this scale was pre-trained on.

        Raises ValueError for LAION-Beyond, whose pre-training captions are LAION's own.
        """
        if self.name != "mini":
            raise ValueError(
                "LAION-Beyond comes without pre-training captions: "
                "pass LAION's Parquet files to lbutils.screen instead"
            )
        return mini_captions(self.scale)

    def report(self, progress: bool = False) -> pd.DataFrame:
        """The integrity report: one row a defect, with columns kind, where and detail.

        Reads every image, with a bar if `progress`. Kinds: "missing file", "unreadable file" (or
        refused), "empty class" (no image), "one-image class", "no train image" (OOP), "no test
        image", "same image in two splits", "same image in two classes" (equal bytes), "no
        captions", "name in ip and oop", and for a folder "folder name", "no folder", "number of
        classes", "unlisted file" and "left out"; for the miniature "label and name", "few-shot
        draw" and "test image in pairs".
        """
        rows = [*self.inspect(), *_class_defects(self), *_image_defects(self, progress)]
        return pd.DataFrame(rows, columns=["kind", "where", "detail"]).astype("str")


def mini_captions(scale: str) -> list[str]:
    """All captions that the miniature's encoders of a scale were pre-trained on."""
    if scale in ROTATIONS:
        pairs, scale = lot_pairs(scale), SCALES["mini"][0]
    else:
        pairs = pd.read_parquet(mini_file("pairs.parquet"), columns=["scale", "captions"])
    admitted = SCALES["mini"][: SCALES["mini"].index(scale) + 1]
    lists = pairs.loc[pairs["scale"].isin(admitted), "captions"]
    return [caption for captions in lists for caption in captions]


def _class_defects(bench: Benchmark) -> Iterator[Finding]:
    for domain in bench.values():
        for name in sorted(set(domain.ip.names) & set(domain.oop.names)):
            yield "name in ip and oop", domain.name, repr(name)
        for subset in (domain.ip, domain.oop):
            counts = {
                split: np.bincount(getattr(subset, split).labels, minlength=len(subset.names))
                for split in SPLITS
            }
            total = np.sum(list(counts.values()), axis=0)
            for label, name in enumerate(subset.names):
                where = f"{domain.name} {subset.kind}: {name}"
                if total[label] <= 1:
                    yield "one-image class" if total[label] else "empty class", where, ""
                    continue
                if not counts["train"][label] and subset.kind == "oop":
                    yield "no train image", where, f"{total[label]} images in other splits"
                if not counts["test"][label]:
                    yield "no test image", where, f"{total[label]} images in other splits"
            for split in SPLITS:
                captions = getattr(subset, split).captions
                if lacking := sum(caption is None for caption in captions):
                    detail = f"{lacking} of {len(captions)} images"
                    yield "no captions", f"{domain.name} {subset.kind} {split}", detail


def _image_defects(bench: Benchmark, progress: bool) -> Iterator[Finding]:
    """Images that are missing, unreadable or met twice, each file read once."""
    first: dict[str, tuple[Split, int]] = {}
    for _, _, split in bench.splits():
        for i, image_id in enumerate(split.ids):
            first.setdefault(image_id, (split, i))
    # PIL lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = pool.map(lambda place: _digest(*place), first.values())
        bar = tqdm(read, "images", len(first), disable=not progress, mininterval=1)
        digests = dict(zip(first, bar, strict=True))
    places: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for subset, split_name, split in bench.splits():
        for i, image_id in enumerate(split.ids):
            class_name = f"{subset.domain} {subset.kind}: {split.names[split.labels[i]]}"
            digest, kind, detail = digests[image_id]
            if digest is not None:
                places[digest].append((split_name, class_name, image_id))
            elif first[image_id] == (split, i):
                yield kind, f"{class_name}, {split_name}", detail
    for found in places.values():
        ids = ", ".join(dict.fromkeys(image_id for _, _, image_id in found))
        splits = list(dict.fromkeys(split_name for split_name, _, _ in found))
        classes = list(dict.fromkeys(class_name for _, class_name, _ in found))
        if len(splits) > 1:
            yield "same image in two splits", f"{classes[0]}: {', '.join(splits)}", ids
        if len(classes) > 1:
            yield "same image in two classes", "; ".join(classes), ids


def _digest(split: Split, index: int) -> tuple[str | None, str, str]:
    """SHA-256 of the image's bytes, or None with the kind of defect and its detail."""
    image_id = split.ids[index]
    try:
        content = split.source.read(image_id)
        decode(content)
    except FileNotFoundError:
        return None, "missing file", image_id
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("is unreadable: ")
        return None, "unreadable file", f"{image_id}: {reason}"
    return hashlib.sha256(content).hexdigest(), "", ""


def load_benchmark(
    name: str | os.PathLike[str] = "mini",
    *,
    scale: str | None = None,
    domains: str | Sequence[str] | None = None,
) -> Benchmark:
    """The miniature, or LAION-Beyond: downloaded, or from the folder that holds it.

    Parameters
    ----------
    name : str or path
        "mini"; "laion-beyond", which downloads what is not yet in the hub's cache (see
        `lbutils.data.hub`); or the folder that holds ``{Domain}{n_classes}_{OOP|IP}`` folders.
    scale : str, optional
        The pre-training corpus: "small" (default), "medium" or "large" for the miniature, or
        "lots-0" to "lots-2", whose IP and OOP follow from it; "400m" (default), "2b" or "5b" for
        LAION-Beyond. Of a folder it only says what it holds; an exported benchmark says so itself.
    domains : str or sequence of str, optional
        Which domains to load, and their order; all by default.

    Raises
    ------
    ValueError
        For an unknown name, scale or domain (with the valid ones and the nearest), a corrupt
        file of the miniature, or a split file that does not follow the released layout or
        leads out of the folder, with the entry that does.
    FileNotFoundError
        For a missing file of the miniature or a folder without a split file.
    Unreachable
        If LAION-Beyond has to be downloaded, and the hub cannot be reached.
    """
    known = str(name) in ("mini", hub.NAME)
    if not known and not Path(name).is_dir():
        valid = ["mini", hub.NAME, "a folder of LAION-Beyond"]
        raise ValueError(suggest(name, valid, "benchmark"))
    manifest = None if known else layout.read_manifest(Path(name))
    key = "mini" if str(name) == "mini" else "laion_beyond"
    held = SCALES[key] if manifest is None else (manifest.scale,)
    scales = (*held, *(ROTATIONS if key == "mini" else ()))
    scale = scales[0] if scale is None else scale
    if scale not in scales:
        raise ValueError(suggest(scale, scales, f"scale of {manifest.name if manifest else key}"))
    wanted = [domains] if isinstance(domains, str) else None if domains is None else list(domains)
    if wanted is not None and not wanted:
        raise ValueError("domains is empty: name at least one, or leave it out for all")
    if key == "mini":
        return _load_mini(scale, wanted)
    root = hub.download(wanted, scale=scale) if known else Path(name)
    return _load_folder(root, scale, wanted, manifest)


def _select(wanted: list[str] | None, available: Sequence[str]) -> list[str]:
    if wanted is None:
        return list(available)
    for name in wanted:
        if name not in available:
            raise ValueError(suggest(name, available, "domain"))
    return list(dict.fromkeys(wanted))


def _load_mini(scale: str, wanted: list[str] | None) -> Benchmark:
    concepts = pd.read_csv(mini_file("concepts.csv"), keep_default_na=False)
    screening = pd.read_csv(mini_file("screening.csv"), keep_default_na=False)
    table = concepts.merge(screening, on="concept_id", how="left", validate="1:1")
    samples = pd.read_parquet(mini_file("samples.parquet"))
    fewshot = pd.read_parquet(mini_file("fewshot.parquet"))
    # Lists, as hundreds of small tables take longer to cut out than to read.
    own: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for concept, *row in samples[["concept_id", "image_id", "split", "caption"]].to_numpy():
        own[concept].append(tuple(row))
    draws: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for concept, draw, image_id in fewshot.sort_values(["draw", "rank"], kind="stable")[
        ["concept_id", "draw", "image_id"]
    ].to_numpy():
        draws[concept][int(draw)].append(image_id)
    hints = read_hints("mini")
    source = Shards(data_dir() / "mini")
    domains = []
    for name in _select(wanted, list(dict.fromkeys(table["domain"]))):
        subsets = {}
        for kind in SUBSETS:
            rows = table[(table["domain"] == name) & (table[f"subset_{scale}"] == kind)]
            subsets[kind] = _mini_subset(name, kind, rows, scale, own, draws, source)
        domains.append(Domain(name, hints.get(name, name.lower()), **subsets))
    inspect = partial(_mini_findings, table, screening, samples, fewshot)
    return Benchmark("mini", scale, domains, inspect)


def _mini_subset(
    domain: str,
    kind: str,
    concepts: pd.DataFrame,
    scale: str,
    samples: Mapping[str, Sequence[tuple[str, str, str]]],
    fewshot: Mapping[str, Mapping[int, list[str]]],
    source: Shards,
) -> Subset:
    names = tuple(concepts["name"])
    parts: dict[str, list[tuple[str, int, str | None]]] = {split: [] for split in SPLITS}
    draws: dict[int, dict[int, list[str]]] = defaultdict(dict)
    for label, concept in enumerate(concepts["concept_id"]):
        for image_id, split, caption in samples.get(concept, ()):
            parts[split].append((image_id, label, caption or None))
        for draw, ids in fewshot.get(concept, {}).items():
            draws[draw][label] = ids
    train, val, test = (_split(parts[split], names, source) for split in SPLITS)
    compositional = concepts[f"compositional_{scale}"].to_numpy(bool)
    return Subset(domain, kind, names, compositional, train, val, test, dict(draws) or None)


def _split(
    rows: Sequence[tuple[str, int, str | None]], names: tuple[str, ...], source: ImageSource
) -> Split:
    ids, labels, captions = zip(*rows, strict=True) if rows else ((), (), ())
    return Split(tuple(ids), np.array(labels, np.int64), names, tuple(captions), source)


def _mini_findings(
    table: pd.DataFrame, screening: pd.DataFrame, samples: pd.DataFrame, fewshot: pd.DataFrame
) -> Iterator[Finding]:
    """Disagreements between the tables of the miniature."""
    known = set(table["concept_id"])
    for file, frame in (("samples.parquet", samples), ("screening.csv", screening)):
        for concept in sorted(set(frame["concept_id"]) - known):
            yield "label and name", f"{file}: {concept}", "not in concepts.csv"
    for concept in sorted(known - set(screening["concept_id"])):
        yield "label and name", f"concepts.csv: {concept}", "not in screening.csv"
    for image_id in samples.loc[samples["image_id"].duplicated(), "image_id"].unique():
        yield "label and name", f"samples.parquet: {image_id}", "has several rows"
    place = {row.image_id: (row.concept_id, row.split) for row in samples.itertuples()}
    for concept, image_id in fewshot[["concept_id", "image_id"]].drop_duplicates().to_numpy():
        if place.get(image_id) != (concept, "train"):
            yield "few-shot draw", f"fewshot.parquet: {concept}", f"{image_id} is not in train"
    pairs = pd.read_parquet(mini_file("pairs.parquet"), columns=["image_id"])["image_id"]
    held_out = samples.loc[samples["split"].isin(["val", "test"]), "image_id"]
    for image_id in sorted(set(pairs) & set(held_out)):
        yield "test image in pairs", f"pairs.parquet: {place[image_id][0]}", image_id


def _load_folder(
    root: Path, scale: str, wanted: list[str] | None, manifest: layout.Manifest | None
) -> Benchmark:
    hints = manifest.hints if manifest else read_hints("laion_beyond")
    folders = layout.find_folders(root, list(hints), scale)
    if wanted is not None:
        wanted = [layout.ALIASES.get(layout.plain(name), name) for name in wanted]
    domains = []
    rows: dict[Path, list[layout.Row]] = {}
    paths: dict[str, str] = {}
    source = Files(root, paths)
    left_out = layout.read_left_out(root)
    for name in _select(wanted, list(dict.fromkeys(domain for domain, _ in folders))):
        compositional = set(manifest.compositional.get(name, ())) if manifest else set()
        subsets = {}
        for kind in SUBSETS:
            folder = folders.get((name, kind))
            if folder is not None:
                rows[folder] = layout.read_rows(folder, root)
                _note_paths(folder, rows[folder], paths)
            own = compositional if kind == "oop" else set()
            subsets[kind] = _folder_subset(name, kind, folder, rows, source, own, left_out)
        domains.append(Domain(name, hints.get(name, name.replace("_", " ").lower()), **subsets))
    inspect = partial(_folder_findings, domains, folders, rows, list(hints), left_out)
    return Benchmark(manifest.name if manifest else "laion_beyond", scale, domains, inspect)


def _note_paths(folder: Path, rows: Sequence[layout.Row], paths: dict[str, str]) -> None:
    """Add the file of each image by its id; an id stands for one file only."""
    for row in rows:
        if paths.setdefault(row.image_id, row.path) != row.path:
            raise ValueError(f"{folder}: {row.path} has the id of {paths[row.image_id]}")


def _folder_subset(
    domain: str,
    kind: str,
    folder: Path | None,
    rows: Mapping[Path, Sequence[layout.Row]],
    source: Files,
    compositional: set[str],
    left_out: Collection[str],
) -> Subset:
    listed = rows[folder] if folder else []
    own = [row for row in listed if row.image_id not in left_out]
    names = tuple(name for _, name in sorted({(row.label, row.name) for row in own}))
    index = {name: label for label, name in enumerate(names)}
    train, val, test = (
        _split(
            [(r.image_id, index[r.name], r.caption) for r in own if r.split == split],
            names,
            source,
        )
        for split in SPLITS
    )
    found = layout.read_draws(folder, source.root, listed) if folder else {}
    draws = {
        draw: {
            index[name]: [image for image in images if image not in left_out]
            for name, images in classes.items()
            if name in index
        }
        for draw, classes in found.items()
    }
    marked = np.array([name in compositional for name in names], bool)
    return Subset(domain, kind, names, marked, train, val, test, draws or None)


def _folder_findings(
    domains: Sequence[Domain],
    folders: Mapping[tuple[str, str], Path],
    rows: Mapping[Path, Sequence[layout.Row]],
    known: Sequence[str],
    left_out: Collection[str],
) -> Iterator[Finding]:
    """What folder names, numbers of classes and files on disk disagree on."""
    for domain, kind in ((domain, kind) for domain in domains for kind in SUBSETS):
        folder = folders.get((domain.name, kind))
        if folder is None:
            yield "no folder", f"{domain.name} {kind}", f"no {domain.name}*_{kind.upper()}"
            continue
        name = layout.parse_folder(folder.name, known)
        if domain.name not in known:
            yield "folder name", folder.name, suggest(domain.name, known, "domain")
        elif name and domain.name != name.written:
            yield "folder name", folder.name, f"read as {domain.name}"
        names = {row.name for row in rows[folder]}
        if name and name.classes is not None and name.classes != len(names):
            yield "number of classes", folder.name, f"{len(names)} classes have images"
        yield from _disk_findings(folder, names, {row.path for row in rows[folder]})
        if away := sum(image.startswith(f"{folder.name}/") for image in left_out):
            yield "left out", folder.name, f"{away} images, by {layout.LEFT_OUT}"


def _disk_findings(folder: Path, names: set[str], listed: set[str]) -> Iterator[Finding]:
    images = folder / "images"
    names, listed = set(map(layout.normal, names)), set(map(layout.normal, listed))
    for path in sorted(path for path in images.glob("*") if path.is_dir()):
        if layout.normal(path.name) not in names:
            yield "empty class", f"{folder.name}: {path.name}", "no image in the split file"
    for file in sorted(path for path in images.rglob("*") if path.is_file()):
        path_in_root = f"{folder.name}/{file.relative_to(folder).as_posix()}"
        if layout.normal(path_in_root) not in listed:
            yield "unlisted file", folder.name, path_in_root
