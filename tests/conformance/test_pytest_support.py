"""The checks in users' test files: one test per rule and law, and strategies to compose."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import pretty
from hypothesis_profiles import CI

from fedlora_sim.conformance import CHECKS, Case, CheckResult, parametrize_with_checks
from fedlora_sim.conformance.case import EARLIER
from fedlora_sim.conformance.check import drawn
from fedlora_sim.conformance.strategies import MOST_RANK, cases, lie_apart, random_factors, suitable
from fedlora_sim.errors import InputError
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import Aggregated, FedAvg, Properties, RaFLoRA, get_rule
from fedlora_sim.tolerances import relative

pytest_plugins = ["pytester"]

OWN_TESTS = """
from dataclasses import dataclass, replace
from typing import ClassVar

from fedlora_sim.rules import FedAvg
from fedlora_sim.conformance import parametrize_with_checks


@dataclass(frozen=True)
class First(FedAvg):
    name: ClassVar[str] = "first"

    def step(self, updates, weights, context, state):
        return super().step(updates[:1], [1.0], context, state)


@parametrize_with_checks(["fedavg", First()], examples=5)
def test_rule(rule, check):
    check(rule)
"""


def chosen(*names: str) -> str:
    return " or ".join(f"[{name}]" for name in names)


def test_laws_are_separate_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(OWN_TESTS)
    listed = pytester.runpytest_inprocess("--collect-only", "-q")
    lines = listed.outlines
    wanted = [f"{rule}-{check.name}" for rule in ("fedavg", "first") for check in CHECKS]
    found = [line.partition("[")[2].rstrip("]") for line in lines if "::test_rule[" in line]
    assert found == wanted


@pytest.mark.slow
def test_kept_laws_pass_and_undeclared_ones_are_skipped(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(OWN_TESTS)
    laws = ("client_order", "partition_identity", "empty_partition_zero")
    done = pytester.runpytest_inprocess("-rs", "-k", chosen(*(f"fedavg-{law}" for law in laws)))
    done.assert_outcomes(passed=2, skipped=1, deselected=2 * len(CHECKS) - 3)
    done.stdout.fnmatch_lines(["SKIPPED*untested: the rule declares nothing of it"])


@pytest.mark.slow
def test_a_failure_shows_code_to_paste(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(OWN_TESTS)
    done = pytester.runpytest_inprocess("-k", chosen("first-client_order", "first-shapes"))
    done.assert_outcomes(passed=1, failed=1, deselected=2 * len(CHECKS) - 2)
    done.stdout.fnmatch_lines(
        [
            "E *AssertionError: client_order: The order of the clients does not matter.",
            "E *clients in the order * differ by * in norm, * is rounding",
            "E *The smallest case that was found:",
            "E *updates = [[]",
            "E * LoRAFactors(torch.tensor(*dtype=torch.float64)*",
            "E *rule = First()",
            "E *print(result.delta())",
        ]
    )
    assert "runner.py" not in done.stdout.str()  # frames outside of the user's code are hidden


@pytest.mark.slow
def test_a_law_is_called_with_a_rule() -> None:
    marks = parametrize_with_checks([FedAvg()], examples=3, seed=1).mark.args[1]
    laws = {case.id: case.values[1] for case in marks}
    found = laws["fedavg-partition_identity"](RaFLoRA())
    assert isinstance(found, CheckResult)
    assert (found.status, found.examples) == ("passed", 3)
    assert laws["fedavg-partition_identity"]("fedavg").status == "expected"
    with pytest.raises(pytest.skip.Exception, match="untested"):
        laws["fedavg-empty_partition_zero"]("fedavg")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rules": "fedavg"}, "rules='fedavg'"),
        ({"rules": ["fedavgg"]}, "rule='fedavgg'.*'fedavg'"),
        ({"rules": [FedAvg]}, "rule="),
        ({"rules": ["fedavg"], "examples": 0}, "examples=0"),
        ({"rules": ["fedavg"], "seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_are_refused_when_the_test_is_written(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parametrize_with_checks(**given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_neither_pytest_nor_hypothesis_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, fedlora_sim.conformance, fedlora_cli.check\n"
        "found = {'pytest', 'hypothesis'} & set(sys.modules)\n"
        "assert not found, found\n"
        "from fedlora_sim.conformance import parametrize_with_checks\n"
        "assert 'pytest' in sys.modules and 'hypothesis' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_name_that_is_not_there() -> None:
    import fedlora_sim.conformance as package

    with pytest.raises(AttributeError, match="parametrise"):
        package.parametrise  # noqa: B018


few = settings(max_examples=20, deadline=None, derandomize=True)


def two_levels(case: Case) -> bool:
    return len({update.rank for update in case.taking_part}) > 1


@few
@given(cases(min_levels=2, min_clients=3).filter(two_levels))
def test_cohorts_are_filtered_as_any_strategy(case: Case) -> None:
    assert len(case.rank_levels) > 1
    assert len(case.updates) > 2
    mean = case.delta(get_rule("fedavg"))
    assert mean.shape == (case.previous.d_out, case.previous.d_in)


@few
@given(st.tuples(cases(equal_ranks=True, full_rank=False), st.integers(1, 5)))
def test_cohorts_are_composed_with_custom_draws(drawn: tuple[Case, int]) -> None:
    """With equal ranks and any number of copies of one client, all averages are FedAvg."""
    case, times = drawn
    many = case.take([0] * times, [1.0] * times)
    own = case.updates[0].delta()
    for name in ("fedavg", "raflora", "zero_pad"):
        off = float(torch.linalg.matrix_norm(many.delta(get_rule(name)) - own))
        assert off <= relative("factorization") * many.size


@few
@given(suitable(get_rule("ffa").properties, min_clients=2))
def test_a_rule_receives_only_supported_cases(case: Case) -> None:
    for update, held in zip(case.updates, case.held, strict=True):
        assert torch.equal(update.lora_A, case.previous.lora_A[list(held)])


def test_factors_are_short_to_paste() -> None:
    factors = random_factors(torch.Generator().manual_seed(0), 4, 3, 2, 0.5)
    assert (factors.d_out, factors.d_in, factors.rank, factors.scaling) == (4, 3, 2, 0.5)
    entries = torch.cat([factors.lora_A.flatten(), factors.lora_B.flatten()])
    assert torch.equal(4 * entries, (4 * entries).round())
    assert float(entries.abs().max()) <= 2


def test_cases_are_mostly_small_and_a_share_is_large() -> None:
    """The default number of examples has every kind of case more than once."""
    seen = drawn(suitable(get_rule("raflora").properties), CI, 0)
    low = [min(w for w in c.weights if w) for c in seen]
    spread = [max(c.weights) / x for x, c in zip(low, seen, strict=True)]
    kinds = {
        "small": [len(c.updates) <= 5 and c.rank_levels[-1] <= 7 for c in seen],
        "above 3 levels": [len(c.rank_levels) > 3 for c in seen],
        "above rank 8": [max(u.rank for u in c.updates) > 8 for c in seen],
        "above rank 30": [max(u.rank for u in c.updates) > 30 for c in seen],
        "more than 8 clients": [len(c.updates) > 8 for c in seen],
        "a share under 1%": [x < sum(c.weights) / 100 for x, c in zip(low, seen, strict=True)],
        "over four decades": [ratio > 1e4 for ratio in spread],
        "positions": [c.positions is not None for c in seen],
        "one client": [len(c.updates) == 1 for c in seen],
        "an update of zero": [any(float(u.norm()) == 0 for u in c.updates) for c in seen],
        "tall": [c.previous.d_out > c.previous.d_in for c in seen],
        "wide": [c.previous.d_out < c.previous.d_in for c in seen],
    }
    counts = {kind: sum(found) for kind, found in kinds.items()}
    assert CI / 2 < counts.pop("small") < CI
    assert min(counts.values()) >= 2, counts
    assert max(max(u.rank for u in c.updates) for c in seen) <= MOST_RANK


@few
@given(suitable(get_rule("raflora:canonicalize=true").properties))
def test_a_rule_that_refuses_positions_gets_none(case: Case) -> None:
    assert case.positions is None
    assert all(lie_apart(update) for update in case.updates)


@few
@given(suitable(Properties(stateless=False), earlier=True))
def test_rounds_before_are_of_the_same_clients(case: Case) -> None:
    """A rule that sums its inputs has the sum of the earlier rounds' multiples."""

    class Summing:
        name, source, properties = "summing", "a test", Properties(stateless=False)

        def step(self, updates, weights, context, state):  # type: ignore[no-untyped-def]
            total = updates[0].delta() + state.get("total", 0)
            return Aggregated(LoRAFactors.from_delta(total, context.r_max)), {"total": total}

    _, state = case.run(Summing())
    times = 1 + sum(EARLIER + number for number in range(case.earlier))
    off = float(torch.linalg.matrix_norm(state["total"] - times * case.updates[0].delta()))
    assert off <= times * relative("factorization") * case.size


def test_a_case_is_short_in_words() -> None:
    case = drawn(suitable(Properties()), 1, 0)[0]
    assert repr(case) == pretty(case)
    assert len(repr(case)) < 200
