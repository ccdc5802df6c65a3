"""Closed forms: coverage, energy rates, floors and trajectories of one direction.

A round maps the amplitude `x` of a direction to `x' = sum_k w_k (a_k x + b_k)`, with aggregation
weights `w`, client gains `a` (mean g, standard deviation nu) and drifts `b` (mean c, standard
deviation tau), independent over clients and rounds. The pair `(E[x], E[x^2])` then follows an
affine map. Wu et al., arXiv 2602.13486, App. A (no drift, full participation) and App. B
(mean-field recursion with floors); cohorts, exact constants and all rules but FedAvg and raFLoRA
are our derivation.

Every function of a federation takes a `Scenario` and the name of a rule, in this order; all
defaults are the scenario's. What a scenario cannot hold is given by name: `gain_mean`, `gain_std`,
`drift_mean`, `drift_std`, `initial_amplitude` and `target` per direction, (r_max,) or a scalar for
all of them, and `target` also per client. A form that does not cover a field of the scenario
refuses it by name: see `analysis.closed_form.scope`. All values are dimensionless but amplitudes,
drifts (unit of `x`) and energies (that unit squared).
"""

from analysis.closed_form.communication import Communication as Communication
from analysis.closed_form.communication import communication as communication
from analysis.closed_form.drift import DriftInterval as DriftInterval
from analysis.closed_form.drift import adam_drift as adam_drift
from analysis.closed_form.drift import adamw_gain as adamw_gain
from analysis.closed_form.drift import drift_exponent as drift_exponent
from analysis.closed_form.drift import drift_floor as drift_floor
from analysis.closed_form.drift import drift_growth as drift_growth
from analysis.closed_form.drift import drift_interval as drift_interval
from analysis.closed_form.drift import drift_settling as drift_settling
from analysis.closed_form.drift import drift_std as drift_std
from analysis.closed_form.drift import drift_trajectory as drift_trajectory
from analysis.closed_form.drift import implied_drift as implied_drift
from analysis.closed_form.energy import collapse_bound as collapse_bound
from analysis.closed_form.energy import coverage as coverage
from analysis.closed_form.energy import critical_gain_std as critical_gain_std
from analysis.closed_form.energy import energy_floor as energy_floor
from analysis.closed_form.energy import energy_rate as energy_rate
from analysis.closed_form.energy import energy_trajectory as energy_trajectory
from analysis.closed_form.energy import extinction_probability as extinction_probability
from analysis.closed_form.energy import mean_trajectory as mean_trajectory
from analysis.closed_form.energy import noise_gain as noise_gain
from analysis.closed_form.energy import noise_to_signal as noise_to_signal
from analysis.closed_form.flow import collapse_threshold as collapse_threshold
from analysis.closed_form.flow import flow_floor as flow_floor
from analysis.closed_form.flow import flow_rate as flow_rate
from analysis.closed_form.flow import flow_trajectory as flow_trajectory
from analysis.closed_form.sensitivities import Sensitivity as Sensitivity
from analysis.closed_form.sensitivities import sensitivities as sensitivities
from analysis.closed_form.setting import RULES as RULES
from analysis.closed_form.setting import base_share as base_share
from analysis.closed_form.setting import check_rule as check_rule
from analysis.closed_form.setting import flow_map as flow_map
from analysis.closed_form.setting import multiplier as multiplier
from analysis.closed_form.typical import half_life as half_life
from analysis.closed_form.typical import log_energy_std as log_energy_std
from analysis.closed_form.typical import survival as survival
from analysis.closed_form.typical import typical_rate as typical_rate
