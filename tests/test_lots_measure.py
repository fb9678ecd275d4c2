"""Effects within concepts: measures against plain loops, verdicts by their committed rules."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import load_script
from sklearn.cluster import KMeans

from lbutils import load_benchmark, load_encoder
from lbutils.data.lots import lots
from lbutils.measure import lots as measured
from lbutils.measure import published, records

COLUMNS = ("zero_shot_all", "zero_shot_arm", "cluster", "retrieval", "learned_4")


def planted(both, image, neither, noise=3.0, concepts=80):
    """A table of measures in which each arm has a level of its own, the same in all measures."""
    rng = np.random.default_rng(0)
    levels = {"both": both, "image": image, "neither": neither}
    rows = []
    for seed in (0, 1):
        for arm, level in levels.items():
            values = level + noise * rng.standard_normal(concepts)
            for i, value in enumerate(values):
                rows.append({"domain": "d", "name": str(i), "arm": arm, "seed": seed, "v": value})
    table = pd.DataFrame(rows)
    return table.assign(**dict.fromkeys(COLUMNS, table["v"]))


def test_effects_are_those_that_were_planted():
    found = measured.effects(planted(60, 20, 15), ["cluster"]).set_index("quantity")
    assert found.loc["effect of the name", "mean"] == pytest.approx(40, abs=1)
    assert found.loc["effect of the image", "mean"] == pytest.approx(5, abs=1)
    assert found.loc["gap", "mean"] == pytest.approx(45, abs=1)
    assert found.loc["both", "mean"] == pytest.approx(60, abs=1)
    assert ((found["low"] < found["mean"]) & (found["mean"] < found["high"])).all()
    # The interval of a mean of differences of means of two draws each, by the formula.
    half = 1.96 * 3.0 / np.sqrt(80)
    width = found.loc["gap", "high"] - found.loc["gap", "low"]
    assert width == pytest.approx(2 * half, rel=0.25)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = [
        low <= 1.0 <= high
        for _, low, high in (measured.interval(rng.exponential(size=266)) for _ in range(60))
    ]
    assert np.mean(hits) >= 0.85


def test_concepts_are_paired_over_arms_and_equal():
    """A difference that all concepts share has no interval, however they differ."""
    table = planted(60, 20, 15, noise=0)
    table["cluster"] += 10 * table["name"].astype(int)
    found = measured.effects(table, ["cluster"]).set_index("quantity")
    assert found.loc["effect of the name", ["mean", "low", "high"]].tolist() == [40, 40, 40]
    assert found.loc["both", "high"] - found.loc["both", "low"] > 10


def test_an_arm_that_is_missing_is_refused():
    table = planted(60, 20, 15)
    with pytest.raises(ValueError, match="three rotations"):
        measured.by_arm(table[table["arm"] != "image"], "cluster")
    lacking = table[(table["name"] != "3") | (table["arm"] != "both")]
    with pytest.raises(ValueError, match="three rotations"):
        measured.by_arm(lacking, "cluster")


@pytest.mark.parametrize(
    ("low", "high", "above", "equivalent"),
    [
        (11, 12, "reproduced", "contradicted"),
        (9, 12, "not shown", "contradicted"),
        (6, 9, "contradicted", "contradicted"),
        (-4.9, 4.9, "contradicted", "reproduced"),
        (-4.9, 5.1, "contradicted", "not shown"),
        (-9, -6, "contradicted", "contradicted"),
        (-30, 30, "not shown", "not shown"),
    ],
)
def test_verdicts_go_by_the_whole_interval(low, high, above, equivalent):
    found = ((low + high) / 2, low, high)
    assert measured.above(found, 10) == above
    assert measured.equivalent(found, 5) == equivalent


def test_a_claim_of_parts_needs_all_and_fails_with_one():
    assert measured.both("reproduced", "reproduced") == "reproduced"
    assert measured.both("reproduced", "not shown") == "not shown"
    assert measured.both("not shown", "contradicted") == "contradicted"
    assert measured.both("not run", "not shown") == "not run"
    assert measured.both() == "not run"  # nothing holds of no part


def test_below_is_above_turned_round():
    assert records.below((0, -1, 0.5), 1) == "reproduced"
    assert records.below((3, 2, 4), 1) == "contradicted"
    assert records.below((1, 0, 2), 1) == "not shown"


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        # Names matter, images do not, in every measure: clustering falls with the name, too.
        ((60, 15, 15), ["reproduced", "contradicted", "reproduced", "contradicted", "reproduced"]),
        # Nothing matters: no gap, so nothing to close.
        ((50, 50, 50), ["contradicted", "reproduced", "reproduced", "not shown", "reproduced"]),
        # Images matter, names do not.
        ((50, 50, 20), ["contradicted", "reproduced", "contradicted"]),
    ],
)
def test_the_registered_claims_are_judged_as_registered(arms, expected):
    found = measured.verdicts(planted(*arms))
    assert len(found) == 6 and list(found["id"]) == list(published.LOTS)[:6]
    assert found["verdict"].tolist()[: len(expected)] == expected
    assert (found["low"] <= found["high"]).all()


@pytest.fixture(scope="module")
def insects():
    encoder = load_encoder("mini", "small", device="cpu")
    benchmark = load_benchmark("mini", scale="lots-0", domains="Insects")
    return encoder, benchmark, measured.measure(encoder, benchmark, [2], [0, 1], progress=False)


def test_measures_equal_plain_loops(insects):
    encoder, benchmark, found = insects
    domain = benchmark["Insects"]
    names = (*domain.ip.names, *domain.oop.names)
    assert tuple(found["name"]) == names
    texts = [
        encoder.encode_text([template.format(name=name) for name in names])
        for template in ("{name}", "a drawing of {name}")
    ]
    texts = torch.nn.functional.normalize(sum(texts), dim=1)
    images, truth = [], []
    for subset, first in ((domain.ip, 0), (domain.oop, len(domain.ip.names))):
        for i in range(len(subset.test)):
            pixels = encoder.preprocess(subset.test.image(i))[None]
            images.append(encoder.encode_images(pixels)[0])
            truth.append(first + int(subset.test.labels[i]))
    images, truth = torch.stack(images), np.array(truth)
    cosine = (images @ texts.T).numpy()
    arms = lots().set_index("name").loc[list(names), "lots-0"].to_numpy()
    assert found["arm"].tolist() == arms.tolist()
    for c in range(len(names)):
        own = truth == c
        assert found["zero_shot_all"][c] == pytest.approx(
            100 * np.mean(cosine[own].argmax(1) == c), abs=1e-6
        )
        ranks = np.argsort(-cosine[:, c], kind="stable")
        hits = own[ranks]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        assert found["retrieval"][c] == pytest.approx(100 * precision[hits].mean(), abs=0.01)
        if arms[c] == "always":
            assert np.isnan(found["zero_shot_arm"][c]) and np.isnan(found["learned_2"][c])
            continue
        rivals = np.flatnonzero(arms == arms[c])
        guess = rivals[cosine[own][:, rivals].argmax(1)]
        assert found["zero_shot_arm"][c] == pytest.approx(100 * np.mean(guess == c), abs=1e-6)


def test_a_cluster_for_each_concept_of_an_arm(insects, monkeypatch):
    encoder, benchmark, found = insects
    seen = []

    def spy(features, k, seed):
        seen.append((len(features), k, seed))
        return KMeans(k, n_init=1, random_state=seed).fit_predict(features)

    monkeypatch.setattr(measured, "kmeans", spy)
    measured.measure(encoder, benchmark, [], [], progress=False)
    arms = found["arm"].value_counts()
    assert len(seen) == 3 * measured.STARTS and len({seed for *_, seed in seen}) == measured.STARTS
    assert [k for _, k, _ in seen[:: measured.STARTS]] == [arms[arm] for arm in measured.ARMS]


def test_learned_names_are_ahead_of_names_as_they_are(insects):
    own = insects[2][insects[2]["arm"] != "both"]
    assert own["learned_2"].mean() > own["zero_shot_arm"].mean() + 10


# --------------------------------------------------------------------------- interventions


def crossed(captions, tower, seeds=(0, 1, 2), noise=3.0, concepts=60):
    """Planted accuracies: so much more with the captions, so much more with the image tower."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in seeds:
        for image_arm in measured.ARMS:
            for text_arm in measured.ARMS:
                level = 12 + captions * (text_arm == "both") + tower * (image_arm == "both")
                for i in range(concepts):
                    value = level + noise * rng.standard_normal()
                    rows.append(("infonce", image_arm, text_arm, seed, "d", str(i), value))
    for variant in ("sigmoid",):
        own = [(variant, *row[1:]) for row in rows if row[1] == row[2]]
        rows = rows + own
    columns = ["variant", "image_arm", "text_arm", "seed", "domain", "name", "zero_shot_all"]
    return pd.DataFrame(rows, columns=columns)


def test_cells_are_means_over_seeds_and_all_are_needed():
    table = crossed(30, 1)
    cells = measured.text_cells(table)
    own = table.query("variant == 'infonce' and image_arm == 'image' and text_arm == 'both'")
    expected = own.groupby("name")["zero_shot_all"].mean()
    assert cells["image", "both"].droplevel(0).sort_index().tolist() == pytest.approx(
        expected.sort_index().tolist()
    )
    lacking = table[(table["image_arm"] != "image") | (table["text_arm"] != "both")]
    with pytest.raises(ValueError, match="all 9 cells"):
        measured.text_cells(lacking)


@pytest.mark.parametrize(
    ("captions", "tower", "parts", "whole"),
    [
        (30, 1, ["reproduced", "reproduced"], "reproduced"),
        (30, 9, ["reproduced", "contradicted"], "contradicted"),
        (3, 0, ["contradicted", "reproduced"], "contradicted"),
        (30, 5, ["reproduced", "not shown"], "not shown"),
    ],
)
def test_the_claim_on_the_text_side_is_judged_as_registered(captions, tower, parts, whole):
    found = measured.text_verdict(crossed(captions, tower, noise=2.0))
    assert found["verdict"].tolist() == [*parts, whole]
    (claim,) = measured.as_claims(found)
    assert (claim["id"], claim["verdict"]) == ("lots_text_side", whole)
    assert claim["ours"] == found["mean"][0] and claim["claim"] == published.LOTS[claim["id"]]
    assert found["mean"][0] == pytest.approx(captions, abs=1)
    assert found["mean"][1] == pytest.approx(tower, abs=1)


def test_effects_of_variants_are_read_where_both_arms_agree():
    found = measured.variant_effects(crossed(30, 2)).set_index(["variant", "quantity"])
    for variant in ("infonce", "sigmoid"):
        assert found.loc[(variant, "name"), "mean"] == pytest.approx(32, abs=1.5)
        assert found.loc[(variant, "image"), "mean"] == pytest.approx(0, abs=1.5)
    table = crossed(30, 2)
    more = pd.concat([table, table.query("variant == 'infonce' and seed == 0").assign(seed=9)])
    assert measured.variant_effects(more).equals(measured.variant_effects(table))


def test_effects_on_the_text_side_by_seed():
    table = crossed(30, 3, noise=5.0).query("variant == 'infonce'")
    found = measured.text_effects_by_seed(table)
    assert found.index.tolist() == sorted(set(table["seed"]))
    for seed, own in table.groupby("seed"):
        mean = own.groupby(["image_arm", "text_arm"])["zero_shot_all"].mean()
        captions = [mean[arm, "both"] - mean[arm, "image"] for arm in measured.ARMS]
        tower = [mean["both", arm] - mean["neither", arm] for arm in ("image", "neither")]
        assert found.loc[seed].tolist() == pytest.approx([np.mean(captions), np.mean(tower)])


def test_tables_for_figures_hold_the_arms_and_cells_by_their_words():
    lot_rows = planted(60, 20, 15, noise=0)
    found = measured.arm_table(lot_rows, {"cluster": "clusters", "zero_shot_all": "zero-shot"})
    assert found["measure"].tolist() == ["clusters"] * 3 + ["zero-shot"] * 3
    assert found["arm"].tolist()[:3] == ["name and drawings", "drawings only", "neither"]
    assert found["value"].tolist()[:3] == [60, 20, 15]
    tiles = measured.tile_table(crossed(30, 2, noise=0)).set_index(["row", "column"])["value"]
    met, unmet = "image tower met its drawings", "image tower did not"
    assert tiles.to_dict() == {
        ("captions name the concept", met): 44,
        ("captions name the concept", unmet): 42,
        ("captions do not", met): 14,
        ("captions do not", unmet): 12,
    }


def test_results_that_are_not_there_name_their_script(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "data_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="make/measure_lots.py"):
        measured.results("lots")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "lots.csv").write_text("a,b\n1,2\n")
    assert measured.results("lots").to_dict("list") == {"a": [1], "b": [2]}


@pytest.fixture(scope="module")
def script():
    return load_script("interventions")


@pytest.fixture
def corpus(script):
    count = torch.tensor([2, 1, 3, 2])
    return script.P.Corpus(
        images=torch.zeros(3, 4, 16, 16, dtype=torch.uint8),
        image=torch.tensor([0, 1, 2, 0]),
        label=torch.tensor([5, 5, 6, 7]),
        first=count.cumsum(0) - count,
        count=count,
        caption=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]),
        tokens=torch.zeros(8, 4, dtype=torch.long),
        hashes={},
    )


def told(corpus):
    return [
        corpus.caption[first : first + count].tolist()
        for first, count in zip(corpus.first.tolist(), corpus.count.tolist(), strict=True)
    ]


def test_captions_that_are_left_out_leave_whole_pairs(script, corpus):
    kept = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    found = script.chosen(corpus, kept)
    assert told(found) == [[0], [4, 5], [6, 7]]
    assert found.image.tolist() == [0, 2, 0] and found.label.tolist() == [5, 6, 7]


def test_the_filter_keeps_the_pairs_that_its_encoder_scores_best(script, corpus, monkeypatch):
    monkeypatch.setattr(script, "KEPT", 0.5)
    tokens = torch.arange(8)[:, None].expand(8, 4).clone()
    corpus = script.replace(corpus, tokens=tokens)
    generator = torch.Generator().manual_seed(1)
    texts, views = torch.randn(8, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    monkeypatch.setattr(script.mini, "encode_text", lambda model, part: texts[part[:, 0]])
    judge = script.Tower(SimpleNamespace(model=None), views, {})
    scores = []
    for i, captions in zip(corpus.image.tolist(), told(corpus), strict=True):
        cosines = [torch.cosine_similarity(views.mean(0)[i], texts[c], dim=0) for c in captions]
        scores.append(float(torch.stack(cosines).mean()))
    expected = [score >= np.median(scores) for score in scores]
    assert script.best(corpus, judge).tolist() == expected
    found = script.filtered(corpus, judge)
    assert told(found) == [c for c, keep in zip(told(corpus), expected, strict=True) if keep]


def test_what_a_filter_keeps_is_counted_by_concept_and_arm(script):
    pairs = script.lot_pairs("lots-1").query("scale == 'small'")
    kept = np.arange(len(pairs)) % 2 == 0
    found = script.kept_pairs(1, kept).set_index("concept_id")
    assert found["pairs"].sum() == len(pairs) and found["kept"].sum() == kept.sum()
    dealt = pd.read_parquet(script.DATA / "lots.parquet").dropna(subset="concept_id")
    arms = lots().set_index("concept_id")["lots-1"]
    for concept in ("", *arms.index[arms == "both"][:3], *arms.index[arms == "image"][:3]):
        images = set(dealt.loc[dealt["concept_id"] == concept, "image_id"])
        own = pairs["image_id"].isin(images if concept else set(dealt["image_id"])) ^ (not concept)
        told = found.loc[concept, ["arm", "pairs", "kept"]].tolist()
        assert told == [arms.get(concept, "always"), own.sum(), kept[own].sum()]
    assert not (found["arm"] == "neither").any()
    shares = measured.kept_shares(found.reset_index())
    named = found[found["arm"] == "both"]
    assert shares["name and drawings"] == 100 * named["kept"].sum() / named["pairs"].sum()


def test_balancing_leaves_so_many_captions_a_label(script, corpus, monkeypatch):
    monkeypatch.setattr(script, "MOST_CAPTIONS", 2)
    for seed in range(5):
        found = script.balanced(corpus, seed)
        held = pd.Series(np.repeat(found.label.numpy(), found.count.numpy())).value_counts()
        assert held.to_dict() == {5: 2, 6: 2, 7: 2}
    again = [told(script.balanced(corpus, seed)) for seed in (0, 0, 1, 2, 3)]
    assert again[0] == again[1] and any(other != again[0] for other in again[2:])


def test_sigmoid_loss_equals_a_loop_over_pairs(script):
    torch.manual_seed(0)
    image, text = torch.randn(5, 8), torch.randn(5, 8)
    groups = [torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 2, 3, 2])]
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    found = script.sigmoid_loss(image, text, scale, bias, groups)
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i != j and any(group[i] == group[j] for group in groups):
                continue
            logit = scale * torch.cosine_similarity(image[i], text[j], dim=0) + bias
            total += float(torch.log1p(torch.exp(-logit if i == j else logit)))
    assert float(found) == pytest.approx(total / 5, rel=1e-5)


def test_cells_cross_towers_and_captions_and_change_one_thing(script):
    cells = script.cells(list(script.VARIANTS))
    plain = [cell for cell in cells if cell[0] == "infonce"]
    assert len(set(cells)) == len(cells) == 3 * (9 + 3 * 3) and len(plain) == 27
    assert all(i == t for variant, i, t, _ in cells if variant != "infonce")


def test_only_the_text_side_is_trained(script, corpus, monkeypatch):
    monkeypatch.setattr(script, "STEPS", 2)
    torch.manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(script.VIEWS, 3, 192), dim=-1)
    tower = script.Tower(None, views, {})
    tokens = torch.zeros(8, 16, dtype=torch.long)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 598, torch.arange(8) + 5, 599
    corpus = script.replace(corpus, tokens=tokens)
    for sigmoid in (False, True):
        torch.manual_seed(3)
        before = script.open_clip.CLIP(**script.mini.model_config(600)).state_dict()
        model = script.train(tower, corpus, 600, 3, sigmoid)
        moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        assert not any(name.startswith("visual.") for name in moved)
        assert {"token_embedding.weight", "text_projection"} <= moved


def worths(values):
    """A table of what names are worth: a row for each of two concepts a rotation."""
    rows = [
        {"rotation": f"lots-{r}", "method": method, "knowledge": kind, "shots": shots}
        | {"concept": f"c{r}{n}", "oop": value + 6 * r + n}
        for (method, kind, shots), value in values.items()
        for r in range(3)
        for n in range(2)
    ]
    return pd.DataFrame(rows)


def test_what_a_name_is_worth_is_read_within_concepts():
    piled = "names, unlabelled"
    values = {
        ("as it is, both", "none", 0): 70, ("as it is, image", "none", 0): 12,
        ("as it is, neither", "none", 0): 9,
        ("names", "none", 1): 40, ("names", "none", 2): 50,
        ("names", "language", 0): 20, ("names", "language", 1): 46, ("names", "language", 2): 51,
        (piled, "none", 1): 43, (piled, "none", 2): 55,
        (piled, "language", 0): 30, (piled, "language", 1): 48, (piled, "language", 2): 60,
        ("prototypes", "none", 1): 39, ("prototypes", "none", 2): 52,
        ("prototypes", "language", 1): 41, ("prototypes", "language", 2): 52,
    }  # fmt: skip
    table = worths(values)
    lines = measured.worth_lines(table)
    assert len(lines) == 11 and set(lines["panel"]) == set(measured.WORTH.values())
    for row in lines.itertuples():
        method = {panel: name for name, panel in measured.WORTH.items()}[row.panel]
        kind = "language" if row.line.endswith("prior") else "none"
        bare = (method, kind, row.x) == ("names", "none", "0")
        key = ("as it is, neither" if bare else method, kind, int(row.x))
        assert row.value == pytest.approx(values[key] + 6.5)
        assert row.low < row.value < row.high
    for _, own in lines.groupby("panel"):
        assert list(dict.fromkeys(own["x"])) == ["0", "1", "2"]
    levels = measured.worth_levels(table).set_index("line")["value"]
    assert levels.tolist() == pytest.approx([76.5, 18.5])
    assert [line.split()[-3] for line in levels.index] == ["hold", "hide"]
    # Every concept differs by as much, so that there is no doubt about a difference.
    told = measured.worth_differences(table)
    expected = {
        "the prior brings": {0: 11, 1: 6, 2: 1},
        "unlabelled ones bring": {1: 3, 2: 5},
        "less the name in captions": {0: -50, 1: -24, 2: -19},
        "less prototypes": {1: 1, 2: -2},
        "less these, both with a prior": {1: 5, 2: -1},
    }
    assert list(told) == list(expected) and list(told.index) == [0, 1, 2]
    for title, own in expected.items():
        for shots in told.index:
            d = own.get(shots)
            said = "" if d is None else f"{d:+.1f} [{d:.1f}, {d:.1f}]"
            assert told.loc[shots, title] == said
