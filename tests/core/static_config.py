"""Static settings for the tests, with the defaults except for a few changes."""

from bn_jax.core.config import BatchNormConfig, make_config


def static_config(**changes) -> BatchNormConfig:
    defaults = {
        "axis": -1,
        "epsilon": 1e-5,
        "axis_name": None,
        "axis_index_groups": None,
        "group_size": None,
        "variance_correction": 0,
        "debias": False,
        "skip_nonfinite": False,
    }
    return make_config(**(defaults | changes))
