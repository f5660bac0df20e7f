"""The fully connected network of the paper's MNIST experiment."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax.nn import initializers
from jaxtyping import Array, Float

from bn_jax.models.ops.mixed_precision import dot_general, promote_inputs


class MLP(nn.Module):
    """Hidden layers of one nonlinearity each, and a linear layer of class scores.

    Normalization stands on Wu, before each nonlinearity, and takes the bias's place;
    the scores are not normalized.
    Source: Ioffe & Szegedy (2015), sections 3.2 and 4.1.

    What each hidden nonlinearity receives is sown into `intermediates` as
    `hidden<i>_input`, counted from 0.

    Attributes:
        num_classes: Number of class scores.
        hidden_features: Units of each hidden layer.
        nonlinearity: Function applied to each hidden layer.
        norm: Makes a normalization layer from `use_running_average`, `name` and,
            where the model has one, `dtype`; None for none.
        kernel_stddev: Standard deviation of the initial weights, N(0, stddev^2).
        dtype: Dtype that the hidden layers compute in; by default that of images and
            parameters promoted. Parameters are float32, and so is the layer of
            scores: a loss of half-precision scores would lose its last digits.
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
        """Scores of each class.

        Args:
            images: One image a row, of any shape.
            train: Normalize by the batch's statistics, and update the running ones.

        Returns:
            Unnormalized log-probabilities (logits), in float32 or wider.

        Raises:
            ValueError: If there is no hidden layer, or one without units.
        """
        if not self.hidden_features or min(self.hidden_features) < 1:
            raise ValueError(
                "MLP: hidden_features must name at least one hidden layer, of at least "
                f"one unit each; they are {tuple(self.hidden_features)}."
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
        # Without a dtype of its own it computes in that of its float32 parameters.
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="logits")(h)

    @property
    def last_hidden_input(self) -> str:
        """Name in `intermediates` of what the last hidden nonlinearity receives."""
        return f"hidden{len(self.hidden_features) - 1}_input"
