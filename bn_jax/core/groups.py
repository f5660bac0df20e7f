"""Normalization batches of a stated size, however many devices there are."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Shaped

from bn_jax.core.collectives import Devices, sum_across
from bn_jax.core.config import BatchNormConfig
from bn_jax.core.derivative import normalize_by_batch
from bn_jax.core.types import Moments


def normalize_by_batch_or_group(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    mask: Bool[Array, "*#shape"] | None,
    config: BatchNormConfig,
    devices: Devices,
) -> tuple[Inexact[Array, "*shape"], Moments]:
    """Returns x normalized by its own moments, and the moments.

    With a `group_size`, that many consecutive examples of the whole batch, along axis
    0, are normalized by themselves; the moments are then those of the average group.

    Args:
        x: Activations, zero where the mask is False.
        scale: Learned factor of each feature; None for 1.
        bias: Learned offset of each feature; None for 0.
        mask: True at the positions that count.
        config: Canonical feature axes, epsilon and `group_size`.
        devices: All devices that the batch is sharded over.

    Raises:
        ValueError: If a group of that size would hold a part of a device's examples.
    """
    if config.group_size is None:
        y, moments = normalize_by_batch(x, scale, bias, mask, config, devices)
        return y, moments.rounded()
    examples, sharing = plan_groups(config.group_size, x.shape[0], devices)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
        mask = split_groups(mask, examples)

    def normalize(x: Array, mask: Array | None) -> tuple[Array, Moments]:
        y, moments = normalize_by_batch(x, scale, bias, mask, config, sharing)
        return y, moments.rounded()

    y, moments = jax.vmap(normalize)(split_groups(x, examples), mask)
    others = Devices() if sharing == devices else devices
    return y.reshape(x.shape), average_group(moments, others)


def plan_groups(
    group_size: int, batch_size: Any, devices: Devices
) -> tuple[int, Devices]:
    """Returns how many examples of a device make a group, and which devices share it.

    Args:
        group_size: Examples that share their statistics.
        batch_size: Examples on this device; an expression where `jax.export` leaves
            their number open.
        devices: All devices that the batch is sharded over.

    Raises:
        ValueError: If a group of that size would hold a part of a device's examples.
    """
    # A size that `jax.export` leaves open counts only if it is known to be a multiple.
    if batch_size % group_size == 0:
        return group_size, Devices()
    if not isinstance(batch_size, int):
        raise ValueError(
            f"batch_norm: group_size={group_size} must divide the batch, and the batch "
            f"size {batch_size} is not known to be a multiple of it; export with a "
            f"size such as {group_size}*k."
        )
    whole, size = batch_size * devices.number, devices.number
    if whole % group_size == 0 and group_size % batch_size == 0:
        members = group_size // batch_size
        starts = range(0, size, members)
        groups = tuple(tuple(range(start, start + members)) for start in starts)
        return batch_size, devices._replace(groups=groups if members < size else None)
    fitting = [
        size
        for size in range(1, whole + 1)
        if whole % size == 0 and (batch_size % size == 0 or size % batch_size == 0)
    ]
    nearest = sorted(fitting, key=lambda size: abs(size - group_size))[:2]
    raise ValueError(
        f"batch_norm: group_size={group_size} must divide the {batch_size} examples of "
        f"a device, or be a multiple of them that divides the whole batch of {whole}; "
        f"{' or '.join(map(str, sorted(nearest)))} would."
    )


def split_groups(
    x: Shaped[Array, "batch *shape"], examples: int
) -> Shaped[Array, "groups examples *shape"]:
    """Returns x with a leading axis of groups of consecutive examples.

    Args:
        x: Examples along the first axis.
        examples: Examples of a group; divides their number. An empty batch is one
            empty group.
    """
    batch_size, *shape = x.shape
    if batch_size == 0:
        return x[None]
    return jnp.reshape(x, (batch_size // examples, examples, *shape))


def average_group(moments: Moments, devices: Devices) -> Moments:
    """Returns moments of the average group, of which running statistics are made.

    Inference takes the place of training on groups of this size, so the groups'
    variances are averaged, as Algorithm 2 averages minibatches'; the variance
    of their means is not part of it.

    Args:
        moments: Moments with a leading axis of the groups of this device.
        devices: Devices that hold other groups.

    Returns:
        Moments without that axis, the same on all devices. Groups without a value
        have no weight.
    """
    has_values = (moments.num_samples > 0).astype(moments.var.dtype)
    # The moments of a group without a value are 0, which adds nothing.
    sums = [jnp.sum(leaf, axis=0) for leaf in (has_values, *moments)]
    num_groups, *totals = sum_across(devices, sums)
    return Moments(*(total / jnp.maximum(num_groups, 1) for total in totals))
