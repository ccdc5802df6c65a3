"""Flower runs every rule: its own simulation, and a strategy with real messages."""

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
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file
from toy_federation import ALPHA, initial_adapter, train_locally

from analysis import diagnose
from fedlora_sim.errors import InputError
from fedlora_sim.integrations.flower import FedLoRA, receive
from fedlora_sim.peft.server import CORRECTION, AdapterServer, split_state
from fedlora_sim.rules import rule_names

# The example in Flower's simulation


def test_an_idle_federation_collapses_as_predicted(tmp_path):
    shares = run_example("flower_app.py", "--rule", "fedavg", "--out", tmp_path)
    assert shares == pytest.approx(predicted_shares(5), abs=6e-5)  # four digits are printed
    assert diagnose(tmp_path, ranks=LEVELS).verdict == "collapses"


def test_trained_adapters_are_those_of_the_same_rounds_here(tmp_path):
    arguments = ("--rule", "raflora", "--rounds", 5, "--steps", 2, "--out", tmp_path)
    run_example("flower_app.py", *arguments)
    found = load_file(tmp_path / "peft_5" / "adapter_model.safetensors")
    wanted = rounds_here("raflora", 5, 2, first_round=1)
    assert_same_updates(found, wanted)
    assert diagnose(tmp_path, ranks=LEVELS).verdict == "keeps its rank"


# A strategy with a grid that answers in this process


class Grid:
    """Three nodes that train; `answer` may replace a node's reply."""

    def __init__(self, answer=lambda node, reply: reply, steps=1):
        self.answer, self.steps, self.sent = answer, steps, []

    def get_node_ids(self):
        return [101, 102, 103]

    def send_and_receive(self, messages, timeout):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.sent.append((message.metadata.message_type, node, message))
            k = node - 101
            received = receive(message, LEVELS[k])
            frozen_a = bool(message.content["config"]["frozen-a"])
            trained = train_locally(*received, k, self.steps, frozen_a=frozen_a)
            metrics = MetricRecord({"num-examples": 10 * (k + 1), "lora-rank": LEVELS[k]})
            content = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
            reply = self.answer(node, Message(content=content, reply_to=message))
            reply.metadata.__dict__["_src_node_id"] = node
            replies.append(reply)
        return replies


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    for name, value in {"_run_id": 1, "_task_id": 2, "_node_id": 3}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def strategy(**arguments):
    return FedLoRA(**{"lora_alpha": ALPHA, "fraction_evaluate": 0.0, "seed": 4, **arguments})


def started(own, grid, rounds, arrays=None):
    first = ArrayRecord(initial_adapter()) if arrays is None else arrays
    return own.start(grid, first, rounds)


def here(rule, rounds):
    server = AdapterServer(lora_alpha=ALPHA, rule=rule, seed=4)
    state = initial_adapter()
    for t in range(1, rounds + 1):
        received = [split_state(server.for_client(state, r)) for r in LEVELS]
        replies = [
            train_locally(*x, k, 1, frozen_a=server.frozen_a) for k, x in enumerate(received)
        ]
        state = server.aggregate(state, replies, [10, 20, 30], t)
    return state


@pytest.mark.parametrize("rule", rule_names())
def test_every_rule_makes_the_rounds_of_the_server(rule):
    found = started(strategy(rule=rule), Grid(), 3).arrays.to_torch_state_dict()
    wanted = here(rule, 3)
    assert found.keys() == wanted.keys()
    assert any(key.startswith(CORRECTION) for key in found) == (rule in ("flora", "fedex"))
    assert_same_updates(found, wanted)


def test_nodes_receive_their_own_rank_after_their_first_reply():
    grid = Grid()
    started(strategy(fraction_evaluate=1.0), grid, 2)
    rows = [
        (kind, node, message.content["arrays"].to_torch_state_dict())
        for kind, node, message in grid.sent
    ]
    ranks = [(kind, node, x["base_model.model.0.lora_A.weight"].shape[0]) for kind, node, x in rows]
    assert {rank for _, _, rank in ranks[:3]} == {16}
    assert all(rank == LEVELS[node - 101] for _, node, rank in ranks[3:])
    assert {kind for kind, _, _ in ranks[3:6]} == {"evaluate"}
    configs = [message.content["config"] for _, _, message in grid.sent]
    assert [config["server-round"] for config in configs] == [1] * 6 + [2] * 6


def test_a_run_resumes_from_its_arrays():
    whole = started(strategy(rule="flora"), Grid(), 3).arrays.to_torch_state_dict()
    first = started(strategy(rule="flora"), Grid(), 1).arrays
    rest = started(strategy(rule="flora", completed_rounds=1), Grid(), 2, first)
    resumed = rest.arrays.to_torch_state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def without_metric(name):
    def answer(node, reply):
        if node == 102:
            del reply.content["metrics"][name]
        return reply

    return answer


def with_arrays(change, at=102):
    def answer(node, reply):
        if node == at:
            state = reply.content["arrays"].to_torch_state_dict()
            reply.content["arrays"] = ArrayRecord(change(state))
        return reply

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (without_metric("lora-rank"), "reply of node 102: no metric 'lora-rank'"),
        (without_metric("num-examples"), "MetricRecord"),
        (with_arrays(lambda x: {k + ".x": v for k, v in x.items()}), "reply of node 102"),
        (with_arrays(lambda x: {k: v[:, :5] for k, v in x.items()}), "reply of node 102"),
    ],
)
def test_an_unfit_reply_ends_the_run_as_in_fedavg(answer, reason):
    with pytest.raises(InconsistentMessageReplies, match=reason):
        started(strategy(), Grid(answer), 1)


def failed(node, reply):
    if node != 103:
        return reply
    return Message(error=Error(0, "out of memory"), reply_to=reply)


@pytest.mark.parametrize(
    "answer", [failed, with_arrays(lambda x: {k: v * torch.nan for k, v in x.items()}, at=103)]
)
def test_a_failed_node_is_left_out_and_its_partition_carried(answer):
    found = started(strategy(), Grid(answer), 1).arrays.to_torch_state_dict()
    server = AdapterServer(lora_alpha=ALPHA, seed=4)
    state = initial_adapter()
    replies = [
        train_locally(server.for_client(state, r), {}, k, 1) for k, r in enumerate(LEVELS[:2])
    ]
    wanted = server.aggregate(state, replies, [10, 20], 1)
    assert_same_updates(found, wanted)


def test_a_round_without_replies_keeps_the_adapter():
    own = strategy()
    assert own.aggregate_train(1, []) == (None, None)


def test_arguments_are_checked_at_once():
    with pytest.raises(TypeError, match="lora_alpha"):
        FedLoRA()
    with pytest.raises(InputError, match="rule"):
        strategy(rule="fedavgg")
    with pytest.raises(InputError, match="completed_rounds"):
        strategy(completed_rounds=-1)
    with pytest.raises(TypeError, match="fraction"):
        strategy(fraction=1)
