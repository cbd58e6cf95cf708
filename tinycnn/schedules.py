"""Schedules: how the learning rate changes over the steps.

A schedule is a function of the number of steps already made: learning_rate = schedule(step), step = 0, 1, 2, …
The training loop asks it before every step and tells the optimizer (`tinycnn/training.py`).

What this file is not: a schedule sees no loss and no gradient; it only counts.
"""

from collections.abc import Callable
from math import cos, pi

from tinycnn.arguments import fraction, not_negative, whole

Schedule = Callable[[int], float]


def constant(learning_rate: float) -> Schedule:
    """The same rate at every step."""
    not_negative(learning_rate, "learning_rate")
    return lambda step: learning_rate


def step_decay(learning_rate: float, every: int, factor: float = 0.1) -> Schedule:
    """The rate times `factor` after every `every` steps.

    >>> schedule = step_decay(1.0, every=10, factor=0.5)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """
    not_negative(learning_rate, "learning_rate")
    not_negative(factor, "factor")
    whole(every, "every")
    return lambda step: learning_rate * factor ** (step // every)


def cosine(learning_rate: float, total_steps: int) -> Schedule:
    """From the rate down to 0 along half a cosine.  Source: Loshchilov & Hutter, SGDR (2017), equation 5.

    >>> schedule = cosine(1.0, total_steps=10)
    >>> [round(schedule(step), 3) for step in (0, 5, 10)]
    [1.0, 0.5, 0.0]
    """
    not_negative(learning_rate, "learning_rate")
    whole(total_steps, "total_steps")
    return lambda step: _half_cosine(learning_rate, 0.0, step / total_steps)


def one_cycle(peak: float, total_steps: int, warm_up: float = 0.3, start: float = 0.1) -> Schedule:
    """From start · peak up to the peak in the first warm_up of the steps (at least one), then down to 0: half a cosine
    each.

    Source: Smith & Topin, Super-Convergence (2018); this form of it is that of the library fastai.

    >>> schedule = one_cycle(1.0, total_steps=100)
    >>> [round(schedule(step), 3) for step in (0, 15, 30, 65, 100)]
    [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    not_negative(peak, "learning_rate")
    not_negative(start, "start")
    fraction(warm_up, "warm_up")
    whole(total_steps, "total_steps")
    up = max(1.0, warm_up * total_steps)

    def schedule(step: int) -> float:
        if step < up:
            return _half_cosine(start * peak, peak, step / up)
        return _half_cosine(peak, 0.0, (step - up) / max(1.0, total_steps - up))

    return schedule


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + cos(pi * min(1.0, progress))) / 2
