"""Encoded images of varying size in a prepared data set of tensorflow-datasets."""

import resource
from collections.abc import Sequence
from typing import Any

from absl import logging

from bn_jax.data.imagenet.cropped import EncodedImage
from bn_jax.errors import UserError

# Generous estimate of the files that JAX, checkpoints and event files keep open.
_OTHER_FILES = 200


class RecordSource:
    """An `ImageSource` of records that are prepared as array_record."""

    def __init__(self, builder: Any, split: str, *, recipe: str) -> None:
        """Opens a split.

        Args:
            builder: TFDS builder of data that are prepared as array_record.
            split: Name of the split, or a slice of one.
            recipe: Command that prepares the data, for errors.

        Raises:
            UserError: If the images are not in colour.
        """
        # Imported here, because the import takes most of a second.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        features = builder.info.features
        if features["image"].shape[-1] != 3:
            raise UserError(
                f"{builder.info.name}: images of varying size must be in colour, with "
                f"3 channels, but have the shape {features['image'].shape}. Choose "
                "another data set."
            )
        self.num_classes = features["label"].num_classes
        self.name = builder.info.name
        self.where = f"{self.name}: split {split!r} in {builder.data_dir}"
        self.remedy = f"Remove that folder and prepare it again: {recipe}"
        # Parsed by protobuf, because TFDS' own parser takes as long as reading does.
        # `Any`, because type checkers cannot look into modules that protobuf creates.
        protos: Any = tf_example_pb2
        self._parse = protos.Example.FromString
        _allow_open_files(len(builder.info.splits[split].filenames))
        self._source: Sequence[bytes] = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._source)

    def read(self, index: int) -> EncodedImage:
        """Returns one image.

        Raises:
            UserError: If the record cannot be read.
        """
        try:
            record = self._parse(self._source[index]).features.feature
            images = record["image"].bytes_list.value
            labels = record["label"].int64_list.value
            names = record["file_name"].bytes_list.value
            # A truncated file may yield empty records.
            if images and labels:
                name = names[0].decode() if names else f"number {index}"
                return EncodedImage(images[0], labels[0], name)
            cause = f"record {index} is empty"
        # array_record raises these errors for missing or damaged files.
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            cause = str(error)
        raise UserError(f"{self.where} cannot be read ({cause}). {self.remedy}")


def _allow_open_files(num_files: int) -> None:
    """Increases the limit of open files by the number of files of a split.

    Each file is opened when it is first read, and stays open. The limit is often 1,024,
    but ImageNet has 1,088 files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # `RLIM_INFINITY` (no limit) is negative, so the sum below would be wrong.
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + num_files
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
        if hard < num_files + _OTHER_FILES:
            logging.warning(
                "The data set has %d files, but at most %d files can be open at a time "
                "(`ulimit -Hn`); reading may fail.",
                num_files,
                hard,
            )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
