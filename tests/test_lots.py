"""The lots of the miniature: dealt evenly, told apart by captions alone, nothing else changed."""

import re
from functools import cache

import pandas as pd
import pytest
from conftest import load_script

from lbutils.data.benchmark import ROTATIONS, data_dir, load_benchmark
from lbutils.data.lots import ARMS, lot_pairs
from lbutils.data.lots import lots as arms_of

MINI = data_dir() / "mini"


@pytest.fixture(scope="module")
def script():
    return load_script("lots")


@cache
def table():
    return pd.read_parquet(MINI / "lots.parquet")


@cache
def pairs():
    return pd.read_parquet(MINI / "pairs.parquet")


@pytest.fixture(scope="module")
def corpora():
    return {rotation: lot_pairs(rotation) for rotation in ROTATIONS}


def trained(corpus):
    return corpus[corpus["scale"] == "small"]


def test_lots_are_even_within_each_domain_and_rotate():
    own = arms_of()[arms_of()["lots-0"] != "always"]
    for rotation in ROTATIONS:
        sizes = own.groupby(["domain", rotation]).size().unstack()
        assert sizes.shape == (9, 3) and (sizes.max(axis=1) - sizes.min(axis=1) <= 1).all()
    assert len(own) == 266
    assert all(set(arms) == set(ARMS) for arms in own[[*ROTATIONS]].to_numpy())


def test_the_benchmark_of_a_rotation_has_the_arms_by_screening_alone():
    for rotation in ROTATIONS:
        bench = load_benchmark("mini", scale=rotation)
        ip = {(domain.name, name) for domain in bench.values() for name in domain.ip.names}
        named = arms_of()[arms_of()[rotation].isin(["both", "always"])]
        assert ip == set(named[["domain", "name"]].itertuples(index=False, name=None))


def test_other_seeds_deal_other_lots_over_the_same_concepts(script):
    kept = arms_of()["concept_id"].tolist()
    concepts = script.read_concepts().filter(script.pl.col("concept_id").is_in(kept))
    first, second = script.deal(concepts), script.deal(concepts, seed=1)
    assert first.keys() == second.keys() and first != second and first == script.deal(concepts)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_captions_name_the_concepts_of_arm_both_and_no_others(corpora, rotation):
    """By plain runs of words with nothing of ours, plurals and moved spaces included."""
    captions = trained(corpora[rotation])["captions"].explode().unique()
    runs = set()
    for words in (re.findall(r"\w+", caption.lower()) for caption in captions):
        runs.update("".join(words[i : i + n]) for n in (1, 2, 3, 4) for i in range(len(words)))
    for concept, name, arm in arms_of()[["concept_id", "name", rotation]].itertuples(index=False):
        letters = re.sub(r"\W", "", name.lower())
        found = runs & {letters, letters + "s", letters + "es"}
        assert bool(found) == (arm in ("both", "always")), (concept, found)


def test_arms_differ_in_captions_alone(corpora):
    both, image = (table()[table()["arm"] == arm] for arm in ("both", "image"))
    assert both["image_id"].tolist() == image["image_id"].tolist()
    assert both["concept_id"].tolist() == image["concept_id"].tolist()
    for rotation, corpus in corpora.items():
        arms = arms_of().set_index("concept_id")[rotation]
        met = set(trained(corpus)["image_id"])
        for concept, own in both.groupby("concept_id"):
            wanted = set() if arms[concept] == "neither" else set(own["image_id"])
            assert met & set(own["image_id"]) == wanted, (rotation, concept)


def test_everything_else_is_the_same_in_all_rotations(corpora):
    ours = set(table().loc[table()["arm"] != "always", "image_id"])
    rest = [
        trained(corpus)[~trained(corpus)["image_id"].isin(ours)].reset_index(drop=True)
        for corpus in corpora.values()
    ]
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
    for corpus in corpora.values():
        assert corpus["image_id"].isin(held).sum() == 0
        assert trained(corpus)["image_id"].is_unique
        assert (corpus["captions"].str.len() > 0).all()


def test_captions_without_names_use_words_of_the_constant_part(script):
    ours = set(table()["image_id"])
    rest = pairs().loc[~pairs()["image_id"].isin(ours), "captions"].explode()
    common = {word for caption in rest for word in re.findall(r"[\w-]+", caption)}
    told = table().loc[table()["arm"] == "image", "captions"].explode()
    assert {word for caption in told for word in re.findall(r"[\w-]+", caption)} <= common
    assert told.str.contains("|".join(set(script.CATEGORY.values()))).all()


def test_all_rotations_share_one_vocabulary(corpora):
    told = [set(corpus["captions"].explode()) for corpus in corpora.values()]
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("name", ["sunflower", "hot dog"])
def test_spellings_find_names_whose_spaces_were_moved(script, name):
    concepts = script.read_concepts().filter(script.pl.col("name") == name)
    naming = script.Spellings(concepts)
    spellings = {"sunflower": ["a sun flower", "sunflowers"], "hot dog": ["hotdog", "hot dogs"]}
    assert all(naming(text) for text in [name, *spellings[name]])
    assert not naming("a flower in the sun") and not naming("a dog that is hot")


def test_a_caption_without_the_name_says_colour_kind_and_tags(script):
    row = {"kind_of_thing": "animal", "colours": ["brown", "white"], "tags": ["pet"]}
    row |= {"kind": "emoji", "source": "noto"}
    told = {script.unnamed_caption(row, script.rng_of("x", k)) for k in range(300)}
    assert told >= {"a brown animal", "a drawing of a white animal", "an emoji of a brown animal"}
    assert told >= {"a colorful picture of a brown animal", "pet, white animal"}
    assert "brown animal, pet" in told
    bare = {**row, "colours": [], "tags": []}
    told = {script.unnamed_caption(bare, script.rng_of("x", k)) for k in range(100)}
    assert "an animal" in told
