"""State files that are damaged: one line that names the file and the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults_cases import TRAIN, Prepared, results, succeed, write_inputs
from faults_child import Fault, run
from hypothesis_profiles import is_random
from promises import Promise

from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.finetune.checkpoints import Checkpoints, load_state, read_description
from fedlora_sim.finetune.exchange import GlobalUpdate
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.randomness import stream
from fedlora_sim.run_store import RunStore
from fedlora_sim.storage import MARKER, ResultFolder, load_dataset, save_dataset
from fedlora_sim.sweep import run_sweep
from fedlora_sim.sweep.store import load_manifest

TEXT = "A damaged state file ends a command with one line that names the file and the remedy."
DAMAGES = 40 if is_random() else 6
"""Random damages of each kind of file."""
JSON = [b"", b"null", b"[]", b"3", b'"text"', b"{}", b"{" * 100_000, b"\xff\xfe\x00", b"[NaN"]
DATASET = simulate(Scenario("2x2", rounds=2), seed=3)
CPU = torch.device("cpu")


def damages(content: bytes, rng: np.random.Generator, *, flips: bool) -> list[bytes]:
    """Return truncated, empty, overwritten and (if it must be detected) changed content."""
    found = [b"", b"\0" * len(content), rng.bytes(len(content)), rng.bytes(10)]
    for _ in range(DAMAGES):
        found.append(content[: int(rng.integers(len(content) - 3))])
        if flips:
            place = int(rng.integers(len(content)))
            found.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    return found


def state() -> GlobalUpdate:
    return GlobalUpdate({"layer": LoRAFactors(torch.rand(2, 5), torch.rand(4, 2), 2.0)})


def checkpoints(folder: Path) -> Checkpoints:
    kept = Checkpoints(folder, {"seed": 1})
    kept.save(0, state(), {"rho": np.arange(3.0)})
    return kept


def keep_state(folder: Path) -> tuple[Path, Callable[[], Any]]:
    checkpoints(folder)
    return folder / "state-00000.safetensors", lambda: load_state(folder, 0, CPU)


def keep_measures(folder: Path) -> tuple[Path, Callable[[], Any]]:
    kept = checkpoints(folder)
    return folder / "measures-00000.safetensors", lambda: kept.rows(0)


def keep_piece(folder: Path) -> tuple[Path, Callable[[], Any]]:
    store = RunStore(folder, {})
    store.put_run("fedavg-0", DATASET)
    return next(store.folder.iterdir()), lambda: store.get_run("fedavg-0")


def keep_record(folder: Path) -> tuple[Path, Callable[[], Any]]:
    store = RunStore(folder, {})
    store.put_record("claim", {"verdict": "supported"})
    return next(store.folder.iterdir()), lambda: store.get_record("claim")


def keep_dataset(folder: Path) -> tuple[Path, Callable[[], Any]]:
    path = save_dataset(DATASET, folder / "run.nc")
    return path, lambda: load_dataset(path)


def keep_description(folder: Path) -> tuple[Path, Callable[[], Any]]:
    checkpoints(folder)
    return folder / "run.json", lambda: (read_description(folder), Checkpoints(folder, {"seed": 1}))


def keep_manifest(folder: Path) -> tuple[Path, Callable[[], Any]]:
    tables = {"scenario": {"ranks": "2x2", "rounds": 1}, "grid": {"rule": ["fedavg"]}}
    run_sweep(tables, folder, progress=False)
    return folder / "manifest.json", lambda: load_manifest(folder)


def keep_marker(folder: Path) -> tuple[Path, Callable[[], Any]]:
    results = ResultFolder(folder, "test")
    results.put("a.txt", "a")
    return folder / MARKER, results.files


BINARY = {
    "state": (keep_state, True),
    "measures": (keep_measures, True),
    "finished piece": (keep_piece, True),
    "finished record": (keep_record, True),
    "dataset": (keep_dataset, False),
}
TEXTS = {
    "description of a run": keep_description,
    "manifest of a sweep": keep_manifest,
    "list of results": keep_marker,
}


def assert_named(path: Path, read: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as refusal:
        read()
    told = str(refusal.value)
    assert str(path) in told
    assert len(told.splitlines()) == 1
    assert len(told) < 2000
    assert any(word in told for word in ("delete", "another folder", "move"))


@pytest.mark.parametrize("kind", BINARY)
def test_damaged_files_are_named(kind: str, tmp_path: Path, promise: Promise) -> None:
    count, (keep, flips) = promise(TEXT, "damaged files"), BINARY[kind]
    path, read = keep(tmp_path / "kept")
    read()
    for content in damages(path.read_bytes(), stream(0, "damage", kind), flips=flips):
        path.write_bytes(content)
        assert_named(path, read)
        count()


@pytest.mark.parametrize("kind", TEXTS)
def test_damaged_texts_are_named(kind: str, tmp_path: Path, promise: Promise) -> None:
    count = promise(TEXT, "damaged files")
    path, read = TEXTS[kind](tmp_path / "kept")
    read()
    random = damages(path.read_bytes(), stream(0, "damage", kind), flips=False)
    for content in (*JSON, *random):
        if kind == "description of a run" and content == b"{}":
            continue  # a run without inputs, refused as another run
        path.write_bytes(content)
        assert_named(path, read)
        count()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide inputs and a run of `fedlora-sim train`, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    write_inputs(folder)
    succeed(run(TRAIN, folder))
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "here"))


def test_the_remedy_helps(here: Path, promise: Promise) -> None:
    """A run continues from the previous round with the same bits."""
    count = promise(TEXT, "damaged files")
    wanted = results(here / "run")
    path = here / "run/rounds/state-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    outcome = run([*TRAIN, "--resume"], here)
    assert outcome.code == 2
    assert f"file='{path.relative_to(here)}'" in outcome.err.splitlines()[-1]
    assert "delete it" in outcome.err
    path.unlink()
    succeed(run([*TRAIN, "--resume"], here))
    assert results(here / "run") == wanted
    count()


def test_a_damaged_piece_of_a_killed_command_is_named(
    prepared_command: Callable[[str], Prepared], tmp_path: Path, promise: Promise
) -> None:
    count, case = promise(TEXT, "damaged files"), prepared_command("simulate")
    command, step = case.command, 0
    case.copy(tmp_path)
    while not list(tmp_path.glob(".x.nc.parts/*/fedavg-*.nc")):
        run(command.again, tmp_path, Fault(kill=step))
        step += 1
    (path,) = tmp_path.glob(".x.nc.parts/*/fedavg-*.nc")
    path.write_bytes(path.read_bytes()[:-9])
    outcome = run(command.again, tmp_path)
    assert outcome.code == 2
    assert path.name in outcome.err.splitlines()[-1]
    assert "delete it and run the same command again" in outcome.err
    path.unlink()
    succeed(run(command.again, tmp_path))
    count()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--seed", "1"), "seed"),
        (("--rule", "fedavg"), "rule"),
        (("--set", "learning_rate=0.5"), "learning_rate"),
    ],
)
def test_train_does_not_continue_another_run(
    words: tuple[str, ...], named: str, here: Path, promise: Promise
) -> None:
    count = promise(
        "`train --resume` with other code, scenario, model or data is refused by name.",
        "other runs",
    )
    before = results(here / "run")
    outcome = run([*TRAIN, "--resume", *words], here)
    assert outcome.code == 2
    assert f"fedlora-sim: {named}=" in outcome.err
    assert results(here / "run") == before
    count()


@pytest.mark.parametrize(
    "name", ["fedlora_sim_version", "torch_version", "code", "model_content", "data_content"]
)
def test_train_names_the_difference_to_a_stored_run(
    name: str, here: Path, promise: Promise
) -> None:
    """The record has another version, code, model or data than the current one."""
    count = promise(
        "`train --resume` with other code, scenario, model or data is refused by name.",
        "other runs",
    )
    path = here / "run/rounds/run.json"
    described = read_description(path.parent)
    assert described is not None
    text = path.read_text("utf-8")
    path.write_text(text.replace(f'"{described[name]}"', '"of another day"'), "utf-8")
    outcome = run([*TRAIN, "--resume"], here)
    assert outcome.code == 2
    assert f"fedlora-sim: {name}=" in outcome.err
    count()
