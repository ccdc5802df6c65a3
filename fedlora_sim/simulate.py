"""`simulate`: one interface to the three fidelities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fedlora_sim.datasets import ACCOUNT, DIMS, build_dataset
from fedlora_sim.engines.matrix import run_matrix
from fedlora_sim.engines.spectral import run_spectral, run_spectral_account
from fedlora_sim.errors import check_choice, check_seed, check_sequence, expected
from fedlora_sim.finetune.measures import TrainingResult, labeled
from fedlora_sim.finetune.run import run_training
from fedlora_sim.moments import SeedMoments, blocks_of
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.runtime import full_precision
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks import Task

Progress = Callable[[float], object]
KEEP = ("runs", "moments")
MOST_NUMBERS = 500_000_000
"""Maximum numbers in memory for one run, and energies returned by one call: 4 GB."""


@full_precision()
def simulate(
    scenario: Scenario,
    rule: str | AggregationRule = "raflora",
    *,
    seed: int | Iterable[int] = 0,
    progress: bool = False,
    on_progress: Progress | None = None,
    task: Task | None = None,
    checkpoints: str | Path | None = None,
    ledger: bool = False,
    keep: str = "runs",
) -> xr.Dataset:
    """Simulate a federation under one server rule.

    Args:
        scenario: the scenario, including its fidelity.
        rule: name of the server rule, or an `AggregationRule`.
        seed: one seed or several. The run of a seed is the same alone or among others (to rounding
            where matrices are batched), and a call gives the same bits on the CPU every time.
        progress: show a progress bar, one step per run.
        on_progress: called with the number of runs finished since the last call.
        task: a custom model and data set to fine-tune, instead of the scenario's task.
        checkpoints: folder that stores each round of fine-tuning. The same call resumes from there
            and gives the same result.
        ledger: add the variables from which `analysis.ledger` accounts for each round. Training
            fidelity always has them.
        keep: `runs`, or `moments`: means, variances, quantiles and extinction over the seeds,
            without the runs, of which a million do not fit into memory. Not of fine-tuning.

    Returns:
        Dataset with dimensions (seed, round, direction): `energy`, `rho` (at the lowest rank level
        of the federation) and `effective_rank`. Matrix fidelity adds `projected_energy`. Training
        fidelity adds accuracy, loss, `layer_energy`, and the effect of each cohort client's update
        on the directions (`amplitude`, `client_preservation`, `angle`, ...). Round 0 is the initial
        state. Attributes hold the full configuration. With `keep="moments"` as
        `fedlora_sim.moments.SeedMoments.dataset`.

    Raises:
        InputError: if an argument is invalid; names the argument, its value and what was expected.
    """
    _check_scenario("scenario", scenario)
    chosen, seeds, engine = get_rule(rule), check_seeds(seed), _ENGINES[scenario.fidelity]
    check_suits(scenario, chosen)
    sums_alone = check_choice("keep", keep, KEEP) == "moments"
    if sums_alone and (scenario.fidelity == "training" or ledger):
        wanted = "runs for fine-tuning and with ledger=True, whose variables are of single runs"
        raise expected("keep", keep, wanted)
    check_size(scenario, 1 if sums_alone else len(seeds), 1 + ledger * len(ACCOUNT))
    options = {"task": task, "checkpoints": None if checkpoints is None else Path(checkpoints)}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if given and scenario.fidelity != "training":
        raise expected(next(iter(given)), "given", "None but at fidelity='training'")
    if ledger and scenario.fidelity != "training":
        given["ledger"] = True
    with tqdm(total=len(seeds), disable=not progress, desc=chosen.label, unit="run") as bar:
        advance = bar.update if on_progress is None else on_progress
        if sums_alone:
            return moments_of(scenario, chosen, seeds, advance).dataset(seeds)
        return engine(scenario, chosen, seeds, advance, **given)


@full_precision()
def moments_of(
    scenario: Scenario, rule: AggregationRule, seeds: tuple[int, ...], on_progress: Progress
) -> SeedMoments:
    """Return the moments of runs, which are simulated in blocks and not kept.

    Args:
        scenario: a spectral or matrix scenario.
        rule: the server rule.
        seeds: one run per seed.
        on_progress: called with the number of runs finished since the last call.
    """
    moments = SeedMoments(scenario, rule.label)
    for block in blocks_of(scenario, seeds):
        moments.add(_ENGINES[scenario.fidelity](scenario, rule, block, on_progress))
    return moments


@full_precision()
def simulate_many(
    scenarios: Sequence[Scenario],
    rule: str | AggregationRule = "raflora",
    *,
    seed: int | Iterable[int] = 0,
    progress: bool = False,
) -> list[xr.Dataset]:
    """Simulate several scenarios under one rule; spectral scenarios run in one batch.

    Args:
        scenarios: any scenarios; each result equals that of `simulate`.
        rule: as for `simulate`.
        seed: as for `simulate`.
        progress: show a progress bar, one step per run.

    Returns:
        One dataset per scenario, in order.
    """
    chosen, seeds = get_rule(rule), check_seeds(seed)
    scenarios = [
        _check_scenario(f"scenarios[{k}]", scenario)
        for k, scenario in enumerate(check_sequence("scenarios", scenarios, "a list of scenarios"))
    ]
    for scenario in scenarios:
        check_suits(scenario, chosen)
        check_size(scenario, len(seeds))
    spectral = [s for s in scenarios if s.fidelity == "spectral"]
    total = len(seeds) * len(scenarios)
    with tqdm(total=total, disable=not progress, desc=chosen.label, unit="run") as bar:
        batch = iter(run_spectral(spectral, chosen, seeds, bar.update))
        return [
            build_dataset(s, chosen.label, seeds, energies(s, seeds, next(batch)))
            if s.fidelity == "spectral"
            else _ENGINES[s.fidelity](s, chosen, seeds, bar.update)
            for s in scenarios
        ]


def check_suits(scenario: Scenario, rule: AggregationRule) -> None:
    """Refuse scenarios and comparisons that the rules do not support."""
    if scenario.fidelity == "spectral" and not rule.has_spectral_form:
        reason = f"matrix or training: {rule.label} is more than weights on amplitudes"
        raise expected("fidelity", "spectral", reason)
    if rule.needs_svd_allocation and scenario.allocation != "svd":
        raise expected("allocation", scenario.allocation, f"svd for rule={rule.label!r}")
    levels = scenario.federation.levels
    if rule.properties.equal_ranks_only and len(levels) > 1:
        raise expected("ranks", list(levels), f"equal ranks: {rule.label} takes no others")
    compares = scenario.fidelity == "training" and scenario.counterfactuals
    if compares and scenario.empty_partition == "error" and not rule.has_empty_partition_policy:
        wanted = f"carry or zero: {rule.label} goes on where the rules it is compared with end"
        raise expected("empty_partition", "error", wanted)


def _check_scenario(argument: str, value: object) -> Scenario:
    if not isinstance(value, Scenario):
        raise expected(argument, value, "a Scenario")
    return value


def check_size(scenario: Scenario, runs: int, arrays: int = 1) -> None:
    """Refuse scenarios that do not fit in memory, before anything is allocated.

    Args:
        scenario: the scenario to simulate.
        runs: number of seeds.
        arrays: values per run, round and direction.

    Raises:
        InputError: if a run, or the energies of all runs, have more than `MOST_NUMBERS` numbers.
    """
    clients, r_max = scenario.federation.num_clients, scenario.federation.r_max
    rounds, d_in, d_out = scenario.rounds, scenario.d_in, scenario.d_out
    one = {
        "spectral": rounds * max(clients, scenario.federation.max_cohort * r_max),
        "matrix": clients * r_max * max(d_in + d_out, 2 * rounds) + d_in * d_out,
        "training": rounds * clients,
    }[scenario.fidelity]
    if one > MOST_NUMBERS:
        given = f"{rounds:,} rounds, {clients:,} clients, rank {r_max:,}"
        sizes = f", {d_in:,} x {d_out:,}" if scenario.fidelity == "matrix" else ""
        wanted = f"runs of at most {MOST_NUMBERS:,} numbers each, not {one:,}"
        raise expected("scenario", given + sizes, wanted)
    total = runs * (rounds + 1) * r_max * arrays
    if total > MOST_NUMBERS:
        given = f"{runs:,} seeds x {rounds + 1:,} rounds x {r_max:,} directions"
        given += f" x {arrays} values" if arrays > 1 else ""
        raise expected("seed", given, f"at most {MOST_NUMBERS:,} energies in one call")


def check_seeds(seed: int | Iterable[int]) -> tuple[int, ...]:
    """Return the seeds as a tuple of distinct non-negative integers."""
    several = isinstance(seed, Iterable) and not isinstance(seed, str)
    wanted = "one or more distinct seeds"
    given = check_sequence("seed", seed, wanted, ordered=False) if several else [seed]
    seeds = tuple(check_seed("seed", s) for s in given)
    if not seeds or len(set(seeds)) != len(seeds):
        raise expected("seed", list(seeds), wanted)
    return seeds


def energies(
    scenario: Scenario, seeds: Sequence[int], amplitudes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Square amplitudes (S, T + 1, r_max) in place, and return them.

    Raises:
        InputError: if an energy overflows float64; names the first such round.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(amplitudes, out=amplitudes)
        all_are_finite = np.isfinite(squares.sum())
    if not all_are_finite and len(lost := np.argwhere(~np.isfinite(squares))):
        run, t, direction = lost[np.argmin(lost[:, 1])].tolist()
        where = f"in round {t} of seed {seeds[run]}, direction {direction + 1}"
        wanted = f"energies below 1.8e308; one is above {where}: fewer rounds, or smaller gains"
        raise expected("rounds", scenario.rounds, wanted)
    return squares


def _spectral(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: tuple[int, ...],
    on_progress: Progress,
    *,
    ledger: bool = False,
) -> xr.Dataset:
    account: Mapping[str, NDArray[np.float64]] = {}
    if ledger:
        amplitudes, account = run_spectral_account(scenario, rule, seeds, on_progress)
    else:
        (amplitudes,) = run_spectral([scenario], rule, seeds, on_progress)
    energy = energies(scenario, seeds, amplitudes)
    extra = {name: (DIMS, values) for name, values in account.items()}
    return build_dataset(scenario, rule.label, seeds, energy, extra)


def _matrix(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: tuple[int, ...],
    on_progress: Progress,
    *,
    ledger: bool = False,
) -> xr.Dataset:
    result = run_matrix(scenario, rule, seeds, on_progress, account=ledger)
    extra = {"projected_energy": (DIMS, energies(scenario, seeds, result.projected))}
    extra |= {name: (DIMS, values) for name, values in result.account.items()}
    energy = energies(scenario, seeds, result.singular_values)
    return build_dataset(scenario, rule.label, seeds, energy, extra)


def _training(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: tuple[int, ...],
    on_progress: Progress,
    **options: Any,
) -> xr.Dataset:
    results = run_training(scenario, rule, seeds, on_progress, **options)
    return training_dataset(scenario, rule, seeds, results)


def training_dataset(
    scenario: Scenario,
    rule: AggregationRule,
    seeds: Sequence[int],
    results: Sequence[TrainingResult],
) -> xr.Dataset:
    """Return the labeled dataset of fine-tuning runs, one per seed, as `simulate` returns it."""
    variables, coords = labeled(results)
    energy = variables["layer_energy"][1].sum(2)
    return build_dataset(scenario, rule.label, seeds, energy, variables, coords)


_ENGINES: dict[str, Callable[..., xr.Dataset]] = {
    "spectral": _spectral,
    "matrix": _matrix,
    "training": _training,
}
