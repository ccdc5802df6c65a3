"""Claims on fine-tuning on digits: rank collapse, its prevention, and the effect on accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.claims.base import Claim, Control, Job, RunContext
from analysis.formats import rule_name
from analysis.stats.intervals import log_odds_interval, mean_interval, median_interval
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks, simulate
from fedlora_sim.metrics import energy_ratio

Array = NDArray[np.float64]

MIXED_RANKS = "2x4,4x4,16x4"
MIXED = Scenario(ranks=parse_ranks(MIXED_RANKS), fidelity="training", rounds=30)
LEVEL = MIXED.federation.levels[0]
COLLAPSED = 0.99
# Energy that near controls add: with it a collapsed run lies three margins below the bound.
PUT_BACK = 0.04
NOT_COLLAPSED = 0.9
# The table of all runs is not a test: its intervals are single ones.
TABLE_ERROR = 0.01

# Fewer than 12 runs give no interval of a median at the error of each claim in a family of
# theorems: one half to the power 11.
RUNS_EACH = 12
# Accuracies with few high-rank clients vary more: two of these runs may be exceptions.
RUNS_TWO_HIGH = 17
# Rounds after which only a few percent of FedAvg's energy remain in the higher levels.
EARLY = 6

FEW_RANKS, LARGE_RATE = "2x6,4x4,16x2", 5e-3


@dataclass(frozen=True)
class Run:
    """One configuration of the experiment: ranks, rule, length and rate of training."""

    ranks: str
    rule: str
    learning_rate: float = MIXED.learning_rate
    rounds: int = MIXED.rounds
    local_steps: int | None = MIXED.local_steps


# The equal-rank references have as many clients as the mixed federation, all of its lowest or all
# of its highest rank. The last two are the case where raFLoRA averages over few clients.
RUNS = {
    "fedavg": Run(MIXED_RANKS, "fedavg"),
    "zero_pad": Run(MIXED_RANKS, "zero_pad"),
    "raflora": Run(MIXED_RANKS, "raflora"),
    "raflora_canonical": Run(MIXED_RANKS, "raflora:canonicalize=true"),
    "equal_rank_2": Run("2x12", "fedavg"),
    "equal_rank_16": Run("16x12", "fedavg"),
    "fedavg_two_high": Run(FEW_RANKS, "fedavg", LARGE_RATE),
    "raflora_two_high": Run(FEW_RANKS, "raflora", LARGE_RATE),
}
# Fewer high-rank clients collapse in fewer rounds: the same claims in an eighth of the time.
QUICK_RUNS = {
    rule: Run(FEW_RANKS, rule, learning_rate=2e-3, rounds=12, local_steps=3)
    for rule in ("fedavg", "zero_pad", "raflora")
}


def runs(context: RunContext) -> dict[str, Run]:
    """Return the configurations of this verification's experiment."""
    return QUICK_RUNS if context.quick else RUNS


def job(label: str, number: int, context: RunContext) -> Job:
    """Return one fine-tuning run with its label."""
    run = runs(context)[label]
    (seed,) = context.seeds([number])
    scenario = MIXED.replace(
        ranks=run.ranks,
        learning_rate=run.learning_rate,
        rounds=run.rounds,
        local_steps=run.local_steps,
        device=context.device,
    )
    return Job(f"digits-{label}-{number}", scenario, run.rule, seed)


def count_of(label: str) -> int:
    """Return the number of runs of a configuration."""
    return RUNS_TWO_HIGH if label.endswith("two_high") else RUNS_EACH


def first_look(context: RunContext) -> list[Job]:
    """Return the runs that the first looks of all claims and the table of all runs require."""
    return [
        job(label, number, context) for label in runs(context) for number in range(count_of(label))
    ]


def digits_run(label: str, number: int, context: RunContext) -> xr.Dataset:
    """Return one fine-tuning run, shared by all claims that use it."""
    one = job(label, number, context)
    return context.run_once(
        one.label,
        lambda: simulate(
            one.scenario, rule=one.rule, seed=one.seed, on_progress=context.on_progress
        ),
    )


def final_rho(run: xr.Dataset) -> float:
    """Return `rho_{l_1}` after the last round, always at the mixed federation's lowest level."""
    return rho_after(run, -1)


def rho_after(run: xr.Dataset, t: int) -> float:
    """Return `rho_{l_1}` after round t, at the mixed federation's lowest level."""
    return float(energy_ratio(run.energy.values[0, t], LEVEL))


def final_accuracy(run: xr.Dataset) -> float:
    """Return the test accuracy of the global model after the last round."""
    return float(run.accuracy.values[0, -1])


def final_effective_rank(run: xr.Dataset) -> float:
    """Return the effective rank of the global update's spectrum, energies summed over layers."""
    return float(run.effective_rank.values[0, -1])


def rho_of(label: str, numbers: Sequence[int], context: RunContext, after: int = -1) -> Array:
    """Return the energy ratio after a round, by default the last, one row per run."""
    return np.array([[rho_after(digits_run(label, i, context), after)] for i in numbers])


def rho_put_back(label: str, numbers: Sequence[int], context: RunContext) -> Array:
    """Return the final energy ratio if the highest direction had `PUT_BACK` more of all energy.

    One row per run.
    """
    rows = []
    for i in numbers:
        energy = digits_run(label, i, context).energy.values[0, -1].copy()
        energy[-1] += PUT_BACK * energy.sum()
        rows.append([float(energy_ratio(energy, LEVEL))])
    return np.array(rows)


def accuracy_gain(label: str, baseline: str, numbers: Sequence[int], context: RunContext) -> Array:
    """Return the final accuracy minus the baseline's under the same seed, one row per run."""
    gains = [
        final_accuracy(digits_run(label, i, context))
        - final_accuracy(digits_run(baseline, i, context))
        for i in numbers
    ]
    return np.array(gains)[:, None]


def untrained_gain(baseline: str, numbers: Sequence[int], context: RunContext) -> Array:
    """Return the accuracy of the pretrained model minus the baseline's last one: never a gain."""
    finished = [digits_run(baseline, i, context) for i in numbers]
    return np.array([[float(run.accuracy.values[0, 0]) - final_accuracy(run)] for run in finished])


def summarize(context: RunContext, count: int) -> list[dict[str, Any]]:
    """Return final accuracy, energy ratio and effective rank of each run label, with intervals.

    Args:
        context: store of finished runs; makes missing ones.
        count: seeds per label: as many as the claim that needed most of them.

    Returns:
        One row per label; single intervals at confidence 1 - `TABLE_ERROR`.
    """
    rows = []
    for label, run in runs(context).items():
        finished = [digits_run(label, i, context) for i in range(count)]
        row: dict[str, Any] = {"run": label, **asdict(run), "runs": count}
        row["confidence"] = 1 - TABLE_ERROR
        for name, value_of, estimator in (
            ("accuracy", final_accuracy, log_odds_interval),
            ("rho", final_rho, log_odds_interval),
            ("effective_rank", final_effective_rank, mean_interval),
        ):
            m = estimator(np.array([[value_of(done)] for done in finished]), TABLE_ERROR)
            row[name], row[f"{name}_interval"] = m.value[0], [m.low[0], m.high[0]]
        rows.append(row)
    return rows


def gather(context: RunContext, count: int) -> xr.Dataset:
    """Return the same runs in one dataset, dimensions (run, seed, round, ...).

    Missing directions of the equal-rank reference of low rank are zero.
    """
    parts = []
    for label in runs(context):
        finished = [
            digits_run(label, i, context).drop_vars(["coverage", "partition"]) for i in range(count)
        ]
        part = xr.concat(finished, dim="seed", combine_attrs="drop_conflicts")
        energy = part.energy.values
        part = part.assign(rho=(("seed", "round"), energy_ratio(energy, LEVEL)))
        parts.append(part.expand_dims(run=[label]))
    return xr.concat(parts, dim="run", join="outer", fill_value=0.0, combine_attrs="drop_conflicts")


_COMMON: dict[str, Any] = {
    "source": "arXiv 2602.13486, Sec. 4 and Sec. 6, on other tasks",
    "assumptions": "digits, Dirichlet 0.5, 12 clients of mixed ranks, Adam, full participation",
    "fidelity": "training",
    # A median requires no assumption on the distribution of the few runs.
    "estimator": median_interval,
    # One look: the table of all runs requires as many of each as the claim that needs most, and the
    # part of the error that an earlier look would take is better used at the end.
    "first": RUNS_EACH,
    "cap": RUNS_EACH,
}
_RHO: dict[str, Any] = {
    "statistic": "energy ratio after the last round, median of runs",
    "quantities": (rf"$\rho_{LEVEL}$ after the last round",),
}


def _collapse(rule: str) -> Claim:
    return Claim(
        id=f"digits-collapse-{rule.replace('_', '-')}",
        statement=f"On real fine-tuning {rule_name(rule)} concentrates the energy in the "
        "lowest rank level.",
        predict=partial(Prediction.at_least, COLLAPSED, 1 - COLLAPSED),
        experiment=partial(rho_of, rule),
        control=Control("raFLoRA instead", experiment=partial(rho_of, "raflora")),
        near=Control(
            f"the highest direction gains {PUT_BACK:.0%} of all energy",
            experiment=partial(rho_put_back, rule),
        ),
        **_RHO,
        **_COMMON,
    )


def _accuracy(
    claim_id: str, suffix: str, where: str, near: Control, positive: Control | None = None
) -> Claim:
    raflora, fedavg = f"raflora{suffix}", f"fedavg{suffix}"
    return Claim(
        id=claim_id,
        statement=f"On real fine-tuning raFLoRA's model is more accurate than FedAvg's{where}.",
        statistic="test accuracy after the last round minus the baseline's, median over seeds",
        quantities=("accuracy gained over FedAvg, paired by seed",),
        predict=partial(Prediction.at_least, 0.0, 0.05),
        experiment=partial(accuracy_gain, raflora, fedavg),
        control=Control(
            "the untrained model instead of raFLoRA's", experiment=partial(untrained_gain, fedavg)
        ),
        near=near,
        positive=positive,
        kind="conjecture",
        in_quick=not suffix,
        **{**_COMMON, "first": count_of(raflora), "cap": count_of(raflora)},
    )


_EARLY_FEDAVG = Control(
    f"FedAvg after {EARLY} rounds instead", experiment=partial(rho_of, "fedavg", after=EARLY)
)

CLAIMS = (
    _collapse("fedavg"),
    _collapse("zero_pad"),
    Claim(
        id="digits-raflora-no-collapse",
        statement="On real fine-tuning raFLoRA keeps energy above the lowest rank level.",
        predict=partial(Prediction.at_most, NOT_COLLAPSED, 0.03),
        experiment=partial(rho_of, "raflora"),
        control=Control("FedAvg instead", experiment=partial(rho_of, "fedavg")),
        near=_EARLY_FEDAVG,
        **_RHO,
        **_COMMON,
    ),
    Claim(
        id="digits-canonical-no-collapse",
        statement="On real fine-tuning raFLoRA on canonical factors keeps energy above the lowest "
        "rank level.",
        predict=partial(Prediction.at_most, NOT_COLLAPSED, 0.03),
        experiment=partial(rho_of, "raflora_canonical"),
        control=Control("FedAvg instead", experiment=partial(rho_of, "fedavg")),
        near=_EARLY_FEDAVG,
        kind="conjecture",
        in_quick=False,
        **_RHO,
        **_COMMON,
    ),
    _accuracy(
        "digits-accuracy",
        "",
        "",
        Control("the two rules exchanged", experiment=partial(accuracy_gain, "fedavg", "raflora")),
    ),
    _accuracy(
        "digits-accuracy-two-high",
        "_two_high",
        ", also with two high-rank clients and large steps",
        Control(
            "FedAvg with four high-rank clients and usual steps instead of raFLoRA",
            experiment=partial(accuracy_gain, "fedavg", "fedavg_two_high"),
        ),
        positive=Control(
            "four high-rank clients and usual steps",
            experiment=partial(accuracy_gain, "raflora", "fedavg"),
        ),
    ),
)
