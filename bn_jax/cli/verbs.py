"""Functions of the verbs of `bn-jax`, which take what the parser has read.

Each function imports only what its verb needs: TFDS, Orbax and Matplotlib take seconds
to import.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bn_jax.errors import UserError
from bn_jax.train_flags import exit_if_help_is_asked_for


def run_train(words: Sequence[str]) -> NoReturn:
    """Trains, by the command line of `bn_jax.training.main`."""
    exit_if_help_is_asked_for(words, program="bn-jax train")
    # Until there is something to save, Ctrl-C ends the process at once. Python's own
    # handler would print a traceback of the imports, and wait for other processes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from bn_jax.training.main import main as train
    except ModuleNotFoundError as error:
        sys.exit(f"bn-jax train: {error}")
    train(words, program="bn-jax train")
    sys.exit()


def run_figure1(options: argparse.Namespace) -> None:
    """Trains both arms of the MNIST experiment and draws Figure 1."""
    from bn_jax.experiments.run_figure1 import figure1

    (workdir,) = options.workdirs
    print(figure1(workdir, seeds=options.seeds, overrides=options.settings))


def run_figure2(options: argparse.Namespace) -> None:
    """Trains the small ImageNet arms and draws Figures 2 and 3."""
    from bn_jax.experiments.run_figure2 import figure2

    (workdir,) = options.workdirs
    table = figure2(
        workdir,
        seeds=options.seeds,
        search=options.search,
        overrides=options.settings,
    )
    print(table)


def run_prepare(options: argparse.Namespace) -> None:
    """Prepares a data set for tensorflow-datasets."""
    from bn_jax.data.tfds import split_sizes

    data_dir = options.data_dir.expanduser()
    if data_dir.is_file():
        raise UserError(
            f"--data_dir: {options.data_dir} is a file; name the folder of prepared "
            "data sets, which need not exist yet."
        )
    if options.name == "mnist":
        folder = _prepare_mnist(options, data_dir)
    else:
        folder = _prepare_imagenet(options, data_dir)
    sizes = split_sizes(options.name, str(data_dir))
    images = " and ".join(f"{size:,} {split}" for split, size in sizes.items())
    call = f'tfds.data_source("{options.name}", data_dir="{options.data_dir}")'
    print(f"{folder}: {images} images; read it with {call}.")


def _prepare_mnist(options: argparse.Namespace, data_dir: Path) -> Path:
    from bn_jax.data.preparation.mnist import prepare_mnist

    if options.manual_dir is not None or options.subset:
        raise UserError(
            "--manual_dir and --subset are for imagenet2012 only; leave them out."
        )
    return prepare_mnist(data_dir)


def _prepare_imagenet(options: argparse.Namespace, data_dir: Path) -> Path:
    from bn_jax.data.preparation.imagenet import prepare_imagenet

    # TFDS expects manually downloaded files in this folder.
    manual_dir = options.manual_dir or data_dir / "downloads" / "manual"
    return prepare_imagenet(manual_dir.expanduser(), data_dir, is_subset=options.subset)


def run_evaluate(options: argparse.Namespace) -> None:
    """Prints the test results of a run."""
    from bn_jax.reporting.tables import evaluation_table
    from bn_jax.training.evaluation.evaluate import evaluate

    (workdir,) = options.workdirs
    evaluation = evaluate(
        workdir,
        dataset=options.settings,
        statistics=options.statistics,
        crops=options.crops,
    )
    print(evaluation_table(evaluation, crops=options.crops))


def run_ensemble(options: argparse.Namespace) -> None:
    """Prints the test results of several runs together."""
    from bn_jax.reporting.tables import ensemble_table
    from bn_jax.training.evaluation.ensemble import ensemble

    evaluation = ensemble(
        options.workdirs,
        dataset=options.settings,
        statistics=options.statistics,
        crops=options.crops,
    )
    print(ensemble_table(evaluation, crops=options.crops))


def run_inspect(options: argparse.Namespace) -> None:
    """Prints the layers of a run's network."""
    from bn_jax.reporting.tables import layer_table
    from bn_jax.training.evaluation.inspect import inspect

    (workdir,) = options.workdirs
    step, layers = inspect(workdir)
    print(layer_table(layers, step=step))


def run_launch(options: argparse.Namespace) -> None:
    """Runs a command as several processes, and exits with their code."""
    from bn_jax.launch.launcher import launch

    sys.exit(launch(options.command, num_processes=options.num_processes))
