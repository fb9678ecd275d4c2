"""LAION-Beyond from a hub on this machine: by the client's own code, cut short, altered, packed.

The server speaks as much of the hub's protocol as the client asks for: revisions, listings in
pages, files in git, and large files by a redirect to another host that answers ranges.
"""

import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
from conftest import dead_process
from PIL import Image

from lbutils import _util
from lbutils.data import folder as layout
from lbutils.data import hub as downloads
from lbutils.data import laion_beyond
from lbutils.data.benchmark import load_benchmark

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "MHuangX/LAION-Beyond"
PAGE = 25
FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """A repository of `files` at some commits, and what goes wrong with it."""

    def __init__(self, files):
        self.commits = {FIRST: files}
        self.branch = FIRST
        self.log = []  # (method, path of a file)
        self.cuts = {}  # path: bytes after which the connection breaks, once
        self.altered = {}  # path: other bytes of the same size
        self.stop_after = None  # files to serve until all further ones hang
        self.hanging = threading.Event()
        self.release = threading.Event()

    def fetched(self):
        """Data files that were sent, without the one by which the client gets the listing."""
        paths = [path for method, path in self.log if method == "GET"]
        return [path for path in paths if path != ".gitattributes"]


def is_large(path):
    return path.lower().endswith((".jpg", ".zip", ".gz", ".tar"))


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(content):
    """What git holds of a large file, as the specification of git LFS has it."""
    digest = hashlib.sha256(content).hexdigest()
    lines = "version https://git-lfs.github.com/spec/v1", f"oid sha256:{digest}"
    return "\n".join((*lines, f"size {len(content)}", "")).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path.startswith(f"/api/datasets/{REPOSITORY}"):
            return self.api(path.removeprefix(f"/api/datasets/{REPOSITORY}"), parts.query)
        if path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            commit, _, name = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/").partition("/")
            return self.file(commit, name, at_store=False)
        if path.startswith("/store/"):
            commit, _, name = path.removeprefix("/store/").partition("/")
            return self.file(commit, name, at_store=True)
        return self.answer(404, b"")

    def api(self, path, query):
        kind, _, commit = path.strip("/").partition("/")
        if kind in ("", "revision"):
            found = commit if commit in self.hub.commits else self.hub.branch
            if commit not in ("", "main", *self.hub.commits):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self.answer(200, json.dumps({"id": REPOSITORY, "sha": found}).encode())
        files = sorted(self.hub.commits[commit].items())
        start = int(query.partition("from=")[2] or 0)
        rows = []
        for name, content in files[start : start + PAGE]:
            row = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
            if is_large(name):
                digest = hashlib.sha256(content).hexdigest()
                # Git holds the pointer, so that is what its own checksum is of.
                row["oid"] = blob_id(pointer(content))
                row["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            rows.append(row)
        more = {}
        if start + PAGE < len(files):
            own = f"http://{self.headers['Host']}{self.path.partition('?')[0]}"
            more = {"Link": f'<{own}?from={start + PAGE}>; rel="next"'}
        return self.answer(200, json.dumps(rows).encode(), more)

    def file(self, commit, name, at_store):
        content = self.hub.commits.get(commit, {}).get(name)
        if content is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = self.hub.altered.get(name, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_id(content)}"'}
        if is_large(name) and not at_store:
            true = self.hub.commits[commit][name]
            port = self.server.server_address[1]
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(true).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(true))
            headers["Location"] = f"http://localhost:{port}/store/{commit}/{name}"
            return self.answer(302, b"", headers)
        if self.command == "GET":
            self.hub.log.append(("GET", name))
            limit = self.hub.stop_after
            if limit is not None and len(self.hub.fetched()) > limit:
                self.hub.hanging.set()
                self.hub.release.wait(60)
        start = 0
        if (wanted := self.headers.get("Range")) and at_store:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.hub.log.append(("RANGE", name))
        body = content[start:]
        if self.command == "GET" and name in self.hub.cuts:
            self.answer(206 if start else 200, body[: self.hub.cuts.pop(name)], headers, len(body))
            self.close_connection = True
            return None
        return self.answer(206 if start else 200, body, headers)

    def answer(self, status, body, headers=None, length=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that was killed


def made_release(root):
    """The files of a small repository, by path: three domains, a card, the authors' pickles."""
    layout.generate(root, ["Animals", "Food", "Plants_Fungi"], images=(1, 1, 2), side=8)
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    files |= {"README.md": b"# LAION-Beyond\n", ".gitattributes": b"*.jpg filter=lfs\n"}
    files["Animals3_OOP/split_fewshot/shot_1-seed_1.pkl"] = b"\x80\x04N."
    return files


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    return made_release(tmp_path_factory.mktemp("released"))


@contextmanager
def served(hub):
    """Serve a hub on this machine, at its `endpoint`."""
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    hub.server = server
    try:
        yield
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


def point_at(endpoint, cache, put):
    """Point the client at a hub and a cache, by `put` for each of its constants."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    put(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    put(constants, "ENDPOINT", endpoint)
    put(constants, "HF_HUB_CACHE", str(cache))
    put(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def fake(released, monkeypatch, tmp_path):
    """A hub with these files, to which the client is pointed, and an empty cache."""
    hub = Hub(dict(released))
    hub.cache = tmp_path / "cache"
    with served(hub):
        point_at(hub.endpoint, hub.cache, monkeypatch.setattr)
        # Between attempts the client waits for longer than a test should last.
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield hub


def offline(monkeypatch, how):
    """No connection: by the switch of the client, or because nobody answers."""
    constants = huggingface_hub.constants
    if how == "switch":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        nobody = "http://127.0.0.1:9"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, nobody)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", nobody)


def pixels(split):
    return [split.image(i).tobytes() for i in range(len(split))]


# --- what is taken -------------------------------------------------------------------------


def test_one_domain_is_downloaded_and_loaded(fake, tmp_path, capsys):
    bench = load_benchmark("laion-beyond", domains="Plants_Fungi")
    assert bench.domains == ["Plants_Fungi"] and bench.scale == "400m"
    expected = load_benchmark(
        layout.generate(
            tmp_path / "again", ["Animals", "Food", "Plants_Fungi"], images=(1, 1, 2), side=8
        )
    )["Plants_Fungi"]
    found = bench["Plants_Fungi"]
    assert found.oop.train.ids == expected.oop.train.ids
    assert pixels(found.oop.test) == pixels(expected.oop.test)
    assert found.oop.train.captions == expected.oop.train.captions
    assert {path.split("/")[0] for path in fake.fetched()} <= {
        "Plants_Fugi3_OOP",
        "Plants_Fugi2_IP",
    }
    said = capsys.readouterr().out
    assert f"{REPOSITORY} at commit {FIRST} (CC BY-SA 4.0): 18 files" in said
    assert "Plants_Fugi3_OOP" in said
    assert set(bench.report()["kind"]) == {"folder name", "no captions"}


def test_what_is_there_is_not_asked_for_again(fake, monkeypatch):
    first = load_benchmark("laion-beyond", domains=["Animals"])
    requests = len(fake.log)
    offline(monkeypatch, "nobody")
    monkeypatch.setattr(downloads, "_checksum", lambda *_: pytest.fail("read again"))
    again = load_benchmark("laion-beyond", domains=["Animals"])
    assert len(fake.log) == requests
    assert again["Animals"].oop.train.key == first["Animals"].oop.train.key


def test_a_second_domain_fetches_no_file_twice(fake):
    load_benchmark("laion-beyond", domains=["Animals"])
    load_benchmark("laion-beyond", domains=["Food", "Animals"])
    fetched = fake.fetched()
    assert len(fetched) == len(set(fetched)) == 36
    record = json.loads(next(fake.cache.glob(f"*/{downloads.RECORD}")).read_text())
    assert record["commit"] == FIRST and record["asked"] == "main"
    assert set(record["folders"]) == {"Animals3_OOP", "Animals2_IP", "Food3_OOP", "Food2_IP"}


def test_no_pickle_is_downloaded(fake, tmp_path):
    root = downloads.download(["Animals"], to=tmp_path / "mine")
    assert not list(root.rglob("*.pkl")) and not any(p.endswith(".pkl") for p in fake.fetched())


def test_a_folder_of_ones_own(fake, tmp_path, monkeypatch):
    place = tmp_path / "mine"
    assert downloads.download(["Animals"], to=place) == place
    assert not any(path.is_symlink() for path in place.rglob("*"))
    assert load_benchmark(place)["Animals"].oop.train.image(0).size == (8, 8)
    offline(monkeypatch, "switch")
    assert downloads.download(["Animals"], to=place) == place
    with pytest.raises(ConnectionError, match="Food of laion-beyond"):
        downloads.download(["Food"], to=place)


def test_a_folder_below_the_top_is_found(fake):
    nested = {f"data/v1/{name}": content for name, content in fake.commits[FIRST].items()}
    fake.commits[FIRST] = nested
    bench = load_benchmark("laion-beyond", domains="Animals")
    assert bench["Animals"].ip.test.image(0).size == (8, 8)
    assert load_benchmark("laion-beyond", domains="Animals").domains == ["Animals"]


def test_no_domain_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="domains is empty"):
        downloads.download([], to=tmp_path)


@pytest.mark.parametrize("name", ["Animal", "Pokémon"])
def test_an_unknown_domain_is_named_before_anything_is_asked(fake, name):
    with pytest.raises(ValueError, match=r"unknown domain .* Did you mean"):
        load_benchmark("laion-beyond", domains=[name])
    assert not fake.log


def test_a_domain_that_the_repository_lacks(fake):
    with pytest.raises(ValueError, match=r"no folder for Pokemon IP .* it has .*Animals3_OOP"):
        load_benchmark("laion-beyond", domains="Pokemon")


def test_a_loaded_name_that_is_nearly_right():
    with pytest.raises(ValueError, match="Did you mean 'laion-beyond'"):
        load_benchmark("laion-beyon")


# --- scales --------------------------------------------------------------------------------


def test_beyond_400m_the_number_of_classes_decides(fake):
    with pytest.raises(ValueError, match=r"Animals IP at scale 2b \(91 classes .*relabel"):
        load_benchmark("laion-beyond", scale="2b", domains="Animals")
    files = fake.commits[FIRST]
    for path in [path for path in files if path.startswith("Animals")]:
        for old, new in (("Animals3_OOP", "Animals43_OOP"), ("Animals2_IP", "Animals91_IP")):
            if path.startswith(old):
                files[path.replace(old, new)] = files[path]
    fake.commits[SECOND], fake.branch = files, SECOND
    bench = load_benchmark("laion-beyond", scale="2b", domains="Animals")
    assert bench.scale == "2b" and bench["Animals"].oop.train.ids[0].startswith("Animals43_OOP/")
    with pytest.raises(ValueError, match="could be any of Animals2_IP, Animals91_IP"):
        load_benchmark("laion-beyond", domains="Animals")


def test_a_domain_without_oop_classes_at_a_scale_needs_none():
    known = layout.read_hints("laion_beyond")
    chosen = downloads.choose(["Food80_IP/images/a/b.jpg", "x"], ["Food"], known, "5b")
    assert chosen == {"Food80_IP": ["Food80_IP/images/a/b.jpg"]}


# --- revisions -----------------------------------------------------------------------------


def test_a_branch_that_moves_on_is_not_followed(fake, released):
    load_benchmark("laion-beyond", domains="Animals")
    other = {path: content for path, content in released.items() if "images/" in path}
    fake.commits[SECOND], fake.branch = (
        {**released, **{k: v[::-1] for k, v in other.items()}},
        SECOND,
    )
    food = load_benchmark("laion-beyond", domains="Food")["Food"]
    assert food.oop.train.image(0).size == (8, 8)
    assert not (next(fake.cache.glob("datasets--*")) / "snapshots" / SECOND).exists()


@pytest.mark.parametrize("asked", [SECOND, "main"])
def test_revisions_are_not_mixed(fake, released, tmp_path, asked):
    downloads.download(["Animals"], to=tmp_path / "mine")
    fake.commits[SECOND], fake.branch = dict(released), SECOND
    with pytest.raises(ValueError, match=f"holds revision {FIRST} .* not {SECOND}"):
        downloads.download(["Food"], to=tmp_path / "mine", revision=asked)
    downloads.download(["Food"], to=tmp_path / "mine", revision=FIRST)
    root = downloads.download(["Animals"], to=tmp_path / "other", revision=asked)
    assert json.loads((root / downloads.RECORD).read_text())["commit"] == SECOND


def test_a_pinned_revision_is_taken(fake, released, monkeypatch, tmp_path):
    fake.commits[SECOND] = dict(released)
    data = tmp_path / "data"
    for name in ("prompts/hints.csv", "published/figure2_class_counts.csv", "downloads.csv"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes((layout.data_dir() / name).read_bytes())
    table = (data / "downloads.csv").read_text()
    assert ",main," in table
    (data / "downloads.csv").write_text(table.replace(",main,", f",{SECOND},"))
    monkeypatch.setenv("LBUTILS_DATA", str(data))
    root = downloads.download(["Animals"])
    assert root.name == SECOND


def test_a_revision_that_does_not_exist(fake):
    with pytest.raises(ConnectionError, match="RevisionNotFound"):
        downloads.download(["Animals"], revision="no-such-branch")


def test_the_table_of_downloads():
    source = downloads.source()
    assert source.repository == REPOSITORY and source.licence == "CC BY-SA 4.0"
    # A branch, or a commit in full: a part of one is no pin.
    assert re.fullmatch("main|[0-9a-f]{40}", source.revision)


def test_a_cache_that_cannot_be_written_to_is_read(fake, monkeypatch):
    huggingface_hub.snapshot_download(REPOSITORY, repo_type="dataset")

    def refuse(place, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(place))

    monkeypatch.setattr(downloads, "write_text", refuse)
    offline(monkeypatch, "switch")
    assert load_benchmark("laion-beyond", domains="Food")["Food"].oop.val.image(0).size == (8, 8)
    assert not list(fake.cache.rglob(downloads.RECORD))


OUTSIDE = [json.dumps({"commit": FIRST, "folders": {}, "prefix": p}) for p in ("/etc", "a/../..")]


def test_a_damaged_record(fake, tmp_path):
    root = downloads.download(["Animals"], to=tmp_path / "mine")
    for text in ("", "[]", '{"commit": "main"}', '{"commit": 1}', *OUTSIDE):
        (root / downloads.RECORD).write_text(text)
        with pytest.raises(ValueError, match="is damaged: remove it"):
            downloads.download(["Animals"], to=root)


# --- no connection -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["switch", "nobody"])
def test_offline_says_what_to_do(fake, monkeypatch, how):
    offline(monkeypatch, how)
    with pytest.raises(ConnectionError) as caught:
        load_benchmark("laion-beyond", domains=["Animals", "Food"])
    text = str(caught.value)
    assert "Animals, Food of laion-beyond could not be downloaded" in text and "\n" not in text
    assert ("HF_HUB_OFFLINE is set" in text) == (how == "switch")
    assert "give load_benchmark a folder" in text and 'load_benchmark("mini")' in text


@pytest.mark.parametrize("how", ["switch", "nobody"])
def test_a_cache_that_others_filled_is_used_offline(fake, monkeypatch, how):
    """As by `hf download MHuangX/LAION-Beyond --repo-type dataset`."""
    huggingface_hub.snapshot_download(REPOSITORY, repo_type="dataset")
    requests = len(fake.log)
    offline(monkeypatch, how)
    bench = load_benchmark("laion-beyond", domains=["Animals", "Food"])
    assert bench["Food"].oop.train.image(0).size == (8, 8) and len(fake.log) == requests


def test_offline_with_half_of_it_names_what_lacks(fake, monkeypatch):
    load_benchmark("laion-beyond", domains="Animals")
    offline(monkeypatch, "switch")
    with pytest.raises(ConnectionError, match=r"^Food of laion-beyond .* incomplete: 18 file"):
        load_benchmark("laion-beyond", domains=["Animals", "Food"])


# --- cut short, altered --------------------------------------------------------------------


def test_a_failure_tells_no_secret_of_an_address(monkeypatch, tmp_path):
    """HF_ENDPOINT may hold a password, and addresses of large files are signed."""

    def failing(place, asked):
        raise OSError("GET https://me:s3cret@hub.example/x.7z?Signature=s3cret failed")

    monkeypatch.setattr(downloads, "_resolve", failing)
    with pytest.raises(downloads.Unreachable) as caught:
        downloads.download(["Food"], to=tmp_path / "there")
    told = "".join(traceback.format_exception(caught.value))
    assert "hub.example/x.7z" in told and "s3cret" not in told and "me:" not in told


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "has moved or is not open to you"), (403, "accept its terms"), (404, "ask for another")],
)
def test_what_the_hub_refuses_is_told_from_no_connection(fake, monkeypatch, status, advice):
    def refuse(handler, path, query):
        handler.answer(status, b"{}")

    monkeypatch.setattr(Handler, "api", refuse)
    with pytest.raises(downloads.Unreachable, match=advice) as caught:
        downloads.download(["Food"])
    assert "with a connection" not in str(caught.value)


def test_a_listing_that_cannot_be_read_is_asked_for(fake, released, monkeypatch, tmp_path):
    """A client that keeps its listing elsewhere: contents are compared all the same."""
    monkeypatch.setattr(downloads._Place, "_kept_listing", lambda place, commit: None)
    path = next(p for p in released if p.startswith("Food3") and p.endswith(".jpg"))
    fake.altered[path] = bytes(len(released[path]))
    with pytest.raises(ValueError, match="1 files differ"):
        downloads.download(["Food"], to=tmp_path / "mine")
    fake.altered.clear()
    root = downloads.download(["Food"], to=tmp_path / "mine")
    assert (root / path).read_bytes() == released[path]


def test_a_cache_of_an_older_client_is_named_when_offline(fake, monkeypatch):
    root = downloads.download(["Food"])
    for file in (*fake.cache.rglob("trees/*.json"), *fake.cache.rglob(downloads.RECORD)):
        file.unlink()
    (fake.cache / "datasets--MHuangX--LAION-Beyond" / "refs").mkdir(exist_ok=True)
    (fake.cache / "datasets--MHuangX--LAION-Beyond" / "refs" / "main").write_text(FIRST)
    offline(monkeypatch, "switch")
    with pytest.raises(downloads.Unreachable, match="older clients") as caught:
        downloads.download(["Food"])
    assert str(root) in str(caught.value)


def test_a_connection_that_breaks_within_a_file_is_taken_up_there(fake, released, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 32)
    path = max((p for p in released if p.startswith("Animals3_OOP/images/")), key=str)
    fake.cuts[path] = 100
    load_benchmark("laion-beyond", domains="Animals")
    assert ("RANGE", path) in fake.log
    root = downloads.download(["Animals"])
    assert (root / path).read_bytes() == released[path]


@pytest.mark.slow
def test_a_killed_download_is_taken_up_again(fake, released, tmp_path):
    fake.stop_after = 12
    environment = {
        **os.environ,
        "HF_ENDPOINT": fake.endpoint,
        "HF_HUB_CACHE": str(fake.cache),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-m", "lbutils", "download", "Animals", "Food"]
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert fake.hanging.wait(60), "the download did not come to the point where it is killed"
    run.kill()
    said, _ = run.communicate(timeout=20)
    assert b"36 files" in said
    images = [path for path in released if path.endswith((".jpg", ".json"))]
    before = [p for p in images if list(fake.cache.glob(f"*/snapshots/*/{p}"))]
    assert 0 < len(before) <= 12
    # A file may have arrived whole, and not yet have its place in the snapshot.
    blobs = {b.read_bytes() for b in fake.cache.glob("*/blobs/*") if b.suffix != ".incomplete"}
    lacking = {p for p in images if p.startswith(("Animals", "Food")) and released[p] not in blobs}
    fake.stop_after = None
    fake.release.set()
    fake.log.clear()
    fake.commits[SECOND], fake.branch = {}, SECOND  # the branch moves on in the meantime
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert set(fake.fetched()) == lacking and not lacking & set(before)
    assert "integrity report: 2 findings" in again.stdout
    assert "Animals    oop        3                 92" in again.stdout
    root = Path(again.stdout.partition("the benchmark is in ")[2].splitlines()[0])
    for path, content in released.items():
        if path.startswith(("Animals", "Food")) and not path.endswith(".pkl"):
            assert (root / path).read_bytes() == content


@pytest.mark.parametrize("own_folder", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".json"])
def test_altered_content_is_found_and_fetched_anew(fake, released, tmp_path, suffix, own_folder):
    to = tmp_path / "mine" if own_folder else None
    path = next(p for p in sorted(released) if p.startswith("Animals3") and p.endswith(suffix))
    content = released[path]
    fake.altered[path] = content[:-1] + bytes([content[-1] ^ 1])
    if suffix == ".json":
        fake.altered[path] = content.replace(b"number 0", b"number 9", 1)
    if suffix == ".json":  # then the hub itself says what it serves
        assert len(fake.altered[path]) == len(content)
    with pytest.raises(
        ValueError, match=r"1 files differ .* removed, such as Animals3_OOP/.*again"
    ):
        downloads.download(["Animals"], to=to)
    fake.altered.clear()
    fake.log.clear()
    root = downloads.download(["Animals"], to=to)
    assert (root / path).read_bytes() == content and fake.fetched() == [path]


# --- archives ------------------------------------------------------------------------------


def pack(files, suffix, prefix=""):
    """An archive of files by path."""
    packed = io.BytesIO()
    if suffix.lower() == ".zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(prefix + path, content)
    else:
        with tarfile.open(fileobj=packed, mode="w:gz" if suffix.endswith("gz") else "w") as archive:
            for path, content in files.items():
                info = tarfile.TarInfo(prefix + path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def inside(files, folder):
    start = f"{folder}/"
    return {p.removeprefix(start): content for p, content in files.items() if p.startswith(start)}


@pytest.mark.parametrize(
    ("suffix", "form", "own_folder"),
    [
        (".zip", "whole", True),
        (".tar.gz", "whole", False),
        (".tar", "bare", True),
        (".zip", "images", False),
        (".ZIP", "finder", True),
    ],
)
def test_packed_domains_are_unpacked(
    fake, released, monkeypatch, tmp_path, suffix, form, own_folder
):
    files = {"README.md": b"#"}
    for folder in ("Food3_OOP", "Food2_IP"):
        own = inside(released, folder)
        if form == "images":
            files[f"{folder}/images{suffix}"] = pack(inside(own, "images"), suffix, "images/")
            files[f"{folder}/split_Xin_{folder}.json"] = own[f"split_Xin_{folder}.json"]
        else:
            prefix = "" if form == "bare" else f"{folder}/"
            junk = {f"__MACOSX/._{folder}": b"?", ".DS_Store": b"?"} if form == "finder" else {}
            packed = {prefix + path: content for path, content in own.items()}
            files[f"{folder}{suffix}"] = pack(packed | junk, suffix)
    fake.commits[FIRST] = files
    to = tmp_path / "mine" if own_folder else None
    root = downloads.download(["Food"], to=to)
    bench = load_benchmark(root)
    assert len(bench["Food"].oop.train) == 3
    assert not set(bench.report()["kind"]) & {"missing file", "unlisted file", "unreadable file"}
    for path in ("Food3_OOP", "Food2_IP"):
        assert inside(released, path) == {
            p.relative_to(root / path).as_posix(): p.read_bytes()
            for p in (root / path).rglob("*")
            if p.is_file() and p.name != f"images{suffix}"
        }
    offline(monkeypatch, "switch")
    assert downloads.download(["Food"], to=to) == root


def test_a_class_with_a_colon_is_no_drive(tmp_path):
    archive = tmp_path / "images.zip"
    archive.write_bytes(pack({"Type: Null/1.jpg": b"x"}, ".zip"))
    downloads.unpack(archive, tmp_path / "images")
    assert (tmp_path / "images" / "Type: Null" / "1.jpg").read_bytes() == b"x"


def test_an_archive_of_another_kind_is_refused_with_what_to_do(fake, released):
    fake.commits[FIRST] = {"Food3_OOP.7z": b"7z", "Food2_IP.7z": b"7z", "README.md": b"#"}
    with pytest.raises(ValueError, match=r"no folder for Food IP.* unpack Food2_IP\.7z by hand"):
        downloads.download(["Food"])
    assert not fake.fetched() or set(fake.fetched()) <= {".gitattributes", "README.md"}
    files = {p: c for p, c in released.items() if p.startswith("Food") and "images" not in p}
    files |= {f"{folder}/images.rar": b"Rar!" for folder in ("Food3_OOP", "Food2_IP")}
    fake.commits[SECOND], fake.branch = files, SECOND
    with pytest.raises(ValueError, match=r"images\.rar is an archive of a kind .* by hand"):
        downloads.download(["Food"])


def zip_with_link():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo("images/link")
        info.create_system = 3
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return packed.getvalue()


def tar_with(**fields):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo(fields.pop("name", "images/x"))
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info)
    return packed.getvalue()


def flipped(content, at):
    """An archive with some bytes of its middle inverted."""
    place = int(at * len(content))
    broken = bytes(byte ^ 255 for byte in content[place : place + 40])
    return content[:place] + broken + content[place + 40 :]


def encrypted():
    """A ZIP whose member is said to be encrypted."""
    packed = bytearray(pack({"a": b"x" * 99}, ".zip"))
    packed[6] |= 1
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(packed)


NOISE = {"a.jpg": bytes(range(256)) * 64 + os.urandom(20_000)}

HOSTILE = {
    "zip: up": (".zip", pack({"../../evil.txt": b"x"}, ".zip"), "leads out"),
    "zip: absolute": (".zip", pack({"/evil.txt": b"x"}, ".zip"), "leads out"),
    "zip: backslashes": (".zip", pack({"..\\evil.txt": b"x"}, ".zip"), "leads out"),
    "zip: drive": (".zip", pack({"C:/evil.txt": b"x"}, ".zip"), "leads out"),
    "zip: link": (".zip", zip_with_link(), "link or a device"),
    "zip: bomb": (".zip", pack({"a.jpg": bytes(1 << 25)}, ".zip"), "grow to 33,554,432 bytes"),
    "zip: damaged": (".zip", pack({"a": b"x" * 99}, ".zip")[:-30], "is damaged"),
    "zip: damaged within": (".zip", flipped(pack(NOISE, ".zip"), 0.5), "is damaged"),
    "zip: encrypted": (".zip", encrypted(), "is damaged or of a kind"),
    "zip: no archive": (".zip", b"<html>404</html>", "is damaged"),
    "zip: empty": (".zip", b"", "is damaged"),
    "tar: damaged within": (".tar.gz", flipped(pack(NOISE, ".tar.gz"), 0.5), "is damaged"),
    "xz: no archive": (".tar.xz", b"<html>404</html>", "is damaged"),
    "tar: up": (".tar", pack({"a/../../evil.txt": b"x"}, ".tar"), "leads out"),
    "tar: absolute": (".tar", pack({"/evil.txt": b"x"}, ".tar"), "leads out"),
    "tar: link": (
        ".tar",
        tar_with(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "link or a device",
    ),
    "tar: hard link": (
        ".tar",
        tar_with(type=tarfile.LNKTYPE, linkname="../../x"),
        "link or a device",
    ),
    "tar: pipe": (".tar", tar_with(type=tarfile.FIFOTYPE), "link or a device"),
    "tar: bomb": (".tar.gz", pack({"a.jpg": bytes(1 << 25)}, ".tar.gz"), "grow to"),
    "tar: damaged": (".tar.gz", pack({"a": os.urandom(9999)}, ".tar.gz")[:-500], "is damaged"),
}


@pytest.mark.parametrize(("suffix", "content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_leave_nothing_behind(tmp_path, suffix, content, message):
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    archive = place / f"Food3_OOP{suffix}"
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        downloads.unpack(archive, place / "Food3_OOP")
    assert str(archive) in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_what_a_killed_unpacking_left_is_removed(tmp_path):
    left = tmp_path / f".Food3_OOP.{_util._host()}-{dead_process()}-01234567.tmp"
    (left / "images").mkdir(parents=True)
    (left / "images" / "1.jpg").touch()
    archive = tmp_path / "Food3_OOP.zip"
    archive.write_bytes(pack({"images/1.jpg": b"x"}, ".zip"))
    downloads.unpack(archive, tmp_path / "Food3_OOP")
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "Food3_OOP"}


@pytest.mark.parametrize("path", ["Food3_OOP/../../evil.jpg", "/Food3_OOP/evil.jpg"])
def test_a_repository_does_not_write_elsewhere(fake, released, tmp_path, path):
    fake.commits[FIRST] = released | {path: b"x"}
    with pytest.raises(ValueError, match="leads out of it|cannot be an absolute"):
        downloads.download(["Food"], to=tmp_path / "deep" / "mine")
    assert not list(tmp_path.rglob("evil*"))


# --- beside the paper ----------------------------------------------------------------------


def test_the_command_line_when_offline(fake, monkeypatch, capsys):
    offline(monkeypatch, "switch")
    assert laion_beyond.main(["download", "Animals"]) == 2
    printed = capsys.readouterr()
    assert "HF_HUB_OFFLINE is set" in printed.err and printed.err.count("\n") == 1


def test_the_command_line_reports_damage(fake, capsys, tmp_path):
    root = downloads.download(["Animals"], to=tmp_path / "mine")
    next((root / "Animals3_OOP" / "images").rglob("*.jpg")).write_bytes(b"<html>")
    report = tmp_path / "report.csv"
    assert laion_beyond.main(["check-folder", str(root), "--report", str(report)]) == 1
    said = capsys.readouterr().out
    assert "1 unreadable file, such as Animals oop: animal oop" in said
    assert "not an image" in report.read_text()
    assert laion_beyond.main(["check-folder", str(root), "--counts-only"]) == 0
    assert "2 of 2 rows are not as in the paper" in capsys.readouterr().out


def test_images_are_the_ones_that_were_released(fake, released):
    """Pixels by way of the hub's cache are those of the files."""
    oop = load_benchmark("laion-beyond", domains="Animals")["Animals"].oop
    content = released[oop.train.ids[0]]
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(image), np.asarray(oop.train.image(0)))
