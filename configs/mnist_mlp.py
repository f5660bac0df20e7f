"""The MNIST experiment of Ioffe & Szegedy (2015), section 4.1, Figure 1.

    python train.py --config=configs/mnist_mlp.py:bn --workdir=DIR
    python train.py --config=configs/mnist_mlp.py:baseline --workdir=DIR

Both arms train the same network on the same batches. Before each hidden nonlinearity,
`bn` has Batch Normalization and `baseline` has biases instead. Expected: `bn` reaches
90 % test accuracy after about 700 steps and `baseline` after about 4,250. After 50,000
steps they have 97.5 % and 97.05 % (results/figure1.json, 3 seeds).
"""

from ml_collections import ConfigDict, config_dict


def get_config(arm: str = "bn") -> ConfigDict:
    """Returns the configuration of one arm.

    Args:
        arm: "bn" or "baseline".

    Raises:
        ValueError: If there is no such arm.
    """
    if arm not in ("bn", "baseline"):
        raise ValueError(
            f"configs/mnist_mlp.py: the arm must be 'bn' or 'baseline', but is {arm!r}."
        )
    config = ConfigDict()
    # Determines the initial weights and the order of the examples.
    config.seed = 0
    # The paper: 50,000 steps of 60 examples.
    config.num_steps = 50_000
    config.batch_size = 60

    # Microbatches of a step, computed one after the other.
    config.accumulation_steps = 1
    # Dtype of activations and gradients; parameters and statistics are always float32.
    config.dtype = "float32"

    # The MNIST in the package. Alternatives: name and data_dir of a dataset of
    # tensorflow-datasets that was prepared as array_record, or idx_dir, a folder of IDX
    # files.
    config.dataset = ConfigDict()
    config.dataset.name = "mnist"
    config.dataset.data_dir = config_dict.placeholder(str)
    config.dataset.idx_dir = config_dict.placeholder(str)
    config.dataset.train_split = "train"
    config.dataset.test_split = "test"
    # The paper: "28x28 binary image". Pixels up to binarize_threshold become 0 and all
    # others 1; None scales pixels to [0, 1] instead. The paper does not state a
    # threshold; 127 is the middle of the range 0 to 255. Then mean is subtracted and
    # std divides: one value for all channels, or one for each.
    config.pixels = ConfigDict()
    config.pixels.binarize_threshold = config_dict.placeholder(object)
    config.pixels.binarize_threshold = 127
    config.pixels.mean = (0.0,)
    config.pixels.std = (1.0,)

    # The paper: three hidden layers of 100 sigmoid units.
    config.model = ConfigDict()
    config.model.name = "mlp"
    config.model.hidden_features = (100, 100, 100)
    config.model.nonlinearity = "sigmoid"
    # Standard deviation of the initial weights. The paper: "small random Gaussian
    # values"; it does not say how small.
    config.model.kernel_stddev = 0.1

    # The paper normalizes every hidden layer. It states neither epsilon nor momentum,
    # the fraction of the running statistics that a step keeps; these are Flax's.
    # Evaluation uses population statistics instead of the running statistics.
    config.norm = ConfigDict()
    config.norm.name = config_dict.placeholder(str)
    if arm == "bn":
        config.norm.name = "batch_norm"
    config.norm.momentum = 0.99
    config.norm.epsilon = 1e-5
    # True normalizes by the examples of all devices, False by those of each device.
    config.norm.sync = True

    # Fraction of each label that is divided among all classes; the paper has none.
    config.label_smoothing = 0.0
    # The paper does not state the learning rate. Both arms learn with 0.1. It is not
    # the best rate of either arm, and the distance between the arms depends on it.
    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    # The paper mentions no weight decay, no largest norm of the gradient (None does
    # not clip it) and no schedule. Here the rate is constant, and the other settings
    # of the schedule have no effect.
    config.optimizer.weight_decay = 0.0
    config.optimizer.decay_scale_and_bias = False
    config.optimizer.clip_norm = config_dict.placeholder(float)
    config.schedule = ConfigDict()
    config.schedule.name = "constant"
    config.schedule.warmup_steps = 0
    config.schedule.decay_every_steps = 10_000
    config.schedule.decay_factor = 0.1
    config.schedule.final_fraction = 0.0
    # Fraction of the averaged parameters that a step keeps; None keeps no average.
    config.ema_decay = config_dict.placeholder(float)

    # The mode is "jit", "shard_map" or "pmap". num_devices takes the first few
    # devices; None takes all.
    config.parallel = ConfigDict()
    config.parallel.mode = "jit"
    config.parallel.num_devices = config_dict.placeholder(int)
    # When the loss or a gradient is not finite, "raise" ends the run. "skip" undoes the
    # step, and ends the run after max_nonfinite_steps such steps in a row.
    config.on_nonfinite = "raise"
    config.max_nonfinite_steps = 10

    # Steps between evaluations: few until early_until_step, where the arms differ most.
    config.evaluation = ConfigDict()
    config.evaluation.schedule = ConfigDict()
    config.evaluation.schedule.early_every_steps = 50
    config.evaluation.schedule.early_until_step = 5_000
    config.evaluation.schedule.every_steps = 500
    # Images of an evaluation batch. The batch size changes the result only with
    # `bn-jax evaluate --statistics=batch`, which uses the statistics of each batch.
    config.evaluation.batch_size = 1_000
    # Training batches that the population statistics are averaged over. The paper says
    # "multiple" (Algorithm 2).
    config.evaluation.population_batches = 100
    # Test images that the probes use.
    config.evaluation.probe_examples = 1_000
    # Figures 1b and 1c: percentiles of the input to one sigmoid of the last hidden
    # layer. It is the sigmoid whose input, before training, has the median spread of
    # the layer.
    config.probes = ("percentiles",)

    # Steps between checkpoints, and the number of checkpoints that are kept.
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 10_000
    config.checkpoint.keep = 3
    # Steps between log lines, which are written when there is no progress bar.
    config.log_every = 1_000
    # Largest number of steps in one call of a compiled program.
    config.max_steps_per_dispatch = 50
    return config.lock()
