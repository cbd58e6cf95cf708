"""Max-pooling as hot loops. A row is up to 16 channels of a pixel; the cells of a window are compared row by row.

    max_pool:           y[n, i, j, c] = max over the window of x, and winners[n, i, j, c] = which cell of it that was
    max_pool_backward:  dx of the winning cell += dy; the other cells of the window get nothing

The cells of a window are numbered in reading order, and a cell takes the lead only if it is strictly greater: among
equal maxima the first one wins, and it alone receives the gradient.

What this file is not: for pools of the mean; `GlobalAveragePool2D` leaves that to NumPy.
"""

from functools import cache
from math import prod

import numpy as np

from tinycnn.kernels.memory import empty
from tinycnn.kernels.parallel import in_tasks, numbers, parts_for, run, task
from tinycnn.kernels.vector import clear_numbers, equals, greater_or_nan, read, select, write, zeros


def max_pool(x: np.ndarray, pool_size: tuple[int, int], stride: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x (N, H, W, C), contiguous -> y and winners, both (N, (H − ph) // sh + 1, (W − pw) // sw + 1, C).

    winners holds a·pw + b for the cell (a, b) of the window, in the smallest unsigned integer type that fits.
    """
    n, height, width, channels = x.shape
    out = (n, (height - pool_size[0]) // stride[0] + 1, (width - pool_size[1]) // stride[1] + 1, channels)
    y, winners = empty(out, x.dtype), empty(out, np.min_scalar_type(prod(pool_size) - 1))
    if y.size:
        parts = parts_for(n * out[1], 8 * x.size)
        sizes = (parts, *x.shape, *out[1:3], *stride)
        run(_max_pool_task(_group(channels), *pool_size, x.dtype, winners.dtype), parts, sizes, x, y, winners)
    return y, winners


def max_pool_backward(
    dy: np.ndarray,
    winners: np.ndarray,
    input_shape: tuple[int, int, int, int],
    pool_size: tuple[int, int],
    stride: tuple[int, int],
) -> np.ndarray:
    """dy and winners (N, out_h, out_w, C), contiguous -> dx of input_shape (N, H, W, C). Overlapping windows add up."""
    dx = empty(input_shape, dy.dtype)
    if dx.size:
        overlap = stride[0] < pool_size[0] or stride[1] < pool_size[1]
        parts = parts_for(len(dy), 8 * dx.size)
        sizes = (parts, *input_shape, *dy.shape[1:3], *stride)
        kernel = _max_pool_backward_task(_group(input_shape[3]), *pool_size, overlap, dy.dtype, winners.dtype)
        run(kernel, parts, sizes, dy, winners, dx)
    return dx


@in_tasks
def lead(best, winner, cell, number):
    """The maximum of a window's cells and its number, with one cell more: of equals the first stays."""
    leads = greater_or_nan(cell, best)
    return select(leads, cell, best), select(leads, number, winner)


def _group(channels: int) -> int:
    """How many channels to go through at once: as a number that the compiler knows, they become vector operations."""
    return min(16, 1 << (channels.bit_length() - 1))


@cache
def _max_pool_task(L: int, pool_h: int, pool_w: int, dtype: np.dtype, winner_dtype: np.dtype):
    @task(dtype, dtype, winner_dtype)
    def max_pool(part, sizes, x, y, winners):
        parts, N, H, W, C, out_h, out_w, stride_h, stride_w = numbers(sizes, 9)
        for line in range(part * N * out_h // parts, (part + 1) * N * out_h // parts):
            top = (line // out_h) * H + (line % out_h) * stride_h
            for j in range(out_w):
                here, there = (top * W + j * stride_w) * C, (line * out_w + j) * C
                for group in range(0, C, L):
                    c = min(group, C - L)  # the last group may repeat channels of the one before it
                    best, winner = read(x, here + c, L, L), zeros(winners, L)
                    for a in range(pool_h):
                        for b in range(pool_w):
                            cell = read(x, here + (a * W + b) * C + c, L, L)
                            best, winner = lead(best, winner, cell, a * pool_w + b)
                    write(y, there + c, best, L)
                    write(winners, there + c, winner, L)

    return max_pool


@cache
def _max_pool_backward_task(L: int, pool_h: int, pool_w: int, overlap: bool, dtype: np.dtype, winner_dtype: np.dtype):
    @task(dtype, winner_dtype, dtype)
    def max_pool_backward(part, sizes, dy, winners, dx):
        parts, N, H, W, C, out_h, out_w, stride_h, stride_w = numbers(sizes, 9)
        all_are_written = not overlap and out_h * pool_h == H and out_w * pool_w == W
        for n in range(part * N // parts, (part + 1) * N // parts):
            if not all_are_written:
                clear_numbers(dx, n * H * W * C, H * W * C)
            for i in range(out_h):
                for j in range(out_w):
                    here = ((n * H + i * stride_h) * W + j * stride_w) * C
                    there = ((n * out_h + i) * out_w + j) * C
                    zero = zeros(dx, L)
                    for group in range(0, C, L):
                        c = group if overlap else min(group, C - L)
                        width = min(L, C - c)
                        gradient, winner = read(dy, there + c, width, L), read(winners, there + c, width, L)
                        for a in range(pool_h):
                            for b in range(pool_w):
                                cell = here + (a * W + b) * C + c
                                before = read(dx, cell, width if overlap else 0, L)  # zeros if windows don't overlap
                                won = equals(winner, a * pool_w + b)
                                write(dx, cell, before + select(won, gradient, zero), width)

    return max_pool_backward
