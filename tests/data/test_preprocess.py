"""Pixels become the paper's binary images, or numbers around 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.data.preprocess import binarize, make_preprocess
from bn_jax.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
PIXELS = np.array([[0, 126, 127], [128, 254, 255]], np.uint8)


def test_only_pixels_above_the_threshold_become_one() -> None:
    expected = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    np.testing.assert_array_equal(binarize(PIXELS, threshold=127), expected)


@pytest.mark.parametrize(("threshold", "ones"), [(0, 5), (254, 1)])
def test_the_outermost_thresholds_leave_both_values(threshold: int, ones: int) -> None:
    assert binarize(PIXELS, threshold=threshold).sum() == ones


@pytest.mark.shapes
def test_numpy_arrays_stay_numpy_arrays_in_float32() -> None:
    binary = binarize(PIXELS, threshold=127)
    assert isinstance(binary, np.ndarray)
    assert (binary.dtype, binary.shape) == (np.float32, PIXELS.shape)


@pytest.mark.shapes
def test_jax_arrays_give_the_same_under_jit() -> None:
    binary = jax.jit(lambda images: binarize(images, threshold=127))(
        jnp.asarray(PIXELS)
    )
    assert binary.dtype == jnp.float32
    np.testing.assert_array_equal(binary, binarize(PIXELS, threshold=127))


@pytest.mark.parametrize("threshold", [None, 100])
def test_each_channel_is_normalized_by_its_mean_and_std(threshold: int | None) -> None:
    preprocess = make_preprocess(binarize_threshold=threshold, mean=MEAN, std=STD)
    x = COLOURS / 255 if threshold is None else np.greater(COLOURS, threshold) * 1.0
    expected = (x - np.array(MEAN)) / np.array(STD)
    for inputs in (preprocess(COLOURS), jax.jit(preprocess)(jnp.asarray(COLOURS))):
        assert inputs.dtype == np.float32
        # Values up to 3, to a rounding error or two of float32.
        np.testing.assert_allclose(inputs, expected, rtol=0, atol=1e-6)


def test_without_mean_and_std_pixels_lie_in_0_to_1_to_the_last_bit() -> None:
    preprocess = make_preprocess(binarize_threshold=None, mean=(0.0,), std=(1.0,))
    np.testing.assert_array_equal(preprocess(COLOURS), COLOURS.astype("float32") / 255)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(("channels", "values"), [(1, MEAN), (3, (0.5, 0.5)), (3, ())])
def test_images_of_another_number_of_channels_are_refused(
    name: str, channels: int, values: tuple[float, ...]
) -> None:
    settings = {"mean": (0.5,), "std": (0.5,), name: values}
    preprocess = make_preprocess(binarize_threshold=None, **settings)
    expected = (
        rf"config\.pixels\.{name} must have one value, .* the {channels} channels"
    )
    with pytest.raises(UserError, match=expected):
        preprocess(COLOURS[..., :channels])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bool"])
def test_other_numbers_than_pixels_stay_as_they_are(dtype: str) -> None:
    preprocess = make_preprocess(binarize_threshold=None, mean=(0.0,), std=(1.0,))
    x = COLOURS.astype(dtype)
    assert preprocess(x) is x
    inputs = jax.jit(preprocess)(x)
    assert inputs.dtype == x.dtype
    np.testing.assert_array_equal(inputs, x)


def test_a_mean_that_is_set_is_subtracted_from_floats_too() -> None:
    preprocess = make_preprocess(binarize_threshold=None, mean=(0.5,), std=(2.0,))
    x = np.array([[0.5, 2.5]], np.float32)
    np.testing.assert_array_equal(preprocess(x), [[0.0, 1.0]])


def test_only_pixels_can_be_binarized() -> None:
    preprocess = make_preprocess(binarize_threshold=127, mean=(0.0,), std=(1.0,))
    with pytest.raises(UserError, match=r"binarize_threshold .* float32; set it to No"):
        preprocess(np.zeros((2, 3), np.float32))
