"""The program `bn-jax`: one verb for each thing that can be asked for."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bn_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line asks for.

    Args:
        arguments: Words after the program's name; those of the process by default.
    """
    parser = argparse.ArgumentParser("bn-jax", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    figure1 = verbs.add_parser(
        "figure1",
        help="train the paper's MNIST experiment and draw its Figure 1",
        epilog="--config.KEY=VALUE changes a setting of configs/mnist_mlp.py.",
    )
    figure1.add_argument("--workdir", type=Path, required=True, help="folder to fill")
    figure1.add_argument("--seeds", type=int, default=3, help="seeds an arm (3)")

    prepare = verbs.add_parser(
        "prepare", help="prepare a data set for tensorflow-datasets, without TensorFlow"
    )
    prepare.add_argument("name", choices=["mnist"], help="name of the data set")
    prepare.add_argument(
        "--data_dir",
        type=Path,
        default=Path("~/tensorflow_datasets"),
        help="folder of prepared data sets (~/tensorflow_datasets)",
    )

    options, rest = parser.parse_known_args(arguments)
    overrides = {}
    for word in rest:
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not equals:
            parser.error(f"unknown argument {word}")
        overrides[key] = value
    if overrides and options.verb != "figure1":
        parser.error(f"{options.verb} takes no --config settings")
    try:
        if options.verb == "figure1":
            _figure1(options.workdir, options.seeds, overrides)
        else:
            _prepare(options.data_dir)
    except (UserError, OSError) as error:
        sys.exit(f"bn-jax {options.verb}: {error}")


def _figure1(workdir: Path, seeds: int, overrides: dict[str, str]) -> None:
    # Each verb imports what it needs: JAX and TFDS take seconds.
    from bn_jax.experiments.figure1 import figure1

    print(figure1(workdir, seeds=seeds, overrides=overrides))


def _prepare(data_dir: Path) -> None:
    from bn_jax.data.prepare import prepare_mnist

    folder = prepare_mnist(data_dir.expanduser())
    print(f'{folder}: read it with tfds.data_source("mnist", data_dir="{data_dir}").')


if __name__ == "__main__":
    main()
