"""Verify claims: run each with its controls, decide, and assemble the report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from joblib import cpu_count

from analysis.claims import CLAIMS, digits, ledger, select, theme_of
from analysis.claims.base import Claim, Control, RunContext, run_jobs, workers
from analysis.claims.report import WANTED
from analysis.stats.intervals import Array, Measurement, rarer_than
from analysis.stats.verdicts import (
    FAMILY_ERROR,
    Prediction,
    Verdict,
    claim_error,
    holm,
    judge,
    judge_near_control,
    measure_until_decided,
    number_of_looks,
    p_value,
)
from fedlora_sim import Scenario
from fedlora_sim.errors import check_seed
from fedlora_sim.runtime import in_processes, resolve_device
from fedlora_sim.version import versions

Record = dict[str, Any]
KINDS = ("theorem", "conjecture")
NEEDED_FOR = {
    "negative_control": Verdict.SUPPORTED,
    "near_control": Verdict.SUPPORTED,
    "positive_control": Verdict.REFUTED,
}
"""The verdict that needs each control."""
DECIDES = {
    "negative_control": judge,
    "near_control": judge_near_control,
    "positive_control": judge,
}
"""How each control is judged."""
LIBRARIES = ("numpy", "scipy", "sympy", "xarray", "scikit-learn")
CLAIMS_EACH = 4
"""Fewer claims are judged faster than a process starts."""


def verify(
    claims: str | Sequence[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Record:
    """Verify the theory: predictions against measurements, with negative controls.

    Args:
        claims: id of one claim, or several ids; None verifies all.
        quick: verify fewer claims with fewer runs and shorter training; margins are the same.
        seed: base seed of all runs.
        device: `auto | cpu | cuda | mps`.

    Returns:
        The report that `fedlora-sim verify` writes as report.json: `claims` (a dict each, with
        `id`, `statement`, `prediction`, `measurement`, `interval`, `verdict`, controls), `families`
        by kind, `environment`, `seconds`, and `digits` (final values of the fine-tuning runs) if
        a claim on fine-tuning is among them. Numbers that are not finite are None.

    Raises:
        InputError: if a claim is unknown or not part of quick runs, or an argument is out of range.
    """
    started = time.monotonic()
    chosen = select([claims] if isinstance(claims, str) else claims, quick)
    resolve_device(device, torch.float64, "training")
    context = RunContext(check_seed("seed", seed), quick, device)
    found = {record["id"]: record for record in judge_claims(chosen, context)}
    report = assemble([found[claim.id] for claim in chosen], context)
    return {**report, "seconds": round(time.monotonic() - started)}


def judge_claims(claims: Sequence[Claim], context: RunContext) -> Iterator[Record]:
    """Judge claims in several processes and yield their entries as they are finished.

    Args:
        claims: the claims. Fine-tuning that several claims share is run first.
        context: seed, effort and device. Its store, if any, stores every entry at once.
    """
    at_once = workers(context.device)
    here = [
        claim for claim in claims if claim in (*digits.CLAIMS, *ledger.CLAIMS)
    ]  # has the shared runs
    if here:
        run_jobs(digits.first_look(context), context, at_once)
    others = [claim for claim in claims if claim not in here]
    processes = max(1, min(at_once, len(others) // CLAIMS_EACH))
    yield from claim_records(others, context, processes)
    yield from claim_records(here, context)


def family_size(kind: str) -> int:
    """Return the number of claims of this kind in the registry, the size of the family."""
    return sum(claim.kind == kind for claim in CLAIMS)


def run_claim(claim: Claim, context: RunContext, error: float | None = None) -> Record:
    """Predict, simulate, judge; then apply the same check to the controls.

    A claim is supported only if the check refutes its negative control, and its near control in
    every quantity. A conjecture is refuted only if the check supports its positive control.
    Otherwise the check has not shown that it can distinguish, and the claim stays undecided.

    Args:
        claim: the claim.
        context: seed, effort and device.
        error: probability that any interval misses; None uses the claim's part of its family's.

    Returns:
        The claim's entry of the report, in which None stands for non-finite numbers.
    """
    started = time.perf_counter()
    if error is None:
        error = claim_error(max(family_size(claim.kind), 1))
    first, cap = claim.runs(context.quick)
    prediction = claim.predict()
    # A control without an experiment is judged on the claim's own runs: they must suffice for both.
    same_runs = {
        name: control.predict()
        for name, control in claim.controls.items()
        if control.experiment is None and control.predict is not None
    }

    def is_settled(measurement: Measurement, verdict: Verdict) -> bool:
        return all(
            verdict is not NEEDED_FOR[name]
            or DECIDES[name](measurement, wanted) is not Verdict.UNDECIDED
            for name, wanted in same_runs.items()
        )

    measurement, verdict, samples = measure_until_decided(
        lambda numbers: claim.experiment(numbers, context),
        claim.estimator,
        prediction,
        first,
        cap,
        error,
        is_settled=is_settled,
    )
    found = _Found(measurement, prediction, error)
    controls = {
        name: _run_control(claim, control, context, found, DECIDES[name])
        for name, control in claim.controls.items()
    }
    reason = _why_undecided(measurement, claim) if verdict is Verdict.UNDECIDED else ""
    untested = _why_untested(verdict, controls)
    if untested:
        verdict, reason = Verdict.UNDECIDED, untested
    looks = number_of_looks(first, cap)
    record = {
        "id": claim.id,
        "theme": theme_of(claim),
        "kind": claim.kind,
        "fidelity": claim.fidelity,
        **claim.texts(),
        "prediction": prediction.value.tolist(),
        "margin": prediction.margin,
        "measurement": measurement.value.tolist(),
        "interval": _pairs(measurement),
        "confidence": 1 - error,
        "p_value": None
        if measurement.every_run
        else p_value(samples, claim.estimator, prediction, verdict, looks, error),
        "runs": measurement.samples,
        "verdict": str(verdict),
        "reason": reason,
        **controls,
        "seconds": round(time.perf_counter() - started, 2),
    }
    if measurement.every_run:
        record["every_run"] = _every_run(claim, context, samples, prediction, error)
    return dict(finite_or_none(record))


@dataclass(frozen=True)
class _Found:
    """Result of a claim's own runs, and their error."""

    measurement: Measurement
    prediction: Prediction
    error: float


def _why_untested(verdict: Verdict, controls: Mapping[str, Record]) -> str:
    """Return why the check is not valid for its verdict; empty if it is."""
    for name, control in controls.items():
        if verdict is NEEDED_FOR[name] and control["verdict"] != WANTED[name]:
            where = " in every quantity" if name == "near_control" else ""
            verb = "support" if name == "positive_control" else "refute"
            return f"the check did not {verb} its {name.replace('_', ' ')}{where}"
    return ""


def _every_run(
    claim: Claim, context: RunContext, samples: Array, prediction: Prediction, error: float
) -> Record:
    """Return the number of runs that contradict a statement on every run, and the first of them."""
    outside = ~((samples >= prediction.low) & (samples <= prediction.high)).all(axis=1)
    found: Record = {"counterexamples": int(outside.sum())}
    if not outside.any():
        return {**found, "rarer_than": rarer_than(len(samples), error)}
    run = int(outside.argmax())
    (seed,) = context.seeds([run])
    found["first"] = {"run": run, "seed": seed, "measured": samples[run].tolist()}
    if claim.scenario is not None:
        found["first"]["scenario"] = _to_code(claim.scenario(seed))
    return found


def _why_undecided(measurement: Measurement, claim: Claim) -> str:
    ends = np.array([measurement.value, measurement.low, measurement.high])
    unknown = ~np.isfinite(ends).all(0)
    if not unknown.any():
        return "after the most runs an interval still crosses the end of its margin"
    names = [name for name, none in zip(claim.quantities, unknown, strict=True) if none]
    return f"no finite interval of {', '.join(names)}"


def _to_code(scenario: Scenario) -> str:
    """Return Python code for the scenario: its ranks and all non-default fields."""
    usual = Scenario(scenario.ranks, fidelity=scenario.fidelity)
    values = {f.name: getattr(scenario, f.name) for f in fields(Scenario)}
    changed = [
        f"{name}={value!r}"
        for name, value in values.items()
        if name in ("ranks", "fidelity") or value != getattr(usual, name)
    ]
    return f"Scenario({', '.join(changed)})"


def finite_or_none(value: Any) -> Any:
    """Return the value with None for non-finite numbers, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _run_control(
    claim: Claim,
    control: Control,
    context: RunContext,
    found: _Found,
    decide: Callable[[Measurement, Prediction], Verdict],
) -> Record:
    measurement, prediction = found.measurement, found.prediction
    if control.predict is not None:
        prediction = control.predict()
    if control.experiment is None:
        verdict = decide(measurement, prediction)
    else:
        experiment = control.experiment
        first, cap = claim.runs(context.quick)
        measurement, verdict, _ = measure_until_decided(
            lambda numbers: experiment(numbers, context),
            claim.estimator,
            prediction,
            first,
            cap,
            found.error,
            decide,
        )
    return {
        "description": control.description,
        "verdict": str(verdict),
        "prediction": prediction.value.tolist(),
        "measurement": measurement.value.tolist(),
        "interval": _pairs(measurement),
        "distance": prediction.distance(measurement).tolist(),
        "runs": measurement.samples,
    }


def _pairs(measurement: Measurement) -> list[list[float]]:
    return np.stack([measurement.low, measurement.high], axis=-1).tolist()


def claim_record(claim: Claim, context: RunContext) -> Record:
    """Return the claim's entry of the report, from the context's store if it is there."""
    record = context.store.get_record(claim.id) if context.store else None
    if record is None:
        record = run_claim(claim, context)
        if context.store:
            context.store.put_record(claim.id, record)
    return record


def claim_records(
    claims: Sequence[Claim], context: RunContext, processes: int = 1
) -> Iterator[Record]:
    """Judge claims and yield their entries as soon as they are available.

    Args:
        claims: the claims.
        context: seed, effort and device. Its store, if any, stores every entry at once.
        processes: number of claims judged in parallel, each on one thread of its own process; 1
            judges them here, in order. The entries are the same.
    """
    if processes == 1:
        yield from (claim_record(claim, context) for claim in claims)
        return
    apart = replace(context, on_progress=lambda runs: None)
    for record in in_processes(claim_record, [(claim, apart) for claim in claims], processes):
        context.on_progress(record["runs"])
        yield record


def assemble(records: Sequence[Record], context: RunContext) -> Record:
    """Return the report on these claims: entries, families and environment.

    Args:
        records: entries from `run_claim`; each gets its Holm-adjusted p-value, in which claims of
            its family that were not run count as undecided.
        context: seed, effort and device, and the fine-tuning runs.

    Returns:
        `claims`, `families` by kind, `environment`, and `digits` if any claim is on fine-tuning.
    """
    families = {}
    for kind in KINDS:
        members = [record for record in records if record["kind"] == kind]
        size = max(family_size(kind), len(members))
        # A statement on every run is not inferred from a sample and has no p-value.
        inferred = [record for record in members if record["p_value"] is not None]
        adjusted = iter(holm([record["p_value"] for record in inferred], size))
        for record in members:
            record["p_holm"] = None if record["p_value"] is None else float(next(adjusted))
        families[kind] = {"claims": size, "run": len(members), "error": FAMILY_ERROR}
    report = {"claims": list(records), "families": families, "environment": environment(context)}
    count = digits_runs(records)
    if count:
        report["digits"] = finite_or_none(digits.summarize(context, count))
    return report


def digits_runs(records: Sequence[Record]) -> int:
    """Return the seeds per run of the table on digits; 0 if no claim is on fine-tuning."""
    ids = {claim.id for claim in digits.CLAIMS}
    real = [record for record in records if record["id"] in ids]
    most = max((max(r["runs"], r["negative_control"]["runs"]) for r in real), default=0)
    # a claim on two of the labels may have used more runs
    return min(most, digits.RUNS_EACH)


def environment(context: RunContext) -> Record:
    """Return the versions and settings behind the results."""
    return {
        **versions(),
        **{f"{name}_version": version(name) for name in LIBRARIES},
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cores": cpu_count(),
        "seed": context.seed,
        "quick": context.quick,
        "device": context.device,
    }


def holds(report: Record) -> bool:
    """Return True if every theorem of a report is supported."""
    return all(
        c["verdict"] == Verdict.SUPPORTED for c in report["claims"] if c["kind"] == "theorem"
    )
