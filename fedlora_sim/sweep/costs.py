"""What a run costs, by a fixed model: the plan of a sweep must not depend on the machine.

Seconds of one thread of a 2020s server core, fitted to the engines within a factor of two or three;
`calibrate` says what this machine makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedlora_sim.rules import get_rule
from fedlora_sim.scenario import Scenario

MICRO = 1e-6
FILE_BYTES, POINT_BYTES = 40_000, 200
"""Of a task's file beside its arrays, and of every point in it."""
WRITE_SECONDS = 0.04
POINT_SECONDS = 0.003
"""Of every point beside its rounds: draws are set up, and a dataset is labelled."""


@dataclass(frozen=True)
class Cost:
    """Cost of the runs of one point that advance together.

    Args:
        call: seconds that they share.
        run: seconds of each.
        nbytes: of each in a file.
    """

    call: float
    run: float
    nbytes: int

    def seconds(self, runs: int) -> float:
        """Seconds of so many runs."""
        return self.call + runs * self.run


def cost_of(scenario: Scenario, rule: str) -> Cost:
    """Estimated cost of a scenario's runs under a rule."""
    rounds, federation = scenario.rounds, scenario.federation
    states, r_max = rounds + 1, federation.r_max
    floats = states * (r_max + 2)
    if scenario.fidelity == "spectral":
        call, run = _spectral(scenario, rule)
    elif scenario.fidelity == "matrix":
        call, run = _matrix(scenario)
        floats += states * r_max
    else:
        call, run = _training(scenario)
        floats += states * (20 * federation.max_cohort + 4 * r_max)
    return Cost(POINT_SECONDS + call * rounds, run * rounds, 8 * floats)


def _spectral(scenario: Scenario, rule: str) -> tuple[float, float]:
    """Seconds per round of a batch and of each run in it."""
    federation, chosen = scenario.federation, get_rule(rule)
    per_round = (2.8 + 0.035 * federation.num_clients) * MICRO
    noisy = scenario.gain_std > 0 or scenario.drift_std > 0
    spread = scenario.local_loss == "quadratic" and scenario.target_std > 0
    unlike = noisy and (not chosen.is_linear or chosen.residual_in_base)
    if spread or unlike or scenario.allocation != "svd":
        carried = federation.max_cohort * federation.r_max
        drawn = federation.num_clients * federation.r_max if noisy else 0
        return 200 * MICRO, per_round + (0.08 * carried + 0.04 * drawn) * MICRO
    return 50 * MICRO, per_round


def _matrix(scenario: Scenario) -> tuple[float, float]:
    federation, size = scenario.federation, scenario.d_in + scenario.d_out
    columns = federation.max_cohort * federation.r_max
    run = 200 + 0.12 * size * min(columns, scenario.d_in, scenario.d_out)
    if scenario.basis_drift != 0:
        run += 0.25 * size * columns
    if scenario.local_loss == "quadratic":
        run += 0.01 * size * columns * (scenario.local_steps or 1)
    return 2e3 * MICRO, run * MICRO


def _training(scenario: Scenario) -> tuple[float, float]:
    """Of the small bundled task; other models cost what only a probe can tell."""
    steps = scenario.local_steps or 10 * scenario.local_epochs
    return 0.0, 0.03 + 1e-3 * steps * scenario.federation.max_cohort
