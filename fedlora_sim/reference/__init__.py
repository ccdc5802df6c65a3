"""Slow reference, independent of the fast code: float64, dense, one client at a time.

It takes the same random draws as the simulator and must give the same numbers. It is meant to be
read and compared with, not to be used.
"""
