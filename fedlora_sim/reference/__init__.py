"""Slow reference implementation: float64, dense, one client at a time.

Independent of the fast code.

It takes the same random draws as the simulator and must give the same numbers. It is meant to be
read and compared with, not to be used.
"""
