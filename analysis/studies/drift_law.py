"""`python -m analysis.studies.drift_law DOMAIN`: verify the drift law on real training.

Under Adam local training adds a nearly constant amount c to every amplitude, so that a round maps
the amplitude X of a partition to `X' = mu (X + c)`, with mu the rule's multiplier for the coverage
of the round's cohort. Collapse then stops at the floor `W c / (1 - W)` under FedAvg, and raFLoRA's
amplitudes grow linearly. Here X is the root of a partition's energy in one layer.

A domain is a TOML file: the fields that all runs share, and the runs by role. A claim is judged on
the roles that it needs; it is left out where a domain lacks one. Predictions and margins were fixed
on pilot runs with other seeds. Runs that are stored already are not made again.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from analysis.claims.base import Claim, Control, RunContext
from analysis.claims.report import (
    VERDICT_MARK,
    distance_text,
    measurement_text,
    prediction_text,
)
from analysis.claims.verify import LIBRARIES, finite_or_none, run_claim
from analysis.formats import NONE, interval, markdown_table, number, percent
from analysis.stats.intervals import mean_interval, median_interval
from analysis.stats.verdicts import Prediction, claim_error
from analysis.studies.calibrate import (
    amplitudes,
    by_partition,
    check_has,
    describe_updates,
    resolved,
    rule_of,
    slot_ranks,
    slot_weights,
)
from analysis.studies.report import last_part
from analysis.studies.study import PATHS
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import check_choice, check_positive_int, check_seed, expected
from fedlora_sim.finetune.checkpoints import load_state
from fedlora_sim.finetune.run import evaluate
from fedlora_sim.rules import get_rule
from fedlora_sim.storage import (
    ResultFolder,
    RunStore,
    code_versions,
    temporary_folder,
    write_json,
    write_text,
)
from fedlora_sim.tasks.loading import load_task

Array = NDArray[np.float64]

# The law of one run: amplitudes, multipliers, and the drift that they imply

NEEDED = ("layer_energy", "cohort", "dropped", "client_weight", "client_rank", "update_energy")
FIRST_UPDATE = 2
"""The first round starts from zero, where an amplitude and its multiplier say nothing."""


def drift_law(dataset: xr.Dataset) -> xr.Dataset:
    """Return the amplitudes of a run's partitions and the drift that each round implies.

    Args:
        dataset: a training run, dimensions (seed, round, layer, slot, direction).

    Returns:
        `amplitude`, X after each round, the root of the partition's energy, in units of dW;
        `coverage`, the share W of the round's cohort that carries the partition; `multiplier`, the
        rule's declared factor mu; `drift`, `c = X' / mu - X`, or `(X' - X) / mu` under a rule that
        merges increments into the base. All (seed, round, layer, partition). Coverage, multiplier
        and drift are NaN before the second round; the drift also where mu is 0, or where X has no
        energy before or after the round.

    Raises:
        InputError: if the dataset is no training run, or if its rule declares no multiplier.
    """
    check_has(dataset, NEEDED)
    rule = rule_of(dataset)
    energy = by_partition(resolved(dataset.layer_energy, dataset))
    after = energy**0.5
    weight = slot_weights(dataset)
    if rule.weights_from_norms:
        norm = (dataset.update_energy**0.5).where(weight > 0, 0.0)
        total = norm.sum("slot")
        weight = (norm / total.where(total > 0)).fillna(0.0)
    last = dataset.direction.groupby(dataset.partition).max()
    coverage = weight.where(slot_ranks(dataset) >= last, 0.0).sum("slot")
    coverage = coverage.broadcast_like(after).transpose(*after.dims)
    factor = rule.multiplier(torch.tensor(coverage.values))
    multiplier = coverage.copy(data=factor.cpu().double().numpy())
    before = after.shift(round=1)
    started = dataset["round"] >= FIRST_UPDATE
    usable = multiplier.where((multiplier > 0) & started & (before > 0) & (after > 0))
    drift = (after - before) / usable if rule.space == "none" else after / usable - before
    dims = ("seed", "round", "layer", "partition")
    return xr.Dataset(
        {
            "amplitude": after.transpose(*dims),
            "coverage": coverage.where(started).transpose(*dims),
            "multiplier": multiplier.where(started).transpose(*dims),
            "drift": drift.transpose(*dims),
        },
        attrs=dataset.attrs,
    )


def account(dataset: xr.Dataset) -> xr.Dataset:
    """Return why the energy of a partition changes in a round, in decades.

    With mu the multiplier, sigma_i the amplitudes before the round and `sbar_i` the weighted mean
    of what the carriers return on direction i, `E'/E` is the product of `dilution`,
    `sum (mu sigma_i)^2 / E`; `training`, `sum (mu sbar_i)^2 / sum (mu sigma_i)^2`; and `rest`,
    `E' / sum (mu sbar_i)^2`: mixing with what non-carriers return, and turning of the directions.

    Args:
        dataset: a training run whose clients hold the leading directions.

    Returns:
        The logarithms to base 10 of the three factors, (seed, round, layer, partition); NaN where a
        term is undefined, such as for a partition that is lost or that nobody carries.
    """
    law, updates = drift_law(dataset), describe_updates(dataset)
    weight = updates.weight.where(np.isfinite(updates.reached), 0.0)
    total = weight.sum("slot")
    mean = (weight * updates.reached.fillna(0.0)).sum("slot") / total.where(total > 0)
    held = by_partition(amplitudes(dataset).shift(round=1) ** 2)
    trained = by_partition(mean.fillna(0.0) ** 2)
    energies = (held, law.multiplier**2 * held, law.multiplier**2 * trained, law.amplitude**2)
    logs = [np.log10(e.where(e > 0)) for e in energies]
    terms = [new - old for old, new in pairwise(logs)]
    dims = ("seed", "round", "layer", "partition")
    found = dict(zip(TERMS, (term.transpose(*dims) for term in terms), strict=True))
    return xr.Dataset(found, attrs=dataset.attrs)


TERMS = ("dilution", "training", "rest")


# Quantities of one run. Layers are pooled: sums over layers follow the law as each layer does.


def early(law: xr.Dataset) -> xr.Dataset:
    """Return the first third of the rounds, without the first one."""
    return law.sel(round=slice(FIRST_UPDATE, max(FIRST_UPDATE, _rounds(law) // 3)))


def late(law: xr.Dataset) -> xr.Dataset:
    """Return the last third of the rounds."""
    return law.sel(round=slice(_rounds(law) - max(_rounds(law) // 3, 1) + 1, None))


def _rounds(law: xr.Dataset) -> int:
    return int(law["round"][-1])


def _pooled(values: xr.DataArray) -> Array:
    """Return the mean over rounds and layers of each partition of one run, (M,)."""
    mean = values.isel(seed=0).mean(["round", "layer"])
    return np.asarray(mean.transpose("partition").values, dtype=np.float64)


def early_drift(law: xr.Dataset) -> Array:
    """Return c of the early rounds, (M,)."""
    return _pooled(early(law).drift)


def steadiness(law: xr.Dataset) -> Array:
    """Return the drift of the late rounds over that of the early ones, (M,); 1 if c is constant."""
    return np.asarray(_pooled(late(law).drift) / early_drift(law))


def floor_ratio(law: xr.Dataset, factor: Callable[[Array], Array] = lambda mu: mu) -> Array:
    """Return the late amplitudes over the floor of the early drift, (M,); 1 under the law.

    The floor of a constant multiplier is `mu c / (1 - mu)`. For the multipliers of the actual
    cohorts it is the late mean of `Y' = mu_t (Y + c)`, which starts from `mean(mu) c / (1 -
    mean(mu))` after the early rounds: the same in expectation, without the chance of the cohorts.

    Args:
        law: the law of one run.
        factor: replaces the multipliers, for a control.
    """
    one = law.isel(seed=0)
    own = one.multiplier.mean("layer").transpose("round", "partition").values
    mu = np.asarray(factor(own), dtype=np.float64)
    drift, mean = early_drift(law), np.nanmean(mu, axis=0)
    with np.errstate(divide="ignore"):
        floor = np.where(mean < 1, mean * drift / (1 - mean), np.nan)
    known = dict(zip(one["round"].values.tolist(), mu, strict=True))
    kept, wanted = [], set(late(law)["round"].values.tolist())
    for t in range(int(early(law)["round"][-1]) + 1, _rounds(law) + 1):
        floor = known[t] * (floor + drift)
        kept += [floor] if t in wanted else []
    return np.asarray(_pooled(late(law).amplitude) / np.mean(kept, axis=0))


def curvature(law: xr.Dataset, power: float = 1.0) -> Array:
    """Return the curvature of the amplitude over the rounds, (M,).

    The coefficient of the second Legendre polynomial over that of the first, fitted to rounds 1 to
    T: 0 for a line, 1/3 for a square, -0.24 for a root.

    Args:
        law: the law of one run.
        power: the amplitude is raised to it first, for a control.
    """
    path = law.amplitude.isel(seed=0).mean("layer").transpose("round", "partition").values[1:]
    time = np.linspace(-1.0, 1.0, len(path))
    fitted = np.polynomial.legendre.legfit(time, path**power, 2)
    return np.asarray(fitted[2] / fitted[1])


# The final update with every partition diluted by its coverage

DILUTED = "diluted_accuracy"


def diluted_accuracy(dataset: xr.Dataset, scenario: Scenario, checkpoints: Path) -> float:
    """Return the accuracy of a run's final update with each direction scaled by its coverage.

    Args:
        dataset: the run, of one seed.
        scenario: its scenario.
        checkpoints: folder in which the run has stored its last state.
    """
    task = load_task(scenario)
    folder = checkpoints / f"seed-{int(dataset.seed[0])}"
    state = load_state(folder, scenario.rounds, task.device)
    share = torch.tensor(dataset.coverage.isel(seed=0).values)
    deltas = {
        name: (u * (s * share[: len(s)].to(s))) @ vh
        for name, (u, s, vh) in state.svd(max(scenario.ranks)).items()
    }
    return evaluate(task, deltas, state.heads)[0]


# Claims: each on the runs of one seed, for some roles

Laws = Mapping[str, xr.Dataset]
"""The law of each run of one seed, by role."""

BASE = "fedavg"
HALF = ("half_rate", "half_steps")
SGD = "sgd"
RAFLORA = "raflora"
ZERO_PAD = "zero_pad"
FEW = ("few_fedavg", "few_raflora")
SLOW = "few_raflora_slow"
IID = ("few_fedavg_iid", "few_raflora_iid")
FLOORS = (BASE, "few", "many")
"""Roles of FedAvg with different rank configurations, that is, coverages; the last may be left out.
"""

# Margins of the issue that asks for these claims, and those set on the pilots.
STEADY, FLOOR = 0.2, 0.25
PRODUCT, PROPORTIONAL, QUADRATIC = 0.2, 0.2, 0.4
FALLS, FALLS_SCALE = 0.7, 0.1
BELOW, BELOW_SCALE = 0.6, 0.1
LINEAR = 0.1
BENT, BENT_SCALE = -0.15, 0.1
LOST, LOST_SCALE = 0.5, 0.15
GAP, IID_GAP, GAP_SCALE = 0.02, 0.04, 0.03
DILUTED_GAIN, DILUTED_SCALE = 0.05, 0.02
GUESSING = 0.1
"""Accuracy of a model that guesses one of ten digits."""

Quantity = Callable[[Laws], Array]


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
        near: the same of the near control, 2 to 5 margins away.
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


def _every(laws: Laws) -> tuple[str, ...]:
    count = next(iter(laws.values())).sizes["partition"]
    return tuple(f"partition {h}" for h in range(1, count + 1))


def _of(role: str, quantity: Callable[[xr.Dataset], Array], which: slice) -> Quantity:
    """Return a quantity of one role's run, in some of the partitions."""
    return lambda laws: np.atleast_1d(quantity(laws[role])[which])


ABOVE, SHARED, ALL, TOP = slice(1, None), slice(0, 1), slice(None), slice(-1, None)


def _growth(law: xr.Dataset) -> Array:
    """Return the late over the early amplitudes, (M,)."""
    return np.asarray(_pooled(late(law).amplitude) / _pooled(early(law).amplitude))


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
        statistic="late over early c, means over rounds and layers",
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
        near=("the floor of 0.6 c", partial(_floors, scale=0.6)),
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
        near=(
            "the shared partition",
            lambda laws: np.broadcast_to(_power(laws, SHARED), _power(laws, ABOVE).shape),
        ),
    ),
    LawClaim(
        id="sgd-falls",
        statement="Under SGD c is not constant: it falls as training converges.",
        statistic="late over early c, means over rounds and layers",
        roles=(BASE, SGD),
        names=_every,
        predict=lambda q: Prediction.at_most(np.full(q, FALLS), FALLS_SCALE),
        quantity=_of(SGD, steadiness, ALL),
        control=("a constant c", lambda laws: np.ones_like(steadiness(laws[SGD]))),
        near=("the same run under Adam", _of(BASE, steadiness, ALL)),
    ),
    LawClaim(
        id="sgd-below-floor",
        statement="Under SGD collapse goes on below the floor of the drift law.",
        statistic="late amplitude over the floor of the early c",
        roles=(BASE, SGD),
        names=_higher,
        predict=lambda q: Prediction.at_most(np.full(q, BELOW), BELOW_SCALE),
        quantity=_of(SGD, floor_ratio, ABOVE),
        control=("a floor of half that c", lambda laws: 4 * floor_ratio(laws[SGD])[ABOVE]),
        near=("the same run under Adam", _of(BASE, floor_ratio, ABOVE)),
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
        control=("a line", lambda laws: np.zeros(1)),
        near=("the same run under Adam", _of(BASE, curvature, SHARED)),
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
        near=("its square, the energy", _of(RAFLORA, partial(curvature, power=2.0), ALL)),
    ),
    LawClaim(
        id="zero-padding-fails",
        statement="The law fails for zero padding's highest partition: it falls below half of the "
        "floor `W**2 c / (1 - W**2)`.",
        statistic="late amplitude over the floor for the actual cohorts",
        roles=(BASE, ZERO_PAD),
        names=lambda laws: _every(laws)[-1:],
        predict=lambda q: Prediction.at_most(np.full(q, LOST), LOST_SCALE),
        quantity=_of(ZERO_PAD, floor_ratio, TOP),
        control=("the floor itself", lambda laws: np.ones(1)),
        near=("FedAvg", _of(BASE, floor_ratio, TOP)),
    ),
)
"""What the drift law implies, where it ends, and that it does not hold under SGD."""

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
        statement="FedAvg wins there because raFLoRA does not dilute what the few have learnt from "
        "data of their own: on an IID split raFLoRA is as accurate as FedAvg.",
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

FAMILIES = {"theorem": LAW_CLAIMS, "conjecture": FEW_CLAIMS}
"""Claims whose intervals hold together, by their kind in the record."""

LEAST_FOR_MEDIANS = 12
"""Seeds that an interval of a median needs at the error of a claim; with fewer, means are used."""


# Domains: the runs of a seed by role, from a TOML file

PACKAGED = files("analysis") / "studies" / "laws"
FIELDS = {
    "name": str,
    "about": str,
    "seeds": int,
    "first_seed": int,
    "scenario": dict,
    "runs": dict,
}
PLACES = (*PATHS, "threads", "device")
"""Fields that say where the runs are made, and are no part of a domain."""


@dataclass(frozen=True)
class Domain:
    """The runs on one task.

    Args:
        name: name of the domain.
        about: one line about it.
        seeds: seed of the task, the split, the cohorts and the training.
        runs: scenario and rule of each role.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    runs: Mapping[str, tuple[Scenario, str]]

    def first(self, seeds: int) -> Domain:
        """Return the domain with its first seeds alone.

        Raises:
            InputError: if it has fewer.
        """
        if check_positive_int("seeds", seeds) > len(self.seeds):
            raise expected("seeds", seeds, f"at most the {len(self.seeds)} of the domain")
        return replace(self, seeds=self.seeds[:seeds])


def domain_names() -> list[str]:
    """Return the names of the domains in the package."""
    found = (Path(entry.name) for entry in PACKAGED.iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml")


def load_domain(source: str, changes: Mapping[str, Any] | None = None) -> Domain:
    """Return a domain from a TOML file, or from the package by name.

    Args:
        source: path of a file that ends in .toml, or one of `domain_names`.
        changes: fields of all scenarios that replace those of the file, such as paths.

    Raises:
        InputError: names the field, its value and what was expected.
    """
    try:
        if source.endswith(".toml"):
            values = tomllib.loads(Path(source).read_text(encoding="utf-8"))
        else:
            name = check_choice("domain", source, domain_names())
            values = tomllib.loads((PACKAGED / f"{name}.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise expected("domain", source, f"a readable TOML file ({error})") from None
    for field, kind in FIELDS.items():
        if not isinstance(values.get(field), kind):
            raise expected(field, values.get(field), f"a value of type {kind.__name__}")
    for field in values:
        check_choice("domain field", field, FIELDS)
    runs = {}
    for role, own in values["runs"].items():
        fields = {"fidelity": "training", **values["scenario"], **own, **(changes or {})}
        rule = get_rule(fields.pop("rule", "fedavg")).label
        runs[role] = (Scenario.from_mapping(fields), rule)
    first = check_seed("first_seed", values["first_seed"])
    count = check_positive_int("seeds", values["seeds"])
    return Domain(values["name"], values["about"], tuple(range(first, first + count)), runs)


def make_runs(
    domain: Domain, out: Path, on_progress: Callable[[str, int], object] = lambda role, seed: None
) -> dict[str, list[xr.Dataset]]:
    """Return the runs of each role, one per seed; those that are stored are not made again.

    Args:
        domain: the domain.
        out: folder of the stored runs.
        on_progress: called with role and seed of each run that is available.
    """
    found: dict[str, list[xr.Dataset]] = {role: [] for role in domain.runs}
    for seed in domain.seeds:
        for role, (scenario, rule) in domain.runs.items():
            fields = {n: v for n, v in asdict(scenario).items() if n not in PLACES}
            store = RunStore(out / "runs", {"scenario": fields, "rule": rule})
            dataset = store.get_run(f"seed-{seed}")
            if dataset is None:
                dataset = _made(scenario.replace(task_seed=seed), rule, seed, out, role in FEW)
                store.put_run(f"seed-{seed}", dataset)
            found[role].append(dataset)
            on_progress(role, seed)
    return found


def _made(scenario: Scenario, rule: str, seed: int, out: Path, dilute: bool) -> xr.Dataset:
    started = time.process_time()
    if dilute:
        out.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out / "state") as folder:
            dataset = simulate(scenario, rule=rule, seed=seed, checkpoints=folder)
            dataset.attrs[DILUTED] = diluted_accuracy(dataset, scenario, folder)
    else:
        dataset = simulate(scenario, rule=rule, seed=seed)
    return dataset.assign_attrs(cpu_seconds=time.process_time() - started)


# The report of a domain

Record = Mapping[str, Any]
BLOCKS = ("early", "middle", "late")
ACCOUNTED = (BASE, ZERO_PAD, RAFLORA)
"""Roles whose late rounds are accounted for."""


def laws_of(runs: Mapping[str, Sequence[xr.Dataset]]) -> list[dict[str, xr.Dataset]]:
    """Return the laws of each seed by role, with the accuracy after the last round."""
    count = min(len(own) for own in runs.values())
    return [{role: _law(own[i]) for role, own in runs.items()} for i in range(count)]


def _law(dataset: xr.Dataset) -> xr.Dataset:
    return drift_law(dataset).assign_attrs(final_accuracy=float(dataset.accuracy[0, -1]))


def judge_law(seeds: Sequence[Laws]) -> tuple[list[Record], list[Record]]:
    """Return a record of each claim whose roles are available, and those left out.

    Args:
        seeds: the laws of each seed, by role; see `laws_of`.

    Returns:
        Records as `verify` makes them, and `id`, `statement` and `reason` of the others.
    """
    judged, left_out = [], []
    for kind, family in FAMILIES.items():
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


def law_rows(seeds: Sequence[Laws]) -> list[Record]:
    """Return the measured law of each role and partition, medians over seeds.

    Returns:
        `role`, `rule`, `partition`; `coverage`; `drift` in the early, middle and late rounds;
        `steadiness`, late over early drift; `amplitude` of the late rounds; `floor_ratio`, that
        over the floor for the actual cohorts, and `mean_floor_ratio`, over the floor of the mean
        multiplier; `curvature`. Each quantity with its range over seeds, `{name}_range`.
    """
    rows = []
    for role, law in seeds[0].items():
        measured = [_measured(own[role]) for own in seeds]
        for h in range(law.sizes["partition"]):
            row: dict[str, Any] = {"role": role, "rule": law.attrs["rule"], "partition": h + 1}
            for name in measured[0]:
                values = np.array([of_seed[name][..., h] for of_seed in measured])
                row[name] = np.median(values, axis=0).tolist()
                row[f"{name}_range"] = [values.min(0).tolist(), values.max(0).tolist()]
            rows.append(row)
    return rows


def _measured(law: xr.Dataset) -> dict[str, Array]:
    middle = law.sel(round=slice(int(early(law)["round"][-1]) + 1, int(late(law)["round"][0]) - 1))
    drift = np.stack([_pooled(part.drift) for part in (early(law), middle, late(law))])
    multiplier, amplitude = _pooled(law.multiplier), _pooled(late(law).amplitude)
    with np.errstate(divide="ignore"):
        mean_floor = np.where(multiplier < 1, multiplier * drift[0] / (1 - multiplier), np.nan)
    return {
        "coverage": _pooled(law.coverage),
        "drift": drift,
        "steadiness": steadiness(law),
        "amplitude": amplitude,
        "floor_ratio": floor_ratio(law),
        "mean_floor_ratio": amplitude / mean_floor,
        "curvature": curvature(law),
    }


def account_rows(runs: Mapping[str, Sequence[xr.Dataset]]) -> list[Record]:
    """Return the mean terms of a late round, in decades of energy, by role and partition.

    Returns:
        `role`, `partition`, and of each of `TERMS` and their `sum` the mean over the late rounds,
        layers and seeds; `known`, the share of these cells in which all terms are defined.
    """
    rows = []
    for role in (role for role in ACCOUNTED if role in runs):
        found = xr.concat([late(account(run)) for run in runs[role]], "seed").to_array("term")
        whole = found.where(np.isfinite(found).all("term"))
        mean = whole.mean(["seed", "round", "layer"]).transpose("partition", "term").values
        known = np.isfinite(whole.isel(term=0)).mean(["seed", "round", "layer"]).values
        for h, terms in enumerate(mean):
            named = dict(zip(TERMS, terms.tolist(), strict=True))
            row = {"role": role, "partition": h + 1, **named, "sum": float(terms.sum())}
            rows.append({**row, "known": float(known[h])})
    return rows


def law_report(
    domain: Domain, runs: Mapping[str, Sequence[xr.Dataset]], command: str = ""
) -> dict[str, Any]:
    """Return the report of a domain.

    Args:
        domain: the domain.
        runs: result of `make_runs`.
        command: the command that repeats it.

    Returns:
        `domain`, its settings; `command`; `claims` and those `left_out`; `rows` of the measured
        law; `account` of the late rounds; `accuracy` and `diluted_accuracy` by
        role and seed; `cpu_seconds` of all runs;
        `environment`. Non-finite numbers are None.
    """
    seeds = laws_of(runs)
    claims, left_out = judge_law(seeds)
    scenario = next(iter(domain.runs.values()))[0]
    usual = asdict(Scenario(scenario.ranks, fidelity="training"))
    report = {
        "domain": {
            "name": domain.name,
            "about": domain.about,
            "seeds": list(domain.seeds[: len(seeds)]),
            "rounds": scenario.rounds,
            "runs": {
                role: {"rule": rule, **_changed(asdict(own), usual)}
                for role, (own, rule) in domain.runs.items()
            },
        },
        "command": command,
        "claims": claims,
        "left_out": left_out,
        "rows": law_rows(seeds),
        "account": account_rows(runs),
        "accuracy": {
            role: [own[role].attrs["final_accuracy"] for own in seeds] for role in domain.runs
        },
        "diluted_accuracy": {
            role: [own[role].attrs[DILUTED] for own in seeds]
            for role in domain.runs
            if DILUTED in seeds[0][role].attrs
        },
        "cpu_seconds": float(sum(run.attrs["cpu_seconds"] for own in runs.values() for run in own)),
        "environment": {
            **code_versions(),
            **{f"{name}_version": version(name) for name in LIBRARIES},
            "python_version": platform.python_version(),
            "platform": platform.platform(),
        },
    }
    return dict(finite_or_none(report))


def _changed(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not at their default, with the last part of a local path."""
    told = {name: value for name, value in fields.items() if value != usual[name]}
    told |= {name: last_part(told[name]) for name in PATHS if name in told}
    return {"ranks": list(fields["ranks"]), **told}


# Tables, from the report alone


def law_claims_table(report: Record) -> str:
    """Return one row per claim: prediction, measurement, verdict and near control."""
    head = (
        "claim",
        "prediction",
        "measured, in all partitions or the worst",
        "verdict",
        "near control",
    )
    rows = []
    for claim in report["claims"]:
        near = claim["near_control"]
        rows.append(
            (
                f"**{claim['id']}**: {claim['statement']}",
                prediction_text(claim),
                measurement_text(claim),
                VERDICT_MARK[claim["verdict"]]
                + (f": {claim['reason']}" if claim["reason"] else ""),
                f"{near['verdict']}: {near['description']}; {distance_text(near)}",
            )
        )
    return markdown_table(head, rows)


def law_rows_table(report: Record) -> str:
    """Return the drift by rounds, the late amplitude and the floor of each role and partition."""
    head = ("runs", "rule", "partition", "W", "c: first, middle, last third", "late X")
    further = ("late X over the floor", "curvature of X")
    rows = []
    for row in report["rows"]:
        cells = [row["role"], f"`{row['rule']}`", str(row["partition"])]
        cells += [number(row["coverage"], 2), ", ".join(number(c, 2) for c in row["drift"])]
        cells.append(number(row["amplitude"], 2))
        cells += [_with_range(row, name) for name in ("floor_ratio", "curvature")]
        rows.append(cells)
    return markdown_table((*head, *further), rows)


def account_table(report: Record) -> str:
    """Return the terms of a late round in decades of energy, by role and partition."""
    head = ("runs", "partition", *TERMS, "sum", "known")
    rows = [
        (
            row["role"],
            str(row["partition"]),
            *(number(row[name], 2, absent=NONE) for name in (*TERMS, "sum")),
            percent(round(row["known"], 3)),
        )
        for row in report["account"]
    ]
    return markdown_table(head, rows)


def _with_range(row: Record, name: str) -> str:
    if row[name] is None:
        return NONE
    low, high = row[f"{name}_range"]
    return f"{number(row[name], 2)} {interval((low, high), 2)}"


def to_markdown(report: Record) -> str:
    """Return the whole report."""
    domain = report["domain"]
    seeds = domain["seeds"]
    span = f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"
    parts = [
        f"# The drift law: {domain['name']}",
        f"{domain['about']} {domain['rounds']} rounds; {span}.",
        f"Repeat: `{report['command']}`",
        "## Claims",
        law_claims_table(report),
        *(f"Left out: **{own['id']}**: {own['reason']}." for own in report["left_out"]),
        "## The measured law",
        "Medians over seeds, and ranges.",
        law_rows_table(report),
    ]
    if report["account"]:
        parts += ["## A late round, in decades of energy", account_table(report)]
    lines = (f"- {key}: {value}" for key, value in report["environment"].items())
    return "\n\n".join([*parts, "## Environment", "\n".join(lines)]) + "\n"


# The command

COMMAND = "drift_law"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs of a domain, or continue them, and report on them."""
    parser = argparse.ArgumentParser(prog="python -m analysis.studies.drift_law")
    parser.add_argument("domain", metavar="DOMAIN", help=f"{', '.join(domain_names())}, or a file")
    parser.add_argument("--out", type=Path, help="folder; results/drift_law/DOMAIN by default")
    parser.add_argument("--seeds", type=int, help="so many of the domain's first seeds")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    asked = parser.parse_args(arguments)
    try:
        changes = dict(text.split("=", 1) for text in asked.set)
        domain = load_domain(asked.domain, changes)
        if asked.seeds is not None:
            domain = domain.first(asked.seeds)
    except ValueError as error:
        parser.error(str(error))
    out = asked.out or Path("results") / "drift_law" / domain.name
    results = ResultFolder(out, COMMAND)
    total, started = len(domain.seeds) * len(domain.runs), time.monotonic()
    with results.only_writer(), tqdm(total=total, unit="run", disable=None) as bar:
        results.check(("drift_law.json", "drift_law.md"))

        def show(role: str, seed: int) -> None:
            bar.update()
            if bar.disable:  # without a terminal: a line per run instead of a bar
                passed = time.monotonic() - started
                print(f"{passed:6.0f} s: {role}, seed {seed}", file=sys.stderr, flush=True)

        report = law_report(domain, make_runs(domain, out, show), _command(asked))
        with results.replace() as new:
            write_json(new / "drift_law.json", report)
            write_text(new / "drift_law.md", to_markdown(report))
    for claim in report["claims"]:
        print(f"{claim['verdict']:>10}  {claim['id']}: {measurement_text(claim)}")
    print(f"report in {out}")


def _command(asked: argparse.Namespace) -> str:
    """Return the command line without the paths of this machine."""
    parts = ["python -m analysis.studies.drift_law", shlex.quote(last_part(asked.domain))]
    parts += [] if asked.seeds is None else [f"--seeds {asked.seeds}"]
    for text in asked.set:
        name, _, value = text.partition("=")
        parts.append(f"--set {name}={shlex.quote(last_part(value))}")
    return " ".join(parts)


if __name__ == "__main__":
    main()
