"""Cached features: exact, resumable, shared, and never taken from a damaged file."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lbutils import features
from lbutils.features import image_features


class Pictures:
    """A split of random images, which counts how often one is opened."""

    def __init__(self, ids, salt=""):
        self.ids = tuple(ids)
        self.salt = salt
        self.opened = []

    def __len__(self):
        return len(self.ids)

    def image(self, index):
        self.opened.append(index)
        digest = hashlib.sha256(f"{self.salt}{self.ids[index]}".encode()).digest()
        draw = np.random.default_rng(list(digest))
        return Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))

    @property
    def key(self):
        return hashlib.sha256(repr((self.salt, self.ids)).encode()).hexdigest()


class Pixels:
    """An encoder whose features are the normalised pixels."""

    fingerprint = "weights"
    dim = 192

    def __init__(self):
        self.preprocess_config = {"size": 8}
        self.augment_config = {"crop_scale": [0.5, 1.0]}

    def preprocess(self, image):
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255

    def augment(self, image):
        return self.preprocess(image) + torch.rand(1)

    def encode_images(self, pixels):
        return torch.nn.functional.normalize(pixels.flatten(1), dim=-1)


@pytest.fixture
def encoder():
    return Pixels()


@pytest.fixture
def pictures():
    return Pictures(f"image {i}" for i in range(10))


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 4)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_features_are_those_of_the_encoder_in_order(encoder, pictures, tmp_path, batch_size):
    found = image_features(encoder, pictures, cache=tmp_path, batch_size=batch_size)
    images = [encoder.preprocess(pictures.image(i)) for i in range(10)]
    assert torch.equal(found, encoder.encode_images(torch.stack(images)))
    pictures.opened.clear()
    again = image_features(encoder, pictures, cache=tmp_path)
    assert torch.equal(again, found) and again.dtype == torch.float32
    assert pictures.opened == []
    assert len(files(tmp_path)) == 1


def test_views_differ_and_depend_on_seed_and_image_alone(encoder, pictures):
    views = image_features(encoder, pictures, views=3, seed=5, cache=False)
    assert views.shape == (3, 10, 192)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 3
    state = torch.get_rng_state()
    few = Pictures(["image 7", "image 2"])
    other_split = image_features(encoder, few, views=2, seed=5, cache=False)
    assert torch.equal(other_split, views[:2][:, [7, 2]])
    assert torch.equal(torch.get_rng_state(), state)
    other_seed = image_features(encoder, few, views=2, seed=6, cache=False)
    assert not torch.equal(other_seed, other_split)


def test_views_and_cache(encoder, pictures, tmp_path):
    first = image_features(encoder, pictures, views=2, cache=tmp_path)
    pictures.opened.clear()
    assert torch.equal(image_features(encoder, pictures, views=2, cache=tmp_path), first)
    assert pictures.opened == []


@pytest.mark.parametrize("views", [0, 2])
def test_an_interrupted_extraction_goes_on(encoder, pictures, tmp_path, views):
    image = pictures.image

    def dying(index):
        if index == 9:
            raise InterruptedError("killed")
        return image(index)

    pictures.image = dying
    with pytest.raises(InterruptedError):
        image_features(encoder, pictures, views=views, cache=tmp_path, batch_size=2)
    assert len(files(tmp_path)) == 2
    pictures.image = image
    pictures.opened.clear()
    found = image_features(encoder, pictures, views=views, cache=tmp_path)
    assert sorted(pictures.opened) == [8, 9]
    assert len(files(tmp_path)) == 1
    assert torch.equal(found, image_features(encoder, pictures, views=views, cache=False))


def test_everything_that_decides_the_features_is_in_the_key(encoder, pictures, tmp_path):
    def written(encoder, pictures, **options):
        image_features(encoder, pictures, cache=tmp_path, **options)
        return len(files(tmp_path))

    other_weights, other_size, other_crop = Pixels(), Pixels(), Pixels()
    other_weights.fingerprint = "other weights"
    other_size.preprocess_config = {"size": 9}
    other_crop.augment_config = {"crop_scale": [0.08, 1.0]}
    assert written(encoder, pictures) == 1
    assert written(encoder, pictures, seed=3) == 1
    assert written(other_weights, pictures) == 2
    assert written(other_size, pictures) == 3
    assert written(other_crop, pictures) == 3
    assert written(encoder, Pictures(pictures.ids, salt="other content")) == 4
    assert written(encoder, Pictures(pictures.ids[::-1])) == 5
    assert written(encoder, pictures, views=1) == 6
    assert written(encoder, pictures, views=2) == 7
    assert written(encoder, pictures, views=1, seed=1) == 8
    assert written(other_crop, pictures, views=1) == 9


def whole(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_named(encoder, pictures, tmp_path, kept):
    image_features(encoder, pictures, cache=tmp_path)
    path = whole(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path.name} is truncated or corrupt.*delete it"):
        image_features(encoder, pictures, cache=tmp_path)
    path.unlink()
    assert len(image_features(encoder, pictures, cache=tmp_path)) == 10


def test_a_flipped_bit_is_noticed(encoder, pictures, tmp_path):
    image_features(encoder, pictures, cache=tmp_path)
    data = bytearray(whole(tmp_path).read_bytes())
    data[-10] ^= 1
    whole(tmp_path).write_bytes(bytes(data))
    with pytest.raises(ValueError, match="corrupt: delete it"):
        image_features(encoder, pictures, cache=tmp_path)


def test_a_file_under_another_name_is_refused(encoder, pictures, tmp_path):
    image_features(encoder, pictures, cache=tmp_path / "a")
    image_features(encoder, Pictures(["other"]), cache=tmp_path / "b")
    whole(tmp_path / "b").replace(whole(tmp_path / "a"))
    with pytest.raises(ValueError, match="does not hold the features that its name stands for"):
        image_features(encoder, pictures, cache=tmp_path / "a")


def test_a_damaged_block_is_named(encoder, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(
        pictures, "image", lambda index: 1 / (9 - index) and Image.new("RGB", (8, 8))
    )
    with pytest.raises(ZeroDivisionError):
        image_features(encoder, pictures, cache=tmp_path, batch_size=2)
    block = min(tmp_path.iterdir())
    block.write_bytes(block.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{block.name} is truncated"):
        image_features(encoder, pictures, cache=tmp_path)


def extract(folder, start, results):
    features.BLOCK = 4
    start.wait()
    split = Pictures(f"image {i}" for i in range(60))
    results.put(image_features(Pixels(), split, cache=folder, batch_size=2).numpy())


def test_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=extract, args=(tmp_path, start, results)) for _ in "ab"]
    for process in processes:
        process.start()
    found = [results.get(timeout=50) for _ in processes]
    for process in processes:
        process.join()
    split = Pictures(f"image {i}" for i in range(60))
    expected = image_features(Pixels(), split, cache=False).numpy()
    assert all(np.array_equal(one, expected) for one in found)
    assert np.array_equal(image_features(Pixels(), split, cache=tmp_path).numpy(), expected)
    assert not list(tmp_path.glob("*.tmp"))


def test_an_empty_split(encoder, tmp_path):
    empty = Pictures([])
    assert image_features(encoder, empty, cache=False).shape == (0, 192)
    assert image_features(encoder, empty, views=2, cache=tmp_path).shape == (2, 0, 192)
    assert image_features(encoder, empty, views=2, cache=tmp_path).shape == (2, 0, 192)


def test_where_the_cache_is(tmp_path, monkeypatch, encoder, pictures):
    monkeypatch.delenv("LBUTILS_CACHE", raising=False)
    default = features.cache_dir()
    assert default is not None and default.parts[-2:] == ("runs", "cache")
    monkeypatch.setenv("LBUTILS_CACHE", str(tmp_path / "mine"))
    image_features(encoder, pictures)
    assert len(files(tmp_path / "mine")) == 1
    for nothing in ("none", "None", ""):
        monkeypatch.setenv("LBUTILS_CACHE", nothing)
        assert features.cache_dir() is None
    assert features.cache_dir(tmp_path) == tmp_path
    assert features.cache_dir(False) is None


def test_negative_views_are_refused(encoder, pictures):
    with pytest.raises(ValueError, match="views must be 0 or more"):
        image_features(encoder, pictures, views=-1)


def test_a_real_encoder(tmp_path):
    """Through open_clip's transforms and a model, the way notebooks go."""
    import open_clip

    from lbutils import mini
    from lbutils.encoders import DualEncoder

    config = mini.model_config(
        514, embed_dim=16, width=16, heads=2, layers=1, tower="lbutils_residual_tiny"
    )
    torch.manual_seed(0)
    pieces = mini.always_kept(open_clip.SimpleTokenizer())
    encoder = DualEncoder(open_clip.CLIP(**config), mini.PieceTokenizer(pieces), {"size": 32})
    split = Pictures("abcde")
    clean = image_features(encoder, split, cache=tmp_path)
    views = image_features(encoder, split, views=2, cache=tmp_path)
    assert clean.shape == (5, 16) and views.shape == (2, 5, 16)
    assert not clean.requires_grad
    torch.testing.assert_close(views.norm(dim=-1), torch.ones(2, 5))
    assert torch.equal(image_features(encoder, split, views=2, cache=tmp_path), views)
