"""Runs of train.py that are started, and ended with their test."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from data.idx_files import write_idx_folder
from faults.programs import (
    Program,
    Starter,
    end,
    flags,
    process_flags,
    wait_for_all,
)

Train = Callable[..., list[Program]]

# Processes other than the first find nothing that was compiled before: they compile
# in a hurry.
_COMPILE_IN_A_HURRY = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of images."""
    return write_idx_folder(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def session_train(
    digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Train]:
    """Begins runs; see `train`."""
    compiled = tmp_path_factory.mktemp("compiled")
    outputs = tmp_path_factory.mktemp("outputs")
    # The small network compiles quickly, so the cache must keep such programs too.
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with Starter() as starter:
        numbers = iter(range(10_000))

        def train(
            workdir: Path,
            *,
            num_processes: int = 1,
            local_devices: int = 1,
            max_file_bytes: int | None = None,
            own_settings: Sequence[dict[str, Any]] | None = None,
            own_workdirs: Sequence[Path] | None = None,
            **settings: Any,
        ) -> list[Program]:
            count = f"--xla_force_host_platform_device_count={local_devices}"
            settings = {"dataset__idx_dir": digits, **settings}
            differing = own_settings or [{}] * num_processes
            folders = own_workdirs or [workdir] * num_processes
            return [
                starter.start(
                    [*flags(folder, **{**settings, **other}), *own],
                    output=outputs / f"{next(numbers)}.txt",
                    environment={
                        **environment,
                        "XLA_FLAGS": f"{_COMPILE_IN_A_HURRY} {count}",
                    },
                    max_file_bytes=max_file_bytes,
                )
                for own, other, folder in zip(
                    process_flags(num_processes), differing, folders, strict=True
                )
            ]

        yield train


@pytest.fixture
def train(session_train: Train) -> Iterator[Train]:
    """Begins a run in a folder; nothing of it outlives the test.

    Takes the number of processes, that of devices of each, the size that no file may
    pass, settings, and settings and folders that each process has of its own.
    """
    begun: list[Program] = []

    def train(workdir: Path, **options: Any) -> list[Program]:
        programs = session_train(workdir, **options)
        begun.extend(programs)
        return programs

    yield train
    end(begun)


@pytest.fixture(scope="session")
def undisturbed(
    session_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Folder of a run to which nothing has happened, of as many processes."""
    folders: dict[int, Path] = {}

    def undisturbed(num_processes: int) -> Path:
        if num_processes not in folders:
            folder = tmp_path_factory.mktemp(f"undisturbed{num_processes}") / "run"
            programs = session_train(folder, num_processes=num_processes)
            codes = wait_for_all(programs)
            assert codes == [0] * num_processes, programs[0].output
            folders[num_processes] = folder
        return folders[num_processes]

    return undisturbed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many seconds the processes took to end."""
    reports = [
        r for name in ("passed", "failed") for r in terminalreporter.stats.get(name, [])
    ]
    lines = [
        f"{value:6.1f} s  {name}: {report.nodeid.rpartition('::')[2]}"
        for report in reports
        for name, value in getattr(report, "user_properties", [])
        if name.startswith("from ")
    ]
    if lines:
        terminalreporter.section("seconds")
        terminalreporter.write_line("\n".join(lines))
