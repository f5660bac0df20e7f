"""The MNIST files that ship with the package."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from bn_jax.data.dataset import ArraySplit, Dataset
from bn_jax.data.idx import load_idx_folder
from bn_jax.errors import UserError

# SHA-256 of the canonical files, as tensorflow-datasets pins them for mnist 3.0.1.
_SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}


def embedded_mnist_folder() -> Path:
    """Returns the folder of the four files inside the installed package."""
    return Path(__file__).with_name("mnist")


def load_mnist(folder: Path | None = None) -> Dataset[ArraySplit]:
    """Returns MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Source: LeCun, Cortes & Burges (1998); see NOTICE.md beside the files.

    Args:
        folder: Folder of the canonical files; the one inside the package by default.

    Raises:
        UserError: If a file is missing, or differs from the canonical one in any byte.
    """
    folder = embedded_mnist_folder() if folder is None else folder
    for name, expected in _SHA256.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"mnist: {path} is missing. Install bn_jax again.")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != expected:
            raise UserError(
                f"mnist: {path} is damaged: its SHA-256 should be {expected[:16]}..., "
                f"but is {digest[:16]}.... Install bn_jax again."
            )
    return load_idx_folder(folder)._replace(name="mnist")
