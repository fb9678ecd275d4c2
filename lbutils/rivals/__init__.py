"""What name learning is compared with, behind the same `fit` and `joint_logits`.

In come few-shot splits, or unlabelled features. Out come fitted classifiers: learned contexts,
adapters of cached features, probes, transductive methods, and attributes. `RIVALS` makes all that
take labels, `TRANSDUCTIVE` those that take none.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "attributes": ["DAP", "IAP"],
        "context": ["CoCoOp", "CoOp", "KgCoOp"],
        "probes": ["CONTROLS", "Control", "Prototypes", "ZeroShot"],
        "table": ["RIVALS"],
        "transduction": ["TRANSDUCTIVE"],
    },
)
