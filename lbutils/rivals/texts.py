"""Prompts that change what is said of a name: WaffleCLIP, descriptors, knowledge.

Each function gives a list of prompts for each name, as `lbutils.models.text_classifier` takes
them. What a method brings to a name is an argument, so that the same function makes its control:
descriptions of other names, or no name at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lbutils._util import suggest
from lbutils.captions.text import as_names

Prompts = dict[str, list[str]]
_LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def waffled(
    names: Sequence[str],
    words: Sequence[str],
    pairs: int = 15,
    form: str = "{name}, which is {phrase}",
    seed: int = 0,
) -> Prompts:
    """Prompts of names with noise behind them, the same noise for all names.

    Half of it are two random words, half as many random letters in two groups.

    Parameters
    ----------
    words : sequence of str
        Two or more words to draw from.
    pairs : int
        Prompts a name of either kind; the source's are 15.
    form : str
        With ``{name}`` and ``{phrase}``, where the noise goes.

    Raises
    ------
    ValueError
        If there are fewer than two words, or `pairs` is below 1.

    Notes
    -----
    Source: Roth et al. 2023, "Waffling around for performance: visual classification with random
    words and broad concepts", ICCV. Theirs: letters are as many as those of the words drawn.
    """
    words = as_names(words, "words")
    if len(words) < 2 or pairs < 1:
        raise ValueError(f"{len(words)} words and pairs={pairs}: two words and one pair at least")
    rng = np.random.default_rng(seed)
    noise = []
    for _ in range(pairs):
        drawn = [words[i] for i in rng.choice(len(words), 2, replace=False)]
        made_up = ["".join(rng.choice(_LETTERS, max(len(word), 1))) for word in drawn]
        noise += [" ".join(drawn), " ".join(made_up)]
    return {
        name: [form.format(name=name, phrase=part) for part in noise]
        for name in as_names(names, "class names")
    }


def described(
    names: Sequence[str],
    phrases: Mapping[str, Sequence[str]],
    form: str = "{name}, which is {phrase}",
    of: Mapping[str, str] | None = None,
) -> Prompts:
    """Prompts of names with one phrase each, as many as a name has phrases.

    Parameters
    ----------
    phrases : mapping of str to sequence of str
        Descriptions, as in `learn.Lexicon`.
    form : str
        With ``{phrase}``, and ``{name}`` unless the prompts are to do without the name.
    of : mapping of str to str, optional
        Whose phrases each name gets, its own by default; `deranged` gives the control.

    Raises
    ------
    KeyError
        If a name has no phrase.

    Notes
    -----
    Source: Menon and Vondrick 2023, "Visual classification via description from large language
    models", ICLR (DCLIP), with their "which is"; without ``{name}`` the prompts are sentences
    about the class as in CuPL (Pratt et al. 2023, ICCV), which however name it. Ours: prompts are
    averaged as templates are; theirs are the logits.
    """
    owners = {name: name if of is None else of[name] for name in as_names(names, "class names")}
    return {
        name: [form.format(name=name, phrase=phrase) for phrase in _phrases(phrases, owner)]
        for name, owner in owners.items()
    }


def informed(names: Sequence[str], phrases: Mapping[str, Sequence[str]]) -> Prompts:
    """One prompt for each name: the name and all that is known of it, in a row.

    Raises
    ------
    KeyError
        If a name has no phrase.

    Notes
    -----
    Source: Shen et al. 2022, "K-LITE: learning transferable visual models with external
    knowledge", NeurIPS, and ELEVATER (Li et al. 2022), which put a dictionary's definition behind
    the name. A short context cuts what does not fit.
    """
    names = as_names(names, "class names")
    return {name: [", ".join([name, *_phrases(phrases, name)])] for name in names}


def _phrases(phrases: Mapping[str, Sequence[str]], name: str) -> list[str]:
    if not (found := list(phrases.get(name, ()))):
        raise KeyError(suggest(name, list(phrases), "name with a description"))
    return found


def deranged(names: Sequence[str], seed: int = 0) -> dict[str, str]:
    """Another name of the same list for each name: one random cycle through all.

    Raises ValueError if there are fewer than two names.
    """
    names = as_names(names, "class names")
    if len(names) < 2:
        raise ValueError("a single name has no other to be swapped with")
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    return dict(zip(order, [*order[1:], order[0]], strict=True))
