"""The real PEFT and transformers, offline: models from configurations, adapters trained here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")


@pytest.fixture
def fedlora_aggregate(fedlora: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs `fedlora-sim aggregate` with arguments."""
    return partial(fedlora, "aggregate")


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, ...]]:
    """Return folders of trained adapters, made once for each architecture and list of settings."""
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
    """Return three clients' folders `a`, `b`, `c` in the working folder, to be damaged."""
    settings = [{"r": r, "lora_alpha": 8} for r in (2, 4, 8)]
    for name, folder in zip("abc", clients("llama", *settings), strict=True):
        shutil.copytree(folder, here / name)
    return here


@pytest.fixture
def refused(fedlora_aggregate, here):
    """Return a function that checks that the command refuses, and returns the error line."""
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
