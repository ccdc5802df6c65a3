"""Sweeps: a grid of scenarios, rules and seeds, run as tasks anywhere, read as one dataset."""

from fedlora_sim.sweep.dataset import open_sweep as open_sweep
from fedlora_sim.sweep.grid import read_grid as read_grid
from fedlora_sim.sweep.run import Engine as Engine
from fedlora_sim.sweep.run import forecast as forecast
from fedlora_sim.sweep.run import run_sweep as run_sweep
