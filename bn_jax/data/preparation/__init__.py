"""Preparation of data sets for training."""

from bn_jax.extras import require_train_extra

require_train_extra(__name__)
