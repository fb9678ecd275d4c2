"""Pre-training: it resumes to the same bits, notices damage, and leaves unseen pieces alone."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import dead_process
from PIL import Image
from safetensors.torch import load_file

from lbutils import _util
from lbutils.data.benchmark import ROTATIONS
from lbutils.data.lots import lot_pairs
from lbutils.models import mini
from lbutils.models.encoders import load_encoder

SCRIPT = Path(mini.__file__).parents[2] / "data" / "mini" / "make" / "pretrain.py"
TINY = [
    "--steps=6",
    "--batch-size=8",
    "--sizes=16:0.5,32:0.5",
    "--tower=lbutils_residual_tiny",
    "--width=16",
    "--heads=2",
    "--layers=2",
    "--log-every=2",
    "--eval-every=1",
    "--checkpoint-every=2",
    "--device=cpu",
    "--threads=1",
    "--warmup=2",
    "--ema=0.5",
]
CONCEPTS = {"animals/fox": "fox", "animals/owl": "owl", "food/pie": "pie", "food/sushi": "sushi"}


def webp(draw: np.random.Generator, side: int = 32) -> bytes:
    rgba = draw.integers(0, 256, (side, side, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(buffer, "WEBP", lossless=True, exact=True)
    return buffer.getvalue()


def write_miniature(folder: Path) -> Path:
    """A miniature of the right schema: 29 pairs of three scales, 8 held-out images."""
    draw = np.random.default_rng(0)
    mini_folder = folder / "mini"
    mini_folder.mkdir(parents=True)
    (folder / "prompts").mkdir()
    templates = {
        "set": ["mini", "released"],
        "template": ["a {name}", "a {name}, a type of {hint}"],
    }
    pd.DataFrame(templates).to_csv(folder / "prompts" / "templates.csv", index=False)
    rows = [(id_, id_.split("/")[0].title(), name) for id_, name in CONCEPTS.items()]
    pd.DataFrame(rows, columns=["concept_id", "domain", "name"]).to_csv(
        mini_folder / "concepts.csv", index=False
    )
    pairs, samples = [], []
    for i in range(29):
        concept = list(CONCEPTS)[i % 4]
        name = CONCEPTS[concept]
        scale = {27: "medium", 28: "large"}.get(i, "small")
        captions = [f"a {name}", f"a drawing of a {name}", f"{name} {i}"][: 1 + i % 3]
        captions = ["an archipelago"] if scale == "large" else captions
        pairs.append((f"p{i}", scale, name, captions))
        samples.append((f"p{i}", concept, "train", f"family{i}", captions[0]))
    for i in range(8):
        samples.append((f"v{i}", list(CONCEPTS)[i % 4], ("val", "test")[i % 2], "other", ""))
    pd.DataFrame(pairs, columns=["image_id", "scale", "label", "captions"]).to_parquet(
        mini_folder / "pairs.parquet"
    )
    pd.DataFrame(
        samples, columns=["image_id", "concept_id", "split", "group", "caption"]
    ).to_parquet(mini_folder / "samples.parquet")
    images = pd.DataFrame({"image_id": [row[0] for row in samples]})
    images["webp"] = [webp(draw) for _ in samples]
    images[:20].to_parquet(mini_folder / "images-000.parquet")
    images[20:].to_parquet(mini_folder / "images-001.parquet")
    return mini_folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_miniature(folder / "data")
    return folder


@pytest.fixture
def miniature(written, tmp_path, monkeypatch):
    """A copy to write to, where `pretrain` looks for data."""
    monkeypatch.setenv("LBUTILS_DATA", str(tmp_path / "data"))
    return shutil.copytree(written / "data", tmp_path / "data") / "mini"


@pytest.fixture(scope="module", autouse=True)
def torch_settings():
    """Give the process its own settings back: main() changes the threads and denormals."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def run(pretrain, tmp_path, name: str, *extra: str) -> Path:
    out = tmp_path / name
    pretrain.main([*TINY, f"--work={tmp_path / (name + '-work')}", f"--out={out}", *extra])
    return out


def killed_run(pretrain, tmp_path, monkeypatch, name: str, step: int) -> None:
    """A run that dies within a step, behind its last checkpoint."""
    train_step = pretrain.train_step

    def dying(run, corpus, images, current, *rest):
        if current == step:
            raise InterruptedError("killed")
        return train_step(run, corpus, images, current, *rest)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(pretrain, "train_step", dying)
        run(pretrain, tmp_path, name)


@pytest.fixture(scope="module")
def runs(pretrain, written):
    """Folder of a run that is whole, and of two that died within a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LBUTILS_DATA", str(written / "data"))
        run(pretrain, written, "whole")
        for step in (3, 5):
            killed_run(pretrain, written, patch, f"killed-{step}", step)
    return written


def take(runs, name, tmp_path, new="run"):
    """Copy a run, to go on with it under another name."""
    for end in ("", "-work"):
        if (runs / f"{name}{end}").exists():
            shutil.copytree(runs / f"{name}{end}", tmp_path / f"{new}{end}")


@pytest.mark.parametrize("step", [3, 5])
def test_resumed_run_equals_uninterrupted_one(pretrain, miniature, runs, tmp_path, step):
    take(runs, f"killed-{step}", tmp_path)
    whole, resumed = runs / "whole", run(pretrain, tmp_path, "run")
    name = "open_clip_model.safetensors"
    assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    works = (runs / "whole-work", tmp_path / "run-work")
    states = [load_file(next(work.glob("*.safetensors"))) for work in works]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    logs = [pd.read_csv(out / "log.csv", dtype=str) for out in (whole, resumed)]
    clock = ["seconds", "pairs_per_second"]
    pd.testing.assert_frame_equal(logs[0].drop(columns=clock), logs[1].drop(columns=clock))
    assert list(logs[0]["step"]) == ["2", "3", "4", "6"]


def test_a_finished_run_only_exports_again(pretrain, miniature, runs, tmp_path, monkeypatch):
    take(runs, "whole", tmp_path)
    file = tmp_path / "run" / "open_clip_model.safetensors"
    before = file.read_bytes()
    file.unlink()
    monkeypatch.delattr(pretrain, "train_step")
    run(pretrain, tmp_path, "run")
    assert file.read_bytes() == before


def test_what_a_killed_run_left_is_removed(pretrain, miniature, runs, tmp_path):
    take(runs, "killed-5", tmp_path)
    work, out = tmp_path / "run-work", tmp_path / "run"
    out.mkdir()
    dead = f"{_util._host()}-{dead_process()}-01234567.tmp"
    (work / "state-0000002.safetensors").touch()
    (work / f".checkpoint.json.{dead}").touch()
    (out / f".open_clip_model.safetensors.{dead}").touch()
    _util.remove_orphans.cache_clear()
    run(pretrain, tmp_path, "run")
    for whole, killed in ((runs / "whole", out), (runs / "whole-work", work)):
        assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda work: corrupt(next(work.glob("*.safetensors"))), "state-0000004.safetensors"),
        (lambda work: next(work.glob("*.safetensors")).write_bytes(b""), "state-0000004"),
        (lambda work: next(work.glob("*.safetensors")).unlink(), "state-0000004"),
        (lambda work: (work / "checkpoint.json").write_text('{"step": 4'), "checkpoint.json"),
        (lambda work: (work / "checkpoint.json").write_text('{"step": 4}'), "checkpoint.json"),
    ],
)
def test_a_corrupt_checkpoint_is_named(pretrain, miniature, runs, tmp_path, damage, named):
    take(runs, "killed-5", tmp_path)
    damage(tmp_path / "run-work")
    with pytest.raises(ValueError, match=f"{named}.*(corrupt|missing).*delete"):
        run(pretrain, tmp_path, "run")


def test_a_checkpoint_of_another_run_is_refused(pretrain, miniature, runs, tmp_path):
    take(runs, "killed-3", tmp_path)
    with pytest.raises(ValueError, match=r"other options \(lr\)"):
        run(pretrain, tmp_path, "run", "--lr=0.1")
    pairs = pd.read_parquet(miniature / "pairs.parquet")
    pairs.loc[0, "label"] = "hound"
    pairs.to_parquet(miniature / "pairs.parquet")
    with pytest.raises(ValueError, match=r"other data \(pairs\)"):
        run(pretrain, tmp_path, "run")


def test_pieces_without_captions_keep_their_initial_rows(pretrain, miniature, tmp_path):
    out = run(pretrain, tmp_path, "run", "--weight-decay=0.5")
    config = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]
    torch.manual_seed(0)
    initial = open_clip.CLIP(**config).token_embedding.weight.detach().half()
    final = load_file(out / "open_clip_model.safetensors")["token_embedding.weight"]
    tokenizer = mini.PieceTokenizer(json.loads((out / "pieces.json").read_text()))
    pairs = pd.read_parquet(miniature / "pairs.parquet").query("scale == 'small'")
    seen = set(tokenizer([text for texts in pairs["captions"] for text in texts]).flatten())
    seen = {int(i) for i in seen} - {0}
    # The padding is piece 0; behind the end of text it must not learn either.
    unseen = sorted(set(range(tokenizer.vocab_size)) - seen)
    assert torch.equal(initial[unseen], final[unseen])
    assert not torch.equal(initial[sorted(seen)], final[sorted(seen)])
    assert len(unseen) > 400


def test_scales_share_the_vocabulary_and_nest(pretrain, miniature):
    corpora = {scale: pretrain.load_corpus(miniature, scale) for scale in pretrain.SCALES}
    assert [len(corpus) for corpus, _ in corpora.values()] == [27, 28, 29]
    pieces = {tokenizer.pieces for _, tokenizer in corpora.values()}
    assert len(pieces) == 1
    tokenizer = corpora["small"][1]
    bpe = tokenizer._bpe
    for text in ("archipelago", "sushi", "a type of"):
        assert set(bpe.encode(text)) <= set(tokenizer.pieces)
    assert not set(bpe.encode("giraffe")) <= set(tokenizer.pieces)


def test_held_out_images_are_refused(pretrain, miniature):
    pairs = pd.read_parquet(miniature / "pairs.parquet")
    pairs.loc[0, "image_id"] = "v1"
    pairs.to_parquet(miniature / "pairs.parquet")
    with pytest.raises(ValueError, match=r"held-out images, e\.g\. v1$"):
        pretrain.load_corpus(miniature, "small")


def test_missing_images_are_named(pretrain, miniature):
    (miniature / "images-001.parquet").unlink()
    with pytest.raises(ValueError, match=r"images-\*.parquet lack 9 images, e.g. p20"):
        pretrain.load_corpus(miniature, "large")


def test_only_the_validation_split_is_evaluated(pretrain, miniature):
    held_out = pretrain.load_validation(miniature)
    assert held_out.names == ["fox", "pie"]
    assert held_out.pixels.shape == (4, 3, 32, 32)


def test_zero_shot_is_a_mean_over_domains(pretrain):
    class Exact(torch.nn.Module):
        def encode_image(self, pixels, normalize):
            return pixels.flatten(1)

    target = torch.tensor([0, 0, 0, 1, 2, 3])
    predicted = torch.tensor([0, 0, 1, 1, 3, 3])
    held_out = pretrain.Validation(
        F.one_hot(predicted, 4).float().view(6, 1, 2, 2), target, list("abcd"), list("XXYY")
    )
    text = {"encode_text": lambda model, tokens: torch.eye(4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini, "encode_text", text["encode_text"])
        value = pretrain.zero_shot(Exact(), lambda texts: torch.zeros(4), held_out, "cpu")
    assert value == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_loss_equals_a_loop_over_pairs(pretrain):
    torch.manual_seed(0)
    image, text = torch.randn(6, 5), torch.randn(6, 5)
    label, caption = torch.tensor([0, 1, 0, 2, 3, 4]), torch.tensor([0, 1, 2, 3, 3, 4])
    expected = 0.0
    for first, second in ((image, text), (text, image)):
        for i in range(6):
            cosine = [7 * F.cosine_similarity(first[i], second[j], dim=0) for j in range(6)]
            kept = [
                j for j in range(6) if j == i or (label[i] != label[j] and caption[i] != caption[j])
            ]
            total = torch.stack([cosine[j] for j in kept]).logsumexp(0)
            expected += (total - cosine[i]).item() / 12
    loss = pretrain.contrastive_loss(image, text, torch.tensor(7.0), [label, caption])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_text_features_keep_the_order_of_texts(pretrain):
    torch.manual_seed(0)
    model = open_clip.CLIP(**mini.model_config(600, width=16, embed_dim=16, heads=2))
    tokens = torch.zeros(9, 16, dtype=torch.long)
    for i in range(9):
        tokens[i, : 2 + (5 * i) % 13] = torch.randint(1, 590, (2 + (5 * i) % 13,))
        tokens[i, 1 + (5 * i) % 13] = 599
    expected = model.encode_text(tokens)
    torch.testing.assert_close(pretrain.text_features(model, tokens), expected)


def test_colour_maps_are_the_steps_they_stand_for(pretrain):
    """One matrix equals compositing, brightness, saturation, mixing and normalising in turn."""
    draw = torch.Generator().manual_seed(3)
    maps, offset = pretrain.colour_maps(50, draw)
    uniform = pretrain.uniform
    draw = torch.Generator().manual_seed(3)
    tint = 1 - 0.6 * uniform(draw, 0, 1, 50, 3, 1) * uniform(draw, 0, 1, 50, 1, 1)
    white = torch.rand(50, 1, 1, generator=draw) < 0.5
    background = torch.where(white, torch.ones(50, 3, 1), tint)
    saturation = uniform(draw, 0, 1.4, 50, 1, 1).clamp(min=0.4)
    saturation[torch.rand(50, 1, 1, generator=draw) < 0.12] = 0
    brightness = uniform(draw, 0.8, 1.2, 50, 1, 1)
    mix = torch.eye(3) + 0.12 * torch.randn(50, 3, 3, generator=draw)
    rgba = torch.rand(50, 4, 7)
    pixels = (rgba[:, :3] + background * (1 - rgba[:, 3:])) * brightness
    grey = pixels.mean(1, keepdim=True)
    pixels = mix @ (grey + (pixels - grey) * saturation)
    expected = pretrain.normalise(pixels[..., None])[..., 0]
    torch.testing.assert_close(maps @ rgba + offset, expected, atol=1e-5, rtol=1e-5)


def test_augmentation_depends_on_its_generator_alone(pretrain):
    rgba = torch.randint(0, 256, (5, 4, 16, 16), dtype=torch.uint8)
    first, again, other = (
        pretrain.augment(rgba, pretrain.generator(0, "step", step)) for step in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    bounds = pretrain.normalise(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert (first >= bounds[0]).all() and (first <= bounds[1]).all()


def test_schedule(pretrain):
    args = pretrain.parse_arguments(["--epochs=3", "--batch-size=4", "--sizes=16:0.5,32:0.5"])
    schedule = pretrain.Schedule(args, pairs=18)
    assert (schedule.per_epoch, schedule.steps) == (4, 12)
    assert [schedule.side(step) for step in range(12)] == [16] * 6 + [32] * 6
    batches = list(schedule.batches(0))
    for first, again in zip(batches[5:], schedule.batches(5), strict=True):
        assert first[0] == again[0] and torch.equal(first[1], again[1])
    for epoch in range(3):
        seen = torch.cat([rows for step, rows in batches if step // 4 == epoch])
        assert len(set(seen.tolist())) == 16
    rates = [schedule.learning_rate(step) for step in range(12)]
    assert math.isclose(rates[0], 1e-6 + 1.5e-3 / 100)


@pytest.mark.parametrize("sizes", ["40:0.5", "a:1", "40:x", "8", "40:0.5,64:0.6", ""])
def test_impossible_sizes_are_refused(pretrain, sizes, capsys):
    with pytest.raises(SystemExit):
        pretrain.parse_arguments([f"--sizes={sizes}"])
    assert "--sizes" in capsys.readouterr().err


def test_the_exported_encoder_is_open_clips(runs):
    out = runs / "whole"
    model = open_clip.create_model(f"local-dir:{out}")
    assert model.visual.preprocess_cfg["mean"] == mini.preprocess_config()["mean"]
    record = json.loads((out / "training.json").read_text())
    assert record["steps"] == 6 and set(record["sha256"]) == {"pairs", "images"}
    assert record["val_zero_shot_ip"] is not None
    files = {path.name for path in out.iterdir()}
    assert files == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "pieces.json",
        "training.json",
        "log.csv",
    }


def test_an_encoder_of_the_miniature_is_certified_and_loads(pretrain, miniature, tmp_path):
    """The others of checksums.csv stay; an encoder elsewhere leaves it alone."""
    table = miniature / "checksums.csv"
    table.write_text("file,sha256\nconcepts.csv,123\nencoder/small/log.csv,old\n")
    run(pretrain, tmp_path, "elsewhere")
    assert "pieces" not in table.read_text()
    pretrain.main([*TINY, f"--work={tmp_path / 'work'}"])
    hashes = pd.read_csv(table).set_index("file")["sha256"]
    assert hashes["concepts.csv"] == "123" and len(hashes) == 6
    encoder = load_encoder("mini", device="cpu")
    assert encoder.encode_text(["a fox"]).shape == (1, 16)
    (miniature / "encoder" / "small" / "pieces.json").write_text("[]")
    with pytest.raises(ValueError, match="corrupt or was changed"):
        load_encoder("mini")


DATA = SCRIPT.parents[1]
COMMITTED = sorted(path.parent.name for path in DATA.glob("encoder/*/training.json"))


def corpus_of(name):
    return re.sub("-(half|tiny|seed-[0-9]+)$", "", name)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", sorted(set(map(corpus_of, COMMITTED))))
def test_committed_encoders_saw_the_committed_corpora(
    pretrain, dose, monkeypatch, tmp_path, corpus
):
    monkeypatch.setattr(pretrain, "decode", lambda images: torch.zeros(len(images)))
    folder, scale = DATA, corpus.removesuffix("-dosed")
    if corpus in ROTATIONS:
        dose.data_folder(tmp_path, lot_pairs(corpus))
        folder, scale = tmp_path / "mini", "small"
    elif scale != corpus:
        dose.data_folder(tmp_path, dose.dosed()[0])
        folder = tmp_path / "mini"
    seen, tokenizer = pretrain.load_corpus(folder, scale)
    for name in COMMITTED:
        if corpus_of(name) == corpus:
            record = json.loads((DATA / "encoder" / name / "training.json").read_text())
            assert (record["scale"], record["sha256"]) == (scale, seen.hashes), name
            model = load_encoder("mini", name).model
            assert model.token_embedding.num_embeddings == tokenizer.vocab_size


def test_committed_encoders_differ_in_their_corpus_or_tower_alone():
    records = {
        name: json.loads((DATA / "encoder" / name / "training.json").read_text())
        for name in COMMITTED
    }
    found = ["device", "threads", "torch", "seconds", "pairs_per_second", "val_zero_shot_ip"]
    corpus = {"scale", "sha256", "steps"}
    for name, record in records.items():
        other, like = {"tower"} if corpus_of(name) != name else corpus, records["small"]
        if corpus_of(name) in ROTATIONS:  # all by one recipe, said in PREREGISTRATION.md
            recipe = {"epochs": 30.0, "eval_every": 5.0, "tower": "lbutils_residual_half"}
            assert record["seed"] == int(name[-1]) in (0, 1)
            other, like = {*corpus, "seed"}, like | recipe
        for key in set(record) - other - set(found):
            assert record[key] == like[key], f"{name}: {key}"


def test_what_eight_bits_cost_is_on_record_for_every_encoder_in_eight_bits():
    table = pd.read_csv(DATA.parent / "results" / "eight_bits.csv").set_index("encoder")
    packed = {path.parent.name for path in DATA.glob(f"encoder/*/{mini.EIGHT_BIT_FILE}")}
    assert packed == set(table.index)
    for name, row in table.iterrows():
        record = json.loads((DATA / "encoder" / name / "training.json").read_text())
        # Pre-training evaluated the average of weights before it was rounded to float16.
        assert row["val_zero_shot_float16"] == pytest.approx(
            100 * record["val_zero_shot_ip"], abs=1
        )
