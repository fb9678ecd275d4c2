from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lbutils.data.benchmark import Split
from lbutils.learn.colours import BASIC, colour_evidence, colour_shares, lab, told_colours
from lbutils.learn.knowledge import load_lexicon


class Drawn:
    """Images kept in memory."""

    advice = "draw it again"

    def __init__(self, images):
        self.images = images

    def read(self, image_id):
        stream = io.BytesIO()
        self.images[image_id].save(stream, "PNG")
        return stream.getvalue()

    def stamp(self, image_id):
        return image_id


def split_of(*images):
    source = Drawn({str(i): image for i, image in enumerate(images)})
    n = len(images)
    return Split(tuple(source.images), np.zeros(n, int), ("thing",), (None,) * n, source)


def plain(colour, mode="RGB"):
    return Image.new(mode, (40, 40), colour)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((1, 1, 0), (97.14, -21.55, 94.48)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
)
def test_lab_has_the_usual_values_of_srgb_under_d65(rgb, expected):
    np.testing.assert_allclose(lab(rgb), expected, atol=0.05)


@given(st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=examples(40))
def test_lightness_is_that_of_grays(first, second):
    """L* of grays, by the formula with the older constants, and in their order."""
    grays = np.array([[first] * 3, [second] * 3]) / 255
    values = lab(grays)
    y = np.where(
        grays[:, 0] <= 0.04045, grays[:, 0] / 12.92, ((grays[:, 0] + 0.055) / 1.055) ** 2.4
    )
    expected = np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)
    np.testing.assert_allclose(values[:, 0], expected, atol=0.02)
    np.testing.assert_allclose(values[:, 1:], 0, atol=0.05)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((255, 255, 255), "white"),
        ((10, 10, 10), "black"),
        ((128, 128, 128), "gray"),
        ((220, 20, 20), "red"),
        ((250, 120, 20), "orange"),
        ((250, 230, 40), "yellow"),
        ((30, 160, 40), "green"),
        ((20, 60, 210), "blue"),
        ((120, 30, 150), "purple"),
        ((250, 140, 190), "pink"),
        ((100, 60, 20), "brown"),
    ],
)
def test_plain_images_have_their_colour(colour, name):
    shares = colour_shares(split_of(plain(colour)))
    assert BASIC[int(shares[0].argmax())] == name
    assert shares[0].max() == pytest.approx(1)


def test_only_visible_pixels_count():
    image = plain((0, 0, 0, 0), "RGBA")
    image.paste((20, 60, 210, 255), (0, 0, 20, 40))
    shares = colour_shares(split_of(image, plain((0, 0, 0, 0), "RGBA")))
    assert shares[0, BASIC.index("blue")] > 0.9
    np.testing.assert_allclose(shares[1], 1 / len(BASIC))
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert colour_shares(split_of()).shape == (0, len(BASIC))


def test_half_and_half():
    image = plain((220, 20, 20))
    image.paste((20, 60, 210), (0, 0, 20, 40))
    shares = colour_shares(split_of(image))[0]
    assert shares[BASIC.index("red")] == pytest.approx(0.5, abs=0.05)
    assert shares[BASIC.index("blue")] == pytest.approx(0.5, abs=0.05)


def test_words_tell_colours():
    told = told_colours(["red ball", "Dark RED fruit", "grey"])
    assert told[BASIC.index("red")] == 0.5 and told[BASIC.index("gray")] == 0.25
    assert not told_colours(["redder things", "tall"]).any()


def test_descriptions_of_the_miniature_tell_colours():
    phrases = load_lexicon().told["descriptions"]
    told = [told_colours(own).max() > 0.1 for own in phrases.values()]
    assert np.mean(told) > 0.7


def test_a_name_without_colours_is_neutral_whatever_an_image_shows():
    found = colour_evidence(np.eye(11), np.zeros((1, 11)), floor=0.1)
    np.testing.assert_allclose(found, np.log(1.1))


def test_evidence_equals_its_formula_and_prefers_what_is_told():
    rng = np.random.default_rng(0)
    shown, told = rng.dirichlet(np.ones(11), 5), rng.dirichlet(np.ones(11), 3)
    found = colour_evidence(shown, told, floor=0.2)
    for i in range(5):
        for c in range(3):
            ratio = sum(shown[i, k] / (shown[:, k].mean() + 0.02) * told[c, k] for k in range(11))
            assert found[i, c] == pytest.approx(np.log(ratio + 0.2))
    pure = np.eye(11)
    assert (colour_evidence(pure, pure).argmax(axis=1) == np.arange(11)).all()


@pytest.mark.parametrize(
    ("shown", "told"),
    [(np.ones(11), np.ones((2, 11))), (np.ones((2, 11)), np.ones((2, 3))), (np.ones((0, 11)),) * 2],
)
def test_shapes_are_checked(shown, told):
    with pytest.raises(ValueError, match="do not fit"):
        colour_evidence(shown, told)
