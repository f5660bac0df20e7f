"""A data set by what its configuration says."""

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
    """Training and test images from wherever the configuration points.

    Args:
        name: "mnist" without a `data_dir` is the one inside the package; any other
            name, and mnist with a `data_dir`, is one of tensorflow-datasets.
        idx_dir: Folder of IDX files to read instead.
        data_dir: Folder where tensorflow-datasets keeps prepared data.
        train_split: Split to train on, as tensorflow-datasets names it: slices like
            `train[:-5000]` included.
        test_split: Split to test on; "test" by default, and "validation" for
            imagenet2012, whose test labels are not public.
        image_size: Height and width, in pixels, of what is made of images whose size
            varies; others are taken as they are.
        distortion: Strength of random changes of their colours, in [0, 1].
        augmentation_seed: Chooses their crops, flips and colours.
        read_threads: Threads that read and decode them; one a core by default.

    Raises:
        UserError: If the data are missing, damaged or of another kind, both folders
            are given, or a setting does not fit them.
    """
    if idx_dir is not None and data_dir is not None:
        raise UserError(
            "dataset: give idx_dir or data_dir, not both "
            f"(idx_dir={idx_dir}, data_dir={data_dir})."
        )
    settings = ImageSettings(image_size, distortion, augmentation_seed, read_threads)
    in_memory = idx_dir is not None or (name == "mnist" and data_dir is None)
    if in_memory:
        settings.refuse("these are all 28x28")
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
