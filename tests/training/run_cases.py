"""A scenario of seven clients that runs on a tiny task in milliseconds."""

from fedlora_sim import Scenario

TINY = Scenario(
    "2x3,4x2,8x2",
    fidelity="training",
    rounds=3,
    dtype="float64",
    local_steps=3,
    batch_size=4,
    dirichlet_alpha=5.0,
)
