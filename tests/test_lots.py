"""The lots of the miniature: dealt evenly, told apart by captions alone, nothing else changed."""

import re
from functools import cache

import pandas as pd
import pytest
from conftest import load_script

from lbutils.data.benchmark import data_dir

MINI = data_dir() / "mini"
ROTATIONS = (0, 1, 2)


@pytest.fixture(scope="module")
def lots():
    return load_script("lots")


@cache
def dealt():
    return pd.read_csv(MINI / "lots.csv").merge(pd.read_csv(MINI / "concepts.csv"))


@cache
def table():
    return pd.read_parquet(MINI / "lots.parquet")


@cache
def pairs():
    return pd.read_parquet(MINI / "pairs.parquet")


@pytest.fixture(scope="module")
def corpora(lots):
    return [lots.corpus(dealt(), table(), rotation) for rotation in ROTATIONS]


def trained(corpus):
    return corpus[corpus["scale"] == "small"]


def test_lots_are_even_within_each_domain_and_rotate(lots):
    own = dealt()[dealt()["arm"] != "always"]
    sizes = own.groupby(["domain", "arm"]).size().unstack()
    assert sizes.shape == (9, 3) and (sizes.max(axis=1) - sizes.min(axis=1) <= 1).all()
    arms = pd.DataFrame([lots.arms(dealt(), rotation) for rotation in ROTATIONS])
    assert (arms.apply(lambda column: set(column) == set(lots.ARMS))).all()
    assert set(arms.columns) == set(own["concept_id"]) and arms.shape[1] == 266


def test_other_seeds_deal_other_lots_over_the_same_concepts(lots):
    kept = dealt()["concept_id"].tolist()
    concepts = lots.read_concepts().filter(lots.pl.col("concept_id").is_in(kept))
    first, second = lots.deal(concepts), lots.deal(concepts, seed=1)
    assert first.keys() == second.keys() and first != second and first == lots.deal(concepts)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_captions_name_the_concepts_of_arm_both_and_no_others(lots, corpora, rotation):
    """By plain runs of words with nothing of ours, plurals and moved spaces included."""
    captions = trained(corpora[rotation])["captions"].explode().unique()
    runs = set()
    for words in (re.findall(r"\w+", caption.lower()) for caption in captions):
        runs.update("".join(words[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(words)))
    arms = lots.arms(dealt(), rotation)
    for concept, name in dealt()[["concept_id", "name"]].itertuples(index=False):
        letters = re.sub(r"\W", "", name.lower())
        found = runs & {letters, letters + "s", letters + "es"}
        assert bool(found) == (arms.get(concept, "both") == "both"), (concept, found)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_counts_are_those_of_a_plain_search(corpora, rotation):
    captions = trained(corpora[rotation])["captions"].explode()
    plain = captions.str.lower().str.replace(r"[^\w]+", " ", regex=True)
    some = dealt()[dealt()["name"].str.fullmatch("[a-z ]+")].iloc[::9]
    for row in some.itertuples():
        found = plain.str.contains(rf"\b{row.name}\b").sum()
        assert found == getattr(row, f"captions_{rotation}"), row.name


def test_arms_differ_in_captions_alone(lots, corpora):
    both, image = (table()[table()["arm"] == arm] for arm in ("both", "image"))
    assert both["image_id"].tolist() == image["image_id"].tolist()
    assert both["concept_id"].tolist() == image["concept_id"].tolist()
    for rotation, corpus in zip(ROTATIONS, corpora, strict=True):
        arms = lots.arms(dealt(), rotation)
        met = set(trained(corpus)["image_id"])
        for concept, own in both.groupby("concept_id"):
            wanted = set() if arms[concept] == "neither" else set(own["image_id"])
            assert met & set(own["image_id"]) == wanted, (rotation, concept)


def test_everything_else_is_the_same_in_all_rotations(lots, corpora):
    ours = set(table().loc[table()["arm"] != "always", "image_id"])
    rest = [trained(c)[~trained(c)["image_id"].isin(ours)].reset_index(drop=True) for c in corpora]
    assert rest[0].equals(rest[1]) and rest[0].equals(rest[2])
    before = pairs().set_index("image_id")["captions"].map(list)
    changed = [
        image
        for image, own in rest[0][["image_id", "captions"]].itertuples(index=False)
        if list(own) != before[image]
    ]
    assert set(changed) <= set(table().loc[table()["arm"] == "always", "image_id"])
    assert len(rest[0]) + len(ours & set(before.index)) + 11 == len(pairs())


def test_no_corpus_has_a_held_out_drawing(corpora):
    samples = pd.read_parquet(MINI / "samples.parquet")
    held = set(samples.loc[samples["split"] != "train", "image_id"])
    for corpus in corpora:
        assert corpus["image_id"].isin(held).sum() == 0
        assert trained(corpus)["image_id"].is_unique
        assert (corpus["captions"].str.len() > 0).all()


def test_captions_without_names_use_words_of_the_constant_part(lots):
    ours = set(table()["image_id"])
    rest = pairs().loc[~pairs()["image_id"].isin(ours), "captions"].explode()
    common = {word for caption in rest for word in re.findall(r"[\w-]+", caption)}
    told = table().loc[table()["arm"] == "image", "captions"].explode()
    assert {word for caption in told for word in re.findall(r"[\w-]+", caption)} <= common
    assert told.str.contains("|".join(set(lots.CATEGORY.values()))).all()


def test_all_rotations_share_one_vocabulary(lots, corpora):
    told = [set(corpus["captions"].explode()) for corpus in corpora]
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("name", ["sunflower", "hot dog"])
def test_spellings_find_names_whose_spaces_were_moved(lots, name):
    concepts = lots.read_concepts().filter(lots.pl.col("name") == name)
    naming = lots.Spellings(concepts)
    spellings = {"sunflower": ["a sun flower", "sunflowers"], "hot dog": ["hotdog", "hot dogs"]}
    assert all(naming(text) for text in [name, *spellings[name]])
    assert not naming("a flower in the sun") and not naming("a dog that is hot")


def test_a_caption_without_the_name_says_colour_kind_and_tags(lots):
    row = {"kind_of_thing": "animal", "colours": ["brown", "white"], "tags": ["pet"]}
    row |= {"kind": "emoji", "source": "noto"}
    told = {lots.unnamed_caption(row, lots.rng_of("x", k)) for k in range(300)}
    assert told >= {"a brown animal", "a drawing of a white animal", "an emoji of a brown animal"}
    assert told >= {"a colorful picture of a brown animal", "pet, white animal"}
    assert "brown animal, pet" in told
    bare = {**row, "colours": [], "tags": []}
    assert {lots.unnamed_caption(bare, lots.rng_of("x", k)) for k in range(100)} >= {"an animal"}
