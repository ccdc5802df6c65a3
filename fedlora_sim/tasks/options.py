"""Which task is loaded, and how: what a scenario says of its task, in one hashable piece."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fedlora_sim.scenario import Scenario, TaskFields


@dataclass(frozen=True, kw_only=True)
class TaskOptions(TaskFields):
    """A task's description.

    Args:
        dtype: `float32 | float64`.
    """

    dtype: str = "float32"

    @classmethod
    def of(cls, scenario: Scenario) -> TaskOptions:
        """What a scenario says of its task."""
        own = {field.name: getattr(scenario, field.name) for field in fields(TaskFields)}
        return cls(**own, dtype=str(scenario.dtype))
