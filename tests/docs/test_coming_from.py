"""The fields that the page on other libraries names are those of the libraries."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import flax.linen as nn
import pytest

import bn_jax

_PAGE = Path(__file__).parents[2] / "docs" / "coming_from.md"
_OURS = (bn_jax.BatchNorm, nn.BatchNorm)
# Words of a column that are classes, or arguments of the call or of another class.
_ELSEWHERE = {
    "train",
    "eval",
    "SyncBatchNorm",
    "process_group",
    "is_training",
    "training",
    "mask",
    "variance_correction",
    "debias",
}


def _fields(column: int) -> dict[str, str]:
    """The fields of one column of the first table, with the defaults that it states."""
    table = _PAGE.read_text().split("\n## ")[1]
    rows = [line.strip("|").split("|") for line in table.splitlines() if "|" in line]
    marked = [re.findall(r"`(\w+)(?:\(\))?(?:=([^`]*))?`", row[column]) for row in rows]
    pairs = [pair for cell in marked[2:] for pair in cell]
    return {name: value for name, value in pairs if name not in _ELSEWHERE}


def _check(column: int, layer: Any) -> None:
    parameters = inspect.signature(layer).parameters
    fields = _fields(column)
    assert len(fields) >= 4
    assert fields.keys() <= parameters.keys()
    for name, value in fields.items():
        if value not in ("", "None") and name != "use_running_average":
            assert parameters[name].default == eval(value), name


@pytest.mark.docs
@pytest.mark.parametrize("layer", _OURS, ids=["bn_jax", "flax"])
def test_the_fields_of_the_first_column_are_those_of_flax_and_bn_jax(
    layer: Any,
) -> None:
    _check(0, layer)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("column", "module", "name"),
    [
        (1, "torch.nn", "BatchNorm2d"),
        (2, "haiku", "BatchNorm"),
        (3, "keras.layers", "BatchNormalization"),
    ],
)
def test_the_fields_of_each_other_column_are_those_of_its_library(
    column: int, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip(module.partition(".")[0])
    _check(column, getattr(import_module(module), name))


@pytest.mark.peers
def test_a_step_of_pytorch_is_what_the_page_says() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm1d(1)
    layer(torch.tensor([[1.0], [5.0]]))
    text = f"mean {layer.running_mean.item():.1f}, var {layer.running_var.item():.1f}"
    assert f"# torch.nn.BatchNorm1d(1): {text}" in _PAGE.read_text()
