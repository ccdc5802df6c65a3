"""Sweeps: a grid of scenarios, rules and seeds, planned into tasks, run anywhere, read as one."""

from fedlora_sim.sweep.collect import open_sweep as open_sweep
from fedlora_sim.sweep.driver import Engine as Engine
from fedlora_sim.sweep.driver import run_sweep as run_sweep
from fedlora_sim.sweep.forecast import forecast as forecast
from fedlora_sim.sweep.grid import read_grid as read_grid
