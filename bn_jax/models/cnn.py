"""A small convolutional network for images such as MNIST's."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax.nn import initializers
from jaxtyping import Array, Float

from bn_jax.models.ops.mixed_precision import convolve_same, promote_inputs
from bn_jax.models.ops.pooling import max_pool


class CNN(nn.Module):
    """Blocks of convolution, normalization and nonlinearity, and a linear layer.

    Each block halves the image by a maximum over 2 x 2 pixels; what the last one
    leaves is laid flat for the linear layer of class scores. Normalization stands
    before each nonlinearity and takes the bias's place; one mean and variance belong
    to each channel, over all examples and positions. The scores are not normalized.
    Source: Ioffe & Szegedy (2015), section 3.2.

    What each hidden nonlinearity receives is sown into `intermediates` as
    `hidden<i>_input`, counted from 0.

    Attributes:
        num_classes: Number of class scores.
        channels: Channels of each block's convolution.
        kernel_size: Height and width of every convolution, in pixels; the edges are
            padded by zeros.
        nonlinearity: Function applied in each block.
        norm: Makes a normalization layer from `use_running_average`, `name` and,
            where the model has one, `dtype`; None for none.
        dtype: Dtype that the blocks compute in; by default that of images and
            parameters promoted. Parameters are float32, and so is the layer of
            scores: a loss of half-precision scores would lose its last digits.
    """

    num_classes: int
    channels: Sequence[int] = (16, 32, 64)
    kernel_size: int = 3
    nonlinearity: Callable[[Array], Array] = nn.relu
    norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Scores of each class.

        Args:
            images: Pixels, channels last.
            train: Normalize by the batch's statistics, and update the running ones.

        Returns:
            Unnormalized log-probabilities (logits), in float32 or wider.

        Raises:
            ValueError: If there is no block, one without channels, a kernel without
                pixels, or if the images have another rank or are too small.
        """
        self._check(images.shape)
        kernel_init = initializers.he_normal()
        norm_dtype = {} if self.dtype is None else {"dtype": self.dtype}
        h = images
        for index, features in enumerate(self.channels):
            convolution = nn.Conv(
                features,
                (self.kernel_size, self.kernel_size),
                use_bias=self.norm is None,
                kernel_init=kernel_init,
                dtype=self.dtype,
                promote_dtype=promote_inputs,
                conv_general_dilated=convolve_same,
                name=f"hidden{index}",
            )
            h = jnp.asarray(convolution(h), self.dtype)
            if self.norm is not None:
                name = f"norm{index}"
                norm = self.norm(use_running_average=not train, name=name, **norm_dtype)
                h = norm(h)
            self.sow("intermediates", f"hidden{index}_input", h)
            h = max_pool(self.nonlinearity(h), 2, stride=2)
        h = jnp.reshape(h, (h.shape[0], -1))
        # Without a dtype of its own it computes in that of its float32 parameters.
        return nn.Dense(self.num_classes, name="logits")(h)

    @property
    def last_hidden_input(self) -> str:
        """Name in `intermediates` of what the last hidden nonlinearity receives."""
        return f"hidden{len(self.channels) - 1}_input"

    def _check(self, shape: Sequence[int]) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(
                "CNN: channels must name at least one block, of at least one channel "
                f"each; they are {tuple(self.channels)}."
            )
        if self.kernel_size < 1:
            raise ValueError(
                f"CNN: kernel_size must be at least 1 pixel, and is {self.kernel_size}."
            )
        if len(shape) != 4:
            raise ValueError(
                "CNN: images must have the axes (batch, height, width, channels), and "
                f"have the shape {tuple(shape)}."
            )
        smallest = 2 ** len(self.channels)
        if min(shape[1:3]) < smallest:
            raise ValueError(
                f"CNN: {len(self.channels)} blocks, each of which halves the image, "
                f"need images of at least {smallest} x {smallest} pixels, and these "
                f"have {shape[1]} x {shape[2]}; fewer channels would do."
            )
