"""The operations that go number by number as hot loops: ReLU, Normalize, copies, and sums of a few arrays.

Each formula stands where it is used (`tinycnn/layers.py`, `tinycnn/more_layers.py`). They are here because NumPy would
walk through the memory once for every operation in them, on one core and with a new array each time.

What this file is not: the optimizers' steps, which go through all parameters at once (`optimizers.py`).
"""

from functools import cache

import numpy as np

from tinycnn.kernels.memory import copy, empty
from tinycnn.kernels.parallel import in_tasks, numbers, parts_for, run, task
from tinycnn.kernels.tile_shape import row_lanes
from tinycnn.kernels.vector import copy_numbers, equals, greater, greater_or_nan, read, select, write, zeros

BYTE = np.dtype(np.uint8)


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = max(x, 0), where not a number stays not a number; and active = x > 0, as bytes 0 and 1.  x contiguous.

    All that backward needs is `active`, a byte a number. (Inference doesn't: the kernels that do a ReLU along with
    something else leave it out then.)
    """
    y, active = empty(x.shape, x.dtype), empty(x.shape, BYTE)
    _run(_relu_task(x.dtype), x.size, x, y, active)
    return y, active


def relu_backward(dy: np.ndarray, active: np.ndarray) -> np.ndarray:
    """dx = dy where active, else 0.  dy, active contiguous, of one shape."""
    dx = empty(dy.shape, dy.dtype)
    _run(_relu_backward_task(dy.dtype), dy.size, dy, active, dx)
    return dx


@in_tasks
def relu_of(row, zero, none):
    """`relu` of a row: y and active. zero, none: rows of zeros, of numbers and of bytes."""
    return select(greater_or_nan(row, zero), row, zero), select(greater(row, zero), 1, none)


@in_tasks
def where_active(dy, active, i, width, relu, L):
    """dy[i : i + width] as a row; if `relu`, what `relu_backward` makes of it."""
    row = read(dy, i, width, L)
    return select(equals(read(active, i, width, L), 1), row, zeros(dy, L)) if relu else row


def normalize(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """y = (x / 255 − mean) / std.  x (…, C), contiguous; mean, std (C,) -> y (…, C) of their dtype."""
    y = empty(x.shape, mean.dtype)
    _run(_normalize_task(len(mean), x.dtype, mean.dtype), x.size // len(mean), x, mean, std, y)
    return y


def copy_shared(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """x, contiguous, again in another place and of another shape; each core copies what it has in its cache."""
    parts = parts_for(x.nbytes, 2 * x.nbytes)
    if parts == 1 or x.dtype.hasobject:
        return copy(x).reshape(shape)
    y = empty(shape, x.dtype)
    run(_copy_task(), parts, (parts, x.nbytes), x, y)
    return y


def sum_of_parts(x: np.ndarray) -> np.ndarray:
    """y = x[0] + x[1] + …, in this order.  x (parts, …), contiguous."""
    y = empty(x.shape[1:], x.dtype)
    parts = parts_for(y.size, 8 * x.size)
    run(_sum_of_parts_task(row_lanes(x.dtype), x.dtype), parts, (parts, len(x), y.size), x, y)
    return y


def _run(kernel, count: int, *arrays: np.ndarray) -> None:
    parts = parts_for(count, 8 * count)
    run(kernel, parts, (parts, count), *arrays)


@cache
def _relu_task(dtype: np.dtype):
    zero = dtype.type(0)

    @task(dtype, dtype, BYTE)
    def relu(part, sizes, x, y, active):
        parts, size = numbers(sizes, 2)
        for i in range(part * size // parts, (part + 1) * size // parts):
            y[i] = zero if x[i] <= zero else x[i]
            active[i] = x[i] > zero

    return relu


@cache
def _relu_backward_task(dtype: np.dtype):
    zero = dtype.type(0)

    @task(dtype, BYTE, dtype)
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
def _sum_of_parts_task(L: int, dtype: np.dtype):
    @task(dtype, dtype)
    def sum_of_parts(part, sizes, x, y):
        parts, count, size = numbers(sizes, 3)
        last = (part + 1) * size // parts
        for i in range(part * size // parts, last, L):
            width = min(L, last - i)
            total = read(x, i, width, L)
            for other in range(1, count):
                total = total + read(x, other * size + i, width, L)
            write(y, i, total, width)

    return sum_of_parts


@cache
def _copy_task():
    @task(BYTE, BYTE)
    def copy_part(part, sizes, x, y):
        parts, size = numbers(sizes, 2)
        first, last = part * size // parts, (part + 1) * size // parts
        copy_numbers(y, first, x, first, last - first)

    return copy_part
