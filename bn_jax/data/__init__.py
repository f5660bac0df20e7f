"""Data sets as NumPy arrays on the host."""

from bn_jax.extras import require_train_extra

require_train_extra(__name__)

from bn_jax.data.dataset import ArraySplit as ArraySplit
from bn_jax.data.dataset import Dataset as Dataset
from bn_jax.data.load import load_dataset as load_dataset
