"""Group size of a run whose devices do not share their statistics."""

from typing import Any

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


def share_of_device(config: Settings, num_devices: int) -> int:
    """Returns the examples of a microbatch that one device gets.

    Args:
        config: Configuration, as the files in `configs/` make it.
        num_devices: Number of devices.
    """
    return config.batch_size // config.accumulation_steps // num_devices
