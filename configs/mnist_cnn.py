"""A small convolutional network on MNIST, with and without Batch Normalization.

    python train.py --config=configs/mnist_cnn.py:bn --workdir=DIR
    python train.py --config=configs/mnist_cnn.py:baseline --workdir=DIR

Both arms train the same network on the same minibatches; one has Batch Normalization
before each nonlinearity and no biases there, the other has biases. Expected with these
settings, after 1,406 steps: 99.24 % test accuracy with it and 99.15 % without
(results/mnist_cnn.json, 3 seeds), in one and a half to three minutes on 2 cores.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arm: str = "bn") -> ConfigDict:
    """The configuration of one arm.

    Args:
        arm: "bn" or "baseline".
    """
    if arm not in ("bn", "baseline"):
        raise ValueError(
            f"configs/mnist_cnn.py: the arms are 'bn' and 'baseline'; {arm!r} is none."
        )
    config = ConfigDict()
    # Initial weights and the order of the examples.
    config.seed = 0
    # Three epochs. A batch of 128 splits evenly over 1, 2, 4 or 8 devices.
    config.batch_size = 128
    config.num_steps = 3 * 60_000 // 128
    # Parts that a step's examples are computed in, one after the other.
    config.accumulation_steps = 1
    # Of activations and gradients; parameters and statistics are float32 always.
    config.dtype = "float32"

    # The MNIST inside the package. A name of tensorflow-datasets, prepared as
    # array_record in data_dir, or a folder of IDX files, take its place.
    config.dataset = ConfigDict()
    config.dataset.name = "mnist"
    config.dataset.data_dir = config_dict.placeholder(str)
    config.dataset.idx_dir = config_dict.placeholder(str)
    config.dataset.train_split = "train"
    config.dataset.test_split = "test"
    # Largest pixel value that becomes 0, where others become 1; None scales pixels to
    # [0, 1]. Then mean is subtracted, and std divides: one value for all channels, or
    # one for each.
    config.pixels = ConfigDict()
    config.pixels.binarize_threshold = config_dict.placeholder(object)
    config.pixels.mean = (0.0,)
    config.pixels.std = (1.0,)

    config.model = ConfigDict()
    config.model.name = "cnn"
    config.model.channels = (16, 32, 64)
    config.model.kernel_size = 3
    config.model.nonlinearity = "relu"

    # Evaluation does not use the moving averages; momentum is the fraction of them
    # that a step keeps.
    config.norm = ConfigDict()
    config.norm.name = config_dict.placeholder(str)
    if arm == "bn":
        config.norm.name = "batch_norm"
    config.norm.momentum = 0.99
    config.norm.epsilon = 1e-5
    # Statistics of the examples on all devices, not of each device's own.
    config.norm.sync = True

    # Part of each label that is divided among all classes.
    config.label_smoothing = 0.0
    # Chosen on the last 5,000 training images, which the choice held out.
    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    # None for optimizers that have none, such as adamw.
    config.optimizer.momentum = config_dict.placeholder(object)
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_scale_and_bias = False
    config.optimizer.clip_norm = config_dict.placeholder(float)
    # Half a cosine down to 0, after a linear rise; it has no use for the decay.
    config.schedule = ConfigDict()
    config.schedule.name = "cosine"
    config.schedule.warmup_steps = 100
    config.schedule.decay_every_steps = 469
    config.schedule.decay_factor = 0.1
    config.schedule.final_fraction = 0.0
    # Fraction of the averaged parameters that a step keeps; None keeps no average.
    config.ema_decay = config_dict.placeholder(float)

    # "jit", "shard_map" or "pmap", over all devices or the first few.
    config.parallel = ConfigDict()
    config.parallel.mode = "jit"
    config.parallel.num_devices = config_dict.placeholder(int)
    # What to do when the loss or a gradient is not finite: "raise", or "skip" the step
    # and give up after so many in a row.
    config.on_nonfinite = "raise"
    config.max_nonfinite_steps = 10
    # Steps between log lines, where there is no progress bar.
    config.log_every = 100

    # Steps between evaluations: dense at first, then about two an epoch.
    config.evaluation = ConfigDict()
    config.evaluation.schedule = ConfigDict()
    config.evaluation.schedule.early_every_steps = 50
    config.evaluation.schedule.early_until_step = 200
    config.evaluation.schedule.every_steps = 200
    # Images at once; it has no influence on the result, but with the statistics of
    # each batch (`bn-jax evaluate --statistics=batch`).
    config.evaluation.batch_size = 1_000
    # Training minibatches whose statistics are averaged.
    config.evaluation.population_batches = 20
    # Test images that the probes use.
    config.evaluation.probe_examples = 1_000
    config.probes = ()

    config.checkpoint = ConfigDict()
    # Once an epoch.
    config.checkpoint.every_steps = 469
    config.checkpoint.keep = 2
    # Training steps in one compiled call.
    config.max_steps_per_dispatch = 20
    return config.lock()
