"""The steps of the optimizers as hot loops, each through all parameters in one call.

Most parameters are so small that a call takes longer than the work in it: a network of five layers with weights has
ten. The formulas are in `tinycnn/optim.py`. Each part changes its share of every parameter, so that a thread meets
mostly numbers whose gradient its own core has written.

What this file is not: it keeps no state of an optimizer but where the arrays are.
"""

import operator
from collections.abc import Callable
from functools import cache
from itertools import chain, pairwise

import numpy as np

from tinycnn.kernels.parallel import Task, in_tasks, memory_at, numbers, parts_for, run, task


class Places:
    """Where the arrays of all parameters are in memory.

    To ask an array takes about as long as to call a kernel: so it is done once, and again when there are other arrays.
    """

    def __init__(self):
        self._arrays, self._of_dtypes = [], []

    def __reduce__(self):
        return Places, ()  # copies of the arrays, of an optimizer that is copied or pickled, are in other places

    def find(self, lists: tuple[list[np.ndarray], ...]) -> list[tuple[np.dtype, int, np.ndarray]]:
        """For each dtype: how many numbers its parameters have, and a row for each of them: size, places of its arrays.

        lists: of as many arrays each, those of one parameter at one index.
        Raises ValueError if a kernel could not work on an array where it is, or would do so twice at once.
        """
        arrays = list(chain(*lists))
        same = len(arrays) == len(self._arrays) and all(map(operator.is_, arrays, self._arrays))
        if not same or not all(value.flags.writeable for value in lists[0]):
            self._of_dtypes = [_places(dtype, lists) for dtype in dict.fromkeys(value.dtype for value in lists[0])]
            self._arrays = arrays
        return self._of_dtypes


def _places(dtype: np.dtype, lists: tuple[list[np.ndarray], ...]) -> tuple[np.dtype, int, np.ndarray]:
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"an optimizer's parameters must be float32 or float64, got {dtype}")
    parameters = [arrays for arrays in zip(*lists, strict=True) if arrays[0].dtype == dtype]
    for value, *others in parameters:
        if not all(a.flags.carray and a.dtype == dtype and a.size == value.size for a in (value, *others)):
            raise ValueError(
                f"a parameter's value, here of shape {value.shape}, and its gradient must be contiguous, writable, of "
                "one size and dtype (what is not to learn need not be given to the optimizer)"
            )
    places = np.array([(arrays[0].size, *(a.ctypes.data for a in arrays)) for arrays in parameters], np.int64)
    spans = sorted((value, value + size * dtype.itemsize) for size, value, *_ in places.tolist() if size)
    if any(end > next_begins for (_, end), (next_begins, _) in pairwise(spans)):
        raise ValueError("an optimizer can't have a parameter twice, or a part of one")
    return dtype, int(places[:, 0].sum()), places


def sgd(
    places: Places,
    values,
    grads,
    velocities,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """One step of `tinycnn.optim.SGD` on all parameters (lists of arrays): changes values and velocities in place."""
    rates = learning_rate, momentum, weight_decay
    _run_on_all(_sgd_task, places.find((values, grads, velocities)), (nesterov,), rates)


def adam(
    places: Places, values, grads, means, squares, learning_rate, beta1, beta2, epsilon, weight_decay, t: int
) -> None:
    """Step t of `tinycnn.optim.Adam` on all parameters (lists of arrays): changes all lists but grads in place."""
    step_size, square_correction = learning_rate / (1 - beta1**t), 1 - beta2**t
    rates = beta1, 1 - beta1, beta2, 1 - beta2, learning_rate * weight_decay, step_size, square_correction, epsilon
    _run_on_all(_adam_task, places.find((values, grads, means, squares)), (), rates)


def _run_on_all(
    task_of: Callable[[np.dtype], Task], of_dtypes, sizes: tuple[int, ...], rates: tuple[float, ...]
) -> None:
    for dtype, total, places in of_dtypes:
        parts = parts_for(total, 32 * total)
        run(task_of(dtype), parts, (parts, len(places), *sizes), places, np.array(rates, dtype))


def _least(dtype: np.dtype) -> np.floating:
    """What remembers gradients and is closer to 0 than this becomes 0: 1e-32, or 2e-302 in float64.

    It fades from step to step if the gradient is 0, as for a unit that is never active. A little closer to 0 the step
    would be subnormal, a number too small for full precision: an Intel core takes more than twenty times as long with
    it, and rounding would stop it from fading. A weight that this changes would have to be as small itself.
    (Adam divides by the root of a square. There only what is next to nothing beside its epsilon may become 0.)
    """
    return np.finfo(dtype).tiny * 2**20


@in_tasks
def _or_zero(x, least):
    """x, or 0 if it is closer to that than `least`."""
    return least - least if abs(x) < least else x


@in_tasks
def _mean_of(before, new, beta, rest):
    """beta · before + rest · new, rest = 1 − beta: from the one of the larger share, which so keeps all its digits."""
    return before + rest * (new - before) if rest <= beta else new + beta * (before - new)


@cache
def _sgd_task(dtype: np.dtype):
    least = _least(dtype)

    @task(np.int64, dtype)
    def sgd(part, sizes, places, rates):
        parts, count, nesterov = numbers(sizes, 3)
        learning_rate, momentum, weight_decay = rates[0], rates[1], rates[2]
        for row in range(0, 4 * count, 4):
            size, value = places[row], memory_at(places[row + 1], rates)
            grad, velocity = memory_at(places[row + 2], rates), memory_at(places[row + 3], rates)
            for i in range(part * size // parts, (part + 1) * size // parts):
                g = grad[i] + weight_decay * value[i]
                velocity[i] = _or_zero(momentum * velocity[i] + g, least)
                value[i] -= learning_rate * (g + momentum * velocity[i] if nesterov else velocity[i])

    return sgd


@cache
def _adam_task(dtype: np.dtype):
    least, rounding = _least(dtype), dtype.type(np.finfo(dtype).eps / 2)

    @task(np.int64, dtype)
    def adam(part, sizes, places, rates):
        parts, count = numbers(sizes, 2)
        beta1, rest1, beta2, rest2 = rates[0], rates[1], rates[2], rates[3]
        decay, step_size, square_correction, epsilon = rates[4], rates[5], rates[6], rates[7]
        least_root = rounding * epsilon
        least_square = min(least, least_root * least_root)  # without an epsilon 0: 0 / √0 would be NaN
        for row in range(0, 5 * count, 5):
            size, value = places[row], memory_at(places[row + 1], rates)
            grad, mean = memory_at(places[row + 2], rates), memory_at(places[row + 3], rates)
            square = memory_at(places[row + 4], rates)
            for i in range(part * size // parts, (part + 1) * size // parts):
                mean[i] = _or_zero(_mean_of(mean[i], grad[i], beta1, rest1), least)
                square[i] = _or_zero(_mean_of(square[i], grad[i] * grad[i], beta2, rest2), least_square)
                value[i] -= decay * value[i]
                value[i] -= step_size * mean[i] / (np.sqrt(square[i] / square_correction) + epsilon)

    return adam
