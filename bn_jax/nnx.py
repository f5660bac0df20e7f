"""Batch Normalization for Flax NNX."""

from bn_jax.layers.nnx import BatchNorm as BatchNorm
