"""Sets of parameters for all notebooks at once, such as those of a lesson.

They are data: ``notebooks/profiles.yaml`` says for each what it is for, and what it changes in
which notebook.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lbutils._util import shipped, suggest
from lbutils.run import parameters


def _said() -> dict[str, Any]:
    text = (shipped("notebooks") / "profiles.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def profiles() -> dict[str, dict[str, Any]]:
    """Each profile's ``about`` (a line) and ``notebooks``: parameters by the notebook's number."""
    found: dict[str, dict[str, Any]] = _said()["profiles"]
    return found


def of_profile(name: str, notebook: Path) -> dict[str, Any]:
    """What a profile changes in a notebook; nothing where it does not name it.

    Raises
    ------
    ValueError
        If there is no such profile, or it sets what the notebook does not have or take.
    """
    known = profiles()
    if name not in known:
        raise ValueError(suggest(name, known, "profile"))
    given: dict[str, Any] = known[name]["notebooks"].get(notebook.stem.split("_")[0], {})
    defaults = parameters.of_notebook(notebook) if given else {}
    for key, value in given.items():
        if key not in defaults:
            raise ValueError(
                f"profile {name}, {notebook.stem}: {suggest(key, defaults, 'parameter')}"
            )
        parameters.check_value(key, value, defaults[key])
    return given
