import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from bn_jax.core.batch_norm import batch_norm

X = jnp.ones((4, 3))


@pytest.mark.parametrize("axis", [2, -3, (0, 5)])
def test_an_axis_that_does_not_exist_is_refused(axis, initial_stats):
    with pytest.raises(ValueError, match=r"batch_norm: axis=.* array of 2 dimensions"):
        batch_norm(X, None, None, initial_stats(3), axis=axis)


@pytest.mark.parametrize("features", [(1,), (4,), (), (1, 3)])
def test_statistics_of_another_shape_are_refused(features, initial_stats):
    with pytest.raises(ValueError, match=r"mean must have the shape \(3,\)"):
        batch_norm(X, None, None, initial_stats(*features))


@pytest.mark.parametrize("features", [(1,), (4,), (), (1, 3)])
def test_a_scale_of_another_shape_is_refused(features, initial_stats):
    with pytest.raises(ValueError, match=r"scale must have the shape \(3,\)"):
        batch_norm(X, jnp.ones(features), None, initial_stats(3))


@pytest.mark.parametrize("use_running_average", [True, False])
def test_a_bias_of_another_shape_is_refused(use_running_average, initial_stats):
    with pytest.raises(ValueError, match=r"bias must have the shape \(3,\)"):
        batch_norm(
            X,
            None,
            jnp.ones(1),
            initial_stats(3),
            use_running_average=use_running_average,
        )


def test_parameters_of_several_axes_stand_in_the_order_of_the_array(initial_stats):
    x = jnp.ones((4, 2, 3))
    with pytest.raises(ValueError, match=r"scale must have the shape \(2, 3\)"):
        batch_norm(x, jnp.ones((3, 2)), None, initial_stats(2, 3), axis=(2, 1))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("shape", [(4,), (3, 1), (2, 3), (1, 4, 3)])
def test_a_mask_that_does_not_broadcast_is_refused(shape, initial_stats):
    with pytest.raises(ValueError, match="does not broadcast to x") as error:
        batch_norm(X, None, None, initial_stats(3), mask=jnp.ones(shape, bool))
    assert "give it the shape (4, 1)" in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("shape", "mask_shape", "axis", "fitting"),
    [
        ((5, 7, 4), (5, 7), -1, (5, 7, 1)),
        ((5, 4, 7), (5, 7), 1, (5, 1, 7)),
        ((5, 7, 4), (5,), -1, (5, 1, 1)),
        ((5, 6, 7, 4), (5, 6), -1, (5, 6, 1, 1)),
        ((5, 7, 4), (3, 2), -1, (5, 1, 1)),
    ],
)
def test_the_advice_for_a_mask_follows_from_the_axes_that_it_has(
    shape, mask_shape, axis, fitting, initial_stats
):
    x, mask = jnp.ones(shape), jnp.ones(mask_shape, bool)
    with pytest.raises(ValueError, match="does not broadcast to x") as error:
        batch_norm(x, None, None, initial_stats(4), mask=mask, axis=axis)
    assert f"give it the shape {fitting}" in str(error.value)
    mask = jnp.ones(fitting, bool)
    jax.eval_shape(
        lambda x: batch_norm(x, None, None, initial_stats(4), mask=mask, axis=axis), x
    )


@pytest.mark.parametrize("momentum", [1.0, 1.5, -0.1, float("nan")])
def test_a_momentum_outside_its_range_is_refused(momentum, initial_stats):
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
        batch_norm(X, None, None, initial_stats(3), momentum=momentum)


@pytest.mark.parametrize("epsilon", [-1e-5, float("nan")])
def test_a_negative_epsilon_is_refused(epsilon, initial_stats):
    with pytest.raises(ValueError, match="epsilon must not be negative"):
        batch_norm(X, None, None, initial_stats(3), epsilon=epsilon)


@pytest.mark.parametrize(
    "settings",
    [{"epsilon": None}, {"epsilon": jnp.full(3, 1e-5)}, {"momentum": "0.9"}],
    ids=["none", "features", "text"],
)
@pytest.mark.usefixtures("unchecked_types")
def test_a_setting_that_is_not_one_number_is_refused(settings, initial_stats):
    (name,) = settings
    with pytest.raises(ValueError, match=f"batch_norm: {name} must be one number"):
        batch_norm(X, None, None, initial_stats(3), **settings)


def test_a_single_number_has_no_features(initial_stats):
    with pytest.raises(ValueError, match="x must have a feature axis"):
        batch_norm(jnp.ones(()), None, None, initial_stats(), axis=-1)


@pytest.mark.usefixtures("unchecked_types")
def test_a_traced_epsilon_is_refused(initial_stats):
    def function(epsilon):
        x = jnp.ones((4, 3))
        return batch_norm(x, None, None, initial_stats(3), epsilon=epsilon)

    with pytest.raises(ValueError, match="epsilon must be a number that is known"):
        jax.jit(function)(1e-5)


def test_groups_without_an_axis_are_refused(initial_stats):
    with pytest.raises(ValueError, match="axis_index_groups needs axis_name"):
        batch_norm(X, None, None, initial_stats(3), axis_index_groups=[[0], [1]])


@pytest.mark.parametrize("missing", ["mean", "var"])
@pytest.mark.parametrize("use_running_average", [True, False])
def test_missing_statistics_are_named(missing, use_running_average, initial_stats):
    stats = initial_stats(3)
    del stats[missing]
    with pytest.raises(ValueError, match=rf"lacks \['{missing}'\]"):
        batch_norm(X, None, None, stats, use_running_average=use_running_average)


def test_an_axis_name_that_is_not_bound_is_refused(initial_stats):
    with pytest.raises(
        NameError, match=r"axis_name='devices' is not bound here \(bound axes: none\)"
    ):
        batch_norm(X, None, None, initial_stats(3), axis_name="devices")


def test_an_axis_name_that_is_not_bound_is_refused_with_those_that_are(initial_stats):
    def function(x):
        return batch_norm(x, None, None, initial_stats(3), axis_name="batch")

    with pytest.raises(NameError, match=r"'batch' is not bound.*devices"):
        jax.vmap(function, axis_name="devices")(jnp.ones((2, 4, 3)))


@pytest.mark.parametrize("group_size", [0, -1, 4.0])
@pytest.mark.usefixtures("unchecked_types")
def test_a_group_size_that_is_no_number_of_examples_is_refused(
    group_size, initial_stats
):
    with pytest.raises(ValueError, match="group_size must be a whole number"):
        batch_norm(X, None, None, initial_stats(3), group_size=group_size)


def test_groups_of_devices_that_differ_in_size_are_refused(initial_stats):
    def function(x):
        groups = [[0, 1], [2]]
        return batch_norm(
            x, None, None, initial_stats(3), axis_name="d", axis_index_groups=groups
        )

    with pytest.raises(ValueError, match="must be groups of one size"):
        jax.vmap(function, axis_name="d")(jnp.ones((3, 2, 3)))


@pytest.mark.parametrize("group_size", [None, 4])
def test_a_vmap_axis_with_a_checked_mesh_axis_is_refused_with_the_way_out(
    group_size, make_mesh, initial_stats
):
    settings = {"axis_name": ("devices", "slices"), "group_size": group_size}

    def function(x):
        return batch_norm(x, None, None, initial_stats(3), **settings)[0]

    mapped = jax.shard_map(
        jax.vmap(function, axis_name="slices"),
        mesh=make_mesh(devices=2),
        in_specs=P(None, "devices"),
        out_specs=P(None, "devices"),
    )
    with pytest.raises(ValueError, match=r"cannot sum .*shard_map\(check_vma=False\)"):
        jax.jit(mapped)(jnp.ones((2, 4, 3)))


def test_a_count_for_each_feature_is_refused():
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3), "count": jnp.zeros((2, 1))}
    with pytest.raises(ValueError, match=r"count'\] must be one number.*\(2, 1\)"):
        batch_norm(jnp.ones((4, 3)), None, None, stats, debias=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axis_name": ("devices", "devices")}, "must name each axis once, but is"),
        (
            {"axis_name": "devices", "axis_index_groups": [[0, 1]]},
            "must hold each of the indices 0 to 3 of 'devices' once, but are",
        ),
        (
            {"axis_name": "devices", "axis_index_groups": [[0, 1], [1, 2]]},
            "must hold each of the indices 0 to 3",
        ),
    ],
)
def test_axes_that_describe_no_devices_are_refused(settings, message, initial_stats):
    mapped = jax.vmap(
        lambda x: batch_norm(x, None, None, initial_stats(3), **settings),
        axis_name="devices",
    )
    with pytest.raises(ValueError, match=message):
        mapped(jnp.ones((4, 2, 3)))


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_complex_parameters_of_a_real_array_are_refused(name, initial_stats):
    params = {"scale": None, "bias": None, name: jnp.ones(3, jnp.complex64)}
    with pytest.raises(
        ValueError, match=f"{name} must be real because x is real, but is comp"
    ):
        batch_norm(X, params["scale"], params["bias"], initial_stats(3))
