"""Sets of parameters for all notebooks at once, such as those of a quick run.

They are data: ``notebooks/profiles.yaml`` says for each what it is for, and what it changes in
which notebook. `lbutils.run.parameters.check` takes the one that the environment variable
`VARIABLE` names, if any, so that notebooks run with it however they are started.
"""

from __future__ import annotations

from typing import Any

import yaml

from lbutils._util import shipped, suggest

VARIABLE = "LBUTILS_PROFILE"


def profiles() -> dict[str, dict[str, Any]]:
    """Each profile's ``about`` (a line) and ``notebooks``: parameters by the notebook's number."""
    text = (shipped("notebooks") / "profiles.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["profiles"]
    return found


def named(name: str) -> dict[str, Any]:
    """One of `profiles`. Raises ValueError if there is none of this name."""
    known = profiles()
    if name not in known:
        raise ValueError(suggest(name, known, "profile"))
    return known[name]


def of_profile(name: str | None, notebook: str) -> dict[str, Any]:
    """What a profile changes in a notebook, by its stem; nothing where it does not name it.

    Without a name there is no profile, and nothing is changed.

    Raises ValueError if there is no such profile.
    """
    if not name:
        return {}
    given: dict[str, Any] = named(name)["notebooks"].get(notebook.split("_")[0], {})
    return given
