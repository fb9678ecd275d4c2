"""Descent on a loss by gradients: one loop for names, contexts, probes and heads.

The encoder never moves: `frozen` makes sure of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lbutils._util import suggest

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, eps=1e-4),  # Tip-Adapter-F's epsilon
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
MOST = 512  # texts that pass through a text tower at once while learners are fitted together


class Descent(Protocol):
    """A fit under way: its parameters, its arguments of `descend`, and its losses so far."""

    history: list[float]

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What moves."""

    @property
    def descent(self) -> dict[str, Any]:
        """Arguments of `descend`."""

    @property
    def size(self) -> int:
        """Texts of a step."""


T = TypeVar("T", bound=Descent)


def schedule(epoch: int, epochs: int, lr: float, warmup_epochs: int = 0) -> float:
    """Learning rate of an epoch: 1e-5 while warming up, then a cosine that begins at `lr`.

    The cosine would end at 0 after `epochs` of its own, so warming up cuts off its end, as it does
    in the authors' code.
    """
    if epoch < warmup_epochs:
        return 1e-5
    return lr * (1 + np.cos(np.pi * (epoch - warmup_epochs) / epochs)) / 2


def descend(
    parameters: Sequence[Tensor],
    losses: Iterator[Tensor],
    steps: int,
    *,
    lr: float,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    per_epoch: int = 1,
    warmup_epochs: int = 0,
    average: float = 0.0,
) -> list[float]:
    """Loss of each step; the parameters are left where the descent ends.

    Raises ValueError if there is no such optimizer. Raises RuntimeError if a loss, or a parameter
    in the end, is not finite.

    Parameters
    ----------
    losses : iterator of Tensor
        Gives the loss, a scalar, of each step once the step before it is done.
    optimizer, lr, weight_decay
        One of `OPTIMIZERS`, its rate at the start of `schedule`, and the decay of ``"sgd"``
        (that of ``"adamw"`` is 0.01).
    per_epoch : int
        Steps at one rate.
    average : float
        Share of the last steps whose parameters are averaged; 0 takes those of the last step.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(suggest(optimizer, OPTIMIZERS, "optimizer"))
    own = {"weight_decay": weight_decay} if optimizer == "sgd" else {}
    optimiser = OPTIMIZERS[optimizer](parameters, lr=lr, **own)
    sums, kept = [torch.zeros_like(part) for part in parameters], 0
    history: list[float] = []
    for step in range(steps):
        rate = schedule(step // per_epoch, -(-steps // per_epoch), lr, warmup_epochs)
        optimiser.param_groups[0]["lr"] = rate
        loss = next(losses)
        history.append(float(loss.detach()))
        if not math.isfinite(history[-1]):
            raise RuntimeError(
                f"the loss became {history[-1]} at step {step} of {steps}: lower lr (now {lr})"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step >= steps * (1 - average):
            sums, kept = [a + b.detach() for a, b in zip(sums, parameters, strict=True)], kept + 1
    for part, total in zip(parameters, sums, strict=True):
        if kept:
            part.data.copy_(total / kept)
        if not part.isfinite().all():
            raise RuntimeError(
                f"after the last of {steps} steps a number is not finite: lower lr (now {lr})"
            )
    return history


def descend_in_epochs(
    parameter: Tensor,
    count: int,
    losses_of: Callable[[int], Callable[[Tensor], Tensor]],
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    **options: Any,
) -> list[float]:
    """Mean loss of each epoch, all of `count` samples in even batches, shuffled.

    ``losses_of(epoch)(batch)`` is the loss of the samples ``batch``, indices ``(B,)``; `options`
    are those of `descend`, whose rate is constant in an epoch.
    """
    per_epoch = -(-count // batch_size)
    sizes: list[int] = []

    def losses() -> Iterator[Tensor]:
        for epoch in range(epochs):
            loss_of = losses_of(epoch)
            for batch in torch.randperm(count, generator=generator).tensor_split(per_epoch):
                sizes.append(len(batch))
                yield loss_of(batch)

    steps = epochs * per_epoch
    history = descend([parameter], losses(), steps, per_epoch=per_epoch, **options)
    return (np.multiply(history, sizes).reshape(epochs, per_epoch).sum(axis=1) / count).tolist()


def rounds(n: int, generator: torch.Generator) -> Iterator[int]:
    """Numbers below `n` without end: all of them in a random order, drawn anew each round."""
    while True:
        yield from torch.randperm(n, generator=generator).tolist()


def shared_encoder(learners: Sequence[Any]) -> Any:
    """The encoder of all learners of a batch, None without any.

    Raises ValueError if they have several, or one stands twice.
    """
    encoder = learners[0].encoder if learners else None
    if any(learner.encoder is not encoder for learner in learners):
        raise ValueError("learners of one batch must share their encoder: fit them apart")
    if len(set(learners)) < len(learners):
        raise ValueError("a learner stands twice, and would keep its last fit: give one each")
    return encoder


def descend_together(
    encoder: Any,
    fits: Sequence[T],
    losses_of: Callable[[list[T]], Iterator[list[Tensor]]],
    most: int = MOST,
) -> Iterator[list[T]]:
    """Groups of fits, each group once it has descended on the sum of its losses.

    A fit has a loss, and a state of the optimiser, of its own. Together are those whose ``descent``
    is alike, in their order, with at most `most` texts a step, or one fit. ``losses_of(group)``
    gives the losses of each step; the encoder is `frozen`.
    """

    def sums(group: list[T]) -> Iterator[Tensor]:
        for losses in losses_of(group):
            for fit, loss in zip(group, losses, strict=True):
                fit.history.append(float(loss.detach()))
            yield torch.stack(losses).sum()

    for group in _groups(fits, most):
        parameters = [part for fit in group for part in fit.parameters]
        with frozen(encoder.model):
            descend(parameters, sums(group), **group[0].descent)
        yield group


def _groups(fits: Sequence[T], most: int) -> Iterator[list[T]]:
    alike: dict[str, list[T]] = {}
    for fit in fits:
        alike.setdefault(str(fit.descent), []).append(fit)
    for own in alike.values():
        group: list[T] = []
        texts = 0
        for fit in own:
            if group and texts + fit.size > most:
                yield group
                group, texts = [], 0
            group.append(fit)
            texts += fit.size
        yield group


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Context in which no parameter of a model may change, or ask for a gradient.

    Raises RuntimeError on entering, if a parameter is trainable; on leaving, if one was written to.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise RuntimeError(
                f"the encoder must be frozen: {name} asks for a gradient; call "
                "encoder.model.requires_grad_(False)"
            )
    versions = {name: tensor._version for name, tensor in tensors.items()}
    yield
    for name, version in versions.items():
        if tensors[name]._version != version:
            raise RuntimeError(f"the encoder moved while names were learned: {name}")
