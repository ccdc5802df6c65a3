"""A prediction as plain data, for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.cohorts.law import Array
from analysis.predict import Prediction

# What an infinite value means, by quantity.
INFINITE = {
    "energy_half_life": "infinite: it does not fall",
    "typical_half_life": "infinite: it does not fall",
    "energy_floor": "infinite: the factor per round is 1 or more, nothing holds the energy",
    "collapse_threshold": "infinite: no local training time prevents the collapse",
}
OVERFLOW = "infinite: beyond the range of numbers"


def to_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain data for JSON; no number in it is infinite or undefined.

    Keys: `case`, the fields of `Case` with ranks and sample counts per client; `partitions`, each
    with `level`, `first` and `last` direction, number of `clients`, `coverage` and
    `empty_probability`; `notes`; and `rules`, each with `rule`, `empty_partition` (or null) and, by
    quantity, `{"values": one number per partition, "reason": null}`; `energy` has one such list per
    round. Where there is no closed form `values` is null and `reason` says why; a single null among
    values stands for infinity, of which `reason` speaks then.
    """
    case, federation = prediction.case, prediction.case.federation
    fields = {name: getattr(case, name) for name in vars(case) if name != "federation"}
    resolved = ("ranks", "num_samples", "cohort_size", "sampling")
    return {
        "case": fields | {name: _plain(getattr(federation, name)) for name in resolved},
        "partitions": [
            {
                "level": level,
                "first": part.start + 1,
                "last": part.stop,
                "clients": sum(rank >= level for rank in federation.ranks),
                "coverage": float(prediction.coverage[h]),
                "empty_probability": float(prediction.empty_probability[h]),
            }
            for h, (level, part) in enumerate(zip(federation.levels, case.partitions, strict=True))
        ],
        "rules": [
            {"rule": found.rule, "empty_partition": found.empty_partition}
            | {name: _quantity(values, name) for name, values in found.values.items()}
            | {name: {"values": None, "reason": why} for name, why in found.reasons.items()}
            for found in prediction.rules
        ],
        "notes": list(prediction.notes),
    }


def _quantity(values: Array, name: str) -> dict[str, Any]:
    finite = np.isfinite(values)
    plain = values.astype(object)
    plain[~finite] = None
    return {
        "values": plain.tolist(),
        "reason": None if finite.all() else INFINITE.get(name, OVERFLOW),
    }


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
