"""Decoding, resizing and mirroring of images with OpenCV."""

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from bn_jax.extras import MissingExtraError

# Largest size of an encoded image, in bytes; no photograph comes near it.
MAX_IMAGE_BYTES = 2**28
# Largest ratio of the sides. An evaluation resizes an image to a given shorter side, so
# a line of pixels would fill the memory.
_MAX_ASPECT = 200


class UndecodableImageError(Exception):
    """Error about an image that is damaged, of another format, or too large."""


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


def decode_rgb(content: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG, and ignores the EXIF tag for its orientation.

    The header is checked first: a small file may decode to many gigabytes. Pillow
    refuses images of more than 178,956,970 pixels.

    Args:
        content: The encoded image.

    Returns:
        uint8 pixels `(height, width, 3)`, red first.

    Raises:
        UndecodableImageError: If the image has another format, is damaged, or has too
            many pixels or too different sides.
    """
    cv2 = opencv()
    _check_header(content)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if image is None:
        raise UndecodableImageError("it is damaged")
    return image


def _check_header(content: bytes) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            size = image.size
    except UnidentifiedImageError as error:
        raise UndecodableImageError("it is neither JPEG nor PNG") from error
    # Pillow raises these errors for damaged or very large images.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UndecodableImageError(str(error)) from error
    if max(size) > _MAX_ASPECT * min(size):
        raise UndecodableImageError(
            f"it has {size[0]} x {size[1]} pixels, and one side may be at most "
            f"{_MAX_ASPECT} times the other"
        )


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
