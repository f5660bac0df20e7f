"""The program `bn-jax`: one verb for each thing that can be asked for."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bn_jax.errors import UserError

_CHANGES = {
    "figure1": "config",
    "figure2": "config",
    "evaluate": "dataset",
    "ensemble": "dataset",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line asks for.

    Args:
        arguments: Words after the program's name; those of the process by default.
    """
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    # What follows is another program's.
    command: list[str] = []
    if "--" in words:
        place = words.index("--")
        words, command = words[:place], words[place + 1 :]
    options, rest = parser.parse_known_args(words)
    if command and options.verb != "launch":
        parser.error(f"{options.verb} takes no command after --")
    changes = {}
    prefix = f"--{_CHANGES.get(options.verb, 'config')}."
    for word in rest:
        key, equals, value = word.removeprefix(prefix).partition("=")
        if not word.startswith(prefix) or not equals:
            parser.error(f"unknown argument {word}")
        changes[key] = value
    if changes and options.verb not in _CHANGES:
        parser.error(f"{options.verb} takes no --config settings")
    try:
        _do(options, changes, command)
    except (UserError, OSError) as error:
        # Some name the function, which is the verb.
        message = str(error).removeprefix(f"{options.verb}: ")
        sys.exit(f"bn-jax {options.verb}: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bn-jax", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    figure1 = verbs.add_parser(
        "figure1",
        help="train the paper's MNIST experiment and draw its Figure 1",
        epilog="--config.KEY=VALUE changes a setting of configs/mnist_mlp.py.",
    )
    figure2 = verbs.add_parser(
        "figure2",
        help="train the ImageNet arms at a small size, draw the paper's Figures 2, 3",
        epilog="--config.KEY=VALUE changes a setting of configs/inception_small.py.",
    )
    figure2.add_argument(
        "--search",
        action="store_true",
        help="search for the learning rate of Inception first",
    )
    for figure in (figure1, figure2):
        figure.add_argument(
            "--workdir", type=Path, required=True, help="folder to fill"
        )
        figure.add_argument("--seeds", type=int, default=3, help="seeds an arm (3)")

    prepare = verbs.add_parser(
        "prepare", help="prepare a data set for tensorflow-datasets, without TensorFlow"
    )
    prepare.add_argument(
        "name", choices=["mnist", "imagenet2012"], help="name of the data set"
    )
    prepare.add_argument(
        "--manual_dir",
        type=Path,
        help="imagenet2012: folder of ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar (downloads/manual in data_dir)",
    )
    prepare.add_argument(
        "--subset",
        action="store_true",
        help="imagenet2012: take tar files that hold fewer images than the official",
    )
    prepare.add_argument(
        "--data_dir",
        type=Path,
        default=Path("~/tensorflow_datasets"),
        help="folder of prepared data sets (~/tensorflow_datasets)",
    )

    evaluate = verbs.add_parser(
        "evaluate",
        help="evaluate the newest checkpoint of a run on its test set, or another one",
        epilog="--dataset.KEY=VALUE changes a setting of the run's data set.",
    )
    evaluate.add_argument("--workdir", type=Path, required=True, help="a run's folder")
    ensemble = verbs.add_parser(
        "ensemble",
        help="average the predictions of several runs on their test set, or another",
        epilog="--dataset.KEY=VALUE changes a setting of all runs' data set.",
    )
    ensemble.add_argument(
        "workdirs", type=Path, nargs="+", metavar="workdir", help="a run's folder"
    )
    for verb in (evaluate, ensemble):
        verb.add_argument(
            "--statistics",
            choices=["moving", "population", "batch"],
            default="population",
            help="what to normalize by: moving averages of training, population "
            "statistics of training minibatches (as in training's own evaluations), or "
            "each test batch's own",
        )
        verb.add_argument(
            "--crops",
            type=int,
            choices=[1, 144],
            default=1,
            help="crops of each image to average over: its middle alone (1), or the "
            "paper's 144",
        )

    inspect = verbs.add_parser(
        "inspect", help="show the layers of a run's newest checkpoint"
    )
    inspect.add_argument("workdir", type=Path, help="a run's folder")

    launch = verbs.add_parser(
        "launch",
        help="run a training script as several processes of this machine",
        usage="bn-jax launch --num_processes=N -- python train.py ...",
    )
    launch.add_argument("--num_processes", type=int, required=True, help="how many")
    return parser


def _do(
    options: argparse.Namespace, changes: Mapping[str, str], command: Sequence[str]
) -> None:
    # Each verb imports what it needs: TFDS, Orbax and Matplotlib take seconds.
    if options.verb == "figure1":
        from bn_jax.experiments.run_figure1 import figure1

        print(figure1(options.workdir, seeds=options.seeds, overrides=changes))
    elif options.verb == "figure2":
        from bn_jax.experiments.run_figure2 import figure2

        print(
            figure2(
                options.workdir,
                seeds=options.seeds,
                search=options.search,
                overrides=changes,
            )
        )
    elif options.verb == "prepare":
        from bn_jax.data.tfds import split_sizes

        data_dir = options.data_dir
        if data_dir.expanduser().is_file():
            raise UserError(
                f"--data_dir: {data_dir} is a file; name the folder of prepared data "
                "sets, or one that is to be made."
            )
        folder = _prepare(options, data_dir.expanduser())
        sizes = split_sizes(options.name, str(data_dir.expanduser()))
        images = " and ".join(f"{size:,} {split}" for split, size in sizes.items())
        call = f'tfds.data_source("{options.name}", data_dir="{data_dir}")'
        print(f"{folder}: {images} images; read it with {call}.")
    elif options.verb == "evaluate":
        from bn_jax.reporting.tables import evaluation_table
        from bn_jax.training.evaluation.evaluate import evaluate

        config = _saved_config(options.workdir, changes)
        way = {"statistics": options.statistics, "crops": options.crops}
        print(evaluation_table(evaluate(config, options.workdir, **way), **way))
    elif options.verb == "ensemble":
        from bn_jax.reporting.tables import ensemble_table
        from bn_jax.training.evaluation.ensemble import ensemble

        configs = [_saved_config(workdir, changes) for workdir in options.workdirs]
        way = {"statistics": options.statistics, "crops": options.crops}
        print(ensemble_table(ensemble(configs, options.workdirs, **way), **way))
    elif options.verb == "inspect":
        from bn_jax.reporting.tables import layer_table
        from bn_jax.training.evaluation.inspect import inspect

        step, layers = inspect(_saved_config(options.workdir, {}), options.workdir)
        print(layer_table(layers, step=step))
    else:
        from bn_jax.launch.launcher import launch

        sys.exit(launch(command, num_processes=options.num_processes))


def _prepare(options: argparse.Namespace, data_dir: Path) -> Path:
    """Prepares a data set and gives back its folder."""
    if options.name == "mnist":
        from bn_jax.data.preparation.mnist import prepare_mnist

        if options.manual_dir is not None or options.subset:
            raise UserError("mnist needs no --manual_dir and no --subset.")
        return prepare_mnist(data_dir)
    from bn_jax.data.preparation.imagenet import prepare_imagenet

    # Where TFDS looks for what one has to download oneself.
    manual_dir = options.manual_dir or data_dir / "downloads" / "manual"
    return prepare_imagenet(manual_dir.expanduser(), data_dir, is_subset=options.subset)


def _saved_config(workdir: Path, dataset: Mapping[str, str]) -> Any:
    """The configuration of a run, with other settings of its data set."""
    from ml_collections import ConfigDict

    from bn_jax.experiments.configs import override
    from bn_jax.workdir.files import read_config

    config: Any = ConfigDict(read_config(workdir)).lock()
    for key, value in dataset.items():
        # What is saved no longer says that it is a name, which may be missing.
        if key in ("idx_dir", "data_dir") and key in config.dataset:
            config.dataset[key] = None if value == "None" else value
            continue
        override(config, f"dataset.{key}", value, option=f"--dataset.{key}")
    return config


if __name__ == "__main__":
    main()
