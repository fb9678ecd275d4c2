"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A temporary path beside `place` that takes its place when the block ends well.

    Folders are made as needed. Two processes may write the same place: the last one wins.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        # Without this a machine that loses power may keep the new name and not the content.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(place: Path, text: str) -> None:
    """Write a text, in UTF-8, to a temporary file and move it into place."""
    with replacing(place) as temporary:
        temporary.write_text(text, encoding="utf-8")
