"""Methods over public data sets: reading by torchvision, one table of results, a command.

    lbutils datasets list
    lbutils datasets run --data /data --datasets cifar-100 --encoders ViT-B-16:laion2b_s34b_b88k
    lbutils datasets names cifar-100 --data /data > names.txt
    lbutils datasets export cifar-100 DIR --data /data --certificate certificate.json

Exit status: 0 if all that was asked for is there, 1 if a data set or method failed (which and why
is printed, all else is run), 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torchvision
from filelock import FileLock
from PIL import Image

from lbutils._util import short, suggest, write_text
from lbutils.data import datasets as tables
from lbutils.data.benchmark import Split, Subset
from lbutils.data.datasets import Dataset, Labelled, Verdicts, Webdataset
from lbutils.data.images import Files, ImageSource
from lbutils.data.laion_beyond import export
from lbutils.learn.namelearner import NameLearner
from lbutils.measure.metrics import bootstrap, per_class_accuracy
from lbutils.measure.records import values
from lbutils.models.classifier import training_features
from lbutils.models.encoders import DualEncoder, encoder_table, load_encoder
from lbutils.models.features import image_features
from lbutils.models.prompts import Templates, prompts_by_class, read_prompts, resolve
from lbutils.rivals.adapters import ProLIP
from lbutils.rivals.table import RIVALS

NAMES = "names"  # the method that learns them
GROUPS = {"ip": "in", "oop": "out", "undecided": "undecided"}
COLUMNS = (
    "key encoder dataset prompts method shots seed corpus in_captions class metric main value low "
    "high classes images captions"
).split()


# --- reading -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures(ImageSource):
    """Images that a loader of torchvision holds as pixels; an id is ``<split>/<number>``."""

    parts: Mapping[str, Any] = field(repr=False)
    advice: str = "download the data set again"

    def read(self, image_id: str) -> bytes:
        """The image as PNG, pixel by pixel what the loader gives."""
        split, _, number = image_id.partition("/")
        picture: Image.Image = self.parts[split][int(number)][0]
        written = io.BytesIO()
        picture.save(written, "PNG", compress_level=1)
        return written.getvalue()


@dataclass(frozen=True, eq=False)
class Loaded:
    """A data set on this disk: its test images, and those to learn from, or why there are none."""

    dataset: Dataset
    test: Split
    train: Split | None
    lacking: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.test.names


def read_dataset(name: str, root: Path, download: bool = False) -> Loaded:
    """A data set of the table below `root`, or a folder of one's own.

    Raises ValueError if there is no such data set, it is not there (its size, and what to do), or
    in another layout than its loader's; if class names clash, or a label is beyond them.

    CIFAR is kept in pickles. They are read by torchvision, which compares their MD5 first, and hold
    arrays. Images that are files are read by this package's reader, as all others are.

    `name` (str): a name in `datasets.dataset_table`, or the path of a folder (see
    `datasets.folder_dataset`). `root` (path): where torchvision's loaders look for their folders.
    `download` (bool): let them fetch what is not there.
    """
    own_folder = Path(name).is_dir()
    root = Path(name if own_folder else root).expanduser().absolute()
    dataset = tables.folder_dataset(root) if own_folder else tables.find_dataset(name)
    if dataset.loader == "webdataset":
        own = Webdataset(root)
        found = {split: own.part(split) for split in ("test", "train")}
        return _loaded(dataset, own.names, found, own.source)
    kinds = {"test": _open(dataset, root, dataset.test or {}, download)}
    lacking = ""
    if dataset.train is not None:
        try:
            train = _open(dataset, root, dataset.train, download)
            # Labels are places among the classes that a split has.
            if alone := set(_classes(train) or ()) ^ set(_classes(kinds["test"]) or ()):
                raise ValueError(f"{short(min(alone))} is a class of one of train and test only")
            kinds["train"] = train
        except ValueError as error:  # who only tests needs none
            lacking = str(error)
    test = kinds["test"]
    own_names = _classes(test)
    as_files = len(test) > 0 and isinstance(test[0][0], Path)
    source = Files(root) if as_files else Pictures(kinds)
    parts = {split: _labelled(part, split, root) for split, part in kinds.items()}
    return _loaded(dataset, own_names, parts, source, lacking)


def _classes(part: Any) -> Sequence[str] | None:
    """What the files of a split call its classes, where they do."""
    return getattr(part, "classes", getattr(part, "categories", None))


def _labelled(part: Any, split: str, root: Path) -> Labelled:
    """Ids and labels of a reader's images; one at a time, as pixels may be many."""
    ids, labels = [], []
    for i in range(len(part)):
        picture, label = part[i]
        is_file = isinstance(picture, Path)
        ids.append(picture.relative_to(root).as_posix() if is_file else f"{split}/{i}")
        labels.append(int(label))
    return Labelled(tuple(ids), np.array(labels, np.int64))


def _open(dataset: Dataset, root: Path, given: Mapping[str, Any], download: bool) -> Any:
    """Torchvision's reader of one split; an image that is a file comes as its path."""
    kind = getattr(torchvision.datasets, dataset.loader)
    options = dict(given)
    place = root / options.pop("folder", "")
    takes = inspect.signature(kind.__init__).parameters
    if "loader" in takes:
        options["loader"] = Path
    if download and "download" in takes:
        options["download"] = True
    try:
        found = kind(place, **options)
    except (RuntimeError, OSError, LookupError, TypeError, ValueError) as error:
        size = f"{dataset.gigabytes} GB" if dataset.gigabytes else "of a size not known here"
        how = "add --download, or put it" if "download" in takes and not download else "put it"
        raise ValueError(
            f"{dataset.title} is not in {place} as torchvision's {dataset.loader} wants it "
            f"({_reason(error)}): {how} there; it is {size}, from {dataset.source or 'you'}"
        ) from error
    return found


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _loaded(
    dataset: Dataset,
    own: Sequence[str] | None,
    parts: Mapping[str, Labelled | None],
    source: Any,
    lacking: str = "",
) -> Loaded:
    names = tables.class_names(dataset, own)
    test, train = (
        None
        if (part := parts.get(split)) is None
        else tables.split_of(part, names, source, f"{dataset.title}, {split}")
        for split in ("test", "train")
    )
    if test is None:
        raise ValueError(f"{dataset.title} has no test images here")
    return Loaded(dataset, test, train, lacking or f"{dataset.title} has no images to learn from")


# --- methods -------------------------------------------------------------------------------


def method(name: str) -> Callable[..., Any]:
    """The factory of a method: a row of `RIVALS`, or ``"names"`` for name learning.

    Raises ValueError if there is no such method, or it needs features that are not computed here.
    """
    if name == NAMES:
        return _learner
    if name not in RIVALS:
        raise ValueError(suggest(name, [NAMES, *RIVALS], "method"))
    if RIVALS[name].method is ProLIP:
        raise ValueError(f"{name} takes features before the last projection: run it by notebook 04")
    return RIVALS[name]


def _learner(encoder: DualEncoder, ip_names: Sequence[str], shots: int, **task: Any) -> NameLearner:
    return NameLearner(encoder, negatives=list(ip_names) or None, **task)


@dataclass(frozen=True)
class Setting:
    """One row of the grid, by names: what is run, on what."""

    encoder: str
    dataset: str
    prompts: str
    method: str
    shots: int
    seed: int

    @property
    def learns(self) -> bool:
        """Whether the method looks at training images."""
        return "zero-shot" not in self.method


def predictions(
    encoder: DualEncoder,
    data: Loaded,
    setting: Setting,
    templates: Templates,
    learned: Sequence[int],
) -> np.ndarray:
    """The class of each test image, ``(N,)``, over all names of a data set.

    The method is fitted to the classes `learned`; all others are names that it does not learn.

    Raises ValueError if it learns, and the data set has no training images, or not of each of these
    classes.
    """
    others = [label for label in range(len(data.names)) if label not in set(learned)]
    factory = method(setting.method)
    model = factory(
        encoder,
        templates=templates,
        hint=data.dataset.hint,
        shots=setting.shots,
        seed=setting.seed,
        ip_names=tuple(data.names[label] for label in others),
    )
    if setting.learns:
        split = _draw(data, setting, learned)
        model.fit(split, training_features(encoder, split, views=4, seed=setting.seed))
    else:
        model.fit(data.test.only(learned))
    features = image_features(encoder, data.test)
    unlearned = [data.names[label] for label in others]
    joint = model.joint_logits(features, unlearned) if others else model.logits(features)
    return np.array([*others, *learned])[joint.argmax(dim=1).numpy()]


def _draw(data: Loaded, setting: Setting, learned: Sequence[int]) -> Split:
    if data.train is None:
        raise ValueError(f"{setting.method} needs images to learn from: {data.lacking}")
    train = data.train.only(learned)
    empty = train.take([])
    unmarked = np.zeros(len(learned), bool)
    subset = Subset(data.dataset.name, "oop", train.names, unmarked, train, empty, empty)
    drawn = subset.few_shot(setting.shots, setting.seed)
    lacking = sorted(set(range(len(train.names))) - set(drawn.labels.tolist()))
    if lacking:
        raise ValueError(
            f"{data.dataset.title} has no training image of {train.names[lacking[0]]!r}"
        )
    return drawn


def scores(
    found: np.ndarray, test: Split, metric: str, verdicts: Verdicts | None
) -> Iterator[dict[str, Any]]:
    """Rows of results: each measure over all names, those in captions and those out, and by class.

    Values are percent; intervals resample classes. `metric` is the data set's main one.
    """
    by_class = per_class_accuracy(test.labels, found, len(test.names))
    images = np.bincount(test.labels, minlength=len(test.names))
    groups = {"all": np.ones(len(images), bool)}
    kinds = np.array(verdicts.verdict if verdicts else [""] * len(images))
    groups |= {word: kinds == kind for kind, word in GROUPS.items() if (kinds == kind).any()}
    for group, chosen in groups.items():
        held = chosen & (images > 0)
        for name in tables.METRICS if held.any() else ():
            weights = images[held] if name == "accuracy" else None
            measured = bootstrap(by_class[held], weights)  # in percent
            yield {
                "in_captions": group,
                "metric": name,
                "main": name == metric,
                **values(100 * value for value in measured),
                "classes": int(held.sum()),
                "images": int(images[held].sum()),
            }
    for label, name in enumerate(test.names):
        yield {
            "in_captions": GROUPS.get(kinds[label], ""),
            "class": name,
            "metric": "accuracy",
            "main": False,
            "value": 100 * by_class[label],
            "classes": 1,
            "images": int(images[label]),
            "captions": verdicts.captions[label] if verdicts else None,
        }


# --- the grid ------------------------------------------------------------------------------


def run(
    settings: Sequence[Setting],
    root: Path,
    out: Path,
    *,
    certificate: Path | None = None,
    scale: str | None = None,
    download: bool = False,
    device: str | None = None,
) -> list[str]:
    """What failed, a line each; all else is in the table `out`, and is not run again.

    A row belongs to its settings: a key over them, the prompts themselves, the certificate's
    content and the class names. Rows whose key is there are not made again.
    """
    failed = []
    encoders: dict[str, DualEncoder] = {}
    read: dict[str, Loaded] = {}
    for setting in settings:
        try:
            if setting.dataset not in read:
                read[setting.dataset] = read_dataset(setting.dataset, root, download)
            data = read[setting.dataset]
            verdicts = None
            if certificate:
                verdicts = tables.read_verdicts(certificate, data.names, scale)
            prompts = prompts_of(setting.prompts, data)
            key = _key(setting, data, prompts, verdicts)
            if key in _keys(out):
                print(f"there already: {_said(setting)}")
                continue
            if setting.encoder not in encoders:
                encoders.clear()  # one at a time: settings come by encoder
                encoders[setting.encoder] = _load(setting.encoder, device)
            rows = _rows(encoders[setting.encoder], data, setting, prompts, verdicts)
            _append(out, [{"key": key, **asdict(setting), **row} for row in rows])
        except (ValueError, OSError, RuntimeError) as error:
            failed.append(f"{_said(setting)}: {error}")
            print(f"failed: {failed[-1]}", file=sys.stderr)
    return failed


def _rows(
    encoder: DualEncoder,
    data: Loaded,
    setting: Setting,
    prompts: Templates,
    verdicts: Verdicts | None,
) -> list[dict[str, Any]]:
    """The rows of one setting, and its main figures on the screen."""
    everything = range(len(data.names))
    kinds = verdicts.verdict if verdicts else ("",) * len(data.names)
    out_of = [label for label in everything if kinds[label] == "oop"]
    found = predictions(encoder, data, setting, prompts, out_of or list(everything))
    corpus = verdicts.corpus if verdicts else ""
    rows = [
        {"corpus": corpus, **row} for row in scores(found, data.test, data.dataset.metric, verdicts)
    ]
    main = [row for row in rows if row["main"]]
    shown = ", ".join(f"{row['in_captions']} {row['value']:.1f}" for row in main)
    print(f"{_said(setting)}: {data.dataset.metric} {shown} %")
    return rows


def prompts_of(spec: str, data: Loaded) -> Templates:
    """Templates, or prompts by class, of a word of the command line, checked against the names.

    Raises ValueError if it names no set and no file, or they do not fit: the entry.
    """
    if spec == "published":
        published = data.dataset.templates
        found: Templates = json.loads(published) if published[:1] == "[" else published
    else:
        found = read_prompts(spec) if spec.endswith(".json") else spec
    prompts_by_class(found, data.names, data.dataset.hint)
    return found if isinstance(found, Mapping) else list(resolve(found))


def _key(setting: Setting, data: Loaded, prompts: Templates, verdicts: Verdicts | None) -> str:
    filled = prompts_by_class(prompts, data.names, data.dataset.hint)
    text = [asdict(setting), data.names, [list(map(list, own)) for own in filled], verdicts]
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]


def _keys(out: Path) -> set[str]:
    return set(_table(out)["key"]) if out.is_file() else set()


def _table(out: Path) -> pd.DataFrame:
    table = pd.read_csv(out, dtype={"key": str}, keep_default_na=False)
    if list(table.columns) != COLUMNS:
        raise ValueError(f"{out} is no table of this command: give another --out")
    return table


def _append(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows behind those of the table, whole or not at all; several processes may."""
    new = pd.DataFrame(rows).reindex(columns=COLUMNS)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{out}.lock"):
        before = ""
        if out.is_file():
            _table(out)  # not one of another kind
            before = out.read_text(encoding="utf-8")
        write_text(out, before + new.to_csv(index=False, header=not before))


def _said(setting: Setting) -> str:
    drawn = f", {setting.shots} shots, seed {setting.seed}" if setting.learns else ""
    return f"{setting.encoder} on {setting.dataset}, {setting.prompts}, {setting.method}{drawn}"


def _load(name: str, device: str | None) -> DualEncoder:
    """An encoder by its name in the table, or ``ARCHITECTURE:TAG``."""
    architecture, colon, tag = name.rpartition(":")
    listed = name in encoder_table().index
    if listed or not colon or architecture.endswith(("local-dir", "hf-hub", "transformers")):
        return load_encoder(name, device=device)
    return load_encoder(architecture, tag, device=device)


# --- command line --------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, 1 if something failed, 2 if it cannot be begun."""
    given = _parser().parse_args(arguments)
    try:
        return given.do(given)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lbutils", description=(__doc__ or "").splitlines()[0])
    datasets = (
        parser.add_subparsers(required=True)
        .add_parser("datasets")
        .add_subparsers(required=True, metavar="list|run|names|export")
    )
    listing = datasets.add_parser("list", help="the data sets, their measures, sizes and licences")
    listing.set_defaults(do=_list)
    running = datasets.add_parser("run", help="methods over data sets, into one table")
    running.set_defaults(do=_run)
    add = running.add_argument
    add("--encoders", nargs="+", default=["mini"], help="names of `data/encoders.csv`, or ARCH:TAG")
    add("--datasets", nargs="+", required=True, help="names of `list`, suites, or folders")
    add(
        "--prompts",
        nargs="+",
        default=["published"],
        help="published (the data set's), a template set, a template, or a JSON file of prompts",
    )
    add("--methods", nargs="+", default=["zero-shot"], help="'names', or rivals by name")
    add("--shots", nargs="+", type=int, default=[4])
    add("--seeds", nargs="+", type=int, default=[0])
    add("--scale", help="of the certificate, if it has several")
    add("--out", type=Path, default=Path("datasets.csv"), help="the table (%(default)s)")
    add("--device")
    naming = datasets.add_parser("names", help="class names, a line each, for `lbutils screen`")
    naming.set_defaults(do=_names)
    naming.add_argument("dataset")
    exporting = datasets.add_parser("export", help="a benchmark that all notebooks take")
    exporting.set_defaults(do=_export)
    exporting.add_argument("dataset")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("--scale")
    for each in (running, naming, exporting):
        each.add_argument("--data", type=Path, default=Path(), help="folder of the data sets")
        each.add_argument("--download", action="store_true", help="let torchvision fetch them")
    running.add_argument("--certificate", type=Path, help="of `lbutils screen`: names in captions")
    exporting.add_argument("--certificate", type=Path, required=True)
    return parser


def _list(given: argparse.Namespace) -> int:
    table = tables.dataset_table()
    shown = ["title", "classes", "images", "gigabytes", "metric", "templates", "suites", "licence"]
    there = table[table["obstacle"] == ""]
    print(there[shown].to_string())
    for row in table[table["obstacle"] != ""].itertuples():
        print(f"not here: {row.title} ({row.suites}): {row.obstacle}")
    return 0


def _run(given: argparse.Namespace) -> int:
    for name in given.methods:
        method(name)
    if wrong := [shots for shots in given.shots if shots < 1]:
        raise ValueError(f"--shots {wrong[0]}: give 1 or more")
    settings = [
        Setting(encoder, dataset, prompts, name, *drawn)
        for encoder in given.encoders
        for dataset in _datasets(given.datasets)
        for prompts in given.prompts
        for name in given.methods
        for drawn in _draws(name, given.shots, given.seeds)
    ]
    failed = run(
        settings,
        given.data,
        given.out,
        certificate=given.certificate,
        scale=given.scale,
        download=given.download,
        device=given.device,
    )
    return 1 if failed else 0


def _draws(name: str, shots: Sequence[int], seeds: Sequence[int]) -> list[tuple[int, int]]:
    if not Setting("", "", "", name, 0, 0).learns:
        return [(0, 0)]
    return [(number, seed) for number in shots for seed in seeds]


def _datasets(given: Sequence[str]) -> list[str]:
    """Names and folders, suites taken apart; what cannot be had of a suite is said."""
    table = tables.dataset_table()
    found: list[str] = []
    for name in given:
        within = table[[name in suites.split(";") for suites in table["suites"]]]
        for row in within.itertuples():
            if row.obstacle:
                print(f"not here: {row.title}: {row.obstacle}", file=sys.stderr)
        chosen = list(within.index[within["obstacle"] == ""]) or [name]
        for one in chosen:
            if not Path(one).is_dir():
                tables.find_dataset(one)
        found += chosen
    return list(dict.fromkeys(found))


def _names(given: argparse.Namespace) -> int:
    print("\n".join(read_dataset(given.dataset, given.data, given.download).names))
    return 0


def _export(given: argparse.Namespace) -> int:
    data = read_dataset(given.dataset, given.data, given.download)
    verdicts = tables.read_verdicts(given.certificate, data.names, given.scale)
    bench = tables.as_benchmark(data.dataset, data.train, data.test, verdicts)
    folder = export(bench, given.folder)
    print(f"{folder}: {bench.summary().to_string(index=False)}")
    return 0
