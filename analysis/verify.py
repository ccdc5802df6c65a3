"""Run a claim with its negative control, and describe what it was run with."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from analysis.claim import Claim, Context
from analysis.inference.estimators import Measurement
from analysis.inference.verdict import ERROR, Prediction, Verdict, judge, measure_until_decided
from fedlora_sim.datasets import versions

Record = dict[str, Any]
LIBRARIES = ("numpy", "scipy", "sympy", "xarray", "scikit-learn")


def run_claim(claim: Claim, context: Context) -> Record:
    """Predict, simulate, judge; then put the negative control through the same check.

    A claim whose control is not refuted has not been tested, and stays undecided.

    Args:
        claim: what is claimed.
        context: seed, effort and device.

    Returns:
        The claim's entry of the report.
    """
    started = time.perf_counter()
    first, cap = claim.quick if context.quick else (claim.first, claim.cap)
    prediction = claim.predict()
    measurement, verdict, _ = measure_until_decided(
        lambda numbers: claim.experiment(numbers, context), claim.estimator, prediction, first, cap
    )
    control = _run_control(claim, context, measurement, prediction, first, cap)
    reason = ""
    if control["verdict"] != Verdict.REFUTED and verdict == Verdict.SUPPORTED:
        verdict, reason = Verdict.UNDECIDED, "the check did not refute its negative control"
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "kind": claim.kind,
        "assumptions": claim.assumptions,
        "fidelity": claim.fidelity,
        "quantities": list(claim.quantities),
        "prediction": prediction.value.tolist(),
        "margin": prediction.margin,
        "measurement": measurement.value.tolist(),
        "interval": _pairs(measurement),
        "confidence": 1 - ERROR,
        "runs": measurement.samples,
        "verdict": str(verdict),
        "reason": reason,
        "negative_control": control,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _run_control(
    claim: Claim,
    context: Context,
    measurement: Measurement,
    prediction: Prediction,
    first: int,
    cap: int,
) -> Record:
    control = claim.control
    wrong = prediction if control.predict is None else control.predict()
    if control.experiment is None:
        verdict = judge(measurement, wrong)
    else:
        experiment = control.experiment
        measurement, verdict, _ = measure_until_decided(
            lambda numbers: experiment(numbers, context), claim.estimator, wrong, first, cap
        )
    return {
        "description": control.description,
        "verdict": str(verdict),
        "prediction": wrong.value.tolist(),
        "measurement": measurement.value.tolist(),
        "interval": _pairs(measurement),
        "runs": measurement.samples,
    }


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


def environment(context: Context) -> Record:
    """What the results were made with."""
    return {
        **versions(),
        **{f"{name}_version": version(name) for name in LIBRARIES},
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "seed": context.seed,
        "quick": context.quick,
        "device": context.device,
    }


def holds(report: Record) -> bool:
    """Whether every theorem of a report is supported."""
    return all(
        c["verdict"] == Verdict.SUPPORTED for c in report["claims"] if c["kind"] == "theorem"
    )
