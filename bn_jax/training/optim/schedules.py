"""Learning rate schedules, chosen by name."""

import math

import optax

from bn_jax.errors import UserError

_NAMES = ("constant", "step", "exponential", "cosine")


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int,
    decay_every_steps: int,
    decay_factor: float,
    final_fraction: float,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, which counts from 0.

    Every schedule rises linearly from 0 to the full rate in the first `warmup_steps`,
    and then decays; the decay counts its steps from the end of the warm-up. With a
    warm-up, step 0 has the rate 0 and does not change the parameters. Settings that a
    schedule does not use are ignored and not checked.

    Args:
        name: "constant" keeps the full rate; "step" multiplies it by `decay_factor`
            at the end of every `decay_every_steps`; "exponential" does so
            continuously; "cosine" follows half a cosine down to `final_fraction` of
            the full rate.
        learning_rate: The full rate.
        num_steps: Steps of the whole run, at the end of which "cosine" is complete.
        warmup_steps: Steps of the linear rise; 0 for none.
        decay_every_steps: Steps in which the rate is multiplied once by
            `decay_factor`; used by "step" and "exponential".
        decay_factor: Factor of the rate after those steps, in (0, 1]; used by "step"
            and "exponential".
        final_fraction: Final rate as a fraction of the full rate, in [0, 1]; used by
            "cosine".

    Returns:
        Function of the step that returns the rate.

    Raises:
        UserError: If no schedule has that name, or if a setting that the schedule uses
            is out of range.

    >>> schedule = make_schedule(
    ...     "cosine",
    ...     learning_rate=0.5,
    ...     num_steps=100,
    ...     warmup_steps=20,
    ...     decay_every_steps=0,
    ...     decay_factor=0.0,
    ...     final_fraction=0.0,
    ... )
    >>> [round(float(schedule(step)), 4) for step in (0, 10, 20, 60, 100)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    if name not in _NAMES:
        raise UserError(
            f"schedule.name must be one of {', '.join(_NAMES)}, but is {name!r}."
        )
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise UserError(
            "optimizer.learning_rate must be a finite number above 0, but is "
            f"{learning_rate}."
        )
    if not 0 <= warmup_steps <= num_steps:
        raise UserError(
            f"schedule.warmup_steps must lie in 0 to the {num_steps} steps of the run, "
            f"but is {warmup_steps}."
        )
    check_decay(name, decay_every_steps=decay_every_steps, decay_factor=decay_factor)
    if name == "cosine":
        _check_cosine(num_steps, warmup_steps, final_fraction)

    match name:
        case "constant":
            decay = optax.constant_schedule(learning_rate)
        case "cosine":
            decay = optax.cosine_decay_schedule(
                learning_rate, num_steps - warmup_steps, alpha=final_fraction
            )
        case _:
            decay = optax.exponential_decay(
                learning_rate,
                decay_every_steps,
                decay_factor,
                staircase=name == "step",
            )
    if warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def check_decay(name: str, *, decay_every_steps: int, decay_factor: float) -> None:
    """Checks the decay settings of "step" and "exponential"; other schedules pass.

    Args:
        name: Name of the schedule.
        decay_every_steps: Steps in which the rate is multiplied once by
            `decay_factor`, at least 1.
        decay_factor: Factor of the rate after those steps, in (0, 1].

    Raises:
        UserError: If the schedule uses the settings and one is out of range.
    """
    if name not in ("step", "exponential"):
        return
    if decay_every_steps < 1:
        raise UserError(
            f"schedule.decay_every_steps must be at least 1, but is "
            f"{decay_every_steps}. If it is a fraction of num_steps, the run is too "
            "short: take more steps, or set schedule.decay_every_steps."
        )
    if not 0 < decay_factor <= 1:
        raise UserError(
            "schedule.decay_factor must lie above 0 and be at most 1, but is "
            f"{decay_factor}."
        )


def _check_cosine(num_steps: int, warmup_steps: int, final_fraction: float) -> None:
    if warmup_steps == num_steps:
        raise UserError(
            f"schedule.warmup_steps: a warm-up of all {num_steps} steps leaves none "
            "for the cosine; set fewer, or schedule.name='constant'."
        )
    if not 0 <= final_fraction <= 1:
        raise UserError(
            f"schedule.final_fraction must lie in 0 to 1, but is {final_fraction}."
        )
