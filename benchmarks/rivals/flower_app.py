"""Flower's client: takes the global adapters and a client's number, returns trained adapters.

It is a separate module, so that a worker process imports it once and later receives only its name.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.rivals.exchange import Exchange
from benchmarks.rivals.plain_torch import Classifier, build, train

EXCHANGE = "RIVALS_EXCHANGE"
"""Environment variable with the path of the exchange file for worker processes."""

app = ClientApp()


@lru_cache(maxsize=1)
def _loaded() -> tuple[Exchange, Classifier, torch.Tensor, torch.Tensor]:
    """Return the worker's data and model, built once, because building them takes milliseconds."""
    exchange = Exchange.load(Path(os.environ[EXCHANGE]))
    images, labels = torch.from_numpy(exchange.images), torch.from_numpy(exchange.labels)
    return exchange, build(exchange), images, labels


@app.train()
def train_client(message: Message, context: Context) -> Message:
    """Train the client that the message names."""
    torch.set_num_threads(1)  # one worker per core
    exchange, model, images, labels = _loaded()
    config = message.content["config"]
    t, k = int(config["server-round"]) - 1, int(config["client"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    train(model, exchange.settings, images, labels, exchange.batches_of(t, k))
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    content = {
        "arrays": ArrayRecord(trained),
        "metrics": MetricRecord({"num-examples": int(exchange.num_samples(t)[k])}),
    }
    return Message(content=RecordDict(content), reply_to=message)
