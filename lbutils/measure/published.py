"""The paper's own numbers, to stand beside ours.

The tables lie in `data/published/`; its README says where each stands in the paper and which of
them disagree with one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from lbutils._util import suggest
from lbutils.data.folder import published_table as table

# Domains of the miniature that stand for one of the paper's under another name.
COUNTERPARTS = {"Insects": "Insects_Spiders", "Plants": "Plants_Fungi", "Creatures": "Pokemon"}

CLAIMS = {
    "clustering": "OOP images cluster as IP images do",
    "zero_shot_fails": "zero-shot classification fails on OOP names",
    "gap_is_text_side": "the gap is the text side's, not the image side's",
    "names_close_gap": "learning the names closes more than half of the gap",
    "ip_cost": "learning the names costs IP classes nothing",
    "beats_context": "learning the names beats tuning a shared context",
}
# What the paper claims of causes, and its benchmark cannot decide: the lots of the miniature do,
# by the rules of data/mini/PREREGISTRATION.md, in its order.
LOTS = {
    "lots_zero_shot": "the missing name is why zero-shot fails",
    "lots_cluster_name": "the image side does not need the name",
    "lots_cluster_image": "the image side does not need the image either",
    "lots_learned_half": "learning the name closes more than half of the gap",
    "lots_learned_image": "a name can be learned whether or not its drawings were met",
    "lots_retrieval": "what holds for one label holds for retrieval",
    "lots_text_side": "zero-shot accuracy comes with the captions, not with the image tower",
}


def claims() -> pd.DataFrame:
    """One row per claim of the paper, with the published figure that speaks to it.

    The claims of `LOTS` follow, which have none. Every figure is computed from the tables, as the
    mean of the nine domains of LAION-Beyond (400M) under OpenCLIP ViT-B-16, at four shots where
    shots matter.

    Returns a DataFrame: columns ``id``, ``claim``, ``measure`` (what the figure is), ``published``,
    ``unit`` and ``where`` (its place in the paper).
    """
    clustered = table("table1_clustering").query("domain != 'average'")
    clustered = clustered.groupby("subset")["clustering_accuracy"].mean()
    zero_shot = table("figure4_zero_shot_corrected").query(
        "model_family == 'OpenCLIP' and scale == '400m' and not class_balanced"
    )
    zero_shot = zero_shot.groupby("subset")["accuracy"].mean()
    few_shot = table("figure5_few_shot").query("shots in (0, 4)").groupby("method")["score"].mean()
    clustering_gap = clustered["ip"] - clustered["oop"]
    zero_shot_gap = zero_shot["ip"] - zero_shot["oop"]
    # FSNL leaves IP prompts as they were, so on IP names alone its cost is nil by construction.
    figures = {
        "clustering": (clustering_gap, "clustering accuracy, IP - OOP", "Table 1"),
        "zero_shot_fails": (zero_shot_gap, "zero-shot accuracy, IP - OOP", "Figure 4"),
        "gap_is_text_side": (
            zero_shot_gap - clustering_gap,
            "zero-shot gap - clustering gap",
            "Figure 4 and Table 1",
        ),
        "names_close_gap": (
            few_shot["FSNL"] - few_shot["zero-shot"],
            "OOP accuracy, FSNL at 4 shots - zero-shot",
            "Figure 5",
        ),
        "ip_cost": (0.0, "IP accuracy on IP names, zero-shot - FSNL", "section 5.1"),
        "beats_context": (
            few_shot["FSNL"] - few_shot["CoOp"],
            "OOP accuracy at 4 shots, FSNL - CoOp",
            "Figure 5",
        ),
    }
    rows = [
        (key, CLAIMS[key], measure, round(float(value), 2), "points", where)
        for key, (value, measure, where) in figures.items()
    ]
    rows += [
        (key, claim, "same concepts, by lot", float("nan"), "points", "PREREGISTRATION.md")
        for key, claim in LOTS.items()
    ]
    return pd.DataFrame(rows, columns=["id", "claim", "measure", "published", "unit", "where"])


def beside(
    ours: pd.DataFrame,
    published: pd.DataFrame,
    on: Sequence[str],
    *,
    ours_value: str = "value",
    published_value: str = "accuracy",
    counterparts: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Our figures and the paper's, row by row, with their difference.

    Returns a DataFrame: `on`, ``ours``, ``published``, ``difference`` (ours - published). A key
    that only one side has is kept, with NaN for the other; the paper's order comes first. Raises
    ValueError if a column is missing or a key occurs twice in a table.

    Parameters
    ----------
    ours, published : DataFrame
        Tables in the same unit; at most one row per key.
    on : sequence of str
        The columns that make a key, present in both tables.
    ours_value, published_value : str
        The columns with the figures.
    counterparts : mapping, optional
        Our domain to the paper's, for the ``domain`` column; default `COUNTERPARTS`.
    """
    keys = list(on)
    left = _keyed(published, keys, published_value, "published")
    right = ours
    if "domain" in keys and "domain" in ours:
        names = COUNTERPARTS if counterparts is None else dict(counterparts)
        right = ours.assign(domain=ours["domain"].replace(names))
    right = _keyed(right, keys, ours_value, "ours")
    joined = left.merge(right, on=keys, how="outer", sort=False)
    # An outer merge sorts by key whatever `sort` says, so the order is put back.
    order = pd.concat([left[keys], right[keys]]).drop_duplicates()
    joined = order.merge(joined, on=keys, how="left")
    joined["difference"] = joined["ours"] - joined["published"]
    return joined[[*keys, "ours", "published", "difference"]]


def _keyed(frame: pd.DataFrame, keys: list[str], value: str, side: str) -> pd.DataFrame:
    for column in [*keys, value]:
        if column not in frame:
            raise ValueError(f"{side}: {suggest(column, frame.columns, 'column')}")
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        raise ValueError(f"{side}: key {tuple(twice[keys].iloc[0])} occurs more than once")
    return frame[[*keys, value]].rename(columns={value: side})
