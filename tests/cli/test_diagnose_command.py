"""`fedlora-sim diagnose`: report, files, exit codes and one-line errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diagnose_cases import ALPHA, WRITERS, toy
from train_cases import RUN, use_small_task, write_scenario

from fedlora_sim.storage import MARKER

ASKED = ("--ranks", "2x2,4x2", "--cohort", "4")


@pytest.fixture
def runs(here: Path) -> None:
    """Write a collapsing run and a healthy one."""
    WRITERS["openfedllm"](here / "bad", toy("fedavg"))
    WRITERS["openfedllm"](here / "good", toy("raflora"))


@pytest.mark.usefixtures("runs")
def test_strict_exits_with_1_if_the_run_collapses(fedlora: Callable) -> None:
    done = fedlora("diagnose", "bad", *ASKED, "--strict")
    assert done.code == 1
    assert done.out.startswith("The run collapses: the energy share above rank 2 is ")
    assert "layout: openfedllm; 8 rounds, 1 to 8; 2 layers" in done.out
    assert "onsistent with fedavg" in done.out
    assert fedlora("diagnose", "bad", *ASKED).code == 0
    done = fedlora("diagnose", "good", *ASKED, "--strict")
    assert done.code == 0
    assert done.out.startswith("The run keeps its rank")


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_files_are_written_and_replaced(fedlora: Callable, here: Path) -> None:
    asked = ("diagnose", "bad", *ASKED, "--out", "out", "--html")
    done = fedlora(*asked, "--json")
    assert done.code == 0
    assert json.loads(done.out) == json.loads((here / "out" / "diagnosis.json").read_text())
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        MARKER,
        "diagnosis.html",
        "diagnosis.json",
    ]
    page = (here / "out" / "diagnosis.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<svg") == 3
    assert "The run collapses" in page
    assert fedlora(*asked).code == 0
    assert (here / "out" / "diagnosis.html").read_text() == page
    (here / "out" / "diagnosis.json").write_text("mine")
    assert fedlora(*asked).code == 2
    assert (here / "out" / "diagnosis.json").read_text() == "mine"


@pytest.mark.slow
def test_runs_of_train(fedlora: Callable, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_task(monkeypatch)
    write_scenario()
    assert fedlora("train", *RUN).code == 0
    done = fedlora("diagnose", "run", "--json", "--out", "r\u00e9sultats", "--html")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["layout"] == "own"
    assert found["rule"] == "raflora"
    assert found["missing"] == []
    assert set(found["terms"]) == {"dilution", "training", "mixing", "turning"}
    assert found["rounds"] == list(range(len(found["rounds"])))


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("nothing",), "RUN='nothing': expected a folder with the adapters of a run"),
        (("bad", "--html"), "--html=True: expected a folder to write to, --out DIR"),
        (("bad", "--alpha", str(2 * ALPHA)), "--alpha=16.0: expected 8, as in "),
        (("bad", "--ranks", "2x2,4x2", "--cohort", "5"), "--cohort=5: expected at most"),
        (("bad", "--ranks", "8"), "--ranks=[8]: expected levels up to the rank of the adapters, 4"),
        (("bad", "--layout", "fedfm"), "RUN='bad': expected a folder with fedfm: rounds"),
    ],
)
def test_bad_input(fedlora: Callable, asked: tuple[str, ...], message: str) -> None:
    done = fedlora("diagnose", *asked)
    assert done.code == 2
    assert done.err.startswith(f"fedlora-sim: {message}")
    assert done.err.count("\n") == 1
