"""A data set by what its configuration says."""

from pathlib import Path

from bn_jax.data.dataset import Dataset
from bn_jax.data.idx import load_idx_folder
from bn_jax.data.mnist import load_mnist
from bn_jax.data.tfds import load_tfds
from bn_jax.errors import UserError


def load_dataset(
    name: str,
    *,
    idx_dir: str | None = None,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
) -> Dataset:
    """Training and test images from wherever the configuration points.

    Args:
        name: "mnist" without a `data_dir` is the one inside the package; any other
            name, and mnist with a `data_dir`, is one of tensorflow-datasets.
        idx_dir: Folder of IDX files to read instead.
        data_dir: Folder where tensorflow-datasets keeps prepared data.
        train_split: Split of tensorflow-datasets to train on.
        test_split: Split of tensorflow-datasets to test on.

    Raises:
        UserError: If the data are missing, damaged or of another kind, or both
            folders are given.
    """
    if idx_dir is not None and data_dir is not None:
        raise UserError(
            "dataset: give idx_dir or data_dir, not both "
            f"(idx_dir={idx_dir}, data_dir={data_dir})."
        )
    if idx_dir is not None:
        return load_idx_folder(Path(idx_dir).expanduser())
    if name == "mnist" and data_dir is None:
        return load_mnist()
    return load_tfds(
        name, data_dir=data_dir, train_split=train_split, test_split=test_split
    )
