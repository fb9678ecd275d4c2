"""Measure the encoders of the lots, as `PREREGISTRATION.md` says.

    python data/mini/make/measure_lots.py [--encoders data/mini/encoder]

Writes `data/results/lots.csv`: for each rotation, seed and concept its arm and every measure, in
per cent. A rotation and seed that is there is not measured again; one whose encoder is not there
is left out, and said. Prints the estimates and verdicts of the pre-registration.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from lbutils import load_benchmark, load_encoder
from lbutils._util import write_text
from lbutils.data.benchmark import ROTATIONS, data_dir
from lbutils.measure.lots import effects, measure, verdicts

RESULTS = data_dir() / "results" / "lots.csv"
SEEDS = (0, 1)
MEASURES = (
    "zero_shot_all", "zero_shot_arm", "cluster", "centres", "retrieval", "learned_1", "learned_2",
    "learned_4",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", type=Path, default=data_dir() / "mini" / "encoder")
    folder = parser.parse_args().encoders
    done = pd.read_csv(RESULTS) if RESULTS.is_file() else pd.DataFrame()
    for seed in SEEDS:
        for rotation in ROTATIONS:
            place = folder / f"{rotation}-seed-{seed}"
            if len(done) and ((done["rotation"] == rotation) & (done["seed"] == seed)).any():
                continue
            if not (place / "training.json").is_file():
                print(f"{place} is not there: not run")
                continue
            benchmark = load_benchmark("mini", scale=rotation)
            found = measure(load_encoder(f"local-dir:{place}"), benchmark)
            found = found.assign(rotation=rotation, seed=seed).round(3)
            done = pd.concat([done, found], ignore_index=True)
            write_text(RESULTS, done.to_csv(index=False, lineterminator="\n"))
    if set(done.get("rotation", ())) == set(ROTATIONS):
        print(effects(done, MEASURES).round(1).to_string(index=False))
        print(verdicts(done).drop(columns="id").round(1).to_string(index=False))


if __name__ == "__main__":
    main()
