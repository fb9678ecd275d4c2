"""What notebook 10 rests on: scenes, features of their parts, words of other languages."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lbutils import load_benchmark, load_encoder
from lbutils.data.folder import data_dir, read_synonyms, read_translations
from lbutils.data.scenes import scenes
from lbutils.models.patches import encoded, patch_features


@pytest.fixture(scope="module")
def bench():
    return load_benchmark("mini", domains=["Insects", "Creatures"])


@pytest.fixture(scope="module")
def model():
    return load_encoder("mini", device="cpu")


@pytest.mark.parametrize("counts", [(1,), (3,), (1, 1), (2, 2)])
def test_scenes_show_what_they_say(bench, counts):
    split, others = bench["Insects"].ip.test, [bench["Creatures"].ip.test]
    made = scenes(split, others, counts, number=12, side=64, seed=3)
    assert len(made) == 12
    for one in made:
        assert one.image.size == (128, 128) and len(one.labels) == len(counts)
        assert [(one.cells == label).sum() for label in one.labels] == list(counts)
        assert (one.cells < 0).sum() == 4 - sum(counts)
        drawings = [np.asarray(window) for window in one.windows()]
        for place, label in enumerate(one.cells):
            own = [split.image(int(i)) for i in np.flatnonzero(split.labels == label)]
            own = own or [others[0].image(i) for i in range(len(others[0]))]
            assert any(np.array_equal(drawings[place], np.asarray(image)) for image in own)
        # No drawing of a class stands twice.
        shown = [drawings[i].tobytes() for i in np.flatnonzero(one.cells == one.labels[0])]
        assert len(set(shown)) == counts[0]
    again = scenes(split, others, counts, number=12, side=64, seed=3)
    assert [np.asarray(a.image).tobytes() for a in again] == [
        np.asarray(a.image).tobytes() for a in made
    ]
    places = {tuple(one.cells.tolist()) for one in made}
    assert len(places) > 3 or sum(counts) == 4


@pytest.mark.parametrize("counts", [(), (0,), (3, 2), (200,)])
def test_scenes_that_cannot_be_are_refused(bench, counts):
    with pytest.raises(ValueError, match=r"counts=|too few"):
        scenes(bench["Insects"].ip.test, [bench["Creatures"].ip.test], counts)
    with pytest.raises(ValueError, match="too few"):
        scenes(bench["Insects"].ip.test, [], (1,))


def test_one_part_is_the_whole_image(bench, model):
    split = bench["Insects"].ip.test
    drawings = [split.image(i) for i in range(5)]
    whole = encoded(model, drawings)
    assert torch.allclose(patch_features(model, drawings, grid=1)[:, 0], whole, atol=1e-5)
    assert encoded(model, []).shape == (0, model.dim)


def test_parts_are_pooled_from_the_towers_own_map(bench, model):
    one = scenes(bench["Insects"].ip.test, [bench["Creatures"].ip.test], number=1)[0]
    found = patch_features(model, [one.image])
    assert found.shape == (1, 4, model.dim)
    assert torch.allclose(found.norm(dim=2), torch.ones(1, 4), atol=1e-5)
    # By hand, the part at the lower left.
    mean, std = (torch.tensor(model.preprocess_config[k])[:, None, None] for k in ("mean", "std"))
    pixels = torch.tensor(np.asarray(one.image)).permute(2, 0, 1) / 255
    visual = model.model.visual
    with torch.no_grad():
        part = visual.trunk.forward_features(((pixels - mean) / std)[None])[:, :, 4:, :4]
        pooled = torch.cat([part.mean(dim=(2, 3)), part.amax(dim=(2, 3))], dim=1)
        wanted = torch.nn.functional.normalize(visual.head(pooled), dim=1)
    assert torch.allclose(found[0, 2], wanted[0], atol=1e-5)
    # It is nearer to its own window than to the others', though it sees beyond its border.
    near = found[0] @ encoded(model, one.windows()).T
    assert near.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_towers_without_a_map_and_maps_without_such_parts_are_refused(make_encoder, model):
    with pytest.raises(ValueError, match="use windows"):
        patch_features(make_encoder(), [Image.new("RGB", (32, 32))])
    with pytest.raises(ValueError, match="3 x 3 equal parts"):
        patch_features(model, [Image.new("RGB", (128, 128))], grid=3)


def test_other_words_are_those_of_the_miniatures_names():
    names = set(pd.read_csv(data_dir() / "mini" / "concepts.csv")["name"])
    told = read_translations("mini")
    assert set(told) >= {"de", "fr", "fi", "ru", "ja"} and told["de"]["dog"] == "Hund"
    for words in told.values():
        assert set(words) <= names and len(words) > 0.9 * len(names) and all(words.values())
    synonyms = read_synonyms("mini")
    assert set(synonyms) <= names and "bunny" in synonyms["rabbit"]
    assert all(name not in own and len(set(own)) == len(own) for name, own in synonyms.items())
    assert read_translations("laion_beyond") == read_synonyms("laion_beyond") == {}
