"""Pixels become the paper's binary images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.data.image import binarize

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
