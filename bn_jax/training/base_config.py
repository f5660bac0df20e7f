"""The base configuration: every setting, with its unit and the reason for its value.

A configuration file starts from `base_config()` and states what it changes:

    from bn_jax.training import base_config

    def get_config():
        config = base_config()
        config.num_steps = 2_000
        config.model.channels = (32, 64)
        return config
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from bn_jax.errors import UserError, did_you_mean

# Groups to which a configuration adds the fields of its model and the arguments of its
# optimizer.
OPEN_GROUPS = ("model", "optimizer")


def base_config() -> Any:
    """Returns a new configuration that trains a small CNN on MNIST.

    Returns:
        A ConfigDict, not locked. None is the value of a setting that is off.
    """
    config = ConfigDict()
    # Determines the initial parameters, the order of the examples, and dropout.
    config.seed = 0
    # Examples of a step, on all devices together; 128 can be divided among 1, 2, 4 or 8
    # devices. num_steps is ten epochs of MNIST.
    config.batch_size = 128
    config.num_steps = 4_690
    # Microbatches of a step, computed one after the other; more of them need less
    # memory. Each is normalized on its own.
    config.accumulation_steps = 1
    # Dtype of activations and gradients: "float32", "bfloat16" or "float16". Parameters
    # and statistics are always float32.
    config.dtype = "float32"
    # Workdir of another run, whose parameters and statistics this run starts from.
    config.init_from = config_dict.placeholder(str)
    # Folder in which `package.module:name` is looked for, besides the current folder
    # and Python's path. The command line sets it to the folder of the configuration,
    # and a workdir records the folder in which the model or the data were found.
    config.module_dir = config_dict.placeholder(str)

    config.dataset = _dataset()
    # uint8 pixels are divided by 255; other inputs stay as they are. With a
    # binarize_threshold, from 0 to 254, pixels up to it become 0 and all others 1. Then
    # mean is subtracted and std divides: one value for all channels, or one for each.
    config.pixels = ConfigDict()
    config.pixels.binarize_threshold = config_dict.placeholder(object)
    config.pixels.mean = (0.0,)
    config.pixels.std = (1.0,)

    # "mlp", "cnn", "inception", or "package.module:Class" for a class of Linen or NNX.
    # The other entries of this group are fields of the class.
    config.model = ConfigDict()
    config.model.name = "cnn"
    config.norm = _norm()

    # Fraction of each label that is divided among all classes.
    config.label_smoothing = 0.0
    config.optimizer = _optimizer()
    config.schedule = _schedule()
    # Fraction of the averaged parameters that a step keeps; None keeps no average.
    config.ema_decay = config_dict.placeholder(float)

    # "jit" lets XLA partition the step; "shard_map" and "pmap" map it over devices.
    # num_devices takes the first few devices; None takes all.
    config.parallel = ConfigDict()
    config.parallel.mode = "jit"
    config.parallel.num_devices = config_dict.placeholder(int)
    # When the loss or a gradient is not finite, "raise" ends the run. "skip" undoes the
    # step, and ends the run after max_nonfinite_steps such steps in a row.
    config.on_nonfinite = "raise"
    config.max_nonfinite_steps = 10

    config.evaluation = _evaluation()
    # Names of the probes of each evaluation: "percentiles" and "batch_norm".
    config.probes = ()
    # Test accuracies in [0, 1]: the summary reports the first step that reaches each.
    config.report_steps_to = ()

    # Steps between checkpoints, None for an epoch, and the number that are kept.
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = config_dict.placeholder(int)
    config.checkpoint.keep = 2
    # Steps between log lines when there is no progress bar. Each evaluation writes a
    # line as well; None writes no others.
    config.log_every = config_dict.placeholder(int)
    # Largest number of steps in one call of a compiled program. More steps cost less
    # time between calls, and hold more examples on the devices at once.
    config.max_steps_per_dispatch = 20
    return config


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration with the base's value for each setting that it lacks.

    A run of an older version lacks settings that are newer than the run; the base's
    values leave such a run as it was.

    Args:
        settings: A configuration, as nested mappings.
    """
    return _merge(base_config().to_dict(), settings)


def check_setting_names(config: ConfigDict) -> None:
    """Checks that a configuration has the settings of the base, and no others.

    The groups in `OPEN_GROUPS` may have further ones.

    Args:
        config: The configuration.

    Raises:
        UserError: If a setting is unknown or missing. The message names the nearest
            one.
    """
    # A setting that is computed from another one may not have a value yet.
    settings = config.to_dict(preserve_field_references=True)
    _check_names(settings, base_config().to_dict(), "config")


def _dataset() -> ConfigDict:
    dataset = ConfigDict()
    # "mnist" is in the package. Alternatives: the name of a dataset of
    # tensorflow-datasets that was prepared as array_record, in data_dir;
    # "package.module:function" for a function that returns arrays; idx_dir, a folder of
    # IDX files; image_dir, a folder of images by class.
    dataset.name = "mnist"
    dataset.data_dir = config_dict.placeholder(str)
    dataset.idx_dir = config_dict.placeholder(str)
    dataset.image_dir = config_dict.placeholder(str)
    # Splits in the notation of tensorflow-datasets, such as "train[:-5000]".
    dataset.train_split = "train"
    dataset.test_split = "test"
    # Split of the evaluations during training, so that the test split is for `bn-jax
    # evaluate`. None uses "validation" if a function or image_dir has it, and the test
    # split otherwise.
    dataset.validation_split = config_dict.placeholder(str)
    # Height and width, in pixels, to which images of varying size are cropped; None for
    # images that all have the same size.
    dataset.image_size = config_dict.placeholder(int)
    # Strength of random colour changes, in [0, 1], for images of varying size.
    dataset.distortion = 0.0
    # Determines crops, flips and colour changes.
    dataset.augmentation_seed = 0
    # Threads that read and decode images; None takes one for each core. Objects of a
    # user's function are then read by one thread.
    dataset.read_threads = config_dict.placeholder(int)
    return dataset


def _norm() -> ConfigDict:
    norm = ConfigDict()
    # Layer that a network of the package, and a class with the field `norm`, gets: None
    # for no normalization.
    norm.name = config_dict.placeholder(object)
    norm.name = "batch_norm"
    # Fraction of the running statistics that a step keeps; None averages all steps with
    # equal weights. Momentum and epsilon are Flax's.
    norm.momentum = config_dict.placeholder(object)
    norm.momentum = 0.99
    norm.epsilon = 1e-5
    # True normalizes by the examples of all devices, False by those of each device.
    norm.sync = True
    # Number of examples that share a mean and a variance; None for all of them.
    norm.group_size = config_dict.placeholder(int)
    # 0 averages the biased variance, as Flax does; 1 the unbiased one, as PyTorch does.
    norm.variance_correction = 0
    # True gives the initial values of the running statistics no weight.
    norm.debias = False
    # True leaves the running statistics as they are if a batch is not finite.
    norm.skip_nonfinite = False
    # True normalizes by the running statistics in training too, and leaves scale, bias
    # and statistics as they are.
    norm.frozen = False
    return norm


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    # Name of the function in Optax; the other entries are its arguments, None for the
    # function's default. AdamW at 1e-3 trains most small networks without a search.
    optimizer.name = "adamw"
    optimizer.learning_rate = 1e-3
    # Optax's default for AdamW. Scales and biases do not decay, because their decay
    # changes the model.
    optimizer.weight_decay = 1e-4
    optimizer.decay_scale_and_bias = False
    # Largest norm of the gradient; None does not clip it.
    optimizer.clip_norm = config_dict.placeholder(float)
    # Regular expressions: parameters whose path matches one stay as they are.
    optimizer.freeze = ()
    return optimizer


def _schedule() -> ConfigDict:
    schedule = ConfigDict()
    # "constant", "step", "exponential" or "cosine". A constant rate suits every number
    # of steps, so that a run can be given more steps later.
    schedule.name = "constant"
    # Steps in which the rate rises linearly from 0; AdamW needs none.
    schedule.warmup_steps = 0
    # "step" and "exponential" multiply the rate by decay_factor in so many steps.
    schedule.decay_every_steps = 10_000
    schedule.decay_factor = 0.1
    # "cosine" ends at this fraction of the full rate.
    schedule.final_fraction = 0.0
    return schedule


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    # Steps between evaluations, None for an epoch. Up to early_until_step there are
    # early_every_steps between them.
    evaluation.schedule = ConfigDict()
    evaluation.schedule.early_every_steps = 100
    evaluation.schedule.early_until_step = 0
    evaluation.schedule.every_steps = config_dict.placeholder(int)
    # Images of an evaluation batch. The batch size changes the result only with
    # `bn-jax evaluate --statistics=batch`, which uses the statistics of each batch.
    evaluation.batch_size = 1_000
    # Training batches that the population statistics are averaged over.
    evaluation.population_batches = 20
    # Test images that the probes use.
    evaluation.probe_examples = 1_000
    return evaluation


def _merge(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **settings}
    for name, value in base.items():
        if isinstance(value, Mapping) and isinstance(settings.get(name), Mapping):
            merged[name] = _merge(value, settings[name])
    return merged


def _check_names(
    settings: Mapping[str, Any], base: Mapping[str, Any], path: str
) -> None:
    for name in settings if path.removeprefix("config.") not in OPEN_GROUPS else ():
        if name not in base:
            end = did_you_mean(name, base)
            raise UserError(f"{path}.{name}: there is no such setting{end}")
    for name, value in base.items():
        is_group = isinstance(value, Mapping)
        if name not in settings or is_group > isinstance(settings[name], Mapping):
            what = "group of settings" if is_group else "setting"
            raise UserError(
                f"{path}.{name}: the configuration lacks this {what}; start from "
                "bn_jax.training.base_config()."
            )
        if is_group:
            _check_names(settings[name], value, f"{path}.{name}")
