"""Download LAION-Beyond, check it against the paper, and write other benchmarks in its layout.

    lbutils download Animals Pokemon
    lbutils check-folder /data/LAION-Beyond
    lbutils export /data/miniature
    lbutils generate /data/small

Exit status: 0 if every image is there and can be read, 1 if not, 2 if the arguments are wrong or
the hub cannot be reached. Counts that are not the paper's are printed; the files decide.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lbutils._util import file_name, suggest, write_text
from lbutils.captions.text import as_names
from lbutils.data import folder as layout
from lbutils.data import hub
from lbutils.data.benchmark import SCALES, Benchmark, Domain, Split, Subset, join, load_benchmark
from lbutils.data.images import suffix_of

# Digitised bars are good to a thousandth of the tallest, 28,917 images.
READING_ERROR = 30
# Kinds of the integrity report that make a run on the benchmark impossible or wrong.
GRAVE = ("missing file", "unreadable file", "no folder", "label and name")


# --- counts --------------------------------------------------------------------------------


def compare_counts(bench: Benchmark) -> pd.DataFrame:
    """Classes and images of each subset beside the paper's (Figure 2), and their totals.

    Returns
    -------
    DataFrame
        Columns ``domain``, ``subset``, ``classes``, ``published_classes``, ``images``,
        ``published_images`` and ``remark``, empty where they agree. Published images of a domain
        were read off a figure; those of all nine, at 400M, are printed. What the paper does not
        have is missing (NA).
    """
    classes = layout.published_classes(bench.scale)
    pictured = layout.published_table("figure2_image_counts").query("scale == @bench.scale")
    images = pictured.set_index(["domain", "subset"])["images"]
    rows = []
    for domain in bench.values():
        for subset in (domain.ip, domain.oop):
            key = (domain.name, subset.kind)
            found = (len(subset.names), sum(len(getattr(subset, name)) for name in layout.SPLITS))
            rows.append((*key, *found, classes.get(key), images.get(key), READING_ERROR))
    if set(bench) == {domain for domain, _ in classes}:
        totals = layout.published_table("figure2_totals").query("scale == @bench.scale")
        for total in totals.itertuples():
            own = [row for row in rows if row[1] == total.subset]
            found = (sum(row[2] for row in own), sum(row[3] for row in own))
            rows.append(("all", total.subset, *found, total.classes, total.images, 0))
    columns = ["domain", "subset", "classes", "images", "published_classes", "published_images"]
    table = pd.DataFrame([row[:6] for row in rows], columns=columns)
    table[columns[2:]] = table[columns[2:]].astype("Int64")
    table["remark"] = [_remark(*row[2:]) for row in rows]
    order = [*columns[:2], "classes", "published_classes", "images", "published_images", "remark"]
    return table[order]


def _remark(
    classes: int, images: int, counted: int | None, pictured: int | None, tolerance: int
) -> str:
    if counted is None:
        return "not in the paper"
    found = []
    if classes != counted:
        found.append(f"{classes - counted:+} classes")
    if pictured is not None and abs(images - pictured) > tolerance:
        found.append(f"{images - int(pictured):+,} images")
    return ", ".join(found)


# --- scales --------------------------------------------------------------------------------


def relabel(bench: Benchmark, named: Iterable[str], scale: str) -> Benchmark:
    """The benchmark at a larger scale: OOP classes that its captions name become IP.

    LAION-Beyond (2B) and (5B) have the classes of (400M), some of which the larger corpus names.
    The paper says how many of each domain, not which; screening the corpus for them does
    (`lbutils.captions.screening`), and `compare_counts` tells whether the numbers come out.

    `named` (iterable of str): OOP class names, of all domains, that occur in the captions of
    `scale`.

    Raises ValueError if a name is no OOP class, or the scale is not larger.
    """
    scales = next((known for known in SCALES.values() if bench.scale in known), ())
    larger = scales[scales.index(bench.scale) + 1 :] if scales else ()
    if scale not in larger:
        raise ValueError(suggest(scale, larger, "larger scale"))
    moved = set(as_names(named))
    known = [name for domain in bench.values() for name in domain.oop.names]
    for name in sorted(moved - set(known)):
        raise ValueError(f"{name!r} is no OOP class of {bench.name} at scale {bench.scale}")
    domains = []
    for domain in bench.values():
        out = np.array([name in moved for name in domain.oop.names], bool)
        taken, left = (domain.oop.only(np.flatnonzero(own)) for own in (out, ~out))
        domains.append(Domain(domain.name, domain.hint, _both(domain.ip, taken), left))
    return Benchmark(bench.name, scale, domains, bench.inspect)


def _both(ip: Subset, moved: Subset) -> Subset:
    """The IP subset with further classes, which are then in pre-training and so no compounds."""
    draws: dict[int, dict[int, Sequence[str]]] | None = None
    if ip.draws is not None and moved.draws is not None:
        start = len(ip.names)
        draws = {
            draw: {**ip.draws[draw], **{start + k: ids for k, ids in moved.draws[draw].items()}}
            for draw in sorted(set(ip.draws) & set(moved.draws))
        }
    marked = np.concatenate([ip.compositional, np.zeros(len(moved.names), bool)])
    train, val = join(ip.train, moved.train), join(ip.val, moved.val)
    names, test = ip.names + moved.names, join(ip.test, moved.test)
    return Subset(ip.domain, "ip", names, marked, train, val, test, draws)


# --- export --------------------------------------------------------------------------------


def export(bench: Benchmark, folder: str | os.PathLike[str]) -> Path:
    """The folder that now holds a benchmark in the released layout; `load_benchmark` reads it.

    The authors' code reads it too. Images are copied byte by byte and keep their ids, so that
    features, augmented views and few-shot draws, and all that is made from them, are the same.
    What the layout has no place for is added: ``id`` to each entry of a split file;
    ``benchmark.json`` with name, scale, hints and compositional names; and in each folder whose
    draws are committed ``few_shot.json``, the image files by rank, of each draw and class. Where
    draws are computed, as for LAION-Beyond, they follow from class names and ids.

    Raises FileExistsError if there is something in the folder. Raises ValueError if a class name
    cannot name a folder, or a class has no image and would be lost.
    """
    root = Path(folder).expanduser()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} is there already: give a new or empty folder")
    manifest = {
        "name": bench.name,
        "scale": bench.scale,
        "hints": {domain.name: domain.hint for domain in bench.values()},
        "compositional": {
            domain.name: [
                name
                for name, marked in zip(domain.oop.names, domain.oop.compositional, strict=True)
                if marked
            ]
            for domain in bench.values()
        },
    }
    # First, so that an export that is cut short is known by the folders that it lacks.
    write_text(root / layout.MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1))
    for domain in bench.values():
        for subset in (domain.ip, domain.oop):
            _export_subset(subset, root, domain.hint)
    return root


def _export_subset(subset: Subset, root: Path, hint: str) -> None:
    held = {int(label) for name in layout.SPLITS for label in getattr(subset, name).labels}
    for label, name in enumerate(subset.names):
        if label not in held:
            where = f"{subset.domain} {subset.kind}"
            raise ValueError(
                f"class {name!r} of {where} has no image, and the layout no empty class"
            )
    domain = file_name(subset.domain, "domain", "the benchmark")
    folder = root / f"{domain}{len(subset.names)}_{subset.kind.upper()}"
    draws = {
        draw: {subset.names[label]: ids for label, ids in classes.items()}
        for draw, classes in (subset.draws or {}).items()
    }
    layout.write_released(folder, _exported(subset, hint), draws)


def _exported(subset: Subset, hint: str) -> Iterator[layout.Entry]:
    """Every image of a subset as an entry."""
    for split_name in layout.SPLITS:
        split: Split = getattr(subset, split_name)
        for image_id, label, caption in zip(split.ids, split.labels, split.captions, strict=True):
            content = split.source.read(image_id)
            # An id may be a path; its class's folder is a path of its own.
            file = image_id.replace("/", "-")
            if not file.endswith(suffix := suffix_of(content)):
                file += suffix
            name = subset.names[label]
            yield layout.Entry(split_name, int(label), name, file, content, caption, hint, image_id)


# --- command line --------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, 1 for damage, 2 if it cannot be done."""
    given = _parser().parse_args(arguments)
    try:
        return given.call(given)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lbutils", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True)
    fetch = commands.add_parser("download", help="domains from the hub, checked")
    fetch.add_argument("domains", nargs="*", help="the paper's names; all nine by default")
    fetch.add_argument("--to", help="a folder for the files (default: the cache of the hub)")
    fetch.add_argument("--revision", help="a commit or branch (default: data/downloads.csv)")
    fetch.set_defaults(call=_download, leave_out=False)
    inspect = commands.add_parser(
        "check-folder", help="a folder against the paper's counts, every image"
    )
    inspect.add_argument("folder")
    inspect.set_defaults(call=lambda given: _check(given.folder, given))
    fetch.add_argument("--scale", default="400m", choices=SCALES["laion_beyond"])
    inspect.add_argument("--scale", help="default: 400m, or what an exported folder says")
    without = "from now on do without images that are missing or cannot be read"
    inspect.add_argument("--leave-out", action="store_true", help=without)
    for command in (fetch, inspect):
        command.add_argument("--report", help="write all findings to this CSV file")
        command.add_argument("--counts-only", action="store_true", help="do not read the images")
    write = commands.add_parser("export", help="the miniature in the layout of LAION-Beyond")
    write.add_argument("folder")
    write.add_argument("--scale", choices=SCALES["mini"])
    write.add_argument("--domains", nargs="+")
    write.set_defaults(call=_export)
    small = commands.add_parser("generate", help="a small folder, built as LAION-Beyond is")
    small.add_argument("folder")
    small.add_argument("--domains", nargs="+", default=["Animals", "Plants_Fungi"])
    small.set_defaults(call=_generate)
    return parser


def _download(given: argparse.Namespace) -> int:
    wanted = given.domains or None
    to = given.to
    root = hub.download(wanted, scale=given.scale, to=to, revision=given.revision)
    print(f"the benchmark is in {root}")
    return _check(root, given, wanted)


def _export(given: argparse.Namespace) -> int:
    root = export(load_benchmark("mini", scale=given.scale, domains=given.domains), given.folder)
    print(f"load_benchmark({str(root)!r}) reads it")
    return 0


def _generate(given: argparse.Namespace) -> int:
    root = layout.generate(given.folder, given.domains)
    print(f"load_benchmark({str(root)!r}) reads it")
    return 0


def _check(
    root: str | os.PathLike[str], given: argparse.Namespace, domains: Sequence[str] | None = None
) -> int:
    """Print counts beside the paper's and the integrity report; 1 if an image cannot be used."""
    bench = load_benchmark(root, scale=given.scale, domains=domains)
    counts = compare_counts(bench)
    print(counts.to_string(index=False, na_rep="-"))
    if others := int(counts["remark"].ne("").sum()):
        print(f"{others} of {len(counts)} rows are not as in the paper")
    if given.counts_only:
        return 0
    print("reading every image", flush=True)
    report = bench.report(progress=True)
    if given.report:
        write_text(Path(given.report), report.to_csv(index=False))
    print(f"integrity report: {len(report)} findings" + (":" if len(report) else ""))
    for kind, rows in report.groupby("kind", sort=False):
        first = rows.iloc[0]
        print(f"{len(rows):7,} {kind}, such as {first['where']}: {first['detail']}")
    if given.leave_out:
        _leave_out(bench, report, Path(root))
    return int(report["kind"].isin(GRAVE).any())


def _leave_out(bench: Benchmark, report: pd.DataFrame, root: Path) -> None:
    """Add the images that cannot be used to those that the folder does without."""
    ids = {image for _, _, split in bench.splits() for image in split.ids}
    details = report["detail"][report["kind"].isin(("missing file", "unreadable file"))]
    # A detail is an id, or an id, a colon and a reason; either may hold a colon itself.
    starts = {detail: [m.start() for m in re.finditer(": |$", detail)] for detail in details}
    bad = {d[:end] for d, ends in starts.items() for end in ends if d[:end] in ids}
    if bad:
        place = root / layout.LEFT_OUT
        listed = sorted({*layout.read_left_out(root), *bad})
        write_text(place, json.dumps(listed, indent=1, ensure_ascii=False))
        print(f"{place} names {len(listed)} images that are left out; remove it to have them back")
