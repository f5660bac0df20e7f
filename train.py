"""Trains what a configuration describes.

python train.py --config=configs/mnist_mlp.py:bn --workdir=runs/bn
python train.py --config=configs/mnist_mlp.py:bn --workdir=runs/short \
        --config.num_steps=2000
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


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    """Absl's own parser; settings that do not exist end without a traceback."""
    try:
        return app.parse_flags_with_usage(list(arguments))
    except (AttributeError, KeyError) as error:
        hint = str(error.args[0]).replace("\n", " ")
        sys.exit(f"train.py: there is no such setting in the configuration: {hint}")
    except ValueError as error:
        sys.exit(f"train.py: {error}")


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
