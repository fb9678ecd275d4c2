"""The miniature's loader on a generated folder, and the released layout with planted defects."""

import hashlib
import io
import json
import os
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lbutils.data import benchmark
from lbutils.data import folder as layout
from lbutils.data.benchmark import Files, Split, join, load_benchmark, mini_file, read_hints

ODD_NAMES = ["ant", "fire ant", "C++ (.*)?", '<b>"o\'brien"</b> & co', "Žluťoučký кот 猫", "a\\b$"]

# A class of the released layout is a folder, so that its name is no path.
FILE_NAMES = [name.replace("/", "|") for name in ODD_NAMES]


def webp(colour, size=(8, 8), transparent=False):
    image = Image.new("RGBA", size, colour)
    if transparent:
        image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, exact=True)
    return buffer.getvalue()


def colours():
    """An endless supply of different colours, so that no two images have equal bytes."""
    for i in range(1, 1 << 24):
        yield (i * 37 % 256, i // 7 % 256, i % 256, 255)


def write_checksums(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "checksums.csv")
    rows = [
        (p.relative_to(folder).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest())
        for p in files
    ]
    pd.DataFrame(rows, columns=["file", "sha256"]).to_csv(folder / "checksums.csv", index=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Data of the miniature's schema: two domains, six odd names each, ten draws."""
    root = tmp_path_factory.mktemp("written")
    folder = root / "mini"
    folder.mkdir(parents=True)
    (root / "prompts").mkdir()
    hints = benchmark.data_dir() / "prompts" / "hints.csv"
    (root / "prompts" / "hints.csv").write_bytes(hints.read_bytes())
    colour = colours()
    concepts, screening, samples, images, draws = [], [], [], [], []
    for domain in ("Animals", "Food"):
        for number, name in enumerate(ODD_NAMES):
            concept = f"{domain.lower()}/{number}"
            first_scale = ["small", "small", "small", "medium", "large", None][number]
            concepts.append((concept, domain, name))
            row = {"concept_id": concept}
            for i, scale in enumerate(("small", "medium", "large")):
                known = (
                    first_scale is not None and ("small", "medium", "large").index(first_scale) <= i
                )
                row[f"subset_{scale}"] = "ip" if known else "oop"
                row[f"captions_{scale}"] = int(known)
                row[f"compositional_{scale}"] = not known and number == 5
            screening.append(row)
            splits = ["train"] * (5 if number != 4 else 1) + ["test"] * 3
            splits += ["val"] * 2 if first_scale == "small" else []
            train = []
            for i, split in enumerate(splits):
                image_id = f"{concept}-{i}"
                samples.append((image_id, concept, split, f"family{i}", f"a drawing of a {name}"))
                images.append((image_id, webp(next(colour))))
                train += [image_id] if split == "train" else []
            for draw in range(10):
                order = np.random.default_rng(draw).permutation(train)[:8]
                draws += [(concept, draw, rank, image_id) for rank, image_id in enumerate(order)]
    pairs = [
        ("p0", "small", "ant", ["an ant", "a fire ant"]),
        ("p1", "medium", "bee", ["a bee"]),
        ("p2", "large", "cow", ["a cow"]),
    ]

    def frame(rows, *columns):
        return pd.DataFrame(rows, columns=list(columns))

    frame(concepts, "concept_id", "domain", "name").to_csv(folder / "concepts.csv", index=False)
    pd.DataFrame(screening).to_csv(folder / "screening.csv", index=False)
    frame(samples, "image_id", "concept_id", "split", "group", "caption").to_parquet(
        folder / "samples.parquet"
    )
    frame(draws, "concept_id", "draw", "rank", "image_id").to_parquet(folder / "fewshot.parquet")
    frame(pairs, "image_id", "scale", "label", "captions").to_parquet(folder / "pairs.parquet")
    half = len(images) // 2
    for i, shard in enumerate((images[:half], images[half:])):
        frame(shard, "image_id", "webp").to_parquet(folder / f"images-{i}.parquet")
    write_checksums(folder)
    return root


@pytest.fixture
def mini(written, tmp_path, monkeypatch):
    """A copy of its folder, to damage."""
    root = shutil.copytree(written, tmp_path / "data")
    monkeypatch.setenv("LBUTILS_DATA", str(root))
    return root / "mini"


def edit(folder, name, change):
    """Rewrite a table of the fixture, with its checksum."""
    path = folder / name
    if path.suffix == ".csv":
        change(pd.read_csv(path)).to_csv(path, index=False)
    else:
        change(pd.read_parquet(path)).to_parquet(path)
    write_checksums(folder)


def test_mini_domains_and_subsets(mini):
    bench = load_benchmark()
    assert (bench.name, bench.scale, bench.domains) == ("mini", "small", ["Animals", "Food"])
    assert len(bench) == 2 and list(bench) == bench.domains and "Food" in bench
    animals = bench["Animals"]
    assert animals.hint == "animal"
    assert animals.ip.names == tuple(ODD_NAMES[:3])
    assert animals.oop.names == tuple(ODD_NAMES[3:])
    assert animals.oop.compositional.tolist() == [False, False, True]
    assert not animals.ip.compositional.any()
    assert len(animals.ip.val) == 6 and len(animals.oop.val) == 0
    assert animals.oop.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert animals.oop.test.labels.dtype == np.int64
    assert animals.oop.test.captions[0] == f"a drawing of a {ODD_NAMES[3]}"
    assert bench.report().empty


def test_mini_scales_move_concepts_from_oop_to_ip(mini):
    names = {
        scale: load_benchmark(scale=scale)["Food"].oop.names
        for scale in ("small", "medium", "large")
    }
    assert names == {
        "small": tuple(ODD_NAMES[3:]),
        "medium": tuple(ODD_NAMES[4:]),
        "large": (ODD_NAMES[5],),
    }


def test_mini_pair_captions_are_nested(mini):
    small, medium, large = (
        load_benchmark(scale=s).pair_captions() for s in ("small", "medium", "large")
    )
    assert small == ["an ant", "a fire ant"]
    assert medium == [*small, "a bee"] and large == [*medium, "a cow"]


def test_summary_counts_classes_and_images(mini):
    table = load_benchmark(domains="Animals").summary().set_index(["domain", "subset", "split"])
    assert table.loc[("Animals", "ip", "test")].tolist() == [3, 9]
    assert table.loc[("Animals", "oop", "train")].tolist() == [3, 11]
    assert table.loc[("Animals", "oop", "val")].tolist() == [0, 0]


def test_mini_few_shot_draws_are_the_committed_ones(mini):
    committed = pd.read_parquet(mini / "fewshot.parquet")
    oop = load_benchmark()["Animals"].oop
    for seed in (0, 9):
        previous = set()
        for shots in (1, 2, 4, 8):
            drawn = oop.few_shot(shots, seed)
            rows = committed[(committed["draw"] == seed) & (committed["rank"] < shots)]
            rows = rows[rows["concept_id"].isin([f"animals/{i}" for i in (3, 4, 5)])]
            assert list(drawn.ids) == rows.sort_values(["concept_id", "rank"])["image_id"].tolist()
            assert previous <= set(drawn.ids) <= set(oop.train.ids)
            assert drawn.names == oop.names
            previous = set(drawn.ids)
    assert np.bincount(oop.few_shot(4).labels).tolist() == [4, 1, 4]
    with pytest.raises(ValueError, match=r"draw 10 .* 0, 1, 2"):
        oop.few_shot(1, seed=10)


def test_few_shot_refuses_other_than_positive_integers(mini):
    oop = load_benchmark()["Animals"].oop
    for shots in (0, -1, 1.5, True, "4"):
        with pytest.raises(ValueError, match="positive integer"):
            oop.few_shot(shots)


def test_transparent_images_stand_on_white(mini):
    content = webp((255, 0, 0, 255), transparent=True)
    edit(mini, "images-0.parquet", lambda t: t.assign(webp=[content, *t["webp"][1:]]))
    split = load_benchmark()["Animals"].ip.train
    image = split.image(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((7, 7)) == (255, 0, 0)


def test_split_key_follows_ids_order_and_content(mini):
    split = load_benchmark()["Animals"].oop.test
    again = load_benchmark()["Animals"].oop.test
    assert split.key == again.key != split.take([1, 0]).key
    assert split.take(range(len(split))).key == split.key
    before = split.take([0]).key
    other = Split(split.ids[:1], split.labels[:1], split.names, (None,), Files(mini))
    (mini / "animals").mkdir()
    (mini / split.ids[0]).write_bytes(webp((1, 2, 3, 255)))
    assert other.key != before


def test_take_and_join(mini):
    animals = load_benchmark()["Animals"]
    test = animals.oop.test
    assert test.take([2, 0]).ids == (test.ids[2], test.ids[0])
    assert test.take(test.labels == 1).ids == test.ids[3:6]
    assert len(test.take([])) == 0 and test.take([]).names == test.names
    with pytest.raises(ValueError, match="mask"):
        test.take([True])
    with pytest.raises(TypeError):
        test.take([0.5])
    both = join(animals.ip.test, load_benchmark(scale="small")["Animals"].oop.test)
    assert both.names == animals.ip.names + animals.oop.names
    assert both.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3
    assert both.ids == animals.ip.test.ids + test.ids and len(both.captions) == 18
    with pytest.raises(ValueError, match="different benchmarks"):
        join(test, Split((), np.array([]), ("a",), (), Files(mini)))


def test_split_validates_and_is_frozen(mini):
    with pytest.raises(ValueError, match="one of each"):
        Split(("a",), np.array([0, 1]), ("x", "y"), (None,), Files(mini))
    with pytest.raises(ValueError, match=r"0\.\.0"):
        Split(("a",), np.array([1]), ("x",), (None,), Files(mini))
    split = load_benchmark()["Animals"].oop.test
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0] = 1
    with pytest.raises(AttributeError):
        split.names = ()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "mimi"}, "Did you mean 'mini'"),
        ({"scale": "smal"}, "choose from small, medium, large, .*Did you mean 'small'"),
        ({"domains": ["Animals", "Fod"]}, "choose from Animals, Food. Did you mean 'Food'"),
        ({"domains": "animals"}, "Did you mean 'Animals'"),
        ({"domains": []}, "domains is empty"),
    ],
)
def test_unknown_names_get_one_line_with_the_nearest(mini, kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark(**kwargs)
    assert "\n" not in str(caught.value)


def test_unknown_domain_of_a_benchmark(mini):
    with pytest.raises(KeyError, match="Did you mean 'Animals'"):
        load_benchmark()["Animal"]
    assert load_benchmark().get("Animal") is None


def test_domains_are_chosen_in_the_order_given(mini):
    assert load_benchmark(domains=["Food", "Animals", "Food"]).domains == ["Food", "Animals"]


@pytest.mark.parametrize(
    "name", ["concepts.csv", "screening.csv", "samples.parquet", "fewshot.parquet", "checksums.csv"]
)
def test_missing_mini_file_names_the_command(mini, name):
    (mini / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"copy data/mini/{name} of the repository"):
        load_benchmark()


@pytest.mark.parametrize("name", ["concepts.csv", "samples.parquet", "fewshot.parquet"])
def test_corrupt_mini_file_names_the_command(mini, name):
    load_benchmark()
    content = (mini / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2], content + b"\n"):
        (mini / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"copy data/mini/{name} of the repository"):
            load_benchmark()


def test_corrupt_shard_is_found_at_the_first_image(mini):
    (mini / "images-1.parquet").write_bytes(b"PAR1")
    split = load_benchmark()["Animals"].oop.test
    with pytest.raises(ValueError, match=r"copy data/mini/images-1\.parquet of the repository"):
        split.image(0)


def test_a_mini_file_changed_without_a_trace_is_noticed(mini):
    state = mini_file("concepts.csv").stat()
    content = (mini / "concepts.csv").read_bytes()
    (mini / "concepts.csv").write_bytes(content[:-2] + b"?\n")
    os.utime(mini / "concepts.csv", ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ValueError, match="copy data/mini/concepts.csv of the repository"):
        mini_file("concepts.csv")


def test_mini_file_outside_the_checksums(mini):
    (mini / "extra.csv").write_text("a\n")
    with pytest.raises(ValueError, match=r"not listed in checksums\.csv"):
        mini_file("extra.csv")


def test_mini_report_finds_planted_defects(mini):
    def samples(table):
        table.loc[table["image_id"] == "animals/3-0", "concept_id"] = "animals/nobody"
        one = table["concept_id"] == "food/5"
        keep = ~one | (table["image_id"] == "food/5-0")
        return table[keep & (table["concept_id"] != "food/4")]

    def shards(table):
        bytes_of = dict(zip(table["image_id"], table["webp"], strict=True))
        bytes_of["animals/0-0"] = bytes_of["animals/0-6"]
        bytes_of["animals/1-0"] = bytes_of["animals/2-0"]
        bytes_of["animals/1-1"] = b"not an image"
        del bytes_of["animals/1-2"]
        return pd.DataFrame({"image_id": bytes_of.keys(), "webp": bytes_of.values()})

    edit(mini, "samples.parquet", samples)
    edit(mini, "images-0.parquet", shards)
    edit(mini, "pairs.parquet", lambda t: t.assign(image_id=["animals/2-6", "p1", "p2"]))
    report = load_benchmark().report()
    found = {
        kind: " ".join(rows["where"] + rows["detail"]) for kind, rows in report.groupby("kind")
    }
    assert "animals/nobody" in found["label and name"]
    assert "animals/3" in found["few-shot draw"]
    assert "animals/2-6" in found["test image in pairs"]
    assert ODD_NAMES[4] in found["empty class"]
    assert ODD_NAMES[5] in found["one-image class"]
    assert "animals/0-0, animals/0-6" in found["same image in two splits"]
    assert "animals/1-0, animals/2-0" in found["same image in two classes"]
    assert "animals/1-1: not an image" in found["unreadable file"]
    assert "animals/1-2" in found["missing file"]


def test_hints():
    assert read_hints("mini")["Creatures"] == "fantasy creature"
    assert read_hints("laion_beyond")["Insects_Spiders"] == "insect or spider"
    assert len(read_hints("mini")) == len(read_hints("laion_beyond")) == 9
    with pytest.raises(ValueError, match="Did you mean 'mini'"):
        read_hints("minni")


# The released layout


class Folder:
    """Writes folders as LAION-Beyond is released."""

    def __init__(self, root):
        self.root = root
        self.colour = colours()

    def add(self, folder, counts, *, captions=True):
        """`counts` maps a class name to its number of (train, val, test) images."""
        layout.write_released(self.root / folder, self.entries(counts, captions))
        self.path = self.root / folder / f"split_Xin_{folder}.json"
        return json.loads(self.path.read_text(encoding="utf-8"))

    def entries(self, counts, captions):
        for label, (name, numbers) in enumerate(counts.items()):
            for split, number in zip(layout.SPLITS, numbers, strict=True):
                for i in range(number):
                    content = io.BytesIO()
                    Image.new("RGB", (4, 4), next(self.colour)[:3]).save(content, "PNG")
                    caption = f"caption of {name}" if captions else None
                    file = f"{split} #{i}.png"
                    yield layout.Entry(split, label, name, file, content.getvalue(), caption)

    def write(self, content):
        self.path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def released(tmp_path):
    folder = Folder(tmp_path / "LAION-Beyond")
    folder.root.mkdir()
    folder.add("Animals6_OOP", dict.fromkeys(FILE_NAMES, (3, 1, 2)))
    folder.add("Animals2_IP", {"cat": (0, 0, 3), "dog": (0, 0, 3)})
    folder.add("Plants_Fugi2_OOP", {"moss": (2, 1, 2), "fern": (2, 1, 2)})
    folder.add("Plants_Fungi2_IP", {"rose": (0, 0, 2), "oak": (0, 0, 2)})
    return folder


def test_released_layout(released):
    bench = load_benchmark(released.root)
    assert (bench.name, bench.scale) == ("laion_beyond", "400m")
    assert bench.domains == ["Animals", "Plants_Fungi"]
    animals = bench["Animals"]
    assert (animals.hint, bench["Plants_Fungi"].hint) == ("animal", "plant or fungus")
    assert animals.oop.names == tuple(FILE_NAMES)
    assert animals.oop.train.labels.tolist() == [label for label in range(6) for _ in range(3)]
    assert animals.oop.train.captions[0] == "caption of ant"
    assert (len(animals.oop.val), len(animals.oop.test), len(animals.ip.test)) == (6, 12, 6)
    assert animals.oop.test.image(0).size == (4, 4)
    assert not animals.oop.compositional.any()
    assert load_benchmark(str(released.root), scale="2b").scale == "2b"
    assert load_benchmark(released.root, domains="Plants_Fugi").domains == ["Plants_Fungi"]
    with pytest.raises(ValueError, match="LAION's Parquet"):
        bench.pair_captions()


def test_sound_folder_has_one_remark_on_spelling(released):
    report = load_benchmark(released.root).report()
    assert report.to_numpy().tolist() == [
        ["folder name", "Plants_Fugi2_OOP", "read as Plants_Fungi"]
    ]


def test_computed_draws_are_nested_and_stable(released):
    oop = load_benchmark(released.root)["Animals"].oop
    for seed in (0, 123):
        one, two, all_of_it = (oop.few_shot(shots, seed) for shots in (1, 2, 16))
        assert np.bincount(one.labels).tolist() == [1] * 6
        assert set(one.ids) < set(two.ids) < set(all_of_it.ids) == set(oop.train.ids)
        assert load_benchmark(released.root)["Animals"].oop.few_shot(2, seed).ids == two.ids
    assert len({oop.few_shot(1, seed).ids for seed in range(10)}) > 5
    # A class draws alone: without the others, and in another order of rows, it draws the same.
    alone = oop.train.take(np.flatnonzero(oop.train.labels == 3)[::-1])
    subset = benchmark.Subset(
        "Animals", "oop", oop.names, oop.compositional, alone, oop.val, oop.test
    )
    assert set(subset.few_shot(2, 7).ids) == {
        i
        for i, label in zip(oop.few_shot(2, 7).ids, oop.few_shot(2, 7).labels, strict=True)
        if label == 3
    }


def test_every_planted_defect_is_reported(released):
    released.add(
        "Food9_OOP",
        {
            "pie": (2, 1, 2),
            "cake": (2, 1, 2),
            "one": (1, 0, 0),
            "train only": (2, 0, 0),
            "test only": (0, 0, 2),
        },
    )
    images = released.root / "Food9_OOP" / "images"
    (images / "nothing").mkdir()
    (images / "pie" / "train #0.png").unlink()
    (images / "pie" / "val #0.png").write_bytes(b"<html>404</html>")
    whole = (images / "pie" / "test #0.png").read_bytes()
    (images / "pie" / "test #0.png").write_bytes(whole[: len(whole) // 2])
    (images / "cake" / "test #1.png").write_bytes((images / "cake" / "train #1.png").read_bytes())
    (images / "test only" / "test #0.png").write_bytes(
        (images / "cake" / "train #0.png").read_bytes()
    )
    (images / "pie" / "stray.png").write_bytes(whole)
    released.add("Food2_IP", {"pie": (0, 0, 2), "tea": (0, 0, 2)}, captions=False)
    released.add("Atire1_OOP", {"hat": (2, 1, 2)})
    report = load_benchmark(released.root).report()
    found = {
        kind: "\n".join(rows["where"] + " " + rows["detail"])
        for kind, rows in report.groupby("kind")
    }
    assert "pie/train #0.png" in found["missing file"]
    assert "pie/val #0.png: not an image" in found["unreadable file"]
    assert "pie/test #0.png" in found["unreadable file"]
    assert "nothing" in found["empty class"]
    assert "one" in found["one-image class"]
    assert "train only" in found["no test image"]
    assert "test only" in found["no train image"]
    assert "cake/train #1.png" in found["same image in two splits"]
    assert "cake/test #1.png" in found["same image in two splits"]
    assert "test only/test #0.png" in found["same image in two classes"]
    assert "Food ip test 4 of 4" in found["no captions"]
    assert "'pie'" in found["name in ip and oop"]
    assert "Atire1_OOP" in found["folder name"] and "Did you mean 'Attire'" in found["folder name"]
    assert "Atire ip" in found["no folder"]
    assert "Food9_OOP 5 classes" in found["number of classes"]
    assert "stray.png" in found["unlisted file"]
    assert set(report.columns) == {"kind", "where", "detail"}


def test_damaged_images_raise_with_their_name(released):
    split = load_benchmark(released.root)["Animals"].oop.train
    (released.root / split.ids[0]).unlink()
    (released.root / split.ids[1]).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"train #0\.png' is missing"):
        split.image(0)
    with pytest.raises(ValueError, match=r"train #1\.png' is unreadable"):
        split.image(1)
    with pytest.raises(FileNotFoundError, match=r"train #0\.png"):
        _ = split.key


def test_a_list_and_a_nested_image_name_are_read_too(released):
    content = json.loads(released.path.read_text())
    content["test"] = list(content["test"].values())
    content["test"][0]["image_name"] = "rose/" + content["test"][0]["image_name"]
    content["test"][1]["INFO"] = None
    released.write(content)
    split = load_benchmark(released.root)["Plants_Fungi"].ip.test
    assert split.ids[0] == "Plants_Fungi2_IP/images/rose/test #0.png"
    assert split.captions[1] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "keys train, val and test"),
        ('{"train": {"0": {"classname": "x"}}}', "entry '0' of train needs .*image_name"),
        ('{"test": {"5": 3}}', "entry '5' of test"),
    ],
)
def test_bad_split_files_raise_with_their_name(released, text, message):
    released.path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark(released.root)
    assert str(released.path) in str(caught.value)


def test_folders_that_are_not_the_benchmark(released, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder of LAION-Beyond"):
        load_benchmark(tmp_path / "empty")
    released.path.unlink()
    with pytest.raises(FileNotFoundError, match="split_Xin"):
        load_benchmark(released.root)
    released.write({"train": {}, "val": {}, "test": {}})
    (released.path.parent / "split_Xin_other.json").write_text("{}")
    with pytest.raises(ValueError, match="several split files"):
        load_benchmark(released.root)
    (released.path.parent / "split_Xin_other.json").unlink()
    released.add("Plants_Fungi7_OOP", {"moss": (1, 1, 1)})
    with pytest.raises(ValueError, match="keep only one"):
        load_benchmark(released.root)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_another_normal_form_is_the_same_file(released, form):
    """Archives of macOS write é as two signs, the split file as one, or the other way about."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    listed = unicodedata.normalize(form, "crème brûlée")
    released.add("Food2_OOP", {listed: (2, 1, 2)})
    images = released.root / "Food2_OOP" / "images"
    (images / listed).rename(images / unicodedata.normalize(other, listed))
    split = load_benchmark(released.root)["Food"].oop.train
    assert not split.ids[0].isascii() and split.image(0).size
    report = load_benchmark(released.root).report()
    here = report[report["where"].str.contains("Food") | report["detail"].str.contains("Food")]
    assert not set(here["kind"]) & {"missing file", "unlisted file", "empty class"}
    # What is really not there still is.
    next(images.rglob("train #0.png")).unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_benchmark(released.root)["Food"].oop.train.image(0)
