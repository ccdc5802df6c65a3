"""PEFT LoRA adapter folders: read, check, aggregate and write them."""

from __future__ import annotations

from fedlora_sim.peft.aggregate import AggregationReport as AggregationReport
from fedlora_sim.peft.aggregate import aggregate_adapters as aggregate_adapters
from fedlora_sim.peft.config import AdapterConfig as AdapterConfig
from fedlora_sim.peft.layers import LayerReport as LayerReport
from fedlora_sim.peft.read import AdapterFolder as AdapterFolder
