"""Crops, beside slices of NumPy and resizing by Pillow."""

import numpy as np
import pytest
from PIL import Image

from bn_jax.data.imagenet.crops import (
    Box,
    all_crops,
    center_crop,
    random_box,
    random_crop,
)
from bn_jax.data.imagenet.opencv import resize

SEEDS = range(300)


def smooth(height: int, width: int) -> np.ndarray:
    """Colours that change slowly, for which all ways to interpolate agree."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def by_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def assert_alike(image: np.ndarray, expected: np.ndarray) -> None:
    """Of one size, and apart by rounding and by what filters differ in."""
    assert image.shape == expected.shape
    difference = abs(image.astype(int) - expected.astype(int))
    assert difference.mean() < 1
    assert difference.max() <= 12


def boxes(height: int, width: int) -> list[Box]:
    return [random_box(np.random.default_rng(i), height, width) for i in SEEDS]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (90, 60), (1000, 3000)])
def test_a_random_box_lies_in_the_image_and_has_the_usual_shape(
    height: int, width: int
) -> None:
    for box in boxes(height, width):
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        # Sides are whole pixels.
        assert 0.07 < box.height * box.width / (height * width) <= 1.01
        assert 0.73 < box.width / box.height < 1.37


def test_random_boxes_are_spread_over_areas_shapes_and_places() -> None:
    found = np.array(boxes(400, 400))
    areas = found[:, 2] * found[:, 3] / 400**2
    assert areas.min() < 0.12
    assert areas.max() > 0.9
    # Large areas fit in less often.
    assert 0.4 < areas.mean() < 0.6
    assert 0.4 < (found[:, 3] > found[:, 2]).mean() < 0.6
    for place, side in ((0, 2), (1, 3)):
        free = 400 - found[:, side]
        shares = found[free > 50, place] / free[free > 50]
        assert (shares.min() < 0.05, shares.max() > 0.95) == (True, True)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 1000, Box(0, 493, 10, 13)), (1000, 10, Box(493, 0, 13, 10))],
)
def test_where_no_box_fits_it_is_the_middle(height: int, width: int, box: Box) -> None:
    class Large:
        """Draws nothing but whole areas."""

        def random(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.ones(shape)

    assert random_box(Large(), height, width) == box  # pyright: ignore


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (2, 3)])
def test_the_smallest_images_can_be_cropped(height: int, width: int) -> None:
    image = np.full((height, width, 3), 7, np.uint8)
    for seed in SEEDS:
        crop = random_crop(image, np.random.default_rng(seed), 4)
        np.testing.assert_array_equal(crop, np.full((4, 4, 3), 7))


def test_a_random_crop_is_its_box_resized_and_mirrored_half_of_the_time() -> None:
    image, mirrored = smooth(60, 80), 0
    for seed in range(60):
        box = random_box(np.random.default_rng(seed), 60, 80)
        part = image[box.top : box.top + box.height, box.left : box.left + box.width]
        expected = by_pillow(np.ascontiguousarray(part), 32, 32)
        crop = random_crop(image, np.random.default_rng(seed), 32)
        distances = [
            abs(crop.astype(int) - one).mean() for one in (expected, expected[:, ::-1])
        ]
        mirrored += distances[1] < distances[0]
        assert min(distances) < 1.5
    assert 15 < mirrored < 45


def test_a_crop_can_be_written_where_it_belongs() -> None:
    image = smooth(50, 40)
    for seed in range(8):
        expected = random_crop(image, np.random.default_rng(seed), 16)
        out = np.zeros((2, 16, 16, 3), np.uint8)
        random_crop(image, np.random.default_rng(seed), 16, out=out[1])
        np.testing.assert_array_equal(out[1], expected)
        assert not out[0].any()


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (256, 256)])
def test_the_center_crop_is_the_middle_of_a_resized_image(
    height: int, width: int
) -> None:
    image = smooth(height, width)
    shorter = min(height, width)
    new_height, new_width = round(height * 256 / shorter), round(width * 256 / shorter)
    top, left = (new_height - 224) // 2, (new_width - 224) // 2
    resized = by_pillow(image, new_height, new_width)
    assert_alike(center_crop(image, 224), resized[top : top + 224, left : left + 224])


def test_the_side_that_is_cut_from_is_rounded_to_the_nearest_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (15, 15, 3), dtype=np.uint8)
    # 13 * 256 / 224 is 14.86: an image of 15 pixels stays as it is.
    np.testing.assert_array_equal(center_crop(image, 13), image[1:14, 1:14])


def test_shrinking_by_more_than_two_averages_all_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    expected = image.reshape(3, 4, 4, 4, 3).mean((1, 3))
    difference = resize(image, 3, 4) - expected
    assert abs(difference).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (300, 300)])
def test_the_144_crops_are_those_of_the_paper(height: int, width: int) -> None:
    image = smooth(height, width)
    crops = all_crops(image, 224).reshape(4, 3, 6, 2, 224, 224, 3)
    np.testing.assert_array_equal(crops[..., 1, :, :, :], crops[..., 0, :, ::-1, :])
    for at_size, side in zip(crops[:, :, :, 0], (256, 288, 320, 352), strict=True):
        shorter = min(height, width)
        resized = resize(
            image, round(height * side / shorter), round(width * side / shorter)
        )
        rest = max(resized.shape) - side
        for of_square, start in zip(at_size, (0, rest // 2, rest), strict=True):
            columns, rows = slice(start, start + side), slice(None)
            if height > width:
                columns, rows = rows, columns
            square = resized[rows, columns]
            middle = slice((side - 224) // 2, (side - 224) // 2 + 224)
            expected = [
                square[:224, :224],
                square[:224, -224:],
                square[-224:, :224],
                square[-224:, -224:],
                square[middle, middle],
            ]
            np.testing.assert_array_equal(of_square[:5], np.stack(expected))
            whole = by_pillow(np.ascontiguousarray(square), 224, 224)
            assert_alike(of_square[5], whole)


@pytest.mark.shapes
@pytest.mark.parametrize("image_size", [1, 7, 32])
def test_crops_of_any_size_have_that_size(image_size: int) -> None:
    image = smooth(40, 50)
    shape = (image_size, image_size, 3)
    assert all_crops(image, image_size).shape == (144, *shape)
    assert center_crop(image, image_size).shape == shape
    assert random_crop(image, np.random.default_rng(0), image_size).shape == shape
