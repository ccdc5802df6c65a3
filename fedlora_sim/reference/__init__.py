"""The slow reference: float64, dense, one client at a time, sharing nothing with the fast path.

It takes the same random draws as the simulator and must arrive at the same numbers; it exists to
be read and compared with, not to be used.
"""
