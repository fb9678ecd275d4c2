"""What every room uses.

Lazy faces, where data and results lie, a line about an unknown name, an interval as text, names of
files, whole files.
"""

from __future__ import annotations

import difflib
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import psutil

PACKAGE = Path(__file__).resolve().parent
_LONGEST_NAME = 255  # bytes, of a file's name on Linux and macOS
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
# Of Windows, whatever follows a dot.
_DEVICES = re.compile(
    "(con|prn|aux|nul|conin[$]|conout[$]|(com|lpt)[0-9¹²³])[ ]*([.].*)?", re.IGNORECASE | re.DOTALL
)


def lazy(
    face: str, homes: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package whose names load when first used.

    So a face costs nothing to import, and what works on tables alone never loads torch.

    `face` (str): the package, its ``__name__``. `homes` (mapping): the names that each module below
    the package gives to it, such as ``{"names": ["Names", "NameEmbeddings"]}``. A module's name is
    no name of the face: the import system would put the one in the other's place.

    Source: PEP 562.
    """
    home = {name: f"{face}.{module}" for module, names in homes.items() for name in names}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {face!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[face], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[face]), *home})

    return sorted(home), load, listed


def is_installed() -> bool:
    """Whether the package holds its data itself, as a wheel puts them; a checkout does not."""
    return (PACKAGE / "_data").is_dir()


def shipped(part: str) -> Path:
    """The folder ``data`` or ``notebooks``: of the checkout, or in the installed package."""
    return PACKAGE / f"_{part}" if is_installed() else PACKAGE.parent / part


def results_dir() -> Path:
    """``runs``, where results go: in the checkout, or else in the current folder.

    Raises ValueError if the current folder is one of the installed package, which holds nobody's
    results.
    """
    if not is_installed():
        return PACKAGE.parent / "runs"
    here = Path.cwd()
    if here.resolve().is_relative_to(PACKAGE):
        raise ValueError(
            f"{here} is part of the installed package, where no results belong: set `out`, or "
            "copy the notebook to a folder of your own"
        )
    return here / "runs"


def suggest(word: object, options: Iterable[object], what: str) -> str:
    """One line for an unknown name: what it should be, the valid options, the nearest match.

    Parameters
    ----------
    word : object
        The name that was given.
    options : iterable
        The valid names, printed in this order; of more than 40 the nearest ones
        and the first.
    what : str
        What the name stands for, such as ``"domain"``.
    """
    valid = [str(option) for option in options]
    folded = {option.casefold(): option for option in reversed(valid)}
    near = difflib.get_close_matches(str(word).casefold(), list(folded), n=5, cutoff=0.5)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    shown = ", ".join(valid) or "(none)"
    if len(valid) > 40:  # nobody reads thousands of names
        some = dict.fromkeys([*(folded[name] for name in near), valid[0]])
        shown = f"{len(valid):,} names such as {', '.join(some)}"
    return f"unknown {what} {str(word)!r}: choose from {shown}.{hint}"


def interval_text(found: Sequence[float], spec: str = ".1f", ends: str | None = None) -> str:
    """A mean with the ends of its interval, ``"48.3 [46.1, 50.2]"``; alone where these are NaN.

    `found` (sequence of float): mean, low, high, and whatever follows. `spec`, `ends` (str): how
    the mean and the ends are written; the ends as the mean unless said, but without its plus.
    """
    mean, low, high = found[:3]
    ends = spec.removeprefix("+") if ends is None else ends
    return f"{mean:{spec}}" + (f" [{low:{ends}}, {high:{ends}}]" if low == low else "")


def file_name(value: Any, what: str = "name", owner: Any = "", portable: bool = True) -> str:
    """The value itself, if it can name one file or folder, and nothing outside of where it lies.

    Every text that becomes part of a path and comes from a file, or from a caller, passes here.

    `value` (object): the name. `what`, `owner` (str): what messages call it and what it belongs to,
    such as "domain" and "the benchmark". `portable` (bool): whether it must be a name on every
    system: not hidden, without signs that Windows does not have in names, and no device of it. What
    others named need not be, such as classes of a released benchmark; on Windows itself it must.

    Raises ValueError if it is no text, empty, a path, too long, or has signs that cannot be in a
    name.
    """
    portable = portable or os.name == "nt"
    has, shown = f"{owner} has a {what} that".lstrip(), short(value)
    if not isinstance(value, str):
        raise ValueError(f"{has} is no text: {shown}")
    if ".." in re.split(r"[/\\]", value):
        raise ValueError(f"{has} leaves the folder: {shown}")
    if "/" in value or (portable and ("\\" in value or re.match("[A-Za-z]:", value))):
        raise ValueError(f"{has} is a path, not a name: {shown}")
    if value in ("", ".") or not is_text(value) or _CONTROLS.search(value):
        raise ValueError(f"{has} cannot name a file: {shown}")
    if len(value.encode()) > _LONGEST_NAME:
        raise ValueError(f"{has} has more than {_LONGEST_NAME} bytes: {shown}")
    if portable and (set(value) & set('<>:"|?*') or value.startswith(".") or _trimmed(value)):
        raise ValueError(
            f"{has} cannot name a file on every system: {shown}; rename it, without "
            '<>:"|?*, a dot or space at an end, or the name of a device'
        )
    return value


def _trimmed(value: str) -> bool:
    """Whether Windows takes a name for another, or for one of its devices."""
    return value != value.strip() or value.endswith(".") or bool(_DEVICES.fullmatch(value))


def short(value: Any) -> str:
    """A value as Python writes it, cut to what fits in a message."""
    text = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def hexdigest(file: IO[bytes], digest: Any) -> str:
    """A digest of `hashlib`, once what is left of an open file is in it, block by block."""
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def is_text(value: str) -> bool:
    """Whether a text can be written: JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_DAY = 24 * 3600
_TEMPORARY = re.compile(r"\..+\.(?:(?P<host>\w*)-)?(?P<process>\d+)-[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `place` when the block ends well.

    It lies beside it, in a folder of its own, as some libraries (safetensors) write temporaries of
    theirs beside a file. Folders are made as needed. Two processes may write the same place: the
    last one wins. What processes left here that were killed is removed, see `remove_orphans`.
    """
    folder = temporary_beside(place)
    temporary = folder / "content"
    try:
        folder.mkdir()
        yield temporary
        # Without this a machine that loses power may keep the new name and not the content.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_beside(place: Path) -> Path:
    """The path for a temporary file or folder of this process, beside what it is to become.

    The folder is made as needed, and what killed processes left in it is removed.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_orphans(place.parent.resolve())
    own = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return place.with_name(f".{place.name}.{own}.tmp")


def write_text(place: Path, text: str) -> None:
    """Write a text, in UTF-8, to a temporary file and move it into place."""
    with replacing(place) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def remove_orphans(folder: Path) -> None:
    """Remove what `temporary_beside` named in a folder for processes that are gone; once a process.

    A process of this machine is gone if it does not run; any, if its file was not touched for a
    day.
    """
    for path in folder.glob(".*.tmp"):
        if not (found := _TEMPORARY.fullmatch(path.name)):
            continue
        try:
            own = found["host"] == _host()
            if time.time() - path.stat().st_mtime > _DAY or (
                own and not psutil.pid_exists(int(found["process"]))
            ):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # another process was faster, or it is not ours to remove
            continue


@cache
def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())
