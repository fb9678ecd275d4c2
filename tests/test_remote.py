"""Captions in stores that are not this disk: servers without ranges, buckets, and their secrets."""

import gzip
import io
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from lbutils.captions import corpora, screening
from lbutils.captions.survey import survey

CAPTIONS = ["an ant", "a fire ant", "a red fox"] * 1000


def parquet(captions):
    """A file that is too large to be read in one piece with its end."""
    draw = random.Random(0)
    other = [draw.randbytes(50) for _ in captions]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"caption": captions, "other": other}), buffer, row_group_size=500)
    return buffer.getvalue()


TEXT = "\n".join(["caption", *CAPTIONS, ""]).encode()
FILES = {
    "a.parquet": parquet(CAPTIONS),
    "b.csv": TEXT,
    "c.csv.gz": gzip.compress(TEXT),
    "d.jsonl": "".join(json.dumps({"caption": text}) + "\n" for text in CAPTIONS).encode(),
    "e.tsv.zst": pa.compress(TEXT, "zstd", asbytes=True),
}


class Handler(BaseHTTPRequestHandler):
    """Serves FILES to those who know the password or have a signature, by ranges or not."""

    protocol_version = "HTTP/1.1"
    ranges = sized = True
    damaged = ""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, query = self.path.partition("?")
        allowed = self.headers.get("Authorization", "").startswith("Basic") or "sig=" in query
        content = FILES.get(path[1:], b"")
        if not allowed or not content:
            return self.answer(404 if allowed else 403, b"", {})
        if path[1:] == self.damaged:
            return self.answer(200, content[: len(content) // 2], {}, len(content))
        headers = {"Accept-Ranges": "bytes"} if self.ranges else {}
        wanted = self.headers.get("Range")
        if wanted and self.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self.answer(206, part, headers)
        return self.answer(200, content, headers)

    def answer(self, status, content, headers, length=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.sized:
            self.send_header("Content-Length", str(length or len(content)))
        if not self.sized or length:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def server():
    bound = type("Bound", (Handler,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}).start()
    bound.port = http.server_address[1]
    yield bound
    http.shutdown()
    http.server_close()


@pytest.fixture
def names(tmp_path):
    (tmp_path / "names.txt").write_text("ant\nfire ant\nyeti\n", encoding="utf-8")
    return str(tmp_path / "names.txt")


@pytest.mark.parametrize(("ranges", "sized"), [(True, True), (False, True), (False, False)])
def test_servers_with_and_without_ranges(server, names, tmp_path, capfd, ranges, sized):
    server.ranges, server.sized = ranges, sized
    base = f"http://me:s3cret@127.0.0.1:{server.port}"
    out = tmp_path / "found.json"
    # Parquet is read from its end, which such a server cannot send alone.
    first = "" if ranges else "simplecache::"
    if not ranges:
        found = survey(["ant", "yeti"], f"{base}/a.parquet")
        assert "put simplecache:: before its URL" in found.doubts[0]
        assert set(found.table["subset"]) == {"undecided"}
    for name in FILES:
        chain = first if name == "a.parquet" else ""
        found = survey(["ant", "fire ant", "yeti"], f"{chain}{base}/{name}")
        assert found.complete, found.doubts
        assert found.table["captions"].tolist() == [2000, 1000, 0]
    urls = [f"http://127.0.0.1:{server.port}/{name}?sig=s3cret" for name in FILES]
    assert screening.main([names, first + urls[0], *urls[1:], "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["scales"]["all"]["captions"] == len(FILES) * len(CAPTIONS)
    shown = "".join(capfd.readouterr()) + out.read_text() + out.with_suffix(".csv").read_text()
    assert "s3cret" not in shown


def test_a_server_that_fails_costs_its_file_alone(server, names, capfd):
    server.damaged = "b.csv"
    urls = [f"http://me:s3cret@127.0.0.1:{server.port}/{name}" for name in FILES]
    assert screening.main([names, *urls]) == 1
    shown = "".join(capfd.readouterr())
    assert "not counted: " in shown and "b.csv" in shown and "s3cret" not in shown
    assert "12,000 captions" in shown
    # Refused by the server, nothing is read at all.
    for source in ("a.csv", "", "*.csv"):
        assert screening.main([names, f"http://127.0.0.1:{server.port}/{source}"]) == 2
    assert "Traceback" not in "".join(capfd.readouterr())


class Bucket(MemoryFileSystem):
    """Stands for a store of objects: keys without folders, a secret in the address."""

    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return ("/" + path.split("://")[-1].rpartition("@")[2].strip("/")).rstrip("/")

    def unstrip_protocol(self, name):
        return f"{self.protocol}://me:s3cret@{name.lstrip('/')}"


@pytest.mark.parametrize("protocol", ["s3", "gs", "az", "abfs"])
def test_buckets(protocol, names, tmp_path, capfd, monkeypatch):
    kind = type("Store", (Bucket,), {"protocol": protocol, "store": {}, "pseudo_dirs": [""]})
    monkeypatch.setitem(_registry, protocol, kind)
    for name, content in FILES.items():
        kind().pipe_file(f"/bucket/deep/{name}", content)
    kind().pipe_file("/bucket/deep/bad.parquet", b"PAR1")
    state = f"{protocol}://me:s3cret@bucket/state"
    out = tmp_path / "found.json"
    for source in ("bucket/deep", "bucket/*/[a-e].*", "bucket/deep/{0..0}.csv"):
        kind().pipe_file("/bucket/deep/0.csv", FILES["b.csv"])
        found = survey(["ant", "yeti"], f"{protocol}://me:s3cret@{source}", state=state)
        assert found.table["captions"].tolist() == [2000 * (found.files["error"] == "").sum(), 0]
    assert not [path for path in kind().store if path.endswith(".tmp")]
    assert len(kind().find("/bucket/state")) == len(FILES)  # two are equal
    source = f"{protocol}://me:s3cret@bucket/deep"
    assert screening.main([names, source, "--state", state, "--out", str(out)]) == 1
    shown = "".join(capfd.readouterr()) + out.read_text() + out.with_suffix(".csv").read_text()
    assert "bad.parquet" in shown and "s3cret" not in shown
    # Once more from what is stored: not one object is read.
    monkeypatch.setattr(corpora, "read_batches", None)
    kind().rm_file("/bucket/deep/bad.parquet")
    assert screening.main([names, source, "--state", state, "--quiet"]) == 0
