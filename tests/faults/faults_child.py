"""Commands in child processes that are killed, or whose disk is full, at a chosen step.

A step is a change of the file system below the working folder: a file opened to be written, a
folder created, a file or folder renamed or removed. The children are forked from a server that has
imported all modules once (`faults_server`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forked import forked

PATIENCE = 300
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MAKING = {"open", "os.mkdir", "os.rename", "os.link"}
CHANGING = {*MAKING, "os.remove", "os.rmdir", "os.truncate"}
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Fault:
    """A fault of a command.

    Args:
        kill: number of the step before which it is killed; None for never.
        full: number of the step from which the disk is full.
        limit: size in bytes that no file may exceed, as by `ulimit -f`.
    """

    kill: int | None = None
    full: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a command; `code` is -9 if it was killed, without any output."""

    code: int
    out: str = ""
    err: str = ""
    steps: int = 0


def run(words: Sequence[str], here: Path, fault: Fault = Fault()) -> Outcome:
    """Run `fedlora-sim` with these words in a folder."""
    return call(_command, here, fault, tuple(words))


def call(
    function: Callable[..., object], here: Path, fault: Fault = Fault(), *arguments: Any
) -> Outcome:
    """Call a function of a module that a child can import, in a child."""
    mine, theirs = multiprocessing.Pipe(duplex=False)
    child = forked(_work, theirs, here, fault, function, arguments)
    theirs.close()
    try:
        outcome = mine.recv() if mine.poll(PATIENCE) else None
    except EOFError:  # killed
        outcome = None
    child.join(PATIENCE)
    code = child.exitcode
    child.kill()
    child.close()
    if outcome is None:
        return Outcome(PATIENCE if code is None else code)
    return replace(outcome, code=outcome.code or code or 0)


def _work(
    pipe: Any, here: Path, fault: Fault, function: Callable[..., object], arguments: Any
) -> None:
    os.chdir(here)
    if fault.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, resource.RLIM_INFINITY))
    steps = _Steps(here, fault)
    sys.addaudithook(steps)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            function(*arguments)
        except SystemExit as end:
            code = int(end.code or 0)
    steps.on = False
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    pipe.send(Outcome(code, *texts, steps.count))


def _command(words: Sequence[str]) -> None:
    from faults_server import command  # imported by the server, not needed in this process

    command(words)


class _Steps:
    """An audit hook that counts steps and causes the fault."""

    def __init__(self, here: Path, fault: Fault) -> None:
        self.here, self.fault, self.count, self.on = f"{here}{os.sep}", fault, 0, True

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event not in CHANGING or not self._is_ours(event, arguments):
            return
        self.count += 1
        if self.fault.kill is not None and self.count > self.fault.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        is_full = self.fault.full is not None and self.count > self.fault.full
        if is_full and event in MAKING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    def _is_ours(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return False
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return str(Path(os.fsdecode(path)).absolute()).startswith(self.here)
