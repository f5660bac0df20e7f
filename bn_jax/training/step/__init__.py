"""A training step: its state, gradients, statistics and metrics."""
