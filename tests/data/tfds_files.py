"""Data sets written by tensorflow-datasets itself, and reading without TensorFlow."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def prepare_by_tfds(
    data_dir: Path,
    *,
    dataset: str,
    version: str,
    features: Any,
    splits: Mapping[str, Iterable[tuple[Any, Any]]],
) -> None:
    """Writes each split's pairs of a key and an example, sorted by their keys."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version(version)
        pkg_dir_path = code_path = None

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            return dict(splits)

        def _generate_examples(self) -> Any:
            # A builder must have it, and splits that bring their examples never ask.
            raise NotImplementedError

    Builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


def run_without_tensorflow(program: str, *arguments: str) -> str:
    """Runs a program that fails if it imports TensorFlow, and returns its output."""
    program = f"import sys; {program}; assert 'tensorflow' not in sys.modules"
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def examples(images: Iterable[np.ndarray], labels: Iterable[int]) -> Counter:
    pairs = zip(images, labels, strict=True)
    return Counter((image.tobytes(), int(label)) for image, label in pairs)
