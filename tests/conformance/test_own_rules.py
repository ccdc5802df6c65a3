"""Every rule of the package, with its options, keeps exactly the laws that it declares."""

from __future__ import annotations

import pytest
from conformance_cases import by_status, has_accelerator, outcomes, reasons, search_seed
from hypothesis_profiles import examples, is_random
from simulator_cases import ALL_RULES

from fedlora_sim.conformance import CHECKS
from fedlora_sim.rules import get_rule

pytestmark = [pytest.mark.hypothesis, pytest.mark.slow]  # a separate search
EXAMPLES = examples(24) if is_random() else 4


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_rule_keeps_what_it_declares(name):
    rule, seed = get_rule(name), search_seed()
    results = outcomes(rule, EXAMPLES, seed=seed)
    assert reasons(results, "failed") == {}, f"seed {seed}"
    silent = {check.name for check in CHECKS if check.declared(rule.properties) is None}
    lacking = set() if has_accelerator() else {"device"}
    assert by_status(results, "skipped") == silent | lacking
    absent = {check.name for check in CHECKS if check.declared(rule.properties) is False}
    assert by_status(results, "expected") == absent
    for name in by_status(results, "passed"):
        assert results[name].examples > EXAMPLES // 10, f"{name} speaks of few cases"
