"""Training fidelity: real federated LoRA fine-tuning, all clients of a cohort in one pass."""

from fedlora_sim.training.rounds import run_training as run_training
