"""Folders of images, hostile ones too, and the checks before names are learned from them."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.stats import binom
from sklearn.metrics import confusion_matrix

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils.data import images
from lbutils.data.benchmark import Split
from lbutils.learn import checks
from lbutils.learn.checks import check, read_folder, write_folder
from lbutils.models.features import image_features

links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


def picture(seed=0, size=(40, 30), mode="RGB"):
    """Smooth patches of colour, another for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def put(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images."""
    root = tmp_path / "words"
    for i, name in enumerate(("numbat", "red panda")):
        for j, suffix in enumerate(("png", "JPEG", "webp")):
            put(root / name / f"{j}.{suffix}", picture(10 * i + j))
    return root


def header(width, height):
    """A PNG that says how large it is, and holds nothing."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    data = b"IDAT" + zlib.compress(b"")
    body += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + body


def rows(found):
    return {(row["class"], row.image): row for _, row in found.iterrows()}


# --- folders -------------------------------------------------------------------------------


def test_a_folder_becomes_a_split(folder):
    put(folder / ".hidden" / "1.png")
    (folder / "numbat" / ".DS_Store").write_bytes(b"x")
    (folder / "readme.md").write_text("words")
    split, report = read_folder(str(folder))
    assert split.names == ("numbat", "red panda")
    assert split.ids[:2] == ("numbat/0.png", "numbat/1.JPEG") and len(split) == 6
    assert split.labels.tolist() == [0, 0, 0, 1, 1, 1] and set(split.captions) == {None}
    assert np.array_equal(np.asarray(split.image(0)), np.asarray(picture(0)))
    assert report.empty
    assert list(report) == ["severity", "class", "image", "finding", "advice"]


def test_what_is_written_is_read(folder, tmp_path):
    (folder / "numbat" / "0.txt").write_text("a numbat, with ”quotes“\nin two lines", "utf-8")
    split, _ = read_folder(folder)
    again, report = read_folder(write_folder(split, tmp_path / "copy"))
    assert report.empty and again.names == split.names
    assert again.captions == split.captions
    assert again.captions[0] == "a numbat, with ”quotes“ in two lines"
    for i in range(len(split)):
        assert np.array_equal(np.asarray(again.image(i)), np.asarray(split.image(i)))
    with pytest.raises(ValueError, match="class name that leaves the folder"):
        write_folder(replace(split, names=("../numbat", "red panda")), tmp_path / "out")
    assert not (tmp_path / "numbat").exists()


def test_a_folder_written_twice_holds_the_second_split_only(folder, tmp_path):
    split, _ = read_folder(folder)
    place = write_folder(split, tmp_path / "out")
    (place / "numbat" / "02.jpg").write_bytes(b"cut short")
    fewer = split.take([3, 4])
    again, report = read_folder(write_folder(fewer, place))
    assert report.empty and again.names == ("red panda",) and len(again) == 2
    assert [again.image(i).tobytes() for i in (0, 1)] == [fewer.image(i).tobytes() for i in (0, 1)]


def test_a_folder_of_somebody_else_is_not_written_to(folder, tmp_path):
    split, _ = read_folder(folder)
    before = sorted(path.name for path in folder.rglob("*"))
    for place in (folder, put(tmp_path / "file.png")):
        with pytest.raises(FileExistsError, match="new or empty folder"):
            write_folder(split, place)
    assert sorted(path.name for path in folder.rglob("*")) == before
    place = write_folder(split, tmp_path / "out")
    with pytest.raises(ValueError, match="leaves the folder"):
        write_folder(replace(split, names=("../numbat", "red panda")), place)
    assert len(read_folder(place).split) == 6


def test_captions_from_both_places(folder):
    table = "file,caption\nnumbat/0.png,first\nnumbat/1.JPEG,second\nlost/0.png,third\n"
    (folder / "captions.csv").write_text(table, "utf-8-sig")
    (folder / "red panda" / "captions.csv").write_text("file,caption\n0.png,fourth\n")
    (folder / "numbat" / "1.txt").write_text("beside it")
    split, report = read_folder(folder)
    assert split.captions == ("first", "beside it", None, "fourth", None, None)
    assert report.finding.tolist() == ["1 of 3 rows of captions.csv name no image"]


@pytest.mark.parametrize(
    ("file", "content", "finding"),
    [
        ("captions.csv", b"file;caption\na;b\n", "captions.csv not read: 'file'"),
        ("captions.csv", b"file,caption\n\xff\xfe,b\n", "captions.csv not read: 'utf-8'"),
        ("captions.csv", b'file,caption\n"' + b"x" * 200_000 + b'",b\n', "field larger than"),
        ("numbat/0.txt", b"x" * 20_000, "caption '0.txt' not read: it has more than 10,000 bytes"),
        ("numbat/0.txt", b"\xff\xff", "caption '0.txt' not read: 'utf-8'"),
    ],
)
def test_captions_that_cannot_be_read_are_reported(folder, file, content, finding):
    (folder / file).write_bytes(content)
    split, report = read_folder(folder)
    assert len(split) == 6 and set(split.captions) == {None}
    assert report.severity.tolist() == ["warning"] and finding in report.finding[0]


def test_places_that_are_no_folder_of_classes(folder, tmp_path):
    file = put(tmp_path / "one.png")
    flat = put(tmp_path / "flat" / "1.png").parent
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "numbat").mkdir(parents=True)
    for place, words in [
        (file, "is not a folder"),
        (flat, "no image that can be used"),
        (tmp_path / "empty", "no image that can be used"),
        (tmp_path / "hollow", "no image that can be used"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            read_folder(place)
        assert "\n" not in str(caught.value) and "one folder a class" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_folder(tmp_path / "nowhere")
    (folder / "empty class").mkdir()
    put(folder / "loose.png")
    (folder / "numbat" / "notes.pdf").write_bytes(b"%PDF")
    split, report = read_folder(folder)
    assert split.names == ("numbat", "red panda")
    assert report.severity.tolist() == ["error", "warning", "note"]
    assert report["class"].tolist() == ["empty class", "", "numbat"]
    assert report.image[1] == "loose.png" and report.finding[2] == "not read: notes.pdf"


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"", "the file is empty"),
        (b"not an image", "not an image in JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (header(20_000, 20_000), "more than 50,000,000 pixels"),
        (header(8000, 8000), "8000 x 8000 pixels where 50,000,000 are admitted"),
        (header(80, 80), "image file is truncated"),
    ],
    ids=["empty", "text", "bomb", "large", "hollow"],
)
def test_files_that_are_no_image_are_left_out(folder, content, finding):
    (folder / "numbat" / "bad.png").write_bytes(content)
    split, report = read_folder(folder)
    assert len(split) == 6 and "numbat/bad.png" not in split.ids
    row = rows(report)["numbat", "numbat/bad.png"]
    assert row.severity == "error" and finding in row.finding and "\n" not in row.finding
    assert len(report) == 1


def test_formats_are_told_by_content(folder):
    put(folder / "numbat" / "gif.png", format="GIF")
    put(folder / "numbat" / "jpeg.png", format="JPEG")
    put(folder / "numbat" / "page.tif", format="TIFF")
    put(folder / "numbat" / "ppm.png", format="PPM")
    split, report = read_folder(folder)
    assert {"numbat/gif.png", "numbat/jpeg.png", "numbat/page.tif"} <= {*split.ids}
    assert report.image.tolist() == ["numbat/ppm.png"]
    assert report.finding[0].startswith("not an image in JPEG, PNG")


def test_too_large_a_file_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 4000)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    size = put(folder / "numbat" / "big.png", Image.fromarray(noise)).stat().st_size
    split, report = read_folder(folder)
    assert len(split) == 6 and report.finding.tolist() == [
        f"has {size:,} bytes, and an image may have 4,000"
    ]


@links
def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    secret = put(tmp_path / "elsewhere" / "secret.png", picture(99))
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "numbat" / "out.png").symlink_to(secret)
    (folder / "numbat" / "0.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "captions.csv").symlink_to(tmp_path / "secret.txt")
    (folder / "numbat" / "broken.png").symlink_to(folder / "nothing.png")
    (folder / "numbat" / "loop.png").symlink_to(folder / "numbat" / "loop.png")
    (folder / "numbat" / "within.png").symlink_to(folder / "red panda" / "0.png")
    (folder / "stolen").symlink_to(secret.parent)
    split, report = read_folder(folder)
    assert split.names == ("numbat", "red panda") and len(split) == 7
    assert "numbat/within.png" in split.ids and set(split.captions) == {None}
    found = rows(report)
    assert found["numbat", "numbat/out.png"].finding.startswith("leads out of")
    assert "is missing" in found["numbat", "numbat/broken.png"].finding
    assert ("numbat", "numbat/loop.png") in found
    assert found["stolen", ""].finding == "a link out of the folder"
    assert report.finding.str.contains("captions.csv not read").any()
    for image in ("../elsewhere/secret.png", str(secret), "numbat/out.png"):
        with pytest.raises(ValueError, match="leads out of"):
            split.source.read(image)
    # The root itself may be reached by a link.
    (tmp_path / "door").symlink_to(folder)
    assert read_folder(tmp_path / "door").split.ids == split.ids


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
def test_what_would_block_is_not_opened(folder):
    os.mkfifo(folder / "numbat" / "pipe.png")
    os.mkfifo(folder / "numbat" / "0.txt")
    report = read_folder(folder).report
    assert rows(report)["numbat", "numbat/pipe.png"].finding == "is not a file"
    assert len(report) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_text(folder):
    (folder / os.fsdecode(b"\xff\xfe")).mkdir()
    (folder / "numbat" / "0.png").rename(folder / "numbat" / os.fsdecode(b"\xe9.png"))
    put(folder / "cafe\u0301" / "1.png")
    put(folder / "caf\u00e9" / "1.png")
    split, report = read_folder(folder)
    assert split.names == ("caf\u00e9", "numbat", "red panda") and len(split) == 6
    assert (report.severity == "error").sum() == 3
    report.to_csv().encode()


def test_large_turned_and_deep_images_come_upright(folder, monkeypatch):
    monkeypatch.setattr(checks, "LONGEST_SHORT_SIDE", 24)
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = put(folder / "numbat" / "a.jpg", picture(1, (40, 20)), exif=turned)
    put(folder / "numbat" / "b.png", picture(2, (96, 48)))
    deep = np.linspace(0, 65535, 20 * 20).astype(np.uint16).reshape(20, 20)
    put(folder / "numbat" / "c.png", Image.fromarray(deep))
    put(folder / "numbat" / "d.jpg", picture(3, (20, 20), "CMYK"))
    put(folder / "numbat" / "e.png", picture(4, (20, 20), "P"))
    split, report = read_folder(folder)
    assert report.empty
    seen = {image: split.image(i) for i, image in enumerate(split.ids)}
    upright = ImageOps.exif_transpose(Image.open(jpeg)).convert("RGB")
    assert upright.size == (20, 40)
    assert np.array_equal(np.asarray(seen["numbat/a.jpg"]), np.asarray(upright))
    assert seen["numbat/b.png"].size == (48, 24)
    assert np.array_equal(np.asarray(seen["numbat/c.png"])[..., 0], deep // 256)
    difference = np.asarray(seen["numbat/d.jpg"], int) - np.asarray(picture(3, (20, 20)), int)
    assert np.abs(difference).mean() < 8
    assert seen["numbat/e.png"].mode == "RGB"


def test_the_key_follows_the_content(folder):
    key = read_folder(folder).split.key
    put(folder / "numbat" / "0.png", picture(77))
    assert read_folder(folder).split.key != key


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    at=st.floats(0, 1),
    junk=st.binary(max_size=24),
    cut=st.booleans(),
)
def test_damage_is_read_or_reported_and_raises_nothing(tmp_path, kind, at, junk, cut):
    root = tmp_path / "damaged"
    put(root / "ant" / "1.png")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(5).save(buffer, kind, exif=exif)
    data = buffer.getvalue()
    place = int(at * len(data))
    data = data[:place] + junk + (b"" if cut else data[place + len(junk) :])
    (root / "ant" / "2.png").write_bytes(data)
    split, report = read_folder(root)
    assert (len(split) == 2) == report.empty
    assert len(split) + len(report) == 2 and not report.finding.str.contains("\n").any()


# --- checks --------------------------------------------------------------------------------


def clusters(number, spread=0.3, seed=0, dim=16):
    """Unit features around a direction per class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(number)), number)
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0][: len(number)]
    features = centres[labels] + spread * rng.normal(size=(len(labels), dim)) / np.sqrt(dim)
    return F.normalize(torch.tensor(features, dtype=torch.float32), dim=1), labels


class Drawn:
    """A source that makes an image of its id, so that equal ids give equal images."""

    advice = "draw it again"

    def read(self, image_id):
        buffer = io.BytesIO()
        picture(int(image_id.split("#")[0])).save(buffer, "PNG")
        return buffer.getvalue()

    def stamp(self, image_id):
        return image_id


def made(labels, names, captions=None):
    ids = tuple(f"{i}" for i in range(len(labels)))
    return Split(ids, labels, tuple(names), captions or (None,) * len(ids), Drawn())


def test_classes_without_a_single_image_are_reported(tiny_encoder):
    none = made(np.array([], int), ["ant", "bee"])
    found = check(tiny_encoder, none, features=torch.empty(0, 32))
    assert found.finding.tolist() == ["too few: 0 images"] * 2


def test_leave_one_out_is_that():
    features, labels = clusters([4, 1, 3, 2])
    found = checks.leave_one_out(features, labels, 5).numpy()
    vectors = features.numpy().astype(float)
    for i in range(len(labels)):
        for c in range(5):
            rest = [vectors[j] for j in range(len(labels)) if labels[j] == c and j != i]
            if not rest:
                assert np.isnan(found[i, c])
                continue
            mean = np.sum(rest, axis=0)
            assert found[i, c] == pytest.approx(vectors[i] @ mean / np.linalg.norm(mean), abs=1e-5)


def test_an_image_in_the_wrong_folder_is_found_and_no_other():
    features, labels = clusters([5, 5, 5])
    names = ("ant", "bee", "cow")
    assert not list(checks.odd_labels(features, made(labels, names)))
    wrong = labels.copy()
    wrong[0] = 2
    (row,) = checks.odd_labels(features, made(wrong, names))
    assert (row.name, row.image, row.finding) == ("cow", "0", "looks like 'ant'")
    # The rule does not depend on how wide an encoder's features lie apart.
    cone = F.normalize(features + 3 * F.normalize(features.mean(0), dim=0), dim=1)
    (same,) = checks.odd_labels(cone, made(wrong, names))
    assert same == row


def test_a_class_that_swallows_another_is_one_finding():
    features, labels = clusters([6, 6, 6])
    names = ("ant", "bee", "cow")
    twins = features.clone()
    twins[6:12] = features[:6]  # each image of either class has its like in the other
    found = {(row.name, row.finding) for row in checks.odd_labels(twins, made(labels, names))}
    assert found == {
        ("ant", "swallows 6 of 6 images of 'bee'"),
        ("bee", "swallows 6 of 6 images of 'ant'"),
    }
    predictions = np.r_[[1] * 4, 0, 2, [0] * 3, [1] * 3, [2] * 2, [0] * 4]
    table = confusion_matrix(labels, predictions)
    expected = {
        (names[j], f"swallows {table[i, j]} of 6 images of {names[i]!r}")
        for i in range(3)
        for j in range(3)
        if i != j and table[i, j] > 3
    }
    rows = list(checks.swallowed(labels, predictions, names))
    assert {(row.name, row.finding) for row in rows} == expected and expected


def test_a_scattered_class_is_one_finding_and_draws_nothing():
    features, labels = clusters([6, 6, 6, 6])
    names = ("ant", "bee", "cow", "dog")
    features[18:] = features[[0, 1, 6, 7, 12, 13]]  # a dog is an ant, a bee or a cow
    found = list(checks.odd_labels(features, made(labels, names)))
    assert [(row.name, row.image) for row in found] == [("dog", "")]
    assert found[0].finding == "scattered: 6 of 6 images lie with other classes"


def test_one_class_or_one_image_is_not_judged():
    features, labels = clusters([4])
    assert not list(checks.odd_labels(features, made(labels, ["ant"])))
    features, labels = clusters([1, 1])
    assert not list(checks.odd_labels(features, made(labels, ["ant", "bee"])))
    assert not list(checks.odd_labels(features[:0], made(labels[:0], ["ant", "bee"])))


def test_copies_of_all_kinds(folder, tiny_encoder):
    first = folder / "numbat" / "0.png"
    (folder / "numbat" / "7.png").write_bytes(first.read_bytes())
    put(folder / "numbat" / "8.webp", Image.open(first), lossless=True)
    put(folder / "numbat" / "9.jpg", Image.open(first), quality=60)
    (folder / "red panda" / "9.png").write_bytes(first.read_bytes())
    split, _ = read_folder(folder)
    features = image_features(tiny_encoder, split, cache=False)
    found = {row.image: row for row in checks.copies(split, features)}
    assert found["numbat/7.png"].finding == "the same as numbat/0.png"
    assert found["numbat/8.webp"].finding == "the same as numbat/0.png"
    assert found["numbat/9.jpg"].finding == "nearly the same as numbat/0.png"
    across = found["red panda/9.png"]
    assert across.severity == "error" and across.finding == "the same as numbat/0.png"
    assert {row.severity for row in found.values()} == {"warning", "error"} and len(found) == 4
    # Neither alike features alone nor alike pixels alone make a copy.
    alike = F.normalize(torch.ones_like(features), dim=1)
    apart = torch.eye(len(split), features.shape[1])
    assert {row.image for row in checks.copies(split, alike)} == set(found)
    assert all("nearly" not in row.finding for row in checks.copies(split, apart))


def test_known_names_are_beyond_luck():
    labels = np.repeat([0, 1, 2], [6, 6, 1])
    split = made(labels, ["ant", "bee", "cow"])
    for n_others in (0, 40):
        scores = torch.zeros(13, n_others + 3)
        said = np.r_[[0] * 3, [2] * 3, [1] * 2, [0] * 4, 2]
        scores[torch.arange(13), torch.tensor(n_others + said)] = 1
        found = [row.name for row in checks.known_names(scores, split, n_others)]
        expected = binom.sf(2, 6, 1 / (n_others + 3)) < 0.05
        assert found == ["ant"] * bool(expected)
        assert expected == (n_others > 0)


def test_names_that_collide_or_say_nothing(tiny_encoder):
    names = ["Red Panda", "red-panda", "okapi", "🦊", "🐼", "a_b", " ", "Café", "cafe"]
    found = list(checks.odd_names(tiny_encoder.tokenizer, names, others=["Okapi", "lion"]))
    by_name = {row.name: row for row in found}
    assert by_name["red-panda"].finding == "the same words as 'Red Panda'"
    assert by_name["okapi"].finding == "the other name 'Okapi' too"
    assert by_name[" "].finding == "the name has no token"
    assert by_name["a_b"].severity == "note"
    assert len(found) == 4


def test_numbers_of_images():
    number = [1, 3, 4, 4, 17]
    split = made(np.repeat(np.arange(5), number), "abcde")
    found = {row.name: row.finding for row in checks.few_images(split)}
    assert found == {
        "a": "too few: 1 image",
        "b": "too few: 3 images",
        "e": "17 images, where the classes' median is 4",
    }


def test_captions_without_the_name():
    captions = ("an ant", "a Bee.", "elephant", None)
    split = made(np.array([0, 0, 0, 1]), ["ant", "bee"], captions)
    (row,) = checks.odd_captions(split)
    assert (row.name, row.finding) == ("ant", "2 of 3 captions without the name")


def test_folds_hold_every_image_out_once():
    labels = np.repeat(np.arange(4), [6, 5, 2, 1])
    split = made(labels, "abcd")
    rounds = list(checks.folds(split, 3, seed=1))
    assert sorted(np.concatenate([held for _, held in rounds])) == list(range(14))
    for kept, held in rounds:
        assert sorted([*kept, *held]) == list(range(14))
        assert (labels[held] == 0).sum() == 2 and (labels[held] == 1).sum() in (1, 2)
    again = [held.tolist() for _, held in checks.folds(split, 3, seed=1)]
    assert again == [held.tolist() for _, held in rounds]
    for n in (1, 7):
        with pytest.raises(ValueError, match="choose from 2 to 6"):
            next(checks.folds(split, n))


def test_the_report_on_drawings(tmp_path):
    """What was planted in a folder of the miniature's drawings is found; names are learned."""
    animals, encoder = load_benchmark("mini", domains="Animals")["Animals"], load_encoder("mini")
    val = animals.ip.val
    number = np.bincount(val.labels)
    chosen = np.argsort(-number, kind="stable")[:3]
    kept = np.isin(val.labels, chosen)
    own = val.take(kept)
    first, second, _ = (int(label) for label in chosen)
    here = np.flatnonzero(own.labels == first)
    labels = own.labels.copy()
    labels[here[-1]] = second
    planted = replace(own, labels=labels).take([*range(len(own)), here[0]])
    split, report = read_folder(write_folder(planted, tmp_path / "words"))
    assert report.empty and len(split.names) == 3 and set(split.captions) == set(own.captions)
    others = [name for name in animals.ip.names if name not in split.names]
    found = check(encoder, split, others, hint=animals.hint)
    first, second = animals.ip.names[first], animals.ip.names[second]
    copied = found[found.finding.str.startswith("the same as")]
    assert copied["class"].tolist() == [first]
    odd = found[found.finding == f"looks like {first!r}"]
    assert second in odd["class"].tolist()
    assert found.finding.str.contains("already known").any()
    again = check(
        encoder, split, others, hint=animals.hint, features=image_features(encoder, split)
    )
    assert again.equals(found)
    learner = NameLearner(encoder, negatives=others, steps=2, views=0).fit(split)
    assert list(learner.names_) == list(split.names)


@pytest.mark.slow
def test_thresholds_do_on_ip_classes_what_is_said_of_them():
    encoder, rng = load_encoder("mini"), np.random.default_rng(0)
    again, pairs, alike, found, false = [], 0, 0, [], []
    for domain in load_benchmark("mini", domains=["Food", "Attire", "FolkArt"]).values():
        train, val = domain.ip.train, domain.ip.val
        split = Split(
            train.ids + val.ids,
            np.r_[train.labels, val.labels],
            train.names,
            train.captions + val.captions,
            train.source,
        )
        features = torch.cat([image_features(encoder, part) for part in (train, val)])
        _, thumbnails = checks._fingerprints(split)
        near = np.triu((features @ features.T).numpy() >= checks.SAME_FEATURES)
        near &= thumbnails @ thumbnails.T >= checks.SAME_PIXELS
        other = split.labels[:, None] != split.labels
        pairs, alike = pairs + np.triu(other).sum(), alike + (near & other).sum()
        for i in rng.choice(len(split), 20, replace=False):
            buffer = io.BytesIO()
            split.image(i).save(buffer, "JPEG", quality=30)
            saved = Image.open(buffer).convert("RGB")
            seen = encoder.encode_images(encoder.preprocess(saved)[None])[0]
            row = checks._fingerprint(saved)[1]
            same = float(seen @ features[i]) >= checks.SAME_FEATURES
            again.append(same and float(row @ thumbnails[i]) >= checks.SAME_PIXELS)
        for _ in range(30):
            many = np.flatnonzero(np.bincount(split.labels) >= 6)
            chosen = rng.choice(many, 5, replace=False)
            own = [rng.choice(np.flatnonzero(split.labels == c), 6, replace=False) for c in chosen]
            labels, names = np.repeat(np.arange(5), 6), [split.names[c] for c in chosen]
            clean = list(checks.odd_labels(features[np.concatenate(own)], made(labels, names)))
            false.append(sum(bool(row.image) for row in clean) / 30)
            labels[0] = 1
            rows = checks.odd_labels(features[np.concatenate(own)], made(labels, names))
            found.append(any(row.image == "0" or not row.image for row in rows))
    assert alike <= pairs / 10_000 and np.mean(again) > 0.85
    assert np.mean(found) > 0.8 and np.mean(false) < 0.1
