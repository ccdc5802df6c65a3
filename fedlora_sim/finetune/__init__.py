"""Training fidelity: federated LoRA fine-tuning, with all clients of a cohort in one pass."""

from __future__ import annotations
