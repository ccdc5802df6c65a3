"""What the paper claims of real fine-tuning, each with a verdict on the study's own runs.

Predictions were fixed on pilot runs of other seeds. All intervals of a study hold together: every
claim gets an equal part of the family's error, and no more where others are left out. An interval's
samples are the replicates of the study, means over its heterogeneities (`replicate_means`), of a
claim and of its negative control alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.real.comparison import replicate_means
from analysis.real.study import HIGHEST, MIXED, Study
from analysis.real.updates import energy_floor
from analysis.stats.intervals import mean_interval
from analysis.stats.verdicts import Prediction, Verdict, claim_error, judge
from fedlora_sim import parse_ranks

COLLAPSED = 0.1
"""Energy above the lowest rank, as a share of what equal ranks have there: less is collapse."""
KEPT = 0.5
"""Likewise: at least this much is none."""

Samples = Callable[[Study, pd.DataFrame], pd.Series]


@dataclass(frozen=True)
class PaperClaim:
    """One claim.

    Args:
        id: short name.
        statement: what is claimed.
        quantity: what is measured, once per run.
        prediction: made before the study was run.
        samples: the quantity, indexed by (heterogeneity, seed).
        control: what is put in the claim's place, in words; the same check must refute it.
        control_samples: the quantity then.
    """

    id: str
    statement: str
    quantity: str
    prediction: Prediction
    samples: Samples
    control: str
    control_samples: Samples


def judge_claims(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """A verdict on every claim whose runs are there; without a refuted control none is supported.

    Args:
        study: what was compared.
        table: as `comparison.finals` returns it.

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
    """The other claims, and why nothing is said of them."""
    return [
        {"id": claim.id, "statement": claim.statement, "reason": reason}
        for claim in PAPER_CLAIMS
        if (reason := _why_left_out(study, table, claim))
    ]


def _why_left_out(study: Study, table: pd.DataFrame, claim: PaperClaim) -> str:
    """What a part of a study is too small for."""
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
        verdict = Verdict.UNDECIDED  # a check that refutes nothing has tested nothing
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
    """A column of the runs of a rule, by heterogeneity and seed."""
    own = table[(table["rule"] == rule) & (table["configuration"] == configuration)]
    return own.set_index(["heterogeneity", "seed"])[name]


def _less(first: pd.Series, second: pd.Series) -> pd.Series:
    """Return the differences of all pairs; none where one of the two was not run."""
    pairs = pd.concat([first, second], axis=1, join="inner").sort_index()
    return pairs.iloc[:, 0] - pairs.iloc[:, 1]


def _log_tail(table: pd.DataFrame, rule: str, configuration: str = MIXED) -> pd.Series:
    """log10 of the share of energy above the lowest rank; what is rounding counts as that."""
    tail = 1 - _column(table, "rho", rule, configuration)
    return np.log10(tail.clip(lower=energy_floor("float32")))


def _tail_share(rule: str) -> Samples:
    """log10 of the energy above the lowest rank, over that of equal highest ranks."""

    def samples(study: Study, table: pd.DataFrame) -> pd.Series:
        return _less(_log_tail(table, rule), _log_tail(table, "fedavg", HIGHEST))

    return samples


def _accuracy_gain(study: Study, table: pd.DataFrame) -> pd.Series:
    return _less(_column(table, "accuracy", "raflora"), _column(table, "accuracy", "fedavg"))


def _untrained_gain(study: Study, table: pd.DataFrame) -> pd.Series:
    return _less(_column(table, "untrained", "fedavg"), _column(table, "accuracy", "fedavg"))


def _extremes(study: Study) -> tuple[str, str] | None:
    """Rank configurations with the most and the fewest clients of the highest rank."""
    ranks = {MIXED: study.scenario.ranks}
    ranks |= {name: parse_ranks(own) for name, own in study.rank_configurations.items()}
    top = study.scenario.federation.levels[-1]
    high = {name: own.count(top) for name, own in ranks.items()}
    most, fewest = max(high, key=high.__getitem__), min(high, key=high.__getitem__)
    return None if high[most] == high[fewest] else (most, fewest)


def _fall(study: Study, table: pd.DataFrame, rule: str, left: str = "accuracy") -> pd.Series:
    """Accuracy with the most clients of the highest rank, less what is left with the fewest.

    A difference of means: what a rule's runs scatter by themselves does not add to it, as it
    would to a range.
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
