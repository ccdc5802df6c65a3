"""The command line, on top of the simulator, the theory and the figures."""
