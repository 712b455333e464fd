"""Which layers are trained, at what cost, with what outcome: strategies, training, study, cost models."""
