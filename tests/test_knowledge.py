from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from conftest import load_script

from lbutils import load_benchmark, load_encoder
from lbutils.captions.survey import screen
from lbutils.captions.text import canonical
from lbutils.data.benchmark import data_dir, mini_file
from lbutils.learn.colours import BASIC
from lbutils.learn.knowledge import Knowledge, Lexicon, load_lexicon
from lbutils.models.classifier import text_features

NAMES = ("dog", "owl", "banana", "tent")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("mini")


@pytest.fixture(scope="module")
def lexicon():
    return load_lexicon()


@pytest.fixture(scope="module")
def few(lexicon):
    """The lexicon with a few hundred labels, for speed."""
    kept = sorted(lexicon.labels, key=lambda label: (-lexicon.labels[label], label))[:300]
    return lexicon._replace(labels={label: lexicon.labels[label] for label in kept})


def test_no_word_of_the_lexicon_tells_a_withheld_name():
    bench = load_benchmark("mini")
    withheld = [name for domain in bench.values() for name in domain.oop.names]
    table = pq.read_table(mini_file("language.parquet")).to_pandas()
    labels = table.loc[table["pairs"] > 0, "text"].tolist()
    phrases = pd.read_csv(mini_file("descriptions.csv"))["phrase"].tolist()
    assert len(labels) == 5000 and len(phrases) > 900
    for texts in (labels, phrases):
        found = screen(withheld, texts)
        assert found["captions"].sum() == 0, found.filter(found["captions"] > 0)
    words = {word for text in bench.pair_captions() for word in canonical(text).split()}
    assert all(set(canonical(phrase).split()) <= words for phrase in phrases)


def test_every_concept_has_a_vector_and_a_description(lexicon):
    bench = load_benchmark("mini")
    for domain in bench.values():
        for name in (*domain.ip.names, *domain.oop.names):
            assert lexicon.described(name)
            assert np.linalg.norm(lexicon.vector([name])[0]) == pytest.approx(1, abs=1e-5)
        assert lexicon.vector([domain.hint]).shape == (1, 384)


def test_the_language_model_knows_what_is_alike(lexicon):
    # Synonyms and unrelated words: vectors in the wrong order would not show it.
    pairs = lexicon.vector(["wolf", "dog", "banana", "pineapple"])
    near = pairs @ pairs.T
    assert near[0, 1] > near[0, 2] + 0.1 and near[2, 3] > near[1, 3] + 0.1


def test_the_map_equals_kernel_ridge_by_its_formula(encoder, few):
    knowledge = Knowledge(encoder, few, ("language",), gamma=2.0, alpha=0.7)
    labels = list(few.labels)
    x = few.vector(labels).astype(np.float64)
    y = text_features(encoder, labels, "a {name}").double().numpy()
    weights = np.sqrt([few.labels[label] for label in labels])

    def kernel(a, b):
        return np.exp(-2.0 * ((a[:, None] - b[None]) ** 2).sum(axis=2))

    dual = np.linalg.solve(kernel(x, x) + 0.7 * np.diag(1 / weights), y - y.mean(axis=0))
    expected = kernel(few.vector(NAMES).astype(np.float64), x) @ dual + y.mean(axis=0)
    np.testing.assert_allclose(knowledge.moved(NAMES).numpy(), expected, atol=1e-4)


def test_prototypes_are_the_sum_of_what_sources_say(encoder, few):
    unit = torch.nn.functional.normalize
    both = Knowledge(encoder, few, ("language", "descriptions", "pieces"))
    phrases = [few.described(name) for name in NAMES]
    moved = torch.stack([both.moved(own).mean(dim=0) for own in phrases])
    read = torch.stack([text_features(encoder, own, "a {name}").mean(dim=0) for own in phrases])
    parts = [
        text_features(encoder, NAMES, "a {name}"),
        unit(both.moved(NAMES), dim=1),
        unit(read, dim=1),
        unit(moved, dim=1),
    ]
    expected = F.normalize(sum(parts), dim=1)
    torch.testing.assert_close(both.prototypes(NAMES), expected, atol=1e-5, rtol=0)
    alone = Knowledge(encoder, few, ("descriptions",))
    torch.testing.assert_close(alone.prototypes(NAMES), parts[2])
    with pytest.raises(RuntimeError, match="language"):
        alone.moved(NAMES)


@pytest.mark.parametrize("source", ["glosses", "blind"])
def test_phrases_of_every_source_are_read_as_descriptions_are(source, encoder, few):
    both = Knowledge(encoder, few, ("language", source))
    own = few._replace(told={"descriptions": few.told[source]})
    other = Knowledge(encoder, own, ("language", "descriptions"))
    torch.testing.assert_close(both.prototypes(NAMES), other.prototypes(NAMES))
    described = Knowledge(encoder, few, ("language", "descriptions"))
    assert (both.prototypes(NAMES) - described.prototypes(NAMES)).norm(dim=1).min() > 1e-2
    assert both.lacking(["dog", "no such name"]) == ["no such name"]
    with pytest.raises(KeyError, match=f"name with {source}"):
        both.prototypes(["no such name"])


def test_a_name_that_one_source_lacks_another_may_have(encoder, few):
    assert Knowledge(encoder, few, ("language", "glosses")).lacking(["dog", "moai"]) == ["moai"]
    assert not Knowledge(encoder, few, ("language", "blind", "descriptions")).lacking(["moai"])


def test_wordnet_tells_nearly_every_concept(lexicon):
    names = set(pd.read_csv(mini_file("concepts.csv"), keep_default_na=False)["name"])
    glosses = lexicon.told["glosses"]
    assert set(glosses) < names and len(names - set(glosses)) == 4
    phrases = [phrase for own in glosses.values() for phrase in own]
    assert lexicon.vector(phrases).shape == (len(phrases), 384)
    assert "largest anthropoid ape" in glosses["gorilla"]


def test_three_phrases_were_written_blind_for_every_concept(lexicon):
    table = pd.read_csv(mini_file("blind.csv"), keep_default_na=False)
    names = pd.read_csv(mini_file("concepts.csv"), keep_default_na=False)["name"]
    assert set(table.groupby("name").size()) == {3} and set(table["name"]) == set(names)
    assert not any(canonical(row.name) in canonical(row.phrase) for row in table.itertuples(False))
    assert lexicon.vector(table["phrase"]).shape == (len(table), 384)
    assert lexicon.described("bank", "blind") == tuple(table.query("name == 'bank'")["phrase"])
    # The data card says how many of them have another name of the list.
    others = [
        phrase
        for name, phrase in table[["name", "phrase"]].itertuples(index=False)
        if any(f" {other} " in f" {phrase} " for other in set(names) - {name})
    ]
    card = (data_dir() / "mini" / "README.md").read_text(encoding="utf-8")
    assert f"{len(others)} of the {len(table)} phrases hold another name" in card


def test_a_shuffled_lexicon_gives_every_name_the_phrases_of_another(lexicon):
    names = sorted(lexicon.told["glosses"])
    control = lexicon.shuffled(names)
    assert set(control.told) == {"glosses", "blind", "descriptions"}
    for source, own in lexicon.told.items():
        told = control.told[source]
        assert all(told[name] != own[name] for name in names)
        assert sorted(told.values()) == sorted(own.values())
        assert told.get("moai") == own.get("moai")
    assert control.vectors is lexicon.vectors
    assert lexicon.shuffled(names, seed=1).told["glosses"] != control.told["glosses"]
    few = lexicon.shuffled(["dog", "moai"]).told["glosses"]  # of these one name has glosses
    assert few["moai"] == lexicon.told["glosses"]["dog"] and "dog" not in few


@pytest.mark.parametrize("source", ["glosses", "blind"])
def test_a_folder_may_have_phrases_of_other_sources(source, tmp_path):
    for file in ("language.parquet", "descriptions.csv"):
        (tmp_path / file).write_bytes(mini_file(file).read_bytes())
    assert set(load_lexicon(tmp_path).told) == {"descriptions"}
    (tmp_path / f"{source}.csv").write_text("name,phrase\nnull,of no force\nnull,naught\n")
    assert load_lexicon(tmp_path).told[source] == {"null": ("of no force", "naught")}
    (tmp_path / f"{source}.csv").write_text("name,phrase\nnull, \n")
    with pytest.raises(ValueError, match=rf"{source}\.csv has an empty phrase"):
        load_lexicon(tmp_path)


WORDNET = {
    "index.noun": """  1 a licence
bat n 2 1 @ 2 1 00000002 00000001
mount_fuji n 1 1 @i 1 0 00000003
""",
    "data.noun": """  1 a licence
00000001 05 n 02 bat 0 chiropteran 0 001 @ 00000004 n 0000 | nocturnal (or so) mammal; has wings
00000002 06 n 01 bat 0 000 | a club; "she swung the bat"
00000003 17 n 02 Mount_Fuji 0 Fuji 0 001 @i 00000004 n 0000 | a peak; extinct
00000004 05 n 02 placental 0 eutherian 0 000 | mammals
""",
}


def test_glosses_are_those_of_the_domains_sense(tmp_path):
    make = load_script("glosses")
    for file, text in WORDNET.items():
        (tmp_path / file).write_text(text)
    index, senses = make.senses(tmp_path)
    assert index == {"bat": ["00000002", "00000001"], "mount_fuji": ["00000003"]}
    for name, lemma in {"bats": "bat", "the fruit bat": "bat", "mount fuji": "mount_fuji"}.items():
        assert make.looked_up(name, index) == lemma
    assert make.looked_up("oden", index) is None
    animal, above = senses["00000001"], senses["00000004"]
    assert animal.file == make.ANIMAL and animal.above == "00000004"
    told = dict(make.phrases(animal, above, "bat"))
    kinds = ["definition", "definition", "synonym", "hypernym"]
    assert list(told) == ["nocturnal mammal", "has wings", "chiropteran", "placental"]
    assert list(told.values()) == kinds
    club = dict(make.phrases(senses["00000002"], None, "bat"))
    assert club == {"a club": "definition"}, "no example, and not the name itself"
    assert dict(make.phrases(senses["00000003"], None, "mount_fuji"))["fuji"] == "synonym"


def test_every_word_of_a_description_is_read(encoder, lexicon):
    """Also of long ones: the context holds sixteen pieces."""
    knowledge = Knowledge(encoder, lexicon, ("descriptions",))
    phrases = lexicon.told["descriptions"]
    name = max(phrases, key=lambda n: len(" ".join(phrases[n])))
    own = phrases[name]
    changed = {"descriptions": {**phrases, name: (*own[:-1], f"{own[-1]} house")}}
    other = Knowledge(encoder, lexicon._replace(told=changed), ("descriptions",))
    apart = (knowledge.prototypes([name]) - other.prototypes([name])).norm()
    assert float(apart) > 1e-3
    longest = max((p for own in phrases.values() for p in own), key=len)
    cut = encoder.tokenizer([f"a {longest}"])[0]
    assert int((cut != 0).sum()) < encoder.context_length


def test_names_held_out_are_held_out(encoder, lexicon):
    labels = {"dog": 3, "hot dogs": 1, "dogma": 2, "cat": 4, "red cats": 1, "boxes": 2, "box": 1}
    vectors = dict.fromkeys(labels, lexicon.vectors["dog"])
    toy = Lexicon(vectors, {}, labels)
    held = Knowledge(encoder, toy, ("language",), hold_out=["dog", "box"])
    assert held._map is not None and len(held._map.X_fit_) == 3
    with pytest.raises(ValueError, match="two labels"):
        Knowledge(encoder, toy, ("language",), hold_out=["dog", "cat", "dogma", "box"])


def test_hints_prefer_names_of_their_domain(encoder, lexicon):
    bench = load_benchmark("mini")
    animals = bench["Animals"]
    others = [n for d in bench.values() if d is not animals for n in d.oop.names]
    names = [*animals.oop.names, *others]
    hinted = Knowledge(encoder, lexicon, ("descriptions", "hints"))
    own = len(animals.oop.names)
    shares = hinted.shares(names, animals.ip.names, animals.hint)
    assert shares.sum() == pytest.approx(1)
    assert shares[:own].sum() > 2 * own / len(names)
    # Known names say what is usual: without them the middle of the candidates does.
    assert hinted.shares(names, hint=animals.hint)[:own].sum() != pytest.approx(
        shares[:own].sum(), abs=1e-3
    )
    with pytest.raises(ValueError, match="superclass"):
        hinted.shares(names)
    plain = Knowledge(encoder, lexicon, ("descriptions",))
    np.testing.assert_allclose(plain.shares(names), 1 / len(names))


def test_colours_come_from_descriptions(encoder, few):
    knowledge = Knowledge(encoder, few, ("descriptions", "colours"))
    told = knowledge.told_colours(["banana", "no such name"])
    assert told.shape == (2, 11) and told[0, BASIC.index("yellow")] > 0.3
    assert not told[1].any()
    with pytest.raises(KeyError, match="description"):
        knowledge.told_colours(["no such name"])
    assert Knowledge(encoder, few, ("descriptions",)).told_colours(["banana"]) is None


def test_absent_names_carry_nothing_that_pieces_do_not_leak(encoder):
    """Zero-shot over names out of pre-training whose pieces never occurred is near guessing."""
    from lbutils.models.features import image_features

    bench = load_benchmark("mini")
    right, guess = [], []
    for domain in bench.values():
        split = domain.oop.train
        texts = text_features(encoder, split.names)
        found = (image_features(encoder, split) @ texts.T).argmax(dim=1).numpy()
        leaks = np.isin(split.labels, np.flatnonzero(domain.oop.compositional))
        right += (found == split.labels)[~leaks].tolist()
        guess += [1 / len(split.names)] * int((~leaks).sum())
    assert np.mean(right) < 3 * np.mean(guess)


@pytest.mark.parametrize(
    ("sources", "options", "word"),
    [
        (("langage",), {}, "language"),
        ((), {}, "source"),
        (("hints",), {}, "source"),
        (("colours", "hints"), {}, "source"),
    ],
)
def test_sources_are_checked(encoder, few, sources, options, word):
    with pytest.raises(ValueError, match=word):
        Knowledge(encoder, few, sources, **options)


def test_names_that_the_lexicon_lacks_are_told(encoder, few):
    knowledge = Knowledge(encoder, few, ("language", "descriptions"))
    with pytest.raises(KeyError, match="owl"):
        knowledge.prototypes(["dog", "owll"])
    bare = few._replace(told={})
    with pytest.raises(KeyError, match="description"):
        Knowledge(encoder, bare, ("descriptions",)).prototypes(["dog"])
    with pytest.raises(ValueError, match="no names"):
        knowledge.prototypes([])


def test_a_lexicon_of_ones_own_is_read_and_rubbish_refused(tmp_path, lexicon):
    for file in ("language.parquet", "descriptions.csv"):
        with pytest.raises(FileNotFoundError, match="lexicon has"):
            load_lexicon(tmp_path)
        (tmp_path / file).write_bytes(mini_file(file).read_bytes())
    own = load_lexicon(tmp_path)
    assert own.told == {"descriptions": lexicon.told["descriptions"]}
    assert own.labels == lexicon.labels
    np.testing.assert_array_equal(own.vectors["dog"], lexicon.vectors["dog"])
    (tmp_path / "descriptions.csv").write_text("name,phrase\nnull,a red ball\n")
    assert load_lexicon(tmp_path).told["descriptions"] == {"null": ("a red ball",)}
    (tmp_path / "descriptions.csv").write_text("name,phrase\nowl,\n")
    with pytest.raises(ValueError, match="empty phrase"):
        load_lexicon(tmp_path)
    (tmp_path / "descriptions.csv").write_text("names\nowl\n")
    with pytest.raises(ValueError, match="no lexicon"):
        load_lexicon(tmp_path)
    (tmp_path / "language.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="no lexicon"):
        load_lexicon(tmp_path)
