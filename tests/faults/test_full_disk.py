"""Commands whose disk runs full: one line, exit code 1, finished work kept, no partial files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults_cases import COMMANDS, Prepared, results, succeed, tree, write_inputs
from faults_child import Fault, Outcome, run
from promises import Promise

from fedlora_sim.randomness import stream
from fedlora_sim.storage import LOCK, MARKER

TEXT = (
    "A full disk, or a quota, ends a command with one line and exit code 1. The old result stays, "
    "finished work is kept, no partial file is left, and the same command goes on."
)
TMPFS = 24 * 1024


def assert_refused(outcome: Outcome, here: Path) -> None:
    """Check for one line, exit code 1, and no temporary files."""
    assert outcome.code == 1, outcome
    assert "Traceback" not in outcome.err
    told = [line for line in outcome.err.splitlines() if line.startswith("fedlora-sim: ")]
    assert len(told) == 1
    assert "make room and run the same command again" in told[0]
    if not any("pending" in json.loads(path.read_text("utf-8")) for path in here.rglob(MARKER)):
        assert not [path for path in here.rglob("*") if path.name.endswith((".tmp", LOCK))]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_a_command_and_loses_nothing(
    name: str,
    prepared_command: Callable[[str], Prepared],
    tmp_path: Path,
    trials: int,
    promise: Promise,
) -> None:
    """In turn a quota of random size and a disk that is full from a random step on."""
    quotas = promise(TEXT, "quotas of random size")
    disks = promise(TEXT, "disks full from a random step on")
    case = prepared_command(name)
    command, old = case.command, tree(case.start / case.command.out)
    for number, share in enumerate(stream(0, "full", name).uniform(0, 0.99, trials)):
        is_quota = number % 2 == 0
        here = case.copy(tmp_path / str(number))
        limit, step = int(case.largest * share), int(case.steps * share)
        outcome = run(command.again, here, Fault(limit=limit) if is_quota else Fault(full=step))
        if outcome.code or is_quota:  # removals and renames at the end need no space
            assert_refused(outcome, here)
        if is_quota and command.first:
            found = tree(here / command.out)
            assert {name: found.get(name) for name in old} == old
        succeed(run(command.again, here))
        assert results(here / command.out) == case.new
        (quotas if is_quota else disks)()
        shutil.rmtree(here)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Yield a file system of 24 kB."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", ["simulate", "verify"])
def test_a_disk_of_24_kilobytes(name: str, tmp_path: Path, promise: Promise) -> None:
    count = promise(TEXT, "file systems of 24 kB")
    words = list(COMMANDS[name].again)
    write_inputs(tmp_path)
    with small_disk(tmp_path / "small") as small:
        place = words.index("--out") + 1
        words[place] = f"small/{words[place]}"
        more = ["--seeds", "50"] if name == "simulate" else []
        assert_refused(run([*words, *more], tmp_path), small)
        count()
