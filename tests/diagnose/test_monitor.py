"""The monitor of a training loop: values, file, loggers, and one warning."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from diagnose_cases import ALPHA, state, toy

from analysis import Monitor
from analysis.diagnose import CollapseWarning
from fedlora_sim.errors import InputError


def test_a_collapsing_run_warns_once(tmp_path: Path) -> None:
    rounds, logged = toy("fedavg"), []
    file = tmp_path / "monitor.csv"
    monitor = Monitor(
        "2x2,4x2", alpha=ALPHA, csv=file, loggers=[lambda values, t: logged.append((t, values))]
    )

    def run() -> dict[str, float]:
        for t, adapter in enumerate(rounds.adapters):
            clients = [state(own) for own in rounds.clients[t - 1]] if t else None
            values = monitor.update(t, state(adapter), clients)
        return values

    with pytest.warns(CollapseWarning, match="directions 3-4") as caught:
        values = run()
    assert len(caught) == 1
    assert values["rate_high_2"] < 0.98
    assert 0 < values["share_above_2"] < values["client_share_above_2"] < 0.1
    with file.open(encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert [int(row["round"]) for row in rows] == list(range(9))
    assert float(rows[8]["share_above_2"]) == values["share_above_2"]
    assert rows[0]["rate_2"] == ""
    assert [t for t, _ in logged] == list(range(9))
    assert all(np.isfinite(list(one.values())).all() for _, one in logged)
    energy = sum(float((f.delta() ** 2).sum()) for f in rounds.adapters[8].values())
    assert values["energy"] == pytest.approx(energy, rel=1e-5)


def test_a_healthy_run_does_not_warn() -> None:
    monitor = Monitor((2, 2, 4, 4))
    for t, adapter in enumerate(toy("raflora").adapters):
        values = monitor.update(t, state(adapter))
    assert not monitor.warned
    assert values["rate_2"] == pytest.approx(1, abs=0.05)


def test_loggers_are_those_of_the_packages(monkeypatch) -> None:
    sent = []
    fake = types.SimpleNamespace(
        log=lambda values, step: sent.append((values, step)),
        log_metrics=lambda values, step: sent.append((values, step)),
    )
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, fake)
        Monitor("2,4", loggers=[name]).update(3, state(toy("raflora").adapters[0]))
        values, step = sent[-1]
        assert step == 3
        assert values["fedlora/share_above_2"] > 0
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        Monitor("2,4", loggers=["tensorboard"])
    with pytest.raises(InputError, match="loggers='comet'"):
        Monitor("2,4", loggers=["comet"])


def test_bad_input_of_a_monitor() -> None:
    with pytest.raises(InputError, match="highest rank of the clients, 8"):
        Monitor("4,8").update(0, state(toy("raflora").adapters[0]))
    with pytest.raises(InputError, match="threshold"):
        Monitor("4,8", threshold=2.0)
