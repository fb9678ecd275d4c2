"""Notebooks run in order or over a grid of parameters, and their results in one place.

In come notebooks and parameters, or a grid in YAML. Out come executed notebooks, a page of
claims, and tables of what every run recorded. Notebooks are run in processes of their own; no
torch here.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "grid": ["Grid", "read_grid"],
        "parameters": ["check", "place"],
        "notebooks": ["find_notebooks"],
        "page": ["claims_table"],
        "sweeps": ["grid_file", "results", "summary"],
    },
)
