"""The real PEFT and transformers, offline: models from configurations, adapters trained here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fedlora_aggregate(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`fedlora-sim aggregate` with arguments, through the function that its entry point names."""
    from fedlora_cli.main import main

    def run(*arguments: object) -> Outcome:
        given = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["fedlora-sim", "aggregate", *given])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, ...]]:
    """Folders of trained adapters, made once for each architecture and list of settings."""
    from adapter_cases import make_clients

    made: dict[tuple[object, ...], tuple[Path, ...]] = {}

    def get(architecture: str, *settings: dict[str, object]) -> tuple[Path, ...]:
        key = (architecture, repr(settings))
        if key not in made:
            folder = tmp_path_factory.mktemp(architecture)
            made[key] = make_clients(architecture, settings, folder)
        return made[key]

    return get


@pytest.fixture
def folders(clients, here):
    """Three clients' folders `a`, `b`, `c` in the working folder, to be spoilt."""
    settings = [{"r": r, "lora_alpha": 8} for r in (2, 4, 8)]
    for name, folder in zip("abc", clients("llama", *settings), strict=True):
        shutil.copytree(folder, here / name)
    return here


@pytest.fixture
def refused(fedlora_aggregate, here):
    """Run the command; check that it refuses and writes nothing; give its line."""
    from adapter_cases import tree

    def run(*arguments):
        before, names = tree(here), sorted(here.rglob("*"))
        outcome = fedlora_aggregate(*arguments)
        assert outcome.code == 2
        assert outcome.out == ""
        assert tree(here) == before
        assert sorted(here.rglob("*")) == names
        (line,) = outcome.err.splitlines()
        assert line.startswith("fedlora-sim: ")
        assert ": expected " in line
        assert "Traceback" not in line
        return line

    return run
