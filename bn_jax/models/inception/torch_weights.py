"""BN-Inception's weights as PyTorch's users exchange them, read and written."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bn_jax.models.inception.network import Inception
from bn_jax.models.inception.sizes import walk
from bn_jax.models.inception.torch_names import NAMINGS, Naming

Variables = dict[str, dict[str, dict[str, Array]]]


def from_torch_state_dict(
    state_dict: Mapping[str, Any], model: Inception, *, with_count: bool = False
) -> Variables:
    """Variables of the model, with the weights of a BN-Inception made by PyTorch.

    Both namings are read, and told apart: that of pytorchcv, and that of Caffe's
    layers, which pretrainedmodels (Cadene) and others have. The networks are
    `Inception(num_classes=1000, separable=False, norm=...)`, with an epsilon of 1e-5;
    what PyTorch calls a momentum of 0.1 is `momentum=0.9, variance_correction=1`,
    with which training goes on as there. Cadene's expects BGR pixels from 0 to 255
    less (104, 117, 128).

    They have a bias in front of each normalization, which normalization takes away.
    A model without biases takes it off the running mean, which is exact: the model
    computes the same in inference and in training, and its running statistics go on
    as those there do, less the bias. A model with `use_bias=True` keeps it.

    Args:
        state_dict: Arrays or tensors by name, as `state_dict()` gives them.
        model: The network; its number of classes, width and variant must be those of
            the weights, and its stem "imagenet" and dense.
        with_count: Whether the number of batches (`num_batches_tracked`) is read, as
            `count`, for layers with `debias` or `momentum=None`; missing ones are 0.

    Returns:
        `params`, and `batch_stats` where the model normalizes, all in float32.

    Raises:
        ValueError: If the model has no such form, a key is missing or unknown, or an
            array has the wrong shape; the message names all of them.
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
    """The model's weights under PyTorch's names, as NumPy arrays of its shapes.

    `load_state_dict({k: torch.from_numpy(v) for k, v in ...items()})` takes them.
    Reading them again gives the same variables, bit for bit, and so does writing what
    was read into a model with `use_bias=True` and `with_count=True`. Biases that the
    model lacks are written as 0, and so are numbers of batches.

    Args:
        variables: `params` and `batch_stats`; other collections are left out.
        model: The network that they are of.
        naming: "pytorchcv" or "cadene".

    Raises:
        ValueError: If there is no such naming, the model has not the form that
            PyTorch's has, or the variables are not those of the model.
    """
    if naming not in NAMINGS:
        raise ValueError(
            f"to_torch_state_dict: naming must be one of {', '.join(NAMINGS)}, and "
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
        # PyTorch takes no views with other strides, nor arrays that cannot be written.
        state_dict[entry.key] = np.array(entry.to_torch(array), dtype, order="C")
    return state_dict


class _Entry(NamedTuple):
    """One array of the model and of PyTorch's network."""

    key: str
    collection: str
    layer: str
    leaf: str
    shape: tuple[int, ...]
    # The bias that the running mean is less here, by PyTorch's name.
    folds_bias: str | None = None
    # Whether the model has no such array.
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
        """Outputs and inputs first, instead of last in the other order."""
        return np.transpose(array, _OUTPUTS_FIRST.get(array.ndim))

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse."""
        return np.transpose(array, _OUTPUTS_LAST.get(array.ndim))


_OUTPUTS_FIRST = {4: (3, 2, 0, 1)}
_OUTPUTS_LAST = {4: (2, 3, 1, 0)}


def _naming_of(state_dict: Mapping[str, Any]) -> Naming:
    """The naming that has the first convolution's weight."""
    for name, naming in NAMINGS.items():
        if naming.first_weight in state_dict:
            return name
    if not state_dict:
        raise ValueError("from_torch_state_dict: state_dict is empty.")
    firsts = " nor ".join(repr(n.first_weight) for n in NAMINGS.values())
    some = ", ".join(map(repr, list(state_dict)[:3]))
    raise ValueError(
        f"from_torch_state_dict: neither {firsts} is among the {len(state_dict)} keys, "
        f"which begin with {some}; they are no BN-Inception's of "
        f"{' or '.join(NAMINGS)}, or have a prefix to take off."
    )


def _in_channels(state_dict: Mapping[str, Any], naming: Naming) -> int:
    shape = tuple(state_dict[NAMINGS[naming].first_weight].shape)
    return shape[1] if len(shape) == 4 else 3


def _entries(
    who: str, model: Inception, naming: Naming, in_channels: int
) -> list[_Entry]:
    if not isinstance(model, Inception):
        raise ValueError(
            f"{who}: model must be an Inception, and is a {type(model).__name__}; "
            "`make_model('inception', ...)` makes one."
        )
    if model.separable or model.stem != "imagenet" or model.per_activation_modules:
        raise ValueError(
            f"{who}: PyTorch's networks have a dense first convolution of 7 x 7 pixels "
            "and a mean for each channel: the model must have separable=False, "
            "stem='imagenet' and no per_activation_modules, and has "
            f"separable={model.separable}, stem={model.stem!r} and "
            f"per_activation_modules={tuple(model.per_activation_modules)}."
        )
    _check_norm(who, model)
    names = NAMINGS[naming].layers(model.network)
    folds = not model.has_biases
    # Channels do not depend on the image's size.
    found = walk(model.network, (224, 224, in_channels))
    entries: list[_Entry] = []
    for place in found.places:
        name, features = place.convolution.name, (place.convolution.features,)
        conv, norm = names[name]
        kernel_shape = place.kernel_shapes[0]
        weight = _Entry(f"{conv}.weight", "params", name, "kernel", kernel_shape)
        bias_entry = _Entry(
            f"{conv}.bias", "params", name, "bias", features, is_folded=folds
        )
        if model.norm is None:
            # No running mean is there that a bias could be taken off.
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
    shape = (found.channels[model.network[-1].name], model.num_classes)
    return [
        *entries,
        _Entry(f"{logits}.weight", "params", "logits", "kernel", shape),
        _Entry(f"{logits}.bias", "params", "logits", "bias", shape[1:]),
    ]


def _check_norm(who: str, model: Inception) -> None:
    """PyTorch's normalization has a scale and a bias; a layer may have neither."""
    if model.norm is None:
        return
    layer: Any = model.norm(use_running_average=True, name=None)
    lacking = [
        field for field in ("use_scale", "use_bias") if not getattr(layer, field, True)
    ]
    if lacking:
        raise ValueError(
            f"{who}: PyTorch's network has a scale and a bias in every normalization, "
            f"and the model's has {' and '.join(lacking)}=False; leave that out of its "
            "norm."
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
            f"{who}: {len(faults)} of {len(known)} arrays are not as the model has "
            f"them: {'; '.join(faults)}."
        )


def _to_numpy(value: Any) -> np.ndarray:
    # Tensors may need gradients, lie on a device, or be of a dtype that NumPy lacks.
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()
    # A bias is taken off its mean in float64, and the difference rounded once.
    return np.asarray(value, np.float64)
