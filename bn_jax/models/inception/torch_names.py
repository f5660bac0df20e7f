"""Layer names of BN-Inception in PyTorch, by pytorchcv and by Cadene."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from bn_jax.models.inception.table import Convolution, Network

Naming = Literal["pytorchcv", "cadene"]


class TorchLayers(NamedTuple):
    """Names of a convolution and of the normalization after it."""

    convolution: str
    norm: str


class TorchNames(NamedTuple):
    """A naming scheme of PyTorch's layers.

    Attributes:
        layers: Returns the names of a network's layers, keyed by the names that
            `Inception` gives the convolutions.
        first_weight: Key of the first convolution's weight; it identifies the scheme.
        logits: Name of the linear layer.
    """

    layers: Callable[[Network], dict[str, TorchLayers]]
    first_weight: str
    logits: str


def _pytorchcv_names(network: Network) -> dict[str, TorchLayers]:
    block = "features.init_block"
    stem = {"conv1": "conv1", "conv2_reduce": "conv2.conv1", "conv2": "conv2.conv2"}
    prefixes = {name: f"{block}.{theirs}" for name, theirs in stem.items()}
    stage, unit = 1, 0
    for module in network[1:]:
        # The first module of a stage halves the image and has no 1 x 1 branch.
        halves = len(module.branches) == 3
        stage, unit = (stage + 1, 1) if halves else (stage, unit + 1)
        for index, branch in enumerate(module.branches, start=1):
            prefix = f"features.stage{stage}.unit{unit}.branches.branch{index}"
            convolutions = [c.name for c in branch if isinstance(c, Convolution)]
            if len(convolutions) > 1:
                for position, name in enumerate(convolutions, start=1):
                    prefixes[name] = f"{prefix}.conv{position}"
            elif convolutions:
                is_pooled = len(branch) > 1
                prefixes[convolutions[0]] = f"{prefix}.conv" if is_pooled else prefix
    return {
        name: TorchLayers(f"{prefix}.conv", f"{prefix}.bn")
        for name, prefix in prefixes.items()
    }


def _cadene_names(network: Network) -> dict[str, TorchLayers]:
    stem = {
        "conv1": "conv1_7x7_s2",
        "conv2_reduce": "conv2_3x3_reduce",
        "conv2": "conv2_3x3",
    }
    names = {}
    for stage in network:
        for branch in stage.branches:
            for layer in branch:
                if isinstance(layer, Convolution):
                    module = f"inception_{layer.name}"
                    name = stem.get(layer.name, module.replace("projection", "proj"))
                    names[layer.name] = TorchLayers(name, f"{name}_bn")
    return names


NAMINGS: Mapping[Naming, TorchNames] = {
    "pytorchcv": TorchNames(
        _pytorchcv_names, "features.init_block.conv1.conv.weight", "output"
    ),
    "cadene": TorchNames(_cadene_names, "conv1_7x7_s2.weight", "last_linear"),
}
