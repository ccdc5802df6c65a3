"""`predict` and `simulate` agree on a scenario and a rule, and no field is ignored silently.

Scenarios are drawn from seeds. Without randomness a prediction equals every run up to rounding;
otherwise the mean over runs is within `SIGMAS` standard errors of it.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.closed_form.scope import COMMON, SCOPES, unused_fields
from analysis.closed_form.setting import RULES, is_full
from analysis.predict import VARIABLES, predict, reasons
from fedlora_sim import Scenario, simulate
from fedlora_sim.federation import ALLOCATIONS, EMPTY_PARTITION, HETEROGENEITY, SAMPLINGS
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import LOCAL_LOSSES, SCHEDULES
from fedlora_sim.tolerances import relative

RUNS, SIGMAS, FEW = 1_000, 6.0, 30
EXACT = relative("factorization")


def scenario_of(number: int) -> Scenario:
    """Draw a scenario; the first seeds cover cohort laws, allocations and policies."""
    rng = stream(number, "agreement")
    K = int(rng.integers(3, 7))
    sampling = SAMPLINGS[number % len(SAMPLINGS)]
    spread = bool(rng.random() < 0.5)
    scenario = Scenario(
        tuple(int(r) for r in rng.choice([1, 2, 4], size=K)),
        rounds=int(rng.integers(2, 5)),
        num_samples=tuple(rng.integers(1, 5, size=K).tolist()) if rng.random() < 0.5 else None,
        cohort_size=None if sampling == "full" else int(rng.integers(1, K + 1)),
        sampling=sampling,
        allocation=ALLOCATIONS[number // 2 % 2],
        empty_partition=EMPTY_PARTITION[number // 3 % 2],
        initial_amplitude=float(rng.uniform(0.5, 2.0)),
        spectrum_decay=float(rng.uniform(0.6, 1.0)),
        gain_mean=float(rng.choice([1.0, rng.uniform(0.7, 1.1)])),
        gain_std=0.2 * spread,
        drift_mean=float(rng.choice([0.0, rng.uniform(-0.1, 0.2)])),
        drift_std=0.1 * spread,
        heterogeneity=HETEROGENEITY[number // 5 % 2],
        target_amplitude=float(rng.uniform(0.5, 1.5)),
        target_decay=float(rng.uniform(0.6, 1.0)),
        local_time=float(rng.uniform(0.1, 1.5)),
    )
    if number % 4 == 1:
        levels = len(scenario.federation.levels)
        scenario = scenario.replace(
            local_loss="drift",
            drift_mean=0.0,
            drift_levels=tuple(rng.uniform(-0.05, 0.3, size=levels).tolist()),
            learning_rate_schedule=SCHEDULES[number // 4 % 3],
        )
    if number % 4 == 3:
        none = {"gain_mean": 1.0, "gain_std": 0.0, "drift_mean": 0.0, "drift_std": 0.0}
        scenario = scenario.replace(local_loss="quadratic", **none)
    return scenario


def is_random(scenario: Scenario) -> bool:
    """Return whether runs of a scenario differ."""
    return not is_full(scenario) or bool(scenario.gain_std or scenario.drift_std)


def assert_agree(scenario: Scenario, rule: str, of: Scenario | None = None) -> list[str]:
    """Compare the predicted energies of a scenario with runs of it, or of another one."""
    theory, simulated = predict(scenario, rule), scenario if of is None else of
    names = [name for name in ("energy", "projected_energy") if name in theory]
    why = reasons(theory)
    held = [name for name in names if name not in why]
    if not held:
        return held
    drawn = is_random(simulated)
    run = simulate(simulated, rule=rule, seed=range(RUNS if drawn else 1))
    for name in held:
        mean = run[name].mean("seed").values
        wanted = theory[name].values
        error = run[name].std("seed", ddof=1).values / np.sqrt(RUNS) if drawn else 0.0
        apart = (run[name].values - mean) ** 2
        # events that occur in few or no runs make the mean meaningless
        told = np.ones_like(mean, dtype=bool)
        if drawn:
            some = apart.sum(0) > EXACT * wanted**2
            told = some & (apart.sum(0) ** 2 >= FEW * (apart**2).sum(0))
        off = np.abs(mean - wanted) > SIGMAS * error + EXACT * np.abs(wanted).max()
        assert not (off & told).any(), (scenario, rule, name)
    return held


@pytest.mark.parametrize("number", range(examples(20)))
def test_predicted_energies_are_those_of_the_runs(number: int) -> None:
    scenario = scenario_of(number)
    rules = stream(number, "rules").choice(RULES, size=3, replace=False)
    for rule in rules:
        assert_agree(scenario, str(rule))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_agrees_where_nothing_is_drawn(rule: str) -> None:
    ranks = "1x2,2x2,4x1"
    law = {"local_loss": "drift", "drift_levels": (0.3, 0.2, 0.1), "gain_mean": 0.9}
    for given in (
        {"gain_mean": 0.9},
        {"drift_mean": 0.1},
        {"local_loss": "quadratic"},
        law,
        law | {"learning_rate_schedule": "cosine"},
    ):
        scenario = Scenario(ranks, rounds=6, num_samples=(2, 1, 3, 1, 2), **given)
        refused = rule in ("flora", "fedex") and given.get("local_loss") == "quadratic"
        assert assert_agree(scenario, rule) == ([] if refused else ["energy"])
    sigma = Scenario(ranks, fidelity="matrix", rounds=4, gain_mean=0.9, d_in=9, d_out=7)
    if rule == "flora":  # directions sent more often shrink more, so their order changes
        assert "change places" in reasons(predict(sigma, rule))["energy"]
        sigma = sigma.replace(gain_mean=1.0)
    assert assert_agree(sigma, rule) == ["energy", "projected_energy"]


@pytest.mark.parametrize(
    "wrong",
    [{"gain_mean": 0.95}, {"drift_mean": 0.05}, {"cohort_size": 1}, {"initial_amplitude": 1.05}],
    ids=str,
)
def test_runs_of_another_scenario_are_refused(wrong: dict) -> None:
    for spread in ({}, {"gain_std": 0.1, "drift_std": 0.1}):
        scenario = Scenario((1, 2, 2), rounds=3, cohort_size=3, **spread)
        assert assert_agree(scenario, "fedavg")
        with pytest.raises(AssertionError):
            assert_agree(scenario, "fedavg", of=scenario.replace(**wrong))


@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
def test_drifts_that_are_larger_by_a_twentieth_are_refused(rule: str) -> None:
    law = {"local_loss": "drift", "learning_rate_schedule": "linear", "drift_std": 0.1}
    scenario = Scenario((1, 2, 2), rounds=4, cohort_size=3, drift_levels=(0.3, 0.2), **law)
    assert assert_agree(scenario, rule) == ["energy"]
    with pytest.raises(AssertionError):
        assert_agree(scenario, rule, of=scenario.replace(drift_levels=(0.315, 0.21)))


@pytest.mark.slow
def test_directions_that_may_change_places_are_not_predicted() -> None:
    ordered = Scenario("1x2,2x2,4x2", fidelity="matrix", cohort_size=3, rounds=3, d_in=9, d_out=7)
    assert assert_agree(ordered, "fedavg") == ["energy", "projected_energy"]
    for change, rule in (
        ({"gain_std": 0.2}, "fedavg"),
        ({"gain_mean": 0.8}, "raflora"),
        ({"gain_mean": 0.8}, "flora"),
    ):
        why = reasons(predict(ordered.replace(**change), rule))
        for name in ("energy", "projected_energy", "rho", "mean_amplitude", "energy_rate"):
            assert "change places" in why[name]
    # newly drawn directions do not depend on their place
    drawn = ordered.replace(allocation="random")
    assert assert_agree(drawn, "fedavg") == ["projected_energy"]
    # all runs are equal there, so the order is known
    assert assert_agree(ordered.replace(cohort_size=None, drift_mean=0.1), "fedavg")
    equal = ordered.replace(spectrum_decay=1.0)
    assert reasons(predict(equal, "fedavg"))["projected_energy"].startswith("spectrum_decay=1.0")


# No field is ignored silently

BASES = {
    "affine": Scenario(
        "1x2,2x2,4x2", cohort_size=3, rounds=3, gain_mean=0.9, gain_std=0.1, drift_std=0.1
    ),
    "still": Scenario("1x2,2x2,4x2", cohort_size=3, rounds=3),
    "matrix": Scenario("1x2,2x2,4x2", fidelity="matrix", rounds=3, cohort_size=3, d_in=9, d_out=7),
    "flow": Scenario("1x2,2x2,4x2", local_loss="quadratic", rounds=3),
    "drift": Scenario("1x2,2x2,4x2", rounds=3, local_loss="drift", drift_levels=(0.3, 0.2, 0.1)),
}
CHANGES: dict[str, object] = {
    "ranks": "1x3,2x2,4x1",
    "rounds": 4,
    "num_samples": (1, 2, 3, 4, 5, 6),
    "cohort_size": 4,
    "sampling": "bernoulli",
    "empty_partition": "zero",
    "allocation": "random",
    "dtype": "float32",
    "device": "cpu",
    "initial_amplitude": 2.0,
    "spectrum_decay": 0.5,
    "gain_mean": 0.8,
    "gain_std": 0.2,
    "drift_mean": 0.1,
    "drift_std": 0.2,
    "heterogeneity": "persistent",
    "local_loss": "quadratic",
    "drift_levels": (0.1, 0.2, 0.3),
    "learning_rate_schedule": "linear",
    "local_time": 0.9,
    "target_amplitude": 2.0,
    "target_decay": 0.7,
    "target_std": 0.2,
    "target_angle": 0.2,
    "d_in": 11,
    "d_out": 11,
    "subspace_noise": 0.1,
    "basis_drift": 0.1,
    "optimizer": "adam",
    "local_steps": 7,
    "task_seed": 3,
    "max_length": 9,
    "dirichlet_alpha": 2.0,
    "learning_rate": 0.5,
    "batch_size": 3,
    "lora_alpha": 2.0,
    "pruning_decay": 0.5,
    "threads": 2,
    "nonfinite": "drop-client",
    "evaluate_every": 2,
}


def content(scenario: Scenario) -> dict[str, list]:
    """Return numbers, coordinates and reasons of a prediction under rules of every kind."""
    found: dict[str, list] = {}
    for rule in ("fedavg", "raflora"):
        theory = predict(scenario, rule)
        for name, values in {**theory.data_vars, **theory.coords}.items():
            found[f"{rule}: {name}"] = [values.values.tolist(), values.attrs.get("reason")]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_a_changed_field_changes_the_prediction_or_does_not_act_in_the_scenario(base: str) -> None:
    scenario = BASES[base]
    unchanged, unused = content(scenario), unused_fields(scenario)
    assert all(unused.values())
    for name, value in CHANGES.items():
        if getattr(scenario, name) == value:
            continue
        try:
            other = scenario.replace(**{name: value})
        except ValueError:
            continue  # invalid scenario, refused before the prediction
        acts = name not in unused or name not in unused_fields(other)
        assert (str(content(other)) != str(unchanged)) == acts, name


def test_every_field_has_a_change_or_is_one_of_training() -> None:
    of_training = unused_fields(BASES["still"])
    names = {field.name for field in fields(Scenario)}
    assert names - set(CHANGES) - {"fidelity"} <= set(of_training)
    assert set(COMMON) <= names


def test_plain_steps_are_refused_as_such() -> None:
    fields = {"fidelity": "matrix", "local_loss": "quadratic", "rounds": 3}
    why = reasons(predict(Scenario("1x2,2x2", **fields), "fedavg"))
    told = {"extinction_probability", "survival"}
    assert {name for name in VARIABLES if name not in why} == told
    assert why["energy"].startswith("fidelity='matrix'")


def test_fine_tuning_has_no_closed_form() -> None:
    scenario = Scenario("1x2,2x2", fidelity="training", rounds=2)
    why = reasons(predict(scenario, "fedavg"))
    assert set(why) == set(predict(scenario, "fedavg").data_vars)
    assert all(reason.startswith("fidelity='training'") for reason in why.values())


@pytest.mark.parametrize("name", SCOPES)
def test_every_form_refuses_what_it_does_not_cover_by_name(name: str) -> None:
    scope = SCOPES[name]
    form = getattr(closed_form, name)
    base = Scenario("1x2,2x2", rounds=2, local_loss=scope.losses[0])
    trains = scope.losses == ("quadratic",)
    rule = () if name in ("coverage", "extinction_probability", "collapse_bound") else ("fedavg",)
    form(base, *rule)
    for loss in set(LOCAL_LOSSES) - set(scope.losses):
        with pytest.raises(ValueError, match=r"^local_loss="):
            form(base.replace(local_loss=loss), *rule)
    law = {"local_loss": "drift"}
    wrong = {
        "gain_std": {"gain_std": 0.1},
        "drift_mean": {"drift_mean": 0.1},
        "drift_std": {"drift_std": 0.1},
        "drift_levels": {"drift_levels": (0.2, 0.1)} | law,
        "learning_rate_schedule": {"learning_rate_schedule": "linear"} | law,
        "target_std": {"target_std": 0.1, "local_loss": "quadratic"},
    }
    for field, changes in wrong.items():
        if trains and field != "target_std":
            continue  # a scenario has no such clients
        if field in scope.covers:
            continue
        blamed = "target_std|local_loss" if field == "target_std" else field
        with pytest.raises(ValueError, match=f"^({blamed})="):
            form(base.replace(**changes), *rule)
    for field in ("subspace_noise", "basis_drift"):
        scenario = base.replace(fidelity="matrix", **{field: 0.1})
        if field in scope.covers:
            form(scenario, *rule)
            continue
        with pytest.raises(ValueError, match=f"^({field}|fidelity)="):
            form(scenario, *rule)
