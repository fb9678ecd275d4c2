"""The miniature in the layout of LAION-Beyond and back; scales; counts beside the paper's."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lbutils.data import benchmark, laion_beyond
from lbutils.data import folder as layout
from lbutils.data.benchmark import Benchmark, Domain, Files, Split, Subset, load_benchmark
from lbutils.measure import published
from lbutils.models.classifier import logits, text_classifier
from lbutils.models.encoders import load_encoder
from lbutils.models.features import image_features

DOMAINS = ["Creatures", "Landmark"]  # one of them has no counterpart in the paper by name


@pytest.fixture(scope="module")
def original():
    return load_benchmark("mini", domains=DOMAINS)


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    return laion_beyond.export(original, tmp_path_factory.mktemp("exported") / "mini")


@pytest.fixture(scope="module")
def back(exported):
    return load_benchmark(exported)


# --- export and import ---------------------------------------------------------------------


def test_what_comes_back_is_what_went_out(original, back):
    assert (back.name, back.scale, back.domains) == ("mini", "small", DOMAINS)
    for before, after in zip(original.splits(), back.splits(), strict=True):
        (subset, name, split), (subset_after, name_after, found) = before, after
        assert (subset.domain, subset.kind, name) == (
            subset_after.domain,
            subset_after.kind,
            name_after,
        )
        assert found.names == split.names and found.ids == split.ids
        assert found.captions == split.captions
        assert found.labels.tolist() == split.labels.tolist()
        assert subset_after.compositional.tolist() == subset.compositional.tolist()
        for image_id in split.ids:
            assert found.source.read(image_id) == split.source.read(image_id)
    for name in DOMAINS:
        assert back[name].hint == original[name].hint
    assert back.pair_captions() == original.pair_captions()
    assert back.report().empty


@pytest.mark.parametrize("shots", [1, 4, 8])
def test_the_committed_draws_are_carried_over(original, back, shots):
    for name in DOMAINS:
        for kind in layout.SUBSETS:
            before, after = (getattr(bench[name], kind) for bench in (original, back))
            assert set(after.draws) == set(before.draws) == set(range(10))
            for seed in range(10):
                assert after.few_shot(shots, seed).ids == before.few_shot(shots, seed).ids
    with pytest.raises(ValueError, match="no few-shot draw 10"):
        back["Landmark"].oop.few_shot(1, seed=10)


def test_zero_shot_and_augmented_views_give_the_same_numbers(original, back):
    encoder = load_encoder("mini")
    for kind in layout.SUBSETS:
        scores = []
        for bench in (original, back):
            subset, hint = getattr(bench["Creatures"], kind), bench["Creatures"].hint
            classifier = text_classifier(encoder, subset.names, "paper", hint)
            features = image_features(encoder, subset.test, cache=False)
            scores.append(logits(features, classifier, 100.0).numpy())
            views = image_features(
                encoder, subset.few_shot(1, 3), views=2, seed=5, cache=False
            ).numpy()
            scores.append(views)
        assert np.array_equal(scores[0], scores[2])
        assert np.array_equal(scores[1], scores[3])


def test_the_authors_way_of_reading_finds_every_image(original, exported):
    """As in the released code: a folder by pattern, ``images/classname/image_name``, a caption."""
    for name in DOMAINS:
        for kind in layout.SUBSETS:
            subset = getattr(original[name], kind)
            (folder,) = exported.glob(f"{name}*_{kind.upper()}")
            assert folder.name == f"{name}{len(subset.names)}_{kind.upper()}"
            (file,) = folder.glob("split_Xin*.json")
            content = json.loads(file.read_text(encoding="utf-8"))
            for split in layout.SPLITS:
                expected = getattr(subset, split)
                captions, labels = [], []
                for item in content[split].values():
                    path = folder / "images" / item["classname"] / item["image_name"]
                    assert path.is_file()
                    captions.append(item.get("INFO", {}).get("Refined_caption3", ""))
                    labels.append(int(item["label"]))
                assert captions == list(expected.captions)
                assert labels == expected.labels.tolist()


def test_an_exported_benchmark_says_its_scale(exported):
    assert load_benchmark(exported, scale="small").scale == "small"
    for scale in ("400m", "medium"):
        with pytest.raises(ValueError, match="scale of mini .*choose from small"):
            load_benchmark(exported, scale=scale)
    assert load_benchmark(exported, domains="Landmark").domains == ["Landmark"]
    with pytest.raises(ValueError, match="Did you mean 'Landmark'"):
        load_benchmark(exported, domains="Landmarks")


def test_a_benchmark_of_the_released_layout_is_exported_too(tmp_path):
    first = load_benchmark(layout.generate(tmp_path / "first"))
    again = load_benchmark(laion_beyond.export(first, tmp_path / "again"))
    assert again.name == "laion_beyond" and again.scale == "400m"
    for name in first:
        for seed in (0, 7):
            one, other = (bench[name].oop.few_shot(2, seed) for bench in (first, again))
            assert one.ids == other.ids
            assert one.image(3).tobytes() == other.image(3).tobytes()


def test_nothing_is_written_over(original, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="new or empty folder"):
            laion_beyond.export(original, place)


def tiny(root, names, labels=(0, 1)):
    """A benchmark of one domain, its two images drawn on the spot."""
    root.mkdir(parents=True)
    for i in range(len(labels)):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / f"{i}.png")
    source = Files(root)

    def split(ids, labels):
        return Split(ids, np.array(labels, int), names, (None,) * len(ids), source)

    ids = tuple(f"{i}.png" for i in range(len(labels)))
    none = np.zeros(len(names), bool)
    oop = Subset("Food", "oop", names, none, split(ids, labels), split((), []), split((), []))
    empty = Split((), np.array([], int), (), (), source)
    ip = Subset("Food", "ip", (), np.zeros(0, bool), empty, empty, empty)
    return Benchmark("laion_beyond", "400m", [Domain("Food", "food", ip, oop)])


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (("a/b", "c"), (0, 1), "is a path, not a name"),
        (("..", "c"), (0, 1), "leaves the folder"),
        (("a", "c"), (0, 0), "class 'c' of Food oop has no image"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path, names, labels, message):
    with pytest.raises(ValueError, match=message):
        laion_beyond.export(tiny(tmp_path / "images", names, labels), tmp_path / "out")
    with pytest.raises(ValueError, match="lacks Food|no folder"):
        load_benchmark(tmp_path / "out")


def test_an_export_that_was_cut_short_is_not_taken_for_a_whole_one(original, tmp_path, monkeypatch):
    read, left = benchmark.Shards.read, iter(range(40))

    def breaks(self, image_id):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return read(self, image_id)

    monkeypatch.setattr(benchmark.Shards, "read", breaks)
    with pytest.raises(KeyboardInterrupt):
        laion_beyond.export(original, tmp_path / "out")
    with pytest.raises((ValueError, FileNotFoundError), match="lacks Creatures oop"):
        load_benchmark(tmp_path / "out")


def test_an_empty_subset_goes_out_and_comes_back(tmp_path):
    bench = tiny(tmp_path / "images", ("a", "c"))
    back = load_benchmark(laion_beyond.export(bench, tmp_path / "out"))
    assert back["Food"].ip.names == () and back["Food"].oop.names == ("a", "c")
    assert (tmp_path / "out" / "Food0_IP").is_dir()


# --- scales --------------------------------------------------------------------------------


def by_class(subset):
    """Image ids of each split, and of each draw, by class name."""
    found = {}
    for label, name in enumerate(subset.names):
        for split_name in layout.SPLITS:
            split = getattr(subset, split_name)
            own = [split.ids[i] for i in np.flatnonzero(split.labels == label)]
            found[name, split_name] = sorted(own)
        for draw in subset.draws or ():
            found[name, draw] = list(subset.draws[draw].get(label, ()))
    return found


@pytest.mark.parametrize("scale", ["medium", "large"])
def test_relabelling_gives_the_larger_scale_of_the_miniature(original, scale):
    """Which has been screened by itself: what the larger corpus names is in its tables."""
    larger = load_benchmark("mini", scale=scale, domains=DOMAINS)
    named = {
        name
        for domain in DOMAINS
        for name in original[domain].oop.names
        if name in larger[domain].ip.names
    }
    assert named
    found = laion_beyond.relabel(original, named, scale)
    assert found.scale == scale and found.name == "mini"
    for domain in DOMAINS:
        for kind in layout.SUBSETS:
            ours, theirs = (getattr(bench[domain], kind) for bench in (found, larger))
            assert by_class(ours) == by_class(theirs)
            assert len(ours.few_shot(2, 1)) == len(theirs.few_shot(2, 1))
        assert not found[domain].ip.compositional.any()


def test_relabelling_names_what_it_does_not_know(original):
    with pytest.raises(ValueError, match="'no such thing' is no OOP class of mini"):
        laion_beyond.relabel(original, ["no such thing"], "medium")
    for scale in ("small", "2b"):
        with pytest.raises(ValueError, match="choose from medium, large"):
            laion_beyond.relabel(original, [], scale)


# --- counts --------------------------------------------------------------------------------


class Nowhere:
    """A source without images: counts need none."""

    advice = ""


def counted(scale, changes=()):
    """A benchmark with the classes and images of Figure 2, and `changes` to them."""
    images = published.table("figure2_image_counts").query("scale == @scale")
    images = images.set_index(["domain", "subset"])["images"].to_dict()
    domains = {}
    for (domain, kind), classes in layout.published_classes(scale).items():
        number = images[domain, kind]
        if (domain, kind) in dict(changes):
            more, others = dict(changes)[domain, kind]
            classes, number = classes + more, number + others
        names = tuple(f"class {i}" for i in range(classes))
        ids = tuple(map(str, range(number if classes else 0)))
        labels = np.arange(len(ids)) % max(classes, 1)
        test = Split(ids, labels, names, (None,) * len(ids), Nowhere())
        none = Split((), np.array([], int), names, (), Nowhere())
        subset = Subset(domain, kind, names, np.zeros(classes, bool), none, none, test)
        domains.setdefault(domain, {})[kind] = subset
    found = [Domain(name, "", **subsets) for name, subsets in domains.items()]
    return Benchmark("laion_beyond", scale, found)


def test_counts_as_in_the_paper_have_no_remark():
    table = laion_beyond.compare_counts(counted("400m"))
    domains = table[table["domain"] != "all"]
    assert len(domains) == 18 and (domains["remark"] == "").all()
    totals = table[table["domain"] == "all"].set_index("subset")
    assert totals.loc["oop", ["classes", "published_classes"]].tolist() == [674, 674]
    assert totals.loc["ip", ["classes", "published_classes"]].tolist() == [324, 324]
    assert totals["published_images"].to_dict() == {"oop": 106_052, "ip": 51_330}
    # The bars that were read off the figure come within a thousandth of the printed totals.
    assert (abs(totals["images"] - totals["published_images"]) < 110).all()


def test_other_counts_are_remarked():
    changes = {("Attire", "oop"): (1, 0), ("Food", "ip"): (0, -200), ("Pokemon", "oop"): (-2, 31)}
    table = laion_beyond.compare_counts(counted("400m", changes)).set_index(["domain", "subset"])
    assert table.loc[("Attire", "oop"), "remark"] == "+1 classes"
    assert table.loc[("Food", "ip"), "remark"] == "-200 images"
    assert table.loc[("Pokemon", "oop"), "remark"] == "-2 classes, +31 images"
    assert table.loc[("Food", "oop"), "remark"] == ""
    assert table.loc[("all", "oop"), "remark"].startswith("-1 classes")


@pytest.mark.parametrize("scale", ["2b", "5b"])
def test_beyond_400m_the_paper_prints_no_totals(scale):
    table = laion_beyond.compare_counts(counted(scale))
    assert "all" not in set(table["domain"])
    odd = table[table["remark"] != ""]
    # The audit of the paper: a bar of 120 images where there is no class.
    expected = [["Landmark", "oop", "-120 images"]] if scale == "5b" else []
    assert odd[["domain", "subset", "remark"]].to_numpy().tolist() == expected


def test_counts_of_some_domains_or_others(tmp_path):
    bench = load_benchmark(layout.generate(tmp_path, ["Animals"]))
    table = laion_beyond.compare_counts(bench)
    assert table["remark"].tolist() == [
        "-40 classes, -12,239 images",
        "-89 classes, -24,598 images",
    ]
    table = laion_beyond.compare_counts(load_benchmark("mini", domains="Creatures"))
    assert table["remark"].tolist() == ["not in the paper"] * 2
    assert table["published_images"].isna().all()


def test_printed_totals_are_those_of_the_classes():
    totals = published.table("figure2_totals").set_index("subset")["classes"]
    classes = published.table("figure2_class_counts").query("scale == '400m'")
    assert totals.to_dict() == classes.groupby("subset")["classes"].sum().to_dict()


# --- command line --------------------------------------------------------------------------


def test_generate_and_check_from_a_shell(tmp_path, capsys):
    place = str(tmp_path / "small")
    assert laion_beyond.main(["generate", place, "--domains", "Food"]) == 0
    report = tmp_path / "report.csv"
    assert laion_beyond.main(["check-folder", place, "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert "integrity report: 1 findings" in said and "no captions, such as Food ip test" in said
    assert pd.read_csv(report)["kind"].tolist() == ["no captions"]
    assert laion_beyond.main(["generate", place, "--domains", "Food"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_export_from_a_shell(tmp_path, capsys):
    place = tmp_path / "medium"
    arguments = ["export", str(place), "--scale", "medium", "--domains", "Landmark"]
    assert laion_beyond.main(arguments) == 0
    assert f"load_benchmark({str(place)!r})" in capsys.readouterr().out
    assert load_benchmark(place).scale == "medium"
    assert laion_beyond.main(["check-folder", str(tmp_path / "nothing")]) == 2
    assert "unknown benchmark" in capsys.readouterr().err


def test_images_that_cannot_be_used_are_left_out_on_request(tmp_path, capsys):
    root = layout.generate(tmp_path / "Type: Null", ["Animals"], images=(3, 1, 2))
    whole = load_benchmark(root)["Animals"].oop
    bad, gone = whole.train.ids[1], whole.test.ids[0]
    (root / bad).write_bytes((root / bad).read_bytes()[:100])
    (root / gone).unlink()
    assert laion_beyond.main(["check-folder", str(root)]) == 1
    assert not (root / layout.LEFT_OUT).exists()
    assert laion_beyond.main(["check-folder", str(root), "--leave-out"]) == 1
    assert "names 2 images" in capsys.readouterr().out
    bench = load_benchmark(root)
    oop = bench["Animals"].oop
    assert oop.train.ids == tuple(i for i in whole.train.ids if i != bad)
    assert oop.test.ids == tuple(i for i in whole.test.ids if i != gone)
    assert oop.names == whole.names
    report = bench.report()
    assert "left out" in set(report["kind"])
    assert not {"missing file", "unreadable file", "unlisted file"} & set(report["kind"])
    assert laion_beyond.main(["check-folder", str(root), "--leave-out"]) == 0
    (root / layout.LEFT_OUT).unlink()
    assert load_benchmark(root)["Animals"].oop.train.ids == whole.train.ids


def test_a_draw_does_without_what_is_left_out(original, tmp_path):
    root = laion_beyond.export(original, tmp_path)
    domain = next(iter(original))
    before = load_benchmark(root, domains=domain)[domain].oop.few_shot(8)
    away = before.ids[0]
    (root / layout.LEFT_OUT).write_text(json.dumps([away]))
    after = load_benchmark(root, domains=domain)[domain].oop.few_shot(8)
    assert after.ids == before.ids[1:]


@pytest.mark.parametrize("content", ["{}", "[1]", "[", "[" * 99999])
def test_a_list_of_left_out_images_that_is_none_is_refused(tmp_path, content):
    root = layout.generate(tmp_path, ["Animals"], images=(1, 0, 1))
    (root / layout.LEFT_OUT).write_text(content)
    with pytest.raises(ValueError, match=r"left_out\.json"):
        load_benchmark(root)
