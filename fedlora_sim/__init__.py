"""fedlora-sim: simulate federated low-rank adaptation and its rank collapse."""

import lazy_loader

# A name is imported when it is asked for: torch takes seconds. Which there are is in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
