"""Studies: compare the theory, calibrated on a run's first rounds, with its later rounds.

The input is the dataset of a training run: the clients' amplitudes on the singular directions at
the start of the round, `s_{k,i} = u_i^T dW_k v_i`, and the energies after aggregation.
"""

from __future__ import annotations

from analysis.studies.calibrate import Calibration as Calibration
from analysis.studies.calibrate import by_partition as by_partition
from analysis.studies.calibrate import calibrate as calibrate
from analysis.studies.calibrate import describe_updates as describe_updates
from analysis.studies.calibrate import drifts as drifts
from analysis.studies.calibrate import mean_leakage as mean_leakage
from analysis.studies.calibrate import pure_suppression as pure_suppression
from analysis.studies.findings import accuracy_gain as accuracy_gain
from analysis.studies.findings import coverage_shares as coverage_shares
from analysis.studies.findings import one_step_energy as one_step_energy
from analysis.studies.findings import relative_to_rule as relative_to_rule
from analysis.studies.forecast import FORECASTS as FORECASTS
from analysis.studies.forecast import actual_cohorts as actual_cohorts
from analysis.studies.forecast import failures as failures
from analysis.studies.forecast import forecast as forecast
from analysis.studies.forecast import no_recursion as no_recursion
from analysis.studies.forecast import predict_every_rule as predict_every_rule
from analysis.studies.forecast import score as score
from analysis.studies.forecast import summarize as summarize
