"""Studies of real fine-tuning: runs, findings, and forecasts of later rounds from the first ones.

The input is the dataset of a training run: the clients' amplitudes on the singular directions at
the start of the round, `s_{k,i} = u_i^T dW_k v_i`, and the energies after aggregation.
"""

from __future__ import annotations

from analysis.studies.findings import accuracy_gain as accuracy_gain
from analysis.studies.findings import coverage_shares as coverage_shares
from analysis.studies.findings import one_step_energy as one_step_energy
from analysis.studies.findings import relative_to_rule as relative_to_rule
from analysis.studies.forecast import DriftCalibration as DriftCalibration
from analysis.studies.forecast import calibrate as calibrate
from analysis.studies.forecast import forecast as forecast
from analysis.studies.updates import by_partition as by_partition
from analysis.studies.updates import describe_updates as describe_updates
