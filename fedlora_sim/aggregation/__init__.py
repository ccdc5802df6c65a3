"""Aggregation rules, one per file, and `aggregate`, the door to them all."""

from fedlora_sim.aggregation.fedavg import FedAvg as FedAvg
from fedlora_sim.aggregation.raflora import RaFLoRA as RaFLoRA
from fedlora_sim.aggregation.registry import get_rule as get_rule
from fedlora_sim.aggregation.registry import register as register
from fedlora_sim.aggregation.registry import rule_names as rule_names
from fedlora_sim.aggregation.rule import AggregationRule as AggregationRule
from fedlora_sim.aggregation.rule import Cohort as Cohort
from fedlora_sim.aggregation.server import aggregate as aggregate
from fedlora_sim.aggregation.zero_pad import ZeroPad as ZeroPad
