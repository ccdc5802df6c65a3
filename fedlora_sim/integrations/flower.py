"""Flower: a strategy for LoRA adapters of unequal ranks (`pip install "fedlora-sim[flower]"`).

Server and clients exchange PEFT state dicts. Each node receives the global adapter cut to its own
rank, and states that rank in the metrics of its replies. A node that has not replied yet receives
the whole adapter; `receive` cuts it there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency
from torch import Tensor

from fedlora_sim.errors import InputError, check_count
from fedlora_sim.peft.server import AdapterServer, receive_state

ALPHA, RSLORA, FROZEN_A = "lora-alpha", "use-rslora", "frozen-a"
"""Keys of the configuration that each message carries, for `receive`."""

Received = tuple[dict[str, Tensor], dict[str, Tensor]]

log = logging.getLogger("flwr")


class FedLoRA(FedAvg):
    """A strategy that aggregates LoRA adapters by any rule; nodes may have unequal ranks.

    `start` takes the global adapter of the highest rank as initial arrays. The arrays of a round
    are the global adapter, and under `base_correction.<key>` what a rule (`flora`, `fedex`) has
    moved into the base weights; `split_state` separates them. To resume, pass the last arrays as
    initial arrays, and the number of rounds done as `completed_rounds`.

    Args:
        lora_alpha: alpha of all nodes and of the global adapter.
        rule: name of a rule, with options after a colon.
        completed_rounds: rounds before this start; `server-round` and the seeds continue.
        rank_key: metric of the replies that states the node's rank.
        arguments: other arguments of `AdapterServer` (`use_rslora`, `modules`, `seed`, ...) and of
            Flower's `FedAvg` (`fraction_train`, `min_available_nodes`, ...).

    Raises:
        InputError: names the argument, its value and what was expected.
    """

    def __init__(
        self,
        *,
        lora_alpha: float,
        rule: str = "raflora",
        completed_rounds: int = 0,
        rank_key: str = "lora-rank",
        **arguments: Any,
    ) -> None:
        own = {field.name for field in fields(AdapterServer)}
        super().__init__(**{name: x for name, x in arguments.items() if name not in own})
        chosen = {name: x for name, x in arguments.items() if name in own}
        self.server = AdapterServer(lora_alpha=lora_alpha, rule=rule, **chosen)
        self.completed_rounds = completed_rounds and check_count(
            "completed_rounds", completed_rounds
        )
        self.rank_key = rank_key
        self.node_ranks: dict[int, int] = {}
        self._state: dict[str, Tensor] = {}

    def summary(self) -> None:
        """Log the rule and the sampling."""
        log.info("\t├──> LoRA: rule '%s', alpha %g", self.server.rule, self.server.lora_alpha)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled node the global adapter, cut to its rank."""
        t = server_round + self.completed_rounds
        return self._cut(arrays, super().configure_train(t, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each sampled node the adapter that it would train from."""
        t = server_round + self.completed_rounds
        return self._cut(arrays, super().configure_evaluate(t, arrays, config, grid))

    def _cut(self, arrays: ArrayRecord, messages: Iterable[Message]) -> list[Message]:
        self._state = dict(arrays.to_torch_state_dict())
        highest = self.server.rank_of(self._state)
        records: dict[int, ArrayRecord] = {highest: arrays}
        own = {
            ALPHA: float(self.server.lora_alpha),
            RSLORA: self.server.use_rslora,
            FROZEN_A: self.server.frozen_a,
        }
        cut = []
        for message in messages:
            meta = message.metadata
            rank = min(self.node_ranks.get(meta.dst_node_id, highest), highest)
            if rank not in records:
                records[rank] = ArrayRecord(self.server.for_client(self._state, rank))
            config = ConfigRecord({**message.content[self.configrecord_key], **own})
            content = RecordDict(
                {self.arrayrecord_key: records[rank], self.configrecord_key: config}
            )
            node, kind = meta.dst_node_id, meta.message_type
            cut.append(Message(content=content, dst_node_id=node, message_type=kind))
        return cut

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the adapters by the rule, and the metrics as Flower does.

        Nodes that failed are left out, and so are adapters with NaN or infinity.

        Raises:
            InconsistentMessageReplies: names the node whose reply has no rank, no sample count or
                another adapter than the server sent.
        """
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        # Replies arrive in any order, and sums depend on it in their last bits.
        valid.sort(key=lambda message: message.metadata.src_node_id)
        found = [(message, self._adapter(message)) for message in valid]
        kept = [(message, adapter) for message, adapter in found if adapter is not None]
        if not kept:
            return None, None
        contents = [message.content for message, _ in kept]
        validate_message_reply_consistency(contents, self.weighted_by_key, check_arrayrecord=False)
        counts = [float(_metrics(content)[self.weighted_by_key]) for content in contents]
        adapters = [adapter for _, adapter in kept]
        t = server_round + self.completed_rounds
        try:
            state = self.server.aggregate(self._state, adapters, counts, t)
        except InputError as error:
            raise InconsistentMessageReplies(reason=str(error)) from error
        for content in contents:
            del _metrics(content)[self.rank_key]  # a mean of ranks means nothing
        return ArrayRecord(state), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def _adapter(self, message: Message) -> dict[str, Tensor] | None:
        """Return the adapter of a reply and remember the node's rank; None if it is not finite."""
        node, content = message.metadata.src_node_id, message.content
        name = f"reply of node {node}"
        if len(content.array_records) != 1 or len(content.metric_records) != 1:
            raise InconsistentMessageReplies(reason=f"{name}: one ArrayRecord, one MetricRecord")
        rank = _metrics(content).get(self.rank_key)
        if rank is None:
            raise InconsistentMessageReplies(reason=f"{name}: no metric {self.rank_key!r}")
        (record,) = content.array_records.values()
        adapter = dict(record.to_torch_state_dict())
        if not all(bool(x.isfinite().all()) for x in adapter.values()):
            log.warning("\t> Left out the %s: its adapter is not finite", name)
            return None
        try:
            self.server.check_reply(name, adapter, self._state, rank)
        except InputError as error:
            raise InconsistentMessageReplies(reason=str(error)) from error
        self.node_ranks[node] = rank
        return adapter


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()))


def receive(message: Message, rank: int, **options: Any) -> Received:
    """Return what a node of a rank trains, and what it first merges into its base weights.

    Args:
        message: what `FedLoRA` sent under the keys `arrays` and `config`.
        rank: the node's rank.
        options: other arguments of `truncate_state_dict`.

    Returns:
        See `fedlora_sim.peft.server.receive_state`.

    Raises:
        InputError: if the rank is above that of the global adapter.
    """
    config: Any = message.content["config"]
    arrays: Any = message.content["arrays"]
    known = {"lora_alpha": config[ALPHA], "use_rslora": config[RSLORA]}
    state = arrays.to_torch_state_dict()
    return receive_state(state, rank, **known, frozen_a=config[FROZEN_A], **options)
