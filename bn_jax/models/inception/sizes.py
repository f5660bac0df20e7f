"""Sizes, channels and costs of BN-Inception's layers for images of a given size."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from bn_jax.models.inception.table import Convolution, Network, Pool, Stage

# Channels that each one of the image gives in a separable convolution's first half.
DEPTH_MULTIPLIER = 8

Size = tuple[int, ...]


class Place(NamedTuple):
    """Where in the network a convolution stands.

    Attributes:
        convolution: The convolution.
        inputs: Channels it is given.
        size: Height and width of what it gives, in pixels.
    """

    convolution: Convolution
    inputs: int
    size: Size

    @property
    def kernel_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of its kernels: of both halves where it is separable.

        The axes are height, width, inputs of each output, and outputs.
        """
        convolution = self.convolution
        square = (convolution.kernel_size,) * 2
        if not convolution.is_separable:
            return ((*square, self.inputs, convolution.features),)
        hidden = DEPTH_MULTIPLIER * self.inputs
        return (*square, 1, hidden), (1, 1, hidden, convolution.features)


class Walk(NamedTuple):
    """What an image meets on its way through the network.

    Attributes:
        places: Every convolution in its place, in order.
        sizes: Height and width that each stage gives, in pixels.
        channels: Channels that each stage gives.
    """

    places: tuple[Place, ...]
    sizes: dict[str, Size]
    channels: dict[str, int]


def walk(network: Network, image_shape: Sequence[int]) -> Walk:
    """Follows an image through the network.

    Args:
        network: What `stages` gives.
        image_shape: Height, width and channels of the image.
    """
    *axes, channels = image_shape
    size, found = tuple(axes), Walk((), {}, {})
    for stage in network:
        places, size, channels = _through(stage, size, channels)
        found = Walk(
            found.places + places,
            found.sizes | {stage.name: size},
            found.channels | {stage.name: channels},
        )
    return found


def multiply_adds(
    network: Network, image_shape: Sequence[int], *, num_classes: int
) -> int:
    """Multiplications of an image's value by a weight, each with its addition.

    Those of the convolutions and of the layer of scores; biases, normalization,
    nonlinearities and poolings are not counted, nor is zero padding left out.

    Args:
        network: What `stages` gives.
        image_shape: Height, width and channels of the image.
        num_classes: Number of class scores.
    """
    found = walk(network, image_shape)
    convolutions = sum(
        math.prod(place.size) * math.prod(kernel)
        for place in found.places
        for kernel in place.kernel_shapes
    )
    return convolutions + found.channels[network[-1].name] * num_classes


def output_size(layer: Convolution | Pool, size: int) -> int:
    """Height or width of what a layer makes of so many pixels."""
    rounds_up = isinstance(layer, Convolution) or layer.rounds_up
    return -(-size // layer.stride) if rounds_up else size // layer.stride


def padding(layer: Convolution | Pool, size: int) -> tuple[int, int]:
    """Pixels that an axis of so many is given before its first and after its last.

    They are PyTorch's. The kernel of a convolution stands on the first pixel at
    first, and so does the window of a pooling of stride 1; one of stride 2 begins at
    the edge, and its last window reaches over the other. Only where a pooling halves
    an odd size and rounds up does its window stand on the first pixel too, as no
    mode of PyTorch has it.
    """
    if isinstance(layer, Convolution):
        return layer.kernel_size // 2, layer.kernel_size // 2
    total = layer.stride * (output_size(layer, size) - 1) + 3 - size
    return total // 2, total - total // 2


def is_large_enough(network: Network, size: int) -> bool:
    """Whether every module that halves the image has 2 pixels at least to halve.

    Args:
        network: What `stages` gives.
        size: Height or width of the image, in pixels.
    """
    sizes = walk(network, (size, 1)).sizes
    # Pairs begin with the stem, which is no module.
    return all(
        sizes[before.name][0] >= 2
        for before, stage in pairwise(network)
        if _halves(stage)
    )


def smallest_size(network: Network) -> int:
    """Least height and width that are large enough, in pixels."""
    size = 1
    while not is_large_enough(network, size):
        size += 1
    return size


def _halves(stage: Stage) -> bool:
    return any(layer.stride > 1 for branch in stage.branches for layer in branch)


def _through(
    stage: Stage, size: Size, channels: int
) -> tuple[tuple[Place, ...], Size, int]:
    """The stage's convolutions, and the size and channels that it gives."""
    places: list[Place] = []
    joined, output = 0, size
    for branch in stage.branches:
        output, inputs = size, channels
        for layer in branch:
            output = tuple(output_size(layer, n) for n in output)
            if isinstance(layer, Convolution):
                places.append(Place(layer, inputs, output))
                inputs = layer.features
        joined += inputs
    return tuple(places), output, joined
