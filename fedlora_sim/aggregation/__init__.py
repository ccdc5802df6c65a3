"""Aggregation rules, one per file, and `aggregate`, the door to them all."""

from fedlora_sim.aggregation.cohort import Cohort as Cohort
from fedlora_sim.aggregation.fedavg import FedAvg as FedAvg
from fedlora_sim.aggregation.fedex import FedEx as FedEx
from fedlora_sim.aggregation.ffa import FFA as FFA
from fedlora_sim.aggregation.flora import FLoRA as FLoRA
from fedlora_sim.aggregation.foreign import as_rule as as_rule
from fedlora_sim.aggregation.hetlora import HetLoRA as HetLoRA
from fedlora_sim.aggregation.properties import Properties as Properties
from fedlora_sim.aggregation.protocol import NO_STATE as NO_STATE
from fedlora_sim.aggregation.protocol import Aggregator as Aggregator
from fedlora_sim.aggregation.protocol import Context as Context
from fedlora_sim.aggregation.protocol import State as State
from fedlora_sim.aggregation.raflora import RaFLoRA as RaFLoRA
from fedlora_sim.aggregation.rbla import RBLA as RBLA
from fedlora_sim.aggregation.registry import get_rule as get_rule
from fedlora_sim.aggregation.registry import register as register
from fedlora_sim.aggregation.registry import rule_aliases as rule_aliases
from fedlora_sim.aggregation.registry import rule_names as rule_names
from fedlora_sim.aggregation.result import Aggregated as Aggregated
from fedlora_sim.aggregation.rule import AggregationRule as AggregationRule
from fedlora_sim.aggregation.server import aggregate as aggregate
from fedlora_sim.aggregation.zero_pad import ZeroPad as ZeroPad
