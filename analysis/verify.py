"""Run a claim with its negative control, and describe what it was run with."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from joblib import cpu_count

from analysis.claim import Claim, Context
from analysis.claims import CLAIMS, theme_of
from analysis.inference.family import FAMILY_ERROR, claim_error, holm
from analysis.inference.measurement import Measurement
from analysis.inference.sequential import measure_until_decided, number_of_looks, p_value
from analysis.inference.verdict import QUICK_MARGIN, Prediction, Verdict, judge
from fedlora_sim.datasets import versions

Record = dict[str, Any]
KINDS = ("theorem", "conjecture")
LIBRARIES = ("numpy", "scipy", "sympy", "xarray", "scikit-learn")


def family_size(kind: str) -> int:
    """Claims of this kind in the registry: the family of every claim of the kind."""
    return sum(claim.kind == kind for claim in CLAIMS)


def run_claim(claim: Claim, context: Context, error: float | None = None) -> Record:
    """Predict, simulate, judge; then put the negative control through the same check.

    A claim whose control is not refuted has not been tested, and stays undecided. In quick runs
    margins that are widths are `QUICK_MARGIN` times as wide, the control's too.

    Args:
        claim: what is claimed.
        context: seed, effort and device.
        error: probability that any interval misses; None takes the claim's part of its family's.

    Returns:
        The claim's entry of the report, in which None stands for what is not finite.
    """
    started = time.perf_counter()
    if error is None:
        error = claim_error(max(family_size(claim.kind), 1))
    first, cap = claim.quick if context.quick else (claim.first, claim.cap)
    prediction = _with_margin(claim.predict(), context)
    measurement, verdict, samples = measure_until_decided(
        lambda numbers: claim.experiment(numbers, context),
        claim.estimator,
        prediction,
        first,
        cap,
        error,
    )
    control = _run_control(claim, context, measurement, prediction, error)
    reason = _why_undecided(measurement, claim) if verdict is Verdict.UNDECIDED else ""
    if control["verdict"] != Verdict.REFUTED and verdict == Verdict.SUPPORTED:
        verdict, reason = Verdict.UNDECIDED, "the check did not refute its negative control"
    looks = number_of_looks(first, cap)
    record = {
        "id": claim.id,
        "theme": theme_of(claim),
        "statement": claim.statement,
        "source": claim.source,
        "kind": claim.kind,
        "assumptions": claim.assumptions,
        "fidelity": claim.fidelity,
        "statistic": claim.statistic,
        "quantities": list(claim.quantities),
        "prediction": prediction.value.tolist(),
        "margin": prediction.margin,
        "measurement": measurement.value.tolist(),
        "interval": _pairs(measurement),
        "confidence": 1 - error,
        "p_value": p_value(samples, claim.estimator, prediction, verdict, looks, error),
        "runs": measurement.samples,
        "verdict": str(verdict),
        "reason": reason,
        "negative_control": control,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return dict(finite_or_none(record))


def _why_undecided(measurement: Measurement, claim: Claim) -> str:
    ends = np.array([measurement.value, measurement.low, measurement.high])
    unknown = ~np.isfinite(ends).all(0)
    if not unknown.any():
        return "after the most runs an interval still crosses the end of its margin"
    names = [name for name, none in zip(claim.quantities, unknown, strict=True) if none]
    return f"no finite interval of {', '.join(names)}"


def finite_or_none(value: Any) -> Any:
    """The same with None for every number that is not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _run_control(
    claim: Claim,
    context: Context,
    measurement: Measurement,
    prediction: Prediction,
    error: float,
) -> Record:
    control = claim.control
    wrong = prediction
    if control.predict is not None:
        wrong = _with_margin(control.predict(), context)
    if control.experiment is None:
        verdict = judge(measurement, wrong)
    else:
        experiment = control.experiment
        first, cap = claim.quick if context.quick else (claim.first, claim.cap)
        measurement, verdict, _ = measure_until_decided(
            lambda numbers: experiment(numbers, context), claim.estimator, wrong, first, cap, error
        )
    return {
        "description": control.description,
        "verdict": str(verdict),
        "prediction": wrong.value.tolist(),
        "measurement": measurement.value.tolist(),
        "interval": _pairs(measurement),
        "runs": measurement.samples,
    }


def _with_margin(prediction: Prediction, context: Context) -> Prediction:
    return prediction.widened(QUICK_MARGIN) if context.quick else prediction


def _pairs(measurement: Measurement) -> list[list[float]]:
    return np.stack([measurement.low, measurement.high], axis=-1).tolist()


def claim_record(claim: Claim, context: Context) -> Record:
    """The claim's entry of the report, from the context's store if an earlier run left it there."""
    record = context.store.get_record(claim.id) if context.store else None
    if record is None:
        record = run_claim(claim, context)
        if context.store:
            context.store.put_record(claim.id, record)
    return record


def assemble(records: Sequence[Record], context: Context) -> Record:
    """The report on these claims: their entries, what holds over them together, and with what.

    Args:
        records: entries as `run_claim` makes them; each gets its Holm-adjusted p-value, in which
            claims of its family that were not run count as undecided.
        context: seed, effort and device.

    Returns:
        `claims`, `families` by kind, `quick_margin` (factor on margins) and `environment`.
    """
    families = {}
    for kind in KINDS:
        members = [record for record in records if record["kind"] == kind]
        size = max(family_size(kind), len(members))
        adjusted = holm([record["p_value"] for record in members], size)
        for record, p in zip(members, adjusted, strict=True):
            record["p_holm"] = float(p)
        families[kind] = {"claims": size, "run": len(members), "error": FAMILY_ERROR}
    return {
        "claims": list(records),
        "families": families,
        "quick_margin": QUICK_MARGIN if context.quick else 1.0,
        "environment": environment(context),
    }


def environment(context: Context) -> Record:
    """What the results were made with."""
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
    """Whether every theorem of a report is supported."""
    return all(
        c["verdict"] == Verdict.SUPPORTED for c in report["claims"] if c["kind"] == "theorem"
    )
