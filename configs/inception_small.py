"""The five arms of Ioffe & Szegedy (2015), section 4.2, small enough for two cores.

    bn-jax figure2 DIR
    python train.py --config=configs/inception_small.py:bn_x5 --workdir=DIR

The network is BN-Inception with an eighth of the channels. It trains in minutes on
images of 28 x 28 pixels: the MNIST in the package, a folder of IDX files or a dataset
of tensorflow-datasets. The arms differ from each other in the settings in which they
differ in the paper. Sizes, data and learning rates are not the paper's.

Two more arms, both without normalization, test statements in the text of the paper:
Inception with five times its learning rate, and Inception with sigmoids.

Expected highest validation accuracy in percent, 3 seeds (results/figure2.json):

    inception         61.05 ± 37.41        inception_x5         10.70 (one class)
    bn_baseline       97.82 ± 0.08         inception_sigmoid    10.70 (one class)
    bn_x5             98.17 ± 0.31
    bn_x30            61.12 ± 23.73
    bn_x5_sigmoid     97.63 ± 0.40

The accuracies of inception, inception_x5 and bn_x30 vary between machines; README.md
has further ones.
"""

from typing import Any

from ml_collections import ConfigDict

from bn_jax.training import base_config

ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")
# Arms that the paper describes only in its text.
ARMS_TOLD = ("inception_x5", "inception_sigmoid")

# Learning rate of Inception. Of the rates that `bn-jax figure2 --search` tries, it has
# the highest validation accuracy, as a mean of three seeds (results/figure2.json).
_LEARNING_RATE = 0.04


# A ConfigDict; type checkers do not know its settings.
Settings = Any


def get_config(arm: str = "bn_x5") -> ConfigDict:
    """Returns the configuration of one arm.

    Args:
        arm: One of `ARMS` or `ARMS_TOLD`.

    Raises:
        ValueError: If there is no such arm.
    """
    if arm not in ARMS + ARMS_TOLD:
        raise ValueError(
            f"the arm must be one of {', '.join(ARMS + ARMS_TOLD)}, but is {arm!r}."
        )
    # The learning rate halves once in a run. In the accelerated arms it decays six
    # times faster (section 4.2.1), so it halves six times.
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
    return config


def _accelerate(config: Settings) -> None:
    """Makes the changes of section 4.2.1, except those of the learning rate.

    The other changes need no code: no arm has local response normalization or
    photometric distortion, and all arms shuffle the examples thoroughly.
    """
    config.optimizer.weight_decay /= 5
    config.model.dropout_rate = 0.0


def _inception(*, halvings: int) -> Settings:
    """Returns the configuration without normalization, which the arms then change."""
    config = base_config()
    # The paper: steps of 32 examples on each replica.
    config.batch_size = 32
    config.num_steps = 320
    # The last 2,000 training images are the validation split, which chooses settings
    # and compares arms. The test set is not used.
    config.dataset.train_split = "train[:-2000]"
    config.dataset.test_split = "train[-2000:]"

    # The paper: Figure 5. With the small stem the modules get 28 x 28 pixels, as they
    # do with the stem "imagenet" from images of 224 x 224. width is a factor of all
    # channel numbers. `Inception` in bn_jax/models/inception/network.py describes each
    # setting.
    config.model.name = "inception"
    config.model.variant = "paper_rows"
    config.model.stem = "small"
    config.model.width = 1 / 8
    config.model.nonlinearity = "relu"
    # The paper: dropout of 40 %, which section 4.2.1 removes.
    config.model.dropout_rate = 0.4
    # The paper states neither momentum nor epsilon.
    config.norm.name = None

    # The paper states neither the momentum nor the L2 factor (weight_decay). The
    # momentum is GoogLeNet's, the factor TF-Slim's.
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = _LEARNING_RATE
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 4e-5
    # The paper: an exponential decay. It does not state how fast the rate decays.
    config.schedule.name = "exponential"
    config.schedule.decay_every_steps = config.get_ref("num_steps") // halvings
    config.schedule.decay_factor = 0.5

    # Few steps between evaluations until step 120, where the accuracy rises.
    config.evaluation.schedule.early_every_steps = 20
    config.evaluation.schedule.early_until_step = 120
    config.evaluation.schedule.every_steps = 40
    # Larger batches are slower on a CPU.
    config.evaluation.batch_size = 25
    config.evaluation.population_batches = 10
    config.evaluation.probe_examples = 100
    config.checkpoint.every_steps = 160
    config.checkpoint.keep = 3
    # XLA compiles a program for each number of steps, so the steps between evaluations
    # and checkpoints are multiples of this setting.
    config.max_steps_per_dispatch = 20
    return config
