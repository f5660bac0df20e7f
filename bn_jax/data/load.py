"""Loader of the data set that a configuration chooses."""

from pathlib import Path

from bn_jax.data.dataset import Dataset
from bn_jax.data.function import load_function
from bn_jax.data.idx import load_idx_folder
from bn_jax.data.imagenet.cropped import ImageSettings
from bn_jax.data.imagenet.folder import load_image_folder
from bn_jax.data.mnist import load_mnist
from bn_jax.data.splits import SplitNames, choose_splits
from bn_jax.data.tfds import load_tfds
from bn_jax.errors import UserError
from bn_jax.user_code import is_object_name


def load_dataset(
    name: str,
    *,
    idx_dir: str | None = None,
    image_dir: str | None = None,
    data_dir: str | None = None,
    module_dir: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    image_size: int | None = None,
    distortion: float = 0.0,
    augmentation_seed: int = 0,
    read_threads: int | None = None,
) -> Dataset:
    """Returns the images for training, validation and testing that the settings choose.

    Args:
        name: "mnist" without `data_dir` is the data set inside the package.
            `package.module:function` names a function that returns the data set, and
            runs its code. Any other name, and "mnist" with `data_dir`, is a data set of
            tensorflow-datasets.
        idx_dir: Folder of IDX files, which are read instead of the data set `name`.
        image_dir: Folder of images by class, which are read instead of `name`.
        data_dir: Folder of prepared data sets; the default folder of
            tensorflow-datasets if None.
        module_dir: Folder in which the module of a function is looked for, besides the
            current folder and Python's path.
        train_split: Split for training, in the notation of tensorflow-datasets: a
            name, or a slice such as `train[:-5000]`.
        validation_split: Split for evaluations during training. None uses "validation"
            if a function or `image_dir` has it, and the test split otherwise.
        test_split: Split for testing. The default is "test", or "validation" for
            imagenet2012, whose test labels are not public.
        image_size: Height and width of the crops, in pixels. Images of varying size
            need it; images of one size are not resized and do not accept it.
        distortion: Strength of random colour changes, in [0, 1]; above 0 only for
            images of varying size.
        augmentation_seed: Seed of crops, flips and colour changes.
        read_threads: Number of threads that read and decode. By default there is one
            for each core, but a user's objects are read by one thread.

    Raises:
        UserError: If two folders are given, the data are missing, damaged or of
            another kind, or a setting does not fit them.
    """
    folders = {"idx_dir": idx_dir, "image_dir": image_dir, "data_dir": data_dir}
    given = [f"{key}={value}" for key, value in folders.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"dataset: give one folder, not {' and '.join(given)}.")
    settings = ImageSettings(image_size, distortion, augmentation_seed, read_threads)
    if test_split is None:
        is_imagenet = name.split(":")[0] == "imagenet2012"
        test_split = "validation" if is_imagenet else "test"
    splits = SplitNames(train_split, test_split, validation_split)
    if image_dir is not None:
        folder = Path(image_dir).expanduser()
        return load_image_folder(folder, splits=splits, settings=settings)
    if idx_dir is not None:
        data = load_idx_folder(Path(idx_dir).expanduser())
        height, width = data.train.images.shape[1:3]
        settings.check_unset(f"these are all {height}x{width}")
        return choose_splits(data, splits)
    if name == "mnist" and data_dir is None:
        settings.check_unset("these are all 28x28")
        return choose_splits(load_mnist(), splits)
    if is_object_name(name):
        settings.check_unset(f"{name} returns images that are ready")
        return load_function(
            name, module_dir=module_dir, splits=splits, num_threads=read_threads
        )
    return load_tfds(name, data_dir=data_dir, splits=splits, settings=settings)
