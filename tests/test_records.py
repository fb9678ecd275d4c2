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
from conftest import examples
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


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
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


@settings(max_examples=examples(30))
@given(st.dictionaries(st.text(max_size=4), SCALAR, min_size=1, max_size=4))
def test_the_file_name_depends_on_the_key_alone(tmp_path_factory, key):
    folder = tmp_path_factory.mktemp("records")
    one = records.write_record(folder, "k", key, [METRIC], provenance={})
    two = records.write_record(folder, "k", dict(reversed(list(key.items()))), provenance={"x": 1})
    assert one == two and Path(one).exists()


def test_settings_keep_records_apart(tmp_path):
    food = {"domains": ["Food"]}
    for made, value in (({}, 0.5), (food, 0.9), (food, 0.8)):
        claim = {**CLAIM, "ours": value}
        path = records.write_record(
            tmp_path, "k", KEY, [{**METRIC, "value": value}], settings=made, claims=[claim]
        )
        assert records.read_record(path)["settings"] == made
    table = records.collect(tmp_path)
    assert table.set_index("settings")["value"].to_dict() == {
        "{}": 0.5,
        '{"domains":["Food"]}': 0.8,
    }
    claims = records.collect_claims(tmp_path).set_index("settings")["ours"]
    assert claims.to_dict() == {"{}": 0.5, '{"domains":["Food"]}': 0.8}
    # The default's file has the name that it always had.
    assert records.write_record(tmp_path / "old", "k", KEY).name in {
        file.name for file in tmp_path.iterdir()
    }


def test_a_record_of_before_settings_is_of_unknown_ones(tmp_path):
    path = records.write_record(tmp_path, "k", KEY, [METRIC], claims=[CLAIM])
    record = json.loads(path.read_text())
    del record["settings"]
    path.write_text(json.dumps(record))
    assert records.read_record(path)["settings"] is None
    assert records.collect(tmp_path)["settings"].isna().all()
    assert records.collect_claims(tmp_path)["settings"].isna().all()


@pytest.mark.parametrize(
    "damage",
    [
        {"metrics": {}},
        {"metrics": [1]},
        {"metrics": [{"metric": "m"}]},
        {"metrics": [{"metric": "m", "value": "high"}]},
        {"metrics": [{"metric": "m", "value": 1, "more": 2}]},
        {"claims": None},
        {"claims": [{"verdict": "reproduced"}]},
        {"key": []},
        {"settings": "none"},
        {"kind": 3},
    ],
)
def test_what_is_wrong_within_a_record_is_named_and_can_be_passed_over(tmp_path, damage):
    good = records.write_record(tmp_path, "good", KEY, [METRIC], claims=[CLAIM])
    bad = records.write_record(tmp_path, "bad", KEY)
    bad.write_text(json.dumps(json.loads(bad.read_text()) | damage))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "folder.json").mkdir()
    (tmp_path / "records" / "deep.json").write_text("[" * 100_000)
    for read in (records.collect, records.collect_claims):
        with pytest.raises(ValueError, match="is not a readable record"):
            read(tmp_path)
        troubles = []
        assert read(tmp_path, troubles=troubles)["record"].tolist() == [good.name]
        assert len(troubles) == 3 and any(bad.name in trouble for trouble in troubles)


def test_rows_that_disagree_can_be_kept(tmp_path):
    for kind, value in (("a", 0.5), ("b", 0.6)):
        records.write_record(tmp_path, kind, KEY, [{**METRIC, "value": value}])
    troubles = []
    assert records.collect(tmp_path, troubles=troubles)["value"].tolist() == [0.5, 0.6]
    assert len(troubles) == 1 and "has different values in" in troubles[0]


def test_temporaries_of_processes_that_are_gone_are_removed(tmp_path):
    script = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from lbutils._util import replacing\n"
        "with replacing(Path(sys.argv[1], 'a.json')) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    temporary.with_name('.tmpa1b2c3').write_text('as safetensors does')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (orphan,) = tmp_path.iterdir()
    # Of a process that runs, of another machine, and of before names had machines.
    dead = int(orphan.name.rsplit(".", 2)[1].split("-")[1])
    living = orphan.with_name(orphan.name.replace(f"-{dead}-", f"-{os.getpid()}-"))
    elsewhere = tmp_path / f".b.json.elsewhere-{dead}-01234567.tmp"
    older = tmp_path / f".b.json.{dead}-01234567.tmp"
    foreign = tmp_path / ".mine.tmp"
    for file in (living, elsewhere, older, foreign):
        file.write_text("")
    os.utime(older, (0, 0))
    os.utime(foreign, (0, 0))
    records.write_record(tmp_path / "other.json", "k", KEY)
    assert {file for file in tmp_path.iterdir() if file.suffix == ".tmp"} == {
        living,
        elsewhere,
        foreign,
    }
