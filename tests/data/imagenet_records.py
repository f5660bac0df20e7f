"""The records of a prepared ImageNet, as tensorflow-datasets reads them."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

Records = dict[str, dict[str, Any]]


def in_order(data_dir: Path, split: str) -> list[tuple[Any, ...]]:
    """Returns name, label and image of each record, in the order of the records."""
    encoded = {"image": tfds.decode.SkipDecoding()}
    found = tfds.data_source(
        "imagenet2012", data_dir=str(data_dir), split=split, decoders=encoded
    )
    return [(one["file_name"], int(one["label"]), one["image"]) for one in found]


def records(data_dir: Path, split: str) -> Records:
    """Each image's record, by its name."""
    keys = ("file_name", "label", "image")
    return {
        values[0].decode(): dict(zip(keys, values, strict=True))
        for values in in_order(data_dir, split)
    }
