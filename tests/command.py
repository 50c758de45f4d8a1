"""The command line, in the process of the test or in one of its own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TypeAlias

import tuner.cli
import tuner.executors
from tuner.executors import _OwnProcesses

__all__ = ["STUDY", "ForkedWorkers", "Program", "Tuner", "forkserver", "processes", "run"]

Tuner: TypeAlias = Callable[..., tuple[int, str, str]]
"""What the fixture `tuner` gives: runs a command; its exit code, standard output and error."""

STUDY = """
name = "small"
objective = "branin"
budget = {trials = 6}
fixed = {epochs = 3}
[space.x0]
low = -5
high = 10
[space.x1]
low = 0
high = 15
[comparison]
seeds = 2
arms = [{name = "random", sampler = {name = "random"}}, {name = "sobol", sampler = {name = "sobol"}}]
"""
"""A comparison that takes a second."""


def forkserver() -> ForkServerContext:
    """Processes are forked from one that has imported what commands and tests import, which takes each seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "tuner.cli", "tuner.service.serve", "tuner.client.worker", "tuner.report"]
    )
    return context


def processes(workers: int) -> ProcessPoolExecutor:
    """A pool of processes that are there at once."""
    return ProcessPoolExecutor(workers, mp_context=forkserver())


class _HarshProcess(ForkServerProcess):
    def terminate(self) -> None:
        self.kill()


class _Harsh(ForkServerContext):
    Process = _HarshProcess


class ForkedWorkers(_OwnProcesses):
    """Worker processes of a run, forked as `processes` are; for the rest they are what users have."""

    def __init__(self, workers: int, *, mp_context: BaseContext, initializer: Callable[[], None]) -> None:
        plain = forkserver()
        super().__init__(
            workers,
            mp_context=_Harsh() if isinstance(mp_context, tuner.executors._Harsh) else plain,
            initializer=partial(_start_worker, dict(os.environ), initializer),
        )


def _start_worker(environment: dict[str, str], initializer: Callable[[], None]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    initializer()


class Program:
    """`tuner` in a process of its own, with as much of `subprocess.Popen` as the tests use.

    It is forked from a process that has imported what commands import, and so spares each the seconds of that; for
    the rest it is what the installed command is: its own standard output and error, signals and exit code.
    `session` puts it into a session of its own; `log` is a file for its standard error; `script` is a file of Python
    to run instead of `tuner`.
    """

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        session: bool = False,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        script: str | None = None,
    ) -> None:
        context = forkserver()
        (read_out, out), (read_err, err) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        given = {**os.environ, **(environment or {})}
        self._process = context.Process(
            target=_main, args=((script, arguments), folder, given, (out, log or err), session)
        )
        self._process.start()
        self.arguments = arguments
        self.pid: int = self._process.pid or 0
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno())) for end in (read_out, read_err))
        for end in (read_out, read_err, out, err):
            end.close()

    @property
    def returncode(self) -> int | None:
        """The exit code, −N for signal N; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, sign: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within so many seconds.
        """
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(["tuner", *self.arguments], timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to its standard output and error, once it has ended."""
        said: list[str] = ["", ""]

        def read(number: int, stream: Any) -> None:
            with stream:
                said[number] = stream.read()

        readers = [
            threading.Thread(target=read, args=(number, stream), daemon=True)
            for number, stream in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return said[0], said[1]

    def close(self) -> None:
        """End it, if it still runs."""
        self.kill()
        self._process.join()
        self._process.close()
        self.stdout.close()
        self.stderr.close()


def run(
    *arguments: str, folder: Path, timeout: float = 60.0, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """A `Program` from its start to its end, as `subprocess.run` gives it."""
    program = Program(*arguments, folder=folder, **settings)
    try:
        out, err = program.communicate(timeout)
        return subprocess.CompletedProcess(program.arguments, program.wait(), out, err)
    finally:
        program.close()


def _main(
    called: tuple[str | None, tuple[str, ...]],
    folder: Path,
    environment: dict[str, str],
    outputs: tuple[Connection, Connection | Path],
    session: bool,
) -> None:
    """Become the command, as a shell would start it."""
    script, arguments = called
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` lets all that it starts ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and a shell's `&` this
    # the server may have been started where Ctrl-C is held back
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, output in enumerate(outputs, start=1):
        with output.open("wb") if isinstance(output, Path) else output as end:
            os.dup2(end.fileno(), number)
    sys.argv = [script or "tuner", *arguments]
    if script is not None:
        sys.path.insert(0, str(folder))  # as Python does
        runpy.run_path(str(folder / script), run_name="__main__")
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")  # what processes of its own would import again
        tuner.cli.main()
