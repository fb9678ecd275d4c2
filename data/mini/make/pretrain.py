"""Pre-train the miniature's CLIP from scratch on the committed pairs.

    python data/mini/make/pretrain.py --scale small

A run that was killed goes on from its last checkpoint when the same command is given again, and
on a CPU with the same number of threads ends with the same bits: whatever is random derives from
(seed, epoch) or (seed, step), and the learning rate follows the step, never the clock. Where other
work shares the cores, set OMP_WAIT_POLICY=passive: threads that spin cost several times the speed.

Source: the contrastive objective is that of CLIP (Radford et al., 2021). Pairs of one label, of
one image or of one caption are no negatives of each other.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from lbutils._util import replacing
from lbutils.data.benchmark import data_dir
from lbutils.models import mini

SCALES = ("small", "medium", "large")
EVALUATION_TEMPLATES = ("{name}", "a drawing of {name}")
LOG_COLUMNS = (
    "step", "epoch", "seconds", "loss", "lr", "logit_scale", "pairs_per_second", "val_zero_shot_ip"
)  # fmt: skip
ENCODER_FILES = (
    "open_clip_model.safetensors",
    "open_clip_config.json",
    "pieces.json",
    "training.json",
    "log.csv",
)
# These change how fast or where a run goes, not what it computes.
FREE_OPTIONS = ("device", "threads", "data", "work", "out", "checkpoint_every")


# --------------------------------------------------------------------------- arguments


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line, with the schedule as a list of (size, fraction)."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--scale", choices=SCALES, default="small", help="corpus to pre-train on")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=50.0, help="passes over the pairs")
    length.add_argument("--steps", type=int, help="batches, instead of --epochs")
    add("--batch-size", type=int, default=256)
    add("--sizes", default="40:0.7,64:0.3", help="image side:fraction of the steps, in order")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate")
    add("--warmup", type=int, default=100, help="steps of linear warm-up")
    add("--weight-decay", type=float, default=0.1, help="of matrices other than embeddings")
    add("--clip-norm", type=float, default=1.0)
    add("--max-logit-scale", type=float, default=50.0)
    add("--ema", type=float, default=0.999, help="decay of the average of weights; 0 for none")
    add("--seed", type=int, default=0)
    add("--tower", default="lbutils_residual", help="image tower, as registered with timm")
    add("--width", type=int, default=192, help="of the text tower and of the joint space")
    add("--layers", type=int, default=3, help="of the text tower")
    add("--heads", type=int, default=4, help="of the text tower")
    add("--eval-every", type=float, default=2.0, help="epochs between evaluations on val")
    add("--log-every", type=int, default=50, help="steps between rows of the log")
    add("--checkpoint-every", type=int, default=200, help="steps between checkpoints")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--threads", type=int, help="CPU threads; by default all cores")
    add("--data", type=Path, help="folder of the miniature; by default data/mini")
    add("--work", type=Path, help="folder of checkpoints; by default .build/pretrain/<scale>")
    add("--out", type=Path, help="folder of the encoder; by default <data>/encoder/<scale>")
    args = parser.parse_args(argv)
    try:
        args.sizes = parse_sizes(args.sizes)
    except ValueError as error:
        parser.error(str(error))
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.data = args.data or data_dir() / "mini"
    root = Path(__file__).resolve().parents[3]
    args.work = args.work or root / ".build" / "pretrain" / args.scale
    args.out = args.out or args.data / "encoder" / args.scale
    return args


def parse_sizes(text: str) -> list[tuple[int, float]]:
    """Sides and fractions of "40:0.4,64:0.6"; a lone "64" means all steps.

    Raises
    ------
    ValueError : if the fractions do not add up to one or a side is not a positive integer.
    """
    parts = [part.split(":") for part in text.split(",")]
    try:
        sizes = [(int(part[0]), float(part[1]) if len(part) > 1 else 1.0) for part in parts]
    except ValueError:
        raise ValueError(
            f"--sizes {text!r}: write side:fraction,... such as 40:0.4,64:0.6"
        ) from None
    if abs(sum(fraction for _, fraction in sizes) - 1) > 1e-6 or min(sizes)[0] < 16:
        raise ValueError(f"--sizes {text!r}: sides are at least 16 and fractions add up to 1")
    return sizes


def generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A random generator that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


# --------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Corpus:
    """Pre-training pairs in memory.

    `images` are uint8 (I, 4, H, W), colours multiplied by alpha; `image`, `label` int64 (N,) give
    each pair's image and label; `first`, `count` (N,) its slice of `caption`, int64 rows of
    `tokens` (T, L).
    """

    images: Tensor
    image: Tensor
    label: Tensor
    first: Tensor
    count: Tensor
    caption: Tensor
    tokens: Tensor
    hashes: dict[str, str]

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Validation:
    """Held-out images of IP classes: pixels (M, 3, H, W), class (M,), names, domain of each."""

    pixels: Tensor
    target: Tensor
    names: list[str]
    domain: list[str]


def read_table(path: Path) -> pd.DataFrame:
    """A Parquet or CSV table of the miniature, or an error that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: git checkout -- data/mini, or make it anew")
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def read_images(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """WebP bytes of the wanted images, by image_id."""
    found: dict[str, bytes] = {}
    for shard in sorted(folder.glob("images-*.parquet")):
        table = pd.read_parquet(shard)
        table = table[table["image_id"].isin(wanted)]
        found.update(zip(table["image_id"], table["webp"], strict=True))
    if missing := sorted(wanted - found.keys()):
        raise ValueError(f"{folder}/images-*.parquet lack {len(missing)} images, e.g. {missing[0]}")
    return found


def decode(images: list[bytes]) -> Tensor:
    """uint8 (N, 4, H, W) with colours multiplied by alpha, so that they may be interpolated."""
    first = np.asarray(Image.open(io.BytesIO(images[0])).convert("RGBA"))
    out = torch.empty(len(images), 4, *first.shape[:2], dtype=torch.uint8)
    for i, data in enumerate(tqdm(images, desc="decoding", unit="image", mininterval=1)):
        rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(np.uint16)
        rgba[..., :3] = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
        out[i] = torch.from_numpy(rgba.astype(np.uint8)).permute(2, 0, 1)
    return out


def digest(rows: Iterator[tuple[Any, ...]]) -> str:
    """SHA-256 of rows of strings and bytes, whatever file they came from."""
    total = hashlib.sha256()
    for row in rows:
        for item in row:
            data = item if isinstance(item, bytes) else str(item).encode()
            total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def kept_pieces(folder: Path, captions: list[str]) -> list[int]:
    """open_clip ids, ascending, of the pieces that any caption, concept or template contains.

    `captions` are those of the largest corpus at whatever scale is trained, so that the encoders
    of all scales share one vocabulary.
    """
    bpe = SimpleTokenizer()
    templates = read_table(folder.parent / "prompts" / "templates.csv")["template"]
    texts = [
        *captions,
        *read_table(folder / "concepts.csv")["name"].astype(str),
        *(template.format(name=" ", hint=" ") for template in templates),
    ]
    pieces = set(mini.always_kept(bpe))
    for text in tqdm(dict.fromkeys(texts), desc="BPE pieces", unit="text", mininterval=1):
        pieces.update(bpe.encode(text))
    return sorted(pieces)


def load_corpus(folder: Path, scale: str) -> tuple[Corpus, mini.PieceTokenizer]:
    """Pairs of the scale and of the smaller ones, and the tokenizer that all scales share.

    Raises
    ------
    FileNotFoundError, ValueError : if a table or an image is missing, or if a pair's image is
        held out (val or test) in samples.parquet.
    """
    every = read_table(folder / "pairs.parquet")
    captions = [str(text) for texts in every["captions"] for text in texts]
    tokenizer = mini.PieceTokenizer(kept_pieces(folder, captions))
    pairs = every[every["scale"].isin(SCALES[: SCALES.index(scale) + 1])]
    held_out = read_table(folder / "samples.parquet").query("split != 'train'")["image_id"]
    if leaked := sorted(set(pairs["image_id"]) & set(held_out)):
        raise ValueError(f"pairs.parquet names {len(leaked)} held-out images, e.g. {leaked[0]}")
    image_ids = sorted(set(pairs["image_id"]))
    webp = read_images(folder, set(image_ids))
    texts = {
        text: i for i, text in enumerate(dict.fromkeys(t for c in pairs["captions"] for t in c))
    }
    count = torch.tensor([len(c) for c in pairs["captions"]])
    position = {name: i for i, name in enumerate(image_ids)}
    pair_rows = zip(
        pairs["image_id"], pairs["label"], ("\n".join(c) for c in pairs["captions"]), strict=True
    )
    corpus = Corpus(
        images=decode([webp[name] for name in image_ids]),
        image=torch.tensor([position[name] for name in pairs["image_id"]]),
        label=torch.from_numpy(pd.factorize(pairs["label"])[0].astype(np.int64)),
        first=count.cumsum(0) - count,
        count=count,
        caption=torch.tensor([texts[t] for c in pairs["captions"] for t in c]),
        tokens=tokenizer(list(texts)),
        hashes={
            "pairs": digest(pair_rows),
            "images": digest((name, webp[name]) for name in image_ids),
        },
    )
    return corpus, tokenizer


def load_validation(folder: Path) -> Validation | None:
    """Images of samples.parquet's val split on white, or None if there are none.

    Only IP classes have a val split; the test split is never read here.
    """
    samples = read_table(folder / "samples.parquet").query("split == 'val'")
    if samples.empty:
        return None
    concepts = read_table(folder / "concepts.csv").set_index("concept_id")
    concepts = concepts.loc[sorted(set(samples["concept_id"]))]
    row = {concept: i for i, concept in enumerate(concepts.index)}
    webp = read_images(folder, set(samples["image_id"]))
    rgba = decode([webp[name] for name in samples["image_id"]]).float() / 255
    return Validation(
        pixels=normalise(rgba[:, :3] + 1 - rgba[:, 3:]),
        target=torch.tensor([row[concept] for concept in samples["concept_id"]]),
        names=concepts["name"].astype(str).tolist(),
        domain=concepts["domain"].tolist(),
    )


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1], normalised as the encoder's preprocessing does."""
    config = mini.preprocess_config()
    mean, std = (pixels.new_tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (pixels - mean) / std


# --------------------------------------------------------------------------- augmentation


def uniform(draw: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=draw)


def affine_maps(batch: int, draw: torch.Generator) -> Tensor:
    """Maps (B, 2, 3) from output to input coordinates: rotation, scale, aspect, shift, flip."""
    angle, scale = uniform(draw, -0.3, 0.3, batch), uniform(draw, 0.85, 1.3, batch)
    aspect, shift = uniform(draw, -0.15, 0.15, batch).exp(), uniform(draw, -0.15, 0.15, batch, 2)
    flip = torch.where(torch.rand(batch, generator=draw) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [cos * aspect * flip, -sin, shift[:, 0], sin * aspect * flip, cos, shift[:, 1]]
    return torch.stack(rows, dim=1).view(batch, 2, 3)


def colour_maps(batch: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Linear maps (B, 3, 4) and offsets (B, 3, 1) from premultiplied RGBA to normalised pixels.

    Background, brightness, saturation, a random mix of the channels and normalisation are all
    linear, hence one small matrix for each image. The background is white for half of them.
    """
    tint = 1 - 0.6 * uniform(draw, 0, 1, batch, 3, 1) * uniform(draw, 0, 1, batch, 1, 1)
    white = torch.rand(batch, 1, 1, generator=draw) < 0.5
    background = torch.where(white, torch.ones(()), tint)
    saturation = uniform(draw, 0, 1.4, batch, 1, 1).clamp(min=0.4)
    grey = torch.rand(batch, 1, 1, generator=draw) < 0.12
    saturation = torch.where(grey, torch.zeros(()), saturation)
    mean = torch.full((3, 3), 1 / 3)
    colours = mean + (torch.eye(3) - mean) * saturation
    colours = colours * uniform(draw, 0.8, 1.2, batch, 1, 1)
    mix = torch.eye(3) + 0.12 * torch.randn(batch, 3, 3, generator=draw)
    config = mini.preprocess_config()
    average, deviation = (torch.tensor(config[key]).view(3, 1) for key in ("mean", "std"))
    colours = mix @ colours / deviation
    behind = colours @ background
    return torch.cat([colours, -behind], dim=2), behind - average / deviation


def augment(rgba: Tensor, draw: torch.Generator) -> Tensor:
    """Randomly moved, recoloured, normalised pixels (B, 3, H, W) on random backgrounds.

    Parameters
    ----------
    rgba : uint8 (B, 4, H, W), colours multiplied by alpha.
    draw : the source of all randomness, on the CPU whatever the device of `rgba`.
    """
    batch, _, height, width = rgba.shape
    maps = affine_maps(batch, draw).to(rgba.device)
    colours, offset = (x.to(rgba.device) for x in colour_maps(batch, draw))
    grid = F.affine_grid(maps, [batch, 4, height, width], align_corners=False)
    moved = F.grid_sample(rgba.float().div_(255), grid, align_corners=False)
    pixels = torch.baddbmm(offset, colours, moved.flatten(2)).view(batch, 3, height, width)
    black, white = (normalise(pixels.new_full((3, 1, 1), value)) for value in (0.0, 1.0))
    return torch.minimum(torch.maximum(pixels, black, out=pixels), white, out=pixels)


def shrink(images: Tensor, size: int) -> Tensor:
    """The images (N, 4, size, size), uint8, averaged over what each new pixel covers."""
    if images.shape[-1] == size:
        return images
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in images.split(1024)
    ]
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


# --------------------------------------------------------------------------- the run


class Schedule:
    """Number of steps, and what the step decides: learning rate, image size, batch."""

    def __init__(self, args: argparse.Namespace, pairs: int):
        self.batch_size = min(args.batch_size, pairs)
        self.per_epoch = pairs // self.batch_size
        self.steps = args.steps or max(1, round(args.epochs * self.per_epoch))
        self.pairs, self.seed, self.lr, self.warmup = pairs, args.seed, args.lr, args.warmup
        edges = np.cumsum([fraction for _, fraction in args.sizes]) * self.steps
        self.edges = [round(edge) for edge in edges]
        self.sides = [side for side, _ in args.sizes]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to almost nothing."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * cosine + 1e-6

    def side(self, step: int) -> int:
        """Side of the images at a step (0, 1, ...)."""
        return next(side for side, edge in zip(self.sides, self.edges, strict=True) if step < edge)

    def batches(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """Steps from `start` on, each with its pairs; an epoch's odd pairs are left out."""
        order, epoch = torch.empty(0), -1
        for step in range(start, self.steps):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = torch.randperm(self.pairs, generator=generator(self.seed, "epoch", epoch))
            first = step % self.per_epoch * self.batch_size
            yield step, order[first : first + self.batch_size]


def alike(groups: list[Tensor]) -> Tensor:
    """Which two different pairs share a label, an image or a caption, bool (B, B)."""
    same = torch.stack([group[:, None] == group[None] for group in groups]).any(0)
    return same.fill_diagonal_(False)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, groups: list[Tensor]) -> Tensor:
    """Symmetric InfoNCE, scalar, with pairs that share any group left out of the negatives.

    Parameters
    ----------
    image, text : features (B, D), not normalised.
    scale : factor of the cosine similarities.
    groups : int64 (B,) each: labels, images, captions.
    """
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    logits = logits.masked_fill(alike(groups), float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def text_features(model: nn.Module, tokens: Tensor, parts: int = 4) -> Tensor:
    """Text features (B, D) in order; texts of like length go together, to pad less."""
    order = tokens.argmax(dim=1).argsort(stable=True)
    features = [mini.encode_text(model, part) for part in tokens[order].chunk(parts)]
    return torch.cat(features)[order.argsort()]


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; embeddings, gains, biases and the logit scale do not decay.

    Hence the embedding of a piece that no caption contains keeps its initial value.
    """
    decayed = {
        name for name, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in name
    }
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if n in decayed], "weight_decay": args.weight_decay},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)


def average_weights(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights and batch-norm statistics towards the model's, in place."""
    decay = min(decay, (1 + step) / (10 + step))
    mine, theirs = list(averaged.state_dict().values()), list(model.state_dict().values())
    floats = [i for i, tensor in enumerate(mine) if tensor.is_floating_point()]
    torch._foreach_lerp_([mine[i] for i in floats], [theirs[i] for i in floats], 1 - decay)
    for i in set(range(len(mine))) - set(floats):
        mine[i].copy_(theirs[i])


@torch.no_grad()
def zero_shot(
    model: nn.Module, tokenizer: mini.PieceTokenizer, held_out: Validation, device: str
) -> float:
    """Accuracy of zero-shot classification among the IP names of a domain, mean over domains."""
    model.eval()
    image = [model.encode_image(x.to(device), normalize=True) for x in held_out.pixels.split(256)]
    text = torch.zeros(())
    for template in EVALUATION_TEMPLATES:
        tokens = tokenizer([template.format(name=name) for name in held_out.names]).to(device)
        text = text.to(device) + F.normalize(mini.encode_text(model, tokens), dim=-1)
    logits = (torch.cat(image) @ F.normalize(text, dim=-1).T).cpu()
    domain = torch.from_numpy(pd.factorize(np.array(held_out.domain))[0].astype(np.int64))
    accuracies = []
    for d in domain.unique():
        chosen = logits[domain[held_out.target] == d].masked_fill(domain != d, float("-inf"))
        right = chosen.argmax(1) == held_out.target[domain[held_out.target] == d]
        accuracies.append(right.double().mean().item())
    model.train()
    return float(np.mean(accuracies))


class Run:
    """A model in training, with all that a checkpoint must hold."""

    def __init__(self, args: argparse.Namespace, vocab_size: int, hashes: dict[str, str]):
        torch.manual_seed(args.seed)
        self.config = mini.model_config(
            vocab_size,
            embed_dim=args.width,
            width=args.width,
            heads=args.heads,
            layers=args.layers,
            tower=args.tower,
        )
        model = open_clip.CLIP(**copy.deepcopy(self.config))
        # The convolutions' own layout on a CPU: one reordering less for each of them.
        model.visual.to(memory_format=torch.channels_last)
        self.model = model.to(args.device).train()
        self.averaged = copy.deepcopy(self.model) if args.ema else self.model
        self.optimizer = make_optimizer(self.model, args)
        self.step, self.seconds, self.losses = 0, 0.0, [0.0, 0.0]
        self.log: list[dict[str, Any]] = []
        options = {k: v for k, v in vars(args).items() if k not in FREE_OPTIONS}
        # JSON turns tuples into lists; what is compared must have made the same journey.
        self.identity = json.loads(json.dumps({"options": options, "data": hashes}))

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name, as views: writing to one restores it."""
        named = dict(self.model.named_parameters())
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if self.averaged is not self.model:
            tensors |= {f"averaged.{name}": t for name, t in self.averaged.state_dict().items()}
        for name, parameter in named.items():
            for key, value in self._moments(parameter).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's state of a parameter, made in the parameter's own memory layout.

        The fused step walks all of them by one pointer, so a moment in another layout would be
        applied to the wrong weights.
        """
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def save(self, folder: Path) -> None:
        """Write a checkpoint: tensors first, then the JSON that names and certifies them."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"state-{self.step:07d}.safetensors"
        tensors = {k: t.detach().cpu().contiguous() for k, t in self._tensors().items()}
        write(folder / name, lambda path: save_file(tensors, path))
        record = {
            "state": name,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "log": self.log,
            **self.identity,
        }
        text = json.dumps(record, indent=1)
        write(folder / "checkpoint.json", lambda path: path.write_text(text))
        remove_states(folder, name)

    def resume(self, folder: Path) -> bool:
        """Whether a checkpoint was there, and has been taken up.

        Raises
        ------
        ValueError : if it is corrupt, or of a run with other options or other data.
        """
        path = folder / "checkpoint.json"
        if not path.is_file():
            return False
        advice = f"delete {folder} to start anew, or give another --work"
        try:
            record = json.loads(path.read_text())
            state = folder / record["state"]
            data = state.read_bytes()
            intact = hashlib.sha256(data).hexdigest() == record["sha256"]
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is corrupt ({error}): {advice}") from error
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename} is missing: {advice}") from error
        if not intact:
            raise ValueError(f"{state} is corrupt (its SHA-256 is not the recorded one): {advice}")
        for part, mine in self.identity.items():
            theirs = record[part]
            differing = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
            if differing:
                raise ValueError(
                    f"{path} is of a run with other {part} ({', '.join(differing)}): {advice}"
                )
        saved = load_file(state)
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(saved[name])
        self.step, self.seconds = record["step"], record["seconds"]
        self.losses, self.log = record["losses"], record["log"]
        remove_states(folder, record["state"])
        return True


def remove_states(folder: Path, kept: str) -> None:
    """Remove the tensors of every checkpoint but one."""
    for path in set(folder.glob("state-*.safetensors")) - {folder / kept}:
        path.unlink()


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` fill a temporary file and move it into place."""
    with replacing(path) as temporary:
        writer(temporary)


def train_step(run: Run, corpus: Corpus, images: Tensor, step: int, rows: Tensor, args) -> Tensor:
    """The loss, scalar, of one batch, after one step of the optimizer."""
    draw = generator(args.seed, "step", step)
    choice = (torch.rand(len(rows), generator=draw) * corpus.count[rows]).long()
    caption = corpus.caption[corpus.first[rows] + choice]
    pixels = augment(images[corpus.image[rows].to(images.device)], draw)
    model = run.model
    image = model.encode_image(pixels.contiguous(memory_format=torch.channels_last))
    text = text_features(model, corpus.tokens[caption].to(args.device))
    groups = [g.to(args.device) for g in (corpus.label[rows], corpus.image[rows], caption)]
    loss = contrastive_loss(image, text, model.logit_scale.exp(), groups)
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
    run.optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(args.max_logit_scale))
    return loss.detach()


def train(
    run: Run,
    corpus: Corpus,
    tokenizer: mini.PieceTokenizer,
    held_out: Validation | None,
    args: argparse.Namespace,
) -> None:
    """Take the run to its last step, with checkpoints, evaluations and the log on the way."""
    schedule = Schedule(args, len(corpus))
    evaluation = max(1, round(args.eval_every * schedule.per_epoch))
    images, side, before, since = corpus.images, 0, run.seconds, time.monotonic()
    bar = tqdm(total=schedule.steps, initial=run.step, desc=args.scale, unit="step", smoothing=0.05)
    for step, rows in schedule.batches(run.step):
        if schedule.side(step) != side:
            side = schedule.side(step)
            images = shrink(corpus.images, side).to(args.device)
        for group in run.optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        loss = train_step(run, corpus, images, step, rows, args)
        if args.ema:
            average_weights(run.averaged, run.model, args.ema, step)
        run.step = step + 1
        run.losses = [run.losses[0] + loss.item(), run.losses[1] + 1]
        run.seconds = before + time.monotonic() - since
        last = run.step == schedule.steps
        evaluate = held_out is not None and (run.step % evaluation == 0 or last)
        if evaluate or run.step % args.log_every == 0 or last:
            value = zero_shot(run.averaged, tokenizer, held_out, args.device) if evaluate else None
            row = log_row(run, schedule, value)
            bar.set_postfix(loss=row["loss"], ip=value if evaluate else last_value(run.log))
            write_log(args.work / "log.csv", run.log)
        bar.update()
        if run.step % args.checkpoint_every == 0 or last:
            run.save(args.work)
    bar.close()


def log_row(run: Run, schedule: Schedule, value: float | None) -> dict[str, Any]:
    """The row of the log that has just been added to the run's."""
    before = run.log[-1] if run.log else {"step": 0, "seconds": 0.0}
    elapsed = max(run.seconds - before["seconds"], 1e-9)
    row = {
        "step": run.step,
        "epoch": round(run.step / schedule.per_epoch, 3),
        "seconds": round(run.seconds, 1),
        "loss": round(run.losses[0] / run.losses[1], 5),
        "lr": float(f"{schedule.learning_rate(run.step - 1):.4g}"),
        "logit_scale": round(run.model.logit_scale.exp().item(), 3),
        "pairs_per_second": round((run.step - before["step"]) * schedule.batch_size / elapsed, 1),
        "val_zero_shot_ip": None if value is None else round(value, 5),
    }
    run.losses = [0.0, 0.0]
    run.log.append(row)
    return row


def last_value(log: list[dict[str, Any]]) -> float | None:
    """The last evaluation in the log."""
    return next(
        (r["val_zero_shot_ip"] for r in log[::-1] if r["val_zero_shot_ip"] is not None), None
    )


def write_log(path: Path, log: list[dict[str, Any]]) -> None:
    """Write the log as CSV; what a killed run had added behind its checkpoint goes."""

    def rows(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(log)

    write(path, rows)


# --------------------------------------------------------------------------- the encoder


def export(run: Run, tokenizer: mini.PieceTokenizer, args: argparse.Namespace) -> None:
    """Write the encoder's folder: float16 weights, configuration, pieces, record and log."""
    weights = {}
    for name, tensor in run.averaged.state_dict().items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        if not torch.isfinite(half).all():
            raise ValueError(f"{name} does not fit into float16: lower --lr and train anew")
        weights[name] = half.cpu().contiguous()
    config = {"model_cfg": run.config, "preprocess_cfg": mini.preprocess_config()}
    pairs = args.batch_size * run.step
    record = {
        **run.identity["options"],
        "steps": run.step,
        "sha256": run.identity["data"],
        "device": torch.device(args.device).type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "seconds": round(run.seconds, 1),
        "pairs_per_second": round(pairs / max(run.seconds, 1e-9), 1),
        "val_zero_shot_ip": last_value(run.log),
    }
    texts = {
        "open_clip_config.json": json.dumps(config, indent=2),
        "pieces.json": json.dumps(list(tokenizer.pieces)),
        "training.json": json.dumps(record, indent=2),
    }
    metadata = {"format": "pt"}
    write(args.out / "open_clip_model.safetensors", lambda p: save_file(weights, p, metadata))
    for name, text in texts.items():
        write(args.out / name, partial(Path.write_text, data=text + "\n"))
    write(args.out / "log.csv", lambda path: shutil.copyfile(args.work / "log.csv", path))


def certify(out: Path, data: Path) -> None:
    """Enter the encoder's files into the miniature's checksums.csv, if they belong to it.

    The loader takes no file of the miniature whose hash is not there.
    """
    table = data / "checksums.csv"
    if not table.is_file() or not out.resolve().is_relative_to(data.resolve()):
        return
    hashes = dict(read_table(table)[["file", "sha256"]].itertuples(index=False))
    # Of an encoder that was packed into eight bits, one file has another name.
    folder = out.resolve().relative_to(data.resolve()).as_posix()
    hashes = {file: h for file, h in hashes.items() if file.rpartition("/")[0] != folder}
    for path in sorted(p for p in out.resolve().iterdir() if not p.name.startswith(".")):
        file = path.relative_to(data.resolve()).as_posix()
        hashes[file] = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = pd.DataFrame(sorted(hashes.items()), columns=["file", "sha256"])
    write(table, lambda path: rows.to_csv(path, index=False, lineterminator="\n"))


def main(argv: list[str] | None = None) -> None:
    """Pre-train as the command line says, and write the encoder."""
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    # Adam's moments of rare pieces decay into denormal numbers, on which CPUs are very slow.
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")
    corpus, tokenizer = load_corpus(args.data, args.scale)
    held_out = load_validation(args.data)
    run = Run(args, tokenizer.vocab_size, corpus.hashes)
    if run.resume(args.work):
        tqdm.write(f"going on from step {run.step}")
    train(run, corpus, tokenizer, held_out, args)
    export(run, tokenizer, args)
    certify(args.out, args.data)
    tqdm.write(f"{args.out}: val zero-shot IP {last_value(run.log)}")


if __name__ == "__main__":
    main()
