"""Random cohorts: the distribution of the aggregation weights and its moments."""
