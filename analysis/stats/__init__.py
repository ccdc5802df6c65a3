"""Statistics: intervals of measurements, and verdicts on claims."""

from __future__ import annotations

from analysis.stats.intervals import Estimator as Estimator
from analysis.stats.intervals import Measurement as Measurement
from analysis.stats.intervals import bootstrap_interval as bootstrap_interval
from analysis.stats.intervals import cdf_distance as cdf_distance
from analysis.stats.intervals import every_run as every_run
from analysis.stats.intervals import log_odds_interval as log_odds_interval
from analysis.stats.intervals import mean_interval as mean_interval
from analysis.stats.intervals import median_interval as median_interval
from analysis.stats.intervals import proportion_interval as proportion_interval
from analysis.stats.intervals import root_of_mean as root_of_mean
from analysis.stats.series import bisect as bisect
from analysis.stats.series import bracketed as bracketed
from analysis.stats.series import integrated_time as integrated_time
from analysis.stats.series import log_linear_rate as log_linear_rate
from analysis.stats.series import mser_burn_in as mser_burn_in
from analysis.stats.series import stationary_mean as stationary_mean
from analysis.stats.verdicts import FAMILY_ERROR as FAMILY_ERROR
from analysis.stats.verdicts import Prediction as Prediction
from analysis.stats.verdicts import Verdict as Verdict
from analysis.stats.verdicts import claim_error as claim_error
from analysis.stats.verdicts import holm as holm
from analysis.stats.verdicts import judge as judge
from analysis.stats.verdicts import judge_near_control as judge_near_control
from analysis.stats.verdicts import measure_until_decided as measure_until_decided
from analysis.stats.verdicts import number_of_looks as number_of_looks
from analysis.stats.verdicts import p_value as p_value
