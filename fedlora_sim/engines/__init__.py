"""Engines: spectral and matrix fidelity, and what both draw."""
