"""Batch normalisation as hot loops over a matrix x (rows, channels); the formulas are in `tinycnn/reference.py`.

The rows are shared out in a fixed number of parts, each summed into a row of its own, and the parts are added in
order: the sums are equal bit for bit at any number of threads.
"""

import numpy as np
from numba import prange

from tinycnn.kernels.vector import kernel

PARTS = 8


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each column.  x (M, C), contiguous, M ≥ 1 -> mean (C,), variance (C,).

    In two passes: mean(x²) − mean² in one pass loses most of its digits where the mean is large.
    """
    M = x.dtype.type(len(x))
    sums = np.zeros((PARTS, x.shape[1]), x.dtype)
    _sum(x, sums)
    mean = sums.sum(axis=0) / M
    sums[:] = 0
    _sum_of_squares(x, mean, sums)
    return mean, sums.sum(axis=0) / M


def scale_and_shift(x: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """y = (x − mean) · scale + shift.  x (M, C), contiguous; mean, scale, shift (C,) -> y (M, C)."""
    y = np.empty_like(x)
    _scale_and_shift(x, mean, scale, shift, y)
    return y


def gradient_sums(dy: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ dy and Σ dy · (x − mean) over the rows.  dy, x (M, C), contiguous; mean (C,) -> two arrays (C,)."""
    sums = np.zeros((2, PARTS, x.shape[1]), x.dtype)
    _gradient_sums(dy, x, mean, sums[0], sums[1])
    return sums[0].sum(axis=0), sums[1].sum(axis=0)


def input_gradient(
    dy: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, constant: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    """dx = scale · (dy − constant − slope · (x − mean)).  dy, x (M, C), contiguous; the others (C,) -> dx (M, C)."""
    dx = np.empty_like(x)
    _input_gradient(dy, x, mean, scale, constant, slope, dx)
    return dx


@kernel
def _sum(x, sums):
    M, C = x.shape
    for part in prange(PARTS):
        for m in range(part * M // PARTS, (part + 1) * M // PARTS):
            for c in range(C):
                sums[part, c] += x[m, c]


@kernel
def _sum_of_squares(x, mean, sums):
    M, C = x.shape
    for part in prange(PARTS):
        for m in range(part * M // PARTS, (part + 1) * M // PARTS):
            for c in range(C):
                sums[part, c] += (x[m, c] - mean[c]) * (x[m, c] - mean[c])


@kernel
def _scale_and_shift(x, mean, scale, shift, y):
    M, C = x.shape
    for part in prange(PARTS):
        for m in range(part * M // PARTS, (part + 1) * M // PARTS):
            for c in range(C):
                y[m, c] = (x[m, c] - mean[c]) * scale[c] + shift[c]


@kernel
def _gradient_sums(dy, x, mean, sums, product_sums):
    M, C = x.shape
    for part in prange(PARTS):
        for m in range(part * M // PARTS, (part + 1) * M // PARTS):
            for c in range(C):
                sums[part, c] += dy[m, c]
                product_sums[part, c] += dy[m, c] * (x[m, c] - mean[c])


@kernel
def _input_gradient(dy, x, mean, scale, constant, slope, dx):
    M, C = x.shape
    for part in prange(PARTS):
        for m in range(part * M // PARTS, (part + 1) * M // PARTS):
            for c in range(C):
                dx[m, c] = scale[c] * (dy[m, c] - constant[c] - slope[c] * (x[m, c] - mean[c]))
