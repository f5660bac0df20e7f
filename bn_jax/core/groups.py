"""Normalization batches of a stated size, however many devices there are."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from bn_jax.core.devices import Devices, number_of_devices, sum_across
from bn_jax.core.types import Moments


class Groups(NamedTuple):
    """How a batch is cut into groups.

    Attributes:
        on_device: Number of groups that a device's examples are cut into.
        sharing: Devices that share the statistics of a group.
        apart: Devices whose groups another one does not know.
    """

    on_device: int
    sharing: Devices
    apart: Devices


def plan_groups(group_size: int, batch_size: int, devices: Devices) -> Groups:
    """How to make groups of `group_size` consecutive examples of the whole batch.

    Args:
        group_size: Examples that share their statistics.
        batch_size: Examples on this device.
        devices: All devices that the batch is spread over.

    Raises:
        ValueError: If groups of that size would straddle devices.
    """
    whole = batch_size * number_of_devices(devices)
    if group_size >= 1 and batch_size % group_size == 0:
        return Groups(max(batch_size // group_size, 1), Devices(), devices)
    if group_size >= 1 and whole % group_size == 0 and group_size % batch_size == 0:
        per_group = group_size // batch_size
        return Groups(1, devices._replace(devices_per_group=per_group), Devices())
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
    x: Shaped[Array, "batch *shape"], num_groups: int
) -> Shaped[Array, "groups examples *shape"]:
    """X with a leading axis of groups of consecutive examples.

    Args:
        x: Examples along the first axis.
        num_groups: Divides the number of examples.
    """
    return jnp.reshape(x, (num_groups, -1, *x.shape[1:]))


def average_group(moments: Moments, devices: Devices) -> Moments:
    """Moments of the average group: what running statistics are made of.

    Inference takes the place of training on groups of this size, so it is their
    variances that are averaged, as Algorithm 2 averages minibatches'; the variance
    of their means is not part of it.

    Args:
        moments: Moments with a leading axis of the groups that this device knows.
        devices: Devices that know others.

    Returns:
        Moments without that axis, the same on all devices. Groups without a value
        have no weight.
    """
    has_values = (moments.num_samples > 0).astype(moments.var.dtype)
    # Groups without a value have moments of 0, which add nothing.
    sums = [jnp.sum(leaf, axis=0) for leaf in (has_values, *moments)]
    num_groups, *totals = sum_across(devices, sums)
    return Moments(*(total / jnp.maximum(num_groups, 1) for total in totals))
