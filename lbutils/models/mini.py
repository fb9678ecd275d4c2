"""The miniature's own CLIP: a residual image tower that open_clip builds, and its cut tokenizer.

Importing this module registers the tower with timm, so that `open_clip.create_model` builds the
whole model from the JSON configuration in `data/mini/encoder/<scale>/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from timm.models import register_model
from torch import Tensor, nn

CONTEXT_LENGTH = 16
IMAGE_SIZE = 64
CROP_SCALE = (0.8, 1.0)  # part of the area that an augmented view shows
BYTE_SYMBOLS = 512  # open_clip's first ids: 256 bytes inside a word, 256 at its end


# --------------------------------------------------------------------------- image tower


class ConvNormAct(nn.Sequential):
    """A 3 x 3 convolution without bias, batch normalisation and ReLU."""

    def __init__(self, width_in: int, width_out: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(width_in, width_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions of equal width beside an identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first = ConvNormAct(width, width)
        self.second = ConvNormAct(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the shape of x."""
        return x + self.second(self.first(x))


class ResidualTower(nn.Module):
    """A nine-convolution residual network, pooled by mean and by maximum.

    A 4 x 4 stem of stride 2, then one down-sampling convolution and one residual block for each
    further width. Pooling makes it take images of any size from 16 x 16 up.

    The attributes and methods beside `forward` are those that `open_clip.timm_model.TimmModel` asks
    of a timm trunk. Source: after the ResNet-9 of David Page, "How to train your ResNet" (2018).

    `widths` (sequence of int): channels of the stem and of each stage after it.

    Attributes
    ----------
    num_features : int
        Length of the pooled features, twice the last width.
    """

    default_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
        "num_classes": 0,
    }

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            *(
                nn.Sequential(ConvNormAct(before, after, stride=2), ResidualBlock(after))
                for before, after in pairwise(widths)
            )
        )
        self.num_features = 2 * widths[-1]

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """Nothing: the tower has no classifier; open_clip's head projects its features.

        Raises ValueError if a classifier or another pooling is asked for.
        """
        if num_classes or global_pool:
            raise ValueError(
                "the residual tower pools by itself and has no classifier: use "
                '"timm_pool": "" and "timm_proj": "linear" in vision_cfg'
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H / 16, W / 16) of images (B, 3, H, W)."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor) -> Tensor:
        """Pooled features (B, 2 C): the mean, then the maximum, over positions."""
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, 2 C) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(x))


def _tower(widths: Sequence[int], pretrained: bool, options: dict[str, Any]) -> ResidualTower:
    # timm passes these three to every entry point; without pretrained weights they mean nothing.
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    if pretrained or options:
        asked = ["pretrained"] * pretrained + sorted(options)
        raise ValueError(f"the residual tower does not know the option(s) {', '.join(asked)}")
    return ResidualTower(widths)


@register_model
def lbutils_residual(pretrained: bool = False, **options: Any) -> ResidualTower:
    """The miniature's tower: widths 32, 64, 128, 256; 2.0 million parameters."""
    return _tower((32, 64, 128, 256), pretrained, options)


@register_model
def lbutils_residual_half(pretrained: bool = False, **options: Any) -> ResidualTower:
    """Half the miniature's widths; 0.5 million parameters."""
    return _tower((16, 32, 64, 128), pretrained, options)


@register_model
def lbutils_residual_tiny(pretrained: bool = False, **options: Any) -> ResidualTower:
    """A quarter of the miniature's widths; 0.1 million parameters."""
    return _tower((8, 16, 32, 64), pretrained, options)


# --------------------------------------------------------------------------- configuration


def model_config(
    vocab_size: int,
    *,
    embed_dim: int = 192,
    width: int = 192,
    heads: int = 4,
    layers: int = 3,
    context_length: int = CONTEXT_LENGTH,
    image_size: int = IMAGE_SIZE,
    tower: str = "lbutils_residual",
) -> dict[str, Any]:
    """open_clip's `model_cfg` of the miniature.

    `vocab_size` is the number of pieces that the tokenizer keeps, `tower` the name under which
    the image tower is registered with timm; `width`, `heads`, `layers` and `context_length` are of
    the causal text transformer.
    """
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "timm_model_name": tower,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": image_size,
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "width": width,
            "heads": heads,
            "layers": layers,
        },
    }


def preprocess_config(image_size: int = IMAGE_SIZE) -> dict[str, Any]:
    """open_clip's `preprocess_cfg` of the miniature: images on white, normalised as CLIP's are."""
    return {
        "size": image_size,
        "mode": "RGB",
        "mean": list(OPENAI_DATASET_MEAN),
        "std": list(OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 255,
    }


# --------------------------------------------------------------------------- text


def always_kept(tokenizer: SimpleTokenizer) -> list[int]:
    """open_clip ids that no cut of the vocabulary may drop, ascending: bytes, start and end."""
    return [*range(BYTE_SYMBOLS), tokenizer.sot_token_id, tokenizer.eot_token_id]


@cache
def _all_pieces() -> SimpleTokenizer:
    """open_clip's own tokenizer, made once a process: its table takes a quarter of a second."""
    return SimpleTokenizer()


class PieceTokenizer:
    """open_clip's BPE tokenizer over a subset of its pieces, with compact ids.

    A piece that is not kept is spelt in its byte-level symbols, which always are, so any Unicode
    text can be tokenized. Compact ids keep the order of open_clip's, hence the end of text still
    has the highest id and open_clip's arg-max pooling holds.

    `pieces` are open_clip ids of the kept pieces, strictly ascending; the compact id of a piece is
    its place among them, and ``sot_token_id`` and ``eot_token_id`` are compact.

    Raises ValueError if the pieces are not ascending, are not open_clip's, or lack a byte-level
    symbol or the start or the end of text.
    """

    def __init__(self, pieces: Iterable[int], context_length: int = CONTEXT_LENGTH):
        self._bpe = _all_pieces()
        self.pieces = tuple(int(piece) for piece in pieces)
        self.context_length = context_length
        if any(a >= b for a, b in pairwise(self.pieces)):
            raise ValueError("the kept BPE pieces must be strictly ascending: sort them")
        self._compact = {piece: i for i, piece in enumerate(self.pieces)}
        missing = [i for i in always_kept(self._bpe) if i not in self._compact]
        if missing or self.pieces[-1] >= self._bpe.vocab_size:
            raise ValueError(
                "the kept BPE pieces must be ids of open_clip's tokenizer with all of "
                f"always_kept() among them; missing: {missing[:5]}"
            )
        self.vocab_size = len(self.pieces)
        self.sot_token_id = self._compact[self._bpe.sot_token_id]
        self.eot_token_id = self._compact[self._bpe.eot_token_id]
        self._spelt: dict[int, list[int]] = {}

    def _spell(self, piece: int) -> list[int]:
        """Compact ids of the byte-level symbols of an open_clip piece that is not kept."""
        if piece not in self._spelt:
            text = self._bpe.decoder[piece]
            symbols = list(text.removesuffix("</w>"))
            if text.endswith("</w>"):
                symbols[-1] += "</w>"
            self._spelt[piece] = [self._compact[self._bpe.encoder[s]] for s in symbols]
        return self._spelt[piece]

    def encode(self, text: str) -> list[int]:
        """Compact ids of a text, without start and end of text, not truncated."""
        ids: list[int] = []
        for piece in self._bpe.encode(text):
            kept = self._compact.get(piece)
            ids.extend(self._spell(piece) if kept is None else (kept,))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of compact ids; a space follows each word."""
        return self._bpe.decode([self.pieces[int(i)] for i in ids])

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """Compact ids (N, context_length), int64, with start and end of text, padded with 0.

        A text that is too long is truncated and still ends with the end of text.
        """
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        tokens = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in enumerate(texts):
            ids = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features (B, D), not normalised, equal to `model.encode_text(tokens)` but cheaper.

    The batch is cut after its longest text (the tower is causal, so nothing before the cut sees
    what is behind it), and the last block computes only the position that is pooled.

    The model is one of `model_config`, with arg-max pooling, a causal mask and a projection matrix;
    the end of text has the highest id of each row of `tokens` ``(B, L)``.
    """
    end = tokens.argmax(dim=1)
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    mask = model.attn_mask[:length, :length]
    *blocks, last = model.transformer.resblocks
    for block in blocks:
        x = block(x, attn_mask=mask)
    rows = torch.arange(len(x), device=x.device)
    keys = last.ln_1(x)
    # One mask row per text and head: each pooled position sees the positions up to itself.
    seen = mask[end].repeat_interleave(last.attn.num_heads, dim=0)[:, None]
    attended = last.attention(keys[rows, end][:, None], keys, keys, attn_mask=seen)
    x = x[rows, end] + last.ls_1(attended[:, 0])
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    return model.ln_final(x) @ model.text_projection


# --------------------------------------------------------------------------- weights in eight bits

# An encoder's folder holds this file in the place of open_clip's own.
EIGHT_BIT_FILE = "open_clip_model_int8.safetensors"
_STEP = ".step"


def to_eight_bits(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with every matrix as int8 and one float32 step a row, the rest as it is.

    The step of a row of ``name``, ``(R,)`` under ``name.step``, is its largest magnitude over 127.
    Filters of convolutions stay: they are few, and image features feel it most.
    """
    packed = {}
    for name, tensor in weights.items():
        if tensor.ndim != 2:
            packed[name] = tensor
            continue
        rows = tensor.float()
        step = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        packed[name] = (rows / step[:, None]).round().to(torch.int8)
        packed[name + _STEP] = step
    return packed


def from_eight_bits(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, float32 where they were packed, of `to_eight_bits`; within half a step.

    Raises ValueError if an int8 tensor has no finite steps, one a row, or a step has no tensor.
    """
    weights = {}
    for name, tensor in packed.items():
        if name.endswith(_STEP):
            if name.removesuffix(_STEP) not in packed:
                raise ValueError(f"{name} belongs to no tensor")
            continue
        if tensor.dtype == torch.int8:
            step = packed.get(name + _STEP)
            rows = tensor.shape[:1] if tensor.ndim == 2 else None
            if step is None or step.shape != rows or not step.isfinite().all():
                raise ValueError(f"{name} needs finite steps, one for each of its rows")
            tensor = tensor.float() * step.float()[:, None]
        weights[name] = tensor
    return weights
