"""The code blocks of the pages run as they stand."""

import doctest
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from data.imagenet_files import write_tars
from flax import nnx

from bn_jax.data.preparation.imagenet import prepare_imagenet
from bn_jax.models import make_model, make_norm
from bn_jax.models.inception import multiply_adds, to_torch_state_dict

_DOCS = Path(__file__).parents[2] / "docs"
_PAGES = sorted(_DOCS.glob("*.md"))


def _code_blocks(page: Path) -> list[str]:
    """Blocks of Python; those of a session (`>>>`) are run by doctest."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.M)
    return [block for block in blocks if not block.startswith(">>>")]


def _torch_network() -> Any:
    """A stand-in for a network of pytorchcv, with the names of Cadene's."""
    norm = make_norm("batch_norm")
    model: Any = make_model("inception", num_classes=1000, separable=False, norm=norm)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = to_torch_state_dict(variables, model, naming="cadene")
    return SimpleNamespace(state_dict=lambda: state)


def _before(page: str, folder: Path) -> dict[str, Any]:
    """Prepares the data set, or returns the network, that a page needs."""
    if page == "data.md":
        write_tars(folder / "tars")
        data_dir = folder / "tensorflow_datasets"
        prepare_imagenet(folder / "tars", data_dir, is_subset=True)
    return {"network": _torch_network()} if page == "inception.md" else {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in _PAGES if _code_blocks(page)], ids=lambda page: page.name
)
def test_the_code_of_each_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    # One block puts bn_jax's layers in the place of Flax's.
    monkeypatch.setattr(nn, "BatchNorm", nn.BatchNorm)
    monkeypatch.setattr(nnx, "BatchNorm", nnx.BatchNorm)
    names = _before(page.name, tmp_path)
    for block in _code_blocks(page):
        # A block that begins with a file's name is that file.
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (tmp_path / file[1]).write_text(block)
        else:
            exec(compile(block, page.name, "exec"), names)
    assert names.get("accuracy", 1) > 0.9
    for module in [file.stem for file in tmp_path.glob("*.py")]:
        sys.modules.pop(module, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in _PAGES if "\n>>> " in page.read_text()],
    ids=lambda page: page.name,
)
def test_the_sessions_of_each_page_run(page: Path) -> None:
    failed, attempted = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert attempted > 0
    assert failed == 0


def test_the_page_on_inception_states_the_count_of_its_network() -> None:
    block, *_ = _code_blocks(_DOCS / "inception.md")
    model: Any = make_model("inception", num_classes=1000, norm=make_norm("batch_norm"))
    count = multiply_adds(model, (224, 224, 3))
    assert f"multiply_adds(model, (224, 224, 3))  # {count}\n" in block
