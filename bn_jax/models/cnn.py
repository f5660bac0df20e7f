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

    Each block ends with max pooling over 2 x 2 pixels, which halves the image. The
    output of the last block is flattened for the linear layer of class scores.
    Normalization precedes each nonlinearity; the convolution then has no bias. Each
    channel has one mean and variance, over all examples and pixels. The scores are not
    normalized.
    Source: Ioffe & Szegedy (2015), section 3.2.

    The input of each hidden nonlinearity is sown into `intermediates` as
    `hidden<i>_input`, counted from 0.

    Attributes:
        num_classes: Number of class scores.
        channels: Number of channels of each block's convolution.
        kernel_size: Height and width of every convolution, in pixels. The edges are
            padded with zeros.
        nonlinearity: Function applied in each block.
        norm: Factory of normalization layers. It is called with `use_running_average`,
            `name` and, if the model has a `dtype`, `dtype`. None builds a network
            without normalization.
        dtype: Dtype of the blocks; None promotes the dtypes of images and parameters.
            Parameters and the layer of scores are always float32: half-precision
            scores would cost the loss its last digits.
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
        """Returns the scores of each class.

        Args:
            images: Pixels, channels last.
            train: True normalizes by the batch and updates the running statistics.

        Returns:
            Unnormalized log-probabilities (logits), in float32 or wider.

        Raises:
            ValueError: If there is no block, a block has no channels, `kernel_size` is
                below 1, or the images do not have four axes or are too small.
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
        # No `dtype` here: the layer promotes its input to its float32 parameters.
        return nn.Dense(self.num_classes, name="logits")(h)

    @property
    def last_hidden_input(self) -> str:
        """Path in `intermediates` of the input of the last hidden nonlinearity."""
        return f"hidden{len(self.channels) - 1}_input"

    def _check(self, shape: Sequence[int]) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(
                "CNN: channels must list at least one block, with at least one channel "
                f"each, but is {tuple(self.channels)}."
            )
        if self.kernel_size < 1:
            raise ValueError(
                f"CNN: kernel_size must be at least 1 pixel, but is {self.kernel_size}."
            )
        if len(shape) != 4:
            raise ValueError(
                "CNN: images must have the axes (batch, height, width, channels), but "
                f"have the shape {tuple(shape)}."
            )
        smallest = 2 ** len(self.channels)
        if min(shape[1:3]) < smallest:
            raise ValueError(
                f"CNN: {len(self.channels)} blocks, each of which halves the image, "
                f"need images of at least {smallest} x {smallest} pixels, but the "
                f"images have {shape[1]} x {shape[2]}; fewer blocks (entries of "
                "channels) need smaller images."
            )
