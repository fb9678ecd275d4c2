"""Canonical text and screening, against a brute-force reading of the same rules."""

import re
import sys
import unicodedata
import warnings
from collections import Counter

import ftfy
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import examples
from ftfy.badness import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import basic_clean, whitespace_clean

from lbutils._util import interval_text, suggest
from lbutils.captions import survey
from lbutils.captions import text as words
from lbutils.captions.survey import canonical, screen
from lbutils.captions.text import all_cleaned, cleaned, folded_lines, is_unspaced

# Few words and much punctuation, so that names do meet captions, often side by side.
WORDS = [
    "ant",
    "Ant",
    "elephant",
    "fire",
    "FIRE",
    "straße",
    "STRASSE",
    "ﬁre",
    "été",
    "e\u0301te\u0301",
    "ж",
    "हिन्दी",
    "4",
    "x2",
    "İ",
    "a_b",
]
GLUE = [
    " ",
    "  ",
    "-",
    "_",
    "'",
    "’",
    ".*",
    "(",
    ")",
    "<b>",
    "&amp;",
    '"',
    "\n",
    "\t",
    "\u00ad",
    "\u200d",
    "/",
    "\\",
    "$",
    "+",
    "\u0301",
    "´",
    "🐜",
]
phrases = st.lists(st.sampled_from(WORDS + GLUE), min_size=1, max_size=8).map("".join)
texts = st.one_of(phrases, st.text(max_size=12), st.text("ant ' _", max_size=12))
names = st.one_of(phrases, texts).filter(canonical)


def occurrences(name, captions):
    """Captions that hold the name's words in a row, by comparing lists of words."""
    words = canonical(name).split()
    found = 0
    for caption in captions:
        seen = canonical(caption).split() if caption is not None else []
        found += any(seen[i : i + len(words)] == words for i in range(len(seen) - len(words) + 1))
    return found


def quiet_screen(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return screen(*args, **kwargs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red  Fox! ", "red fox"),
        ("Pig's ear", "pigs ear"),
        ("Pig’s_ear", "pigs ear"),
        ("rock 'n' roll", "rock n roll"),
        ("T-shirt", "t shirt"),
        ("C++ (1.0)", "c 1 0"),
        ("<b>ant</b>", "b ant b"),
        ("ＦＯＸ", "fox"),
        ("ﬁre", "fire"),
        ("Straße", canonical("STRASSE")),
        ("cafe\u0301", canonical("CAFÉ")),
        ("हिन्दी", "हिन्दी"),
        ("co\u00adop", "coop"),
        ("❤\ufe0f", ""),
        ("!!!", ""),
        ("", ""),
    ],
)
def test_canonical_examples(text, expected):
    assert canonical(text) == expected


def test_canonical_is_a_fixed_point_for_every_character():
    # Beside these are characters that folding leaves as they are, most of them ideographs.
    every = map(chr, range(sys.maxunicode + 1))
    characters = [
        c for c in every if unicodedata.normalize("NFKC", c).casefold() != c or c < "\u3000"
    ]
    unstable = [c for c in characters if canonical(canonical(f"e{c}b")) != canonical(f"e{c}b")]
    assert not unstable


@given(texts)
def test_canonical_is_a_fixed_point_of_folding(text):
    folded = canonical(text)
    assert canonical(folded) == folded
    assert folded == folded.strip() and "  " not in folded
    assert unicodedata.is_normalized("NFKC", folded)
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    # What looks wrongly decoded is mended, as the tokenizer does, and may do so in one form alone.
    assert any(map(is_bad, forms)) or canonical(forms[0]) == canonical(forms[1])


def test_what_looks_wrongly_decoded_in_one_form_alone_is_mended_there_as_the_tokenizer_does():
    assert canonical("\u00d9\x80") == "\u0640" and canonical("U\u0300\x80") == "\u00f9"
    for text in ("\u00d9\x80", "U\u0300\x80"):
        assert cleaned(text).strip() == basic_clean(text)


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_has_one_canonical_form_however_it_is_computed(text):
    read = basic_clean(text)
    if read.isascii():
        plain = re.sub(r"[\W_]+", " ", read.lower().replace("'", "").replace("`", "")).strip()
        assert canonical(text) == plain
        # A non-ASCII character that stands apart sends the same text down the general path.
        assert canonical(text + " 。") == plain
    assert screen(["ant"], [f"{text} ant"])["captions"].tolist() == [
        occurrences("ant", [f"{text} ant"])
    ]


@given(
    st.lists(names, max_size=6),
    st.lists(st.one_of(st.none(), texts), max_size=10),
    st.integers(1, 4),
)
def test_screen_equals_the_oracle(concepts, captions, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "BATCH", batch)
        table = quiet_screen(concepts, captions, tokenize=lambda text: [ord(c) for c in text])
    kept = [caption for caption in captions if caption is not None]
    words = {word for caption in kept for word in canonical(caption).split()}
    pieces = {ord(c) for caption in kept for c in caption}
    assert table["name"].tolist() == concepts
    assert table["phrase"].tolist() == [canonical(name) for name in concepts]
    assert table["captions"].tolist() == [occurrences(name, captions) for name in concepts]
    for row in table.itertuples():
        own = row.phrase.split()
        assert (row.words, row.words_seen) == (len(own), sum(word in words for word in own))
        assert (row.pieces, row.pieces_seen) == (
            len(row.name),
            sum(ord(c) in pieces for c in row.name),
        )
        proven = words and not is_unspaced(row.phrase)
        assert row.subset == ("ip" if row.captions else "oop" if proven else "undecided")
        assert row.compositional == (row.subset == "oop" and row.pieces == row.pieces_seen)


@pytest.mark.parametrize(
    ("name", "caption", "found"),
    [
        ("ant", "ant ant", 1),
        ("ant", "an elephant", 0),
        ("ant", "ANT!", 1),
        ("ant ant", "ant ant ant", 1),
        ("ant ant", "ant", 0),
        ("fire ant", "fire-ant", 1),
        ("fire ant", "fire, then an ant", 0),
        ("a.*b", "axxb", 0),
        ("a.*b", "A b", 1),
        ("<i>x</i>", "i x i", 1),
        ('"quoted"', "quoted", 1),
        ("Año", "feliz an\u0303o", 1),
        ("wolf", "direwolf", 0),
        ("hot dog", "a hot dog stand", 1),
    ],
)
def test_boundaries(name, caption, found):
    assert screen([name], [caption])["captions"].item() == found


def test_names_inside_names_and_overlaps_count_each():
    table = screen(["ant", "fire ant", "fire ant hill", "ant hill", "ant"], ["the fire ant hill"])
    assert table["captions"].tolist() == [1, 1, 1, 1, 1]


def test_a_caption_counts_once_and_nulls_and_blanks_do_not():
    table = screen(["ant"], ["ant ant ant", None, "", "  ", float("nan"), pd.NA, "ant"])
    assert table["captions"].item() == 2


def test_compositional_by_words_and_by_pieces():
    captions = ["hot pan", "dog"]
    assert screen(["hot dog"], captions)["compositional"].item()
    assert not screen(["hot cat"], captions)["compositional"].item()
    assert not screen(["dog"], captions)["compositional"].item()
    letters = screen(["god", "cat", "zoo"], captions, tokenize=lambda text: [ord(c) for c in text])
    assert letters["compositional"].tolist() == [True, False, False]


def test_empty_input():
    empty = screen([], ["ant"])
    assert len(empty) == 0 and empty["captions"].dtype == "int64"
    assert screen(["ant"], [])["subset"].tolist() == ["undecided"]


@pytest.mark.parametrize("name", ["", "!!!", "🐜", "'", "_"])
def test_a_name_without_words_raises_with_the_name(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        screen(["ant", name], ["ant"])


def test_scripts_without_spaces_warn():
    with pytest.warns(UserWarning, match="猫"):
        table = screen(["猫", "ant"], ["黒い猫です", "猫, ant"])
    assert table["captions"].tolist() == [1, 1]


def test_every_kind_of_column_gives_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "BATCH", 70)
    captions = [f"{a} {b}" for a in WORDS for b in GLUE] + [None, ""]
    concepts = ["ant", "fire", "straße", "x2"]
    expected = screen(concepts, captions)
    assert expected["captions"].tolist() == [occurrences(name, captions) for name in concepts]
    (tmp_path / "shards").mkdir()
    frame = pl.DataFrame({"caption": captions})
    frame.write_parquet(tmp_path / "all.parquet", row_group_size=11)
    frame[:40].write_parquet(tmp_path / "shards" / "0.parquet")
    frame[40:].write_parquet(tmp_path / "shards" / "1.parquet")
    nested = pl.DataFrame({"texts": [captions[:9], [], None, captions[9:]]})
    nested.write_parquet(tmp_path / "nested.parquet")
    pd.DataFrame({"caption": pd.Categorical(captions)}).to_parquet(tmp_path / "category.parquet")
    same = [
        iter(captions),
        frame["caption"],
        pd.Series(captions),
        pa.array(captions),
        pa.chunked_array([captions[:5], captions[5:]]),
        tmp_path / "all.parquet",
        str(tmp_path / "all.parquet"),
        tmp_path / "shards",
        tmp_path / "category.parquet",
    ]
    for column in same:
        pd.testing.assert_frame_equal(screen(concepts, column), expected)
    pd.testing.assert_frame_equal(
        screen(concepts, tmp_path / "nested.parquet", column="texts"), expected
    )


def test_bad_input_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet"):
        screen(["ant"], tmp_path / "nowhere.parquet")
    with pytest.raises(FileNotFoundError, match=r"no file of captions .*\.parquet"):
        screen(["ant"], tmp_path)
    pl.DataFrame({"captions": ["ant"], "n": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="Did you mean 'captions'"):
        screen(["ant"], tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'n' holds int64"):
        screen(["ant"], tmp_path / "a.parquet", column="n")
    with pytest.raises(TypeError, match="not int"):
        screen(["ant"], ["ant", 3])
    with pytest.raises(TypeError, match="one column"):
        screen(["ant"], pd.DataFrame({"caption": ["ant"]}))


def test_an_interval_as_text():
    found = (-12.345, -20.01, 3.06, "and more")
    assert interval_text(found) == "-12.3 [-20.0, 3.1]"
    assert interval_text((1.5, 0.2, 2.8), "+.1f") == "+1.5 [0.2, 2.8]"
    assert interval_text((1.5, 0.2, 2.8), "+.0f", "+.0f") == "+2 [+0, +3]"
    assert interval_text((1.5, float("nan"), float("nan"))) == "1.5"


def test_suggest_names_the_options_and_the_nearest():
    text = suggest("animls", ["Animals", "Food"], "domain")
    assert text == "unknown domain 'animls': choose from Animals, Food. Did you mean 'Animals'?"
    assert suggest("zzz", ["Animals"], "domain").endswith("choose from Animals.")
    assert "\n" not in text
    many = suggest("fox 7", [f"fox {i}" for i in range(5000)], "name")
    assert "5,000 names such as fox 7, " in many and len(many) < 200
    assert suggest("?", map(str, range(99)), "name").endswith("choose from 99 names such as 0.")
    assert suggest(3, [], "scale") == "unknown scale '3': choose from (none)."


def test_counts_are_exact_over_many_batches(monkeypatch):
    monkeypatch.setattr(survey, "BATCH", 100)
    captions = [WORDS[i % len(WORDS)] + " " + WORDS[i * 7 % len(WORDS)] for i in range(2000)]
    tally = Counter(word for caption in captions for word in set(canonical(caption).split()))
    table = screen(["ant", "elephant", "fire"], captions, progress=True)
    assert table["captions"].tolist() == [tally["ant"], tally["elephant"], tally["fire"]]


# --- as the tokenizer reads it ----------------------------------------------------------------

ENTITIES = [
    "&amp;",
    "&AMP",
    "&#39;",
    "&#x27;",
    "&nbsp;",
    "&eacute;",
    "&EACUTE;",
    "&NTILDE;",
    "&lt;",
]
ENTITIES += [
    "&amp;eacute;",
    "&amp;amp;#39;",
    "&eacutex",
    "&#8217",
    "&",
    "＆ａｍｐ；",
    "&lang\u037e",
]
DAMAGED = ["café", "naïve", "piñata", "“fox”", "’s", "лиса", "狐", "é", "à la", "Å", "ﬁ", "½", "°"]
DAMAGED = [
    text.encode().decode(wrong, "replace")
    for text in DAMAGED
    for wrong in ("cp1252", "latin-1", "cp1251", "cp1250", "mac-roman", "cp437")
]
ODD = ["\x00", "\x0b", "\x1b[31m", "\x1c", "\x7f", "\x85", "\u206a", "\ufeff", "\ufff9", "\u2028"]
ODD += ["A\u0303©", "\u212bœ", "‚", "‘", "„", "œ", "Â ", "Ã ", "ￃ", "￢", "Ǆ", "…", "<", ">", "\r"]
soup = st.lists(
    st.sampled_from([*ENTITIES, *DAMAGED, *ODD, "fox", "ant", " ", "x", "é", "ç", "か\u3099"]),
    max_size=7,
).map("".join)


def as_read(text):
    """The words of a text after open_clip's own clean-up, without `cleaned`."""
    return folded_lines([whitespace_clean(basic_clean(text))])[0].split()


@settings(max_examples=examples(400))
@given(st.lists(st.one_of(soup, texts), max_size=8))
def test_all_texts_are_read_as_the_tokenizer_reads_them(many):
    cleaned, _ = all_cleaned(
        pl.Series([t.encode("utf-8", "replace").decode() for t in many], dtype=pl.String)
    )
    exact = [as_read(text.encode("utf-8", "replace").decode()) for text in many]
    assert [text.split() for text in folded_lines(cleaned.to_list())] == exact
    assert [canonical(text).split() for text in many] == exact


def test_every_pair_of_telling_characters_is_read_as_the_tokenizer_reads_it():
    # All that ftfy takes for wrongly decoded are sequences of these; most pairs are harmless.
    telling = [c for c in map(chr, range(0x80, 0x3000)) if re.match(_telling(), c)]
    pairs = [f"x {a}{b} y" for a in telling[::3] for b in telling[1::4]]
    given_to_ftfy = pl.Series(pairs).str.contains(words._suspect_pattern())
    left = [text for text, suspect in zip(pairs, given_to_ftfy, strict=True) if not suspect]
    assert 0.1 < len(left) / len(pairs) < 0.9
    assert not [text for text in left if ftfy.fix_encoding(text) != text]


def _telling():
    return f"[{''.join(words.MOJIBAKE_CATEGORIES.values())}]"


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("pig's ear", "a Pig&#39;s Ear"),
        ("pig's ear", "a Pig&amp;#39;s Ear"),
        ("AT&T", "the AT&amp;T shop"),
        ("AT&amp;T", "the AT&T shop"),
        ("café", "caf&eacute; noir"),
        ("café", "CAF&EACUTE;"),
        ("café", "a cafÃ© here"),
        ("cafÃ©", "a café here"),
        ("red fox", "a red&nbsp;fox"),
        ("red fox", "a red\x00 fox"),
        ("foxglove", "fox\x08glove"),
        ("fire ant", "fire \x1b[31mant"),
        ("猫", "a çŒ« here"),
        ("naïve", "na&iuml;ve"),
        ("piñata", "piÃ±ata"),
    ],
)
def test_a_name_is_found_where_the_tokenizer_reads_it(name, caption):
    assert as_read(caption) != canonical(name) and set(as_read(name)) <= set(as_read(caption))
    table = quiet_screen([name, "yeti"], [caption, "a dog", caption])
    assert table["captions"].tolist() == [2, 0] and table["subset"].tolist() == ["ip", "oop"]


@given(st.lists(soup, max_size=5), st.lists(st.sampled_from(["fox", "ant", "é", "café", "x"])))
def test_soup_is_screened_as_the_oracle_says(many, some):
    table = quiet_screen(some, many)
    assert table["captions"].tolist() == [
        sum(as_read(name)[0] in as_read(text) for text in many) for name in some
    ]


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [screen, survey.survey, survey.mentions])
def test_one_text_is_not_a_list_of_names(call):
    with pytest.raises(ValueError, match=r"pass \['fox'\]"):
        call("fox", ["a fox"])
    with pytest.raises(ValueError, match=r"synonyms of 'fox' must be a list.*pass \['renard'\]"):
        call(["fox"], ["a fox"], synonyms={"fox": "renard"})
    for table in (pd.DataFrame({"name": ["fox"]}), pl.DataFrame({"name": ["fox"]})):
        with pytest.raises(TypeError, match="one column"):
            call(table, ["a fox"])
    for wrong in (3, None, float("nan"), b"fox"):
        with pytest.raises(TypeError, match="number 1 is"):
            call(["fox", wrong], ["a fox"])


@given(
    st.lists(st.one_of(st.text(max_size=3), st.none(), st.integers(), st.binary(max_size=2))),
    st.sampled_from([list, tuple, iter, pd.Series, lambda x: dict.fromkeys(x)]),
)
def test_names_come_through_as_they_are_or_not_at_all(values, kind):
    if all(isinstance(value, str) for value in values):
        expected = list(dict.fromkeys(values)) if isinstance(kind(values), dict) else values
        assert words.as_names(kind(values)) == expected
    else:
        with pytest.raises(TypeError, match="names must be texts"):
            words.as_names(kind(values))


def test_compounds_are_a_level_of_their_own():
    captions = ["an icon of sun flower", "Sun-Flower", "sunflowers", "sun flowers", "a sunflower"]
    table = screen(["sunflower"], captions, levels=["compounds", "inflections"])
    columns = ["captions", "captions_compounds", "captions_inflections"]
    assert table[columns].values.tolist() == [[1, 3, 5]]
    joined = screen(["hot dog"], ["a hotdog", "hot-dog", "hotdogs"], levels=["compounds"])
    assert joined[columns[:2]].values.tolist() == [[1, 2]]


# --- addresses --------------------------------------------------------------------------------

SECRETS = st.text(st.sampled_from("abcXYZ019%-._~!$*+,;:@/?=&"), min_size=4, max_size=12).map(
    lambda text: f"q{text}Q"
)
# What looks like the next part of a chain of fsspec is one.
SECRETS = SECRETS.filter(lambda text: not re.search("::[A-Za-z][A-Za-z0-9+.-]*(://|::)", text))


@pytest.mark.parametrize("secret", ["q'uoteQ", 'q"uoteQ', "q`uote'Q", "q<uot>eQ", "q(uote)Q"])
def test_no_password_with_quotes_is_left_in_a_url(secret):
    for text in ("no {} there", "'{}' is not there", 'zip://a.csv::{} and "{}"'):
        shown = words.redacted(text.format(*[f"https://me:{secret}@host/a.parquet"] * 2))
        assert "host/a.parquet" in shown and "me:" not in shown
        assert not any(part in shown for part in re.split("\\W", secret) if part != "q")


@given(SECRETS, st.sampled_from(["http", "https", "s3", "HTTPS", "sftp"]))
def test_no_password_is_left_in_a_url(secret, scheme):
    shown = words.redacted(f"[Errno 5] at {scheme}://me:{secret}@host/a.parquet, or so")
    assert secret not in shown and "me:" not in shown
    assert "host/a.parquet" in shown or "@" in secret or "/" in secret or "?" in secret


@given(SECRETS)
def test_no_query_is_left_in_a_url(secret):
    for text in (
        f"https://host/a.parquet?Signature={secret}&Expires=1",
        f"403, message='Forbidden', url=URL('https://host/a.parquet?X-Amz={secret}')",
        f"Max retries exceeded with url: /a.parquet?Signature={secret} (caused by x)",
        f"simplecache::https://host/a.parquet?{secret}",
        f"https://host/a.parquet#{secret}",
        f"https://host/an ant/a.parquet?sig={secret}",
        f"https://host/an a.parquet?sig={secret}",
    ):
        shown = words.redacted(text)
        assert secret not in shown and "a.parquet" in shown
        assert words.redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "no *.parquet file in /data/part-?.parquet",
        "s3://bucket/part-?[0-9].parquet",
        "https://host:8080/@scope/a.parquet",
        "abfs://container@account.dfs.core.windows.net/a.parquet",
        "what? a=b",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    assert words.redacted(text) == text
