"""Eight CPU devices, checked types, strict promotion for the core, fixed examples."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from conformance.modes import first_devices
from jax.sharding import AxisType
from own_package import own_folder as own_folder

# JAX creates devices at their first use, and the hook checks only modules that are
# imported after it. Both settings must therefore precede the imports of the test
# modules. The conformance tests may run on an accelerator.
jax.config.update("jax_platforms", os.environ.get("TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jaxtyping.install_import_hook("bn_jax.core", "beartype.beartype")

hypothesis.settings.register_profile(
    "bn_jax", max_examples=25, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("bn_jax")

# JAX's tracing creates millions of objects, and few of them are garbage. With a hundred
# times fewer collections the tests take a tenth less time.
gc.set_threshold(200_000, 20, 20)

_CORE = Path(__file__).parent / "core"


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Raises errors for implicit promotion of ranks and dtypes in tests of the core."""
    if _CORE not in request.path.parents:
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def standard_promotion(strict_promotion: None) -> Iterator[None]:
    """Allows promotion of dtypes, for inputs that are not float32."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Disables the checks of annotations, for tests with arguments of wrong types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def initial_stats() -> Callable[..., dict[str, jax.Array]]:
    """Initial running statistics of a layer, with the given feature shape."""

    def initial_stats(*features: int) -> dict[str, jax.Array]:
        return {"mean": jnp.zeros(features), "var": jnp.ones(features)}

    return initial_stats


@pytest.fixture(scope="session")
def make_mesh() -> Callable[..., jax.sharding.Mesh]:
    """A mesh of the first devices, one size for each axis name."""

    def make_mesh(
        axis_type: AxisType = AxisType.Auto, **sizes: int
    ) -> jax.sharding.Mesh:
        shape = tuple(sizes.values())
        num_devices = 1
        for size in shape:
            num_devices *= size
        return jax.make_mesh(
            shape,
            tuple(sizes),
            axis_types=(axis_type,) * len(shape),
            devices=first_devices(num_devices),
        )

    return make_mesh
