"""Machines of a TPU pod find each other by what Google's cloud tells each of them."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

# As on a machine with TPUs, so far as JAX looks for them when it is imported; the
# devices are a CPU's.
_PROGRAM = """
import os
import jax
assert os.environ["TPU_ML_PLATFORM"] == "JAX"
del os.environ["TPU_SKIP_MDS_QUERY"]
from bn_jax.training.distributed.processes import join_processes, leave_processes
join_processes(None, None, None)
print(jax.process_index(), jax.process_count(), flush=True)
leave_processes()
"""


@contextmanager
def metadata(attributes: dict[str, str]) -> Iterator[str]:
    """The address of a server that answers for a machine of Google's cloud."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            value = attributes.get(self.path.rpartition("/")[2])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def start(address: str, port: int) -> subprocess.Popen[str]:
    launchers = ("SLURM", "OMPI", "TPU", "KUBERNETES", "JOB_COMPLETION")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env={
            **environment,
            "GCE_METADATA_IP": address,
            "JAX_COORDINATOR_PORT": str(port),
            "JAX_FORCE_TPU_INIT": "1",
            "JAX_PLATFORMS": "cpu",
            "NO_PROXY": "127.0.0.1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_machines_of_a_pod_find_each_other() -> None:
    port = free_port()
    endpoints = "127.0.0.1,127.0.0.1"
    with ExitStack() as servers:
        programs = []
        for number in range(2):
            about = {
                "agent-worker-number": str(number),
                "worker-network-endpoints": endpoints,
                "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'",
            }
            address = servers.enter_context(metadata(about))
            programs.append(start(address, port))
        outputs = [program.communicate(timeout=120) for program in programs]
    assert [said for said, _ in outputs] == ["0 2\n", "1 2\n"], outputs


@pytest.mark.slow
def test_a_machine_that_belongs_to_no_pod_is_alone() -> None:
    with metadata({}) as address:
        program = start(address, free_port())
        said, errors = program.communicate(timeout=120)
    assert said == "0 1\n", errors


@pytest.mark.slow
def test_a_cloud_that_does_not_answer_is_an_error_with_a_way_out() -> None:
    program = start(f"127.0.0.1:{free_port()}", free_port())
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 1
    assert "UserError: the other machines of the TPU pod cannot be looked up" in errors
    assert "TPU_SKIP_MDS_QUERY=1" in errors.splitlines()[-1]
