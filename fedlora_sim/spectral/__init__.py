"""Spectral fidelity: a fixed basis and one amplitude per direction, vectorised over seeds."""

from fedlora_sim.spectral.run import run_spectral as run_spectral
