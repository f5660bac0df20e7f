"""Decoding, resizing and mirroring of images with OpenCV."""

from functools import cache
from typing import Any

import numpy as np

from bn_jax.extras import MissingExtraError


@cache
def opencv() -> Any:
    """Returns the module `cv2`, set to one thread for each call.

    One thread is enough, because callers process several images in parallel.

    Raises:
        MissingExtraError: If OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "Images of varying size need OpenCV, but it cannot be imported "
            f"({error}). Install it: pip install 'bn-jax[imagenet]'"
        ) from error
    cv2.setNumThreads(0)
    return cv2


def decode_rgb(content: bytes) -> np.ndarray | None:
    """Decodes an image and ignores the EXIF tag for its orientation.

    Args:
        content: The encoded image.

    Returns:
        uint8 pixels `(height, width, 3)`, red first; None if OpenCV cannot decode.
    """
    cv2 = opencv()
    if not content:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def resize(
    image: np.ndarray, height: int, width: int, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes an image.

    OpenCV interpolates linearly down to half the size, and averages over areas below
    that, because linear interpolation would skip pixels there. Averaging at all sizes
    would take six times as long. OpenCV does not average if one side grows while the
    other shrinks.

    Args:
        image: uint8 pixels `(height, width, channels)`.
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.
        out: Contiguous array of the shape of the result, to write the result to.
    """
    cv2 = opencv()
    skips = image.shape[0] > 2 * height or image.shape[1] > 2 * width
    kind = cv2.INTER_AREA if skips else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), dst=out, interpolation=kind)


def mirror(image: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Exchanges left and right of an image.

    NumPy would copy a reversed view pixel by pixel, which would take a tenth of the
    time of reading an image.

    Args:
        image: uint8 pixels `(height, width, channels)`.
        out: Array to write the result to; may be the image itself.
    """
    return opencv().flip(image, 1, dst=out)
