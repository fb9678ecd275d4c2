"""Choose the settings of zero-shot name learning on IP classes that an encoder has not met.

    python data/mini/make/choose_zsnl.py withhold .build/withheld
    python data/mini/make/pretrain.py --data .build/withheld/mini --steps 1600 --eval-every 4 \
        --out .build/withheld/encoder
    python data/mini/make/choose_zsnl.py choose .build/withheld/encoder

Classes of which the encoder knows drawings and name are no stand-in for OOP classes here: their
drawings lie where their names, and names like theirs, have drawn them. So half of each domain's IP
classes is withheld from a shorter pre-training, pairs and captions alike, and plays OOP. Of the
withheld classes most images are unlabelled, the others are for scores; of the rest training images
are labelled, and validation images are divided between the two. Distractors are the names that
play OOP in other domains, and the real OOP names there. No OOP image and no test image is read.

Writes `selection_zsnl.csv`: for each setting, means over domains and divisions, in per cent, of
the accuracy among the names that play OOP with all three oracles (oop_oracles) and with none (oop),
the accuracies of OOP and IP images over known names and all candidates (oop_wide, ip_wide, and
zero-shot's ip_wide_before), the share of unlabelled OOP images that got their name (right), the
accuracy of IP images on the joint vocabulary of the benchmark less that of zero-shot (ip_change;
with all oracles ip_change_oracles), and of OOP images there (oop_joint). Settings are compared by
the mean of the first two where ip_change is above -2; the default stays unless another gains half a
point, as in `choose.py`. The script continues a table that was begun: after a change of defaults
or of code, delete it first. Run `checksums.py` afterwards.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lbutils import load_benchmark, load_encoder
from lbutils.captions.text import canonical
from lbutils.learn.colours import colour_shares
from lbutils.learn.knowledge import Knowledge, load_lexicon
from lbutils.measure import joint
from lbutils.measure.mixtures import ORACLES, Mixture
from lbutils.models.features import image_features
from lbutils.rivals.probes import ZeroShot
from lbutils.unlabelled.zsnl import ZeroShotNameLearner

DATA = Path(__file__).parent.parent
SOURCES = ("language", "descriptions", "colours", "hints")
WITHHELD = "withheld.json"
TABLE = DATA / "selection_zsnl.csv"
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    *({"margin": margin} for margin in (-2.0, 0.0, 4.0)),
    *({"matching": matching} for matching in ("hungarian", "sinkhorn", "nearest")),
    *({"sources": SOURCES[:k]} for k in (1, 2, 3)),
    {"sources": ("language", "colours", "hints")},
    {"sources": ("descriptions", "colours", "hints")},
    *({"prior": prior} for prior in (0.5, 1.0, 3.0, 4.0)),
    *({"concentration": value} for value in (10.0, 30.0)),
    *({"iterations": count} for count in (1, 5)),
    {"rounds": 2},
    *({"image_weight": weight} for weight in (0.0, 0.5, 1.0)),
    *({"steps": 8}, {"steps": 30}),
    *({"quantile": 0.0}, {"quantile": 0.5}),
    *({"sharpness": 20.0}, {"least": 0.5}, {"anchor_weight": 2.0}, {"temperature": 1.0}),
)
# Which defaults of the learner and of its knowledge the first row names.
HELD = (
    *("matching", "prior", "concentration", "iterations", "rounds", "image_weight"),
    *("anchor_weight", "least", "margin", "temperature", "lr", "steps", "min_rows"),
    *("gamma", "alpha", "sharpness", "quantile"),
)


def defaults() -> str:
    """Name of the first setting, with the values that are in force where the others say nothing."""
    known = (
        inspect.signature(Knowledge).parameters | inspect.signature(ZeroShotNameLearner).parameters
    )
    return f"defaults ({', '.join(f'{name}={known[name].default}' for name in HELD)})"


def withheld_names() -> dict[str, list[str]]:
    """Every second IP name of each domain, after a shuffle of its own."""
    bench, found = load_benchmark("mini"), {}
    for name, domain in bench.items():
        order = np.random.default_rng(7).permutation(len(domain.ip.names))
        found[name] = sorted(domain.ip.names[i] for i in order[::2])
    return found


def withhold(folder: Path) -> None:
    """Write a data folder whose pairs tell none of the withheld names, in any plain inflection."""
    names = withheld_names()
    longest = sorted((canonical(n) for own in names.values() for n in own), key=len, reverse=True)
    told = re.compile(rf"\b({'|'.join(map(re.escape, longest))})(e?s)?\b")
    pairs = pd.read_parquet(DATA / "pairs.parquet").query("scale == 'small'")
    pairs = pairs[[not told.search(canonical(label)) for label in pairs["label"]]]
    kept = [[c for c in own if not told.search(canonical(c))] for own in pairs["captions"]]
    pairs = pairs.assign(captions=kept)
    pairs = pairs[[len(own) > 0 for own in kept]]
    data_folder(folder, pairs)
    (folder / WITHHELD).write_text(json.dumps(names, indent=1))
    print(f"{len(longest)} names withheld, {len(pairs)} pairs left, in {folder}")


def data_folder(folder: Path, pairs: pd.DataFrame) -> None:
    """A data folder for `pretrain.py` with these pairs; all else is linked."""
    (folder / "mini").mkdir(parents=True, exist_ok=True)
    pairs.to_parquet(folder / "mini" / "pairs.parquet", index=False)
    kept = (*DATA.glob("images-*.parquet"), DATA / "samples.parquet", DATA / "concepts.csv")
    links = {folder / "mini" / file.name: file for file in kept}
    for path, target in (links | {folder / "prompts": DATA.parent / "prompts"}).items():
        path.unlink(missing_ok=True)
        path.symlink_to(target.resolve())


def divided(labels: np.ndarray, share: float, rng: Any) -> np.ndarray:
    """Whether an image is in the first part: a share of each class, one at least."""
    first = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        first[own[: max(1, round(share * len(own)))]] = True
    return first


def episodes(encoder: Any, bench: Any, names: Any, divisions: int) -> Iterator[Mixture]:
    """A mixture of known and withheld IP classes for each domain and division."""
    for name, domain in bench.items():
        ip = domain.ip
        new = np.isin(ip.names, names[name])
        place = np.where(new, (~new).sum() + new.cumsum() - 1, (~new).cumsum() - 1)
        images = torch.cat([image_features(encoder, part) for part in (ip.train, ip.val)])
        labels = place[np.concatenate([ip.train.labels, ip.val.labels])]
        colours = np.concatenate([colour_shares(part) for part in (ip.train, ip.val)])
        known = labels < (~new).sum()
        labelled = known & (np.arange(len(labels)) < len(ip.train))
        rest = np.flatnonzero(~labelled)
        away = [
            n for d in bench.values() if d is not domain for n in (*d.oop.names, *names[d.name])
        ]
        for division in range(divisions):
            rng = np.random.default_rng(division)
            half = divided(labels[rest], 0.5, rng)
            most = divided(labels[rest], 0.75, rng)
            pool = np.where(known[rest], half, most)
            yield Mixture(
                name,
                domain.hint,
                division,
                tuple(np.array(ip.names)[~new]),
                tuple(np.array(ip.names)[new]),
                tuple(away),
                np.zeros(new.sum(), dtype=bool),
                images[labelled],
                labels[labelled],
                images[rest[pool]],
                labels[rest[pool]],
                (),
                colours[rest[pool]],
                images[rest[~pool]],
                labels[rest[~pool]],
            )


def scores(encoder: Any, mixture: Mixture, knowledge: Knowledge, options: Any) -> dict[str, float]:
    """What the table has of one episode, in per cent."""
    options = {**options, "hint": mixture.hint}
    free = mixture.fit(ZeroShotNameLearner(encoder, knowledge, **options))
    told = mixture.fit(ZeroShotNameLearner(encoder, knowledge, **options), ORACLES)
    before = mixture.zero_shot(ZeroShot(encoder))
    runs = {key: {"": [mixture.score(m)]} for key, m in (("", free), ("told", told))}
    runs["before"] = {"": [mixture.score(before)]}
    value = {
        (key, measure): 100 * joint.value(run, measure)
        for key, run in runs.items()
        for measure in ("oop_separate", "oop_joint", "ip_joint")
    }
    return {
        "oop_oracles": value["told", "oop_separate"],
        "oop": value["", "oop_separate"],
        **{k: 100 * v for k, v in mixture.among_candidates(free).items()},
        "ip_wide_before": 100 * mixture.among_candidates(before)["ip_wide"],
        "right": 100 * mixture.budget(free)["right"],
        "ip_change": value["", "ip_joint"] - value["before", "ip_joint"],
        "oop_joint": value["", "oop_joint"],
        "ip_change_oracles": value["told", "ip_joint"] - value["before", "ip_joint"],
    }


def choose(folder: Path, divisions: int, only: Sequence[str]) -> None:
    """Write the table, row by row, and go on with one that was begun."""
    encoder = load_encoder(f"local-dir:{folder}", crop_scale=(0.8, 1.0))
    bench, lexicon, names = load_benchmark("mini"), load_lexicon(), withheld_names()
    hold_out = [name for own in names.values() for name in own]
    cases = list(episodes(encoder, bench, names, divisions))
    made: dict[str, Knowledge] = {}
    begun = pd.read_csv(TABLE) if TABLE.exists() and not only else pd.DataFrame({"setting": []})
    rows = begun.to_dict("records")
    for setting in tqdm(SETTINGS, desc="settings"):
        name = ", ".join(f"{key}={value}" for key, value in setting.items()) or defaults()
        if name in set(begun["setting"]) or (only and not any(part in name for part in only)):
            continue
        options = dict(setting)
        told = {k: options.pop(k) for k in ("quantile", "sharpness") if k in options}
        sources = options.pop("sources", SOURCES)
        key = f"{sources} {told}"
        if key not in made:
            made[key] = Knowledge(encoder, lexicon, sources, hold_out=hold_out, **told)
        table = pd.DataFrame([scores(encoder, case, made[key], options) for case in cases])
        rows.append({"setting": name, "episodes": len(cases), **table.mean().round(2)})
        tqdm.write(" ".join(f"{k}={v}" for k, v in rows[-1].items()))
        if not only:
            pd.DataFrame(rows).to_csv(TABLE, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("withhold", "choose"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--divisions", type=int, default=3, help="of images into pool and scores")
    parser.add_argument("--only", nargs="*", default=[], help="settings with such a part; no table")
    args = parser.parse_args()
    if args.step == "withhold":
        withhold(args.folder)
    else:
        choose(args.folder, args.divisions, args.only)


if __name__ == "__main__":
    main()
