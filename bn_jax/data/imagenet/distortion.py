"""Random changes of brightness, contrast, saturation and hue."""

import math

import numpy as np

from bn_jax.data.imagenet.opencv import opencv

# Largest changes, at a strength of 1. Brightness is added to values of 0 to 255.
# Contrast is a relative change of the distance from the mean grey of the image.
# Saturation is a relative change of the distance from the grey of the pixel.
# Hue is an angle in radians.
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
    """Returns an image with random brightness, contrast, saturation and hue.

    Each of the four changes is linear in red, green and blue; hue rotates the colour
    plane of YIQ. One map therefore makes all changes, and pixels are rounded and
    clipped once.

    Args:
        image: uint8 pixels `(height, width, 3)`.
        rng: Generator of the random numbers.
        strength: Fraction of the largest changes, in [0, 1]. At 1, brightness changes
            by at most 32 of 255, contrast and saturation by 50 %, and hue by a fifth of
            a turn. At 0, the function returns the image itself.
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
    """Returns the map from old to new colours.

    Args:
        mean: Mean red, green and blue of the image, `(3,)`.
        brightness: Number to add to each value.
        contrast: Factor of the distance from the mean grey of the image.
        saturation: Factor of the distance from the grey of the pixel.
        hue: Angle by which colours rotate, in radians.

    Returns:
        float64 matrix `(3, 4)`, which multiplies `(red, green, blue, 1)`.

    >>> matrix = color_map(
    ...     np.zeros(3), brightness=3, contrast=2, saturation=1, hue=0
    ... )
    >>> (matrix @ [10, 20, 30, 1]).round(6)
    array([23., 43., 63.])
    """
    cosine, sine = math.cos(hue), math.sin(hue)
    rotation = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    in_yiq = rotation @ np.diag([1, saturation, saturation])
    colors = _FROM_YIQ @ in_yiq @ _TO_YIQ
    # `colors` maps grey to itself. The offset is grey, so it can be added after the
    # rotation.
    grey = _TO_YIQ[0] @ mean
    offset = np.full(3, (1 - contrast) * grey + brightness)
    return np.column_stack([contrast * colors, offset])
