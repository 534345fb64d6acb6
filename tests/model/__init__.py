"""Random programs against a small model that knows the right verdicts."""
