"""Flax layers, Linen and NNX, around the functions of `bn_jax.core`."""
