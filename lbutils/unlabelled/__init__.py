"""Images without labels: clusters, new classes, and names matched to them.

In come features of a pile of images and a list of names. Out come clusters and how good they
are, discovered classes, an assignment of names, and a fitted `ZeroShotNameLearner`.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "cluster": ["clustering_accuracy", "clustering_report", "kmeans", "separation_margin"],
        "discovery": ["Discovery", "discover", "estimate_k", "gcd_accuracy"],
        "match": ["assign", "aurc", "risk_coverage"],
        "zsnl": ["ZeroShotNameLearner"],
    },
)
