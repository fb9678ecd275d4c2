"""Words added to other people's models: what `Names.install` does to a model and a tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lbutils.captions.text import cleaned
from lbutils.models.foreign import WORDS_INSIDE
from lbutils.models.prompts import pieces
from lbutils.models.text import Frame, text_tower, token_embedding


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over the ids of a fixed text: equal for tokenizers that agree on it."""
    # No brackets: installed words, which stand in them, must not change what is found.
    probe = "a photo of a quick brown fox, 0123456789; Ünïcödé «names» & signs #!?"
    return hashlib.sha256(json.dumps(pieces(tokenizer, probe)).encode()).hexdigest()


_TABLES: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def table_fingerprint(model: nn.Module, size: int | None = None) -> str:
    """``"V:<SHA-256>"`` of the first V token embeddings, all by default, at half precision.

    Models with the same one read the same rows alike, as far as the text towers that follow are
    the same; a fine-tuned or ported copy keeps it unless its embeddings were trained. Words that
    were installed stand behind the first V and do not change it.
    """
    embedding = token_embedding(model)
    table = embedding.weight.detach()[:size]
    state = (embedding.weight.data_ptr(), embedding.weight._version, len(table))
    if embedding not in _TABLES or _TABLES[embedding][0] != state:
        data = table.to("cpu", torch.float16).contiguous().view(torch.uint8).numpy()
        digest = hashlib.sha256(data.data).hexdigest()
        _TABLES[embedding] = state, f"{len(table)}:{digest}"
    return _TABLES[embedding][1]


def check_free(words: Mapping[str, Tensor], tokenizer: Any, first_new: int) -> None:
    """Raise where a word is one already; ids from `first_new` on are those of installed words."""
    longest_first, pattern = _any_of(words)
    seen: set[str] = set()
    for word in words:
        ids = pieces(tokenizer, word)
        match = pattern.fullmatch(_read(word))
        # Where one letter has several small forms, folding and the pattern see different ones.
        alike = match is not None and longest_first[(match.lastindex or 0) - 1] != word
        if alike or _read(word).casefold() in seen:
            raise ValueError(
                f"two names become the word {word!r}: they differ in case only, or in white space "
                "or Unicode form"
            )
        if ids and min(ids) >= first_new:
            raise ValueError(f"the word {word!r} is already installed: rename it, or start afresh")
        if len(ids) == 1:
            raise ValueError(f"the word {word!r} is a token of the tokenizer: rename the class")
        seen.add(_read(word).casefold())
    if hasattr(tokenizer, "backend_tokenizer"):
        _check_spellings(words, tokenizer)


def _read(text: str) -> str:
    """The text as words are looked for in it: cleaned, in NFC, one space for white space.

    However a word is encoded, escaped or broken over lines, it is the same one to open_clip.
    """
    return " ".join(unicodedata.normalize("NFC", cleaned(text)).split())


def _any_of(words: Iterable[str]) -> tuple[list[str], re.Pattern[str]]:
    """Words, longest first, and a pattern that finds them in what `_read` gives, a group each."""
    longest_first = sorted(words, key=lambda word: len(_read(word)), reverse=True)
    groups = "|".join(f"({re.escape(_read(word))})" for word in longest_first)
    return longest_first, re.compile(groups, re.IGNORECASE)


def _check_spellings(words: Mapping[str, Tensor], tokenizer: Any) -> None:
    """Raise where a tokenizer of transformers could not tell words and their tokens apart."""
    backend = tokenizer.backend_tokenizer
    taken: set[str] = set()
    for word, rows in words.items():
        text, tokens = _spelling(tokenizer, word, len(rows))
        forms = {text, *tokens}
        if forms & taken or any(backend.token_to_id(token) is not None for token in tokens):
            raise ValueError(f"the tokenizer reads {word!r} like another word: rename the class")
        if any(_cleaned(tokenizer, token) != token for token in tokens):
            raise ValueError(f"the tokenizer cleans up the tokens of {word!r}: rename the class")
        taken |= forms


def _cleaned(tokenizer: Any, text: str) -> str:
    """A text as a tokenizer of transformers normalises it."""
    own = tokenizer.backend_tokenizer.normalizer
    return text if own is None else own.normalize_str(text)


def _spelling(tokenizer: Any, word: str, n_rows: int) -> tuple[str, list[str]]:
    """A word as a tokenizer of transformers reads it, and the tokens that it is spelt in."""
    text = _cleaned(tokenizer, word)
    # Inner brackets could hold another word, which must not be found within these tokens.
    inner = text[1:-1].replace("<", "(").replace(">", ")")
    if n_rows == 1 and inner == text[1:-1]:
        return text, [text]
    return text, [f"<{inner}|{i}>" for i in range(n_rows)]


def _text_parts(model: nn.Module) -> list[Any]:
    """What may carry settings of a text tower: the model, the tower, and their configurations."""
    text = text_tower(model)
    configs = [getattr(part, "config", None) for part in (model, text)]
    return [model, text, *configs, getattr(configs[0], "text_config", None)]


def pool_at_end(model: nn.Module, tail: Sequence[int | None]) -> None:
    """Make a model that pools text at its highest id pool at the end of text, the same token."""
    attributes = (("text_pool_type", "text_eos_id"), ("pool_type", "eos_id"))
    parts = _text_parts(model)
    if tail[:1] == [2] and any(getattr(part, "eos_token_id", None) == 2 for part in parts):
        raise ValueError("transformers cannot pool at an end of text of id 2 beside new words")
    for part in parts:
        for kind, end in attributes:
            if getattr(part, kind, None) == "argmax":
                setattr(part, kind, "eos")
                setattr(part, end, tail[0])
        # By this wrong id transformers knows configurations from before it pooled at the end.
        if hasattr(part, "eos_token_id") and part.eos_token_id == 2:
            part.eos_token_id = tail[0]
    tower = text_tower(model)
    if _pools_at_highest(tower, tail[0]):
        if tail[0] is None:
            raise ValueError(
                "the model pools at the highest id, and no id of its tokenizer ends a text"
            )
        tower.register_forward_hook(_PoolAtEnd(tail[0]), with_kwargs=True)


def _pools_at_highest(tower: Any, end: int | None) -> bool:
    """Whether a tower of transformers pools at the highest id, whatever its configuration says.

    Of OWL-ViT and OWLv2 that is so, and there is no setting for it.
    """
    config = getattr(tower, "config", None)
    if not hasattr(config, "vocab_size") or hasattr(tower, "get_text_features"):
        return False
    # No end of text, and the highest id in the middle, where nothing else would pool.
    table = token_embedding(tower).weight
    highest = len(table) - 2 if end is None else end - 1
    ids = torch.tensor([[0, highest, 0]], device=table.device)
    with torch.no_grad():
        found: Any = tower(input_ids=ids)
    if getattr(found, "pooler_output", None) is None:
        return False
    return bool(torch.equal(found.pooler_output, found.last_hidden_state[:, 1]))


class _PoolAtEnd:
    """Forward hook of a text tower of transformers: the pooled state is that of the end of text."""

    def __init__(self, end: int):
        self.end = end

    def __call__(self, tower: nn.Module, given: Any, named: Mapping[str, Any], found: Any) -> Any:
        ids = named["input_ids"] if "input_ids" in named else given[0]
        at = (ids.reshape(-1, ids.shape[-1]) == self.end).int().argmax(dim=1)
        states = found.last_hidden_state
        found.pooler_output = states[torch.arange(len(states)), at.to(states.device)]
        return found


def grown(model: nn.Module, first: int, rows: Tensor) -> nn.Parameter:
    """The model's token embedding with rows from entry `first` on; the model is not changed."""
    old = token_embedding(model).weight
    table = old.detach().new_zeros(max(len(old), first + len(rows)), old.shape[1])
    table[: len(old)] = old.detach()
    table[first : first + len(rows)] = rows.to(table)
    return nn.Parameter(table, requires_grad=old.requires_grad)


def put_table(model: nn.Module, table: nn.Parameter) -> None:
    """Give a model another token embedding."""
    embedding = token_embedding(model)
    embedding.weight = table
    embedding.num_embeddings = len(table)
    for part in _text_parts(model):
        if hasattr(part, "vocab_size"):
            part.vocab_size = len(table)


def add_words(tokenizer: Any, words: Mapping[str, list[int]]) -> None:
    """Add words to a tokenizer of transformers, each spelt in as many tokens as it has ids.

    Ids between the tokenizer's last and the first of the words get tokens that no text needs.
    """
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer
    own = backend.normalizer
    unused = range(len(tokenizer), min(min(ids) for ids in words.values()))
    tokenizer.add_tokens([AddedToken(f"<|unused {i}|>", normalized=False) for i in unused])
    spellings = []
    for word, ids in words.items():
        text, tokens = _spelling(tokenizer, word, len(ids))
        tokenizer.add_tokens([AddedToken(token, normalized=True) for token in tokens])
        if tokenizer.convert_tokens_to_ids(tokens) != ids:
            raise RuntimeError(f"{type(tokenizer).__name__} did not take the word {word!r}")
        if tokens != [text]:
            spellings.append((text, "".join(tokens)))
    if spellings:
        # A word may hold another in its own brackets: the longest is read first.
        spellings.sort(key=lambda pair: len(pair[0]), reverse=True)
        steps = [normalizers.Replace(*pair) for pair in spellings]
        backend.normalizer = normalizers.Sequence([own, *steps] if own else steps)
        # CLIPTokenizer would make its normalizer anew when loaded and so forget the spellings;
        # the plain class, whose name is saved, loads what was saved.
        tokenizer.__class__ = PreTrainedTokenizerFast
        # Asked for by name it would forget them still; handed this for its vocabulary, it raises.
        tokenizer.init_inputs = WORDS_INSIDE


class WordTokenizer:
    """An open_clip tokenizer with words of its own, each of which has one id or several.

    A word is found whatever its case, white space and Unicode form, and also in HTML entities or
    wrongly decoded, as open_clip's clean-up reads it. All else, and every text without a word, is
    left to the tokenizer beneath, of open_clip or another `WordTokenizer`, whose words are kept.
    """

    def __init__(self, base: Any, words: Mapping[str, Sequence[int]]):
        inside = isinstance(base, WordTokenizer)
        known: Mapping[str, Sequence[int]] = base.words if inside else {}
        self.base: Any = base.base if inside else base
        self.words = {word: list(ids) for word, ids in {**known, **words}.items()}
        self._longest_first, self._pattern = _any_of(self.words)
        self._frame = Frame.read(self.base)
        self.vocab_size = 1 + max(max(ids) for ids in self.words.values())

    def __getattr__(self, name: str) -> Any:
        if name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end of text, not truncated."""
        read = _read(text)
        if not self._pattern.search(read):
            return pieces(self.base, text)
        text, end = read, 0
        ids: list[int] = []
        for match in self._pattern.finditer(text):
            word = self._longest_first[(match.lastindex or 0) - 1]
            ids += [*pieces(self.base, text[end : match.start()]), *self.words[word]]
            end = match.end()
        return [*ids, *pieces(self.base, text[end:])]

    def decode(self, ids: Any) -> str:
        """Text of ids; words stand in it as they were installed."""
        ids, text = [int(i) for i in ids], ""
        plain: list[int] = []
        starts = {own[0]: (word, len(own)) for word, own in self.words.items()}
        while ids:
            word, taken = starts.get(ids[0], ("", 1))
            if word:
                text += (self.base.decode(plain) if plain else "") + word + " "
                plain = []
            else:
                plain.append(ids[0])
            ids = ids[taken:]
        return text + (self.base.decode(plain) if plain else "")

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Ids ``(N, context_length)``, int64, as the tokenizer beneath lays them out."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        given = () if context_length is None else (context_length,)
        tokens = self.base(texts, *given)
        lead, tail = self._frame.lead, self._frame.tail
        room = tokens.shape[1] - len(lead) - len(tail)
        for row, text in zip(tokens, texts, strict=True):
            if self._pattern.search(_read(text)):
                ids = [*lead, *self.encode(text)[:room], *tail]
                row.fill_(self._frame.pad)
                row[: len(ids)] = torch.tensor(ids)
        return tokens
