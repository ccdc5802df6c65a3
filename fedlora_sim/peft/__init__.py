"""PEFT LoRA adapter folders: read, check, aggregate and write them."""

from __future__ import annotations

from fedlora_sim.peft.aggregate import AggregationReport as AggregationReport
from fedlora_sim.peft.aggregate import aggregate_adapters as aggregate_adapters
from fedlora_sim.peft.config import AdapterConfig as AdapterConfig
from fedlora_sim.peft.layers import LayerReport as LayerReport
from fedlora_sim.peft.read import AdapterFolder as AdapterFolder
from fedlora_sim.peft.server import AdapterServer as AdapterServer
from fedlora_sim.peft.server import receive_state as receive_state
from fedlora_sim.peft.state_dicts import AggregatedStateDicts as AggregatedStateDicts
from fedlora_sim.peft.state_dicts import aggregate_state_dicts as aggregate_state_dicts
from fedlora_sim.peft.state_dicts import truncate_state_dict as truncate_state_dict
