"""Symbolic derivations of everything that `analysis.closed_form` evaluates, one section per module.

A derivation starts from indicator variables, a few explicit clients, a recurrence or a differential
equation, and lets sympy do the algebra; nothing is transcribed. The modules are imported one by one
(`from analysis.derivations import flow`), so that numeric code never pays for sympy;
`python -m analysis.derivations.appendix` prints them all as LaTeX.
"""
