"""All checks, in the order in which they are run and reported."""

from __future__ import annotations

from fedlora_sim.conformance.checks import (
    clients,
    directions,
    exactness,
    form,
    numerics,
    partitions,
    symmetry,
)
from fedlora_sim.conformance.law import Check

CHECKS: tuple[Check, ...] = (
    *form.CHECKS,
    *numerics.CHECKS,
    *clients.CHECKS,
    *symmetry.CHECKS,
    *exactness.CHECKS,
    *partitions.CHECKS,
    *directions.CHECKS,
)
