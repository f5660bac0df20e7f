"""Figures and tables of runs, made from their workdirs."""

from bn_jax.extras import require_train_extra

require_train_extra(__name__)
