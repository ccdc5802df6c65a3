"""The estimators under their first address; new code imports from the module of its topic."""

from analysis.inference.intervals import log_odds_interval as log_odds_interval
from analysis.inference.intervals import mean_interval as mean_interval
from analysis.inference.intervals import proportion_interval as proportion_interval
from analysis.inference.measurement import Measurement as Measurement
from analysis.inference.rates import ROUNDING_FLOOR as ROUNDING_FLOOR
from analysis.inference.rates import log_linear_rate as log_linear_rate
