"""LAION-Beyond from the hub of Hugging Face: domain by domain, at one commit, checked, once.

The files go to the hub's cache (``HF_HOME``, ``HF_HUB_CACHE``) or to a folder of one's own. Beside
them lies ``lbutils.json``: the commit that they are of, and what of it is complete.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import huggingface_hub as hub
import pandas as pd
from huggingface_hub.errors import (
    HfHubHTTPError,
    RevisionResolutionError,
    XetDownloadError,
)
from huggingface_hub.file_download import repo_folder_name

from lbutils._util import hexdigest, suggest, temporary_beside, write_text
from lbutils.captions.text import as_names, redacted
from lbutils.data import folder as layout

NAME = "laion-beyond"
RECORD = "lbutils.json"
# What Python's library unpacks, by its name there; anything else has to be unpacked by hand.
ARCHIVES = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "gztar",
    ".tgz": "gztar",
    ".tar.bz2": "bztar",
    ".tar.xz": "xztar",
}
# Images hardly shrink in an archive; one that grows by more is made to fill a disk.
MAX_GROWTH = 20

# The authors' few-shot draws, which are neither needed nor safe.
_UNWANTED = (".pkl", ".pickle")
_COMMIT = re.compile("[0-9a-f]{40}")
_OTHER_ARCHIVES = (".7z", ".rar", ".zst", ".gz", ".bz2", ".xz", *(f".{i:03}" for i in range(10)))
# A full or closed disk has nothing to do with the hub, and says what is wrong itself.
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
# What to do about the hub's answers, by HTTP status.
_REFUSED = {
    401: "the repository has moved or is not open to you: log in with `hf auth login`, or",
    403: "it is not open to you: accept its terms on the hub, log in with `hf auth login`, or",
    404: "the repository or the revision is not there: ask for another revision, or",
    429: "that was too much at a time for the hub: run it again in some minutes (after `hf auth "
    "login` it allows more), or",
}
# The hub's client raises its own errors and those of the HTTP library under it, whichever it is.
_HTTPError: type[Exception] = cast("type[Exception]", HfHubHTTPError.__mro__[1])


class Unreachable(ConnectionError, FileNotFoundError):
    """LAION-Beyond is not there, and the hub cannot be asked for it."""


@dataclass(frozen=True)
class Source:
    """A dataset of the hub, from ``data/downloads.csv``; `revision` is a commit or a branch."""

    repository: str
    revision: str
    licence: str


@dataclass(frozen=True)
class Listed:
    """A file of a repository: its bytes, and the SHA-256 of a large one or git's SHA-1 of others.

    Of a large file git keeps a pointer only, so that its SHA-1 says nothing of the content.
    """

    size: int
    checksum: str


def source() -> Source:
    """Where LAION-Beyond is downloaded from."""
    table = pd.read_csv(layout.data_file("downloads.csv"), keep_default_na=False, dtype=str)
    return Source(*table.set_index("name").loc[NAME, ["repository", "revision", "licence"]])


def download(
    domains: Sequence[str] | None = None,
    *,
    scale: str = "400m",
    to: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> Path:
    """The folder with the wanted domains of LAION-Beyond, downloaded unless they are there.

    What is complete is taken without asking the hub. A download that was cut short is taken up
    again. Every new file is compared with the hub's checksum, and archives are unpacked.

    Raises ValueError for an unknown domain, a commit other than that of what is there, folders that
    the repository does not have at `scale`, or files that differ from their checksums. Raises
    Unreachable if the hub cannot be reached, or the download was cut short.

    Parameters
    ----------
    domains : sequence of str, optional
        The paper's names; all nine by default, about 15 GB.
    scale : str
        "400m", "2b" or "5b". Beyond 400M only folders with the paper's number of classes at
        that scale are taken.
    to : path, optional
        A folder for the files; the hub's cache by default.
    revision : str, optional
        A commit or branch; that of ``data/downloads.csv`` by default. A branch is looked up
        once: later calls stay with the commit that was found.
    """
    known = layout.read_hints("laion_beyond")
    named = list(known) if domains is None else as_names(domains, "domains")
    wanted = [_domain(name, known) for name in named]
    if not wanted:
        raise ValueError("domains is empty: name at least one, or leave it out for all")
    place = _Place(source(), Path(to).expanduser() if to is not None else None)
    record = place.read()
    commit = str(record.get("commit", ""))
    asked = revision or place.source.revision
    if commit and (revision or _COMMIT.fullmatch(asked)):
        _stay(place, commit, asked)
    lacking = [name for name in wanted if not _is_complete(place, record, name, scale)]
    if not lacking:
        return place.root(commit) / record["prefix"]
    with _told(place, lacking):
        commit = commit or _resolve(place, asked)
        files = place.listing(commit)
        chosen = choose(files, lacking, known, scale)
        prefix = _prefix(chosen)
        kept = {"commit": commit, "asked": asked, "prefix": prefix}
        # Before the first file, so that a download that is cut short stays with its commit.
        place.write({**kept, "folders": record.get("folders", {})})
        _announce(place, commit, chosen, files)
        root = place.fetch(commit, chosen)
    _verify(root, chosen, files)
    _unpack(root, chosen)
    # Read again: another process may have finished other domains meanwhile.
    names = [PurePosixPath(folder).name for folder in chosen]
    finished = place.read().get("folders", {}) | dict.fromkeys(names, scale)
    place.write({**kept, "folders": finished})
    return root / prefix


def _domain(name: str, known: Iterable[str]) -> str:
    known = list(known)
    found = layout.ALIASES.get(layout.plain(name), name)
    if found not in known:
        raise ValueError(suggest(name, known, "domain"))
    return found


# --- the hub -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where one dataset is kept: the hub's cache, or a folder."""

    source: Source
    to: Path | None

    @property
    def folder(self) -> Path:
        """The folder of the record."""
        if self.to is not None:
            return self.to
        name = repo_folder_name(repo_id=self.source.repository, repo_type="dataset")
        return Path(hub.constants.HF_HUB_CACHE) / name

    def root(self, commit: str) -> Path:
        """Where the repository's files lie."""
        return self.to if self.to is not None else self.folder / "snapshots" / commit

    def read(self) -> dict[str, Any]:
        """The record, empty if there is none."""
        file = self.folder / RECORD
        if not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is damaged: remove it and download again") from error
        content = content if isinstance(content, dict) else {}
        prefix, folders = content.get("prefix"), content.get("folders")
        inside = isinstance(prefix, str) and not {"..", "/"} & set(PurePosixPath(prefix).parts)
        pinned = _COMMIT.fullmatch(str(content.get("commit")))
        if not pinned or not inside or not isinstance(folders, dict):
            raise ValueError(f"{file} is damaged: remove it and download again")
        return content

    def write(self, record: Mapping[str, Any]) -> None:
        content = {"repository": self.source.repository, **record}
        try:
            write_text(self.folder / RECORD, json.dumps(content, indent=1, ensure_ascii=False))
        except OSError as error:
            # A cache that others filled may be read-only: then it is checked again next time.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise

    def fetch(self, commit: str, chosen: Mapping[str, Sequence[str]]) -> Path:
        """The folder of the repository at a commit, once the chosen files are in it."""
        # By folder: the client compares every path of the repository with every pattern.
        patterns = [f"{glob.escape(folder)}/*" for folder in chosen]
        for folder, paths in chosen.items():
            patterns += [glob.escape(p) for p in paths if not p.startswith(f"{folder}/")]
        return Path(
            hub.snapshot_download(
                self.source.repository,
                repo_type="dataset",
                revision=commit,
                local_dir=self.to,
                allow_patterns=patterns,
                ignore_patterns=[f"*{suffix}" for suffix in _UNWANTED],
                # Else the client tries every missing file, and then names none.
                local_files_only=hub.constants.HF_HUB_OFFLINE,
            )
        )

    def listing(self, commit: str) -> dict[str, Listed]:
        """Every file of the repository at a commit, by its path."""
        found = self._kept_listing(commit)
        if found is None:
            # Fetches no data: the client keeps the list of files that it makes on the way.
            self.fetch(commit, {"": [".gitattributes"]})
            found = self._kept_listing(commit)
        if found is None and hub.constants.HF_HUB_OFFLINE:
            raise ConnectionError(
                "the list of its files is not in the cache, as older clients keep none: if all is "
                f"in {self.root(commit)}, give load_benchmark that folder"
            )
        return found or self._asked_listing(commit)

    def _kept_listing(self, commit: str) -> dict[str, Listed] | None:
        """The list of files that the client keeps, None without one that can be read.

        `huggingface_hub.get_cached_repo_tree` reads it too, but leaves the SHA-256 of large files
        out (as of version 2.4).
        """
        folder = self.to / ".cache" / "huggingface" if self.to is not None else self.folder
        try:
            text = (folder / "trees" / f"{commit}.json").read_text(encoding="utf-8")
            files = json.loads(text)["files"].items()
            return {
                path: Listed(int(about["size"]), str(about.get("lfs_sha256") or about["blob_id"]))
                for path, about in files
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def _asked_listing(self, commit: str) -> dict[str, Listed]:
        files = hub.HfApi().list_repo_tree(
            self.source.repository, recursive=True, revision=commit, repo_type="dataset"
        )
        return {
            file.path: Listed(file.size, str(file.lfs.sha256 if file.lfs else file.blob_id))
            for file in files
            if isinstance(file, hub.RepoFile)
        }


def _stay(place: _Place, commit: str, asked: str) -> None:
    """Refuse to put another commit beside the one that is there."""
    if not _COMMIT.fullmatch(asked):
        with _told(place, ()):
            asked = _resolve(place, asked)
    if asked != commit:
        raise ValueError(
            f"{place.folder} holds revision {commit} of {place.source.repository}, not {asked}: "
            "two revisions are not mixed; give another folder, or remove this one"
        )


def _resolve(place: _Place, asked: str) -> str:
    api = hub.HfApi()
    found = api.resolve_revision(place.source.repository, repo_type="dataset", revision=asked)
    return found.resolved


@contextmanager
def _told(place: _Place, wanted: Sequence[str]) -> Iterator[None]:
    """Say in one line what to do when the hub cannot be reached."""
    try:
        yield
    except (OSError, RevisionResolutionError, XetDownloadError, _HTTPError) as error:
        if getattr(error, "errno", None) in _LOCAL:
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        # The hub's address may hold a password, that of a file is signed.
        reason = redacted(lines[0]) if lines else "no reason given"
        reason = f"{type(error).__name__}: {reason}"[:400]
        advice = "what has arrived is kept, so run it again with a connection, or"
        if hub.constants.HF_HUB_OFFLINE:
            advice = "HF_HUB_OFFLINE is set and not all of it is in the cache; unset it once, or"
        elif (status := _status(error)) in _REFUSED:
            advice = _REFUSED[status]
        names = ", ".join(wanted) or place.source.repository
        raise Unreachable(
            f"{names} of {NAME} could not be downloaded ({reason}): {advice} give "
            'load_benchmark a folder copied from elsewhere; load_benchmark("mini") needs none'
        ) from (error if redacted(str(error)) == str(error) else None)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that the hub answered, None if it did not answer."""
    while error is not None:
        if status := getattr(getattr(error, "response", None), "status_code", None):
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def _is_complete(place: _Place, record: Mapping[str, Any], domain: str, scale: str) -> bool:
    """Whether all of a domain was downloaded, checked and is still there."""
    if not record:
        return False
    root = place.root(record["commit"]) / record["prefix"]
    here = set()
    for folder, of_scale in record["folders"].items():
        name = layout.parse_folder(folder, [domain])
        if not name or name.domain != domain or not (root / folder).is_dir():
            continue
        if of_scale == scale or layout.is_published(name, scale):
            here.add(name.kind)
    return _kinds(domain, scale) <= here


# --- what to take --------------------------------------------------------------------------


def choose(
    files: Iterable[str], wanted: Sequence[str], known: Iterable[str], scale: str
) -> dict[str, list[str]]:
    """Paths to fetch for the wanted domains, by folder, whether plain or packed in archives.

    `files`: all paths of the repository. `known`: all of the paper's domains. `scale` (str): beyond
    "400m", a folder has to have the paper's number of classes at that scale.

    Raises ValueError if a domain has no folder that fits, with what the repository does have.
    """
    files, known = list(files), list(known)
    groups: dict[str, list[str]] = defaultdict(list)
    names: dict[str, layout.FolderName] = {}
    for path in files:
        if {"", ".."} & set(path.split("/")):
            raise ValueError(f"the repository has a file that leads out of it: {path!r}")
        if path.endswith(_UNWANTED):
            continue
        if found := _folder_of(path, known):
            folder, name = found
            names[folder] = name
            groups[folder].append(path)
    chosen: dict[str, list[str]] = {}
    for domain in wanted:
        for kind in sorted(_kinds(domain, scale)):
            folder = _best(names, domain, kind, scale, files)
            chosen[folder] = groups[folder]
    return chosen


def _folder_of(path: str, known: Sequence[str]) -> tuple[str, layout.FolderName] | None:
    """The benchmark's folder that a file lies in, or that an archive becomes."""
    parts = PurePosixPath(path).parts
    for i, part in enumerate(parts):
        stem = _stem(part) if i == len(parts) - 1 else part
        if stem and (name := layout.parse_folder(stem, known)) and name.domain in known:
            return "/".join((*parts[:i], stem)), name
    return None


def _stem(name: str) -> str | None:
    """An archive's name without its suffix, None for any other file."""
    ending = _ending(name)
    return name[: -len(ending)] if ending else None


def _ending(name: str) -> str | None:
    return max((s for s in ARCHIVES if name.lower().endswith(s)), key=len, default=None)


def _kinds(domain: str, scale: str) -> set[str]:
    """The subsets that a domain has at a scale: beyond 400M, some have no OOP class left."""
    published = layout.published_classes(scale)
    return {kind for kind in layout.SUBSETS if published.get((domain, kind), 1)}


def _best(
    names: Mapping[str, layout.FolderName],
    domain: str,
    kind: str,
    scale: str,
    files: Sequence[str],
) -> str:
    own = {key: name for key, name in names.items() if (name.domain, name.kind) == (domain, kind)}
    fit = [key for key, name in own.items() if layout.is_published(name, scale)]
    if not fit and scale == "400m":  # that of the release, whose folders need no telling apart
        fit = list(own)
    if len(fit) == 1:
        return fit[0]
    published = layout.published_classes(scale).get((domain, kind))
    what = f"{domain} {kind.upper()} at scale {scale} ({published} classes in the paper)"
    if fit:
        raise ValueError(
            f"{what} could be any of {', '.join(fit)}: download one and give its folder"
        )
    if own:
        raise ValueError(
            f"the repository has no folder for {what}, only {', '.join(own)}: load scale 400m and "
            "move the classes that the larger corpus names with lbutils.data.laion_beyond.relabel"
        )
    tops = sorted({PurePosixPath(path).parts[0] for path in files})[:12]
    packed = [path for path in files if path.lower().endswith((*ARCHIVES, *_OTHER_ARCHIVES))]
    advice = (
        f"unpack {packed[0]} by hand (`hf download` fetches it) and give load_benchmark its folder"
        if packed
        else "see `find_folders` of lbutils.data.folder for the names that are read"
    )
    raise ValueError(
        f"the repository has no folder for {what}; it has {', '.join(tops)}; expected "
        f"{layout.LAYOUT}: {advice}"
    )


def _prefix(chosen: Iterable[str]) -> str:
    """The folder of the repository that holds all chosen ones, "" for its top."""
    parents = {str(PurePosixPath(folder).parent) for folder in chosen}
    if len(parents) > 1:
        raise ValueError(f"domains lie in several folders: {', '.join(sorted(parents))}")
    return parents.pop().removeprefix(".")


def _announce(
    place: _Place,
    commit: str,
    chosen: Mapping[str, Sequence[str]],
    files: Mapping[str, Listed],
) -> None:
    paths = [path for own in chosen.values() for path in own]
    gigabytes = sum(files[path].size for path in paths) / 1e9
    print(
        f"{place.source.repository} at commit {commit} ({place.source.licence}): "
        f"{len(paths):,} files, {gigabytes:.2f} GB of {', '.join(chosen)} in {place.folder}",
        flush=True,
    )


# --- after the download --------------------------------------------------------------------


def _verify(root: Path, chosen: Mapping[str, Sequence[str]], files: Mapping[str, Listed]) -> None:
    """Compare the new files with the hub's checksums; those that differ are removed.

    The client checks sizes; it can check contents too (`verify_repo_checksums`), but for all of a
    repository at once, after listing it anew.
    """
    wrong = []
    for path in (path for paths in chosen.values() for path in paths):
        place = root / path
        expected = files[path].checksum
        if not place.is_file() or _checksum(place, expected) != expected:
            wrong.append(path)
            for file in {place, place.resolve()}:
                file.unlink(missing_ok=True)
    if wrong:
        raise ValueError(
            f"{len(wrong)} files differ from the hub's checksums and were removed, such as "
            f"{wrong[0]}: run it again"
        )


def _checksum(place: Path, expected: str) -> str:
    """The checksum of a file of the kind that is expected, which its length tells."""
    large = len(expected) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(usedforsecurity=False)
    if not large:
        digest.update(f"blob {place.stat().st_size}\0".encode())
    with place.open("rb") as stream:
        return hexdigest(stream, digest)


def _unpack(root: Path, chosen: Mapping[str, Sequence[str]]) -> None:
    """Unpack the archives among the chosen files, each beside itself."""
    for folder, paths in chosen.items():
        for path in paths:
            if (stem := _stem(PurePosixPath(path).name)) is not None:
                unpack(root / path, (root / path).with_name(stem))
            elif path.lower().endswith(_OTHER_ARCHIVES):
                raise ValueError(
                    f"{path} is an archive of a kind that is not unpacked here: unpack it by hand "
                    f"into {root / folder} and give load_benchmark {root}"
                )


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive into the folder `target`.

    A single folder in the archive that has the target's name, or that of a subset of a benchmark,
    is the target itself, whatever a file manager left beside it. Nothing is seen of the content
    before all of it is unpacked.

    Raises ValueError if the archive is damaged, holds a link or a path that leads out of it, or
    grows by more than images do, or beyond the disk's free space. Nothing is unpacked then.
    """
    kind = ARCHIVES[_ending(archive.name) or ".tar"]
    with _undamaged(archive):
        members = list(_members(archive, kind))
    _admit(archive, members)
    scratch = temporary_beside(target)
    # Checked above, and again by the library where its Python is recent enough.
    strict: dict[str, Any] = (
        {"filter": "data"} if kind != "zip" and hasattr(tarfile, "data_filter") else {}
    )
    try:
        with _undamaged(archive):
            shutil.unpack_archive(archive, scratch, kind, **strict)
        content = _content(scratch, target.name)
        if target.exists():
            shutil.copytree(content, target, copy_function=os.replace, dirs_exist_ok=True)
        else:
            content.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _undamaged(archive: Path) -> Iterator[None]:
    """Say of which archive it is, and what to do, where a library fails on its content."""
    try:
        yield
    except Exception as error:  # of the archive, its compression, its names, its encryption
        if getattr(error, "errno", None) in _LOCAL:
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{archive} is damaged or of a kind that is not unpacked here, download it again or "
            f"unpack it by hand: {reason}"
        ) from error


def _content(folder: Path, name: str) -> Path:
    """The folder of an unpacked archive that is to be the one of a name."""
    # Finder and others leave these: "__MACOSX", ".DS_Store", "._name".
    tops = [top for top in folder.iterdir() if top.name != "__MACOSX" and top.name[0] != "."]
    if len(tops) == 1 and tops[0].is_dir():
        known = list(layout.read_hints("laion_beyond"))
        if tops[0].name == name or layout.parse_folder(tops[0].name, known):
            return tops[0]
    return folder


def _members(archive: Path, kind: str) -> Iterator[tuple[str, int, bool]]:
    """Name, size and whether it is a plain file or folder, of each member."""
    if kind == "zip":
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                mode = info.external_attr >> 28
                yield info.filename, info.file_size, mode in (0, 0o4, 0o10)
    else:
        with tarfile.open(archive) as packed_tar:
            for member in packed_tar:
                yield member.name, member.size, member.isreg() or member.isdir()
            # The checksum of what is compressed stands behind all members.
            while packed_tar.fileobj is not None and packed_tar.fileobj.read(1 << 20):
                pass


def _admit(archive: Path, members: Sequence[tuple[str, int, bool]]) -> None:
    for name, _, is_plain in members:
        parts = re.split(r"[/\\]", name)
        drive = re.match("[A-Za-z]:", name)  # a longer word is a class, such as "Type: Null"
        if name.startswith(("/", "\\")) or ".." in parts or drive or "\0" in name:
            raise ValueError(f"{archive} is refused: its member {name!r} leads out of it")
        if not is_plain:
            raise ValueError(f"{archive} is refused: its member {name!r} is a link or a device")
    total = sum(size for _, size, _ in members)
    if total > MAX_GROWTH * max(archive.stat().st_size, 1 << 20):
        raise ValueError(f"{archive} is refused: it would grow to {total:,} bytes, as no images do")
    if total > (free := shutil.disk_usage(archive.parent).free):
        raise ValueError(f"{archive} needs {total:,} bytes unpacked, but {free:,} are free")
