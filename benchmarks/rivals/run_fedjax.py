"""Lane of FedJAX: its federated averaging, with client steps compiled by XLA.

On one core it uses the jit backend, one client after the other; on more cores the pmap backend with
one client per core.
"""

from __future__ import annotations

from typing import Any

import fedjax
import jax
import numpy as np
from fedjax.algorithms import fed_avg

from benchmarks.rivals.exchange import Exchange, Outcome, Stopwatch, serve
from benchmarks.rivals.plain_jax import make_loss


def run(exchange: Exchange, threads: int) -> Outcome:
    """Run all rounds on the number of one-thread devices that XLA's flags have set."""
    settings = exchange.settings
    jax.config.update("jax_enable_x64", settings.dtype == "float64")
    backend = "jit" if threads == 1 else "pmap"
    fedjax.set_for_each_client_backend(backend)
    watch = Stopwatch()
    gradient = jax.grad(make_loss(settings, exchange.weights))
    algorithm = fed_avg.federated_averaging(
        lambda adapters, batch, rng: gradient(adapters, batch),
        fedjax.optimizers.sgd(settings.learning_rate, settings.momentum),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(exchange.batch_size, num_epochs=1, skip_shuffle=True),
    )
    state = algorithm.init(jax.tree_util.tree_map(jax.numpy.asarray, exchange.adapters))
    for t in range(exchange.rounds):
        state, _ = algorithm.apply(state, _clients(exchange, t))
        jax.block_until_ready(state.params)
        watch.lap()
    trained = {name: (np.asarray(a), np.asarray(b)) for name, (a, b) in state.params.items()}
    how = f"federated_averaging, {backend} backend, {threads} XLA device(s) of one thread"
    return Outcome(trained, watch.seconds, how)


def _clients(exchange: Exchange, t: int) -> list[tuple[int, fedjax.ClientDataset, Any]]:
    """Return the cohort of round t, samples in order; the random keys are not used."""
    key, found = jax.random.PRNGKey(0), []
    for k in range(exchange.cohort):
        index = exchange.batches_of(t, k).reshape(-1)
        data = {"x": exchange.images[index], "y": exchange.labels[index]}
        found.append((k, fedjax.ClientDataset(data), key))
    return found


if __name__ == "__main__":
    serve(run, ("fedjax", "jax", "jaxlib"))
