"""The reference lane: one client after the other, in plain PyTorch."""

from __future__ import annotations

import torch

from benchmarks.rivals.exchange import Adapters, Exchange, Outcome, Stopwatch, serve
from benchmarks.rivals.plain_torch import build, read_adapters, train, write_adapters


def run(exchange: Exchange, threads: int) -> Outcome:
    """Run all rounds."""
    torch.set_num_threads(threads)
    watch = Stopwatch()
    model, adapters = build(exchange), exchange.adapters
    images, labels = torch.from_numpy(exchange.images), torch.from_numpy(exchange.labels)
    for t in range(exchange.rounds):
        trained = []
        for k in range(exchange.cohort):
            write_adapters(model, adapters)
            train(model, exchange.settings, images, labels, exchange.batches_of(t, k))
            trained.append(read_adapters(model))
        samples = exchange.num_samples(t)
        adapters = average(trained, (samples / samples.sum()).tolist())
        watch.lap()
    return Outcome(adapters, watch.seconds, f"one client after the other, {threads} thread(s)")


def average(clients: list[Adapters], weights: list[float]) -> Adapters:
    """Return the weighted means of A and of B."""
    return {
        name: tuple(  # type: ignore[misc]
            sum(w * client[name][side] for w, client in zip(weights, clients, strict=True))
            for side in (0, 1)
        )
        for name in clients[0]
    }


if __name__ == "__main__":
    serve(run, ("torch",))
