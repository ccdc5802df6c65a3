"""Aggregation rules, one per file, and `aggregate`, the function that applies them."""

from __future__ import annotations

from fedlora_sim.rules.aggregate import aggregate as aggregate
from fedlora_sim.rules.base import NO_STATE as NO_STATE
from fedlora_sim.rules.base import AggregationRule as AggregationRule
from fedlora_sim.rules.base import Aggregator as Aggregator
from fedlora_sim.rules.base import Context as Context
from fedlora_sim.rules.base import State as State
from fedlora_sim.rules.cohort import Aggregated as Aggregated
from fedlora_sim.rules.cohort import Cohort as Cohort
from fedlora_sim.rules.external import as_rule as as_rule
from fedlora_sim.rules.fedavg import FedAvg as FedAvg
from fedlora_sim.rules.fedex import FedEx as FedEx
from fedlora_sim.rules.ffa import FFA as FFA
from fedlora_sim.rules.flora import FLoRA as FLoRA
from fedlora_sim.rules.hetlora import HetLoRA as HetLoRA
from fedlora_sim.rules.properties import Properties as Properties
from fedlora_sim.rules.raflora import RaFLoRA as RaFLoRA
from fedlora_sim.rules.rbla import RBLA as RBLA
from fedlora_sim.rules.registry import get_rule as get_rule
from fedlora_sim.rules.registry import register as register
from fedlora_sim.rules.registry import rule_aliases as rule_aliases
from fedlora_sim.rules.registry import rule_names as rule_names
from fedlora_sim.rules.zero_pad import ZeroPad as ZeroPad
