"""PEFT LoRA adapter folders: read, checked, aggregated and written."""

from fedlora_sim.adapters.config import AdapterConfig as AdapterConfig
from fedlora_sim.adapters.reading import AdapterFolder as AdapterFolder
