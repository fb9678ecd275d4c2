"""Cached features: exact, resumable, shared, and never taken from a damaged file."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bpe_tokenizer
from PIL import Image

from lbutils.data.benchmark import Files, Split
from lbutils.models import features
from lbutils.models.encoders import Unnormalised
from lbutils.models.features import extract, image_features


class Pictures:
    """A split of random images, which counts how often one is opened."""

    def __init__(self, ids, salt=""):
        self.ids = tuple(ids)
        self.salt = salt
        self.opened = []

    def __len__(self):
        return len(self.ids)

    def take(self, rows):
        return Pictures([self.ids[row] for row in rows], self.salt)

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
    device = torch.device("cpu")

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
        pictures, "image", lambda index: 1 / (9 - index) and Image.new("RGB", (8, 8), "red")
    )
    with pytest.raises(ZeroDivisionError):
        image_features(encoder, pictures, cache=tmp_path, batch_size=2)
    block = min(tmp_path.iterdir())
    block.write_bytes(block.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{block.name} is truncated"):
        image_features(encoder, pictures, cache=tmp_path)


@pytest.fixture
def processes(monkeypatch):
    """Processes forked from a server that has imported this module, and torch with it, once."""
    # The server looks for what it is to import there alone.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def take_part(folder, start):
    features.BLOCK = 4
    split = Pictures(f"image {i}" for i in range(60))
    start.wait(600)
    return image_features(Pixels(), split, cache=folder, batch_size=2).numpy()


def put_part(folder, start, results):
    results.put(take_part(folder, start))


@pytest.mark.slow
def test_processes_share_a_cache(tmp_path, processes):
    """This one and another, which begin together: neither does so before both are ready."""
    start, results = processes.Barrier(2), processes.Queue()
    other = processes.Process(target=put_part, args=(tmp_path, start, results))
    other.start()
    found = [take_part(tmp_path, start), results.get(timeout=600)]
    other.join()
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

    from lbutils.models import mini
    from lbutils.models.encoders import DualEncoder

    config = mini.model_config(
        514, embed_dim=16, width=16, heads=2, layers=1, tower="lbutils_residual_tiny"
    )
    torch.manual_seed(0)
    pieces = mini.always_kept(bpe_tokenizer())
    encoder = DualEncoder(open_clip.CLIP(**config), mini.PieceTokenizer(pieces), {"size": 32})
    split = Pictures("abcde")
    clean = image_features(encoder, split, cache=tmp_path)
    views = image_features(encoder, split, views=2, cache=tmp_path)
    assert clean.shape == (5, 16) and views.shape == (2, 5, 16)
    assert not clean.requires_grad
    torch.testing.assert_close(views.norm(dim=-1), torch.ones(2, 5))
    assert torch.equal(image_features(encoder, split, views=2, cache=tmp_path), views)


# --------------------------------------------------------------------------- workers, precision


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("views", [0, 2])
def test_features_do_not_depend_on_the_workers(encoder, pictures, workers, views):
    options = {"views": views, "cache": False, "batch_size": 3}
    found = image_features(encoder, pictures, workers=workers, **options)
    assert torch.equal(found, image_features(encoder, pictures, **options))


def test_images_are_read_while_the_model_is_at_work(encoder, pictures):
    """When the model has a batch, the next ones are being read, but not all of them."""
    seen = []
    encode = encoder.encode_images

    def watched(pixels):
        time.sleep(0.05)
        seen.append(len(pictures.opened))
        return encode(pixels)

    encoder.encode_images = watched
    image_features(encoder, pictures, cache=False, batch_size=1)
    assert seen[0] == 1 + features.AHEAD and seen[-1] == 10


def test_precision_is_for_a_gpu_and_in_the_key(encoder, pictures):
    with pytest.raises(ValueError, match="autocast='bf16' is for a GPU"):
        image_features(encoder, pictures, autocast="bf16", cache=False)
    with pytest.raises(ValueError, match="Did you mean 'bf16'"):
        image_features(encoder, pictures, autocast="bf17", cache=False)
    keys = {features.describe(encoder, pictures, autocast=kind) for kind in (None, "bf16", "fp16")}
    assert len(keys) == 3
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        image_features(encoder, pictures, workers=0, cache=False)


def test_precision_of_the_environment_is_for_a_gpu_too(encoder, pictures, monkeypatch):
    def asked(autocast=None):
        return features._job(
            encoder, pictures, False, batch_size=8, workers=1, autocast=autocast
        ).autocast

    monkeypatch.setenv("LBUTILS_AUTOCAST", "bf16")
    assert asked() is None
    encoder.device = torch.device("cuda")
    assert asked() == "bf16" and asked("fp16") == "fp16"
    monkeypatch.setenv("LBUTILS_AUTOCAST", "half")
    with pytest.raises(ValueError, match="unknown autocast 'half'"):
        asked()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_half_precision_on_a_gpu(make_encoder, pictures, kind):
    encoder = make_encoder("clip")
    expected = image_features(encoder, pictures, cache=False)
    encoder.model, encoder.device = encoder.model.cuda(), torch.device("cuda")
    full = image_features(encoder, pictures, cache=False)
    found = image_features(encoder, pictures, cache=False, autocast=kind)
    encoder.model, encoder.device = encoder.model.cpu(), torch.device("cpu")
    assert torch.allclose(full, expected, atol=1e-4)
    assert found.dtype == torch.float32 and torch.allclose(found, full, atol=0.02)
    assert not torch.equal(found, full)


# --------------------------------------------------------------------------- images that are bad


def write_images(folder, many=6):
    """A split of image files, and its images' names."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(many)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    return names


def split_of(folder, names):
    labels = np.zeros(len(names), dtype=int)
    return Split(tuple(names), labels, ("thing",), (None,) * len(names), Files(folder))


def test_a_corrupt_image_is_named_or_left_out(encoder, tmp_path):
    names = write_images(tmp_path / "images")
    for bad in (names[1], names[4]):
        whole = (tmp_path / "images" / bad).read_bytes()
        (tmp_path / "images" / bad).write_bytes(whole[:60])
    split, cache = split_of(tmp_path / "images", names), tmp_path / "cache"
    with pytest.raises(ValueError, match=r"image '1\.png' is unreadable: .*report\(\)"):
        image_features(encoder, split, cache=cache, batch_size=2)
    good = [names[i] for i in (0, 2, 3, 5)]
    expected = image_features(encoder, split_of(tmp_path / "images", good), cache=False)
    for options in ({"batch_size": 2}, {"views": 0}, {"cache": False}):
        with pytest.warns(
            UserWarning, match=r"2 of 6 images are unreadable and left out.*'1\.png'"
        ):
            found = extract(encoder, split, **{"cache": cache, **options})
        assert found.skipped == (names[1], names[4]) and found.split.ids == tuple(good)
        assert torch.equal(found.features, expected)
    with pytest.raises(ValueError, match=r"2 of 6 images are unreadable.*'1\.png'.*extract"):
        image_features(encoder, split, cache=cache)
    with pytest.warns(UserWarning, match="2 of 6"):
        views = extract(encoder, split, views=2, cache=cache)
    assert views.features.shape == (2, 4, 192) and views.features.isfinite().all()


def test_nothing_is_said_where_all_is_well(encoder, tmp_path, recwarn):
    split = split_of(tmp_path / "images", write_images(tmp_path / "images"))
    found = extract(encoder, split, cache=False)
    assert found.split is split and found.skipped == () and not recwarn.list
    assert torch.equal(found.features, image_features(encoder, split, cache=False))


def test_a_batch_without_a_single_image(encoder, tmp_path):
    names = write_images(tmp_path / "images", many=4)
    for name in names:
        (tmp_path / "images" / name).write_bytes(b"no image")
    with pytest.warns(UserWarning, match="4 of 4"):
        found = extract(encoder, split_of(tmp_path / "images", names), cache=tmp_path, batch_size=2)
    assert found.features.shape == (0, 192) and len(found.split) == 0


def test_a_missing_file_is_an_error_either_way(encoder, tmp_path):
    names = write_images(tmp_path / "images")
    (tmp_path / "images" / names[2]).unlink()
    split = split_of(tmp_path / "images", names)
    for call in (image_features, extract):
        with pytest.raises(FileNotFoundError, match=r"2\.png' is missing"):
            call(encoder, split, cache=False)


# --------------------------------------------------------------------------- kills and full disks


class Slow(Pictures):
    """Random images that take a while."""

    def image(self, index):
        time.sleep(0.02)
        return super().image(index)


def extract_slowly(folder):
    features.BLOCK = 8
    image_features(Pixels(), Slow(f"image {i}" for i in range(64)), cache=folder, batch_size=3)


# An interrupted one, above, needs no other process, which takes ten seconds to begin.
@pytest.mark.slow
def test_a_killed_extraction_ends_bit_by_bit_the_same(tmp_path, monkeypatch, encoder, processes):
    process = processes.Process(target=extract_slowly, args=(tmp_path / "killed",))
    process.start()
    deadline = time.monotonic() + 600
    while not (tmp_path / "killed").is_dir() or len(files(tmp_path / "killed")) < 3:
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    parts = [name for name in files(tmp_path / "killed") if name.endswith(".safetensors")]
    assert 2 <= len(parts) < 8
    monkeypatch.setattr(features, "BLOCK", 8)
    split = Pictures(f"image {i}" for i in range(64))
    found = image_features(encoder, split, cache=tmp_path / "killed", batch_size=3)
    assert len(split.opened) == 64 - 8 * len(parts)
    fresh = image_features(encoder, split, cache=tmp_path / "fresh", batch_size=3)
    assert found.numpy().tobytes() == fresh.numpy().tobytes()
    again = image_features(encoder, split, cache=tmp_path / "killed")
    assert again.numpy().tobytes() == fresh.numpy().tobytes()


def test_blocks_of_a_process_killed_at_its_end_are_removed(encoder, pictures, tmp_path):
    image_features(encoder, pictures, cache=tmp_path)
    (whole,) = tmp_path.iterdir()
    for rows in ("0000000-0000004", "0000008-0000010"):
        (tmp_path / f"{whole.stem}.{rows}.safetensors").touch()
    (tmp_path / "other.0000000-0000004.safetensors").touch()
    image_features(encoder, pictures, cache=tmp_path)
    assert files(tmp_path) == sorted([whole.name, "other.0000000-0000004.safetensors"])


def test_a_full_disk_leaves_the_cache_usable(encoder, pictures, tmp_path):
    """The limit lets blocks of four be written, but not the whole."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = image_features(encoder, pictures, cache=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written to .*LBUTILS_CACHE"):
            image_features(encoder, pictures, cache=tmp_path)
        assert len(files(tmp_path)) == 3 and not list(tmp_path.glob(".*"))
        pictures.opened.clear()
        with pytest.raises(OSError, match="could not be written"):
            image_features(encoder, pictures, cache=tmp_path)
        assert pictures.opened == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(image_features(encoder, pictures, cache=tmp_path), expected)
    assert pictures.opened == [] and len(files(tmp_path)) == 1


def test_no_space_at_the_first_block(encoder, pictures, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"a beginning")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(features, "save_file", full)
        with pytest.raises(OSError, match="No space left on device.*free space there"):
            image_features(encoder, pictures, cache=tmp_path)
    assert files(tmp_path) == []
    assert len(image_features(encoder, pictures, cache=tmp_path)) == 10


# --------------------------------------------------------------------------- what has changed


def written_by_hand(weight):
    weight.numpy()[:] += 1


WRITES = {
    "in place": lambda weight: weight.add_(1),
    "through .data": lambda weight: weight.data.mul_(-1),
    "through numpy": lambda weight: written_by_hand(weight.detach()),
    "two rows swapped": lambda weight: weight.data.copy_(weight.data.flip(0).clone()),
    "one value": lambda weight: weight.data.view(-1)[7:8].add_(0.5),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_weights_written_to_are_other_weights(make_encoder, tmp_path, write):
    encoder = make_encoder()
    first = image_features(encoder, Pictures("abc"), cache=tmp_path)
    before = encoder.fingerprint
    with torch.no_grad():
        write(encoder.model.visual.conv1.weight)
    assert encoder.fingerprint != before
    found = image_features(encoder, Pictures("abc"), cache=tmp_path)
    assert not torch.equal(found, first)
    assert torch.equal(found, image_features(encoder, Pictures("abc"), cache=False))


def test_weights_put_back_are_the_weights(make_encoder):
    encoder = make_encoder()
    first, weight = encoder.fingerprint, encoder.model.visual.conv1.weight
    kept = weight.detach().clone()
    weight.data.zero_()
    assert encoder.fingerprint != first
    weight.data.copy_(kept)
    assert encoder.fingerprint == first
    encoder.model.train()
    assert encoder.fingerprint != first


def test_an_image_replaced_by_one_of_equal_size_and_time(encoder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("a.bmp", "red"), ("b.bmp", "green")):
        Image.new("RGB", (8, 8), colour).save(folder / name)
    split = split_of(folder, ["a.bmp", "b.bmp"])
    first = image_features(encoder, split, cache=tmp_path / "cache")
    state = (folder / "b.bmp").stat()
    Image.new("RGB", (8, 8), "blue").save(folder / "new.bmp")
    (folder / "new.bmp").replace(folder / "b.bmp")
    os.utime(folder / "b.bmp", ns=(state.st_atime_ns, state.st_mtime_ns))
    for asked in (split, split_of(folder, ["a.bmp", "b.bmp"])):
        found = image_features(encoder, asked, cache=tmp_path / "cache")
        assert torch.equal(found[0], first[0]) and not torch.equal(found[1], first[1])


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_features_that_no_image_has_are_refused_with_its_name(
    encoder, pictures, tmp_path, value, views
):
    encode, wanted = encoder.encode_images, encoder.preprocess(pictures.image(6))

    def broken(pixels):
        found = encode(pixels)
        # Of image 6; an augmented view of it is brighter by one number.
        brighter = (pixels - wanted).flatten(1)
        found[(brighter - brighter[:, :1]).abs().amax(1) < 1e-5] = value
        return found

    encoder.encode_images = broken
    for call in (image_features, extract):
        with pytest.raises(ValueError, match="image 'image 6' are not finite or all zero"):
            call(encoder, pictures, views=views, cache=tmp_path, batch_size=2)
    assert len(files(tmp_path)) == 1  # the block before that of image 6
    encoder.encode_images = encode
    found = image_features(encoder, pictures, views=views, cache=tmp_path)
    assert found.isfinite().all() and (found != 0).any(-1).all()


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_cache_that_holds_such_features_is_not_believed(
    encoder, pictures, tmp_path, monkeypatch, value
):
    with monkeypatch.context() as old:
        old.setattr(features, "_unsound", lambda block, ids: None)
        encode = encoder.encode_images
        old.setattr(encoder, "encode_images", lambda pixels: encode(pixels) * value)
        image_features(encoder, pictures, cache=tmp_path)
    with pytest.raises(ValueError, match="is corrupt: delete it"):
        image_features(encoder, pictures, cache=tmp_path)


@pytest.mark.parametrize("what", ["weights", "images"])
def test_what_changes_meanwhile_is_of_neither_state(encoder, pictures, tmp_path, what):
    image = pictures.image

    def changing(index):
        if index == 9:
            setattr(*{"weights": (encoder, "fingerprint"), "images": (pictures, "salt")}[what], "x")
        return image(index)

    pictures.image = changing
    with pytest.raises(ValueError, match="changed while features were computed"):
        image_features(encoder, pictures, cache=tmp_path)
    assert files(tmp_path) == []


def test_features_keep_their_length_where_they_are_asked_to(make_encoder, pictures):
    encoder = make_encoder()
    found = image_features(Unnormalised(encoder), pictures, cache=False)
    pixels = torch.stack([encoder.preprocess(pictures.image(i)) for i in range(len(pictures))])
    assert torch.allclose(found, encoder.model.encode_image(pixels).detach(), atol=1e-5)
    lengths = found.norm(dim=1, keepdim=True)
    assert ((lengths - 1).abs() > 0.01).all()
    unit = image_features(encoder, pictures, cache=False)
    assert torch.allclose(found / lengths, unit, atol=1e-5)
    assert Unnormalised(encoder).fingerprint != encoder.fingerprint
    assert image_features(Unnormalised(encoder), Pictures([]), cache=False).shape == (
        0,
        encoder.dim,
    )
