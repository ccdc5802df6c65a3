"""All checks, in the order in which they are run and reported."""

from __future__ import annotations

from fedlora_sim.conformance.checks import (
    clients,
    directions,
    exactness,
    form,
    numerics,
    partitions,
    rounds,
    symmetry,
)
from fedlora_sim.conformance.law import Check

CHECKS: tuple[Check, ...] = (
    *form.CHECKS,
    *rounds.CHECKS,
    *numerics.CHECKS,
    *clients.CHECKS,
    *symmetry.CHECKS,
    *exactness.CHECKS,
    *partitions.CHECKS,
    *directions.CHECKS,
)
