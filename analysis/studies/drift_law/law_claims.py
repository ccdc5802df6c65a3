"""Claims on the drift law, with margins from the issue that asks for them and from pilot runs.

A claim is judged on the runs of a domain by role, and is left out where the domain lacks a role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import least_squares

from analysis.claims.base import Claim, Control, RunContext
from analysis.claims.verify import run_claim
from analysis.closed_form import adam_drift
from analysis.ledger import TERMS
from analysis.stats.intervals import mean_interval, median_interval
from analysis.stats.verdicts import Prediction, claim_error
from analysis.studies.drift_law.implied import (
    Array,
    curvature,
    drift_law,
    drift_of,
    early,
    early_drift,
    floor_ratio,
    late,
    middle,
    pooled,
    steadiness,
)

# Claims: each on the runs of one seed, for some roles

Laws = Mapping[str, xr.Dataset]
"""The law of each run of one seed, by role."""

BASE = "fedavg"
HALF = ("half_rate", "half_steps")
SCHEDULED = "linear"
SGD = "sgd"
RAFLORA = "raflora"
ZERO_PAD = "zero_pad"
FEW = ("few_fedavg", "few_raflora")
SLOW = "few_raflora_slow"
IID = ("few_fedavg_iid", "few_raflora_iid")
RATES = ("slow", "double", "fast")
"""Roles of FedAvg under small steps of SGD, each at twice the rate of the one before."""
DILUTED_SGD, KEPT_SGD = "diluted", "kept"
DILUTED_ADAM, KEPT_ADAM = "adam_diluted", "adam_kept"
MANY = "many"
FLOORS = (BASE, "few", MANY)
"""Roles of FedAvg with different rank configurations, that is, coverages; the last may be left out.
"""

# Margins of the issue that asks for these claims, and those set on the pilots.
STEADY, FLOOR = 0.2, 0.25
PRODUCT, PROPORTIONAL, QUADRATIC, DERIVED = 0.2, 0.2, 0.4, 0.25
FALLS, FALLS_SCALE = 0.7, 0.1
BELOW, BELOW_SCALE = 0.6, 0.1
LINEAR = 0.1
BENT, BENT_SCALE = -0.15, 0.1
GAIN, RATE_POWER, THRESHOLD = 0.25, 0.25, 0.25
LOST, LOST_SCALE = 0.5, 0.15
GAP, IID_GAP, GAP_SCALE = 0.02, 0.04, 0.03
DILUTED_GAIN, DILUTED_SCALE = 0.05, 0.02
GUESSING = 0.1
"""Accuracy of a model that guesses one of ten digits."""

Quantity = Callable[[Laws], Array]

DILUTED = "diluted_accuracy"
"""Attribute of a run: accuracy of its final update with every partition diluted by its coverage."""


@dataclass(frozen=True)
class LawClaim:
    """A claim on the runs of a domain; the samples of its interval are the seeds.

    Args:
        id: short name.
        statement: the claim.
        statistic: what is measured.
        roles: the runs that it needs, controls included.
        names: names of the quantities, from the laws of one seed.
        predict: the prediction, from the number of quantities.
        quantity: maps the laws of one seed to the quantities, (q,).
        control: description of the negative control, and its quantity.
        near: the same of the near control, 2 to 5 margins away in every quantity.
    """

    id: str
    statement: str
    statistic: str
    roles: tuple[str, ...]
    names: Callable[[Laws], tuple[str, ...]]
    predict: Callable[[int], Prediction]
    quantity: Quantity
    control: tuple[str, Quantity]
    near: tuple[str, Quantity]


def _higher(laws: Laws) -> tuple[str, ...]:
    return _every(laws)[1:]


def _second(laws: Laws) -> tuple[str, ...]:
    return _every(laws)[SECOND]


def _every(laws: Laws) -> tuple[str, ...]:
    count = next(iter(laws.values())).sizes["partition"]
    return tuple(f"partition {h}" for h in range(1, count + 1))


def _of(role: str, quantity: Callable[[xr.Dataset], Array], which: slice) -> Quantity:
    """Return a quantity of one role's run, in some of the partitions."""
    return lambda laws: np.atleast_1d(quantity(laws[role])[which])


ABOVE, SHARED, ALL, TOP = slice(1, None), slice(0, 1), slice(None), slice(-1, None)
SECOND = slice(1, 2)
FLOW_ROUNDS = slice(3, 5)
"""Rounds of the flow: later, what other clients return is as large as a diluted amplitude."""


def _growth(law: xr.Dataset) -> Array:
    """Return the late over the early amplitudes, (M,)."""
    return np.asarray(pooled(late(law).amplitude) / pooled(early(law).amplitude))


def _floors(
    laws: Laws, factor: Callable[[Array], Array] = lambda mu: mu, scale: float = 1.0
) -> Array:
    found = [floor_ratio(laws[role], factor)[ABOVE] for role in FLOORS if role in laws]
    return np.concatenate(found) / scale


def _ratio(laws: Laws, one: str, other: str) -> Array:
    return np.asarray(early_drift(laws[one]) / early_drift(laws[other]))


def _power(laws: Laws, which: slice) -> Array:
    """Return the power with which c grows when the learning rate doubles."""
    return np.log2(_ratio(laws, BASE, HALF[0])[which])


def _scheduled_power(laws: Laws) -> Array:
    """Return the power with which c follows the schedule from the first to the middle third, (M,).

    Relative to the run with a constant learning rate, whose c may change for other reasons.
    """
    c = {role: drift_of(middle(laws[role])) / early_drift(laws[role]) for role in (BASE, SCHEDULED)}
    first, second = _scheduled_rates(laws)
    return np.asarray(np.log(c[SCHEDULED] / c[BASE]) / np.log(second / first))


def _scheduled_rates(laws: Laws) -> tuple[float, float]:
    """Return the mean relative learning rates of the first and the middle third."""
    law = laws[SCHEDULED]
    return float(early(law).rate.mean()), float(middle(law).rate.mean())


def _scheduled_excess(laws: Laws) -> Array:
    """Return the measured less the derived power, (M,)."""
    return _scheduled_power(laws) - _derived_power(laws, *_scheduled_rates(laws))


def _derived_power(laws: Laws, first: float = 1.0, second: float = 0.5) -> Array:
    """Return the power of the learning rate between two rates that `adam_drift` derives, (M,).

    Path and persistence are those of a direction, fitted to c at the whole rate in all partitions;
    c of a partition is that of a direction times the root of their number.

    Args:
        laws: the laws of one seed.
        first: a learning rate relative to that of the base run.
        second: another one.
    """
    law = laws[BASE]
    widths = np.diff([0, *sorted(set(np.atleast_1d(law.attrs["ranks"]).tolist()))])
    drift, share = early_drift(law) / np.sqrt(widths), pooled(law.multiplier)

    def errors(lengths: Array) -> Array:
        path, persistence = np.exp(lengths)
        return np.log(adam_drift(path, persistence, share) / drift)

    path, persistence = np.exp(least_squares(errors, np.log([0.1, 0.3]) + 0.5 * np.log(drift[0])).x)
    one, other = (adam_drift(scale * path, persistence, share) for scale in (first, second))
    return np.asarray(np.log(one / other) / np.log(first / second))


def _change(law: xr.Dataset, *terms: str) -> Array:
    """Return what terms of the ledger change in the rounds of the flow, of partition 2, (1,).

    In decades of energy a round.
    """
    change = law.change.sel(round=FLOW_ROUNDS, term=list(terms))
    return pooled(change.sum("term", skipna=False))[SECOND]


def _gain_ratio(laws: Laws, one: str, other: str) -> Array:
    return _change(laws[one], "training") / _change(laws[other], "training")


def _inverse_amplitudes(laws: Laws) -> Array:
    """Return the ratio of the gains that a constant c would give."""
    before = slice(FLOW_ROUNDS.start - 1, FLOW_ROUNDS.stop - 1)
    diluted, kept = (
        pooled(laws[role].amplitude.sel(round=before))[SECOND] for role in (DILUTED_SGD, KEPT_SGD)
    )
    return np.asarray(kept / diluted)


def _rate_power(laws: Laws) -> Array:
    """Return the power with which the gain grows when the learning rate doubles."""
    return np.log2(_gain_ratio(laws, RATES[1], RATES[0]))


def _threshold(laws: Laws, gain: float = 1.0) -> Array:
    """Return the rate at which the amplitude neither falls nor grows over the predicted rate.

    Predicted from the slow run alone: its gain, proportional to the rate, makes up for dilution.
    Measured: the energy's whole change is zero on the line between two runs, extended if need be.

    Args:
        laws: the laws of one seed.
        gain: factor of the gain, for a control.
    """
    slow = laws[RATES[0]]
    predicted = -_change(slow, "dilution") / (gain * _change(slow, "training"))
    changes = [_change(laws[role], *TERMS) for role in RATES]
    rates = 2.0 ** np.arange(len(RATES))
    k = 0 if changes[1] > 0 else 1
    slope = (changes[k + 1] - changes[k]) / (rates[k + 1] - rates[k])
    return np.asarray((rates[k] - changes[k] / slope) / predicted)


def _accuracy_of(laws: Laws, role: str) -> Array:
    return np.array([laws[role].attrs["final_accuracy"]], dtype=np.float64)


def _accuracy(laws: Laws, one: str, other: str) -> Array:
    return _accuracy_of(laws, one) - _accuracy_of(laws, other)


def _diluted_gain(laws: Laws, role: str) -> Array:
    return np.array([laws[role].attrs[DILUTED]]) - _accuracy_of(laws, role)


LAW_CLAIMS = (
    LawClaim(
        id="drift-constant",
        statement="Under Adam and FedAvg the drift c above the lowest rank is the same in the last "
        "third of the rounds as in the first.",
        statistic="late over early c",
        roles=(BASE, RAFLORA),
        names=_higher,
        predict=lambda q: Prediction.near(np.ones(q), STEADY),
        quantity=_of(BASE, steadiness, ABOVE),
        control=("the amplitude under raFLoRA in its place", _of(RAFLORA, _growth, ABOVE)),
        near=("half the late c", lambda laws: steadiness(laws[BASE])[ABOVE] / 2),
    ),
    LawClaim(
        id="drift-floor",
        statement="Collapse stops at the floor `W c / (1 - W)`, with c from the first third of the "
        "rounds.",
        statistic="late amplitude over the floor for the actual cohorts",
        roles=FLOORS[:2],
        names=lambda laws: tuple(
            f"{role}, {name}" for role in FLOORS if role in laws for name in _higher(laws)
        ),
        predict=lambda q: Prediction.within(np.ones(q), FLOOR),
        quantity=_floors,
        control=("the floor of `W**2`", partial(_floors, factor=np.square)),
        near=("the floor of three times c", partial(_floors, scale=3.0)),
    ),
    LawClaim(
        id="drift-product",
        statement="Under Adam c depends on learning rate and local steps through their product "
        "alone: half the rate and half the steps give the same c.",
        statistic="c at half the rate over c at half the steps, first third of the rounds",
        roles=(BASE, *HALF),
        names=_every,
        predict=lambda q: Prediction.near(np.ones(q), PRODUCT),
        quantity=lambda laws: _ratio(laws, *HALF),
        control=("twice that c", lambda laws: 2 * _ratio(laws, *HALF)),
        near=("the whole steps", lambda laws: _ratio(laws, HALF[0], BASE)),
    ),
    LawClaim(
        id="drift-proportional",
        statement="Under Adam c of the shared partition is proportional to the learning rate.",
        statistic="log2 of c over c at half the rate, first third of the rounds",
        roles=(BASE, *HALF),
        names=lambda laws: ("partition 1",),
        predict=lambda q: Prediction.near(np.ones(q), PROPORTIONAL),
        quantity=partial(_power, which=SHARED),
        control=("a c that does not depend on it", lambda laws: 0 * _power(laws, SHARED)),
        near=("partition 2", partial(_power, which=slice(1, 2))),
    ),
    LawClaim(
        id="drift-quadratic",
        statement="Above the lowest rank c is quadratic in the learning rate: diluted amplitudes "
        "are of the size of c, and the scale of two factors of a product is that of the steps.",
        statistic="log2 of c over c at half the rate, first third of the rounds",
        roles=(BASE, *HALF),
        names=_higher,
        predict=lambda q: Prediction.near(np.full(q, 2.0), QUADRATIC),
        quantity=partial(_power, which=ABOVE),
        control=("a c that does not depend on it", lambda laws: 0 * _power(laws, ABOVE)),
        near=("one power less", lambda laws: _power(laws, ABOVE) - 1),
    ),
    LawClaim(
        id="drift-derived-power",
        statement="Above the lowest rank c grows with the power of the learning rate that "
        "`adam_drift` derives, with both of its lengths from c at the whole rate.",
        statistic="log2 of c over c at half the rate, less the derived one",
        roles=(BASE, *HALF),
        names=_higher,
        predict=lambda q: Prediction.near(np.zeros(q), DERIVED),
        quantity=lambda laws: _power(laws, ABOVE) - _derived_power(laws)[ABOVE],
        control=("a c that does not depend on it", lambda laws: -_derived_power(laws)[ABOVE]),
        near=("one power less", lambda laws: _power(laws, ABOVE) - 1 - _derived_power(laws)[ABOVE]),
    ),
    LawClaim(
        id="drift-schedule",
        statement="Under Adam c follows a learning rate that falls linearly, with the power that "
        "`adam_drift` derives.",
        statistic="measured less derived power, from the first to the middle third of the rounds",
        roles=(BASE, SCHEDULED),
        names=_every,
        predict=lambda q: Prediction.near(np.zeros(q), DERIVED),
        quantity=_scheduled_excess,
        control=(
            "a c that does not follow",
            lambda laws: -_derived_power(laws, *_scheduled_rates(laws)),
        ),
        near=("one power less", lambda laws: _scheduled_excess(laws) - 1),
    ),
    LawClaim(
        id="sgd-falls",
        statement="Under SGD c is not constant: it falls as training converges.",
        statistic="late over early c",
        roles=(BASE, SGD, MANY),
        names=_every,
        predict=lambda q: Prediction.at_most(np.full(q, FALLS), FALLS_SCALE),
        quantity=_of(SGD, steadiness, ALL),
        control=("the same run under Adam", _of(BASE, steadiness, ALL)),
        near=("Adam, with more clients of high rank", _of(MANY, steadiness, ALL)),
    ),
    LawClaim(
        id="sgd-below-floor",
        statement="Under SGD collapse goes on below the floor of the drift law.",
        statistic="late amplitude over the floor of the early c",
        roles=(BASE, SGD, MANY),
        names=_higher,
        predict=lambda q: Prediction.at_most(np.full(q, BELOW), BELOW_SCALE),
        quantity=_of(SGD, floor_ratio, ABOVE),
        control=("the same run under Adam", _of(BASE, floor_ratio, ABOVE)),
        near=("Adam, with more clients of high rank", _of(MANY, floor_ratio, ABOVE)),
    ),
    LawClaim(
        id="sgd-saturates",
        statement="Under SGD the shared amplitude approaches a limit, as the flow of the factors "
        "does, instead of growing linearly.",
        statistic="curvature of the amplitude over the rounds",
        roles=(BASE, SGD),
        names=lambda laws: ("partition 1",),
        predict=lambda q: Prediction.at_most(np.full(q, BENT), BENT_SCALE),
        quantity=_of(SGD, curvature, SHARED),
        control=("the same run under Adam", _of(BASE, curvature, SHARED)),
        near=("that to the power 1.5", _of(BASE, partial(curvature, power=1.5), SHARED)),
    ),
    LawClaim(
        id="raflora-linear",
        statement="Under Adam and raFLoRA every amplitude grows linearly with the rounds.",
        statistic="curvature of the amplitude over the rounds",
        roles=(RAFLORA,),
        names=_every,
        predict=lambda q: Prediction.near(np.zeros(q), LINEAR),
        quantity=_of(RAFLORA, curvature, ALL),
        control=("its cube", _of(RAFLORA, partial(curvature, power=3.0), ALL)),
        near=("its power 2.5", _of(RAFLORA, partial(curvature, power=2.5), ALL)),
    ),
    LawClaim(
        id="zero-padding-fails",
        statement="The law fails for zero padding's highest partition: it falls below half of the "
        "floor `W**2 c / (1 - W**2)`.",
        statistic="late amplitude over the floor for the actual cohorts",
        roles=(BASE, ZERO_PAD, MANY),
        names=lambda laws: _every(laws)[-1:],
        predict=lambda q: Prediction.at_most(np.full(q, LOST), LOST_SCALE),
        quantity=_of(ZERO_PAD, floor_ratio, TOP),
        control=("FedAvg", _of(BASE, floor_ratio, TOP)),
        near=("FedAvg, with more clients of high rank", _of(MANY, floor_ratio, TOP)),
    ),
)
"""What the drift law implies, where it ends, and that it does not hold under SGD."""

FLOW_CLAIMS = (
    LawClaim(
        id="flow-gain",
        statement="Under small steps of SGD training multiplies an amplitude by a factor that does "
        "not depend on it: FedAvg's diluted amplitude gains as raFLoRA's.",
        statistic="gain under FedAvg over that under raFLoRA, decades of energy a round",
        roles=(DILUTED_SGD, KEPT_SGD, DILUTED_ADAM, KEPT_ADAM),
        names=_second,
        predict=lambda q: Prediction.near(np.ones(q), GAIN),
        quantity=lambda laws: _gain_ratio(laws, DILUTED_SGD, KEPT_SGD),
        control=("the gains of a constant c", _inverse_amplitudes),
        near=("Adam", lambda laws: _gain_ratio(laws, DILUTED_ADAM, KEPT_ADAM)),
    ),
    LawClaim(
        id="flow-proportional",
        statement="The logarithm of that factor is proportional to the learning rate.",
        statistic="log2 of the gain at the double rate over the gain",
        roles=RATES,
        names=_second,
        predict=lambda q: Prediction.near(np.ones(q), RATE_POWER),
        quantity=_rate_power,
        control=("a gain that does not depend on it", lambda laws: 0 * _rate_power(laws)),
        near=("one power more, as c under Adam", lambda laws: _rate_power(laws) + 1),
    ),
    LawClaim(
        id="flow-threshold",
        statement="Collapse has the threshold of the flow: an amplitude falls at learning rates "
        "below the one whose gain makes up for dilution, and grows above it.",
        statistic="measured over predicted rate of the threshold",
        roles=RATES,
        names=_second,
        predict=lambda q: Prediction.near(np.ones(q), THRESHOLD),
        quantity=_threshold,
        control=("a third of the gain", partial(_threshold, gain=1 / 3)),
        near=("twice the gain", partial(_threshold, gain=2.0)),
    ),
)
"""That SGD follows the flow of the factors while amplitudes are small."""

FEW_CLAIMS = (
    LawClaim(
        id="collapsed-wins",
        statement="With few clients of high rank and large steps FedAvg is more accurate than "
        "raFLoRA.",
        statistic="accuracy after the last round, FedAvg's less raFLoRA's",
        roles=FEW,
        names=lambda laws: ("accuracy",),
        predict=lambda q: Prediction.at_least(np.zeros(q), GAP_SCALE),
        quantity=lambda laws: _accuracy(laws, *FEW),
        control=("the two exchanged", lambda laws: _accuracy(laws, *FEW[::-1])),
        near=("the two exchanged", lambda laws: _accuracy(laws, *FEW[::-1])),
    ),
    LawClaim(
        id="few-large-steps",
        statement="FedAvg wins there because raFLoRA does not dilute the large steps of the few: "
        "with a fifth of the rate for those few alone raFLoRA is as accurate as FedAvg.",
        statistic="accuracy after the last round, of raFLoRA with small steps of the few less "
        "FedAvg's",
        roles=(*FEW, SLOW),
        names=lambda laws: ("accuracy",),
        predict=lambda q: Prediction.at_least(np.full(q, -GAP), GAP_SCALE),
        quantity=lambda laws: _accuracy(laws, SLOW, FEW[0]),
        control=("a model that guesses", lambda laws: GUESSING - _accuracy_of(laws, FEW[0])),
        near=("raFLoRA itself", lambda laws: _accuracy(laws, *FEW[::-1])),
    ),
    LawClaim(
        id="few-own-data",
        statement="FedAvg wins there because raFLoRA does not dilute what the few have learned "
        "from data of their own: on an IID split raFLoRA is as accurate as FedAvg.",
        statistic="accuracy after the last round on an IID split, raFLoRA's less FedAvg's",
        roles=(*FEW, *IID),
        names=lambda laws: ("accuracy",),
        predict=lambda q: Prediction.at_least(np.full(q, -IID_GAP), GAP_SCALE),
        quantity=lambda laws: _accuracy(laws, *IID[::-1]),
        control=("a model that guesses", lambda laws: GUESSING - _accuracy_of(laws, IID[0])),
        near=("the split that is not IID", lambda laws: _accuracy(laws, *FEW[::-1])),
    ),
    LawClaim(
        id="few-undiluted",
        statement="What the few add is what costs accuracy: raFLoRA's final update is better with "
        "every partition diluted by its coverage, as FedAvg dilutes it in a round.",
        statistic="accuracy of raFLoRA's final update gained by dilution",
        roles=FEW,
        names=lambda laws: ("accuracy",),
        predict=lambda q: Prediction.at_least(np.full(q, DILUTED_GAIN), DILUTED_SCALE),
        quantity=lambda laws: _diluted_gain(laws, FEW[1]),
        control=("the loss instead", lambda laws: -_diluted_gain(laws, FEW[1])),
        near=("FedAvg's final update", lambda laws: _diluted_gain(laws, FEW[0])),
    ),
)
"""Why a collapsed FedAvg sometimes wins: an explanation that can fail."""

FAMILIES = (("theorem", LAW_CLAIMS), ("theorem", FLOW_CLAIMS), ("conjecture", FEW_CLAIMS))
"""Claims whose intervals hold together, with their kind in the record."""

LEAST_FOR_MEDIANS = 12
"""Seeds that an interval of a median needs at the error of a claim; with fewer, means are used."""


# Verdicts

Rows = list[dict[str, Any]]


def laws_of(runs: Mapping[str, Sequence[xr.Dataset]]) -> list[dict[str, xr.Dataset]]:
    """Return the laws of each seed by role, with the accuracy after the last round."""
    count = min(len(own) for own in runs.values())
    return [{role: _law(own[i]) for role, own in runs.items()} for i in range(count)]


def _law(dataset: xr.Dataset) -> xr.Dataset:
    return drift_law(dataset).assign_attrs(final_accuracy=float(dataset.accuracy[0, -1]))


def judge_law(seeds: Sequence[Laws]) -> tuple[Rows, Rows]:
    """Return a record of each claim whose roles are available, and those left out.

    Args:
        seeds: the laws of each seed, by role; see `laws_of`.

    Returns:
        Records as `verify` makes them, and `id`, `statement` and `reason` of the others.
    """
    judged: Rows = []
    left_out: Rows = []
    for kind, family in FAMILIES:
        for claim in family:
            missing = [role for role in claim.roles if role not in seeds[0]]
            if missing:
                reason = f"no run {', '.join(missing)} in this domain"
                told = {"id": claim.id, "statement": claim.statement, "reason": reason}
                left_out.append(told)
                continue
            made = _claim(claim, kind, seeds)
            judged.append(run_claim(made, RunContext(), claim_error(len(family))))
    return judged, left_out


def _claim(claim: LawClaim, kind: str, seeds: Sequence[Laws]) -> Claim:
    names = claim.names(seeds[0])

    def experiment(quantity: Quantity, numbers: Sequence[int], context: RunContext) -> Array:
        return np.stack([quantity(seeds[i]) for i in numbers])

    middle = "median" if len(seeds) >= LEAST_FOR_MEDIANS else "mean"
    return Claim(
        id=claim.id,
        statement=claim.statement,
        source="ours",
        assumptions="clients hold the leading directions",
        fidelity="training",
        statistic=f"{claim.statistic}, {middle} over seeds",
        quantities=names,
        predict=partial(claim.predict, len(names)),
        experiment=partial(experiment, claim.quantity),
        control=Control(claim.control[0], experiment=partial(experiment, claim.control[1])),
        near=Control(claim.near[0], experiment=partial(experiment, claim.near[1])),
        estimator=median_interval if middle == "median" else mean_interval,
        first=len(seeds),
        cap=len(seeds),
        kind="theorem" if kind == "theorem" else "conjecture",
    )
