"""What should happen and whether it did: closed forms, derivations, estimators and verdicts."""
