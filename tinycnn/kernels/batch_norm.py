"""Batch normalisation as hot loops over a matrix x (rows, channels); the formulas are in `tinycnn/reference.py`.

The rows are shared out in a fixed number of parts, each summed into a row of its own, and the parts are added in
order: the sums are equal bit for bit at any number of threads.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import PARTS, numbers, run, task
from tinycnn.kernels.vector import read, row_lanes, write


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each column.  x (M, C), contiguous, M ≥ 1 -> mean (C,), variance (C,).

    In two passes: mean(x²) − mean² in one pass loses most of its digits where the mean is large.
    """
    M = x.dtype.type(len(x))
    sums = np.empty((PARTS, x.shape[1]), x.dtype)
    run(_sum_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, x, sums)
    mean = sums.sum(axis=0) / M
    run(_sum_of_squares_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, x, mean, sums)
    return mean, sums.sum(axis=0) / M


def scale_and_shift(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """y = (x − mean) · scale + shift.  x (M, C), contiguous; mean, scale, shift (C,) -> y (M, C)."""
    y = empty(x.shape, x.dtype)
    if y.size:
        run(
            _scale_and_shift_task(row_lanes(x.dtype), x.dtype),
            PARTS,
            x.shape,
            x,
            np.stack((mean, scale, shift)),
            y,
        )
    return y


def gradient_sums(dy: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ dy and Σ dy · (x − mean) over the rows.  dy, x (M, C), contiguous; mean (C,) -> two arrays (C,)."""
    sums = np.empty((2, PARTS, x.shape[1]), x.dtype)
    run(_gradient_sums_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, dy, x, mean, sums)
    return sums[0].sum(axis=0), sums[1].sum(axis=0)


def input_gradient(
    dy: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, constant: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    """dx = scale · (dy − constant − slope · (x − mean)).  dy, x (M, C), contiguous; the others (C,) -> dx (M, C)."""
    dx = empty(x.shape, x.dtype)
    run(
        _input_gradient_task(row_lanes(x.dtype), x.dtype),
        PARTS,
        x.shape,
        dy,
        x,
        np.stack((mean, scale, constant, slope)),
        dx,
    )
    return dx


@cache
def _sum_task(L: int, dtype: np.dtype):
    @task(dtype, dtype)
    def sum_rows(part, sizes, x, sums):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            total = read(x, 0, 0, L)  # no lanes: zeros
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                total = total + read(x, m * C + c, width, L)
            write(sums, part * C + c, total, width)

    return sum_rows


@cache
def _sum_of_squares_task(L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype)
    def sum_squares(part, sizes, x, mean, sums):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            total, mean_row = read(x, 0, 0, L), read(mean, c, width, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                centred = read(x, m * C + c, width, L) - mean_row
                total = total + centred * centred
            write(sums, part * C + c, total, width)

    return sum_squares


@cache
def _scale_and_shift_task(L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype)
    def scale_and_shift(part, sizes, x, constants, y):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            mean, scale = read(constants, c, width, L), read(constants, C + c, width, L)
            shift = read(constants, 2 * C + c, width, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                write(y, m * C + c, (read(x, m * C + c, width, L) - mean) * scale + shift, width)

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
            write(sums, part * C + c, total, width)
            write(sums, (PARTS + part) * C + c, product_total, width)

    return gradient_sums


@cache
def _input_gradient_task(L: int, dtype: np.dtype):
    @task(dtype, dtype, dtype, dtype)
    def input_gradient(part, sizes, dy, x, constants, dx):
        M, C = numbers(sizes, 2)
        for c in range(0, C, L):
            width = min(L, C - c)
            mean, scale = read(constants, c, width, L), read(constants, C + c, width, L)
            constant, slope = read(constants, 2 * C + c, width, L), read(constants, 3 * C + c, width, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                centred = read(x, m * C + c, width, L) - mean
                gradient = read(dy, m * C + c, width, L)
                write(dx, m * C + c, scale * (gradient - constant - slope * centred), width)

    return input_gradient
