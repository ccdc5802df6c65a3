"""The six fixed standard scenarios: every rule gets the same clients, cohorts and training.

Three rank levels, 2, 4 and 8, give a staircase: all clients carry directions 1-2, the shared ones,
60% of them 3-4 and 30% of them 5-8. Amplitudes start at 1, each 0.8 times the previous one, so that
sorting by an SVD keeps the order of directions while noise is small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from analysis import closed_form
from fedlora_sim import Scenario, parse_ranks
from fedlora_sim.errors import check_choice, check_sequence, expected
from fedlora_sim.randomness import stream
from fedlora_sim.rules import AggregationRule

RANKS = "2x8,4x6,8x6"
MANY_RANKS = "2x16,4x12,8x12"
COHORT = 4  # of 40: 10%
DECAY = 0.8
ROUNDS = 20
# Small enough that the mean of a logarithm equals the logarithm of a mean within the margins, and
# that 64 runs distinguish persistent gains from a decay.
GAIN_STD, DRIFT = 0.03, 0.05
# Local time relative to FedAvg's threshold in closed form: for the first partition to be held above
# the shared one, and for the last.
BELOW, ABOVE = 0.5, 1.5
TINY = 0.01  # start of the flow in units of its target, where training is linear
STEPS = 50
"""Local steps of the flow at matrix fidelity; margins must include the length of a step."""

SPECTRAL_SEEDS, MATRIX_SEEDS = 2_000, 64
COHORT_SEEDS = 6_000
"""Runs with cohorts at spectral fidelity: most soon lose a partition and thus its rate."""
ALIKE_SEEDS, ALIKE_MATRIX_SEEDS = 2, 8
"""Runs of scenarios without random draws: at matrix fidelity they differ in the basis only."""
EXACT = 1e-6
"""Relative margin without random draws; smaller differences over rounds count as none."""


@dataclass(frozen=True)
class Margins:
    """Widths of the regions in which a measured number agrees with its prediction.

    Args:
        relative: for rates and floors, relative to the prediction.
        ratio: for the energy ratio, absolute.
        extinct: for shares of runs, absolute.
    """

    relative: float
    ratio: float
    extinct: float

    def widened(self, factor: float) -> Margins:
        """Return all margins `factor` times as wide."""
        return Margins(factor * self.relative, factor * self.ratio, factor * self.extinct)


# The table of margins. Full participation and the flow have no random draws. With gains or drift
# the logarithm of a mean replaces the mean of a logarithm, which changes rates by up to 1%.
_EXACTLY = Margins(EXACT, EXACT, EXACT)
MARGINS = {
    "full": _EXACTLY,
    "cohorts": Margins(0.06, 0.02, 0.1),
    "gains": Margins(0.02, 0.02, 0.1),
    "drift": Margins(0.03, 0.02, 0.1),
    "flow_below": _EXACTLY,
    "flow_above": _EXACTLY,
}
"""Margins by scenario, at spectral fidelity."""
# A descent of 50 steps is not the flow: a step multiplies a small amplitude by 1 + x instead of
# exp(x), x at most 0.018; over 50 steps and squared this is 2% and more.
MATRIX_MARGINS = {
    name: margins if name == "full" else margins.widened(2.0) for name, margins in MARGINS.items()
} | dict.fromkeys(("flow_below", "flow_above"), Margins(0.05, 0.02, 0.1))
"""Margins at matrix fidelity: fewer runs, and steps instead of the flow."""
SCENARIOS = tuple(MARGINS)
"""Names of the standard scenarios, in the order of the report."""


@dataclass(frozen=True)
class Standard:
    """A standard scenario.

    Args:
        name: one of `SCENARIOS`.
        title: title in tables and figures.
        about: full description.
        scenario: the scenario at spectral fidelity.
        window: first and last round over which decay is measured.
        draws: whether runs differ by random draws of the scenario.
        relative: True to compare a partition with the shared one of the same run; False to compare
            it with its own start, because training makes the partitions grow at different rates.
        predicted: numbers that the mean trajectory of the closed forms predicts here.
    """

    name: str
    title: str
    about: str
    scenario: Scenario
    window: tuple[int, int]
    draws: bool = True
    relative: bool = True
    predicted: tuple[str, ...] = ("rate", "late_rate", "floor", "extinct", "rho")

    def margins(self, fidelity: str) -> Margins:
        """Return the margins of the scenario's predictions."""
        return (MARGINS if fidelity == "spectral" else MATRIX_MARGINS)[self.name]

    @property
    def late(self) -> tuple[int, int]:
        """First and last round of the second half.

        Changes that have not stopped by then continue.
        """
        return self.scenario.rounds // 2, self.scenario.rounds

    @property
    def levels(self) -> tuple[int, ...]:
        """Rank levels, the shared one first."""
        return self.scenario.federation.levels

    @property
    def federation_text(self) -> str:
        """Ranks, cohort and sample counts as text."""
        federation = self.scenario.federation
        counts = Counter(federation.ranks)
        ranks = ",".join(f"{rank}x{count}" for rank, count in counts.items())
        cohort = "all of them every round"
        if federation.sampling != "full":
            law = str(federation.sampling).replace("_", " ")
            cohort = f"{federation.cohort_size} a round ({law})"
        samples = federation.num_samples or ()
        few, most = min(samples), max(samples)
        size = "equal sample counts" if few == most else f"{few:g} to {most:g} samples each"
        text = f"{federation.num_clients} clients of ranks {ranks}, {cohort}, {size}"
        return f"{text}, {self.scenario.rounds} rounds"

    def at(self, fidelity: str) -> Scenario:
        """Return the scenario at spectral or matrix fidelity, the latter with small layers."""
        if fidelity == "spectral":
            return self.scenario
        steps = STEPS if self.is_flow else None
        return self.scenario.replace(fidelity="matrix", d_in=20, d_out=16, local_steps=steps)

    def seeds(self, fidelity: str, wanted: int | None) -> int:
        """Return the number of runs: as many as requested if the scenario has random draws."""
        spectral = fidelity == "spectral"
        if not self.draws:
            usual = ALIKE_SEEDS if spectral else ALIKE_MATRIX_SEEDS
            return usual if wanted is None else min(usual, wanted)
        usual = COHORT_SEEDS if self.name == "cohorts" else SPECTRAL_SEEDS
        return wanted or (usual if spectral else MATRIX_SEEDS)

    def fidelity_for(self, rule: AggregationRule) -> str:
        """Return `spectral` for a rule that is weights on amplitudes, else `matrix`.

        The flow of a rule with a base correction is `matrix` too: its clients' factors are not
        balanced, and their training is not a map of amplitudes.
        """
        fits = rule.space != "none" and not rule.residual_in_base
        return "spectral" if rule.has_spectral_form and (fits or not self.is_flow) else "matrix"

    @property
    def is_flow(self) -> bool:
        """True if clients train."""
        return self.scenario.local_loss == "quadratic"


def dirichlet_samples() -> tuple[int, ...]:
    """Return the samples of 20 clients, at least 1.

    1,000 times a fixed draw of Dirichlet(1, ..., 1).
    """
    shares = stream(0, "dirichlet_samples").dirichlet(np.ones(20))
    return tuple(np.maximum(1, np.round(1_000 * shares)).astype(int).tolist())


@cache
def standards() -> dict[str, Standard]:
    """Return all standard scenarios by name."""
    plain = Scenario(parse_ranks(RANKS), rounds=ROUNDS, spectrum_decay=DECAY, device="cpu")
    tiny = plain.replace(local_loss="quadratic", initial_amplitude=TINY)
    threshold = closed_form.collapse_threshold(tiny, "fedavg")
    higher = threshold[plain.federation.levels[0] :]
    below, above = BELOW * float(higher.min()), ABOVE * float(higher.max())
    whole = (0, ROUNDS)
    made = (
        Standard(
            "full",
            "full participation",
            f"all 20 clients ({RANKS}) every round, nothing drawn",
            plain,
            whole,
            draws=False,
        ),
        Standard(
            "cohorts",
            "10% cohorts",
            f"{COHORT} of 40 clients ({MANY_RANKS}) a round, drawn uniformly; the rate is that of "
            "runs that still carry the partition",
            plain.replace(ranks=parse_ranks(MANY_RANKS), cohort_size=COHORT),
            (0, 8),  # later rounds contain only runs that lost less: the others are rounding
        ),
        Standard(
            "gains",
            "Dirichlet-like gains",
            "every client multiplies every direction by a gain of its own that lasts, normal "
            f"around 1 with deviation {GAIN_STD}; 20 unequal sample counts, a fixed draw of "
            "Dirichlet(1)",
            plain.replace(
                num_samples=dirichlet_samples(),
                gain_std=GAIN_STD,
                heterogeneity="persistent",
                rounds=12,
            ),
            (0, 6),
            # Persistent gains make the mean deviate from the typical run.
            predicted=("rate", "extinct", "rho"),
        ),
        Standard(
            "drift",
            "drift",
            f"every client adds to every direction, every round, a normal number around {DRIFT} "
            f"with deviation {DRIFT}: all partitions gain, and none is lost for good",
            plain.replace(drift_mean=DRIFT, drift_std=DRIFT, rounds=24),
            (0, 3),
        ),
        Standard(
            "flow_below",
            "flow below threshold",
            f"clients fit a target of 1 from {TINY} by gradient flow, for {BELOW:g} times the "
            f"shortest threshold of FedAvg above the shared rank: local time {below:.3g}",
            tiny.replace(local_time=below),
            whole,
            draws=False,
            relative=False,
        ),
        Standard(
            "flow_above",
            "flow above threshold",
            f"the same for {ABOVE:g} times the longest threshold of FedAvg: local time {above:.3g}",
            tiny.replace(local_time=above),
            (0, 3),
            draws=False,
            relative=False,
        ),
    )
    return {standard.name: standard for standard in made}


def chosen(names: Sequence[str] | None) -> tuple[Standard, ...]:
    """Return the standard scenarios of these names in the report's order; all of them when None.

    Raises:
        InputError: if a name is unknown, or there is none.
    """
    known = standards()
    if names is None:
        return tuple(known.values())
    given = (
        [names]
        if isinstance(names, str)
        else check_sequence("scenarios", names, "names", ordered=False)
    )
    wanted = {check_choice("scenarios", name, known) for name in given}
    if not wanted:
        raise expected("scenarios", list(names), f"at least one of {', '.join(known)}")
    return tuple(standard for name, standard in known.items() if name in wanted)
