"""Split files that nobody should trust, links out of the folder, bombs; and the generator."""

import copy
import io
import json
import os
import resource
import shutil
import struct
import sys
import unicodedata
import zlib
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lbutils._util import file_name
from lbutils.data import benchmark, laion_beyond
from lbutils.data import folder as layout
from lbutils.data.benchmark import load_benchmark
from lbutils.measure import records

# A folder of the test's own for each example costs more than the example.
LOOSE = settings(
    max_examples=examples(80),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return layout.generate(tmp_path_factory.mktemp("generated") / "benchmark", ["Animals"])


@pytest.fixture
def root(generated, tmp_path):
    """A copy to damage."""
    return shutil.copytree(generated, tmp_path / "benchmark")


@pytest.fixture
def split_file(root):
    return root / "Animals3_OOP" / "split_Xin_Animals3_OOP.json"


@pytest.fixture
def secret(tmp_path):
    """An image outside of the benchmark's folder."""
    folder = tmp_path / "outside"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "secret.jpg")
    return folder / "secret.jpg"


def change(file, split, key, **fields):
    content = json.loads(file.read_text())
    content[split][key].update(fields)
    file.write_text(json.dumps(content))


def defects(root):
    """Kind and detail of what the integrity report finds; IP images have no captions upstream."""
    report = load_benchmark(root).report()
    return report.loc[report["kind"] != "no captions", ["kind", "detail"]].to_numpy().tolist()


# --- hostile entries -----------------------------------------------------------------------

HOSTILE = {
    "up": ({"image_name": "../../../outside/secret.jpg"}, "leaves the folder"),
    "up from the class": ({"image_name": "animal oop 0/../../x.jpg"}, "leaves the folder"),
    "up, in other signs": ({"image_name": "..\\..\\outside\\secret.jpg"}, "leaves the folder"),
    "absolute": ({"image_name": "/etc/passwd"}, "leaves the folder .* absolute"),
    "class is up": ({"classname": ".."}, "leaves the folder"),
    "class is a path": ({"classname": "a/b"}, "classname that is a path"),
    "class is absolute": ({"classname": "/etc"}, "classname that is a path"),
    "class is here": ({"classname": "."}, "cannot name a file"),
    "class is empty": ({"classname": ""}, "cannot name a file"),
    "class with a zero": ({"classname": "a\0b"}, "cannot name a file"),
    "class with half a character": ({"classname": "a\ud800"}, "cannot name a file"),
    "class as long as a book": ({"classname": "a" * 300}, "more than 255 bytes"),
    "class is a number": ({"classname": 7}, "classname that is no text"),
    "class is a list": ({"classname": ["a"]}, "classname that is no text"),
    "class is null": ({"classname": None}, "classname that is no text"),
    "image is a number": ({"image_name": 7}, "image_name that is no text"),
    "image is empty": ({"image_name": ""}, "cannot name a file"),
    "image is a folder": ({"image_name": "animal oop 0/"}, "cannot name a file"),
    "label is null": ({"label": None}, "label that is no whole number"),
    "label is half": ({"label": 0.5}, "label that is no whole number"),
    "label is true": ({"label": True}, "label that is no whole number"),
    "label is a word": ({"label": "one"}, "label that is no whole number"),
    "label is not a number": ({"label": float("nan")}, "label that is no whole number"),
    "label is infinite": ({"label": float("inf")}, "label that is no whole number"),
    "label is below zero": ({"label": -1}, "label that is no whole number"),
    "label is huge": ({"label": 10**30}, "label that is no whole number"),
    "label of another class": ({"label": 2}, "gives 'animal oop 0' label 2, but entry '0' of"),
    "class of another label": ({"classname": "other"}, "gives label 0 to 'other', but entry '0'"),
    "id is a number": ({"id": 7}, "id that is no text"),
    "id is empty": ({"id": ""}, "id that is no text"),
    "INFO is a text": ({"INFO": "caption"}, "INFO that is no object"),
    "INFO is a list": ({"INFO": ["caption"]}, "INFO that is no object"),
    "caption is a number": ({"INFO": {"Refined_caption3": 3}}, "Refined_caption3 that is no text"),
    "caption is an object": ({"INFO": {"Refined_caption3": {}}}, "Refined_caption3 that is no"),
}


@pytest.mark.parametrize(("fields", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_entries_are_refused_by_their_index(root, split_file, fields, message):
    change(split_file, "val", "1", **fields)
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark(root)
    text = str(caught.value)
    assert f"{split_file}: entry '1' of val" in text
    assert "\n" not in text and len(text) < 400


def test_an_id_of_two_images_is_refused(root, split_file):
    change(split_file, "val", "0", id="same")
    assert load_benchmark(root)["Animals"].oop.val.image(0).size == (32, 32)
    change(split_file, "test", "1", id="same")
    with pytest.raises(ValueError, match="has the id of Animals3_OOP/images/animal oop 0"):
        load_benchmark(root)


def test_an_id_that_is_the_path_of_another_image_is_refused(root, split_file):
    """Else that image would be read in the other's place."""
    first, second = load_benchmark(root)["Animals"].oop.train.ids[:2]
    for row, other in ((0, second), (1, first)):
        before = split_file.read_text()
        change(split_file, "train", str(row), id=other)
        with pytest.raises(ValueError, match="has the id of"):
            load_benchmark(root)
        split_file.write_text(before)


def test_an_id_may_be_anything_and_leads_nowhere(root, split_file, secret):
    change(split_file, "val", "0", id=str(secret))
    split = load_benchmark(root)["Animals"].oop.val
    assert split.ids[0] == str(secret)
    inside = root / "Animals3_OOP" / "images"
    assert split.source.path(split.ids[0]).is_relative_to(inside)


def test_labels_may_be_written_as_the_authors_code_reads_them(root, split_file):
    before = load_benchmark(root)["Animals"].oop.val
    change(split_file, "val", "1", label="0")
    change(split_file, "val", "0", label=0.0, INFO={"Refined_caption3": float("nan")})
    after = load_benchmark(root)["Animals"].oop.val
    assert after.labels.tolist() == before.labels.tolist() and after.ids == before.ids
    assert after.captions[0] is None and after.captions[1:] == before.captions[1:]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_json(root, split_file, share):
    text = split_file.read_text()
    split_file.write_text(text[: int(len(text) * share)])
    with pytest.raises(ValueError, match="not readable JSON, download it again"):
        load_benchmark(root)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"train": ' * 50_000,
        '{"train": ' + "1" * 5000 + "}",
        '{"train": "entries"}',
        '{"train": 7}',
        "null",
        '{"val": {"0": null}}',
        '{"val": [[]]}',
    ],
)
def test_json_of_another_make(root, split_file, text):
    split_file.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_benchmark(root)
    assert str(split_file) in str(caught.value) and len(str(caught.value)) < 400


def test_a_split_file_that_is_no_file(root, split_file):
    split_file.unlink()
    os.mkfifo(split_file)  # to read it would wait for ever
    with pytest.raises(ValueError, match="is no file"):
        load_benchmark(root)


def test_bytes_that_are_no_text(root, split_file):
    split_file.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ValueError, match="not readable JSON"):
        load_benchmark(root)


def test_more_classes_than_a_domain_may_have(root, split_file):
    entry = {"image_name": "x.jpg"}
    train = {str(i): {**entry, "classname": f"class {i}", "label": i} for i in range(10_002)}
    split_file.write_text(json.dumps({"train": train}))
    with pytest.raises(ValueError, match=r"entry '10000' of train .* beyond the 10,000"):
        load_benchmark(root)


def test_a_split_file_beyond_all_size(root, split_file):
    with split_file.open("r+b") as file:
        file.truncate(layout.MAX_JSON_BYTES + 1)  # a sparse file: no byte of it is read
    with pytest.raises(ValueError, match="more than any split file"):
        load_benchmark(root)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["..", "/", "a/..", "../a", "/etc/passwd", "\\..\\", "animal oop 0", "0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
fields = st.sampled_from(["classname", "image_name", "label", "INFO", "superclass", "s_label", "x"])


@LOOSE
@given(data=st.data())
def test_no_entry_makes_the_loader_leave_its_folder(root, split_file, data):
    """Whatever an entry holds: it is refused in one line, or all ids stay in the folder."""
    content = copy.deepcopy(json.loads((root / "pristine.json").read_text()))
    split = data.draw(st.sampled_from(layout.SPLITS))
    if data.draw(st.booleans()):
        content[split]["0"].update(data.draw(st.dictionaries(fields, json_values, min_size=1)))
    else:
        content[split] = data.draw(json_values)
    split_file.write_text(json.dumps(content))
    try:
        bench = load_benchmark(root)
    except ValueError as error:
        assert str(split_file) in str(error) and "\n" not in str(error)
        return
    images = (root / "Animals3_OOP" / "images").resolve()
    for _, _, found in bench.splits():
        for image_id in found.ids:
            if image_id.startswith("Animals3_OOP"):
                assert (root / image_id).resolve().is_relative_to(images)


@pytest.fixture(autouse=True)
def _pristine(request):
    if "split_file" in request.fixturenames:
        file = request.getfixturevalue("split_file")
        (file.parents[1] / "pristine.json").write_text(file.read_text())


@LOOSE
@given(
    texts=st.lists(
        st.sampled_from(["..", ".", "a", "b c", "images", "", "~", "x.jpg", "\\", "/", "//"]),
        min_size=1,
        max_size=6,
    ),
    joint=st.sampled_from(["/", "\\", "//"]),
    start=st.sampled_from(["", "/", "//", "\\", "C:\\", "animal oop 0/"]),
)
def test_no_image_name_leads_out(root, split_file, secret, texts, joint, start):
    split_file.write_text((root / "pristine.json").read_text())
    change(split_file, "test", "2", image_name=start + joint.join(texts))
    try:
        split = load_benchmark(root)["Animals"].oop.test
    except ValueError as error:
        assert "entry '2' of test" in str(error)
        return
    place = (root / split.ids[2]).resolve()
    assert place.is_relative_to((root / "Animals3_OOP" / "images" / "animal oop 0").resolve())


def test_json_may_begin_with_a_mark_of_its_encoding(root, split_file):
    before = load_benchmark(root)["Animals"].oop.train.ids
    for file in (split_file, root / layout.LEFT_OUT):
        text = file.read_text() if file.exists() else "[]"
        file.write_bytes(text.encode("utf-8-sig"))
    assert load_benchmark(root)["Animals"].oop.train.ids == before


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two names are one file")
def test_files_named_by_another_system(tmp_path):
    """The list beside them has accents in one character, the names on disk in two."""
    names = ["caf\u00e9", "\u00c5se", "plain"]
    content = io.BytesIO()
    entries = []
    for label, name in enumerate(names):
        for i in range(3):
            content = io.BytesIO()
            Image.new("RGB", (4, 4), (80 * label, 50 * i, 9)).save(content, "PNG")
            file = f"{name} {i}.png"
            entries.append(
                layout.Entry(layout.SPLITS[i], label, name, file, content.getvalue(), None)
            )
    folder = tmp_path / "Food3_OOP"
    layout.write_released(folder, entries)
    expected = [
        split.image(i).tobytes()
        for _, _, split in load_benchmark(tmp_path).splits()
        for i in range(len(split))
    ]
    for path in sorted((folder / "images").rglob("*"), reverse=True):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    bench = load_benchmark(tmp_path)
    found = [split.image(i).tobytes() for _, _, split in bench.splits() for i in range(len(split))]
    assert found == expected
    kinds = set(bench.report()["kind"])
    assert not kinds & {"missing file", "unlisted file", "empty class", "unreadable file"}
    assert bench["Food"].oop.train.key


# --- links ---------------------------------------------------------------------------------


def test_an_image_that_links_out_is_not_read(root, secret):
    split = load_benchmark(root)["Animals"].oop.train
    image = root / split.ids[0]
    image.unlink()
    image.symlink_to(secret)
    for act in (lambda: split.image(0), lambda: split.source.read(split.ids[0]), lambda: split.key):
        with pytest.raises(ValueError, match="leads out of"):
            act()
    ((kind, detail),) = defects(root)
    assert kind == "unreadable file" and "leads out of" in detail


def test_a_loop_of_links_is_not_followed(root):
    split = load_benchmark(root)["Animals"].oop.train
    image = root / split.ids[0]
    image.unlink()
    image.symlink_to(image.name)
    with pytest.raises((ValueError, FileNotFoundError), match=r"leads out of|missing"):
        split.image(0)


def test_a_class_that_links_out_is_refused_by_its_entry(root, split_file, secret):
    folder = root / "Animals3_OOP" / "images" / "animal oop 1"
    folder.rename(secret.parent / "class")
    folder.symlink_to(secret.parent / "class")
    with pytest.raises(ValueError, match=r"entry '4' of train leaves the folder .* link out"):
        load_benchmark(root)


def test_a_folder_or_split_file_that_links_out_is_refused(root, split_file, secret):
    moved = secret.parent / split_file.name
    split_file.rename(moved)
    split_file.symlink_to(moved)
    with pytest.raises(ValueError, match=r"split_Xin_Animals3_OOP\.json leads out of"):
        load_benchmark(root)
    (root / "Animals2_IP").rename(secret.parent / "Animals2_IP")
    (root / "Animals2_IP").symlink_to(secret.parent / "Animals2_IP")
    with pytest.raises(ValueError, match=r"Animals2_IP leads out of"):
        load_benchmark(root)


def test_links_within_the_folder_and_to_it_are_followed(root, tmp_path):
    split = load_benchmark(root)["Animals"].oop.train
    pixels = split.image(1).tobytes()
    (root / split.ids[0]).unlink()
    (root / split.ids[0]).symlink_to((root / split.ids[1]).name)
    (tmp_path / "link").symlink_to(root)
    assert load_benchmark(tmp_path / "link")["Animals"].oop.train.image(0).tobytes() == pixels


def test_a_snapshot_of_the_hub_links_to_its_blobs_only(root, tmp_path, secret):
    repository = tmp_path / "hub" / "datasets--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.parent.mkdir()
    root.rename(snapshot)
    split = load_benchmark(snapshot)["Animals"].oop.train
    for number, image_id in enumerate(split.ids):
        blob = repository / "blobs" / str(number)
        (snapshot / image_id).rename(blob)
        (snapshot / image_id).symlink_to(blob)
    (snapshot / split.ids[1]).unlink()
    (snapshot / split.ids[1]).symlink_to(secret)
    split = load_benchmark(snapshot)["Animals"].oop.train
    assert split.image(0).size == (32, 32)
    with pytest.raises(ValueError, match="leads out of"):
        split.image(1)


# --- bombs ---------------------------------------------------------------------------------


def bomb(width, height):
    """A PNG of `width` x `height` black pixels in a few bytes, by the format's specification."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(min(height, 64)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = rows + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7_100, 10_000, 60_000])
def test_a_decompression_bomb_is_refused(root, side):
    split = load_benchmark(root)["Animals"].oop.train
    content = bomb(side, side)
    assert len(content) < 20_000
    (root / split.ids[0]).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"refused as a decompression bomb, .*pixels") as caught:
        split.image(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Decoded, the smallest of them would take 150 MB.
    assert grown * (1 if sys.platform == "darwin" else 1024) < 100e6
    assert split.ids[0] in str(caught.value) and "\n" not in str(caught.value)
    ((kind, detail),) = defects(root)
    assert kind == "unreadable file" and "pixels" in detail


@pytest.mark.parametrize("form", ["EPS", "PPM"])
def test_formats_that_are_not_of_the_web_are_no_images(root, form):
    """EPS would start Ghostscript where there is one."""
    split = load_benchmark(root)["Animals"].oop.train
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, form)
    (root / split.ids[0]).write_bytes(picture.getvalue())
    with pytest.raises(ValueError, match="is unreadable"):
        split.image(0)


# --- names, draws and manifests ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Animals92_OOP", ("Animals", "Animals", 92, "oop")),
        ("Plants_Fugi113_OOP", ("Plants_Fungi", "Plants_Fugi", 113, "oop")),
        ("plants_fungi56_ip", ("Plants_Fungi", "plants_fungi", 56, "ip")),
        ("Insects_Spiders_IP", ("Insects_Spiders", "Insects_Spiders", None, "ip")),
        ("Attire54_OOP", ("Attire", "Attire", 54, "oop")),
        ("Birds3_OOP", ("Birds", "Birds", 3, "oop")),
        ("Animals92", None),
        ("_OOP", None),
    ],
)
def test_names_of_folders(name, expected):
    assert layout.parse_folder(name, layout.read_hints("laion_beyond")) == expected


def test_the_papers_number_of_classes_decides_between_folders(tmp_path):
    for oop in (92, 43, 5):
        layout.generate(tmp_path / str(oop), ["Animals"], oop=oop, ip=1, images=(1, 1, 1), side=4)
    root = tmp_path / "92"
    (tmp_path / "43" / "Animals43_OOP").rename(root / "Animals43_OOP")
    assert len(load_benchmark(root)["Animals"].oop.names) == 92
    assert len(load_benchmark(root, scale="2b")["Animals"].oop.names) == 43
    (root / "Animals92_OOP").rename(root / "Animals80_OOP")
    with pytest.raises(ValueError, match="Animals43_OOP and .*Animals80_OOP hold the same subset"):
        load_benchmark(root)


def test_draws_beside_a_split_file(root):
    folder = root / "Animals3_OOP"
    train = load_benchmark(root)["Animals"].oop.train
    files = [image_id.rpartition("/")[2] for image_id in train.ids]
    draws = {"7": {"animal oop 1": [files[6], files[4]], "animal oop 0": [files[2]]}}
    (folder / layout.FEW_SHOT).write_text(json.dumps(draws))
    oop = load_benchmark(root)["Animals"].oop
    assert oop.few_shot(1, seed=7).ids == (train.ids[2], train.ids[6])
    assert oop.few_shot(2, seed=7).ids == (train.ids[2], train.ids[6], train.ids[4])
    with pytest.raises(ValueError, match="have 2 images a class at most.*shots=3 is beyond them"):
        oop.few_shot(3, seed=7)
    with pytest.raises(ValueError, match="no few-shot draw 0"):
        oop.few_shot(1, seed=0)


@pytest.mark.parametrize(
    "draws",
    [
        {},
        [],
        {"0": {}},
        {"first": {"animal oop 0": []}},
        {"0": []},
        {"0": {"nobody": ["x.jpg"]}},
        {"0": {"animal oop 0": "animal oop 0_train_0.jpg"}},
        {"0": {"animal oop 0": ["../../../outside/secret.jpg"]}},
        {"0": {"animal oop 0": ["animal oop 1_train_0.jpg"]}},
        {"0": {"animal oop 0": ["animal oop 0_test_0.jpg"]}},
        {"0": {"animal oop 0": ["animal oop 0_train_0.jpg"] * 2}},
        {"0": {"animal oop 0": [{"a": 1}]}},
    ],
    ids=str,
)
def test_bad_draws_are_refused(root, draws):
    file = root / "Animals3_OOP" / layout.FEW_SHOT
    file.write_text(json.dumps(draws))
    with pytest.raises(ValueError) as caught:
        load_benchmark(root)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"name": "mini"},
        {"name": "mini", "scale": 3, "hints": {}, "compositional": {}},
        {"name": "mini", "scale": "small", "hints": {"Animals": 1}, "compositional": {}},
        {"name": "mini", "scale": "small", "hints": {}, "compositional": {"Animals": "x"}},
        {"name": "mini", "scale": "small", "hints": {}, "compositional": {"Animals": [["x"]]}},
    ],
    ids=str,
)
def test_bad_manifests_are_refused(root, content):
    (root / layout.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"benchmark\.json does not say"):
        load_benchmark(root)


@pytest.mark.parametrize("domain", ["Food", "../outside", "/etc", "*", "[", ""])
def test_a_manifest_whose_domains_are_not_there(root, domain):
    content = {"name": "x", "scale": "y", "hints": {domain: "z"}, "compositional": {}}
    (root / layout.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks .*export the benchmark again"):
        load_benchmark(root)


# --- names that become parts of paths ------------------------------------------------------

NO_NAMES = {
    "up": "../Animals",
    "up, in other signs": "..\\Animals",
    "absolute": "/Animals",
    "below": "a/Animals",
    "below, in other signs": "a\\Animals",
    "drive": "C:Animals",
    "stream": "Animals:x",
    "zero": "Ani\0mals",
    "line": "Ani\nmals",
    "colour": "\x1b[31mAnimals",
    "half a character": "Animals\ud800",
    "dot": "Animals.",
    "space": "Animals ",
    "space before": " Animals",
    "hidden": ".Animals",
    "star": "Animals*",
    "book": "Animals" + "-" * 250,
}


@pytest.mark.parametrize("domain", NO_NAMES.values(), ids=NO_NAMES)
def test_a_domain_that_cannot_name_a_file(root, domain):
    """Exports, learned names and folders of words are named after domains."""
    for kind in ("IP", "OOP"):
        (folder,) = root.glob(f"Animals*_{kind}")
        # Spelt as a folder's name it is one that the manifest may rename to anything alike.
        folder.rename(root / f"{layout.plain(domain)[:200]}1_{kind}")
    content = {"name": "x", "scale": "400m", "hints": {domain: "z"}, "compositional": {}}
    (root / layout.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"benchmark\.json has a domain that") as error:
        load_benchmark(root)
    assert "\n" not in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("name", ["CON", "nul.txt", "Com1", "lpt¹", "aux ", "CONIN$", "prn.a.b"])
def test_devices_are_no_names(name):
    with pytest.raises(ValueError, match="cannot name a file on every system"):
        file_name(name)


@pytest.mark.parametrize("name", [None, 7, b"x", ["x"], "", ".", "..", "a" * 256, "é" * 128])
def test_what_is_no_name_at_all(name):
    for portable in (True, False):
        with pytest.raises(ValueError, match="name that"):
            file_name(name, portable=portable)


@given(st.text(max_size=12))
@settings(max_examples=examples(300))
def test_a_name_stays_where_it_is_put(text):
    for portable in (True, False):
        try:
            name = file_name(text, portable=portable)
        except ValueError:
            continue
        place = Path("/folder") / name
        assert place.parent == Path("/folder") and place.name == text
        assert os.path.normpath(place) == str(place)
        if portable:
            there = PureWindowsPath("c:/folder") / name
            assert there.parent == PureWindowsPath("c:/folder") and there.name == text


def test_released_classes_keep_their_names(root, split_file):
    """Such as "Mime Jr.", which Windows does not have in names."""
    (root / "Animals3_OOP" / "images" / "animal oop 0").rename(
        root / "Animals3_OOP" / "images" / "Mime Jr."
    )
    content = json.loads(split_file.read_text())
    for rows in content.values():
        for row in rows.values():
            if row["classname"] == "animal oop 0":
                row["classname"] = "Mime Jr."
    split_file.write_text(json.dumps(content))
    bench = load_benchmark(root)
    assert bench["Animals"].oop.names[0] == "Mime Jr."
    assert bench["Animals"].oop.train.image(0).size == (32, 32)
    again = load_benchmark(laion_beyond.export(bench, root.parent / "out"))
    assert again["Animals"].oop.names == bench["Animals"].oop.names


def test_a_hand_made_domain_is_not_exported_elsewhere(root, tmp_path):
    bench = load_benchmark(root)
    domain = bench["Animals"]
    with pytest.raises(ValueError, match="has a domain that leaves the folder"):
        replace(domain, name="../Animals")
    away = replace(domain, ip=replace(domain.ip, domain="../../away"))
    with pytest.raises(ValueError, match="has a domain that leaves the folder"):
        laion_beyond.export(benchmark.Benchmark("x", "400m", [away]), tmp_path / "deep" / "out")
    assert not (tmp_path / "away2_IP").exists()


def test_a_record_is_not_written_elsewhere(tmp_path):
    for kind in ("../x", "a/b", "x\0"):
        with pytest.raises(ValueError, match="has a kind that"):
            records.write_record(tmp_path, kind, {}, [])


# --- the generator -------------------------------------------------------------------------


def test_the_generator_writes_what_the_authors_release(tmp_path):
    """Read as the authors' loader reads it: by pattern, with `os.path.join`, by these keys."""
    root = layout.generate(tmp_path, ["Animals", "Plants_Fungi"])
    assert sorted(path.name for path in root.iterdir()) == [
        "Animals2_IP",
        "Animals3_OOP",
        "Plants_Fugi2_IP",
        "Plants_Fugi3_OOP",
    ]
    (folder,) = root.glob("Plants_Fugi*_OOP")
    (file,) = folder.glob("split_Xin*.json")
    assert file.name == "split_Xin_Plants_Fugi3_OOP.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    assert {split: len(entries) for split, entries in content.items()} == {
        "train": 12,
        "val": 6,
        "test": 9,
    }
    for entries in content.values():
        assert list(entries) == [str(i) for i in range(len(entries))]
        for item in entries.values():
            assert set(item) == {
                "classname",
                "image_name",
                "label",
                "superclass",
                "s_label",
                "INFO",
            }
            path = folder / "images" / item["classname"] / item["image_name"]
            with Image.open(path) as image:
                assert image.format == "JPEG"
            assert item["classname"] in item["INFO"].get("Refined_caption3", "")
    (file,) = root.glob("Plants_Fugi*_IP/split_Xin*.json")
    content = json.loads(file.read_text())
    assert not content["train"] and not content["val"] and "INFO" not in content["test"]["0"]


def test_a_generated_folder_is_sound_and_the_same_each_time(tmp_path):
    one = load_benchmark(layout.generate(tmp_path / "one"))
    report = one.report()
    assert set(report["kind"]) == {"folder name", "no captions"}
    two = load_benchmark(layout.generate(tmp_path / "two"))
    other = load_benchmark(layout.generate(tmp_path / "other", seed=1))
    pixels = [b["Plants_Fungi"].ip.test.image(0).tobytes() for b in (one, two, other)]
    assert pixels[0] == pixels[1] != pixels[2]
    # Classes can be told apart: every image is nearest to the mean colour of its own class.
    test = one["Animals"].oop.test
    colours = np.array([np.asarray(test.image(i)).mean((0, 1)) for i in range(len(test))])
    means = np.array([colours[test.labels == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(colours[:, None] - means, axis=2).argmin(1)
    assert nearest.tolist() == test.labels.tolist()


def test_the_generator_names_an_unknown_domain(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'Animals'"):
        layout.generate(tmp_path, ["Animal"])


def test_a_folder_is_not_written_over(root):
    with pytest.raises(FileExistsError, match="there already"):
        layout.write_released(root / "Animals3_OOP", [])


@pytest.mark.parametrize("names", [("x.jpg", "x.jpg"), ("x.jpg", "X.jpg")])
def test_two_images_of_one_name_are_not_written(tmp_path, names):
    entries = [layout.Entry("train", 0, "a", name, b"x", None) for name in names]
    with pytest.raises(ValueError, match="two images would be"):
        layout.write_released(tmp_path / "Animals1_OOP", entries)
    assert not list(tmp_path.rglob("*.json"))
