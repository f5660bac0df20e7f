"""Trains what a configuration describes.

Usage:
    python train.py --config=configs/mnist_mlp.py:bn --workdir=runs/bn

Any setting may be changed: `--config.num_steps=2000`.
"""

import sys
from collections.abc import Sequence
from logging import INFO

from absl import app, flags, logging
from ml_collections import config_flags

from bn_jax.errors import UserError
from bn_jax.training.loop import train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File that describes the run, `file.py` or `file.py:argument`."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run, and of no other.", required=True
)
flags.register_validator("workdir", bool, "the name of a folder is needed.")


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    """Absl's parser; what is wrong with a setting is said in a line."""
    try:
        words = flags.FLAGS(list(arguments))
    except flags.Error as error:
        # An error in a configuration file comes with its traceback.
        lines = [line for line in str(error).splitlines() if line.strip()]
        sys.exit(f"train.py: {lines[-1].strip()}")
    except (AttributeError, KeyError) as error:
        cause: object = error
        while isinstance(cause, BaseException):
            cause = cause.args[0]
        hint = str(cause).replace("\n", " ")
        sys.exit(f"train.py: there is no such setting in the configuration: {hint}")
    if len(words) > 1:
        sys.exit(f"train.py: {words[1]!r} is no flag; settings are --config.NAME=VALUE")
    return words


def main(_: Sequence[str]) -> None:
    """Runs `bn_jax.training.loop.train`."""
    # Orbax tells every detail of a checkpoint at the level of our few lines.
    handler = logging.get_absl_handler()
    handler.addFilter(lambda r: r.levelno > INFO or "bn_jax" in r.pathname)
    if logging.get_verbosity() == logging.WARNING:
        logging.set_verbosity(logging.INFO)
    try:
        train(_CONFIG.value, _WORKDIR.value)
    except (UserError, OSError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)
