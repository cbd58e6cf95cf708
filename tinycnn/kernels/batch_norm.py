"""Batch normalisation as hot loops over a matrix x (rows, channels); the formulas are in `tinycnn/more_reference.py`.

The rows are shared out in a fixed number of parts, each summed into a row of its own, and the parts are added in
order: the sums are equal bit for bit at any number of threads.

A ReLU behind it can go along (`tinycnn/together.py`): forward in training then writes which numbers it left as they
were, `active`, as `elementwise.relu` does, and backward's dy counts only there.

What this file is not: it knows no gamma, beta or epsilon; the layer turns them into the rows that are used here.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.elementwise import BYTE, relu_of, where_active
from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import PARTS, numbers, parts_for, run, task
from tinycnn.kernels.tile_shape import row_lanes
from tinycnn.kernels.vector import read, write, zeros


def moments(
    x: np.ndarray, running_mean: np.ndarray, running_variance: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each column, and in place running += rate · (those − running).

    x (M, C), contiguous, M ≥ 1; running_mean and running_variance (C,) -> mean (C,), variance (C,).

    Never as mean(x²) − mean², which loses most of its digits where the mean is large: each part takes the squares of
    its distances from its own mean while its rows are still in the cache, and what the parts' means are apart comes on
    top. Source: Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances
    (1979).
    """
    of_parts, result = np.empty((PARTS, 2, x.shape[1]), x.dtype), np.empty((2, x.shape[1]), x.dtype)
    run(_moments_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, x, of_parts)
    rates = np.array([rate], x.dtype)
    run(_all_moments_task(x.dtype), 1, x.shape, of_parts, rates, running_mean, running_variance, result)
    return result[0], result[1]


def scale_and_shift(
    x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray, relu: bool = False, remember: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """y = (x − mean) · scale + shift, or max(that, 0) if relu; and active, bytes 0 and 1.

    x (M, C), contiguous; mean, scale, shift (C,) -> y (M, C), active (M, C), or None without relu or without remember.
    """
    y, active = empty(x.shape, x.dtype), empty(x.shape, BYTE) if relu and remember else None
    kernel, parts = _scale_and_shift_task(row_lanes(x.dtype), x.dtype, relu), parts_for(len(x), 32 * x.size)
    run(kernel, parts, (parts, *x.shape, remember), x, mean, scale, shift, y, active)
    return y, active


def gradient_sums(
    dy: np.ndarray, x: np.ndarray, mean: np.ndarray, active: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Σ dy and Σ dy · (x − mean) over the rows, where active.

    dy, x (M, C), contiguous; mean (C,); active (M, C), or None for everywhere -> two arrays (C,).
    """
    sums = np.empty((PARTS, 2, x.shape[1]), x.dtype)
    kernel = _gradient_sums_task(row_lanes(x.dtype), x.dtype, active is not None)
    run(kernel, PARTS, x.shape, dy, x, mean, sums, active)
    return tuple(np.add.reduce(sums, axis=0))


def input_gradient(
    dy: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    constant: np.ndarray,
    slope: np.ndarray,
    active: np.ndarray | None = None,
) -> np.ndarray:
    """dx = scale · (dy − constant − slope · (x − mean)), with a dy of 0 where not active.

    dy, x (M, C), contiguous; active (M, C), or None for everywhere; the others (C,) -> dx (M, C).
    """
    dx = empty(x.shape, x.dtype)
    parts = parts_for(len(x), 32 * x.size)
    kernel = _input_gradient_task(row_lanes(x.dtype), x.dtype, active is not None)
    run(kernel, parts, (parts, *x.shape), dy, x, mean, scale, constant, slope, dx, active)
    return dx


@cache
def _moments_task(L: int, dtype: np.dtype):
    """of_parts[part] = the mean of this part's rows, and Σ (x − that mean)²."""
    one = dtype.type(1)

    @task(dtype, dtype)
    def moments(part, sizes, x, of_parts):
        M, C = numbers(sizes, 2)
        first, last = part * M // PARTS, (part + 1) * M // PARTS
        share = one / dtype.type(max(1, last - first))
        for c in range(0, C, L):
            width = min(L, C - c)
            total = zero = zeros(x, L)
            for m in range(first, last):
                total = total + read(x, m * C + c, width, L)
            mean, squares = share * total, zero
            for m in range(first, last):
                centred = read(x, m * C + c, width, L) - mean
                squares = squares + centred * centred
            write(of_parts, 2 * part * C + c, mean, width)
            write(of_parts, (2 * part + 1) * C + c, squares, width)

    return moments


@cache
def _all_moments_task(dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype, dtype)
    def all_moments(part, sizes, of_parts, rates, running_mean, running_variance, result):
        M, C = numbers(sizes, 2)
        for c in range(C):
            mean = variance = 0.0
            for p in range(PARTS):
                share = ((p + 1) * M // PARTS - p * M // PARTS) / M
                mean += share * of_parts[2 * p * C + c]
            for p in range(PARTS):
                share = ((p + 1) * M // PARTS - p * M // PARTS) / M
                variance += of_parts[(2 * p + 1) * C + c] / M + share * (of_parts[2 * p * C + c] - mean) ** 2
            result[c], result[C + c] = mean, variance
            running_mean[c] += rates[0] * (result[c] - running_mean[c])
            running_variance[c] += rates[0] * (result[C + c] - running_variance[c])

    return all_moments


@cache
def _scale_and_shift_task(L: int, dtype: np.dtype, relu: bool):
    @task(dtype, dtype, dtype, dtype, dtype, BYTE)
    def scale_and_shift(part, sizes, x, mean, scale, shift, y, active):
        parts, M, C, remember = numbers(sizes, 4)
        for c in range(0, C, L):
            width = min(L, C - c)
            mean_row, scale_row = read(mean, c, width, L), read(scale, c, width, L)
            shift_row = read(shift, c, width, L)
            for m in range(part * M // parts, (part + 1) * M // parts):
                row = (read(x, m * C + c, width, L) - mean_row) * scale_row + shift_row
                if relu:
                    row, active_row = relu_of(row, zeros(x, L), zeros(active, L))
                    if remember:
                        write(active, m * C + c, active_row, width)
                write(y, m * C + c, row, width)

    return scale_and_shift


@cache
def _gradient_sums_task(L: int, dtype: np.dtype, relu: bool):
    @task(dtype, dtype, dtype, dtype, BYTE)
    def gradient_sums(part, sizes, dy, x, mean, sums, active):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            total, product_total = zeros(x, L), zeros(x, L)
            mean_row = read(mean, c, width, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                gradient = where_active(dy, active, m * C + c, width, relu, L)
                total = total + gradient
                product_total = product_total + gradient * (read(x, m * C + c, width, L) - mean_row)
            write(sums, 2 * part * C + c, total, width)
            write(sums, (2 * part + 1) * C + c, product_total, width)

    return gradient_sums


@cache
def _input_gradient_task(L: int, dtype: np.dtype, relu: bool):
    @task(dtype, dtype, dtype, dtype, dtype, dtype, dtype, BYTE)
    def input_gradient(part, sizes, dy, x, mean, scale, constant, slope, dx, active):
        parts, M, C = numbers(sizes, 3)
        for c in range(0, C, L):
            width = min(L, C - c)
            mean_row, scale_row = read(mean, c, width, L), read(scale, c, width, L)
            constant_row, slope_row = read(constant, c, width, L), read(slope, c, width, L)
            for m in range(part * M // parts, (part + 1) * M // parts):
                centred = read(x, m * C + c, width, L) - mean_row
                gradient = where_active(dy, active, m * C + c, width, relu, L)
                write(dx, m * C + c, scale_row * (gradient - constant_row - slope_row * centred), width)

    return input_gradient
