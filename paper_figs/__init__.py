"""Figures, drawn from result files; nothing here simulates."""

import lazy_loader

# Imported on first access, as listed in __init__.pyi, so that one figure does not import all
# others.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
