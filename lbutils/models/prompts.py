"""Prompts with explicit slots: templates and hints as data, names as literal text.

A name is never looked for in a finished prompt: a template is cut at its slot, and the three
parts (before, name, after) stay apart down to the token ids.
"""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from lbutils._util import short, suggest
from lbutils.captions.text import as_names, canonical, cleaned
from lbutils.data.folder import data_file, read_hints

# The name of a set, one template, several, or prompts of their own for each class name.
Templates: TypeAlias = str | Sequence[str] | Mapping[str, Sequence[str]]
# Sets that open_clip's package holds, as functions of a name.
_OPEN_CLIP = {"openai80": "OPENAI_IMAGENET_TEMPLATES"}


class Slots(NamedTuple):
    """A text cut at the place of the name: what stands before it, and what after."""

    before: str
    after: str


def templates(name: str) -> tuple[str, ...]:
    """Templates of a set, in its order.

    Raises ValueError if there is no such set.

    Parameters
    ----------
    name : str
        Of ``data/prompts/templates.csv``: ``"mini"`` (the forms of the miniature's captions),
        ``"paper"`` (the paper's prompt), ``"released"`` (the prompt of the authors' code, with a
        hint) or ``"openai7"`` (the seven best ImageNet templates of CLIP, Radford et al. 2021).
        Of open_clip's package: ``"openai80"`` (CLIP's 80 ImageNet templates, the same source).
        Of ``data/prompts/class_templates.json``: those published for one public data set, such as
        ``"flowers"`` (the same source, as in CLIP_benchmark).
    """
    if name in _OPEN_CLIP:
        from open_clip import zero_shot_metadata

        return tuple(make("{name}") for make in getattr(zero_shot_metadata, _OPEN_CLIP[name]))
    with data_file("prompts/templates.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    found = tuple(row["template"] for row in rows if row["set"] == name)
    if not found:
        classes = data_file("prompts/class_templates.json").read_text("utf-8")
        published = json.loads(classes)["templates"]
        known = dict.fromkeys([*(row["set"] for row in rows), *_OPEN_CLIP, *published])
        if name not in published:
            raise ValueError(suggest(name, known, "template set"))
        found = tuple(published[name])
    return found


def resolve(spec: Templates) -> tuple[str, ...]:
    """Templates from the name of a set, from one template, or from a sequence of templates.

    Raises ValueError if `spec` is empty, names no set, or a template lacks its one ``{name}``; if
    it is prompts by class, where templates that all names share are wanted.
    """
    if isinstance(spec, Mapping):
        raise ValueError(
            "names are learned in templates that all of them share, not in prompts by class: "
            "pass a template set or a list of templates"
        )
    if isinstance(spec, str):
        # The name of a set has neither: what has is a template, perhaps a wrong one.
        return resolve([spec]) if set(spec) & {"{", " "} else templates(spec)
    found = tuple(as_names(spec, "templates"))
    if not found:
        raise ValueError("no template given: pass a template set or a list of templates")
    for template in found:
        slots(template, hint="")
    return found


def prompts_by_class(
    spec: Templates, names: Sequence[str], hint: str | None = None
) -> tuple[tuple[Slots, ...], ...]:
    """The prompts of each name, in the order of `names`, cut behind what stands before the name.

    ``before + after`` is a prompt as the encoder reads it; the name is the beginning of ``after``.
    `spec` is templates, as `resolve` takes them; or the prompts of each name, in which ``{name}``
    and ``{hint}`` are filled where they stand. Other classes in it are passed over.

    Raises ValueError if a name has no prompt, or a prompt has a slot that is neither name nor hint,
    or a hint and none is given: the name and the prompt are told.
    """
    if not isinstance(spec, Mapping):
        cuts = [slots(template, hint) for template in resolve(spec)]
        return tuple(tuple(Slots(cut.before, name + cut.after) for cut in cuts) for name in names)
    if missing := [name for name in names if name not in spec]:
        raise ValueError(
            f"no prompts for {len(missing)} of {len(names)} classes, {short(missing[0])} the first "
            f"of them: {suggest(missing[0], spec, 'class')}"
        )
    return tuple(_own_prompts(name, spec[name], hint) for name in names)


def _own_prompts(name: str, given: Sequence[str], hint: str | None) -> tuple[Slots, ...]:
    """The prompts of one class, filled; see `prompts_by_class`."""
    try:
        found = as_names(given, "prompts")
        if not all(prompt.strip() for prompt in found) or not found:
            raise ValueError("a prompt is empty" if found else "there is none")
        parts = [_parts(prompt, hint) for prompt in found]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the prompts of class {short(name)}: {error}") from None
    cuts = []
    for own in parts:
        cut = own.index("{name}") if "{name}" in own else 0
        rest = [name if part == "{name}" else part for part in own[cut:]]
        cuts.append(Slots("".join(own[:cut]), "".join(rest)))
    return tuple(cuts)


def read_prompts(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Prompts by class of a JSON file, ``{"name": ["a prompt", ...], ...}``.

    This is the form in which CuPL and DCLIP release theirs. What is in the prompts is checked
    where they meet names, by `prompts_by_class`.

    Raises FileNotFoundError if there is no such file. Raises ValueError if it is not of this form,
    or names a class twice: which entry.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"no file of prompts at {place}")
    try:
        found = json.loads(place.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON of prompts by class: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f'{place} is no JSON of prompts by class: {{"name": ["a prompt", ...]}}')
    for name, own in found.items():
        if not isinstance(own, list) or not own or not all(isinstance(one, str) for one in own):
            raise ValueError(f"{place}: class {short(name)} has no list of prompts: {short(own)}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose later entries must not take the place of earlier ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{short(twice)} stands in it twice")
    return found


def hint(benchmark: str, domain: str) -> str:
    """Superclass word of a domain, such as ``"animal"``, from ``data/prompts/hints.csv``.

    Raises ValueError if the benchmark or the domain has no hint in the table. Source: the
    superclass in the prompt of the authors' released code.
    """
    hints = read_hints(benchmark)
    if domain not in hints:
        raise ValueError(suggest(domain, hints, "domain"))
    return hints[domain]


def slots(template: str, hint: str | None = None) -> Slots:
    """Template with the hint filled in, cut at its ``{name}``.

    Raises ValueError if there is not exactly one ``{name}``, if a slot is neither name nor hint, or
    if the template wants a hint and none is given.
    """
    parts = _parts(template, hint)
    if parts.count("{name}") != 1:
        raise ValueError(
            f"the template {template!r} must have exactly one {{name}}, where the class name goes, "
            "as in 'a photo of a {name}'; template sets are listed by `lbutils.prompts.templates`"
        )
    cut = parts.index("{name}")
    return Slots("".join(parts[:cut]), "".join(parts[cut + 1 :]))


def fill(template: str, name: str, hint: str | None = None) -> str:
    """Prompt with the name as literal text, whatever characters it has.

    Raises ValueError as `slots` does.
    """
    return name.join(slots(template, hint))


def pieces(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without start, end and padding.

    The tokenizer is one of transformers, or one of open_clip, with an ``encode`` of its own or
    around one of transformers; raises TypeError if it has no way to encode without special tokens.
    """
    if hasattr(tokenizer, "encode") and not hasattr(tokenizer, "backend_tokenizer"):
        return list(tokenizer.encode(text))
    inner: Any = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(inner, "encode"):
        raise TypeError(
            f"{type(tokenizer).__name__} cannot encode part of a prompt: give it an "
            "encode(text) that returns ids without start and end tokens"
        )
    clean = getattr(tokenizer, "clean_fn", str)
    return list(inner.encode(clean(text), add_special_tokens=False))


def name_pieces(tokenizer: Any, name: str) -> list[int]:
    """The `pieces` of a name by itself; raises ValueError if it has none.

    Between those of its context, they are the ids of the whole prompt wherever the name meets
    the context at a space or at a change between letters and punctuation. Where it does not (the
    name "C++" before a full stop), the name's own pieces stay apart, which is what is wanted.
    """
    ids = pieces(tokenizer, name)
    if not ids:
        raise ValueError(f"the class name {name!r} is empty after the tokenizer's clean-up")
    return ids


def take_out(caption: str, name: str) -> Slots | None:
    """Caption cut at the first mention of the name, further mentions left out; None without one.

    Caption and name are compared word by word in canonical form: "ant" is not found in
    "elephant", and "hot dog" is found in "a Hot-Dog." (its context is "a " and ".").

    The context that comes back is the caption's as open_clip's tokenizer reads it (see
    `lbutils.captions.text.cleaned`), in Unicode form NFKC.
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


def _parts(template: str, hint: str | None) -> list[str]:
    """What stands between and in the slots; that of the hint is filled, that of the name is not."""
    parts = re.split(r"(\{\w*\})", template)
    for slot in parts[1::2]:
        if slot not in ("{name}", "{hint}"):
            raise ValueError(
                f"the template {template!r} needs {{name}} where the class name goes, and may have "
                f"{{hint}}: {suggest(slot, ['{name}', '{hint}'], 'slot')}"
            )
    if hint is None and "{hint}" in parts:
        raise ValueError(f"the template {template!r} has a {{hint}}: pass hint=, such as 'animal'")
    parts[1::2] = [str(hint) if slot == "{hint}" else slot for slot in parts[1::2]]
    return parts
