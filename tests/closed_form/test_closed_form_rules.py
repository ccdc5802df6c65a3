"""Names and multipliers of rules; each function covers each rule or gives the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closed_form_cases import RANKS, SAMPLES

from analysis import closed_form
from fedlora_sim import Scenario
from fedlora_sim.rules import get_rule
from fedlora_sim.tolerances import relative

SHARES = np.linspace(0, 1, 9)


@pytest.mark.parametrize("rule", [*closed_form.RULES, "flexlora", "fedit", " FedAvg "])
def test_multipliers_are_those_of_the_simulator(rule):
    wanted = get_rule(rule).multiplier(torch.from_numpy(SHARES)).numpy()
    np.testing.assert_allclose(closed_form.multiplier(rule, SHARES), wanted, rtol=0)


def test_a_share_may_pass_its_bounds_by_rounding_and_no_further():
    eps = np.finfo(np.float64).eps
    for function in (closed_form.multiplier, closed_form.base_share):
        for rule in closed_form.RULES:
            found = function(rule, [1 + eps, -eps])
            np.testing.assert_array_equal(found, function(rule, [1.0, 0.0]))
        for wrong in (1 + 1e-9, -1e-9):
            with pytest.raises(ValueError, match="coverage="):
                function("fedavg", wrong)


def test_base_corrections():
    for rule in closed_form.RULES:
        share = closed_form.base_share(rule, SHARES)
        wanted = {"flora": SHARES, "fedex": SHARES - SHARES**2}.get(rule, 0 * SHARES)
        np.testing.assert_allclose(share, wanted, atol=relative("reduction"))


def test_names():
    assert closed_form.check_rule("FlexLoRA") == "fedavg"
    assert closed_form.check_rule("fedit") == "zero_pad"
    with pytest.raises(ValueError, match=r"rule='raflorra'.*did you mean 'raflora'"):
        closed_form.check_rule("raflorra")
    for bad in (1.1, -0.1, np.nan, "all"):
        for function in (closed_form.multiplier, closed_form.base_share):
            with pytest.raises(ValueError, match=r"coverage=.*: expected numbers in \[0, 1\]"):
                function("fedavg", bad)


TRAINING = {"local_loss": "quadratic", "local_time": 0.3}
FUNCTIONS = {
    "energy_rate": {"gain_mean": 0.9},
    "energy_floor": {"gain_mean": 0.9, "drift_mean": 0.1},
    "energy_trajectory": {"rounds": 5},
    "mean_trajectory": {"rounds": 5},
    "critical_gain_std": {"gain_mean": 0.9},
    "survival": {"rounds": 5},
    "typical_rate": {"gain_mean": 0.9},
    "log_energy_std": {"rounds": 5},
    "flow_trajectory": TRAINING | {"rounds": 5, "initial_amplitude": 0.5},
    "flow_floor": TRAINING,
    "flow_rate": TRAINING,
    "collapse_threshold": TRAINING,
    "noise_gain": {},
    "noise_to_signal": {"drift_std": 0.1},
}
REFUSED = {
    "fedex": "critical_gain_std flow_floor flow_rate flow_trajectory noise_gain noise_to_signal",
    "flora": "flow_rate flow_trajectory",
    "hetlora": "critical_gain_std noise_gain noise_to_signal",
    "rbla": "critical_gain_std noise_gain noise_to_signal",
    "zero_pad": "critical_gain_std noise_gain noise_to_signal",
}
DRAWN = {
    "fedex": "log_energy_std typical_rate",
    "hetlora": "energy_floor energy_trajectory flow_floor flow_trajectory mean_trajectory",
}
SETTINGS = [
    {},
    {"num_samples": SAMPLES, "cohort_size": 2},
    {"cohort_size": 2, "allocation": "random", "sampling": "bernoulli"},
    {"cohort_size": 1, "empty_partition": "carry"},
]


def call(name, rule, **asked):
    """Ask a closed form of a scenario that it covers, with some fields changed."""
    return getattr(closed_form, name)(Scenario(RANKS, **FUNCTIONS[name] | asked), rule)


@pytest.mark.parametrize("rule", closed_form.RULES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_rule_has_an_answer_or_a_reason(rule, name):
    for asked in SETTINGS:
        refused = REFUSED.get(rule, "").split()
        refused = refused + (DRAWN.get(rule, "").split() if asked else [])
        # norms of updates of random directions differ by rank permanently
        unlike = rule == "hetlora" and asked.get("allocation") == "random"
        if name in refused or unlike:
            with pytest.raises(ValueError, match=r"no closed form|expected a rule whose clients"):
                call(name, rule, **asked)
            continue
        values = call(name, rule, **asked)
        assert values.dtype == np.float64
        assert values.shape[-1] == 2
        assert not np.isnan(values).any()
        assert (values >= 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_knows_the_federation(name):
    for asked, message in (
        ({"cohort_size": 4}, "cohort_size=4: expected at most the federation's 3 clients"),
        ({"num_samples": [1, 2]}, r"num_samples=.*: expected 3 values"),
        ({"sampling": "all"}, "sampling='all': expected one of"),
        ({"allocation": "importance"}, "allocation='importance': expected 'svd' or 'random'"),
        ({"allocation": "radnom"}, "did you mean 'random'"),
        ({"empty_partition": "keep"}, "empty_partition='keep': expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            call(name, "fedavg", **asked)
    with pytest.raises(ValueError, match="did you mean 'fedavg'"):
        call(name, "fedvag")
    if name not in ("critical_gain_std", "noise_gain", "noise_to_signal"):
        with pytest.raises(ValueError, match="empty_partition='error'"):
            call(name, "rbla", cohort_size=1, empty_partition="error")
