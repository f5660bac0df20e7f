"""Normalization batches of a stated size, however many devices there are."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Shaped

from bn_jax.core.derivative import Layout, normalize_by_batch
from bn_jax.core.devices import Devices, number_of_devices, sum_across
from bn_jax.core.types import Guess, Moments


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


def normalize_by_group(
    x: Inexact[Array, "batch *shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    guess: Guess,
    mask: Bool[Array, "#batch *#shape"] | None,
    layout: Layout,
    *,
    group_size: int,
) -> tuple[Inexact[Array, "batch *shape"], Moments]:
    """X normalized group by group, and the moments of the average group.

    Args:
        x: As for `normalize_by_batch`, and so are the others.
        scale: See there.
        bias: See there.
        guess: See there; one for all groups.
        mask: See there.
        layout: See there.
        group_size: Consecutive examples of the whole batch that share statistics.

    Raises:
        ValueError: If groups of that size would straddle devices.
    """
    groups = plan_groups(group_size, x.shape[0], layout.devices)
    known_groups = groups.on_device * groups.sharing.num_groups
    features = tuple(axis + 1 for axis in layout.feature_axes)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:]))
        mask = split_groups(mask, groups.on_device)
    y, moments = normalize_by_batch(
        split_groups(x, groups.on_device),
        scale,
        bias,
        guess._replace(
            mean=jnp.broadcast_to(guess.mean, (known_groups, *guess.mean.shape))
        ),
        mask,
        Layout((0, *features), features, layout.epsilon, groups.sharing),
    )
    return y.reshape(x.shape), average_group(moments.rounded(), groups.apart)


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
    if batch_size % group_size == 0:
        return Groups(max(batch_size // group_size, 1), Devices(), devices)
    if whole % group_size == 0 and group_size % batch_size == 0:
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
    # Not -1, which an empty array leaves open.
    return jnp.reshape(x, (num_groups, x.shape[0] // num_groups, *x.shape[1:]))


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
