import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.core.agreement import are_equal, marks
from bn_jax.core.devices import Devices


def agree(values):
    """Whether values, one a device along the first axis, are told to be equal."""
    devices = Devices((("devices", len(values)),))
    return are_equal([jnp.sum(of_all, axis=0) for of_all in marks(values)], devices)


@pytest.mark.parametrize("dtype", ["float32", "complex64", "float64", "complex128"])
@pytest.mark.parametrize("num_devices", [1, 2, 3, 7, 4096])
@pytest.mark.usefixtures("standard_promotion")
def test_equal_values_agree_however_many_there_are(num_devices, dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        values = np.random.default_rng(0).normal(size=100).astype(dtype)
        assert agree(jnp.broadcast_to(values, (num_devices, 100))).all()


@pytest.mark.parametrize("num_devices", [2, 3, 4096])
def test_one_that_differs_in_its_last_bit_is_found_in_almost_every_feature(num_devices):
    values = np.random.default_rng(0).normal(size=2_000).astype(np.float32)
    values = np.tile(values, (num_devices, 1))
    values[1] = np.nextafter(values[1], np.float32(np.inf))
    assert np.mean(agree(jnp.asarray(values))) < 0.04


def test_numbers_of_few_bits_are_told_apart():
    powers = 2.0 ** np.arange(-8, 9, dtype=np.float32)
    pairs = [(a, b) for a in powers for b in powers if a < b]
    values = np.array(pairs, np.float32).T
    assert np.mean(agree(jnp.asarray(values))) < 0.1
    zero_and = np.array([np.zeros_like(powers), powers])
    assert np.mean(agree(jnp.asarray(zero_and))) < 0.1


def test_an_imaginary_part_that_differs_is_found():
    values = np.ones((2, 1000), np.complex64)
    values[1] += 1j * np.random.default_rng(0).normal(size=1000)
    assert np.mean(agree(jnp.asarray(values))) < 0.06
