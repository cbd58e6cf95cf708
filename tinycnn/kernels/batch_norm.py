"""Batch normalisation as hot loops over a matrix x (rows, channels); the formulas are in `tinycnn/more_reference.py`.

    mean_and_sigma      mean and σ of each channel
    scale_and_shift     y = (x − mean) · gamma / σ + beta
    backward            dx, dgamma, dbeta

The rows are shared out in a fixed number of parts, each summed into a row of its own, and the parts are added in
order: the sums are equal bit for bit at any number of threads.

A ReLU behind it can go along (`tinycnn/together.py`): forward in training then writes which numbers it left as they
were, `active`, as `elementwise.relu` does, and backward's dy counts only there.

What this file is not: it keeps nothing from call to call; the running averages are the layer's.
"""

from functools import cache

import numpy as np

from tinycnn.kernels.elementwise import BYTE, relu_of, where_active
from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import PARTS, numbers, parts_for, run, task
from tinycnn.kernels.tile_shape import row_lanes
from tinycnn.kernels.vector import read, write, zeros


def mean_and_sigma(
    x: np.ndarray, running_mean: np.ndarray, running_variance: np.ndarray, rate: float, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and σ = √(variance + epsilon) of each column; and in place running += rate · (mean or variance − running).

    x (M, C), contiguous, M ≥ 1; running_mean and running_variance (C,) -> mean (C,), σ (C,). The variance is biased.

    Never as mean(x²) − mean², which loses most of its digits where the mean is large: each part takes the squares of
    its distances from its own mean while its rows are still in the cache, and what the parts' means are apart comes on
    top. Source: Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances
    (1979).
    """
    of_parts, result = np.empty((PARTS, 2, x.shape[1]), x.dtype), np.empty((2, x.shape[1]), x.dtype)
    run(_moments_task(row_lanes(x.dtype), x.dtype), PARTS, x.shape, x, of_parts)
    settings = np.array([rate, epsilon], x.dtype)
    run(_all_moments_task(x.dtype), 1, x.shape, of_parts, settings, running_mean, running_variance, result)
    return result[0], result[1]


def scale_and_shift(
    x: np.ndarray,
    mean: np.ndarray,
    sigma: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    relu: bool = False,
    remember: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """y = (x − mean) · gamma / σ + beta, or max(that, 0) if relu; and active, bytes 0 and 1.

    x (M, C), contiguous; the others (C,) -> y (M, C), active (M, C), or None without relu or without remember.
    """
    y, active = empty(x.shape, x.dtype), empty(x.shape, BYTE) if relu and remember else None
    kernel, parts = _scale_and_shift_task(row_lanes(x.dtype), x.dtype, relu), parts_for(len(x), 32 * x.size)
    run(kernel, parts, (parts, *x.shape, remember), x, mean, sigma, gamma, beta, y, active)
    return y, active


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    sigma: np.ndarray,
    gamma: np.ndarray,
    frozen: bool = False,
    active: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of `scale_and_shift`, with a dy of 0 where not active. frozen: mean and σ do not move with x.

    dy, x (M, C), contiguous; mean, sigma, gamma (C,); active (M, C), or None for everywhere
    -> dx (M, C), dgamma (C,), dbeta (C,).
    """
    sums, gradients = np.empty((PARTS, 2, x.shape[1]), x.dtype), np.empty((2, x.shape[1]), x.dtype)
    dx, L, parts = empty(x.shape, x.dtype), row_lanes(x.dtype), parts_for(len(x), 32 * x.size)
    relu = active is not None
    run(_gradient_sums_task(L, x.dtype, relu), PARTS, x.shape, dy, x, mean, sums, active)
    kernel = _input_gradient_task(L, x.dtype, relu)
    run(kernel, parts, (parts, *x.shape, frozen), dy, x, mean, sigma, gamma, sums, dx, gradients, active)
    return dx, gradients[0], gradients[1]


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
    number = dtype.type

    @task(dtype, dtype, dtype, dtype, dtype)
    def all_moments(part, sizes, of_parts, settings, running_mean, running_variance, result):
        M, C = numbers(sizes, 2)
        rate, epsilon = settings[0], settings[1]
        for c in range(C):
            exact_mean = exact_variance = 0.0
            for p in range(PARTS):
                share = ((p + 1) * M // PARTS - p * M // PARTS) / M
                exact_mean += share * of_parts[2 * p * C + c]
            for p in range(PARTS):
                share = ((p + 1) * M // PARTS - p * M // PARTS) / M
                exact_variance += (
                    of_parts[(2 * p + 1) * C + c] / M + share * (of_parts[2 * p * C + c] - exact_mean) ** 2
                )
            mean, variance = number(exact_mean), number(exact_variance)
            running_mean[c] += rate * (mean - running_mean[c])
            running_variance[c] += rate * (variance - running_variance[c])
            result[c], result[C + c] = mean, np.sqrt(variance + epsilon)

    return all_moments


@cache
def _scale_and_shift_task(L: int, dtype: np.dtype, relu: bool):
    @task(dtype, dtype, dtype, dtype, dtype, dtype, BYTE)
    def scale_and_shift(part, sizes, x, mean, sigma, gamma, beta, y, active):
        parts, M, C, remember = numbers(sizes, 4)
        for c in range(0, C, L):
            width = min(L, C - c)
            mean_row, beta_row = read(mean, c, width, L), read(beta, c, width, L)
            scale = read(gamma, c, width, L) / read(sigma, c, width, L)
            for m in range(part * M // parts, (part + 1) * M // parts):
                row = (read(x, m * C + c, width, L) - mean_row) * scale + beta_row
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
    """dx = gamma / σ · (dy − dbeta / M − x̂ · dgamma / M)  with  x̂ = (x − mean) / σ."""

    @task(dtype, dtype, dtype, dtype, dtype, dtype, dtype, dtype, BYTE)
    def input_gradient(part, sizes, dy, x, mean, sigma, gamma, sums, dx, gradients, active):
        parts, M, C, frozen = numbers(sizes, 4)
        for c in range(0, C, L):
            width, zero = min(L, C - c), zeros(x, L)
            mean_row, sigma_row = read(mean, c, width, L), read(sigma, c, width, L)
            # Every part adds up the sums of all parts for itself: one more call would take longer.
            dbeta, dy_times_centred = read(sums, c, width, L), read(sums, C + c, width, L)
            for p in range(1, PARTS):
                dbeta = dbeta + read(sums, 2 * p * C + c, width, L)
                dy_times_centred = dy_times_centred + read(sums, (2 * p + 1) * C + c, width, L)
            dgamma = dy_times_centred / sigma_row
            if part == 0:
                write(gradients, c, dgamma, width)
                write(gradients, C + c, dbeta, width)
            scale = read(gamma, c, width, L) / sigma_row
            constant, slope = (zero, zero) if frozen else (dbeta / M, dgamma / (M * sigma_row))
            for m in range(part * M // parts, (part + 1) * M // parts):
                centred = read(x, m * C + c, width, L) - mean_row
                gradient = where_active(dy, active, m * C + c, width, relu, L)
                write(dx, m * C + c, scale * (gradient - constant - slope * centred), width)

    return input_gradient
