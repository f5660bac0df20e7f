"""Batch Normalization for Flax NNX: the layer, and the statistics of a whole model."""

from bn_jax.layers.nnx import BatchMoments as BatchMoments
from bn_jax.layers.nnx import BatchNorm as BatchNorm
from bn_jax.nnx.freeze import FrozenParam as FrozenParam
from bn_jax.nnx.freeze import freeze as freeze
from bn_jax.nnx.statistics import accumulate_batch_stats as accumulate_batch_stats
from bn_jax.nnx.statistics import population_statistics as population_statistics
from bn_jax.nnx.statistics import with_counts as with_counts
