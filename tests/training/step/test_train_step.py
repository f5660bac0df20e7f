"""Single steps: against float64 NumPy, against each other, and never compiled twice."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import numpy_mlp
from training.tiny_runs import plain

from bn_jax.data.preprocess import binarize
from bn_jax.models import make_model, make_norm
from bn_jax.training.optim.optimizers import make_optimizer
from bn_jax.training.step.population import make_population_step
from bn_jax.training.step.state import TrainState, init_state
from bn_jax.training.step.train_step import (
    Examples,
    make_train_step,
    make_train_stretch,
)

ARMS = {"bn": "batch_norm", "baseline": None}
LEARNING_RATE = 0.3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (53, 6, 5, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 4, 53).astype(np.int32)
DATA = Examples(jnp.asarray(IMAGES), jnp.asarray(LABELS))
INDICES = RNG.integers(0, 53, (7, 20)).astype(np.int32)
# Seven steps of one microbatch each, and a step of the first twenty examples.
BATCHES = jax.tree.map(lambda leaf: leaf[INDICES[:, None]], DATA)
BATCH = jax.tree.map(lambda leaf: leaf[None, :20], DATA)

preprocess = partial(binarize, threshold=127)
# Sums of float32 rounding errors over 30 pixels and 20 examples.
assert_close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=2e-6)


class Arm:
    """The functions and the first state of one arm."""

    def __init__(self, name: str, *, seed: int = 0) -> None:
        norm = make_norm(ARMS[name], momentum=0.9)
        self.model = make_model(
            "mlp", num_classes=4, norm=norm, hidden_features=(7, 5), kernel_stddev=0.5
        )
        self.tx = make_optimizer(
            "sgd",
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            decay_scale_and_bias=False,
            clip_norm=None,
        )
        self.train_step = make_train_step(self.model, self.tx, preprocess=preprocess)
        self.step = jax.jit(self.train_step)
        self.stretch = jax.jit(make_train_stretch(self.train_step))
        self.population_step = jax.jit(
            make_population_step(self.model, preprocess=preprocess)
        )
        self.state = init_state(
            self.model, self.tx, key=jax.random.key(seed), example=self.inputs[:1]
        )

    inputs = preprocess(DATA.images)

    def trained(self) -> TrainState:
        """The state after a few steps."""
        return self.stretch(self.state, BATCHES)[0]


@pytest.fixture(scope="module", params=ARMS)
def arm(request: pytest.FixtureRequest) -> Arm:
    return Arm(request.param)


@pytest.fixture(scope="module")
def bn() -> Arm:
    return Arm("bn")


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def steps(batches: Examples) -> list[Examples]:
    """The batch of each step."""
    return [Examples(*batch) for batch in zip(*batches, strict=True)]


def with_random_parameters(state: TrainState) -> TrainState:
    """Scales, biases and statistics that differ from zero and one."""
    leaves, structure = jax.tree.flatten((state.params, state.batch_stats))
    rng = np.random.default_rng(1)
    changed = [
        leaf + rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32) for leaf in leaves
    ]
    params, batch_stats = jax.tree.unflatten(structure, changed)
    return state._replace(params=params, batch_stats=batch_stats)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_a_train_step_is_that_of_float64_numpy(
    arm: Arm, label_smoothing: float
) -> None:
    state = with_random_parameters(arm.state)
    step = make_train_step(
        arm.model, arm.tx, preprocess=preprocess, label_smoothing=label_smoothing
    )
    new_state, loss = jax.jit(step)(state, BATCH)
    expected = numpy_mlp.sgd_step(
        in_float64(state.params),
        in_float64(state.batch_stats),
        IMAGES[:20] > 127,
        LABELS[:20],
        learning_rate=LEARNING_RATE,
        momentum=0.9,
        label_smoothing=label_smoothing,
    )
    assert float(loss) == pytest.approx(expected.loss, rel=1e-6)
    assert_close(in_float64(new_state.params), expected.params)
    assert_close(in_float64(new_state.batch_stats), expected.batch_stats)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_float64_gradients_are_those_of_finite_differences(
    bn: Arm, label_smoothing: float
) -> None:
    # The oracle of the test above, against its own loss.
    params = in_float64(with_random_parameters(bn.state).params)
    images, labels = IMAGES[:20] > 127, LABELS[:20]
    smoothing = {"label_smoothing": label_smoothing}
    grads = numpy_mlp.gradients(params, images, labels, **smoothing)
    leaves, structure = jax.tree.flatten(params)
    direction = [np.random.default_rng(2).normal(size=leaf.shape) for leaf in leaves]

    def loss_at(distance: float) -> float:
        moved = [x + distance * d for x, d in zip(leaves, direction, strict=True)]
        moved_params = jax.tree.unflatten(structure, moved)
        return numpy_mlp.forward(moved_params, images, labels, **smoothing).loss

    along = sum(
        np.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), direction, strict=True)
    )
    slope = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
    assert along == pytest.approx(slope, rel=1e-6)


def test_a_train_step_counts_itself(arm: Arm) -> None:
    state, _ = arm.step(arm.state, BATCH)
    assert int(state.step) == 1


def test_a_chunk_is_single_steps_bit_for_bit(arm: Arm) -> None:
    state, tally = arm.stretch(arm.state, BATCHES)
    single, loss_sum = arm.state, np.float32(0)
    for batch in steps(BATCHES):
        single, loss = arm.step(single, batch)
        loss_sum += np.asarray(loss)
    chex.assert_trees_all_equal(plain(state), plain(single))
    chex.assert_trees_all_equal(tally, single.tally)
    assert (tally.loss_sum, int(tally.num_losses)) == (loss_sum, len(INDICES))


def test_the_same_seed_gives_the_same_bits(arm: Arm) -> None:
    again = Arm("bn" if arm.state.batch_stats else "baseline")
    chex.assert_trees_all_equal(plain(arm.trained()), plain(again.trained()))


def test_another_seed_gives_other_parameters(arm: Arm) -> None:
    other = Arm("bn" if arm.state.batch_stats else "baseline", seed=1)
    kernels = arm.state.params["hidden0"], other.state.params["hidden0"]
    assert (kernels[0]["kernel"] != kernels[1]["kernel"]).all()


@pytest.mark.shapes
def test_a_train_step_keeps_the_structure_and_dtypes_of_its_state(arm: Arm) -> None:
    new_state, loss = jax.eval_shape(arm.train_step, arm.state, BATCH)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, arm.state)
    chex.assert_shape(loss, ())


@pytest.mark.shapes
def test_a_train_step_is_traced_once(arm: Arm) -> None:
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(arm.train_step, n=1))
    state = arm.state
    for batch in steps(BATCHES):
        state, _ = step(state, batch)
    assert int(state.step) == len(INDICES)


@pytest.mark.shapes
def test_the_baseline_has_biases_and_the_other_arm_none_before_its_norms() -> None:
    bn, baseline = Arm("bn").state, Arm("baseline").state
    assert set(baseline.params) == {"hidden0", "hidden1", "logits"}
    assert set(bn.params) == {*baseline.params, "norm0", "norm1"}
    assert set(baseline.params["hidden0"]) == {"kernel", "bias"}
    assert set(bn.params["hidden0"]) == {"kernel"}
    assert (set(bn.batch_stats), baseline.batch_stats) == ({"norm0", "norm1"}, {})


def test_population_statistics_are_those_of_algorithm_2(bn: Arm) -> None:
    state = with_random_parameters(bn.state)
    variables = bn.population_step(state.variables, BATCHES)
    expected = numpy_mlp.population_statistics(
        in_float64(state.params), [IMAGES[chosen] > 127 for chosen in INDICES]
    )
    assert_close(in_float64(variables["batch_stats"]), expected)


def test_population_statistics_leave_the_parameters_alone(bn: Arm) -> None:
    variables = bn.population_step(bn.state.variables, BATCHES)
    chex.assert_trees_all_equal(variables["params"], bn.state.params)


def test_population_statistics_do_not_depend_on_the_running_ones(bn: Arm) -> None:
    step = bn.population_step
    other = jax.tree.map(lambda leaf: leaf + 3, bn.state.batch_stats)
    changed = step(bn.state._replace(batch_stats=other).variables, BATCHES)
    assert_close(changed, step(bn.state.variables, BATCHES))


def test_a_network_without_statistics_gets_its_variables_back() -> None:
    baseline = Arm("baseline")
    variables = baseline.population_step(baseline.state.variables, BATCHES)
    chex.assert_trees_all_equal(variables, baseline.state.variables)
