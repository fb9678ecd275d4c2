"""Rivals that learn the context around fixed names: CoOp, KgCoOp and CoCoOp.

Also what every few-shot rival shares: one check of its training features, one loop of
descent, text features that are kept, and `ContextPrompts`, a text forward that computes a context
once for all the names behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbutils.captions.text import as_names
from lbutils.learn.namelearner import Frozen, schedule
from lbutils.models.classifier import (
    FeatureClassifier,
    check_training,
    text_features,
    training_features,
    warn_of_twins,
)
from lbutils.models.names import NameEmbeddings
from lbutils.models.prompts import encode_slots, pieces, resolve, slots
from lbutils.models.text import CausalText, Frame, text_forward

# Pairs of image and name that go through the text tower at once when CoCoOp classifies.
PAIRS = 2048
# Names in a sequence: attention costs its square, a context of its own a few tokens.
LINE = 64


class FewShotClassifier(FeatureClassifier):
    """Base of the rivals: the arguments that they share, and the check of what they are given.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    templates : str or sequence of str
        A template set, one template, or several, for the text features of names.
    hint : str, optional
        Superclass for templates with a ``{hint}``.
    views : int
        Augmented views of each image, where `fit` computes the features itself.
    clean : bool
        Whether the images as they are count as a view too.
    seed : int
        Seed of the views and of whatever the method draws.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        templates: str | Sequence[str] = "mini",
        hint: str | None = None,
        views: int = 4,
        clean: bool = True,
        seed: int = 0,
    ):
        self.encoder, self.templates, self.hint = encoder, templates, hint
        self.views, self.clean, self.seed = views, clean, seed

    def _training(self, split: Any, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Checked features ``(V, N, D)`` and labels ``(N,)`` to fit on."""
        if features is None:
            features = training_features(self.encoder, split, self.views, self.seed, self.clean)
        checked = check_training(split, features)
        self.names_ = tuple(split.names)
        return checked

    def _needs_fit(self, attribute: str) -> None:
        if not hasattr(self, attribute):
            raise RuntimeError(f"this {type(self).__name__} is not fitted yet: call fit first")


def two_classes(names: Sequence[str]) -> None:
    """Nothing; a method that minimises a cross-entropy calls it before it trains.

    Raises
    ------
    ValueError
        If there is one class only, whose cross-entropy is 0 whatever is learned.
    """
    if len(names) < 2:
        raise ValueError("one class alone teaches a cross-entropy nothing: give at least two")


def rounds(n: int, generator: torch.Generator) -> Iterator[int]:
    """Numbers below `n` without end: all of them in a random order, drawn anew each round."""
    while True:
        yield from torch.randperm(n, generator=generator).tolist()


def descend(
    parameters: Sequence[Tensor],
    objective: Callable[[], Tensor],
    *,
    optimizer: str = "adam",
    lr: float,
    steps: int,
) -> list[float]:
    """Loss of each step of a descent on an objective; the parameters end where it ends.

    Parameters
    ----------
    parameters : sequence of Tensor
        What moves.
    objective : callable
        Returns the loss, of other images at each call if it likes.
    optimizer : "adam", "adamw" or "sgd"
        Adam; AdamW with decay 0.01 and epsilon 1e-4 (Tip-Adapter-F's); SGD with momentum 0.9.
    lr : float
        Learning rate at the start of a cosine down to 0.
    steps : int
        Number of steps.

    Raises
    ------
    ValueError
        If there is no such optimizer, or there are no steps.
    RuntimeError
        If the loss stops being finite: the step is named.
    """
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(parameters, lr=lr),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=lr, eps=1e-4),
        "sgd": lambda: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    }
    if optimizer not in makers:
        raise ValueError(f"optimizer={optimizer!r}: choose one of {', '.join(makers)}")
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1 is needed")
    optimiser = makers[optimizer]()
    history: list[float] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, steps, lr)
        loss = objective()
        history.append(float(loss.detach()))
        if not math.isfinite(history[-1]):
            raise RuntimeError(f"the loss is {history[-1]} at step {step}: try lr below {lr}")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return history


@dataclass
class _Line:
    """C names behind one context, in one sequence of P + T tokens; none sees another's."""

    fixed: Tensor  # embeddings of the names' tokens, with positions (1, T, W)
    ends: Tensor  # ends of text among the P + T (C,)
    mask: Tensor  # additive (P + T, P + T)


class ContextPrompts:
    """Text features of names behind contexts of their own, differentiable in the contexts.

    Towers with a causal mask take a context and the names behind it as one sequence, in which no
    name sees another, so that the context is computed once; their last block computes ends of
    text only. Other towers take whole prompts. Both equal the model's own `encode_text` where a
    context is that of words.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    n_ctx : int
        Tokens of a context, which stands first.
    suffix : str
        Text after the name.

    Raises
    ------
    ValueError
        If the context leaves no room for a name.
    """

    def __init__(self, encoder: Any, n_ctx: int, suffix: str = ""):
        self.encoder, self.n_ctx = encoder, n_ctx
        self.frame = Frame.of(encoder)
        if not 1 <= n_ctx < self.frame.room:
            most = self.frame.room - 1
            raise ValueError(f"n_ctx={n_ctx} leaves no room for a name: at most {most}, at least 1")
        self.suffix = pieces(encoder.tokenizer, suffix)
        self.text = text_forward(encoder)
        self.width = int(self.text.width)
        self.tower = getattr(encoder.model, "text", encoder.model)
        self.causal = isinstance(self.text, CausalText) and bool(
            self.tower.transformer.resblocks[0].attn.batch_first
        )

    def layout(self, names: Sequence[str]) -> Any:
        """Names laid out for a call; the end of what is too long is cut off."""
        room = self.frame.room - self.n_ctx
        names = as_names(names, "class names")
        ids = [encode_slots(self.encoder.tokenizer, "", name, "")[1] for name in names]
        codes = [[*[*name, *self.suffix][:room], *self.frame.tail] for name in ids]
        warn_of_twins(names, [tuple(code) for code in codes], self.frame.room)
        if not self.causal:
            return codes
        return [self._line(codes[i : i + LINE]) for i in range(0, len(codes), LINE)]

    def __call__(self, layout: Any, contexts: Tensor) -> Tensor:
        """Features ``(B, C, D)`` of unit length of C names behind each of B contexts (B, n, W)."""
        if not self.causal:
            return self._whole(layout, contexts)
        head = self._head(contexts)
        return torch.cat([self._forward(line, head) for line in layout], dim=1)

    def _forward(self, line: _Line, head: Tensor) -> Tensor:
        *blocks, last = self.tower.transformer.resblocks
        x = torch.cat([head, line.fixed.expand(len(head), -1, -1)], dim=1)
        for block in blocks:
            x = block(x, attn_mask=line.mask)
        seen = last.ln_1(x)
        asked = seen.index_select(1, line.ends)
        found = last.attention(asked, seen, seen, attn_mask=line.mask[line.ends])
        x = x.index_select(1, line.ends) + last.ls_1(found)
        x = self.tower.ln_final(x + last.ls_2(last.mlp(last.ln_2(x))))
        projection = self.tower.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return F.normalize(x.float(), dim=-1)

    def _whole(self, codes: list[list[int]], contexts: Tensor) -> Tensor:
        numbers = [range(b * self.n_ctx, (b + 1) * self.n_ctx) for b in range(len(contexts))]
        prompts = [
            [*self.frame.lead, *(-1 - row for row in rows), *own]
            for rows in numbers
            for own in codes
        ]
        features = self.text(self.text.sheet(prompts), contexts.flatten(0, 1))
        return features.unflatten(0, (len(contexts), len(codes)))

    def _line(self, codes: list[list[int]]) -> _Line:
        first = len(self.frame.lead) + self.n_ctx
        ids = torch.tensor([piece for own in codes for piece in own])
        places = torch.tensor([first + i for own in codes for i in range(len(own))])
        lengths = torch.tensor([len(own) for own in codes])
        owners = torch.arange(len(codes)).repeat_interleave(lengths)
        owners = torch.cat([torch.full((first,), -1), owners])
        mine = (owners == owners[:, None]) | (owners == -1)
        mask = torch.zeros(mine.shape).masked_fill_(~mine.tril(), float("-inf"))
        where = self.tower.positional_embedding
        return _Line(
            fixed=self._embed(ids, places)[None],
            ends=(first + lengths.cumsum(0) - 1).to(where.device),
            mask=mask.to(where.device, where.dtype),
        )

    @torch.no_grad()
    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        where = self.tower.positional_embedding
        words = self.tower.token_embedding(ids.to(where.device)).to(where.dtype)
        return words + where[positions.to(where.device)]

    def _head(self, contexts: Tensor) -> Tensor:
        """Embeddings (B, P, W) of start of text and context."""
        lead = torch.tensor(self.frame.lead)
        start = self._embed(lead, torch.arange(len(lead))).expand(len(contexts), -1, -1)
        where = self.tower.positional_embedding[len(lead) : len(lead) + self.n_ctx]
        return torch.cat([start, contexts.to(where.dtype) + where], dim=1)


class CoOp(FewShotClassifier):
    """Context optimisation: one learned context, shared by all classes, before fixed names.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    n_ctx : int
        Number of learned context tokens; not looked at where `ctx_init` gives words.
    suffix : str
        Text after the name. The authors' is ``"."``.
    ctx_init : str, optional
        Words that the context starts as; ``"template"`` for what stands before the name in the
        longest of `templates`. By default, and where no template has such words, N(0, 0.02).
    optimizer : "adam", "adamw" or "sgd"
        See `descend`. The authors take SGD with a learning rate of 0.002.
    lr, steps
        Learning rate at the start of a cosine, and steps, all images in each. Their defaults
        are chosen on IP classes (``data/mini/selection.csv``); the authors train 50 to 200
        epochs.
    **common
        ``templates``, ``hint``, ``views``, ``clean`` and ``seed`` of `FewShotClassifier`.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
    names_ : tuple of str
    context_ : Tensor, shape (n_ctx, W)
    history_ : list of float
        Loss of each step.

    Notes
    -----
    Source: Zhou et al. 2022, "Learning to prompt for vision-language models", IJCV: unified
    context, class token at the end.
    """

    def __init__(
        self,
        encoder: Any,
        n_ctx: int = 4,
        *,
        suffix: str = "",
        ctx_init: str | None = None,
        optimizer: str = "adam",
        lr: float = 0.002,
        steps: int = 80,
        **common: Any,
    ):
        super().__init__(encoder, **common)
        if n_ctx < 1 or steps < 1:
            raise ValueError("n_ctx and steps must be at least 1")
        self.n_ctx, self.suffix, self.ctx_init = n_ctx, suffix, ctx_init
        self.optimizer, self.lr, self.steps = optimizer, lr, steps

    def fit(self, split: Any, features: Tensor | None = None) -> CoOp:
        """Self, with the context learned.

        Parameters
        ----------
        split : Split
            Training images with labels and class names.
        features : Tensor, shape (V, N, D), optional
            Features of V views of the images; computed (and cached) if not given.

        Raises
        ------
        ValueError
            If there is one class only, or the features do not pass `check_training`.
        """
        images, labels = self._training(split, features)
        two_classes(self.names_)
        generator = torch.Generator().manual_seed(self.seed)
        context = self._start(generator).requires_grad_()
        layout = self._prompts.layout(self.names_)
        labels = labels.to(self.encoder.device)

        turns = rounds(len(images), generator)
        images = images.to(self.encoder.device)

        def objective() -> Tensor:
            texts = self._prompts(layout, context[None])[0]
            scaled = self.encoder.logit_scale * images[next(turns)] @ texts.T
            return F.cross_entropy(scaled, labels) + self._penalty(texts)

        descent: dict[str, Any] = {"optimizer": self.optimizer, "lr": self.lr, "steps": self.steps}
        with Frozen(self.encoder.model):
            self.history_ = descend([context], objective, **descent)
        self.context_ = context.detach()
        self.classifier_ = self.classifier_for(self.names_)
        return self

    @torch.no_grad()
    def classifier_for(self, names: Sequence[str]) -> Tensor:
        """Text features ``(K, D)`` of any names behind the learned context.

        Raises
        ------
        RuntimeError
            If `fit` has not been called.
        """
        self._needs_fit("context_")
        return self._prompts(self._prompts.layout(names), self.context_[None])[0].cpu()

    def _penalty(self, texts: Tensor) -> Tensor | float:
        return 0.0

    def _start(self, generator: torch.Generator) -> Tensor:
        """Context ``(n, W)`` to start from; the prompts are made to its length."""
        words = self._words()
        if words:
            start = NameEmbeddings(self.encoder, [words], "{name}").rows.detach().clone()
            self._prompts = ContextPrompts(self.encoder, len(start), self.suffix)
            return start
        self._prompts = ContextPrompts(self.encoder, self.n_ctx, self.suffix)
        start = 0.02 * torch.randn(self.n_ctx, self._prompts.width, generator=generator)
        return start.to(self.encoder.device)

    def _words(self) -> str:
        if self.ctx_init != "template":
            return (self.ctx_init or "").strip()
        before = [slots(one, self.hint).before for one in resolve(self.templates)]
        return max(before, key=len).strip()


class KgCoOp(CoOp):
    """CoOp whose class text features are held near those of the hand-made prompts.

    Its loss is CoOp's plus `weight` times the mean over classes of one minus the cosine between
    the text feature behind the learned context and that in `templates` (half their squared
    distance).

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    weight : float
        Weight of the distance; 0 is CoOp. The authors' is 8.
    ctx_init : str, optional
        As in `CoOp`; here the context starts as the words of a template, as the authors' does.
    **options
        Arguments of `CoOp`.

    Notes
    -----
    Source: Yao, Zhang and Xu 2023, "Visual-language prompt tuning with knowledge-guided context
    optimization", CVPR, and its released code.
    """

    def __init__(
        self,
        encoder: Any,
        weight: float = 8.0,
        *,
        ctx_init: str | None = "template",
        **options: Any,
    ):
        super().__init__(encoder, ctx_init=ctx_init, **options)
        if weight < 0:
            raise ValueError(f"weight={weight} must not be negative")
        self.weight = weight

    def _penalty(self, texts: Tensor) -> Tensor | float:
        return self.weight * (1 - (texts * self._anchor.to(texts)).sum(dim=1).mean())

    def _training(self, split: Any, features: Tensor | None) -> tuple[Tensor, Tensor]:
        checked = super()._training(split, features)
        self._anchor = text_features(self.encoder, self.names_, self.templates, self.hint)
        return checked


class CoCoOp(CoOp):
    """Conditional context optimisation: each image shifts the context of its own prompts.

    A network of two layers, with a sixteenth of the image feature's width between them, turns an
    image's feature into a vector that is added to every token of the context. Each image has its
    own text features, so training and prediction cost a text forward per pair of image and name.

    Parameters
    ----------
    encoder : DualEncoder
        The frozen image-text model.
    n_ctx, suffix, ctx_init
        As in `CoOp`; the context starts as the words of a template, as the authors' does.
    optimizer, lr
        See `descend`. The authors take SGD at 0.002; the default is ours, not searched.
    steps : int
        Optimiser steps, so that the cost does not grow with the shots. The authors take 10 epochs.
    batch_size : int
        Images a step, drawn in rounds, in a random view. The authors' is 1.
    **common
        As in `CoOp`.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Text features at the mean of the training images' shifts; `logits` does not use it.
    names_ : tuple of str
    context_, shift_ : Tensor, shape (n_ctx, W) and (W,)
        The context, and the mean shift.
    network_ : list of Tensor
        Weight and bias of the first layer, then of the second.
    history_ : list of float

    Notes
    -----
    Source: Zhou et al. 2022, "Conditional prompt learning for vision-language models", CVPR.
    """

    def __init__(
        self,
        encoder: Any,
        n_ctx: int = 4,
        *,
        ctx_init: str | None = "template",
        optimizer: str = "adam",
        lr: float = 0.01,
        steps: int = 60,
        batch_size: int = 2,
        **common: Any,
    ):
        options: dict[str, Any] = {"ctx_init": ctx_init, "optimizer": optimizer, "lr": lr}
        super().__init__(encoder, n_ctx, steps=steps, **options, **common)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1 is needed")
        self.batch_size = batch_size

    def fit(self, split: Any, features: Tensor | None = None) -> CoCoOp:
        """Self, with context and network learned; arguments as in `CoOp.fit`."""
        images, labels = self._training(split, features)
        two_classes(self.names_)
        device = self.encoder.device
        generator = torch.Generator().manual_seed(self.seed)
        context = self._start(generator).requires_grad_()
        network = [part.to(device).requires_grad_() for part in self._layers(images, generator)]
        layout = self._prompts.layout(self.names_)
        order, turns = rounds(len(labels), generator), rounds(len(images), generator)
        size = min(self.batch_size, len(labels))

        def objective() -> Tensor:
            rows = torch.tensor([next(order) for _ in range(size)])
            view = images[next(turns), rows].to(device)
            texts = self._prompts(layout, context + _shift(network, view)[:, None])
            scaled = self.encoder.logit_scale * torch.einsum("bd,bcd->bc", view, texts)
            return F.cross_entropy(scaled, labels[rows].to(device))

        descent: dict[str, Any] = {
            "optimizer": self.optimizer,
            "lr": self.lr,
            "steps": self.steps,
        }
        with Frozen(self.encoder.model):
            self.history_ = descend([context, *network], objective, **descent)
        self.context_, self.network_ = context.detach(), [part.detach() for part in network]
        self.shift_ = _shift(self.network_, images.flatten(0, 1).to(device)).mean(dim=0)
        self.classifier_ = self.classifier_for(self.names_)
        return self

    @torch.no_grad()
    def classifier_for(self, names: Sequence[str]) -> Tensor:
        """Text features ``(K, D)`` of any names, at the mean shift of the training images."""
        self._needs_fit("shift_")
        context = self.context_ + self.shift_
        return self._prompts(self._prompts.layout(names), context[None])[0].cpu()

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` float32; each image is compared with its own text features."""
        self._needs_fit("network_")
        return self.other_logits(images, self.names_)

    @torch.no_grad()
    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of any names, each image compared with its own text features."""
        self._needs_fit("network_")
        features = self._features(images).float().to(self.encoder.device)
        layout = self._prompts.layout(names)
        found = []
        for block in features.split(max(1, PAIRS // len(names))):
            texts = self._prompts(layout, self.context_ + _shift(self.network_, block)[:, None])
            found.append(torch.einsum("bd,bcd->bc", block, texts).cpu())
        scaled = torch.cat(found) if found else torch.empty(0, len(names))
        return self.encoder.logit_scale * scaled

    def joint_logits(self, images: Any, others: Sequence[str]) -> Tensor:
        """Logits ``(N, K + C)`` over the joint vocabulary: other names first, then ``names_``."""
        self._needs_fit("network_")
        return self.other_logits(images, [*as_names(others, "other names"), *self.names_])

    def _layers(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Weights and biases of two layers, drawn as ``nn.Linear`` draws them."""
        inner = max(1, images.shape[-1] // 16)
        found = []
        for given, out in ((images.shape[-1], inner), (inner, self._prompts.width)):
            for shape in ((out, given), (out,)):
                drawn = torch.rand(shape, generator=generator) * 2 - 1
                found.append(drawn / given**0.5)
        return found


def _shift(network: Sequence[Tensor], images: Tensor) -> Tensor:
    """Vectors (B, W) that images (B, D) add to the context."""
    first, first_bias, second, second_bias = network
    return F.linear(F.linear(images, first, first_bias).relu(), second, second_bias)
