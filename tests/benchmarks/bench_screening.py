"""Screening 998 names against 20 million captions, ours beside others: ``make bench``.

The captions are generated: words by Zipf's law, 67 bytes on average, title case and punctuation as
in alternative texts, an apostrophe in 7 % of them and a character beyond ASCII in 6 %. Of the names
324 are planted in 4 % of the captions, 274 consist of words that occur, 400 have one that does not.

Every method runs in a process of its own, which says how long it took, how much memory it had at
its peak and, where it counts at all, what it counted: methods that count must agree. Slow ones
read the first captions only; how many is printed, and ours is timed on the same captions, as what
it does once (tables, an index) weighs more where there are few.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lbutils.captions import corpora
from lbutils.captions.survey import canonical, screen, survey

ROOT = Path(__file__).resolve().parents[2]
# Kept between runs, as making the captions takes some minutes.
FOLDER = Path(os.environ.get("LBUTILS_BENCH_FOLDER", ROOT / "runs" / "bench"))
CAPTIONS = int(os.environ.get("LBUTILS_BENCH_CAPTIONS", "20000000"))
PER_FILE, CHUNK, CORES = 1_000_000, 125_000, 2
WORDS, PLACES, MEAN_WORDS = 60_000, 26, 9.05
SYLLABLES = [
    onset + rime
    for onset in "b c d f g h j k l m n p r s t v w z st tr pl ch sh".split()
    for rime in "a e i o u ai ea ou er an in".split()
]
GLUE = pl.Series([" "] * 46 + [", ", ", ", " - ", " | ", "-", ". "])


# --- captions and names -----------------------------------------------------------------------


def make_words(count, draw, taken=()):
    """Distinct words, the short ones first as in languages."""
    words = dict.fromkeys(taken)
    while (made := len(words) - len(taken)) < count:
        mean = 1 + min(2.2, 0.18 * np.log2(made + 2))
        size = 1 if made <= 30 and not taken else 1 + max(0, draw.poisson(mean - 1))
        words["".join(draw.choice(SYLLABLES, size))[:14]] = None
    return list(words)[len(taken) :]


def vocabulary(seed=0):
    """Words in the order of their rank, their cumulative shares, IP names and OOP names."""
    draw = np.random.default_rng(seed)
    words = make_words(WORDS, draw)
    new = make_words(400, draw, words)
    shares = np.cumsum(1 / np.arange(1, WORDS + 1))
    shares /= shares[-1]

    def common():
        return words[int(np.searchsorted(shares, draw.random()))]

    def any_word():
        return words[int(draw.integers(50, WORDS))]

    sizes = draw.choice([0, 1, 2], 324, p=[0.45, 0.45, 0.1])
    ip = [" ".join([any_word(), *(common() for _ in range(size))]) for size in sizes]
    sizes = draw.choice([0, 1, 2], 400, p=[0.5, 0.4, 0.1])
    oop = [" ".join([w, *(common() for _ in range(s))]) for w, s in zip(new, sizes, strict=True)]
    sizes = draw.choice([2, 3], 274, p=[0.7, 0.3])
    oop += [" ".join(any_word() for _ in range(size)) for size in sizes]
    return words, shares, ip, oop


def make_captions(count, words, shares, ip, seed):
    """A Series of captions."""
    draw = np.random.default_rng(seed)
    table = pl.Series(words)
    forms = [table, table.str.to_titlecase(), table + "'s", table + "é", "“" + table + "”"]
    forms = pl.concat(forms)
    kinds = np.cumsum([0.58, 0.405, 0.008, 0.004])
    odds = np.cumsum(1 / np.arange(1, len(ip) + 1))
    lengths = np.clip(draw.poisson(MEAN_WORDS, count), 2, PLACES)
    columns = []
    for place in range(PLACES):
        live = np.flatnonzero(lengths > place)
        word = np.searchsorted(shares, draw.random(live.size)).clip(0, len(words) - 1)
        kind = np.searchsorted(kinds, draw.random(live.size))
        chosen = np.full(count, -1)
        chosen[live] = word + kind * len(words)
        column = forms.gather(pl.Series(chosen).replace(-1, None))
        if place == 1:
            planted = pl.Series(draw.random(count) < 0.04)
            name = np.searchsorted(odds / odds[-1], draw.random(count)).clip(0, len(ip) - 1)
            names = pl.Series(ip).gather(name)
            column = pl.select(pl.when(planted).then(names).otherwise(column)).to_series()
        glue = GLUE.gather(draw.integers(0, len(GLUE), count)) if place else ""
        columns.append((glue + column).alias(str(place)))
    return pl.DataFrame(columns).select(pl.concat_str(pl.all(), ignore_nulls=True)).to_series()


def make_corpus(count=CAPTIONS):
    """The Parquet files of so many captions, made where missing, and the names."""
    words, shares, ip, oop = vocabulary()
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = FOLDER / "names.json"
    names.write_text(json.dumps([*ip, *oop]), encoding="utf-8")
    files = []
    for k in range(-(-count // PER_FILE)):
        file = FOLDER / f"captions-{k:05d}.parquet"
        files.append(file)
        if file.exists():
            continue
        temporary = file.with_suffix(".tmp")
        schema = pa.schema([("caption", pa.string())])
        with pq.ParquetWriter(temporary, schema) as writer:
            for part in range(PER_FILE // CHUNK):
                texts = make_captions(CHUNK, words, shares, ip, [k, part])
                writer.write_table(pa.table({"caption": texts.to_arrow().cast(pa.string())}))
        temporary.replace(file)
    return files, names


# --- methods: names, files and number of captions to the number of captions of each name -------


def first_captions(files, count):
    """The first captions of the files, in batches as long as ours."""
    left = count
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(16_384, columns=["caption"]):
            if left <= 0:
                return
            batch = batch.column(0).slice(0, left)
            left -= len(batch)
            yield pl.Series(batch)


def ours(names, files, count):
    return screen(names, files, workers=CORES)["captions"]


def ours_with_evidence(names, files, count):
    levels = ["inflections", "diacritics"]
    return survey(names, files, workers=CORES, levels=levels, examples=10).table["captions"]


def plain_python(names, files, count):
    padded = [f" {canonical(name)} " for name in names]
    counts = Counter()
    for batch in first_captions(files, count):
        for caption in batch:
            text = f" {canonical(caption)} "
            counts.update(name for name in padded if name in text)
    return [counts[name] for name in padded]


def pyahocorasick(names, files, count):
    import ahocorasick

    padded = [f" {canonical(name)} " for name in names]
    automaton = ahocorasick.Automaton()
    for k, name in enumerate(padded):
        automaton.add_word(name, k)
    automaton.make_automaton()
    counts = Counter()
    for batch in first_captions(files, count):
        for caption in batch:
            text = f" {canonical(caption)} "
            counts.update({k for _, k in automaton.iter(text)})
    return [counts[k] for k in range(len(names))]


def polars_extract_many(names, files, count):
    """Exact but for characters beyond ASCII, which it takes for punctuation."""
    padded = [f" {canonical(name)} " for name in names]
    counts = Counter()
    for batch in first_captions(files, count):
        text = batch.str.to_lowercase().str.replace_all("['`’]", "")
        text = " " + text.str.replace_all("[^a-z0-9é]+", " ") + " "
        found = text.str.extract_many(padded, overlapping=True).list.unique().explode()
        counts.update(dict(found.drop_nulls().value_counts().iter_rows()))
    return [counts[name] for name in padded]


def polars_contains_any(names, files, count):
    """Whether any name is a substring: no boundaries, no counts."""
    return sum(
        int(batch.str.contains_any(names, ascii_case_insensitive=True).sum())
        for batch in first_captions(files, count)
    )


def duckdb_regex(names, files, count):
    """Whether any name occurs at word boundaries: no counts."""
    import duckdb

    pattern = r"\b(" + "|".join(name.replace(" ", "[^a-z0-9]+") for name in names) + r")\b"
    duckdb.execute(f"SET threads = {CORES}")
    query = "SELECT count(*) FROM (SELECT caption FROM read_parquet(?) LIMIT ?) "
    query += "WHERE regexp_matches(lower(caption), ?)"
    return duckdb.execute(query, [[str(f) for f in files], count, pattern]).fetchone()[0]


def ripgrep(names, files, count):
    """Lines that hold any name as words, its words one space apart: no counts."""
    texts, patterns = FOLDER / "first.txt", FOLDER / "names.txt"
    with texts.open("w", encoding="utf-8") as file:
        for batch in first_captions(files, count):
            file.writelines(caption + "\n" for caption in batch)
    patterns.write_text("\n".join(names), encoding="utf-8")
    start = time.perf_counter()
    command = ["rg", "-F", "-w", "-i", "-c", "-j", str(CORES), "-f", str(patterns), str(texts)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(found.stdout), time.perf_counter() - start


# Captions that each one reads, at most; 0 for all. What it needs installed.
METHODS = {
    "ours": (ours, 0, "lbutils"),
    "ours_with_evidence": (ours_with_evidence, 4_000_000, "lbutils"),
    "polars_contains_any": (polars_contains_any, 2_000_000, "polars"),
    "polars_extract_many": (polars_extract_many, 1_000_000, "polars"),
    "pyahocorasick": (pyahocorasick, 250_000, "ahocorasick"),
    "duckdb_regex": (duckdb_regex, 50_000, "duckdb"),
    "ripgrep": (ripgrep, 1_000_000, "rg"),
    "plain_python": (plain_python, 50_000, "lbutils"),
}


def peak_megabytes():
    """Peak of resident memory of this process; as Linux tells it, since ours began."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_here(method, names, files, count):
    """Print as JSON what one method did."""
    wall, processor = time.perf_counter(), time.process_time()
    found = METHODS[method][0](names, files, count)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    if isinstance(found, tuple):
        found, wall = found
    counts = None if isinstance(found, int) else [int(value) for value in found]
    said = {"seconds": wall, "processor": processor, "megabytes": peak_megabytes()}
    print(json.dumps({**said, "counts": counts}))


def run_apart(method, files, count):
    """What one method did in a process of its own."""
    arguments = [method, str(count), *map(str, files)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(CORES), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(found.stdout.splitlines()[-1])


def installed(needed):
    return shutil.which(needed) if needed == "rg" else find_spec(needed)


# --- the benchmark ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    return make_corpus()


def print_line(capsys, *words):
    with capsys.disabled():
        print(*words)


def test_methods_side_by_side(corpus, capsys, benchmark):
    files, _ = corpus
    found, sizes = {}, {}
    benchmark.extra_info["captions"] = CAPTIONS
    for method, (_, most, needed) in METHODS.items():
        if not installed(needed):
            print_line(capsys, f"{method:22} not installed")
            continue
        count = min(most or CAPTIONS, CAPTIONS)
        some = files[: -(-count // PER_FILE)]
        if method == "ours":
            found[method] = benchmark.pedantic(
                run_apart, (method, some, count), rounds=1, iterations=1
            )
        else:
            found[method] = run_apart(method, some, count)
        sizes[method] = count
    rate = {method: sizes[method] / said["seconds"] for method, said in found.items()}
    same = {count: run_apart("ours", files[: -(-count // PER_FILE)], count)
            for count in set(sizes.values()) - {CAPTIONS}} | {CAPTIONS: found["ours"]}  # fmt: skip
    print_line(
        capsys,
        f"\n{'method':22}{'captions':>12}{'million/s':>11}{'a core':>9}{'MB':>7}{'ours is':>9}",
    )
    for method, said in found.items():
        times = said["seconds"] / same[sizes[method]]["seconds"]
        # By processor time, which other programs on the machine disturb less.
        core = sizes[method] / said["processor"] / 1e6
        line = f"{method:22}{sizes[method]:12,}{rate[method] / 1e6:11.3f}{core:9.3f}"
        print_line(capsys, f"{line}{said['megabytes']:7.0f}{times:8.1f}x")
    for scale, layout in {"LAION-400M": "laion400m", "LAION-5B": "laion5B"}.items():
        total = corpora.LAYOUTS[layout].captions
        hours = total / rate["ours"] / 3600
        line = f"{scale}: {total / 1e6:,.0f} million captions / {rate['ours'] / 1e6:.2f} million/s"
        print_line(capsys, f"{line} = {hours:.2f} hours on {CORES} cores")
    if CAPTIONS > 2 * PER_FILE:
        small = run_apart("ours", files[:2], 2 * PER_FILE)
        peaks = small["megabytes"], found["ours"]["megabytes"]
        print_line(capsys, f"memory at 2 million {peaks[0]:.0f} MB, at all {peaks[1]:.0f} MB")
        assert max(peaks) <= 1000
    # Those that count must agree with ours on the captions that both have read.
    for method in ("plain_python", "pyahocorasick", "polars_extract_many"):
        if method in found:
            texts = pl.concat(first_captions(files, sizes[method]))
            names = json.loads(corpus[1].read_text(encoding="utf-8"))
            assert screen(names, texts)["captions"].tolist() == found[method]["counts"]


def test_two_dask_workers(corpus, capsys):
    """Scaling efficiency: time of one worker over twice the time of two."""
    distributed = pytest.importorskip("distributed")
    files, names = corpus
    names, files = json.loads(names.read_text(encoding="utf-8")), files[:8]
    seconds, tables = {}, {}
    for workers in (1, 2):
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            screen(names, files[0], scheduler=client)  # the workers import what they need
            start = time.perf_counter()
            tables[workers] = screen(names, files, scheduler=client)
            seconds[workers] = time.perf_counter() - start
    efficiency = seconds[1] / (2 * seconds[2])
    line = f"Dask: 1 worker {seconds[1]:.1f} s, 2 workers {seconds[2]:.1f} s"
    print_line(capsys, f"\n{line}, efficiency {efficiency:.0%} on {os.cpu_count()} cores")
    assert tables[1].equals(tables[2])


if __name__ == "__main__":
    method, count, *files = sys.argv[1:]
    if method == "make":
        made, _ = make_corpus(int(count))
        print(len(made), hashlib.sha256(made[0].read_bytes()).hexdigest())
    else:
        known = json.loads((FOLDER / "names.json").read_text(encoding="utf-8"))
        run_here(method, known, [Path(file) for file in files], int(count))
