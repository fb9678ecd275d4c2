"""Public data sets in the layouts that their authors publish, generated small."""

from __future__ import annotations

import csv
import io
import json
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.datasets as readers
from PIL import Image
from scipy.io import savemat

from lbutils import NameLearner, load_benchmark, load_encoder
from lbutils.__main__ import main
from lbutils.data import datasets
from lbutils.data.datasets import Labelled, as_benchmark, check_names, find_dataset, read_verdicts
from lbutils.measure import suite
from lbutils.models.classifier import logits, text_classifier
from lbutils.models.features import image_features
from lbutils.models.prompts import resolve
from lbutils.run.notebooks import check_parameters, find_notebooks

TABLE = datasets.dataset_table()
SIDE = 8


def shade(label, number=0):
    """The colour of a class's images."""
    return (label % 16 * 16, label // 16 % 16 * 16, 16 * number)


def draw(place, label, number=0, kind="PNG"):
    """An image of the colour of its class; PNG, whatever its file is called."""
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), shade(label, number)).save(place, kind)


def folders(names, place):
    for label, name in enumerate(names):
        draw(place / name / "1.jpg", label)


# --------------------------------------------------------------------------- published layouts


def cifar_100(root, monkeypatch):
    """Pickles, as their authors made them; torchvision is told not to ask for their MD5."""
    import pickle

    place = root / "cifar-100-python"
    place.mkdir()
    pixels = np.array([np.repeat(shade(i), SIDE * SIDE * 16) for i in range(100)], np.uint8)
    content = {"data": pixels.reshape(100, 3072), "fine_labels": list(range(100))}
    names = [f"thing_{i}" for i in range(100)]
    for file, found in (
        ("train", content),
        ("test", content),
        ("meta", {"fine_label_names": names}),
    ):
        (place / file).write_bytes(pickle.dumps(found))
    monkeypatch.setattr(readers.CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(readers.CIFAR100, "test_list", [["test", None]])
    monkeypatch.setattr(readers.CIFAR100, "meta", {**readers.CIFAR100.meta, "md5": None})
    return "thing 7"


def food_101(root, monkeypatch):
    names = sorted(f"dish_{i}" for i in range(101))
    for split in ("train", "test"):
        listed = {name: [f"{name}/{split}"] for name in names}
        (root / "food-101/meta").mkdir(parents=True, exist_ok=True)
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(listed))
        for label, name in enumerate(names):
            draw(root / f"food-101/images/{name}/{split}.jpg", label)
    return names[7].replace("_", " ")


def flowers_102(root, monkeypatch):
    place = root / "flowers-102"
    for label in range(102):
        for number in range(2):
            draw(place / f"jpg/image_{2 * label + number + 1:05}.jpg", label)
    savemat(place / "imagelabels.mat", {"labels": np.repeat(np.arange(102), 2) + 1})
    odd, even = np.arange(1, 205, 2), np.arange(2, 206, 2)
    savemat(place / "setid.mat", {"trnid": odd, "valid": odd, "tstid": even})
    named = {key: (file, None) for key, (file, _) in readers.Flowers102._file_dict.items()}
    monkeypatch.setattr(readers.Flowers102, "_file_dict", named)
    return "bird of paradise"


def dtd(root, monkeypatch):
    names = [f"texture{i:02}" for i in range(47)]
    for split in ("train", "test"):
        for label, name in enumerate(names):
            draw(root / f"dtd/dtd/images/{name}/{name}_{split}.jpg", label)
        listed = "".join(f"{name}/{name}_{split}.jpg\n" for name in names)
        (root / "dtd/dtd/labels").mkdir(exist_ok=True)
        (root / f"dtd/dtd/labels/{split}1.txt").write_text(listed)
    return "texture07"


EUROSAT = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential "
    "River SeaLake"
).split()


def eurosat(root, monkeypatch):
    folders(EUROSAT, root / "eurosat/2750")
    return "residential buildings or homes or apartments"


def country211(root, monkeypatch):
    for split in ("train", "test"):
        folders([f"{a}{b}" for a in "ABCDEFGHIJKLMNO" for b in "ABCDEFGHIJKLMNO"][:211],
                root / f"country211/{split}")  # fmt: skip
    return "Angola"


def gtsrb(root, monkeypatch):
    place = root / "gtsrb/GTSRB"
    for label in range(43):
        draw(place / f"Final_Test/Images/{label:05}.ppm", label, kind="PPM")
        draw(place / f"Training/{label:05}/1.ppm", label, kind="PPM")
    with (root / "gtsrb/GT-final_test.csv").open("w") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Filename", "ClassId"])
        table.writerows([f"{label:05}.ppm", label] for label in range(43))
    return "red and white circle 100 kph speed limit"


def fgvc_aircraft(root, monkeypatch):
    place = root / "fgvc-aircraft-2013b/data"
    for label in range(100):
        draw(place / f"images/{label:07}.jpg", label)
    (place / "variants.txt").write_text("".join(f"Model {i}\n" for i in range(100)))
    listed = "".join(f"{i:07} Model {i}\n" for i in range(100))
    for split in ("trainval", "test"):
        (place / f"images_variant_{split}.txt").write_text(listed)
    return "Model 7"


def stanford_cars(root, monkeypatch):
    place = root / "stanford_cars"
    rows = np.array(
        [(f"{i:05}.jpg", i + 1) for i in range(196)], dtype=[("fname", object), ("class", object)]
    )
    files = {"train": "devkit/cars_train_annos", "test": "cars_test_annos_withlabels"}
    for split, file in files.items():
        for label in range(196):
            draw(place / f"cars_{split}/{label:05}.jpg", label)
        (place / "devkit").mkdir(exist_ok=True)
        savemat(place / f"{file}.mat", {"annotations": rows})
    names = np.array([f"Car {i}" for i in range(196)], dtype=object)
    savemat(place / "devkit/cars_meta.mat", {"class_names": names})
    return "Car 7"


def pets(root, monkeypatch):
    place = root / "oxford-iiit-pet"
    for label in range(37):
        draw(place / f"images/pet_{label:02}_1.jpg", label)
    listed = "".join(f"pet_{i:02}_1 {i + 1} 1 1\n" for i in range(37))
    (place / "annotations").mkdir()
    for split in ("trainval", "test"):
        (place / f"annotations/{split}.txt").write_text(listed)
    return "Pet 07"


def mnist(root, monkeypatch):
    place = root / "MNIST/raw"
    place.mkdir(parents=True)
    pixels = np.repeat(np.array([shade(i)[0] for i in range(10)], np.uint8), 28 * 28)
    for split in ("train", "t10k"):
        header = struct.pack(">IIII", 2051, 10, 28, 28)
        (place / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = struct.pack(">II", 2049, 10) + bytes(range(10))
        (place / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return "7"


def rendered_sst2(root, monkeypatch):
    for split in ("train", "test"):
        for label, name in enumerate(("negative", "positive")):
            draw(root / f"rendered-sst2/{split}/{name}/1.png", label)
    return "positive"


def caltech_101(root, monkeypatch):
    place = root / "caltech101"
    (place / "Annotations").mkdir(parents=True)
    names = [f"thing{i:03}" for i in range(101)]
    for label, name in enumerate(names):
        draw(place / f"101_ObjectCategories/{name}/image_0001.jpg", label)
    draw(place / "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg", 0)
    return "ant"


def fer2013(root, monkeypatch):
    (root / "fer2013").mkdir()
    lines = ["emotion,pixels,Usage"]
    for label in range(7):
        pixels = " ".join([str(shade(label)[0])] * 48 * 48)
        lines += [f"{label},{pixels},{usage}" for usage in ("Training", "PublicTest")]
    (root / "fer2013/fer2013.csv").write_text("\n".join(lines))
    monkeypatch.setitem(readers.FER2013._RESOURCES, "fer", ("fer2013.csv", None))
    return "surprised"


def imagenet_a(root, monkeypatch):
    file = datasets._package_file("timm", "data/_info/imagenet_a_synsets.txt")
    folders(file.read_text().split(), root / "imagenet-a")
    return "newt"


def imagenet_v2(root, monkeypatch):
    for label in range(1000):
        draw(root / f"imagenetv2-matched-frequency-format-val/{label}/1.jpeg", label)
    return None


def resisc45(root, monkeypatch):
    folders([f"kind_of_{i:02}" for i in range(45)], root / "NWPU-RESISC45")
    return "kind of 07"


# The eighth class, where there is one, by its published name.
LAYOUTS = {
    "cifar-100": cifar_100,
    "food-101": food_101,
    "flowers-102": flowers_102,
    "dtd": dtd,
    "eurosat": eurosat,
    "country211": country211,
    "gtsrb": gtsrb,
    "fgvc-aircraft": fgvc_aircraft,
    "stanford-cars": stanford_cars,
    "pets": pets,
    "mnist": mnist,
    "rendered-sst2": rendered_sst2,
    "caltech-101": caltech_101,
    "fer2013": fer2013,
    "imagenet-a": imagenet_a,
    "imagenet-v2": imagenet_v2,
    "resisc45": resisc45,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_is_read_as_its_authors_publish_it(name, tmp_path, monkeypatch):
    source = TABLE.loc[name].source[:9]
    with pytest.raises(ValueError, match=f"is not in .* as torchvision's .*{source}"):
        suite.read_dataset(name, tmp_path)
    eighth = LAYOUTS[name](tmp_path, monkeypatch)
    data = suite.read_dataset(name, tmp_path)
    assert len(data.names) == int(TABLE.loc[name].classes) == len(np.unique(data.test.labels))
    assert eighth is None or data.names[min(7, len(data.names) - 1)] == eighth
    assert (data.train is not None) == bool(TABLE.loc[name].train)
    for split in filter(None, (data.test, data.train)):
        for i in np.linspace(0, len(split) - 1, 5).astype(int):
            # By its pixels an image is of the class that its label says.
            red, green, _ = split.image(i).getpixel((0, 0))
            label = split.labels[i] if name != "imagenet-v2" else int(split.ids[i].split("/")[1])
            expected = shade(label)
            assert red == expected[0] and (green == expected[1] or name in ("mnist", "fer2013"))
        assert len(split.source.stamp(split.ids[0])) >= 64


def test_imagenet_s_numbers_are_labels_whatever_their_order(tmp_path, monkeypatch):
    """Folders come as 0, 1, 10, 100, ...; of two names that stand twice one is WordNet's."""
    imagenet_v2(tmp_path, monkeypatch)
    data = suite.read_dataset("imagenet-v2", tmp_path)
    pairs = zip(data.test.ids, data.test.labels, strict=True)
    named = {image.split("/")[1]: data.names[label] for image, label in pairs}
    assert (named["0"], named["10"], named["999"]) == ("tench", "brambling", "toilet paper")
    assert (named["657"], named["744"]) == ("missile", "projectile")
    assert (named["836"], named["837"]) == ("sunglass", "sunglasses")
    assert len(set(data.names)) == 1000


def webdataset(root, labels=(0, 1, 1), names=("red fox", "owl")):
    """As CLIP_benchmark exports its tasks."""
    for split in ("test", "train"):
        (root / split).mkdir(parents=True)
        with tarfile.open(root / split / "0.tar", "w") as archive:
            for i, label in enumerate(labels):
                written = io.BytesIO()
                Image.new("RGB", (SIDE, SIDE), shade(label, i)).save(written, "WEBP", lossless=True)
                for suffix, content in (("cls", f"{label}".encode()), ("webp", written.getvalue())):
                    member = tarfile.TarInfo(f"s{i:07}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    (root / "classnames.txt").write_text("\n".join(names) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\n")
    return root


def test_archives_of_webdataset_are_read(tmp_path):
    data = suite.read_dataset(str(webdataset(tmp_path / "task")), tmp_path)
    assert data.names == ("red fox", "owl") and data.test.labels.tolist() == [0, 1, 1]
    assert data.test.image(2).getpixel((0, 0)) == shade(1, 2)
    assert suite.prompts_of("published", data) == ["a photo of {name}."]
    assert len({data.test.source.stamp(i) for i in (*data.test.ids, *data.train.ids)}) == 3


def test_images_to_learn_from_are_needed_only_to_learn(tmp_path, monkeypatch):
    food_101(tmp_path, monkeypatch)
    (tmp_path / "food-101/meta/train.json").unlink()
    data = suite.read_dataset("food-101", tmp_path)
    assert data.train is None and len(data.test) == 101
    with pytest.raises(ValueError, match="names needs images to learn from: Food-101 is not in"):
        suite._draw(data, suite.Setting("mini", "food-101", "mini", "names", 1, 0), range(101))


def own_folder(root):
    for split in ("train", "test"):
        for label, name in enumerate(("owl", "red_fox")):
            for number in range(3):
                draw(root / split / name / f"{number}.png", label, number)
    return root


def test_a_folder_of_one_s_own_is_a_data_set(tmp_path):
    data = suite.read_dataset(str(own_folder(tmp_path / "mine")), tmp_path)
    assert data.names == ("owl", "red fox") and len(data.train) == len(data.test) == 6
    whole = suite.read_dataset(str(tmp_path / "mine/test"), tmp_path)
    assert whole.train is None and whole.names == data.names


def wrong_layout(root):
    folders(EUROSAT[:9], root / "eurosat/2750")
    suite.read_dataset("eurosat", root)


def clash(root):
    for name in ("red_fox", "Red fox"):
        draw(root / "mine" / name / "1.png", 0)
    suite.read_dataset(str(root / "mine"), root)


def other_classes(root):
    own_folder(root / "mine")
    (root / "mine/train/red_fox").rename(root / "mine/train/cat")
    data = suite.read_dataset(str(root / "mine"), root)
    assert len(data.test) == 6
    suite._draw(data, suite.Setting("mini", "mine", "mini", "names", 1, 0), range(2))


def beyond(root):
    suite.read_dataset(str(webdataset(root / "task", labels=(0, 2))), root)


def unlabelled(root):
    webdataset(root / "task")
    with tarfile.open(root / "task/test/1.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("s9.jpg"))
    suite.read_dataset(str(root / "task"), root)


def two_images(root):
    webdataset(root / "task")
    with tarfile.open(root / "task/test/1.tar", "w") as archive:
        for name in ("s9.cls", "s9.jpg", "s9.png"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"0"))
    suite.read_dataset(str(root / "task"), root)


def no_archive(root):
    webdataset(root / "task")
    (root / "task/test/1.tar").write_bytes(b"<html>" * 200)
    suite.read_dataset(str(root / "task"), root)


def no_names(root):
    (webdataset(root / "task") / "classnames.txt").unlink()
    suite.read_dataset(str(root / "task"), root)


def nothing(root):
    (root / "no").mkdir()
    suite.read_dataset(str(root / "no"), root)


def prompts(root, content):
    data = suite.read_dataset(str(own_folder(root / "mine")), root)
    (root / "own.json").write_text(json.dumps(content))
    suite.prompts_of(str(root / "own.json"), data)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (wrong_layout, r"EuroSAT has 10 classes, here are 9 \('AnnualCrop'.*another layout"),
        (clash, "classes 'Red fox' and 'red fox' have one name, 'red fox'"),
        (other_classes, "to learn from: 'cat' is a class of one of train and test only"),
        (beyond, r"image test/0.tar/s0000001.webp has the label 2, and there are 2 class names"),
        (unlabelled, "1.tar: s9 has no label"),
        (two_images, "1.tar .* s9 has two images"),
        (no_archive, "1.tar is no archive of labelled images"),
        (no_names, "no classnames.txt"),
        (nothing, "no class with an image"),
        (lambda root: prompts(root, {"owl": ["an owl"]}), "'red fox' the first"),
        (lambda root: prompts(root, {"owl": ["a {nam}"], "red fox": ["a"]}), "'owl'.*'{name}'"),
        (lambda root: find_dataset("cifar100"), "Did you mean 'cifar-100'"),
        (lambda root: find_dataset("hateful-memes"), "by form only"),
        (lambda root: check_names(["owl", "!?"], "Birds"), "'!\\?' has no letter"),
        (lambda root: suite.method("CoOpp"), "Did you mean 'CoOp'"),
        (lambda root: suite.method("ProLIP"), "notebook 04"),
        (lambda root: suite.read_dataset("country211", root), "size not known.*CLIP"),
        (lambda root: suite.read_dataset("food-101", root), "add --download.*it is 5.00 GB"),
    ],
)
def test_what_is_wrong_is_refused_with_the_entry(call, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        call(tmp_path)


def test_a_label_below_the_names_is_refused():
    part = Labelled(("a.png", "b.png"), np.array([0, -1]))
    with pytest.raises(ValueError, match=r"image b.png has the label -1"):
        datasets.split_of(part, ["owl"], None, "Birds")


def test_the_table_is_one_of_readers_templates_and_measures():
    for name, row in TABLE[TABLE["obstacle"] == ""].iterrows():
        dataset = find_dataset(name)
        assert hasattr(readers, dataset.loader) and dataset.metric in datasets.METRICS, name
        assert resolve(dataset.templates) and dataset.hint and dataset.licence and dataset.source
        assert dataset.names in ("own", "imagenet") or (
            len(datasets._published_names(dataset.names)) == dataset.classes
        )
        assert not row["gigabytes"] or float(row["gigabytes"]) > 0
    mean = set(TABLE.index[TABLE["metric"] == "mean_per_class"])
    assert mean == {"flowers-102", "caltech-101", "pets", "fgvc-aircraft"}
    assert sum("elevater" in suites for suites in TABLE["suites"]) == 20
    assert sum("survey" in suites for suites in TABLE["suites"]) == 13


def test_the_survey_s_page_shows_every_data_set():
    page = (Path(__file__).parents[1] / "docs/survey.md").read_text(encoding="utf-8")
    for row in TABLE.itertuples():
        suites = row.suites.replace(";", ", ")
        start = f"| {row.title} | {suites} | {row.classes} | {row.metric} | "
        assert start in page and f"{row.loader} | {row.obstacle} |" in page


# --------------------------------------------------------------------------- names in captions


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Folder of drawings of the miniature, three concepts in its captions and three not."""
    root = tmp_path_factory.mktemp("animals")
    domain = load_benchmark("mini", domains="Animals")["Animals"]
    for subset in (domain.ip, domain.oop):
        for split in ("train", "test"):
            part = getattr(subset, split)
            for label in range(3):
                for i in np.flatnonzero(part.labels == label)[:4]:
                    name = part.names[label].replace(" ", "_")
                    place = root / "animals" / split / name / f"{part.ids[i]}.webp"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(part.source.read(part.ids[i]))
    captions = [f"a drawing of a {name}" for name in domain.ip.names[:3]] * 2
    pd.DataFrame({"caption": captions}).to_parquet(root / "captions.parquet")
    return root, domain


@pytest.fixture(scope="module")
def screened(animals):
    """The certificate of these names, as the command writes it."""
    root, domain = animals
    names = [*domain.ip.names[:3], *domain.oop.names[:3]]
    (root / "names.txt").write_text("\n".join(names))
    paths = [str(root / file) for file in ("names.txt", "captions.parquet", "certificate.json")]
    assert main(["screen", *paths[:2], "--out", paths[2], "--quiet"]) == 0
    return root / "certificate.json"


def asked(root, *more):
    out = root / "results.csv"
    given = ["--datasets", str(root / "animals"), "--encoders", "mini", "--out", str(out)]
    return main(["datasets", "run", *given, "--prompts", "mini", "--device", "cpu", *more]), out


def test_accuracy_is_told_for_names_in_and_out(animals, screened, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LBUTILS_CACHE", str(tmp_path / "cache"))
    root, domain = animals
    methods = ["--methods", "zero-shot", "names", "prototypes", "--shots", "2"]
    status, out = asked(root, *methods, "--certificate", str(screened))
    assert status == 0
    table = pd.read_csv(out, keep_default_na=False)
    assert list(table.columns) == suite.COLUMNS
    first = table[table["method"] == "zero-shot"]
    # The same by hand.
    data = suite.read_dataset(str(root / "animals"), root)
    encoder = load_encoder("mini", device="cpu")
    texts = text_classifier(encoder, data.names, "mini", "thing")
    found = logits(image_features(encoder, data.test), texts, 1.0).argmax(1).numpy()
    right = found == data.test.labels
    inside = np.array([data.names[label] in domain.ip.names for label in data.test.labels])
    for group, kept in (("all", inside | True), ("in", inside), ("out", ~inside)):
        rows = first[(first["in_captions"] == group) & first["main"] & (first["class"] == "")]
        assert float(rows["value"].item()) == pytest.approx(100 * right[kept].mean())
        assert int(rows["images"].item()) == kept.sum()
        assert rows["corpus"].item() == "captions:all"
    classes = first[first["class"] != ""].set_index("class")
    assert list(classes.index) == list(data.names) and len(classes) == 6
    assert (classes.loc[list(domain.ip.names[:3]), "in_captions"] == "in").all()
    assert (classes.loc[list(domain.oop.names[:3]), "in_captions"] == "out").all()
    assert classes["captions"].astype(float).sum() == 6
    # Nothing is run twice; what is new comes behind.
    written = out.read_bytes()
    capsys.readouterr()
    assert asked(root, *methods, "--certificate", str(screened))[0] == 0
    assert capsys.readouterr().out.count("there already") == 3 and out.read_bytes() == written
    assert asked(root)[0] == 0
    assert out.read_bytes().startswith(written) and len(out.read_bytes()) > len(written)
    plain = pd.read_csv(out, keep_default_na=False).iloc[len(table) :]
    assert set(plain["in_captions"]) == {"all", ""} and set(plain["corpus"]) == {""}


def test_what_fails_does_not_stop_the_others(animals, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LBUTILS_CACHE", str(tmp_path / "cache"))
    root, _ = animals
    out = tmp_path / "results.csv"
    given = ["datasets", "run", "--datasets", "food-101", str(root / "animals/test")]
    given += ["--data", str(tmp_path), "--out", str(out), "--device", "cpu"]
    assert main([*given, "--methods", "names", "zero-shot"]) == 1
    told = capsys.readouterr()
    assert "Food-101 is not in" in told.err and "has no images to learn from" in told.err
    assert set(pd.read_csv(out)["method"]) == {"zero-shot"}
    assert main(["datasets", "run", "--datasets", "cifar100"]) == 2
    assert "Did you mean 'cifar-100'" in capsys.readouterr().err
    out.write_text("a,b\n1,2\n")
    assert main([*given, "--methods", "zero-shot"]) == 1 and out.read_text() == "a,b\n1,2\n"


def test_a_suite_is_its_data_sets(capsys):
    found = suite._datasets(["elevater", "cifar-100"])
    assert len(found) == 17 and "hateful-memes" not in found
    assert capsys.readouterr().err.count("not here") == 3
    assert main(["datasets", "list"]) == 0
    listed = capsys.readouterr().out
    assert "CIFAR-100" in listed and "not here: Hateful Memes" in listed


def test_names_come_a_line_each(animals, capsys):
    root, domain = animals
    assert main(["datasets", "names", str(root / "animals")]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        [*domain.ip.names[:3], *domain.oop.names[:3]]
    )


def test_a_data_set_is_a_benchmark(animals, screened, tmp_path, monkeypatch):
    """Names are learned on it, and exported it is what notebooks take as their benchmark."""
    monkeypatch.setenv("LBUTILS_CACHE", str(tmp_path / "cache"))
    root, domain = animals
    given = [str(root / "animals"), str(tmp_path / "out"), "--certificate", str(screened)]
    assert main(["datasets", "export", *given]) == 0
    data = suite.read_dataset(given[0], root)
    direct = as_benchmark(data.dataset, data.train, data.test, read_verdicts(screened, data.names))
    check_parameters(find_notebooks(), {"benchmark": given[1]})
    loaded = load_benchmark(given[1])
    assert loaded.report().empty or set(loaded.report()["kind"]) <= {"no captions"}
    for bench in (direct, loaded):
        own = bench["animals"]
        assert sorted(own.ip.names) == sorted(domain.ip.names[:3])
        assert sorted(own.oop.names) == sorted(domain.oop.names[:3])
        encoder = load_encoder("mini", device="cpu")
        learner = NameLearner(encoder, negatives=own.ip.names, steps=2, views=1)
        learner.fit(own.oop.few_shot(shots=2, seed=1))
        joint = learner.joint_logits(own.oop.test, own.ip.names)
        assert joint.shape == (len(own.oop.test), 6) and torch.isfinite(joint).all()
    drawn = [bench["animals"].oop.few_shot(shots=2, seed=1) for bench in (direct, loaded)]
    assert drawn[0].ids == drawn[1].ids and drawn[0].key == drawn[1].key


def test_a_certificate_must_speak_of_every_name(screened, animals):
    names = animals[1].ip.names[:2]
    with pytest.raises(ValueError, match="lacks 1 of 3 class names, 'unheard of' the first"):
        read_verdicts(screened, [*names, "unheard of"])
    with pytest.raises(ValueError, match="Did you mean 'all'|choose from all"):
        read_verdicts(screened, names, "400m")
    data = suite.read_dataset(str(animals[0] / "animals"), animals[0])
    inside = datasets.Verdicts("corpus", ("ip",) * 6, (1,) * 6)
    with pytest.raises(ValueError, match="no class name of animals is OOP by corpus"):
        as_benchmark(data.dataset, data.train, data.test, inside)
    some = datasets.Verdicts("corpus", ("ip", "undecided", "oop", "oop", "ip", "oop"), (1,) * 6)
    with pytest.warns(UserWarning, match="1 classes of animals-102 are left out"):
        named = replace(data.dataset, name="animals-102", title="animals-102")
        bench = as_benchmark(named, data.train, data.test, some)
    assert (bench.name, bench.domains) == ("animals-102", ["animals"])
    kept = bench["animals"]
    assert data.names[1] not in (*kept.ip.names, *kept.oop.names)
    assert [kept.oop.names[label] for label in kept.oop.test.labels] == [
        name for name in (data.names[label] for label in data.test.labels) if name in kept.oop.names
    ]
