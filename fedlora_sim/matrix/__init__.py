"""Matrix fidelity: real factors of real shapes, real aggregation and SVD-based allocation."""

from fedlora_sim.matrix.run import run_matrix as run_matrix
