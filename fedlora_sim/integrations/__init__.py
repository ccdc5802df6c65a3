"""Every rule in other frameworks: `flower` and `nvflare`, each an extra of the package.

The modules import their framework. Import them by their full name.
"""
