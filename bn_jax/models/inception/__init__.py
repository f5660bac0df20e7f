"""BN-Inception: the network, and the exchange of its weights with PyTorch."""

from bn_jax.models.inception.network import Inception as Inception
from bn_jax.models.inception.network import multiply_adds as multiply_adds
from bn_jax.models.inception.torch_weights import (
    from_torch_state_dict as from_torch_state_dict,
)
from bn_jax.models.inception.torch_weights import (
    to_torch_state_dict as to_torch_state_dict,
)
