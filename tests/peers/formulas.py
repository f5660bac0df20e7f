"""Formulas of other libraries, in a few lines each: faults to test against.

Each function is the recipe of the library that its docstring names, for features on
the last axis, and is wrong on the inputs of the tests beside it.
"""

import jax
import jax.numpy as jnp
import numpy as np


def fast_moments(x):
    """flax.linen and flax.nnx by default: E[x^2] - E[x]^2 in float32, clipped."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=0)
    return mean, jnp.maximum(jnp.mean(x * x, axis=0) - mean * mean, 0)


def haiku_moments(x):
    """dm-haiku: E[x^2] - E[x]^2 in the dtype of x, not clipped."""
    mean = jnp.mean(x, axis=0)
    return mean, jnp.mean(jnp.square(x), axis=0) - jnp.square(mean)


def equinox_moments(x):
    """Equinox: two passes in the dtype of x."""
    mean = jnp.mean(x, axis=0)
    return mean, jnp.mean(jnp.square(x - mean), axis=0)


def standardize(x, mean, var, epsilon=1e-5):
    """The last lines of Algorithm 1, in the dtypes that came."""
    return (x - mean) * jax.lax.rsqrt(var + jnp.asarray(epsilon, var.dtype))


def mean_of_means(x, mask):
    """flax under a mask: every device counts alike, `(devices, rows, features)`."""
    mask = np.broadcast_to(mask, x.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(mask, x, 0).sum(1) / mask.sum(1)
        square = np.where(mask, x * x, 0).sum(1) / mask.sum(1)
    mean, square = mean.mean(0), square.mean(0)
    return mean, square - mean**2


def keras_moments(x, mask):
    """Keras under a mask: weighted sums over the weight and 1e-7, so 0 of nothing."""
    weights = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    total = jnp.sum(weights, axis=0) + 1e-7
    mean = jnp.sum(weights * x, axis=0) / total
    return mean, jnp.sum(weights * jnp.square(x - mean), axis=0) / total


def scenic_packed_sums(x, mask, axis_name):
    """Scenic under a mask: sums of each feature and one count, joined for one psum."""
    mask = jnp.broadcast_to(mask, x.shape)
    sums = [jnp.sum(jnp.where(mask, v, 0), axis=0) for v in (x, jnp.square(x))]
    return jax.lax.psum(jnp.concatenate([*sums, jnp.sum(mask[..., 0])]), axis_name)


def keras_clipped_moments(x):
    """Keras without a mask: in float32, and clipped to the range of x's dtype."""
    wide, limits = x.astype(jnp.float32), jnp.finfo(x.dtype)
    moments = jnp.mean(wide, axis=0), jnp.var(wide, axis=0)
    return tuple(jnp.clip(m, limits.min, limits.max).astype(x.dtype) for m in moments)


def haiku_synchronized_moments(x, axis_name):
    """dm-haiku with `cross_replica_axis`: reduces over it in `init` as in `apply`."""
    mean = jax.lax.pmean(jnp.mean(x, axis=0), axis_name)
    square = jax.lax.pmean(jnp.mean(jnp.square(x), axis=0), axis_name)
    return mean, square - jnp.square(mean)


def masked_after_arithmetic(x, scale, bias, mask):
    """flax: padding takes part in the arithmetic, and sums select afterwards."""
    mean = jnp.mean(x, axis=0, where=mask)
    var = jnp.mean(jnp.square(x), axis=0, where=mask) - jnp.square(mean)
    return standardize(x, mean, var) * scale + bias


def averaged_statistics(stats):
    """A pmean of a collection, as training loops of scenic and init2winit do."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), stats)


def moving_average(old, new, keep=0.99):
    """flax, Haiku, Keras: no correction of the start, and NaN stays for ever."""
    return keep * old + (1 - keep) * new


def updated_by_side_effect(x, running, keep=0.99):
    """PyTorch: each run of the layer moves `running`, a checkpoint's second one too."""
    mean, var = equinox_moments(x)

    def update(mean):
        running["mean"] = moving_average(running["mean"], np.asarray(mean), keep)

    jax.debug.callback(update, mean)
    return standardize(x, mean, var)


def equinox_debiased_variance(var, steps, keep=0.99):
    """Equinox, mode="batch": starts at 1, and is divided as if it started at 0."""
    hidden = 1.0
    for _ in range(steps):
        hidden = moving_average(hidden, var, keep)
    return hidden / (1 - keep**steps)
