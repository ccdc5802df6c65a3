"""fedlora-sim: simulate federated low-rank adaptation and its rank collapse."""

from fedlora_sim.aggregation import aggregate as aggregate
from fedlora_sim.aggregation import rule_names as rule_names
from fedlora_sim.factors import LoRAFactors as LoRAFactors
from fedlora_sim.federation import Federation as Federation
from fedlora_sim.federation import parse_ranks as parse_ranks
from fedlora_sim.scenario import Scenario as Scenario
from fedlora_sim.simulate import simulate as simulate
from fedlora_sim.simulate import simulate_many as simulate_many
from fedlora_sim.version import __version__ as __version__
