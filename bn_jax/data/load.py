"""Loader of the data set that a configuration chooses."""

from pathlib import Path

from bn_jax.data.dataset import Dataset
from bn_jax.data.idx import load_idx_folder
from bn_jax.data.imagenet.records import ImageSettings
from bn_jax.data.mnist import load_mnist
from bn_jax.data.splits import choose_splits
from bn_jax.data.tfds import load_tfds
from bn_jax.errors import UserError


def load_dataset(
    name: str,
    *,
    idx_dir: str | None = None,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    image_size: int | None = None,
    distortion: float = 0.0,
    augmentation_seed: int = 0,
    read_threads: int | None = None,
) -> Dataset:
    """Returns the training and test images that the settings choose.

    Args:
        name: "mnist" without `data_dir` is the data set inside the package. Any other
            name, and "mnist" with `data_dir`, is a data set of tensorflow-datasets.
        idx_dir: Folder of IDX files, which are read instead of the data set `name`.
        data_dir: Folder of prepared data sets; the default folder of
            tensorflow-datasets if None.
        train_split: Split for training, in the notation of tensorflow-datasets: a
            name, or a slice such as `train[:-5000]`.
        test_split: Split for testing, in that notation. The default is "test", or
            "validation" for imagenet2012, whose test labels are not public.
        image_size: Height and width of the crops, in pixels. Images of varying size
            need it; images of one size are not resized and do not accept it.
        distortion: Strength of random colour changes, in [0, 1]; above 0 only for
            images of varying size.
        augmentation_seed: Seed of crops, flips and colour changes.
        read_threads: Number of threads that read and decode images of varying size; one
            for each core by default.

    Raises:
        UserError: If both folders are given, the data are missing, damaged or of
            another kind, or a setting does not fit them.
    """
    if idx_dir is not None and data_dir is not None:
        raise UserError(
            "dataset: give idx_dir or data_dir, not both "
            f"(idx_dir={idx_dir}, data_dir={data_dir})."
        )
    settings = ImageSettings(image_size, distortion, augmentation_seed, read_threads)
    in_memory = idx_dir is not None or (name == "mnist" and data_dir is None)
    if in_memory:
        settings.check_unset("these are all 28x28")
    if test_split is None:
        is_imagenet = name.split(":")[0] == "imagenet2012"
        test_split = "validation" if is_imagenet else "test"
    if in_memory:
        data = (
            load_mnist()
            if idx_dir is None
            else load_idx_folder(Path(idx_dir).expanduser())
        )
        return choose_splits(data, train_split=train_split, test_split=test_split)
    return load_tfds(
        name,
        data_dir=data_dir,
        train_split=train_split,
        test_split=test_split,
        settings=settings,
    )
