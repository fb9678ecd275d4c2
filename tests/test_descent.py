from __future__ import annotations

import itertools
import math

import pytest
import torch

from lbutils.learn import descent
from lbutils.learn.descent import descend, descend_in_epochs, frozen, rounds, schedule


def bowl(weight):
    while True:
        yield (weight - 3).square().sum()


def fall(**options):
    """A weight after descent on a bowl from 1, and the losses."""
    weight = torch.ones(2, requires_grad=True)
    history = descend([weight], bowl(weight), **{"steps": 6, "lr": 0.1, **options})
    return weight.detach(), history


@pytest.mark.parametrize("kind", descent.OPTIMIZERS)
def test_a_descent_is_the_plain_loop(kind):
    plain = {
        "adam": lambda w: torch.optim.Adam([w]),
        "adamw": lambda w: torch.optim.AdamW([w], eps=1e-4, weight_decay=0.01),
        "sgd": lambda w: torch.optim.SGD([w], momentum=0.9, weight_decay=0.3),
    }
    weight = torch.ones(2, requires_grad=True)
    optimiser, losses = plain[kind](weight), []
    for step in range(6):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / 6)) / 2
        loss = (weight - 3).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    found, history = fall(optimizer=kind, weight_decay=0.3)
    assert torch.equal(found, weight.detach()) and history == losses


def test_sgd_decays_only_where_it_is_told_to():
    still = torch.ones(1, requires_grad=True)
    for decay, left in ((0.0, 1.0), (0.5, 0.95)):
        weight = still.detach().clone().requires_grad_()
        descend([weight], iter([0 * weight.sum()]), 1, lr=0.1, optimizer="sgd", weight_decay=decay)
        assert float(weight.detach()) == pytest.approx(left)


def test_schedule():
    """The authors': one epoch at 1e-5, then the full rate, and a cosine that counts from there."""
    rates = [schedule(epoch, 200, 0.1, 1) for epoch in range(200)]
    assert rates[:2] == [1e-5, 0.1]
    for e in range(1, 200):
        assert rates[e] == pytest.approx(0.1 * (1 + math.cos(math.pi * (e - 1) / 200)) / 2)
    assert schedule(100, 200, 0.1) == pytest.approx(0.05)


def test_the_rate_is_constant_in_an_epoch():
    weight = torch.zeros(1, requires_grad=True)
    places = []

    def slope():
        while True:
            places.append(float(weight.detach()))
            yield -weight.sum()

    options = {"optimizer": "sgd", "per_epoch": 2, "warmup_epochs": 1}
    descend([weight], slope(), 6, lr=1.0, **options)
    rates = [schedule(epoch, 3, 1.0, 1) for epoch in (0, 0, 1, 1, 2)]
    assert rates == pytest.approx([1e-5, 1e-5, 1.0, 1.0, 0.75], rel=1e-6)
    moves = [places[i + 1] - places[i] for i in range(5)]
    pace = 0.0
    for rate, move in zip(rates, moves, strict=True):
        pace = 0.9 * pace + 1
        assert move == pytest.approx(rate * pace, rel=1e-4)


@pytest.mark.parametrize(("share", "last"), [(0.0, 1), (0.25, 1), (0.3, 1), (0.5, 2), (1.0, 4)])
def test_the_last_steps_are_averaged(share, last):
    weight, steps = torch.ones(2, requires_grad=True), []

    def losses():
        for loss in bowl(weight):
            steps.append(weight.detach().clone())
            yield loss

    descend([weight], losses(), 4, lr=0.1, average=share)
    end, _ = fall(steps=4)
    expected = torch.stack([*steps[1:], end][-last:]).mean(0)
    assert torch.allclose(weight.detach(), expected, rtol=1e-6)
    assert not torch.allclose(steps[-1], end)


def test_a_descent_stops_where_it_diverges():
    with pytest.raises(RuntimeError, match="at step 1 of 6: lower lr"):
        fall(optimizer="sgd", lr=1e30)
    weight = torch.zeros(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="last of 1 steps"):
        descend([weight], iter([weight.sqrt().sum()]), 1, lr=1.0)
    with pytest.raises(ValueError, match="Did you mean 'sgd'"):
        fall(optimizer="sdg")


def test_epochs_take_every_sample_once_and_are_averaged_by_size():
    weight, seen = torch.zeros(1, requires_grad=True), []

    def losses_of(epoch):
        def loss_of(batch):
            seen.append((epoch, batch.tolist()))
            return weight.sum() * 0 + batch.float().mean()

        return loss_of

    generator = torch.Generator().manual_seed(0)
    options = {"epochs": 2, "batch_size": 3, "generator": generator, "lr": 0.1}
    found = descend_in_epochs(weight, 7, losses_of, **options)
    assert found == pytest.approx([3.0, 3.0])
    for epoch in (0, 1):
        batches = [batch for own, batch in seen if own == epoch]
        assert sorted(i for batch in batches for i in batch) == list(range(7))
        assert [len(batch) for batch in batches] == [3, 2, 2]
    assert seen[0][1] != seen[3][1]
    assert descend_in_epochs(weight, 7, losses_of, **{**options, "epochs": 0}) == []


def test_rounds_take_everything_once():
    drawn = list(itertools.islice(rounds(5, torch.Generator().manual_seed(0)), 15))
    assert [sorted(drawn[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3
    assert drawn[:5] != drawn[5:10] or drawn[5:10] != drawn[10:]


def test_a_moving_or_trainable_model_is_noticed():
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    model.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="must be frozen: weight"), frozen(model):
        pass
    model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="moved while names were learned: bias"), frozen(model):
        model.bias.mul_(1.0)
    with pytest.raises(KeyError), frozen(model):
        raise KeyError("what went wrong is told as it is")
