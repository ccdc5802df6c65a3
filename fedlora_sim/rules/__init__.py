"""Aggregation rules, one per file, and `aggregate`, the function that applies them."""

import lazy_loader

from fedlora_sim.rules import fedavg, fedex, ffa, flora, hetlora, raflora, rbla, zero_pad

# The built-in rules register themselves on import. Names are imported on first use, as listed in
# __init__.pyi: rules can be listed without torch, which takes seconds.
BUILT_IN = (fedavg, fedex, ffa, flora, hetlora, raflora, rbla, zero_pad)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
