"""Which settings serve on OOP images: those chosen on classes of pre-training, or on others?

    python data/mini/make/compare_choices.py

Until `choose_rivals.py`, few-shot methods had the settings that were best where IP classes play OOP
(`choose.py`, `selection.csv`). An encoder has met the drawings of such classes. Here every method
is fitted on OOP classes with what was chosen there, and with what `choose_rivals.py` chose on
classes that its encoders met nowhere (`selection_fewshot.csv`): `SHOTS` shots, the first
committed draw, OOP test images over OOP names, mean of the nine domains. Nothing is chosen here.

Writes `data/results/choices.csv`: the method, on which classes (``chosen_on``) which ``setting``
was chosen, its accuracy there (``score``) and on OOP test images (``oop``), both in per cent.
Run `checksums.py` afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd
import torch
from choose_rivals import METHODS, SHOTS, TABLE, made

from lbutils import load_benchmark, load_encoder
from lbutils._util import write_text
from lbutils.data.benchmark import data_dir
from lbutils.measure import joint, tasks

RESULTS = data_dir() / "results" / "choices.csv"
DRAWS = 1


class Choice(NamedTuple):
    """A method's setting, and how good it was where it was chosen."""

    method: str
    chosen_on: str
    setting: dict[str, Any]
    score: float


def choices() -> Iterator[Choice]:
    """Both choices of every method that was searched twice, but ours, whose choice is the same."""
    tables = {
        "classes of pre-training": pd.read_csv(data_dir() / "mini" / "selection.csv"),
        "classes never met": pd.read_csv(TABLE),
    }
    tables = {kind: table[table["chosen"]] for kind, table in tables.items()}
    both = set.intersection(*(set(table["method"]) for table in tables.values()))
    for method in (m for m in METHODS if m in both - {"names"}):
        for kind, table in tables.items():
            own = table[table["method"] == method]
            yield Choice(method, kind, json.loads(own["setting"].iloc[0]), own["oop"].mean())


def main() -> None:
    torch.set_num_threads(1)
    encoder, benchmark = load_encoder("mini"), load_benchmark("mini")
    every = list(choices())
    makers = {f"{c.method} | {c.chosen_on}": made(c.method, c.setting) for c in every}
    ran = tasks.run(encoder, benchmark, makers, shots=[SHOTS], draws=range(DRAWS), workers=2)
    rows = [
        {
            **choice._asdict(),
            "setting": json.dumps(choice.setting),
            "score": round(choice.score, 2),
            "oop": round(100 * joint.value(ran.scores[key, SHOTS], "oop_separate"), 2),
        }
        for choice, key in zip(every, makers, strict=True)
    ]
    table = pd.DataFrame(rows)
    write_text(RESULTS, table.to_csv(index=False, lineterminator="\n"))
    print(table.drop(columns="setting").to_string(index=False))


if __name__ == "__main__":
    main()
