from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from lbutils.models.classifier import text_classifier
from lbutils.models.names import NameEmbeddings, Names
from lbutils.models.prompts import fill, pieces
from lbutils.models.text import CausalText, Frame, SubstitutedText, text_forward

NAMES = ["red panda", "axolotl", "a{x}b", "<b>ant</b>", "犬", "hammerhead shark of the sea"]
# No punctuation at the slot: with "<b>ant</b>," the whole would merge the two (test_prompts.py).
TEMPLATES = ["a {name}", "a drawing of a {name} as {hint}."]
KINDS = {
    "clip": {"kind": "clip"},
    "quick layer scale": {"kind": "clip", "ls_init_value": 0.5},
    "custom text": {"kind": "custom"},
    "custom text, eos": {"kind": "custom", "pool_type": "eos", "eos_id": 49407},
    "custom text, projection bias": {"kind": "custom", "proj_bias": True},
    "no causal mask": {"kind": "custom", "no_causal_mask": True, "pool_type": "last"},
    "class token": {"kind": "custom", "embed_cls": True},
    "normed queries": {"kind": "custom", "qk_norm": True},
    "coca": {"kind": "coca"},
    "siglip": {"kind": "siglip"},
    "bert, mean": {"kind": "bert", "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"},
    "bert, class token": {"kind": "bert", "hf_proj_type": "mlp", "hf_pooler_type": "cls_pooler"},
}
CAUSAL = [
    "clip",
    "quick layer scale",
    "custom text",
    "custom text, eos",
    "custom text, projection bias",
]


@pytest.fixture(scope="module", params=list(KINDS))
def encoder(request, make_encoder):
    made = make_encoder(**KINDS[request.param])
    made.is_causal = request.param in CAUSAL
    return made


def plain_features(encoder, template):
    """Features by the model's own encode_text."""
    ids = encoder.tokenize([fill(template, name, "animal") for name in NAMES])
    return F.normalize(encoder.model.encode_text(ids), dim=-1)


def test_the_forward_follows_from_what_the_tower_can_do(encoder):
    expected = CausalText if encoder.is_causal else SubstitutedText
    assert type(text_forward(encoder)) is expected


def test_start_equals_encode_text(encoder):
    names = NameEmbeddings(encoder, NAMES, TEMPLATES, "animal")
    expected = F.normalize(sum(plain_features(encoder, t) for t in TEMPLATES), dim=-1)
    assert torch.allclose(names(), expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [256, 3])
def test_a_text_classifier_equals_encode_text(encoder, batch_size):
    """Whatever is computed once or left out, with prompts that end at the context's end too."""
    wordy = [*TEMPLATES, "{name}, seen" + " again" * 20, "seen" + " again" * 20 + " as {name}"]
    expected = F.normalize(sum(plain_features(encoder, t) for t in wordy), dim=-1)
    found = text_classifier(encoder, NAMES, wordy, "animal", batch_size)
    assert torch.allclose(found, expected, atol=1e-5)


def test_prompts_by_class_equal_encode_text(encoder):
    """As many prompts a name as there are, with and without its name, some shared by several."""
    own = {
        name: ["a photo", "a {name}, or so", "a {name}", "a {hint}: {name} and {name}"][: 1 + i]
        for i, name in enumerate(NAMES[:4])
    }
    own["axolotl"] = own["axolotl"][1:]
    found = text_classifier(encoder, NAMES[:4], {**own, "never asked": []}, "animal")
    for row, name in zip(found, NAMES, strict=False):
        texts = [one.replace("{name}", name).replace("{hint}", "animal") for one in own[name]]
        plain = F.normalize(encoder.model.encode_text(encoder.tokenize(texts)), dim=-1)
        assert torch.allclose(row, F.normalize(plain.sum(0), dim=0), atol=1e-5)


def test_gradients_equal_those_of_the_embedding(encoder):
    """A name's rows get the gradient that the model's token embedding would get for its pieces."""
    weights = torch.randn(len(NAMES), 32, generator=torch.Generator().manual_seed(1))
    ends = ("token_embedding", "word_embeddings")
    table = next(m for n, m in encoder.model.named_modules() if n.endswith(ends))
    for i, name in enumerate(NAMES[:3]):
        names = NameEmbeddings(encoder, [name], TEMPLATES[0])
        (names() * weights[i]).sum().backward()
        table.weight.requires_grad_(True)
        ids = encoder.tokenize([fill(TEMPLATES[0], name)])
        (F.normalize(encoder.model.encode_text(ids), dim=-1) * weights[i]).sum().backward()
        own = pieces(encoder.tokenizer, name)
        expected, table.weight.grad = table.weight.grad[own], None
        table.weight.requires_grad_(False)
        apart = [p not in pieces(encoder.tokenizer, "a") and own.count(p) == 1 for p in own]
        assert torch.allclose(names.rows.grad[apart], expected[apart], atol=1e-5, rtol=1e-4)
        assert any(apart)


def test_both_forwards_agree_away_from_the_start(tiny_encoder):
    pairs = [(0, 1), (1, 0), (2, 5), (0, 1), (3, 3), (1, 5)]
    contexts = [("seen by me: ", " at night, again"), ("", "")]
    found, gradients = [], []
    for forward in (CausalText(tiny_encoder), SubstitutedText(tiny_encoder)):
        names = NameEmbeddings(tiny_encoder, NAMES, TEMPLATES, "animal", forward=forward)
        assert names.add_contexts(contexts) == [2, 3]
        before = names()
        noise = torch.randn(names.rows.shape, generator=torch.Generator().manual_seed(2))
        names.rows.data += 0.3 * noise
        features = names.features(pairs)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
        ((features * weights).sum() + names()[:, 0].sum()).backward()
        found.append((before, features, names()))
        gradients.append(names.rows.grad)
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(*gradients, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0][0], found[0][2], atol=1e-2)
    assert all(torch.equal(features[0], features[3]) for _, features, _ in found)


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_several_prompts_begin_with_stand_once_a_line(tiny_encoder, seed):
    """Against the tower's own forward, whatever prefixes and beginnings are mixed."""
    exact, packed = SubstitutedText(tiny_encoder), CausalText(tiny_encoder)
    frame, rng = Frame.read(tiny_encoder.tokenizer), random.Random(seed)
    words = [pieces(tiny_encoder.tokenizer, word) for word in "abcdef"]
    prefixes = [[], words[0], [*words[1], *words[2]], words[3], [*words[0], *words[4]]]
    starts = [[-1, -2, -3], [-4], [-4, -5], [], [-6]]
    prompts = []
    for _ in range(rng.randint(5, 60)):
        codes = [*rng.choice(prefixes), *rng.choice(starts), *rng.choice([*words, [-7], [-8, -7]])]
        prompts.append([*frame.lead, *codes[: frame.room], *frame.tail])
    found = []
    for forward in (exact, packed):
        rows = torch.randn(8, forward.width, generator=torch.Generator().manual_seed(0)) * 0.5
        rows.requires_grad_()
        sheet = forward.sheet(prompts)
        features = forward(sheet, rows)
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
        (features * weights).sum().backward()
        found.append((features, rows.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-4)


def test_a_shared_beginning_is_laid_once_a_line(tiny_encoder):
    packed = CausalText(tiny_encoder)
    frame, word = Frame.read(tiny_encoder.tokenizer), pieces(tiny_encoder.tokenizer, "b")
    prompts = [[*frame.lead, -1, -2, *word * n, *frame.tail] for n in (1, 2) for _ in range(9)]
    sheet = packed.sheet(prompts)
    assert len(sheet.rows) == 2 * sheet.size[0] < 2 * len(prompts)


def test_sheets_stay_valid_when_longer_prefixes_come(tiny_encoder):
    names = NameEmbeddings(tiny_encoder, NAMES[:2], "a {name}")
    before = names()
    names.features([(names.add_contexts([("one two three four five six seven eight ", "")])[0], 0)])
    assert torch.equal(names(), before)


def test_caption_features_equal_encode_text(tiny_encoder):
    names = NameEmbeddings(tiny_encoder, ["red panda", "ant"], "a {name}")
    numbers = names.add_contexts([("the ", " sleeps"), ("oh, an ", "!")])
    found = names.features(list(zip(numbers, [0, 1], strict=True)))
    expected = tiny_encoder.encode_text(["the red panda sleeps", "oh, an ant!"])
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_name_stays_whole_in_a_long_caption(tiny_encoder):
    names = NameEmbeddings(tiny_encoder, ["red panda", "ant"], "a {name}")
    [number] = names.add_contexts([("word " * 40, " tail" * 40)])
    codes = names.codes(number, 0)
    assert len(codes) == 16
    assert [code for code in codes if code < 0] == [-1, -2]


def test_long_names_are_cut_and_reported(encoder):
    long = "antidisestablishmentarianism of " * 9
    with pytest.warns(UserWarning, match="1 names are cut to their first [0-9]+ pieces"):
        names = NameEmbeddings(encoder, [long, "ant"], "a {name}")
    assert names.shortened == (long,)
    expected = F.normalize(encoder.model.encode_text(encoder.tokenize([f"a {long}"])), dim=-1)
    assert torch.allclose(names()[0], expected[0], atol=1e-5)
    assert NameEmbeddings(encoder, [long], "a {name}", init=3).shortened == ()
    with pytest.raises(ValueError, match="no room"):
        NameEmbeddings(encoder, ["ant"], "word " * 20 + "{name}")


@pytest.mark.parametrize("name", ["", " ", "\n\t"])
def test_names_of_no_piece_are_refused(name, encoder):
    with pytest.raises(ValueError, match="is empty after the tokenizer's clean-up"):
        NameEmbeddings(encoder, ["ant", name], "a {name}")


def test_a_name_may_be_cleaned_away(make_encoder):
    with pytest.raises(ValueError, match="'!!' is empty after the tokenizer's clean-up"):
        NameEmbeddings(make_encoder("siglip"), ["!!"], "a {name}")


@pytest.mark.parametrize("many", [1, 7, 60])
def test_packed_prompts_do_not_see_each_other(many, tiny_encoder):
    """Prompts of one to all possible pieces, many a call, against each by itself."""
    captions = [("word " * (i % 11), " end" * (i * 5 % 13)) for i in range(many)]
    names = NameEmbeddings(tiny_encoder, NAMES, "a {name}")
    owners = [i % len(NAMES) for i in range(many)]
    one = SubstitutedText(tiny_encoder)
    numbers = names.add_contexts(captions)
    found = names.features(list(zip(numbers, owners, strict=True)))
    for feature, number, owner in zip(found, numbers, owners, strict=True):
        alone = one(one.sheet([names.codes(number, owner)]), names.rows)
        assert torch.allclose(feature, alone[0], atol=1e-5)


def test_rows_are_own_copies_and_inits_differ(tiny_encoder):
    names = NameEmbeddings(tiny_encoder, ["red panda", "red fox"], "a {name}")
    assert names.spans == [(0, 2), (2, 4)]
    assert torch.equal(names.rows[0], names.rows[2])
    random = NameEmbeddings(tiny_encoder, ["red panda", "red fox"], init="random", seed=1)
    again = NameEmbeddings(tiny_encoder, ["red panda", "red fox"], init="random", seed=1)
    assert torch.equal(random.rows, again.rows) and random.rows.shape == names.rows.shape
    assert not torch.equal(random.rows[0], random.rows[2])
    assert NameEmbeddings(tiny_encoder, ["red panda", "ant"], init=4).spans == [(0, 4), (4, 8)]
    for bad in ("clap", 0, 99):
        with pytest.raises(ValueError, match="init="):
            NameEmbeddings(tiny_encoder, ["ant"], init=bad)
    for bad in ([], ["ant", "ant"]):
        with pytest.raises(ValueError, match="all different"):
            NameEmbeddings(tiny_encoder, bad)


def test_names_are_lengthened_behind_their_own_rows(tiny_encoder):
    names = ["red panda", "ant", "hammerhead shark of the sea"]
    plain = NameEmbeddings(tiny_encoder, names)
    longer = NameEmbeddings(tiny_encoder, names, min_rows=3)
    assert longer.spans == [(0, 3), (3, 6), (6, 6 + plain.spans[2][1] - plain.spans[2][0])]
    own, more = plain.learned(), longer.learned()
    assert all(torch.equal(more[name][: len(own[name])], own[name]) for name in names)
    added = torch.cat([more["red panda"][2:], more["ant"][1:]])
    assert 0.01 < float(added.std()) < 0.03 and len(added.unique()) == added.numel()
    with pytest.raises(ValueError, match="pass init=names"):
        NameEmbeddings(tiny_encoder, names).load(more)
    again = NameEmbeddings(tiny_encoder, names, init=more)
    assert torch.allclose(again(), longer(), atol=1e-6)
    assert max(b - a for a, b in NameEmbeddings(tiny_encoder, ["ant"], min_rows=99).spans) < 16


def test_only_the_rows_are_parameters(tiny_encoder):
    names = NameEmbeddings(tiny_encoder, ["ant"])
    assert [name for name, _ in names.named_parameters()] == ["rows"]


def test_names_survive_the_disk(tiny_encoder, tmp_path):
    names = NameEmbeddings(tiny_encoder, [*NAMES, "__metadata__"], "a {name}", init="random")
    path = names.learned().save(tmp_path / "new" / "names.safetensors")
    assert [file.name for file in path.parent.iterdir()] == ["names.safetensors"]
    learned = Names.load(path, tiny_encoder)
    assert list(learned) == [*NAMES, "__metadata__"] and learned.templates == ("a {name}",)
    other = NameEmbeddings(tiny_encoder, NAMES[::-1], "a {name}").load(learned)
    assert torch.allclose(other().flip(0), names()[: len(NAMES)], atol=1e-6)


def test_names_of_a_template_that_stands_twice_survive_the_disk(tiny_encoder, tmp_path):
    names = NameEmbeddings(tiny_encoder, ["ant"], ["a {name}", "the {name}", "a {name}"])
    path = names.learned().save(tmp_path / "names")
    assert Names.load(path).templates == names.templates


def test_wrong_files_are_refused(tiny_encoder, tmp_path):
    path = NameEmbeddings(tiny_encoder, ["ant", "red panda"]).learned().save(tmp_path / "n")
    with pytest.raises(ValueError, match="not among the 2"):
        NameEmbeddings(tiny_encoder, ["bee"]).load(Names.load(path))
    with pytest.raises(ValueError, match="another tokenizer"):
        NameEmbeddings(tiny_encoder, ["ant"], init=3).load(Names.load(path))
    with pytest.raises(FileNotFoundError, match="no learned names"):
        Names.load(tmp_path / "none")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="not a file of learned names"):
        Names.load(tmp_path / "cut")
    wrong = Names({"ant": torch.zeros(1, 32)}, tokenizer="another").save(tmp_path / "w")
    with pytest.raises(ValueError, match="another tokenizer"):
        Names.load(wrong, tiny_encoder)


BAD_ROWS = {
    "nan": (torch.full((1, 32), torch.nan), "NaN"),
    "infinite": (torch.full((1, 32), torch.inf), "infinity"),
    "huge": (torch.full((1, 32), 1e30), "65504"),
    "whole numbers": (torch.ones(1, 32, dtype=torch.int64), "int64"),
    "truths": (torch.ones(1, 32, dtype=torch.bool), "bool"),
    "complex": (torch.ones(1, 32, dtype=torch.complex64), "complex64"),
    "none": (torch.ones(0, 32), "shape"),
    "of no width": (torch.ones(1, 0), "shape"),
    "flat": (torch.ones(32), "shape"),
    "deep": (torch.ones(1, 1, 32), "shape"),
    "of another width": (torch.ones(1, 16), "shape"),
    "a list": ([[1.0] * 32], "list"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_are_none_are_neither_saved_nor_loaded(case, tiny_encoder, tmp_path):
    rows, told = BAD_ROWS[case]
    good = NameEmbeddings(tiny_encoder, ["ant"]).learned()
    fit = {"tokenizer": good.tokenizer, "table": good.table, "templates": good.templates}
    bad = Names({"ant": good["ant"], "bee": rows}, **fit)
    with pytest.raises(ValueError, match=f"'bee' .*{told}"):
        bad.save(tmp_path / "bad")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError):
        NameEmbeddings(tiny_encoder, ["ant", "bee"], init=bad)
    before = tiny_encoder.model.state_dict(), tiny_encoder.model.text_pool_type
    table = tiny_encoder.model.token_embedding.weight.clone()
    with pytest.raises(ValueError, match=f"'bee' .*{told}"):
        bad.install(tiny_encoder.model, tiny_encoder.tokenizer)
    assert tiny_encoder.model.text_pool_type == before[1]
    assert torch.equal(tiny_encoder.model.token_embedding.weight, table)
    if case == "a list":
        return
    # As another program may have written them.
    with safe_open(good.save(tmp_path / "good"), "pt") as file:
        about = file.metadata() | {"names": '["ant", "bee"]'}
    save_file({"name.0": good["ant"], "name.1": rows}, tmp_path / "bad", about)
    with pytest.raises(ValueError, match=f"not a file of learned names: .*{told}"):
        Names.load(tmp_path / "bad")


@pytest.mark.parametrize(
    "about",
    [
        {"names": '["ant", "ant"]'},
        {"names": '{"ant": 1}'},
        {"names": "[1, 2]"},
        {"names": '["", "bee"]'},
        {"names": "[]"},
        {"names": "[" * 100_000},
        {"templates": '"a {name}"'},
        {"hint": "[1]"},
    ],
    ids=lambda about: str(about)[:40],
)
def test_what_a_file_says_of_names_is_checked(about, tiny_encoder, tmp_path):
    good = NameEmbeddings(tiny_encoder, ["ant", "bee"]).learned()
    with safe_open(good.save(tmp_path / "good"), "pt") as file:
        told = file.metadata() | about
        rows = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(rows, tmp_path / "bad", told)
    with pytest.raises(ValueError, match="not a file of learned names"):
        Names.load(tmp_path / "bad")


def test_equal_names_are_equal_bytes(tiny_encoder, tmp_path):
    names = NameEmbeddings(tiny_encoder, [*NAMES, "狐"], "a {name}", hint="fox").learned()
    # The library's order of metadata changes from one call to the next.
    files = {names.save(tmp_path / str(i)).read_bytes() for i in range(12)}
    assert len(files) == 1
    again = Names.load(tmp_path / "0")
    assert all(torch.equal(again[name], names[name]) for name in names)
    assert again.hint == "fox" and list(again) == list(names)
