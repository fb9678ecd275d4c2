"""Random captions in random containers: "oop" only if all was read and brute force finds nothing.

LBUTILS_FUZZ sets how many containers are written; 60 unless it is set.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import warnings

import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

from lbutils.captions import corpora
from lbutils.captions.survey import canonical, survey

NAMES = ["ant", "fire ant", "yeti", "hill", "zebra", "2", "naïveté"]
WORDS = ["ant", "fire", "hill", "red", "a", "yeti", "x2", "2", "naïveté", "NAIVE", "猫", "zebras"]
GLUE = [
    " ",
    " ",
    " ",
    "-",
    ", ",
    '"',
    ' "',
    "'",
    "\n",
    "\t",
    ";",
    " \r\n",
    "\\",
    '""',
    "|",
    "\u00a0",
]
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
UNREAD = (".arrow", ".feather", ".json", ".txt", ".avro", ".orc", ".pq", "", ".xlsx", ".csv.zip")
PACKINGS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def draw_captions(draw):
    """Up to a dozen captions, nulls and blanks among them."""
    captions = []
    for _ in range(draw.choice([0, 1, 2, 5, 12])):
        words = draw.choices(WORDS, k=draw.randint(0, 6))
        text = draw.choice(["", "", '"', " "])
        text += "".join(word + draw.choice(GLUE) for word in words)
        captions.append(draw.choice([text, text, text.strip(), text.strip(), None]))
    return captions


def occurs(name, captions):
    """Brute force: how many captions have the name's words in a row."""
    own = canonical(name).split()
    number = 0
    for caption in filter(None, captions):
        words = canonical(caption).split()
        number += any(words[k : k + len(own)] == own for k in range(len(words)))
    return number


def random_case(draw, text):
    return draw.choice([text, text, text, text.upper(), text.title()])


def as_parquet(draw, captions, place):
    kinds = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ]
    column = pa.array(captions, pa.string())
    nested = draw.choice(["", "", "", "list", "large", "fixed"])
    if nested == "list":
        column = pa.array([None if text is None else [text, None] for text in captions])
        column = column.cast(pa.list_(pa.string()))
    elif nested == "large":
        column = pa.array([captions], pa.large_list(pa.large_string()))
    elif nested == "fixed":
        column = pa.array([[text] for text in captions], pa.list_(pa.string(), 1))
    else:
        column = column.cast(draw.choice(kinds)) if captions else column
    if draw.random() < 0.1 and not any(captions):
        column = pa.nulls(len(column))
    table = pa.table({"id": range(len(column)), "caption": column})
    if draw.random() < 0.3 and not nested:
        frame = pl.DataFrame(
            {"id": range(len(captions)), "caption": pl.Series(captions, dtype=pl.String)}
        )
        compression = draw.choice(["zstd", "snappy", "lz4", "gzip", "brotli", "uncompressed"])
        frame.write_parquet(
            place, compression=compression, row_group_size=draw.choice([None, 1, 5])
        )
        return
    pq.write_table(
        table,
        place,
        row_group_size=draw.choice([None, 1, 3]),
        compression=draw.choice(["snappy", "gzip", "brotli", "zstd", "lz4", "none"]),
        use_dictionary=draw.choice([True, False]),
        data_page_size=draw.choice([None, 16]),
        data_page_version=draw.choice(["1.0", "2.0"]),
        version=draw.choice(["1.0", "2.4", "2.6"]),
        store_schema=draw.choice([True, False]),
        write_page_checksum=draw.choice([True, False]),
    )


def as_table(draw, captions, tab):
    """CSV or TSV by one of several writers, in one of several encodings."""
    separator = "\t" if tab else ","
    frame = pd.DataFrame({"id": range(len(captions)), "caption": pd.Series(captions, dtype=object)})
    frame = frame if draw.random() < 0.7 else frame[["caption"]]
    # Without quotes a line break cannot be told from a row's end, nor in CSV a quote from a quote.
    lost = "\n\r" if tab else '\n\r"'
    plain = not any(sign in text for text in captions if text for sign in lost)
    writer = draw.choice(["polars", "pandas", "csv", "arrow", "plain" if plain else "csv"])
    if writer == "polars":
        style = draw.choice(["necessary", "always", "non_numeric", "never" if plain else "always"])
        table = pl.DataFrame(
            {name: frame[name].tolist() for name in frame}, schema_overrides={"caption": pl.String}
        )
        end = draw.choice(["\n", "\r\n"])
        text = table.write_csv(
            separator=separator,
            quote_style=style,
            include_bom=draw.random() < 0.2,
            line_terminator=end,
        )
    elif writer == "pandas":
        text = frame.to_csv(sep=separator, index=False, quoting=draw.choice([0, 1, 2]))
    elif writer == "arrow":
        buffer = io.BytesIO()
        style = draw.choice(["needed", "all_valid"])
        options = pa.csv.WriteOptions(delimiter=separator, quoting_style=style)
        columns = {name: frame[name].tolist() for name in frame}
        schema = [(name, pa.string() if name == "caption" else pa.int64()) for name in frame]
        pa.csv.write_csv(pa.table(columns, pa.schema(schema)), buffer, options)
        text = buffer.getvalue().decode()
    elif writer == "csv":
        buffer = io.StringIO()
        quoting = draw.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
        csv.writer(buffer, delimiter=separator, quoting=quoting).writerows(
            [list(frame), *frame.itertuples(index=False)]
        )
        text = buffer.getvalue()
    else:  # no quotes at all, as many programs write TSV
        rows = [list(frame), *frame.itertuples(index=False)]
        rows = [["" if value is None else str(value) for value in row] for row in rows]
        text = "".join(separator.join(row) + "\n" for row in rows)
    encoding = draw.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"])
    return text.encode(encoding, "replace")


def as_lines(draw, captions):
    ascii_only = draw.random() < 0.5
    rows = [{"id": k, "caption": text} for k, text in enumerate(captions)]
    if draw.random() < 0.2:
        rows = [row if row["caption"] is not None else {"id": row["id"]} for row in rows]
    end = draw.choice(["\n", "\r\n", "\n\n"])
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows).encode()


def write_other(draw, captions, place):
    frame = pl.DataFrame({"caption": pl.Series(captions, dtype=pl.String)})
    name = place.name.lower()
    if name.endswith((".arrow", ".feather")):
        frame.write_ipc(place)
    elif name.endswith(".avro"):
        frame.write_avro(place)
    elif name.endswith(".orc"):
        pa.orc.write_table(frame.to_arrow(), place)
    elif name.endswith(".zip"):
        frame.to_pandas().to_csv(place, index=False, compression="zip")
    else:
        place.write_bytes(frame.write_csv().encode())


def write_container(draw, folder, k):
    """Captions, and one file of them, whole or cut short."""
    captions = draw_captions(draw)
    if draw.random() < 0.12:
        write_other(draw, captions, folder / f"{k}{random_case(draw, draw.choice(UNREAD))}")
        return captions
    suffix, packing = draw.choice(SUFFIXES), draw.choice([*PACKINGS, "", ""])
    if suffix == ".parquet":
        place = folder / f"{k}{random_case(draw, suffix)}"
        as_parquet(draw, captions, place)
        content = place.read_bytes()
    else:
        lines = suffix in (".jsonl", ".ndjson")
        content = as_lines(draw, captions) if lines else as_table(draw, captions, suffix == ".tsv")
        content = PACKINGS[packing](content)
        place = folder / f"{k}{random_case(draw, suffix + packing)}"
    # A text that is cut short is a shorter text; what is packed tells that its end is missing.
    if draw.random() < 0.15 and (suffix == ".parquet" or packing):
        content = content[: draw.randint(0, max(len(content) - 1, 0))]
    place.write_bytes(content)
    return captions


def check(found, captions, said):
    """No absence without reading; exact counts where all was read."""
    table = found.table.set_index("name")
    for name in NAMES:
        verdict, number = table.loc[name, "subset"], occurs(name, captions)
        said[verdict] = said.get(verdict, 0) + 1
        if verdict == "oop":
            assert not number and any(map(canonical, filter(None, captions)))
            assert found.complete
        if found.complete:
            assert table.loc[name, "captions"] == number, name
        if verdict == "ip" and not found.complete:
            assert number >= table.loc[name, "captions"]


def test_no_absence_without_reading(tmp_path):
    wanted = int(os.environ.get("LBUTILS_FUZZ", "60"))
    draw, said, written, seed = random.Random(), {}, 0, 0
    while written < wanted:
        draw.seed(seed)
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        number = draw.choice([1, 1, 2, 3])
        captions = [text for k in range(number) for text in write_container(draw, folder, k)]
        written += number
        sources = draw.choice([folder, f"{folder}/*", corpora.Sources([folder, f"{folder}/*"])])
        if draw.random() < 0.2:
            store = fsspec.filesystem("memory")
            store.put(f"{folder}/", f"/fuzz/{seed}/", recursive=True)
            sources = f"memory://fuzz/{seed}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = survey(NAMES, sources)
        try:
            check(found, captions, said)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {captions} {found.files.to_dict()}") from error
        seed += 1
    print(f"{written} containers, verdicts: {said}")
    assert min(said.get(verdict, 0) for verdict in ("ip", "oop", "undecided")) > 0.1 * sum(
        said.values()
    )
