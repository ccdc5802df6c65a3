"""A study's report in the form of a verification's, so that one page shows both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_report(study: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a study, each on its one quantity.

    Args:
        study: as in `study.json`.

    Returns:
        A report without families of claims, whose intervals hold together as the study says.
    """
    name = study["study"]["name"]
    return {
        "title": f"Study: {name}",
        "about": study["study"]["about"],
        "claims": [_claim(claim, name) for claim in study["claims"]],
        "left_out": study["left_out"],
        "command": study["command"],
        "environment": study["environment"],
    }


def _claim(claim: Mapping[str, Any], study: str) -> dict[str, Any]:
    return {
        "id": claim["id"],
        "theme": study,
        "statement": claim["statement"],
        "source": "see the study's report",
        "kind": "claim",
        "assumptions": "those of the study",
        "fidelity": "training",
        "statistic": f"{claim['quantity']}; mean of {claim['replicates']} replicates of the study",
        "quantities": [claim["quantity"]],
        "prediction": [claim["prediction"]],
        "margin": claim["margin"],
        "measurement": [claim["measurement"]],
        "interval": [claim["interval"]],
        "confidence": claim["confidence"],
        "runs": claim["runs"],
        "verdict": claim["verdict"],
        "reason": "",
        "negative_control": {
            "description": claim["negative_control"]["description"],
            "verdict": claim["negative_control"]["verdict"],
        },
    }
