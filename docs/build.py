"""The site: the notebooks as they were executed, and what belongs to them, as static pages.

``make site`` runs it. Pages are laid out in one folder, Sphinx turns them into HTML, and every
link between them is followed. No notebook is run, and nothing is fetched.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import yaml

from lbutils.run import find_notebooks, lessons

ROOT = Path(__file__).resolve().parents[1]
ROOMS = "captions data models learn unlabelled rivals measure figures run".split()
# Pages that lie elsewhere in the repository, by their names on the site.
BORROWED = {
    "rooms.md": "lbutils/README.md",
    "sweeps.md": "sweeps/README.md",
    "data.md": "data/README.md",
    "miniature.md": "data/mini/README.md",
    "preregistration.md": "data/mini/PREREGISTRATION.md",
    "published.md": "data/published/README.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def relinked(text: str, home: str) -> str:
    """A page's text with its links to files of the repository led to pages of the site.

    What has no page becomes plain text: a link that leads nowhere is worse than none.
    """
    pages = {path: name for name, path in BORROWED.items()}
    pages |= {"notebooks/lessons/plan.md": "teaching.md", "notebooks/lessons": "teaching.md"}
    pages |= {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}
    pages |= {f"notebooks/{path.name}": f"notebooks/{path.name}" for path in find_notebooks()}
    # Pages lie side by side, but for notebooks, which have a folder of their own.
    folder = "notebooks" if home.endswith(".ipynb") else "."

    def led(match: re.Match[str]) -> str:
        said, target = match.groups()
        if urlsplit(target).scheme or target.startswith("#"):
            return match[0]
        path, _, anchor = target.partition("#")
        found = os.path.normpath(Path(home).parent / path)
        known = next((p for p in (found, f"{found}/README.md") if p in pages), None)
        if known is None:
            return said
        page = Path(os.path.relpath(pages[known], folder)).as_posix()
        return f"[{said}]({page}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(led, text)


def sections(path: Path, *headings: str) -> str:
    """Sections of a Markdown file with their headings, one after the other."""
    parts = re.split(r"(?m)^(?=## )", path.read_text(encoding="utf-8"))
    found = {part.splitlines()[0][3:]: part for part in parts[1:]}
    return "".join(found[heading] for heading in headings)


def claim_rows() -> dict[str, dict[str, str]]:
    """README's table of claims by its first column."""
    text = sections(ROOT / "README.md", "What came out")
    lines = text[text.index("| the paper's claim") :].split("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def heading_of(notebook: Path, cell: str) -> str:
    """The heading above a cell, to which a link can lead; empty for the notebook's title.

    Raises
    ------
    KeyError
        If the notebook has no such cell.
    """
    heading = ""
    for own in nbformat.read(notebook, 4).cells:
        if own.cell_type == "markdown":
            heading = ([heading] + re.findall(r"(?m)^## (.+)$", own.source))[-1]
        if own.id == cell:
            return heading
    raise KeyError(f"{notebook.name} has no cell {cell!r}")


def slug(heading: str) -> str:
    """A heading's anchor, as MyST makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def map_page() -> str:
    """The paper's places, with the notebook that takes each up, its figures and ours.

    ``docs/map.md``, written by ``docs/build.py --map``.
    """
    rows = [
        "| place in the paper | what | notebook | published | ours | verdict |",
        "|" + "---|" * 6,
    ]
    claims = claim_rows()
    for row in yaml.safe_load((ROOT / "docs" / "map.yaml").read_text(encoding="utf-8")):
        (notebook,) = find_notebooks([row["notebook"]])
        heading = heading_of(notebook, row["cell"])
        anchor = f"#{slug(heading)}" if heading else ""
        place = f"../notebooks/{notebook.name}{anchor}"
        link = f"[{row['notebook']}, {heading or 'beginning'}]({place})"
        own = (
            claims[row["claim"]]
            if "claim" in row
            else dict.fromkeys(("published", "ours", "verdict"), "")
        )
        table = f"`{row['published']}`" if "published" in row else ""
        published = "; ".join(filter(None, (own["published"], table)))
        cells = [row["place"], row["what"], link, published, own["ours"], own["verdict"]]
        rows.append("| " + " | ".join(cells) + " |")
    about = (
        "Where the paper says something, and where the notebooks take it up. *Published* has the "
        "figure and the table of [the paper's numbers](../data/published/README.md); *ours* and "
        "*verdict* are those of README, on the miniature."
    )
    return f"# The map\n\n{about}\n\n" + "\n".join(rows) + "\n"


def reference_page() -> str:
    """The public names of each room, as their docstrings have them."""
    parts = ["# Reference\n\nThe names of each room's face; `from lbutils.ROOM import NAME`.\n"]
    for room in ROOMS:
        face = importlib.import_module(f"lbutils.{room}")
        parts.append(f"\n## {room}\n\n{(face.__doc__ or '').strip()}\n\n```{{eval-rst}}\n")
        for name in face.__all__:
            value = getattr(face, name)
            if isinstance(value, type):
                parts.append(f".. autoclass:: lbutils.{room}.{name}\n   :members:\n\n")
            elif callable(value):
                parts.append(f".. autofunction:: lbutils.{room}.{name}\n\n")
            else:  # what a constant is made of would be told in place of what it is
                parts.append(f".. py:data:: lbutils.{room}.{name}\n\n")
        parts.append("```\n")
    return "".join(parts)


def teaching_page() -> str:
    """The plan, and each lesson with its questions; answers are in the copies for teachers."""
    parts = [(lessons.lessons_dir() / "plan.md").read_text(encoding="utf-8")]
    for notebook in find_notebooks():
        if told := lessons.read_lesson(notebook):
            listed = "\n".join(f"- {one}" for one in told["objectives"])
            link = f"[{notebook.stem.replace('_', ' ')}](notebooks/{notebook.name})"
            parts.append(f"\n## {notebook.stem[:2]}\n\n{link}. After it one can\n\n{listed}\n\n")
            parts.append(
                f"Needs: {told['prerequisites']}\n\nPredict: {told['predict']['question']}\n"
            )
    return "".join(parts)


def relocated(notebook: Path) -> str:
    """A notebook whose pictures in text are files, and whose links lead to pages of the site."""
    found = nbformat.read(notebook, 4)
    for cell in found.cells:
        for name in cell.pop("attachments", {}):
            cell.source = cell.source.replace(f"attachment:{name}", f"{notebook.stem}-{name}")
        if cell.cell_type == "markdown":
            cell.source = relinked(cell.source, f"notebooks/{notebook.name}")
    return nbformat.writes(found)


def attached(notebook: Path) -> dict[str, bytes]:
    """Pictures in a notebook's text, by the names of the files that `relocated` leads to."""
    cells = nbformat.read(notebook, 4).cells
    return {
        f"{notebook.stem}-{name}": base64.b64decode(picture)
        for cell in cells
        for name, kinds in cell.get("attachments", {}).items()
        for picture in kinds.values()
    }


def lay_out(source: Path) -> None:
    """Write every page of the site below `source`."""
    shutil.rmtree(source, ignore_errors=True)
    own = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    pages = {
        name: relinked(text, f"docs/{name}") for name, text in own.items() if name != "index.md"
    }
    for name, path in BORROWED.items():
        pages[name] = relinked((ROOT / path).read_text(encoding="utf-8"), path)
    results = sections(ROOT / "README.md", "What came out")
    pages["results.md"] = relinked(results, "README.md").replace("## What", "# What", 1)
    begin = sections(ROOT / "README.md", "Two commands", "Use")
    pages["begin.md"] = "# Begin\n\n" + relinked(begin, "README.md")
    pages |= {
        "reference.md": reference_page(),
        "teaching.md": teaching_page(),
    }
    trees = {
        "Read": [f"notebooks/{path.stem}" for path in find_notebooks()],
        "Find": [
            "results",
            "findings",
            "map",
            *(["survey"] if "survey.md" in pages else []),
            "published",
        ],
        "Do": ["begin", "open", "use", "teaching", "sweeps", "reference", "rooms"],
        "Data": ["data", "miniature", "preregistration"],
    }
    left = {Path(name).stem for name in pages} - {page for tree in trees.values() for page in tree}
    trees["Do"] += sorted(left)
    toctree = "".join(
        f"\n```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n\n" + "\n".join(tree) + "\n```\n"
        for caption, tree in trees.items()
    )
    pages["index.md"] = own["index.md"] + toctree
    (source / "notebooks").mkdir(parents=True)
    for name, text in pages.items():
        (source / name).write_text(text, encoding="utf-8")
    for notebook in find_notebooks():
        (source / "notebooks" / notebook.name).write_text(relocated(notebook), encoding="utf-8")
        for name, picture in attached(notebook).items():
            (source / "notebooks" / name).write_bytes(picture)
    shutil.copy(ROOT / "docs" / "conf.py", source)
    shutil.copytree(ROOT / "docs" / "_static", source / "_static")


class _Page(HTMLParser):
    """The anchors of a page, and where its links lead."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an ``id`` and the target of a link, an image or a script."""
        told = dict(attrs)
        self.anchors.add(told.get("id") or told.get("name") or "")
        self.links += [told[key] or "" for key in ("href", "src") if key in told]


def broken_links(site: Path) -> list[str]:
    """``page: target`` for every link to a file or an anchor that the site does not have."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else set()
            lacks = parts.fragment and target in pages and unquote(parts.fragment) not in anchors
            if not target.exists() or lacks:
                found.append(f"{path.relative_to(site)}: {link}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 if Sphinx fails or a link is broken; odd markup is only told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "site")
    parser.add_argument("--map", action="store_true", help="only write docs/map.md anew")
    options = parser.parse_args(arguments)
    if options.map:
        (ROOT / "docs" / "map.md").write_text(map_page(), encoding="utf-8")
        return 0
    out = options.out.resolve()
    source, site = out / "source", out / "html"
    lay_out(source)
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-E"]
    done = subprocess.run([*command, "-d", str(out / "doctrees"), str(source), str(site)])
    broken = broken_links(site) if site.is_dir() else []
    for link in broken:
        print(f"broken link in {link}", file=sys.stderr)
    print(f"site: {site / 'index.html'}")
    return 1 if broken or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
