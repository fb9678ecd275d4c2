"""The committed miniature keeps its promises: screening, splits, draws, licences, size."""

from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import bpe_tokenizer

from lbutils.captions.survey import canonical, screen
from lbutils.data.benchmark import SCALES, Shards, data_dir, load_benchmark

MAX_SHOTS = 8
MEGABYTE = 1_000_000


@cache
def table(name):
    path = data_dir() / "mini" / name
    if path.suffix == ".csv":
        return pd.read_csv(path, keep_default_na=False)
    columns = ["image_id"] if name.startswith("images-") else None
    return pd.read_parquet(path, columns=columns)


@cache
def image_ids():
    shards = sorted(path.name for path in (data_dir() / "mini").glob("images-*.parquet"))
    return pd.concat([table(name)["image_id"] for name in shards])


@cache
def bench(scale):
    return load_benchmark(scale=scale)


# Of the middle one the counts are also those of small and of what it has more, below; the large one
# takes long, and is asked for in the workflow.
@pytest.mark.parametrize(
    "scale",
    ["small", *(pytest.param(scale, marks=pytest.mark.slow) for scale in ("medium", "large"))],
)
def test_screening_equals_a_new_screening_of_the_captions(scale):
    names = table("concepts.csv")["name"]
    found = screen(names, bench(scale).pair_captions(), tokenize=bpe_tokenizer().encode)
    kept = table("screening.csv")
    assert kept["concept_id"].tolist() == table("concepts.csv")["concept_id"].tolist()
    assert kept[f"subset_{scale}"].tolist() == found["subset"].tolist()
    assert kept[f"captions_{scale}"].tolist() == found["captions"].tolist()
    assert (
        kept[f"compositional_{scale}"].astype(str).tolist()
        == found["compositional"].astype(str).tolist()
    )


def test_counts_of_a_scale_are_those_of_the_one_before_and_of_its_own_captions():
    kept, pairs = table("screening.csv"), table("pairs.parquet")
    for before, scale in pairwise(SCALES["mini"]):
        more = pairs.loc[pairs["scale"] == scale, "captions"].explode().tolist()
        added = screen(table("concepts.csv")["name"], more)["captions"].to_numpy()
        counts = kept[f"captions_{before}"] + added
        assert kept[f"captions_{scale}"].tolist() == counts.tolist()
        assert (kept[f"subset_{scale}"] == "ip").tolist() == (counts > 0).tolist()


def test_concepts():
    concepts = table("concepts.csv")
    assert list(concepts.columns) == ["concept_id", "domain", "name"]
    assert concepts["concept_id"].is_unique and concepts["domain"].nunique() == 9
    assert (
        not concepts.assign(name=concepts["name"].map(canonical))
        .duplicated(["domain", "name"])
        .any()
    )
    drawings = table("samples.parquet").groupby("concept_id").size()
    assert len(concepts) >= 250 and set(concepts["concept_id"]) == set(drawings.index)
    assert drawings.min() >= 8


def test_a_larger_scale_only_turns_oop_into_ip():
    screening = table("screening.csv")
    small, medium, large = ((screening[f"subset_{scale}"] == "oop") for scale in SCALES["mini"])
    assert (small >= medium).all() and (medium >= large).all()
    for fewer in (small & ~medium, medium & ~large, large):
        assert 0.25 <= fewer.sum() / small.sum() <= 0.42
    counts = screening[[f"captions_{scale}" for scale in SCALES["mini"]]].to_numpy()
    assert (np.diff(counts, axis=1) >= 0).all()


def test_the_data_card_names_every_withheld_name_that_stands_in_another_spelling():
    names, captions = table("concepts.csv")["name"], bench("small").pair_captions()
    found = screen(names, captions, levels=["compounds", "inflections"])
    other = found[(found["captions"] == 0) & (found["captions_inflections"] > 0)]
    columns = ["name", "captions_compounds", "captions_inflections"]
    assert other[columns].values.tolist() == [["sunflower", 11, 11]]
    assert '"sun flower" in 11 captions' in (data_dir() / "mini" / "README.md").read_text("utf-8")


def test_small_is_nearly_the_whole_corpus():
    pairs = table("pairs.parquet")
    assert set(pairs["scale"]) == set(SCALES["mini"]) and pairs["image_id"].is_unique
    assert (pairs["scale"] == "small").mean() > 0.8
    sizes = [len(bench(scale).pair_captions()) for scale in SCALES["mini"]]
    assert sizes[0] < sizes[1] < sizes[2] == pairs["captions"].map(len).sum()


def test_no_held_out_drawing_is_in_pre_training():
    samples, pairs = table("samples.parquet"), table("pairs.parquet")
    held_out = samples.loc[samples["split"] != "train", "image_id"]
    assert not set(held_out) & set(pairs["image_id"])
    digest = table("attribution.parquet").set_index("image_id")["sha256"]
    assert not set(digest[held_out]) & set(digest[pairs["image_id"]])


def test_splits_go_by_drawing_family():
    samples, screening = table("samples.parquet"), table("screening.csv").set_index("concept_id")
    assert samples["image_id"].is_unique
    assert (samples.groupby(["concept_id", "group"])["split"].nunique() == 1).all()
    always_ip = samples["concept_id"].map(screening["subset_small"]) == "ip"
    assert set(samples.loc[always_ip, "split"]) == {"train", "val", "test"}
    assert set(samples.loc[~always_ip, "split"]) == {"train", "test"}
    counts = samples.groupby(["concept_id", "split"]).size().unstack(fill_value=0)
    assert (counts[["train", "test"]] > 0).all().all()


def test_training_drawings_of_ip_concepts_are_in_pre_training():
    samples, screening = table("samples.parquet"), table("screening.csv").set_index("concept_id")
    small = table("pairs.parquet").query("scale == 'small'")["image_id"]
    ip = samples["concept_id"].map(screening["subset_small"]) == "ip"
    assert set(samples.loc[ip & (samples["split"] == "train"), "image_id"]) <= set(small)
    assert not set(samples.loc[~ip, "image_id"]) & set(small)


def test_captions_of_samples_name_their_concept():
    names = table("concepts.csv").set_index("concept_id")["name"].map(canonical)
    samples = table("samples.parquet")
    for concept, caption in zip(samples["concept_id"], samples["caption"], strict=True):
        assert f" {names[concept]} " in f" {canonical(caption)} ", (concept, caption)


def test_few_shot_draws_are_ten_nested_and_from_train():
    fewshot, samples = table("fewshot.parquet"), table("samples.parquet")
    train = samples[samples["split"] == "train"].set_index("image_id")["concept_id"]
    assert (fewshot["image_id"].map(train) == fewshot["concept_id"]).all()
    assert not fewshot.duplicated(["concept_id", "draw", "image_id"]).any()
    available = train.value_counts().clip(upper=MAX_SHOTS)
    assert set(fewshot["concept_id"]) == set(table("concepts.csv")["concept_id"])
    for (concept, _), ranks in fewshot.groupby(["concept_id", "draw"])["rank"]:
        assert sorted(ranks) == list(range(available[concept]))
    assert (fewshot.groupby("concept_id")["draw"].nunique() == 10).all()
    assert set(fewshot["draw"]) == set(range(10))


def test_every_drawing_is_there_once_with_its_licence():
    attribution = table("attribution.parquet")
    ids = image_ids()
    assert ids.is_unique and attribution["image_id"].is_unique
    used = set(table("samples.parquet")["image_id"]) | set(table("pairs.parquet")["image_id"])
    assert used == set(ids) == set(attribution["image_id"])
    for column in ("source", "licence", "sha256"):
        assert attribution[column].fillna("").str.strip().ne("").all(), column
    source = Shards(data_dir() / "mini")
    stamps = [source.stamp(image_id) for image_id in attribution["image_id"]]
    assert attribution["sha256"].tolist() == stamps
    sources = table("sources.csv")
    assert set(attribution["source"]) <= set(sources["source"])
    assert not attribution["licence"].str.contains(r"-NC|-ND|GPL", regex=True).any()


def test_images_decode_at_the_size_of_the_encoder():
    bench = load_benchmark()
    for domain in bench.values():
        image = domain.oop.test.image(0)
        assert (image.mode, image.size) == ("RGB", (64, 64))


def test_integrity_report_is_empty():
    report = load_benchmark().report()
    assert report.empty, report.to_string()


def test_size_of_the_miniature():
    folder = data_dir() / "mini"
    tracked = [path for path in folder.rglob("*") if path.is_file() and ".build" not in path.parts]
    encoders = {path for path in tracked if folder / "encoder" in path.parents}
    # The data with its own encoder; those of larger corpora and of other towers come on top.
    own = [path for path in tracked if path not in encoders or path.parent.name == "small"]
    assert sum(path.stat().st_size for path in own) <= 45 * MEGABYTE
    for place in {path.parent for path in encoders}:
        assert sum(path.stat().st_size for path in place.iterdir()) <= 12 * MEGABYTE
    assert sum(path.stat().st_size for path in tracked) <= 90 * MEGABYTE


def test_checksums_list_every_file_of_data():
    folder = data_dir() / "mini"
    listed = set(table("checksums.csv")["file"])
    data = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*.parquet")
        if ".build" not in p.parts
    }
    data |= {path.name for path in folder.glob("*.csv")} - {"checksums.csv"}
    assert data <= listed
    assert all((folder / name).is_file() for name in listed)
