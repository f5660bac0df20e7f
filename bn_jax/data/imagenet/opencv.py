"""OpenCV, and the three things that it is wanted for: decoding, resizing, mirroring."""

from functools import cache
from typing import Any

import numpy as np

from bn_jax.errors import UserError


@cache
def opencv() -> Any:
    """The module, with one thread a call: images are what is worked on in parallel.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "Images of varying size are decoded by OpenCV, and it is not there "
            f"({error}). Install it: pip install 'bn-jax[imagenet]'"
        ) from error
    cv2.setNumThreads(0)
    return cv2


def decode_rgb(content: bytes) -> np.ndarray | None:
    """An image's pixels, as they are stored: turned by no EXIF tag.

    Args:
        content: The encoded image.

    Returns:
        uint8 pixels `(height, width, 3)`, red first; None if it cannot be decoded.
    """
    cv2 = opencv()
    if not content:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def resize(
    image: np.ndarray, height: int, width: int, *, out: np.ndarray | None = None
) -> np.ndarray:
    """An image of another size.

    It is interpolated linearly down to the half of its size, and averaged over areas
    below that, where linear interpolation would skip pixels. Averaging always would
    take six times as long. OpenCV does not average where one side grows meanwhile.

    Args:
        image: uint8 pixels `(height, width, channels)`.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        out: Where to write the result, of its shape and contiguous.
    """
    cv2 = opencv()
    skips = image.shape[0] > 2 * height or image.shape[1] > 2 * width
    kind = cv2.INTER_AREA if skips else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), dst=out, interpolation=kind)


def mirror(image: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """An image with left and right exchanged.

    NumPy's reversed view would be copied pixel by pixel, a tenth of all the work.

    Args:
        image: uint8 pixels `(height, width, channels)`.
        out: Where to write the result; the image itself will do.
    """
    return opencv().flip(image, 1, dst=out)
