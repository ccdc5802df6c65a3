"""The run with other processors' kernels detects changed verdicts and failed commands."""

from __future__ import annotations

import os

import portable
import pytest


def test_a_verdict_that_contradicts_the_record_is_named():
    recorded = {"a": "supported", "b": "refuted", "c": "undecided", "d": "supported"}
    found = {"a": "supported", "b": "supported", "c": "refuted", "d": "undecided", "new": "refuted"}
    assert portable.contradictions(found, recorded) == ["b: supported, recorded refuted"]


@pytest.mark.parametrize(
    ("broken", "threads"), [("not slow", 2), ("tests/engines", 1), ("verify", 2)]
)
def test_a_command_that_fails_fails_its_setting(monkeypatch, broken, threads):
    seen = []

    def run(command, environment):
        seen.append(environment)
        return broken not in command

    monkeypatch.setattr(portable, "run", run)
    assert len(portable.try_setting("torch-avx2", threads)) == 1
    assert all((portable.ROOT / "tests" / folder).is_dir() for folder in portable.NUMERICAL)
    for environment in seen:
        assert environment["ATEN_CPU_CAPABILITY"] == "avx2"
        assert environment["OMP_NUM_THREADS"] == str(threads)
        assert set(os.environ) <= set(environment)
