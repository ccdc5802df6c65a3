"""Simulation engines of the spectral and the matrix fidelity, and their common random draws."""
