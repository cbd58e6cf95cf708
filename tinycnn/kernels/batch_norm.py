"""Batch normalisation as hot loops over a matrix x (rows, channels); the formulas are in `tinycnn/more_reference.py`.

The rows are shared out in a fixed number of parts, each summed into a row of its own, and the parts are added in
order: the sums are equal bit for bit at any number of threads.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import PARTS, numbers, run, task
from tinycnn.kernels.vector import multiply_add, read, row_lanes, write


def moments(
    x: np.ndarray, running_mean: np.ndarray, running_variance: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each column, and in place running += rate · (those − running).

    x (M, C), contiguous, M ≥ 1; running_mean and running_variance (C,) -> mean (C,), variance (C,).

    Never as mean(x²) − mean², which loses most of its digits where the mean is large: each part takes the squares of
    its distances from its own mean while its rows are still in the cache, and what the parts' means are apart comes on
    top. Source: Chan, Golub & LeVeque, Updating formulae for computing sample variances (1979).
    """
    of_parts, result = np.empty((PARTS, 2, x.shape[1]), x.dtype), np.empty((2, x.shape[1]), x.dtype)
    run(_moments_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, x, of_parts)
    rates = np.array([rate], x.dtype)
    run(_all_moments_task(x.dtype), 1, x.shape, of_parts, rates, running_mean, running_variance, result)
    return result[0], result[1]


def scale_and_shift(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """y = (x − mean) · scale + shift.  x (M, C), contiguous; mean, scale, shift (C,) -> y (M, C)."""
    y = empty(x.shape, x.dtype)
    if y.size:
        run(_scale_and_shift_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, x, mean, scale, shift, y)
    return y


def gradient_sums(dy: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ dy and Σ dy · (x − mean) over the rows.  dy, x (M, C), contiguous; mean (C,) -> two arrays (C,)."""
    sums = np.empty((PARTS, 2, x.shape[1]), x.dtype)
    run(_gradient_sums_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, dy, x, mean, sums)
    of_gradient, of_product = np.add.reduce(sums, axis=0)
    return of_gradient, of_product


def input_gradient(
    dy: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, constant: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    """dx = scale · (dy − constant − slope · (x − mean)).  dy, x (M, C), contiguous; the others (C,) -> dx (M, C)."""
    dx = empty(x.shape, x.dtype)
    run(_input_gradient_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, dy, x, mean, scale, constant, slope, dx)
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
            total = zero = read(x, 0, 0, L)  # no lanes: zeros
            for m in range(first, last):
                total = total + read(x, m * C + c, width, L)
            mean, squares = multiply_add(share, total, zero), zero
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
def _scale_and_shift_task(L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype, dtype)
    def scale_and_shift(part, sizes, x, mean, scale, shift, y):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            mean_row, scale_row = read(mean, c, width, L), read(scale, c, width, L)
            shift_row = read(shift, c, width, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                write(y, m * C + c, (read(x, m * C + c, width, L) - mean_row) * scale_row + shift_row, width)

    return scale_and_shift


@cache
def _gradient_sums_task(L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype)
    def gradient_sums(part, sizes, dy, x, mean, sums):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            total, product_total = read(x, 0, 0, L), read(x, 0, 0, L)
            mean_row = read(mean, c, width, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                gradient = read(dy, m * C + c, width, L)
                total = total + gradient
                product_total = product_total + gradient * (read(x, m * C + c, width, L) - mean_row)
            write(sums, 2 * part * C + c, total, width)
            write(sums, (2 * part + 1) * C + c, product_total, width)

    return gradient_sums


@cache
def _input_gradient_task(L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype, dtype, dtype, dtype)
    def input_gradient(part, sizes, dy, x, mean, scale, constant, slope, dx):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            mean_row, scale_row = read(mean, c, width, L), read(scale, c, width, L)
            constant_row, slope_row = read(constant, c, width, L), read(slope, c, width, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                centred = read(x, m * C + c, width, L) - mean_row
                gradient = read(dy, m * C + c, width, L)
                write(dx, m * C + c, scale_row * (gradient - constant_row - slope_row * centred), width)

    return input_gradient
