"""Batch Normalization for JAX and Flax.

`BatchNorm` is the Linen layer, `nnx.BatchNorm` the NNX layer, and `batch_norm` the
function under both.
"""

from bn_jax import nnx as nnx
from bn_jax.core.batch_norm import batch_norm as batch_norm
from bn_jax.core.types import Moments as Moments
from bn_jax.layers.frozen import frozen as frozen
from bn_jax.layers.linen import BatchNorm as BatchNorm
from bn_jax.stats.accumulate import accumulate_batch_stats as accumulate_batch_stats
from bn_jax.stats.counts import with_counts as with_counts
from bn_jax.stats.merge import merge_batch_stats as merge_batch_stats
from bn_jax.stats.norm_mask import norm_mask as norm_mask
from bn_jax.stats.precise import population_statistics as population_statistics

__all__ = [
    "BatchNorm",
    "Moments",
    "accumulate_batch_stats",
    "batch_norm",
    "frozen",
    "merge_batch_stats",
    "nnx",
    "norm_mask",
    "population_statistics",
    "with_counts",
]
__version__ = "0.2.0"
