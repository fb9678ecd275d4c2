"""How good a method is: scores, intervals, comparisons, records.

In come logits and labels, or methods and a benchmark to try them on. Out come accuracies with
bootstrap intervals, joint IP and OOP scores, tables over draws, records on disk, and the paper's
numbers to stand beside them. Scores and records do without torch; trying methods does not.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "joint": ["JointScores", "compare_joint", "interval", "joint_scores", "protocol_table"],
        "tasks": ["Trials"],
        "mixtures": ["Mixture"],
        "records": ["collect", "write_record"],
        "published": ["beside", "claims"],
    },
)
