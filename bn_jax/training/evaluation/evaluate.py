"""Loss and accuracy of a trained model on the test set, from its workdir."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from bn_jax.data.imagenet.crops import NUM_CROPS
from bn_jax.errors import UserError
from bn_jax.progress import progress_bar
from bn_jax.results import Evaluation
from bn_jax.stats.collections import layers_with_statistics
from bn_jax.training.checkpoints.restore import local_devices, restore
from bn_jax.training.config_files import saved_config
from bn_jax.training.evaluation.eval_batches import add_up, make_test_reader
from bn_jax.training.evaluation.predict import (
    PaddedBatches,
    Predict,
    make_eval_step,
    make_predict,
    over_crops,
)
from bn_jax.training.parts import (
    Parts,
    errors_naming_config,
    read_batches,
    running_layers,
)
from bn_jax.training.step.metrics import PredictionSums, mean_metrics
from bn_jax.training.step.population import make_population_step

STATISTICS = ("moving", "population", "batch")
CROPS = (1, NUM_CROPS)


def evaluate(
    workdir: Path | str,
    *,
    dataset: Mapping[str, str] | None = None,
    statistics: str = "population",
    crops: int = 1,
) -> Evaluation:
    """Evaluates the newest checkpoint of a run on the test set.

    The configuration is the one in the workdir.

    Args:
        workdir: Workdir of the run; nothing in it is changed.
        dataset: Settings of `config.dataset` to change, as text:
            `{"idx_dir": "digits"}`.
        statistics: Statistics that layers normalize by: "moving" for the running
            statistics, "population" for population statistics of the batches that
            training would take next, "batch" for the moments of each test batch of
            `config.evaluation.batch_size` examples.
        crops: 1 evaluates the centre of each image, 144 averages the probabilities of
            that many crops.

    Raises:
        UserError: If there is no checkpoint, a setting is unknown, or the data do not
            suit the model or the crops.
    """
    check_choices(statistics, crops)
    workdir = Path(workdir)
    config = saved_config(workdir, dataset)
    by_batch = statistics == "batch"
    parallel = local_devices([config], by_batch=by_batch)
    parts, state = restore(config, workdir, parallel, by_batch=by_batch)
    read_test = read_test_set(parts, statistics=statistics, crops=crops)
    networks = with_statistics(
        parts, state.networks, step=int(state.step), statistics=statistics
    )
    predict = choose_predict(parts, statistics=statistics, crops=crops)
    eval_step = jax.jit(make_eval_step(predict), out_shardings=parallel.replicated)

    def sums_of(piece: PaddedBatches) -> Mapping[str, PredictionSums]:
        with errors_naming_config():
            return {
                prefix: parallel.wait_if_needed(eval_step(variables, piece))
                for prefix, variables in networks.items()
            }

    sums = add_up(sums_of, read_test())
    metrics = {
        f"{prefix}{name}": value
        for prefix, sums_of_one in sums.items()
        for name, value in mean_metrics(sums_of_one).items()
    }
    num_examples = int(sums[""].num_examples)
    return Evaluation(
        step=int(state.step),
        data=parts.data.name,
        num_examples=num_examples,
        metrics=metrics,
        statistics=describe_statistics(parts, state.variables, statistics),
    )


def check_choices(statistics: str, crops: int) -> None:
    """Checks the flags of an evaluation.

    Args:
        statistics: One of `STATISTICS`.
        crops: One of `CROPS`.

    Raises:
        UserError: If a value is unknown, or the two cannot be combined.
    """
    if statistics not in STATISTICS:
        raise UserError(
            f"--statistics must be one of {', '.join(STATISTICS)}, but is "
            f"{statistics!r}."
        )
    if crops not in CROPS:
        raise UserError(f"--crops must be 1 or {NUM_CROPS}, but is {crops}.")
    if crops > 1 and statistics == "batch":
        raise UserError(
            "--statistics=batch: a batch of crops shows only a few images, which do "
            f"not represent the data. With --crops={crops} use moving or population."
        )


def read_test_set(
    parts: Parts, *, statistics: str, crops: int
) -> Callable[[], Iterable[PaddedBatches]]:
    """Returns a reader of the test set; each call yields all examples, in pieces.

    Reading from disk may take hours and shows a progress bar.

    Args:
        parts: Parts of the run.
        statistics: "batch" drops the padding of the last batch, whose values would
            count in the batch's moments.
        crops: Crops of each image. A batch holds as many images as give at most
            `config.evaluation.batch_size` crops, and at least one.

    Raises:
        UserError: If the images have no crops.
    """
    split, batch_size = parts.data.test, parts.evaluation.batch_size
    batches_at_once = 1
    if crops > 1:
        split, batch_size = split.all_crops(), max(1, batch_size // crops)
        # One thread reads all crops of an image, so that each thread gets a batch.
        batches_at_once = split.num_threads
    read_test = make_test_reader(
        parts.parallel,
        split,
        batch_size=batch_size,
        batches_at_once=batches_at_once,
    )

    def read() -> Iterable[PaddedBatches]:
        pieces = read_test()
        if not split.is_in_memory:
            pieces = _with_progress_bar(pieces, len(split))
        return _without_padding(pieces) if statistics == "batch" else pieces

    return read


def with_statistics(
    parts: Parts,
    networks: Mapping[str, PyTree],
    *,
    step: int,
    statistics: str,
) -> Mapping[str, PyTree]:
    """Returns variables with the statistics that their layers normalize by.

    Args:
        parts: Parts of the run.
        networks: Variables of each network, with running statistics.
        step: Steps that they were trained.
        statistics: "population" replaces the running statistics.
    """
    if statistics != "population":
        return networks
    ahead = read_batches(parts, step, parts.evaluation.population_batches)
    population_step = jax.jit(
        make_population_step(parts.model, preprocess=parts.preprocess),
        out_shardings=parts.parallel.replicated,
    )
    return {
        name: parts.parallel.wait_if_needed(population_step(variables, ahead))
        for name, variables in networks.items()
    }


def describe_statistics(
    parts: Parts, variables: Mapping[str, PyTree], statistics: str
) -> str:
    """Returns words for the statistics that the layers of a network normalize by.

    Args:
        parts: Parts of the run.
        variables: Variables of the network.
        statistics: One of `STATISTICS`, as chosen.
    """
    layers = list(layers_with_statistics(variables["batch_stats"]))
    if not layers:
        return "no statistics"
    if statistics == "moving" or parts.freezes_norms:
        return "running statistics"
    if statistics == "batch":
        return "batch statistics"
    count = len(running_layers(parts, variables))
    if count == len(layers):
        return "running statistics"
    plural = "s" if count > 1 else ""
    some = f"; running statistics of {count} layer{plural}" if count else ""
    return f"population statistics{some}"


def choose_predict(parts: Parts, *, statistics: str, crops: int) -> Predict:
    """Returns the function that computes the scores of a run's network.

    Args:
        parts: Parts of the run.
        statistics: "batch" normalizes each batch by its own moments.
        crops: More than 1 averages over the crops of an image.
    """
    predict = make_predict(
        parts.model, preprocess=parts.preprocess, by_batch=statistics == "batch"
    )
    return over_crops(predict) if crops > 1 else predict


def _with_progress_bar(
    pieces: Iterable[PaddedBatches], num_examples: int
) -> Iterator[PaddedBatches]:
    with progress_bar(total=num_examples, unit="image", desc="evaluated") as bar:
        for piece in pieces:
            yield piece
            bar.update(int(np.sum(piece.is_example)))


def _without_padding(pieces: Iterable[PaddedBatches]) -> Iterator[PaddedBatches]:
    """Yields the full batches, and the last batch without its padding."""
    for piece in pieces:
        rest = int(np.sum(piece.is_example[-1]))
        if rest == piece.is_example.shape[1]:
            yield piece
            continue
        if len(piece.is_example) > 1:
            yield jax.tree.map(lambda leaf: leaf[:-1], piece)
        yield jax.tree.map(lambda leaf, rest=rest: leaf[-1:, :rest], piece)
