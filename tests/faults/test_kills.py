"""Commands that are killed with SIGKILL at random steps and repeated."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults_cases import COMMANDS, Prepared, leftovers, moments, results, succeed, tree
from faults_child import KILLED, Fault, call, run
from promises import Promise

from fedlora_sim import storage
from fedlora_sim.peft.write import AdapterContent, check_output, write_adapters

OTHERS = {"notes.txt": b"mine", "data/mine.nc": b"\x89HDF mine"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_the_old_or_the_new_result(
    name: str,
    prepared_command: Callable[[str], Prepared],
    tmp_path: Path,
    trials: int,
    promise: Promise,
) -> None:
    count = promise(
        "A command that is killed leaves the old result or the new one. Given again it ends as if "
        "it had not been killed, and nothing temporary is left.",
        "kills at random steps",
    )
    case = prepared_command(name)
    command, old = case.command, results(case.start / case.command.out)
    for step in moments(name, case.steps, trials):
        here = case.copy(tmp_path / str(step))
        if name == "verify":
            for other, content in OTHERS.items():
                (here / command.out / other).parent.mkdir(exist_ok=True)
                (here / command.out / other).write_bytes(content)
        assert run(command.again, here, Fault(kill=step)).code == KILLED
        if name in ("aggregate", "simulate"):
            assert results(here / command.out) in (old, case.new)
        succeed(run(command.again, here))
        found = results(here / command.out)
        if name == "verify":
            assert {other: found.pop(other) for other in OTHERS} == OTHERS
        assert found == case.new
        assert not leftovers(here)
        count()
        shutil.rmtree(here)


def _replace(out: Path, number: int) -> None:
    content = AdapterContent({"r": number}, {"x": torch.full((2,), float(number))})
    write_adapters(out, [("", content), ("clients/rank-2", content)], force=True)


def _replace_without_exchange(out: Path, number: int) -> None:
    storage._exchange = lambda one, other: False  # type: ignore[assignment]
    _replace(out, number)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_complete_at_every_step_of_its_replacement(
    exchange: bool, tmp_path: Path, promise: Promise
) -> None:
    count = promise(
        "A folder of adapters that is replaced is the complete old one or the complete new one at "
        "every moment; where the system cannot exchange folders, the next command puts it back.",
        "kills, one at every step",
    )
    act = _replace if exchange else _replace_without_exchange
    for number in (1, 2):
        _replace(tmp_path / f"wanted-{number}", number)
    old, new = (tree(tmp_path / f"wanted-{number}") for number in (1, 2))
    step, code = 0, KILLED
    while code == KILLED:
        here = tmp_path / str(step)
        _replace(here / "out", 1)
        code = call(act, here, Fault(kill=step), here / "out", 2).code
        if not exchange:
            check_output(here / "out", (), force=True)
        assert tree(here / "out") in (old, new)
        _replace(here / "out", 2)
        check_output(here / "out", (), force=True)
        assert tree(here / "out") == new
        assert not leftovers(here / "out")
        assert [path.name for path in here.iterdir()] == ["out"]
        step += 1
        count(code == KILLED)
    assert code == 0
    assert step > 10
