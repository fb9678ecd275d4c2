"""What each notebook found, in short: a box at its top, written from the committed results.

The box stands between two marks in the title's cell, with the figure of the notebook as an
attachment, so that it is there before anything runs, on a page or in an editor. `notebooks/
shorts.yaml` has the question, the answer in words and which rows and which figure to show;
figures come from ``data/results/claims.csv`` and from the notebook's stored outputs.
``lbutils keep`` writes both anew from the records of a full run, and what notebooks took from those
of any; README's table of notebooks has that of the quick run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lbutils._util import shipped, suggest, write_text
from lbutils.data.folder import data_dir
from lbutils.measure import published, records
from lbutils.run import page, parameters
from lbutils.run.notebooks import find_notebooks

BEGIN = "<!-- in short: `lbutils keep` writes this -->"
END = "<!-- end of in short -->"
FIGURE = "in-short.png"
_BOX = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
_GAPS = re.compile(r" (?=\[)|(?<=,) (?=[^\[\]]*\])|(?<=95) ")  # spaces within an interval
_NUMBERS = ["ours", "low", "high"]
# A row of README's table of notebooks: its link and question, then what it takes.
_ROW = re.compile(r"(?m)^(\| \[[^|]*\]\(notebooks/(\w+)\.ipynb\) \|[^|]*\|).*$")


def shorts() -> dict[str, dict[str, Any]]:
    """By a notebook's number its ``question``, ``answer``, ``rows`` and ``figure``.

    A row has the id of a ``claim`` and the ``verdict`` that the answer speaks of; or, for what is
    no claim, ``figure`` (what it is), ``ours``, ``published``, ``verdict``, and ``seen``: lines of
    the notebook's outputs in which the numbers stand.
    """
    text = (shipped("notebooks") / "shorts.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def box(notebook: Path, told: Mapping[str, Any]) -> str:
    """The Markdown of a notebook's box, marks included.

    Raises
    ------
    ValueError
        If a claim has another verdict than the answer speaks of: it must be said anew.
    """
    rows = [_row(notebook, row) for row in told["rows"]]
    ours = "ours [95 %]" if any("[" in row[1] for row in rows) else "ours"
    heads = ("", ours, "published", "verdict")
    filled = [any(column) for column in zip(*rows, strict=True)]  # an empty column says nothing
    table = [tuple(compress(row, filled)) for row in (heads, ("---",) * len(heads), *rows)]
    # On a narrow page an interval stays on its line.
    table = [(what, _GAPS.sub("\u00a0", ours), *rest) for what, ours, *rest in table]
    lines = [f"**In short.** *{told['question']}* {told['answer']}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    alt = _figure(notebook, told)[1]
    lines += ["", f"![{alt}](attachment:{FIGURE})", *_cost(notebook.stem)]
    return "\n".join([BEGIN, "", *lines, "", END])


def _row(notebook: Path, row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if "claim" not in row:
        cells = (row["figure"], row["ours"], row["published"], row["verdict"])
        return tuple(map(str, cells))  # type: ignore[return-value]
    found = page.full_figures().loc[row["claim"]]
    if found["verdict"] != row["verdict"]:
        raise ValueError(
            f"{notebook.name}: {row['claim']} is {found['verdict']}, and shorts.yaml has an "
            f"answer for {row['verdict']}: say it anew"
        )
    claim = published.claims().set_index("id").loc[row["claim"]]
    ours = page.with_unit(found["ours"], "", found["low"], found["high"])
    theirs = "" if pd.isna(claim["published"]) else page.with_unit(claim["published"], "")
    what = f"{claim['claim']}: {row.get('figure', claim['measure'])} ({claim['unit']})"
    return what, ours, theirs, found["verdict"]


def _figure(notebook: Path, told: Mapping[str, Any]) -> tuple[str, str]:
    """A figure in a notebook's outputs, as base64, and its alternative text."""
    cells = {cell["id"]: cell for cell in parameters.read_notebook(notebook)["cells"]}
    if (cell := told["figure"]["cell"]) not in cells:
        raise ValueError(f"{notebook.name}, shorts.yaml: {suggest(cell, cells, 'cell')}")
    outputs = cells[cell]["outputs"]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    output = shown[told["figure"].get("at", 0)]
    alt = output["metadata"].get("image/png", {}).get("alt", told["figure"].get("alt", ""))
    picture = "".join(output["data"]["image/png"]).strip()
    return picture, alt.replace("[", "(").replace("]", ")")


def _cost(stem: str) -> list[str]:
    """A line on what the notebook takes, as far as it was measured."""
    table, parts = page.full_times(), []
    for row in table[table["notebook"] == stem].itertuples():
        what = "in full" if row.profile == page.FULL else f"in the {row.profile} run"
        parts.append("{} {} of a processor and {}".format(what, *_took(row)))
    return ["", f"*Takes {'; '.join(parts)}.*"] if parts else []


def _took(row: Any) -> tuple[str, str]:
    return f"{row.cpu:.0f} s", f"{row.memory / 1000:.1f} GB"


def timed(readme: str) -> str:
    """README's text with seconds of a processor and memory of each notebook in the quick run."""
    took = page.full_times().query("profile == 'quick'").set_index("notebook")

    def told(match: re.Match[str]) -> str:
        cells = _took(took.loc[match[2]]) if match[2] in took.index else ("", "")
        return f"{match[1]} {cells[0]} | {cells[1]} |"

    return _ROW.sub(told, readme)


def boxed() -> list[Path]:
    """The notebooks that have a box."""
    known = shorts()
    return [path for path in find_notebooks() if path.stem.split("_")[0] in known]


def without(source: str) -> str:
    """The text of a title's cell without its box."""
    return _BOX.sub("\n\n", source)


def renewed(notebook: Path) -> str:
    """The text of a notebook's file, with the box as it should be."""
    found, told = parameters.read_notebook(notebook), shorts()[notebook.stem.split("_")[0]]
    title = found["cells"][0]
    heading, _, rest = without("".join(title["source"])).partition("\n\n")
    source = f"{heading}\n\n{box(notebook, told)}\n\n{rest}"
    title["source"] = source.splitlines(keepends=True)
    title["attachments"] = {FIGURE: {"image/png": _figure(notebook, told)[0]}}
    found["cells"][0] = dict(sorted(title.items()))
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def keep(folder: Path) -> list[str]:
    """Ids of claims that were found in `folder` under the defaults, and are committed from now on.

    So is what notebooks took there. The boxes of all notebooks, and the times in README, are
    written anew.
    """
    found = page.claims_table(folder).set_index("id")
    found = found[found["verdict"] != page.NOT_RUN]
    kinds = records.collect_claims(folder).query("settings == '{}'").set_index("id")["kind"]
    table = page.full_figures()
    for key, row in found.iterrows():
        numbers = [round(float(row[name]), 1) + 0.0 for name in _NUMBERS]
        table.loc[key] = [kinds[key], *numbers, row["verdict"]]
    text = table.to_csv(float_format="%.1f", lineterminator="\n")
    write_text(data_dir() / "results" / "claims.csv", text)
    _keep_times(folder / "times.csv")
    for notebook in boxed():
        write_text(notebook, renewed(notebook))
    readme = data_dir().parent / "README.md"
    if readme.is_file():  # a wheel has none
        write_text(readme, timed(readme.read_text(encoding="utf-8")))
    return list(found.index)


def _keep_times(file: Path) -> None:
    """Commit what notebooks took, in place of what they took before under the same profile."""
    if file.is_file():
        own = ["profile", "notebook"]
        table = pd.concat([page.full_times(), pd.read_csv(file)])
        table = table.drop_duplicates(own, keep="last").sort_values(own)
        text = table.to_csv(index=False, float_format="%.0f", lineterminator="\n")
        write_text(data_dir() / "results" / "times.csv", text)
