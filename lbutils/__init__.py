"""CLIP and the concepts out of its pre-training: screening, benchmarks, and learned names.

The names below are loaded when they are first used, so that importing the package, or one of
its modules that work on tables alone, does not load torch.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbutils.benchmark import load_benchmark
    from lbutils.encoders import load_encoder
    from lbutils.fewshot import NameLearner
    from lbutils.vocabulary import screen
    from lbutils.zsnl import ZeroShotNameLearner

# A dependency asks for notebook widgets that no bar here needs, with a path in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
__all__ = ["NameLearner", "ZeroShotNameLearner", "load_benchmark", "load_encoder", "screen"]

_HOME = {
    "NameLearner": "lbutils.fewshot",
    "ZeroShotNameLearner": "lbutils.zsnl",
    "load_benchmark": "lbutils.benchmark",
    "load_encoder": "lbutils.encoders",
    "screen": "lbutils.vocabulary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
