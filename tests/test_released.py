"""`NameLearner.released` against the same method written plainly from the paper's formulas.

The plain one pads every prompt to the whole context, runs the model's own `encode_text` over all
of them at every step, and shares nothing with the package but the images' features and the order
in which random numbers are drawn.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lbutils.learn.namelearner import NameLearner, both_ways, cross_entropies

HINT = "animal"
FORMS = ("the {}, sleeping", "here is a {} at night", "A {}!", "we saw {}", "{} by the sea, wet")


class Given(nn.Module):
    """A token embedding that gives what it was told to give."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, ids):
        assert ids.shape == self.embeddings.shape[:2]
        return self.embeddings


@dataclasses.dataclass
class Plain:
    """The method of the released code, one idea a function, no attention to speed."""

    encoder: object
    split: object
    views: torch.Tensor
    rows: list  # of each class a Tensor (n, W)
    seed: int = 0
    name_weight: float = 0.5
    caption_weight: float = 0.5
    swap: bool = True
    info_nce: bool = False

    def text_features(self, parts):
        """Features of texts (class, what stands around its name)."""
        tokenizer, model = self.encoder.tokenizer, self.encoder.model
        table = model.token_embedding
        ids, places = [], []
        for label, around in parts:
            own = self.rows[label]
            # As long as the rows, and put where the name stands.
            stand_in = " ".join(["x"] * len(own))
            row = tokenizer([stand_in.join(around).lower()])[0]
            first, own_places = 1, []
            for part in around[:-1]:
                first += len(tokenizer.encode(part))
                assert row[first : first + len(own)].tolist() == tokenizer.encode("x") * len(own)
                own_places.append(first)
                first += len(own)
            ids.append(row)
            places.append(own_places)
        ids = torch.stack(ids)
        embeddings = table(ids)
        lines = []
        for line, (label, _), own_places in zip(embeddings, parts, places, strict=True):
            own = self.rows[label]
            for first in own_places:
                line = torch.cat([line[:first], own, line[first + len(own) :]])
            lines.append(line)
        model.token_embedding = Given(torch.stack(lines))
        try:
            return F.normalize(model.encode_text(ids), dim=-1)
        finally:
            model.token_embedding = table

    def context(self, sample):
        """What stands around the name in a caption, wherever its letters stand."""
        caption, name = self.split.captions[sample], self.split.names[self.split.labels[sample]]
        if name not in caption.lower():
            return "a photo of ", f", a type of {HINT}. {caption}"
        return caption.lower().split(name)

    def loss(self, images, labels, batch, generator):
        scale = self.encoder.model.logit_scale.exp()
        total = 0
        if self.name_weight:
            torch.randint(1, (1,), generator=generator)  # which of the templates: there is one
            classes = range(len(self.rows))
            prompts = [(label, ("a photo of ", f", a type of {HINT}.")) for label in classes]
            scores = scale * images @ self.text_features(prompts).T
            right = labels[:, None] == torch.arange(len(self.rows))
            total = total + self.name_weight * (term(scores, right) + term(scores.T, right.T)) / 2
        if self.caption_weight:
            givers = list(range(len(batch)))
            if self.swap:
                draw = torch.rand(len(batch), len(batch), generator=generator)
                for i in range(len(batch)):
                    others = [j for j in range(len(batch)) if labels[j] != labels[i]]
                    givers[i] = max(others, key=lambda j: float(draw[i, j]))
            parts = []
            for i, giver in enumerate(givers):
                parts.append((int(labels[i]), self.context(int(batch[giver]))))
            scores = scale * images @ self.text_features(parts).T
            if self.info_nce:
                diagonal = torch.arange(len(batch))
                value = F.cross_entropy(scores, diagonal) + F.cross_entropy(scores.T, diagonal)
            else:
                same = labels[:, None] == labels
                value = term(scores, same) + term(scores.T, same.T)
            total = total + self.caption_weight * value / 2
        return total

    def trace(self, steps, epochs, size, lr):
        """Losses of the first steps, and the rows after them."""
        generator = torch.Generator().manual_seed(self.seed)
        labels = torch.tensor(self.split.labels)
        momentum = [torch.zeros_like(rows) for rows in self.rows]
        per_epoch = len(labels) // size
        losses = []
        for step in range(steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                order = torch.randperm(len(labels), generator=generator)
                if epoch % len(self.views) == 0:
                    turns = torch.randperm(len(self.views), generator=generator)
            batch = order[place * size : (place + 1) * size]
            images = self.views[turns[epoch % len(self.views)]][batch]
            self.rows = [rows.detach().requires_grad_() for rows in self.rows]
            loss = self.loss(images, labels[batch], batch, generator)
            rate = 1e-5
            if epoch > 0:  # the epoch after the warm-up has the full rate
                rate = lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
            gradients = torch.autograd.grad(loss, self.rows)
            for i, gradient in enumerate(gradients):
                momentum[i] = 0.9 * momentum[i] + gradient + 5e-4 * self.rows[i].detach()
                self.rows[i] = self.rows[i].detach() - rate * momentum[i]
            losses.append(loss.item())
        return losses, torch.cat(self.rows)


def term(scores, right):
    """``-mean_i log(sum_j softmax(S)_ij M_ij + 1e-10)``."""
    share = scores.exp() / scores.exp().sum(1, keepdim=True)
    return -((share * right).sum(1) + 1e-10).log().mean()


def start(encoder, names, init):
    """Rows that the names start from."""
    if isinstance(init, dict):
        return [init[name] for name in names]
    ids = [encoder.tokenizer.encode(name) for name in names]
    if init == "clip":
        return [encoder.model.token_embedding.weight[own].clone() for own in ids]
    lengths = [len(own) if init == "random" else init for own in ids]
    noise = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(0))
    return list((0.02 * noise).split(lengths))


@pytest.fixture(scope="module")
def eight_shots(captioned_images):
    """Eight captioned images a class, one caption without its name, and views of them."""
    names = captioned_images.names
    labels = np.repeat(np.arange(len(names)), 8)
    captions = [FORMS[i % len(FORMS)].format(names[label]) for i, label in enumerate(labels)]
    captions[3] = "nothing of the kind"
    captions[0] = f"{names[0].title()} and {names[0]}!"  # every mention counts, in any case
    split = dataclasses.replace(captioned_images, labels=labels, captions=tuple(captions))
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(len(names), 32, generator=generator)[labels]
    noise = torch.randn(3, len(labels), 32, generator=generator)
    return split, F.normalize(centres + noise, dim=-1)


def compare(encoder, split, views, changes, steps=20, lr=None, atol=1e-5):
    shots, n_classes = 8, len(split.names)
    size = 4 * n_classes
    epochs = 200 if lr is None else steps // (len(split.labels) // size)
    # A larger rate beside the released one: with that, twenty steps hardly move the rows.
    given = {**changes, **({} if lr is None else {"lr": lr, "epochs": epochs})}
    learner = NameLearner.released(encoder, HINT, shots, n_classes, **given)
    learner.fit(split, views)
    settings = {key: value for key, value in changes.items() if key != "init"}
    rows = start(encoder, split.names, changes.get("init", "clip"))
    plain = Plain(encoder, split, views, rows, **settings)
    losses, ends = plain.trace(steps, epochs, size, size / 128 * 2e-4 if lr is None else lr)
    assert np.abs(np.array(learner.history_[:steps]) - losses).max() < atol
    if changes.get("caption_weight") != 0:
        assert learner.captions_without_name_ == 1
    return learner, ends


CHANGES = {
    "FSNL": {},
    "caption term only": {"name_weight": 0.0},
    "name term only": {"caption_weight": 0.0},
    "no swap, plain InfoNCE": {"name_weight": 0.0, "swap": False, "info_nce": True},
    "random": {"init": "random"},
    "fixed length": {"init": 4},
}


@pytest.mark.parametrize("kind", list(CHANGES))
def test_twenty_steps_equal_the_plain_method(kind, tiny_encoder, eight_shots):
    learner, ends = compare(tiny_encoder, *eight_shots, CHANGES[kind], lr=0.02)
    rows = learner.embeddings_.rows.detach()
    assert torch.allclose(rows, ends, atol=1e-5)
    first = torch.cat(start(tiny_encoder, eight_shots[0].names, CHANGES[kind].get("init", "clip")))
    assert (rows - first).abs().max() > 1e-3, "twenty steps must tell a wrong gradient"


def test_a_language_models_rows_are_a_start(tiny_encoder, eight_shots):
    generator = torch.Generator().manual_seed(7)
    own = {name: 0.1 * torch.randn(2, 32, generator=generator) for name in eight_shots[0].names}
    compare(tiny_encoder, *eight_shots, {"init": own}, lr=0.02)


def test_the_released_rate_and_schedule(tiny_encoder, eight_shots):
    """All constants as released; the run has its 200 epochs, of which twenty steps are compared."""
    learner, _ = compare(tiny_encoder, *eight_shots, {})
    assert len(learner.history_) == 400


def test_the_last_incomplete_batch_is_left_out(tiny_encoder, eight_shots):
    """A class of fewer images: 39 in batches of 20 are one step a pass."""
    split, views = eight_shots
    last = len(split.labels) - 1
    fewer = dataclasses.replace(split, labels=split.labels[:last], captions=split.captions[:last])
    learner, ends = compare(tiny_encoder, fewer, views[:, :last], {}, lr=0.02)
    assert len(learner.history_) == 20
    assert torch.allclose(learner.embeddings_.rows.detach(), ends, atol=1e-5)


def test_without_swaps_the_loss_is_plain_cross_entropy(tiny_encoder, eight_shots):
    """Where a caption is all but ruled out, ``+ 1e-10`` would hide how far it is."""
    logits = torch.tensor([[0.0, 60.0], [0.0, 0.0]])
    own = torch.arange(2)
    # Rows: 60 and log 2; columns: log 2 and 60.
    assert float(cross_entropies(logits, own)) == pytest.approx((60 + math.log(2)) / 2)
    assert float(both_ways(logits, torch.eye(2, dtype=torch.bool))) < 24 / 2 + 1
    split, views = eight_shots
    encoder = copy.copy(tiny_encoder)
    encoder.logit_scale = 10_000.0
    options = {"name_weight": 0.0, "swap": False, "info_nce": True}
    learner = NameLearner.released(encoder, HINT, 8, len(split.names), **options, epochs=1)
    most = 0.5 * -math.log(1e-10)  # what is left of the term, at its weight, with + 1e-10
    assert learner.fit(split, views).history_[0] > most


def test_names_are_found_by_bare_substring(tiny_encoder):
    released = NameLearner.released(tiny_encoder, HINT, 1, 2)
    assert released._cut("An Elephant, an ANT", "Ant") == ["an eleph", ", an ", ""]
    assert released._cut("a bee", "ant") is None
    assert NameLearner(tiny_encoder)._cut("An Elephant, an ANT", "ant") == ("An Elephant, an ", "")
