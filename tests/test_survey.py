"""What the survey's notebooks rest on: attributes, prompts, shifts, temperature, robustness."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import expit, logit, softmax
from scipy.stats import linregress
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from lbutils import load_benchmark
from lbutils.data import shifts
from lbutils.data.benchmark import Split
from lbutils.data.shifts import SHIFTS, one_coloured, shifted
from lbutils.learn.knowledge import Lexicon
from lbutils.measure import metrics
from lbutils.rivals import texts
from lbutils.rivals.attributes import DAP, IAP, attributes

# ---- attributes

PHRASES = {
    "crow": ("black bird", "a bird with wings"),
    "swan": ("white bird",),
    "bear": ("black animal",),
    "sheep": ("white animal",),
    "rook": ("black bird of the fields",),
    "lamb": ("a white animal",),
}
LEXICON = Lexicon({}, {"descriptions": PHRASES}, {})
KNOWN, NEW = ["crow", "swan", "bear", "sheep"], ["rook", "lamb"]


def coloured_kinds(seed=0, images=30):
    """Features in which colour and kind have a direction each; labels of the known classes."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(16, 16)))[0][:4]
    table = attributes(LEXICON, KNOWN, NEW).known
    labels = np.repeat(np.arange(4), images)
    rows = table[labels] @ axes + 0.1 * rng.normal(size=(len(labels), 16))
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1), labels, axes


def test_attributes_are_words_that_two_known_classes_and_a_candidate_share():
    found = attributes(LEXICON, KNOWN, NEW)
    # "wings" describes one known class only, "fields" none, "a" and "the" are no attributes.
    assert found.words == ("animal", "bird", "black", "white")
    assert found.known.tolist() == [[0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert found.candidates.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    with pytest.raises(KeyError, match="crow"):
        attributes(LEXICON, ["crov"], NEW)
    with pytest.raises(ValueError, match="no word describes"):
        attributes(LEXICON, ["crow"], ["lamb"])


@pytest.mark.parametrize("kind", [DAP, IAP])
def test_attributes_name_classes_that_have_no_image(kind):
    images, labels, axes = coloured_kinds()
    table = attributes(LEXICON, KNOWN, NEW)
    fitted = kind().fit(images, labels, table.known)
    wanted = F.normalize(torch.tensor(table.candidates @ axes, dtype=torch.float32), dim=1)
    said = fitted.logits(wanted, table.candidates)
    assert said.argmax(dim=1).tolist() == [0, 1] and said.dtype == torch.float32
    assert kind().fit(images, labels, table.known).logits(wanted, table.candidates).equal(said)


def test_dap_is_a_product_of_plain_regressions():
    images, labels, _ = coloured_kinds()
    table = attributes(LEXICON, KNOWN, NEW)
    fitted = DAP(C=2.0).fit(images, labels, table.known)
    rows, shares = images.numpy(), []
    for k in range(4):
        one = LogisticRegression(C=2.0, max_iter=1000).fit(rows, table.known[labels, k])
        shares.append(one.predict_proba(rows)[:, 1])
    shares = np.stack(shares, axis=1)
    np.testing.assert_allclose(fitted.probabilities(images), shares, atol=1e-6)
    prior = table.known.mean(axis=0)
    for c, own in enumerate(table.candidates):
        odds = np.where(own, shares / prior, (1 - shares) / (1 - prior)).prod(axis=1)
        np.testing.assert_allclose(fitted.logits(images, table.candidates)[:, c], np.log(odds),
                                   atol=1e-3)  # fmt: skip


def test_iap_goes_by_known_classes():
    images, labels, _ = coloured_kinds()
    table = attributes(LEXICON, KNOWN, NEW)
    fitted = IAP(C=2.0).fit(images, labels, table.known)
    plain = LogisticRegression(C=2.0, max_iter=1000).fit(images.numpy(), labels)
    wanted = plain.predict_proba(images.numpy()) @ table.known
    np.testing.assert_allclose(fitted.probabilities(images), wanted, atol=1e-6)


def test_attributes_refuse_what_they_cannot_learn():
    images, labels, _ = coloured_kinds()
    table = attributes(LEXICON, KNOWN, NEW)
    with pytest.raises(ValueError, match="attribute 0 is in all images or in none"):
        DAP().fit(images, labels, np.zeros((4, 1), bool))
    with pytest.raises(ValueError, match="rows of known"):
        DAP().fit(images, labels + 1, table.known)
    with pytest.raises(ValueError, match="fitted on 4"):
        DAP().fit(images, labels, table.known).logits(images, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="C=0"):
        DAP(C=0)
    with pytest.raises(AttributeError, match="fit"):
        DAP().probabilities(images)


# ---- prompts


def test_noise_is_the_same_for_all_names_and_of_both_kinds():
    found = texts.waffled(["crow", "swan"], ["red", "house", "of"], pairs=4, seed=1)
    tails = [
        [prompt.removeprefix(f"{name}, which is ") for prompt in own] for name, own in found.items()
    ]
    assert tails[0] == tails[1] and len(tails[0]) == 8
    for words, letters in zip(tails[0][::2], tails[0][1::2], strict=True):
        assert set(words.split()) < {"red", "house", "of"} and len(words.split()) == 2
        assert [len(part) for part in letters.split()] == [len(part) for part in words.split()]
    assert texts.waffled(["crow"], ["red", "house"], 4, seed=1) != texts.waffled(
        ["crow"], ["red", "house"], 4, seed=2
    )
    with pytest.raises(ValueError, match="two words"):
        texts.waffled(["crow"], ["red"])


def test_descriptions_with_a_name_without_it_and_of_another():
    assert texts.described(["crow"], PHRASES) == {
        "crow": ["crow, which is black bird", "crow, which is a bird with wings"]
    }
    assert texts.described(["swan"], PHRASES, "{phrase}") == {"swan": ["white bird"]}
    swapped = texts.described(["swan"], PHRASES, "{name}, {phrase}", {"swan": "bear"})
    assert swapped == {"swan": ["swan, black animal"]}
    assert texts.informed(["crow"], PHRASES) == {"crow": ["crow, black bird, a bird with wings"]}
    with pytest.raises(KeyError, match="swan"):
        texts.described(["swann"], PHRASES)


def test_a_derangement_leaves_no_name_its_own():
    names = [f"n{i}" for i in range(9)]
    for seed in range(5):
        found = texts.deranged(names, seed)
        assert set(found) == set(found.values()) == set(names)
        assert all(name != other for name, other in found.items())
    assert texts.deranged(names, 0) != texts.deranged(names, 1)
    with pytest.raises(ValueError, match="single name"):
        texts.deranged(["n"])


# ---- shifts


class Painted:
    """A source with one drawing: an opaque red square on nothing, a green dot in it."""

    advice = "paint it again"

    def read(self, image_id):
        pixels = np.zeros((32, 32, 4), np.uint8)
        pixels[8:24, 8:24] = (200, 20, 20, 255)
        pixels[14:18, 14:18] = (20, 200, 20, 255)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    def stamp(self, image_id):
        return "red"


def painted():
    return Split(("a", "b"), np.array([0, 0]), ("square",), (None, None), Painted())


@pytest.mark.parametrize("shift", SHIFTS)
def test_every_shift_changes_pixels_and_key_and_nothing_else(shift):
    plain, moved = painted(), shifted(painted(), shift)
    assert (moved.ids, moved.names, moved.captions) == (plain.ids, plain.names, plain.captions)
    assert moved.labels.tolist() == [0, 0] and moved.key != plain.key
    before, after = plain.image(0), moved.image(0)
    assert after.size == before.size and after.mode == "RGB"
    assert np.asarray(after).tolist() != np.asarray(before).tolist()
    assert np.asarray(moved.image(0)).tolist() == np.asarray(after).tolist()


def test_shifts_do_what_they_say():
    grey, edge, shape = (
        np.asarray(shifted(painted(), name).image(0), int)
        for name in ("grey", "outline", "silhouette")
    )
    assert np.ptp(grey, axis=2).max() == 0 and len(np.unique(grey)) == 3
    inside = np.zeros((32, 32), bool)
    inside[8:24, 8:24] = True
    assert (shape[inside] == 0).all() and (shape[~inside] == 255).all()
    assert (edge[:6] == 255).all() and (edge[11, 11] == 255).all() and edge[7, 10:22].max() < 128
    # Noise is an image's own, and the same each time.
    first, second = (np.asarray(shifted(painted(), "noise").image(i)) for i in (0, 1))
    assert (first != second).mean() > 0.5
    spread = np.asarray(shifted(painted(), "contrast").image(0), int)
    assert np.ptp(spread) < 0.4 * np.ptp(np.asarray(painted().image(0), int))
    with pytest.raises(ValueError, match="silhouette"):
        shifted(painted(), "silhouet")


def test_the_usual_corruptions_are_pillows_and_of_the_stated_strength():
    plain = painted().image(0)
    stream = io.BytesIO()
    plain.save(stream, "JPEG", quality=10)
    wanted = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB"))
    assert np.array_equal(np.asarray(shifted(painted(), "jpeg").image(0)), wanted)
    drawn = np.random.default_rng(0).normal(0.5, 0.0, (64, 64, 4))
    drawn[..., 3] = 1
    noisy = SHIFTS["noise"](
        Image.fromarray((drawn * 255).astype(np.uint8)), np.random.default_rng(1)
    )
    assert np.asarray(noisy, float).std() / 255 == pytest.approx(0.15, abs=0.01)


def test_one_colour_is_told_from_several():
    image = painted().image(0, transparent=True)
    assert not one_coloured(image)
    red = np.array(image)
    red[red[..., 3] > 0] = (200, 20, 20, 255)
    assert one_coloured(Image.fromarray(red))
    assert one_coloured(Image.new("RGBA", (4, 4)))
    # Half-transparent edges of a drawing of one colour are no second colour.
    red[8, :, :] = (90, 90, 90, 100)
    assert one_coloured(Image.fromarray(red))


def test_the_miniature_has_drawings_of_one_colour_and_of_several():
    split = load_benchmark("mini", domains=["Insects"])["Insects"].oop.test
    found = {i: one_coloured(split.image(i, transparent=True)) for i in range(len(split))}
    assert all(found[i] for i in found if split.ids[i].startswith("emojione-monotone:"))
    assert not any(found[i] for i in found if split.ids[i].startswith("noto:"))


def test_the_guide_names_all_shifts():
    for name in SHIFTS:
        assert f'``"{name}"``' in shifts.shifted.__doc__


# ---- measures


def scored(seed=0, images=4000, classes=5, true_temperature=2.5):
    """Logits that are right if divided by a temperature, and labels drawn by what they then say."""
    rng = np.random.default_rng(seed)
    honest = 2 * rng.normal(size=(images, classes))
    shares = softmax(honest, axis=1)
    labels = (shares.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
    return true_temperature * honest, labels


def test_a_temperature_is_found_and_calibrates():
    logits, labels = scored()
    found = metrics.temperature([(logits, labels)])
    assert found == pytest.approx(2.5, rel=0.1)
    assert metrics.ece(logits / found, labels) < 0.05 < metrics.ece(logits, labels)
    # The least of a plain search.
    grid = np.geomspace(0.5, 10, 400)
    losses = [-np.log(softmax(logits / t, axis=1)[range(len(labels)), labels]).mean() for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.02)
    # Vocabularies of other sizes count image by image.
    other = scored(1, 400, 3, 1.0)
    assert metrics.temperature([(logits, labels), other]) == pytest.approx(
        metrics.temperature([other, (logits, labels)])
    )
    with pytest.raises(ValueError, match="no image"):
        metrics.temperature([(np.zeros((0, 3)), np.zeros(0, int))])


def by_sklearn(scored, times=None):
    """Area under the curve of confidence, of one vocabulary, each class counting so often."""
    (values, labels), found = scored, []
    sure, right = softmax(values, axis=1).max(axis=1), values.argmax(axis=1) == labels
    for c in range(values.shape[1]):
        found += [np.flatnonzero(labels == c)] * (1 if times is None else int(times[c]))
    rows = np.concatenate(found)
    return roc_auc_score(right[rows], sure[rows])


def test_the_area_under_the_curve_is_scikit_learns_also_where_classes_are_resampled():
    one, other = scored(0, 300, 4), scored(1, 200, 6)
    found = metrics.confidence_auroc({"a": one, "b": other}, resamples=100, seed=3)
    assert found.mean == pytest.approx((by_sklearn(one) + by_sklearn(other)) / 2)
    rng, draws = np.random.default_rng(3), []
    for given, classes in ((one, 4), (other, 6)):
        times = rng.multinomial(classes, np.full(classes, 1 / classes), size=100)
        draws.append([by_sklearn(given, row) for row in times])
    wanted = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], wanted)
    # Equal confidences are told apart by none; a domain that is right throughout has no pair.
    level = np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 1])
    sure = 9 * np.eye(2)[level[1]], level[1]
    assert metrics.confidence_auroc({"a": level, "b": sure}, resamples=50).mean == 0.5
    assert np.isnan(metrics.confidence_auroc({"b": sure}, resamples=50)).all()


def test_effective_robustness_is_what_lies_over_the_line():
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.2, 0.9, (6, 1)) * np.ones((6, 40))
    others = np.stack([clean, expit(0.7 * logit(clean) - 1)], axis=1)
    method = np.stack([np.full(40, 0.6), np.full(40, 0.5)])
    found = metrics.effective_robustness(method, others)
    line = linregress(logit(clean[:, 0]), logit(others[:, 1, 0]))
    expected = expit(line.intercept + line.slope * logit(0.6))
    assert found.mean == pytest.approx(0.5 - expected) and found.low == pytest.approx(found.high)
    # Three models make a line, and a method that is never right counts as half an image right.
    least = metrics.effective_robustness(np.zeros((2, 40)), others[:3])
    expected = expit(line.intercept + line.slope * logit(1 / 80))
    assert least.mean == pytest.approx(1 / 80 - expected)
    # A model on the line has none, and the interval holds that where classes differ.
    noisy = others + 0.02 * rng.normal(size=others.shape)
    noisy = np.clip(noisy, 0, 1)
    own = metrics.effective_robustness(noisy[0], noisy[1:], seed=1)
    assert own.low < 0 < own.high and own == metrics.effective_robustness(
        noisy[0], noisy[1:], seed=1
    )


@pytest.mark.parametrize(
    ("method", "ordinary", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2, 3)), "3 or more"),
        (np.zeros((2, 3)), np.zeros((3, 2, 4)), "3 or more"),
        (np.full((2, 3), np.nan), np.zeros((3, 2, 3)), "0..1"),
        (np.zeros((2, 3)), np.zeros((3, 2, 3)), "one accuracy"),
    ],
)
def test_effective_robustness_refuses(method, ordinary, message):
    with pytest.raises(ValueError, match=message):
        metrics.effective_robustness(method, ordinary)
