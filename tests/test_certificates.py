"""Certificates: what they say, that they can be compared, and that scales are checked."""

import csv
import hashlib
import json

import pandas as pd
import polars as pl
import pytest

from lbutils import figures
from lbutils.captions.certificate import (
    certify,
    check_scales,
    compare_certificates,
    read_certificate,
    to_table,
    write_certificate,
)
from lbutils.captions.survey import survey

NAMES = ["fox", "ant", "fire ant", "café", "yeti"]
SMALL = ["a red fox", "two foxes", "cafe noir", "the fox's den"]
LARGE = [*SMALL, "fire ant hill", "Café", "a fox"]


def found(captions=LARGE, names=NAMES, **options):
    options = {"levels": ["inflections", "diacritics"], "examples": 20, **options}
    return survey(names, captions, **options)


@pytest.fixture
def certificate():
    return certify({"small": found(SMALL), "large": found()}, corpus="tiny", corpus_version="1")


def test_a_certificate_says_what_was_found(certificate):
    table = to_table(certificate).set_index(["name", "scale"])
    assert table["verdict"].unstack().to_dict() == {
        "small": {"ant": "oop", "café": "oop", "fire ant": "oop", "fox": "ip", "yeti": "oop"},
        "large": {"ant": "ip", "café": "ip", "fire ant": "ip", "fox": "ip", "yeti": "oop"},
    }
    columns = ["captions", "captions_inflections", "captions_diacritics"]
    assert table.loc[("fox", "large"), columns].tolist() == [2, 4, 4]
    assert table.loc[("café", "small"), columns].tolist() == [0, 0, 1]
    assert table.loc[("café", "small"), "absent_up_to"] == "inflections"
    assert table.loc[("yeti", "large"), "absent_up_to"] == "diacritics"
    assert table.loc[("fox", "large"), "absent_up_to"] == ""
    assert "part of other names on this list: fire ant" in table.loc[("ant", "small"), "warnings"]
    fox = certificate["concepts"][0]["scales"]["large"]["examples"]
    assert [(e["form"], e["row"]) for e in fox] == [
        ("fox", 0),
        ("fox", 6),
        ("foxes", 1),
        ("foxs", 3),
    ]
    assert certificate["scales"]["large"]["captions"] == len(LARGE)


def test_written_and_read_back(certificate, tmp_path):
    place = write_certificate(certificate, tmp_path / "a" / "c.json")
    assert read_certificate(place) == certificate == json.loads(place.read_text("utf-8"))
    table = pd.read_csv(place.with_suffix(".csv"), keep_default_na=False)
    pd.testing.assert_frame_equal(table, to_table(certificate), check_dtype=False)
    assert sorted(path.name for path in place.parent.iterdir()) == ["c.csv", "c.json"]
    place.write_text("{")
    with pytest.raises(ValueError, match=r"c\.json is not a certificate"):
        read_certificate(place)
    place.write_text('{"format": 2}')
    with pytest.raises(ValueError, match="its format is 2"):
        read_certificate(place)
    for name in ("c.csv", "c", "c.JSON", ".json"):
        with pytest.raises(ValueError, match=r"a certificate is a \.json file"):
            write_certificate(certificate, tmp_path / name)


FORMULAS = ["=1+1", "+fox", "-fox", "@fox", "\tfox", "\rfox", "'fox", "''fox", "＝fox", "fox=1"]


def test_no_cell_of_the_table_is_a_formula_and_every_text_can_be_had_back(tmp_path):
    certificate = certify(found([f"{name}, a fox" for name in FORMULAS], FORMULAS), corpus="=x()")
    write_certificate(certificate, tmp_path / "c.json")
    with (tmp_path / "c.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell[:1] in {*"=+-@\t\r\n＝＋－＠"}]
    for row, exact in zip(rows, to_table(certificate).to_dict("records"), strict=True):
        texts = {name: cell.removeprefix("'") for name, cell in row.items()}
        assert texts == {name: str(value) for name, value in exact.items()}
    assert [c["name"] for c in read_certificate(tmp_path / "c.json")["concepts"]] == FORMULAS


def test_files_that_are_not_ours_are_not_replaced(certificate, tmp_path):
    own = tmp_path / "birds.csv"
    for content in ("name,synonyms\nfox,renard\n", "", "\ufeffname,phrase,scale"):
        own.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"birds\.csv is not from a certificate"):
            write_certificate(certificate, tmp_path / "birds.json")
        assert own.read_text(encoding="utf-8") == content
        assert not (tmp_path / "birds.json").exists()
    for content in ("", "[]", '{"format": "mine"}', "[" * 100_000):
        (tmp_path / "notes.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"notes\.json is not from a certificate"):
            write_certificate(certificate, tmp_path / "notes.json")
        assert (tmp_path / "notes.json").read_text(encoding="utf-8") == content
    for _ in range(2):
        write_certificate(certificate, tmp_path / "ours.json")


def test_files_stand_in_it_with_their_hashes_and_a_bad_one_leaves_it_undecided(tmp_path):
    place = tmp_path / "captions"
    place.mkdir()
    pl.DataFrame({"caption": SMALL}).write_parquet(place / "0.parquet")
    pl.DataFrame({"caption": LARGE}).write_parquet(place / "1.parquet")
    whole = certify(found(place), corpus="tiny")
    files = whole["scales"]["tiny"]["files"]
    for file in files:
        content = (place / file["file"]).read_bytes()
        assert file["fingerprint"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    content = (place / "1.parquet").read_bytes()
    (place / "1.parquet").write_bytes(content[:-50])
    part = certify(found(place), corpus="tiny")
    assert not part["scales"]["tiny"]["complete"]
    verdicts = to_table(part).set_index("name")["verdict"].to_dict()
    assert verdicts["fox"] == "ip" and verdicts["yeti"] == verdicts["ant"] == "undecided"
    differences = compare_certificates(whole, part)
    changed = differences[differences["what"] == "verdict"].set_index("name")
    assert changed.loc["yeti", ["first", "second"]].tolist() == ["oop", "undecided"]
    assert {"complete", "captions", "file 1.parquet"} <= set(differences["what"])


def test_certificates_compare_equal_only_if_they_agree(certificate):
    same = certify({"small": found(SMALL), "large": found()}, corpus="tiny", corpus_version="1")
    assert compare_certificates(certificate, {**same, "made": "later"}).empty
    other = certify(
        {"small": found(SMALL), "large": found([*LARGE, "yeti"])}, corpus="tiny", corpus_version="2"
    )
    rows = compare_certificates(certificate, other)
    assert ["yeti", "large", "verdict", "oop", "ip"] in rows.values.tolist()
    assert ["", "", "corpus version", "1", "2"] in rows.values.tolist()
    assert set(rows["name"]) == {"", "yeti"}
    fewer = certify({"small": found(SMALL)}, corpus="tiny", corpus_version="1")
    assert (compare_certificates(certificate, fewer)["second"] == "not there").all()


def test_a_count_that_falls_with_the_scale_is_found(certificate):
    assert check_scales(certificate).empty
    upside_down = certify({"small": found(), "large": found(SMALL)}, corpus="tiny")
    falls = check_scales(upside_down)
    assert set(falls["name"]) == {"fox", "ant", "fire ant", "café"}
    row = falls.query("name == 'fox' and level == 'phrase'").iloc[0]
    assert row[["captions_smaller", "captions_larger"]].tolist() == [2, 1]


def test_surveys_of_one_certificate_ask_the_same():
    with pytest.raises(ValueError, match="same concepts"):
        certify({"a": found(), "b": found(names=NAMES[:2])}, corpus="tiny")


def test_homonyms_are_warned_of():
    captions = [f"computer mouse {k}" for k in range(9)] + ["a mouse"] + ["a cat of mine"] * 10
    listed = certify(
        found(captions, ["mouse", "cat", "bat"]), corpus="x", homonyms={"bat": "animal or club"}
    )
    notes = {concept["name"]: concept["warnings"] for concept in listed["concepts"]}
    assert notes["mouse"] == ["perhaps a homonym: 9 of 10 examples have 'computer mouse'"]
    assert notes["cat"] == [] and notes["bat"] == ["homonym: animal or club"]


def test_unspaced_names_found_only_alone_are_not_proven_absent():
    with pytest.warns(UserWarning):
        alone = certify(found(["黒い猫です"], ["猫"]), corpus="x")
    anywhere = certify(found(["黒い犬です"], ["猫"], unspaced="substring"), corpus="x")
    assert to_table(alone)["verdict"].item() == "undecided"
    assert to_table(anywhere)["verdict"].item() == "oop"
    assert "script without spaces" in to_table(alone)["warnings"].item()


def test_frequency_curve_draws_sorted_counts():
    table = pd.DataFrame({"scale": ["s"] * 4 + ["l"] * 4, "captions": [3, 0, 9, 1, 4, 1, 9, 2]})
    axis = figures.frequency_curve(table).axes[0]
    curves = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
    assert curves == {"s (1 in no caption)": [9, 3, 1], "l (0 in no caption)": [9, 4, 2, 1]}
    with pytest.raises(ValueError, match="captions"):
        figures.frequency_curve(table[["scale"]])
