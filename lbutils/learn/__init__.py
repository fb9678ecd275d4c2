"""Names learned from a few labelled images, and what is known of a name without images.

In come few-shot splits, or words about names. Out come a fitted `NameLearner`, prototypes from
`Knowledge`, and a report of what is odd in a folder of one's own images.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "namelearner": ["Alignment", "NameLearner", "fit_many"],
        "knowledge": ["Knowledge", "Lexicon", "load_lexicon"],
        "colours": ["colour_evidence", "colour_shares"],
        "checks": ["check", "read_folder", "report"],
    },
)
