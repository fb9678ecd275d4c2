from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import save_notebook

from lbutils import _util
from lbutils.measure import published, records
from lbutils.run import commands, parameters, sweeps
from lbutils.run import notebooks as runs
from lbutils.run.page import claims_table, format_claims

pytestmark = pytest.mark.usefixtures("full_runs")
DATA = Path(__file__).resolve().parents[1] / "data"
PARAMETERS = """
seed = 0
rate: float = 0.5
domains = None
encoder = "mini"
out = ""
"""
WORK = """
from pathlib import Path
from lbutils.measure.records import write_record

place = Path(out)
(place / "figures").mkdir(parents=True, exist_ok=True)
(place / "figures" / "one_figure.png").write_bytes(b"not looked at")
row = dict(method="m", domain="<Food>", seed=seed, metric="accuracy", value=rate)
claim = dict(id="ip_cost", claim="it costs IP nothing", ours=0.2, low=-0.5, high=0.9,
             unit="points", verdict="reproduced", note="a <b>note</b>")
write_record(place / "records", KIND, {"seed": seed}, [row], claims=[claim], provenance={})
print("done", seed)
"""
PROFILES = "profiles: {quick: {about: one of each, notebooks: {}}}"
# The record that WORK writes, without the second that importing lbutils takes a kernel.
LIGHT = """
import json
from pathlib import Path

row = dict(method="m", encoder=None, benchmark=None, domain=None, vocabulary=None, shots=None,
           seed=seed, metric="accuracy", value=rate, low=None, high=None)
record = dict(kind=KIND, key={}, params={}, metrics=[row], claims=[], provenance={})
Path(out, "records", KIND + "-0.json").write_text(json.dumps(record))
"""


def make(folder, name, *sources, parameters=PARAMETERS, title="A title with <tags>"):
    before = [nbformat.v4.new_markdown_cell(f"# {title}\n\nText.")]
    return save_notebook(folder / f"{name}.ipynb", parameters, *sources, before=before)


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "notebooks"
    make(folder, "01_works", "KIND = '01_works'", WORK)
    make(folder, "02_fails", "raise ValueError('broken on purpose')", parameters="seed = 0")
    return folder


@pytest.fixture
def repository(notebooks, monkeypatch):
    (notebooks.parent / "data").symlink_to(DATA)
    (notebooks / "profiles.yaml").write_text(PROFILES)
    monkeypatch.setattr(_util, "PACKAGE", notebooks.parent / "lbutils")
    return notebooks.parent


def test_find_notebooks(repository):
    folder = repository / "notebooks"
    # What somebody made beside them is none of them.
    for other in ("3d_plot", "02_fails-Copy1"):
        (folder / f"{other}.ipynb").write_bytes((folder / "02_fails.ipynb").read_bytes())
    everything = runs.find_notebooks()
    assert [path.stem for path in everything] == ["01_works", "02_fails"]
    for name in ("2", "02", "02_fails", "02_fails.ipynb", str(folder / "02_fails.ipynb")):
        assert runs.find_notebooks([name]) == everything[1:]
    for wrong in ("02_fail", "²", "elsewhere/02_fails.ipynb"):
        with pytest.raises(ValueError, match=f"unknown notebook '{wrong}'"):
            runs.find_notebooks([wrong])


def test_a_copy_to_work_in_is_run_itself(repository, monkeypatch):
    copy = make(repository / "mine", "02_fails", "edited = True")
    monkeypatch.chdir(repository / "mine")
    for name in (str(copy), "02_fails.ipynb"):
        assert runs.find_notebooks([name]) == [copy]
    with pytest.raises(ValueError, match="have one name: run one at a time"):
        runs.find_notebooks(["2", str(copy)])


def test_parameters_of_a_notebook(notebooks, tmp_path):
    found = parameters.of_notebook(notebooks / "01_works.ipynb")
    assert found == {"seed": 0, "rate": 0.5, "domains": None, "encoder": "mini", "out": ""}
    bad = make(tmp_path, "03_bad", parameters="x = open('y')")
    with pytest.raises(ValueError, match="03_bad.ipynb, parameters cell, line 1: .* literals"):
        parameters.of_notebook(bad)
    bad.write_text("{")
    with pytest.raises(ValueError, match="03_bad.ipynb is not a notebook"):
        parameters.of_notebook(bad)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=3", 3),
        ("x=-1.5", -1.5),
        ("x=ViT-B-16", "ViT-B-16"),
        ("x=[1, 2]", [1, 2]),
        ("x=true", True),
        ("x=None", None),
        ("x=a=b", "a=b"),
        ("x=", ""),
    ],
)
def test_parse_parameter(text, value):
    assert parameters.parse(text) == ("x", value)


def test_parse_domains_and_nonsense():
    assert parameters.parse("domains=Food, Animals") == ("domains", ["Food", "Animals"])
    for text in ("seed", "=3"):
        with pytest.raises(ValueError, match="takes name=value"):
            parameters.parse(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sede": 1}, "unknown parameter 'sede': choose from seed, rate, .*Did you mean 'seed'"),
        ({"rate": True}, "rate takes float"),
        ({"encoder": "ViT-B-61"}, "unknown encoder.*Did you mean 'ViT-B-16'"),
        ({"encoder": "mimi"}, "Did you mean 'mini'"),
    ],
)
def test_bad_parameters(notebooks, given, message):
    with pytest.raises(ValueError, match=message) as error:
        runs.check_parameters(sorted(notebooks.glob("*.ipynb")), given)
    assert "\n" not in str(error.value)


def test_good_parameters(notebooks):
    paths = sorted(notebooks.glob("*.ipynb"))
    for given in (
        {"rate": 1},
        {"domains": ["Food"]},
        {"encoder": "ViT-B/16"},
        {"encoder": "hf-hub:x"},
    ):
        runs.check_parameters(paths, given)


def test_the_benchmark_is_opened_before_anything_runs(tmp_path, monkeypatch):
    path = make(tmp_path, "01_b", parameters='benchmark = "mini"\nscale = None\ndomains = None')
    opened = []
    monkeypatch.setattr(runs, "load_benchmark", lambda name, **kw: opened.append((name, kw)))
    points = [{"scale": "large"}, {"scale": "large"}, {"scale": "small"}]
    runs.check_parameters([path], *points)
    assert opened == [
        ("mini", {"scale": "large", "domains": None}),
        ("mini", {"scale": "small", "domains": None}),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "03"], "unknown notebook '03'"),
        (["run", "-p", "sed=1"], "unknown parameter 'sed'"),
        (["run", "-p", "seed"], "-p takes name=value"),
        (["run", "-p", "out=x"], "--out"),
    ],
)
def test_wrong_command_lines_are_one_line(repository, capsys, arguments, message):
    assert commands.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (repository / "runs").exists()


def test_an_unknown_benchmark_is_one_line(tmp_path, monkeypatch, capsys):
    path = make(tmp_path / "notebooks", "01_b", parameters='benchmark = "mini"')
    path.with_name("profiles.yaml").write_text(PROFILES)
    monkeypatch.setattr(_util, "PACKAGE", tmp_path / "lbutils")
    assert commands.main(["run", "--benchmark", "mimi"]) == 2
    assert "Did you mean 'mini'" in capsys.readouterr().err


def test_run_end_to_end(repository, capsys):
    out = parameters.place({"rate": 0.25})
    assert out.parent == repository / "runs" and out.name.startswith("mini--rate=0.25-")
    stale = records.write_record(
        out / "records", "02_fails", {}, claims=[{"id": "clustering", "verdict": "reproduced"}]
    )
    assert commands.main(["full", "-p", "rate=0.25", "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert not stale.exists()

    lines = printed.splitlines()
    assert any(line.startswith("01_works ") and line.endswith(" s") for line in lines)
    assert "ValueError: broken on purpose" in printed
    (claim,) = [line for line in lines if line.startswith(published.CLAIMS["ip_cost"])]
    assert "0.2 [-0.5, 0.9] points" in claim and claim.endswith("  reproduced")
    assert sum(line.endswith("not run") for line in lines) == 12
    assert lines[-1] == f"results: {out / 'index.html'}"

    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    (record,) = (name for name in names if name.startswith("records/"))
    assert names == {
        "01_works.html", "02_fails.html", "claims.csv", "done/01_works.json",
        "figures/one_figure.png", "index.html",
        "notebooks/01_works.ipynb", "notebooks/02_fails.ipynb", record, "records.csv",
        "records.parquet", "times.csv",
    }  # fmt: skip
    executed = nbformat.read(out / "notebooks" / "01_works.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "done 0\n"
    assert pd.read_parquet(out / "records.parquet")["value"].tolist() == [0.25]

    page = (out / "index.html").read_text()
    assert "href='01_works.html'" in page and "src='figures/one_figure.png'" in page
    assert "A title with &lt;tags&gt;" in page and "a &lt;b&gt;note" in page
    assert "broken on purpose" in page and str(repository) not in page


def test_claims_table_keeps_the_papers_order(tmp_path):
    claim = {"id": "beats_context", "verdict": "contradicted", "ours": -1.25, "unit": "points"}
    records.write_record(tmp_path / "records", "k", {}, claims=[claim], provenance={})
    table = claims_table(tmp_path)
    assert list(table["id"]) == [*published.CLAIMS, *published.LOTS]
    assert table["verdict"].tolist() == ["not run"] * 5 + ["contradicted"] + ["not run"] * 7
    assert table["published"].notna().tolist() == [True] * 6 + [False] * 7
    text = format_claims(table)
    assert len(text.splitlines()) == 15 and "-1.2 points" in text


def test_a_claim_that_the_paper_does_not_make(tmp_path):
    claim = {"id": "clusterings", "verdict": "reproduced"}
    path = records.write_record(tmp_path / "records", "k", {}, claims=[claim], provenance={})
    with pytest.raises(ValueError, match=f"{path.name}: unknown claim .*Did you mean 'clustering'"):
        claims_table(tmp_path)


def test_grid_skips_what_is_there(notebooks, tmp_path):
    path = make(notebooks, "01_works", "KIND = '01_works'", LIGHT)
    out = tmp_path / "grid"
    options = {"out": out, "progress": False}
    first = sweeps.grid(path, {"seed": [0, 1]}, **options)
    assert first["status"].tolist() == ["finished"] * 2
    assert records.collect(out)["seed"].tolist() == [0, 1]

    # The second run was cut short: its record is half a file, as a copy may leave it.
    (broken,) = (Path(first["folder"][1]) / "records").glob("*.json")
    broken.write_text(broken.read_text()[:40])
    again = sweeps.grid(path, {"seed": [0, 1]}, **options)
    assert again["status"].tolist() == ["skipped", "finished"]
    assert again["folder"].tolist() == first["folder"].tolist()

    make(notebooks, "01_works", "KIND = 'edited'", LIGHT)
    edited = sweeps.grid(path, {"seed": [0]}, **options)
    assert edited["status"].tolist() == ["finished"]
    assert edited["folder"][0] != first["folder"][0]


def test_claims_of_other_settings_are_never_mixed(tmp_path):
    """One notebook on one domain, in the same folder, after a full run."""
    full = {"id": "clustering", "verdict": "contradicted", "ours": 7.5}
    part = {"id": "clustering", "verdict": "reproduced", "ours": 1.0}
    other = {"id": "ip_cost", "verdict": "reproduced", "ours": 0.0}
    kind, key, food = "02_clustering_analysis", {"seed": 0}, {"domains": ["Food"]}
    records.write_record(tmp_path / "records", kind, key, claims=[full], provenance={})
    records.write_record(
        tmp_path / "records", "04_few_shot_name_learning", key, claims=[other], provenance={}
    )
    records.write_record(
        tmp_path / "records", kind, key, settings=food, claims=[part], provenance={}
    )
    found = claims_table(tmp_path).set_index("id")
    assert found.loc["clustering", "ours"] == 7.5 and found.loc["clustering", "settings"] == "{}"
    under = claims_table(tmp_path, runs.settings_of(food)).set_index("id")
    assert under.loc["clustering", "ours"] == 1.0 and "Food" in under.loc["clustering", "settings"]
    assert under["verdict"].value_counts().to_dict() == {"not run": 12, "reproduced": 1}


def test_the_index_says_what_is_there_and_what_is_damaged(tmp_path, capsys):
    kind, claim = "03_zero_shot_gaps", {"id": "zero_shot_fails", "verdict": "reproduced"}
    folder = tmp_path / "records"
    records.write_record(folder, kind, {}, claims=[claim], provenance={})
    records.write_record(folder, kind, {}, settings={"seed": 1}, provenance={})
    (folder / "04_old.json").write_text('{"kind": "04"')
    wrong = {"id": "never_claimed", "verdict": "reproduced"}
    records.write_record(folder, "05", {}, claims=[wrong], provenance={})
    runs.run([], {}, out=tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "All under these settings: defaults" in page
    assert page.count("other settings: no part of the claims above") == 1 and "seed = 1" in page
    assert "Passed over:" in page and "04_old.json" in page and "never_claimed" in page
    assert "04_old.json" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "claims.csv").set_index("id")
    assert table.loc["zero_shot_fails", "verdict"] == "reproduced"
    assert table.loc["zero_shot_fails", "settings"] == "{}"


def test_every_encoder_of_the_table_is_taken(notebooks):
    table = pd.read_csv(DATA / "encoders.csv", keep_default_na=False)
    names = table["name"][table["obstacle"] == ""].tolist()
    assert len(names) > 70
    paths = sorted(notebooks.glob("*.ipynb"))
    runs.check_parameters(paths, *({"encoder": name} for name in names))
    runs.check_parameters(paths, {"encoder": "transformers:somebody/model"})
    with pytest.raises(ValueError, match="Florence cannot be loaded: never released"):
        runs.check_parameters(paths, {"encoder": "Florence"})
    with pytest.raises(ValueError, match="Did you mean 'align-base'"):
        runs.check_parameters(paths, {"encoder": "align-bas"})
    with pytest.raises(ValueError, match="unknown encoder 'ViT-B-16:laion400m_e23'"):
        runs.check_parameters(paths, {"encoder": "ViT-B-16:laion400m_e23"})
