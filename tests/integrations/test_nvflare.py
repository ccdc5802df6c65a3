"""NVFlare runs every rule: its own simulator, and the aggregator with real models."""

from __future__ import annotations

import pytest
import torch
from example_cases import (
    LEVELS,
    assert_same_updates,
    predicted_shares,
    rounds_here,
    run_example,
)
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from toy_federation import ALPHA, initial_adapter, train_locally

from analysis import diagnose
from fedlora_sim.errors import InputError
from fedlora_sim.integrations.nvflare import FedLoRAAggregator, receive
from fedlora_sim.peft.server import AdapterServer, split_state
from fedlora_sim.rules import rule_names

# The example in NVFlare's simulator


def test_an_idle_federation_collapses_as_predicted(tmp_path):
    shares = run_example("nvflare_job.py", "--rule", "fedavg", "--out", tmp_path)
    assert shares == pytest.approx(predicted_shares(5)[1:], abs=6e-5)  # four digits are printed
    assert diagnose(tmp_path, ranks=LEVELS, alpha=ALPHA).verdict == "collapses"


def test_trained_adapters_are_those_of_the_same_rounds_here(tmp_path):
    run_example("nvflare_job.py", "--rule", "raflora", "--steps", 2, "--out", tmp_path)
    found = torch.load(tmp_path / "round_5.pt", weights_only=True)["model"]
    assert_same_updates(found, rounds_here("raflora", 5, 2, first_round=0))
    assert diagnose(tmp_path, ranks=LEVELS, alpha=ALPHA).verdict == "keeps its rank"


# The aggregator with the models of three sites

PREFIX = "model."


def prefixed(state):
    return {PREFIX + key: x for key, x in state.items()}


def aggregator(state, **arguments):
    own = FedLoRAAggregator(**{"lora_alpha": ALPHA, "seed": 4, **arguments})
    own.fl_ctx = FLContext()
    place(own, state, 0)
    return own


def place(own, state, t):
    own.fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, make_model_learnable(state, {}))
    own.fl_ctx.set_prop(AppConstants.CURRENT_ROUND, t)


def model(k, state, **changes):
    meta = {"num_examples": 10 * (k + 1), "lora_rank": LEVELS[k], "client_name": f"site-{k + 1}"}
    meta = {key: x for key, x in {**meta, **changes}.items() if x is not None}
    return FLModel(params=state, meta=meta, metrics={"accuracy": 0.1 * (k + 1)})


def play(own, state, rounds, as_array=False):
    for t in range(rounds):
        place(own, state, t)
        own.reset_stats()
        for k, rank in enumerate(LEVELS):
            received = receive(
                FLModel(params=state), rank, lora_alpha=ALPHA, frozen_a=own._server().frozen_a
            )
            trained = prefixed(train_locally(*received, k, 1, frozen_a=own._server().frozen_a))
            sent = {key: x.numpy() for key, x in trained.items()} if as_array else trained
            own.accept_model(model(k, sent))
        result = own.aggregate_model()
        state = result.params
    return result


def here(rule, rounds):
    server = AdapterServer(lora_alpha=ALPHA, rule=rule, seed=4)
    state = initial_adapter()
    for t in range(rounds):
        received = [split_state(server.for_client(state, r)) for r in LEVELS]
        replies = [
            train_locally(*x, k, 1, frozen_a=server.frozen_a) for k, x in enumerate(received)
        ]
        state = server.aggregate(state, replies, [10, 20, 30], t)
    return state


@pytest.mark.parametrize("rule", rule_names())
def test_every_rule_makes_the_rounds_of_the_server(rule):
    state = prefixed(initial_adapter())
    found = play(aggregator(state, rule=rule), state, 3)
    wanted = here(rule, 3)
    assert found.params.keys() == prefixed(wanted).keys()
    assert_same_updates(found.params, prefixed(wanted))
    assert found.metrics["accuracy"] == pytest.approx((0.1 * 10 + 0.2 * 20 + 0.3 * 30) / 60)


def test_arrays_give_arrays():
    state = {key: x.numpy() for key, x in prefixed(initial_adapter()).items()}
    found = play(aggregator(state), state, 1, as_array=True).params
    tensors = {key: torch.from_numpy(x) for key, x in found.items()}
    assert_same_updates(tensors, prefixed(here("raflora", 1)))


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: model(2, x, lora_rank=None),
        lambda x: model(2, x, num_examples=None),
        lambda x: model(2, x, num_examples="abc"),
        lambda x: model(2, x, num_examples=float("nan")),
        lambda x: model(2, x, num_examples=-1),
        lambda x: model(2, x, lora_rank=8),
        lambda x: model(2, {key: v * torch.nan for key, v in x.items()}),
        lambda x: model(2, {key + ".x": v for key, v in x.items()}),
        lambda x: FLModel(params_type="DIFF", params=x, meta=model(2, x).meta),
    ],
)
def test_an_unfit_model_is_reported_and_left_out(bad, monkeypatch):
    state = initial_adapter()
    own = aggregator(state)
    errors = []
    monkeypatch.setattr(own, "error", errors.append)
    server = AdapterServer(lora_alpha=ALPHA, seed=4)
    replies = [train_locally(server.for_client(state, r), {}, k, 1) for k, r in enumerate(LEVELS)]
    for k in range(2):
        own.accept_model(model(k, replies[k]))
    own.accept_model(bad(replies[2]))
    assert len(errors) == 1
    assert "left out: model of site-3" in errors[0]
    wanted = server.aggregate(state, replies[:2], [10, 20], 0)
    assert_same_updates(own.aggregate_model().params, wanted)


def test_a_round_without_models_keeps_the_adapter():
    state = prefixed(initial_adapter())
    found = aggregator(state).aggregate_model().params
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_arguments_and_the_initial_model_are_required():
    with pytest.raises(TypeError, match="lora_alpha"):
        FedLoRAAggregator()
    with pytest.raises(InputError, match="rule"):
        FedLoRAAggregator(lora_alpha=ALPHA, rule="fedavgg")
    with pytest.raises(InputError, match="global model"):
        aggregator({}).aggregate_model()
