"""Train text towers anew on frozen image towers of the lots: is it the text side that lacks names?

    python data/mini/make/interventions.py [--encoders data/mini/encoder] [--only infonce]

The image tower of rotation i reads the drawings, the captions of rotation t teach a new text
tower; all nine pairs (i, t), each with three seeds. A concept's arm in i says whether the image
tower met its drawings, and beside what captions; its arm in t, whether the text tower reads its
name. Variants change one thing of the cells i = t: SigLIP's sigmoid loss (Zhai et al. 2023) in
place of InfoNCE, at most 20 captions a label (the balancing of MetaCLIP, Xu et al. 2024), or the
70 % of the pairs that an encoder without name and drawings scores best (as LAION's curation by CLIP
score does).

Writes `data/results/interventions.csv`: for each cell, seed and concept the accuracy of zero-shot
classification of its test drawings among all names of its domain. A cell that is there is not
trained again. No weights are kept. Prints the estimates of the pre-registration. With ``--kept``
writes `data/results/filtered.csv` instead: how many pairs of each concept the filter keeps.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pretrain as P
import torch
import torch.nn.functional as F
from choose_zsnl import DATA, data_folder
from torch import Tensor, nn
from tqdm import tqdm

from lbutils import load_benchmark, load_encoder
from lbutils.data.benchmark import join
from lbutils.data.lots import ALWAYS, ROTATIONS, lot_pairs, lots
from lbutils.measure.lots import TEMPLATES, text_verdict, variant_effects
from lbutils.measure.metrics import per_class_accuracy
from lbutils.models import mini
from lbutils.models.features import image_features

RESULTS = DATA.parent / "results" / "interventions.csv"
FILTERED = RESULTS.with_name("filtered.csv")
VARIANTS = ("infonce", "sigmoid", "balanced", "filtered")
STEPS, VIEWS, SEEDS = 700, 2, (0, 1, 2)
MOST_CAPTIONS, KEPT = 20, 0.7


@dataclass(frozen=True)
class Tower:
    """A frozen image tower's features: of all training drawings, and of each domain's test ones."""

    encoder: Any
    views: Tensor  # (VIEWS, I, D), unit length
    tests: dict[str, tuple[Tensor, np.ndarray, tuple[str, ...]]]


def image_tower(encoder: Any, corpus: P.Corpus) -> Tower:
    """Features of augmented views of the corpus' images, and of the test drawings."""
    views = []
    with torch.no_grad():
        for view in range(VIEWS):
            draw = P.generator(0, "locked", view)
            parts = tqdm(corpus.images.split(512), f"view {view}", mininterval=1)
            found = [encoder.model.encode_image(P.augment(part, draw)) for part in parts]
            views.append(F.normalize(torch.cat(found), dim=-1))
    tests = {}
    for name, domain in load_benchmark("mini").items():
        test = join(domain.ip.test, domain.oop.test)
        tests[name] = (image_features(encoder, test), test.labels, test.names)
    return Tower(encoder, torch.stack(views), tests)


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, groups: Any) -> Tensor:
    """SigLIP's loss, a mean over images; pairs that share a group are neither for nor against."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T + bias
    sign = 2 * torch.eye(len(logits)) - 1
    terms = F.logsigmoid(sign * logits).masked_fill(P.alike(groups), 0)
    return -terms.sum() / len(logits)


def balanced(corpus: P.Corpus, seed: int) -> P.Corpus:
    """At most `MOST_CAPTIONS` captions a label, drawn by lot; pairs without any left are out."""
    rng = np.random.default_rng([seed, 5])
    owner = torch.repeat_interleave(torch.arange(len(corpus)), corpus.count)
    label = corpus.label[owner].numpy()
    order = rng.permutation(len(label))
    rank = pd.Series(label[order]).groupby(label[order]).cumcount().to_numpy()
    kept = np.zeros(len(label), dtype=bool)
    kept[order[rank < MOST_CAPTIONS]] = True
    return chosen(corpus, torch.from_numpy(kept))


def best(corpus: P.Corpus, judge: Tower) -> Tensor:
    """Whether a pair is of the share `KEPT` whose captions an encoder finds closest to their image.

    Bool ``(N,)``, by the mean cosine of a pair's captions.
    """
    with torch.no_grad():
        texts = torch.cat(
            [mini.encode_text(judge.encoder.model, part) for part in corpus.tokens.split(1024)]
        )
    owner = torch.repeat_interleave(torch.arange(len(corpus)), corpus.count)
    image = judge.views.mean(0)[corpus.image[owner]]
    cosine = F.cosine_similarity(image, texts[corpus.caption], dim=-1)
    score = torch.zeros(len(corpus)).index_add_(0, owner, cosine) / corpus.count
    return score >= score.quantile(1 - KEPT)


def filtered(corpus: P.Corpus, judge: Tower) -> P.Corpus:
    """The pairs that are `best`."""
    return chosen(corpus, torch.repeat_interleave(best(corpus, judge), corpus.count))


def kept_pairs(rotation: int, kept: np.ndarray) -> pd.DataFrame:
    """Of a rotation's pairs, how many of each concept and arm are `kept`, bool ``(N,)``.

    Pairs of concepts that were not dealt stand in one row without a concept.
    """
    pairs = lot_pairs(ROTATIONS[rotation]).query("scale == 'small'")
    dealt = pd.read_parquet(DATA / "lots.parquet", columns=["image_id", "concept_id"])
    concept = pairs["image_id"].map(dealt.drop_duplicates().set_index("image_id")["concept_id"])
    table = pd.DataFrame({"concept_id": concept.fillna("").to_numpy(), "kept": kept})
    found = table.groupby("concept_id")["kept"].agg(pairs="size", kept="sum").reset_index()
    arms = lots().set_index("concept_id")[ROTATIONS[rotation]]
    found.insert(1, "arm", found["concept_id"].map(arms).fillna(ALWAYS))
    return found.assign(rotation=rotation)


def chosen(corpus: P.Corpus, kept: Tensor) -> P.Corpus:
    """The corpus with some of its captions, ``(T,)`` bool, and the pairs that still have one."""
    owner = torch.repeat_interleave(torch.arange(len(corpus)), corpus.count)
    count = torch.bincount(owner[kept], minlength=len(corpus))
    some = count > 0
    return replace(
        corpus,
        image=corpus.image[some],
        label=corpus.label[some],
        count=count[some],
        first=count[some].cumsum(0) - count[some],
        caption=corpus.caption[kept],
    )


def train(tower: Tower, corpus: P.Corpus, vocabulary: int, seed: int, sigmoid: bool) -> nn.Module:
    """A model with a text tower trained on the tower's features, as `pretrain.py` trains both."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**mini.model_config(vocabulary)).train()
    model.visual.requires_grad_(False)
    bias = nn.Parameter(torch.tensor(-10.0))
    args = P.parse_arguments(["--seed", str(seed), "--steps", str(STEPS)])
    optimizer = P.make_optimizer(model, args)
    if sigmoid:
        optimizer.add_param_group({"params": [bias], "weight_decay": 0.0})
        model.logit_scale.data.fill_(math.log(10.0))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = P.Schedule(args, len(corpus))
    for step, rows in schedule.batches(0):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        draw = P.generator(seed, "step", step)
        choice = (torch.rand(len(rows), generator=draw) * corpus.count[rows]).long()
        caption = corpus.caption[corpus.first[rows] + choice]
        view = torch.randint(VIEWS, (len(rows),), generator=draw)
        image = tower.views[view, corpus.image[rows]]
        text = P.text_features(model, corpus.tokens[caption])
        groups = [corpus.label[rows], corpus.image[rows], caption]
        scale = model.logit_scale.exp()
        loss = (
            sigmoid_loss(image, text, scale, bias, groups)
            if sigmoid
            else P.contrastive_loss(image, text, scale, groups)
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, args.clip_norm)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(args.max_logit_scale))
    return model.eval()


@torch.no_grad()
def accuracies(model: nn.Module, tokenizer: Any, tower: Tower) -> pd.DataFrame:
    """Zero-shot accuracy of each concept among all names of its domain, in per cent."""
    parts = []
    for domain, (images, labels, names) in tower.tests.items():
        text = torch.zeros(())
        for template in TEMPLATES:
            tokens = tokenizer([template.format(name=name) for name in names])
            text = text + F.normalize(mini.encode_text(model, tokens), dim=-1)
        guess = (images @ F.normalize(text, dim=-1).T).argmax(1).numpy()
        right = 100 * per_class_accuracy(labels, guess, len(names))
        parts.append(pd.DataFrame({"domain": domain, "name": names, "zero_shot_all": right}))
    return pd.concat(parts, ignore_index=True)


def corpora(folder: Path) -> tuple[list[P.Corpus], P.Corpus, Any]:
    """The corpus of each rotation, that of all drawings, and the tokenizer they share.

    All number the drawings alike.
    """
    found = []
    for rotation in ROTATIONS:
        pairs = lot_pairs(rotation)
        data_folder(folder / rotation, pairs)
        if not found:
            every, tokenizer = P.load_corpus(folder / rotation / "mini", "large")
            place = {name: i for i, name in enumerate(sorted(set(pairs["image_id"])))}
        own, _ = P.load_corpus(folder / rotation / "mini", "small")
        trained = sorted(set(pairs.loc[pairs["scale"] == "small", "image_id"]))
        number = torch.tensor([place[name] for name in trained])
        found.append(replace(own, images=torch.empty(0), image=number[own.image]))
    return found, every, tokenizer


def cells(only: list[str]) -> list[tuple[str, int, int, int]]:
    """(variant, rotation of the image tower, rotation of the captions, seed), seed by seed."""
    return [
        (variant, i, t, seed)
        for seed in SEEDS
        for variant in only
        for i, t in itertools.product(range(len(ROTATIONS)), repeat=2)
        if variant == "infonce" or i == t
    ]


def table_of(cell: tuple[str, int, int, int], found: pd.DataFrame) -> pd.DataFrame:
    """The rows of a cell, with the arms of each concept."""
    variant, i, t, seed = cell
    arms = found[["domain", "name"]].merge(lots(), how="left", validate="one_to_one")
    rows = found.assign(variant=variant, image_rotation=i, text_rotation=t, seed=seed)
    image_arm, text_arm = (arms[ROTATIONS[k]].to_numpy() for k in (i, t))
    return rows.assign(image_arm=image_arm, text_arm=text_arm).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", type=Path, default=DATA / "encoder")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--kept", action="store_true", help="count what the filter keeps, no more")
    parser.add_argument("--work", type=Path, default=Path(".build/interventions"))
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    key = ["variant", "image_rotation", "text_rotation", "seed"]
    done = pd.read_csv(RESULTS) if RESULTS.is_file() else pd.DataFrame(columns=key)
    there = set(done[key].drop_duplicates().itertuples(index=False, name=None))
    wanted = [cell for cell in cells(args.only) if cell[-1] in args.seeds and cell not in there]
    if wanted or args.kept:
        rotations, every, tokenizer = corpora(args.work)

    @cache
    def tower(rotation: int) -> Tower:
        folder = args.encoders / f"{ROTATIONS[rotation]}-seed-0"
        return image_tower(load_encoder(f"local-dir:{folder}"), every)

    def judge(t: int) -> Tower:
        # Arm both of rotation t is arm neither two rotations on.
        return tower((t + 2) % len(ROTATIONS))

    if args.kept:
        tables = [kept_pairs(t, best(c, judge(t)).numpy()) for t, c in enumerate(rotations)]
        P.write(FILTERED, lambda path: pd.concat(tables).to_csv(path, index=False))
        return

    for cell in tqdm(wanted, "cells"):
        variant, i, t, seed = cell
        corpus = rotations[t]
        if variant == "balanced":
            corpus = balanced(corpus, seed)
        elif variant == "filtered":
            corpus = filtered(corpus, judge(t))
        model = train(tower(i), corpus, tokenizer.vocab_size, seed, variant == "sigmoid")
        rows = table_of(cell, accuracies(model, tokenizer, tower(i)))
        done = pd.concat([done, rows], ignore_index=True) if len(done) else rows
        P.write(RESULTS, lambda path, table=done: table.to_csv(path, index=False))
    print(text_verdict(done).drop(columns="id").round(1).to_string(index=False))
    print(variant_effects(done).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
