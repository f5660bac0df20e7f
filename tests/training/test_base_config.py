"""The base configuration: it trains as it is, and refuses settings that it lacks."""

from pathlib import Path
from typing import Any

import pytest
from data.idx_files import write_idx_folder
from ml_collections import ConfigDict

from bn_jax.errors import UserError
from bn_jax.training import base_config
from bn_jax.training.base_config import check_setting_names, complete
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_metrics


def test_the_base_trains_with_few_changes_and_evaluates_each_epoch(
    tmp_path: Path,
) -> None:
    config = base_config()
    config.dataset.idx_dir = str(write_idx_folder(tmp_path / "digits"))
    config.model.name = "mlp"
    config.batch_size = 64
    config.num_steps = 9
    config.parallel.num_devices = 1
    train(config, tmp_path / "run", show_progress=False)
    # An epoch of the 210 images has four steps, the last one partly of the next epoch.
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4, 8, 9]


def test_a_configuration_lacks_no_setting_once_it_is_complete() -> None:
    assert complete({}) == base_config().to_dict()
    changed = complete({"seed": 3, "norm": {"epsilon": 0.5}})
    assert (changed["seed"], changed["norm"]["epsilon"]) == (3, 0.5)
    assert changed["norm"]["momentum"] == base_config().norm.momentum


def test_models_and_optimizers_have_settings_of_their_own() -> None:
    config = base_config()
    config.model.channels = (8,)
    config.optimizer.b1 = 0.8
    check_setting_names(config)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"num_stps": 1},
            r"config\.num_stps: there is no such setting; did you mean 'num_steps'\?",
        ),
        (
            {"norm": {"momentun": 1}},
            r"config\.norm\.momentun: .* did you mean 'momentum'\?",
        ),
        ({"something": 1}, r"config\.something: there is no such setting\.$"),
        ({"dataset": "mnist"}, r"config\.dataset: .* lacks this group of settings"),
    ],
)
def test_a_setting_that_the_base_lacks_is_refused(
    change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        check_setting_names(ConfigDict(complete(change)))


def test_a_configuration_without_the_bases_settings_is_refused(tmp_path: Path) -> None:
    config = ConfigDict({"batch_size": 8, "num_steps": 2})
    with pytest.raises(UserError, match=r"lacks this .*start from .*base_config\(\)"):
        train(config, tmp_path)
