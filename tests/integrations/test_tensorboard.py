"""A monitor logs to TensorBoard itself."""

from __future__ import annotations

import example_cases  # noqa: F401 - it puts the examples on the path
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_federation import ALPHA, RANKS, initial_adapter

from analysis import Monitor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own files


def test_the_values_of_each_round_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = Monitor(RANKS, alpha=ALPHA, loggers=["tensorboard"])
    values = [monitor.update(t, initial_adapter()) for t in range(3)]
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    logged = events.Scalars("fedlora/share_above_4")
    assert [event.step for event in logged] == [0, 1, 2]
    assert [event.value for event in logged] == pytest.approx(
        [row["share_above_4"] for row in values]
    )
