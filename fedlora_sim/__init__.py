"""fedlora-sim: simulate federated low-rank adaptation and its rank collapse."""

import lazy_loader

# Names are imported on first use, as listed in __init__.pyi: torch takes seconds. `simulate` is a
# function in a module of the same name: lazy_loader keeps the import of the module from replacing
# the function.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
