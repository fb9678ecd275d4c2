"""What runs found and took beside the paper's claims and the full run, and pages over it.

The figures of the full run are committed in ``data/results``: ``claims.csv`` has what was found,
``times.csv`` what it took.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd
from jinja2 import Environment
from PIL import Image

from lbutils._util import PACKAGE, suggest
from lbutils.data.folder import data_dir
from lbutils.measure import published, records
from lbutils.run import parameters
from lbutils.run.grid import TOLD

NOT_RUN = "not run"
FULL = "full"  # the profile that is none, in ``times.csv``
_HREF = re.compile(r'href="([^"#:]+)(#[^"]*)?"')  # of what is no page of the web
# Signs beside the words, so that a verdict does not hang on colour.
_SIGNS = {"reproduced": "✓", "not shown": "?", "contradicted": "✗", NOT_RUN: "–"}


def full_figures() -> pd.DataFrame:
    """What the full run found: ``notebook``, ``ours``, ``low``, ``high``, ``verdict`` by claim."""
    return pd.read_csv(data_dir() / "results" / "claims.csv", index_col="id")


def full_times() -> pd.DataFrame:
    """What notebooks took, a row for each and each profile that was measured.

    Columns ``notebook``, ``profile``, ``seconds``, ``cpu`` (processor seconds), ``memory`` (MB,
    as `execution.measured` has both), ``cores`` of the machine and ``date``.
    """
    return pd.read_csv(data_dir() / "results" / "times.csv")


def expected(profile: str | None) -> dict[str, float]:
    """Processor seconds of notebooks under a profile (None: the defaults), by their stems."""
    table = full_times()
    table = table[table["profile"] == (profile or FULL)]
    return dict(zip(table["notebook"], table["cpu"].astype(float), strict=True))


def times_table(took: Sequence[Mapping[str, Any]], profile: str | None) -> pd.DataFrame:
    """What notebooks took here, as `full_times` has it."""
    date = pd.Timestamp.now(tz="UTC").date().isoformat()
    about = {"profile": profile or FULL, "cores": os.cpu_count(), "date": date}
    columns = ["notebook", "profile", "seconds", "cpu", "memory", "cores", "date"]
    return pd.DataFrame([{**about, **own} for own in took], columns=columns).round(0)


def claims_table(
    folder: str | PathLike[str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    troubles: list[str] | None = None,
) -> pd.DataFrame:
    """One row per claim of the paper, in its order, with the verdict found in `folder`.

    `settings` (mapping, optional): what differs from the defaults, by kind of record (a notebook's
    stem). A verdict counts only if its record has these settings; unless said, those of the
    defaults. What was found under others is another question's answer. `troubles` (list of str,
    optional): takes what would be an error, which is then passed over.

    Returns a DataFrame: the columns of `records.CLAIM`, and ``settings`` (JSON; ``{}`` are the
    defaults). A claim that no record speaks to has the verdict "not run" and the published figure
    alone. Raises ValueError if a record has a claim that the paper does not make, or is corrupt.
    """
    found = records.collect_claims(folder, troubles)
    wanted = {kind: records.settings_text(own) for kind, own in (settings or {}).items()}
    meant = [wanted.get(row.kind, "{}") == row.settings for row in found.itertuples()]
    known = [*published.CLAIMS, *published.LOTS]
    # The newest stands last.
    found = found.loc[meant].drop_duplicates("id", keep="last").set_index("id")
    for key in found.index:
        if key not in known:
            trouble = f"{found.loc[key, 'record']}: {suggest(key, known, 'claim')}"
            if troubles is None:
                raise ValueError(trouble)
            troubles.append(trouble)
    rows = []
    for claim in published.claims().to_dict("records"):
        row = {**dict.fromkeys(records.CLAIM), **{k: claim[k] for k in ("id", "claim", "unit")}}
        row |= {"published": claim["published"], "verdict": NOT_RUN, "note": claim["measure"]}
        if claim["id"] in found.index:
            ours = found.loc[claim["id"], list(records.CLAIM[2:])]
            row |= {name: value for name, value in ours.items() if pd.notna(value)}
            row["settings"] = found.loc[claim["id"], "settings"]
        rows.append(row)
    return pd.DataFrame(rows, columns=[*records.CLAIM, "settings"])


def beside_full(table: pd.DataFrame) -> pd.DataFrame:
    """The claims table with a column ``full``: what the full run found, as it is committed."""
    known = full_figures().reindex(table["id"])
    rows = known.assign(unit=table["unit"].to_numpy()).itertuples()
    return table.assign(full=[with_unit(row.ours, row.unit, row.low, row.high) for row in rows])


def _in_words(table: pd.DataFrame) -> tuple[list[str], list[dict[str, str]]]:
    """Heads of the claims table's columns, and its cells as texts by them, with ``note`` beside."""
    rows = []
    for row in table.itertuples():
        full = {"full run": row.full} if "full" in table else {}
        shown = {
            "claim": row.claim,
            "ours [95 %]": with_unit(row.ours, row.unit, row.low, row.high),
            **full,
            "published": with_unit(row.published, row.unit),
            "verdict": row.verdict,
        }
        rows.append({**shown, "note": "" if pd.isna(row.note) else str(row.note)})
    return list(rows[0])[:-1], rows


def with_unit(value: Any, unit: Any, low: Any = None, high: Any = None) -> str:
    """A figure with its interval and unit: ``6.4 [5.1, 7.2] points``."""
    if pd.isna(value):
        return "-"
    span = "" if pd.isna(low) else f" [{_number(low)}, {_number(high)}]"
    return f"{_number(value)}{span}" + ("" if pd.isna(unit) or not unit else f" {unit}")


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = f"{float(value):.1f}"
    return "0.0" if text == "-0.0" else text


def format_claims(table: pd.DataFrame) -> str:
    """The claims table as text for a terminal: claim, ours, the full run's, published, verdict."""
    heads, found = _in_words(table)
    rows = [heads, *([row[head] for head in heads] for row in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(max(lines, key=len)), *lines[1:]])


def clock(seconds: float) -> str:
    """A time for a person: ``3.2 s``, ``2 min 05 s``."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:02.0f} s" if round(seconds) >= 60 else f"{seconds:.1f} s"


def _page(out: Path, **given: Any) -> str:
    """A page that lies in `out`, to which its links are relative."""
    pages = Environment(autoescape=True)
    pages.filters["clock"] = clock
    pages.filters["link"] = lambda file: file.relative_to(out).as_posix()
    template = (PACKAGE / "run" / "page.html").read_text(encoding="utf-8")
    return pages.from_string(template).render(name=out.name, **given)


def index_page(
    outcomes: Sequence[Any],
    table: pd.DataFrame,
    out: Path,
    given: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    described: str,
    troubles: Sequence[str] = (),
) -> str:
    """The HTML of a page in `out` that leads to everything in it.

    `table` is that of `claims_table` under `settings`, which `described` has in words; `given` are
    the parameters that were set, and `troubles` say what is wrong with files that were passed over.
    """
    benchmark = str(given.get("benchmark", "mini"))
    found = []
    for name, record in sorted(records.read_records(out, []).items()):
        own = record["settings"]
        meant = own is not None and own == settings.get(record["kind"], {})
        told = {"settings": parameters.described(own), "meant": meant}
        found.append({"link": name, "name": Path(name).name, **told})
    heads, claims = _in_words(table)
    return _page(
        out,
        benchmark="the miniature" if benchmark == "mini" else Path(benchmark).name,
        settings=described,
        heads=heads,
        claims=claims,
        signs=_SIGNS,
        outcomes=outcomes,
        figures=list(map(_shown, sorted((out / "figures").glob("*.png")))),
        records=found,
        tables=sorted((out / "tables").glob("*.csv")),
        troubles=troubles,
        made=records.provenance_of(given.get("seed")),
    )


def _shown(file: Path) -> dict[str, Any]:
    """A figure with the text that `figures.save` left in it, whole and as a caption."""
    alt = file.stem.replace("_", " ")
    # A file that is no picture, or a broken one, must not take the page of a long run with it.
    with suppress(OSError), Image.open(file) as picture:
        alt = picture.info.get("Description") or alt
    return {"file": file, "alt": alt, "caption": shorten(alt, 120, placeholder=" …")}


def relinked(html: str, home: Path, out: Path) -> str:
    """An executed notebook as HTML whose links lead somewhere from `out`, where it lies.

    A notebook's own are relative to its folder, `home`. To another notebook they lead to its page,
    if `out` has one; else, and to other files, to what lies in the checkout.
    """

    def led(match: re.Match[str]) -> str:
        target, anchor = Path(unquote(match[1])), match[2] or ""
        page = out / f"{target.stem}.html"
        if target.suffix == ".ipynb" and page.is_file():
            return f'href="{quote(page.name)}"'
        if (out / target).exists() or not (home / target).exists():
            return match[0]
        place = Path(os.path.relpath((home / target).resolve(), out.resolve()))
        return f'href="{quote(place.as_posix())}{anchor}"'

    return _HREF.sub(led, html)


def grid_page(table: pd.DataFrame, out: Path) -> str:
    """The HTML of a page in `out` over a grid's table: its runs with what they left, the figure."""
    names = [c for c in table if c not in TOLD]
    rows = table.to_dict("records")
    for row in rows:
        place = Path(row["folder"])
        left = [*sorted(place.glob("notebooks/*.ipynb")), place / "traceback.txt"]
        row["files"] = [file for file in left if file.is_file()]
    return _page(out, names=names, rows=rows, figure=(out / "summary.png").is_file())
