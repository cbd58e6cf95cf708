"""Batch normalisation as hot loops over a matrix x (rows, channels); the formulas are in `tinycnn/more_reference.py`.

    mean_and_sigma      mean and σ of each channel
    scale_and_shift     y = (x − mean) · gamma / σ + beta
    backward            dx, dgamma, dbeta

The rows are shared out in a fixed number of parts, each summed into a row of its own, and the parts are added in
order: the sums are equal bit for bit at any number of threads. Where a row of x fills at most half of the L numbers
that a kernel takes at once, s = gcd(M, ⌊L / C⌋) of them go side by side: in memory, x (M, C) is (M / s, W) as well,
with W = s · C. A channel then has s sums in a part. (Kernels call M / s their M.)

A ReLU behind it can go along (`tinycnn/together.py`): forward in training then writes which numbers it left as they
were, `active`, as `elementwise.relu` does, and backward's dy counts only there.

What this file is not: it keeps nothing from call to call; the running averages are the layer's.
"""

from functools import cache, lru_cache
from math import gcd

import numpy as np

from tinycnn.kernels.elementwise import BYTE, relu_of, where_active
from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import PARTS, in_tasks, is_last, numbers, parts_for, run, task
from tinycnn.kernels.tile_shape import row_lanes
from tinycnn.kernels.vector import read, write, zeros


def mean_and_sigma(
    x: np.ndarray, running_mean: np.ndarray, running_variance: np.ndarray, rate: float, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and σ = √(variance + epsilon) of each column; and in place running += rate · (mean or variance − running).

    x (M, C), contiguous, M ≥ 1; running_mean and running_variance (C,) -> mean (C,), σ (C,). The variance is biased.

    Never as mean(x²) − mean², which loses most of its digits where the mean is large: each part takes the squares of
    the distances from its own means while its rows are still in the cache, and what all the means are apart comes on
    top. Source: Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances
    (1979).
    """
    sizes, L, _ = _side_by_side(x.shape, x.dtype)
    _, s, C = sizes
    of_parts, result = empty((PARTS, 2, s * C), x.dtype), empty((2, C), x.dtype)
    settings, ended = np.array([rate, epsilon], x.dtype), np.zeros(1, np.int64)
    run(_moments_task(L, x.dtype), PARTS, sizes, x, of_parts, ended, settings, running_mean, running_variance, result)
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
    sizes, L, scratch = _side_by_side(x.shape, x.dtype)
    kernel, parts = _scale_and_shift_task(L, x.dtype, relu), parts_for(sizes[0], 32 * x.size)
    run(kernel, parts, (parts, *sizes, remember), x, mean, sigma, gamma, beta, y, active, scratch=scratch)
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
    sizes, L, scratch = _side_by_side(x.shape, x.dtype)
    M, s, C = sizes
    sums, dx = empty((2 * (PARTS * s + 1) * C,), x.dtype), empty(x.shape, x.dtype)  # the last are dgamma and dbeta
    relu, parts = active is not None, parts_for(M, 32 * x.size)
    run(_gradient_sums_task(L, x.dtype, relu), PARTS, sizes, dy, x, mean, sums, active, scratch=scratch)
    kernel, sizes = _input_gradient_task(L, x.dtype, relu), (parts, *sizes, frozen)
    run(kernel, parts, sizes, dy, x, mean, sigma, gamma, sums, dx, active, scratch=scratch)
    return dx, sums[-2 * C : -C], sums[-C:]


@lru_cache(maxsize=1000)
def _side_by_side(shape: tuple[int, int], dtype: np.dtype) -> tuple[tuple[int, int, int], int, int]:
    """(M, s, C): x as M rows, each s rows of C channels side by side; then L, and what `_over_and_over` needs."""
    (M, C), L = shape, row_lanes(dtype)
    s = gcd(M, max(1, L // C))
    return (M // s, s, C), L, L if s > 1 else 0


@in_tasks
def _over_and_over(row, s, C, scratch, L):
    """The first C numbers of a row, s times; or the row itself, if s is 1."""
    if s == 1:
        return row
    for i in range(s):
        write(scratch, i * C, row, C)
    return read(scratch, 0, s * C, L)


@cache
def _moments_task(L: int, dtype: np.dtype):
    """of_parts[part] = the means of this part's rows, and Σ (x − mean)²; the last to end puts all together."""
    one = dtype.type(1)

    @task(dtype, dtype, np.int64, dtype, dtype, dtype, dtype)
    def moments(part, sizes, x, of_parts, ended, settings, running_mean, running_variance, result):
        M, s, C = numbers(sizes, 3)
        W = s * C
        first, last = part * M // PARTS, (part + 1) * M // PARTS
        share = one / dtype.type(max(1, last - first))
        for c in range(0, W, L):
            width = min(L, W - c)
            total = zero = zeros(x, L)
            for m in range(first, last):
                total = total + read(x, m * W + c, width, L)
            mean, squares = share * total, zero
            for m in range(first, last):
                centred = read(x, m * W + c, width, L) - mean
                squares = squares + centred * centred
            write(of_parts, 2 * part * W + c, mean, width)
            write(of_parts, (2 * part + 1) * W + c, squares, width)
        if is_last(ended, PARTS):
            _put_together(M, s, C, of_parts, settings, running_mean, running_variance, result)

    return moments


@in_tasks
def _put_together(M, s, C, of_parts, settings, running_mean, running_variance, result):
    """`mean_and_sigma`'s result and running averages, from the moments of all parts."""
    W, count = s * C, M * s
    rate, epsilon = settings[0], settings[1]
    for c in range(C):
        exact_mean = exact_variance = 0.0
        for p in range(PARTS):
            share = ((p + 1) * M // PARTS - p * M // PARTS) / count
            for i in range(c, W, C):
                exact_mean += share * of_parts[2 * p * W + i]
        for p in range(PARTS):
            share = ((p + 1) * M // PARTS - p * M // PARTS) / count
            for i in range(c, W, C):
                apart = of_parts[2 * p * W + i] - exact_mean
                exact_variance += of_parts[(2 * p + 1) * W + i] / count + share * (apart * apart)
        running_mean[c] += rate * (exact_mean - running_mean[c])
        running_variance[c] += rate * (exact_variance - running_variance[c])
        result[c], result[C + c] = exact_mean, np.sqrt(exact_variance + epsilon)


@cache
def _scale_and_shift_task(L: int, dtype: np.dtype, relu: bool):
    @task(dtype, dtype, dtype, dtype, dtype, dtype, dtype, BYTE)
    def scale_and_shift(part, sizes, scratch, x, mean, sigma, gamma, beta, y, active):
        parts, M, s, C, remember = numbers(sizes, 5)
        W = s * C
        for c in range(0, W, L):
            width, channels = min(L, W - c), min(L, C - c)
            mean_row = _over_and_over(read(mean, c, channels, L), s, C, scratch, L)
            beta_row = _over_and_over(read(beta, c, channels, L), s, C, scratch, L)
            scale = _over_and_over(read(gamma, c, channels, L) / read(sigma, c, channels, L), s, C, scratch, L)
            for m in range(part * M // parts, (part + 1) * M // parts):
                row = (read(x, m * W + c, width, L) - mean_row) * scale + beta_row
                if relu:
                    row, active_row = relu_of(row, zeros(x, L), zeros(active, L))
                    if remember:
                        write(active, m * W + c, active_row, width)
                write(y, m * W + c, row, width)

    return scale_and_shift


@cache
def _gradient_sums_task(L: int, dtype: np.dtype, relu: bool):
    @task(dtype, dtype, dtype, dtype, dtype, BYTE)
    def gradient_sums(part, sizes, scratch, dy, x, mean, sums, active):
        M, s, C = numbers(sizes, 3)
        W = s * C
        for c in range(0, W, L):
            width = min(L, W - c)
            total, product_total = zeros(x, L), zeros(x, L)
            mean_row = _over_and_over(read(mean, c, min(L, C - c), L), s, C, scratch, L)
            for m in range(part * M // PARTS, (part + 1) * M // PARTS):
                gradient = where_active(dy, active, m * W + c, width, relu, L)
                total = total + gradient
                product_total = product_total + gradient * (read(x, m * W + c, width, L) - mean_row)
            write(sums, 2 * part * W + c, total, width)
            write(sums, (2 * part + 1) * W + c, product_total, width)

    return gradient_sums


@cache
def _input_gradient_task(L: int, dtype: np.dtype, relu: bool):
    """dx = gamma / σ · (dy − dbeta / count − x̂ · dgamma / count)  with  x̂ = (x − mean) / σ."""

    @task(dtype, dtype, dtype, dtype, dtype, dtype, dtype, dtype, BYTE)
    def input_gradient(part, sizes, scratch, dy, x, mean, sigma, gamma, sums, dx, active):
        parts, M, s, C, frozen = numbers(sizes, 5)
        W, count = s * C, M * s
        for c in range(0, W, L):
            width, channels, zero = min(L, W - c), min(L, C - c), zeros(x, L)
            sigma_row, dbeta, dy_times_centred = read(sigma, c, channels, L), zero, zero
            # Every part adds up the sums of all parts for itself: one more call would take longer.
            for p in range(PARTS):
                for i in range(c, W, C):
                    dbeta = dbeta + read(sums, 2 * p * W + i, channels, L)
                    dy_times_centred = dy_times_centred + read(sums, (2 * p + 1) * W + i, channels, L)
            dgamma = dy_times_centred / sigma_row
            if part == 0:
                write(sums, 2 * PARTS * W + c, dgamma, channels)
                write(sums, 2 * PARTS * W + C + c, dbeta, channels)
            constant, slope = (zero, zero) if frozen else (dbeta / count, dgamma / (count * sigma_row))
            constant, slope = _over_and_over(constant, s, C, scratch, L), _over_and_over(slope, s, C, scratch, L)
            scale = _over_and_over(read(gamma, c, channels, L) / sigma_row, s, C, scratch, L)
            mean_row = _over_and_over(read(mean, c, channels, L), s, C, scratch, L)
            for m in range(part * M // parts, (part + 1) * M // parts):
                centred = read(x, m * W + c, width, L) - mean_row
                gradient = where_active(dy, active, m * W + c, width, relu, L)
                write(dx, m * W + c, scale * (gradient - constant - slope * centred), width)

    return input_gradient
