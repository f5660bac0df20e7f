"""Sizes, channels and multiply-adds of BN-Inception's layers for a given image size."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from bn_jax.models.inception.table import Convolution, Network, Pool, Stage

# Output channels for each input channel in the depthwise half of a separable
# convolution.
DEPTH_MULTIPLIER = 8

Size = tuple[int, ...]


class SizedConvolution(NamedTuple):
    """A convolution with the sizes that follow from its position in the network.

    Attributes:
        convolution: The convolution.
        inputs: Number of input channels.
        size: Height and width of the output, in pixels.
    """

    convolution: Convolution
    inputs: int
    size: Size

    @property
    def kernel_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Kernel shapes: one, or two (depthwise, then 1 x 1) if it is separable.

        The axes are height, width, input channels per group, and output channels.
        """
        convolution = self.convolution
        square = (convolution.kernel_size,) * 2
        if not convolution.is_separable:
            return ((*square, self.inputs, convolution.features),)
        hidden = DEPTH_MULTIPLIER * self.inputs
        return (*square, 1, hidden), (1, 1, hidden, convolution.features)


class NetworkSizes(NamedTuple):
    """Sizes and channels throughout the network, for one image shape.

    Attributes:
        convolutions: All convolutions with their sizes, in network order.
        sizes: Height and width of each stage's output, in pixels.
        channels: Number of channels of each stage's output.
    """

    convolutions: tuple[SizedConvolution, ...]
    sizes: dict[str, Size]
    channels: dict[str, int]


def network_sizes(network: Network, image_shape: Sequence[int]) -> NetworkSizes:
    """Computes the sizes and channels of all convolutions and stages.

    Args:
        network: Stages of the network, from `stages`.
        image_shape: Height, width and channels of the image.
    """
    *axes, channels = image_shape
    size, result = tuple(axes), NetworkSizes((), {}, {})
    for stage in network:
        convolutions, size, channels = _stage_sizes(stage, size, channels)
        result = NetworkSizes(
            result.convolutions + convolutions,
            result.sizes | {stage.name: size},
            result.channels | {stage.name: channels},
        )
    return result


def multiply_adds(
    network: Network, image_shape: Sequence[int], *, num_classes: int
) -> int:
    """Counts the multiplications by a weight, each with its addition, for one image.

    The convolutions and the layer of class scores count, including products with zero
    padding. Biases, normalization, nonlinearities and poolings do not.

    Args:
        network: Stages of the network, from `stages`.
        image_shape: Height, width and channels of the image.
        num_classes: Number of class scores.
    """
    sizes = network_sizes(network, image_shape)
    in_convolutions = sum(
        math.prod(convolution.size) * math.prod(kernel)
        for convolution in sizes.convolutions
        for kernel in convolution.kernel_shapes
    )
    return in_convolutions + sizes.channels[network[-1].name] * num_classes


def output_size(layer: Convolution | Pool, size: int) -> int:
    """Returns the height or width of a layer's output, from that of its input."""
    rounds_up = isinstance(layer, Convolution) or layer.rounds_up
    return -(-size // layer.stride) if rounds_up else size // layer.stride


def padding(layer: Convolution | Pool, size: int) -> tuple[int, int]:
    """Returns the padding before and after an axis of `size` pixels.

    The padding is PyTorch's, with one exception. The first kernel of a convolution is
    centered on the first pixel, and so is the first window of a pooling of stride 1.
    The first window of a pooling of stride 2 begins at the first pixel, and for an even
    size its last window reaches one pixel beyond the edge. The exception is a pooling
    of stride 2 that rounds an odd size up: its first window is centered on the first
    pixel, which no mode of PyTorch does.
    """
    if isinstance(layer, Convolution):
        return layer.kernel_size // 2, layer.kernel_size // 2
    total = layer.stride * (output_size(layer, size) - 1) + 3 - size
    return total // 2, total - total // 2


def is_large_enough(network: Network, size: int) -> bool:
    """Returns whether every module that halves its input gets at least 2 pixels.

    Args:
        network: Stages of the network, from `stages`.
        size: Height or width of the image, in pixels.
    """
    sizes = network_sizes(network, (size, 1)).sizes
    # `stage` is never the stem, which is the first stage and not a module.
    return all(
        sizes[before.name][0] >= 2
        for before, stage in pairwise(network)
        if _halves(stage)
    )


def smallest_size(network: Network) -> int:
    """Returns the smallest height and width that are large enough, in pixels."""
    size = 1
    while not is_large_enough(network, size):
        size += 1
    return size


def _halves(stage: Stage) -> bool:
    return any(layer.stride > 1 for branch in stage.branches for layer in branch)


def _stage_sizes(
    stage: Stage, size: Size, channels: int
) -> tuple[tuple[SizedConvolution, ...], Size, int]:
    """Returns the stage's convolutions, and the size and channels of its output."""
    convolutions: list[SizedConvolution] = []
    joined, output = 0, size
    for branch in stage.branches:
        output, inputs = size, channels
        for layer in branch:
            output = tuple(output_size(layer, n) for n in output)
            if isinstance(layer, Convolution):
                convolutions.append(SizedConvolution(layer, inputs, output))
                inputs = layer.features
        joined += inputs
    return tuple(convolutions), output, joined
