"""Random changes of brightness, contrast, saturation and hue."""

import math

import numpy as np

from bn_jax.data.imagenet.opencv import opencv

# The largest changes, at a strength of 1: of all values, of their distance from the
# mean, of that from grey, and of the angle of the colours.
_BRIGHTNESS = 32.0
_CONTRAST = 0.5
_SATURATION = 0.5
_HUE = 0.4 * math.pi

_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def distort(
    image: np.ndarray, rng: np.random.Generator, *, strength: float
) -> np.ndarray:
    """An image in other light.

    Each of the four changes is linear in red, green and blue (hue turns the plane of
    colours of YIQ), so that one map makes them all, and pixels are rounded and clipped
    once.

    Args:
        image: uint8 pixels `(height, width, 3)`.
        rng: Draws.
        strength: Fraction of the largest changes that is drawn from, in [0, 1].
            Brightness changes by at most 32 of 255, contrast and saturation by 50 %,
            hue by a fifth of a turn. With 0 it is the image itself.
    """
    if strength == 0:
        return image
    cv2 = opencv()
    brightness, contrast, saturation, hue = rng.uniform(-strength, strength, 4)
    matrix = color_map(
        np.asarray(cv2.mean(image)[:3]),
        brightness=_BRIGHTNESS * brightness,
        contrast=1 + _CONTRAST * contrast,
        saturation=1 + _SATURATION * saturation,
        hue=_HUE * hue,
    )
    return cv2.transform(image, matrix)


def color_map(
    mean: np.ndarray,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> np.ndarray:
    """The map from old to new colours.

    Args:
        mean: Of red, green and blue in the image.
        brightness: Added to each value.
        contrast: Factor of the distance from the mean grey.
        saturation: Factor of the distance from each pixel's own grey.
        hue: Angle by which colours are turned, in radians.

    Returns:
        float64 matrix `(3, 4)`, to be multiplied by `(red, green, blue, 1)`.

    >>> matrix = color_map(
    ...     np.zeros(3), brightness=3, contrast=2, saturation=1, hue=0
    ... )
    >>> (matrix @ [10, 20, 30, 1]).round(6)
    array([23., 43., 63.])
    """
    cosine, sine = math.cos(hue), math.sin(hue)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    in_yiq = turn @ np.diag([1, saturation, saturation])
    colors = _FROM_YIQ @ in_yiq @ _TO_YIQ
    # Grey stays grey in YIQ: what is added to all values needs no turning.
    grey = _TO_YIQ[0] @ mean
    offset = np.full(3, (1 - contrast) * grey + brightness)
    return np.column_stack([contrast * colors, offset])
