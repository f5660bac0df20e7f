"""Functions that return data of a user's own, as a user's module would hold them."""

from typing import Any

import numpy as np

NUM_CLASSES = 3


def points(num_examples: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around three corners, in float32, and the corner of each."""
    pairs = [point(index) for index in range(first, first + num_examples)]
    images, labels = zip(*pairs, strict=True)
    return np.stack(images), np.array(labels)


def point(index: int) -> tuple[np.ndarray, int]:
    """One of these points."""
    label = index % NUM_CLASSES
    x = np.random.default_rng(index).normal(size=5).astype(np.float32)
    x[label] += 4
    return x, label


class Points:
    """Returns the points as an object that reads one at a time."""

    def __init__(self, num_examples: int, first: int = 0) -> None:
        self.num_examples = num_examples
        self.first = first
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.read.append(index)
        return point(self.first + index)


def in_memory() -> dict[str, Any]:
    """Arrays, with a validation split."""
    return {
        "train": points(90),
        "validation": points(17, first=100),
        "test": points(20, first=200),
    }


def without_validation() -> dict[str, Any]:
    """Arrays, without a validation split."""
    return {"train": points(90), "test": points(20, first=200)}


def on_request() -> dict[str, Any]:
    """Objects whose items are pairs (image, label)."""
    return {
        "train": Points(90),
        "validation": Points(17, first=100),
        "test": Points(20, first=200),
        "num_classes": NUM_CLASSES,
    }
