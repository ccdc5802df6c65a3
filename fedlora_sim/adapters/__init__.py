"""PEFT LoRA adapter folders: read, checked, aggregated and written."""

from fedlora_sim.adapters.config import AdapterConfig as AdapterConfig
from fedlora_sim.adapters.federated import AggregationReport as AggregationReport
from fedlora_sim.adapters.federated import aggregate_adapters as aggregate_adapters
from fedlora_sim.adapters.layers import LayerReport as LayerReport
from fedlora_sim.adapters.reading import AdapterFolder as AdapterFolder
