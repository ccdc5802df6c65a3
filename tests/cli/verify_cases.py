"""Small claims for the tests of commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from analysis.claims.base import Claim, Control, RunContext
from analysis.stats.verdicts import Prediction


class Measured:
    """An experiment that measures one value and counts its runs."""

    def __init__(self, value: float) -> None:
        self.value, self.runs, self.stop = value, 0, False

    def __call__(self, numbers: Sequence[int], context: RunContext) -> np.ndarray:
        if self.stop:
            raise KeyboardInterrupt
        self.runs += len(numbers)
        return np.full((len(numbers), 1), self.value)


def claim(name: str, value: float = 1.0, **changes: object) -> Claim:
    made = Claim(
        id=name,
        statement="The value is one.",
        source="ours",
        assumptions="none",
        fidelity="spectral",
        statistic="mean of the runs",
        quantities=("value",),
        predict=partial(Prediction.within, 1.0, 0.1),
        experiment=Measured(value),
        control=Control("the value is three", partial(Prediction.within, 3.0, 0.1)),
    )
    return replace(made, **changes)
