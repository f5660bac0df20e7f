"""Encoded images that mean harm are refused before they fill the memory."""

import numpy as np
import pytest
from data.hostile_files import MiB, at_most, white_png
from data.imagenet_files import encode, picture

from bn_jax.data.imagenet.opencv import UndecodableImageError, decode_rgb


def test_a_small_png_of_many_pixels_fills_no_memory() -> None:
    content = white_png(20_000, 20_000)
    assert len(content) < MiB
    expected = r"400000000 pixels\) exceeds limit of 178956970 pixels"
    # Decoded, it would take 1.2 GB.
    with at_most(16 * MiB), pytest.raises(UndecodableImageError, match=expected):
        decode_rgb(content)


def test_a_jpeg_whose_header_was_changed_to_many_pixels_is_refused() -> None:
    content = bytearray(encode(picture(1)))
    # After the marker of a frame: its length, the precision, height and width.
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(UndecodableImageError, match=r"4294836225 pixels\) exceeds"):
        decode_rgb(bytes(content))


def test_a_line_of_pixels_is_refused_because_it_would_be_enlarged() -> None:
    with pytest.raises(UndecodableImageError, match="it has 100000 x 3 pixels, and"):
        decode_rgb(white_png(100_000, 3))


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (3, 5)])
def test_other_images_are_decoded(size: tuple[int, int]) -> None:
    width, height = size
    image = decode_rgb(white_png(width, height))
    np.testing.assert_array_equal(image, np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "neither JPEG nor PNG"),
        (b"hello", "neither JPEG nor PNG"),
        (encode(picture(1), "BMP"), "neither JPEG nor PNG"),
        (encode(picture(1))[:300], "Truncated File Read"),
        (white_png(8, 8)[:50], "damaged"),
    ],
    ids=["empty", "text", "BMP", "cut off in the header", "cut off in the pixels"],
)
def test_what_is_no_whole_jpeg_or_png_is_refused(content: bytes, expected: str) -> None:
    with pytest.raises(UndecodableImageError, match=expected):
        decode_rgb(content)
