"""From simulated runs to numbers with intervals, and from those to verdicts."""

from analysis.inference.bootstrap import bootstrap_interval as bootstrap_interval
from analysis.inference.distributions import cdf_distance as cdf_distance
from analysis.inference.family import FAMILY_ERROR as FAMILY_ERROR
from analysis.inference.family import claim_error as claim_error
from analysis.inference.family import holm as holm
from analysis.inference.intervals import every_run as every_run
from analysis.inference.intervals import log_odds_interval as log_odds_interval
from analysis.inference.intervals import mean_interval as mean_interval
from analysis.inference.intervals import median_interval as median_interval
from analysis.inference.intervals import proportion_interval as proportion_interval
from analysis.inference.intervals import root_of_mean as root_of_mean
from analysis.inference.measurement import Estimator as Estimator
from analysis.inference.measurement import Measurement as Measurement
from analysis.inference.rates import log_linear_rate as log_linear_rate
from analysis.inference.sequential import measure_until_decided as measure_until_decided
from analysis.inference.sequential import number_of_looks as number_of_looks
from analysis.inference.sequential import p_value as p_value
from analysis.inference.stationary import integrated_time as integrated_time
from analysis.inference.stationary import mser_burn_in as mser_burn_in
from analysis.inference.stationary import stationary_mean as stationary_mean
from analysis.inference.thresholds import bisect as bisect
from analysis.inference.thresholds import bracketed as bracketed
from analysis.inference.verdict import Prediction as Prediction
from analysis.inference.verdict import Verdict as Verdict
from analysis.inference.verdict import judge as judge
from analysis.inference.verdict import judge_near_control as judge_near_control
