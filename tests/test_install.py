"""Learned names as words of other people's models: open_clip's and transformers'."""

from __future__ import annotations

import gzip
import html
import re
import unicodedata
from contextlib import nullcontext
from functools import cache
from itertools import islice

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import bpe_tokenizer
from open_clip.tokenizer import default_bpe
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lbutils.models.encoders import DualEncoder, load_encoder
from lbutils.models.install import WordTokenizer
from lbutils.models.mini import PieceTokenizer, always_kept
from lbutils.models.names import NameEmbeddings, Names

NAMES = ["red panda", "ant", "numbat", "a{x}b", "<b>ant</b>", "犬", "C++", "Æon"]
PLAIN = ["a photo of a red panda", "", "numbat < ant > 犬", "word " * 40, "a <new> thing"]
# The whole table of merges takes seconds to make and to copy, once a test and more.
MERGES = 4000
SIZE = 2 * 256 + MERGES + 2
END = SIZE - 1
KINDS = {
    "clip": {"kind": "clip"},
    "custom text": {"kind": "custom"},
    "custom text, eos": {"kind": "custom", "pool_type": "eos", "eos_id": END},
    "coca": {"kind": "coca"},
}


@cache
def merges():
    """The first merges of CLIP's BPE, a line each, below a title."""
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as lines:
        return list(islice(lines, 1 + MERGES))


@pytest.fixture(scope="module")
def make_encoder(make_encoder, tmp_path_factory):
    """As for all tests, with fewer pieces."""
    place = tmp_path_factory.mktemp("bpe") / "bpe.txt.gz"
    with gzip.open(place, "wt", encoding="utf-8") as file:
        file.write("".join(merges()).rstrip("\n"))
    tokenizer = open_clip.SimpleTokenizer(str(place), context_length=16)

    def make(kind="clip", **text):
        model = make_encoder(kind, **{"vocab_size": SIZE, **text}).model
        return DualEncoder(model, tokenizer, name=f"tiny {kind}", preprocess={"size": 32})

    return make


def learned(encoder, names=NAMES, template="a photo of a {name}, seen"):
    """Name embeddings away from their start, as after training."""
    embeddings = NameEmbeddings(encoder, names, template)
    noise = torch.randn(embeddings.rows.shape, generator=torch.Generator().manual_seed(1))
    embeddings.rows.data += 0.05 * noise
    return embeddings


def prompts(names=NAMES):
    return [f"a photo of a <{name}>, seen" for name in names]


def encoded(model, tokenizer, texts):
    with torch.no_grad():
        return F.normalize(model.encode_text(tokenizer(texts)), dim=-1)


def piece_encoder(make_encoder):
    """The tiny model with the miniature's kind of tokenizer."""
    bpe = bpe_tokenizer()
    pieces = sorted({*always_kept(bpe), *bpe.encode("a photo of a red thing, seen")})
    model = make_encoder("clip", vocab_size=len(pieces)).model
    return DualEncoder(model, PieceTokenizer(pieces), name="pieces", preprocess={"size": 32})


@pytest.mark.parametrize("kind", [*KINDS, "pieces"])
def test_installed_in_open_clip(kind, make_encoder, tmp_path):
    made = piece_encoder(make_encoder) if kind == "pieces" else make_encoder(**KINDS[kind])
    embeddings = learned(made)
    expected = embeddings().detach()
    before = made.tokenizer(PLAIN), encoded(made.model, made.tokenizer, PLAIN)
    names = Names.load(embeddings.learned().save(tmp_path / "names"))
    tokenizer = names.install(made.model, made.tokenizer)
    assert torch.allclose(encoded(made.model, tokenizer, prompts()), expected, atol=1e-5)
    assert torch.equal(tokenizer(PLAIN), before[0])
    assert torch.equal(encoded(made.model, tokenizer, PLAIN), before[1])
    assert not any(p.requires_grad for p in made.model.parameters())
    # What was installed is words to this project's own learner too, and more can be learned.
    again = DualEncoder(made.model, tokenizer, name="again", preprocess={"size": 32})
    words = NameEmbeddings(again, [f"<{name}>" for name in NAMES], "a photo of a {name}, seen")
    assert torch.allclose(words(), expected, atol=1e-5)


def test_domains_are_installed_one_after_the_other(make_encoder):
    made = make_encoder()
    first, second = learned(made, ["numbat", "red panda"]), learned(made, ["okapi", "sea otter"])
    expected = torch.cat([first(), second()]).detach()
    kept = [first.learned(), second.learned()]
    tokenizer = kept[1].install(made.model, kept[0].install(made.model, made.tokenizer))
    names = ["numbat", "red panda", "okapi", "sea otter"]
    assert torch.allclose(encoded(made.model, tokenizer, prompts(names)), expected, atol=1e-5)
    assert list(tokenizer.words) == [f"<{name}>" for name in names]
    with pytest.raises(ValueError, match="'<okapi>' is already installed"):
        kept[1].install(made.model, tokenizer)


def test_the_tokenizer_that_comes_back_is_a_drop_in(make_encoder):
    made = make_encoder()
    base = made.tokenizer
    tokenizer = learned(made, ["numbat", "red panda"]).learned().install(made.model, base)
    first = base.vocab_size
    numbat = [*range(first, first + len(base.encode("numbat")))]
    panda = [*range(numbat[-1] + 1, numbat[-1] + 1 + len(base.encode("red panda")))]
    assert tokenizer.encode("a <numbat>.") == [*base.encode("a"), *numbat, *base.encode(".")]
    assert tokenizer.encode("<NUMBAT><Red Panda>") == [*numbat, *panda]
    assert tokenizer.decode(tokenizer.encode("the <red panda> sleeps")) == (
        "the <red panda> sleeps "
    )
    assert tokenizer("<numbat>").tolist() == tokenizer(["<numbat>"]).tolist()
    short = tokenizer(["see <numbat> " * 9], context_length=6)[0].tolist()
    assert len(short) == 6 and short[0] == base.sot_token_id and short[-1] == base.eot_token_id
    assert short[2] == first
    assert tokenizer.eot_token_id == base.eot_token_id and tokenizer.context_length == 16
    assert tokenizer.vocab_size == panda[-1] + 1 == made.model.token_embedding.num_embeddings


def clip_tokenizer(made):
    """transformers' CLIP tokenizer with the pieces of an encoder's."""
    from transformers import CLIPTokenizer

    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(piece, piece): i for piece, i in made.tokenizer.encoder.items()}
    pairs = [tuple(line.split()) for line in merges()[1:]]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=16)


TINY_TEXT = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def clip_model(ours, eos_token_id):
    """transformers' CLIP with the text tower of a tiny open_clip model."""
    from transformers import CLIPConfig, CLIPModel

    more = {"hidden_act": "gelu", "bos_token_id": END - 1, "eos_token_id": eos_token_id}
    text = TINY_TEXT | {"intermediate_size": 128, "projection_dim": 32} | more
    vision = TINY_VISION | {"projection_dim": 32}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()
    state = {
        "embeddings.token_embedding.weight": ours.token_embedding.weight,
        "embeddings.position_embedding.weight": ours.positional_embedding,
        "final_layer_norm.weight": ours.ln_final.weight,
        "final_layer_norm.bias": ours.ln_final.bias,
    }
    for i, block in enumerate(ours.transformer.resblocks):
        parts = zip("qkv", block.attn.in_proj_weight.chunk(3), strict=True)
        biases = block.attn.in_proj_bias.chunk(3)
        for (part, weight), bias in zip(parts, biases, strict=True):
            state[f"encoder.layers.{i}.self_attn.{part}_proj.weight"] = weight
            state[f"encoder.layers.{i}.self_attn.{part}_proj.bias"] = bias
        pairs = {
            "self_attn.out_proj": block.attn.out_proj,
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
        }
        for name, module in pairs.items():
            state[f"encoder.layers.{i}.{name}.weight"] = module.weight
            state[f"encoder.layers.{i}.{name}.bias"] = module.bias
    model.text_model.load_state_dict(state)
    with torch.no_grad():
        model.text_projection.weight.copy_(ours.text_projection.T)
    return model


def text_features(model, tokenizer, texts):
    inputs = tokenizer(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        pooled = model.text_model(**inputs).pooler_output
        return F.normalize(model.text_projection(pooled), dim=-1)


def detector(kind):
    """A tiny random OWL-ViT or OWLv2 of transformers, with CLIP's vocabulary."""
    import transformers

    torch.manual_seed(0)
    config = {"owlvit": transformers.OwlViTConfig, "owlv2": transformers.Owlv2Config}[kind]
    found = config(text_config=TINY_TEXT, vision_config=TINY_VISION, projection_dim=32)
    model = {
        "owlvit": transformers.OwlViTForObjectDetection,
        "owlv2": transformers.Owlv2ForObjectDetection,
    }[kind](found)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def queries(tokenizer, texts):
    """Ids of queries, padded to the context as OWL-ViT's processor does."""
    options = {"padding": "max_length", "truncation": True, "max_length": 16}
    return tokenizer(texts, return_tensors="pt", **options).input_ids


@pytest.mark.parametrize("kind", ["owlvit", "owlv2"])
def test_a_detector_finds_learned_names_as_its_own_forward_does(kind, make_encoder):
    from lbutils.models import families

    model, tokenizer = detector(kind), clip_tokenizer(make_encoder())
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    encoder = DualEncoder(
        *families.wrap(getattr(model, kind), tokenizer), preprocess={"size": 32}, name=kind
    )
    words = ["red panda", "numbat"]
    embeddings = learned(encoder, words)
    plain = queries(tokenizer, ["a photo of a cat", "a photo of a red panda, seen"])
    with torch.no_grad():
        before = model(input_ids=plain, pixel_values=pixels).logits
        # The model's own forward, the learned rows put where the pieces' embeddings come out.
        ids = queries(tokenizer, [f"a photo of a {word}, seen" for word in words])
        rows = embeddings.rows.detach().split([end - start for start, end in embeddings.spans])

        def put(module, inputs, output):
            for line, (own, text) in enumerate(zip(rows, output, strict=True)):
                text[5 : 5 + len(own)] = own
                assert ids[line, 5] == pieces_of(tokenizer, words[line])[0]
            return output

        hook = getattr(model, kind).text_model.embeddings.token_embedding.register_forward_hook(put)
        wanted = model(input_ids=ids, pixel_values=pixels)
        hook.remove()
    assert embeddings.learned().install(model, tokenizer) is tokenizer
    new = queries(tokenizer, prompts(words))
    with torch.no_grad():
        found = model(input_ids=new, pixel_values=pixels)
        assert torch.equal(model(input_ids=plain, pixel_values=pixels).logits, before)
    # New ids are the highest, so that a model that pools there would read the name alone.
    assert (new.argmax(dim=1) != (new == tokenizer.eos_token_id).int().argmax(dim=1)).all()
    assert torch.allclose(found.logits, wanted.logits, atol=1e-5)
    assert torch.equal(found.pred_boxes, wanted.pred_boxes)
    # Names may be installed one domain after the other; the pooling is mended once.
    tower = getattr(model, kind).text_model
    assert len(tower._forward_hooks) == 1
    more = learned(encoder, ["okapi"])
    more.learned().install(model, tokenizer)
    assert len(tower._forward_hooks) == 1
    with torch.no_grad():
        again = model(input_ids=queries(tokenizer, prompts(words)), pixel_values=pixels)
    assert torch.allclose(again.logits, wanted.logits, atol=1e-5)


def pieces_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


# 2 is what configurations said before transformers pooled at the end of text.
@pytest.mark.parametrize("eos_token_id", [2, END])
def test_installed_in_transformers(eos_token_id, make_encoder, tmp_path):
    made = make_encoder()
    embeddings = learned(made)
    names = Names.load(embeddings.learned().save(tmp_path / "names"))
    model, tokenizer = clip_model(made.model, eos_token_id), clip_tokenizer(made)
    plain = text_features(model, tokenizer, PLAIN)
    ids = tokenizer(PLAIN, truncation=True).input_ids
    shared = encoded(made.model, made.tokenizer, PLAIN[:1])
    assert torch.allclose(plain[:1], shared, atol=1e-5), "the port itself must be faithful"

    assert names.install(model, tokenizer) is tokenizer
    found = text_features(model, tokenizer, prompts())
    assert torch.allclose(found, embeddings().detach(), atol=1e-5)
    assert tokenizer(PLAIN, truncation=True).input_ids == ids
    assert torch.equal(text_features(model, tokenizer, PLAIN), plain)
    spans = [end - start for start, end in embeddings.spans]
    for name, rows in zip(NAMES, spans, strict=True):
        assert len(tokenizer.encode(f"<{name}>", add_special_tokens=False)) == rows

    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "clip")
    assert torch.allclose(text_features(model, tokenizer, prompts()), found, atol=1e-5)
    with pytest.raises(ValueError, match="'<red panda>' is already installed"):
        names.install(model, tokenizer)


SPELT = ["café au lait", "pig's ear", "red panda", "numbat"]
SPELLINGS = {
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "upper case": str.upper,
    "double spaces": lambda text: text.replace(" ", "  "),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "lines": lambda text: text.replace(" ", "\r\n\t"),
}
ESCAPED = {
    "entities": lambda text: html.escape(text).replace("é", "&eacute;").replace(" ", "&nbsp;"),
    "escaped entities": lambda text: html.escape(html.escape(text)).replace("é", "&amp;#233;"),
    "loose marks": lambda text: text.replace("é", "e&#769;"),
    "wrongly decoded": lambda text: text.encode().decode("cp1252"),
    "wide signs": lambda text: text.replace("<", "\uff1c").replace(">", "\uff1e"),
    "curly apostrophes": lambda text: text.replace("'", "\u2019"),
}


@pytest.mark.parametrize("spelling", [*SPELLINGS, *ESCAPED])
def test_an_installed_word_is_read_however_it_is_written(spelling, make_encoder):
    made = make_encoder()
    names = learned(made, SPELT).learned()
    tokenizer = names.install(made.model, made.tokenizer)
    respell = {**SPELLINGS, **ESCAPED}[spelling]
    for name in SPELT:
        plain, text = f"a photo of a <{name}>, seen", respell(f"a photo of a <{name}>, seen")
        assert max(tokenizer.encode(plain)) >= made.tokenizer.vocab_size
        assert tokenizer.encode(text) == tokenizer.encode(plain)
        assert torch.equal(tokenizer([text]), tokenizer([plain]))
    # What only looks like a word stays what the tokenizer beneath makes of it.
    for text in map(respell, ["<redpanda>", "a red panda", "< numbat >", "café"]):
        assert tokenizer.encode(text) == made.tokenizer.encode(text)
        assert torch.equal(tokenizer([text]), made.tokenizer([text]))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_transformers_reads_an_installed_word_however_it_is_written(spelling, make_encoder):
    made = make_encoder()
    model, tokenizer = clip_model(made.model, END), clip_tokenizer(made)
    learned(made, SPELT).learned().install(model, tokenizer)
    for name in SPELT:
        plain = f"a photo of a <{name}>, seen"
        text = SPELLINGS[spelling](plain)
        assert tokenizer(text).input_ids == tokenizer(plain).input_ids


@pytest.mark.parametrize(
    "twins", [("café", "cafe\u0301"), ("fire ant", "fire  ant"), ("AT&T", "AT&amp;T"), ("é", "Ã©")]
)
def test_words_that_read_alike_are_refused(twins, make_encoder):
    made = make_encoder()
    rows = learned(made, ["x", "y"]).learned()
    names = Names(
        dict(zip(twins, rows.values(), strict=True)), tokenizer=rows.tokenizer, table=rows.table
    )
    size = made.model.token_embedding.num_embeddings
    with pytest.raises(ValueError, match="white space or Unicode form"):
        names.install(made.model, made.tokenizer)
    assert made.model.token_embedding.num_embeddings == size


@pytest.mark.slow
def test_five_ways_back(make_encoder, tmp_path):
    """A saved tokenizer knows its words however it is loaded, or is not loaded at all."""
    import transformers

    made = make_encoder()
    embeddings = learned(made)
    for words, whole in ((NAMES, False), (["numbat", "Æon"], True)):
        rows = {name: embeddings.learned()[name][: 1 if whole else None] for name in words}
        fits = embeddings.learned()
        names = Names(rows, templates=fits.templates, tokenizer=fits.tokenizer, table=fits.table)
        model, tokenizer = clip_model(made.model, END), clip_tokenizer(made)
        # At the last moment at which it can be said: CLIPTokenizer reads no word of several tokens.
        told = nullcontext() if whole else pytest.warns(UserWarning, match="load .* AutoTokenizer")
        with told:
            names.install(model, tokenizer)
        place = tmp_path / str(whole)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(place)
        texts = [*prompts(words), *PLAIN]
        expected = tokenizer(texts, truncation=True).input_ids
        pipe = transformers.pipeline("zero-shot-image-classification", model=str(place))
        kept = {
            "AutoTokenizer": transformers.AutoTokenizer.from_pretrained(place),
            "CLIPProcessor": transformers.CLIPProcessor.from_pretrained(place).tokenizer,
            "pipeline": pipe.tokenizer,
        }
        for way, found in kept.items():
            assert found(texts, truncation=True).input_ids == expected, way
        for kind in (transformers.CLIPTokenizerFast, transformers.CLIPTokenizer):
            if whole:
                found = kind.from_pretrained(place)
                assert found(texts, truncation=True).input_ids == expected
            else:
                # It would make its normalizer anew, and so forget words of several tokens.
                with pytest.raises(TypeError, match="vocab"):
                    kind.from_pretrained(place)
        assert load_encoder(f"transformers:{place}", device="cpu").dim == 32


def test_an_installation_that_fails_changes_nothing(make_encoder, monkeypatch):
    from lbutils.models import names as module

    made = make_encoder()
    names = learned(made, ["numbat"]).learned()
    model, tokenizer = clip_model(made.model, END), clip_tokenizer(made)
    table, size = model.text_model.embeddings.token_embedding.weight.clone(), len(tokenizer)

    def failing(tokenizer, words):
        tokenizer.add_tokens(["<numbat>"])
        raise RuntimeError("it did not take the word")

    monkeypatch.setattr(module, "add_words", failing)
    with pytest.raises(RuntimeError, match="did not take"):
        names.install(model, tokenizer)
    assert torch.equal(model.text_model.embeddings.token_embedding.weight, table)
    assert model.config.text_config.vocab_size == len(table) and len(tokenizer) == size
    monkeypatch.undo()
    monkeypatch.setattr(module, "grown", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        names.install(made.model, made.tokenizer)
    assert made.model.text_pool_type == "argmax"


def test_misfits_are_refused_and_nothing_changes(make_encoder):
    made = make_encoder()
    table = made.model.token_embedding.weight.clone()
    names = learned(made, ["numbat"]).learned()
    wide, other = make_encoder("clip", width=48), make_encoder("clip")
    other.model.token_embedding.weight.data[5, 5] += 1
    pieces = piece_encoder(make_encoder)
    cased = learned(made, ["Ant", "ant"]).learned()
    taken = learned(made, ["end_of_text"]).learned()
    for wrong, model, tokenizer, words in [
        (names, pieces.model, pieces.tokenizer, "not the tokenizer"),
        (names, wide.model, wide.tokenizer, "embeddings of width 48, these names of 32"),
        (names, other.model, other.tokenizer, "any_weights=True"),
        (cased, made.model, made.tokenizer, "differ in case only"),
        (taken, made.model, made.tokenizer, "'<end_of_text>' is a token of the tokenizer"),
        (Names(dict(names)), made.model, made.tokenizer, "learn them anew"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            wrong.install(model, tokenizer)
        assert "\n" not in str(caught.value)
    assert torch.equal(made.model.token_embedding.weight, table)
    assert made.model.text_pool_type == "argmax"
    assert isinstance(names.install(other.model, other.tokenizer, any_weights=True), WordTokenizer)


def of_rows(made, **n_rows):
    """Learned names of random rows, as many as said, of an encoder."""
    fits = learned(made, ["numbat"]).learned()
    noise = torch.Generator().manual_seed(2)
    rows = {name: 0.05 * torch.randn(n, 32, generator=noise) for name, n in n_rows.items()}
    return Names(rows, templates=fits.templates, tokenizer=fits.tokenizer, table=fits.table)


def test_any_word_leaves_the_tokenizer_recognised(make_encoder):
    made = make_encoder()
    # All that the fingerprint's text could hold of words.
    first = of_rows(made, signs=1, names=2, a=2, photo=1)
    tokenizer = first.install(made.model, made.tokenizer)
    later = of_rows(made, okapi=2).install(made.model, tokenizer)
    assert len(later.encode("<okapi>")) == 2


def test_letters_of_several_small_forms(make_encoder):
    made = make_encoder()
    both = of_rows(made, **{"İbis": 2, "ibis": 2})
    with pytest.raises(ValueError, match="differ in case only"):
        both.install(made.model, made.tokenizer)
    names = of_rows(made, **{"İbis": 2, "kiwi": 1, "straße": 1})
    tokenizer = names.install(made.model, made.tokenizer)
    first = made.tokenizer.vocab_size
    for text, ids in {
        "<İbis>": [first, first + 1],
        "<ibis>": [first, first + 1],
        "<İBIS>": [first, first + 1],
        "<kiwi>": [first + 2],
        "<kıwi>": [first + 2],  # without dot
        "<\u212aiwi>": [first + 2],  # Kelvin sign
        "<Straße>": [first + 3],
        "<STRASSE>": made.tokenizer.encode("<STRASSE>"),
    }.items():
        assert tokenizer.encode(text) == ids, text
        row = tokenizer([text])[0].tolist()
        assert row[: len(ids) + 1] == [made.tokenizer.sot_token_id, *ids], text


@pytest.mark.parametrize(
    "n_rows",
    [
        {"café": 2, "cafe\u0301": 2},
        {"café": 1, "cafe\u0301": 2},
        {"red panda": 2, "red  panda": 3},
        {"x": 2, "x|0": 1},
        {"x|0": 1, "x": 2},
        {"x|1": 2, "x": 2},
    ],
    ids=str,
)
def test_names_that_transformers_reads_alike_change_nothing(n_rows, make_encoder):
    made = make_encoder()
    names = of_rows(made, **n_rows)
    model, tokenizer = clip_model(made.model, 2), clip_tokenizer(made)
    table = model.text_model.embeddings.token_embedding.weight.clone()
    state = tokenizer.backend_tokenizer.to_str()
    with pytest.raises(ValueError, match="like another word|become the word") as caught:
        names.install(model, tokenizer)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.text_model.embeddings.token_embedding.weight, table)
    assert model.config.text_config.eos_token_id == 2
    assert model.config.text_config.vocab_size == len(tokenizer) == len(table)
    assert tokenizer.backend_tokenizer.to_str() == state


def test_a_later_word_may_not_be_spelt_as_an_earlier_one(make_encoder):
    made = make_encoder()
    model, tokenizer = clip_model(made.model, 2), clip_tokenizer(made)
    of_rows(made, **{"x|0": 2, "y|1": 1, "z": 2}).install(model, tokenizer)
    size = len(tokenizer)
    for name, words in {
        "x": "cleans up the tokens of '<x>'",
        "y": "reads '<y>' like another word",
        "z|0": "'<z|0>' is already installed",
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            of_rows(made, **{name: 2}).install(model, tokenizer)
    assert len(tokenizer) == size == model.text_model.embeddings.token_embedding.num_embeddings


@pytest.mark.parametrize("padding", [0, 64])
def test_rows_that_a_model_has_are_never_overwritten(padding, make_encoder):
    """Neither padding nor words of another tokenizer, and installing can go on."""
    made = make_encoder()
    model = clip_model(made.model, END)
    table = model.text_model.embeddings.token_embedding
    table.weight = nn.Parameter(torch.cat([table.weight.data, torch.ones(padding, 32)]))
    table.num_embeddings += padding
    old = table.weight.detach().clone()
    own, fresh = clip_tokenizer(made), clip_tokenizer(made)
    parts = [learned(made, part) for part in (["numbat", "ant"], ["red panda"], ["okapi"])]
    first, second, third = [part.learned() for part in parts]
    first.install(model, own)
    second.install(model, fresh)
    third.install(model, own)
    assert torch.equal(table.weight[: len(old)], old)
    for tokenizer, part in [(own, parts[0]), (fresh, parts[1]), (own, parts[2])]:
        found = text_features(model, tokenizer, prompts(part.names))
        assert torch.allclose(found, part().detach(), atol=1e-5)
    assert own(PLAIN).input_ids == clip_tokenizer(made)(PLAIN).input_ids


@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("backed", [True, False], ids=["transformers", "open_clip"])
def test_names_within_the_brackets_of_names(backed, rows, make_encoder, tmp_path):
    made = make_encoder()
    names = of_rows(made, **dict(zip(["b", "a<b>"], rows, strict=True)), c=2)
    later = of_rows(made, **{"c<b>": 2, "d": 1})
    if backed:
        model, tokenizer = clip_model(made.model, END), clip_tokenizer(made)
    else:
        model, tokenizer = made.model, made.tokenizer
    tokenizer = later.install(model, names.install(model, tokenizer))
    if backed:
        from transformers import AutoTokenizer

        tokenizer.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    options = {"add_special_tokens": False} if backed else {}
    start = SIZE
    for name, own in [*names.items(), *later.items()]:
        ids = tokenizer.encode(f"<{name}>", **options)
        assert ids == list(range(start, start + len(own))), name
        start += len(own)


@pytest.mark.parametrize("key", ["names", "templates", "hint", "tokenizer"])
def test_a_file_that_lacks_a_part_is_refused(key, make_encoder, tmp_path):
    made = make_encoder()
    path = of_rows(made, numbat=1).save(tmp_path / "names")
    with safe_open(path, framework="pt") as file:
        about = {part: text for part, text in file.metadata().items() if part != key}
        rows = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118
    save_file(rows, path, metadata=about)
    with pytest.raises(ValueError, match=f"is not a file of learned names: '{key}'") as caught:
        Names.load(path, made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["x", "-5:" + 64 * "0", "9" * 5000 + ":" + 64 * "0", "7", "7:"])
def test_a_file_of_an_impossible_table_is_refused(table, make_encoder, tmp_path):
    names = of_rows(make_encoder(), numbat=1)
    names.table = table
    with pytest.raises(ValueError, match="is not a file of learned names: its table is"):
        Names.load(names.save(tmp_path / "names"))


def test_images_and_logits_stay_the_models(make_encoder):
    made = make_encoder()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = made.encode_images(pixels)
    tokenizer = learned(made, ["numbat"]).learned().install(made.model, made.tokenizer)
    with torch.no_grad():
        images, texts, _ = made.model(pixels, tokenizer(["a <numbat>", "an ant"]))
    assert torch.equal(images, before) and texts.shape == (2, 32)
