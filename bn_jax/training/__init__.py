"""Training from a configuration: `bn_jax.training.loop` is the file to read first."""

from bn_jax.extras import require_train_extra

require_train_extra(__name__)

from bn_jax.training.base_config import base_config as base_config
from bn_jax.training.evaluation.evaluate import evaluate as evaluate
from bn_jax.training.loop import train as train
from bn_jax.training.trained import load as load
