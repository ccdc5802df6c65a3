"""Diagnose a federated run from what it leaves behind, or monitor one while it trains."""

import lazy_loader

# Names are imported on first use, as listed in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
