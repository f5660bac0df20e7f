"""Changes of colour, beside the definition of each, pixel by pixel."""

import colorsys

import numpy as np
import pytest

from bn_jax.data.imagenet.distortion import color_map, distort

RNG = np.random.default_rng(0)
# Far enough from 0 and 255 not to be clipped.
IMAGE = RNG.integers(90, 165, (6, 5, 3), dtype=np.uint8)
NEUTRAL = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
LUMA = np.array([0.299, 0.587, 0.114])


def changed(image: np.ndarray, **change: float) -> np.ndarray:
    matrix = color_map(image.mean((0, 1)), **{**NEUTRAL, **change})
    return image @ matrix[:, :3].T + matrix[:, 3]


def test_without_a_change_colours_stay() -> None:
    np.testing.assert_allclose(changed(IMAGE), IMAGE, atol=1e-9)


def test_brightness_is_added() -> None:
    np.testing.assert_allclose(changed(IMAGE, brightness=20), IMAGE + 20.0, atol=1e-9)


def test_contrast_is_the_distance_from_the_mean_grey() -> None:
    grey = (IMAGE @ LUMA).mean()
    expected = grey + 1.5 * (IMAGE - grey)
    np.testing.assert_allclose(changed(IMAGE, contrast=1.5), expected, atol=0.05)


@pytest.mark.parametrize("saturation", [0.0, 0.5, 1.4])
def test_saturation_is_the_distance_from_a_pixels_own_grey(saturation: float) -> None:
    grey = (IMAGE @ LUMA)[..., None]
    expected = grey + saturation * (IMAGE - grey)
    found = changed(IMAGE, saturation=saturation)
    # The coefficients of YIQ have three digits.
    np.testing.assert_allclose(found, expected, atol=0.3)


def test_hue_turns_colours_and_leaves_grey_and_brightness_alone() -> None:
    turned = changed(IMAGE, hue=1.0)
    np.testing.assert_allclose(turned @ LUMA, IMAGE @ LUMA, atol=1e-6)
    grey = np.full((2, 2, 3), 100.0)
    np.testing.assert_allclose(changed(grey, hue=1.0), grey, atol=0.3)
    there_and_back = changed(turned, hue=-1.0)
    np.testing.assert_allclose(there_and_back, IMAGE, atol=1e-6)


def test_a_third_of_a_turn_makes_red_into_another_primary() -> None:
    red = np.array([[[160.0, 90.0, 90.0]]])
    hues = [
        colorsys.rgb_to_hsv(*(changed(red, hue=sign * 2 * np.pi / 3)[0, 0] / 255))[0]
        for sign in (1, -1)
    ]
    # Blue lies at 2/3 and green at 1/3; the angles of YIQ are not those of HSV.
    np.testing.assert_allclose(sorted(hues), [1 / 3, 2 / 3], atol=0.08)


def test_no_strength_is_no_change() -> None:
    assert distort(IMAGE, np.random.default_rng(0), strength=0.0) is IMAGE


def test_the_same_draws_make_the_same_change() -> None:
    first, second, other = (
        distort(IMAGE, np.random.default_rng(seed), strength=1.0) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_distortion_is_the_map_of_its_draws_rounded_once(strength: float) -> None:
    draws = np.random.default_rng(3).uniform(-strength, strength, 4)
    expected = changed(
        IMAGE,
        brightness=32 * draws[0],
        contrast=1 + 0.5 * draws[1],
        saturation=1 + 0.5 * draws[2],
        hue=0.4 * np.pi * draws[3],
    )
    found = distort(IMAGE, np.random.default_rng(3), strength=strength)
    assert found.dtype == np.uint8
    # OpenCV multiplies bytes by whole 1/1024.
    assert abs(found - np.clip(expected, 0, 255)).max() <= 0.5 + 3 * 255 / 2048


def test_bright_and_dark_pixels_are_clipped_and_do_not_wrap_around() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 255
    for seed in range(20):
        found = distort(image, np.random.default_rng(seed), strength=1.0)
        assert found[:2].min() > found[2:].max()


def test_a_weaker_distortion_changes_less() -> None:
    sizes = [
        np.mean(
            [
                abs(
                    distort(IMAGE, np.random.default_rng(seed), strength=s)
                    - 1.0 * IMAGE
                ).mean()
                for seed in range(50)
            ]
        )
        for s in (0.1, 0.5, 1.0)
    ]
    assert sizes[0] < sizes[1] / 2 < sizes[2] / 2
