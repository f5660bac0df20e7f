"""The check that all processes of a run have the same settings and workdir."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import bn_jax
from bn_jax.errors import UserError
from bn_jax.training.distributed.processes import errors_in_all_processes, gather_texts
from bn_jax.workdir.differences import differences
from bn_jax.workdir.lock import read_owner

# Each machine may have data and code in other folders, and read with more threads.
_PROCESSES_MAY_DIFFER = (
    "dataset.data_dir",
    "dataset.idx_dir",
    "dataset.image_dir",
    "dataset.read_threads",
    "module_dir",
)


def check_same_settings(settings: Mapping[str, Any], workdir: Path) -> None:
    """Checks that all processes train the same network into the same workdir.

    Args:
        settings: The configuration of this process, JSON-ready.
        workdir: The run's workdir, which process 0 has locked.

    Raises:
        UserError: In all processes, if one has other settings, other versions or
            another workdir.
    """
    versions = {"versions": {"bn_jax": bn_jax.__version__, "jax": jax.__version__}}
    all_settings = gather_texts(json.dumps({**settings, **versions}))
    all_owners = gather_texts(read_owner(workdir))
    with errors_in_all_processes():
        for number in range(1, jax.process_count()):
            found = differences(
                json.loads(all_settings[0]),
                json.loads(all_settings[number]),
                places=("in process 0", f"in process {number}"),
                may_differ=_PROCESSES_MAY_DIFFER,
            )
            if found:
                raise UserError(
                    "all processes must have the same settings and versions: "
                    f"{'; '.join(found)}. Start every process with one command and "
                    "one installation."
                )
            if all_owners[number] != all_owners[0]:
                raise UserError(
                    f"workdir {workdir}: process {number} does not see what process 0 "
                    "writes there. Choose a --workdir on a file system that all "
                    "processes share."
                )
