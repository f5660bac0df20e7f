"""Lines that describe a run before its first step."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bn_jax.training.logs.first_lines import log_network


@pytest.mark.parametrize(
    ("is_frozen", "expected"),
    [
        (None, "1,010 parameters"),
        ({"kernel": True, "bias": False}, "1,010 parameters, 10 trained"),
    ],
)
def test_the_network_s_line_counts_the_parameters_that_are_trained(
    caplog: pytest.LogCaptureFixture, is_frozen: Any, expected: str
) -> None:
    params = {"kernel": np.zeros((100, 10)), "bias": np.zeros(10)}
    with caplog.at_level(logging.INFO, logger="absl"):
        log_network(
            "mlp", params, is_frozen=is_frozen, normalization="none", workdir=Path("a")
        )
    assert caplog.messages[0].split(maxsplit=1)[1] == f"mlp, {expected}"
