"""Class names as trainable rows inside otherwise fixed prompts, and learned names on disk.

`Names.install` makes learned rows words of a model's own vocabulary.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lbutils._util import is_text, replacing, short
from lbutils.captions.text import as_names
from lbutils.models.install import (
    WordTokenizer,
    add_words,
    check_free,
    grown,
    pool_at_end,
    put_table,
    table_fingerprint,
    tokenizer_fingerprint,
)
from lbutils.models.prompts import name_pieces, pieces, resolve, slots
from lbutils.models.text import (
    CausalText,
    Codes,
    Frame,
    SubstitutedText,
    text_forward,
    token_embedding,
)


def _texts(content: str) -> list[str]:
    """A list of texts in a file of names."""
    found = json.loads(content)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{short(found)} is no list of texts")
    return found


def _in_order(content: bytes) -> bytes:
    """The bytes of a safetensors file with its metadata by key; the library's order is by chance.

    The header is a JSON text behind its length (8 bytes), padded with spaces.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    about = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


class NameEmbeddings(nn.Module):
    """Class names as trainable rows inside fixed prompts; everything else stays the encoder's.

    Raises ValueError if names repeat, are empty or become so by the tokenizer's clean-up, or a
    template leaves no room for a name. Source: name-tuning, section 5.1 of the paper (eq. 2).

    Parameters
    ----------
    names : sequence of str
        Class names, all different, taken literally.
    templates : str or sequence of str
        A template set, one template, or several.
    hint : str, optional
        Superclass for templates with a ``{hint}``.
    init : "clip", "random", int, or mapping of str to Tensor
        Rows start as the token embeddings of the name's own BPE pieces; or as N(0, 0.02), one a
        piece; or as N(0, 0.02), this many for every name; or as the rows ``(n, W)`` given for
        each name, such as a language model's.
    seed : int
        Of a random start.
    forward : CausalText or SubstitutedText, optional
        By default the cheapest that is exact.
    min_rows : int
        Names that start from fewer rows by ``"clip"`` or ``"random"`` get more of them, N(0, 0.02),
        behind their own, where the context has room.

    Attributes
    ----------
    rows : Parameter, shape (R, W)
        The rows of all names, one below the other. Each name has its own copies, even of pieces
        that it shares with another name.
    spans : list of (int, int)
        First row of each name, and the row after its last.
    shortened : tuple of str
        Names too long for the context behind the templates. They have rows for as many pieces
        as fit, and a warning says so.
    """

    def __init__(
        self,
        encoder: Any,
        names: Sequence[str],
        templates: str | Sequence[str] = "mini",
        hint: str | None = None,
        init: str | int | Mapping[str, Tensor] = "clip",
        seed: int = 0,
        forward: CausalText | SubstitutedText | None = None,
        min_rows: int = 1,
    ):
        super().__init__()
        self.names = tuple(as_names(names, "class names"))
        if not self.names or len(set(self.names)) < len(self.names):
            twice = [name for name in self.names if self.names.count(name) > 1]
            told = f"{twice[0]!r} stands twice" if twice else "there is none"
            raise ValueError(f"class names must be given and all different: {told}")
        self.encoder = encoder
        self.templates, self.hint = resolve(templates), hint
        self._text = forward or text_forward(encoder)
        self._frame = Frame.read(encoder.tokenizer)
        cuts = [slots(template, hint) for template in self.templates]
        taken = max(len(pieces(encoder.tokenizer, cut.before)) for cut in cuts)
        if taken >= self._frame.room:
            raise ValueError(f"templates {self.templates} leave no room for a name: shorten them")
        self.shortened: tuple[str, ...] = ()
        start = self._start(init, self._frame.room - taken, seed)
        if isinstance(init, str):
            start = self._lengthened(start, min(min_rows, self._frame.room - taken), seed)
        ends = torch.tensor([len(rows) for rows in start]).cumsum(0).tolist()
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        self.rows = nn.Parameter(torch.cat(start).float().clone())
        self._contexts: dict[tuple[tuple[int, ...], ...], int] = {}
        self.template_contexts = self.add_contexts(cuts)

    def _start(
        self, init: str | int | Mapping[str, Tensor], room: int, seed: int
    ) -> Sequence[Tensor]:
        """Rows ``(n, W)`` that each name starts from, at most `room` of them."""
        tokenizer = self.encoder.tokenizer
        ids = [name_pieces(tokenizer, name) for name in self.names]
        weight = token_embedding(self.encoder.model).weight.detach()
        if isinstance(init, Mapping):
            return self._given(init, room, weight)
        if isinstance(init, int):
            if not 0 < init <= room:
                raise ValueError(f"init={init}: a name may have 1 to {room} rows")
            lengths = [init] * len(ids)
        elif init in ("clip", "random"):
            long = [name for name, own in zip(self.names, ids, strict=True) if len(own) > room]
            self.shortened = tuple(long)
            lengths = [min(len(own), room) for own in ids]
        else:
            raise ValueError(
                f"init={init!r}: choose 'clip', 'random', a number of rows, or rows by name"
            )
        if self.shortened:
            warnings.warn(
                f"{len(self.shortened)} names are cut to their first {room} pieces, which is what "
                f"the context holds: {', '.join(repr(name[:60]) for name in self.shortened[:3])}",
                stacklevel=3,
            )
        if init == "clip":
            return [weight[own[:room]] for own in ids]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(sum(lengths), weight.shape[1], generator=generator)
        return (0.02 * noise.to(weight.device)).split(lengths)

    def _lengthened(self, start: Sequence[Tensor], least: int, seed: int) -> list[Tensor]:
        """Rows of each name, followed by N(0, 0.02) up to the least number of rows."""
        generator = torch.Generator().manual_seed(seed + 1)
        lacking = [max(least - len(rows), 0) for rows in start]
        noise = 0.02 * torch.randn(sum(lacking), start[0].shape[1], generator=generator)
        more = noise.to(start[0]).split(lacking)
        return [torch.cat(pair) for pair in zip(start, more, strict=True)]

    def _given(self, rows: Mapping[str, Tensor], room: int, weight: Tensor) -> list[Tensor]:
        """Rows of each name from a mapping, checked."""
        width = weight.shape[1]
        for name in self.names:
            if name not in rows:
                raise ValueError(f"init= has no rows for {name!r}")
            shape = tuple(getattr(rows[name], "shape", ()))
            if len(shape) != 2 or shape[1] != width or not 0 < shape[0] <= room:
                raise ValueError(
                    f"init= has rows {shape} for {name!r}; wanted are 1 to {room} of width {width}"
                )
        check_rows({name: rows[name] for name in self.names})
        return [rows[name].to(weight) for name in self.names]

    def add_contexts(self, contexts: Sequence[Sequence[str]]) -> list[int]:
        """Numbers of contexts ``(before, after)``, for `features`; equal ones share one.

        A context of more parts has the name between each two of them. One that is too long loses
        its end, and its beginning where it would leave no room for the longest name.
        """
        tokenizer = self.encoder.tokenizer
        keep = self._frame.room - max(end - start for start, end in self.spans)
        numbers = []
        for context in contexts:
            before, *rest = (tuple(pieces(tokenizer, part)) for part in context)
            key = before[max(len(before) - keep, 0) :], *rest
            numbers.append(self._contexts.setdefault(key, len(self._contexts)))
        self._keys = list(self._contexts)
        return numbers

    def codes(self, context: int, owner: int) -> Codes:
        """Prompt of a name in a context, as codes from start to end of text."""
        before, *rest = self._keys[context]
        start, end = self.spans[owner]
        body = list(before)
        for part in rest:
            body += [*(-1 - row for row in range(start, end)), *part]
        return [*self._frame.lead, *body[: self._frame.room], *self._frame.tail]

    def features(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Features ``(B, D)`` of unit length of B pairs (context number, name number).

        Equal pairs are computed once.
        """
        return features_together([self], [pairs])[0]

    def forward(self) -> Tensor:
        """Text classifier ``(C, D)`` of unit length, the mean over the templates."""
        return classifiers_together([self])[0]

    def learned(self) -> Names:
        """The rows as they are now, by name, ready to be saved."""
        rows = self.rows.detach().float().cpu()
        own = zip(self.names, self.spans, strict=True)
        return Names(
            {name: rows[slice(*span)].clone() for name, span in own},
            templates=self.templates,
            hint=self.hint,
            tokenizer=tokenizer_fingerprint(self.encoder.tokenizer),
            table=table_fingerprint(self.encoder.model),
        )

    @torch.no_grad()
    def load(self, names: Mapping[str, Tensor]) -> NameEmbeddings:
        """Self, with the rows of learned names put in.

        Raises ValueError if a name is missing, or has another number or width of rows.
        """
        for name, (start, end) in zip(self.names, self.spans, strict=True):
            if name not in names:
                raise ValueError(f"{name!r} is not among the {len(names)} learned names")
            if names[name].shape != self.rows[start:end].shape:
                raise ValueError(
                    f"{name!r} was learned as {tuple(names[name].shape)} rows, here it has "
                    f"{(end - start, self.rows.shape[1])}: another tokenizer or model, or pass "
                    "init=names to take their rows as they are"
                )
            self.rows[start:end] = names[name].to(self.rows)
        return self


def features_together(
    tables: Sequence[NameEmbeddings], pairs: Sequence[Sequence[tuple[int, int]]]
) -> list[Tensor]:
    """What each table's `features` of its pairs are, ``(B, D)``, from one pass through the tower.

    The tables must share their text forward; no table's prompts see another's.
    """
    first = tables[0]
    unique = [dict.fromkeys(own) for own in pairs]
    starts = np.cumsum([0, *(len(table.rows) for table in tables)]).tolist()
    codes = [
        [code if code >= 0 else code - start for code in table.codes(*pair)]
        for table, own, start in zip(tables, unique, starts, strict=False)
        for pair in own
    ]
    found = first._text(first._text.sheet(codes), torch.cat([table.rows for table in tables]))
    parts = []
    for part, own, asked in zip(found.split([len(u) for u in unique]), unique, pairs, strict=True):
        if len(own) < len(asked):
            place = {pair: i for i, pair in enumerate(own)}
            part = part.index_select(0, torch.tensor([place[p] for p in asked], device=part.device))
        parts.append(part)
    return parts


def classifiers_together(tables: Sequence[NameEmbeddings]) -> list[Tensor]:
    """What calling each table gives, ``(C, D)``, from one pass through the tower."""
    pairs = [
        [(context, i) for context in table.template_contexts for i in range(len(table.names))]
        for table in tables
    ]
    found = zip(tables, features_together(tables, pairs), strict=True)
    parts = [features.unflatten(0, (-1, len(table.names))) for table, features in found]
    return [F.normalize(part.mean(0), dim=-1) for part in parts]


def check_rows(rows: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless every name has rows ``(n, W)`` of numbers that a model can hold."""
    if not rows:
        raise ValueError("there are no learned names: learn at least one")
    width = None
    for name, own in rows.items():
        if not isinstance(name, str) or not name or not is_text(name):
            raise ValueError(f"a learned name is no text: {short(name)}")
        where = f"the rows of {short(name)}"
        if not isinstance(own, Tensor) or not own.is_floating_point():
            kind = own.dtype if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(f"{where} are {kind}, wanted are floating-point numbers")
        if own.ndim != 2 or not own.numel() or own.shape[1] != (width or own.shape[1]):
            wanted = f"(n, {width or 'W'}), at least one"
            raise ValueError(f"{where} have shape {tuple(own.shape)}, wanted is {wanted}")
        width = own.shape[1]
        # What half precision cannot hold becomes infinite in a model of it. NaN is not below.
        if not (own.detach().double().abs() <= torch.finfo(torch.float16).max).all():
            raise ValueError(f"{where} hold NaN, infinity or more than 65504: learn it anew")


class Names(Mapping[str, Tensor]):
    """Learned names: a mapping from name to its rows ``(n, W)`` float32, and where they fit.

    They were learned in `templates` and with `hint`, for an encoder whose fingerprints are
    `tokenizer` and `table` (`install.tokenizer_fingerprint`, `install.table_fingerprint`).
    """

    def __init__(
        self,
        rows: Mapping[str, Tensor],
        *,
        templates: Sequence[str] = (),
        hint: str | None = None,
        tokenizer: str = "",
        table: str = "",
    ):
        self._rows = dict(rows)
        self.templates, self.hint = tuple(templates), hint
        self.tokenizer, self.table = tokenizer, table

    def __getitem__(self, name: str) -> Tensor:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Names({len(self)}: {', '.join(list(self)[:3])}{', ...' if len(self) > 3 else ''})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file, written whole or not at all; equal names, equal bytes.

        Raises ValueError if rows are not ``(n, W)`` of finite numbers; nothing is written then.
        """
        check_rows(self)
        target = Path(path)
        about = {
            "format": "lbutils names",
            "names": json.dumps(list(self), ensure_ascii=False),
            "templates": json.dumps(self.templates, ensure_ascii=False),
            "hint": json.dumps(self.hint, ensure_ascii=False),
            "tokenizer": self.tokenizer,
            "table": self.table,
        }
        # Numbered keys: a name may be anything, "__metadata__" included.
        rows = {f"name.{i}": own.detach().cpu().contiguous() for i, own in enumerate(self.values())}
        with replacing(target) as draft:
            draft.write_bytes(_in_order(save(rows, metadata=about)))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: Any = None) -> Names:
        """Names read from a file that `save` wrote.

        Raises FileNotFoundError if there is no such file. Raises ValueError if it is not a file of
        names, or the tokenizer of the `encoder`, if one is given, is not the one that they were
        learned with.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no learned names at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                listed = _texts(about["names"])
                rows = {name: file.get_tensor(f"name.{i}") for i, name in enumerate(listed)}
            if len(rows) < len(listed):
                raise ValueError(f"{short(listed)} holds a name twice")
            names = cls(
                rows,
                templates=_texts(about["templates"]),
                hint=json.loads(about["hint"]),
                tokenizer=about["tokenizer"],
                table=about.get("table", ""),
            )
            check_rows(names)
            if not isinstance(names.hint, (str, type(None))):
                raise ValueError(f"its hint is {short(names.hint)}")
            if names.table and not re.fullmatch("[0-9]{1,9}:[0-9a-f]{64}", names.table):
                raise ValueError(f"its table is {short(names.table)}")
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a file of learned names: {error}") from error
        if encoder is not None and names.tokenizer != tokenizer_fingerprint(encoder.tokenizer):
            raise ValueError(f"{path}: names learned with another tokenizer than {encoder.name}'s")
        return names

    def install(self, model: nn.Module, tokenizer: Any, any_weights: bool = False) -> Any:
        """The tokenizer to use from now on; ``<name>`` is a word of it and of the model.

        "a photo of a <numbat>" then reads as the prompt with the learned rows of "numbat". Texts
        without such a word keep their ids and features, bit for bit. The model is changed in
        place: its token embedding gets one more entry a row, and text is pooled at the id of the
        end of text where it was at the highest id.

        An open_clip model keeps its words in its weights: to load them elsewhere, its configuration
        needs the new ``vocab_size``, ``"pool_type": "eos"`` and ``"eos_id"``. Words are placed
        behind all entries that the model has, be they padding or words that this tokenizer does not
        know; a tokenizer of transformers gets unused tokens for those. Once saved, it is loaded by
        ``AutoTokenizer``, ``CLIPProcessor`` or ``pipeline``; where a word has several tokens
        ``CLIPTokenizer`` would forget it, and raises a TypeError instead. A warning says so.
        OWL-ViT and OWLv2 pool at the highest id and have no setting for it: they get a forward
        hook, which a saved model does not hold. To load one, load the original and install anew.

        Parameters
        ----------
        model : nn.Module
            An open_clip model, or a CLIP model of transformers (its text model alone will do), or
            one of its detectors OWL-ViT and OWLv2.
        tokenizer : object
            That model's tokenizer. One of transformers, or an open_clip one around it, is changed
            in place; any other open_clip tokenizer comes back inside a `WordTokenizer`.
        any_weights : bool
            Install although the model's token embeddings are not those that the names were
            learned with.

        Raises
        ------
        ValueError
            If rows are not ``(n, W)`` of finite numbers; if the tokenizer, the width or the token
            embeddings are others than those of the model that the names were learned with; if a
            word is already installed, or is a token of the tokenizer; if two names differ in case
            only, or the tokenizer reads them alike. Nothing is changed then.
        """
        check_rows(self)
        words = {f"<{name}>": rows for name, rows in self.items()}
        self._check_fit(model, tokenizer, any_weights)
        check_free(words, tokenizer, int(self.table.partition(":")[0]))
        backed = hasattr(tokenizer, "backend_tokenizer")
        size = token_embedding(model).num_embeddings
        first = max(len(tokenizer), size) if backed else size
        free = itertools.count(first)
        ids = {word: list(itertools.islice(free, len(rows))) for word, rows in words.items()}
        # All that can fail comes before the first change: on a copy, or in what is made anew.
        if backed:
            add_words(copy.deepcopy(tokenizer), ids)
        else:
            tokenizer = WordTokenizer(tokenizer, ids)
        table = grown(model, first, torch.cat(list(words.values())))
        pool_at_end(model, [tokenizer.eos_token_id] if backed else Frame.read(tokenizer.base).tail)
        put_table(model, table)
        if backed:
            add_words(tokenizer, ids)
            if any(len(own) > 1 for own in ids.values()):
                warnings.warn(
                    "words of several tokens: once it is saved, load this tokenizer by "
                    "AutoTokenizer, CLIPProcessor or pipeline, as CLIPTokenizer does not read them",
                    stacklevel=2,
                )
        return tokenizer

    def _check_fit(self, model: nn.Module, tokenizer: Any, any_weights: bool) -> None:
        """Raise where these names were learned with another tokenizer, width or table."""
        if not self or not self.table:
            raise ValueError("these names do not say what they were learned with: learn them anew")
        if hasattr(tokenizer, "convert_ids_to_tokens") and not hasattr(
            tokenizer, "backend_tokenizer"
        ):
            raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer: use its fast form")
        if tokenizer_fingerprint(tokenizer) != self.tokenizer:
            raise ValueError(
                f"{type(tokenizer).__name__} is not the tokenizer that these names were learned "
                "with: take that one, or learn them anew"
            )
        width, own = token_embedding(model).weight.shape[1], next(iter(self.values())).shape[1]
        if width != own:
            raise ValueError(
                f"{type(model).__name__} has token embeddings of width {width}, these names of "
                f"{own}: take the model that they were learned with"
            )
        size = int(self.table.partition(":")[0])
        if not any_weights and table_fingerprint(model, size) != self.table:
            raise ValueError(
                f"the weights of this {type(model).__name__} are not those that these names were "
                "learned with: take that model, or pass any_weights=True"
            )
