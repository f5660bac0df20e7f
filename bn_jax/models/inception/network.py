"""BN-Inception, the ImageNet network of the paper, also at other widths and sizes."""

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
    """A stem, ten modules of parallel branches, a global average and a linear layer.

    Each convolution is followed by a normalization and then a nonlinearity. The
    normalization replaces the bias and has one mean and variance for each channel,
    over all examples and positions. The class scores are not normalized.
    `inception.table.FIGURE_5` lists the layers. Poolings and strided convolutions are
    aligned as in the PyTorch networks whose weights `torch_weights` reads.
    Source: Ioffe & Szegedy (2015), section 4.2 and Figure 5.

    The input of each nonlinearity is sown into `intermediates` as `<name>_input`,
    where `<name>` is the name of the convolution. The stem has conv1, conv2_reduce and
    conv2. The module 3a has 3a_1x1, 3a_3x3_reduce, 3a_3x3, 3a_double_3x3_reduce,
    3a_double_3x3_1, 3a_double_3x3_2 and 3a_pool_projection; the other modules have
    their own prefix. The normalization after a convolution is called `<name>_norm`.

    Attributes:
        num_classes: Number of class scores.
        variant: "paper_rows" uses the rows of Figure 5, "slim" the output sizes that
            Figure 5 prints beside these rows.
        stem: "imagenet" for images of about 224 pixels, "small" for 28 to 64.
        separable: True makes the first convolution separable, as in the paper; False
            makes it dense, as in most networks whose trained weights are published.
        width: Factor of all channel numbers.
        nonlinearity: Function applied after each normalization.
        norm: Function that makes a normalization layer from `use_running_average`,
            `name` and, if the model sets them, `dtype` and `axis`. None leaves
            normalization out.
        use_bias: True gives convolutions a bias. By default they have one only if norm
            is None, because a normalization subtracts the bias again with the mean.
        dropout_rate: Fraction of the global averages that training drops before the
            linear layer, drawn with the key "dropout". The paper uses 0, in some
            networks of its ensemble 0.05 or 0.1, and 0.4 without normalization.
        per_activation_modules: Names of modules whose normalization has one mean and
            variance for each position and channel, over the examples only. All images
            must then have the same size. The paper does so in the "last hidden layers"
            of some networks of its ensemble, without naming them; it may mean ("5b",).
        kernel_gain: Factor of the initial weights' standard deviation; 1.0 is that of
            He et al. (2015). The networks of the paper's ensemble used larger values.
        dtype: Dtype of the convolutions; by default the dtype to which images and
            parameters promote. Parameters, global averages and class scores are
            float32.
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
        """Computes the scores of each class.

        Args:
            images: Pixels, channels last.
            train: True normalizes by the batch's statistics, updates the running
                statistics and applies dropout.

        Returns:
            Unnormalized log-probabilities (logits), in float32 or wider.

        Raises:
            ValueError: If a field is invalid, or the images have the wrong rank or are
                too small.
        """
        self.check_shape(images.shape)
        h = images
        for stage in self.network:
            per_activation = stage.name in self.per_activation_modules
            branches = [
                self._apply_branch(
                    branch, h, train=train, per_activation=per_activation
                )
                for branch in stage.branches
            ]
            h = jnp.concatenate(branches, axis=-1)
        wide = jnp.promote_types(h.dtype, jnp.float32)
        h = jnp.mean(h, axis=(1, 2), dtype=wide)
        h = nn.Dropout(self.dropout_rate, deterministic=not train)(h)
        return nn.Dense(self.num_classes, name="logits")(h)

    @property
    def network(self) -> Network:
        """The stages of the network, each with its layers."""
        return stages(
            variant=self.variant,
            stem=self.stem,
            separable=self.separable,
            width=self.width,
        )

    @property
    def has_biases(self) -> bool:
        """True if convolutions have a bias."""
        return self.norm is None if self.use_bias is None else self.use_bias

    @property
    def last_hidden_input(self) -> str:
        """Path in `intermediates` of the input of the last hidden nonlinearity."""
        return f"{self.network[-1].name}_double_3x3_2_input"

    def check_shape(self, shape: Sequence[int]) -> None:
        """Checks that the fields are valid and that the network accepts the images.

        Args:
            shape: Shape of the images, `(batch, height, width, channels)`.

        Raises:
            ValueError: If a field is invalid, or the images have the wrong rank or are
                too small.
        """
        self._check_fields()
        network = self.network
        if len(shape) != 4 or shape[3] < 1:
            raise ValueError(
                "Inception: images must have the axes (batch, height, width, channels)"
                f", but have the shape {tuple(shape)}."
            )
        if shape[1] in (1, 3) and shape[3] > 4:
            raise ValueError(
                "Inception: channels must come last, but images of the shape "
                f"{tuple(shape)} seem to have them first; transpose them to "
                "(batch, height, width, channels)."
            )
        if not all(sizes.is_large_enough(network, n) for n in shape[1:3]):
            smallest = sizes.smallest_size(network)
            hint = "" if self.stem == "small" else "; stem='small' accepts 3 x 3"
            raise ValueError(
                f"Inception: the stem {self.stem!r} and the two modules that halve the "
                f"image need at least {smallest} x {smallest} pixels, but the images "
                f"have {shape[1]} x {shape[2]}{hint}."
            )

    def _apply_branch(
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
            # Ignores `_padding`, but pads odd kernels equally on both sides too.
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
            # 1.0 instead of 2.0: no nonlinearity follows that halves the mean square.
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
                "Inception: per_activation_modules must be a sequence of module names, "
                f"but is the string {self.per_activation_modules!r}; write "
                f"({self.per_activation_modules!r},)."
            )
        unknown = [n for n in self.per_activation_modules if n not in modules]
        if unknown:
            raise ValueError(
                "Inception: per_activation_modules must be from "
                f"{', '.join(modules)}, but has {', '.join(map(repr, unknown))}."
            )
        if self.per_activation_modules and self.norm is None:
            raise ValueError(
                "Inception: per_activation_modules="
                f"{tuple(self.per_activation_modules)} needs a normalization, but norm "
                "is None; set norm or leave per_activation_modules empty."
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(
                "Inception: dropout_rate must be a fraction in [0, 1), but is "
                f"{self.dropout_rate}; 0.0 drops nothing."
            )
        if not 0 < self.kernel_gain < float("inf"):
            raise ValueError(
                "Inception: kernel_gain must be a positive factor of the initial "
                f"weights, but is {self.kernel_gain}; 1.0 is that of He et al."
            )


def multiply_adds(model: Inception, image_shape: Sequence[int]) -> int:
    """Counts the multiply-adds of convolutions and linear layer for one image.

    Authors who publish FLOPs give twice this number, or this number itself.

    Args:
        model: The network.
        image_shape: Height, width and channels of an image.

    Raises:
        ValueError: If a field of the model is invalid, or the images have the wrong
            rank or are too small.

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
