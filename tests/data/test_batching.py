"""Every example counts: once an epoch in training, exactly once in evaluation."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bn_jax.data.batching import batch_indices, padded_batches

SIZES = {"num_examples": st.integers(1, 40), "seed": st.integers(0, 3)}


@given(**SIZES, batch_size=st.integers(1, 50), num_epochs=st.integers(1, 4))
def test_every_epoch_holds_every_example_once(
    num_examples: int, seed: int, batch_size: int, num_epochs: int
) -> None:
    num_steps = -(-num_epochs * num_examples // batch_size)
    order = batch_indices(
        num_examples, batch_size, seed=seed, first_step=0, num_steps=num_steps
    )
    epochs = order.reshape(-1)[: num_epochs * num_examples]
    for epoch in epochs.reshape(num_epochs, num_examples):
        assert sorted(epoch.tolist()) == list(range(num_examples))


@given(**SIZES, batch_size=st.integers(1, 50), cuts=st.lists(st.integers(0, 12)))
def test_the_order_does_not_depend_on_how_a_run_is_cut_up(
    num_examples: int, seed: int, batch_size: int, cuts: list[int]
) -> None:
    def steps(first: int, last: int) -> np.ndarray:
        return batch_indices(
            num_examples,
            batch_size,
            seed=seed,
            first_step=first,
            num_steps=last - first,
        )

    ends = sorted({0, 12, *cuts})
    parts = [steps(*part) for part in pairwise(ends)]
    np.testing.assert_array_equal(np.concatenate(parts), steps(0, 12))


def test_epochs_differ_from_each_other() -> None:
    epochs = batch_indices(60, 60, seed=0, first_step=0, num_steps=3)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_another_seed_gives_another_order() -> None:
    first, second = (
        batch_indices(60, 60, seed=seed, first_step=0, num_steps=1) for seed in (0, 1)
    )
    assert (first != second).any()


def test_an_epoch_is_not_in_the_order_of_the_files() -> None:
    (epoch,) = batch_indices(60, 60, seed=0, first_step=0, num_steps=1)
    assert (epoch != np.arange(60)).any()


@pytest.mark.shapes
def test_indices_are_int32_with_a_row_for_each_step() -> None:
    indices = batch_indices(7, 3, seed=0, first_step=2, num_steps=5)
    assert (indices.shape, indices.dtype) == ((5, 3), np.int32)


def test_a_late_step_costs_no_more_than_an_early_one() -> None:
    # The epochs in between are never drawn: 10^15 of them would take for ever.
    late = batch_indices(2, 2, seed=0, first_step=10**15, num_steps=1)
    assert sorted(late[0].tolist()) == [0, 1]


@given(
    num_examples=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    multiple_of=st.integers(1, 9),
)
def test_padded_batches_drop_nothing_and_repeat_nothing(
    num_examples: int, batch_size: int, multiple_of: int
) -> None:
    indices, is_example = padded_batches(
        num_examples, batch_size, multiple_of=multiple_of
    )
    np.testing.assert_array_equal(indices[is_example], np.arange(num_examples))
    assert indices.shape == is_example.shape


@given(
    num_examples=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    multiple_of=st.integers(1, 9),
)
def test_only_the_last_batch_is_filled_up(
    num_examples: int, batch_size: int, multiple_of: int
) -> None:
    indices, is_example = padded_batches(
        num_examples, batch_size, multiple_of=multiple_of
    )
    assert is_example[:-1].all()
    assert is_example[-1].any()
    # With examples that there are.
    assert indices.max() == num_examples - 1


@given(
    num_examples=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    multiple_of=st.integers(1, 9),
)
def test_a_padded_batch_is_the_next_multiple_of_the_number_of_devices(
    num_examples: int, batch_size: int, multiple_of: int
) -> None:
    indices, _ = padded_batches(num_examples, batch_size, multiple_of=multiple_of)
    assert indices.shape[1] % multiple_of == 0
    assert 0 <= indices.shape[1] - min(batch_size, num_examples) < multiple_of


@pytest.mark.shapes
def test_a_batch_is_never_larger_than_the_set() -> None:
    indices, is_example = padded_batches(3, 1000)
    assert indices.shape == (1, 3)
    assert is_example.all()
