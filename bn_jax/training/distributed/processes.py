"""Several processes, one of which writes: JAX's own runtime, started and ended well."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from bn_jax.errors import UserError
from bn_jax.training.distributed.parallel import Parallel

# Seconds without a sign of life until the others know that a process is gone.
HEARTBEAT_TIMEOUT = 10

# Set by the launchers whose processes JAX finds by itself, where there are several.
_SLURM, _OPEN_MPI = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"
_TPU_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
# Set by the versions of Open MPI before 5, which JAX recognizes without mpi4py.
_OPEN_MPI_BEFORE_5 = "OMPI_MCA_orte_hnp_uri"


class LostProcessError(RuntimeError):
    """Another process has ended, or cannot be reached."""


def join_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    """Joins the processes of a run, before anything else asks JAX for a device.

    Without arguments it looks whether SLURM, Open MPI, Kubernetes or a TPU pod has
    started this process as one of several; otherwise it is one alone.

    Args:
        coordinator_address: `host:port` at which process 0 can be reached.
        num_processes: How many there are.
        process_id: Which one this is, from 0.

    Raises:
        UserError: If only some of the three are given, or they cannot be right.
        LostProcessError: If the others cannot be reached.
    """
    given = (coordinator_address, num_processes, process_id)
    is_unsure = all(value is None for value in given) and not _is_one_of_several()
    if is_unsure and not _is_on_a_tpu_machine():
        return
    if any(value is None for value in given) and any(v is not None for v in given):
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together; "
            f"they are {coordinator_address}, {num_processes} and {process_id}."
        )
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes must be at least 1, and is {num_processes}.")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(
            f"--process_id must lie in 0 to {num_processes - 1}, and is {process_id}."
        )
    if coordinator_address is not None:
        _check_address(coordinator_address)
        if process_id == 0:
            _check_port(coordinator_address)
    # Signals are for the training loop, which saves the state first.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method="mpi4py" if _needs_mpi4py() else None,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except ValueError as error:
        if is_unsure:
            # The machine belongs to no pod.
            return
        raise UserError(f"the processes cannot be joined: {error}") from error
    except OSError as error:
        if not is_unsure:
            raise
        raise UserError(
            f"the other machines of a TPU pod cannot be looked up ({error}). "
            "TPU_SKIP_MDS_QUERY=1 in the environment trains on this one alone."
        ) from error
    except RuntimeError as error:
        raise LostProcessError(f"the processes did not meet: {error}") from error


def leave_processes() -> None:
    """Waits for the other processes and leaves them, where there are any.

    For an end that all have agreed on: JAX's runtime takes one that ends before the
    others do for one that has died, and ends those with a trace of its own.
    """
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_primary() -> bool:
    """Whether this process is the one that writes and shows."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until all processes are here.

    Args:
        name: Says where.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"bn_jax: {name}")


@contextmanager
def refused_together() -> Iterator[None]:
    """A context whose refusal in one process all of them hear of.

    They would wait for that process in their next computation, until JAX's runtime
    ends them with a trace of its own. Nothing may be computed in it on the devices of
    several processes.

    Raises:
        UserError: What is refused here, or that another process has refused it.
    """
    refusal: UserError | None = None
    try:
        yield
    except UserError as error:
        refusal = error
    if jax.process_count() > 1:
        refused = multihost_utils.process_allgather(np.asarray(refusal is not None))
        if refused.any():
            leave_processes()
            refusal = refusal or UserError(
                f"process {int(np.argmax(refused))} cannot begin, and says why."
            )
    if refusal is not None:
        raise refusal


def texts_of_all(text: str) -> list[str]:
    """What each process says, in their order, in all of them.

    Args:
        text: What this one says.
    """
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(mine)))
    padded = np.pad(mine, (0, int(sizes.max()) - len(mine)))
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def make_any(parallel: Parallel) -> Callable[[int], Bool[Array, ""]]:
    """A function that begins to ask all processes whether any has a flag raised.

    What it returns is the same in all of them, so that they do the same next. On
    several devices of a CPU it is waited for (see `Parallel.must_wait`).

    Args:
        parallel: The devices of all processes.

    Returns:
        Function of this process's flag, zero or not; the largest of all.
    """
    by_device = NamedSharding(parallel.mesh, PartitionSpec(parallel.mesh.axis_names))
    largest = jax.jit(jnp.max, out_shardings=parallel.replicated)
    waits = parallel.must_wait

    def any_flag(flag: int) -> Array:
        if jax.process_count() == 1:
            return jnp.asarray(flag)
        mine = np.asarray([flag], np.int32)
        flags = jax.make_array_from_callback(
            (parallel.num_devices,), by_device, lambda _: mine
        )
        flag_of_all = largest(flags)
        return jax.block_until_ready(flag_of_all) if waits else flag_of_all

    return any_flag


def _check_address(coordinator_address: str) -> None:
    """Refuses what JAX's runtime would answer with a traceback."""
    host, _, port = coordinator_address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(
            "--coordinator_address must be host:port, such as 10.0.0.1:1234, with a "
            f"port below {1 << 16}, and is {coordinator_address!r}."
        )


def _check_port(coordinator_address: str) -> None:
    """Refuses a port that is taken: JAX's runtime would crash without a word."""
    address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator_address)
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    # Without the variable JAX listens on all addresses.
    listens_to = host if address != coordinator_address else ""
    try:
        socket.create_server((listens_to, int(port))).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--coordinator_address={coordinator_address}: another program listens "
                "at this port of process 0's machine; choose another one."
            ) from error


def _needs_mpi4py() -> bool:
    environment = os.environ
    is_newer = _OPEN_MPI in environment and _OPEN_MPI_BEFORE_5 not in environment
    return is_newer and find_spec("mpi4py") is not None


def _is_on_a_tpu_machine() -> bool:
    """Whether JAX can ask Google's cloud which machines are a TPU pod with this one."""
    # JAX sets the first when it is imported beside TPUs, and the second without any.
    environment = os.environ
    return "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment


def _is_one_of_several() -> bool:
    environment = os.environ
    tasks = [int(environment.get(name) or 1) for name in (_SLURM, _OPEN_MPI)]
    hosts = [len(environment.get(name, "").split(",")) for name in _TPU_HOSTS]
    is_indexed_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(
        environment
    )
    return max(*tasks, *hosts) > 1 or is_indexed_job
