"""Settings and folders that no run can have, refused before anything is written."""

from pathlib import Path
from typing import Any

import pytest
from training.tiny_runs import Complete, tiny_config

from bn_jax.errors import UserError
from bn_jax.training.loop import train


def test_a_folder_of_another_run_is_refused_with_the_differences(
    bn: Complete, idx_dir: Path
) -> None:
    other = tiny_config(idx_dir, seed=3, optimizer__learning_rate=0.5)
    expected = (
        r"another configuration: optimizer\.learning_rate is 2\.0 in the workdir and "
        r"0\.5 in this command; seed is 0 in the workdir and 3 in this command\."
    )
    with pytest.raises(UserError, match=expected):
        train(other, bn.workdir)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_steps": 0}, r"config\.num_steps must be at least 1, but is 0"),
        ({"batch_size": 0}, r"config\.batch_size must be at least 1"),
        ({"batch_size": 211}, r"batch_size=211 must be at most the 210 training"),
        ({"max_steps_per_dispatch": 0}, r"config\.max_steps_per_dispatch must be"),
        ({"evaluation__batch_size": 0}, r"config\.evaluation\.batch_size must be"),
        ({"evaluation__population_batches": 0}, r"population_batches must be at least"),
        ({"evaluation__probe_examples": -1}, r"probe_examples must be .* but is -1"),
        ({"evaluation__schedule__every_steps": 0}, r"schedule\.every_steps must be"),
        ({"evaluation__schedule__early_every_steps": 0}, r"early_every_steps must be"),
        ({"checkpoint__every_steps": 0}, r"config\.checkpoint\.every_steps must be"),
        ({"checkpoint__keep": 0}, r"config\.checkpoint\.keep must be at least 1"),
        ({"seed": -1}, r"config\.seed must not be negative, but is -1"),
        ({"pixels__binarize_threshold": -1}, r"must lie in 0 to 254, .* but is -1"),
        ({"pixels__binarize_threshold": 255}, r"must lie in 0 to 254, .* but is 255"),
        (
            {"dataset__data_dir": "elsewhere"},
            r"give one folder, not idx_dir=.* and data_dir=elsewhere",
        ),
        ({"model__name": "mpl"}, r"name must be .* is 'mpl'; did you mean 'mlp'"),
        ({"model__nonlinearity": "sigmod"}, r"nonlinearity .* 'sigmod'; .* 'sigmoid'"),
        ({"norm__name": "batchnorm"}, r"'batchnorm'; did you mean 'batch_norm'"),
        ({"optimizer__name": "sdg"}, r"optax has no optimizer 'sdg'"),
        ({"probes": ("median",)}, r"config\.probes must be from .* but has 'median'"),
        ({"norm__momentum": 1.5}, r"momentum must lie in \[0, 1\), but is 1\.5"),
        ({"norm__epsilon": -1.0}, r"epsilon must not be negative, but is -1\.0"),
        ({"model__hidden_features": ()}, r"hidden_features"),
        ({"model__hidden_features": (8, 0)}, r"hidden_features"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(
    tmp_path: Path, idx_dir: Path, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        train(tiny_config(idx_dir, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_below_a_file_is_refused(tmp_path: Path, idx_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir .*/file/run: cannot be used"):
        train(tiny_config(idx_dir), tmp_path / "file" / "run")


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path, idx_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir .*/file: cannot be used"):
        train(tiny_config(idx_dir), tmp_path / "file")
