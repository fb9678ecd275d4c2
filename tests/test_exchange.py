"""Folders of clip-retrieval: what plain numpy and pyarrow read, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from lbutils.data.benchmark import Files, Split
from lbutils.models.exchange import read_embeddings, write_embeddings


@pytest.fixture
def split(tmp_path):
    ids = tuple(f"fox/{i}.jpg" for i in range(5))
    captions = ("a fox", None, "der Fuchs, \u72d0", "", "an owl")
    return Split(ids, np.array([0, 0, 0, 0, 1]), ("fox", "owl"), captions, Files(tmp_path))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(5, 16, generator=generator), dim=-1)


def test_plain_numpy_and_pyarrow_read_it(split, images, tmp_path):
    folder = write_embeddings(tmp_path / "out", split, images, images.flip(0))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert found == [
        "img_emb/img_emb_0.npy",
        "metadata/metadata_0.parquet",
        "text_emb/text_emb_0.npy",
    ]
    stored = np.load(folder / found[0], allow_pickle=False)
    assert stored.dtype == np.float16 and stored.shape == (5, 16)
    assert np.array_equal(stored, images.numpy().astype(np.float16))
    assert np.array_equal(np.load(folder / found[2]), stored[::-1])
    table = pq.read_table(folder / found[1]).to_pydict()
    assert table["image_path"] == list(split.ids)
    assert table["caption"] == ["a fox", "", "der Fuchs, \u72d0", "", "an owl"]
    assert table["class"] == ["fox"] * 4 + ["owl"]


@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_round_trip(split, images, tmp_path, rows):
    folder = write_embeddings(tmp_path, split, images, rows=rows)
    found = read_embeddings(folder)
    assert found.texts is None and torch.equal(found.images, images.half().float())
    assert (found.images - images).abs().max() < 1e-3
    assert list(found.metadata["image_path"]) == list(split.ids)
    assert list(found.metadata.index) == list(range(5))
    assert len(list(folder.glob("img_emb/*.npy"))) == -(-5 // rows)


def test_files_are_numbered_as_theirs(split, images, tmp_path):
    """clip-retrieval pads numbers, so that the order of names is that of rows."""
    many = Split(
        tuple(map(str, range(12))), np.zeros(12, int), ("fox",), (None,) * 12, split.source
    )
    folder = write_embeddings(tmp_path, many, torch.eye(12), rows=1)
    names = sorted(path.name for path in (folder / "img_emb").iterdir())
    assert names[0] == "img_emb_00.npy" and names[-1] == "img_emb_11.npy"
    assert torch.equal(read_embeddings(folder).images, torch.eye(12))


def test_a_folder_that_others_wrote(tmp_path):
    """Unpadded numbers, other columns, texts only in part."""
    for number, rows in ((2, 2), (10, 1)):
        (tmp_path / "img_emb").mkdir(exist_ok=True)
        (tmp_path / "metadata").mkdir(exist_ok=True)
        values = np.full((rows, 4), number, dtype=np.float32)
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", values)
        table = pa.table({"image_path": [f"{number}"] * rows, "url": ["http://x"] * rows})
        pq.write_table(table, tmp_path / "metadata" / f"metadata_{number}.parquet")
    found = read_embeddings(tmp_path)
    assert found.images[:, 0].tolist() == [2, 2, 10] and list(found.metadata["url"])


def test_what_does_not_fit_is_refused(split, images, tmp_path):
    with pytest.raises(ValueError, match=r"img_emb features are \(4, 16\); expected \(5, D\)"):
        write_embeddings(tmp_path / "a", split, images[:4])
    with pytest.raises(ValueError, match="text_emb features hold NaN"):
        write_embeddings(tmp_path / "a", split, images, images * torch.nan)
    assert not (tmp_path / "a").exists()
    folder = write_embeddings(tmp_path / "b", split, images)
    with pytest.raises(FileExistsError, match="holds features already"):
        write_embeddings(folder, split, images)
    with pytest.raises(FileNotFoundError, match="holds no features"):
        read_embeddings(tmp_path / "absent")


def test_damage_is_named(split, images, tmp_path):
    folder = write_embeddings(tmp_path, split, images, rows=3)
    file = folder / "img_emb" / "img_emb_1.npy"
    intact = file.read_bytes()
    file.write_bytes(intact[:100])
    with pytest.raises(ValueError, match=r"img_emb_1\.npy is corrupt"):
        read_embeddings(folder)
    np.save(file, np.ones((3, 16), dtype=np.float16))
    with pytest.raises(ValueError, match=r"img_emb_1\.npy is \(3, 16\), its metadata has 2 rows"):
        read_embeddings(folder)
    np.save(file, np.full((2, 16), np.nan, dtype=np.float16))
    with pytest.raises(ValueError, match=r"img_emb_1\.npy holds NaN"):
        read_embeddings(folder)
    np.save(file, np.array([[{}], [{}]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"img_emb_1\.npy is corrupt or holds no numbers"):
        read_embeddings(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"img_emb_1\.npy is missing"):
        read_embeddings(folder)
    (folder / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"metadata_0\.parquet is corrupt"):
        read_embeddings(folder)


def test_features_read_back_classify_as_before(split, tmp_path, tiny_encoder):
    from lbutils.models.classifier import logits, text_classifier

    classifier = text_classifier(tiny_encoder, ["fox", "owl"])
    images = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    back = read_embeddings(write_embeddings(tmp_path, split, images)).images
    found, expected = (logits(own, classifier, 10.0) for own in (back, images))
    assert torch.allclose(found, expected, atol=1e-2)
