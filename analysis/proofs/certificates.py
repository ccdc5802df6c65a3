"""Certificates: predicted numbers of the claims, each proved to all digits that reports print.

    python -m analysis.proofs.certificates

A predicted number that is a closed expression is a definition of `Derived.v` at fractions that
follow from the claim's scenario. `Certificates.v` states that it differs from the printed number by
at most half a unit of the last digit; Coq proves it by interval arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import sympy as sp

from analysis.claims import CLAIMS, drift, heterogeneity, noise, other_rules, rates, settling
from analysis.claims.report import digits_for
from analysis.proofs.derived import arguments, coq_name, definitions
from fedlora_sim import Scenario
from fedlora_sim.storage import write_text

FILE = Path(__file__).parent / "Certificates.v"


@dataclass(frozen=True)
class Applied:
    """A definition of `Derived.v` at fractions, or at other applied definitions.

    Args:
        name: the definition.
        given: values by the names of the arguments in Coq; those that are left out are 0.
    """

    name: str
    given: Mapping[str, Value]

    def text(self) -> str:
        """Return the expression in Coq's syntax."""
        names = [coq_name(symbol) for symbol in arguments(definitions()[self.name])]
        values = [self.given.get(name, Fraction(0)) for name in names]
        return " ".join([self.name, *(f"({_written(value)})" for value in values)])

    def value(self) -> sp.Expr:
        """Return the exact value."""
        expression = definitions()[self.name]
        return expression.subs(
            {
                symbol: _exact(self.given.get(coq_name(symbol), Fraction(0)))
                for symbol in arguments(expression)
            }
        )

    def names(self) -> set[str]:
        """Return the names of all definitions in the expression."""
        inner = [v.names() for v in self.given.values() if isinstance(v, Applied)]
        return {self.name}.union(*inner)


Value = Fraction | Applied


def _written(value: Value) -> str:
    return value.text() if isinstance(value, Applied) else str(value)


def _exact(value: Value) -> sp.Expr:
    if isinstance(value, Applied):
        return value.value()
    return sp.Rational(value.numerator, value.denominator)


def decimal(value: float) -> Fraction:
    """Return a number of a scenario as the decimal fraction that it is written as."""
    return Fraction(str(value))


@dataclass(frozen=True)
class PartitionLaw:
    """Coverage of one partition in a scenario, and moments of its weights, exactly.

    Args:
        scenario: with full participation, or uniform cohorts without replacement of clients with
            equal samples.
        level: the rank level of the partition.
    """

    scenario: Scenario
    level: int

    @property
    def share(self) -> Fraction:
        """Coverage."""
        federation = self.scenario.federation
        assert federation.num_samples is not None  # a federation fills them in
        samples = [int(n) for n in federation.num_samples]
        pairs = zip(samples, federation.ranks, strict=True)
        return Fraction(sum(n for n, rank in pairs if rank >= self.level), sum(samples))

    @property
    def clients(self) -> int:
        """K."""
        return self.scenario.federation.num_clients

    @property
    def cohort(self) -> int:
        """The clients of a round, m."""
        size = self.scenario.federation.cohort_size
        assert size is not None  # a federation fills it in
        return size

    @property
    def contributors(self) -> int:
        """The clients that carry the partition, n."""
        return sum(rank >= self.level for rank in self.scenario.federation.ranks)

    def moment(self, name: str) -> Applied:
        """Return a moment of the share as derived: `second`, `fourth` or `squares`."""
        law = {"K": Fraction(self.clients), "m": Fraction(self.cohort), "pi": self.share}
        return Applied(f"cohorts_without_replacement_{name}", law)

    def _with(self, contributors: int) -> Fraction:
        K, m, n = self.clients, self.cohort, self.contributors
        if m - contributors > K - n:
            return Fraction(0)
        ways = math.comb(n, contributors) * math.comb(K - n, m - contributors)
        return Fraction(ways, math.comb(K, m))

    @property
    def empty(self) -> Fraction:
        """Probability P0 of a round without contributor."""
        return self._with(0)

    @property
    def inverse(self) -> Fraction:
        """`E[1/H; H > 0]`, raFLoRA's `E[sum w^2]`."""
        return sum((self._with(h) / h for h in range(1, self.cohort + 1)), Fraction(0))

    def drawn(self, rule: str) -> dict[str, Value]:
        """Return gains and drifts, and the moments S1, S2, Q of the weights of a rule."""
        fields = {
            "g": self.scenario.gain_mean,
            "nu": self.scenario.gain_std,
            "tau": self.scenario.drift_std,
        }
        law: dict[str, Value] = {name: decimal(value) for name, value in fields.items()}
        if rule == "fedavg":
            moments = {"S2": self.moment("second"), "Q": self.moment("squares")}
            return law | {"S1": self.share, **moments}
        return law | {"S1": 1 - self.empty, "S2": 1 - self.empty, "Q": self.inverse}


def _above(scenario: Scenario) -> list[PartitionLaw]:
    return _all(scenario)[1:]


def _all(scenario: Scenario) -> list[PartitionLaw]:
    return [PartitionLaw(scenario, level) for level in scenario.federation.levels]


def _squared(value: Value) -> Applied:
    return Applied("rates_staircase_rate", {"pi": value})


def _of(name: str, rule: str, scenario: Scenario, first: int = 0) -> list[Applied]:
    return [Applied(name, law.drawn(rule)) for law in _all(scenario)[first:]]


def _heterogeneity(factor: Fraction) -> list[Applied]:
    """Return the rates at a factor times the critical deviation, per partition."""
    found = []
    for law in _above(heterogeneity.CRITICAL):
        drawn = law.drawn("fedavg")
        critical = Applied("floors_critical_gain_std", drawn)
        nu = Applied("multipliers_flora", {"W": factor, "a": Fraction(1), "b": critical})
        found.append(Applied("floors_rate", drawn | {"nu": nu}))
    return found


def _drift_floor(rule: str) -> list[Applied]:
    found = []
    for law in _above(drift.FIVE):
        first: Value = law.share if rule == "fedavg" else law.moment("second")
        level = drift.FIVE.federation.levels.index(law.level)
        assert drift.FIVE.drift_levels is not None  # the scenario has them
        c = decimal(drift.FIVE.drift_levels[level])
        found.append(Applied("floors_mean_floor", {"S1": first, "c": c, "g": Fraction(1)}))
    return found


def _saturation() -> list[Applied]:
    levels = drift.DECAYING.drift_levels
    assert levels is not None  # the scenario has them
    g = decimal(drift.DECAYING.gain_mean)
    return [Applied("drift_raflora_saturation", {"c": decimal(c), "g": g}) for c in levels]


def _growth(scenario: Scenario, rounds: int) -> list[Applied]:
    unit = {"a": Fraction(1), "b": Fraction(1)}
    shares = [Applied("multipliers_flora", {"W": law.share, **unit}) for law in _above(scenario)]
    return shares * rounds


def _noise_gain() -> list[Applied]:
    found = []
    for rule in noise.RULES:
        found += _of("floors_noise", rule, noise.NOISE)
    return found


def _drifting() -> list[Applied]:
    c = decimal(noise.DRIFTING.drift_mean)
    laws = [law.drawn("fedavg") | {"c": c} for law in _all(noise.DRIFTING)]
    return [Applied("floors_floor_with_drift", law) for law in laws]


CERTIFIED: dict[str, Callable[[], list[Applied]]] = {
    "staircase": lambda: [_squared(law.share) for law in _above(rates.FEDERATION)],
    "zero-pad-fourth-power": lambda: [
        _squared(Applied("multipliers_zero_pad", {"W": law.share}))
        for law in _above(rates.FEDERATION)
    ],
    "cohort-rate": lambda: [law.moment("second") for law in _above(rates.SAMPLED)],
    "zero-pad-cohort-rate": lambda: [law.moment("fourth") for law in _above(rates.SAMPLED_PAD)],
    "raflora-zero-cohort": lambda: [
        Applied("floors_raflora_rate", {"P0": law.empty, "g": Fraction(1)})
        for law in _above(rates.SPARSE)
    ],
    "floor-fedavg": lambda: _of("floors_floor", "fedavg", rates.NON_IID),
    "heterogeneity-slows": lambda: [
        Applied("floors_rate", law.drawn("fedavg"))
        for nu in heterogeneity.DEVIATIONS
        for law in _above(heterogeneity.SPREAD.replace(gain_std=nu))
    ],
    "heterogeneity-critical": lambda: [
        rate for factor in heterogeneity.FACTORS for rate in _heterogeneity(decimal(factor))
    ],
    "noise-gain": _noise_gain,
    "long-run-fedavg": lambda: _of("floors_floor", "fedavg", noise.LONG),
    "long-run-raflora": lambda: _of("floors_floor", "raflora", noise.LONG),
    "floor-drift-mean": _drifting,
    "flora-dilutes-loss": lambda: [
        _squared(
            Applied(
                "base_rules_flora_moments_gain",
                {"S1": law.share, "g": decimal(other_rules.LOSSY.gain_mean)},
            )
        )
        for law in _above(other_rules.LOSSY)
    ],
    "flora-linear-growth": lambda: _growth(other_rules.GROWING, 3),
    "flora-cohort-growth": lambda: _growth(other_rules.COHORTS, len(other_rules.GROWTH_ROUNDS)),
    "fedex-settles": lambda: [
        Applied("base_rules_fedex_total_limit", {"W": law.share})
        for law in _above(other_rules.SETTLED)
    ],
    "fedex-approach": lambda: [_squared(law.share) for law in _above(other_rules.APPROACHING)],
    "drift-floor-fedavg": lambda: _drift_floor("fedavg"),
    "drift-floor-zero-pad": lambda: _drift_floor("zero_pad"),
    "drift-saturation": _saturation,
    "review-settling-speed": lambda: _of("floors_rate", "fedavg", settling.SETTLING),
}
"""Expressions of the predicted numbers of each claim, in the order of its quantities."""

HEAD = """\
(* Written by `python -m analysis.proofs.certificates`; do not edit.

   Predicted numbers of the claims: each differs from its closed expression by at most half a unit
   of the last digit that reports print. *)

From Coq Require Import Reals.
From Interval Require Import Tactic.
From FedLoRA Require Import Derived.
Open Scope R_scope.
"""


def printed(value: float, digits: int) -> tuple[Fraction, Fraction]:
    """Return a number rounded to significant digits, and half a unit of the last one."""
    rounded = Decimal(f"{value:.{digits - 1}e}")
    place = rounded.adjusted() - digits + 1
    return Fraction(rounded), Fraction(Decimal(5).scaleb(place - 1))


def text() -> str:
    """Return the file."""
    claims = {claim.id: claim for claim in CLAIMS}
    parts = [HEAD]
    for name, expressions in CERTIFIED.items():
        prediction = claims[name].predict()
        digits = digits_for(prediction.margin)
        for i, (applied, value) in enumerate(zip(expressions(), prediction.value, strict=True)):
            shown, unit = printed(float(value), digits)
            parts.append(
                f"Example {name.replace('-', '_')}_{i} :\n"
                f"  Rabs ({applied.text()} - {shown}) <= {unit}.\n"
                f"Proof. unfold {', '.join(sorted(applied.names()))}. "
                "interval with (i_prec 80). Qed.\n"
            )
    return "\n".join(parts)


if __name__ == "__main__":
    write_text(FILE, text())
