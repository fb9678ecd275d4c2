"""Choose the settings of zero-shot name learning on IP classes that play OOP.

    python data/mini/make/choose_zsnl.py

In an episode one half of a domain's IP classes plays OOP: its classes get names of real OOP classes
of the domain, whose rows the encoder knows as little as any, while vectors and descriptions
are of the classes themselves; the map from language has met no label with a name of any IP class.
Half of the training images of the other classes is labelled, the other half is mixed with the
images that play OOP, and candidates are their names and the OOP names of all other domains.
Scores come from validation images. No OOP image and no test image is read.

Writes `selection_zsnl.csv`: for each setting, means over domains, halves and divisions of the
accuracy among the names that play OOP, with all three oracles (oop_oracles) and with none (oop);
the same over all candidates (oop_candidates); the share of the pool's OOP images that got their
name (named); accuracy of IP images on the joint vocabulary, less that of zero-shot (ip_change).
One argument differs from the defaults in each row. Chosen are the defaults: see the sum of
oop_oracles and oop, with ip_change above -2. Run `checksums.py` afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from lbutils import load_benchmark, load_encoder
from lbutils.features import image_features
from lbutils.knowledge import Knowledge, Lexicon, load_lexicon
from lbutils.zeroshot import text_features
from lbutils.zsnl import ZeroShotNameLearner

DATA = Path(__file__).parent.parent
ALL = ("language", "descriptions", "hints")
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    *({"margin": margin} for margin in (1.0, 2.0, 3.0, 4.0)),
    *({"matching": matching} for matching in ("hungarian", "sinkhorn", "nearest")),
    {"matching": "hungarian", "gap": "mean"},
    *({"sources": sources} for sources in (ALL[:1], ALL[:2], ALL[1:])),
    *({"prior": prior} for prior in (0.5, 2.0, 4.0)),
    *({"concentration": value} for value in (10.0, 30.0)),
    *({"iterations": count} for count in (1, 5)),
    {"rounds": 2},
    *({"image_weight": weight} for weight in (0.0, 0.25, 1.0)),
    *({"steps": 8}, {"steps": 30}),
    *({"quantile": 0.0}, {"quantile": 0.5}),
)


class Episode(NamedTuple):
    """Images and names of a domain of which one half plays OOP; labels count within each half."""

    hint: str
    known: list[str]
    new: list[str]
    lexicon: Lexicon
    distractors: list[str]
    labelled: tuple[Tensor, np.ndarray]
    pool: tuple[Tensor, np.ndarray]
    oop: tuple[Tensor, np.ndarray]
    ip: tuple[Tensor, np.ndarray]


def episodes(encoder: Any, bench: Any, lexicon: Lexicon, divisions: int) -> Iterator[Episode]:
    """Every domain, half and division of which both sides have two classes or more."""
    for domain in bench.values():
        ip = domain.ip
        train, val = image_features(encoder, ip.train), image_features(encoder, ip.val)
        others = [
            name for other in bench.values() if other is not domain for name in other.oop.names
        ]
        for division in range(divisions):
            rng = np.random.default_rng(division)
            order = rng.permutation(len(ip.names))
            for playing in (order[::2], order[1::2]):
                rest = np.setdiff1d(order, playing)
                if min(len(playing), len(rest)) < 2:
                    continue
                place = np.empty(len(order), dtype=np.int64)
                place[rest] = np.arange(len(rest))
                place[playing] = len(rest) + np.arange(len(playing))
                of_train, of_val = place[ip.train.labels], place[ip.val.labels]
                shown = np.zeros(len(of_train), dtype=bool)
                for k in range(len(rest)):
                    own = rng.permutation(np.flatnonzero(of_train == k))
                    shown[own[: -(-len(own) // 2)]] = True
                fake = list(domain.oop.names[: len(playing)])
                unseen = of_val >= len(rest)
                yield Episode(
                    domain.hint,
                    [ip.names[k] for k in rest],
                    fake,
                    aliased(lexicon, dict(zip(fake, (ip.names[k] for k in playing), strict=True))),
                    others,
                    (train[shown], of_train[shown]),
                    (train[~shown], of_train[~shown]),
                    (val[unseen], of_val[unseen] - len(rest)),
                    (val[~unseen], of_val[~unseen]),
                )


def aliased(lexicon: Lexicon, aliases: dict[str, str]) -> Lexicon:
    """The lexicon in which a name says what the other name does."""
    vectors = {**lexicon.vectors, **{a: lexicon.vectors[b] for a, b in aliases.items()}}
    phrases = {**lexicon.phrases, **{a: lexicon.phrases[b] for a, b in aliases.items()}}
    return lexicon._replace(vectors=vectors, phrases=phrases)


def scores(encoder: Any, episode: Episode, knowledge: Knowledge, options: Any) -> dict[str, float]:
    """What the table has, in per cent, of one episode."""
    knowledge.hint, knowledge.lexicon = episode.hint, episode.lexicon
    images, labels = episode.pool
    new = labels >= len(episode.known)
    common = {
        "known": episode.known,
        "labelled": episode.labelled[0],
        "labels": episode.labelled[1],
    }
    candidates = episode.new + episode.distractors
    free = ZeroShotNameLearner(encoder, knowledge, **options).fit(images, candidates, **common)
    told = ZeroShotNameLearner(encoder, knowledge, **options).fit(
        images,
        candidates,
        **common,
        n_classes=len(np.unique(labels[new])),
        membership=new,
        vocabulary=episode.new,
    )
    columns = free.columns(episode.new)
    texts = text_features(encoder, episode.known)
    before = torch.cat([texts, text_features(encoder, episode.new)])
    after = torch.cat([texts, free.classifier_[columns]])
    joint = [hits(episode.ip, rows) for rows in (after, before)]
    named = free.weights_[torch.from_numpy(new)].argmax(dim=1).numpy() == labels[new]
    return {
        "oop_oracles": 100 * hits(episode.oop, told.classifier_),
        "oop": 100 * hits(episode.oop, free.classifier_[columns]),
        "oop_candidates": 100 * hits(episode.oop, free.classifier_),
        "named": 100 * float(named.mean()),
        "ip_change": 100 * (joint[0] - joint[1]),
    }


def hits(images: tuple[Tensor, np.ndarray], rows: Tensor) -> float:
    """Share of images whose row is the nearest."""
    return float(((images[0] @ rows.T).argmax(dim=1).numpy() == images[1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--divisions", type=int, default=2, help="divisions into halves")
    divisions = parser.parse_args().divisions
    encoder, bench, lexicon = load_encoder("mini"), load_benchmark("mini"), load_lexicon()
    every = [name for domain in bench.values() for name in domain.ip.names]
    cases = list(episodes(encoder, bench, lexicon, divisions))
    rows = []
    made: dict[str, Knowledge] = {}
    for setting in tqdm(SETTINGS, desc="settings"):
        options = dict(setting)
        told = {k: options.pop(k) for k in ("quantile",) if k in options}
        sources = options.pop("sources", ALL)
        key = f"{sources} {told}"
        if key not in made:
            made[key] = Knowledge(encoder, lexicon, sources, hint="animal", hold_out=every, **told)
        knowledge = made[key]
        table = pd.DataFrame([scores(encoder, case, knowledge, options) for case in cases])
        name = ", ".join(f"{key}={value}" for key, value in setting.items())
        rows.append(
            {"setting": name or "defaults", "episodes": len(cases), **table.mean().round(2)}
        )
        tqdm.write(str(rows[-1]))
        pd.DataFrame(rows).to_csv(DATA / "selection_zsnl.csv", index=False)


if __name__ == "__main__":
    main()
