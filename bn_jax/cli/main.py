"""Command line program `bn-jax`, with one verb for each task."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bn_jax
from bn_jax.cli import verbs
from bn_jax.cli.folders import FOLDERS, add_folders, choose_folders
from bn_jax.errors import UserError
from bn_jax.setting_words import take_settings

# Verbs that accept settings, and the name of the setting's group on the command line.
_SETTINGS_GROUPS = {
    "figure1": "config",
    "figure2": "config",
    "evaluate": "dataset",
    "ensemble": "dataset",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the verb that the command line names.

    Args:
        arguments: Arguments after the program's name; by default those of the process.
    """
    parser = make_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:
        verbs.run_train(words[1:])
    # The words after -- are the command that `launch` starts.
    command: list[str] = []
    if "--" in words:
        place = words.index("--")
        words, command = words[:place], words[place + 1 :]
    group = _SETTINGS_GROUPS.get(words[0], "config") if words else "config"
    words, settings = take_settings(words, group=group)
    options, rest = parser.parse_known_args(words)
    if command and options.verb != "launch":
        parser.error(f"{options.verb} takes no command after --")
    options.command = command
    folders = []
    if options.verb in FOLDERS:
        folders = [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unknown argument {rest[0]}")
    if settings and options.verb not in _SETTINGS_GROUPS:
        parser.error(f"{options.verb} takes no --config settings")
    options.settings = settings
    try:
        if options.verb in FOLDERS:
            options.workdirs = choose_folders(options.verb, folders, options.workdir)
        options.run(options)
    except (UserError, OSError) as error:
        # Functions named after a verb start their messages with that name.
        message = str(error).removeprefix(f"{options.verb}: ")
        sys.exit(f"bn-jax {options.verb}: {message}")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser; `options.run` is the function of the chosen verb."""
    parser = argparse.ArgumentParser(
        "bn-jax", description="Tools for training with Batch Normalization in JAX."
    )
    version = f"%(prog)s {bn_jax.__version__}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(dest="verb", required=True)
    # `train` has the flags of train.py, which absl parses.
    subparsers.add_parser("train", help="train from a configuration", add_help=False)
    _add_figures(subparsers)
    _add_prepare(subparsers)
    _add_evaluations(subparsers)
    _add_inspect(subparsers)
    _add_launch(subparsers)
    return parser


def _add_figures(subparsers: Any) -> None:
    figure1 = subparsers.add_parser(
        "figure1",
        help="train the paper's MNIST experiment and draw its Figure 1",
        epilog="--config.KEY=VALUE changes a setting of configs/mnist_mlp.py.",
    )
    figure1.set_defaults(run=verbs.run_figure1)
    figure2 = subparsers.add_parser(
        "figure2",
        help="train the ImageNet arms at a small size and draw Figures 2 and 3",
        epilog="--config.KEY=VALUE changes a setting of configs/inception_small.py.",
    )
    figure2.set_defaults(run=verbs.run_figure2)
    figure2.add_argument(
        "--search",
        action="store_true",
        help="first search for the learning rate of Inception",
    )
    for name, figure in (("figure1", figure1), ("figure2", figure2)):
        add_folders(figure, name, meaning="folder for runs and results")
        figure.add_argument(
            "--seeds", type=int, default=3, help="number of seeds per arm (default: 3)"
        )


def _add_prepare(subparsers: Any) -> None:
    prepare = subparsers.add_parser(
        "prepare", help="prepare a data set for tensorflow-datasets, without TensorFlow"
    )
    prepare.set_defaults(run=verbs.run_prepare)
    prepare.add_argument(
        "name", choices=["mnist", "imagenet2012"], help="name of the data set"
    )
    prepare.add_argument(
        "--manual_dir",
        type=Path,
        help="imagenet2012 only: folder with ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar (default: downloads/manual in data_dir)",
    )
    prepare.add_argument(
        "--subset",
        action="store_true",
        help="imagenet2012 only: accept tar files with fewer images than the official "
        "ones",
    )
    prepare.add_argument(
        "--data_dir",
        type=Path,
        default=Path("~/tensorflow_datasets"),
        help="folder of prepared data sets (default: ~/tensorflow_datasets)",
    )


def _add_evaluations(subparsers: Any) -> None:
    evaluate = subparsers.add_parser(
        "evaluate",
        help="evaluate the newest checkpoint of a run on its own or another test set",
        epilog="--dataset.KEY=VALUE changes a setting of the run's data set.",
    )
    evaluate.set_defaults(run=verbs.run_evaluate)
    add_folders(evaluate, "evaluate", meaning="workdir of the run")
    ensemble = subparsers.add_parser(
        "ensemble",
        help="evaluate the averaged predictions of several runs on their own or "
        "another test set",
        epilog="--dataset.KEY=VALUE changes a setting of the data set of all runs.",
    )
    ensemble.set_defaults(run=verbs.run_ensemble)
    add_folders(ensemble, "ensemble", meaning="workdir of a run")
    for verb in (evaluate, ensemble):
        verb.add_argument(
            "--statistics",
            choices=["moving", "population", "batch"],
            default="population",
            help="statistics to normalize with: the running statistics of training "
            "(moving), population statistics of training batches, as evaluations "
            "during training use them (population, the default), or the statistics of "
            "each test batch (batch)",
        )
        verb.add_argument(
            "--crops",
            type=int,
            choices=[1, 144],
            default=1,
            help="number of crops of each image to average over: 1, the central crop "
            "(the default), or 144, as in the paper",
        )


def _add_inspect(subparsers: Any) -> None:
    inspect = subparsers.add_parser(
        "inspect", help="show the layers of the newest checkpoint of a run"
    )
    inspect.set_defaults(run=verbs.run_inspect)
    add_folders(inspect, "inspect", meaning="workdir of the run")


def _add_launch(subparsers: Any) -> None:
    launch = subparsers.add_parser(
        "launch",
        help="run a training script as several processes on this machine",
        usage="bn-jax launch --num_processes=N -- bn-jax train ...",
    )
    launch.set_defaults(run=verbs.run_launch)
    launch.add_argument(
        "--num_processes", type=int, required=True, help="number of processes"
    )
