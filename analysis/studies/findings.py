"""Findings of a study: comparison tables, and verdicts on the paper's claims about fine-tuning.

Predictions were fixed on pilot runs with other seeds. All intervals of a study hold together: each
claim gets an equal part of the family's error, also if others are left out. The samples of an
interval are the replicates of the study, means over its heterogeneities (`replicate_means`), for a
claim and for its negative control.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from analysis.closed_form import RULES, communication
from analysis.stats.intervals import Array, mean_interval
from analysis.stats.verdicts import Prediction, Verdict, claim_error, judge
from analysis.studies.study import HIGHEST, MIXED, Study, StudyRun
from analysis.studies.updates import (
    by_partition,
    check_has,
    energy_floor,
    resolved,
    slot_ranks,
    slot_weights,
)
from fedlora_sim import parse_ranks
from fedlora_sim.errors import check_choice
from fedlora_sim.metrics import energy_ratio

# Tables: one row per run, and summaries over seeds

BYTES = 4
"""Bytes per transmitted number: single precision."""

TABLE_ERROR = 0.05
"""Error of each single interval of the tables; verdicts have their own."""

Range = tuple[float, float]
SHARE: Range = (0.0, 1.0)
SIZE: Range = (0.0, np.inf)
DIFFERENCE: Range = (-1.0, 1.0)  # difference of two shares

QUANTITIES: dict[str, Range] = {
    "untrained": SHARE,
    "accuracy": SHARE,
    "rho": SHARE,
    "effective_rank": (1.0, np.inf),
    "preservation": SHARE,
    "megabytes": SIZE,
}
"""Quantities in the tables, with their ranges."""


def finals(study: Study, runs: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return one row per run: its configuration and its final metrics.

    Args:
        study: the study.
        runs: its datasets by label.

    Returns:
        Columns `heterogeneity, configuration, rule, seed`; `untrained` and `accuracy` of the global
        model before and after all rounds; `rounds_to_target`, NaN if the target was never reached;
        `rho` at the mixed federation's lowest level and `effective_rank` of the last update;
        `preservation`, mean over layers and rounds; `megabytes` sent in both directions by the
        adapters in single precision.
    """
    level = study.scenario.federation.levels[0]
    return pd.DataFrame([_final(study, run, runs[run.label], level) for run in study.runs()])


def _final(study: Study, run: StudyRun, dataset: xr.Dataset, level: int) -> dict[str, Any]:
    one = dataset.isel(seed=0)
    accuracy = one.accuracy.values
    reached = np.flatnonzero(accuracy >= study.target_accuracy)
    return {
        "heterogeneity": run.heterogeneity,
        "configuration": run.configuration,
        "rule": run.rule,
        "seed": run.seed,
        "untrained": float(accuracy[0]),
        "accuracy": float(accuracy[-1]),
        "rounds_to_target": float(reached[0]) if len(reached) else np.nan,
        "rho": float(energy_ratio(one.energy.values[-1], level)),
        "effective_rank": float(one.effective_rank.values[-1]),
        "preservation": float(one.preservation.mean()),
        "megabytes": _megabytes(run, one),
    }


def _megabytes(run: StudyRun, one: xr.Dataset) -> float:
    """Return expected traffic of all rounds in 10**6 bytes; NaN for rules without a closed form."""
    name, scenario = run.rule.partition(":")[0], run.scenario
    if name not in RULES:
        return float("nan")
    # who takes part is that of the run; the shapes of the layers are the model's
    cohorts = scenario.replace(fidelity="spectral")
    shapes = Counter(zip(one.d_out.values.tolist(), one.d_in.values.tolist(), strict=True))
    numbers = sum(
        communication(cohorts.replace(d_in=d_in, d_out=d_out), name, layers=layers).total
        for (d_out, d_in), layers in shapes.items()
    )
    return scenario.rounds * numbers * BYTES / 1e6


def summary(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per heterogeneity, configuration and rule.

    Args:
        study: the study.
        table: result of `finals`.

    Returns:
        The mean of each quantity over the seeds with its interval, see `with_interval`; the median
        number of rounds to the target over the runs that reached it, and the number of these runs.
    """
    keys = ["heterogeneity", "configuration", "rule"]
    return [
        dict(zip(keys, key, strict=True)) | _summarized(study, own)
        for key, own in table.groupby(keys, sort=False)
    ]


def _summarized(study: Study, own: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"runs": len(own)}
    for name, within in QUANTITIES.items():
        row |= with_interval(name, own[name].to_numpy(dtype=np.float64), within)
    reached = own["rounds_to_target"].dropna()
    row["reached_target"] = len(reached)
    row["rounds_to_target"] = float(reached.median()) if len(reached) else None
    return row


def with_interval(name: str, samples: ArrayLike, within: Range) -> dict[str, Any]:
    """Return a mean over runs and its Student interval, for a row of a table.

    The interval is clipped to the range of the quantity, which does not change its coverage. It is
    not `log_odds_interval`, which estimates the typical share, may not contain the displayed mean,
    and depends on rounding if a run has exactly 0 or 1 (as rho of equal lowest ranks does).

    Args:
        name: name of the quantity.
        samples: one per run, (n,); NaN where a run has none.
        within: range of the quantity.

    Returns:
        `name` and `{name}_interval`; None without runs, and no interval for one run.
    """
    known = np.asarray(samples, dtype=np.float64)
    known = known[~np.isnan(known)]
    row: dict[str, Any] = {name: None, f"{name}_interval": None}
    if len(known):
        row[name] = float(known.mean())
    if len(known) > 1:
        m = mean_interval(known[:, None], TABLE_ERROR)
        row[f"{name}_interval"] = [
            max(float(m.low[0]), within[0]),
            min(float(m.high[0]), within[1]),
        ]
    return row


def replicate_means(study: Study, samples: pd.Series) -> Array:
    """Return the mean of each replicate of a study over its heterogeneities.

    Replicates are independent and identically distributed, whatever the heterogeneities. They are
    the samples of every interval over more than one heterogeneity.

    Args:
        study: the study.
        samples: a quantity per run, indexed by (heterogeneity, seed).

    Returns:
        One mean per replicate, (n,), in the order of the seeds. A replicate in which a
        heterogeneity is missing or NaN is left out.
    """
    known = samples.dropna()
    names = known.index.get_level_values(0)
    numbers = [study.replicate(name, seed) for name, seed in known.index]
    grouped = known.groupby(np.array(numbers, dtype=np.int64))
    complete = grouped.size() == names.nunique()
    return grouped.mean()[complete].to_numpy(dtype=np.float64)


def curves(study: Study, runs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Return the trajectories of the mixed ranks, dimensions (heterogeneity, rule, run, round).

    Args:
        study: the study.
        runs: its datasets by label.

    Returns:
        `accuracy`, NaN in rounds without evaluation, `rho`, `effective_rank`, `preservation` (mean
        over layers); runs of one heterogeneity have the same seeds under all rules.
    """
    mixed = [run for run in study.runs() if run.configuration == MIXED]
    parts = []
    for name in study.heterogeneity:
        by_rule = []
        for rule in study.rules:
            own = [runs[r.label] for r in mixed if (r.heterogeneity, r.rule) == (name, rule)]
            kept = [_curve(dataset).assign_coords(run=i) for i, dataset in enumerate(own)]
            by_rule.append(xr.concat(kept, "run"))
        parts.append(xr.concat(by_rule, "rule").assign_coords(rule=list(study.rules)))
    names = list(study.heterogeneity)
    return xr.concat(parts, "heterogeneity").assign_coords(heterogeneity=names)


def _curve(dataset: xr.Dataset) -> xr.Dataset:
    one = dataset.isel(seed=0, drop=True)
    found = one[["accuracy", "rho", "effective_rank"]].assign(
        preservation=one.preservation.mean("layer")
    )
    return found.drop_attrs()


# The paper's claims about fine-tuning, with verdicts

COLLAPSED = 0.1
"""Energy above the lowest rank relative to that of equal ranks, below which it is a collapse."""
KEPT = 0.5
"""The same share, above which it is no collapse."""

Samples = Callable[[Study, pd.DataFrame], pd.Series]


@dataclass(frozen=True)
class PaperClaim:
    """One claim.

    Args:
        id: short name.
        statement: the claim.
        quantity: the measured quantity of each run.
        prediction: prediction made before the study was run.
        samples: the quantity, indexed by (heterogeneity, seed).
        control: description of the negative control, which the same check must refute.
        control_samples: the quantity under the control.
    """

    id: str
    statement: str
    quantity: str
    prediction: Prediction
    samples: Samples
    control: str
    control_samples: Samples


def judge_claims(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a verdict on each claim whose runs are available.

    A claim is supported only if its control is refuted.

    Args:
        study: the study.
        table: result of `finals`.

    Returns:
        One entry per claim, for the report.
    """
    error = claim_error(len(PAPER_CLAIMS))
    return [
        _judged(study, table, claim, error)
        for claim in PAPER_CLAIMS
        if not _why_left_out(study, table, claim)
    ]


def claims_left_out(study: Study, table: pd.DataFrame) -> list[dict[str, str]]:
    """Return the other claims, with the reason."""
    return [
        {"id": claim.id, "statement": claim.statement, "reason": reason}
        for claim in PAPER_CLAIMS
        if (reason := _why_left_out(study, table, claim))
    ]


def _why_left_out(study: Study, table: pd.DataFrame, claim: PaperClaim) -> str:
    """Return what a part of a study lacks for a claim."""
    samples = (claim.samples(study, table), claim.control_samples(study, table))
    fewest = min(len(replicate_means(study, own)) for own in samples)
    if fewest > 1:
        return ""
    return "one replicate has no spread" if fewest else "its runs are not in this study"


def _judged(study: Study, table: pd.DataFrame, claim: PaperClaim, error: float) -> dict[str, Any]:
    samples = claim.samples(study, table)
    measured, control = (
        mean_interval(replicate_means(study, own)[:, None], error)
        for own in (samples, claim.control_samples(study, table))
    )
    verdict, of_control = judge(measured, claim.prediction), judge(control, claim.prediction)
    if of_control != Verdict.REFUTED and verdict == Verdict.SUPPORTED:
        verdict = Verdict.UNDECIDED  # a check that cannot refute its control has tested nothing
    return {
        "id": claim.id,
        "statement": claim.statement,
        "quantity": claim.quantity,
        "prediction": float(claim.prediction.value[0]),
        "margin": claim.prediction.margin,
        "measurement": float(measured.value[0]),
        "interval": [float(measured.low[0]), float(measured.high[0])],
        "confidence": 1 - error,
        "runs": len(samples),
        "replicates": measured.samples,
        "verdict": str(verdict),
        "negative_control": {
            "description": claim.control,
            "verdict": str(of_control),
            "measurement": float(control.value[0]),
            "interval": [float(control.low[0]), float(control.high[0])],
        },
    }


def _column(table: pd.DataFrame, name: str, rule: str, configuration: str = MIXED) -> pd.Series:
    """Return a column for the runs of a rule, by heterogeneity and seed."""
    own = table[(table["rule"] == rule) & (table["configuration"] == configuration)]
    return own.set_index(["heterogeneity", "seed"])[name]


def _less(first: pd.Series, second: pd.Series) -> pd.Series:
    """Return the differences of all pairs; none if one of the two was not run."""
    pairs = pd.concat([first, second], axis=1, join="inner").sort_index()
    return pairs.iloc[:, 0] - pairs.iloc[:, 1]


def _log_tail(table: pd.DataFrame, rule: str, configuration: str = MIXED) -> pd.Series:
    """Return log10 of the share of energy above the lowest rank, at least the rounding level."""
    tail = 1 - _column(table, "rho", rule, configuration)
    return np.log10(tail.clip(lower=energy_floor("float32")))


def _tail_share(rule: str) -> Samples:
    """Return log10 of the energy above the lowest rank relative to that of equal highest ranks."""

    def samples(study: Study, table: pd.DataFrame) -> pd.Series:
        return _less(_log_tail(table, rule), _log_tail(table, "fedavg", HIGHEST))

    return samples


def _accuracy_gain(study: Study, table: pd.DataFrame) -> pd.Series:
    return _less(_column(table, "accuracy", "raflora"), _column(table, "accuracy", "fedavg"))


def _untrained_gain(study: Study, table: pd.DataFrame) -> pd.Series:
    return _less(_column(table, "untrained", "fedavg"), _column(table, "accuracy", "fedavg"))


def _extremes(study: Study) -> tuple[str, str] | None:
    """Return the rank configurations with the most and the fewest clients of the highest rank."""
    ranks = {MIXED: study.scenario.ranks}
    ranks |= {name: parse_ranks(own) for name, own in study.rank_configurations.items()}
    top = study.scenario.federation.levels[-1]
    high = {name: own.count(top) for name, own in ranks.items()}
    most, fewest = max(high, key=high.__getitem__), min(high, key=high.__getitem__)
    return None if high[most] == high[fewest] else (most, fewest)


def _fall(study: Study, table: pd.DataFrame, rule: str, left: str = "accuracy") -> pd.Series:
    """Return the loss of accuracy from the most to the fewest clients of the highest rank.

    A difference of means does not grow with the scatter of a rule's runs, as a range would.
    """
    found = _extremes(study)
    if found is None:
        return _column(table, "accuracy", rule, "none").astype(np.float64)
    most, fewest = (
        _column(table, name, rule, own) for name, own in zip(("accuracy", left), found, strict=True)
    )
    return (most - fewest).dropna()


def _robustness(study: Study, table: pd.DataFrame) -> pd.Series:
    return _less(_fall(study, table, "fedavg"), _fall(study, table, "raflora"))


def _untrained_robustness(study: Study, table: pd.DataFrame) -> pd.Series:
    return _less(_fall(study, table, "fedavg"), _fall(study, table, "raflora", "untrained"))


PAPER_CLAIMS = (
    PaperClaim(
        id="collapse",
        statement="Rank collapse occurs: FedAvg leaves hardly any energy above the lowest rank.",
        quantity="log10 of the energy above the lowest rank over that of equal highest ranks",
        prediction=Prediction.at_most(np.log10(COLLAPSED)),
        samples=_tail_share("fedavg"),
        control="raFLoRA in FedAvg's place",
        control_samples=_tail_share("raflora"),
    ),
    PaperClaim(
        id="prevention",
        statement="raFLoRA prevents it: at least half of the energy above the lowest rank stays.",
        quantity="log10 of the energy above the lowest rank over that of equal highest ranks",
        prediction=Prediction.at_least(np.log10(KEPT)),
        samples=_tail_share("raflora"),
        control="FedAvg in raFLoRA's place",
        control_samples=_tail_share("fedavg"),
    ),
    PaperClaim(
        id="accuracy",
        statement="raFLoRA's model is more accurate than FedAvg's.",
        quantity="accuracy gained over FedAvg, paired by seed",
        prediction=Prediction.at_least(0.0),
        samples=_accuracy_gain,
        control="the untrained model in raFLoRA's place",
        control_samples=_untrained_gain,
    ),
    PaperClaim(
        id="robustness",
        statement="Few clients of high rank cost raFLoRA less accuracy than FedAvg.",
        quantity="accuracy lost from most to fewest of the highest rank, FedAvg's less raFLoRA's",
        prediction=Prediction.at_least(0.0),
        samples=_robustness,
        control="a raFLoRA that learns nothing with the fewest",
        control_samples=_untrained_robustness,
    ),
)


# Counterfactuals: other rules on the same trained cohort, in one step

COUNTERFACTUALS = ("counterfactual_energy", "counterfactual_accuracy")


def one_step_energy(dataset: xr.Dataset) -> xr.DataArray:
    """Return the energy that each rule would have left in each partition.

    Args:
        dataset: a training run with counterfactuals.

    Returns:
        (seed, round, compared_rule, layer, partition).

    Raises:
        InputError: if it has none.
    """
    check_has(dataset, COUNTERFACTUALS)
    energy = dataset.counterfactual_energy
    return by_partition(resolved(energy, dataset)).transpose(
        "seed", "round", "compared_rule", "layer", "partition"
    )


def relative_to_rule(dataset: xr.Dataset, reference: str = "raflora") -> xr.DataArray:
    """Return the one-step energies relative to the reference rule's, summed over layers.

    Args:
        dataset: a training run with counterfactuals.
        reference: a rule of the dataset.

    Returns:
        Ratios (seed, round, compared_rule, partition); NaN where the reference leaves nothing.

    Raises:
        InputError: if the dataset lacks counterfactuals or the reference rule.
    """
    energy = one_step_energy(dataset).sum("layer")
    base = energy.sel(compared_rule=_rule(dataset, reference), drop=True)
    return energy / base.where(base > 0)


def accuracy_gain(dataset: xr.Dataset, reference: str = "raflora") -> xr.DataArray:
    """Return the one-step accuracy minus the reference rule's.

    Args:
        dataset: a training run with counterfactuals.
        reference: a rule of the dataset.

    Returns:
        (seed, round, compared_rule); NaN in rounds without evaluation.

    Raises:
        InputError: if the dataset lacks counterfactuals or the reference rule.
    """
    check_has(dataset, COUNTERFACTUALS)
    accuracy = dataset.counterfactual_accuracy
    return accuracy - accuracy.sel(compared_rule=_rule(dataset, reference), drop=True)


def coverage_shares(dataset: xr.Dataset) -> xr.DataArray:
    """Return the weight `W_h(S)` of each partition's contributors in the round's cohort.

    Partition h of raFLoRA equals that of product-space FedAvg divided by `W_h(S)`, as sums of
    columns, without an assumption on the basis. Energies scale with `W_h(S)^2` exactly if the
    columns of the partitions are orthogonal, so that each is a separate singular subspace; the
    deviation measures the overlap of the partitions.

    Args:
        dataset: a training run.

    Returns:
        (seed, round, partition), in [0, 1].

    Reference:
        Wu et al., arXiv 2602.13486, Eq. 8.
    """
    weight, rank = slot_weights(dataset), slot_ranks(dataset)
    last = dataset.direction.groupby(dataset.partition).max()
    return weight.where(rank >= last, 0.0).sum("slot")


def _rule(dataset: xr.Dataset, name: str) -> str:
    return check_choice(
        "reference", name, [str(label) for label in dataset["compared_rule"].values]
    )


# The premise of the theory: does local training preserve directions?
#
# Direction preservation is the share of a client's update on the singular directions at the start
# of the round, (u_i^T dW v_i)^2 summed over i; 1 if training only rescales them. Principal angles
# between the leading subspaces before and after a round are 0 if the basis does not change. A
# subspace that is lost to rounding before or after the round has no angle: NaN. The remaining
# rounds are those of least collapse, and say little if they are few.
#
# Reference: Wu et al., arXiv 2602.13486, App. A.

FIRST = 2  # round 1 starts from zero, without directions
SHOWN = ("fedavg", "raflora")
BLOCKS = 3


def premise_rows(study: Study, runs: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return preservation and rotation in the mixed ranks' runs, by rule and heterogeneity.

    Args:
        study: the study.
        runs: its datasets by label.

    Returns:
        One mapping per rule over all heterogeneities (`heterogeneity` None), then one for each of
        them under FedAvg and raFLoRA: `runs`; `preservation` by block of rounds (`from`, `to`, the
        mean over layers and rounds with an interval over replicates of the study); `angle` by rank
        `level`, in radians: the `median` over layers, sides, directions, rounds and runs, and that
        of the `largest` angle between two subspaces, both over the cells that have one; `known`,
        the share of these cells (layer, round, run); NaN if there are none. Empty if there is only
        one round.
    """
    if study.scenario.rounds < FIRST:
        return []
    places: list[tuple[str, str | None]] = [(rule, None) for rule in study.rules]
    places += [
        (rule, name) for rule in SHOWN if rule in study.rules for name in study.heterogeneity
    ]
    rows = []
    for rule, name in places:
        own = {
            (run.heterogeneity, run.seed): runs[run.label]
            for run in study.runs()
            if (run.rule, run.configuration) == (rule, MIXED) and name in (None, run.heterogeneity)
        }
        rows.append({"rule": rule, "heterogeneity": name, **_row(study, own)})
    return rows


def _row(study: Study, by_seed: Mapping[tuple[str, int], xr.Dataset]) -> dict[str, Any]:
    runs = list(by_seed.values())
    rounds = runs[0]["round"].values
    blocks = []
    for part in np.array_split(rounds[rounds >= FIRST], BLOCKS):
        if len(part):
            means = {
                key: float(r.preservation.sel(round=part).mean()) for key, r in by_seed.items()
            }
            ends = {"from": int(part[0]), "to": int(part[-1])}
            samples = replicate_means(study, pd.Series(means))
            blocks.append(ends | with_interval("mean", samples, SHARE))
    angle = xr.concat([run.angle.sel(round=slice(FIRST, None)) for run in runs], "seed")
    angles = [_angle(angle.sel(level=level)) for level in angle.level.values]
    return {"runs": len(runs), "preservation": blocks, "angle": angles}


def _angle(angle: xr.DataArray) -> dict[str, Any]:
    """Return three numbers for one level's angles (seed, round, layer, side, direction)."""
    return {
        "level": int(angle.level),
        "known": float(angle.notnull().any(["side", "direction"]).mean()),
        "median": float(angle.median()),
        "largest": float(angle.max("direction").median()),
    }
