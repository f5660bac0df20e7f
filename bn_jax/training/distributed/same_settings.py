"""Processes of a run that were not started alike are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import bn_jax
from bn_jax.errors import UserError
from bn_jax.training.distributed.processes import refused_together, texts_of_all
from bn_jax.workdir.files import differences
from bn_jax.workdir.lock import read_owner

# Data may lie elsewhere on each machine.
_MAY_DIFFER = ("dataset.data_dir", "dataset.idx_dir", "dataset.read_threads")


def check_started_alike(settings: Mapping[str, Any], workdir: Path) -> None:
    """Makes sure that all processes train one network, into one folder.

    Args:
        settings: The configuration that this one was given, JSON-ready.
        workdir: The run's folder, which process 0 has locked.

    Raises:
        UserError: In all of them, if one has other settings, other versions or a
            folder of its own.
    """
    versions = {"versions": {"bn_jax": bn_jax.__version__, "jax": jax.__version__}}
    all_settings = texts_of_all(json.dumps({**settings, **versions}))
    all_owners = texts_of_all(read_owner(workdir))
    with refused_together():
        for number in range(1, jax.process_count()):
            found = differences(
                json.loads(all_settings[0]),
                json.loads(all_settings[number]),
                places=("in process 0", f"in process {number}"),
                may_differ=_MAY_DIFFER,
            )
            if found:
                raise UserError(
                    f"all processes must be started alike: {'; '.join(found)}."
                )
            if all_owners[number] != all_owners[0]:
                raise UserError(
                    f"workdir {workdir}: process {number} does not see what process 0 "
                    "writes there. Give a --workdir that lies on a file system which "
                    "all of them share."
                )
