"""Kernels that are forks are as others: fresh, in their folder, and they end when they should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from jupyter_client import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

from lbutils.run import execution, kernels

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux has forks")


@pytest.fixture
def forked(monkeypatch):
    """Kernels of this process are forks, which share less than they do elsewhere."""
    factory = KernelProvisionerFactory.instance()
    monkeypatch.setattr(factory, "default_provisioner_name", kernels.NAME)
    monkeypatch.setattr(kernels, "_SHARED", ("ipykernel.kernelapp", "wave"))
    monkeypatch.setattr(kernels.Forked, "_source", None)
    yield
    if kernels.Forked._source is not None:
        kernels.Forked._source.close()


@pytest.fixture
def run(tmp_path, forked):
    def run(*sources, **options):
        cells = [new_code_cell(source) for source in sources]
        place = tmp_path / "one.ipynb"
        write(new_notebook(cells=cells), place)
        outcome = execution.execute(place, {}, tmp_path / "out", **options)
        cells = json.loads(outcome.executed.read_text())["cells"]
        told = ["".join(o.get("text", "")) for c in cells for o in c.get("outputs", [])]
        return outcome, [text.strip() for text in told]

    return run


def test_a_kernel_has_what_is_shared_and_nothing_of_the_kernel_before(run, tmp_path):
    said = "import os, sys; print(os.getpid(), os.getppid(), 'wave' in sys.modules)"
    seen = "print('x' in globals(), os.environ.get('X'), os.getcwd(), sys.stdin.read() == '')"
    change = "x = os.environ['X'] = 'changed'; os.chdir('/')"
    (_, [first, *before]), (_, [second, *after]) = run(said, seen, change), run(said, seen)
    pids = [text.split() for text in (first, second)]
    assert pids[0][1:] == pids[1][1:] and pids[0][2] == "True"  # one source for both
    assert pids[0][0] != pids[1][0]
    assert before == after == [f"False None {tmp_path} True"]


def test_its_time_and_memory_are_measured(run, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_LOOK", 0.2)
    (tmp_path / "held.py").write_text("x = b'x' * 2 * 10**8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(kernels, "_SHARED", ("ipykernel.kernelapp", "held"))
    run("pass")
    own, _ = run("import time; time.sleep(1)")
    assert own.memory > 200  # what it shares with its source, which was there before, is its too
    outcome, _ = run("import time; x = b'x' * 2 * 10**8; n = sum(range(4 * 10**7)); time.sleep(1)")
    assert outcome.cpu > own.cpu + 0.3 and outcome.memory > own.memory + 100


def test_what_is_to_happen_at_its_end_happens(run):
    _, [folder] = run("import tempfile; it = tempfile.TemporaryDirectory(); print(it.name)")
    assert folder and not Path(folder).exists()


def test_what_a_program_that_it_calls_prints_is_in_the_notebook(run):
    assert run("import os; _ = os.system('echo said')")[1] == ["said"]


def test_one_that_dies_or_is_late_is_followed_by_another(run):
    assert "died" in run("import os; os._exit(3)")[0].error
    assert "not done after 1 s" in run("import time; time.sleep(60)", timeout=1)[0].error
    assert run("print('here')")[1] == ["here"]


def test_after_its_source_was_killed_there_is_another_source(run):
    _, [source] = run("import os; print(os.getppid())")
    psutil.Process(int(source)).kill()
    psutil.Process(int(source)).wait()
    outcome, [other] = run("import os; print(os.getppid())")
    assert outcome.error is None and other != source


def test_other_variables_take_another_source(run, monkeypatch):
    said = "import os; print(os.getppid(), os.environ.get('LBUTILS_SAID'))"
    _, [before] = run(said)
    monkeypatch.setenv("LBUTILS_SAID", "this")
    _, [after] = run(said)
    assert before.split()[0] != after.split()[0] and after.endswith(" this")
    assert not psutil.pid_exists(int(before.split()[0]))


def started(**options):
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(**options)
    return manager


def test_interrupts_reach_it_and_a_second_beside_it_is_no_fork(forked):
    first, second = started(), started()
    try:
        assert isinstance(first.provisioner, kernels.Forked)
        parents = [psutil.Process(one.provisioner.pid).ppid() for one in (first, second)]
        assert parents[0] != os.getpid() and parents[1] == os.getpid()
        client = first.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute("import time; print('asleep', flush=True); time.sleep(60)")
        while client.get_iopub_msg(timeout=10)["msg_type"] != "stream":
            pass
        first.interrupt_kernel()
        assert client.get_shell_msg(timeout=10)["content"]["ename"] == "KeyboardInterrupt"
        client.stop_channels()
    finally:
        for one in (first, second):
            one.shutdown_kernel(now=True)
    assert not first.is_alive() and not second.is_alive()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    script = (
        "import time; from jupyter_client import KernelManager; from lbutils.run import kernels;"
        "kernels._SHARED = ['wave']; it = KernelManager(); it.start_kernel();"
        "print(it.provisioner.pid, flush=True); time.sleep(60)"
    )
    env = os.environ | {"JUPYTER_DEFAULT_PROVISIONER_NAME": kernels.NAME}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe, env=env) as manager:
        kernel = psutil.Process(int(manager.stdout.readline()))
        source = kernel.parent()
        assert source.ppid() == manager.pid
        manager.kill()
    gone, left = psutil.wait_procs([kernel, source], timeout=10)
    assert len(gone) == 2 and not left


def test_whoever_names_another_way_has_that(monkeypatch):
    factory = KernelProvisionerFactory()
    monkeypatch.setattr(KernelProvisionerFactory, "instance", lambda: factory)
    assert kernels.NAME in factory.provisioners
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "local-provisioner")
    kernels.fork_kernels()
    assert factory.default_provisioner_name == "local-provisioner"
    monkeypatch.delenv("JUPYTER_DEFAULT_PROVISIONER_NAME")
    kernels.fork_kernels()
    assert factory.default_provisioner_name == kernels.NAME


def test_a_kernel_of_another_interpreter_is_started_as_ever(monkeypatch):
    def launch(self, cmd, **kwargs):
        raise RuntimeError(cmd[0])

    monkeypatch.setattr(LocalProvisioner, "launch_kernel", launch)
    with pytest.raises(RuntimeError, match="other"):
        kernels.Forked().launch_kernel(["other", "-m", "ipykernel_launcher"]).send(None)
