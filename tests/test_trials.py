from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from lbutils.data.benchmark import Domain, Split, Subset
from lbutils.learn.namelearner import NameLearner
from lbutils.measure import tasks
from lbutils.measure.joint import MEASURES, joint_scores, value
from lbutils.models.classifier import text_classifier
from lbutils.rivals import RIVALS


@dataclasses.dataclass(frozen=True)
class Colours:
    """Flat images of a colour drawn from their id."""

    root: str = "colours"
    advice: str = "draw it again"

    def stamp(self, image_id):
        return image_id

    def read(self, image_id):
        import io

        rng = np.random.default_rng(list(image_id.encode()))
        held = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(rng.integers(0, 255, 3).tolist())).save(held, "PNG")
        return held.getvalue()


def subset(kind, names):
    def split(part, number):
        ids = tuple(f"{kind} {part} {name} {i}" for name in names for i in range(number))
        labels = np.repeat(np.arange(len(names)), number)
        return Split(ids, labels, names, (None,) * len(ids), Colours())

    return Subset("Shades", kind, names, np.zeros(len(names), bool), split("train", 4),
                  split("val", 0), split("test", 3))  # fmt: skip


@pytest.fixture(scope="module")
def shades():
    ip, oop = subset("ip", ("red", "blue")), subset("oop", ("puce", "ecru", "teal"))
    return {"Shades": Domain("Shades", "colour", ip, oop)}


# The thousand steps of the table say no more here.
PROLIP = dataclasses.replace(RIVALS["ProLIP"], chosen={"steps": 5})


def run(encoder, shades, monkeypatch, methods, **options):
    monkeypatch.setenv("LBUTILS_CACHE", "none")
    given = {"shots": [1, 2], "draws": range(2), "progress": False, "templates": "a {name}"}
    return tasks.run(encoder, shades, methods, **{**given, **options})


def test_every_method_meets_every_task(tiny_encoder, shades, monkeypatch):
    methods = {name: RIVALS[name] for name in ("zero-shot", "prototypes")} | {"ProLIP": PROLIP}
    found = run(tiny_encoder, shades, monkeypatch, methods)
    assert set(found.scores) == {(name, k) for name in methods for k in (1, 2)}
    assert all(set(runs["Shades"]) == {0, 1} for runs in found.scores.values())
    assert len(found.seconds) == 3 * 2 * 2 and (found.seconds["seconds"] > 0).all()
    assert list(found.at(1)) == list(methods)
    # Zero-shot by hand, from images that the trials have not touched.
    domain = shades["Shades"]
    pixels = [
        tiny_encoder.preprocess(part.test.image(i))
        for part in (domain.ip, domain.oop)
        for i in range(len(part.test))
    ]
    names = [*domain.ip.names, *domain.oop.names]
    texts = text_classifier(tiny_encoder, names, "a {name}")
    images = tiny_encoder.encode_images(torch.stack(pixels)).cpu()
    logits = tiny_encoder.logit_scale * images @ texts.T
    labels = np.concatenate([domain.ip.test.labels, domain.oop.test.labels + 2])
    expected = {"Shades": [joint_scores(logits.numpy(), labels, 2)]}
    for measure in ("h_joint", "ausuc", "oop_separate"):
        zero_shot = value({"Shades": [found.scores["zero-shot", 1]["Shades"][0]]}, measure)
        assert zero_shot == pytest.approx(value(expected, measure), abs=1e-6)


@pytest.mark.slow
def test_processes_give_what_one_process_gives(tiny_encoder, shades, monkeypatch):
    methods = {name: RIVALS[name] for name in ("prototypes", "TaskRes")}
    alone = run(tiny_encoder, shades, monkeypatch, methods)
    both = run(tiny_encoder, shades, monkeypatch, methods, workers=2)
    for key, runs in alone.scores.items():
        for draw, scores in runs["Shades"].items():
            for ours, theirs in zip(scores, both.scores[key]["Shades"][draw], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def names(encoder, ip_names, shots, **task):
    return NameLearner(encoder, steps=3, negatives=ip_names, **task)


def many_steps(method, **options):
    def make(encoder, **task):
        row = dataclasses.replace(RIVALS[method], chosen={"steps": 3, **options})
        return row(encoder, **task)

    return make


TOGETHER = {
    "names": names,
    "CoOp": many_steps("CoOp", ctx_init="template", lr=0.05),
    "CoOp, class contexts": many_steps("CoOp, class contexts"),
    "KgCoOp": many_steps("KgCoOp", weight=0.5),
    "CoCoOp": many_steps("CoCoOp", batch_size=2),
}


@pytest.mark.parametrize("method", TOGETHER)
def test_many_tasks_are_learned_together_as_each_would_alone(
    method, tiny_encoder, shades, monkeypatch
):
    sizes, own = [], tasks._MANY
    counted = {
        fit: lambda made, *given, many=many: sizes.append(len(made)) or many(made, *given)
        for fit, many in own.items()
    }
    monkeypatch.setattr(tasks, "_MANY", counted)
    make = TOGETHER[method]
    found = run(tiny_encoder, shades, monkeypatch, {method: make}, draws=range(4))
    assert sum(sizes) == 2 * 4 and max(sizes) > 1
    for task in tasks.tasks(tiny_encoder, shades, [1, 2], range(4)):
        alone = task.score(task.fit(make, tiny_encoder, "a {name}"))
        together = found.scores[method, task.shots]["Shades"][task.draw]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_failing_fit_among_many_is_named(tiny_encoder, shades, monkeypatch):
    def broken(encoder, ip_names, shots, seed, **task):
        rate = 1e38 if seed == 1 else 0.01
        return NameLearner(encoder, optimizer="sgd", lr=rate, steps=6, seed=seed, **task)

    with pytest.raises(RuntimeError, match="broken failed on Shades, 1 shots, draw 1: .*lower lr"):
        run(tiny_encoder, shades, monkeypatch, {"broken": broken}, draws=range(4))


def test_a_failing_fit_is_named(tiny_encoder, shades, monkeypatch):
    def broken(encoder, **task):
        raise ValueError("no luck")

    with pytest.raises(RuntimeError, match="broken failed on Shades, 1 shots, draw 0: no luck"):
        run(tiny_encoder, shades, monkeypatch, {"broken": broken}, shots=[1], draws=[0])


def test_a_bias_is_added_to_the_learned_names_of_the_same_fits(tiny_encoder, shades, monkeypatch):
    made, seen = [], []

    def counted(encoder, **task):
        made.append(RIVALS["prototypes"](encoder, **task))
        own = made[-1].joint_logits
        made[-1].joint_logits = lambda *args: seen.append(own(*args)) or seen[-1]
        return made[-1]

    methods = {"counted": counted, "zero-shot": RIVALS["zero-shot"]}
    options = {"shots": [2], "draws": [0, 1], "biases": {"counted": 1.25}}
    found = run(tiny_encoder, shades, monkeypatch, methods, **options)
    assert len(seen) == 2
    assert set(found.calibrated) == {("counted", 2)}
    assert list(found.at(2, calibrated=True)) == ["counted"] and list(found.at(2)) == list(methods)
    domain = shades["Shades"]
    labels = np.concatenate([domain.ip.test.labels, domain.oop.test.labels + 2])
    for draw, logits in enumerate(seen):
        moved = logits.numpy() + np.array([0, 0, 1.25, 1.25, 1.25], np.float32)
        expected = joint_scores(moved, labels, 2)
        under = found.calibrated["counted", 2]["Shades"][draw]
        plain = found.scores["counted", 2]["Shades"][draw]
        assert (plain.bias, under.bias) == (0, 1.25)
        for measure in MEASURES:
            exact = value({"Shades": [joint_scores(logits.numpy(), labels, 2)]}, measure)
            assert value({"Shades": [plain]}, measure) == pytest.approx(exact)
            exact = value({"Shades": [expected]}, measure)
            assert value({"Shades": [under]}, measure) == pytest.approx(exact, abs=1e-6)
    assert not run(tiny_encoder, shades, monkeypatch, methods, shots=[1], draws=[0]).calibrated


def test_a_bias_that_cannot_be_used_is_refused(tiny_encoder, shades, monkeypatch):
    methods = {"zero-shot": RIVALS["zero-shot"]}
    with pytest.raises(ValueError, match="Did you mean 'zero-shot'"):
        run(tiny_encoder, shades, monkeypatch, methods, biases={"zeroshot": 1.0})
    with pytest.raises(ValueError, match="finite"):
        run(tiny_encoder, shades, monkeypatch, methods, biases={"zero-shot": float("nan")})


def test_features_before_the_projection_only_where_a_method_takes_them(
    tiny_encoder, shades, monkeypatch
):
    towers = []
    plain = tasks._features
    monkeypatch.setattr(
        tasks,
        "_features",
        lambda tower, *rest: towers.append(type(tower).__name__) or plain(tower, *rest),
    )
    for names in (["prototypes"], ["prototypes", "ProLIP"]):
        towers.clear()
        methods = {name: {**RIVALS, "ProLIP": PROLIP}[name] for name in names}
        run(tiny_encoder, shades, monkeypatch, methods, shots=[1], draws=[0])
        assert len(towers) == len(names) and ("BeforeProjection" in towers) == (len(names) == 2)
    (task,) = tasks.tasks(tiny_encoder, shades, [1], [0], before=False)
    with pytest.raises(ValueError, match="before=True"):
        task.fit(RIVALS["ProLIP"], tiny_encoder, "a {name}")


def test_few_domains_are_the_smallest(shades):
    few = Domain("Few", "colour", shades["Shades"].ip, subset("oop", ("puce", "ecru")))
    world = {**shades, "Few": few}
    assert list(tasks.smallest(world, 1)) == ["Few"]
    assert list(tasks.smallest(world)) == list(world)
    with pytest.raises(ValueError, match="most_domains=0 must be at least 1"):
        tasks.smallest(world, 0)
