"""The fully connected network of the paper's MNIST experiment."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax.nn import initializers
from jaxtyping import Array, Float

from bn_jax.models.ops.mixed_precision import dot_general, promote_inputs


class MLP(nn.Module):
    """Hidden layers with a nonlinearity each, and a linear layer of class scores.

    Normalization is applied to Wu, before each nonlinearity; the hidden layer then has
    no bias. The scores are not normalized.
    Source: Ioffe & Szegedy (2015), sections 3.2 and 4.1.

    The input of each hidden nonlinearity is sown into `intermediates` as
    `hidden<i>_input`, counted from 0.

    Attributes:
        num_classes: Number of class scores.
        hidden_features: Number of units of each hidden layer.
        nonlinearity: Function applied to each hidden layer.
        norm: Factory of normalization layers. It is called with `use_running_average`,
            `name` and, if the model has a `dtype`, `dtype`. None builds a network
            without normalization.
        kernel_stddev: Standard deviation of the initial weights, N(0, stddev^2).
        dtype: Dtype of the hidden layers; None promotes the dtypes of images and
            parameters. Parameters and the layer of scores are always float32:
            half-precision scores would cost the loss its last digits.
    """

    num_classes: int
    hidden_features: Sequence[int] = (100, 100, 100)
    nonlinearity: Callable[[Array], Array] = nn.sigmoid
    norm: Callable[..., nn.Module] | None = None
    kernel_stddev: float = 0.1
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch *pixels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the scores of each class.

        Args:
            images: One image per row, of any shape.
            train: True normalizes by the batch and updates the running statistics.

        Returns:
            Unnormalized log-probabilities (logits), in float32 or wider.

        Raises:
            ValueError: If there is no hidden layer, or a layer has no units.
        """
        if not self.hidden_features or min(self.hidden_features) < 1:
            raise ValueError(
                "MLP: hidden_features must list at least one hidden layer, with at "
                f"least one unit each, but is {tuple(self.hidden_features)}."
            )
        kernel_init = initializers.normal(self.kernel_stddev)
        norm_dtype = {} if self.dtype is None else {"dtype": self.dtype}
        h = jnp.reshape(images, (images.shape[0], -1))
        for index, features in enumerate(self.hidden_features):
            use_bias = self.norm is None
            dense = nn.Dense(
                features,
                use_bias=use_bias,
                kernel_init=kernel_init,
                dtype=self.dtype,
                promote_dtype=promote_inputs,
                dot_general=dot_general,
                name=f"hidden{index}",
            )
            h = jnp.asarray(dense(h), self.dtype)
            if self.norm is not None:
                name = f"norm{index}"
                norm = self.norm(use_running_average=not train, name=name, **norm_dtype)
                h = norm(h)
            self.sow("intermediates", f"hidden{index}_input", h)
            h = self.nonlinearity(h)
        # No `dtype` here: the layer promotes its input to its float32 parameters.
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="logits")(h)

    @property
    def last_hidden_input(self) -> str:
        """Path in `intermediates` of the input of the last hidden nonlinearity."""
        return f"hidden{len(self.hidden_features) - 1}_input"
