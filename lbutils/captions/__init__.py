"""Which names occur in which captions.

In come class names and captions: lists, files, or the metadata of a published corpus. Out come
counts for each name and level, example captions, certificates that say where they are from, and
classes chosen by them. Nothing here knows images.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "text": ["canonical", "inflections"],
        "corpora": ["Sources", "find_urls", "inspect"],
        "survey": ["Survey", "mentions", "screen"],
        "certificate": ["certify", "check_scales", "read_certificate", "write_certificate"],
    },
)
