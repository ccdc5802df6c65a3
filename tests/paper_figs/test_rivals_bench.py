"""The comparison with other frameworks: one run for all; lanes that disagree have no times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from benchmarks.rivals import __main__ as command
from benchmarks.rivals import run_ours, run_plain
from benchmarks.rivals.compare import Case, Row, compare
from benchmarks.rivals.exchange import Adapters, Exchange, Outcome, Settings
from benchmarks.rivals.install import REQUIREMENTS
from benchmarks.rivals.lanes import LANES, OURS, PLAIN, Lane, LaneError, disagreement, run_lane
from benchmarks.rivals.task import build_model, draw_exchange
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

CASE = Case(d_model=16, cohort=3, rounds=2)
ABSENT = Lane("absent", "benchmarks.rivals.run_flower", "flower")


@pytest.fixture(scope="module")
def exchange() -> Exchange:
    return CASE.draw("float64")


def arrays(adapters: Adapters) -> list[np.ndarray]:
    return [x for pair in adapters.values() for x in pair]


@pytest.mark.slow
def test_written_and_read_runs_are_equal(exchange: Exchange, tmp_path: Path) -> None:
    exchange.save(tmp_path / "x.npz")
    read = Exchange.load(tmp_path / "x.npz")
    assert read.settings == exchange.settings
    for name in ("images", "labels", "batches", "num_steps"):
        np.testing.assert_array_equal(getattr(read, name), getattr(exchange, name))
    assert read.weights.keys() == exchange.weights.keys()
    for name, x in exchange.weights.items():
        np.testing.assert_array_equal(read.weights[name], x)
    assert read.adapters.keys() == exchange.adapters.keys()
    for mine, theirs in zip(arrays(read.adapters), arrays(exchange.adapters), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_outcome_is_written_whole(exchange: Exchange, tmp_path: Path) -> None:
    outcome = Outcome(exchange.adapters, np.array([2.0, 1.0]), "in words", {"torch": "1"})
    outcome.save(tmp_path / "out.npz")
    read = Outcome.load(tmp_path / "out.npz")
    assert (read.how, read.versions, read.seconds.tolist()) == ("in words", {"torch": "1"}, [2, 1])
    assert disagreement(read.adapters, exchange.adapters, moved(exchange.adapters, 2.0)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_every_client_passes_once_over_distinct_samples(exchange: Exchange) -> None:
    for t in range(exchange.rounds):
        for k, own in enumerate(exchange.num_samples(t)):
            seen = exchange.batches_of(t, k)
            assert seen.size == own == len(np.unique(seen))
    assert len(np.unique(exchange.num_steps)) > 1  # otherwise the weights would not be tested


def test_a_run_in_float32_is_the_one_in_float64_rounded(exchange: Exchange) -> None:
    rounded = CASE.draw("float32")
    np.testing.assert_array_equal(rounded.batches, exchange.batches)
    for mine, theirs in zip(arrays(rounded.adapters), arrays(exchange.adapters), strict=True):
        np.testing.assert_array_equal(mine, theirs.astype(np.float32))


def by_hand(exchange: Exchange) -> Adapters:
    """Return the same rounds with dW merged into the weights of the simulator's own model."""
    settings = exchange.settings
    model = build_model(settings, torch.Generator()).double()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in exchange.weights.items()})
    images, labels = torch.from_numpy(exchange.images), torch.from_numpy(exchange.labels)

    def loss(factors: list[Tensor], batch: Tensor) -> Tensor:
        merged = {
            f"{name}.weight": model.get_submodule(name).weight + settings.scaling * b @ a
            for name, a, b in zip(exchange.adapters, factors[::2], factors[1::2], strict=True)
        }
        logits = functional_call(model, merged, (images[batch],))
        return functional.cross_entropy(logits, labels[batch])

    state = [torch.from_numpy(x) for x in arrays(exchange.adapters)]
    for t in range(exchange.rounds):
        total = [torch.zeros_like(x) for x in state]
        for k, samples in enumerate(exchange.num_samples(t)):
            own, speed = list(state), [torch.zeros_like(x) for x in state]
            for batch in torch.from_numpy(exchange.batches_of(t, k)):
                own = [x.requires_grad_() for x in own]
                gradients = torch.autograd.grad(loss(own, batch), own)
                pairs = zip(speed, gradients, strict=True)
                speed = [settings.momentum * v + g for v, g in pairs]
                moves = zip(own, speed, strict=True)
                own = [(x - settings.learning_rate * v).detach() for x, v in moves]
            total = [sum_ + samples * x for sum_, x in zip(total, own, strict=True)]
        state = [x / exchange.num_samples(t).sum() for x in total]
    found = [x.numpy() for x in state]
    return dict(zip(exchange.adapters, zip(found[::2], found[1::2], strict=True), strict=True))


@pytest.mark.slow
def test_the_plain_lane_is_federated_averaging_of_factors(exchange: Exchange) -> None:
    found = run_plain.run(exchange, torch.get_num_threads())
    off = disagreement(found.adapters, by_hand(exchange), exchange.adapters)
    assert off < relative("training")
    assert found.seconds.shape == (exchange.rounds,)


def test_our_lane_equals_the_plain_one(exchange: Exchange) -> None:
    ours = run_ours.run(exchange, torch.get_num_threads())
    plain = run_plain.run(exchange, torch.get_num_threads())
    assert disagreement(ours.adapters, plain.adapters, exchange.adapters) < relative("training")
    assert ours.seconds.shape == (exchange.rounds,)


def moved(adapters: Adapters, share: float) -> Adapters:
    return {name: (a + share, b + share) for name, (a, b) in adapters.items()}


def test_disagreement_is_of_the_change(exchange: Exchange) -> None:
    start = exchange.adapters
    wanted = moved(start, 1e-3)
    assert disagreement(wanted, wanted, start) == 0
    assert disagreement(start, wanted, start) == pytest.approx(1.0)
    assert disagreement(moved(start, np.nan), wanted, start) == np.inf
    first = next(iter(start))
    assert disagreement({first: start[first]}, wanted, start) == np.inf


def runs(
    spoil: Callable[[Lane, Exchange, Adapters], Adapters],
) -> tuple[list[tuple[str, str, int]], Callable[[Lane, Exchange, int], Outcome]]:
    """Return a runner in this process, whose results are spoiled, and the calls that it got."""
    calls: list[tuple[str, str, int]] = []

    def run(lane: Lane, exchange: Exchange, threads: int) -> Outcome:
        calls.append((lane.name, exchange.settings.dtype, threads))
        if lane is ABSENT:
            raise LaneError("not installed: no flower environment")
        found = run_plain.run(exchange, torch.get_num_threads())
        adapters = spoil(lane, exchange, found.adapters)
        return Outcome(adapters, found.seconds, "in this process", {"torch": "1"})

    return calls, run


@pytest.mark.slow
def test_lanes_are_timed_in_turn_after_they_have_agreed() -> None:
    calls, run = runs(lambda lane, exchange, found: found)
    single = Lane("single", "nothing", float64=False)
    rows = compare(CASE, [OURS, single], threads=[1, 2], repeats=2, run=run)
    names = (OURS.name, single.name)
    timed = [(name, "float32", count) for count in (1, 2) for _ in range(2) for name in names]
    first = [(PLAIN.name, "float64", 1), (OURS.name, "float64", 1), (single.name, "float32", 1)]
    assert calls == first + timed
    assert [(row["threads"], row["lane"]) for row in rows] == [
        (t, n) for t in (1, 2) for n in names
    ]
    for row in rows:
        assert row["problem"] is None
        assert row["round_min"] <= row["round_median"] <= row["round_max"]
        assert row["rounds"] == 2 * (CASE.rounds - 1)
        assert row["first_rounds"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_lane_with_wrong_adapters_is_not_timed(dtype: str) -> None:
    """Wrong by a twentieth of the change, in the check or in the timed runs."""

    def spoil(lane: Lane, exchange: Exchange, found: Adapters) -> Adapters:
        if lane is not OURS or exchange.settings.dtype != dtype:
            return found
        pairs = {n: zip(found[n], exchange.adapters[n], strict=True) for n in found}
        return {n: tuple(x + (x - x0) / 20 for x, x0 in own) for n, own in pairs.items()}  # type: ignore[misc]

    calls, run = runs(spoil)
    wrong, right = compare(CASE, [OURS, PLAIN], threads=[1], repeats=2, run=run)
    assert wrong["problem"].startswith("disagrees: off by 5.0e-02")
    assert "round_median" not in wrong
    assert right["problem"] is None
    assert calls.count((OURS.name, "float32", 1)) == (dtype == "float32")
    assert "disagrees" in shown([wrong, right])


def test_an_absent_lane_is_shown_with_the_reason() -> None:
    _, run = runs(lambda lane, exchange, found: found)
    absent, ours = compare(CASE, [ABSENT, OURS], threads=[1], repeats=1, run=run)
    assert absent["problem"] == "not installed: no flower environment"
    text = shown([absent, ours])
    assert "not installed" in text
    assert "1.00" in text  # ours over ours


def shown(rows: list[Row]) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(command.table(rows))
    return captured.get()


def test_a_missing_or_failing_lane_reports_it(tmp_path: Path) -> None:
    given, out = tmp_path / "exchange.npz", tmp_path / "out.npz"
    with pytest.raises(LaneError, match="not installed: no flower environment"):
        run_lane(ABSENT, given, out, threads=1, environments=tmp_path)
    broken = Lane("broken", "benchmarks.rivals.nothing")
    with pytest.raises(LaneError, match=r"failed \(1\): .*nothing"):
        run_lane(broken, given, out, threads=1, environments=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lane_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.rivals.lanes.TIMEOUT", 0.001)
    given, out = tmp_path / "exchange.npz", tmp_path / "out.npz"
    with pytest.raises(LaneError, match="no result within"):
        run_lane(PLAIN, given, out, threads=1, environments=tmp_path)
    assert not out.exists()


def test_every_rival_has_a_separate_environment() -> None:
    assert {lane.environment for lane in LANES} - {None} == set(REQUIREMENTS)


@pytest.mark.parametrize("words", [["--rounds", "1"], ["--repeats", "0"]])
def test_nothing_to_time_is_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="expected at least"):
        command.parse(words)


def test_settings_reach_the_model() -> None:
    wide = draw_exchange(Settings(d_model=32), cohort=1, rounds=1)
    assert wide.weights["blocks.0.attention.q_proj.weight"].shape == (32, 32)
    assert wide.batches.shape[2] == wide.cohort == 1


@pytest.mark.slow
@pytest.mark.deep
def test_the_command_writes_a_record(tmp_path: Path) -> None:
    out = tmp_path / "rivals.json"
    words = ["--lanes", PLAIN.name, "Flower", "--environments", str(tmp_path), "--out", str(out)]
    few = ["--sizes", "16", "--cohorts", "2", "--threads", "1", "--rounds", "2", "--repeats", "1"]
    command.main([*words, *few])
    record = json.loads(out.read_text())
    plain, flower = record["rows"]
    assert plain["problem"] is None
    assert plain["versions"]["torch"] == str(torch.__version__)
    assert flower["problem"] == "not installed: no flower environment"
    assert record["hardware"]
