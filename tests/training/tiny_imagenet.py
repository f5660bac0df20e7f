"""A small network on a tiny ImageNet, whose images are read from the disk."""

from typing import Any

from ml_collections import ConfigDict

from bn_jax.training.config_files import load_config

# 43 training and 12 validation images, of sizes of their own.
TINY_IMAGENET = {
    "dataset.name": "imagenet2012",
    "dataset.test_split": "validation",
    "batch_size": 8,
    "num_steps": 4,
    "parallel.num_devices": 1,
    "model.channels": (4,),
    "schedule.warmup_steps": 0,
    "evaluation.schedule.early_every_steps": 4,
    "evaluation.batch_size": 5,
    "evaluation.population_batches": 2,
    "evaluation.probe_examples": 3,
    "checkpoint.every_steps": 4,
    "max_steps_per_dispatch": 4,
}


def tiny_imagenet_config(data_dir: str, **settings: Any) -> ConfigDict:
    """A configuration that trains in seconds.

    Args:
        data_dir: Where a tiny ImageNet is prepared.
        **settings: Further settings, with `__` for each dot.
    """
    config = load_config("mnist_cnn:bn")
    with config.unlocked():
        config.dataset.image_size = 16
    further = {key.replace("__", "."): value for key, value in settings.items()}
    values = {"dataset.data_dir": data_dir, **TINY_IMAGENET, **further}
    config.update_from_flattened_dict(values)
    return config
