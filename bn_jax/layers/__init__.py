"""Batch Normalization as layers of Flax: thin adapters of the core."""
