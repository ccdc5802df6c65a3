"""Figures, one module each, drawn from result files: nothing here simulates."""

import lazy_loader

# Imported when asked for, as listed in __init__.pyi: one figure does not pay for all others.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
