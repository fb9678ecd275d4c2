"""Prompts with explicit slots: templates and hints as data, names as literal text.

A name is never looked for in a finished prompt: a template is cut at its slot, and the three
parts (before, name, after) stay apart down to the token ids.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lbutils._util import suggest
from lbutils.captions.text import as_names, canonical, cleaned
from lbutils.data.folder import data_dir, how_to_restore, read_hints


class Slots(NamedTuple):
    """A text cut at the place of the name: what stands before it, and what after."""

    before: str
    after: str


def templates(name: str) -> tuple[str, ...]:
    """Templates of a set in ``data/prompts/templates.csv``, in the order of the file.

    Parameters
    ----------
    name : str
        ``"mini"`` (the forms of the miniature's captions), ``"paper"`` (the paper's prompt),
        ``"released"`` (the prompt of the authors' code, with a hint) or ``"openai7"`` (the
        seven best ImageNet templates of CLIP, Radford et al. 2021).

    Raises
    ------
    ValueError
        If there is no such set.
    """
    rows = _table("templates.csv")
    found = tuple(row["template"] for row in rows if row["set"] == name)
    if not found:
        raise ValueError(suggest(name, dict.fromkeys(row["set"] for row in rows), "template set"))
    return found


def resolve(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Templates from the name of a set, from one template, or from a sequence of templates.

    Raises
    ------
    ValueError
        If `spec` is empty, names no set, or a template lacks its one ``{name}``.
    """
    if isinstance(spec, str):
        # The name of a set has neither: what has is a template, perhaps a wrong one.
        return resolve([spec]) if set(spec) & {"{", " "} else templates(spec)
    found = tuple(as_names(spec, "templates"))
    if not found:
        raise ValueError("no template given: pass a template set or a list of templates")
    for template in found:
        _parts(template)
    return found


def hint(benchmark: str, domain: str) -> str:
    """Superclass word of a domain, such as ``"animal"``, from ``data/prompts/hints.csv``.

    Raises
    ------
    ValueError
        If the benchmark or the domain has no hint in the table.

    Notes
    -----
    Source: the superclass in the prompt of the authors' released code.
    """
    hints = read_hints(benchmark)
    if domain not in hints:
        raise ValueError(suggest(domain, hints, "domain"))
    return hints[domain]


def slots(template: str, hint: str | None = None) -> Slots:
    """Template with the hint filled in, cut at its ``{name}``.

    Raises
    ------
    ValueError
        If there is not exactly one ``{name}``, if a slot is neither name nor hint, or if the
        template wants a hint and none is given.
    """
    parts = _parts(template)
    if hint is None and "{hint}" in parts:
        raise ValueError(f"the template {template!r} has a {{hint}}: pass hint=, such as 'animal'")
    filled = [str(hint) if part == "{hint}" else part for part in parts]
    cut = parts.index("{name}")
    return Slots("".join(filled[:cut]), "".join(filled[cut + 1 :]))


def fill(template: str, name: str, hint: str | None = None) -> str:
    """Prompt with the name as literal text, whatever characters it has.

    Raises
    ------
    ValueError
        As `slots` does.
    """
    return fill_with_span(template, name, hint)[0]


def fill_with_span(
    template: str, name: str, hint: str | None = None
) -> tuple[str, tuple[int, int]]:
    """Prompt, and the character span ``(start, end)`` of the name in it.

    Raises
    ------
    ValueError
        As `slots` does.
    """
    before, after = slots(template, hint)
    return before + name + after, (len(before), len(before) + len(name))


def pieces(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without start, end and padding.

    Parameters
    ----------
    tokenizer : object
        An open_clip tokenizer: with an ``encode`` of its own, or around a Hugging Face one.
    text : str
        Any text.

    Raises
    ------
    TypeError
        If the tokenizer has no way to encode without special tokens.
    """
    if hasattr(tokenizer, "encode"):
        return list(tokenizer.encode(text))
    inner: Any = getattr(tokenizer, "tokenizer", None)
    if not hasattr(inner, "encode"):
        raise TypeError(
            f"{type(tokenizer).__name__} cannot encode part of a prompt: give it an "
            "encode(text) that returns ids without start and end tokens"
        )
    clean = getattr(tokenizer, "clean_fn", str)
    return list(inner.encode(clean(text), add_special_tokens=False))


def encode_slots(
    tokenizer: Any, before: str, name: str, after: str
) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the three parts of a prompt, each encoded by itself.

    Joined, they are the ids of the whole prompt wherever the name meets its context at a
    space or at a change between letters and punctuation. Where it does not (the name "C++"
    before a full stop), the parts keep the name's own pieces apart, which is what is wanted.

    Raises
    ------
    ValueError
        If the name has no token at all.
    """
    ids = pieces(tokenizer, name)
    if not ids:
        raise ValueError(f"the class name {name!r} is empty after the tokenizer's clean-up")
    return pieces(tokenizer, before), ids, pieces(tokenizer, after)


def take_out(caption: str, name: str) -> Slots | None:
    """Caption cut at the first mention of the name, further mentions left out; None without one.

    Caption and name are compared word by word in canonical form: "ant" is not found in
    "elephant", and "hot dog" is found in "a Hot-Dog." (its context is "a " and ".").

    Parameters
    ----------
    caption, name : str
        Any text. The context that comes back is the caption's as open_clip's tokenizer reads it
        (see `lbutils.captions.text.cleaned`), in Unicode form NFKC.
    """
    text = unicodedata.normalize("NFKC", cleaned(caption))
    spans = _mentions(text, canonical(name).split())
    if not spans:
        return None
    ends = [*(start for start, _ in spans[1:]), len(text)]
    rest = [text[end:until] for (_, end), until in zip(spans, ends, strict=True)]
    return Slots(text[: spans[0][0]], rest[0] + "".join(part.lstrip() for part in rest[1:]))


def _mentions(text: str, phrase: list[str]) -> list[tuple[int, int]]:
    """Character spans of a phrase (canonical words) in an NFKC text, without overlaps."""
    words = _words(text)
    spans: list[tuple[int, int]] = []
    first = 0
    while phrase and first < len(words):
        found: list[str] = []
        last = first
        while last < len(words) and len(found) < len(phrase):
            found += words[last][0]
            last += 1
        if found == phrase:
            spans.append((words[first][1], words[last - 1][2]))
            first = last
        else:
            first += 1
    return spans


def _words(text: str) -> list[tuple[list[str], int, int]]:
    """Runs of characters between separators: their canonical words and character spans."""
    runs = []
    start = 0
    for end in range(len(text) + 1):
        if end == len(text) or _separates(text[end]):
            run = text[start:end]
            if found := canonical(run).split():
                inner = run.strip("'`\u00b4\u2018\u2019")
                begin = start + run.index(inner)
                runs.append((found, begin, begin + len(inner)))
            start = end + 1
    return runs


@lru_cache(maxsize=4096)
def _separates(character: str) -> bool:
    return " " in canonical(f"a{character}a")


def _parts(template: str) -> list[str]:
    parts = re.split(r"(\{\w*\})", template)
    for slot in parts[1::2]:
        if slot not in ("{name}", "{hint}"):
            raise ValueError(
                f"the template {template!r} needs {{name}} where the class name goes, and may have "
                f"{{hint}}: {suggest(slot, ['{name}', '{hint}'], 'slot')}"
            )
    if parts.count("{name}") != 1:
        raise ValueError(
            f"the template {template!r} must have exactly one {{name}}, where the class name goes, "
            "as in 'a photo of a {name}'; template sets are listed by `lbutils.prompts.templates`"
        )
    return parts


def _table(file: str) -> list[dict[str, str]]:
    path = Path(data_dir()) / "prompts" / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {how_to_restore(f'prompts/{file}')}")
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
