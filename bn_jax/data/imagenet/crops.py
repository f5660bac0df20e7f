"""Crops of images for training, evaluation and ensembles."""

import math
from typing import NamedTuple

import numpy as np

from bn_jax.data.imagenet.opencv import mirror, resize

# Limits of a random crop: its fraction of the image's area, and its width / height.
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
# Length of an image's shorter side before a crop of 224 pixels is cut out. For crops of
# another size this length is scaled.
_REFERENCE_SIZE = 224
_TEST_SIDE = 256
_TEST_SIDES = (256, 288, 320, 352)

# Crops that `all_crops` returns: 4 sizes x 3 squares x 6 crops x 2 mirror images.
NUM_CROPS = 144


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """Returns a random part of an image with 8 to 100 % of its area.

    Width / height is between 3/4 and 4/3 and uniform on a logarithmic scale: as often
    above 1 as below. If ten draws do not fit into the image, the function returns the
    largest central part within these limits of width / height.
    Source: Szegedy et al. (2014), section 6.

    Args:
        rng: Generator of the random numbers.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
    """
    low, high = (math.log(aspect) for aspect in _ASPECT)
    # One call makes all draws, because a call for each draw would take longer than the
    # rest of the loop body.
    for share, shape, y, x in rng.random((10, 4)).tolist():
        area = (_AREA[0] + (_AREA[1] - _AREA[0]) * share) * height * width
        aspect = math.exp(low + (high - low) * shape)
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(y * (height - box_height + 1))
            left = int(x * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width = min(width, max(1, round(height * _ASPECT[1])))
    box_height = min(height, max(1, round(width / _ASPECT[0])))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return Box(top, left, box_height, box_width)


def random_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    image_size: int,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Crops a random part, resizes it to a square and mirrors it half of the time.

    Args:
        image: uint8 pixels `(height, width, channels)`.
        rng: Generator of the random numbers.
        image_size: Height and width of the result, in pixels.
        out: Contiguous array of the shape of the result, to write the result to.
    """
    box = random_box(rng, *image.shape[:2])
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    crop = resize(image[rows, columns], image_size, image_size, out=out)
    return mirror(crop, out=crop) if rng.random() < 0.5 else crop


def center_crop(image: np.ndarray, image_size: int) -> np.ndarray:
    """Returns the central square of an image.

    The image is first resized, so that its shorter side is 256/224 of the square's.

    Args:
        image: uint8 pixels `(height, width, channels)`.
        image_size: Height and width of the result, in pixels.
    """
    image = _resize_shorter_side(image, _scaled(_TEST_SIDE, image_size))
    return _cut(image, image_size)


def all_crops(image: np.ndarray, image_size: int) -> np.ndarray:
    """Returns the 144 crops of an image over which predictions are averaged.

    The image is resized to four sizes, with a shorter side of 256, 288, 320 and 352 for
    crops of 224. Each size gives three squares, at both ends and in the middle of the
    longer side. Each square gives six crops: its four corners, its middle, and the
    whole square, resized. The mirror image of each crop follows it.
    Source: Szegedy et al. (2014), section 7; Ioffe & Szegedy (2015), section 4.2.3.

    Args:
        image: uint8 pixels `(height, width, channels)`.
        image_size: Height and width of a crop, in pixels.

    Returns:
        uint8 pixels `(144, image_size, image_size, channels)`; the size of the resized
        image changes slowest, then the square, the crop and the mirror image.
    """
    crops = []
    for reference_side in _TEST_SIDES:
        side = _scaled(reference_side, image_size)
        resized = _resize_shorter_side(image, side)
        for place in (0.0, 0.5, 1.0):
            # The square spans the shorter side, so `place` moves it along the longer.
            square = _cut(resized, side, place, place)
            corners = [_cut(square, image_size, y, x) for y in (0, 1) for x in (0, 1)]
            middle = _cut(square, image_size)
            whole = resize(square, image_size, image_size)
            for crop in (*corners, middle, whole):
                crops += [crop, mirror(crop)]
    return np.stack(crops)


def _scaled(side: int, image_size: int) -> int:
    return round(side * image_size / _REFERENCE_SIZE)


def _resize_shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    shorter = min(height, width)
    return resize(image, round(height * side / shorter), round(width * side / shorter))


def _cut(
    image: np.ndarray, side: int, vertical: float = 0.5, horizontal: float = 0.5
) -> np.ndarray:
    """Cuts out a square at a place from 0 (top or left) to 1 (bottom or right)."""
    top = int((image.shape[0] - side) * vertical)
    left = int((image.shape[1] - side) * horizontal)
    return image[top : top + side, left : left + side]
