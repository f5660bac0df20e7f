"""Data of a user: arrays, or objects to read from, that the user's function returns."""

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from bn_jax.data.dataset import (
    ArraySplit,
    Dataset,
    Split,
    check_same_shape,
    check_sizes,
    count_classes,
)
from bn_jax.data.objects import ObjectSplit, Pairs, read_example
from bn_jax.data.splits import Joined, Slice, SplitNames, chosen_slices, join_arrays
from bn_jax.errors import UserError
from bn_jax.user_code import describe_error, load_object

_SPLITS = ("train", "test", "validation")
_EXPECTED = (
    'must return {"train": (images, labels), "test": (images, labels)}, with '
    '"validation" and "num_classes" if wanted'
)


def load_function(
    name: str,
    *,
    module_dir: str | None,
    splits: SplitNames,
    num_threads: int | None = None,
) -> Dataset:
    """Calls a user's function, and returns the data set of what it returns.

    The function takes no arguments. It returns a dictionary with "train", "test" and
    perhaps "validation". Each is a pair (images, labels), or an object whose items are
    pairs (image, label). NumPy arrays of at most 4 GiB are kept in memory. From any
    other object with `__len__` and `__getitem__`, images are read when a step needs
    them; from an object of pairs, labels too, so "num_classes" must be given.

    Args:
        name: `package.module:function`.
        module_dir: Folder in which the module is looked for, besides Python's path.
        splits: Splits to choose.
        num_threads: Threads that read from objects. None is one thread, because the
            objects may not be made for several.

    Raises:
        UserError: If the function is not found, raises an error or returns something
            else, or if images and labels do not fit together.
    """
    function = load_object(name, module_dir=module_dir, setting="config.dataset.name")
    returned = _call(name, function)
    given_classes = returned.pop("num_classes", None)
    sources = {
        split: _source(f"{name}: split {split!r}", value)
        for split, value in returned.items()
    }
    num_classes = _num_classes(name, list(sources.values()), given_classes)
    first_images = {split: source.first_image for split, source in sources.items()}
    check_same_shape(name, first_images)

    def split_of(slices: Sequence[Slice]) -> Split:
        parts = [(sources[one.split], one.examples) for one in slices]
        arrays = [(one.arrays, i) for one, i in parts if one.arrays is not None]
        # To join arrays is to copy them, which would load files.
        may_join = len(parts) == 1 or all(split.is_in_memory for split, _ in arrays)
        if len(arrays) == len(parts) and may_join:
            return join_arrays(arrays)
        return ObjectSplit(
            Joined([(source.examples, indices) for source, indices in parts]),
            where=f"{name}: split {'+'.join(one.split for one in slices)!r}",
            like=first_images["train"],
            num_classes=num_classes,
            num_threads=num_threads or 1,
        )

    sizes = {split: len(source.examples) for split, source in sources.items()}
    chosen = chosen_slices(name, sizes, splits)
    return Dataset(
        name,
        num_classes,
        **{use: split_of(slices) for use, slices in chosen.items()},
    )


class _Source(NamedTuple):
    """A split as the user's function returned it.

    Attributes:
        examples: Pairs (image, label), read on request.
        arrays: The split as arrays, if it consists of arrays.
        labels: All labels; None if they are read together with the images.
        first_image: Image of the first example.
    """

    examples: Sequence[Any]
    arrays: ArraySplit | None
    labels: np.ndarray | None
    first_image: np.ndarray


def _call(name: str, function: Any) -> dict[str, Any]:
    if not callable(function):
        raise UserError(
            f"config.dataset.name={name} must be a function, but has the type "
            f"{type(function).__name__}."
        )
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UserError(
            f"config.dataset.name={name}: the function must take no arguments ({error})"
        ) from error
    try:
        returned = function()
    except Exception as error:
        # The function is the user's own code, which may raise errors of any class.
        raise UserError(f"{name} failed; {describe_error(error)}") from error
    if not isinstance(returned, Mapping):
        raise UserError(f"{name} {_EXPECTED}; it returned a {type(returned).__name__}.")
    keys = {str(key) for key in returned}
    if not {"train", "test"} <= keys <= {*_SPLITS, "num_classes"}:
        raise UserError(f"{name} {_EXPECTED}; it returned the keys {sorted(keys)}.")
    return dict(returned)


def _source(where: str, value: Any) -> _Source:
    parts = value if isinstance(value, tuple | list) and len(value) == 2 else (value,)
    is_array = len(parts) == 1 and isinstance(value, np.ndarray)
    if is_array or not all(_is_sequence(part) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise UserError(
            f"{where} must be a pair (images, labels) of arrays or of objects with "
            "__len__ and __getitem__, or one such object whose items are pairs (image, "
            f"label), but is of {kinds}."
        )
    if len(parts) == 1:
        pairs: Any = value
        check_sizes(where, len(pairs), len(pairs))
        return _Source(pairs, None, None, read_example(pairs, 0, where=where).image)
    images, labels = parts
    check_sizes(where, len(images), len(labels))
    labels = _checked_labels(where, labels)
    examples = Pairs(images, labels)
    first = read_example(examples, 0, where=where).image
    if not isinstance(images, np.ndarray):
        return _Source(examples, None, labels, first)
    arrays = ArraySplit(images, labels)
    if arrays.is_in_memory:
        _warn_if_not_finite(where, images)
    return _Source(examples, arrays, labels, first)


def _is_sequence(value: Any) -> bool:
    is_other = isinstance(value, str | bytes | Mapping)
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not is_other


def _checked_labels(where: str, labels: Any) -> np.ndarray:
    """Returns all labels as int32."""
    try:
        if not isinstance(labels, np.ndarray):
            labels = np.stack([np.asarray(labels[i]) for i in range(len(labels))])
    except Exception as error:
        # The labels may be an object of the user, which reads them by its own code.
        raise UserError(
            f"{where}: the labels cannot be read; {describe_error(error)}"
        ) from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: labels must be integers from 0, in an array with one axis, but "
            f"have the dtype {labels.dtype} and the shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise UserError(
            f"{where}: labels must be classes counted from 0, but are from "
            f"{labels.min()} to {labels.max()}."
        )
    return labels.astype(np.int32)


def _num_classes(name: str, sources: Sequence[_Source], given: Any) -> int:
    """Returns the number of classes, which the function returns or the labels show."""
    labels = [source.labels for source in sources if source.labels is not None]
    if given is None:
        if len(labels) < len(sources):
            raise UserError(
                f'{name} must return "num_classes" too, because its labels are read '
                "one by one, together with the images."
            )
        highest = max(int(one.max()) for one in labels)
        num_examples = sum(len(one) for one in labels)
        if highest >= num_examples:
            raise UserError(
                f"{name}: labels must be classes counted from 0, but the highest is "
                f"{highest}, and there are only {num_examples} examples. Count the "
                'classes from 0, or return "num_classes" too.'
            )
        return count_classes(name, np.concatenate(labels))
    is_integer = isinstance(given, Integral) and not isinstance(given, bool)
    if not is_integer or given < 1:
        raise UserError(
            f'{name}: "num_classes" must be an integer of at least 1, but is {given!r}.'
        )
    for one in labels:
        if one.max() >= given:
            raise UserError(
                f'{name}: labels must be from 0 to {given - 1}, because "num_classes" '
                f"is {given}, but the highest is {one.max()}."
            )
    return int(given)


def _warn_if_not_finite(where: str, images: np.ndarray) -> None:
    # One image at a time: a mask of all values would need a quarter of their memory.
    bad = (i for i, image in enumerate(images) if not np.isfinite(image).all())
    first = next(bad, None) if images.dtype.kind == "f" else None
    if first is not None:
        logging.warning(
            "%s contains NaN or infinity, first in image %d. A network that does not "
            "mask such values diverges.",
            where,
            first,
        )
