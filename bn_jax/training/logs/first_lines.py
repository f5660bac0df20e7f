"""Lines at the start of a run: on which devices, with which data, into which folder."""

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree

from bn_jax.data.dataset import Dataset
from bn_jax.progress import aligned
from bn_jax.training.distributed.parallel import Parallel
from bn_jax.training.distributed.processes import is_primary

# Width of the longest label, so that all lines of a run are one table.
LABEL_WIDTH = len("normalization batch")


def log_inputs(parallel: Parallel, data: Dataset) -> None:
    """Logs devices and data, which are known before anything is compiled.

    Args:
        parallel: Devices of the run.
        data: Images and labels.
    """
    image, _ = data.train.read(np.zeros(1, int), np.zeros(1, int))
    shape = "x".join(str(size) for size in image.shape[1:])
    sizes = {
        "training": data.train,
        "validation": data.validation or (),
        "test": data.test,
    }
    splits = ", ".join(f"{len(s):,} {name}" for name, s in sizes.items() if len(s))
    log_rows(
        {
            "devices": _describe_devices(parallel),
            "data": f"{data.name}, {splits} examples",
            "example": f"{shape}, {data.num_classes} classes",
        }
    )


def log_network(
    name: str,
    params: PyTree,
    *,
    is_frozen: PyTree | None,
    normalization: str,
    workdir: Path,
) -> None:
    """Logs the network, and where its results go.

    Args:
        name: Name of the network in the configuration.
        params: Parameters, or their shapes.
        is_frozen: True for each parameter that is not trained; None if all are.
        normalization: Examples that share their mean and variance, in words.
        workdir: The run's workdir.
    """
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    trained = ""
    if is_frozen is not None:
        stays = jax.tree.leaves(is_frozen)
        count = sum(n for n, one in zip(sizes, stays, strict=True) if not one)
        trained = f", {count:,} trained"
    command = f"tensorboard --logdir {shlex.quote(str(workdir))}"
    log_rows(
        {
            "network": f"{name}, {sum(sizes):,} parameters{trained}",
            "normalization batch": normalization,
            "workdir": str(workdir),
            "TensorBoard": f"{command}  (pip install tensorboard)",
        }
    )


def log_rows(rows: Mapping[str, Any]) -> None:
    """Logs one line for each row, on the primary process only.

    Args:
        rows: Values by their labels.
    """
    if not is_primary():
        return
    for line in aligned(rows, width=LABEL_WIDTH):
        logging.info("%s", line)


def _describe_devices(parallel: Parallel) -> str:
    devices = parallel.mesh.devices.flatten()
    kinds = Counter(device.device_kind for device in devices)
    text = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    count = len({device.process_index for device in devices})
    return text if count == 1 else f"{text} in {count} processes"
