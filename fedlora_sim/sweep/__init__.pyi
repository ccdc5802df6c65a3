from .dataset import open_sweep as open_sweep
from .grid import read_grid as read_grid
from .run import Engine as Engine
from .run import forecast as forecast
from .run import run_sweep as run_sweep
