"""Training from a configuration: `bn_jax.training.loop.train` is where to begin."""

from bn_jax.extras import require_train_extra

require_train_extra(__name__)
