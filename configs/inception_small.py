"""The paper's five arms of section 4.2, at a size that two cores train in minutes.

    bn-jax figure2 --workdir=DIR
    python train.py --config=configs/inception_small.py:bn_x5 --workdir=DIR

BN-Inception with an eighth of the channels, on 28x28 images: the embedded MNIST, any
folder of IDX files or any set of tensorflow-datasets of that size. What the arms differ
in is what they differ in in the paper; sizes, data and rates are not the paper's.

Two more arms are what the paper tells in words: Inception at five times its rate, and
Inception with sigmoids, both without normalization.

Expected, highest validation accuracy in percent, 3 seeds (results/figure2.json):

    inception         61.05 ± 37.41        inception_x5         10.70 (one class)
    bn_baseline       97.82 ± 0.08         inception_sigmoid    10.70 (one class)
    bn_x5             98.17 ± 0.31
    bn_x30            61.12 ± 23.73
    bn_x5_sigmoid     97.63 ± 0.40

Those of inception, inception_x5 and bn_x30 are no steady figures; README.md has others.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")
ARMS_TOLD = ("inception_x5", "inception_sigmoid")

# The rate of Inception: the best of those that `bn-jax figure2 --search` trains it
# with, by accuracy on the held-out images, mean of three seeds (results/figure2.json).
_LEARNING_RATE = 0.04


# A ConfigDict, whose settings no type checker knows.
Settings = Any


def get_config(arm: str = "bn_x5") -> ConfigDict:
    """The configuration of one arm.

    Args:
        arm: One of `ARMS` or `ARMS_TOLD`.
    """
    if arm not in ARMS + ARMS_TOLD:
        raise ValueError(
            "configs/inception_small.py: the arms are "
            f"{', '.join(ARMS + ARMS_TOLD)}; {arm!r} is none."
        )
    # A run halves the rate once, and six times where that is six times faster.
    config = _inception(halvings=6 if arm.startswith("bn_x") else 1)
    if arm.startswith("bn"):
        config.norm.name = "batch_norm"
    if arm.startswith("bn_x"):
        _accelerate(config)
    if "_x5" in arm:
        config.optimizer.learning_rate *= 5
    if "_x30" in arm:
        config.optimizer.learning_rate *= 30
    if arm.endswith("sigmoid"):
        config.model.nonlinearity = "sigmoid"
    return config.lock()


def _accelerate(config: Settings) -> None:
    """What section 4.2.1 changes, besides the learning rate and how fast it falls.

    Local response normalization and photometric distortion are in none of these arms,
    and all shuffle thoroughly.
    """
    config.optimizer.weight_decay /= 5
    config.model.dropout_rate = 0.0


def _inception(*, halvings: int) -> Settings:
    config = ConfigDict()
    # Initial weights and the order of the examples.
    config.seed = 0
    # The paper's, of each replica.
    config.batch_size = 32
    config.num_steps = 320
    # Parts that a step's examples are computed in, one after the other.
    config.accumulation_steps = 1
    # Of activations and gradients; parameters and statistics are float32 always.
    config.dtype = "float32"

    # The last 2,000 training images are the validation set, on which everything is
    # chosen and compared. The test set is left alone.
    config.dataset = ConfigDict()
    config.dataset.name = "mnist"
    config.dataset.data_dir = config_dict.placeholder(str)
    config.dataset.idx_dir = config_dict.placeholder(str)
    config.dataset.train_split = "train[:-2000]"
    config.dataset.test_split = "train[-2000:]"
    # Height and width of what is made of images of varying size; None for others.
    config.dataset.image_size = config_dict.placeholder(int)
    # Largest pixel value that becomes 0, where others become 1; None scales pixels to
    # [0, 1]. Then mean is subtracted, and std divides: one value for all channels, or
    # one for each.
    config.pixels = ConfigDict()
    config.pixels.binarize_threshold = config_dict.placeholder(object)
    config.pixels.mean = (0.0,)
    config.pixels.std = (1.0,)

    # The paper's Figure 5; with the small stem the modules meet 28x28 pixels, as they
    # do behind the large one in images of 224.
    config.model = ConfigDict()
    config.model.name = "inception"
    config.model.variant = "paper_rows"
    config.model.stem = "small"
    config.model.width = 1 / 8
    config.model.nonlinearity = "relu"
    # The paper's, removed by its modifications.
    config.model.dropout_rate = 0.4

    # Evaluation does not use the moving averages; momentum is the fraction of them
    # that a step keeps.
    config.norm = ConfigDict()
    config.norm.name = config_dict.placeholder(str)
    config.norm.momentum = 0.99
    config.norm.epsilon = 1e-5
    # Statistics of the examples on all devices, not of each device's own.
    config.norm.sync = True

    # The paper states neither momentum nor L2: GoogLeNet's momentum, TF-Slim's L2.
    config.label_smoothing = 0.0
    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = _LEARNING_RATE
    # None for optimizers that have none, such as adamw.
    config.optimizer.momentum = config_dict.placeholder(object)
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 4e-5
    config.optimizer.decay_scale_and_bias = False
    config.optimizer.clip_norm = config_dict.placeholder(float)
    # Exponential, as the paper's, which does not state how fast.
    config.schedule = ConfigDict()
    config.schedule.name = "exponential"
    config.schedule.warmup_steps = 0
    config.schedule.decay_every_steps = config.get_ref("num_steps") // halvings
    config.schedule.decay_factor = 0.5
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

    # Steps between evaluations: dense where the accuracy rises.
    config.evaluation = ConfigDict()
    config.evaluation.schedule = ConfigDict()
    config.evaluation.schedule.early_every_steps = 20
    config.evaluation.schedule.early_until_step = 120
    config.evaluation.schedule.every_steps = 40
    # Images at once; it has no influence on the result, but with the statistics of
    # each batch (`bn-jax evaluate --statistics=batch`). More take longer on a CPU.
    config.evaluation.batch_size = 25
    # Training minibatches whose statistics are averaged.
    config.evaluation.population_batches = 10
    # Images that the probes use.
    config.evaluation.probe_examples = 100
    config.probes = ()

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 160
    config.checkpoint.keep = 3
    # Training steps in one compiled call. All stretches between evaluations and
    # checkpoints are multiples of it: each length would be compiled by itself.
    config.max_steps_per_dispatch = 20
    return config.lock()
