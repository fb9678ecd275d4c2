"""Find many phrases in many captions at word boundaries, exactly, by the words they consist of.

An automaton reads every byte of every caption. Here the captions are cut into words by a few
vector operations, a hash of each word's first eight letters is looked up, and only the words
that may begin or end a match are compared in full. The cost hardly grows with the number of
phrases. `tests/benchmarks` measures it beside Polars' Aho-Corasick and others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_KEY_BYTES = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio (Knuth, vol. 3, 6.4)
_LOW, _HIGH = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_ONE = np.uint64(1)


class PhraseIndex:
    """Canonical phrases, ready to be found in batches of captions.

    Parameters
    ----------
    phrases : sequence of str
        Distinct, canonical (see `lbutils.captions.text.canonical`), none of them empty.
    frequency : mapping, optional
        How often words occur in a sample of the captions. A phrase is looked up by its rarest
        word; without this, by its longest.
    """

    def __init__(self, phrases: Sequence[str], frequency: Mapping[str, int] | None = None) -> None:
        self.phrases = list(phrases)
        split = [phrase.encode().split() for phrase in self.phrases]
        seen = {word.encode(): count for word, count in (frequency or {}).items()}
        words = {word: i for i, word in enumerate(dict.fromkeys(w for ws in split for w in ws))}
        self._lengths = np.array([len(word) for word in words], np.int64)
        self._padding = int(self._lengths.max(initial=0)) + 2 * _KEY_BYTES
        self._chunks, self._masks = _chunks(list(words))
        anchors = [_rarest(ws, seen) for ws in split]
        keys = np.array(
            [self._chunks[0][words[ws[k]]] for ws, k in zip(split, anchors, strict=True)], np.uint64
        )
        # Phrases in the order of their keys, so that one key's phrases are neighbours.
        self._order = np.argsort(keys, kind="stable")
        self._keys, self._first, self._count = np.unique(
            keys[self._order], return_index=True, return_counts=True
        )
        self._anchors = np.array(anchors, np.int64)
        self._sizes = np.array([len(ws) for ws in split], np.int64)
        longest = int(self._sizes.max(initial=0))
        self._words = np.full((len(split), longest), -1, np.int64)
        for row, ws in zip(self._words, split, strict=True):
            row[: len(ws)] = [words[word] for word in ws]
        bits = max(12, len(self._keys).bit_length() + 6)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[(self._keys * _MULTIPLIER) >> self._shift] = True

    def find(
        self, text: np.ndarray, first: np.ndarray, *, ascii_only: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and phrases of the matches, each pair once: two arrays (M,) int64.

        Parameters
        ----------
        text, first : arrays
            The captions as `joined` returns them; canonical but for the case and the signs of
            ASCII, as `lbutils.captions.text.loosely_canonical` gives them.
        ascii_only : bool
            Take every byte for ASCII, which is faster; captions for which this is not true give
            nothing that can be relied on.
        """
        if not len(text) or not len(self._keys):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        low, starts = self._words_of(text, ascii_only)
        keys = np.ndarray(len(text), "<u8", low, strides=(1,))[starts]
        _cut_at_zero(keys)
        hits = np.flatnonzero(self._table[(keys * _MULTIPLIER) >> self._shift])
        place = np.searchsorted(self._keys, keys[hits])
        known = self._keys[np.minimum(place, len(self._keys) - 1)] == keys[hits]
        hits, place = hits[known], place[known]
        # One candidate per hit and phrase that has this word as its anchor.
        count = self._count[place]
        rank = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        phrase = self._order[np.repeat(self._first[place], count) + rank]
        begin = np.repeat(hits, count) - self._anchors[phrase]
        row, phrase = self._verified(low, starts, first, begin, phrase)
        pairs = np.sort(row * len(self.phrases) + phrase)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return pairs // len(self.phrases), pairs % len(self.phrases)

    def _words_of(self, text: np.ndarray, ascii_only: bool) -> tuple[np.ndarray, np.ndarray]:
        """The text in lower case with zeros between words, and where each word starts."""
        low = np.zeros(len(text) + self._padding, np.uint8)
        body = low[: len(text)]
        np.bitwise_or(text, 32, out=body)
        inside = (body - np.uint8(ord("a"))) < 26
        inside |= (text - np.uint8(ord("0"))) < 10
        if not ascii_only:
            beyond = text > 127
            np.copyto(body, text, where=beyond)
            inside |= beyond
        body *= inside
        starts = np.flatnonzero(inside[1:] > inside[:-1])
        starts += 1
        return low, np.concatenate([[0], starts]) if inside[0] else starts

    def _verified(
        self,
        low: np.ndarray,
        starts: np.ndarray,
        first: np.ndarray,
        begin: np.ndarray,
        phrase: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and phrases of the candidates whose every word is there, in one caption."""
        end = begin + self._sizes[phrase]
        fits = (begin >= 0) & (end <= len(starts))
        begin, phrase = begin[fits], phrase[fits]
        for k in range(self._words.shape[1]):
            word = self._words[phrase, k]
            present = word >= 0
            same = np.ones(len(phrase), bool)
            same[present] = self._same_word(low, starts[begin[present] + k], word[present])
            begin, phrase = begin[same], phrase[same]
        row = np.searchsorted(first, starts[begin], side="right") - 1
        last = np.searchsorted(first, starts[begin + self._sizes[phrase] - 1], side="right") - 1
        together = row == last
        return row[together], phrase[together]

    def _same_word(self, low: np.ndarray, start: np.ndarray, word: np.ndarray) -> np.ndarray:
        """Whether the word at each start is that word, to its last letter."""
        length = self._lengths[word]
        same = low[start + length] == 0
        view = np.ndarray(len(low) - _KEY_BYTES, "<u8", low, strides=(1,))
        for k, (chunk, mask) in enumerate(zip(self._chunks, self._masks, strict=True)):
            left = np.flatnonzero(same & (length > k * _KEY_BYTES))
            if not len(left):
                break
            found = view[start[left] + k * _KEY_BYTES] & mask[word[left]]
            same[left] = found == chunk[word[left]]
        return same


def _rarest(words: Sequence[bytes], seen: Mapping[bytes, int]) -> int:
    """Place of the word that was seen least; of the longest, then the first, among equals."""
    return min(range(len(words)), key=lambda k: (seen.get(words[k], 0), -len(words[k]), k))


def _chunks(words: Sequence[bytes]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each word in pieces of eight bytes as integers, and the masks of the bytes that count."""
    width = -(-max(map(len, words), default=1) // _KEY_BYTES) * _KEY_BYTES
    shape = (len(words), width // _KEY_BYTES)
    letters = b"".join(word.ljust(width, b"\0") for word in words)
    ones = b"".join((b"\xff" * len(word)).ljust(width, b"\0") for word in words)
    chunks, masks = (np.frombuffer(data, "<u8").reshape(shape).T for data in (letters, ones))
    return list(chunks), list(masks)


def joined(captions: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """All captions as bytes (B,) uint8, a line break between them; where each one begins."""
    if not len(captions):
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    rows = pa.ListArray.from_arrays(pa.array([0, len(captions)], pa.int32()), captions)
    text = np.frombuffer(pc.binary_join(rows, "\n")[0].as_buffer(), np.uint8)
    offsets = np.frombuffer(captions.buffers()[1], np.int32)
    offsets = offsets[captions.offset : captions.offset + len(captions)].astype(np.int64)
    # Positions, not line breaks, tell captions apart: a caption may have some of its own.
    return text, offsets - offsets[0] + np.arange(len(captions))


def special_rows(text: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Rows with an apostrophe, "&", a control character or one beyond ASCII, ascending (R,) int64.

    Neighbours of such rows may be among them. The captions are as `joined` returns them.
    """
    odd = np.zeros(-(-len(text) // _KEY_BYTES) * _KEY_BYTES, bool)
    body = odd[: len(text)]
    np.greater(text, 126, out=body)
    for sign in "'`&\v":
        body |= text == ord(sign)
    # Line breaks and tabulators, 9 to 13, are white space; subtraction of bytes wraps round.
    body |= text < 9
    body |= text - np.uint8(14) < 18
    # Eight bytes are looked at together, as such characters are rare.
    blocks = np.flatnonzero(odd.view(np.uint64)) * _KEY_BYTES
    ends = np.minimum(blocks + _KEY_BYTES - 1, len(text) - 1)
    low = np.searchsorted(first, blocks, side="right") - 1
    high = np.searchsorted(first, ends, side="right") - 1
    special = np.zeros(len(first), bool)
    # A block may touch several captions if they are shorter than it.
    for k in range(int((high - low).max(initial=0)) + 1):
        special[np.minimum(low + k, high)] = True
    return np.flatnonzero(special)


def _cut_at_zero(keys: np.ndarray) -> None:
    """Clear every byte of a key that follows its first zero byte, in place."""
    borrow = keys - _LOW
    borrow &= ~keys
    borrow &= _HIGH
    borrow &= ~borrow + _ONE
    borrow -= _ONE
    keys &= borrow
