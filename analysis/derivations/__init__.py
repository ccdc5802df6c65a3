"""Symbolic derivations of the rates and floors that `analysis.closed_form` evaluates."""
