"""Ways to hand a data set out to clients, one a file; and what to look at it with."""

from fedlora_sim.splits.by_writer import writer_split as writer_split
from fedlora_sim.splits.dirichlet import dirichlet_split as dirichlet_split
from fedlora_sim.splits.feature_shift import add_feature_noise as add_feature_noise
from fedlora_sim.splits.feature_shift import feature_noise_levels as feature_noise_levels
from fedlora_sim.splits.iid import iid_split as iid_split
from fedlora_sim.splits.pathological import pathological_split as pathological_split
from fedlora_sim.splits.quantity import quantity_split as quantity_split
from fedlora_sim.splits.table import split_table as split_table
