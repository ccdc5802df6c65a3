"""No command replaces or deletes files that it did not write; no two commands write one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from faults_cases import COMMANDS, Prepared, results, succeed, tree, write_inputs
from faults_child import run
from promises import Promise

from fedlora_sim.storage import MARKER, only_writer

FORCED = ("aggregate", "simulate", "verify", "predict")
PLACES = {
    "aggregate": ("out/adapter_config.json", "out/notes.txt", "out/clients/rank-2/notes.txt"),
    "simulate": ("x.nc",),
    "verify": ("v/report.json", "v/report.md", "v/report.html", "v/figures/rates.png"),
    "train": ("run/run.nc", "run/split.png"),
    "sweep": ("sweep/manifest.json",),
    "predict": ("p/predict.png",),
}
KEPT = {
    "verify": ("v/report.txt", "v/data/mine.nc", "v/figures/mine.png", "v/notes/report.json"),
    "train": ("run/notes.txt", "run/rounds/notes.txt", "run/rounds/state-mine.safetensors"),
    "sweep": ("sweep/notes.txt", "sweep/tasks/.notes.tmp"),
    "predict": ("p/mine.png",),
    "simulate": (".x.nc.notes.tmp",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_the_way_is_refused_even_with_force(
    name: str, tmp_path: Path, promise: Promise
) -> None:
    count = promise(
        "No command replaces or deletes a file that it did not write, even with --force.",
        "files of others",
    )
    command = COMMANDS[name]
    write_inputs(tmp_path)
    for place in PLACES[name]:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        before = tree(tmp_path)
        words = set(command.again) - {"--force"}
        for more in ((), ("--force",) if name in FORCED else ()):
            outcome = run([w for w in command.again if w in words] + list(more), tmp_path)
            assert outcome.code == 2, outcome
            assert len(outcome.err.splitlines()) == 1
            assert tree(tmp_path) == before
            count()
        path.unlink()


@pytest.mark.parametrize("name", KEPT)
def test_other_files_next_to_results_stay(
    name: str,
    prepared_command: Callable[[str], Prepared],
    tmp_path: Path,
    promise: Promise,
) -> None:
    count = promise("Other files next to results are never touched.", "files of others")
    case = prepared_command(name)
    command = case.command
    case.copy(tmp_path)
    for place in KEPT[name]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"mine")
    for more in ((), ("--force",) if name in FORCED and "--force" not in command.again else ()):
        succeed(run([*command.again, *more], tmp_path))
        assert all((tmp_path / place).read_bytes() == b"mine" for place in KEPT[name])
        count(len(KEPT[name]))


@pytest.mark.parametrize("name", ["verify", "predict"])
def test_results_are_replaced_unless_they_were_changed(
    name: str,
    prepared_command: Callable[[str], Prepared],
    tmp_path: Path,
    promise: Promise,
) -> None:
    count = promise(
        "A folder's unchanged results are replaced as a whole; changed ones only with --force.",
        "changed results",
    )
    case = prepared_command(name)
    command = case.command
    case.copy(tmp_path)
    listed = json.loads((tmp_path / command.out / MARKER).read_text("utf-8"))["files"]
    assert set(listed) == set(tree(tmp_path / command.out)) - {MARKER}
    for result in listed:
        path = tmp_path / command.out / result
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        before = tree(tmp_path)
        outcome = run(command.again, tmp_path)
        assert outcome.code == 2
        assert f"{result} was changed since it was written: move it away, or --force" in outcome.err
        assert tree(tmp_path) == before
        path.write_bytes(content)
        count()
    path.write_bytes(b"changed")
    succeed(run([*command.again, "--force"], tmp_path))
    new = results(tmp_path / command.out)
    succeed(run(command.again, tmp_path))
    assert results(tmp_path / command.out) == new


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_command_at_one_place_is_refused(
    name: str,
    prepared_command: Callable[[str], Prepared],
    tmp_path: Path,
    promise: Promise,
) -> None:
    count = promise(
        "Of two commands that write one place the second is refused and names the first.",
        "second commands",
    )
    case = prepared_command(name)
    command = case.command
    case.copy(tmp_path)
    inside = name not in ("aggregate", "simulate")
    with only_writer(tmp_path / command.out, inside=inside):
        before = results(tmp_path / command.out)
        outcome = run(command.again, tmp_path)
        assert outcome.code == 2, outcome
        assert "expected no other process at work there (process " in outcome.err
        assert results(tmp_path / command.out) == before
    succeed(run(command.again, tmp_path))
    count()
