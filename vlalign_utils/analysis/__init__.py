"""What states show: probes, lenses and geometry, pure functions on tensors and states."""
