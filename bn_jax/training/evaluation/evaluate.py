"""How well a trained model does, by its folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from bn_jax.data.imagenet.crops import NUM_CROPS
from bn_jax.errors import UserError
from bn_jax.machine import number_of_cores
from bn_jax.progress import progress_bar
from bn_jax.results import Evaluation
from bn_jax.training.build import Parts, Settings, read_batches, settings_to_blame
from bn_jax.training.checkpoints.restore import restore
from bn_jax.training.evaluation.eval_batches import add_up, make_test_reader
from bn_jax.training.evaluation.predict import (
    PaddedBatches,
    Predict,
    make_eval_step,
    make_predict,
    over_crops,
)
from bn_jax.training.metrics import PredictionSums, mean_metrics
from bn_jax.training.steps import make_population_step

STATISTICS = ("moving", "population", "batch")
CROPS = (1, NUM_CROPS)


def evaluate(
    config: Settings, workdir: Path, *, statistics: str, crops: int = 1
) -> Evaluation:
    """Loss and accuracy of a run's newest checkpoint on the test set.

    Args:
        config: The run's configuration, perhaps with another `dataset`.
        workdir: The run's folder; nothing in it is changed.
        statistics: What layers normalize by: "moving" averages of training,
            "population" statistics computed anew from the minibatches that training
            would reach next, or those of each test "batch" of
            `config.evaluation.batch_size` by itself.
        crops: 144 averages the probabilities of so many crops of each image, 1 takes
            its middle.

    Raises:
        UserError: If there is no checkpoint, or the data do not suit the model or the
            crops.
    """
    check_choices(statistics, crops)
    parts, state = restore(config, workdir)
    read_test = read_test_set(config, parts, statistics=statistics, crops=crops)
    networks = normalized(
        config, parts, state.networks, step=int(state.step), statistics=statistics
    )
    predict = choose_predict(parts, statistics=statistics, crops=crops)
    eval_step = jax.jit(make_eval_step(predict))

    def sums_of(part: PaddedBatches) -> Mapping[str, PredictionSums]:
        with settings_to_blame():
            return {
                prefix: eval_step(variables, part)
                for prefix, variables in networks.items()
            }

    sums = add_up(sums_of, read_test())
    metrics = {
        f"{prefix}{name}": value
        for prefix, one in sums.items()
        for name, value in mean_metrics(one).items()
    }
    num_examples = int(sums[""].num_examples)
    return Evaluation(int(state.step), parts.data.name, num_examples, metrics)


def check_choices(statistics: str, crops: int) -> None:
    """Raises for a way to evaluate that there is not.

    Args:
        statistics: See `evaluate`.
        crops: See `evaluate`.

    Raises:
        UserError: If one of them has a value that it cannot have, or they do not go
            together.
    """
    if statistics not in STATISTICS:
        raise UserError(
            f"--statistics must be one of {', '.join(STATISTICS)}, and is "
            f"{statistics!r}."
        )
    if crops not in CROPS:
        raise UserError(f"--crops must be 1 or {NUM_CROPS}, and is {crops}.")
    if crops > 1 and statistics == "batch":
        raise UserError(
            "--statistics=batch: a batch of crops would be those of a few images, and "
            f"no sample of the data. With --crops={crops} take moving or population."
        )


def read_test_set(
    config: Settings, parts: Parts, *, statistics: str, crops: int
) -> Callable[[], Iterable[PaddedBatches]]:
    """A function that gives all test examples, in parts to be evaluated in turn.

    What is read from the disk meanwhile may take hours, and shows a progress bar.

    Args:
        config: The run's configuration.
        parts: What it describes.
        statistics: Those of each "batch" leave no room for what fills it up.
        crops: Each image's; a batch holds as many images as their crops are at most
            `config.evaluation.batch_size`, and one at least.

    Raises:
        UserError: If the images have no crops.
    """
    split, batch_size = parts.data.test, config.evaluation.batch_size
    batches_at_once = 1
    if crops > 1:
        split, batch_size = split.all_crops(), max(1, batch_size // crops)
        # One image has work for one thread.
        batches_at_once = config.dataset.get("read_threads") or number_of_cores()
    read_test = make_test_reader(
        parts.parallel,
        split,
        batch_size=batch_size,
        batches_at_once=batches_at_once,
    )

    def read() -> Iterable[PaddedBatches]:
        parts = read_test()
        if not split.is_in_memory:
            parts = _shown(parts, len(split))
        return _without_filling(parts) if statistics == "batch" else parts

    return read


def normalized(
    config: Settings,
    parts: Parts,
    networks: Mapping[str, PyTree],
    *,
    step: int,
    statistics: str,
) -> Mapping[str, PyTree]:
    """Variables of networks with the statistics that they are to normalize by.

    Args:
        config: The run's configuration.
        parts: What it describes.
        networks: Variables as the run left them, with moving averages.
        step: Steps that they were trained.
        statistics: "population" takes the place of the averages.
    """
    if statistics != "population":
        return networks
    ahead = read_batches(config, parts, step, config.evaluation.population_batches)
    population_step = jax.jit(
        make_population_step(parts.model, preprocess=parts.preprocess)
    )
    return {
        name: population_step(variables, ahead) for name, variables in networks.items()
    }


def choose_predict(parts: Parts, *, statistics: str, crops: int) -> Predict:
    """The scores of a run's network.

    Args:
        parts: What its configuration describes.
        statistics: Whether each "batch" is normalized by itself.
        crops: More than 1 are averaged over.
    """
    predict = make_predict(
        parts.model, preprocess=parts.preprocess, by_batch=statistics == "batch"
    )
    return over_crops(predict) if crops > 1 else predict


def _shown(
    parts: Iterable[PaddedBatches], num_examples: int
) -> Iterator[PaddedBatches]:
    """The parts, on a progress bar once the next is asked for."""
    with progress_bar(total=num_examples, unit="image", desc="evaluated") as bar:
        for part in parts:
            yield part
            bar.update(int(np.sum(part.is_example)))


def _without_filling(parts: Iterable[PaddedBatches]) -> Iterator[PaddedBatches]:
    """The full batches, and the last one without what fills it up."""
    for batches in parts:
        rest = int(np.sum(batches.is_example[-1]))
        if rest == batches.is_example.shape[1]:
            yield batches
            continue
        if len(batches.is_example) > 1:
            yield jax.tree.map(lambda leaf: leaf[:-1], batches)
        yield jax.tree.map(lambda leaf, rest=rest: leaf[-1:, :rest], batches)
