"""The processes of a run, joined, synchronized and left through `jax.distributed`."""

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
from jaxtyping import Array, Int

from bn_jax.errors import UserError
from bn_jax.training.distributed.parallel import Parallel

# Seconds without a heartbeat until JAX takes a process for dead.
HEARTBEAT_TIMEOUT = 10

# Launchers that JAX recognizes set these to the number of processes or to their hosts.
_SLURM, _OPEN_MPI = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"
_TPU_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
# Open MPI before version 5 sets this, and JAX then recognizes it without mpi4py.
_OPEN_MPI_BEFORE_5 = "OMPI_MCA_orte_hnp_uri"


class LostProcessError(RuntimeError):
    """Error for another process that has ended or cannot be reached."""


def join_processes(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    """Connects this process to the others of its run.

    Must be called before anything asks JAX for a device. Without arguments the process
    runs alone, unless SLURM, Open MPI, Kubernetes or a TPU pod has started it as one
    of several.

    Args:
        coordinator_address: `host:port` at which process 0 can be reached.
        num_processes: Number of processes.
        process_id: Index of this process, from 0.

    Raises:
        UserError: If only some of the three are given, or if one of them is invalid.
        LostProcessError: If the other processes cannot be reached.
    """
    given = (coordinator_address, num_processes, process_id)
    may_be_alone = all(value is None for value in given) and not _is_one_of_several()
    if may_be_alone and not _is_on_a_tpu_machine():
        return
    _check_flags(coordinator_address, num_processes, process_id)
    # JAX must not handle SIGTERM: the training loop does, and saves the state first.
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
        if may_be_alone:
            # This TPU machine is not part of a pod.
            return
        raise UserError(
            f"the processes cannot be joined ({error}). Set --coordinator_address, "
            "--num_processes and --process_id in every process."
        ) from error
    except OSError as error:
        if not may_be_alone:
            raise
        raise UserError(
            f"the other machines of the TPU pod cannot be looked up ({error}). Set "
            "TPU_SKIP_MDS_QUERY=1 in the environment to train on this machine alone."
        ) from error
    except RuntimeError as error:
        raise LostProcessError(
            f"the processes could not connect to each other ({error}). Start all "
            "processes again."
        ) from error


def leave_processes() -> None:
    """Waits until all processes leave, then disconnects this one.

    Must be called where all processes end together. Without the call, JAX's runtime
    takes the first process that ends for dead, and ends the others with a traceback
    of its own. Does nothing in a process that runs alone.
    """
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_primary() -> bool:
    """Returns True in the primary process, which alone writes and shows metrics."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until all processes have reached this call.

    Args:
        name: Name of the place in the program, equal in all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"bn_jax: {name}")


@contextmanager
def errors_in_all_processes() -> Iterator[None]:
    """Raises a UserError in all processes if one of them raises it in the context.

    Otherwise the other processes would wait for that one in their next computation,
    until JAX's runtime ends them with a traceback of its own. The context must not
    compute anything on devices of several processes.

    Raises:
        UserError: This process's own error. If only others failed, an error that names
            the first of them.
    """
    own_error: UserError | None = None
    try:
        yield
    except UserError as error:
        own_error = error
    if jax.process_count() > 1:
        has_failed = multihost_utils.process_allgather(
            np.asarray(own_error is not None)
        )
        if has_failed.any():
            leave_processes()
            own_error = own_error or UserError(
                f"process {int(np.argmax(has_failed))} cannot start; its own message "
                "says why."
            )
    if own_error is not None:
        raise own_error


def gather_texts(text: str) -> list[str]:
    """Returns the texts of all processes, ordered by process, in each of them.

    Args:
        text: Text of this process.
    """
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(own)))
    padded = np.pad(own, (0, int(sizes.max()) - len(own)))
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def make_max_over_processes(parallel: Parallel) -> Callable[[int], Int[Array, ""]]:
    """Returns a function that computes the largest flag of all processes.

    The result is equal in all processes, so that all take the same next step. The
    function dispatches the computation; it waits for the result only if
    `parallel.must_wait`.

    Args:
        parallel: The devices of all processes.

    Returns:
        Function of this process's flag, an integer that is 0 until the flag is set;
        it returns the largest flag of all processes.
    """
    by_device = NamedSharding(parallel.mesh, PartitionSpec(parallel.mesh.axis_names))
    largest = jax.jit(jnp.max, out_shardings=parallel.replicated)

    def max_flag(flag: int) -> Array:
        if jax.process_count() == 1:
            return jnp.asarray(flag)
        own = np.asarray([flag], np.int32)
        flags = jax.make_array_from_callback(
            (parallel.num_devices,), by_device, lambda _: own
        )
        return parallel.wait_if_needed(largest(flags))

    return max_flag


def _check_flags(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    given = (coordinator_address, num_processes, process_id)
    if any(value is None for value in given) and any(v is not None for v in given):
        raise UserError(
            "--coordinator_address, --num_processes and --process_id must be set "
            f"together, but are {coordinator_address}, {num_processes} and "
            f"{process_id}."
        )
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes must be at least 1, but is {num_processes}.")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(
            f"--process_id must lie in 0 to {num_processes - 1}, but is {process_id}."
        )
    if coordinator_address is not None:
        _check_address(coordinator_address)
        if process_id == 0:
            _check_port(coordinator_address)


def _check_address(coordinator_address: str) -> None:
    """Raises for an address at which JAX's runtime would end with a traceback."""
    host, _, port = coordinator_address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(
            "--coordinator_address must be host:port, such as 10.0.0.1:1234, with a "
            f"port below {1 << 16}, but is {coordinator_address!r}."
        )


def _check_port(coordinator_address: str) -> None:
    """Raises for a port in use, at which JAX's runtime would crash silently."""
    address = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator_address)
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    # JAX listens on all addresses, unless the variable narrows it to one.
    listens_to = host if address != coordinator_address else ""
    try:
        socket.create_server((listens_to, int(port))).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"--coordinator_address={coordinator_address}: another program listens "
                "on this port of process 0's machine; choose another port."
            ) from error


def _needs_mpi4py() -> bool:
    environment = os.environ
    is_newer = _OPEN_MPI in environment and _OPEN_MPI_BEFORE_5 not in environment
    return is_newer and find_spec("mpi4py") is not None


def _is_on_a_tpu_machine() -> bool:
    """Returns True if JAX can ask Google Cloud for the other machines of a TPU pod."""
    # On import JAX sets the first variable on a machine with TPUs, and the second one
    # on a machine without.
    environment = os.environ
    return "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment


def _is_one_of_several() -> bool:
    """Returns True if a launcher that JAX recognizes has started several processes."""
    environment = os.environ
    tasks = [int(environment.get(name) or 1) for name in (_SLURM, _OPEN_MPI)]
    hosts = [len(environment.get(name, "").split(",")) for name in _TPU_HOSTS]
    is_indexed_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(
        environment
    )
    return max(*tasks, *hosts) > 1 or is_indexed_job
