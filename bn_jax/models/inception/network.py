"""BN-Inception, the paper's network for ImageNet, at any width and for small images."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax.nn import initializers
from jaxtyping import Array, Float

from bn_jax.models.inception import sizes
from bn_jax.models.inception.table import (
    FIGURE_5,
    Branch,
    Convolution,
    Network,
    Pool,
    stages,
)
from bn_jax.models.ops.mixed_precision import convolve, convolve_same, promote_inputs
from bn_jax.models.ops.pooling import average_pool, max_pool


class Inception(nn.Module):
    """A stem, ten modules of joined branches, their average, and a linear layer.

    Normalization stands before each nonlinearity and takes the bias's place; one mean
    and variance belong to each channel, over all examples and positions. The scores
    are not normalized. The layers are those of `inception.table.FIGURE_5`; poolings
    and strides are aligned as in the networks that PyTorch's users exchange.
    Source: Ioffe & Szegedy (2015), section 4.2 and Figure 5.

    What each nonlinearity receives is sown into `intermediates` as `<name>_input`,
    by the convolution's name: conv1, conv2_reduce, conv2, and for the module 3a, as
    for every other, 3a_1x1, 3a_3x3_reduce, 3a_3x3, 3a_double_3x3_reduce,
    3a_double_3x3_1, 3a_double_3x3_2 and 3a_pool_projection. Its normalization has the
    name with `_norm` behind it.

    Attributes:
        num_classes: Number of class scores.
        variant: "paper_rows" or "slim"; see `inception.table.stages`.
        stem: "imagenet" for images of 224 pixels or so, "small" for 28 to 64.
        separable: Whether the first convolution is separable, as in the paper, or
            dense, as in most networks that were trained.
        width: Factor of all channels.
        nonlinearity: Function applied behind each convolution.
        norm: Makes a normalization layer from `use_running_average`, `name` and,
            where the model has them, `dtype` and `axis`; None for none.
        use_bias: Whether convolutions have a bias; by default where nothing is
            normalized. A bias that is normalized away changes nothing.
        dropout_rate: Fraction of the averages before the linear layer that training
            drops, drawn from the key "dropout"; the paper's networks drop none, some
            of its ensemble 0.05 or 0.1, and Inception without normalization 0.4.
        per_activation_modules: Modules whose normalization has a mean and variance
            for each position and channel, over the examples alone. The paper has
            that in "last hidden layers" of some networks of its ensemble and names
            none; ("5b",) is what it may have meant. Images must keep their size then.
        kernel_gain: Factor of the initial weights' standard deviation, that of He et
            al. (2015); the networks of the paper's ensemble began with larger ones.
        dtype: Dtype that the convolutions compute in; by default that of images and
            parameters promoted. Parameters are float32, and so are the averages and
            the layer of scores.
    """

    num_classes: int
    variant: str = "paper_rows"
    stem: str = "imagenet"
    separable: bool = True
    width: float = 1.0
    nonlinearity: Callable[[Array], Array] = nn.relu
    norm: Callable[..., nn.Module] | None = None
    use_bias: bool | None = None
    dropout_rate: float = 0.0
    per_activation_modules: Sequence[str] = ()
    kernel_gain: float = 1.0
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
            ValueError: If a field has a value that it cannot have, or if the images
                have another rank or are too small.
        """
        self.check_shape(images.shape)
        h = images
        for stage in self.network:
            per_activation = stage.name in self.per_activation_modules
            branches = [
                self._branch(branch, h, train=train, per_activation=per_activation)
                for branch in stage.branches
            ]
            h = jnp.concatenate(branches, axis=-1)
        wide = jnp.promote_types(h.dtype, jnp.float32)
        h = jnp.mean(h, axis=(1, 2), dtype=wide)
        h = nn.Dropout(self.dropout_rate, deterministic=not train)(h)
        return nn.Dense(self.num_classes, name="logits")(h)

    @property
    def network(self) -> Network:
        """The layers by stages."""
        return stages(
            variant=self.variant,
            stem=self.stem,
            separable=self.separable,
            width=self.width,
        )

    @property
    def has_biases(self) -> bool:
        """Whether convolutions have a bias."""
        return self.norm is None if self.use_bias is None else self.use_bias

    @property
    def last_hidden_input(self) -> str:
        """Name in `intermediates` of what the deepest hidden nonlinearity receives."""
        return f"{self.network[-1].name}_double_3x3_2_input"

    def check_shape(self, shape: Sequence[int]) -> None:
        """Makes sure that the network can be made, and made for such images.

        Args:
            shape: Of the images, `(batch, height, width, channels)`.

        Raises:
            ValueError: As for a call.
        """
        self._check_fields()
        network = self.network
        if len(shape) != 4 or shape[3] < 1:
            raise ValueError(
                "Inception: images must have the axes (batch, height, width, channels)"
                f", and have the shape {tuple(shape)}."
            )
        if shape[1] in (1, 3) and shape[3] > 4:
            raise ValueError(
                "Inception: channels come last, and images of the shape "
                f"{tuple(shape)} have them first, it seems; transpose them to "
                "(batch, height, width, channels)."
            )
        if not all(sizes.is_large_enough(network, n) for n in shape[1:3]):
            smallest = sizes.smallest_size(network)
            hint = "" if self.stem == "small" else "; stem='small' would do from 3 x 3"
            raise ValueError(
                f"Inception: the stem {self.stem!r} and two modules that halve the "
                f"image need images of at least {smallest} x {smallest} pixels, and "
                f"these have {shape[1]} x {shape[2]}{hint}."
            )

    def _branch(
        self, branch: Branch, h: Array, *, train: bool, per_activation: bool
    ) -> Array:
        for layer in branch:
            if isinstance(layer, Pool):
                h = _pool(layer, h)
                continue
            h = self._convolve(layer, h)
            if self.norm is not None:
                fields: dict[str, Any] = {"name": f"{layer.name}_norm"}
                if self.dtype is not None:
                    fields["dtype"] = self.dtype
                if per_activation:
                    fields["axis"] = (1, 2, 3)
                h = self.norm(use_running_average=not train, **fields)(h)
            self.sow("intermediates", f"{layer.name}_input", h)
            h = self.nonlinearity(h)
        return h

    def _convolve(self, layer: Convolution, h: Array) -> Array:
        if layer.is_separable:
            h = self._convolve_each_channel(layer, h)
            layer = layer._replace(kernel_size=1, stride=1)
        convolution = nn.Conv(
            layer.features,
            (layer.kernel_size,) * 2,
            (layer.stride,) * 2,
            _padding(layer, h),
            use_bias=self.has_biases,
            kernel_init=self._kernel_init(2.0),
            dtype=self.dtype,
            promote_dtype=promote_inputs,
            # Which pads odd kernels on both sides alike.
            conv_general_dilated=convolve_same,
            name=layer.name,
        )
        return jnp.asarray(convolution(h), self.dtype)

    def _convolve_each_channel(self, layer: Convolution, h: Array) -> Array:
        return nn.Conv(
            sizes.DEPTH_MULTIPLIER * h.shape[-1],
            (layer.kernel_size,) * 2,
            (layer.stride,) * 2,
            _padding(layer, h),
            feature_group_count=h.shape[-1],
            use_bias=False,
            # No nonlinearity follows that would halve the squares.
            kernel_init=self._kernel_init(1.0),
            dtype=self.dtype,
            promote_dtype=promote_inputs,
            conv_general_dilated=convolve,
            name=f"{layer.name}_depthwise",
        )(h)

    def _kernel_init(self, scale: float) -> Initializer:
        scale *= self.kernel_gain**2
        return initializers.variance_scaling(scale, "fan_in", "normal")

    def _check_fields(self) -> None:
        modules = [row.name for row in FIGURE_5]
        if isinstance(self.per_activation_modules, str):
            raise ValueError(
                "Inception: per_activation_modules must be a sequence of modules' names"
                f", and is the string {self.per_activation_modules!r}; "
                f"({self.per_activation_modules!r},) has one."
            )
        unknown = [n for n in self.per_activation_modules if n not in modules]
        if unknown:
            raise ValueError(
                f"Inception: per_activation_modules must be among {', '.join(modules)}"
                f", and {', '.join(map(repr, unknown))} is not."
            )
        if self.per_activation_modules and self.norm is None:
            raise ValueError(
                "Inception: per_activation_modules says how the modules "
                f"{', '.join(self.per_activation_modules)} are normalized, and norm is "
                "None; give a norm, or no such modules."
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(
                "Inception: dropout_rate must be the fraction in [0, 1) that is "
                f"dropped, and is {self.dropout_rate}; 0.0 drops none."
            )
        if not 0 < self.kernel_gain < float("inf"):
            raise ValueError(
                "Inception: kernel_gain must be a positive factor of the initial "
                f"weights, and is {self.kernel_gain}; 1.0 is that of He et al."
            )


def multiply_adds(model: Inception, image_shape: Sequence[int]) -> int:
    """Multiply-adds of one image's scores: convolutions and linear layer alone.

    The FLOPs that others print are twice as many, or as many by another name.

    Args:
        model: The network.
        image_shape: Height, width and channels of an image.

    Raises:
        ValueError: If the network takes no such images.

    >>> multiply_adds(Inception(num_classes=1000), (224, 224, 3))
    1948605440
    """
    model.check_shape((1, *image_shape))
    return sizes.multiply_adds(
        model.network, image_shape, num_classes=model.num_classes
    )


def _pool(pool: Pool, h: Array) -> Array:
    function = {"avg": average_pool, "max": max_pool}[pool.kind]
    return function(h, 3, stride=pool.stride, padding=_padding(pool, h))


def _padding(layer: Convolution | Pool, h: Array) -> list[tuple[int, int]]:
    return [sizes.padding(layer, size) for size in h.shape[1:3]]
