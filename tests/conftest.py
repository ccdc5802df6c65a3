"""Fixtures of all tests, and the Hypothesis profile that they run under."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis_profiles
import pytest
import torch
from promises import promise, pytest_addoption, pytest_configure  # noqa: F401

from fedlora_sim import runtime

hypothesis_profiles.load()

SLOW_FIXTURES = {"paper_data", "recorded_page", "reports"}
"""Fixtures that take seconds, once in each process of pytest: the tests that need them are slow."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out deep tests; mark tests of guarantees, slow fixtures and the external package."""
    if not hypothesis_profiles.is_random():
        left_out = [item for item in items if item.get_closest_marker("deep")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "promise" in fixtures:
            item.add_marker("faults")
        if fixtures & SLOW_FIXTURES:
            item.add_marker("slow")
        if Path(__file__).parent / "third_party" in item.path.parents:
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@dataclass(frozen=True)
class Outcome:
    """Output and exit code of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fedlora(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run `fedlora-sim` with arguments in this process, because imports take seconds."""
    from fedlora_cli.main import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fedlora-sim", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread in torch, as in a run, so that sums have the same order on all machines."""
    with runtime.one_thread():
        yield
