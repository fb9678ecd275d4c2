"""What is known of a name besides its letters: declared sources, and prototypes made of them.

A name that no caption had tells an image-text model nothing. A language model, a description in
words that captions did have, or the domain may tell something; each is a source of `Knowledge`
that is switched on by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from scipy.special import expit
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from lbutils._util import suggest
from lbutils.captions.text import as_names, canonical, inflections
from lbutils.data.mini import mini_file
from lbutils.learn.colours import told_colours
from lbutils.models.classifier import text_features

# Sources that tell a name's phrases, each in a file of its name.
TOLD = ("glosses", "blind", "descriptions")
SOURCES = ("pieces", "language", *TOLD, "colours", "hints")


class Lexicon(NamedTuple):
    """What a language model, and phrases of several sources, say about words.

    Attributes
    ----------
    vectors : mapping of str to ndarray, shape (W,)
        A language model's unit vector, float32, of each text.
    told : mapping of str to mapping of str to tuple of str
        By source, one of `TOLD`: short phrases of each name.
    labels : mapping of str to int
        Texts that are in pre-training, with how often they occur.
    """

    vectors: Mapping[str, np.ndarray]
    told: Mapping[str, Mapping[str, tuple[str, ...]]]
    labels: Mapping[str, int]

    def vector(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, ``(N, W)``. Raises KeyError for a text that has none."""
        texts = as_names(texts, "texts")
        for text in texts:
            if text not in self.vectors:
                raise KeyError(
                    f"the lexicon has no vector of {text!r}: give a lexicon of your names (see "
                    "load_lexicon), or only sources that need none, which is 'pieces'"
                )
        return np.stack([self.vectors[text] for text in texts])

    def described(self, name: str, source: str = "descriptions") -> tuple[str, ...]:
        """Phrases of a name, of one of `TOLD`. Raises KeyError for a name that has none."""
        own = self.told.get(source, {})
        if not own.get(name):
            raise KeyError(suggest(name, list(own), f"name with {source}"))
        return tuple(own[name])

    def shuffled(self, names: Sequence[str], seed: int = 0) -> Lexicon:
        """The lexicon with the phrases of each name given to another: a control.

        Names are shuffled in one circle; the language model's vectors of names stay.
        """
        order = np.random.default_rng(seed).permutation(as_names(names)).tolist()
        of = dict(zip(order, [*order[1:], *order[:1]], strict=True))
        told = {
            source: {n: own[of.get(n, n)] for n in {**own, **of} if of.get(n, n) in own}
            for source, own in self.told.items()
        }
        return self._replace(told=told)


def load_lexicon(folder: str | os.PathLike[str] | None = None) -> Lexicon:
    """Lexicon of the miniature, or that of a folder with the same files.

    The miniature's has vectors of all-MiniLM-L6-v2, WordNet's definitions, phrases written blind,
    and descriptions in IP words. Its labels are those of the pre-training pairs of scale small,
    whose captions the other scales hold as well; see ``data/mini/make/describe.py``, which shows
    how to make one.

    A folder has ``language.parquet`` (columns text; pairs, 0 for what is no label; vector, as many
    signed bytes as it is wide) and ``descriptions.csv`` (columns name, phrase), and may have
    ``glosses.csv`` and ``blind.csv`` (the same columns); a missing file raises FileNotFoundError,
    other columns ValueError.
    """
    files = ("language.parquet", "descriptions.csv")
    at: Callable[[str], Path] = Path(folder).joinpath if folder else mini_file
    for file in files:
        if not at(file).is_file():
            raise FileNotFoundError(f"{at(file)} is missing: a lexicon has {' and '.join(files)}")
    language, tables = at(files[0]), {source: at(f"{source}.csv") for source in TOLD}
    try:
        told = {source: _phrases(file) for source, file in tables.items() if file.is_file()}
        return _lexicon(language, told)
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{language.parent} holds no lexicon: {error}") from error


def _phrases(file: Path) -> dict[str, tuple[str, ...]]:
    """The phrases of each name in a table."""
    # A concept may well be called "null".
    rows = pd.read_csv(file, usecols=["name", "phrase"], dtype=str, keep_default_na=False)
    if not (rows["phrase"].str.strip() != "").all():
        raise ValueError(f"{file.name} has an empty phrase: leave its row out")
    return {str(name): tuple(own) for name, own in rows.groupby("name")["phrase"]}


def _lexicon(language: Path, told: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Lexicon:
    table = pq.read_table(language, columns=["text", "pairs", "vector"])
    texts, raw = table["text"].to_pylist(), table["vector"].to_pylist()
    if None in raw or len({len(vector) for vector in raw}) != 1:
        raise ValueError("vectors must be of one width")
    vectors = np.frombuffer(b"".join(raw), np.int8).reshape(len(raw), -1).astype(np.float32)
    if not vectors.any(axis=1).all():
        raise ValueError(f"the vector of {texts[int(vectors.any(axis=1).argmin())]!r} is zero")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = dict(zip(texts, table["pairs"].to_pylist(), strict=True))
    labels = {text: number for text, number in pairs.items() if number}
    return Lexicon(dict(zip(texts, vectors, strict=True)), told, labels)


class Knowledge:
    """Prototypes of names in an encoder's joint space, from the sources that are switched on.

    - ``"pieces"``: the encoder's text feature of the name itself. For a name out of pre-training
      this is what its BPE pieces leak, and nothing else.
    - ``"language"``: the language model's vector of the name, moved into the encoder's space by
      a kernel ridge regression from vectors of texts in pre-training to their text features.
    - ``"glosses"``: what a dictionary says of the name; the mean of the encoder's text features of
      its phrases, with ``"language"`` also the mean of the phrases' own vectors, moved alike.
    - ``"blind"``: the same of phrases that were written from the name alone, of the miniature with
      no drawing, caption or domain in sight.
    - ``"descriptions"``: the same of phrases that describe the concept. Those of the miniature were
      written after its drawings had been seen: they are drawings described, not what a name tells.
    - ``"colours"``: the colour words of the descriptions, to be compared with the pixels of images
      (`told_colours`, `lbutils.learn.colours`). They do not enter prototypes.
    - ``"hints"``: whether the language model sees a name as near to the domain's hint as it sees
      the known names, as a share that each candidate may expect of the images (`shares`). It
      does not enter prototypes.

    A prototype is the sum of what its sources give, each of unit length, normalised.

    Parameters
    ----------
    encoder : DualEncoder
    lexicon : Lexicon
    sources : sequence of str
        Of `SOURCES`.
    template : str
        Into which names, phrases and labels are put.
    hold_out : sequence of str
        Names that the map must not have met: labels that contain one are left out of its fit.
        For choosing settings on names in pre-training that play names out of it.
    gamma, alpha : float
        Of the Gaussian kernel on unit vectors, and of the ridge. Chosen on IP names held out of
        the map alone, whose images the encoder had met.
    sharpness, quantile : float
        Of the sigmoid in `shares`.

    Raises
    ------
    ValueError
        If a source is unknown, or none gives prototypes.

    Notes
    -----
    Source: a map from word vectors to an image-text space is in the line of DeViSE (Frome et al.
    2013) and ConSE (Norouzi et al. 2014), which go from images to words; descriptions in place of
    names: Menon and Vondrick 2023.
    """

    def __init__(
        self,
        encoder: Any,
        lexicon: Lexicon,
        sources: Sequence[str] = ("language", "descriptions"),
        *,
        template: str = "a {name}",
        hold_out: Sequence[str] = (),
        gamma: float = 3.0,
        alpha: float = 1.0,
        sharpness: float = 40.0,
        quantile: float = 0.25,
    ):
        sources, hold_out = as_names(sources, "sources"), as_names(hold_out, "hold_out")
        for source in sources:
            if source not in SOURCES:
                raise ValueError(suggest(source, SOURCES, "source of knowledge"))
        if not set(sources) - {"hints", "colours"}:
            raise ValueError(f"prototypes need a source: choose of {', '.join(SOURCES[:-2])}")
        self.encoder, self.lexicon, self.sources = encoder, lexicon, tuple(sources)
        self.template = template
        self.sharpness, self.quantile = sharpness, quantile
        self._map: KernelRidge | None = None
        if "language" in sources:
            self._fit(tuple(hold_out), gamma, alpha)

    def _fit(self, hold_out: Sequence[str], gamma: float, alpha: float) -> None:
        """The map from vectors to text features; a label weighs as the root of its number."""
        labels = without_names(list(self.lexicon.labels), hold_out)
        if len(labels) < 2:
            raise ValueError("a map from language needs two labels in pre-training: add some")
        targets = self._texts(labels).numpy()
        weights = np.sqrt([self.lexicon.labels[label] for label in labels]).astype(np.float32)
        self._mean = targets.mean(axis=0)
        self._map = KernelRidge(alpha=alpha, kernel="rbf", gamma=gamma)
        self._map.fit(self.lexicon.vector(labels), targets - self._mean, sample_weight=weights)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return text_features(self.encoder, texts, self.template)

    def moved(self, texts: Sequence[str]) -> Tensor:
        """Language model's vectors of texts in the encoder's space, ``(N, D)`` float32.

        Raises RuntimeError unless ``"language"`` is a source.
        """
        if self._map is None:
            raise RuntimeError("there is no map from language: add 'language' to sources")
        moved = self._map.predict(self.lexicon.vector(texts)) + self._mean
        return torch.from_numpy(moved.astype(np.float32))

    def prototypes(self, names: Sequence[str]) -> Tensor:
        """Unit rows ``(C, D)`` float32 for names.

        Raises ValueError if there are none, KeyError if the lexicon lacks a vector or phrases.
        """
        names = as_names(names)
        if not names:
            raise ValueError("no names given: pass at least one")
        parts = []
        told = [source for source in TOLD if source in self.sources]
        phrases = [[self.lexicon.described(name, source) for name in names] for source in told]
        if "pieces" in self.sources:
            parts.append(self._texts(names))
        if self._map is not None:
            parts.append(F.normalize(self.moved(names), dim=1))
        readers = [self._texts] if self._map is None else [self._texts, self.moved]
        for own in phrases:
            flat, counts = [p for some in own for p in some], [len(some) for some in own]
            # One prompt each: joined, they would not fit into a short context.
            for read in readers:
                rows = read(flat)
                means = [part.mean(dim=0) for part in rows.split(counts)]
                parts.append(F.normalize(torch.stack(means), dim=1))
        return F.normalize(torch.stack(parts).sum(dim=0), dim=1)

    def lacking(self, names: Sequence[str]) -> list[str]:
        """The names of which a source that enters prototypes knows nothing, in their order."""
        tables: dict[str, Mapping[str, Any]] = {"language": self.lexicon.vectors}
        tables |= {source: self.lexicon.told.get(source, {}) for source in TOLD}
        asked = [table for source, table in tables.items() if source in self.sources]
        return [n for n in as_names(names) if not all(len(table.get(n, ())) for table in asked)]

    def told_colours(self, names: Sequence[str]) -> np.ndarray | None:
        """Colours that the descriptions of names tell, ``(C, 11)``; None without the source.

        A name without a description tells none. Errors are those of `Lexicon.described`, for
        the first name, where no name has one.
        """
        if "colours" not in self.sources:
            return None
        names = as_names(names)
        told = self.lexicon.told.get("descriptions", {})
        if names and not any(told.get(name) for name in names):
            self.lexicon.described(names[0])
        return np.stack([told_colours(told.get(name, ())) for name in names])

    def shares(
        self, names: Sequence[str], known: Sequence[str] = (), hint: str | None = None
    ) -> np.ndarray:
        """Share of the images that each name may expect, ``(C,)`` float64, adding up to one.

        All the same unless ``"hints"`` is a source. With it a name has the more, the nearer it is
        to the `hint`, the domain's superclass, up to what is usual: a sigmoid of its cosine, whose
        middle is a low quantile of the cosines of the `known` names of the domain (without any,
        the median of `names`). Raises ValueError where the source lacks a hint.
        """
        names, known = as_names(names), as_names(known, "known names")
        if "hints" not in self.sources:
            return np.full(len(names), 1 / max(len(names), 1))
        if not hint:
            raise ValueError("the source 'hints' needs hint=, the superclass of the domain")
        goal = self.lexicon.vector([hint])[0].astype(np.float64)
        near = self.lexicon.vector(names) @ goal
        usual, quantile = near, 0.5
        if known:
            usual, quantile = self.lexicon.vector(known) @ goal, self.quantile
        weights = expit(self.sharpness * (near - np.quantile(usual, quantile)))
        return weights / weights.sum()


def check_choice(without_knowledge: str) -> None:
    """Raise ValueError unless it is a choice of what becomes of names without knowledge."""
    choices = ("refuse", "images")
    if without_knowledge not in choices:
        raise ValueError(suggest(without_knowledge, choices, "choice for names without knowledge"))


def among_images(
    prior: Knowledge,
    encoder: Any,
    names: Sequence[str],
    means: Tensor,
    without_knowledge: str = "refuse",
) -> Tensor:
    """Prototypes of a prior ``(C, D)``, moved to where images lie, to be weighed against these.

    They are moved by the difference of the means of both over the names that have both: text and
    image features lie apart (Liang et al. 2022, "Mind the gap"). Rows are of unit length, or zero
    for a name without knowledge.

    Raises ValueError if the prior is of another encoder, or a name is without knowledge.

    Parameters
    ----------
    means : Tensor, shape (C, D)
        Unit rows of the encoder, the mean of each name's images; zeros for one without images.
    without_knowledge : "refuse" or "images"
        Whether a name that the prior's sources do not know is an error, or gets zeros.
    """
    if prior.encoder.fingerprint != encoder.fingerprint:
        raise ValueError(
            "the prior was made with another encoder, whose space is another: make it with the "
            "encoder that learns"
        )
    lacking = prior.lacking(names)
    if lacking and without_knowledge == "refuse":
        raise ValueError(
            f"the prior's sources {prior.sources} know nothing of {len(lacking)} of {len(names)} "
            f"names, such as {lacking[0]!r}: add what they need, or pass "
            "without_knowledge='images' to learn such names from their images alone"
        )
    has = torch.tensor([name not in lacking for name in names])
    rows = torch.zeros_like(means)
    if not has.any():
        return rows
    rows[has] = prior.prototypes([names[i] for i in has.nonzero()[:, 0].tolist()]).to(means)
    both = has & means.any(1)
    if both.any():
        rows[has] = F.normalize(rows[has] + (means[both] - rows[both]).mean(0), dim=1)
    return rows


def without_names(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """Labels that contain none of the names, nor an inflection of one."""
    labels, names = as_names(labels, "labels"), as_names(names)
    if not names:
        return labels
    forms = {canonical(form) for name in names for form in (name, *inflections(canonical(name)))}
    told = re.compile(rf"\b({'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})\b")
    return [label for label in labels if not told.search(canonical(label))]
