"""The faults to plant: a replacement, the tests to run on it, and the test that should catch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A fault in one file.

    Args:
        name: what is wrong, in words.
        path: the file.
        old: the text to replace; it occurs once.
        new: the faulty text.
        tests: arguments of pytest, files first.
        catcher: name of the test that should fail.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    catcher: str

    @property
    def test_files(self) -> tuple[str, ...]:
        """The files among the arguments."""
        return tuple(name for name in self.tests if name.endswith(".py"))


DRAWS = ("tests/simulator/test_draws.py",)

FAULTS = (
    Fault(
        "the forecast is calibrated on the rounds on which it is scored",
        "analysis/real/scoring.py",
        "calibration = calibrate(dataset, slice(1, first), pool)",
        "calibration = calibrate(dataset, slice(1, None), pool)",
        ("tests/analysis/test_real_scoring.py",),
        "test_a_forecast_does_not_see_the_rounds_on_which_it_is_scored",
    ),
    Fault(
        "drifts are drawn from the stream of the gains",
        "fedlora_sim/draws.py",
        'draw("drifts", ',
        'draw("gains", ',
        DRAWS,
        "test_gains_are_independent_of_drifts",
    ),
    Fault(
        "the initial A is 1.2 times too wide",
        "fedlora_sim/training/draws.py",
        "bound = d_in**-0.5",
        "bound = 1.2 * d_in**-0.5",
        DRAWS,
        "test_the_initial_a_is_pefts_kaiming_draw",
    ),
    Fault(
        "uniform cohorts prefer the first client by 1%",
        "fedlora_sim/federation.py",
        "    keys = rng.random(shape)\n",
        "    keys = rng.random(shape)\n    keys[:, 0] *= 0.99\n",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "cohorts drawn by size forget the sizes of small clients",
        "fedlora_sim/federation.py",
        "rng.multinomial(size, federation.weights, size=rounds)",
        "rng.multinomial(size, federation.weights.round(2) / federation.weights.round(2).sum(), "
        "size=rounds)",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "an empty Bernoulli cohort is replaced by the first client",
        "fedlora_sim/federation.py",
        "counts[empty] = rng.random((empty.size, shape[1])) < probability",
        "counts[empty, 0] = 1",
        DRAWS,
        "test_every_cohort_has_its_probability",
    ),
    Fault(
        "bases keep the signs of the QR factorization",
        "fedlora_sim/draws.py",
        "return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)",
        "return q",
        DRAWS,
        "test_the_initial_basis_is_haar",
    ),
)
