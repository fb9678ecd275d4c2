"""Rivals that learn the context around fixed names: CoOp, KgCoOp and CoCoOp.

Also the two bases of all few-shot rivals, `FewShotClassifier` and `TrainedClassifier`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lbutils.captions.text import as_names
from lbutils.learn.descent import descend, descend_together, rounds, shared_encoder
from lbutils.models.classifier import (
    FeatureClassifier,
    check_others,
    check_training,
    text_features,
    training_features,
    warn_of_twins,
)
from lbutils.models.prompts import Templates, name_pieces, pieces, resolve, slots
from lbutils.models.text import Codes, Frame, Sheet, text_forward, token_embedding

# Pairs of image and name that go through the text tower at once when CoCoOp classifies.
PAIRS = 2048


@dataclass(eq=False, repr=False)
class FewShotClassifier(FeatureClassifier):
    """Base of the rivals: the arguments that they share, and the check of what they are given.

    Parameters
    ----------
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

    encoder: Any
    _: KW_ONLY
    templates: Templates = "mini"
    hint: str | None = None
    views: int = 4
    clean: bool = True
    seed: int = 0

    _contrasts: ClassVar[bool] = False  # whether one class alone teaches nothing

    def _training(
        self, split: Any, features: Tensor | None, encoder: Any = None, unit: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Checked features ``(V, N, D)`` and labels ``(N,)`` to fit on; sets ``names_``."""
        if features is None:
            source = encoder or self.encoder
            features = training_features(source, split, self.views, self.seed, self.clean)
        checked = check_training(split, features, unit)
        if self._contrasts and len(split.names) < 2:
            raise ValueError("one class alone teaches a cross-entropy nothing: give at least two")
        self.names_ = tuple(split.names)
        return checked


@dataclass(eq=False, repr=False)
class TrainedClassifier(FewShotClassifier):
    """Base of the rivals that descend on a cross-entropy.

    `optimizer`, `lr`, `steps`: see `descent.descend`; all images in a step, in one view.

    Attributes
    ----------
    history_ : list of float
        Loss of each step.
    """

    _: KW_ONLY
    optimizer: str = "adam"
    lr: float = 0.01
    steps: int = 100

    _counts: ClassVar[tuple[str, ...]] = ("steps", "n_ctx", "batch_size", "reduction")
    _contrasts: ClassVar[bool] = True

    def _descend(self, parameters: Sequence[Tensor], losses: Iterator[Tensor]) -> None:
        """Descend on the losses of all steps; sets ``history_``."""
        self.history_ = descend(
            parameters, losses, self.steps, lr=self.lr, optimizer=self.optimizer
        )

    def _in_turn(
        self,
        views: Tensor,
        loss_of: Callable[[Tensor], Tensor],
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Loss of one of the views ``(V, ...)`` after the other, in rounds."""
        for turn in rounds(len(views), generator or torch.Generator().manual_seed(self.seed)):
            yield loss_of(views[turn])


class ContextPrompts:
    """Text features of names behind contexts of their own, differentiable in the contexts.

    Equal to the model's own `encode_text` where a context is that of words.

    `n_ctx` (int): tokens of a context, which stands first. `suffix` (str): text after the name.

    Raises ValueError if the context leaves no room for a name.
    """

    def __init__(self, encoder: Any, n_ctx: int, suffix: str = ""):
        self.tokenizer, self.n_ctx = encoder.tokenizer, n_ctx
        self.frame = Frame.read(encoder.tokenizer)
        if not 1 <= n_ctx < self.frame.room:
            most = self.frame.room - 1
            raise ValueError(f"n_ctx={n_ctx} leaves no room for a name: at most {most}, at least 1")
        self.suffix = pieces(encoder.tokenizer, suffix)
        self.text = text_forward(encoder)

    def sheet(self, names: Sequence[str], contexts: int = 1, own: bool = False) -> Sheet:
        """C names laid out behind each of B contexts; arguments as in `codes`."""
        return self.text.sheet(self.codes(names, len(names) if own else contexts, own))

    def codes(
        self, names: Sequence[str], contexts: int, own: bool = False, at: int = 0
    ) -> list[Codes]:
        """Codes of C names behind each of B contexts, whose rows are numbered from `at` on.

        The end of what is too long is cut off. With `own` there is a context for each name, which
        stands before that one alone.
        """
        room = self.frame.room - self.n_ctx
        names = as_names(names, "class names")
        ids = [name_pieces(self.tokenizer, name) for name in names]
        ends: list[Codes] = [[*[*own, *self.suffix][:room], *self.frame.tail] for own in ids]
        warn_of_twins(names, [tuple(end) for end in ends], self.frame.room)
        rows = range(-1 - at, -1 - at - contexts * self.n_ctx, -1)
        firsts = [rows[i : i + self.n_ctx] for i in range(0, len(rows), self.n_ctx)]
        pairs = zip(firsts, ends, strict=True) if own else product(firsts, ends)
        return [[*self.frame.lead, *first, *end] for first, end in pairs]

    def __call__(self, sheet: Sheet, contexts: Tensor) -> Tensor:
        """Features ``(B, C, D)`` of unit length of a sheet's names behind contexts (B, n, W).

        ``(C, 1, D)`` where each name has a context of its own.
        """
        return self.text(sheet, contexts.flatten(0, 1)).unflatten(0, (len(contexts), -1))


class Turn(NamedTuple):
    """What a step asks for: contexts ``(B, n, W)``, and the loss of the texts behind them."""

    contexts: Tensor
    loss_of: Callable[[Tensor], Tensor]


@dataclass(eq=False, repr=False)
class CoOp(TrainedClassifier):
    """Context optimisation: a learned context, shared by all classes, before fixed names.

    Source: Zhou et al. 2022, "Learning to prompt for vision-language models", IJCV: unified
    context, or class-specific contexts; class token at the end.

    Parameters
    ----------
    n_ctx : int
        Number of learned context tokens; not looked at where `ctx_init` gives words.
    suffix : str
        Text after the name. The authors' is ``"."``.
    ctx_init : str, optional
        Words that the context starts as; ``"template"`` for what stands before the name in the
        longest of `templates`. By default, and where no template has such words, N(0, 0.02).
    class_specific : bool
        Whether each class has a context of its own. Then there is none for names that were not
        learned, which are classified in `templates`, as zero-shot does.
    optimizer, lr, steps
        As in `TrainedClassifier`; `RIVALS` has what was chosen for the miniature. The authors
        take SGD with a learning rate of 0.002 for 50 to 200 epochs.

    Attributes
    ----------
    context_ : Tensor, shape (n_ctx, W), or (C, n_ctx, W)
    """

    n_ctx: int = 4
    _: KW_ONLY
    suffix: str = ""
    ctx_init: str | None = None
    class_specific: bool = False
    lr: float = 0.002
    steps: int = 80

    def fit(self, split: Any, features: Tensor | None = None) -> CoOp:
        """Self, with the context learned.

        `features` ``(V, N, D)`` are of V views of the split's images; computed (and cached) if not
        given. Raises ValueError if there is one class only, or they do not pass `check_training`.
        """
        return fit_many([self], [split], [features])[0]

    def _begun(self, split: Any, features: Tensor | None) -> _Fit:
        """A fit before its first step."""
        images, labels = self._training(split, features)
        generator = torch.Generator().manual_seed(self.seed)
        parameters = self._parameters(images.shape[-1], generator)
        images, labels = images.to(self.encoder.device), labels.to(self.encoder.device)
        turns = self._turns(parameters, images, labels, generator)
        return _Fit(self, images, parameters, turns, next(turns))

    def _parameters(self, width: int, generator: torch.Generator) -> list[Tensor]:
        """What is learned, where the image features have a `width`: contexts ``(B, n, W)``."""
        contexts = len(self.names_) if self.class_specific else 1
        return [self._start(generator, contexts).requires_grad_()]

    def _turns(
        self,
        parameters: list[Tensor],
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Iterator[Turn]:
        """Contexts and losses of all steps, each on one view of the images."""
        for turn in rounds(len(images), generator):

            def loss_of(texts: Tensor, view: Tensor = images[turn]) -> Tensor:
                scaled = self.encoder.logit_scale * view @ texts.T
                return F.cross_entropy(scaled, labels) + self._penalty(texts)

            yield Turn(parameters[0], loss_of)

    @torch.no_grad()
    def _end(self, fit: _Fit) -> None:
        """Set what a fitted method has."""
        context, own = fit.parameters[0].detach(), self.class_specific
        sheet = self._prompts.sheet(self.names_, own=own)
        self.classifier_ = self._prompts(sheet, context).flatten(0, 1).cpu()
        self.context_, self.history_ = context if own else context[0], fit.history

    @torch.no_grad()
    def classifier_for(self, names: Sequence[str]) -> Tensor:
        """Text features ``(K, D)`` of any names behind the learned context, if it is shared."""
        context = self.context_
        if self.class_specific:
            return text_features(self.encoder, names, self.templates, self.hint)
        return self._prompts(self._prompts.sheet(names), context[None])[0].cpu()

    def _penalty(self, texts: Tensor) -> Tensor | float:
        return 0.0

    def _start(self, generator: torch.Generator, contexts: int = 1) -> Tensor:
        """Contexts ``(B, n, W)`` to start from; the prompts are made to their length."""
        weight = token_embedding(self.encoder.model).weight.detach()
        words = pieces(self.encoder.tokenizer, self._words())
        self._prompts = ContextPrompts(self.encoder, len(words) or self.n_ctx, self.suffix)
        if words:
            return weight[words].float().repeat(contexts, 1, 1)
        start = 0.02 * torch.randn(contexts, self.n_ctx, weight.shape[1], generator=generator)
        return start.to(self.encoder.device)

    def _words(self) -> str:
        if self.ctx_init != "template":
            return (self.ctx_init or "").strip()
        before = [slots(one, self.hint).before for one in resolve(self.templates)]
        return max(before, key=len).strip()


@dataclass(eq=False, repr=False)
class KgCoOp(CoOp):
    """CoOp whose class text features are held near those of the hand-made prompts.

    Its loss is CoOp's plus `weight` times the mean over classes of one minus the cosine between
    the text feature behind the learned context and that in `templates` (half their squared
    distance).

    Source: Yao, Zhang and Xu 2023, "Visual-language prompt tuning with knowledge-guided context
    optimization", CVPR, and its released code.

    Parameters
    ----------
    weight : float
        Weight of the distance; 0 is CoOp. The authors' is 8.
    ctx_init : str, optional
        As in `CoOp`; here the context starts as the words of a template, as the authors' does.
    """

    n_ctx: int = field(default=4, kw_only=True)
    weight: float = 8.0
    _: KW_ONLY
    ctx_init: str | None = "template"

    def _penalty(self, texts: Tensor) -> Tensor | float:
        return self.weight * (1 - (texts * self._anchor.to(texts)).sum(dim=1).mean())

    def _begun(self, split: Any, features: Tensor | None) -> _Fit:
        self._anchor = text_features(self.encoder, split.names, self.templates, self.hint)
        return super()._begun(split, features)


@dataclass(eq=False, repr=False)
class CoCoOp(CoOp):
    """Conditional context optimisation: each image shifts the context of its own prompts.

    A network of two layers, with a sixteenth of the image feature's width between them, turns an
    image's feature into a vector that is added to every token of the context. Each image has its
    own text features, so training and prediction cost a text forward per pair of image and name.

    Source: Zhou et al. 2022, "Conditional prompt learning for vision-language models", CVPR.

    Parameters
    ----------
    n_ctx, suffix, ctx_init
        As in `CoOp`; the context starts as the words of a template, as the authors' does.
    optimizer, lr
        The authors take SGD at 0.002; the default is ours, not searched.
    steps : int
        Optimiser steps, so that the cost does not grow with the shots. The authors take 10 epochs.
    batch_size : int
        Images a step, drawn in rounds, in a random view. The authors' is 1.

    Attributes
    ----------
    classifier_ : Tensor, shape (C, D)
        Text features at the mean of the training images' shifts; `logits` does not use it.
    context_, shift_ : Tensor, shape (n_ctx, W) and (W,)
        The context, and the mean shift.
    network_ : list of Tensor
        Weight and bias of the first layer, then of the second.
    """

    _: KW_ONLY
    ctx_init: str | None = "template"
    lr: float = 0.01
    steps: int = 60
    batch_size: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_specific:
            raise ValueError("class_specific=True is for CoOp: here each image shifts one context")

    def _parameters(self, width: int, generator: torch.Generator) -> list[Tensor]:
        """The context ``(n, W)``, and weight and bias of both layers."""
        context = self._start(generator)[0]
        layers = self._layers(width, context.shape[1], generator)
        return [part.to(context.device).requires_grad_() for part in (context, *layers)]

    def _turns(
        self,
        parameters: list[Tensor],
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Iterator[Turn]:
        """Contexts of a batch of images, shifted by each, and its loss, for all steps."""
        context, *network = parameters
        order, turns = rounds(len(labels), generator), rounds(len(images), generator)
        size = min(self.batch_size, len(labels))
        while True:
            rows = torch.tensor([next(order) for _ in range(size)]).to(labels.device)
            batch = images[next(turns)].index_select(0, rows)

            def loss_of(texts: Tensor, batch: Tensor = batch, rows: Tensor = rows) -> Tensor:
                own = texts.unflatten(0, (len(batch), -1))
                scaled = self.encoder.logit_scale * torch.einsum("bd,bcd->bc", batch, own)
                return F.cross_entropy(scaled, labels[rows])

            yield Turn(context + _shift(network, batch)[:, None], loss_of)

    @torch.no_grad()
    def _end(self, fit: _Fit) -> None:
        self.context_, *self.network_ = (part.detach() for part in fit.parameters)
        self.shift_ = _shift(self.network_, fit.images.flatten(0, 1)).mean(dim=0)
        self.history_ = fit.history
        self.classifier_ = self.classifier_for(self.names_)

    @torch.no_grad()
    def classifier_for(self, names: Sequence[str]) -> Tensor:
        """Text features ``(K, D)`` of any names, at the mean shift of the training images."""
        context = self.context_ + self.shift_
        return self._prompts(self._prompts.sheet(names), context[None])[0].cpu()

    def logits(self, images: Any) -> Tensor:
        """Logits ``(N, C)`` float32; each image is compared with its own text features."""
        return self.other_logits(images, self.names_)

    @torch.no_grad()
    def other_logits(self, images: Any, names: Sequence[str]) -> Tensor:
        """Logits ``(N, K)`` of any names, each image compared with its own text features."""
        context, network = self.context_, self.network_
        sheet = cache(lambda contexts: self._prompts.sheet(names, contexts))
        found = []
        for block in self._features(images).to(context.device).split(max(1, PAIRS // len(names))):
            texts = self._prompts(sheet(len(block)), context + _shift(network, block)[:, None])
            found.append(torch.einsum("bd,bcd->bc", block, texts).cpu())
        scaled = torch.cat(found) if found else torch.empty(0, len(names))
        return self.encoder.logit_scale * scaled

    def joint_logits(self, images: Any, others: Sequence[str]) -> Tensor:
        """Logits ``(N, K + C)`` over the joint vocabulary: other names first, then ``names_``."""
        check_others(others, self.names_)
        return self.other_logits(images, [*as_names(others), *self.names_])

    @staticmethod
    def _layers(width: int, out: int, generator: torch.Generator) -> list[Tensor]:
        """Weights and biases of two layers, drawn as ``nn.Linear`` draws them."""
        inner = max(1, width // 16)
        return [
            (torch.rand(shape, generator=generator) * 2 - 1) / given**0.5
            for given, own in ((width, inner), (inner, out))
            for shape in ((own, given), (own,))
        ]


def _shift(network: Sequence[Tensor], images: Tensor) -> Tensor:
    """Vectors (B, W) that images (B, D) add to the context."""
    first, first_bias, second, second_bias = network
    return F.linear(F.linear(images, first, first_bias).relu(), second, second_bias)


@dataclass(eq=False)
class _Fit:
    """A method's fit under way; `turn` is the step that comes next."""

    model: CoOp
    images: Tensor
    parameters: list[Tensor]
    turns: Iterator[Turn]
    turn: Turn
    history: list[float] = field(default_factory=list)

    @property
    def descent(self) -> dict[str, Any]:
        """Arguments of `descend`."""
        return {key: getattr(self.model, key) for key in ("steps", "lr", "optimizer")}

    @property
    def size(self) -> int:
        """Texts of a step."""
        own = 1 if self.model.class_specific else len(self.turn.contexts)
        return own * len(self.model.names_)


def fit_many(
    models: Sequence[CoOp], splits: Sequence[Any], features: Sequence[Tensor | None] | None = None
) -> list[CoOp]:
    """The methods, each fitted to its split as its own `fit` would, in one batch.

    The texts of a step pass through the text tower together. Each method has a loss, and a state
    of the optimiser, of its own; those that share `steps`, `lr` and `optimizer` descend together.

    Parameters
    ----------
    models : sequence of CoOp, KgCoOp or CoCoOp
        Of one encoder; all other settings may differ.
    splits, features : sequence
        Arguments of `CoOp.fit` for each; without `features` they are computed.

    Raises
    ------
    ValueError, RuntimeError
        As `CoOp.fit` does; where a loss is not finite, it may be any method's.
    """
    models = list(models)
    encoder = shared_encoder(models)
    features = [None] * len(models) if features is None else features
    fits = [model._begun(*own) for model, *own in zip(models, splits, features, strict=True)]
    for group in descend_together(encoder, fits, _losses):
        for fit in group:
            fit.model._end(fit)
    return models


def _losses(group: Sequence[_Fit]) -> Iterator[list[Tensor]]:
    """Losses of a group's fits at each step."""
    text = group[0].model._prompts.text
    codes, at = [], 0
    for fit in group:
        model, contexts = fit.model, fit.turn.contexts
        codes += model._prompts.codes(model.names_, len(contexts), model.class_specific, at)
        at += contexts.shape[0] * contexts.shape[1]
    sheet = text.sheet(codes)
    while True:
        rows = torch.cat([fit.turn.contexts.flatten(0, 1) for fit in group])
        texts = text(sheet, rows).split([fit.size for fit in group])
        yield [fit.turn.loss_of(own) for fit, own in zip(group, texts, strict=True)]
        for fit in group:
            fit.turn = next(fit.turns)
