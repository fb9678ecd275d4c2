import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbutils.measure import records

KEY = {"benchmark": "mini", "encoder": "mini", "seed": 0}
METRIC = {"method": "zero-shot", "domain": "Food", "metric": "accuracy", "value": 0.5}
CLAIM = {"id": "ip_cost", "verdict": "reproduced", "ours": np.float32(0.25)}


def test_round_trip(tmp_path):
    path = records.write_record(
        tmp_path,
        "03_zero_shot",
        KEY,
        [{**METRIC, "low": 0.4, "high": np.float64(0.6)}],
        claims=[CLAIM],
    )
    record = records.read_record(path)
    assert record["key"] == KEY
    assert record["metrics"][0]["high"] == 0.6 and record["metrics"][0]["shots"] is None
    assert record["claims"][0]["ours"] == 0.25 and record["claims"][0]["note"] is None
    assert set(record["provenance"]) == {
        "python",
        "packages",
        "commit",
        "platform",
        "threads",
        "seed",
        "time",
    }
    table = records.collect(tmp_path)
    assert table.loc[0, "value"] == 0.5 and table.loc[0, "record"] == path.name


def test_the_same_run_replaces_its_record(tmp_path):
    first = records.write_record(tmp_path, "k", KEY, [METRIC])
    second = records.write_record(
        tmp_path, "k", dict(reversed(KEY.items())), [{**METRIC, "value": 0.7}]
    )
    assert first == second
    assert records.collect(tmp_path)["value"].tolist() == [0.7]
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_another_key_is_another_record(tmp_path):
    for seed in (0, 1):
        metric = {**METRIC, "seed": seed}
        records.write_record(tmp_path, "k", {**KEY, "seed": seed}, [metric])
    table = records.collect(tmp_path)
    assert table["seed"].tolist() == [0, 1] and str(table["seed"].dtype) == "Int64"
    assert len(records.collect(tmp_path, kind="other")) == 0


def test_one_key_in_two_records_that_disagree_names_both(tmp_path):
    paths = [
        records.write_record(tmp_path, kind, KEY, [{**METRIC, "value": value}])
        for kind, value in (("a", 0.5), ("b", 0.6))
    ]
    with pytest.raises(ValueError, match="has different values in") as error:
        records.collect(tmp_path)
    assert all(path.name in str(error.value) for path in paths)
    assert len(records.collect(tmp_path, kind="a")) == 1


def test_one_key_in_two_records_that_agree_is_one_row(tmp_path):
    for kind in ("a", "b"):
        records.write_record(tmp_path, kind, KEY, [METRIC, {**METRIC, "domain": kind}])
    assert len(records.collect(tmp_path)) == 3


def test_one_key_twice_in_a_record(tmp_path):
    with pytest.raises(ValueError, match="two metrics of one record"):
        records.write_record(tmp_path, "k", KEY, [METRIC, {**METRIC, "value": 0.1}])
    assert list(tmp_path.iterdir()) == []


def test_integers_with_gaps_keep_their_identity(tmp_path):
    frame = pd.DataFrame([{**METRIC, "shots": 4}, {**METRIC, "shots": None}])
    assert frame["shots"].dtype == float
    path = records.write_record(tmp_path, "k", KEY, frame)
    assert [row["shots"] for row in records.read_record(path)["metrics"]] == [4, None]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({**METRIC, "domian": "Food"}, "Did you mean 'domain'"),
        ({"metric": "accuracy"}, "without 'value'"),
        ({"value": 1.0}, "without 'metric'"),
        ({**METRIC, "value": math.inf}, "infinite"),
    ],
)
def test_bad_metrics(tmp_path, metric, message):
    with pytest.raises(ValueError, match=message):
        records.write_record(tmp_path, "k", KEY, [metric])


def test_bad_claims_and_params(tmp_path):
    with pytest.raises(ValueError, match="unknown verdict 'Reproduced'.*Did you mean 'reproduced'"):
        records.write_record(tmp_path, "k", KEY, claims=[{"id": "x", "verdict": "Reproduced"}])
    with pytest.raises(TypeError, match="cannot hold set"):
        records.write_record(tmp_path, "k", KEY, params={"x": {1, 2}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "k"}', "\x00\x01"])
def test_a_corrupt_record_is_named(tmp_path, content):
    bad = tmp_path / "records" / "bad.json"
    bad.parent.mkdir()
    bad.write_text(content)
    for read in (records.collect, records.collect_claims):
        with pytest.raises(ValueError, match="bad.json.*run its notebook again"):
            read(tmp_path)


def test_killed_in_the_middle_keeps_the_old_record(tmp_path):
    path = records.write_record(tmp_path, "k", KEY, [METRIC])
    before = path.read_text()
    script = (
        "import sys, time\n"
        "from lbutils.measure import records\n"
        "def hang(_):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "records.os.fsync = hang\n"
        f"records.write_record(sys.argv[1], 'k', {KEY!r}, [{ {**METRIC, 'value': 0.9}!r}])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_text() == before
    assert records.collect(tmp_path)["value"].tolist() == [0.5]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    path = records.write_record(tmp_path, "k", KEY, [METRIC])
    before = path.read_text()

    def fail(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(records.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        records.write_record(tmp_path, "k", KEY, [{**METRIC, "value": 0.9}])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == before


def test_claims_newest_wins(tmp_path):
    for age, (kind, ours) in enumerate([("new", 1.0), ("old", 2.0)]):
        path = records.write_record(
            tmp_path / "records", kind, KEY, claims=[{**CLAIM, "ours": ours}]
        )
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    claims = records.collect_claims(tmp_path)
    assert (
        claims["ours"].tolist() == [1.0] and claims["record"].str.startswith("records/new-").all()
    )


def test_collect_finds_records_of_many_runs_and_nothing_else(tmp_path):
    for seed in range(3):
        folder = tmp_path / f"run-{seed}"
        records.write_record(folder / "records", "k", {"seed": seed}, [{**METRIC, "seed": seed}])
        (folder / "run.json").write_text("{}")
        (folder / "other.json").write_text("not a record")
    assert records.collect(tmp_path)["seed"].tolist() == [0, 1, 2]
    assert records.collect(tmp_path / "run-1" / "records")["seed"].tolist() == [1]


def test_tables(tmp_path):
    records.write_record(tmp_path, "k", KEY, [METRIC])
    table = records.collect(tmp_path)
    again = pd.read_csv(records.write_table(table, tmp_path / "t.csv"))
    assert again["value"].tolist() == [0.5]
    again = pd.read_parquet(records.write_table(table, tmp_path / "t.parquet"))
    assert list(again.columns) == list(table.columns)
    with pytest.raises(ValueError, match="unknown table format"):
        records.write_table(table, tmp_path / "t.pkl")


def test_empty_folder(tmp_path):
    assert len(records.collect(tmp_path)) == 0
    assert len(records.collect_claims(tmp_path)) == 0


def test_provenance_outside_a_repository(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(records.subprocess, "run", absent)
    assert records.provenance_of(3)["commit"] is None
    assert records.provenance_of(np.int64(3))["seed"] == 3


SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8),
    st.floats(allow_infinity=False),
)  # fmt: skip
ROW = st.fixed_dictionaries(
    {"metric": st.text(min_size=1, max_size=5), "value": st.floats(allow_infinity=False)},
    optional={
        "method": st.text(max_size=5),
        "domain": st.text(max_size=5),
        "shots": st.integers(0, 16),
        "seed": st.integers(0, 2**31),
        "low": st.floats(allow_infinity=False),
    },
)


def identity(row):
    return tuple(row.get(name) for name in records.KEY)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(ROW, max_size=6, unique_by=identity),
    params=st.dictionaries(st.text(max_size=5), st.recursive(SCALAR, st.lists, max_leaves=5)),
)
def test_anything_written_comes_back(tmp_path_factory, rows, params):
    folder = tmp_path_factory.mktemp("records")
    path = records.write_record(folder, "k", KEY, rows, params=params, provenance={})
    text = path.read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
    table = records.collect(folder)
    expected = {identity(row): row for row in rows}
    assert len(table) == len(expected)
    for row in records.read_record(path)["metrics"]:
        value = expected[identity(row)]["value"]
        assert row["value"] is None if math.isnan(value) else row["value"] == value


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.text(max_size=4), SCALAR, min_size=1, max_size=4))
def test_the_file_name_depends_on_the_key_alone(tmp_path_factory, key):
    folder = tmp_path_factory.mktemp("records")
    one = records.write_record(folder, "k", key, [METRIC], provenance={})
    two = records.write_record(folder, "k", dict(reversed(list(key.items()))), provenance={"x": 1})
    assert one == two and Path(one).exists()
