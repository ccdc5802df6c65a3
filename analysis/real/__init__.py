"""The theory scored on real updates: calibrated on a run's first rounds, compared with the others.

Input is the dataset of a training run: the clients' amplitudes on the singular directions that they
started from, `s_{k,i} = u_i^T dW_k v_i`, and the energies that the server made of them.
"""

from analysis.real.calibration import Calibration as Calibration
from analysis.real.calibration import calibrate as calibrate
from analysis.real.calibration import pure_suppression as pure_suppression
from analysis.real.counterfactuals import accuracy_gain as accuracy_gain
from analysis.real.counterfactuals import coverage_shares as coverage_shares
from analysis.real.counterfactuals import one_step_energy as one_step_energy
from analysis.real.counterfactuals import relative_to_rule as relative_to_rule
from analysis.real.failures import failures as failures
from analysis.real.failures import summarise as summarise
from analysis.real.forecast import actual_cohorts as actual_cohorts
from analysis.real.forecast import forecast as forecast
from analysis.real.forecast import no_recursion as no_recursion
from analysis.real.scoring import FORECASTS as FORECASTS
from analysis.real.scoring import predict_every_rule as predict_every_rule
from analysis.real.scoring import score as score
from analysis.real.updates import by_partition as by_partition
from analysis.real.updates import describe_updates as describe_updates
from analysis.real.updates import drifts as drifts
from analysis.real.updates import mean_leakage as mean_leakage
