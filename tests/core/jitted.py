"""The operator under `jax.jit`; an eager call would compile each operation alone."""

import jax

from bn_jax.core.batch_norm import batch_norm

compiled = jax.jit(
    batch_norm,
    static_argnames=(
        "use_running_average",
        "update_running_average",
        "axis",
        "momentum",
        "epsilon",
        "axis_name",
        "axis_index_groups",
        "group_size",
        "variance_correction",
        "debias",
        "skip_nonfinite",
    ),
)
