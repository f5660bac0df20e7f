"""Normalization of groups of `group_size` examples, on any number of devices."""

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
    """Normalizes x by the moments of the whole batch, or of each group of examples.

    A group is `group_size` consecutive examples of the whole batch, along axis 0. With
    groups, the returned moments are the average of the groups' moments.

    Args:
        x: Activations, zero where the mask is False.
        scale: Learned factor of each feature; None for 1.
        bias: Learned offset of each feature; None for 0.
        mask: True at valid positions; None if all are valid.
        config: Canonical feature axes, epsilon and `group_size`.
        devices: All devices that the batch is sharded over.

    Raises:
        ValueError: If `group_size` neither divides a device's examples nor is a
            multiple of them that divides the whole batch.
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
    return y.reshape(x.shape), average_groups(moments, others)


def plan_groups(
    group_size: int, batch_size: Any, devices: Devices
) -> tuple[int, Devices]:
    """Returns the number of a device's examples in one group, and the group's devices.

    Args:
        group_size: Number of examples that share statistics.
        batch_size: Number of examples on this device; a symbolic expression if
            `jax.export` leaves it open.
        devices: All devices that the batch is sharded over.

    Raises:
        ValueError: If `group_size` neither divides a device's examples nor is a
            multiple of them that divides the whole batch.
    """
    # A size that `jax.export` leaves open passes only if JAX knows it is a multiple.
    if batch_size % group_size == 0:
        return group_size, Devices()
    if not isinstance(batch_size, int):
        raise ValueError(
            f"batch_norm: group_size={group_size} must divide the batch, but the batch "
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
        f"a device, or be a multiple of that and divide the whole batch of {whole}; "
        f"{' or '.join(map(str, sorted(nearest)))} would."
    )


def split_groups(
    x: Shaped[Array, "batch *shape"], examples: int
) -> Shaped[Array, "groups examples *shape"]:
    """Returns x with a new leading axis of groups of consecutive examples.

    Args:
        x: Examples along the first axis.
        examples: Number of examples of a group, which divides the batch. An empty batch
            becomes one empty group.
    """
    batch_size, *shape = x.shape
    if batch_size == 0:
        return x[None]
    return jnp.reshape(x, (batch_size // examples, examples, *shape))


def average_groups(moments: Moments, devices: Devices) -> Moments:
    """Returns the average of the groups' moments, for the running statistics.

    In inference, the running statistics stand for the statistics of groups of this
    size. The groups' variances are therefore averaged, like the batches' variances in
    Algorithm 2; the variance of the groups' means is not added.

    Args:
        moments: Moments with a leading axis of this device's groups.
        devices: Devices that hold other groups.

    Returns:
        Moments without that axis, equal on all devices. Groups without values have no
        weight.
    """
    has_values = (moments.num_samples > 0).astype(moments.var.dtype)
    # The moments of a group without values are 0, so they add nothing.
    sums = [jnp.sum(leaf, axis=0) for leaf in (has_values, *moments)]
    num_groups, *totals = sum_across(devices, sums)
    return Moments(*(total / jnp.maximum(num_groups, 1) for total in totals))
