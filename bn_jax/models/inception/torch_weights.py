"""Conversion of BN-Inception's weights from and to PyTorch's state dicts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bn_jax.models.inception.network import Inception
from bn_jax.models.inception.sizes import network_sizes
from bn_jax.models.inception.torch_names import NAMINGS, Naming

Variables = dict[str, dict[str, dict[str, Array]]]


def from_torch_state_dict(
    state_dict: Mapping[str, Any], model: Inception, *, with_count: bool = False
) -> Variables:
    """Converts the weights of a PyTorch BN-Inception to variables of the model.

    The function recognizes two naming schemes: that of pytorchcv, and that of Caffe's
    layers, which pretrainedmodels (Cadene) and others use. Their networks are
    `Inception(num_classes=1000, separable=False, norm=...)` with an epsilon of 1e-5.
    To continue training as PyTorch does with its momentum of 0.1, use
    `momentum=0.9, variance_correction=1`. Cadene's network expects BGR pixels from 0
    to 255, minus (104, 117, 128).

    These networks have a bias before each normalization, which subtracts it again with
    the mean. For a model without biases, the bias is subtracted from the running mean.
    This is exact: the outputs stay equal in inference and in training, and the
    running means keep differing by the bias. A model with `use_bias=True` keeps the
    bias.

    Args:
        state_dict: Arrays or tensors by name, as `state_dict()` returns them.
        model: The network. Its number of classes, width and variant must match the
            weights; its stem must be "imagenet" and its first convolution dense.
        with_count: True reads the number of batches (`num_batches_tracked`) as
            `count`, for layers with `debias` or `momentum=None`; 0 if it is missing.

    Returns:
        `params`, and `batch_stats` if the model normalizes, all in float32.

    Raises:
        ValueError: If the model does not have this form, a key is missing or unknown,
            or an array has the wrong shape; the message lists all such keys.
    """
    naming = _naming_of(state_dict)
    in_channels = _in_channels(state_dict, naming)
    entries = _entries("from_torch_state_dict", model, naming, in_channels)
    arrays = {key: _to_numpy(value) for key, value in state_dict.items()}
    required = [entry for entry in entries if entry.is_required]
    _check_keys(
        "from_torch_state_dict",
        {key: array.shape for key, array in arrays.items()},
        required={entry.key: entry.torch_shape for entry in required},
        optional={e.key: e.torch_shape for e in entries if not e.is_required},
    )
    variables: dict[str, dict[str, dict[str, Array]]] = {}
    for entry in entries:
        if entry.leaf == "count" and not with_count:
            continue
        if entry.leaf == "bias" and entry.is_folded:
            continue
        array = entry.from_torch(arrays.get(entry.key, np.zeros(entry.shape)))
        if entry.folds_bias is not None:
            array = array - arrays[entry.folds_bias]
        collection = variables.setdefault(entry.collection, {})
        layer = collection.setdefault(entry.layer, {})
        layer[entry.leaf] = jnp.asarray(array, jnp.float32)
    return variables


def to_torch_state_dict(
    variables: Mapping[str, Any], model: Inception, *, naming: Naming = "pytorchcv"
) -> dict[str, np.ndarray]:
    """Converts variables of the model to a PyTorch state dict of NumPy arrays.

    To load the result `d` in PyTorch, call
    `load_state_dict({k: torch.from_numpy(v) for k, v in d.items()})`.
    `from_torch_state_dict` reads the variables back, bit for bit. Weights that were
    read with `use_bias=True` and `with_count=True` are written back bit for bit. Biases
    and numbers of batches that the model lacks are written as 0.

    Args:
        variables: `params` and `batch_stats`; other collections are ignored.
        model: The network that the variables belong to.
        naming: "pytorchcv" or "cadene".

    Raises:
        ValueError: If the naming is unknown, the model does not have the form of
            PyTorch's networks, or the variables do not match the model.
    """
    if naming not in NAMINGS:
        raise ValueError(
            f"to_torch_state_dict: naming must be one of {', '.join(NAMINGS)}, but "
            f"is {naming!r}."
        )
    flat = {
        "/".join((collection, layer, leaf)): np.asarray(array)
        for collection in ("params", "batch_stats")
        for layer, leaves in variables.get(collection, {}).items()
        for leaf, array in leaves.items()
    }
    kernel = flat.get("params/conv1/kernel")
    in_channels = kernel.shape[2] if kernel is not None and kernel.ndim == 4 else 3
    entries = _entries("to_torch_state_dict", model, naming, in_channels)
    mine = [entry for entry in entries if not entry.is_folded]
    _check_keys(
        "to_torch_state_dict",
        {path: array.shape for path, array in flat.items()},
        required={e.path: e.shape for e in mine if e.is_required},
        optional={e.path: e.shape for e in mine if not e.is_required},
    )
    state_dict = {}
    for entry in entries:
        array = flat.get(entry.path, np.zeros(entry.shape, np.float32))
        dtype = np.int64 if entry.leaf == "count" else np.float32
        # A copy: PyTorch needs arrays that are writable and in C order.
        state_dict[entry.key] = np.array(entry.to_torch(array), dtype, order="C")
    return state_dict


class _Entry(NamedTuple):
    """An array of PyTorch's network with its place in the model's variables."""

    key: str
    collection: str
    layer: str
    leaf: str
    shape: tuple[int, ...]
    # PyTorch's name of the bias that is subtracted from this running mean.
    folds_bias: str | None = None
    # True for a bias that the model lacks.
    is_folded: bool = False

    @property
    def path(self) -> str:
        return f"{self.collection}/{self.layer}/{self.leaf}"

    @property
    def is_required(self) -> bool:
        return self.leaf != "count"

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.to_torch(np.empty(self.shape, np.bool_)).shape

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Transposes an array to PyTorch's order of axes: outputs, then inputs."""
        return np.transpose(array, _OUTPUTS_FIRST.get(array.ndim))

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Transposes an array from PyTorch's order of axes to the model's."""
        return np.transpose(array, _OUTPUTS_LAST.get(array.ndim))


_OUTPUTS_FIRST = {4: (3, 2, 0, 1)}
_OUTPUTS_LAST = {4: (2, 3, 1, 0)}


def _naming_of(state_dict: Mapping[str, Any]) -> Naming:
    """Returns the naming scheme of the first convolution's weight."""
    for name, naming in NAMINGS.items():
        if naming.first_weight in state_dict:
            return name
    if not state_dict:
        raise ValueError(
            "from_torch_state_dict: state_dict is empty; pass the network's weights."
        )
    firsts = " or ".join(f"{n.first_weight!r} ({name})" for name, n in NAMINGS.items())
    some = ", ".join(map(repr, list(state_dict)[:3]))
    raise ValueError(
        f"from_torch_state_dict: state_dict must have the key {firsts}, but its "
        f"{len(state_dict)} keys start with {some}; if the keys have a common prefix, "
        "remove it."
    )


def _in_channels(state_dict: Mapping[str, Any], naming: Naming) -> int:
    shape = tuple(state_dict[NAMINGS[naming].first_weight].shape)
    return shape[1] if len(shape) == 4 else 3


def _entries(
    who: str, model: Inception, naming: Naming, in_channels: int
) -> list[_Entry]:
    if not isinstance(model, Inception):
        raise ValueError(
            f"{who}: model must be an Inception, but is a {type(model).__name__}; "
            "`make_model('inception', ...)` makes one."
        )
    if model.separable or model.stem != "imagenet" or model.per_activation_modules:
        raise ValueError(
            f"{who}: the model must have separable=False, stem='imagenet' and "
            "per_activation_modules=(), but has "
            f"separable={model.separable}, stem={model.stem!r} and "
            f"per_activation_modules={tuple(model.per_activation_modules)}; PyTorch's "
            "networks have a dense first convolution of 7 x 7 pixels and one mean for "
            "each channel."
        )
    _check_norm(who, model)
    names = NAMINGS[naming].layers(model.network)
    folds = not model.has_biases
    # Channels do not depend on the image's size, so any size will do.
    sizes = network_sizes(model.network, (224, 224, in_channels))
    entries: list[_Entry] = []
    for sized in sizes.convolutions:
        name, features = sized.convolution.name, (sized.convolution.features,)
        conv, norm = names[name]
        kernel_shape = sized.kernel_shapes[0]
        weight = _Entry(f"{conv}.weight", "params", name, "kernel", kernel_shape)
        bias_entry = _Entry(
            f"{conv}.bias", "params", name, "bias", features, is_folded=folds
        )
        if model.norm is None:
            # The model has no running mean to subtract the bias from, so without
            # biases of its own it accepts no bias at all.
            entries += [weight] if folds else [weight, bias_entry]
            continue
        entries += [weight, bias_entry]
        bias = f"{conv}.bias" if folds else None
        layer = f"{name}_norm"
        entries += [
            _Entry(f"{norm}.weight", "params", layer, "scale", features),
            _Entry(f"{norm}.bias", "params", layer, "bias", features),
            _Entry(
                f"{norm}.running_mean", "batch_stats", layer, "mean", features, bias
            ),
            _Entry(f"{norm}.running_var", "batch_stats", layer, "var", features),
            _Entry(f"{norm}.num_batches_tracked", "batch_stats", layer, "count", ()),
        ]
    logits = NAMINGS[naming].logits
    shape = (sizes.channels[model.network[-1].name], model.num_classes)
    return [
        *entries,
        _Entry(f"{logits}.weight", "params", "logits", "kernel", shape),
        _Entry(f"{logits}.bias", "params", "logits", "bias", shape[1:]),
    ]


def _check_norm(who: str, model: Inception) -> None:
    """Checks that the model's normalization has a scale and a bias, like PyTorch's."""
    if model.norm is None:
        return
    layer: Any = model.norm(use_running_average=True, name=None)
    lacking = [
        field for field in ("use_scale", "use_bias") if not getattr(layer, field, True)
    ]
    if lacking:
        raise ValueError(
            f"{who}: every normalization must have a scale and a bias, as in PyTorch's "
            f"network, but the model's norm has {' and '.join(lacking)}=False; set "
            "both to True."
        )


def _check_keys(
    who: str,
    shapes: Mapping[str, Sequence[int]],
    *,
    required: Mapping[str, Sequence[int]],
    optional: Mapping[str, Sequence[int]],
) -> None:
    known = {**required, **optional}
    faults = [f"{key!r} is missing" for key in required if key not in shapes]
    for key, shape in shapes.items():
        if key not in known:
            faults.append(f"{key!r} is unknown")
        elif tuple(shape) != tuple(known[key]):
            faults.append(
                f"{key!r} has the shape {tuple(shape)} and not {tuple(known[key])}"
            )
    if faults:
        raise ValueError(
            f"{who}: {len(faults)} of {len(known)} arrays do not match the model: "
            f"{'; '.join(faults)}. Pass the arrays of this network, or make the model "
            "that they belong to."
        )


def _to_numpy(value: Any) -> np.ndarray:
    # A tensor may require gradients, lie on a device or have a dtype that NumPy lacks.
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()
    # A bias is subtracted from its mean in float64, so that only the difference is
    # rounded.
    return np.asarray(value, np.float64)
