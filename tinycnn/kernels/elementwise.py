"""The operations that go number by number as hot loops: ReLU, Normalize, copies, and the steps of the optimizers.

Each formula stands where it is used (`tinycnn/layers.py`, `tinycnn/optim.py`). They are here because NumPy would walk
through the memory once for every operation in them, on one core and with a new array each time.
"""

import operator
from collections.abc import Callable
from functools import cache
from itertools import chain

import numpy as np

from tinycnn.kernels.memory import copy, empty
from tinycnn.kernels.parallel import Task, memory_at, numbers, parts_for, run, task
from tinycnn.kernels.vector import copy_numbers

_BYTE = np.dtype(np.uint8)


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = max(x, 0), where not a number stays not a number; and active = x > 0, as bytes 0 and 1.  x contiguous.

    All that backward needs is `active`, a byte a number. (Inference doesn't, but one kernel compiles faster than two.)
    """
    y, active = empty(x.shape, x.dtype), empty(x.shape, _BYTE)
    _run(_relu_task(x.dtype), x.size, (), x, y, active)
    return y, active


def relu_backward(dy: np.ndarray, active: np.ndarray) -> np.ndarray:
    """dx = dy where active, else 0.  dy, active contiguous, of one shape."""
    dx = empty(dy.shape, dy.dtype)
    _run(_relu_backward_task(dy.dtype), dy.size, (), dy, active, dx)
    return dx


def normalize(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """y = (x / 255 − mean) / std.  x (…, C), contiguous; mean, std (C,) -> y (…, C) of their dtype."""
    y = empty(x.shape, mean.dtype)
    _run(_normalize_task(len(mean), x.dtype, mean.dtype), x.size // len(mean), (), x, mean, std, y)
    return y


def copy_shared(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """x, contiguous, again in another place and of another shape; each core copies what it has in its cache."""
    if parts_for(x.size, 8 * x.size) == 1:
        return copy(x).reshape(shape)
    y = empty(shape, x.dtype)
    _run(_copy_task(x.dtype), x.size, (), x, y)
    return y


class Places:
    """Where the arrays of all parameters are in memory, so that one call can go through them.

    For most parameters are so small that a call takes longer than the work in it. And to ask an array for its place
    takes about as long as a call, so that is done once, and again when there are other arrays.
    """

    def __init__(self):
        self._arrays, self._of_dtypes = [], []

    def find(self, lists: tuple[list[np.ndarray], ...]) -> list[tuple[np.dtype, int, tuple[int, ...]]]:
        """For each dtype: how many numbers the first list has of it; and the size and place of each parameter's arrays.

        lists: of as many arrays each, those of one parameter at one index.
        Raises ValueError if a kernel could not work on an array where it is.
        """
        arrays = list(chain(*lists))
        if len(arrays) != len(self._arrays) or not all(map(operator.is_, arrays, self._arrays)):
            self._of_dtypes = [_places(dtype, lists) for dtype in dict.fromkeys(value.dtype for value in lists[0])]
            self._arrays = arrays
        return self._of_dtypes


def _places(dtype: np.dtype, lists: tuple[list[np.ndarray], ...]) -> tuple[np.dtype, int, tuple[int, ...]]:
    parameters = [arrays for arrays in zip(*lists, strict=True) if arrays[0].dtype == dtype]
    if not all(
        a.flags.carray and a.dtype == dtype and a.size == arrays[0].size for arrays in parameters for a in arrays
    ):
        raise ValueError("a parameter's value and gradient must be contiguous, of one size and dtype")
    places = [(arrays[0].size, *(a.ctypes.data for a in arrays)) for arrays in parameters]
    return dtype, sum(size for size, *_ in places), tuple(chain(*places))


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
    rates = 1 - beta1, 1 - beta2, learning_rate * weight_decay, step_size, square_correction, epsilon
    _run_on_all(_adam_task, places.find((values, grads, means, squares)), (), rates)


def _run_on_all(
    task_of: Callable[[np.dtype], Task], of_dtypes, sizes: tuple[int, ...], rates: tuple[float, ...]
) -> None:
    for dtype, total, places in of_dtypes:
        parts = parts_for(total, 32 * total)
        run(task_of(dtype), parts, (parts, total, len(places), *sizes, *places), np.array(rates, dtype))


def _run(kernel, count: int, sizes: tuple[int, ...], *arrays: np.ndarray) -> None:
    if count:
        parts = parts_for(count, 8 * count)
        run(kernel, parts, (parts, count, *sizes), *arrays)


@cache
def _relu_task(dtype: np.dtype):
    zero = dtype.type(0)

    @task(dtype, dtype, _BYTE)
    def relu(part, sizes, x, y, active):
        parts, size = numbers(sizes, 2)
        for i in range(part * size // parts, (part + 1) * size // parts):
            y[i] = zero if x[i] <= zero else x[i]
            active[i] = x[i] > zero

    return relu


@cache
def _relu_backward_task(dtype: np.dtype):
    zero = dtype.type(0)

    @task(dtype, _BYTE, dtype)
    def relu_backward(part, sizes, dy, active, dx):
        parts, size = numbers(sizes, 2)
        for i in range(part * size // parts, (part + 1) * size // parts):
            dx[i] = dy[i] if active[i] else zero

    return relu_backward


@cache
def _normalize_task(C: int, source: np.dtype, dtype: np.dtype):
    """C is known to the compiler: a loop over one colour would be no loop of vectors."""
    number, most = dtype.type, dtype.type(255)

    @task(source, dtype, dtype, dtype)
    def normalize(part, sizes, x, mean, std, y):
        parts, size = numbers(sizes, 2)
        for i in range(part * size // parts, (part + 1) * size // parts):
            for c in range(C):
                y[i * C + c] = (number(x[i * C + c]) / most - mean[c]) / std[c]

    return normalize


@cache
def _copy_task(dtype: np.dtype):
    @task(dtype, dtype)
    def copy_part(part, sizes, x, y):
        parts, size = numbers(sizes, 2)
        first, last = part * size // parts, (part + 1) * size // parts
        copy_numbers(y, first, x, first, last - first)

    return copy_part


@cache
def _sgd_task(dtype: np.dtype):
    @task(dtype)
    def sgd(part, sizes, rates):
        parts, total, end, nesterov = numbers(sizes, 4)
        learning_rate, momentum, weight_decay = rates[0], rates[1], rates[2]
        first, last = part * total // parts, (part + 1) * total // parts
        begin = 0  # of this parameter, counted through all of them
        for place in range(4, 4 + end, 4):
            size, value = sizes[place], memory_at(sizes[place + 1], rates)
            grad, velocity = memory_at(sizes[place + 2], rates), memory_at(sizes[place + 3], rates)
            for i in range(max(0, first - begin), min(size, last - begin)):
                g = grad[i] + weight_decay * value[i]
                velocity[i] = momentum * velocity[i] + g
                value[i] -= learning_rate * (g + momentum * velocity[i] if nesterov else velocity[i])
            begin += size

    return sgd


@cache
def _adam_task(dtype: np.dtype):
    @task(dtype)
    def adam(part, sizes, rates):
        parts, total, end = numbers(sizes, 3)
        new_mean, new_square, decay = rates[0], rates[1], rates[2]
        step_size, square_correction, epsilon = rates[3], rates[4], rates[5]
        first, last = part * total // parts, (part + 1) * total // parts
        begin = 0
        for place in range(3, 3 + end, 5):
            size, value = sizes[place], memory_at(sizes[place + 1], rates)
            grad, mean = memory_at(sizes[place + 2], rates), memory_at(sizes[place + 3], rates)
            square = memory_at(sizes[place + 4], rates)
            for i in range(max(0, first - begin), min(size, last - begin)):
                mean[i] += new_mean * (grad[i] - mean[i])
                square[i] += new_square * (grad[i] * grad[i] - square[i])
                value[i] -= decay * value[i]
                value[i] -= step_size * mean[i] / (np.sqrt(square[i] / square_correction) + epsilon)
            begin += size

    return adam
