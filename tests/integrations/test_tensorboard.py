"""A monitor logs to TensorBoard itself."""

from __future__ import annotations

import example_cases  # noqa: F401 - it puts the examples on the path
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_federation import ALPHA, RANKS, initial_adapter

from analysis import Monitor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own files


def test_the_values_of_a_round_can_be_read_as_soon_as_it_has_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor = Monitor(RANKS, alpha=ALPHA, loggers=["tensorboard"])
    values = []
    for t in range(20):
        values.append(monitor.update(t, initial_adapter())["share_above_4"])
        (folder,) = (tmp_path / "runs").iterdir()
        events = EventAccumulator(str(folder))
        events.Reload()
        logged = events.Scalars("fedlora/share_above_4")
        assert [event.step for event in logged] == list(range(t + 1))
        assert [event.value for event in logged] == pytest.approx(values)
