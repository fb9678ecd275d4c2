"""Committed results: they speak of the committed lots and encoders, and stand where quoted."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lbutils.data.lots import ARMS, ROTATIONS, lots
from lbutils.measure import lots as experiment

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
REGISTERED = (ROOT / "data" / "mini" / "PREREGISTRATION.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def arms():
    return lots().set_index(["domain", "name"])


@pytest.fixture(scope="module")
def dealt():
    return experiment.results("lots")


@pytest.fixture(scope="module")
def swapped():
    return experiment.results("interventions")


def told(row):
    return f"{row.mean:.1f} [{row.low:.1f}, {row.high:.1f}]"


def test_measures_are_of_the_committed_lots(arms, dealt):
    for (rotation, _), own in dealt.groupby(["rotation", "seed"]):
        found = own.set_index(["domain", "name"])["arm"]
        assert found.to_dict() == arms[rotation].to_dict()
    values = dealt.select_dtypes("float")
    assert values.shape[1] == 8 and values.min().min() >= 0 and values.max().max() <= 100
    undealt = dealt["arm"] == "always"
    assert dealt.loc[~undealt, values.columns].notna().all(axis=None)
    assert dealt.loc[undealt, ["cluster", "learned_4"]].isna().all(axis=None)


def test_measures_are_of_encoders_that_differ_in_lots_and_seed_alone(dealt):
    data, told = ROOT / "data", {}
    for rotation, seed in dealt[["rotation", "seed"]].drop_duplicates().itertuples(index=False):
        # Weights of the second seed are not kept, for they would be 12 MB.
        place = data / "mini" / "encoder" / f"{rotation}-seed-{seed}" / "training.json"
        place = place if place.is_file() else data / "results" / f"{rotation}-seed-{seed}.json"
        told[rotation, seed] = json.loads(place.read_text())
        assert told[rotation, seed].pop("seed") == seed
        for of_the_day in ("seconds", "pairs_per_second", "val_zero_shot_ip"):
            del told[rotation, seed][of_the_day]
    for rotation in ROTATIONS:
        own = [record for (name, _), record in told.items() if name == rotation]
        assert own == [own[0]] * len(own)
    without_data = [{k: v for k, v in own.items() if k != "sha256"} for own in told.values()]
    assert without_data == [without_data[0]] * len(told)


def test_interventions_are_of_the_committed_lots(arms, swapped):
    keys = ["variant", "image_rotation", "text_rotation", "seed"]
    for (_, i, t, _), own in swapped.groupby(keys):
        own = own.set_index(["domain", "name"])
        for column, rotation in (("image_arm", ROTATIONS[i]), ("text_arm", ROTATIONS[t])):
            assert own[column].to_dict() == arms[rotation].to_dict()
    cells = experiment.text_cells(swapped)
    dealt_out = arms["lots-0"].isin(ARMS)
    assert len(cells) == dealt_out.sum() and np.isfinite(cells.to_numpy()).all()


def test_what_the_filter_keeps_is_of_the_committed_lots(arms):
    table, by_concept = experiment.results("filtered"), arms.set_index("concept_id")
    for rotation, own in table.groupby("rotation"):
        named = own.dropna(subset="concept_id").set_index("concept_id")["arm"]
        assert named.to_dict() == by_concept.loc[named.index, ROTATIONS[rotation]].to_dict()
        # The share that `interventions.py` keeps.
        assert own["kept"].sum() == pytest.approx(0.7 * own["pairs"].sum(), rel=0.001)
    assert table["rotation"].nunique() == len(ROTATIONS)
    assert (table["kept"] <= table["pairs"]).all()


def test_what_the_filters_judge_has_met_is_said(arms):
    """It lacks the names in captions that it judges; of captions without names it has met them."""
    for t in range(len(ROTATIONS)):
        judge = arms[ROTATIONS[(t + 2) % len(ROTATIONS)]]
        assert set(judge[arms[ROTATIONS[t]] == "both"]) == {"neither"}
        assert set(judge[arms[ROTATIONS[t]] == "image"]) == {"both"}
    assert "of these concepts it has met drawings and names" in REGISTERED
    assert "that encoder met these concepts by name" in FINDINGS


def test_a_second_drawing_is_worth_more_than_the_prior():
    own = experiment.results("worth").query("method == 'names'")
    own = own.assign(prior=own["knowledge"] != "none")
    wide = own.pivot_table("oop", ["rotation", "concept"], ["prior", "shots"])
    assert experiment.interval(wide[True, 1] - wide[False, 2])[2] < 0
    assert "worth less than a drawing" in FINDINGS


BEFORE = {
    "CoOp": {"lr": 0.05, "steps": 400, "ctx_init": "template"},
    "CoCoOp": {"lr": 0.2, "steps": 640, "batch_size": 1},
    "KgCoOp": {"lr": 0.05, "steps": 400, "weight": 0.5},
    "ProLIP": {"penalty": 0.0, "lr": 0.001, "steps": 1000},
}


def test_what_is_quoted_of_the_search_stands_in_its_table():
    """And what the four methods had where the search ended before it went on."""
    table = pd.read_csv(ROOT / "data" / "mini" / "selection_fewshot.csv")
    numbers = table.groupby("method")["setting"].nunique()
    for text in (README, FINDINGS):
        told = " ".join(text.split())
        assert re.search(rf"{numbers['names']} (of|for) ours,? (and )?up to {numbers.max()}", told)
    chosen = table[table["chosen"]].groupby("method")["oop"].mean()
    texts = FINDINGS.split("\n\n")
    (said,) = [own for own in texts if "selection_fewshot.csv`, three" in own]
    quoted = [chosen[method] for method in ("names", "FSNL", "CoOp", "GDA")]
    assert re.findall(r"\d+\.\d", said) == [f"{value:.1f}" for value in quoted]
    (said,) = [own for own in texts if "the search went on," in own]
    quoted = []
    for method, setting in BEFORE.items():
        own = table[(table["method"] == method) & (table["setting"] == json.dumps(setting))]
        assert len(own) == len(ROTATIONS)
        quoted += [own["oop"].mean(), chosen[method]]
    first = table[table["encoder"] == "lots-0-seed-0"].copy()
    first["steps"] = first["setting"].map(lambda setting: json.loads(setting).get("steps"))
    own = first[first["method"] == "CoOp"].assign(
        rest=lambda t: t["setting"].str.replace(r'"steps": \d+, ', "", regex=True)
    )
    wide = own.pivot(index="rest", columns="steps", values="oop")[[1000, 2000]].dropna()
    assert f"in {(wide[2000] > wide[1000]).sum()} of {len(wide)} settings" in said.replace(
        "\n", " "
    )
    assert re.findall(r"\d+\.\d", said) == [f"{value:.1f}" for value in quoted]
    kg = json.loads(table[table["chosen"] & (table["method"] == "KgCoOp")]["setting"].iloc[0])
    own = table[table["method"] == "KgCoOp"]["setting"].map(lambda setting: json.loads(setting))
    assert kg["lr"] == max(one["lr"] for one in own)


def test_verdicts_are_the_same_where_domains_are_drawn_again(dealt, monkeypatch):
    def over_domains(values):
        own = values.groupby(level="domain")
        sums, sizes = own.sum().to_numpy(), own.size().to_numpy()
        drawn = np.random.default_rng(0).integers(len(sums), size=(10_000, len(sums)))
        means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        return values.mean(), *np.percentile(means, [2.5, 97.5])

    before = experiment.verdicts(dealt)
    monkeypatch.setattr(experiment, "interval", over_domains)
    found = experiment.verdicts(dealt)
    assert list(found["verdict"]) == list(before["verdict"])
    (zero,) = found.query("id == 'lots_zero_shot'").itertuples()
    assert f"`zero_shot_all` has [{zero.low:.1f}, {zero.high:.1f}]" in REGISTERED


def test_the_pre_registration_is_filled_in(dealt, swapped):
    """Every verdict with its figure, and the effects on every measure."""
    judged = pd.concat([experiment.verdicts(dealt), experiment.text_verdict(swapped)])
    for row in judged.dropna().itertuples():
        assert f"| {row.figure} | {told(row)} | {row.verdict} |" in REGISTERED, row
    measures = [c for c in dealt if c in dealt.select_dtypes("float")]
    for measure, own in experiment.effects(dealt, measures).groupby("measure"):
        cells = " | ".join(told(row) for row in own.itertuples())
        assert f"| `{measure}` | {cells} |" in REGISTERED, measure
    number = dealt.groupby(["rotation", "seed"]).ngroups
    assert f"{number} encoders" in REGISTERED
    runs = swapped.groupby(["image_rotation", "text_rotation", "seed", "variant"]).ngroups
    assert f"{runs} text towers" in REGISTERED
    for row in experiment.variant_effects(swapped).itertuples():
        assert told(row) in REGISTERED, row
    registered = " ".join(REGISTERED.split())
    seeds = [own for _, own in dealt.groupby("seed")]
    parts = [experiment.effects(own, ["zero_shot_all", "cluster", "learned_4"]) for own in seeds]
    means = [own.set_index(["measure", "quantity"])["mean"] for own in parts]
    for pair in zip(*(own.filter(like="effect") for own in means), strict=True):
        assert "{:.1f} and {:.1f}".format(*pair) in registered, pair
    for effect in experiment.text_effects_by_seed(swapped).to_numpy().T:
        assert "{:.1f}, {:.1f} and {:.1f}".format(*effect) in registered
    shares = experiment.kept_shares(experiment.results("filtered"))
    assert all(f"{share:.1f} %" in REGISTERED for share in shares)
