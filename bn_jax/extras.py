"""Errors about packages that an extra of bn-jax brings and that are not installed."""

from importlib.util import find_spec

from bn_jax.errors import UserError

# Modules of the packages that the extra `train` adds in pyproject.toml.
_TRAIN = (
    "PIL",
    "absl",
    "array_record",
    "importlib_resources",
    "matplotlib",
    "ml_collections",
    "optax",
    "orbax",
    "tensorboardX",
    "tensorflow_datasets",
    "tqdm",
)


class MissingExtraError(ModuleNotFoundError, UserError):
    """Error about a part of bn_jax whose extra is not installed."""


def require_train_extra(who: str) -> None:
    """Checks that the packages of the extra `train` are there, without importing them.

    Args:
        who: The part that needs them, as the message names it.

    Raises:
        MissingExtraError: If one is missing; the message says how to install all.
    """
    missing = [name for name in _TRAIN if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{who} is part of the extra `train`, of which packages are missing "
            f"({', '.join(missing)}). Install them: pip install 'bn-jax[train]'"
        )
