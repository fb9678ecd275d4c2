"""Benchmarks: images, class names, IP and OOP subsets, few-shot draws.

In comes the name of a benchmark or a folder, and for LAION-Beyond the hub. Out comes a
`Benchmark` of `Domain`s, each with its subsets and their splits, and reports of what is damaged.
Tables and image files alone; no torch.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "benchmark": ["SCALES", "Benchmark", "Domain", "Split", "Subset", "join", "load_benchmark"],
        "folder": ["data_dir", "generate"],
        "hub": ["download"],
        "laion_beyond": ["export", "relabel"],
    },
)
