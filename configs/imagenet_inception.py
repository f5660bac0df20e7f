"""The ImageNet experiments of Ioffe & Szegedy (2015), section 4.2, Figures 2 and 3.

    python train.py --config=configs/imagenet_inception.py:bn_x30 --workdir=DIR \
        --config.dataset.data_dir=FOLDER

What the paper published, single crop; nothing of it has been run here, on ImageNet:

    arm             steps to 72.2 %    highest accuracy
    inception            31.0e6             72.2 %
    bn_baseline          13.3e6             72.7 %
    bn_x5                 2.1e6             73.0 %
    bn_x30                2.7e6             74.8 %, after 6e6 steps
    bn_x5_sigmoid             -             69.8 %

`modern` is none of the paper's: the same network, trained as one would today.
docs/imagenet.md has the preparation, and estimates of time and cost.
"""

from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid", "modern")
_ACCELERATED = ("bn_x5", "bn_x30", "bn_x5_sigmoid")
_TRAINING_IMAGES = 1_281_167


# A ConfigDict, whose settings no type checker knows.
Settings = Any


def get_config(arm: str = "bn_x30") -> ConfigDict:
    """The configuration of one arm.

    Args:
        arm: One of `ARMS`.
    """
    if arm not in ARMS:
        raise ValueError(
            f"configs/imagenet_inception.py: the arms are {', '.join(ARMS)}; {arm!r} "
            "is none."
        )
    # Section 4.2.1: six times faster.
    config = _inception(decays_faster=6 if arm in _ACCELERATED else 1)
    if arm != "inception":
        config.norm.name = "batch_norm"
    if arm in _ACCELERATED:
        _accelerate(config, learning_rate_factor=30 if arm == "bn_x30" else 5)
    if arm == "bn_x5_sigmoid":
        config.model.nonlinearity = "sigmoid"
    if arm == "modern":
        _modernize(config)
    return config.lock()


def _accelerate(config: Settings, *, learning_rate_factor: int) -> None:
    """The changes of section 4.2.1, but for two that all arms have and the decay.

    Local response normalization, which it removes, is in none of these networks, and
    examples are shuffled thoroughly in all: each epoch is a permutation of its own.
    """
    config.optimizer.learning_rate *= learning_rate_factor
    config.optimizer.weight_decay /= 5
    config.model.dropout_rate = 0.0
    # The paper: less than before; it does not say how much less.
    config.dataset.distortion /= 2
    # The paper: what 74.8 % took at the highest rate.
    config.num_steps = 6_000_000


def _modernize(config: Settings) -> None:
    """Large batches and what is usual with them: Goyal et al. (2017), 90 epochs."""
    config.dtype = "bfloat16"
    config.batch_size = 1024
    # All of these follow a batch of another size.
    epoch = FieldReference(_TRAINING_IMAGES) // config.get_ref("batch_size")
    config.num_steps = epoch * 90
    # 0.1 for each 256 examples, after five epochs of warm-up. The cosine ends at 0,
    # where an average of the parameters has little left to average away.
    config.optimizer.learning_rate = FieldReference(0.1 / 256) * config.get_ref(
        "batch_size"
    )
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_steps = epoch * 5
    config.label_smoothing = 0.1
    config.model.dropout_rate = 0.0
    config.dataset.distortion = 0.0
    # Gradients are summed over devices in float32.
    config.parallel.mode = "shard_map"
    config.evaluation.schedule.early_until_step = 0
    config.evaluation.schedule.every_steps = epoch
    config.evaluation.population_batches = 10
    config.checkpoint.every_steps = epoch
    # 3,072 images of 150 kB wait for the device at once.
    config.max_steps_per_dispatch = 3
    config.log_every = 50


def _inception(*, decays_faster: int) -> Settings:
    """The network without normalization, from which the others differ."""
    config = ConfigDict()
    # Initial weights and the order of the examples.
    config.seed = 0
    # The paper: 32 examples a step, of replicas that each update the parameters when
    # they are ready. One replica takes the same steps, with no gradient out of date.
    num_replicas = 1
    config.batch_size = 32 * num_replicas
    # The paper: 72.2 % after that many, which is all that it says of the end.
    config.num_steps = 31_000_000
    # Parts that a step's examples are computed in, one after the other.
    config.accumulation_steps = 1
    # Of activations and gradients; parameters and statistics are float32 always.
    config.dtype = "float32"

    # As `bn-jax prepare imagenet2012` writes it into data_dir.
    config.dataset = ConfigDict()
    config.dataset.name = "imagenet2012"
    config.dataset.data_dir = config_dict.placeholder(str)
    config.dataset.train_split = "train"
    config.dataset.test_split = "validation"
    # The paper: 224 pixels, and photometric distortion without a measure of it.
    config.dataset.image_size = 224
    config.dataset.distortion = 1.0
    config.dataset.augmentation_seed = 0
    # Threads that decode; None for one a core.
    config.dataset.read_threads = config_dict.placeholder(int)
    # The paper does not state how pixels are scaled: to [0, 1], and then by the mean
    # and standard deviation of each channel (red, green, blue) that torchvision's
    # models have, as networks without normalization need inputs around 0.
    config.pixels = ConfigDict()
    config.pixels.binarize_threshold = config_dict.placeholder(object)
    config.pixels.mean = (0.485, 0.456, 0.406)
    config.pixels.std = (0.229, 0.224, 0.225)

    # The paper's Figure 5, with its separable first convolution and, for Inception,
    # dropout of 40 %. It does not state the initial weights: He et al. (2015), times
    # kernel_gain.
    config.model = ConfigDict()
    config.model.name = "inception"
    config.model.variant = "paper_rows"
    config.model.stem = "imagenet"
    config.model.separable = True
    config.model.width = 1.0
    config.model.nonlinearity = "relu"
    config.model.dropout_rate = 0.4
    config.model.per_activation_modules = ()
    config.model.kernel_gain = 1.0

    # Not in the paper: the epsilon is TF-Slim's for this network. Evaluation does not
    # use the moving averages; momentum is the fraction of them that a step keeps.
    config.norm = ConfigDict()
    config.norm.name = config_dict.placeholder(str)
    config.norm.momentum = 0.99
    config.norm.epsilon = 1e-3
    # Statistics of all examples of a step, 32 in the paper, on however many devices
    # they lie: a run is the same on any number of them. Goyal et al. keep 32 apart in
    # their large batches, which `modern` does with sync=False on 32 devices.
    config.norm.sync = True

    # Part of each label that is divided among all classes; the paper has none.
    config.label_smoothing = 0.0
    # The paper: the rate, momentum without its value, L2 without its factor. Momentum
    # is GoogLeNet's (Szegedy et al., 2015). The L2 is such that a fifth of it is
    # TF-Slim's, whose network has Batch Normalization; scales and biases have none.
    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.0015
    # None for optimizers that have none, such as adamw.
    config.optimizer.momentum = config_dict.placeholder(object)
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5 * 4e-5
    config.optimizer.decay_scale_and_bias = False
    config.optimizer.clip_norm = config_dict.placeholder(float)
    # The paper: exponential. That it takes 4 % off in 8 epochs is GoogLeNet's; by the
    # end of the run it has taken 98 %, and 99 % where it is six times as fast.
    config.schedule = ConfigDict()
    config.schedule.name = "exponential"
    config.schedule.warmup_steps = 0
    # 8 epochs, or a part of them.
    config.schedule.decay_every_steps = (
        FieldReference(8 * _TRAINING_IMAGES)
        // config.get_ref("batch_size")
        // decays_faster
    )
    config.schedule.decay_factor = 0.96
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
    config.log_every = 1_000

    # Steps between evaluations: 2 % of the paper's shortest way to 72.2 %. The 50,000
    # images of each are 3 % of those trained on.
    config.evaluation = ConfigDict()
    config.evaluation.schedule = ConfigDict()
    config.evaluation.schedule.early_every_steps = 50_000
    config.evaluation.schedule.early_until_step = 0
    config.evaluation.schedule.every_steps = 50_000
    # Images at once; it has no influence on the result, but with the statistics of
    # each batch (`bn-jax evaluate --statistics=batch`).
    config.evaluation.batch_size = 256
    # Training minibatches whose statistics are averaged (Algorithm 2 says "multiple").
    config.evaluation.population_batches = 100
    # Test images that the probes use.
    config.evaluation.probe_examples = 32
    config.probes = ()

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 50_000
    config.checkpoint.keep = 2
    # Training steps in one compiled call.
    config.max_steps_per_dispatch = 20
    return config
