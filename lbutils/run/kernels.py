"""Kernels that start with torch and open_clip imported: forks of a process that has done so once.

A notebook's imports take seconds of processor time, as much as many a notebook's work. On Linux
a `Forked` kernel shares them, and their memory, with those before it. Nothing that a kernel does
comes back to the process that it was forked from, which runs no code of a notebook.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

NAME = "lbutils-forked"  # as pyproject.toml has it among its entry points
# Of what notebooks import, that which starts no threads (but OpenBLAS, which ends its own before
# a fork): a lock that another thread holds at the fork stays locked in the kernel for ever.
_SHARED = ("ipykernel.kernelapp", "open_clip", "torch._dynamo")
_STARTED_BY = ["-m", "ipykernel_launcher"]  # what follows Python in the kernel that is pinned
_PASSING = "PYTEST_CURRENT_TEST"  # another for each cell that nbval checks


def fork_kernels() -> None:
    """Let this process start kernels so, unless JUPYTER_DEFAULT_PROVISIONER_NAME says how."""
    factory = KernelProvisionerFactory.instance()
    named = factory.default_provisioner_name_env in os.environ
    # An installation of before has no such entry point.
    if not named and NAME in factory.provisioners:
        factory.default_provisioner_name = NAME


class Forked(LocalProvisioner):
    """Starts a kernel as a fork; where that cannot be, as `LocalProvisioner` does.

    It cannot where the system is not Linux, where the kernel is not this interpreter's, and while
    another kernel of this process runs.
    """

    process: Any = None
    _source: ClassVar[_Source | None] = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """The connection of the kernel that `cmd` starts."""
        can = hasattr(os, "pidfd_open") and cmd[:3] == [sys.executable, *_STARTED_BY]
        source = type(self)._source
        if not can or kwargs.get("independent") or (source and source.busy()):
            return await super().launch_kernel(cmd, **kwargs)
        env = {name: value for name, value in kwargs["env"].items() if name != _PASSING}
        if source is None or source.poll() is not None or source.env != env:
            if source is not None:
                source.close()
            source = type(self)._source = _Source(env, kwargs.get("stderr"))
        kernel = source.fork(cmd[3:], kwargs.get("cwd"))
        self.process, self.pid, self.pgid = kernel, kernel.pid, kernel.pid
        self.cwd = kwargs.get("cwd", Path.cwd())
        return self.connection_info


class _Source(subprocess.Popen[str]):
    """The process that kernels are forked from, which ends with this one.

    Its variables and standard error are theirs: what is imported may have read them.
    """

    stdin: IO[str]
    stdout: IO[str]

    def __init__(self, env: Mapping[str, str], stderr: IO[str] | None) -> None:
        self.env = env
        self._kernel: _Kernel | None = None
        order = [sys.executable, "-c", f"from {__name__} import serve; serve({_SHARED})"]
        pipe = subprocess.PIPE
        super().__init__(order, stdin=pipe, stdout=pipe, stderr=stderr, text=True, env=env)
        # Waited for, so that its time counts among that of this process's children.
        atexit.register(self.close)

    def busy(self) -> bool:
        """Whether a kernel runs."""
        return self._kernel is not None and self._kernel.poll() is None

    def fork(self, arguments: list[str], cwd: str | None) -> _Kernel:
        """A new kernel. Raises RuntimeError if this process has ended."""
        with suppress(BrokenPipeError):  # reading, which tells of it
            self.stdin.write(json.dumps({"arguments": arguments, "cwd": cwd}) + "\n")
            self.stdin.flush()
        self._kernel = _Kernel(self)
        return self._kernel

    def answer(self) -> int:
        """The next number that it says."""
        line = self.stdout.readline()
        if not line:
            raise RuntimeError("the process that kernels are forked from has ended: run it again")
        return int(line)

    def close(self) -> None:
        """End it, and its kernel."""
        with suppress(BrokenPipeError):  # of an order that it did not live to read
            self.stdin.close()
        self.stdout.close()
        self.wait()


class _Kernel:
    """What `LocalProvisioner` asks of a `subprocess.Popen`, of a fork."""

    stdin = stdout = stderr = None

    def __init__(self, source: _Source) -> None:
        self.returncode: int | None = None
        self._source = source
        self.pid = source.answer()

    def poll(self) -> int | None:
        """Exit status; None while it runs."""
        if self.returncode is None and select.select([self._source.stdout], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Exit status, once it has ended."""
        if self.returncode is None:
            self.returncode = self._source.answer()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def serve(shared: Iterable[str]) -> None:
    """Import modules; fork a kernel for each order on standard input.

    Says the kernel's process on standard output, and once it has ended its exit status. Ends, and
    ends its kernel, when standard input does.
    """
    # Ctrl-C reaches every process of a terminal; the kernel's manager answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What kernels look at to see whether they are still wanted, and ipykernel when it is imported.
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
    for name in shared:
        importlib.import_module(name)
    gc.freeze()  # so that no collection in a kernel touches, and copies, what it shares
    while order := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            _become_kernel(**json.loads(order))
            return
        print(pid, flush=True)
        ended = os.pidfd_open(pid)
        if select.select([ended, sys.stdin], [], [])[0] == [sys.stdin]:
            os.killpg(pid, signal.SIGKILL)
        os.close(ended)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become_kernel(arguments: list[str], cwd: str | None) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Standard input and output were for orders.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if cwd is not None:
        os.chdir(cwd)
    sys.argv[1:] = arguments
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
