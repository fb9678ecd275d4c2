from __future__ import annotations

import open_clip
import pytest
from conftest import bpe_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from lbutils.captions.text import canonical
from lbutils.models import prompts

AWKWARD = ["{name}", "{", "C++", r"a.*(b)\1", "<b>&amp;</b>", 'O\'Neill "x"', "犬", "$x_1$", "%s"]
TOKENIZER = bpe_tokenizer()


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_is_inserted_as_it_is(name):
    text = prompts.fill("a photo of {name}, a type of {hint}.", name, "dog")
    assert text == "a photo of " + name + ", a type of dog."
    assert prompts.fill("{name}", name) == name


def test_every_template_set_is_well_formed():
    for name in ("mini", "paper", "released", "openai7"):
        found = prompts.templates(name)
        assert found and prompts.resolve(name) == found
        for template in found:
            assert "axolotl" in prompts.fill(template, "axolotl", "animal")
    assert prompts.templates("openai7") == tuple(
        template("{name}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: prompts.templates("papre"), "'paper'"),
        (lambda: prompts.resolve("noslot"), "template set"),
        (lambda: prompts.resolve("no slot"), "template sets are listed"),
        (lambda: prompts.resolve([]), "no template"),
        (lambda: prompts.resolve("a photo of a {}"), "needs {name} where the class name goes"),
        (lambda: prompts.resolve(["a photo of a {}"]), "needs {name} where the class name goes"),
        (lambda: prompts.resolve("a photo of a %s"), "exactly one {name}, where the class name"),
        (lambda: prompts.resolve("{0}"), "Did you mean|needs {name}"),
        (lambda: prompts.resolve(b"a {name}"), "must be a list"),
        (lambda: prompts.fill("a {nam}", "x"), "Did you mean '{name}'"),
        (lambda: prompts.fill("{name} {name}", "x"), "exactly one"),
        (lambda: prompts.fill("{name} {hint}", "x"), "pass hint="),
        (lambda: prompts.hint("mini", "Animal"), "'Animals'"),
        (lambda: prompts.resolve({"fox": ["a fox"]}), "share, not in prompts by class"),
        (
            lambda: by_class({"fox": ["a fox"]}, ["fox", "fex"]),
            "'fex' the first.*Did you mean 'fox'",
        ),
        (lambda: by_class({"fox": ["a {nam}"]}, ["fox"]), "class 'fox'.*Did you mean '{name}'"),
        (lambda: by_class({"fox": ["a {hint}"]}, ["fox"]), "class 'fox'.*pass hint="),
        (lambda: by_class({"fox": []}, ["fox"]), "class 'fox': there is none"),
        (lambda: by_class({"fox": ["a", " "]}, ["fox"]), "class 'fox': a prompt is empty"),
        (lambda: by_class({"fox": "a fox"}, ["fox"]), "class 'fox': prompts must be a list"),
        (lambda: by_class({"fox": [1]}, ["fox"]), "class 'fox': prompts must be texts"),
        (lambda: prompts.name_pieces(TOKENIZER, " "), "empty"),
    ],
)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def by_class(own, names):
    return prompts.prompts_by_class(own, names)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "by class"),
        ("{}", "by class"),
        ("{", "by class"),
        ('{"fox": "a fox"}', "'fox' has no list of prompts: 'a fox'"),
        ('{"fox": []}', "'fox' has no list"),
        ('{"fox": ["a fox", 1]}', "'fox' has no list"),
        ('{"fox": ["a"], "owl": ["b"], "fox": ["c"]}', "'fox' stands in it twice"),
    ],
)
def test_a_file_of_prompts_is_refused_with_its_entry(tmp_path, content, words):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        prompts.read_prompts(tmp_path / "prompts.json")


def test_a_file_of_prompts_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prompts.json"):
        prompts.read_prompts(tmp_path / "prompts.json")
    (tmp_path / "prompts.json").write_text('{"Füchse": ["a {name}", "a fox"]}', encoding="utf-8")
    found = prompts.read_prompts(tmp_path / "prompts.json")
    assert found == {"Füchse": ["a {name}", "a fox"]}
    assert by_class(found, ["Füchse"]) == ((("a ", "Füchse"), ("", "a fox")),)


def test_open_clip_s_templates_are_its_own():
    """Beside the 80, which all notebooks of CLIP list, none is a copy in a table of ours."""
    found = prompts.resolve("openai80")
    assert len(set(found)) == 80 and "a origami {name}." in found
    assert found == tuple(t("{name}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES)


def test_hint_of_a_domain():
    assert prompts.hint("laion_beyond", "Plants_Fungi") == "plant or fungus"


@pytest.mark.parametrize("set_name", ["mini", "paper", "released", "openai7"])
@pytest.mark.parametrize("name", ["axolotl", "Red Panda", "hot-dog stand", "jack-o'-lantern", "犬"])
def test_parts_are_the_whole_tokenized(set_name, name):
    for template in prompts.templates(set_name):
        before, after = prompts.slots(template, "animal")
        first, last = (prompts.pieces(TOKENIZER, part) for part in (before, after))
        whole = TOKENIZER.encode(prompts.fill(template, name, "animal"))
        assert [*first, *prompts.name_pieces(TOKENIZER, name), *last] == whole


def test_pieces_of_a_hugging_face_tokenizer():
    class Inner:
        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return [len(word) for word in text.split()]

    class Wrapped:
        tokenizer = Inner()
        clean_fn = staticmethod(str.strip)

    assert prompts.pieces(Wrapped(), " red panda ") == [3, 5]
    with pytest.raises(TypeError, match="encode"):
        prompts.pieces(object(), "x")


@pytest.mark.parametrize(
    ("caption", "name", "expected"),
    [
        ("an elephant", "ant", None),
        ("an ant on an elephant", "ant", ("an ", " on an elephant")),
        ("a Hot-Dog.", "hot dog", ("a ", ".")),
        ("a pig's ear!", "Pigs Ear", ("a ", "!")),
        ("the 'okapi', seen", "okapi", ("the '", "', seen")),
        ("a fox and a fox here", "fox", ("a ", " and a here")),
        ("cafe\u0301 table", "Café", ("", " table")),
        ("a c++ book", "C++", ("a ", "++ book")),
        ("nothing", "!!!", None),
        ("", "ant", None),
    ],
)
def test_names_are_taken_out_at_word_boundaries(caption, name, expected):
    assert prompts.take_out(caption, name) == expected


@given(st.lists(st.sampled_from(["red", "ant", "elephant", "panda", "O'Neill", "Ünï"]), max_size=8))
def test_a_name_is_found_exactly_where_the_canonical_text_has_it(words):
    caption = ", ".join(words)
    cut = prompts.take_out(caption, "red panda")
    found = " red panda " in f" {canonical(caption)} "
    assert (cut is not None) == found
    if cut:
        assert canonical(cut.before + " red panda " + cut.after).count("red panda") >= 1


@given(st.text(max_size=30), st.text(max_size=8))
def test_any_text_can_be_searched(caption, name):
    cut = prompts.take_out(caption, name)
    phrase = canonical(name)
    assert cut is None or f" {phrase} " in f" {canonical(caption)} "
