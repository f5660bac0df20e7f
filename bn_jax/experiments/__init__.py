"""The paper's experiments: the runs they need, and the figures made from them."""

from bn_jax.extras import require_train_extra

require_train_extra(__name__)
