"""The drift law on real training.

Under Adam local training adds a nearly constant amount c to every amplitude, so that a round maps
the amplitude X of a partition to `X' = mu (X + c)`, with mu the rule's multiplier for the coverage
of the round's cohort. Collapse then stops at the floor `W c / (1 - W)` under FedAvg, and raFLoRA's
amplitudes grow linearly. Here X is the root of a partition's energy in one layer. Predictions and
margins were fixed on pilot runs with other seeds.
"""
