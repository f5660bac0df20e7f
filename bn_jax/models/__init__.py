"""Networks that take their normalization layer as an argument."""

from bn_jax.models.registry import make_model as make_model
from bn_jax.models.registry import make_norm as make_norm
