"""The embedded MNIST prepared for tensorflow-datasets, without TensorFlow."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from bn_jax.data.mnist import load_mnist


def prepare_mnist(data_dir: Path) -> Path:
    """Writes MNIST where plain `tfds.data_source("mnist", data_dir=...)` finds it.

    The result equals what tensorflow-datasets prepares itself, image for image and
    in the same order; its own preparation needs TensorFlow. It takes some ten
    seconds and 25 MB.

    Args:
        data_dir: Folder of prepared data sets, made if it is not there.

    Returns:
        The folder of this data set in it.
    """
    # TFDS takes most of a second to import.
    import tensorflow_datasets as tfds

    class Mnist(tfds.image_classification.MNIST, skip_registration=True):
        """The stock builder, fed from the embedded files."""

        name = "mnist"
        # TFDS looks for a builder's files in the package that defines it; the stock
        # class's are not needed.
        pkg_dir_path = None
        code_path = None

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            data = load_mnist()
            return {
                "train": _examples(data.train_images, data.train_labels),
                "test": _examples(data.test_images, data.test_labels),
            }

    builder = Mnist(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return Path(builder.data_dir)


def _examples(images: Any, labels: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        # TFDS encodes arrays with TensorFlow, and takes encoded bytes as they are.
        png = io.BytesIO()
        Image.fromarray(image[..., 0]).save(png, "PNG")
        yield index, {"image": png.getvalue(), "label": int(label)}
