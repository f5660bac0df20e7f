"""A trained network, loaded from its workdir for use in Python."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from bn_jax.data import load_dataset
from bn_jax.data.preprocess import make_preprocess
from bn_jax.errors import UserError
from bn_jax.models.own import NNXModel
from bn_jax.training.build import Settings, build_model
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.saved import Saved
from bn_jax.training.config_files import saved_config
from bn_jax.training.group_size import with_groups_of_the_run


class Trained(NamedTuple):
    """A trained network.

    Attributes:
        step: Steps that it was trained.
        config: Configuration of the run.
        model: The network, called as `model.apply(variables, x, train=False)`.
        variables: Its parameters and running statistics, on one device.
        averaged_variables: Like `variables`, with the averaged parameters; None if the
            run keeps no average.
        preprocess: Turns stored images into the network's input.
        num_classes: Number of scores of an example.
    """

    step: int
    config: Settings
    model: nn.Module
    variables: dict[str, Any]
    averaged_variables: dict[str, Any] | None
    preprocess: Callable[[Any], Any]
    num_classes: int

    def nnx_model(self, variables: Mapping[str, Any] | None = None) -> Any:
        """Returns the network as a module of the user's NNX class, to be called on x.

        The module is in evaluation mode; its `train()` changes that.

        Args:
            variables: Collections that become the module's variables; `self.variables`
                by default.

        Raises:
            UserError: If the class of the network is one of Linen.
        """
        if not isinstance(self.model, NNXModel):
            raise UserError(
                f"nnx_model: the network of this run, {type(self.model).__name__}, is "
                "a Linen module; call trained.model.apply(trained.variables, x, "
                "train=False)."
            )
        return self.model.nnx_module(self.variables if variables is None else variables)

    def __repr__(self) -> str:
        """Returns the step, the name of the network and the number of classes."""
        name = self.config.model.name
        return f"Trained(step={self.step}, {name!r}, num_classes={self.num_classes})"


def load(workdir: Path | str, step: int | None = None) -> Trained:
    """Returns the network that a run has trained.

    The run's data need not be there; only a run of version 0.1 does not record the
    number of classes. A model or data set that the configuration names as
    `package.module:name` runs its author's code.

    Args:
        workdir: Workdir of the run; nothing in it is changed.
        step: Step of a checkpoint that the run has kept; None for the newest.

    Raises:
        UserError: If there is no run or no such checkpoint, or the model is not found.
    """
    workdir = Path(workdir)
    config = with_groups_of_the_run(saved_config(workdir))
    saved = _read(workdir / "checkpoints", step, keep=config.checkpoint.keep)
    if saved is None:
        raise UserError(f"workdir {workdir}: holds no checkpoint yet; train first.")
    num_classes = saved.num_classes
    if num_classes is None:
        data = load_dataset(**config.dataset, module_dir=config.module_dir)
        num_classes = data.num_classes
    arrays = saved.arrays
    variables = {
        "params": arrays["params"],
        "batch_stats": arrays.get("batch_stats", {}),
        **arrays.get("collections", {}),
    }
    averaged = arrays.get("ema_params")
    return Trained(
        step=saved.step,
        config=config,
        model=build_model(config, num_classes),
        variables=variables,
        averaged_variables={**variables, "params": averaged} if averaged else None,
        preprocess=make_preprocess(**config.pixels),
        num_classes=num_classes,
    )


def _read(folder: Path, step: int | None, *, keep: int) -> Saved | None:
    if not folder.is_dir():
        return None
    with Checkpoints(folder, keep=keep) as checkpoints:
        return checkpoints.read(step)
