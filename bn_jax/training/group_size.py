"""Group size of a run whose devices do not share their statistics."""

from typing import Any

import jax

# A ConfigDict: type checkers do not know its settings.
Settings = Any


def with_group_size(config: Settings, group_size: int) -> Settings:
    """Returns the configuration with the group size of a run without `norm.sync`.

    A configuration with `norm.sync`, or with a group size, is returned unchanged. The
    workdir keeps the group size that a run starts with: its statistics do not depend
    on the devices that resume or evaluate it.

    Args:
        config: Configuration, as the files in `configs/` make it.
        group_size: Examples that share their statistics.
    """
    norm = config.norm
    if norm.name is None or norm.sync or norm.group_size is not None:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.norm.group_size = group_size
    return config


def with_groups_of_devices(config: Settings, num_devices: int) -> Settings:
    """Returns the configuration of a run without `norm.sync` on a number of devices.

    Each device's share of a microbatch shares its statistics.

    Args:
        config: Configuration, as the files in `configs/` make it.
        num_devices: Number of devices that train.
    """
    return with_group_size(config, share_of_device(config, num_devices))


def with_groups_of_the_run(config: Settings) -> Settings:
    """Returns the saved configuration of a run, with the group size of its training.

    A run of version 0.1 without `norm.sync` does not record its group size. It has
    trained on `config.parallel.num_devices`, or on as many devices as there are here.

    Args:
        config: Configuration in the workdir.
    """
    num_devices = config.parallel.num_devices or jax.local_device_count()
    return with_groups_of_devices(config, num_devices)


def share_of_device(config: Settings, num_devices: int) -> int:
    """Returns the examples of a microbatch that one device gets.

    Args:
        config: Configuration, as the files in `configs/` make it.
        num_devices: Number of devices.
    """
    return config.batch_size // config.accumulation_steps // num_devices
