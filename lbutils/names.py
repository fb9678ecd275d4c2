"""Trainable rows for names inside otherwise fixed prompts, and learned names on disk.

A prompt is a list of *codes*: a token id, or ``-1 - r`` for row r of a trainable table. Two text
forwards turn codes and rows into features, chosen by what the tower can do, not by its name:

- `CausalText`: open_clip towers with a causal mask. Prompts are packed and end at their end of
  text; keys and values of what stands before the first trainable row are computed once; the last
  block computes the pooled token only.
- `SubstitutedText`: any tower. The model's own forward, with rows put into the output of its
  token embedding.

Both equal the model's `encode_text` where the rows are the token embeddings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lbutils.prompts import encode_slots, pieces, resolve, slots

Codes = list[int]


@dataclass(frozen=True)
class Frame:
    """What the tokenizer puts around the pieces of a text, and how long a text may be."""

    lead: list[int]
    tail: list[int]
    pad: int
    length: int

    @property
    def room(self) -> int:
        """Number of pieces that fit."""
        return self.length - len(self.lead) - len(self.tail)

    @classmethod
    def of(cls, encoder: Any) -> Frame:
        """Frame of an encoder's tokenizer, read off a tokenized one-word text.

        Raises
        ------
        ValueError
            If the tokenizer puts tokens behind the padding.
        """
        body = pieces(encoder.tokenizer, "a")
        row = encoder.tokenize(["a"])[0].tolist()
        fits = range(len(row) - len(body) + 1)
        start = next((i for i in fits if row[i : i + len(body)] == body), None)
        rest = [] if start is None else row[start + len(body) :]
        pad = rest[-1] if rest else 0
        tail = list(rest)
        while tail and tail[-1] == pad:
            tail.pop()
        if start is None or not rest or len(tail) == len(rest):
            raise ValueError(
                f"{type(encoder.tokenizer).__name__} does not lay out texts as start, pieces, "
                "end, padding; names cannot be tuned with it"
            )
        return cls(row[:start], tail, pad, len(row))


def text_forward(encoder: Any) -> CausalText | SubstitutedText:
    """Cheapest exact text forward that the encoder's text tower allows."""
    frame = Frame.of(encoder)
    return (CausalText if _is_causal(encoder.model, frame) else SubstitutedText)(encoder)


def _is_causal(model: nn.Module, frame: Frame) -> bool:
    """Whether the pooled token sees exactly the tokens before it, in blocks that we know."""
    tower = getattr(model, "text", model)
    mask = getattr(tower, "attn_mask", None)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if mask is None or blocks is None or len(frame.tail) != 1:
        return False
    causal = torch.full_like(mask, float("-inf")).triu(1)
    plain = all(type(block) is ResidualAttentionBlock for block in blocks)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", ""))
    end = {
        "argmax": tower.token_embedding.num_embeddings - 1,
        "eos": getattr(tower, "eos_id", getattr(tower, "text_eos_id", None)),
    }.get(str(pool))
    own_token = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
    return bool(torch.equal(mask, causal) and plain and end == frame.tail[0] and not own_token)


@dataclass
class Sheet:
    """Prompts of one call, laid out for a forward. Made by ``forward.sheet(codes)``."""

    base: Tensor  # fixed part of the packed embeddings (T, W), or token ids (B, L)
    places: Tensor  # where rows go, among the T or B * L positions (P,)
    rows: Tensor  # which row goes there (P,)
    padded: Tensor = field(default_factory=lambda: torch.empty(0))  # packed -> padded (B, S)
    packed: Tensor = field(default_factory=lambda: torch.empty(0))  # padded -> packed (T,)
    last: Tensor = field(default_factory=lambda: torch.empty(0))  # pooled, among the T (B,)
    prefix: Tensor = field(default_factory=lambda: torch.empty(0))  # cached prefix (B,)
    mask: Tensor = field(default_factory=lambda: torch.empty(0))  # additive (B, 1, S, P + S)
    last_mask: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, 1, 1, P + S)


class SubstitutedText:
    """Text features of prompts with trainable rows, by the model's own forward.

    Parameters
    ----------
    encoder : DualEncoder
        Any model with ``encode_text(ids)`` and a token embedding.

    Raises
    ------
    ValueError
        If no token embedding is found.
    """

    def __init__(self, encoder: Any):
        self.model = encoder.model
        self.frame = Frame.of(encoder)
        self.embedding = _token_embedding(encoder.model)
        self.width = self.embedding.weight.shape[1]
        # Never seen by the blocks, but masks and pooling are derived from ids.
        self.stand_in = pieces(encoder.tokenizer, "a")[0]

    def sheet(self, prompts: Sequence[Codes]) -> Sheet:
        """Layout of prompts given as codes; each must fit the context."""
        length = self.frame.length
        device = self.embedding.weight.device
        pads = [[self.frame.pad] * (length - len(codes)) for codes in prompts]
        full = torch.tensor([[*codes, *pad] for codes, pad in zip(prompts, pads, strict=True)])
        places = (full.flatten() < 0).nonzero()[:, 0]
        rows = -1 - full.flatten()[places]
        ids = full.masked_fill(full < 0, self.stand_in)
        return Sheet(ids.to(device), places.to(device), rows.to(device))

    def __call__(self, sheet: Sheet, rows: Tensor) -> Tensor:
        """Features ``(B, D)`` of unit length, differentiable in `rows` ``(R, W)``."""

        def substitute(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            flat = output.reshape(-1, output.shape[-1])
            put = rows.index_select(0, sheet.rows).to(flat.dtype)
            return flat.index_copy(0, sheet.places, put).view_as(output)

        hook = self.embedding.register_forward_hook(substitute)
        try:
            features = self.model.encode_text(sheet.base)
        finally:
            hook.remove()
        return F.normalize(features.float(), dim=-1)


class CausalText:
    """Text features of prompts with trainable rows, for causal open_clip towers.

    Exact: equal to the model's `encode_text`, gradients included, up to rounding.

    Parameters
    ----------
    encoder : DualEncoder
        A model whose text tower passes the check of `text_forward`.
    """

    def __init__(self, encoder: Any):
        self.tower = getattr(encoder.model, "text", encoder.model)
        self.blocks = list(self.tower.transformer.resblocks)
        self.heads = self.blocks[0].attn.num_heads
        self.weight = self.blocks[0].attn.in_proj_weight
        self.width = self.weight.shape[1]
        self._prefixes: dict[tuple[int, ...], int] = {}
        self._cache: list[tuple[Tensor, Tensor]] = []

    def sheet(self, prompts: Sequence[Codes]) -> Sheet:
        """Layout of prompts given as codes, ending in the end of text; each must fit."""
        cuts = [
            next((i for i, code in enumerate(codes) if code < 0), len(codes) - 1)
            for codes in prompts
        ]
        heads = [tuple(codes[:cut]) for codes, cut in zip(prompts, cuts, strict=True)]
        self._remember(heads)
        tails = [codes[cut:] for codes, cut in zip(prompts, cuts, strict=True)]
        return self._layout(tails, [self._prefixes[head] for head in heads], cuts)

    def __call__(self, sheet: Sheet, rows: Tensor) -> Tensor:
        """Features ``(B, D)`` of unit length, differentiable in `rows` ``(R, W)``."""
        put = rows.index_select(0, sheet.rows).to(sheet.base.dtype)
        x = sheet.base.index_add(0, sheet.places, put)
        for block, cached in zip(self.blocks, self._cache, strict=True):
            x, _ = self._block(block, x, sheet, cached, pooled=block is self.blocks[-1])
        x = self.tower.ln_final(x)
        projection = self.tower.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return F.normalize(x.float(), dim=-1)

    def _block(
        self,
        block: ResidualAttentionBlock,
        x: Tensor,
        sheet: Sheet,
        cached: tuple[Tensor, Tensor] | None,
        pooled: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One residual block on packed tokens, and its padded keys and values."""
        attn, width = block.attn, x.shape[1]
        weight, bias = attn.in_proj_weight, attn.in_proj_bias
        h = block.ln_1(x)
        if pooled:
            x = x.index_select(0, sheet.last)
            queries = F.linear(h.index_select(0, sheet.last), weight[:width], bias[:width])[:, None]
            both = F.embedding(sheet.padded, F.linear(h, weight[width:], bias[width:]))
            keys, values = both.split(width, dim=-1)
        else:
            every = F.embedding(sheet.padded, F.linear(h, weight, bias))
            queries, keys, values = every.split(width, dim=-1)
        queries, keys, values = self._split(queries), self._split(keys), self._split(values)
        seen_keys, seen_values = keys, values
        if cached is not None:
            reach = sheet.mask.shape[-1] - sheet.padded.shape[1]
            before_keys, before_values = (part[:, :, :reach][sheet.prefix] for part in cached)
            seen_keys = torch.cat([before_keys, keys], dim=2)
            seen_values = torch.cat([before_values, values], dim=2)
        mask = sheet.last_mask if pooled else sheet.mask
        mixed = F.scaled_dot_product_attention(queries, seen_keys, seen_values, attn_mask=mask)
        mixed = mixed.transpose(1, 2).reshape(-1, width)
        x = x + block.ls_1(attn.out_proj(mixed if pooled else mixed.index_select(0, sheet.packed)))
        return x + block.ls_2(block.mlp(block.ln_2(x))), (keys, values)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _layout(self, tails: list[Codes], prefix: list[int], starts: list[int]) -> Sheet:
        """Sheet of tails that begin at positions `starts`, behind their cached prefixes."""
        device = self.weight.device
        lengths = torch.tensor([len(tail) for tail in tails])
        span = int(lengths.max())
        steps = torch.arange(span)
        valid = steps < lengths[:, None]
        # Pads are copies of token 0, behind a prompt's end, where the causal mask hides them.
        padded = torch.zeros(valid.shape, dtype=torch.long)
        padded[valid] = torch.arange(int(lengths.sum()))
        codes = torch.tensor([code for tail in tails for code in tail])
        begins = torch.tensor(starts)
        positions = (begins[:, None] + steps)[valid].to(device)
        places = (codes < 0).nonzero()[:, 0]
        reach = max(starts)
        before = torch.arange(reach) < begins[:, None, None]
        mask = torch.zeros(len(tails), span, reach + span)
        mask[:, :, :reach].masked_fill_(~before.expand(-1, span, -1), float("-inf"))
        mask[:, :, reach:] += torch.full((span, span), float("-inf")).triu(1)
        mask = mask[:, None].to(device, self.weight.dtype)
        row = torch.arange(len(tails), device=device)
        with torch.no_grad():
            fixed = self.tower.token_embedding(codes.clamp(min=0).to(device)).to(self.weight.dtype)
            fixed[places.to(device)] = 0
            base = fixed + self.tower.positional_embedding[positions].to(self.weight.dtype)
        return Sheet(
            base=base,
            places=places.to(device),
            rows=(-1 - codes[places]).to(device),
            padded=padded.to(device),
            packed=valid.flatten().nonzero()[:, 0].to(device),
            last=(lengths.cumsum(0) - 1).to(device),
            prefix=torch.tensor(prefix, device=device),
            mask=mask,
            last_mask=mask[row, :, (lengths - 1).to(device)][:, :, None],
        )

    @torch.no_grad()
    def _remember(self, heads: Sequence[tuple[int, ...]]) -> None:
        """Compute and keep keys and values of prefixes not seen before."""
        new = [head for head in dict.fromkeys(heads) if head not in self._prefixes]
        if not new:
            return
        sheet = self._layout([list(head) or [0] for head in new], [0] * len(new), [0] * len(new))
        x, fresh = sheet.base, []
        for block in self.blocks:
            x, kept = self._block(block, x, sheet, None)
            fresh.append(kept)
        if self._cache:
            fresh = [
                tuple(_stack(old, part) for old, part in zip(*layer, strict=True))
                for layer in zip(self._cache, fresh, strict=True)
            ]
        self._cache = fresh
        self._prefixes |= {head: len(self._prefixes) + i for i, head in enumerate(new)}


def _stack(first: Tensor, second: Tensor) -> Tensor:
    """Keys or values ``(U, H, P, d)`` of two caches, the shorter one padded."""
    reach = max(first.shape[2], second.shape[2])
    grown = [F.pad(part, (0, 0, 0, reach - part.shape[2])) for part in (first, second)]
    return torch.cat(grown)


def _token_embedding(model: nn.Module) -> nn.Module:
    text = getattr(model, "text", model)
    if hasattr(text, "token_embedding"):
        return text.token_embedding
    inner: Any = getattr(text, "transformer", None)
    if hasattr(inner, "get_input_embeddings"):
        return inner.get_input_embeddings()
    raise ValueError(f"no token embedding found in the text tower of {type(model).__name__}")


class NameEmbeddings(nn.Module):
    """Class names as trainable rows inside fixed prompts; everything else stays the encoder's.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    names : sequence of str
        Class names, all different, taken literally.
    templates : str or sequence of str
        A template set, one template, or several.
    hint : str, optional
        Superclass for templates with a ``{hint}``.
    init : "clip", "random" or int
        Rows start as the token embeddings of the name's own BPE pieces; or as N(0, 0.02), one a
        piece; or as N(0, 0.02), this many for every name.
    seed : int
        Seed of a random start.
    forward : CausalText or SubstitutedText, optional
        Text forward; by default the cheapest that is exact.

    Attributes
    ----------
    rows : Parameter, shape (R, W)
        The rows of all names, one below the other. Each name has its own copies, even of pieces
        that it shares with another name.
    names : tuple of str
    spans : list of (int, int)
        First row of each name, and the row after its last.

    Raises
    ------
    ValueError
        If names repeat or are empty, or a template leaves no room for a name.

    Notes
    -----
    Source: name-tuning, section 4 of the paper (eq. 2).
    """

    def __init__(
        self,
        encoder: Any,
        names: Sequence[str],
        templates: str | Sequence[str] = "mini",
        hint: str | None = None,
        init: str | int = "clip",
        seed: int = 0,
        forward: CausalText | SubstitutedText | None = None,
    ):
        super().__init__()
        self.names = tuple(names)
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError("class names must be given and all different")
        self.encoder = encoder
        self.templates, self.hint = resolve(templates), hint
        self._text = forward or text_forward(encoder)
        self._frame = Frame.of(encoder)
        cuts = [slots(template, hint) for template in self.templates]
        ids = [encode_slots(encoder.tokenizer, "", name, "")[1] for name in self.names]
        taken = max(len(pieces(encoder.tokenizer, cut.before)) for cut in cuts)
        if taken >= self._frame.room:
            raise ValueError(f"templates {self.templates} leave no room for a name: shorten them")
        ids = [list(name)[: self._frame.room - taken] for name in ids]
        if not isinstance(init, str):
            if not 0 < init <= self._frame.room - taken:
                most = self._frame.room - taken
                raise ValueError(f"init={init}: a name may have 1 to {most} rows")
            ids = [[0] * init for _ in self.names]
        elif init not in ("clip", "random"):
            raise ValueError(f"init={init!r}: choose 'clip', 'random' or a number of rows")
        ends = torch.tensor([len(name) for name in ids]).cumsum(0).tolist()
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        weight = _token_embedding(encoder.model).weight
        if init == "clip":
            flat = torch.tensor([piece for name in ids for piece in name], device=weight.device)
            start = weight.detach()[flat]
        else:
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(ends[-1], weight.shape[1], generator=generator)
            start = 0.02 * noise.to(weight.device)
        self.rows = nn.Parameter(start.float().clone())
        self._contexts: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self.template_contexts = self.add_contexts(cuts)
        self._all: Sheet | None = None

    def add_contexts(self, contexts: Sequence[tuple[str, str]]) -> list[int]:
        """Numbers of contexts ``(before, after)``, for `features`; equal ones share a number.

        A context that is too long loses its end, and its beginning where it would leave no room
        for the longest name.
        """
        tokenizer = self.encoder.tokenizer
        keep = self._frame.room - max(end - start for start, end in self.spans)
        numbers = []
        for before, after in contexts:
            ids = pieces(tokenizer, before)
            key = tuple(ids[max(len(ids) - keep, 0) :]), tuple(pieces(tokenizer, after))
            numbers.append(self._contexts.setdefault(key, len(self._contexts)))
        self._keys = list(self._contexts)
        return numbers

    def codes(self, context: int, owner: int) -> Codes:
        """Prompt of a name in a context, as codes from start to end of text."""
        before, after = self._keys[context]
        start, end = self.spans[owner]
        body = [*before, *(-1 - row for row in range(start, end)), *after]
        return [*self._frame.lead, *body[: self._frame.room], *self._frame.tail]

    def features(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Features ``(B, D)`` of unit length of B pairs (context number, name number).

        Equal pairs are computed once.
        """
        unique = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        found = self._text(self._text.sheet([self.codes(*pair) for pair in unique]), self.rows)
        if len(unique) == len(pairs):
            return found
        where = torch.tensor([unique[pair] for pair in pairs], device=found.device)
        return found.index_select(0, where)

    def caption_features(
        self, contexts: Sequence[tuple[str, str]], owners: Sequence[int]
    ) -> Tensor:
        """Features ``(B, D)`` of contexts ``(before, after)`` with the names `owners` put in."""
        return self.features(list(zip(self.add_contexts(contexts), map(int, owners), strict=True)))

    def forward(self) -> Tensor:
        """Text classifier ``(C, D)`` of unit length, the mean over the templates."""
        if self._all is None:
            numbers = range(len(self.names))
            codes = [self.codes(context, i) for context in self.template_contexts for i in numbers]
            self._all = self._text.sheet(codes)
        features = self._text(self._all, self.rows)
        return F.normalize(features.unflatten(0, (-1, len(self.names))).mean(0), dim=-1)

    def learned(self) -> Names:
        """The rows as they are now, by name, ready to be saved."""
        rows = self.rows.detach().float().cpu()
        own = zip(self.names, self.spans, strict=True)
        return Names(
            {name: rows[slice(*span)].clone() for name, span in own},
            templates=self.templates,
            hint=self.hint,
            tokenizer=tokenizer_fingerprint(self.encoder),
        )

    @torch.no_grad()
    def load(self, names: Mapping[str, Tensor]) -> NameEmbeddings:
        """Self, with the rows of learned names put in.

        Raises
        ------
        ValueError
            If a name is missing, or has another number or width of rows.
        """
        for name, (start, end) in zip(self.names, self.spans, strict=True):
            if name not in names:
                raise ValueError(f"{name!r} is not among the {len(names)} learned names")
            if names[name].shape != self.rows[start:end].shape:
                raise ValueError(
                    f"{name!r} was learned as {tuple(names[name].shape)} rows, here it has "
                    f"{(end - start, self.rows.shape[1])}: another tokenizer, model or init"
                )
            self.rows[start:end] = names[name].to(self.rows)
        return self


def tokenizer_fingerprint(encoder: Any) -> str:
    """SHA-256 over the ids of a fixed text: equal for tokenizers that agree on it."""
    probe = "a photo of a quick brown fox, 0123456789; Ünïcödé «names» & <signs> #!?"
    return hashlib.sha256(json.dumps(pieces(encoder.tokenizer, probe)).encode()).hexdigest()


class Names(Mapping[str, Tensor]):
    """Learned names: a mapping from name to its rows ``(n, W)`` float32, and where they fit.

    Parameters
    ----------
    rows : mapping of str to Tensor
        Rows of each name.
    templates : sequence of str
        Templates they were learned in.
    hint : str, optional
        Superclass they were learned with.
    tokenizer : str
        `tokenizer_fingerprint` of the encoder.
    """

    def __init__(
        self,
        rows: Mapping[str, Tensor],
        *,
        templates: Sequence[str] = (),
        hint: str | None = None,
        tokenizer: str = "",
    ):
        self._rows = dict(rows)
        self.templates, self.hint, self.tokenizer = tuple(templates), hint, tokenizer

    def __getitem__(self, name: str) -> Tensor:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Names({len(self)}: {', '.join(list(self)[:3])}{', ...' if len(self) > 3 else ''})"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file, written whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": "lbutils names",
            "names": json.dumps(list(self), ensure_ascii=False),
            "templates": json.dumps(self.templates, ensure_ascii=False),
            "hint": json.dumps(self.hint, ensure_ascii=False),
            "tokenizer": self.tokenizer,
        }
        draft = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            # Numbered keys: a name may be anything, "__metadata__" included.
            tensors = {f"name.{i}": rows.contiguous() for i, rows in enumerate(self.values())}
            save_file(tensors, draft, metadata=about)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: Any = None) -> Names:
        """Names read from a file.

        Parameters
        ----------
        path : path
            File written by `save`.
        encoder : DualEncoder, optional
            If given, its tokenizer must be the one that the names were learned with.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not a file of names, or the tokenizers differ.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no learned names at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                listed = json.loads(about["names"])
                rows = {name: file.get_tensor(f"name.{i}") for i, name in enumerate(listed)}
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a file of learned names: {error}") from error
        if encoder is not None and about["tokenizer"] != tokenizer_fingerprint(encoder):
            raise ValueError(f"{path}: names learned with another tokenizer than {encoder.name}'s")
        return cls(
            rows,
            templates=json.loads(about["templates"]),
            hint=json.loads(about["hint"]),
            tokenizer=about["tokenizer"],
        )
