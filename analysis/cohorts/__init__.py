"""Random cohorts: the law of the aggregation weights and its moments."""
