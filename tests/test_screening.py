"""Screening of files: levels, resumption, damage, clusters, against plain readings of the rules."""

import gzip
import json
import os
import random
import signal
import threading
import time
import traceback
import warnings
from pathlib import Path

import fsspec
import fsspec.implementations.memory
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbutils.captions import corpora, screening, tables
from lbutils.captions import survey as vocabulary
from lbutils.captions import text as words
from lbutils.captions.survey import canonical, mentions, screen, survey
from lbutils.captions.text import (
    all_cleaned,
    canonical_lines,
    folded_lines,
    inflections,
    without_diacritics,
)

PARTS = ["ant", "Fire", "ants", "fire ant", "é", "e\u0301", "caf", "ß", "ﬁ", "x2", "İ", "猫", "हि"]
PARTS += [" ", "  ", "-", "'", "’", "\u00ad", "\n", "“", "…", "™", "½", "\u0301", "🐜", "한", "ж"]
texts = st.one_of(st.lists(st.sampled_from(PARTS), max_size=9).map("".join), st.text(max_size=14))
names = texts.filter(canonical)
MEETING = ["ant", "fire ant", "fire ant hill", "ant hill", "hill ant", "été", "x2", "naïveté"]


def holds(caption, phrase):
    """Whether the words of the phrase stand in a row among those of the caption."""
    own, seen = phrase.split(), caption.split()
    return any(seen[i : i + len(own)] == own for i in range(len(seen) - len(own) + 1))


def quietly(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **kwargs)


def write(path, captions, column="caption", **options):
    pq.write_table(pa.table({column: pa.array(captions, pa.string())}), path, **options)
    return path


def caption_list(seed, count=400):
    draw = random.Random(seed)
    fill = ["a", "red", "ants", "elephant", "the", "of", "hills", "Fire", "naive", "—", "cat's"]
    return [
        draw.choice([" ", "-", ", "]).join(draw.choices(MEETING + fill, k=draw.randint(0, 7)))
        for _ in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    """Five files of captions."""
    place = tmp_path / "captions"
    place.mkdir()
    for k in range(5):
        write(place / f"{k}.parquet", caption_list(k), row_group_size=90)
    return place


# --- text -------------------------------------------------------------------------------------


@given(st.lists(texts, max_size=6))
def test_many_texts_fold_as_each_alone(many):
    assert folded_lines(many) == [folded_lines([text + " 。"])[0] for text in many]


def lines_of(many, bare=False):
    texts, _ = all_cleaned(pl.Series(many, dtype=pl.String))
    return canonical_lines(texts, bare=bare).to_list()


@given(st.lists(texts, max_size=6))
@example(["5℃", "a\u0301", "½ x", "e\u0301", "ö\u0301", "'’`", "ꭰ Ꭰ"])
def test_many_texts_are_canonical_as_each_alone(many):
    assert lines_of(many) == [canonical(text) for text in many]
    assert lines_of(many, bare=True) == [without_diacritics(canonical(text)) for text in many]


def test_every_simple_character_folds_alike_in_company():
    every = (c for low, high in words._SIMPLE_RANGES for c in map(chr, range(low, high + 1)))
    simple = [c for c in every if words._fold(c) is not None]
    assert len(simple) > 20_000
    found = lines_of([f"e{c}b" for c in simple])
    assert not [c for c, line in zip(simple, found, strict=True) if line != canonical(f"e{c}b")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("café", "cafe"), ("smørrebrød", "smorrebrod"), ("naïve", "naive"), ("हिन्दी", "हिन्दी")],
)
def test_without_diacritics(text, expected):
    assert without_diacritics(text) == expected


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("fox", {"foxs", "foxes"}),
        ("berry", {"berries", "berrys"}),
        ("berries", {"berry"}),
        ("wolf", {"wolves"}),
        ("knives", {"knife"}),
        ("cactus", {"cacti", "cactuses"}),
        ("fireman", {"firemen"}),
        ("mice", {"mouse"}),
        ("hot dog", {"hot dogs", "hotdog", "hotdogs"}),
        ("hotdog", {"hot dog", "hotdogs"}),
        ("t shirt", {"tshirt", "t shirts"}),
        ("tshirt", {"t shirt"}),
        ("bird of paradise", {"birds of paradise", "birdofparadise"}),
        ("jack o lantern", {"jack o lanterns", "jackolantern", "jack olantern"}),
    ],
)
def test_inflections(name, forms):
    found = inflections(name)
    assert forms <= set(found)
    assert name not in found and len(found) == len(set(found))
    assert all(canonical(form) == form for form in found)


def test_no_inflection_splits_off_an_article():
    assert "a corn" not in inflections("acorn") and "an t" not in inflections("ant")


# --- matching ---------------------------------------------------------------------------------


@given(st.lists(names, min_size=1, max_size=6), st.lists(texts, max_size=8))
def test_mentions_are_what_comparing_words_finds(some, many):
    lines = [canonical(text) for text in many]
    found = quietly(mentions, some, [*many, "x2"])
    expected = {
        (i, k)
        for i, line in enumerate([*lines, "x2"])
        for k, name in enumerate(some)
        if holds(line, canonical(name))
    }
    assert set(found.itertuples(index=False, name=None)) == expected
    assert len(found) == len(expected)


def test_phrases_do_not_reach_over_captions_but_over_line_breaks():
    assert screen(["fire ant"], ["fire", "ant", "a fire\nant", "fire\r\n\tant"])[
        "captions"
    ].item() == (2)


@given(st.lists(st.text("a'é` ", max_size=12), min_size=1, max_size=20))
def test_texts_beyond_plain_ascii_are_all_found(many):
    _, places = all_cleaned(pl.Series(many))
    assert places.to_list() == [k for k, text in enumerate(many) if "é" in text]


def test_sliced_columns_and_captions_of_a_megabyte():
    long = "elephant " * 120_000 + "fire ant"
    assert len(long) > 1_000_000
    column = pa.array(["ant", long, None, long.upper(), "fire", "ant"])
    table = screen(["fire ant", "ant", "elephant"], column.slice(1, 4))
    assert table["captions"].tolist() == [2, 2, 2]


def test_captions_of_a_megabyte_in_a_file_are_read_in_small_batches(tmp_path):
    long = "elephant " * 120_000
    path = write(tmp_path / "long.parquet", [f"{long} {k} ant" for k in range(60)])
    sizes = [
        len(captions) for captions, _, _ in corpora.read_batches(corpora.inspect(str(path)), 16_384)
    ]
    assert sum(sizes) == 60 and max(sizes) < 60
    assert screen(["ant"], path)["captions"].item() == 60


def test_captions_of_a_megabyte_in_memory_are_taken_in_small_batches(monkeypatch):
    for module in (corpora, tables):
        monkeypatch.setattr(module, "BATCH_BYTES", 3_000_000)
    long = "elephant " * 120_000
    captions = [None, *(f"{long} {k} ant" for k in range(8)), "ant"]
    sizes = [len(texts) for texts, _, _ in vocabulary._batches(captions, None)[1]]
    assert sum(sizes) == 9 and max(sizes) <= 3
    for column in (captions, pa.array(captions), pl.Series(captions)):
        assert mentions(["ant"], column)["caption"].tolist() == list(range(1, 10))


# --- levels -----------------------------------------------------------------------------------


@settings(max_examples=examples(60))
@given(
    st.lists(names, min_size=1, max_size=4),
    st.lists(st.one_of(st.none(), texts), max_size=8),
    st.integers(1, 3),
)
def test_levels_equal_the_oracle(some, many, batch):
    synonyms = {some[0]: ["fire ant", "é"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "BATCH", batch)
        levels = ["inflections", "diacritics"]
        table = quietly(screen, some, many, levels=levels, synonyms=synonyms)
    lines = [canonical(text) for text in many if text is not None]
    for row in table.itertuples():
        forms = {row.phrase}
        counts = [sum(any(holds(line, f) for f in forms) for line in lines)]
        forms |= set(inflections(row.phrase))
        counts.append(sum(any(holds(line, f) for f in forms) for line in lines))
        bare = {without_diacritics(form) for form in forms}

        def found(line, forms=forms, bare=bare):
            plain = without_diacritics(line)
            return any(holds(line, f) for f in forms) or any(holds(plain, f) for f in bare)

        counts.append(sum(map(found, lines)))
        more = {canonical(s) for s in synonyms.get(row.name, ())}
        plain = {without_diacritics(s) for s in more}
        counts.append(
            sum(
                found(line)
                or any(holds(line, s) for s in more)
                or any(holds(without_diacritics(line), s) for s in plain)
                for line in lines
            )
        )
        assert [
            row.captions,
            row.captions_inflections,
            row.captions_diacritics,
            row.captions_synonyms,
        ] == counts


def test_a_caption_counts_at_its_strictest_level_only():
    table = screen(["fox"], ["fox foxes", "foxes", "fox's", "a cat"], levels=["inflections"])
    assert table[["captions", "captions_inflections"]].values.tolist() == [[1, 3]]
    pd.testing.assert_frame_equal(
        screen(["fox"], ["fox foxes", "foxes", "fox's"], levels="inflections"), table
    )


def test_unknown_options_name_the_valid_ones():
    for options, message in [
        (
            {"levels": ["plurals"]},
            "unknown level 'plurals': choose from phrase, compounds, inflections",
        ),
        ({"synonyms": {"fix": ["a"]}}, "unknown concept 'fix'.* Did you mean 'fox'"),
        ({"unspaced": "sub"}, "choose from alone, substring, refuse"),
        ({"state": "x"}, "for files"),
    ]:
        with pytest.raises(ValueError, match=message):
            screen(["fox"], ["fox"], **options)
    with pytest.raises(ValueError, match="Did you mean 'laion400m'"):
        survey(["fox"], ".", layout="laion400")


def test_scripts_without_spaces_are_found_anywhere_or_refused():
    captions = ["黒い猫です", "猫, ant", "犬", "ant猫ant", "solid gold", "แมวดำ"]
    table = screen(["猫", "ant 猫", "แมว", "ant"], captions, unspaced="substring")
    expected = [
        sum("猫" in text for text in captions),
        0,
        sum("แมว" in text for text in captions),
        1,
    ]
    assert table["captions"].tolist() == expected
    with pytest.raises(ValueError, match='unspaced="substring"'):
        screen(["猫"], captions, unspaced="refuse")
    with pytest.warns(UserWarning, match="猫") as caught:
        screen(["猫"], captions)
    assert caught[0].filename == __file__


def test_tables_are_taken_with_their_column():
    frame = pl.DataFrame({"TEXT": ["ant", None, "an ant"], "n": [1, 2, 3]})
    assert screen(["ant"], frame)["captions"].item() == 2
    assert screen(["ant"], frame.to_arrow(), column="TEXT")["captions"].item() == 2
    with pytest.raises(ValueError, match="Did you mean 'TEXT'"):
        screen(["ant"], frame, column="text")


def test_mentions_are_the_pairs():
    captions = ["fire ant", None, "ant", "cat", "Ant and Fire-Ant"]
    pairs = mentions(["ant", "fire ant"], captions)
    assert pairs.values.tolist() == [[0, 0], [0, 1], [2, 0], [4, 0], [4, 1]]


# --- files ------------------------------------------------------------------------------------


def counts_of(folder, **options):
    return quietly(survey, MEETING, folder, levels=["inflections"], examples=3, **options)


def expected_counts(folder):
    captions = [
        text
        for file in sorted(folder.glob("*.parquet"))
        for text in pl.read_parquet(file)["caption"]
    ]
    return screen(MEETING, captions, levels=["inflections"])


def test_files_threads_and_memory_agree(folder):
    expected = expected_counts(folder)
    for workers in (1, 3):
        found = counts_of(folder, workers=workers)
        pd.testing.assert_frame_equal(found.table, expected)
        assert found.complete and found.files["captions"].tolist() == [400] * 5
        files = found.files["file"].tolist()
        for row in found.examples.itertuples():
            stored = pl.read_parquet(folder / files[files.index(row.file)])["caption"][row.row]
            assert stored == row.caption and holds(canonical(stored), row.form)
    assert (found.examples.groupby(["name", "level"]).size() <= 3).all()


def test_layout_tells_what_is_missing(folder):
    found = counts_of(folder, layout="relaion2B-en")
    assert found.table["captions"].sum() > 0 and not found.complete
    found = counts_of(folder, layout="laion400m")
    assert found.files["error"].str.contains("unknown column 'TEXT'").all()


def test_csv_and_compressed_tables(tmp_path):
    captions = ["an ant", 'fire "ant", hill', "two\nlines of ant", "NA", "null", "1", "café"]
    table = pd.DataFrame({"id": range(7), "TEXT": captions})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "b.tsv.gz", index=False, sep="\t")
    found = survey(["ant", "na", "null", "1", "café"], tmp_path, column="TEXT")
    assert found.table["captions"].tolist() == [6, 2, 2, 2, 2]
    assert found.files["rows"].tolist() == [7, 7]
    broken = (tmp_path / "b.tsv.gz").read_bytes()
    (tmp_path / "b.tsv.gz").write_bytes(broken[: len(broken) // 2])
    found = survey(["ant"], tmp_path, column="TEXT")
    assert found.table["captions"].item() == 3 and "b.tsv.gz" in found.files["error"][1]
    assert gzip.decompress(broken).count(b"\n") == 9


def test_patterns_numbers_and_protocols(folder):
    every = corpora.find_urls(folder)
    assert [Path(url).name for url in every] == [f"{k}.parquet" for k in range(5)]
    assert corpora.find_urls(f"{folder}/[0-2].parquet") == every[:3]
    assert corpora.find_urls(f"{folder}/{{1..3}}.parquet") == every[1:4]
    assert corpora.find_urls(f"file://{folder}/*.parquet") == [f"file://{url}" for url in every]
    with pytest.raises(FileNotFoundError, match="no file of captions"):
        corpora.find_urls(f"{folder}/x*.parquet")
    store = fsspec.filesystem("memory")
    for url in every:
        store.pipe(f"/corpus/{Path(url).name}", Path(url).read_bytes())
    found = counts_of("memory://corpus/*.parquet")
    pd.testing.assert_frame_equal(found.table, expected_counts(folder))
    assert found.files["fingerprint"].tolist() == counts_of(folder).files["fingerprint"].tolist()


def test_a_truncated_file_among_good_ones_is_reported_and_the_others_counted(folder, capsys):
    bad = folder / "2.parquet"
    without = [p for p in sorted(folder.glob("*.parquet")) if p != bad]
    expected = counts_of(without).table
    content = bad.read_bytes()
    damaged = bytearray(content)
    damaged[4:600] = bytes(596)
    for broken in (b"", content[:3], content[: len(content) // 2], content[:-1], bytes(damaged)):
        bad.write_bytes(broken)
        found = counts_of(folder, workers=2)
        pd.testing.assert_frame_equal(found.table, expected)
        assert not found.complete
        assert ["2.parquet" in error for error in found.files["error"]] == [0, 0, 1, 0, 0]
        with pytest.raises(ValueError, match=r"2\.parquet"):
            screen(MEETING, folder)
    listed = folder.parent / "names.txt"
    listed.write_text("\n".join(MEETING), encoding="utf-8")
    out = folder.parent / "out.json"
    arguments = [str(listed), str(folder), "--out", str(out), "--quiet"]
    assert screening.main(arguments) == 1
    assert "not counted" in capsys.readouterr().err and out.exists()
    bad.write_bytes(content)
    assert screening.main(arguments) == 0
    assert capsys.readouterr().err == ""
    assert screening.main([str(listed), str(folder / "nowhere")]) == 2


def test_resumed_counts_equal_uninterrupted_ones(folder, tmp_path, monkeypatch):
    expected = counts_of(folder)
    state = tmp_path / "state"
    read = corpora.read_batches

    def stops(file, rows):
        if file.name == "3.parquet":
            raise KeyboardInterrupt
        yield from read(file, rows)

    monkeypatch.setattr(corpora, "read_batches", stops)
    with pytest.raises(KeyboardInterrupt):
        counts_of(folder, state=state)
    assert len(list(state.glob("*.json"))) == 3
    opened = []
    monkeypatch.setattr(
        corpora, "read_batches", lambda file, rows: opened.append(file.name) or read(file, rows)
    )
    resumed = counts_of(folder, state=state)
    assert opened == ["3.parquet", "4.parquet"]
    pd.testing.assert_frame_equal(resumed.table, expected.table)
    pd.testing.assert_frame_equal(resumed.examples, expected.examples)
    pd.testing.assert_frame_equal(resumed.files, expected.files)


def test_state_is_keyed_by_content_and_query(folder, tmp_path):
    state = tmp_path / "state"
    counts_of(folder, state=state)
    (folder / "0.parquet").rename(folder / "9.parquet")
    counts_of(folder, state=state)
    assert len(list(state.iterdir())) == 5
    write(folder / "1.parquet", ["ant"])
    found = counts_of(folder, state=state)
    assert len(list(state.iterdir())) == 6
    pd.testing.assert_frame_equal(found.table, expected_counts(folder))
    survey(["ant"], folder, state=state)
    assert len(list(state.iterdir())) == 11
    for place in state.iterdir():
        place.write_text(place.read_text()[:20])
    pd.testing.assert_frame_equal(counts_of(folder, state=state).table, expected_counts(folder))


@pytest.mark.slow
def test_counts_stay_exact_when_a_dask_worker_is_killed(folder, tmp_path):
    distributed = pytest.importorskip("distributed")
    for k in range(4):
        write(folder / f"{k}.parquet", caption_list(k, 60_000))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        done = threading.Event()

        def kill():
            # Once one file is counted, so that both workers are at work.
            while not done.is_set() and not list((tmp_path / "state").glob("*.json")):
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = counts_of(folder, scheduler=client, state=tmp_path / "state")
        done.set()
        killer.join()
        assert victim not in client.run(os.getpid).values()
    assert found.complete
    pd.testing.assert_frame_equal(found.table, expected_counts(folder))


def test_progress_counts_rows(folder, capsys):
    counts_of(folder, progress=True)
    shown = capsys.readouterr().err
    assert "2.00k/2.00k" in shown and "captions/s" in shown


# --- inverse tools ----------------------------------------------------------------------------


def test_chosen_classes_cost_least():
    captions = ["ant bee"] * 3 + ["ant"] * 5 + ["bee"] * 4 + ["cat"] * 9 + ["oak"] * 2 + ["elm"]
    candidates = pd.DataFrame(
        {
            "domain": ["a", "a", "a", "p", "p", "p"],
            "name": ["ant", "bee", "cat", "oak", "elm", "fir"],
        }
    )
    chosen = screening.choose_classes(candidates, captions, oop=1, ip=1)
    by_name = chosen.set_index("name")
    assert by_name["subset"].to_dict() == {
        "ant": "",
        "bee": "oop",
        "cat": "ip",
        "oak": "ip",
        "elm": "",
        "fir": "oop",
    }
    assert by_name.loc["bee", ["captions", "withheld", "kept"]].tolist() == [7, 7, 0]
    assert by_name.loc["ant", ["captions", "withheld", "kept"]].tolist() == [8, 0, 5]
    # The cheapest single name of each domain is found by trying all.
    table = screen(candidates["name"], captions).set_index("name")["captions"]
    for domain, rows in candidates.groupby("domain"):
        least = min(table[name] for name in rows["name"])
        own = chosen[chosen["domain"] == domain]
        assert own.query("subset == 'oop'")["withheld"].item() == least
    two = screening.choose_classes(candidates.head(3), captions, oop=2, ip=1)
    assert two["withheld"].sum() == len([c for c in captions if "ant" in c or "bee" in c])
    with pytest.raises(ValueError, match="fewer than 4"):
        screening.choose_classes(candidates, captions, oop=4, ip=0)
    with pytest.raises(ValueError, match="1 names are left in 6 captions or more, 2"):
        screening.choose_classes(candidates.head(3), captions, oop=1, ip=2, least=6)


@pytest.mark.parametrize(
    ("suffix", "encoding", "end"),
    [
        *((suffix, "utf-8", "\n") for suffix in (".csv", ".CSV", ".tsv", ".Tsv", ".txt", "")),
        *((suffix, "utf-8-sig", "\r\n") for suffix in (".csv", ".tsv", ".TXT")),
    ],
)
def test_names_are_read_from_text_and_tables(tmp_path, suffix, encoding, end):
    place = tmp_path / f"names{suffix}"
    rows = [["null", "zero; nil"], [" café ", ""], ["", ""], ["null", "nil;naught"], ["ant", ""]]
    if suffix.lower() in (".csv", ".tsv"):
        separator = "," if suffix.lower() == ".csv" else "\t"
        rows = [["name", "synonyms"], *rows]
        expected = {"null": ["zero", "nil", "naught"]}
    else:
        rows, separator, expected = [row[:1] for row in rows], "", {}
    text = end.join(separator.join(row) for row in rows)
    place.write_bytes(text.encode(encoding))
    assert screening.read_names(str(place)) == (["null", "café", "ant"], expected)
    assert screening.read_names(place) == (["null", "café", "ant"], expected)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", "naam\nfox\n", "must have one column 'name', it has naam"),
        ("a.csv", "name,name\nfox,ox\n", "must have one column 'name'"),
        ("a.csv", "name;synonyms\nfox;renard\n", "it has name;synonyms"),
        ("a.csv", "name\nWashington, D.C.\n", "line 2: 2 cells under 1 headers"),
        ("a.csv", "name,synonyms\n,renard\n", "line 2: the name is missing"),
        ("a.csv", 'name\n"fox\nox\n', "line 3: unexpected end of data"),
        ("a.csv", "", "must have one column 'name'"),
        ("a.tsv", "name\n", "a.tsv has no names"),
        ("a.txt", "\n \n", "a.txt has no names"),
        ("a.txt", "name,synonyms\nfox,renard\n", "begins like a table.*name it .csv or .tsv"),
        ("a.txt", "id\tname\n1\tfox\n", "begins like a table"),
        ("a.json", '["fox"]', "from .txt, .csv and .tsv, not from .json"),
        ("a.csv.gz", "fox", "not from .gz"),
        ("a.txt", "caf\udce9", "a.txt is not in UTF-8: save it"),
    ],
)
def test_files_that_are_no_lists_of_names_are_refused(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        screening.read_names(str(tmp_path / file))


CELLS = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029\0;")
)


@given(st.lists(st.tuples(CELLS.filter(str.strip), st.lists(CELLS, max_size=3)), min_size=1))
def test_any_names_and_synonyms_come_back(tmp_path_factory, rows):
    place = tmp_path_factory.mktemp("names") / "names.csv"
    table = pd.DataFrame(rows, columns=["name", "synonyms"])
    table["synonyms"] = table["synonyms"].map(";".join)
    table.to_csv(place, index=False)
    names, synonyms = screening.read_names(place)
    assert names == list(dict.fromkeys(name.strip() for name, _ in rows))
    for name in names:
        own = [o.strip() for other, others in rows if other.strip() == name for o in others]
        assert synonyms.get(name, []) == list(dict.fromkeys(filter(None, own)))


@pytest.mark.parametrize("twins", [("Fox", "fox"), ("Pig's ear", "pigs-ear"), ("fox", "fox")])
def test_candidates_of_one_canonical_form_are_refused_with_both_names(twins):
    candidates = pd.DataFrame({"domain": ["a"] * 3, "name": ["ant", *twins]})
    with pytest.raises(ValueError, match=f"{twins[0]!r} and {twins[1]!r} of 'a' are one name"):
        screening.choose_classes(candidates, ["fox"], oop=1, ip=0)
    apart = candidates.assign(domain=["a", "b", "c"])
    assert len(screening.choose_classes(apart, ["fox"], oop=1, ip=0)) == 3


def test_a_certificate_is_refused_before_any_caption_is_read(folder, tmp_path, capsys, monkeypatch):
    listed = tmp_path / "birds.csv"
    listed.write_text("name\nant\n", encoding="utf-8")
    content = listed.read_bytes()
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    (tmp_path / "file").touch()
    arguments = [str(listed), str(folder), "--quiet", "--out"]

    def read(*_):
        raise AssertionError("captions were read")

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "read_batches", read)
        for out, message in [
            ("birds.json", "birds.csv is not from a certificate and would be overwritten"),
            ("notes.json", "notes.json is not from a certificate"),
            ("cert", "a certificate is a .json file, not cert"),
            ("file/cert.json", "is not a folder that can be written to"),
        ]:
            assert screening.main([*arguments, str(tmp_path / out)]) == 2
            assert message in capsys.readouterr().err
    for _ in range(2):  # its own are replaced
        assert screening.main([*arguments, str(tmp_path / "new" / "found.json")]) == 0
    assert listed.read_bytes() == content and (tmp_path / "notes.json").read_text() == "{}"


class Guarded(fsspec.implementations.memory.MemoryFileSystem):
    """A store whose addresses carry a password, and whose messages repeat them."""

    protocol = "guarded"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return ("/" + path.rpartition("@host")[2].strip("/")).rstrip("/")

    def unstrip_protocol(self, name):
        return f"guarded://me:s3cret@host{name}"

    def open(self, path, mode="rb", **kwargs):
        if "bad" in path and mode == "rb":
            raise OSError(f"403 at https://me:s3cret@host{path}?Signature=s3cret")
        return super().open(path, mode, **kwargs)


def test_no_password_gets_into_results_messages_and_certificates(folder, tmp_path, capfd):
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    for name in ("0.parquet", "bad.parquet"):
        Guarded().pipe_file(f"/{name}", (folder / "0.parquet").read_bytes())
    listed = tmp_path / "names.txt"
    listed.write_text("ant\nfire ant\n", encoding="utf-8")
    source = "guarded://me:s3cret@host/"
    arguments = [str(listed), source, "--out", str(tmp_path / "c.json"), "--state"]
    assert screening.main([*arguments, str(tmp_path / "state")]) == 1
    assert screening.main([str(listed), f"{source}none.parquet"]) == 2
    with pytest.raises(ValueError, match="bad.parquet") as caught:
        screen(["ant"], source)
    with pytest.raises(FileNotFoundError, match="none.parquet") as missing:
        mentions(["ant"], f"{source}none.parquet")
    shown = capfd.readouterr()
    written = [path for path in tmp_path.rglob("*.*") if path.suffix in (".json", ".csv")]
    texts = [shown.out, shown.err, *(path.read_text(encoding="utf-8") for path in written)]
    texts += ["".join(traceback.format_exception(found.value)) for found in (caught, missing)]
    texts.append(repr(corpora.inspect(f"{source}0.parquet")))
    assert "bad.parquet" in shown.err and len(written) == 3
    assert not [text for text in texts if "s3cret" in text or "me:" in text]


def test_the_query_of_a_url_is_not_where_its_suffix_is_looked_for():
    for url, kind in [
        ("https://host/a.parquet?Signature=x.csv", "Parquet"),
        ("https://host/a.csv?part=b.parquet", "CSV"),
        ("https://host/a.csv#b.parquet", "CSV"),
        ("/data/what?.parquet", "Parquet"),
    ]:
        assert corpora.format_of(url)[0] == kind
    assert corpora.File("https://me:x@host/a.csv?Signature=x", "c", None).name == "a.csv"


def damages(stored):
    """Stored counts with something wrong, as text."""
    tally = stored["tally"]
    more = [[count + 5 for count in own] for own in tally["counts"]]
    yield json.dumps(stored | {"tally": tally | {"counts": more}})
    yield json.dumps(tally)
    yield json.dumps(stored)[:-30]
    yield from ("", "[]", "3", "null", '{"sha256": 1}', "[" * 100_000, "9" * 5000, "\ufffe")


def wrong_tallies(tally):
    """Counts that no counting makes."""
    counts = tally["counts"]
    for wrong in (-5, 1.5, 10**30, True, None, "3", [3], tally["captions"] + 1):
        yield tally | {"counts": [[wrong, *counts[0][1:]], *counts[1:]]}
    yield tally | {"counts": counts[1:]}
    yield tally | {"counts": [counts]}
    for name, wrong in [
        ("rows", -1),
        ("captions", 10**30),
        ("captions", "400"),
        ("unseen", ["no word of ours"]),
        ("unseen", 3),
        ("unseen_pieces", [1]),
        ("examples", [[99, 0, []]]),
        ("examples", [[0, 99, []]]),
        ("examples", [3]),
    ]:
        yield tally | {name: wrong}
    yield {name: tally[name] for name in tally if name != "captions"}


def test_damaged_counts_are_not_believed_but_counted_anew(folder, tmp_path):
    state = tmp_path / "state"
    expected = counts_of(folder, state=state).table
    place = sorted(state.iterdir())[0]
    content = place.read_text(encoding="utf-8")
    stored = json.loads(content)
    cases = list(damages(stored))
    # Wrong in themselves, and yet with a checksum that fits.
    for tally in wrong_tallies(stored["tally"]):
        cases.append(
            json.dumps({"sha256": vocabulary._checksum(str(place), tally), "tally": tally})
        )
    # The counts of another file.
    cases.append(sorted(state.iterdir())[1].read_text(encoding="utf-8"))
    for case in cases:
        place.write_text(case, encoding="utf-8")
        with pytest.warns(UserWarning, match=f"{place.name} is damaged, so its file is counted"):
            found = survey(MEETING, folder, levels=["inflections"], examples=3, state=state)
        pd.testing.assert_frame_equal(found.table, expected)
        assert place.read_text(encoding="utf-8") == content


def test_the_most_frequent_synonym_stands_for_a_name():
    captions = ["a cash machine", "the cash machine, a cash machine", "an atm", "a plover", "ATM"]
    synonyms = {"atm": ["cash machine", "bank teller"], "numbat": ["banded anteater"]}
    found = screening.most_frequent(["atm", "numbat", "plover"], captions, synonyms)
    assert found.values.tolist() == [
        ["atm", "atm", 2, 2],  # a synonym must be in more captions, not in as many
        ["numbat", "numbat", 0, 0],
        ["plover", "plover", 1, 1],
    ]
    more = screening.most_frequent(["atm"], [*captions, "cash machine"], {"atm": ["cash machine"]})
    assert more.loc[0].tolist() == ["atm", "cash machine", 3, 2]
    counts = {"crow": 3, "rook": 5, "raven": 4, "swan": 2, "cygnet": 2}
    read = [f"a {word}" for word, number in counts.items() for _ in range(number)]
    others = {"crow": ["rook", "raven"], "swan": ["cygnet"]}
    best = screening.most_frequent(["crow", "swan", "bear"], read, others).set_index("name")["text"]
    assert best.to_dict() == {"crow": "rook", "swan": "swan", "bear": "bear"}
    with pytest.raises(ValueError, match="Did you mean 'atm'"):
        screening.most_frequent(["atm"], captions, {"atn": ["cash machine"]})
    with pytest.raises(ValueError, match="synonyms must be a list"):
        screening.most_frequent(["atm"], captions, {"atm": "cash machine"})
