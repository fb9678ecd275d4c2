"""Nothing is called absent from captions that were not read: files, formats and their faults."""

import bz2
import csv
import errno
import glob
import gzip
import json
import lzma
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lbutils.captions import corpora, screening, tables
from lbutils.captions import survey as vocabulary
from lbutils.captions.certificate import certify, to_table
from lbutils.captions.survey import mentions, screen, survey

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["ant", "fire ant", "yeti"]
ZSTD = lambda content: pa.compress(content, "zstd", asbytes=True)  # noqa: E731
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": ZSTD}


def parquet(path, captions, kind=None, column="caption", **options):
    array = captions if isinstance(captions, pa.Array) else pa.array(captions, kind or pa.string())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: array}), path, **options)
    return path


def verdicts(found):
    """Verdict of every name, and the same in the certificate."""
    table = found.table.set_index("name")["subset"].to_dict()
    assert to_table(certify(found, corpus="c")).set_index("name")["verdict"].to_dict() == table
    return table


def undecided(found):
    return {name for name, verdict in verdicts(found).items() if verdict == "undecided"}


@pytest.fixture
def folder(tmp_path):
    """A folder with a good file: an ant, no fire ant, no yeti."""
    parquet(tmp_path / "corpus" / "a.parquet", ["an ant", "a bee"])
    return tmp_path / "corpus"


# --- paths that are taken for captions ------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [list, tuple, set, iter, pd.Series, pl.Series, pa.array, lambda x: pa.chunked_array([x])],
)
def test_paths_are_not_screened_as_captions(folder, kind):
    (folder / "notes.txt").write_text("x")
    paths = glob.glob(f"{folder}/*")  # noqa: PTH207 (strings are the point)
    assert len(paths) == 2
    for some in (paths, [*paths, ""], ["s3://b/c/", "s3://b/d/"], ["x.CSV.gz", "gone.parquet"]):
        with pytest.raises(ValueError, match=r"are paths.*captions.corpora.Sources"):
            screen(NAMES, kind(some))
        with pytest.raises(ValueError, match=r"are paths.*captions.corpora.Sources"):
            mentions(NAMES, kind(some))
    assert screen(NAMES, kind([*paths, "an ant"]))["captions"].tolist() == [1, 0, 0]


def test_what_is_no_column_of_captions_is_refused(folder):
    with pytest.raises(TypeError, match="one column"):
        screen(NAMES, {"caption": ["an ant"]})
    for paths in (folder.iterdir(), pd.Series(list(folder.iterdir())), [folder, str(folder)]):
        with pytest.raises(TypeError, match="list of paths"):
            screen(NAMES, paths)
    assert screen(NAMES, list(folder.iterdir()))["captions"].tolist() == [1, 0, 0]
    for nothing in (corpora.Sources([]), f"{folder}/{{3..1}}.parquet"):
        with pytest.raises(ValueError, match="empty"):
            survey(NAMES, nothing)


# --- which files are read ---------------------------------------------------------------------


# A packing is taken off before the format matters, so that not all pairs are needed.
@pytest.mark.parametrize(
    ("suffix", "packing"),
    [
        *((".csv", packing) for packing in PACKED),
        *((".TSV", ""), (".JsonL", ".gz"), (".ndjson", ""), (".TSV", ".zst")),
    ],
)
def test_formats_and_compressions_whatever_the_case(folder, suffix, packing):
    captions = ["a yeti, too", 'the "fire', 'ant" x', "fire\nant"]
    rows = {"id": [1, 2, 3, 4], "caption": captions}
    if suffix.lower() in (".csv", ".tsv"):
        text = pd.DataFrame(rows).to_csv(sep="\t" if suffix == ".TSV" else ",", index=False)
    else:
        text = pd.DataFrame(rows).to_json(orient="records", lines=True)
    for packed in (packing, packing.upper()):
        place = folder / f"b{suffix}{packed}"
        place.write_bytes(PACKED[packing](text.encode()))
        for source in (folder, f"{folder}/*", corpora.Sources([f"{folder}/a*", str(place)])):
            found = survey(NAMES, source)
            assert found.complete and found.files["captions"].tolist() == [2, 4], found.doubts
            assert found.table["captions"].tolist() == [3, 1, 1]
        content = place.read_bytes()
        for broken in (content[: len(content) // 2], b"x" + content, b""):
            if packing:
                place.write_bytes(broken)
                found = survey(NAMES, folder)
                assert place.name in found.doubts[0] and undecided(found) == {"fire ant", "yeti"}
        place.unlink()


def test_what_is_not_read_leaves_names_undecided(folder):
    unread = (
        "b.txt b.json b.arrow b.feather b.avro b.xlsx b.zip b.csv.zip b.csv.lz4 b.parquet.gz b.pq "
        "b part-00000 b.orc b.tar .b.parquet .hidden/c.csv _temporary/0/d.parquet readme.d/e.txt "
        "b.parquet.part"
    ).split()
    for name in unread:
        parquet(folder / name, ["a yeti"])
    for source in (folder, f"{folder}/*", f"{folder}/**"):
        found = survey(NAMES, source)
        assert undecided(found) == {"fire ant", "yeti"} and found.table["captions"][0] == 1
        assert found.files["captions"].sum() == 2  # of the one good file
        for name in unread:
            assert any(f"{Path(name).name} " in f"{doubt} " for doubt in found.doubts), name
        with pytest.raises(ValueError, match="not read"):
            screen(NAMES, source)


def test_what_is_plainly_no_captions_is_named_and_passed_over(folder):
    names = (
        "README README.md readme.txt LICENSE _SUCCESS ._a.parquet .a.parquet.crc .DS_Store a.png "
        "_metadata .git/HEAD SHA.sha256"
    ).split()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for source in (folder, f"{folder}/*"):
        found = survey(NAMES, source)
        assert found.complete and verdicts(found)["yeti"] == "oop"
        passed = sorted(Path(file).name for file in found.passed_over["file"])
        assert passed == sorted(Path(name).name for name in names)
        scope = certify(found, corpus="c")["scales"]["c"]
        assert scope["passed_over"] == found.passed_over.to_dict("records")
        with pytest.warns(UserWarning, match="passed over"):
            screen(NAMES, source)
    for pattern in (*(f"{name}*" for name in names if "/" not in name), ".g*/H*"):
        with pytest.raises(FileNotFoundError, match="no file of captions"):
            survey(NAMES, f"{folder}/{pattern}")
    # Named by itself it is meant.
    for name in names:
        found = survey(NAMES, corpora.Sources([f"{folder}/a.parquet", str(folder / name)]))
        assert not found.complete, name


def test_folders_and_patterns_that_hold_nothing(tmp_path):
    (tmp_path / "x.parquet").mkdir()
    for source in (tmp_path, tmp_path / "x.parquet", f"{tmp_path}/*.csv", tmp_path / "no.csv"):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            survey(NAMES, source)
    parquet(tmp_path / "x.parquet" / "part-0.snappy.parquet", ["an ant"])
    for source in (tmp_path, tmp_path / "x.parquet", f"{tmp_path}/*.parquet"):
        assert survey(NAMES, source).table["captions"].tolist() == [1, 0, 0]


def test_links_are_followed_and_broken_ones_named(folder, tmp_path):
    parquet(tmp_path / "elsewhere" / "y.parquet", ["a yeti"])
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(folder)
    assert survey(NAMES, folder).table["captions"].tolist() == [1, 0, 1]
    (folder / "b.parquet").symlink_to(tmp_path / "gone.parquet")
    os.mkfifo(folder / "p.csv")
    found = survey(NAMES, folder)
    assert len(found.doubts) == 2 and "broken link" in found.doubts[0]


def test_a_folder_that_cannot_be_listed_leaves_names_undecided(folder, monkeypatch):
    parquet(folder / "sub" / "y.parquet", ["a yeti"])
    system = type(fsspec.filesystem("file"))
    listing = system.ls

    def ls(self, path, **options):
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "not allowed", path)
        return listing(self, path, **options)

    monkeypatch.setattr(system, "ls", ls)
    found = survey(NAMES, folder)
    assert undecided(found) == {"fire ant", "yeti"} and "cannot be listed" in found.doubts[0]


def test_the_same_file_is_counted_once(folder, monkeypatch):
    (folder / "b.parquet").symlink_to(folder / "a.parquet")
    os.link(folder / "a.parquet", folder / "c.parquet")
    monkeypatch.chdir(folder.parent)
    some = [str(folder), "corpus/a.parquet", "./corpus/../corpus/*.parquet", f"file://{folder}"]
    for source in (folder, corpora.Sources(some), corpora.Sources(reversed(some))):
        found = survey(NAMES, source)
        assert found.table["captions"].tolist() == [1, 0, 0] and found.complete
        assert len(found.files) == 1 and found.passed_over["reason"].str.contains("same").all()
        assert mentions(NAMES, source)["caption"].tolist() == [0]
    parquet(folder / "d.parquet", ["an ant"])  # another file, whatever is in it
    assert survey(NAMES, folder).table["captions"][0] == 2
    # Stores of content, such as the hub's cache, keep files under names without a suffix.
    (folder / "d.parquet").rename(folder / "0d")
    (folder / "d.parquet").symlink_to(folder / "0d")
    found = survey(NAMES, folder)
    assert found.table["captions"][0] == 2 and found.complete


def test_members_of_archives_with_equal_names_are_different_files(tmp_path):
    for name, caption in (("x", "an ant"), ("y", "a yeti")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("in/a.csv", f"caption\n{caption}\n")
    for member in ("in/a.csv", "in/*.csv", "in"):
        sources = [f"zip://{member}::{tmp_path}/{name}.zip" for name in "xy"]
        found = survey(NAMES, corpora.Sources(sources))
        assert found.table["captions"].tolist() == [1, 0, 1], found.doubts
    (tmp_path / "a.csv").write_text("caption\nan ant\n")
    found = survey(NAMES, f"simplecache::file://{tmp_path}/*.csv")
    assert found.table["captions"].tolist() == [1, 0, 0] and found.complete


# --- files without captions -----------------------------------------------------------------------


EMPTY = {
    "header.csv": b"id,caption\n",
    "blank.csv": b"id,caption\n1,\n2,  \n",
    "signs.tsv": b"caption\n...\n",
    "nulls.jsonl": b'{"caption": null}\n',
}


@pytest.mark.parametrize("name", [*EMPTY, "rows", "null", "nothing", "lists", "spaces"])
def test_files_without_a_caption_prove_nothing(tmp_path, name, folder):
    place = tmp_path / "empty" / (name if name in EMPTY else f"{name}.parquet")
    arrays = {
        "rows": pa.array([], pa.string()),
        "null": pa.nulls(3),
        "nothing": pa.array([None, None], pa.string()),
        "lists": pa.array([[], None], pa.list_(pa.string())),
        "spaces": pa.array([" ", ""]),
    }
    if name in EMPTY:
        place.parent.mkdir()
        place.write_bytes(EMPTY[name])
    else:
        parquet(place, arrays[name])
    for source in (place, place.parent, f"{place.parent}/*", corpora.Sources([folder, place])):
        found = survey(["yeti"], source)
        assert undecided(found) == {"yeti"} and "no caption was read" in found.doubts[0]
        assert not found.table["compositional"].item()
        assert screen(["yeti"], source)["subset"].item() == "undecided"
        with pytest.raises(ValueError, match="no caption was read"):
            mentions(["yeti"], source)
        with pytest.raises(ValueError, match="no caption was read"):
            candidates = pd.DataFrame({"domain": ["d"], "name": ["yeti"]})
            screening.choose_classes(candidates, source, oop=1, ip=0)
    # Beside captions of the same source it is a part without any, as writers leave them.
    place.rename(folder / place.name)
    assert verdicts(survey(["yeti"], folder))["yeti"] == "oop"


@pytest.mark.parametrize("captions", [[], [None], ["", " "], iter(()), pa.nulls(2), pd.Series([])])
def test_captions_that_are_none_prove_nothing(captions):
    assert undecided(survey(["yeti"], captions)) == {"yeti"}


# --- quotes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ('id\tcaption\n1\t"an ant" and more\n2\t"fire\n3\tant" yeti\n4\tx\n', [2, 0, 1]),
        ('caption\tid\n"fire\t1\nant, yeti\t2\nx\t3\n', [1, 0, 1]),
        ('caption\tid\n"an ""ant"""\t1\n"a\nyeti"\t2\n"a\tfire ant"\t3\n', [2, 1, 1]),
        ('caption\n5" ant\nfire 6"\n', [1, 0, 0]),
        ("caption\r\nan ant\r\n\r\nyeti\r\n", [1, 0, 1]),
    ],
)
def test_quotes_of_tab_separated_files_enclose_fields_or_are_letters(tmp_path, text, counts):
    place = tmp_path / "a.tsv"
    place.write_text(text, newline="")
    found = survey(NAMES, place)
    assert found.table["captions"].tolist() == counts and found.complete, found.doubts


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.tsv", 'title\tcaption\n"one\tan ant\ntwo"\tfire\nthree\tant\n', "either may be meant"),
        ("a.csv", 'id,caption\n1,"an ant, x\n2,yeti\n3,y\n', "end of data"),
        ("a.csv", 'id,caption\n1,"the \\"fire\\" ant, x"\n', "expected after"),
        ("a.csv", "id,caption\n1,an ant, fire\n", "3 fields"),
        ("a.csv", "id,caption\n1\n", "1 fields"),
        ("a.csv", "caption,id,caption\nant,1,yeti\n", "more than one column"),
        ("a.jsonl", '{"caption": "x", "caption": "yeti"}\n', "same key twice"),
        ("a.jsonl", '["yeti"]\n', "not an object"),
        ("a.jsonl", '{"caption": {"en": "yeti"}}\n', "struct"),
        ("a.jsonl", '{"caption": 1}\n', "int64"),
    ],
)
def test_tables_that_can_be_misread_are_not_read(folder, name, text, reason):
    (folder / name).write_text(text)
    found = survey(NAMES, folder)
    assert name in found.doubts[0] and reason in found.doubts[0]
    assert found.table["captions"].tolist() == [1, 0, 0]
    assert undecided(found) == {"fire ant", "yeti"}


# --- one bad file -----------------------------------------------------------------------------


def latin(text):
    return text.encode("latin-1")


BAD = {
    "utf16.csv": "caption\nyeti\n".encode("utf-16"),
    "header.csv": latin("é,caption\n1,yeti\n"),
    "body.csv": latin("caption\ncafé\n"),
    "plain.csv.gz": b"caption\nyeti\n",
    "plain.csv.zst": b"caption\nyeti\n",
    "empty.csv": b"",
    "empty.tsv.gz": gzip.compress(b""),
    "empty.jsonl": b"\n",
    "empty.parquet": b"",
    "text.parquet": b"caption\nyeti\n",
    "other.csv": b"text\nyeti\n",
    "case.csv": b"Caption\nyeti\n",
}


@pytest.mark.skipif(os.name == "nt", reason="there no name has a colon")
def test_a_name_with_colons_is_no_chain_of_places(folder, tmp_path):
    """fsspec would read a.csv in its place, which is passed over as read already."""
    (folder / "b.csv").write_text("caption\nan ant\n")
    (folder / "b.csv::c.csv").write_text("caption\na yeti\n")
    for source in (folder, f"{folder}/*", corpora.Sources(map(str, folder.iterdir()))):
        found = survey(NAMES, source, state=tmp_path / "::state")
        assert found.complete and found.table["captions"].tolist() == [2, 0, 1]
    assert len(list((tmp_path / "::state").iterdir())) == 3
    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/colons/", recursive=True)
    found = survey(NAMES, "memory://colons")
    assert "b.csv::c.csv has :: in its name" in found.doubts[0] and len(found.doubts) == 1
    assert undecided(found) == {"fire ant", "yeti"}


def test_files_of_one_number_are_not_one_file(folder, monkeypatch):
    (folder / "b.csv").write_text("caption\na yeti\n")
    stat = Path.stat

    def numbered(path, **options):
        found = stat(path, **options)
        return os.stat_result((*found[:1], 7, 7, *found[3:]))

    monkeypatch.setattr(Path, "stat", numbered)
    assert survey(NAMES, folder).table["captions"].tolist() == [1, 0, 1]


ROWS = ["an ant", 'a "big" ant, too', "an ant"]
TEXTS = {
    ".csv": 'id,caption\n1,an ant\n2,"a ""big""\nant"\n3,"an ant"\n',
    ".tsv": 'id\tcaption\n1\tan ant\n2\ta "big" ant, too\n3\tan ant\n',
    ".jsonl": "".join(json.dumps({"caption": text}) + "\n" for text in ROWS),
}


@pytest.mark.parametrize(
    ("suffix", "packing"),
    [*((suffix, "") for suffix in TEXTS), *((".csv", packing) for packing in PACKED if packing)],
)
def test_a_file_that_was_cut_short_is_noticed(tmp_path, suffix, packing):
    """But for texts that are cut at a line's end, which are shorter texts; see `certificate`."""
    content = PACKED[packing](TEXTS[suffix].encode())
    place = tmp_path / f"a{suffix}{packing}"
    whole = []
    last = len(content) + 1
    for size in (*range(0, last - 12, 5 if packing else 1), *range(last - 12, last)):
        place.write_bytes(content[:size])
        found = survey(["yeti"], place)
        if found.complete:
            whole.append(size)
        assert found.complete == (found.table["subset"].item() == "oop")
    ends = [end for end in range(1, len(content) + 1) if content[end - 1] == 10]
    ends = [end for end in ends if not content[:end].endswith(b'""\n')]  # within a caption
    if packing:
        ends = []
    elif suffix == ".jsonl":
        ends = sorted([*ends, *(end - 1 for end in ends)])
    else:
        ends = ends[1:]  # the first line is no caption
    assert whole == (ends or [len(content)])


@pytest.mark.parametrize("packing", [packing for packing in PACKED if packing])
def test_streams_in_a_row_are_all_read_or_none(folder, packing):
    pack = PACKED[packing]
    first, second = pack(b"caption\nan ant\n"), pack(b"a yeti\n")
    place = folder / f"b.csv{packing}"
    place.write_bytes(first + second)
    assert survey(NAMES, folder).table["captions"].tolist() == [2, 0, 1]
    for rest in (second[:-1], b"\1" + second[1:], second[:5], b"and more"):
        place.write_bytes(first + rest)
        found = survey(NAMES, folder)
        assert place.name in found.doubts[0] and undecided(found) == {"fire ant", "yeti"}
    padded = first + bytes(8) + second + bytes(4)
    place.write_bytes(padded)
    assert packing != ".xz" or survey(NAMES, folder).table["captions"].tolist() == [2, 0, 1]


def test_a_parquet_file_that_was_cut_short_is_noticed(tmp_path):
    content = parquet(tmp_path / "a.parquet", ROWS).read_bytes()
    for size in range(0, len(content), 17):
        (tmp_path / "a.parquet").write_bytes(content[:size])
        assert not survey(NAMES, tmp_path).complete


def test_a_text_without_a_last_line_break_is_counted_and_doubted(folder, capsys):
    (folder / "b.csv").write_text("caption\nan ant\na fire")
    found = survey(NAMES, folder)
    assert found.table["captions"].tolist() == [2, 0, 0]
    assert "b.csv has no line break at its end" in found.doubts[0] and len(found.doubts) == 1
    assert undecided(found) == {"fire ant", "yeti"}
    (folder / "b.csv").write_text("caption\ran ant\ra fire\r")
    assert survey(NAMES, folder).complete


def test_a_file_of_one_long_line_is_refused_in_a_short_one(folder):
    for text in ("a" * 5_000_000, "a?" * 500_000, "http://" * 100_000):
        (folder / "b.csv").write_text(text + "\n")
        begun = time.monotonic()
        (doubt,) = survey(NAMES, folder).doubts
        assert "b.csv" in doubt and len(doubt) < 1000
        assert time.monotonic() - begun < 100


def test_objects_that_call_their_captions_otherwise_are_not_read_as_empty(folder):
    rows = [*['{"caption": "an ant"}', '{"id": 1}'] * 500, '{"%s": "yeti"}']
    for name in ("Caption", "TEXT", "caption "):
        (folder / "b.jsonl").write_text("\n".join(rows) % name)
        found = survey(NAMES, folder)
        assert f"an object has {name!r} where others have 'caption'" in found.doubts[0]
        assert undecided(found) == {"fire ant", "yeti"}
    (folder / "b.jsonl").write_text("\n".join(rows[:-1]))
    assert survey(NAMES, folder).complete  # a key that lacks is an absent caption


def test_two_columns_that_may_hold_the_captions(folder):
    both = pl.DataFrame({"caption": [None, "an ant"], "TEXT": ["yeti", "yeti"]})
    both.write_parquet(folder / "b.parquet")
    found = survey(NAMES, folder)
    assert "columns caption and TEXT: say which" in found.doubts[0]
    assert undecided(found) == {"fire ant", "yeti"}
    for table in (both, both.to_arrow()):
        with pytest.raises(ValueError, match="say which"):
            survey(NAMES, table)
        assert survey(["yeti"], table, column="TEXT").table["captions"].item() == 2
    assert survey(["yeti"], folder / "b.parquet", column="TEXT").complete


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_file_whose_name_is_in_no_encoding(folder, tmp_path, capsys):
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.csv")).write_text("caption\nan ant\n")
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.md")).write_text("")
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.bin")).write_text("")
    (tmp_path / "names.txt").write_text("ant\nyeti\n")
    out = tmp_path / "c.json"
    arguments = [str(tmp_path / "names.txt"), str(folder), "--quiet", "--out", str(out)]
    assert screening.main(arguments) == 1
    scope = json.loads(out.read_text(encoding="utf-8"))["scales"]["all"]
    assert scope["captions"] == 3 and "caf\\udce9.csv" in [file["file"] for file in scope["files"]]
    assert "caf\\udce9.bin" in scope["doubts"][0]
    assert "caf\\udce9.md" in scope["passed_over"][0]["file"]


def test_files_that_cannot_be_read_are_named_and_the_others_are_counted(
    folder, monkeypatch, capsys
):
    arrays = {
        "ints": pa.array([1, 2]),
        "struct": pa.array([{"en": "yeti"}]),
        "map": pa.array([[("en", "yeti")]], pa.map_(pa.string(), pa.string())),
        "binary": pa.array([b"yeti"]),
        "long": pa.array(["yeti " * 7000]),
        "bytes": pa.array([b"caf\xe9 yeti"]).view(pa.string()),
    }
    monkeypatch.setattr(tables, "BATCH_BYTES", 30_000)
    monkeypatch.setattr(corpora, "BATCH_BYTES", 30_000)
    bad = [*BAD, *(f"{name}.parquet" for name in ("twice", *arrays))]
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    for name, column in arrays.items():
        parquet(folder / f"{name}.parquet", column)
    both = pa.Table.from_arrays([pa.array(["x"]), pa.array(["yeti"])], ["caption"] * 2)
    pq.write_table(both, folder / "twice.parquet")
    parquet(folder / "z.parquet", ["an ant"])
    for workers in (1, 2):
        found = survey(NAMES, folder, workers=workers)
        assert len(found.doubts) == len(bad)
        for name in bad:
            assert sum(f"/{name}" in doubt for doubt in found.doubts) == 1, name
        assert found.table["captions"].tolist() == [2, 0, 0]
        assert undecided(found) == {"fire ant", "yeti"}
    (folder.parent / "names.txt").write_text("ant\nyeti\n")
    out = folder.parent / "c.json"
    arguments = [str(folder.parent / "names.txt"), str(folder), "--quiet", "--out", str(out)]
    assert screening.main(arguments) == 1
    shown = capsys.readouterr()
    assert f"not counted: {found.doubts[0]}" in shown.err and "undecided: 1 of 2" in shown.err
    assert json.loads(out.read_text("utf-8"))["scales"]["all"]["doubts"] == found.doubts
    for name in bad:
        (folder / name).unlink()
    assert screening.main(arguments) == 0


def test_a_missing_member_of_a_range_is_named(folder, capsys):
    for k in (0, 2):
        parquet(folder / f"part-{k:02}.parquet", ["an ant"])
    found = survey(NAMES, f"{folder}/part-{{00..02}}.parquet")
    assert "part-01.parquet" in found.doubts[0] and found.table["captions"][0] == 2
    with pytest.raises(FileNotFoundError, match="no member"):
        survey(NAMES, f"{folder}/part-{{03..05}}.parquet")


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 1),
        pa.list_(pa.list_(pa.string())),
        pa.list_view(pa.string()),
    ],
    ids=str,
)
def test_types_of_columns(folder, kind):
    captions = ["a fire ant", None, "yeti"]
    nested = str(kind).count("list")
    captions = [None if text is None else [text] for text in captions] if nested else captions
    captions = [None if text is None else [text] for text in captions] if nested > 1 else captions
    column = pa.array(captions, kind)
    assert screen(NAMES, column)["captions"].tolist() == [1, 1, 1]
    if not pa.types.is_list_view(kind):
        place = parquet(folder / "b.parquet", column, row_group_size=2)
        found = survey(NAMES, place)
        assert found.table["captions"].tolist() == [1, 1, 1] and found.total.rows == 3
        assert mentions(NAMES, place).values.tolist() == [[0, 0], [0, 1], [2, 2]]


def test_a_flipped_bit_is_found_where_there_is_a_checksum(folder):
    place = parquet(
        folder / "b.parquet", ["yeti"] * 9, compression="NONE", write_page_checksum=True
    )
    content = place.read_bytes()
    assert content.count(b"yeti") >= 1
    place.write_bytes(content.replace(b"yeti", b"yetj", 1))
    assert "b.parquet" in survey(NAMES, place).doubts[0]


# --- memory, disks, packages ----------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's here")
@pytest.mark.parametrize("nested", [False, True])
def test_equal_captions_of_a_megabyte_are_not_held_all_at_once(tmp_path, nested):
    equal = pa.DictionaryArray.from_arrays(
        pa.array([0] * 600, pa.int32()), pa.array(["elephant " * 120_000 + "ant"])
    )
    column = pa.ListArray.from_arrays(pa.array([0, 600], pa.int32()), equal) if nested else equal
    pq.write_table(pa.table({"caption": column}), tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    script = (
        "import resource\n"
        "from lbutils.captions import corpora\n"
        f"file = corpora.inspect({str(tmp_path / 'a.parquet')!r})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(sum(len(captions) for captions, _, _ in corpora.read_batches(file, 65_536)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    number, kilobytes = map(int, process.stdout.split())
    assert number == 600 and kilobytes < 500_000


def test_a_full_disk_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vocabulary.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        survey(NAMES, folder, state=tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


def test_state_tells_formats_of_equal_bytes_apart(tmp_path):
    (tmp_path / "a.csv").write_text('caption\n"fire\nant"\n')
    (tmp_path / "b.tsv").write_text('caption\n"fire\nant"\n')
    found = survey(NAMES, tmp_path, state=tmp_path / "state")
    assert "either may be meant" in found.doubts[0] and found.table["captions"].tolist() == [
        1,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("url", "extra"),
    [("s3://b/a.csv", "s3"), ("gs://b/a.csv", "gcs"), ("abfs://b/a.csv", "azure")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, url, extra):
    def missing(url):
        raise ImportError("Install it")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ModuleNotFoundError, match=rf"'lbutils\[{extra}\]'"):
        survey(NAMES, url)
    packages = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"\n{extra} = [" in packages


def test_the_limit_of_the_csv_module_is_left_as_it_was(tmp_path):
    """It is one for the whole process, in which others read tables too."""
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("caption\n" + "yeti " * 7000 + "\nant\n")
    usual = csv.field_size_limit(4096)
    try:
        found = screen(["yeti", "ant"], tmp_path, workers=2)
        assert found["captions"].tolist() == [2, 2] and csv.field_size_limit() == 4096
    finally:
        csv.field_size_limit(usual)
