"""The recipe of data/README.md for clip-retrieval's folders, run as it is written."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

TEXT = Path(__file__).resolve().parents[1].joinpath("data", "README.md").read_text("utf-8")
WRITE, READ = re.findall("```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def written(tmp_path):
    captions = ("a fox", None, "der Fuchs, 狐")
    labels = np.array([0, 0, 1])
    ids = tuple(f"fox/{i}.jpg" for i in range(3))
    split = SimpleNamespace(ids=ids, captions=captions, names=("fox", "owl"), labels=labels)
    features = torch.nn.functional.normalize(torch.arange(1.0, 13).reshape(3, 4), dim=-1)
    scope = {"folder": tmp_path / "out", "split": split, "features": features}
    exec(WRITE, scope)
    return scope


def test_plain_libraries_read_what_is_written(written):
    folder = written["folder"]
    stored = np.load(folder / "img_emb" / "img_emb_0.npy", allow_pickle=False)
    assert stored.dtype == np.float16
    assert np.array_equal(stored, written["features"].half().numpy())
    table = pd.read_parquet(folder / "metadata" / "metadata_0.parquet")
    assert table["image_path"].tolist() == list(written["split"].ids)
    assert table["caption"].tolist() == ["a fox", "", "der Fuchs, 狐"]
    assert table["class"].tolist() == ["fox", "fox", "owl"]
    with pytest.raises(FileExistsError):
        exec(WRITE, written)


def test_what_is_written_is_read(written):
    scope = {"folder": written["folder"]}
    exec(READ, scope)
    assert torch.equal(scope["features"], written["features"].half().float())
    assert list(scope["metadata"]["image_path"]) == list(written["split"].ids)


def test_a_folder_of_several_files_and_one_that_does_not_fit(tmp_path):
    for number, rows in ((10, 1), (2, 2)):
        for kind in ("img_emb", "metadata"):
            (tmp_path / kind).mkdir(exist_ok=True)
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", np.full((rows, 4), number))
        table = pd.DataFrame({"url": ["http://x"] * rows})
        table.to_parquet(tmp_path / "metadata" / f"metadata_{number}.parquet")
    scope = {"folder": tmp_path}
    exec(READ, scope)
    assert scope["features"][:, 0].tolist() == [2, 2, 10] and len(scope["metadata"]) == 3
    np.save(tmp_path / "img_emb" / "img_emb_2.npy", np.ones((1, 4)))
    with pytest.raises(AssertionError, match="do not fit"):
        exec(READ, scope)
    np.save(tmp_path / "img_emb" / "img_emb_2.npy", np.full((2, 4), np.nan))
    with pytest.raises(AssertionError, match="not finite"):
        exec(READ, scope)
