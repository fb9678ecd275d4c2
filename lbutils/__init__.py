"""CLIP and the concepts out of its pre-training: screening, benchmarks, and learned names.

The names below are loaded when they are first used, so that importing the package, or one of
its rooms that work on tables alone, does not load torch. README.md beside this file says which
room holds what.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lbutils._util import lazy

if TYPE_CHECKING:
    from lbutils.captions.survey import screen
    from lbutils.data.benchmark import load_benchmark
    from lbutils.learn.namelearner import NameLearner
    from lbutils.models.encoders import load_encoder
    from lbutils.unlabelled.zsnl import ZeroShotNameLearner

# A dependency asks for notebook widgets that no bar here needs, with a path in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
__all__ = ["NameLearner", "ZeroShotNameLearner", "load_benchmark", "load_encoder", "screen"]
_, __getattr__, __dir__ = lazy(
    __name__,
    {
        "captions.survey": ["screen"],
        "data.benchmark": ["load_benchmark"],
        "learn.namelearner": ["NameLearner"],
        "models.encoders": ["load_encoder"],
        "unlabelled.zsnl": ["ZeroShotNameLearner"],
    },
)
