"""Killed at random moments and started again, five kinds of work leave what they leave undisturbed.

LBUTILS_KILLS sets how many processes are killed, two of each kind unless it is set:

    LBUTILS_KILLS=500 python -m pytest tests/test_kills.py -s
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time

import matplotlib.pyplot  # noqa: F401 (so that the server has it, as it has what follows)
import papermill  # noqa: F401
import pytest
from conftest import load_script
from test_downloads import Hub, made_release, point_at, served
from test_features import Pictures, Pixels
from test_grids import written
from test_pretrain import TINY, write_miniature

from lbutils.captions import screening
from lbutils.data import hub as downloads
from lbutils.models import features
from lbutils.run import commands

pytestmark = pytest.mark.slow
PRETRAIN = load_script("pretrain")
# By kind, in hundredths: a sweep starts a kernel for each of its runs, and takes longest.
SHARES = {"extraction": 40, "screening": 28, "downloads": 22, "pretraining": 6, "sweeps": 4}
# Started by fork from a server that has imported this module and run nothing, so that a process
# costs milliseconds and no thread is lost in the fork.
CONTEXT = multiprocessing.get_context("forkserver")


# Each kind of work, on what `prepared` put into `given`; all that it writes is in `folder`.


def extraction(given, folder):
    class Slow(Pictures):
        def image(self, index):
            time.sleep(0.001)
            return super().image(index)

    features.BLOCK = 4
    features.image_features(
        Pixels(), Slow(f"image {k}" for k in range(32)), cache=folder, batch_size=3, workers=2
    )


def screen(given, folder):
    names, captions, out = given / "names.txt", given / "captions", folder / "certificate.json"
    options = ["--state", str(folder / "state"), "--out", str(out), "--quiet", "--workers", "2"]
    assert screening.main([str(names), str(captions), *options]) == 0


def pretraining(given, folder):
    os.environ["LBUTILS_DATA"] = str(given / "data")
    PRETRAIN.main([*TINY, f"--work={folder / 'work'}", f"--out={folder / 'out'}"])


def sweeps(given, folder):
    assert commands.main(["run", str(given / "tiny.yaml"), "--out", str(folder)]) == 0


def downloading(given, folder):
    point_at((given / "endpoint").read_text(), folder, setattr)
    downloads.download(["Animals", "Food"])


WORK = {
    "extraction": extraction,
    "screening": screen,
    "downloads": downloading,
    "pretraining": pretraining,
    "sweeps": sweeps,
}


def quietly(work, given, folder):
    """What a started process does."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.err").open("a") as errors:
        os.dup2(errors.fileno(), 2)
        work(given, folder)


# --- what is compared ----------------------------------------------------------------------------

# What tells of time or of processes, or is rewritten by each start of a sweep.
CLOCK = {"made", "seconds", "pairs_per_second"}
# .gitattributes is fetched only so that it lists the repository.
OF_THE_CLIENT = re.compile(
    r"^\.locks/|^datasets--[^/]+/(?!snapshots/|lbutils\.json$)|/\.gitattributes$"
)
UNLIKE = (".lock", ".ipynb", ".png", ".html")


def without_clock(content):
    if isinstance(content, dict):
        return {key: without_clock(value) for key, value in content.items() if key not in CLOCK}
    return [without_clock(one) for one in content] if isinstance(content, list) else content


def told(path):
    """A file's content, but for times; only that it is there where little else would be left."""
    if path.name.endswith(UNLIKE):
        return "there"
    if path.suffix == ".json" and path.parent.name != "state":
        return without_clock(json.loads(path.read_text()))
    if path.suffix == ".csv":
        header, *rows = [line.split(",") for line in path.read_text().splitlines()]
        kept = [k for k, name in enumerate(header) if name not in CLOCK]
        return [header, *([row[k] for k in kept if k < len(row)] for row in rows)]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left(folder):
    """All that a kind of work left, no temporary file among it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    shown = {path.relative_to(folder).as_posix().replace(str(folder), ""): path for path in files}
    # The hub's client keeps other things beside its snapshots, and leaves parts of them behind.
    ours = {name: path for name, path in shown.items() if not OF_THE_CLIENT.search(name)}
    return {name: told(path) for name, path in ours.items()}


# --- the kinds' materials ------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path, request):
    """The folder with what a kind of work reads."""
    kind, place = request.getfixturevalue("kind"), tmp_path / "given"
    place.mkdir()
    if kind == "screening":
        draw = random.Random(0)
        (place / "names.txt").write_text("ant\nfire ant\nyeti\n")
        (place / "captions").mkdir()
        for k in range(12):
            rows = (" ".join(draw.choices(["a", "red", "ant", "fire"], k=6)) for _ in range(500))
            (place / "captions" / f"{k}.csv").write_text("caption\n" + "\n".join(rows) + "\n")
    elif kind == "pretraining":
        write_miniature(place / "data")
    elif kind == "sweeps":
        written(place, {"seed": [1, 2]})
    elif kind == "downloads":
        hub = Hub(made_release(place / "released"))
        with served(hub):
            (place / "endpoint").write_text(hub.endpoint)
            yield place
            return
    yield place


def finished(kind, given, folder):
    """Seconds that one undisturbed start took."""
    start = time.monotonic()
    process = CONTEXT.Process(target=quietly, args=(WORK[kind], given, folder))
    process.start()
    process.join(400)
    seconds = time.monotonic() - start
    if process.exitcode != 0:
        process.kill()
        errors = (folder.parent / f"{folder.name}.err").read_text()
        raise AssertionError(f"started again, it ended with {process.exitcode}: {errors[-3000:]}")
    return seconds


def killed(kind, given, folder, seconds):
    """Whether a start was killed after so many seconds, and had not ended by then."""
    process = CONTEXT.Process(target=quietly, args=(WORK[kind], given, folder))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("kind", WORK)
def test_what_is_killed_and_started_again_ends_the_same(kind, given, tmp_path, monkeypatch):
    # The server looks for what it is to import there alone.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    CONTEXT.set_forkserver_preload([__name__])
    asked = os.environ.get("LBUTILS_KILLS")
    wanted = round(int(asked) * SHARES[kind] / 100) if asked else 2
    draw = random.Random(time.time_ns())
    finished(kind, given, tmp_path / "first")  # starts the server as well
    seconds = finished(kind, given, tmp_path / "undisturbed")
    expected = left(tmp_path / "undisturbed")
    assert expected and left(tmp_path / "first") == expected
    kills = trials = 0
    begun = time.monotonic()
    while kills < wanted:
        folder = tmp_path / f"{trials}"
        moments = []
        # Some are killed again after they were started again.
        while kills < wanted and (not moments or draw.random() < 0.3):
            moments.append(round(draw.uniform(0, seconds), 3))
            if killed(kind, given, folder, moments[-1]):
                kills += 1
            elif len(moments) == 1:  # it ended before; other work made the first one slower
                seconds = moments[-1]
        finished(kind, given, folder)
        found = left(folder)
        differing = {
            name: (found.get(name), expected.get(name))
            for name in sorted({*found, *expected})
            if found.get(name) != expected.get(name)
        }
        assert not differing, f"killed after {moments} s of {seconds:.3f}: {differing}"
        shutil.rmtree(folder)
        trials += 1
    print(
        f"\n{kind}: {kills} kills in {trials} trials of {seconds:.2f} s undisturbed, "
        f"0 failures, {time.monotonic() - begun:.0f} s"
    )
