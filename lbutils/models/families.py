"""Image-text models of transformers behind the interface that open_clip's have.

How a model gives one feature an image and one a text follows from the heads it has, not from its
name:

- `Contrastive`: ``get_image_features`` and ``get_text_features`` with a scale or a temperature
  (CLIP, SigLIP, ALIGN, AIMv2, a vision-text dual encoder around DINOv2).
- `FirstTokens`: projections of the first token of either tower (BLIP's image-text head).
- `QueryTokens`: projections of the queries of a Q-Former and of a text's first token (BLIP-2's).

transformers is imported only when a model of it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lbutils.models.text import token_embedding

# Longest text, in tokens, of towers that do not see padding; CLIP's. BERT's own are 512, which
# no caption fills.
CONTEXT_LENGTH = 77
# BLIP and BLIP-2 learn a temperature in pre-training that transformers leaves out of their
# image-text heads; it starts from this one (Li et al. 2022; Li et al. 2023, released code).
TEMPERATURE = 0.07
# Of an image processor's settings, those that say who made it and not what it does.
_MAKERS = ("processor_class", "_processor_class", "feature_extractor_type", "device")


class HubTokenizer:
    """A tokenizer of transformers that pads or truncates every text to ``context_length``."""

    def __init__(self, tokenizer: Any, context_length: int):
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Ids ``(N, context_length)``, int64, as the tokenizer frames a text."""
        found = self.tokenizer(
            [texts] if isinstance(texts, str) else list(texts),
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=context_length or self.context_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return found["input_ids"]


class HubPixels:
    """An image processor of transformers as a function from an image to pixels ``(3, H, W)``.

    Raises ValueError if the processor makes no pixels of one size.

    Attributes
    ----------
    size : (int, int)
        Height and width of the pixels.
    config : dict
        The processor's settings, for cache keys.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        settings = json.loads(processor.to_json_string())
        kept = {key: settings[key] for key in sorted(settings) if key not in _MAKERS}
        self.config: dict[str, Any] = {"processor": type(processor).__name__, **kept}
        crop = bool(getattr(processor, "do_center_crop", False))
        size = getattr(processor, "crop_size" if crop else "size", None)
        try:
            self.size = int(size["height"]), int(size["width"])  # type: ignore[index]
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{type(processor).__name__} makes no pixels of one height and width ({size}): "
                "take a checkpoint of one image size"
            ) from error
        # Only what a processor has can be switched off.
        steps = ("do_resize", "do_center_crop")
        self._off = {step: False for step in steps if getattr(processor, step, None) is not None}

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixels of an image of any size."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def normalised(self, image: Image.Image) -> Tensor:
        """Pixels of an image that has its final size already."""
        found = self.processor(images=image, return_tensors="pt", **self._off)
        return found["pixel_values"][0]


class HubModel(nn.Module):
    """A model of transformers with `encode_image`, `encode_text` and `logit_scale`.

    The class must fit the model (`fits`); the tokenizer is the one that goes with it.

    Attributes
    ----------
    masked : bool
        Whether the text tower is told where padding begins, as its tokenizer declares. Models
        with a bias of the logits never are: theirs pool the last position, padding or not.
    context_length : int
        Longest text in tokens.
    """

    _needs: ClassVar[tuple[str, ...]]  # attributes of a model
    _text_part: ClassVar[str]  # the one that holds the embeddings of tokens and positions

    def __init__(self, model: Any, tokenizer: Any):
        super().__init__()
        self.model = model
        declared = "attention_mask" in tokenizer.model_input_names
        self.masked = declared and not hasattr(model, "logit_bias")
        self._pad = tokenizer.pad_token_id
        # An end of text that doubles as padding is seen once.
        self._own_pads = int(tokenizer("a")["input_ids"][-1] == self._pad)
        lengths = [_positions(getattr(model, self._text_part)), tokenizer.model_max_length]
        self.context_length = min(*lengths, *([CONTEXT_LENGTH] if self.masked else []))

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether a model has what this class needs."""
        return all(hasattr(model, part) for part in cls._needs)

    @property
    def visual(self) -> Any:
        """The image tower, without projection."""
        return self.model.vision_model

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the factor of the cosine similarities."""
        return self._scale()

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to the scaled similarities, or None."""
        return getattr(self.model, "logit_bias", None)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding of the text tower."""
        text = getattr(self.model, self._text_part)
        return token_embedding(text if hasattr(text, "get_input_embeddings") else self.model)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Image features (B, D), not normalised, of pixels (B, 3, H, W)."""
        return self._image(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Text features (B, D), not normalised, of token ids (B, L)."""
        if not self.masked:
            return self._text(ids)
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        last = ((ids != self._pad) * places).amax(dim=1, keepdim=True) + self._own_pads
        return self._text(ids, attention_mask=(places <= last).long())

    def _scale(self) -> Tensor:
        return -torch.tensor(TEMPERATURE).log()

    def _image(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def _text(self, ids: Tensor, **mask: Tensor) -> Tensor:
        raise NotImplementedError


class Contrastive(HubModel):
    """A dual encoder that transformers itself asks for features of either kind."""

    _needs = ("get_image_features", "get_text_features", "vision_model", "text_model")
    _text_part = "text_model"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether the model also has a scale between its features."""
        scaled = hasattr(model, "logit_scale") or hasattr(model, "temperature")
        return scaled and super().fits(model)

    def _scale(self) -> Tensor:
        if hasattr(self.model, "temperature"):
            return -self.model.temperature.log()
        most = getattr(self.model, "max_log_logit_scale", None)
        found = self.model.logit_scale
        return found if most is None else found.clamp(0, most)

    def _image(self, pixels: Tensor) -> Tensor:
        found = self.model.get_image_features(pixel_values=pixels)
        return getattr(found, "pooler_output", found)

    def _text(self, ids: Tensor, **mask: Tensor) -> Tensor:
        found = self.model.get_text_features(input_ids=ids, **mask)
        return getattr(found, "pooler_output", found)


class FirstTokens(HubModel):
    """BLIP's image-text head: the first token of each tower, projected."""

    _needs = ("vision_model", "vision_proj", "text_encoder", "text_proj")
    _text_part = "text_encoder"

    def _image(self, pixels: Tensor) -> Tensor:
        found = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return self.model.vision_proj(found[:, 0])

    def _text(self, ids: Tensor, **mask: Tensor) -> Tensor:
        found = self.model.text_encoder(input_ids=ids, **mask).last_hidden_state
        return self.model.text_proj(found[:, 0])


class QueryTokens(HubModel):
    """BLIP-2's image-text head, an image's feature being the mean over its queries.

    The model itself gives an image one unit feature for each query and takes the largest
    similarity to a text. No single feature does that; the similarity to the mean of the unit
    features is the mean of these similarities, up to one factor an image.
    """

    _needs = ("query_tokens", "qformer", "embeddings", "vision_projection", "text_projection")
    _text_part = "embeddings"

    def _image(self, pixels: Tensor) -> Tensor:
        seen = self.model.vision_model(pixel_values=pixels).last_hidden_state
        found = self.model.qformer(
            query_embeds=self.model.query_tokens.expand(len(seen), -1, -1),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long).to(seen.device),
        ).last_hidden_state
        projection = self.model.vision_projection
        return F.normalize(projection(found.to(projection.weight.dtype)), dim=-1).mean(dim=1)

    def _text(self, ids: Tensor, **mask: Tensor) -> Tensor:
        embedded = self.model.embeddings(input_ids=ids)
        found = self.model.qformer(query_embeds=embedded, query_length=0, **mask)
        projection = self.model.text_projection
        return projection(found.last_hidden_state[:, 0].to(projection.weight.dtype))


KINDS = (Contrastive, FirstTokens, QueryTokens)


def wrap(model: nn.Module, tokenizer: Any) -> tuple[HubModel, HubTokenizer]:
    """A model of transformers and its own tokenizer, as `DualEncoder` takes them.

    Raises ValueError if the model is no dual encoder.
    """
    for kind in KINDS:
        if kind.fits(model):
            wrapped = kind(model, tokenizer)
            return wrapped, HubTokenizer(tokenizer, wrapped.context_length)
    raise ValueError(
        f"{type(model).__name__} gives no features of images and texts in one space: take a "
        "checkpoint with an image-text head"
    )


def read_model(source: str) -> tuple[HubModel, HubTokenizer, HubPixels]:
    """Model, tokenizer and preprocessing of a folder that transformers saved, or of a repository.

    No code of it is run.

    Raises ModuleNotFoundError if transformers is not installed. Raises OSError if a file is missing
    or cannot be downloaded. Raises ValueError if the weights do not fill the model, or it is no
    dual encoder of one image size.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "transformers is not installed: pip install 'transformers>=5,<6'", name=error.name
        ) from error
    own = {"trust_remote_code": False, "local_files_only": Path(source).is_dir()}
    config = transformers.AutoConfig.from_pretrained(source, **own)
    named = next(iter(config.architectures or ()), "AutoModel")
    kind: Any = getattr(transformers, named, None)
    # Among the names in transformers are functions, and classes of other things.
    models = (transformers.PreTrainedModel, transformers.AutoModel)
    known = isinstance(kind, type) and issubclass(kind, models)
    if not known:
        raise ValueError(f"{named!r} among its architectures is no model of transformers")
    model, info = kind.from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        weights_only=True,
        output_loading_info=True,
        **own,
    )
    absent = [*info["missing_keys"], *info["mismatched_keys"]]
    if absent:
        raise ValueError(
            f"{len(absent)} weights are missing, such as {sorted(map(str, absent))[0]}"
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **own)
    pixels = HubPixels(transformers.AutoImageProcessor.from_pretrained(source, **own))
    return *wrap(model, tokenizer), pixels


def _positions(text: nn.Module) -> int:
    """Number of positions that a text tower has embeddings of."""
    ends = ("position_embedding", "position_embeddings")
    found = [
        module.num_embeddings
        for name, module in text.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith(ends)
    ]
    return min(found, default=CONTEXT_LENGTH)
