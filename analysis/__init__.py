"""The theory and its verification: predict, design, verify, and compare with measurements."""

import lazy_loader

# Names are imported on first use, as listed in __init__.pyi. `design`, `diagnose`, `ledger` and
# `predict` are functions in modules of the same name: lazy_loader keeps the import of the module
# from replacing them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
