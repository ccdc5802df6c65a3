"""From simulated runs to numbers with intervals, and from those to verdicts."""
