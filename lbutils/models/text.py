"""Exact, fast text features of prompts in which some input embeddings are trainable rows.

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

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from lbutils.models.prompts import Slots, pieces

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
    def read(cls, tokenizer: Any) -> Frame:
        """Frame of a tokenizer, read off a short and an overlong text of one word.

        Raises ValueError if the tokenizer puts tokens behind the padding.
        """
        body = pieces(tokenizer, "a")
        row = tokenizer(["a"])[0].tolist()
        full = tokenizer(["a " * len(row)])[0].tolist()
        found = [i for i in range(len(row)) if full[i : i + len(body)] == body]
        # An end that doubles as padding, as SigLIP's does, shows only where there is no padding.
        lead, tail = (full[: found[0]], full[found[-1] + len(body) :]) if found else ([], [])
        pads = row[len(lead) + len(body) + len(tail) :]
        if row != [*lead, *body, *tail, *pads] or not pads or len(set(pads)) > 1:
            raise ValueError(
                f"{type(tokenizer).__name__} does not lay out texts as start, pieces, "
                "end, padding; names cannot be tuned with it"
            )
        return cls(lead, tail, pads[0], len(row))


def text_forward(encoder: Any) -> CausalText | SubstitutedText:
    """Cheapest exact text forward that the encoder's text tower allows."""
    frame = Frame.read(encoder.tokenizer)
    return (CausalText if is_causal(encoder.model, frame) else SubstitutedText)(encoder)


def encode_prompts(
    encoder: Any, prompts: Sequence[Slots], batch_size: int = 256
) -> Iterator[tuple[Tensor, list[bytes]]]:
    """Features ``(B, D)`` of one batch of prompts after the other, and the ids of each prompt.

    Features are of unit length, float32, on the CPU; ids, as bytes, are what the encoder reads and
    tell prompts apart. Nothing is trainable here. A causal tower computes what several prompts
    begin with once, and no token behind the end of text: equal to the encoder's `encode_text` up
    to rounding. Any other tower runs that.
    """
    frame: Frame | None = None
    with suppress(TypeError, ValueError):  # of a tokenizer that has no frame
        frame = Frame.read(encoder.tokenizer)
    causal = frame is not None and is_causal(encoder.model, frame)
    forward = CausalText(encoder) if causal else None
    often = [before for before, n in Counter(prompt.before for prompt in prompts).items() if n > 1]
    heads = {before: len(pieces(encoder.tokenizer, before)) for before in often} if causal else {}
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        texts = ["".join(prompt) for prompt in some]
        ids = encoder.tokenize(texts)
        if frame is None or forward is None:
            yield encoder.encode_text(texts).cpu(), [row.tobytes() for row in ids.numpy()]
            continue
        ends = (ids == frame.tail[0]).int().argmax(dim=1).tolist()
        codes = [row[: end + 1] for row, end in zip(ids.tolist(), ends, strict=True)]
        read = [np.array(row).tobytes() for row in codes]
        for row, prompt in zip(codes, some, strict=True):
            # The rows put in are the tower's own: the first of them ends what is computed once.
            cut = min(len(frame.lead) + heads.get(prompt.before, 0), len(row) - 1)
            row[cut] = -1 - row[cut]
        with torch.no_grad():
            found = forward(forward.sheet(codes), forward.tower.token_embedding.weight)
        yield found.cpu(), read


def is_causal(model: nn.Module, frame: Frame) -> bool:
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
    """Prompts of one call, laid out for a forward. Made by ``forward.sheet(codes)``.

    `CausalText` lays B prompts, less their prefixes, one behind the other in N lines of L tokens,
    as documents are packed to train language models; no prompt sees another. Rows that several
    prompts begin with stand once a line.
    """

    base: Tensor  # fixed part of the embeddings (N * L, W), or token ids (B, context)
    places: Tensor  # where rows go, among the tokens (P,)
    rows: Tensor  # which row goes there (P,)
    size: tuple[int, int] = (0, 0)  # N, L
    before: Tensor = field(default_factory=lambda: torch.empty(0))  # cached tokens (N, K)
    mask: Tensor = field(default_factory=lambda: torch.empty(0))  # additive (N, 1, L, K + L)
    asked: Tensor = field(default_factory=lambda: torch.empty(0))  # pooled tokens by line (N, M)
    asked_mask: Tensor = field(default_factory=lambda: torch.empty(0))  # (N, 1, M, K + L)
    found: Tensor = field(default_factory=lambda: torch.empty(0))  # prompts among N * M (B,)


class SubstitutedText:
    """Text features of prompts with trainable rows, by the model's own forward.

    Raises ValueError if no token embedding is found.
    """

    def __init__(self, encoder: Any):
        self.model = encoder.model
        self.frame = Frame.read(encoder.tokenizer)
        self.embedding = token_embedding(encoder.model)
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

    Exact: equal to the model's `encode_text`, gradients included, up to rounding. The keys and
    values of tokens before a prompt's first row depend on no row: they are computed once, a token
    that several prompts begin with only once for all of them. The encoder's text tower must be one
    that passes `is_causal`.
    """

    def __init__(self, encoder: Any):
        self.tower = getattr(encoder.model, "text", encoder.model)
        self.blocks = list(self.tower.transformer.resblocks)
        self.heads = self.blocks[0].attn.num_heads
        self.weight = self.blocks[0].attn.in_proj_weight
        self.width = self.weight.shape[1]
        # Of each block (U, 2 W), the keys and values of the U tokens known so far.
        self._cache = [self.weight.new_zeros(0, 2 * self.width) for _ in self.blocks]
        self._tokens: dict[tuple[int, ...], int] = {}  # a text's ids -> its last one in the cache
        self._paths: dict[tuple[int, ...], list[int]] = {}

    def sheet(self, prompts: Sequence[Codes]) -> Sheet:
        """Layout of prompts given as codes, ending in the end of text; each must fit."""
        cuts = [
            next((i for i, code in enumerate(codes) if code < 0), len(codes) - 1)
            for codes in prompts
        ]
        heads = [tuple(codes[:cut]) for codes, cut in zip(prompts, cuts, strict=True)]
        self._remember(heads)
        tails = [codes[cut:] for codes, cut in zip(prompts, cuts, strict=True)]
        return self._layout(tails, cuts, [self._paths[head] for head in heads])

    def __call__(self, sheet: Sheet, rows: Tensor) -> Tensor:
        """Features ``(B, D)`` of unit length, differentiable in `rows` ``(R, W)``."""
        put = rows.index_select(0, sheet.rows).to(sheet.base.dtype)
        x = sheet.base.index_add(0, sheet.places, put).unflatten(0, sheet.size)
        *blocks, last = zip(self.blocks, self._cache, strict=True)
        for block, cached in blocks:
            x = self._block(block, x, F.embedding(sheet.before, cached), sheet.mask)
        x = self._pooled(*last, x, sheet)
        x = self.tower.ln_final(x)
        projection = self.tower.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return F.normalize(x.float(), dim=-1)

    def _block(
        self, block: ResidualAttentionBlock, x: Tensor, before: Tensor, mask: Tensor
    ) -> Tensor:
        """One residual block over lines ``(N, L, W)`` behind cached tokens ``(N, K, 2 W)``."""
        queries, *new = self._projected(block, block.ln_1(x)).chunk(3, dim=-1)
        x = x + block.ls_1(block.attn.out_proj(self._attend(queries, before, new, mask)))
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def _pooled(
        self, block: ResidualAttentionBlock, cached: Tensor, x: Tensor, sheet: Sheet
    ) -> Tensor:
        """Last block at the pooled token of each prompt, ``(B, W)``."""
        h = block.ln_1(x)
        queries = F.embedding(sheet.asked, h.flatten(0, 1))
        queries = self._projected(block, queries, stop=self.width)
        new = self._projected(block, h, start=self.width).chunk(2, dim=-1)
        mixed = self._attend(queries, F.embedding(sheet.before, cached), new, sheet.asked_mask)
        last = sheet.asked.flatten().index_select(0, sheet.found)
        x = x.flatten(0, 1).index_select(0, last)
        mixed = mixed.flatten(0, 1).index_select(0, sheet.found)
        x = x + block.ls_1(block.attn.out_proj(mixed))
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    @staticmethod
    def _projected(
        block: ResidualAttentionBlock, h: Tensor, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Queries, keys and values, in this order, or a part of their 3 W columns."""
        attn, part = block.attn, slice(start, stop)
        return F.linear(h, attn.in_proj_weight[part], attn.in_proj_bias[part])

    def _attend(
        self, queries: Tensor, before: Tensor, new: Sequence[Tensor], mask: Tensor
    ) -> Tensor:
        """What queries ``(N, M, W)`` find in keys and values: cached ones, then `new` ones."""
        pairs = zip(before.chunk(2, dim=-1), new, strict=True)
        parts = [queries, *(torch.cat(pair, dim=1) for pair in pairs)]
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)

    def _layout(
        self, tails: Sequence[Codes], starts: list[int], paths: Sequence[list[int]]
    ) -> Sheet:
        """Sheet of tails that begin at positions `starts`, behind cached tokens `paths`."""
        units = _units(tails, starts, paths)
        lengths = [len(unit.codes) for unit in units]
        lines = _lines(lengths, [unit.head for unit in units], len(tails))
        length = _longest(lines, lengths)
        codes: Codes = []
        owner: list[int] = []
        position: list[int] = []
        ends = [0] * len(units)
        for line in lines:
            for i in line:
                codes += units[i].codes
                owner += [i] * lengths[i]
                position += range(units[i].start, units[i].start + lengths[i])
                ends[i] = len(codes) - 1
            # What is left of a line belongs to no prompt.
            rest = -len(codes) % length
            codes += [0] * rest
            owner += [-1] * rest
            position += [0] * rest
        size = len(lines), length
        before, mask = _sight(lines, torch.tensor(owner).view(size), units)
        prompts = [[i for i in line if i < len(tails)] for line in lines]
        asked, found = _asked(prompts, ends[: len(tails)], length)
        line = torch.arange(len(lines))[:, None]
        sheet = self._embedded(torch.tensor(codes), torch.tensor(position))
        device, dtype = self.weight.device, self.weight.dtype
        sheet.size, sheet.before, sheet.mask = size, before.to(device), mask.to(device, dtype)
        sheet.asked, sheet.found = asked.to(device), found.to(device)
        sheet.asked_mask = mask[line, :, asked % length].transpose(1, 2).to(device, dtype)
        return sheet

    @torch.no_grad()
    def _embedded(self, codes: Tensor, position: Tensor) -> Sheet:
        """Sheet with the sums of token and position embeddings, the former left out of rows."""
        device, dtype = self.weight.device, self.weight.dtype
        places = (codes < 0).nonzero()[:, 0]
        base = self.tower.token_embedding(codes.clamp(min=0).to(device)).to(dtype)
        base[places.to(device)] = 0
        base += self.tower.positional_embedding[position.to(device)].to(dtype)
        return Sheet(base, places.to(device), (-1 - codes[places]).to(device))

    @torch.no_grad()
    def _remember(self, heads: Sequence[tuple[int, ...]]) -> None:
        """Compute and keep keys and values of prefixes not seen before."""
        new = [head for head in dict.fromkeys(heads) if head not in self._paths]
        fresh: list[tuple[int, int]] = []
        for line, head in enumerate(new):
            texts = [head[: place + 1] for place in range(len(head))]
            for place, text in enumerate(texts):
                if text not in self._tokens:
                    self._tokens[text] = len(self._tokens)
                    fresh.append((line, place))
            self._paths[head] = [self._tokens[text] for text in texts]
        if not fresh:
            return
        length = max(map(len, new))
        codes = torch.tensor([[*head, *[0] * (length - len(head))] for head in new])
        position = torch.arange(length).expand(len(new), -1)
        x = self._embedded(codes.flatten(), position.flatten()).base.unflatten(0, codes.shape)
        line, place = torch.tensor(fresh, device=x.device).T
        nothing = x.new_zeros(len(new), 0, 2 * self.width)
        for i, block in enumerate(self.blocks):
            found = self._projected(block, block.ln_1(x), start=self.width)[line, place]
            self._cache[i] = torch.cat([self._cache[i], found])
            x = self._block(block, x, nothing, self.tower.attn_mask[:length, :length].to(x.dtype))


class _Unit(NamedTuple):
    """Codes that stand together in a line: of a prompt, or rows that several begin with."""

    codes: Codes
    start: int  # position of the first
    path: Sequence[int]  # cached tokens before it
    head: int = -2  # the unit that goes before, in the same line; -1 stands for no prompt's


def _units(
    tails: Sequence[Codes], starts: Sequence[int], paths: Sequence[Sequence[int]]
) -> list[_Unit]:
    """A unit for each prompt, in their order, then one for each beginning that some share."""
    prompts = list(map(_Unit, tails, starts, paths))
    keys = []
    for codes, start, path, _ in prompts:
        # The last token, which is pooled, is a prompt's own.
        run = next((i for i, code in enumerate(codes) if code >= 0), len(codes) - 1)
        keys.append((tuple(codes[:run]), start, tuple(path)))
    shared = [key for key, times in Counter(keys).items() if key[0] and times > 1]
    place = {key: len(prompts) + k for k, key in enumerate(shared)}
    for i, key in enumerate(keys):
        if key in place:
            codes, start, path, _ = prompts[i]
            run = len(key[0])
            prompts[i] = _Unit(codes[run:], start + run, path, place[key])
    return [*prompts, *(_Unit(list(key[0]), *key[1:]) for key in shared)]


def _lines(lengths: Sequence[int], heads: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of the units in each line, so that lines of equal length are well filled.

    The first `count` units are prompts; each stands behind its head, if it has one.
    """
    # Short lines make for small matrices in attention, long ones for prompts side by side that
    # see nothing of each other.
    whole = [lengths[i] + (lengths[heads[i]] if heads[i] >= 0 else 0) for i in range(count)]
    total, longest = sum(lengths), max(whole)
    about = max(32, 2 * longest)
    rooms = {-(-total // -(-total // room)) for room in (about, about * 5 // 4, about * 3 // 2)}
    found = [_first_fit(lengths, heads, count, max(longest, room)) for room in sorted(rooms)]
    return min(found, key=lambda lines: len(lines) * _longest(lines, lengths))


def _longest(lines: list[list[int]], lengths: Sequence[int]) -> int:
    return max(sum(lengths[i] for i in line) for line in lines)


def _first_fit(
    lengths: Sequence[int], heads: Sequence[int], count: int, room: int
) -> list[list[int]]:
    """Each prompt, the longest of a head first, in the first line that has room for it.

    The room is less by the head where that is not in the line yet.
    """
    lines: list[list[int]] = []
    held: list[set[int]] = []
    left: list[int] = []
    for i in sorted(range(count), key=lambda i: (heads[i], -lengths[i])):
        head, own = heads[i], lengths[i]
        more = own + lengths[head] if head >= 0 else own
        fits = (n for n, free in enumerate(left) if free >= (own if head in held[n] else more))
        n = next(fits, len(lines))
        if n == len(lines):
            lines.append([])
            held.append(set())
            left.append(room)
        new = [i] if head < 0 or head in held[n] else [head, i]
        held[n].update(new)
        lines[n] += new
        left[n] -= sum(lengths[unit] for unit in new)
    return lines


def _sight(lines: list[list[int]], owner: Tensor, units: Sequence[_Unit]) -> tuple[Tensor, Tensor]:
    """Cached tokens ``(N, K)`` of each line, and what its tokens see ``(N, 1, L, K + L)``."""
    kept = [list(dict.fromkeys(token for i in line for token in units[i].path)) for line in lines]
    reach = max(map(len, kept))
    # A unit that several prompts begin with stands in several lines, each with columns of its own.
    places = []
    for n, (line, tokens) in enumerate(zip(lines, kept, strict=True)):
        column = {token: k for k, token in enumerate(tokens)}
        places += [(n, i, column[token]) for i in line for token in units[i].path]
    # The row for what belongs to no prompt, -1, is the last.
    behind = torch.zeros(len(lines), len(units) + 1, reach, dtype=torch.bool)
    behind[tuple(torch.tensor(places).view(-1, 3).T)] = True
    head = torch.tensor([*(unit.head for unit in units), -2])[owner]
    own = (owner[:, :, None] == owner[:, None, :]) | (head[:, :, None] == owner[:, None, :])
    cached = behind[torch.arange(len(lines))[:, None], owner]
    seen = torch.cat([cached, own.tril()], dim=-1)[:, None]
    before = torch.tensor([tokens + [0] * (reach - len(tokens)) for tokens in kept])
    return before, torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))


def _asked(lines: list[list[int]], ends: list[int], length: int) -> tuple[Tensor, Tensor]:
    """Last token of each line's prompts ``(N, M)``, and where among them a prompt is ``(B,)``."""
    most = max(map(len, lines))
    asked = [
        [*(ends[i] for i in line), *[n * length] * (most - len(line))]
        for n, line in enumerate(lines)
    ]
    found = torch.zeros(len(ends), dtype=torch.long)
    for n, line in enumerate(lines):
        found[line] = torch.arange(n * most, n * most + len(line))
    return torch.tensor(asked), found


def text_tower(model: nn.Module) -> Any:
    """A model's text tower, or the model itself if it is one; of a detector that of its encoder."""
    # A model of transformers with a head names what is beneath it; without one that is itself.
    base: Any = getattr(model, "base_model", model)
    return getattr(base, "text", getattr(base, "text_model", base))


def token_embedding(model: nn.Module) -> nn.Embedding:
    """Input embedding of a model's text tower, whatever family it is of.

    Raises ValueError if there is none where open_clip and transformers have it.
    """
    text = text_tower(model)
    tower: Any
    for tower in (getattr(text, "embeddings", None), text, getattr(text, "transformer", None)):
        if hasattr(tower, "token_embedding"):
            return tower.token_embedding
        if hasattr(tower, "get_input_embeddings"):
            return tower.get_input_embeddings()
    raise ValueError(f"no token embedding found in the text tower of {type(model).__name__}")
